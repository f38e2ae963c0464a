#include "tensor_map.h"

#include <dlfcn.h>

namespace swinopt {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's, found at run time: where engines are built for other machines there may be none.
Encode encode() {
    static Encode const found = [] {
        void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
        return driver ? reinterpret_cast<Encode>(dlsym(driver, "cuTensorMapEncodeTiled")) : nullptr;
    }();
    return found;
}

}  // namespace

bool describe_tensor(CUtensorMap& map, DType dtype, void const* tensor, int axes, cuuint64_t const* size,
                     cuuint64_t const* pitch, cuuint32_t const* box, CUtensorMapSwizzle swizzle) {
    if (!encode()) return false;
    CUtensorMapDataType const type =
        dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    cuuint32_t const step[] = {1, 1, 1, 1, 1};
    // To the L2 cache comes what lies beside a line of the box as well, as much again.
    CUtensorMapL2promotion const promotion = swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
                                                                                  : CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
    return encode()(&map, type, axes, const_cast<void*>(tensor), size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    swizzle, promotion, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

}  // namespace swinopt

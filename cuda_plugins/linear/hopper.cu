#include "hopper.h"

#include <dlfcn.h>

#include "../common/launch_kernel.cuh"
#include "hopper.cuh"

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

// Of a row-major [rows, columns] matrix, in boxes of 64 x 64.
bool describe(CUtensorMap& map, DType dtype, void const* matrix, int rows, int columns) {
    CUtensorMapDataType const type =
        dtype == DType::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    cuuint64_t const size[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    cuuint64_t const pitch[] = {2 * static_cast<cuuint64_t>(columns)};
    cuuint32_t const box[] = {64, 64}, step[] = {1, 1};
    return encode()(&map, type, 2, const_cast<void*>(matrix), size, pitch, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                    CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class T>
auto kernel_of(int columns) {
    return columns == 64 ? &hopper_linear_kernel<T, 64> : &hopper_linear_kernel<T, 128>;
}

}  // namespace

cudaError_t hopper_linear(LinearParams const& p, DType dtype, HopperShape const& shape, Device const& device,
                          cudaStream_t stream) {
    if (!hopper_can(p, shape, device)) return cudaErrorInvalidValue;
    HopperLinear arguments{};
    if (!encode() || !describe(arguments.x, dtype, p.x, p.rows, p.inputs) ||
        !describe(arguments.weight, dtype, p.weight, p.inputs, p.outputs))
        return cudaErrorNotSupported;
    arguments.bias = p.bias;
    arguments.residual = p.residual;
    arguments.output = p.output;
    arguments.rows = p.rows;
    arguments.outputs = p.outputs;
    arguments.gelu = p.gelu;
    arguments.chunks = hopper_chunks(p, shape);
    arguments.split = shape.split;
    arguments.stages = shape.stages;
    auto const kernel =
        dtype == DType::kFloat16 ? kernel_of<__half>(shape.columns) : kernel_of<__nv_bfloat16>(shape.columns);
    // Always as much: other threads may launch the same kernel in a larger shape.
    cudaError_t const status =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
    if (status != cudaSuccess) return status;
    unsigned const column_tiles = (p.outputs - 1) / shape.columns + 1, row_tiles = (p.rows - 1) / kHopperRows + 1;
    return launch_kernel(kernel, arguments, {column_tiles * shape.split, row_tiles}, 32 * kHopperWarps,
                         hopper_shared_bytes(shape), dtype, device, stream, shape.split);
}

}  // namespace swinopt

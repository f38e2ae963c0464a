// In place of the driver's tensor maps: ones that the emulation can read, with those of the driver's rules that boxes of
// 16-bit numbers can break.
#include "tensor_map.h"

#include <cuda_runtime_api.h>

namespace swinopt {

bool describe_tensor(CUtensorMap& map, DType, void const* tensor, int axes, cuuint64_t const* size,
                     cuuint64_t const* pitch, cuuint32_t const* box, CUtensorMapSwizzle swizzle) {
    if (!emulation::driver_has_tensor_maps) return false;
    map = {};
    map.tensor = static_cast<unsigned char const*>(tensor), map.axes = axes, map.swizzle = swizzle;
    if (reinterpret_cast<std::uintptr_t>(tensor) % 16) emulation::fail("a tensor map of a tensor that is not aligned");
    if (2 * box[0] > (swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 64 : 128)) emulation::fail("a box wider than its swizzle");
    if (2 * box[0] % 16) emulation::fail("a box of lines that are no multiple of 16 bytes");
    for (int axis = 0; axis < axes; ++axis) {
        map.size[axis] = size[axis], map.box[axis] = box[axis];
        map.pitch[axis] = axis ? pitch[axis - 1] : 2;
        if (!size[axis] || !box[axis] || box[axis] > 256) emulation::fail("a tensor map without elements, or a large box");
        if (size[axis] > 1ull << 32 || (axis && map.pitch[axis] >= 1ull << 40)) emulation::fail("too large a tensor map");
        if (axis && map.pitch[axis] % 16) emulation::fail("a tensor map with rows that are not aligned");
    }
    return true;
}

}  // namespace swinopt

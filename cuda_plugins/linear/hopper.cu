#include "hopper.h"

#include "../common/launch_kernel.cuh"
#include "../common/tensor_map.h"
#include "hopper.cuh"

namespace swinopt {
namespace {

// Of a row-major [rows, columns] matrix, in boxes of 64 x 64.
bool describe(CUtensorMap& map, DType dtype, void const* matrix, int rows, int columns) {
    cuuint64_t const size[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
    return describe_tensor(map, dtype, matrix, size, {2 * static_cast<cuuint64_t>(columns)}, {64, 64},
                           CU_TENSOR_MAP_SWIZZLE_128B);
}

template <class T>
auto kernel_of(int columns) {
    return columns == 64 ? &hopper_linear_kernel<T, 64> : &hopper_linear_kernel<T, 128>;
}

}  // namespace

cudaError_t hopper_linear(LinearParams const& p, DType dtype, HopperShape const& shape, Device const& device,
                          cudaStream_t stream) {
    if (dtype == DType::kFloat32 || !hopper_can(p, shape, device)) return cudaErrorInvalidValue;
    HopperLinear arguments{};
    if (!describe(arguments.x, dtype, p.x, p.rows, p.inputs) ||
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
    unsigned const column_tiles = (p.outputs - 1) / shape.columns + 1, row_tiles = (p.rows - 1) / kHopperRows + 1;
    return launch_kernel(kernel, arguments, {column_tiles * shape.split, row_tiles}, 32 * kHopperWarps,
                         hopper_shared_bytes(shape), dtype, device, stream, shape.split);
}

}  // namespace swinopt

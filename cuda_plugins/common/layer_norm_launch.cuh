// From a plan to one of the compiled kernels on layer_norm.cuh.
#pragma once

#include <utility>

#include "launch_kernel.cuh"
#include "layer_norm.cuh"
#include "layer_norm_plan.h"
#include "types.h"

namespace swinopt {

// Kernels<T> has the kernels of one op: in_registers<lanes, vectors>() for every shape, and any().
template <class Kernels, std::size_t... kIndices>
auto layer_norm_kernel(LayerNormPlan const& plan, std::index_sequence<kIndices...>) -> decltype(Kernels::any()) {
    auto kernel = Kernels::any();
    ((plan.lanes == kLayerNormShapes[kIndices].lanes && plan.vectors == kLayerNormShapes[kIndices].vectors
          ? void(kernel = Kernels::template in_registers<kLayerNormShapes[kIndices].lanes,
                                                         kLayerNormShapes[kIndices].vectors>())
          : void()),
     ...);
    return kernel;
}

// Enqueues the plan's kernel.
template <template <class> class Kernels, class Params>
cudaError_t launch_layer_norm(LayerNormPlan const& plan, Params const& params, DType dtype, Device const& device,
                              cudaStream_t stream) {
    constexpr std::make_index_sequence<sizeof(kLayerNormShapes) / sizeof(kLayerNormShapes[0])> shapes{};
    void (*kernel)(Params) = nullptr;
    switch (dtype) {
        case DType::kFloat32: kernel = layer_norm_kernel<Kernels<float>>(plan, shapes); break;
        case DType::kFloat16: kernel = layer_norm_kernel<Kernels<__half>>(plan, shapes); break;
        case DType::kBFloat16: kernel = layer_norm_kernel<Kernels<__nv_bfloat16>>(plan, shapes); break;
    }
    return launch_kernel(kernel, params, plan.grid, plan.block, 0, dtype, device, stream);
}

}  // namespace swinopt

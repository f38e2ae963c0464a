// From a plan to one of the compiled kernels on layer_norm.cuh.
#pragma once

#include <utility>

#include "layer_norm.cuh"
#include "layer_norm_plan.h"

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
template <class Kernels, class Params>
cudaError_t launch_layer_norm(LayerNormPlan const& plan, Params params, cudaStream_t stream) {
    constexpr std::size_t kShapes = sizeof(kLayerNormShapes) / sizeof(kLayerNormShapes[0]);
    auto const kernel = layer_norm_kernel<Kernels>(plan, std::make_index_sequence<kShapes>());
    void* arguments[] = {&params};
    return cudaLaunchKernel(reinterpret_cast<void const*>(kernel), dim3(plan.grid), dim3(plan.block), arguments, 0,
                            stream);
}

}  // namespace swinopt

#include "launch.h"

#include "../common/layer_norm_launch.cuh"
#include "kernel.cuh"

namespace swinopt {

namespace {

template <bool kResidual>
struct Kernels {
    template <class T>
    struct Of {
        template <int kLanes, int kVectors>
        static auto in_registers() {
            return &layer_norm<T, kLanes, kVectors, kResidual>;
        }
        static auto any() { return &layer_norm_any<T, kResidual>; }
    };
};

}  // namespace

cudaError_t layer_norm(LayerNormParams const& p, DType dtype, Device const& device, cudaStream_t stream) {
    bool const placed = are_aligned({p.x, p.gamma, p.beta, p.residual, p.output}, size_of(dtype));
    if (!placed || layer_norm_unsupported(p, dtype, device)) return cudaErrorInvalidValue;
    LayerNormPlan const plan = layer_norm_plan(p, dtype);
    return p.residual ? launch_layer_norm<Kernels<true>::Of>(plan, p, dtype, device, stream)
                      : launch_layer_norm<Kernels<false>::Of>(plan, p, dtype, device, stream);
}

}  // namespace swinopt

#include "launch.h"

#include "../common/layer_norm_launch.cuh"
#include "kernel.cuh"

namespace swinopt {

namespace {

template <class T>
struct Kernels {
    template <int kLanes, int kVectors>
    static auto in_registers() {
        return &add_layer_norm<T, kLanes, kVectors>;
    }
    static auto any() { return &add_layer_norm_any<T>; }
};

}  // namespace

cudaError_t add_layer_norm(AddLayerNormParams const& p, DType dtype, Device const& device, cudaStream_t stream) {
    bool const placed = are_aligned({p.a, p.b, p.gamma, p.beta, p.sum, p.normalized}, size_of(dtype));
    if (!placed || add_layer_norm_unsupported(p, dtype, device)) return cudaErrorInvalidValue;
    return launch_layer_norm<Kernels>(add_layer_norm_plan(p, dtype), p, dtype, device, stream);
}

}  // namespace swinopt

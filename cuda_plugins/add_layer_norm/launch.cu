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
    LayerNormPlan const plan = add_layer_norm_plan(p, dtype);
    switch (dtype) {
        case DType::kFloat32: return launch_layer_norm<Kernels<float>>(plan, p, stream);
        case DType::kFloat16: return launch_layer_norm<Kernels<__half>>(plan, p, stream);
        case DType::kBFloat16: return launch_layer_norm<Kernels<__nv_bfloat16>>(plan, p, stream);
    }
    return cudaErrorInvalidValue;
}

}  // namespace swinopt

#include "launch.h"

#include "../common/layer_norm_launch.cuh"
#include "kernel.cuh"

namespace swinopt {

namespace {

template <class T>
struct Kernels {
    template <int kLanes, int kVectors>
    static auto in_registers() {
        return &patch_merging<T, kLanes, kVectors>;
    }
    static auto any() { return &patch_merging_any<T>; }
};

}  // namespace

cudaError_t patch_merging(PatchMergingParams const& p, DType dtype, Device const& device, cudaStream_t stream) {
    bool const placed = are_aligned({p.x, p.gamma, p.beta, p.output}, size_of(dtype));
    if (!placed || patch_merging_unsupported(p, dtype, device)) return cudaErrorInvalidValue;
    return launch_layer_norm<Kernels>(patch_merging_plan(p, dtype), p, dtype, device, stream);
}

}  // namespace swinopt

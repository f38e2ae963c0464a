#include "hopper_tiled.cuh"

#include <algorithm>

#include "../common/launch_kernel.cuh"

namespace swinopt {
namespace {

using Kernel = void (*)(HopperTiledAttention);

template <class T>
Kernel kernel_of(int keys, bool cosine) {
    if (keys == 48)
        return cosine ? hopper_tiled_window_attention_kernel<T, 48, true>
                      : hopper_tiled_window_attention_kernel<T, 48, false>;
    return cosine ? hopper_tiled_window_attention_kernel<T, 64, true>
                  : hopper_tiled_window_attention_kernel<T, 64, false>;
}

}  // namespace

cudaError_t hopper_tiled_attention(WindowAttentionParams params, HopperTiledPlan const& plan, DType dtype,
                                   Device const& device, cudaStream_t stream) {
    HopperTiledAttention arguments{};
    params.mask_value = std::max(params.mask_value, kHopperLowestTiledMask);
    if (!describe_windows(arguments, params, plan, dtype)) return cudaErrorNotSupported;
    arguments.tiles = plan.tiles;
    bool const cosine = params.logit_scale != nullptr;
    int const keys = window_attention_tile_keys(params.window[1] * params.window[2]);
    Kernel const kernel =
        dtype == DType::kFloat16 ? kernel_of<__half>(keys, cosine) : kernel_of<__nv_bfloat16>(keys, cosine);
    dim3 const blocks(params.num_heads, plan.chunks, plan.splits);
    return launch_kernel(kernel, arguments, blocks, plan.threads, plan.shared_bytes, dtype, device, stream);
}

}  // namespace swinopt

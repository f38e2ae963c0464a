#include "hopper.cuh"

#include <algorithm>

#include "../common/launch_kernel.cuh"
#include "launch.h"

namespace swinopt {
namespace {

using Kernel = void (*)(HopperWindowAttention);

template <class T>
Kernel kernel_of(int key_tiles, bool cosine) {
    if (key_tiles == 7)
        return cosine ? hopper_window_attention_kernel<T, 7, true> : hopper_window_attention_kernel<T, 7, false>;
    return cosine ? hopper_window_attention_kernel<T, 8, true> : hopper_window_attention_kernel<T, 8, false>;
}

}  // namespace

cudaError_t hopper_window_attention(WindowAttentionParams params, HopperWindowPlan const& plan, DType dtype,
                                    Device const& device, cudaStream_t stream) {
    HopperWindowAttention arguments{};
    params.heads_per_block = plan.heads;
    params.mask_value = std::max(params.mask_value, kHopperLowestMask / params.inverse_scale);
    if (!describe_windows(arguments, params, plan, dtype, plan.less)) return cudaErrorNotSupported;
    int const tokens = params.window[1] * params.window[2];
    arguments.layout = hopper_window_layout(tokens, plan);
    int const tiles = tokens <= 56 ? 7 : 8;
    bool const cosine = params.logit_scale != nullptr;
    Kernel const kernel =
        dtype == DType::kFloat16 ? kernel_of<__half>(tiles, cosine) : kernel_of<__nv_bfloat16>(tiles, cosine);
    dim3 const blocks(params.num_heads / plan.heads, plan.chunks);
    return launch_kernel(kernel, arguments, blocks, plan.threads, plan.shared_bytes, dtype, device, stream);
}

}  // namespace swinopt

#include "kernel.cuh"
#include "launch.h"

namespace swinopt {
namespace {

using Kernel = void (*)(WindowAttentionParams);

template <class T, bool kCosine>
Kernel small_kernel(int keys) {
    switch (keys) {
        case 32: return window_attention_small<T, 4, kCosine>;
        case 56: return window_attention_small<T, 7, kCosine>;
        default: return window_attention_small<T, 8, kCosine>;
    }
}

template <class T, int kKeys, bool kCosine>
Kernel tiled_kernel(int dim) {
    switch (dim) {
        case 16: return window_attention_tiled<T, 16, kKeys, kCosine>;
        case 32: return window_attention_tiled<T, 32, kKeys, kCosine>;
        case 64: return window_attention_tiled<T, 64, kKeys, kCosine>;
        case 96: return window_attention_tiled<T, 96, kKeys, kCosine>;
        default: return window_attention_tiled<T, 128, kKeys, kCosine>;
    }
}

template <bool kCosine>
Kernel single_kernel(int dim) {
    switch (dim) {
        case 32: return window_attention_single<32, kCosine>;
        case 64: return window_attention_single<64, kCosine>;
        default: return window_attention_single<128, kCosine>;
    }
}

template <class T, bool kCosine>
Kernel half_kernel(WindowAttentionPlan const& plan) {
    if (plan.kernel == WindowAttentionKernel::kSmall) return small_kernel<T, kCosine>(plan.keys);
    return plan.keys == 48 ? tiled_kernel<T, 48, kCosine>(plan.dim) : tiled_kernel<T, 64, kCosine>(plan.dim);
}

template <bool kCosine>
Kernel kernel_of(WindowAttentionPlan const& plan, DType dtype) {
    if (plan.kernel == WindowAttentionKernel::kSingle) return single_kernel<kCosine>(plan.dim);
    return dtype == DType::kFloat16 ? half_kernel<__half, kCosine>(plan) : half_kernel<__nv_bfloat16, kCosine>(plan);
}

}  // namespace

cudaError_t window_attention(WindowAttentionParams params, DType dtype, Device const& device, cudaStream_t stream) {
    if (window_attention_unsupported(params, dtype, device)) return cudaErrorInvalidValue;
    if (!is_aligned(params, size_of(dtype))) return cudaErrorMisalignedAddress;
    WindowAttentionPlan const plan = plan_window_attention(params, dtype, device);
    Kernel const kernel = params.logit_scale ? kernel_of<true>(plan, dtype) : kernel_of<false>(plan, dtype);
    if (plan.shared_bytes > 48 * 1024) {
        cudaError_t const status =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes);
        if (status != cudaSuccess) return status;
    }
    kernel<<<plan.blocks, plan.threads, plan.shared_bytes, stream>>>(params);
    return cudaPeekAtLastError();
}

}  // namespace swinopt

#include "launch.h"

#include "../common/launch_kernel.cuh"
#include "hopper.h"
#include "hopper_tiled.h"
#include "kernel.cuh"

namespace swinopt {
namespace {

using Kernel = void (*)(WindowAttentionParams);

template <class T, int kTiles, bool kCosine>
Kernel small_kernel_of(int row_tiles) {
    constexpr int kAll = (kTiles + 1) / 2;
    switch (row_tiles) {
        case 1: return window_attention_small<T, kTiles, 1, kCosine>;
        case 2: return window_attention_small<T, kTiles, 2, kCosine>;
        default: return window_attention_small<T, kTiles, kAll, kCosine>;
    }
}

template <class T, bool kCosine>
Kernel small_kernel(WindowAttentionPlan const& plan) {
    switch (plan.keys) {
        case 32: return small_kernel_of<T, 4, kCosine>(plan.row_tiles);
        case 56: return small_kernel_of<T, 7, kCosine>(plan.row_tiles);
        default: return small_kernel_of<T, 8, kCosine>(plan.row_tiles);
    }
}

template <class T, int kDim, int kKeys, bool kCosine>
Kernel tiled_kernel_of() {
    static_assert(sizeof(TiledStorage<T, kDim, kKeys>) == tiled_storage_bytes(sizeof(T), kDim, kKeys));
    return window_attention_tiled<T, kDim, kKeys, kCosine>;
}

template <class T, int kKeys, bool kCosine>
Kernel tiled_kernel_with(int dim) {
    if constexpr (sizeof(T) == 2) {
        if (dim == 16) return tiled_kernel_of<T, 16, kKeys, kCosine>();
    }
    switch (dim) {
        case 32: return tiled_kernel_of<T, 32, kKeys, kCosine>();
        case 64: return tiled_kernel_of<T, 64, kKeys, kCosine>();
        case 96: return tiled_kernel_of<T, 96, kKeys, kCosine>();
        default: return tiled_kernel_of<T, 128, kKeys, kCosine>();
    }
}

template <class T, bool kCosine>
Kernel tiled_kernel(WindowAttentionPlan const& plan) {
    if constexpr (sizeof(T) == 4) {
        if (plan.keys == 56) return tiled_kernel_of<T, 32, 56, kCosine>();
    }
    return plan.keys == 48 ? tiled_kernel_with<T, 48, kCosine>(plan.dim) : tiled_kernel_with<T, 64, kCosine>(plan.dim);
}

template <int kDim, bool kCosine>
Kernel single_kernel_of() {
    static_assert(sizeof(SingleStorage<kDim>) == single_storage_bytes(kDim));
    return window_attention_single<kDim, kCosine>;
}

template <bool kCosine>
Kernel single_kernel(int dim) {
    switch (dim) {
        case 32: return single_kernel_of<32, kCosine>();
        case 64: return single_kernel_of<64, kCosine>();
        default: return single_kernel_of<128, kCosine>();
    }
}

template <class T, bool kCosine>
Kernel half_kernel(WindowAttentionPlan const& plan) {
    if (plan.kernel == WindowAttentionKernel::kSmall) return small_kernel<T, kCosine>(plan);
    return tiled_kernel<T, kCosine>(plan);
}

template <bool kCosine>
Kernel float_kernel(WindowAttentionPlan const& plan) {
    if (plan.kernel == WindowAttentionKernel::kTiled) return tiled_kernel<float, kCosine>(plan);
    return single_kernel<kCosine>(plan.dim);
}

template <bool kCosine>
Kernel kernel_of(WindowAttentionPlan const& plan, DType dtype) {
    if (dtype == DType::kFloat32) return float_kernel<kCosine>(plan);
    return dtype == DType::kFloat16 ? half_kernel<__half, kCosine>(plan) : half_kernel<__nv_bfloat16, kCosine>(plan);
}

}  // namespace

cudaError_t window_attention(WindowAttentionParams params, DType dtype, Device const& device, cudaStream_t stream) {
    if (window_attention_unsupported(params, dtype, device)) return cudaErrorInvalidValue;
    bool const placed = are_aligned({params.qkv, params.relative_position_bias, params.logit_scale, params.pad_qkv,
                                     params.output},
                                    size_of(dtype));
    if (!placed) return cudaErrorMisalignedAddress;
    WindowAttentionPlan const plan = window_attention_plan(params, dtype, device);
    cudaError_t status = cudaErrorNotSupported;
    if (HopperWindowPlan const hopper = hopper_window_plan(params, dtype, device); hopper.heads)
        status = hopper_window_attention(params, hopper, dtype, device, stream);
    else if (HopperTiledPlan const tiled = hopper_tiled_plan(params, dtype, device); tiled.tiles)
        status = hopper_tiled_attention(params, tiled, dtype, device, stream);
    if (status != cudaErrorNotSupported) return status;
    Kernel const kernel = params.logit_scale ? kernel_of<true>(plan, dtype) : kernel_of<false>(plan, dtype);
    return launch_kernel(kernel, params, plan.blocks, plan.threads, plan.shared_bytes, dtype, device, stream);
}

}  // namespace swinopt

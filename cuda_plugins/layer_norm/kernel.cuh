// LayerNorm, and the residual addition of a res-post-norm:
//
//     output = LayerNorm(x) * gamma + beta                  over the last axis
//     output = LayerNorm(x) * gamma + beta + residual       Swin V2, arXiv:2111.09883, section 3.1
//
// For norms between ops that take no LayerNorm in themselves. The addition is in float, before the one rounding to T.
//
// Bound by memory, as add_layer_norm is: a tensor in, or two, and one out. Row and residual are asked for together and
// lie in registers, spread over many lanes (common/layer_norm.cuh); the residual is needed last, and comes meanwhile.
#pragma once

#include "../common/layer_norm.cuh"
#include "params.h"

namespace swinopt {

// kLanes threads compute a row and hold up to kVectors vectors of it each. Every address, and every row, is a
// multiple of 16 bytes.
template <class T, int kLanes, int kVectors, bool kResidual>
__global__ void __launch_bounds__(kLayerNormThreads, kLayerNormBlocks) layer_norm(LayerNormParams const p) {
    let_next_kernel_in();
    using Row = RowInRegisters<T, kLanes, kVectors>;
    long long const number = row_of_thread<kLanes>();
    Row row(number, p.rows, p.channels);
    long long const start = (row.exists ? number : p.rows - 1) * p.channels;

    wait_for_kernels_before();
    uint4 residual[kResidual ? kVectors : 1];  // as it lies in memory: in float it could take twice the registers
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        unpack<T>(load_16_bytes(static_cast<T const*>(p.x) + start + row.channel(i)), row.values[i]);
        if constexpr (kResidual)
            residual[i] = load_16_bytes(static_cast<T const*>(p.residual) + start + row.channel(i));
    }
    row.normalize(p.channels, p.epsilon, static_cast<T const*>(p.gamma), static_cast<T const*>(p.beta));
    if constexpr (kResidual) {
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            float summand[Row::kWidth];
            unpack<T>(residual[i], summand);
#pragma unroll
            for (int j = 0; j < Row::kWidth; ++j) row.values[i][j] += summand[j];
        }
    }
    row.store(static_cast<T*>(p.output) + start);
}

// Rows of any length at any address that T may have; a warp each.
template <class T, bool kResidual>
__global__ void __launch_bounds__(kLayerNormThreads, kLayerNormBlocks) layer_norm_any(LayerNormParams const p) {
    let_next_kernel_in();
    long long const number = row_of_thread<32>();
    if (number >= p.rows) return;
    wait_for_kernels_before();
    long long const start = number * p.channels;
    T const* const x = static_cast<T const*>(p.x) + start;
    T* const output = static_cast<T*>(p.output) + start;

    auto const element = [&](int c) { return to_float(x[c]); };
    auto const store = [&](int c, float y) {
        if constexpr (kResidual) y += to_float(static_cast<T const*>(p.residual)[start + c]);
        output[c] = from_float<T>(y);
    };
    layer_norm_element_by_element(p.channels, p.epsilon, static_cast<T const*>(p.gamma), static_cast<T const*>(p.beta),
                                  element, store);
}

}  // namespace swinopt

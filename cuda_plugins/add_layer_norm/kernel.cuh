// Residual and LayerNorm in one pass:
//
//     sum = a + b                  rounded to T
//     normalized = LayerNorm(a + b) * gamma + beta          over the last axis
//
// The two lines that every transformer has between its branches. The statistics are those of the sum in float, before
// it is rounded: nothing is gained by throwing these bits away first.
//
// Bound by memory: 2 tensors in, 2 out and some 10 flops an element, where a GPU does 50 and more while it moves one.
// Written one by one, the two ops move 5 tensors, and the sum travels to memory and back. So this kernel is as fast as
// its loads are wide and many: the row lies in registers, spread over many lanes (common/layer_norm.cuh), no load waits
// for another, and what every row reads (gamma, beta) stays in the first-level cache.
#pragma once

#include "../common/layer_norm.cuh"
#include "params.h"

namespace swinopt {

// kLanes threads compute a row and hold up to kVectors vectors of it each. Every address, and every row, is a
// multiple of 16 bytes.
template <class T, int kLanes, int kVectors>
__global__ void __launch_bounds__(kLayerNormThreads, kLayerNormBlocks) add_layer_norm(AddLayerNormParams const p) {
    let_next_kernel_in();
    using Row = RowInRegisters<T, kLanes, kVectors>;
    long long const number = row_of_thread<kLanes>();
    Row row(number, p.rows, p.channels);
    long long const start = (row.exists ? number : p.rows - 1) * p.channels;

    wait_for_kernels_before();
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        float b[Row::kWidth];
        unpack<T>(load_16_bytes(static_cast<T const*>(p.a) + start + row.channel(i)), row.values[i]);
        unpack<T>(load_16_bytes(static_cast<T const*>(p.b) + start + row.channel(i)), b);
#pragma unroll
        for (int j = 0; j < Row::kWidth; ++j) row.values[i][j] += b[j];
    }
    row.store(static_cast<T*>(p.sum) + start);
    row.normalize(p.channels, p.epsilon, static_cast<T const*>(p.gamma), static_cast<T const*>(p.beta));
    row.store(static_cast<T*>(p.normalized) + start);
}

// Rows of any length at any address that T may have; a warp each.
template <class T>
__global__ void __launch_bounds__(kLayerNormThreads, kLayerNormBlocks) add_layer_norm_any(AddLayerNormParams const p) {
    let_next_kernel_in();
    long long const number = row_of_thread<32>();
    if (number >= p.rows) return;
    wait_for_kernels_before();
    long long const start = number * p.channels;
    T const* const a = static_cast<T const*>(p.a) + start;
    T const* const b = static_cast<T const*>(p.b) + start;
    T* const sum = static_cast<T*>(p.sum) + start;
    T* const normalized = static_cast<T*>(p.normalized) + start;

    auto const element = [&](int c) { return to_float(a[c]) + to_float(b[c]); };
    auto const store = [&](int c, float y) {
        sum[c] = from_float<T>(element(c));
        normalized[c] = from_float<T>(y);
    };
    layer_norm_element_by_element(p.channels, p.epsilon, static_cast<T const*>(p.gamma), static_cast<T const*>(p.beta),
                                  element, store);
}

}  // namespace swinopt

// Patch merging up to its reduction, in one pass (Liu et al. 2021, arXiv:2103.14030, section 3.1):
//
//     merged[b, i, j, (dy, dx, c)] = x[b, 2 i + dy, 2 j + dx, c]         dy, dx in {0, 1}; zero beyond an odd map
//     output = LayerNorm(merged) * gamma + beta                         over all 4 C features
//
// The published code orders the features (dx, dy, c). That is a permutation of gamma, beta and the reduction's rows; in
// the order (dy, dx, c) the 2 C features of two horizontal neighbours are one run in memory. Zeros beyond the map take
// part in the statistics, as they do in the original.
//
// Bound by memory: every element is read once and written once, with some 10 flops between. As a gather followed by a
// norm it would be moved four times. The scheme is that of common/layer_norm.cuh: a merged token lies in the registers
// of several lanes, which collect it from two runs of the map, 16 bytes a load, and no load waits for another.
#pragma once

#include "../common/layer_norm.cuh"
#include "params.h"

namespace swinopt {

// How many tokens are made. Written such that no size overflows.
__device__ __forceinline__ unsigned merged_tokens(PatchMergingParams const& p) {
    return static_cast<unsigned>(p.batch) * ((p.height - 1) / 2 + 1) * ((p.width - 1) / 2 + 1);
}

// The 2 x 2 neighbours that become one token.
template <class T>
struct Neighbours {
    T const* corner;  // the upper left one
    int channels;
    long long line;  // elements from one line of the map to the next
    int last_dy, last_dx;  // 0 where the neighbours below, or to the right, lie beyond the map

    __device__ __forceinline__ Neighbours(PatchMergingParams const& p, unsigned token)
        : channels(p.channels), line(static_cast<long long>(p.width) * p.channels) {
        unsigned const columns = (p.width - 1) / 2 + 1, lines = (p.height - 1) / 2 + 1;
        unsigned const row = token / columns, image = row / lines;
        int const i = row - image * lines, j = token - row * columns;
        corner = static_cast<T const*>(p.x) + (static_cast<long long>(image) * p.height + 2 * i) * line +
                 2 * static_cast<long long>(j) * channels;
        last_dy = 2 * i + 1 < p.height;
        last_dx = 2 * j + 1 < p.width;
    }

    // Whether feature f of the merged token lies in the map.
    __device__ __forceinline__ bool has(int f) const {
        int const dy = f >= 2 * channels, dx = f - dy * 2 * channels >= channels;
        return dy <= last_dy && dx <= last_dx;
    }

    // Where it lies.
    __device__ __forceinline__ T const* at(int f) const {
        int const dy = f >= 2 * channels;
        return corner + dy * line + (f - dy * 2 * channels);
    }
};

// kLanes threads compute a merged token and hold up to kVectors vectors of it each. Every address, and C elements, are
// a multiple of 16 bytes.
template <class T, int kLanes, int kVectors>
__global__ void __launch_bounds__(kLayerNormThreads, kLayerNormBlocks) patch_merging(PatchMergingParams const p) {
    let_next_kernel_in();
    using Row = RowInRegisters<T, kLanes, kVectors>;
    unsigned const tokens = merged_tokens(p);
    long long const number = row_of_thread<kLanes>();
    int const features = 4 * p.channels;
    Row row(number, tokens, features);
    unsigned const token = row.exists ? static_cast<unsigned>(number) : tokens - 1;
    Neighbours<T> const neighbours(p, token);

    wait_for_kernels_before();
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
        int const f = row.channel(i);
        bool const has = neighbours.has(f);
        uint4 const bits = load_16_bytes(has ? neighbours.at(f) : neighbours.corner);
        unpack<T>(has ? bits : uint4{0, 0, 0, 0}, row.values[i]);
    }
    row.normalize(features, p.epsilon, static_cast<T const*>(p.gamma), static_cast<T const*>(p.beta));
    row.store(static_cast<T*>(p.output) + static_cast<long long>(token) * features);
}

// Any number of channels at any address that T may have; a warp each.
template <class T>
__global__ void __launch_bounds__(kLayerNormThreads, kLayerNormBlocks) patch_merging_any(PatchMergingParams const p) {
    let_next_kernel_in();
    unsigned const tokens = merged_tokens(p);
    long long const token = row_of_thread<32>();
    if (token >= tokens) return;
    wait_for_kernels_before();
    int const features = 4 * p.channels;
    T* const output = static_cast<T*>(p.output) + token * features;
    Neighbours<T> const neighbours(p, static_cast<unsigned>(token));

    auto const element = [&](int f) { return neighbours.has(f) ? to_float(*neighbours.at(f)) : 0.0f; };
    auto const store = [&](int f, float y) { output[f] = from_float<T>(y); };
    layer_norm_element_by_element(features, p.epsilon, static_cast<T const*>(p.gamma), static_cast<T const*>(p.beta),
                                  element, store);
}

}  // namespace swinopt

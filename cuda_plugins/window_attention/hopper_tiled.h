// window_attention on Hopper, windows of more than 64 tokens: what the kernel takes, and how it cuts its work. Host code,
// no CUDA calls.
#pragma once

#include <algorithm>

#include "hopper.h"

namespace swinopt {

constexpr int kHopperMostTokens = 256, kHopperQueries = 64;  // of a window; of a warpgroup

// Warps that compute nothing, a warpgroup of them: one that brings windows, and those that make keys directions.
constexpr int kHopperHelpers = 4, kHopperNormalizers = 3;

// What hides a key, and still lets a tile that is hidden altogether have a largest score that, times log2(e), is rounded
// by next to nothing. A bias of minus infinity hides no more than its least does.
constexpr float kHopperLowestTiledMask = -3e4f, kHopperLowestBias = -6e4f;

struct HopperTiledPlan {
    int tiles;    // of queries, of a block: a warpgroup for each
    int splits;   // blocks that share out the queries of a window
    int abreast;  // windows that a block computes at the same time
    int stages;   // windows that a block has room for
    int chunks;   // that the windows are dealt out in
    int threads;
    int shared_bytes;
};

// Warpgroups of a block beside that of the helpers, by the keys of a tile. All threads begin with as many registers as
// there are for so many; then helpers keep a few, and the others share out the rest.
constexpr int hopper_most_groups(int keys) { return keys == 64 ? 4 : 6; }
constexpr int hopper_first_registers(int keys) { return 65536 / (128 * (hopper_most_groups(keys) + 1)) / 8 * 8; }
constexpr int hopper_helper_registers(int keys) { return keys == 64 ? 32 : 24; }
constexpr int hopper_registers(int keys) {
    int const given = hopper_first_registers(keys) - hopper_helper_registers(keys);
    return hopper_first_registers(keys) + given / hopper_most_groups(keys) / 8 * 8;
}

inline int hopper_query_tiles(int tokens) { return (tokens + kHopperQueries - 1) / kHopperQueries; }

inline int hopper_tiled_shared_bytes(int tokens, int tiles, int stages) {
    int const tile_keys = window_attention_tile_keys(tokens), keys = (tokens + tile_keys - 1) / tile_keys * tile_keys;
    int const window = 2 * kHopperHead * (kHopperQueries * hopper_query_tiles(tokens) + 2 * keys), barriers = 24;
    int const bias = 2 * kHopperQueries * tiles * keys;
    return stages * (window + barriers) + bias;
}

// For what window_attention_plan() has filled in; `tiles` is 0 where the kernel cannot do it, or has too little to do.
inline HopperTiledPlan hopper_tiled_plan(WindowAttentionParams const& p, DType dtype, Device const& device) {
    HopperTiledPlan plan{};
    int const n = p.window[1] * p.window[2], tiles = hopper_query_tiles(n), keys = window_attention_tile_keys(n);
    long long const windows = window_attention_windows(p), work = windows * p.num_heads, most = device.multiprocessors;
    // Two neighbouring keys are read in one go.
    bool const pairs = p.window[2] % 2 == 0 && p.shift[2] % 2 == 0 && are_aligned({p.relative_position_bias}, 4);
    if (!hopper_brings(p, dtype, device) || n <= kHopperLargest || n > kHopperMostTokens || !pairs) return plan;
    if (keys == 48 && work * tiles < most) return plan;  // the other kernel begins sooner
    plan.splits = 1;
    while (plan.splits < tiles && (work * plan.splits < most || tiles % plan.splits)) ++plan.splits;
    plan.tiles = tiles / plan.splits;
    plan.chunks = static_cast<int>(std::min(windows, std::max(1ll, most / (p.num_heads * plan.splits))));
    int const each = static_cast<int>((windows + plan.chunks - 1) / plan.chunks);
    auto const bytes = [&] { return hopper_tiled_shared_bytes(n, plan.tiles, plan.stages); };
    plan.abreast = std::min(each, hopper_most_groups(keys) / plan.tiles);
    plan.stages = std::min(each, 2 * plan.abreast);
    while (plan.stages > 1 && bytes() > device.shared_bytes) --plan.stages;
    plan.abreast = std::min(plan.abreast, plan.stages);
    plan.threads = 128 * plan.tiles * plan.abreast + 32 * kHopperHelpers;
    plan.shared_bytes = bytes();
    return plan.shared_bytes <= device.shared_bytes ? plan : HopperTiledPlan{};
}

// Enqueues it. cudaErrorNotSupported where the driver knows no tensor maps, or this library was compiled without the
// kernel.
cudaError_t hopper_tiled_attention(WindowAttentionParams params, HopperTiledPlan const& plan, DType dtype,
                                   Device const& device, cudaStream_t stream);

}  // namespace swinopt

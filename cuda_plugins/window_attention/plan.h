// What window_attention can do, and how it cuts its work: no CUDA calls. plan.py is the same in Python.
#pragma once

#include "../common/types.h"
#include "params.h"

namespace swinopt {

enum class WindowAttentionKernel : int { kSmall = 0, kTiled = 1, kSingle = 2 };

struct WindowAttentionPlan {
    WindowAttentionKernel kernel;
    int dim;   // channels of a head, rounded up to what there is a kernel for
    int keys;  // of a tile; kSmall: of the window, rounded up to what there is a kernel for
    int blocks;
    int threads;
    int shared_bytes;
    int row_tiles = 0;  // kSmall: of 16 queries, those that a block computes
};

constexpr int kLargestWindow = 1024, kLargestHead = 128, kLargestSmallWindow = 64, kSmallHead = 32;
constexpr int kReserved = 1024;  // bytes of shared memory that CUDA takes for each block
// Hides a key as minus infinity does. But a tile of keys that are all hidden has a largest score, and what becomes of
// it times log2(e), or divided by a small scale, is finite.
constexpr float kLowestMaskValue = -1e30f;

inline long long window_attention_windows(WindowAttentionParams const& p) {
    long long windows = p.batch;
    for (int axis = 0; axis < 3; ++axis) windows *= (p.size[axis] + p.window[axis] - 1) / p.window[axis];
    return windows;
}

// Why there is no kernel for this, or null. Pointers count as present or absent only.
inline char const* window_attention_unsupported(WindowAttentionParams const& p, DType dtype, Device const& device) {
    if (device.capability < 75) return "needs a GPU of compute capability 7.5 (Turing) or newer";
    if (dtype == DType::kBFloat16 && device.capability < 80)
        return "bfloat16 needs a GPU of compute capability 8.0 (Ampere) or newer; take float16 or float32";
    if (p.batch < 1) return "an empty feature map has no windows; give at least one token";
    char const* const too_large = "the feature map is too large: an image may have fewer than 2^27 tokens, and all of "
                                  "them 2^31 windows times heads";
    long long window = 1, image = 1;
    for (int axis = 0; axis < 3; ++axis) {
        if (p.window[axis] < 1 || p.shift[axis] < 0 || p.shift[axis] >= p.window[axis])
            return "window_size must be positive and shift_size must lie in [0, window_size)";
        if (p.size[axis] < 1) return "an empty feature map has no windows; give at least one token";
        if (p.size[axis] % p.window[axis] && !p.pad_qkv)
            return "a size is no multiple of its window, so the input pad_qkv is needed";
        window *= p.window[axis];
        image *= p.size[axis];
        if (window > kLargestWindow) return "windows may have up to 1024 tokens (32 x 32)";
        if (image >= 1ll << 27) return too_large;  // three bits of an int are for other things
    }
    if (p.num_heads < 1 || p.head_dim < 1 || p.head_dim > kLargestHead)
        return "a head may have 1 to 128 channels, and there must be a head";
    long long const most = (1ll << 31) - 1, blocks_of_window = p.num_heads * ((window + 31) / 32);
    if (window_attention_windows(p) > most / blocks_of_window || 3ll * p.num_heads * p.head_dim > most)
        return too_large;
    return nullptr;
}

// Shared memory of a block: what single.cuh and tiled.cuh lay down in structs.
constexpr int single_storage_bytes(int dim) { return 4 * (3 * 32 * (dim + 4) + 4 * 8 * 32 + 2 * 32); }

// size: bytes of an element.
constexpr int tiled_storage_bytes(int size, int dim, int keys) {
    return size * (64 + 2 * (dim <= 64 ? 2 : 1) * keys) * (dim + 16 / size) + 4 * keys;
}

// Keys of a tile: those that leave fewer behind the last one.
inline int window_attention_tile_keys(int window) {
    return (window + 47) / 48 * 48 < (window + 63) / 64 * 64 ? 48 : 64;
}

// For what window_attention_unsupported lets pass; fills in how `p` is cut.
inline WindowAttentionPlan window_attention_plan(WindowAttentionParams& p, DType dtype, Device const& device) {
    auto const ceil_div = [](long long a, long long b) { return static_cast<int>((a + b - 1) / b); };
    int const window = p.window[0] * p.window[1] * p.window[2];
    long long const windows = window_attention_windows(p);
    for (int axis = 0; axis < 3; ++axis) {
        p.windows[axis] = ceil_div(p.size[axis], p.window[axis]);
        p.roll[axis] = p.roll_first ? p.shift[axis] % p.size[axis] : p.shift[axis];
    }
    p.roll_first = p.roll_first != 0;  // kernels count on 0 or 1
    if (p.mask_value < kLowestMaskValue) p.mask_value = kLowestMaskValue;
    p.windows_per_block = p.row_groups = p.heads_per_block = 1;
    p.inverse_scale = p.logit_scale || p.scale == 0 ? 1 : 1 / p.scale;

    int const tiles = window <= 32 ? 4 : window <= 56 ? 7 : 8;
    auto const most_warps = [&](int row_tiles) { return tiles * row_tiles <= 8 ? 16 : 8; };  // as small.cuh says
    int const head_bytes = 4 * window * (tiles % 2 ? 8 * tiles : 8 * tiles + 8);  // of one head's bias in float
    int const warp_bytes = 3 * tiles * 32 * 16;
    bool const is_float = dtype == DType::kFloat32;
    bool const is_small = !is_float && p.head_dim == kSmallHead && window <= kLargestSmallWindow &&
                          are_aligned({p.qkv, p.pad_qkv, p.output}, 16) && (p.logit_scale || p.scale > 1e-6f) &&
                          head_bytes + warp_bytes <= device.shared_bytes &&
                          windows * window * 6 * p.num_heads * kSmallHead < 1ll << 32 && windows < 1ll << 21;
    int const all_row_tiles = ceil_div(window, 16);
    if (!is_small) {
        int const dim = p.head_dim <= 16 && !is_float ? 16
                        : p.head_dim <= 32            ? 32
                        : p.head_dim <= 64            ? 64
                        : p.head_dim <= 96            ? 96
                                                      : 128;
        int keys = window_attention_tile_keys(window);
        if (is_float && dim == 32 && window > 48 && window <= 56) keys = 56;  // windows of 7
        int const row_groups = ceil_div(all_row_tiles, 4), warps = ceil_div(all_row_tiles, row_groups);
        int const query_slots = row_groups * warps * 16, key_slots = ceil_div(window, keys) * keys;
        int const slots = query_slots > key_slots ? query_slots : key_slots;
        int const bytes = tiled_storage_bytes(is_float ? 4 : 2, dim, keys) + 4 * slots;
        if (is_float && (device.capability < 80 || bytes > device.shared_bytes)) {
            int const plain = p.head_dim <= 32 ? 32 : p.head_dim <= 64 ? 64 : 128;
            return {WindowAttentionKernel::kSingle, plain, 32,
                    ceil_div(window, 32) * static_cast<int>(windows) * p.num_heads, 128, single_storage_bytes(plain)};
        }
        p.row_groups = row_groups;
        return {WindowAttentionKernel::kTiled, dim, keys, row_groups * static_cast<int>(windows) * p.num_heads, 32 * warps,
                bytes};
    }
    // The most warps that a multiprocessor takes, as one block or as two, and in a block as many heads side by side as
    // divide the heads.
    int row_tiles = all_row_tiles <= 2 ? all_row_tiles : 4;
    int blocks = 0, warps = 0;
    for (int b = 1; b <= 2; ++b) {
        int const room = (device.shared_bytes + kReserved) / b - kReserved;
        for (int heads = 4; heads >= 1; --heads) {
            int const abreast = (room - heads * head_bytes) / (heads * warp_bytes), most = most_warps(row_tiles) / b;
            int const fit = heads * (abreast * heads < most ? abreast : most / heads);
            if (p.num_heads % heads == 0 && b * fit > blocks * warps) blocks = b, warps = fit, p.heads_per_block = heads;
        }
    }
    // One wave of blocks, so that the bias is read rarely. No wider than it takes to get done in as many rounds.
    int const head_groups = p.num_heads / p.heads_per_block;
    int const blocks_of_group = blocks * device.multiprocessors / head_groups;
    int const share = ceil_div(windows, blocks_of_group > 1 ? blocks_of_group : 1);
    int const rounds = ceil_div(share, warps / p.heads_per_block), abreast = ceil_div(share, rounds);
    p.windows_per_block = abreast * rounds;
    int const chunks = ceil_div(windows, p.windows_per_block) * head_groups;
    int const bytes = p.heads_per_block * (head_bytes + abreast * warp_bytes);
    // A small map leaves multiprocessors idle: then several blocks share the queries of a window.
    long long const by_memory = (device.shared_bytes + kReserved) / (bytes + kReserved);
    while (row_tiles > 1) {
        long long const by_warps = most_warps(row_tiles / 2) / (abreast * p.heads_per_block);
        long long const room = (by_memory < by_warps ? by_memory : by_warps) * device.multiprocessors;
        int const row_groups = ceil_div(all_row_tiles, row_tiles / 2);
        if (static_cast<long long>(row_groups) * chunks > room) break;
        row_tiles /= 2, p.row_groups = row_groups;
    }
    return {WindowAttentionKernel::kSmall, kSmallHead, 8 * tiles, chunks * p.row_groups,
            32 * abreast * p.heads_per_block, bytes, row_tiles};
}

}  // namespace swinopt

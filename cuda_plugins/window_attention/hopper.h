// window_attention on Hopper: what the kernel takes, and how it cuts its work. Host code, no CUDA calls.
#pragma once

#include <algorithm>

#include "../common/launch.h"
#include "params.h"
#include "plan.h"

namespace swinopt {

constexpr int kHopperHead = 32;                           // channels of a head
constexpr int kHopperSmallest = 33, kHopperLargest = 64;  // tokens of a window
constexpr int kHopperMostGroups = 4, kHopperLoaders = 2;  // warpgroups of a block, and warps that bring windows
constexpr int kHopperMaskBytes = 4 * 2048, kHopperBarrierBytes = 16;  // the latter of the two of a place

// What hides a key is added to q k^T as a number of 16 bits: one that is normal in float16. Less than the lowest hides no
// more than that does where this is as much as the other one beside the scores: e^-1000 is 0.
constexpr float kHopperHighestMask = -6.2e-5f, kHopperLowestMask = -4e4f, kHopperHidesAll = -1e3f;

// How a window comes to shared memory: the columns before the seam of the rolled map, then those behind it, which lie
// elsewhere if the seam runs through the window. Its slots are numbered in that order. Where the seam runs through its
// rows, each of the two comes in two boxes.
struct HopperBoxes {
    int widths[2];   // of the columns; the second one is 0 without a shift
    int heights[3];  // all rows; those before the seam and behind it, 0 without a shift
};

inline HopperBoxes hopper_boxes(WindowAttentionParams const& p) {
    int const before = p.shift[1] ? p.window[1] - p.shift[1] : 0;
    return {{p.window[2] - p.shift[2], p.shift[2]}, {p.window[1], before, p.shift[1]}};
}

// Whether windows can come so: those of whole maps of two axes, in 16 bits, at offsets of 32.
inline bool hopper_brings(WindowAttentionParams const& p, DType dtype, Device const& device) {
    HopperBoxes const boxes = hopper_boxes(p);
    long long const windows = window_attention_windows(p), n = p.window[1] * p.window[2];
    auto const is_even = [](int count) { return count % 2 == 0; };
    // A box begins at a multiple of 128 bytes, two tokens.
    bool const even = (!boxes.widths[1] || is_even(p.window[1] * boxes.widths[0])) &&
                      is_even(boxes.heights[1] * boxes.widths[0]) && is_even(boxes.heights[1] * boxes.widths[1]);
    bool const whole = p.size[1] % p.window[1] == 0 && p.size[2] % p.window[2] == 0;
    return device.capability == kHopper && dtype != DType::kFloat32 && p.head_dim == kHopperHead && p.size[0] == 1 &&
           p.window[0] == 1 && whole && even && are_aligned({p.qkv, p.output}, 16) && windows < 1ll << 21 &&
           windows * n * 3 * p.num_heads * kHopperHead < 1ll << 32 && 2ll * p.num_heads * n * n < 1ll << 31;
}

struct HopperWindowPlan {
    int heads;    // of a block, a warpgroup for each
    int abreast;  // windows that a block computes at the same time, warpgroups for each
    int stages;   // windows that a warpgroup has room for
    int chunks;   // that the windows are dealt out in
    int less;     // windows that the last chunk has less
    int threads;
    int shared_bytes;
};

// One head's q, k and v, the latter filled up to a multiple of 16 tokens.
template <int kKeyTiles>
constexpr int kHopperHeadBytes = 64 * (16 * kKeyTiles + (kKeyTiles + 1) / 2 * 16);

// Where a block's shared memory has what, in bytes, behind q, k and v of the windows that there is room for, by warpgroup.
struct HopperWindowLayout {
    int results;   // T [16, 32] of each warp; before them the bias of the block's heads, from 16 bytes to 16 bytes
    int norms;     // float [warpgroups, 2, 2, 64]
    int masks;     // WindowMasks
    int barriers;  // that of the bias, in as many bytes as the two of a place, which follow by place
    int all;
};

inline HopperWindowLayout hopper_window_layout(int tokens, HopperWindowPlan const& plan) {
    int const groups = plan.heads * plan.abreast, places = groups * plan.stages;
    int const results = 4 * 1024 * groups, bias = 2 * plan.heads * tokens * tokens + 2 * 16;
    HopperWindowLayout layout{};
    layout.results = places * (tokens <= 56 ? kHopperHeadBytes<7> : kHopperHeadBytes<8>);
    layout.norms = layout.results + (std::max(results, bias) + 127) / 128 * 128;
    layout.masks = layout.norms + 1024 * groups;
    layout.barriers = layout.masks + kHopperMaskBytes;
    layout.all = layout.barriers + kHopperBarrierBytes * (1 + places);
    return layout;
}

// For what window_attention_plan() has filled in; `heads` is 0 where the kernel cannot do it.
inline HopperWindowPlan hopper_window_plan(WindowAttentionParams const& p, DType dtype, Device const& device) {
    HopperWindowPlan plan{};
    int const n = p.window[1] * p.window[2];
    long long const windows = window_attention_windows(p);
    float const hidden = p.mask_value * p.inverse_scale;
    bool const masks = hidden == 0 || (hidden <= kHopperHighestMask && hidden >= kHopperLowestMask) ||
                       (hidden < kHopperLowestMask && kHopperLowestMask <= kHopperHidesAll * p.inverse_scale);
    if (!hopper_brings(p, dtype, device) || n < kHopperSmallest || n > kHopperLargest || !masks ||
        !are_aligned({p.relative_position_bias}, 16) || (!p.logit_scale && p.scale <= 1e-6f))
        return plan;
    // With few windows the fewest heads, since a block begins when it has the bias of all of its heads.
    long long const work = windows * p.num_heads, most = device.multiprocessors;
    plan.heads = work <= 8 * most ? 1 : p.num_heads % 2 == 0 ? 2 : p.num_heads % 3 == 0 ? 3 : 1;
    plan.chunks = static_cast<int>(std::min(windows, std::max(1ll, most * plan.heads / p.num_heads)));
    int const each = static_cast<int>((windows + plan.chunks - 1) / plan.chunks);
    plan.abreast = std::min(each, kHopperMostGroups / plan.heads);
    // More on its way than it takes lets the first windows wait for all the others.
    plan.stages = std::min(plan.abreast > 1 ? 2 : 3, (each + plan.abreast - 1) / plan.abreast);
    // The last blocks begin only when the kernel before has ended, so their chunk is shorter, if the longest one is no longer
    // for that. Of two turns nothing might be left.
    auto const turns = [&](long long all) { return (all - 1) / (plan.chunks * plan.abreast) + 1; };
    plan.less = turns(windows) > 2 && turns(windows + plan.abreast) == turns(windows) ? plan.abreast : 0;
    plan.shared_bytes = hopper_window_layout(n, plan).all;
    plan.threads = 128 * plan.heads * plan.abreast + 32 * kHopperLoaders;
    return plan.shared_bytes <= device.shared_bytes ? plan : HopperWindowPlan{};
}

// Enqueues it. cudaErrorNotSupported where the driver knows no tensor maps, or this library was compiled without the
// kernel.
cudaError_t hopper_window_attention(WindowAttentionParams params, HopperWindowPlan const& plan, DType dtype,
                                    Device const& device, cudaStream_t stream);

}  // namespace swinopt

// window_attention on Hopper, windows of 33 to 64 tokens in 16 bits.
//
// A warpgroup computes one head of one window. q, k and v come to shared memory by bulk copies of the tensor memory
// accelerator, laid out such that the products of a warpgroup read them there; warps touch them for norms alone. A warp is
// left with scores of 16 queries, a quarter of the registers that a whole head takes (small.cuh), so that enough warps are
// there to hide each other's waiting. A warpgroup keeps to its head: what a thread needs of the bias stays in its registers.
//
// A window that the seam of the rolled map runs through lies in two or four places. Its slots are numbered such that
// each of these is one copy: all columns before the seam, then all behind it, in every window.
//
// The mask is a product as well: regions of the queries, one-hot, times what each key is to be hidden with from each
// region. In 16 bits that is exact enough: a weight of e^m is off by m 2^-9 of itself at most, and small where m is large.
//
// With few windows most of the time goes by before the first product. Instructions that run once come from far away,
// some 50 cycles for each eight of them, so there are to be few; and the bias, a constant, is read while the kernel before
// still runs.
#pragma once

#include "hopper_windows.cuh"

namespace swinopt {

struct HopperWindowAttention : HopperWindows {
    HopperWindowLayout layout;
};

// Matrices as products want them, eight rows of 16 bytes one behind the other. The seams cut a window into regions,
// counted as its rows are behind the one (1) and its columns behind the other (2).
struct WindowMasks {
    uint4 regions[8][2][8];    // T [64, 16]: of each query, one-hot
    uint4 others[3][8][2][8];  // where the seam runs through rows, columns, or both, T [64, 16] for each: what a key is
                               // hidden with from each region
};
static_assert(sizeof(WindowMasks) == kHopperMaskBytes);

// What all threads of a block know.
template <class T, int kTiles>
struct HopperBlock : HopperThread {
    // Named barriers; behind these come those of the warpgroups.
    static constexpr int kAllThreads = 1, kConsumers = 2, kLoaders = 3, kGroups = 4;
    static constexpr int kHeadBytes = kHopperHeadBytes<kTiles>, kPartBytes = 64 * 8 * kTiles;

    HopperWindowAttention const& all;
    int const heads = p.heads_per_block, groups = heads * all.abreast;
    unsigned char* const results = memory + all.layout.results;
    float* const norms = reinterpret_cast<float*>(memory + all.layout.norms);
    WindowMasks& masks = *reinterpret_cast<WindowMasks*>(memory + all.layout.masks);
    unsigned const bias_barrier = shared_address(memory + all.layout.barriers), barriers = bias_barrier + kHopperBarrierBytes;
    // The bias of the block's heads, in bytes. What of it comes in 16 bytes each is copied to where the results will lie.
    int const head_bias = 2 * n * n;
    int const bias_begin = blockIdx.x * heads * head_bias, bias_end = bias_begin + heads * head_bias;
    int const copied_begin = bias_begin & ~15, copied_end = min(bias_end + 15, p.num_heads * head_bias) & ~15;

    __device__ __forceinline__ HopperBlock(HopperWindowAttention const& given, unsigned char* shared)
        : HopperThread(given, shared), all(given) {}

    __device__ __forceinline__ unsigned full(int place) const { return barriers + kHopperBarrierBytes * place; }
    __device__ __forceinline__ unsigned empty(int place) const { return full(place) + kHopperBarrierBytes / 2; }

    // What a warp does that brings the windows of every other warpgroup.
    __device__ __forceinline__ void bring_windows(int loader) const {
        if (loader == 0) {
            if (lane < groups * all.stages) {
                barrier::init(full(lane), 1);
                barrier::init(empty(lane), 4);
            }
            if (lane == 0) barrier::init(bias_barrier, 1);
            barrier::publish();
            __syncwarp();
        }
        named_barrier::wait(kLoaders, 32 * kHopperLoaders);
        named_barrier::arrive(kAllThreads, blockDim.x);
        if (loader == 0) {
            barrier::arrive_and_expect_once(bias_barrier, copied_end - copied_begin);
            copy_constant_once(shared_address(results), static_cast<char const*>(p.relative_position_bias) + copied_begin,
                               copied_end - copied_begin, bias_barrier);
        }
        WindowCursor window(p, first_window);
        wait_for_kernels_before();
        int stage = 0, parity = 1, turn = 0;
        for (int i = 0; i < windows; ++i) {
            for (int head = 0; head < heads; ++head) {
                int const group = turn * heads + head, place = group * all.stages + stage;
                if (group % kHopperLoaders != loader) continue;
                // Where arithmetic takes the most time, it begins sooner if the first windows do not come with others.
                if (p.logit_scale && stage > 0 && i < all.stages * all.abreast) barrier::wait(full(place - 1), 0);
                if (i >= all.stages * all.abreast) barrier::wait(empty(place), parity);
                unsigned const to = shared_address(memory) + place * kHeadBytes;
                bring_head(all.boxes, p, window, blockIdx.x * heads + head, {to, to + kPartBytes, to + 2 * kPartBytes},
                           full(place));
            }
            window.advance(p, all.next);
            if (++turn < all.abreast) continue;
            turn = 0;
            if (++stage == all.stages) stage = 0, parity ^= 1;
        }
    }
};

// One thread of the warpgroup of a head. Its warp holds 16 rows of scores, of which a thread has two: row lane / 4 and the
// one eight rows further, each with columns 8 t + 2 quad and the one beside it.
template <class T, int kTiles, bool kCosine>
struct HopperWarpgroup : HopperBlock<T, kTiles> {
    using Block = HopperBlock<T, kTiles>;
    using Block::all, Block::bias_begin, Block::bias_end, Block::copied_begin, Block::copied_end, Block::groups;
    using Block::heads, Block::kAll, Block::kHeadBytes, Block::kPartBytes, Block::lane, Block::masks, Block::memory;
    using Block::n, Block::norms, Block::p, Block::quad, Block::results, Block::tall, Block::warp, Block::wide;
    static constexpr int kSteps = (kTiles + 1) / 2;  // of 16 keys
    using Scores = float[kTiles][4];
    using Weights = unsigned[kSteps][4];

    int const group = warp / 4, quarter = warp % 4;
    int turn = 0, local_head = group;
    int head;
    unsigned char* const stages = memory + group * all.stages * kHeadBytes;
    int const slots[2] = {16 * quarter + lane / 4, 16 * quarter + lane / 4 + 8};
    Place const upper, lower;  // of these two
    float exponent;            // scores times log2(e) are what the products are, times this
    Scores added;              // to the scores: the bias times log2(e), and minus infinity behind the last key
    float* own_norms = norms + 256 * group;
    // Shuffles: the compiler keeps what it cannot find anew for each window, and knows that a warp has one number.
    unsigned const first_place, first_full;  // of the warpgroup's places, and its barrier
    std::uint64_t const regions;

    __device__ __forceinline__ HopperWarpgroup(HopperWindowAttention const& given, unsigned char* shared)
        : Block(given, shared),
          upper(p, min(slots[0], n - 1)),
          lower(p, min(slots[1], n - 1)),
          first_place(__shfl_sync(kAll, shared_address(stages), 0)),
          first_full(__shfl_sync(kAll, this->full(group * all.stages), 0)),
          regions(__shfl_sync(kAll, warpgroup::bricks(shared_address(masks.regions)), 0)) {
        while (local_head >= heads) local_head -= heads, ++turn;
        head = blockIdx.x * heads + local_head;
    }

    // Keys and values behind the last slot are zero: what is multiplied by their weight of zero is finite then.
    __device__ __forceinline__ void clear_behind_windows() const {
        for (int stage = 0; stage < all.stages; ++stage)
            for (int row = n + threadIdx.x % 128 / 4; row < 16 * kSteps; row += 32) {
                unsigned char* const to = stages + stage * kHeadBytes + kPartBytes + 64 * row + 16 * quad;
                if (row < 8 * kTiles) *reinterpret_cast<uint4*>(to) = make_uint4(0, 0, 0, 0);
                *reinterpret_cast<uint4*>(to + kPartBytes) = make_uint4(0, 0, 0, 0);
            }
    }

    // By two warps of the block, a slot for each thread.
    __device__ __forceinline__ void make_masks() const {
        int const slot = lane + 32 * warp;
        Place const place(p, min(slot, n - 1));
        int const region = (place.row >= tall ? 1 : 0) + (place.column >= wide ? 2 : 0);
        float const value = p.mask_value * (kCosine ? kLog2E : p.inverse_scale);
        unsigned const hidden = Pair<T>::pack(value, value), ones = Pair<T>::pack(1, 1);
        unsigned const half = region % 2 ? 0xffff0000u : 0xffffu;  // two regions to a number
        uint4 const zeros = make_uint4(0, 0, 0, 0);
        unsigned const one = ones & half;
        masks.regions[slot / 8][0][slot % 8] = make_uint4(region / 2 ? 0 : one, region / 2 ? one : 0, 0, 0);
        masks.regions[slot / 8][1][slot % 8] = zeros;
#pragma unroll 1
        for (int seams = 1; seams <= 3; ++seams) {
            // Of the regions with the same columns as this one, and of those with other columns, the ones that are cut off.
            unsigned const near = seams & 1 ? ~half : 0, far = seams & 2 ? kAll : near;
            masks.others[seams - 1][slot / 8][0][slot % 8] =
                make_uint4(hidden & (region / 2 ? far : near), hidden & (region / 2 ? near : far), 0, 0);
            masks.others[seams - 1][slot / 8][1][slot % 8] = zeros;
        }
    }

    // Brings what of the bias does not come in 16 bytes each; then all of it is read, as soon as it is there.
    __device__ __forceinline__ void load_bias() {
        T const* const bias = static_cast<T const*>(p.relative_position_bias);
        for (int i = copied_end / 2 + threadIdx.x; i < bias_end / 2; i += 128 * groups)
            reinterpret_cast<T*>(results)[i - copied_begin / 2] = bias[i];
        Place const low(p, min(lane, n - 1)), high(p, min(lane + 32, n - 1));
        int const columns[2] = {low.row * p.window[2] + low.column, high.row * p.window[2] + high.column};
        exponent = p.scale * kLog2E;
        if (kCosine) exponent = static_cast<float>(static_cast<T const*>(p.logit_scale)[head]) * kLog2E;
        named_barrier::wait(Block::kAllThreads, blockDim.x);
        barrier::wait(this->bias_barrier, 0);
        T const* const own = reinterpret_cast<T*>(results) + (bias_begin - copied_begin) / 2 + local_head * n * n;
        T const* const rows[2] = {own + (upper.row * p.window[2] + upper.column) * n,
                                  own + (lower.row * p.window[2] + lower.column) * n};
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int c = 0; c < 2; ++c) {
                int const column = __shfl_sync(kAll, columns[t / 4], 8 * (t % 4) + 2 * quad + c);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float const x = static_cast<float>(rows[r][column]) * kLog2E;
                    added[t][2 * r + c] = 8 * t + 2 * quad + c < n ? x : minus_infinity();
                }
            }
        named_barrier::wait(Block::kConsumers, 128 * groups);  // results may take its place
    }

    // The scores of a window in a stage, times log2(e). seams: which run through it, as WindowMasks counts them.
    __device__ __forceinline__ void score(Scores& s, int stage, int parity, int seams) {
        std::uint64_t const q = warpgroup::lines_of_64(first_place + stage * kHeadBytes);
        std::uint64_t const k = warpgroup::beyond(q, kPartBytes);
        barrier::wait(first_full + kHopperBarrierBytes * stage, parity);
        __syncwarp();
        warpgroup::fence();
        warpgroup::product_of_rows<T>(s, q, k, false);
        warpgroup::product_of_rows<T>(s, warpgroup::beyond(q, 32), warpgroup::beyond(k, 32), true);
        if (!kCosine && seams) add_mask(s, seams);
        warpgroup::commit();
        if (kCosine) find_norms(stages + stage * kHeadBytes);
        warpgroup::wait<0>();
        use(s);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float const query = kCosine ? own_norms[slots[r]] * exponent : exponent;
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                float2 key{1, 1};
                if (kCosine) key = *reinterpret_cast<float2 const*>(own_norms + 64 + 8 * t + 2 * quad);
                s[t][2 * r] = s[t][2 * r] * (query * key.x) + added[t][2 * r];
                s[t][2 * r + 1] = s[t][2 * r + 1] * (query * key.y) + added[t][2 * r + 1];
            }
        }
        if (!kCosine) return;
        // The next window's norms go elsewhere: some threads may still read these.
        own_norms = own_norms == norms + 256 * group ? own_norms + 128 : own_norms - 128;
        if (!seams) return;
        use(s);
        add_mask(s, seams);
        warpgroup::commit();
        warpgroup::wait<0>();
        use(s);
    }

    // Makes scores the weights of the softmax, but for their sums, which are told.
    __device__ __forceinline__ static void weigh(Scores const& s, Weights& weights, float (&total)[2]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float const largest = largest_of_row(s, r);
            total[r] = weigh_row<T>(s, weights, r, [=](float score) { return score - largest; });
        }
    }

    // weights v / total, to where the queries came from; the stage is free for another window.
    __device__ __forceinline__ void finish(Weights& weights, float (&total)[2], int stage, unsigned begin, int seams,
                                           RowStore const& rows) const {
        std::uint64_t const v = warpgroup::lines_of_64(first_place + stage * kHeadBytes + 2 * kPartBytes);
        float o[4][4] = {};
        warpgroup::multiply<T>(o, weights, v);
        warpgroup::commit();
#pragma unroll
        for (int r = 0; r < 2; ++r) total[r] = reciprocal_approximately(sum_of_quad(total[r]));
        warpgroup::wait<0>();
        use(o);
        if (lane == 0) barrier::arrive(first_full + kHopperBarrierBytes * stage + kHopperBarrierBytes / 2);
        __syncwarp();
        rows.store<T>(p, begin, seams, o, total, results + 1024 * warp);
    }

private:
    __device__ __forceinline__ void add_mask(Scores& s, int seams) const {
        warpgroup::fence();
        warpgroup::product_of_rows<T>(s, regions, warpgroup::beyond(regions, seams * sizeof(masks.regions)), true);
    }

    // 1 / |row|: of q by the first half of the warpgroup, of k by the second.
    __device__ __forceinline__ void find_norms(unsigned char const* tokens) const {
        int const thread = threadIdx.x % 128, row = thread % 64;
        unsigned char const* const line = tokens + thread / 64 * kPartBytes + 64 * row;
        float squares = 0;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            uint4 const vector = *reinterpret_cast<uint4 const*>(line + 16 * c);  // in whatever order
            for (unsigned const pair : {vector.x, vector.y, vector.z, vector.w}) {
                float2 const x = Pair<T>::unpack(pair);
                squares += x.x * x.x + x.y * x.y;
            }
        }
        own_norms[thread] = reciprocal_norm(squares);
        named_barrier::wait(Block::kGroups + group, 128);
    }
};

// Grid: groups of heads x chunks of windows. Block: a warpgroup for each of its heads and each window abreast, and warps
// that bring windows.
template <class T, int kTiles, bool kCosine>
__global__ void __launch_bounds__(128 * kHopperMostGroups + 32 * kHopperLoaders, 1)
    hopper_window_attention_kernel(HopperWindowAttention const __grid_constant__ all) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    let_next_kernel_in();
    HopperBlock<T, kTiles> const block(all, shared);
    if (block.warp >= 4 * block.groups) {
        block.bring_windows(block.warp - 4 * block.groups);
        return;
    }
    HopperWarpgroup<T, kTiles, kCosine> work(all, shared);
    WindowAttentionParams const& p = all.p;
    work.clear_behind_windows();
    if (work.warp < 2 && (p.shift[1] || p.shift[2])) work.make_masks();
    publish_to_copies();
    RowStore const rows(p, work.head, 16 * work.quarter);
    WindowCursor window(p, work.first_window + work.turn);
    work.load_bias();
    wait_for_kernels_before();
    int stage = 0, parity = 0;
    for (int i = work.turn; i < work.windows; i += all.abreast) {
        int const seams = window.seams(p);
        unsigned const begin = window.begin(p);
        window.advance(p, all.next_turn);
        float s[kTiles][4] = {}, total[2];
        unsigned weights[(kTiles + 1) / 2][4] = {};
        work.score(s, stage, parity, seams);
        work.weigh(s, weights, total);
        work.finish(weights, total, stage, begin, seams, rows);
        if (++stage == all.stages) stage = 0, parity ^= 1;
    }
#else
    __trap();  // compiled for another architecture than hopper_window_plan() lets in
#endif
}

}  // namespace swinopt

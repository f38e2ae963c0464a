// window_attention on Hopper, windows of 65 to 256 tokens in 16 bits.
//
// A block computes one head of its windows, some of them at the same time, a warpgroup for each 64 queries; keys and
// values pass by in tiles of 48 or 64 with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867). Windows come
// as hopper_windows.cuh says, and all of a block's find their bias in shared memory.
//
// A score costs an exponential, of which a multiprocessor has 16 a cycle, and ten other instructions, of which it has 128.
// These are what bounds it, so each counts: the bias lies as a thread wants it, four pairs of neighbouring keys in 16
// bytes, and keys of cosine attention are made directions in shared memory, by warps that do nothing else. That rounds
// them to 16 bits once more, as PyTorch does.
#pragma once

#include "hopper_tiled.h"
#include "hopper_windows.cuh"

namespace swinopt {

struct HopperTiledAttention : HopperWindows {
    int tiles;
};

// What all threads of a block know. In shared memory lie, one behind the other: queries, keys and values of the windows
// that there is room for; the bias; barriers, three for each place of a window.
template <class T, int kKeys>
struct HopperTiledBlock : HopperThread {
    static constexpr int kTiles = kKeys / 8, kVectors = kKeys / 16;
    static constexpr int kLineBytes = 2 * kHopperHead;  // of a token
    static constexpr int kBiasBytes = 512 * kVectors;   // of 16 queries and a tile of keys
    static constexpr int kAllThreads = 1;               // a named barrier
    static constexpr int kRegisters = hopper_registers(kKeys), kHelperRegisters = hopper_helper_registers(kKeys);

    HopperTiledAttention const& all;
    int const groups = all.tiles * all.abreast, head = blockIdx.x, key_tiles = (n + kKeys - 1) / kKeys;
    int const query_bytes = kLineBytes * ((n + kHopperQueries - 1) / kHopperQueries * kHopperQueries);
    int const part_bytes = kLineBytes * kKeys * key_tiles, stage_bytes = query_bytes + 2 * part_bytes;
    unsigned char* const bias = memory + all.stages * stage_bytes;  // [tiles, key_tiles, 4, kVectors, 32] of 16 bytes
    unsigned const barriers = shared_address(bias + 4 * all.tiles * key_tiles * kBiasBytes);

    __device__ __forceinline__ HopperTiledBlock(HopperTiledAttention const& given, unsigned char* shared)
        : HopperThread(given, shared), all(given) {}

    __device__ __forceinline__ unsigned full(int stage) const { return barriers + 24 * stage; }
    __device__ __forceinline__ unsigned empty(int stage) const { return barriers + 24 * stage + 8; }
    __device__ __forceinline__ unsigned normalized(int stage) const { return barriers + 24 * stage + 16; }

    // What the warp does that brings windows.
    __device__ __forceinline__ void bring_windows() const {
        if (lane < all.stages) {
            barrier::init(full(lane), 1);
            barrier::init(empty(lane), 4 * all.tiles);
            barrier::init(normalized(lane), kHopperNormalizers);
        }
        barrier::publish();
        __syncwarp();
        named_barrier::arrive(kAllThreads, blockDim.x);
        WindowCursor window(p, first_window);
        wait_for_kernels_before();
        int stage = 0, parity = 1;
        for (int i = 0; i < windows; ++i) {
            if (i >= all.stages) barrier::wait(empty(stage), parity);
            unsigned const q = shared_address(memory) + stage * stage_bytes, k = q + query_bytes;
            bring_head(all.boxes, p, window, head, {q, k, k + part_bytes}, full(stage));
            window.advance(p, all.next);
            if (++stage == all.stages) stage = 0, parity ^= 1;
        }
    }

    // What the others of its warpgroup do: key / |key|, eight keys at a time.
    __device__ __forceinline__ void normalize_keys(int normalizer) const {
        named_barrier::wait(kAllThreads, blockDim.x);
        int stage = 0, parity = 0;
        for (int i = 0; i < windows; ++i) {
            unsigned char* const keys = memory + stage * stage_bytes + query_bytes + 16 * lane;
            barrier::wait(full(stage), parity);
            __syncwarp();
#pragma unroll 2
            for (int eight = normalizer; eight < kTiles * key_tiles; eight += kHopperNormalizers) {
                // A quarter of a key, whichever.
                uint4& vector = *reinterpret_cast<uint4*>(keys + 8 * kLineBytes * eight);
                unsigned pairs[4] = {vector.x, vector.y, vector.z, vector.w};
                float squares = 0;
#pragma unroll
                for (unsigned const pair : pairs) {
                    float2 const x = Pair<T>::unpack(pair);
                    squares += x.x * x.x + x.y * x.y;
                }
                float const factor = reciprocal_norm(sum_of_quad(squares));
#pragma unroll
                for (unsigned& pair : pairs) {
                    float2 const x = Pair<T>::unpack(pair);
                    pair = Pair<T>::pack(x.x * factor, x.y * factor);
                }
                vector = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
            }
            publish_to_copies();
            __syncwarp();
            if (lane == 0) barrier::arrive(normalized(stage));
            if (++stage == all.stages) stage = 0, parity ^= 1;
        }
    }
};

// One thread of a warpgroup of 64 queries. Its warp holds 16 of them, of which a thread has two: lane / 4 and the one eight
// further, each with keys 8 t + 2 quad of a tile and the ones beside them.
template <class T, int kKeys, bool kCosine>
struct HopperTiledWarpgroup : HopperTiledBlock<T, kKeys> {
    using Block = HopperTiledBlock<T, kKeys>;
    using Block::all, Block::bias, Block::groups, Block::head, Block::kAll, Block::kBiasBytes, Block::key_tiles;
    using Block::kLineBytes, Block::kTiles, Block::kVectors, Block::lane, Block::memory, Block::n, Block::p;
    using Block::part_bytes, Block::quad, Block::query_bytes, Block::stage_bytes, Block::tall, Block::warp, Block::wide;
    // The next keys are multiplied together with these weights and values, if there are registers for it.
    static constexpr bool kAhead = kKeys == 64;
    using Scores = float[kTiles][4];
    using Weights = unsigned[kVectors][4];

    int const group = warp / 4, quarter = warp % 4;
    int const turn = group / all.tiles, tile = group - turn * all.tiles;  // of the windows abreast, of the block's queries
    int const first_slot = kHopperQueries * (blockIdx.z * all.tiles + tile) + 16 * quarter;  // of the warp
    RowStore const rows;                           // of results
    unsigned rows_behind = 0, columns_behind = 0;  // of its keys, by t, whether they lie behind the window's seams
    float scale = p.scale;

    __device__ __forceinline__ HopperTiledWarpgroup(HopperTiledAttention const& given, unsigned char* shared)
        : Block(given, shared), rows(p, head, first_slot) {}

    // Keys and values behind the last slot are zero: what is multiplied by their weight of zero is finite then.
    __device__ __forceinline__ void clear_behind_windows() const {
        int const behind = kLineBytes / 16 * (kKeys * key_tiles - n);
        for (int i = threadIdx.x; i < 2 * all.stages * behind; i += 128 * groups) {
            int const part = i / behind;
            *reinterpret_cast<uint4*>(memory + part / 2 * stage_bytes + query_bytes + part % 2 * part_bytes +
                                      kLineBytes * n + 16 * (i - part * behind)) = make_uint4(0, 0, 0, 0);
        }
    }

    __device__ __forceinline__ void find_regions() {
#pragma unroll
        for (int other = 0; other < 4; ++other) {
            Place const place(p, min(8 * lane + 2 * other, n - 1));
            unsigned const by_row = __ballot_sync(kAll, place.row >= tall);
            unsigned const by_column = __ballot_sync(kAll, place.column >= wide);
            if (quad == other) rows_behind = by_row, columns_behind = by_column;
        }
    }

    // Brings the bias of its queries, minus infinity behind the last key; a warp those of 64 keys, two for each thread.
    // Those who have other windows of these queries take turns.
    __device__ __forceinline__ void load_bias() {
        if (kCosine) scale = static_cast<float>(static_cast<T const*>(p.logit_scale)[head]);
        constexpr int kRows = 32;  // that are on their way at the same time
        int const key = 64 * quarter + 2 * lane, t = key % kKeys / 8;
        if (64 * quarter >= kKeys * key_tiles) return;
        Place const own(p, min(key, n - 1));
        unsigned const hidden = Pair<T>::pack(minus_infinity(), minus_infinity());
        unsigned const lowest = Pair<T>::pack(kHopperLowestBias, kHopperLowestBias);
        T const* const from = static_cast<T const*>(p.relative_position_bias) + head * n * n +
                              own.row * p.window[2] + own.column;
        unsigned char* const to = bias + 4 * (tile * key_tiles + key / kKeys) * kBiasBytes;
        for (int first = kRows * turn; first < kHopperQueries; first += kRows * all.abreast) {
            Place const place(p, min(first_slot - 16 * quarter + first + lane, n - 1));
            int const offset = (place.row * p.window[2] + place.column) * n;
            unsigned pairs[kRows];
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                int const row = __shfl_sync(kAll, offset, i);
                pairs[i] = key < n ? *reinterpret_cast<unsigned const*>(from + row) : 0;
            }
            if (key >= kKeys * key_tiles) continue;
#pragma unroll
            for (int i = 0; i < kRows; ++i) {
                int const pair = 2 * t + i / 8 % 2;  // of the reader's
                *reinterpret_cast<unsigned*>(to + (first + i) / 16 * kBiasBytes +
                                             bias_vector(pair / 4, i % 8 * 4 + quad) + pair % 4 * 4) =
                    key < n ? at_least<T>(pairs[i], lowest) : hidden;
            }
        }
    }

    // Its queries against all keys of a window.
    __device__ __forceinline__ void attend(WindowCursor const& window, int stage, int parity) const {
        int const seams = window.seams(p);
        unsigned hidden[2];  // of its keys, by t, whether its queries do not see them
#pragma unroll
        for (int r = 0; r < 2; ++r)
            hidden[r] = (seams & 1 ? rows.is_behind(1, r) ? ~rows_behind : rows_behind : 0) |
                        (seams & 2 ? rows.is_behind(2, r) ? ~columns_behind : columns_behind : 0);
        unsigned char* const tokens = memory + stage * stage_bytes;
        unsigned char* const queries = tokens + kLineBytes * first_slot;  // of the warp
        std::uint64_t const k = warpgroup::lines_of_64(shared_address(tokens) + query_bytes);
        std::uint64_t const v = warpgroup::beyond(k, part_bytes);
        unsigned q[2][4];
        float factors[2] = {scale, scale};
        barrier::wait(this->full(stage), parity);
        __syncwarp();
        load_matrices(q[0], queries + swizzled(lane % 16, lane / 16));
        load_matrices(q[1], queries + swizzled(lane % 16, lane / 16 + 2));
        if (kCosine) {
            divide_by_norms(factors, q);
            barrier::wait(this->normalized(stage), parity);
            __syncwarp();
        }
        // No tile has nothing larger than minus infinity: mask and bias are bounded.
        float o[4][4] = {}, largest[2] = {minus_infinity(), minus_infinity()}, total[2] = {};
        unsigned char const* added = bias + (4 * tile * key_tiles + quarter) * kBiasBytes;
        Scores s = {};
        if (kAhead) begin_scores(s, q, k), finish(s);
#pragma unroll 1
        for (int at = 0; at < key_tiles; ++at) {
            Weights weights;
            if (!kAhead) {
#pragma unroll
                for (int t = 0; t < kTiles; ++t)
#pragma unroll
                    for (int i = 0; i < 4; ++i) s[t][i] = 0;
                begin_scores(s, q, warpgroup::beyond(k, kLineBytes * kKeys * at)), finish(s);
            }
            scale_and_add(s, factors, added);
            if (__any_sync(kAll, (hidden[0] | hidden[1]) & ((1u << kTiles) - 1))) hide(s, hidden);
            weigh(s, weights, o, largest, total);
            use(o);
            warpgroup::multiply<T>(o, weights, warpgroup::beyond(v, kLineBytes * kKeys * at), true);
            warpgroup::commit();
            // The last keys twice, instead of none: a branch here, and the compiler would wait for each product.
            if (kAhead) begin_scores(s, q, warpgroup::beyond(k, kLineBytes * kKeys * min(at + 1, key_tiles - 1)));
            added += 4 * kBiasBytes, hidden[0] >>= kTiles, hidden[1] >>= kTiles;
            finish(o);
            if (kAhead) use(s);
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) total[r] = reciprocal_approximately(sum_of_quad(total[r]));
        rows.store<T>(p, window.begin(p), seams, o, total, queries);
        publish_to_copies();
        __syncwarp();
        if (lane == 0) barrier::arrive(this->empty(stage));
    }

private:
    // Of 16 queries and a tile of keys, where four pairs of a lane lie. It is moved such that those who write the bias, a
    // row after the other, get into each other's way less.
    __device__ __forceinline__ static int bias_vector(int vector, int lane) {
        return 512 * vector + 16 * (lane ^ vector % 2 * 4);
    }

    __device__ __forceinline__ static void begin_scores(Scores& s, unsigned (&q)[2][4], std::uint64_t keys) {
        warpgroup::multiply_rows<T>(s, q, keys);
        warpgroup::commit();
    }

    template <int kCount>
    __device__ __forceinline__ static void finish(float (&product)[kCount][4]) {
        warpgroup::wait<0>();
        use(product);
    }

    __device__ __forceinline__ static void divide_by_norms(float (&factors)[2], unsigned const (&q)[2][4]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float squares = 0;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float2 const x = Pair<T>::unpack(q[i / 2][i % 2 * 2 + r]);
                squares += x.x * x.x + x.y * x.y;
            }
            factors[r] *= reciprocal_norm(sum_of_quad(squares));
        }
    }

    __device__ __forceinline__ void scale_and_add(Scores& s, float const (&factors)[2], unsigned char const* added) const {
#pragma unroll
        for (int vector = 0; vector < kVectors; ++vector) {
            uint4 const pairs = *reinterpret_cast<uint4 const*>(added + bias_vector(vector, lane));
            unsigned const words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                int const t = 2 * vector + i / 2, r = i % 2;
                float2 const b = Pair<T>::unpack(words[i]);
                s[t][2 * r] = s[t][2 * r] * factors[r] + b.x;
                s[t][2 * r + 1] = s[t][2 * r + 1] * factors[r] + b.y;
            }
        }
    }

    __device__ __forceinline__ void hide(Scores& s, unsigned const (&hidden)[2]) const {
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int r = 0; r < 2; ++r)
                if (hidden[r] & 1u << t) s[t][2 * r] += p.mask_value, s[t][2 * r + 1] += p.mask_value;
    }

    // Makes scores weights, against the largest score so far, and what was summed up before as much smaller.
    __device__ __forceinline__ static void weigh(Scores const& s, Weights& weights, float (&o)[4][4], float (&largest)[2],
                                                 float (&total)[2]) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float const before = largest[r];
            largest[r] = fmaxf(before, largest_of_row(s, r));
            float const shrunk = exp2_approximately((before - largest[r]) * kLog2E), offset = largest[r] * kLog2E;
            total[r] = total[r] * shrunk +
                       weigh_row<T>(s, weights, r, [=](float score) { return fmaf(score, kLog2E, -offset); });
#pragma unroll
            for (int j = 0; j < 4; ++j) o[j][2 * r] *= shrunk, o[j][2 * r + 1] *= shrunk;
        }
    }
};

// Grid: heads x chunks of windows x parts of a window's queries. Block: a warpgroup for 64 queries of each window abreast,
// and one of helpers, whose registers the others take.
template <class T, int kKeys, bool kCosine>
__global__ void __launch_bounds__(128 * hopper_most_groups(kKeys) + 32 * kHopperHelpers, 1)
    hopper_tiled_window_attention_kernel(HopperTiledAttention const __grid_constant__ all) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) unsigned char shared[];
    let_next_kernel_in();
    HopperTiledBlock<T, kKeys> const block(all, shared);
    int const helper = block.warp - 4 * block.groups;
    if (helper >= 0) {
        warpgroup::keep_registers<block.kHelperRegisters>();
        if (helper == 0)
            block.bring_windows();
        else if (kCosine)
            block.normalize_keys(helper - 1);
        else
            named_barrier::arrive(block.kAllThreads, blockDim.x);
        return;
    }
    warpgroup::take_registers<block.kRegisters>();
    HopperTiledWarpgroup<T, kKeys, kCosine> work(all, shared);
    WindowAttentionParams const& p = all.p;
    work.clear_behind_windows();
    publish_to_copies();
    if (p.shift[1] || p.shift[2]) work.find_regions();
    work.load_bias();
    wait_for_kernels_before();
    named_barrier::wait(work.kAllThreads, blockDim.x);
    WindowCursor window(p, work.first_window + work.turn);
    int stage = work.turn, parity = 0;
    for (int i = work.turn; i < work.windows; i += all.abreast) {
        work.attend(window, stage, parity);
        window.advance(p, all.next_turn);
        stage += all.abreast;
        if (stage >= all.stages) stage -= all.stages, parity ^= 1;
    }
#else
    __trap();  // compiled for another architecture than hopper_tiled_plan() lets in
#endif
}

}  // namespace swinopt

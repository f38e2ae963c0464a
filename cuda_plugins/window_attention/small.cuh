// Windows of up to 64 tokens and heads of 32 channels: the Swins with windows of 7 and 8.
//
// One warp computes one head of one window: all of its queries, or those of its block's row group. k, v and the scores of
// all of them stay in registers, without a loop, so that the compiler has independent work for every instruction that
// waits: a warp with much of it in flight does more than several warps with little. Meanwhile the next window is on its
// way to shared memory, into the places that the current one has left.
//
// Copies and stores are 16 bytes a thread. q and k become fragments of the tensor cores by `ldmatrix`. v is needed
// transposed, which `movmatrix` does in registers; its output channels come out permuted such that the thread holds
// 8 quad .. 8 quad + 7 of the result, 16 bytes that lie together.
//
// The bias of the block's heads lies in shared memory for all windows of the block. It is what the accumulators of q k^T
// start from, so that it costs no instruction to add: in float, divided by the scale that multiplies the sum, and minus
// infinity in the columns behind the window's last key.
//
// Slots behind the window's last one stand in for it: what is multiplied by their weight of zero is then as finite as
// the window itself.
#pragma once

#include "../common/mma.cuh"
#include "geometry.cuh"

namespace swinopt {

// Floats of a bias row: 8 or 24 modulo 32, which keeps the rows that a warp reads at a time in separate banks.
__host__ __device__ constexpr int bias_stride(int key_tiles) { return key_tiles % 2 ? 8 * key_tiles : 8 * key_tiles + 8; }

// Warps of a multiprocessor: as many as its registers are enough for.
__host__ __device__ constexpr int most_warps(int key_tiles, int row_tiles) { return key_tiles * row_tiles <= 8 ? 16 : 8; }

// kTiles: of 8 keys. kRowTiles: of 16 queries, those of a row group.
template <class T, int kTiles, int kRowTiles, bool kCosine>
struct SmallWindow {
    static constexpr int kHeadDim = 32, kStride = bias_stride(kTiles);
    static constexpr unsigned kAll = 0xffffffffu;
    // There is one row group: the compiler knows which tiles of queries it has.
    static constexpr bool kWhole = 2 * kRowTiles >= kTiles;
    // Bytes of 8 slots, and of a stage: q, k and v of a window.
    static constexpr int kTileBytes = 8 * 2 * kHeadDim, kStageBytes = 3 * kTiles * kTileBytes;

    using Scores = float[kRowTiles][kTiles][4];  // fragments C of the tiles

    WindowAttentionParams const& p;
    int const lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    int const n = tokens_of_window(p), channels = p.num_heads * kHeadDim;
    int const offset;  // of this thread's channels in a token's q, k or v
    int const first_tile;
    unsigned char* const stage;  // [3, kTiles, 8, 64 bytes], the chunks of a slot placed as swizzled() says
    int const own, key_row, query_row, upper_query_row;  // what this thread copies, and hands to ldmatrix

    int inside[2][3];          // where in the window slots lane and lane + 32 are
    int coming[2], slots[2];   // these slots of the window on its way and of the current one: token * 8 + region
    bool coming_seam, seam, padded;
    unsigned k[kTiles][4], v[kTiles][4];
    float k_norm[kTiles][2];  // 1 / |k| of the columns that this thread holds

    // Keeps both eight rows of one chunk and two rows of all four in separate banks.
    static __device__ __forceinline__ int swizzled(int row, int chunk) {
        return 2 * kHeadDim * row + 16 * (chunk ^ (row >> 1 & 3));
    }

    __device__ __forceinline__ SmallWindow(WindowAttentionParams const& params, int head, int row_group, unsigned char* to)
        : p(params), offset(head * kHeadDim + 8 * quad), first_tile(kWhole ? 0 : row_group * kRowTiles), stage(to),
          own(swizzled(group, quad)), key_row(swizzled(lane % 8, lane / 8)), query_row(swizzled(lane % 16, lane / 16)),
          upper_query_row(swizzled(lane % 8, lane / 16)) {
        SlotCoordinates const coordinates(p);
#pragma unroll
        for (int half = 0; half < 2; ++half) coordinates.split(min(lane + 32 * half, n - 1), inside[half]);
    }

    // Says which window is wanted next.
    __device__ __forceinline__ void ask_for_window(int index) {
        Window const window = Window::quickly(p, index);
        coming_seam = window.has_seam(p);
        bool any_padded = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            Slot const slot = slot_at(p, window, inside[half]);
            any_padded |= slot.token == kPadded;
            int const token = slot.token == kPadded ? kPadded : slot.token + window.batch * tokens_of_image(p);
            coming[half] = token * 8 + slot.region;
        }
        padded = __any_sync(kAll, any_padded);
    }

    // Puts k and v of the coming window on their way, and those of its q that are wanted.
    __device__ __forceinline__ void ask() {
        // Windows without padding, which is most, do without its selections.
        if (padded) {
            ask<true>();
        } else {
            ask<false>();
        }
    }

    template <bool kPadding>
    __device__ __forceinline__ void ask() {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            int const token = __shfl_sync(kAll, coming[tile / 4], 8 * (tile % 4) + group) >> 3;
            bool const is_query = kWhole || (tile / 2 >= first_tile && tile / 2 < first_tile + kRowTiles);
#pragma unroll
            for (int part = 0; part < 3; ++part) {
                if (part == 0 && !is_query) continue;
                // Offsets in 32 bits take half the instructions; the plan sees to it that they fit.
                unsigned const place = token * 3 * channels + part * channels + offset;
                T const* from = static_cast<T const*>(p.qkv) + place;
                if (kPadding && token == kPadded) from = static_cast<T const*>(p.pad_qkv) + part * channels + offset;
                copy_16_bytes(stage + own + (part * kTiles + tile) * kTileBytes, from, true);
            }
        }
    }

    // Makes the window that is on its way the current one.
    __device__ __forceinline__ void enter() {
        slots[0] = coming[0], slots[1] = coming[1];
        seam = coming_seam;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            load_matrices(k[tile], stage + key_row + (kTiles + tile) * kTileBytes);
            uint4 const value = *reinterpret_cast<uint4 const*>(stage + own + (2 * kTiles + tile) * kTileBytes);
            v[tile][0] = transposed(value.x), v[tile][1] = transposed(value.y);
            v[tile][2] = transposed(value.z), v[tile][3] = transposed(value.w);
        }
        if (kCosine) {
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                float const key = reciprocal_norm(square_sum(k[tile]));  // of key 8 tile + group
                k_norm[tile][0] = __shfl_sync(kAll, key, 8 * quad);
                k_norm[tile][1] = __shfl_sync(kAll, key, 8 * quad + 4);
            }
        }
    }

    __device__ __forceinline__ static float square_sum(unsigned const (&row)[4]) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float2 const x = Pair<T>::unpack(row[i]);
            sum += x.x * x.x + x.y * x.y;
        }
        return sum_of_quad(sum);
    }

    // The first slot of the i-th tile of queries.
    __device__ __forceinline__ int first_slot(int i) const { return 16 * (first_tile + i); }

    // Whether rows 8 to 15 of the i-th tile lie in the window, as far as the compiler can know.
    __device__ __forceinline__ static constexpr bool has_lower_rows(int i) {
        return !(kWhole && kTiles % 2 && i == kRowTiles - 1);
    }

    // The scores of the queries against all keys, divided by what `factor` stands for: with kCosine they are done.
    __device__ __forceinline__ void score(Scores& s, float const* bias, float factor) const {
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
            bool const is_staged = kTiles % 2 == 0 || (kWhole ? has_lower_rows(i) : first_slot(i) + 8 < 8 * kTiles);
            int const row = first_slot(i) / 8 * kTileBytes + (is_staged ? query_row : upper_query_row);
            unsigned q[2][4];
            load_matrices(q[0], stage + row);
            load_matrices(q[1], stage + (row ^ 32));  // two chunks further
            float2 const* bias_rows[2];
            float row_factor[2];
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                int const slot = min(first_slot(i) + 8 * r + group, n - 1);
                bias_rows[r] = reinterpret_cast<float2 const*>(bias + slot * kStride) + quad;
                if (kCosine) {
                    unsigned const query[4] = {q[0][r], q[0][2 + r], q[1][r], q[1][2 + r]};
                    row_factor[r] = factor * reciprocal_norm(square_sum(query));
                }
            }
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                float2 b[2];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    b[r] = r == 0 || has_lower_rows(i) ? bias_rows[r][4 * t] : make_float2(0, 0);
                    s[i][t][2 * r] = kCosine ? 0 : b[r].x;
                    s[i][t][2 * r + 1] = kCosine ? 0 : b[r].y;
                }
                mma<T>(s[i][t], q[0], k[t][0], k[t][1]);
                mma<T>(s[i][t], q[1], k[t][2], k[t][3]);
                if (kCosine) {
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        s[i][t][2 * r] = s[i][t][2 * r] * (row_factor[r] * k_norm[t][0]) + b[r].x;
                        s[i][t][2 * r + 1] = s[i][t][2 * r + 1] * (row_factor[r] * k_norm[t][1]) + b[r].y;
                    }
                }
            }
        }
    }

    // Adds `value` to the scores of the keys that are in another region than the query.
    __device__ __forceinline__ void mask(Scores& s, float value) const {
        unsigned before[3][2];  // one bit a slot: before the seam
#pragma unroll
        for (int axis = 0; axis < 3; ++axis)
#pragma unroll
            for (int half = 0; half < 2; ++half) before[axis][half] = __ballot_sync(kAll, slots[half] >> axis & 1);
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
            for (int r = 0; r < (has_lower_rows(i) ? 2 : 1); ++r) {
                int const first = first_slot(i) + 8 * r;
                unsigned hidden[2] = {};
#pragma unroll
                for (int axis = 0; axis < 3; ++axis) {
                    bool const is_before = before[axis][first < 32 ? 0 : 1] >> (first % 32 + group) & 1;
                    hidden[0] |= before[axis][0] ^ (is_before ? kAll : 0);
                    hidden[1] |= before[axis][1] ^ (is_before ? kAll : 0);
                }
#pragma unroll
                for (int t = 0; t < kTiles; ++t)
#pragma unroll
                    for (int c = 0; c < 2; ++c)
                        if (hidden[t / 4] >> (2 * quad + 8 * (t % 4) + c) & 1) s[i][t][2 * r + c] += value;
            }
        }
    }

    // softmax(log(2) exponent s) v, to where the queries came from.
    __device__ __forceinline__ void finish(Scores const& s, float exponent) const {
        float largest[kRowTiles][2];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
            for (int r = 0; r < (has_lower_rows(i) ? 2 : 1); ++r) {
                float top[2] = {s[i][0][2 * r], s[i][0][2 * r + 1]};
#pragma unroll
                for (int t = 1; t < kTiles; ++t)
                    top[0] = fmaxf(top[0], s[i][t][2 * r]), top[1] = fmaxf(top[1], s[i][t][2 * r + 1]);
                largest[i][r] = max_of_quad(fmaxf(top[0], top[1])) * exponent;
            }
        }
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) {
            unsigned weights[kTiles][2];
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    if (r == 1 && !has_lower_rows(i)) {
                        weights[t][r] = 0;
                    } else {
                        weights[t][r] = Pair<T>::pack(exp2_approximately(s[i][t][2 * r] * exponent - largest[i][r]),
                                                      exp2_approximately(s[i][t][2 * r + 1] * exponent - largest[i][r]));
                    }
                }
            }
            // One product more than v has columns for, with ones: it sums up the weights.
            float o[4][4] = {}, total[4] = {};
            unsigned const one = Pair<T>::pack(1, 1);
#pragma unroll
            for (int t = 0; t + 1 < kTiles; t += 2) {
                unsigned const w[4] = {weights[t][0], weights[t][1], weights[t + 1][0], weights[t + 1][1]};
#pragma unroll
                for (int j = 0; j < 4; ++j) mma<T>(o[j], w, v[t][j], v[t + 1][j]);
                mma<T>(total, w, one, one);
            }
            if (kTiles % 2) {
                unsigned const(&w)[2] = weights[kTiles - 1];
#pragma unroll
                for (int j = 0; j < 4; ++j) mma_k8<T>(o[j], w[0], w[1], v[kTiles - 1][j]);
                mma_k8<T>(total, w[0], w[1], one);
            }
#pragma unroll
            for (int r = 0; r < (has_lower_rows(i) ? 2 : 1); ++r) {
                float const share = reciprocal_approximately(total[2 * r]);
                unsigned out[4];
#pragma unroll
                for (int j = 0; j < 4; ++j) out[j] = Pair<T>::pack(o[j][2 * r] * share, o[j][2 * r + 1] * share);
                int const first = first_slot(i) + 8 * r;
                int const token = __shfl_sync(kAll, first < 32 ? slots[0] : slots[1], first % 32 + group) >> 3;
                T* const to = static_cast<T*>(p.output) + static_cast<unsigned>(token * channels + offset);
                if (first + group < n && token != kPadded) store_16_bytes(to, out[0], out[1], out[2], out[3]);
            }
        }
    }
};

// One warp's share of a head's bias on its way from T [n, n] to float [n, bias_stride] in shared memory: rows first,
// first + step, ..., times `factor`, and minus infinity behind the last column. load() and store() take kRows of them.
template <class T, int kTiles, int kRows>
struct BiasRows {
    static constexpr int kHalves = kTiles > 4 ? 2 : 1;
    int const lane = threadIdx.x % 32;
    float* const to;
    T const* const from;
    int const n, step, end;
    int next;
    T element[kRows][kHalves];  // lane and lane + 32 of a row

    __device__ __forceinline__ BiasRows(float* to, T const* from, int n, int first, int step, int end)
        : to(to + lane), from(from + lane), n(n), step(step), end(end), next(first) {}

    __device__ __forceinline__ void load() {
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            T const* const row = from + min(next + i * step, n - 1) * n;
#pragma unroll
            for (int half = 0; half < kHalves; ++half) {
                element[i][half] = static_cast<T>(minus_infinity());
                if (lane + 32 * half < n) element[i][half] = row[32 * half];
            }
        }
    }

    __device__ __forceinline__ void store(float factor) {
#pragma unroll
        for (int i = 0; i < kRows; ++i, next += step) {
            float* const row = to + next * bias_stride(kTiles);
#pragma unroll
            for (int half = 0; half < kHalves; ++half)
                if (next < end && lane + 32 * half < 8 * kTiles)
                    row[32 * half] = static_cast<float>(element[i][half]) * factor;
        }
    }
};

// Grid: window chunks x row groups x groups of heads, the heads fastest, so that neighbours in memory are read together.
// Block: heads_per_block x (windows at a time) warps. Shared memory: float [heads_per_block, n, bias_stride], and a stage
// for each warp.
template <class T, int kTiles, int kRowTiles, bool kCosine>
__global__ void __launch_bounds__(32 * most_warps(kTiles, kRowTiles), 1)
    window_attention_small(WindowAttentionParams const p) {
    using Work = SmallWindow<T, kTiles, kRowTiles, kCosine>;
    extern __shared__ __align__(16) unsigned char shared[];
    let_next_kernel_in();
    // The shuffle tells the compiler that all threads of a warp have one number.
    int const warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), head_groups = p.num_heads / p.heads_per_block;
    int const first_head = blockIdx.x % head_groups * p.heads_per_block;
    int const row_group = blockIdx.x / head_groups % p.row_groups;
    int const chunk = blockIdx.x / head_groups / p.row_groups;
    int const own_head = warp % p.heads_per_block, head = first_head + own_head;
    int const abreast = blockDim.x / 32 / p.heads_per_block, rank = warp / p.heads_per_block;
    int const windows = p.batch * p.windows[0] * p.windows[1] * p.windows[2];
    int const end = min((chunk + 1) * p.windows_per_block, windows);
    int index = chunk * p.windows_per_block + rank;

    int const n = tokens_of_window(p), head_floats = n * bias_stride(kTiles);
    float* const all_bias = reinterpret_cast<float*>(shared);
    float* const bias = all_bias + own_head * head_floats;
    unsigned char* const stages = reinterpret_cast<unsigned char*>(all_bias + p.heads_per_block * head_floats);
    Work work(p, head, row_group, stages + warp * Work::kStageBytes);
    wait_for_kernels_before();
    // As many rows under way as a warp has to bring, where registers allow it: what is asked for here comes at once, and
    // behind the first windows it would have to queue.
    int const first_row = 16 * kRowTiles * row_group;
    BiasRows<T, kTiles, kTiles * kRowTiles <= 8 ? 16 : 25> rows(
        bias, static_cast<T const*>(p.relative_position_bias) + static_cast<long long>(head) * n * n, n, first_row + rank,
        abreast, min(first_row + 16 * kRowTiles, n));
    rows.load();
    // One of a scheduler's two warps asks for its window now, the other one after its part of the bias. That keeps them
    // apart from then on: one computes while the other waits for memory.
    bool const is_late = warp / 4 % 2;
    if (is_late) rows.store(p.inverse_scale);
    work.ask_for_window(min(index, windows - 1));
    if (index < end) work.ask();
    commit_copies();
    if (!is_late) rows.store(p.inverse_scale);
    while (rows.next < rows.end) {
        rows.load();
        rows.store(p.inverse_scale);
    }
    float factor = p.scale;
    if (kCosine) factor = static_cast<float>(static_cast<T const*>(p.logit_scale)[head]);
    __syncthreads();

    for (; index < end; index += abreast) {
        wait_for_copies<0>();
        __syncwarp();
        work.enter();
        typename Work::Scores s;
        work.score(s, bias, factor);
        __syncwarp();
        work.ask_for_window(min(index + abreast, windows - 1));
        if (index + abreast < end) work.ask();
        commit_copies();
        if (work.seam) work.mask(s, p.mask_value * p.inverse_scale);
        // With kCosine the factor is in the scores.
        work.finish(s, (kCosine ? 1 : factor) * kLog2E);
    }
}

}  // namespace swinopt

// Windows of up to 64 tokens and heads of 32 channels: the Swins with windows of 7 and 8.
//
// One warp computes one head of one window. All its loads and stores are 16 bytes a thread, and what they bring is a
// fragment of the tensor cores' layout as it stands, by two liberties:
//   - q k^T sums over the channels, so their order does not matter: the thread that shall hold channels (2 quad, +1) of
//     each 8 holds channels 8 quad .. 8 quad + 7 instead, in q and in k alike: 16 bytes that lie together;
//   - v is needed transposed, which `movmatrix` does in registers; its output channels come out permuted such that the
//     thread again holds 8 quad .. 8 quad + 7 of the result.
// K and V of the window stay in registers while q passes by in tiles of 16 rows. Meanwhile the next window is on its way
// to shared memory, into the places that the current one has left; a thread reads there only what it copied itself.
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

// Warps of a multiprocessor, in two blocks: more of them hide more latency, until they run out of registers.
__host__ __device__ constexpr int most_warps(int key_tiles, bool cosine) { return key_tiles <= 7 && !cosine ? 16 : 12; }

template <class T, int kTiles, bool kCosine>
struct SmallWindow {
    static constexpr int kHeadDim = 32;
    static constexpr unsigned kAll = 0xffffffffu;
    static constexpr int kStride = bias_stride(kTiles);

    WindowAttentionParams const& p;
    int const lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    int const n = tokens_of_window(p), channels = p.num_heads * kHeadDim;
    int const offset;  // of this thread's channels in a token's q, k or v
    uint4* const staged;  // [3, kTiles, 32]: q, k and v of slots 8 tile + group as this thread wants them

    int coming[2], slots[2];   // slots lane and lane + 32, of that window and of the current one: token * 8 + region
    bool coming_seam, seam, padded;
    unsigned k[kTiles][4], v[kTiles][4];
    float k_norm[kTiles][2];  // 1 / |k| of the columns that this thread holds

    __device__ __forceinline__ SmallWindow(WindowAttentionParams const& params, int head, uint4* stage)
        : p(params), offset(head * kHeadDim + 8 * quad), staged(stage + lane) {}

    // Says which window is wanted next.
    __device__ __forceinline__ void ask_for_window(int index) {
        Window const window = Window::quickly(p, index);
        coming_seam = window.has_seam(p);
        SlotCoordinates const coordinates(p);
        bool any_padded = false;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int inside[3];
            coordinates.split(min(lane + 32 * half, n - 1), inside);
            Slot const slot = slot_at(p, window, inside);
            any_padded |= slot.token == kPadded;
            int const token = slot.token == kPadded ? kPadded : slot.token + window.batch * tokens_of_image(p);
            coming[half] = token * 8 + slot.region;
        }
        padded = __any_sync(kAll, any_padded);
    }

    // Parts first to last (q, k, v) of slots 8 tile + group of the coming window.
    template <int kFirst, int kLast>
    __device__ __forceinline__ void ask_for(int tile) {
        // Windows without padding, which is most, do without its selections.
        if (padded) {
            ask_for<kFirst, kLast, true>(tile);
        } else {
            ask_for<kFirst, kLast, false>(tile);
        }
    }

    template <int kFirst, int kLast, bool kPadding>
    __device__ __forceinline__ void ask_for(int tile) {
        int const token = __shfl_sync(kAll, tile < 4 ? coming[0] : coming[1], 8 * (tile % 4) + group) >> 3;
#pragma unroll
        for (int part = kFirst; part <= kLast; ++part) {
            // Offsets in 32 bits take half the instructions; the plan sees to it that they fit.
            unsigned const place = token * 3 * channels + offset + part * channels;
            T const* from = static_cast<T const*>(p.qkv) + place;
            if (kPadding && token == kPadded) from = static_cast<T const*>(p.pad_qkv) + offset + part * channels;
            copy_16_bytes(staged + (part * kTiles + tile) * 32, from, true);
        }
    }

    // Makes the window that is on its way the current one.
    __device__ __forceinline__ void enter() {
        slots[0] = coming[0], slots[1] = coming[1];
        seam = coming_seam;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
            uint4 const key = staged[(kTiles + tile) * 32];
            k[tile][0] = key.x, k[tile][1] = key.y, k[tile][2] = key.z, k[tile][3] = key.w;
            uint4 const value = staged[(2 * kTiles + tile) * 32];
            v[tile][0] = transposed(value.x), v[tile][1] = transposed(value.y);
            v[tile][2] = transposed(value.z), v[tile][3] = transposed(value.w);
        }
        if (kCosine) {
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) {
                float const own = reciprocal_norm(square_sum(k[tile]));  // of key 8 tile + group
                k_norm[tile][0] = __shfl_sync(kAll, own, 8 * quad);
                k_norm[tile][1] = __shfl_sync(kAll, own, 8 * quad + 4);
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

    // Adds `value` to the scores of the keys that are in another region than the query.
    __device__ __forceinline__ void mask(float (&s)[kTiles][4], int const (&rows)[2], float value) const {
        unsigned hidden[2][2] = {};
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            // One bit a slot: before the seam.
            unsigned const before[2] = {__ballot_sync(kAll, slots[0] >> axis & 1), __ballot_sync(kAll, slots[1] >> axis & 1)};
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                unsigned const own = (rows[r] < 32 ? before[0] : before[1]) >> (rows[r] & 31) & 1 ? kAll : 0;
                hidden[r][0] |= before[0] ^ own;
                hidden[r][1] |= before[1] ^ own;
            }
        }
#pragma unroll
        for (int t = 0; t < kTiles; ++t)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                if (hidden[i / 2][t / 4] >> (2 * quad + 8 * (t % 4) + i % 2) & 1) s[t][i] += value;
    }

    // Queries group (and group + 8, if kRows is 2) of a tile against all keys, and their results to where they came from.
    template <int kRows>
    __device__ __forceinline__ void attend(int tile, uint4 const (&q)[2], float const* bias, float factor) const {
        int const rows[2] = {16 * tile + group, 16 * tile + group + 8};
        float s[kTiles][4];
        unsigned a[2][4] = {{q[0].x, q[1].x, q[0].y, q[1].y}, {q[0].z, q[1].z, q[0].w, q[1].w}};
        // A zero that the compiler does not know. Without a new value here it copies q anew for every product, since the
        // registers of a load and those of a fragment have to be neighbours in different ways.
        unsigned const zero = p.roll_first >> 1;
#pragma unroll
        for (int i = 0; i < 8; ++i) a[i / 4][i % 4] ^= zero;
        float2 const* bias_rows[2];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
            bias_rows[r] = reinterpret_cast<float2 const*>(bias + min(rows[r], n - 1) * kStride) + quad;
        if (kCosine) {
            float row_factor[2];
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                unsigned const row[4] = {q[r].x, q[r].y, q[r].z, q[r].w};
                row_factor[r] = factor * reciprocal_norm(square_sum(row));
            }
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
                s[t][0] = s[t][1] = s[t][2] = s[t][3] = 0;
                mma<T>(s[t], a[0], k[t][0], k[t][1]);
                mma<T>(s[t], a[1], k[t][2], k[t][3]);
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    float2 const b = bias_rows[r][4 * t];
                    s[t][2 * r] = s[t][2 * r] * (row_factor[r] * k_norm[t][0]) + b.x;
                    s[t][2 * r + 1] = s[t][2 * r + 1] * (row_factor[r] * k_norm[t][1]) + b.y;
                }
            }
            factor = 1;
        } else {
#pragma unroll
            for (int t = 0; t < kTiles; ++t) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float2 const b = r < kRows ? bias_rows[r][4 * t] : make_float2(0, 0);
                    s[t][2 * r] = b.x, s[t][2 * r + 1] = b.y;
                }
                mma<T>(s[t], a[0], k[t][0], k[t][1]);
                mma<T>(s[t], a[1], k[t][2], k[t][3]);
            }
        }
        if (seam) mask(s, rows, p.mask_value * p.inverse_scale);

        // From here on a score is s * factor.
        float const exponent = factor * kLog2E;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (r >= kRows) {
#pragma unroll
                for (int t = 0; t < kTiles; ++t) s[t][2 * r] = s[t][2 * r + 1] = 0;
                continue;
            }
            float top[2] = {s[0][2 * r], s[0][2 * r + 1]};
#pragma unroll
            for (int t = 1; t < kTiles; ++t)
                top[0] = fmaxf(top[0], s[t][2 * r]), top[1] = fmaxf(top[1], s[t][2 * r + 1]);
            float const largest = max_of_quad(fmaxf(top[0], top[1])) * exponent;
#pragma unroll
            for (int t = 0; t < kTiles; ++t)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; ++i) s[t][i] = exp2_approximately(s[t][i] * exponent - largest);
        }

        // One product more than v has columns for, with ones: it sums up the weights.
        float o[4][4] = {}, total[4] = {};
        unsigned const one = Pair<T>::pack(1, 1);
#pragma unroll
        for (int t = 0; t + 1 < kTiles; t += 2) {
            unsigned const w[4] = {Pair<T>::pack(s[t][0], s[t][1]), Pair<T>::pack(s[t][2], s[t][3]),
                                   Pair<T>::pack(s[t + 1][0], s[t + 1][1]), Pair<T>::pack(s[t + 1][2], s[t + 1][3])};
#pragma unroll
            for (int j = 0; j < 4; ++j) mma<T>(o[j], w, v[t][j], v[t + 1][j]);
            mma<T>(total, w, one, one);
        }
        if (kTiles % 2) {
            unsigned const w0 = Pair<T>::pack(s[kTiles - 1][0], s[kTiles - 1][1]);
            unsigned const w1 = Pair<T>::pack(s[kTiles - 1][2], s[kTiles - 1][3]);
#pragma unroll
            for (int j = 0; j < 4; ++j) mma_k8<T>(o[j], w0, w1, v[kTiles - 1][j]);
            mma_k8<T>(total, w0, w1, one);
        }

#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            float const share = reciprocal_approximately(total[2 * r]);
            unsigned out[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) out[j] = Pair<T>::pack(o[j][2 * r] * share, o[j][2 * r + 1] * share);
            int const low = __shfl_sync(kAll, slots[0], rows[r] & 31), high = __shfl_sync(kAll, slots[1], rows[r] & 31);
            int const token = (rows[r] < 32 ? low : high) >> 3;
            T* const to = static_cast<T*>(p.output) + static_cast<unsigned>(token * channels + offset);
            if (rows[r] < n && token != kPadded) store_16_bytes(to, out[0], out[1], out[2], out[3]);
        }
    }
};

// The bias of a block's heads, T [heads, n, n], as float [heads, n, bias_stride] into shared memory, times `factor`; of
// every row_groups-th tile of 16 rows alone. A warp takes a row at a time, and has the loads of several under way.
template <class T, int kTiles>
__device__ __forceinline__ void load_bias(float* to, T const* from, int heads, int n, int row_group, int row_groups,
                                          float factor) {
    constexpr int kRows = 8;  // under way at once
    constexpr bool kTwoHalves = kTiles > 4;
    int const lane = threadIdx.x % 32, warps = blockDim.x / 32;
    bool const is_column[2] = {lane < n, lane + 32 < n};
    bool const is_second_half = lane + 32 < 8 * kTiles;
    int rows_of_head = 0;
    for (int tile = row_group; 16 * tile < n; tile += row_groups) rows_of_head += min(16, n - 16 * tile);
    Divisor const heads_rows(rows_of_head);
    int const rows = heads * rows_of_head;
    // Row number i of those that are wanted, among all rows of all heads.
    auto const wanted = [&](int i) {
        if (row_groups == 1) return i;
        int const head = heads_rows.quotient(i), row = i - head * rows_of_head;
        return head * n + 16 * (row / 16 * row_groups + row_group) + row % 16;
    };
    for (int first = threadIdx.x / 32; first < rows; first += kRows * warps) {
        T element[kRows][2];
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            if (first + i * warps >= rows) break;
            T const* const source = from + wanted(first + i * warps) * n + lane;
            if (is_column[0]) element[i][0] = source[0];
            if (kTwoHalves && is_column[1]) element[i][1] = source[32];
        }
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
            if (first + i * warps >= rows) break;
            float* const target = to + wanted(first + i * warps) * bias_stride(kTiles) + lane;
            target[0] = is_column[0] ? static_cast<float>(element[i][0]) * factor : minus_infinity();
            if (kTwoHalves && is_second_half)
                target[32] = is_column[1] ? static_cast<float>(element[i][1]) * factor : minus_infinity();
        }
    }
}

// Grid: window chunks x row groups x groups of heads, the heads fastest, so that neighbours in memory are read together.
// Block: heads_per_block x (windows at a time) warps. Shared memory: float [heads_per_block, n, bias_stride], and for each
// warp 16 bytes [3, kTiles, 32].
template <class T, int kTiles, bool kCosine>
__global__ void __launch_bounds__(16 * most_warps(kTiles, kCosine), 2) window_attention_small(WindowAttentionParams const p) {
    extern __shared__ __align__(16) unsigned char shared[];
    float* const bias = reinterpret_cast<float*>(shared);
    // The shuffle tells the compiler that all threads of a warp have one number.
    int const warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), head_groups = p.num_heads / p.heads_per_block;
    int const first_head = blockIdx.x % head_groups * p.heads_per_block;
    int const row_group = blockIdx.x / head_groups % p.row_groups;
    int const chunk = blockIdx.x / head_groups / p.row_groups;
    int const own_head = warp % p.heads_per_block, head = first_head + own_head;
    int const step = blockDim.x / 32 / p.heads_per_block;
    int const windows = p.batch * p.windows[0] * p.windows[1] * p.windows[2];
    int const end = min((chunk + 1) * p.windows_per_block, windows);
    int index = chunk * p.windows_per_block + warp / p.heads_per_block;

    int const n = tokens_of_window(p), head_floats = n * bias_stride(kTiles);
    uint4* const stages = reinterpret_cast<uint4*>(bias + p.heads_per_block * head_floats);
    SmallWindow<T, kTiles, kCosine> work(p, head, stages + warp * (3 * kTiles * 32));
    // Copies are waited for in the order in which they are asked for: k and v of a window, then q tile by tile.
    constexpr int kRowTiles = (kTiles + 1) / 2;
    work.ask_for_window(min(index, windows - 1));
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) work.template ask_for<1, 2>(tile);
    commit_copies();
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
        work.template ask_for<0, 0>(2 * tile);
        if (2 * tile + 1 < kTiles) work.template ask_for<0, 0>(2 * tile + 1);
        commit_copies();
    }
    float factor = p.scale;
    if (kCosine) factor = static_cast<float>(static_cast<T const*>(p.logit_scale)[head]);
    T const* const all_bias = static_cast<T const*>(p.relative_position_bias) + static_cast<long long>(first_head) * n * n;
    load_bias<T, kTiles>(bias, all_bias, p.heads_per_block, n, row_group, p.row_groups, p.inverse_scale);
    __syncthreads();

    for (; index < end; index += step) {
        wait_for_copies<kRowTiles>();
        work.enter();
        bool const goes_on = index + step < end;
        if (goes_on) {
            work.ask_for_window(index + step);
#pragma unroll
            for (int tile = 0; tile < kTiles; ++tile) work.template ask_for<1, 2>(tile);
        }
        commit_copies();
#pragma unroll 1
        for (int tile = 0; tile < kRowTiles; ++tile) {
            wait_for_copies<kRowTiles>();
            int const lower = min(2 * tile + 1, kTiles - 1);
            uint4 const q[2] = {work.staged[2 * tile * 32], work.staged[lower * 32]};
            if (goes_on) {
                work.template ask_for<0, 0>(2 * tile);
                if (lower > 2 * tile) work.template ask_for<0, 0>(lower);
            }
            commit_copies();
            if ((tile & (p.row_groups - 1)) != row_group || 16 * tile >= n) continue;
            float const* const own_bias = bias + own_head * head_floats;
            if (16 * tile + 8 < n) {
                work.template attend<2>(tile, q, own_bias, factor);
            } else {
                work.template attend<1>(tile, q, own_bias, factor);
            }
        }
    }
    wait_for_copies<0>();  // of a warp that had no window
}

}  // namespace swinopt

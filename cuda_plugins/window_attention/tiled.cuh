// Any window of up to 1024 tokens, heads of up to 128 channels, 16-bit types.
//
// A warp computes 16 queries of one head of one window, a block up to four such tiles; keys and values pass by in tiles of
// 48 or 64 with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), so that only tiles lie in shared memory.
// The next tile is on its way while one is worked on, where two fit.
//
// In a tile the keys are laid down in such an order that the scores which a thread gets of a row belong to neighbouring
// keys: the thread then reads bias, regions and norms of its columns many bytes at a time. Sums over keys do not mind.
#pragma once

#include "../common/mma.cuh"
#include "geometry.cuh"

namespace swinopt {

constexpr int kTiledRows = 64;  // queries of a block at most

// Shared memory of a block; `int slots[...]` of all of the window follow it. Rows are 16 bytes longer than they need to
// be, so that eight of them start in different banks.
template <class T, int kDim, int kKeys>
struct TiledStorage {
    static constexpr int kStages = kDim <= 64 ? 2 : 1;
    static constexpr int kStride = kDim + 8;
    T q[kTiledRows * kStride];
    T k[kStages][kKeys * kStride], v[kStages][kKeys * kStride];
    float k_norm[kKeys];
};

template <class T, int kDim, int kKeys>
struct TiledWindow {
    using Storage = TiledStorage<T, kDim, kKeys>;
    static constexpr int kStride = Storage::kStride;
    static constexpr int kOwn = kKeys / 4;  // keys of a tile that a thread has scores of, side by side

    WindowAttentionParams const& p;
    int const* const slots;  // token * 8 + region, or kNoSlot * 8 behind the window's last
    int const n = tokens_of_window(p), channels = p.num_heads * p.head_dim;
    long long const first_token;  // of the image
    int const offset;             // of the head in a token's q, k or v
    bool const by_16_bytes;       // rows of qkv, pad_qkv and output are aligned and made of whole 16 bytes

    __device__ TiledWindow(WindowAttentionParams const& params, int const* slots, int batch, int head)
        : p(params),
          slots(slots),
          first_token(static_cast<long long>(batch) * tokens_of_image(params)),
          offset(head * params.head_dim),
          by_16_bytes(rows_are_aligned(params)) {}

    __device__ static bool rows_are_aligned(WindowAttentionParams const& p) {
        auto const addresses = reinterpret_cast<unsigned long long>(p.qkv) |
                               reinterpret_cast<unsigned long long>(p.pad_qkv) |
                               reinterpret_cast<unsigned long long>(p.output);
        return addresses % 16 == 0 && p.head_dim % 8 == 0;
    }

    // Row of a tile where key number `key` lies: the thread with `quad` gets columns 8 i + 2 quad, + 1 of the scores, and
    // those shall be keys kOwn quad + 2 i, + 1.
    __device__ __forceinline__ static int row_of_key(int key) { return 8 * (key % kOwn / 2) + 2 * (key / kOwn) + key % 2; }

    // 8 channels from `channel` on of parts first to last (0, 1, 2: q, k, v) of a slot, zeros where there are none.
    __device__ __forceinline__ void copy(int slot, int channel, int first, int last, T* const (&to)[2]) const {
        int const token = slots[slot] >> 3;
        T const* from = static_cast<T const*>(p.qkv);  // an address that may be named, where nothing is read
        if (token >= 0) from += (first_token + token) * (3 * channels);
        if (token == kPadded) from = static_cast<T const*>(p.pad_qkv);
        from += offset + channel;
#pragma unroll
        for (int part = first; part <= last; ++part) {
            if (by_16_bytes) {
                copy_16_bytes(to[part - first], from + part * channels, token != kNoSlot && channel < p.head_dim);
            } else {
                for (int c = 0; c < 8; ++c) {
                    bool const there = token != kNoSlot && channel + c < p.head_dim;
                    to[part - first][c] = there ? from[part * channels + c] : T(0.0f);
                }
            }
        }
    }

    __device__ __forceinline__ void copy_queries(Storage& memory, int first_row) const {
        for (int i = threadIdx.x; i < static_cast<int>(blockDim.x) / 2 * (kDim / 8); i += blockDim.x) {
            int const row = i / (kDim / 8), channel = i % (kDim / 8) * 8;
            T* const to = memory.q + row * kStride + channel;
            copy(first_row + row, channel, 0, 0, {to, to});
        }
    }

    __device__ __forceinline__ void copy_tile(Storage& memory, int stage, int tile) const {
        for (int i = threadIdx.x; i < kKeys * (kDim / 8); i += blockDim.x) {
            int const key = i / (kDim / 8), channel = i % (kDim / 8) * 8, place = row_of_key(key) * kStride + channel;
            copy(kKeys * tile + key, channel, 1, 2, {memory.k[stage] + place, memory.v[stage] + place});
        }
        commit_copies();
    }

    __device__ __forceinline__ void measure_keys(Storage& memory, int stage) const {
        for (int key = threadIdx.x; key < kKeys; key += blockDim.x) {
            uint4 const* row = reinterpret_cast<uint4 const*>(memory.k[stage] + row_of_key(key) * kStride);
            float sum = 0;
#pragma unroll
            for (int c = 0; c < kDim / 8; ++c) {
                uint4 const eight = row[c];
                unsigned const pairs[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float2 const x = Pair<T>::unpack(pairs[i]);
                    sum += x.x * x.x + x.y * x.y;
                }
            }
            memory.k_norm[key] = reciprocal_norm(sum);
        }
    }
};

// The biases of a query for kCount neighbouring keys from `first` on, as pairs; anything behind the row's end.
template <class T, int kCount>
__device__ __forceinline__ void load_biases(unsigned (&pairs)[kCount / 2], T const* row, int first, int n, bool by_8_bytes) {
    if (by_8_bytes) {
#pragma unroll
        for (int i = 0; i < kCount; i += 4) {
            uint2 const four = *reinterpret_cast<uint2 const*>(row + min(first + i, n - 4));
            pairs[i / 2] = four.x, pairs[i / 2 + 1] = four.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < kCount; i += 2)
            pairs[i / 2] = Pair<T>::pack(static_cast<float>(row[min(first + i, n - 1)]),
                                         static_cast<float>(row[min(first + i + 1, n - 1)]));
    }
}

// Grid: windows x row groups x heads, the heads fastest. Block: a warp for each of its tiles of 16 queries. Shared memory:
// TiledStorage<T, kDim, kKeys> and an int for each slot of the tiles of queries and of keys.
template <class T, int kDim, int kKeys, bool kCosine>
__global__ void __launch_bounds__(2 * kTiledRows, kDim <= 32 ? 3 : 2) window_attention_tiled(WindowAttentionParams const p) {
    using Storage = TiledStorage<T, kDim, kKeys>;
    using Work = TiledWindow<T, kDim, kKeys>;
    constexpr int kStages = Storage::kStages, kStride = Storage::kStride, kSteps = kDim / 16, kTiles = kKeys / 8;
    extern __shared__ __align__(16) unsigned char shared[];
    Storage& memory = *reinterpret_cast<Storage*>(shared);
    int* const slots = reinterpret_cast<int*>(shared + sizeof(Storage));

    int const n = tokens_of_window(p), tiles = (n + kKeys - 1) / kKeys;
    int const head = blockIdx.x % p.num_heads, row_group = blockIdx.x / p.num_heads % p.row_groups;
    int const first_row = row_group * (blockDim.x / 2);
    Window const window(p, blockIdx.x / p.num_heads / p.row_groups);
    bool const seam = window.has_seam(p);
    {
        SlotCoordinates const coordinates(p);
        int const count = max(kKeys * tiles, p.row_groups * static_cast<int>(blockDim.x / 2));
        for (int i = threadIdx.x; i < count; i += blockDim.x) {
            Slot const slot = slot_at(p, window, coordinates, i);
            slots[i] = slot.token * 8 + slot.region;
        }
    }
    __syncthreads();
    Work const work(p, slots, window.batch, head);
    work.copy_queries(memory, first_row);
    work.copy_tile(memory, 0, 0);

    int const warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    int const rows[2] = {first_row + 16 * warp + group, first_row + 16 * warp + group + 8};
    int const own[2] = {slots[rows[0]], slots[rows[1]]};
    float factor[2] = {p.scale, p.scale};
    if (kCosine) factor[0] = factor[1] = static_cast<float>(static_cast<T const*>(p.logit_scale)[head]);
    T const* bias_rows[2];
    bool const bias_by_8_bytes = n % 4 == 0 && reinterpret_cast<unsigned long long>(p.relative_position_bias) % 8 == 0;
    unsigned bias[2][kKeys / 8];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        bias_rows[r] = static_cast<T const*>(p.relative_position_bias) +
                       (static_cast<long long>(head) * n + min(rows[r], n - 1)) * n;
        load_biases<T, kKeys / 4>(bias[r], bias_rows[r], Work::kOwn * quad, n, bias_by_8_bytes);
    }

    unsigned q[kSteps][4];
    float o[kDim / 8][4] = {};
    float largest[2] = {minus_infinity(), minus_infinity()}, total[2] = {0, 0};

    for (int tile = 0; tile < tiles; ++tile) {
        int const stage = tile % kStages;
        wait_for_copies<0>();
        __syncthreads();
        if (kStages == 2 && tile + 1 < tiles) work.copy_tile(memory, (tile + 1) % kStages, tile + 1);
        if (kCosine) {
            work.measure_keys(memory, stage);
            __syncthreads();
        }
        if (tile == 0) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step)
                load_matrices(q[step], memory.q + (16 * warp + lane % 16) * kStride + 16 * step + lane / 16 * 8);
            if (kCosine) {
                float squares[2] = {0, 0};
#pragma unroll
                for (int step = 0; step < kSteps; ++step)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        float2 const x = Pair<T>::unpack(q[step][i]);
                        squares[i % 2] += x.x * x.x + x.y * x.y;
                    }
#pragma unroll
                for (int r = 0; r < 2; ++r) factor[r] *= reciprocal_norm(sum_of_quad(squares[r]));
            }
        }

        float s[kTiles][4];
#pragma unroll
        for (int pair = 0; pair < kTiles; pair += 2) {
#pragma unroll
            for (int i = 0; i < 4; ++i) s[pair][i] = s[pair + 1][i] = 0;
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                unsigned k[4];
                load_matrices(k, memory.k[stage] + (8 * (pair + lane / 16) + lane % 8) * kStride + 16 * step + lane / 8 % 2 * 8);
                mma<T>(s[pair], q[step], k[0], k[1]);
                mma<T>(s[pair + 1], q[step], k[2], k[3]);
            }
        }
        int const first_key = kKeys * tile + Work::kOwn * quad;  // of those that this thread has scores of
        float2 const* norms = reinterpret_cast<float2 const*>(memory.k_norm + Work::kOwn * quad);
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
            float2 const norm = kCosine ? norms[j] : make_float2(1, 1);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float2 const b = Pair<T>::unpack(bias[r][j]);
                s[j][2 * r] = s[j][2 * r] * (factor[r] * norm.x) + b.x;
                s[j][2 * r + 1] = s[j][2 * r + 1] * (factor[r] * norm.y) + b.y;
            }
        }
        if (tile + 1 < tiles) {
#pragma unroll
            for (int r = 0; r < 2; ++r)
                load_biases<T, kKeys / 4>(bias[r], bias_rows[r], first_key + kKeys, n, bias_by_8_bytes);
        }
        if (seam) {
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
                int2 const keys = *reinterpret_cast<int2 const*>(slots + first_key + 2 * j);
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    if ((keys.x ^ own[r]) & 7) s[j][2 * r] += p.mask_value;
                    if ((keys.y ^ own[r]) & 7) s[j][2 * r + 1] += p.mask_value;
                }
            }
        }
        if (kKeys * (tile + 1) > n) {
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (first_key + 2 * j + i % 2 >= n) s[j][i] = minus_infinity();
        }

#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = largest[r];
#pragma unroll
            for (int j = 0; j < kTiles; ++j) top = fmaxf(top, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
            top = max_of_quad(top);
            float const shrink = exp2_approximately((largest[r] - top) * kLog2E);
            largest[r] = top;
            total[r] *= shrink;
#pragma unroll
            for (int d = 0; d < kDim / 8; ++d) o[d][2 * r] *= shrink, o[d][2 * r + 1] *= shrink;
#pragma unroll
            for (int j = 0; j < kTiles; ++j)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; ++i) {
                    s[j][i] = exp2_approximately(s[j][i] * kLog2E - top * kLog2E);
                    total[r] += s[j][i];
                }
        }
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            unsigned const w[4] = {Pair<T>::pack(s[2 * step][0], s[2 * step][1]), Pair<T>::pack(s[2 * step][2], s[2 * step][3]),
                                   Pair<T>::pack(s[2 * step + 1][0], s[2 * step + 1][1]),
                                   Pair<T>::pack(s[2 * step + 1][2], s[2 * step + 1][3])};
#pragma unroll
            for (int d = 0; d < kDim / 8; d += 2) {
                unsigned v[4];
                load_matrices_transposed(v, memory.v[stage] + (16 * step + lane % 16) * kStride + 8 * (d + lane / 16));
                mma<T>(o[d], w, v[0], v[1]);
                mma<T>(o[d + 1], w, v[2], v[3]);
            }
        }
        if (kStages == 1 && tile + 1 < tiles) {
            __syncthreads();  // everybody is done with the tile that is overwritten now
            work.copy_tile(memory, 0, tile + 1);
        }
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float const share = reciprocal_approximately(sum_of_quad(total[r]));
        int const token = own[r] >> 3;
        if (token < 0) continue;
        T* const to = static_cast<T*>(p.output) + (work.first_token + token) * work.channels + work.offset;
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
            int const c = 8 * d + 2 * quad;
            float const low = o[d][2 * r] * share, high = o[d][2 * r + 1] * share;
            if (work.by_16_bytes) {
                if (c < p.head_dim) *reinterpret_cast<unsigned*>(to + c) = Pair<T>::pack(low, high);
            } else {
                if (c < p.head_dim) to[c] = T(low);
                if (c + 1 < p.head_dim) to[c + 1] = T(high);
            }
        }
    }
}

}  // namespace swinopt

// Any window of up to 1024 tokens, heads of up to 128 channels; floats from Ampere on.
//
// A warp computes 16 queries of one head of one window, a block up to four such tiles; keys and values pass by in tiles of
// 48 or 64 (floats: 56, too) with an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867), so that only tiles
// lie in shared memory. The next tile is on its way while one is worked on, where two fit.
//
// In a tile the keys are laid down in such an order that the scores which a thread gets of a row belong to neighbouring
// keys: the thread then reads bias, regions and norms of its columns many bytes at a time. Sums over keys do not mind.
//
// What the tensor cores do, and which numbers a thread holds for it, is in products.cuh, for each type.
#pragma once

#include "geometry.cuh"
#include "products.cuh"

namespace swinopt {

constexpr int kTiledRows = 64;  // queries of a block at most

// Shared memory of a block; `int slots[...]` of all of the window follow it. Rows are 16 bytes longer than they need to
// be, so that eight of them start in different banks.
template <class T, int kDim, int kKeys>
struct TiledStorage {
    static constexpr int kStages = kDim <= 64 ? 2 : 1;
    static constexpr int kStride = kDim + kChunk<T>;
    T q[kTiledRows * kStride];
    T k[kStages][kKeys * kStride], v[kStages][kKeys * kStride];
    float k_norm[kKeys];
};

template <class T, int kDim, int kKeys>
struct TiledWindow {
    using Storage = TiledStorage<T, kDim, kKeys>;
    static constexpr int kStride = Storage::kStride;
    using Type = Products<T, kDim, kKeys, kStride>;
    static constexpr int kChunks = kDim / kChunk<T>;  // of a row
    static constexpr int kOwn = kKeys / 4;            // keys of a tile that a thread has scores of, side by side

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
        return addresses % 16 == 0 && p.head_dim % kChunk<T> == 0;
    }

    // Row of a tile where key number `key` lies: the thread with `quad` gets columns 8 i + 2 quad, + 1 of the scores, and
    // those shall be keys kOwn quad + 2 i, + 1.
    __device__ __forceinline__ static int row_of_key(int key) { return 8 * (key % kOwn / 2) + 2 * (key / kOwn) + key % 2; }

    // 16 bytes from `channel` on of parts first to last (0, 1, 2: q, k, v) of a slot, zeros where there are none.
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
                for (int c = 0; c < kChunk<T>; ++c) {
                    bool const there = token != kNoSlot && channel + c < p.head_dim;
                    to[part - first][c] = there ? from[part * channels + c] : T(0.0f);
                }
            }
        }
    }

    __device__ __forceinline__ void copy_queries(Storage& memory, int first_row) const {
        for (int i = threadIdx.x; i < static_cast<int>(blockDim.x) / 2 * kChunks; i += blockDim.x) {
            int const row = i / kChunks, channel = i % kChunks * kChunk<T>;
            T* const to = memory.q + row * kStride + channel;
            copy(first_row + row, channel, 0, 0, {to, to});
        }
    }

    __device__ __forceinline__ void copy_tile(Storage& memory, int stage, int tile) const {
        for (int i = threadIdx.x; i < kKeys * kChunks; i += blockDim.x) {
            int const key = i / kChunks, channel = i % kChunks * kChunk<T>, place = row_of_key(key) * kStride + channel;
            copy(kKeys * tile + key, channel, 1, 2, {memory.k[stage] + place, memory.v[stage] + place});
        }
        commit_copies();
    }

    __device__ __forceinline__ void measure_keys(Storage& memory, int stage) const {
        for (int key = threadIdx.x; key < kKeys; key += blockDim.x) {
            uint4 const* row = reinterpret_cast<uint4 const*>(memory.k[stage] + row_of_key(key) * kStride);
            float sum = 0;
#pragma unroll
            for (int c = 0; c < kChunks; ++c) sum += Type::square_sum(row[c]);
            memory.k_norm[key] = Type::inverse_norm(sum);
        }
    }
};

// Blocks that a multiprocessor shall have registers for. With floats, capabilities 8.6, 8.9 and 12.0 have shared memory
// for two alone, and of the others what is compiled for Hopper alone does with a third of the registers.
template <class T, int kDim>
__host__ __device__ constexpr int tiled_blocks() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    constexpr bool kFloatsFit = true;
#else
    constexpr bool kFloatsFit = false;
#endif
    return kDim <= 32 && (sizeof(T) == 2 || kFloatsFit) ? 3 : 2;
}

// Grid: windows x row groups x heads, the heads fastest. Block: a warp for each of its tiles of 16 queries. Shared memory:
// TiledStorage<T, kDim, kKeys> and an int for each slot of the tiles of queries and of keys.
template <class T, int kDim, int kKeys, bool kCosine>
__global__ void __launch_bounds__(2 * kTiledRows, (tiled_blocks<T, kDim>()))
    window_attention_tiled(WindowAttentionParams const p) {
    using Storage = TiledStorage<T, kDim, kKeys>;
    using Work = TiledWindow<T, kDim, kKeys>;
    using Type = typename Work::Type;
    constexpr int kStages = Storage::kStages, kStride = Storage::kStride, kTiles = kKeys / 8;
    extern __shared__ __align__(16) unsigned char shared[];
    Storage& memory = *reinterpret_cast<Storage*>(shared);
    int* const slots = reinterpret_cast<int*>(shared + sizeof(Storage));
    let_next_kernel_in();

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
    wait_for_kernels_before();
    work.copy_queries(memory, first_row);
    work.copy_tile(memory, 0, 0);

    int const warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    int const rows[2] = {first_row + 16 * warp + group, first_row + 16 * warp + group + 8};
    int const own[2] = {slots[rows[0]], slots[rows[1]]};
    float factor[2] = {p.scale, p.scale};
    if (kCosine) factor[0] = factor[1] = static_cast<float>(static_cast<T const*>(p.logit_scale)[head]);
    T const* bias_rows[2];
    bool const bias_is_aligned = Type::bias_is_aligned(p.relative_position_bias, n);
    Type type;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        bias_rows[r] = static_cast<T const*>(p.relative_position_bias) +
                       (static_cast<long long>(head) * n + min(rows[r], n - 1)) * n;
        if (Type::kBiasesAhead) type.load_biases(r, bias_rows[r], Work::kOwn * quad, n, bias_is_aligned);
    }

    float o[kDim / 8][4] = {};
    float largest[2] = {kLowestScore, kLowestScore}, total[2] = {0, 0};

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
            type.take_queries(memory.q + 16 * warp * kStride);
            if (kCosine) {
                float squares[2] = {0, 0};
                type.add_squares(squares);
#pragma unroll
                for (int r = 0; r < 2; ++r) factor[r] *= Type::inverse_norm(sum_of_quad(squares[r]));
            }
        }

        float s[kTiles][4];
        type.score(s, memory.k[stage]);
        int const first_key = kKeys * tile + Work::kOwn * quad;  // of those that this thread has scores of
        float2 const* norms = reinterpret_cast<float2 const*>(memory.k_norm + Work::kOwn * quad);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            if (!Type::kBiasesAhead) type.load_biases(r, bias_rows[r], first_key, n, bias_is_aligned);
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
                float2 const norm = kCosine ? norms[j] : make_float2(1, 1), b = type.biases(r, j);
                s[j][2 * r] = s[j][2 * r] * (factor[r] * norm.x) + b.x;
                s[j][2 * r + 1] = s[j][2 * r + 1] * (factor[r] * norm.y) + b.y;
            }
        }
        if (Type::kBiasesAhead && tile + 1 < tiles) {
#pragma unroll
            for (int r = 0; r < 2; ++r)
                type.load_biases(r, bias_rows[r], first_key + kKeys, n, bias_is_aligned);
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
                    s[j][i] = Type::weight(s[j][i], top);
                    total[r] += s[j][i];
                }
        }
        type.weigh(o, s, memory.v[stage]);
        if (kStages == 1 && tile + 1 < tiles) {
            __syncthreads();  // everybody is done with the tile that is overwritten now
            work.copy_tile(memory, 0, tile + 1);
        }
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float const share = Type::reciprocal(sum_of_quad(total[r]));
        int const token = own[r] >> 3;
        if (token < 0) continue;
        T* const to = static_cast<T*>(p.output) + (work.first_token + token) * work.channels + work.offset;
        type.store(to, o, r, share, p.head_dim, work.by_16_bytes);
    }
}

}  // namespace swinopt

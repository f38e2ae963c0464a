// Single precision, without tensor cores. Any window of up to 1024 tokens, heads of up to 128 channels, every pointer
// aligned to 4 bytes.
//
// A block computes 32 queries of one head of one window, 8 a warp, against tiles of 32 keys with an online softmax. For
// the scores a lane is a key, for the result it is a channel; a warp's probabilities change hands in shared memory.
#pragma once

#include "geometry.cuh"

namespace swinopt {

constexpr int kSingleTile = 32, kRowsOfWarp = 8, kSingleWarps = 4;

template <int kDim>
struct SingleStorage {
    static constexpr int kStride = kDim + 4;  // rows stay aligned to 16 bytes, and 8 of them start in different banks
    float q[kSingleTile * kStride], k[kSingleTile * kStride], v[kSingleTile * kStride];
    float weights[kSingleWarps][kRowsOfWarp][kSingleTile];
    float k_norm[kSingleTile];
    int region[kSingleTile];
};

// Grid: windows x tiles of queries x heads, the heads fastest. Block: 128 threads. Shared memory: SingleStorage<kDim>.
template <int kDim, bool kCosine>
__global__ void __launch_bounds__(128, 2) window_attention_single(WindowAttentionParams const p) {
    constexpr int kStride = SingleStorage<kDim>::kStride, kColumns = kDim / 32;
    constexpr unsigned kAll = 0xffffffffu;
    extern __shared__ __align__(16) unsigned char shared[];
    SingleStorage<kDim>& memory = *reinterpret_cast<SingleStorage<kDim>*>(shared);
    let_next_kernel_in();

    int const n = tokens_of_window(p), tiles = (n + kSingleTile - 1) / kSingleTile, channels = p.num_heads * p.head_dim;
    int const head = blockIdx.x % p.num_heads, row_tile = blockIdx.x / p.num_heads % tiles;
    Window const window(p, blockIdx.x / p.num_heads / tiles);
    SlotCoordinates const coordinates(p);
    int const warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    long long const image = static_cast<long long>(window.batch) * tokens_of_image(p);

    // Part 0, 1 or 2 (q, k, v) of 32 slots; four threads a row.
    auto const load_rows = [&](float* to, Slot const& slot, int part) {
        int const row = threadIdx.x / 4;
        float const* from = static_cast<float const*>(p.pad_qkv);
        if (slot.token >= 0) from = static_cast<float const*>(p.qkv) + (image + slot.token) * (3 * channels);
        from += part * channels + head * p.head_dim;
#pragma unroll 8
        for (int c = threadIdx.x % 4; c < kDim; c += 4)
            to[row * kStride + c] = slot.token != kNoSlot && c < p.head_dim ? from[c] : 0.0f;
    };
    // 1 / max(|x|, 1e-12) of the row that this thread helped to load, in all four threads.
    auto const exact_reciprocal_norm = [&](float const* rows) {
        float sum = 0;
        for (int c = threadIdx.x % 4; c < kDim; c += 4) {
            float const x = rows[threadIdx.x / 4 * kStride + c];
            sum += x * x;
        }
        sum += __shfl_xor_sync(kAll, sum, 1);
        sum += __shfl_xor_sync(kAll, sum, 2);
        return 1 / fmaxf(sqrtf(sum), 1e-12f);
    };

    wait_for_kernels_before();
    load_rows(memory.q, slot_at(p, window, coordinates, kSingleTile * row_tile + static_cast<int>(threadIdx.x) / 4), 0);
    float factor = p.scale;
    if (kCosine) {
        // The norm of q goes into q itself.
        float const norm = exact_reciprocal_norm(memory.q);
        for (int c = threadIdx.x % 4; c < kDim; c += 4) memory.q[threadIdx.x / 4 * kStride + c] *= norm;
        factor = static_cast<float const*>(p.logit_scale)[head];
    }

    int const first_row = kSingleTile * row_tile + kRowsOfWarp * warp;
    Slot own[kRowsOfWarp];
    float o[kRowsOfWarp][kColumns] = {}, largest[kRowsOfWarp], total[kRowsOfWarp] = {};
#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
        own[r] = slot_at(p, window, coordinates, first_row + r);
        largest[r] = kLowestScore;
    }
    float const* const bias = static_cast<float const*>(p.relative_position_bias) + static_cast<long long>(head) * n * n;

    for (int tile = 0; tile < tiles; ++tile) {
        __syncthreads();  // everybody is done with the tile that is overwritten now
        Slot const slot = slot_at(p, window, coordinates, kSingleTile * tile + static_cast<int>(threadIdx.x) / 4);
        load_rows(memory.k, slot, 1);
        load_rows(memory.v, slot, 2);
        if (kCosine) {
            float const norm = exact_reciprocal_norm(memory.k);
            if (threadIdx.x % 4 == 0) memory.k_norm[threadIdx.x / 4] = norm;
        }
        if (threadIdx.x % 4 == 0) memory.region[threadIdx.x / 4] = slot.region;
        __syncthreads();

        int const key = kSingleTile * tile + lane;
        float s[kRowsOfWarp] = {};
#pragma unroll 4
        for (int c = 0; c < kDim; c += 4) {
            float4 const k = *reinterpret_cast<float4 const*>(memory.k + lane * kStride + c);
#pragma unroll
            for (int r = 0; r < kRowsOfWarp; ++r) {
                float4 const q = *reinterpret_cast<float4 const*>(memory.q + (kRowsOfWarp * warp + r) * kStride + c);
                s[r] += q.x * k.x + q.y * k.y + q.z * k.z + q.w * k.w;
            }
        }
#pragma unroll
        for (int r = 0; r < kRowsOfWarp; ++r) {
            int const row = first_row + r;
            float score = minus_infinity();
            if (key < n) {
                score = s[r] * (kCosine ? factor * memory.k_norm[lane] : factor);
                if (row < n) score += bias[static_cast<long long>(row) * n + key];
                if (memory.region[lane] != own[r].region) score += p.mask_value;
            }
            float top = fmaxf(score, largest[r]);
#pragma unroll
            for (int offset = 16; offset; offset /= 2) top = fmaxf(top, __shfl_xor_sync(kAll, top, offset));
            float const weight = expf(score - top), shrink = expf(largest[r] - top);
            float sum = weight;
#pragma unroll
            for (int offset = 16; offset; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
            total[r] = total[r] * shrink + sum;
            largest[r] = top;
            memory.weights[warp][r][lane] = weight;
#pragma unroll
            for (int d = 0; d < kColumns; ++d) o[r][d] *= shrink;
        }
        __syncwarp();
#pragma unroll 2
        for (int j = 0; j < kSingleTile; j += 4) {
            float v[4][kColumns];
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int d = 0; d < kColumns; ++d) v[i][d] = memory.v[(j + i) * kStride + 32 * d + lane];
#pragma unroll
            for (int r = 0; r < kRowsOfWarp; ++r) {
                float4 const w = *reinterpret_cast<float4 const*>(memory.weights[warp][r] + j);
#pragma unroll
                for (int d = 0; d < kColumns; ++d)
                    o[r][d] += w.x * v[0][d] + w.y * v[1][d] + w.z * v[2][d] + w.w * v[3][d];
            }
        }
        __syncwarp();
    }

#pragma unroll
    for (int r = 0; r < kRowsOfWarp; ++r) {
        if (own[r].token < 0) continue;
        float* const to = static_cast<float*>(p.output) + (image + own[r].token) * channels + head * p.head_dim;
#pragma unroll
        for (int d = 0; d < kColumns; ++d)
            if (32 * d + lane < p.head_dim) to[32 * d + lane] = o[r][d] / total[r];
    }
}

}  // namespace swinopt

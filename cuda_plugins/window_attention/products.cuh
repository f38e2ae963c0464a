// What tiled.cuh does in its own way for each type: products of tiles on the tensor cores, biases, norms, exponentials.
//
// fp32 takes three products of TF32 for one: x = big + small, both of 11 bits and off by 2^-23 of it at the most, and
//
//   x y  =  big big + big small + small big        leaving out small small, 2^-22 of it
//
// (Markidis et al. 2018, arXiv:1803.04014). Tensor cores cut off what does not fit in 24 bits, which adds up in one
// direction; so sums are theirs over a few terms alone, and those are added up by the plain units, which round (Ootomo
// and Yokota 2022, arXiv:2203.03341). The order of channels and keys inside of a sum is free: it is such that a thread's
// numbers lie side by side in shared memory.
#pragma once

#include "../common/mma.cuh"

namespace swinopt {

// Elements of 16 bytes.
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));

// Queries and keys of 16 bits. kStride: elements from one row in shared memory to the next.
template <class T, int kDim, int kKeys, int kStride>
struct Products {
    static constexpr int kSteps = kDim / 16, kTiles = kKeys / 8, kBiases = kKeys / 4;
    static constexpr bool kBiasesAhead = true;  // they are asked for before there are scores to add them to
    int const lane = threadIdx.x % 32, quad = lane % 4;
    unsigned q[kSteps][4];
    unsigned bias[2][kBiases / 2];

    // The warp's queries, 16 rows.
    __device__ __forceinline__ void take_queries(T const* rows) {
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
            load_matrices(q[step], rows + lane % 16 * kStride + 16 * step + lane / 16 * 8);
    }

    // Adds the squares of what this thread holds of its two queries.
    __device__ __forceinline__ void add_squares(float (&squares)[2]) const {
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float2 const x = Pair<T>::unpack(q[step][i]);
                squares[i % 2] += x.x * x.x + x.y * x.y;
            }
    }

    // s = q k^T, fragments C by tile of 8 keys.
    __device__ __forceinline__ void score(float (&s)[kTiles][4], T const* keys) const {
#pragma unroll
        for (int pair = 0; pair < kTiles; pair += 2) {
#pragma unroll
            for (int i = 0; i < 4; ++i) s[pair][i] = s[pair + 1][i] = 0;
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                unsigned k[4];
                load_matrices(k, keys + (8 * (pair + lane / 16) + lane % 8) * kStride + 16 * step + lane / 8 % 2 * 8);
                mma<T>(s[pair], q[step], k[0], k[1]);
                mma<T>(s[pair + 1], q[step], k[2], k[3]);
            }
        }
    }

    // o += w v.
    __device__ __forceinline__ void weigh(float (&o)[kDim / 8][4], float const (&w)[kTiles][4], T const* values) const {
#pragma unroll
        for (int step = 0; step < kKeys / 16; ++step) {
            float const(&left)[4] = w[2 * step], (&right)[4] = w[2 * step + 1];
            unsigned const weights[4] = {Pair<T>::pack(left[0], left[1]), Pair<T>::pack(left[2], left[3]),
                                         Pair<T>::pack(right[0], right[1]), Pair<T>::pack(right[2], right[3])};
#pragma unroll
            for (int d = 0; d < kDim / 8; d += 2) {
                unsigned v[4];
                load_matrices_transposed(v, values + (16 * step + lane % 16) * kStride + 8 * (d + lane / 16));
                mma<T>(o[d], weights, v[0], v[1]);
                mma<T>(o[d + 1], weights, v[2], v[3]);
            }
        }
    }

    // Row r of the result times `share`.
    __device__ __forceinline__ void store(T* to, float const (&o)[kDim / 8][4], int r, float share, int head_dim,
                                          bool by_16_bytes) const {
#pragma unroll
        for (int d = 0; d < kDim / 8; ++d) {
            int const c = 8 * d + 2 * quad;
            float const low = o[d][2 * r] * share, high = o[d][2 * r + 1] * share;
            if (by_16_bytes) {
                if (c < head_dim) *reinterpret_cast<unsigned*>(to + c) = Pair<T>::pack(low, high);
            } else {
                if (c < head_dim) to[c] = T(low);
                if (c + 1 < head_dim) to[c + 1] = T(high);
            }
        }
    }

    __device__ static bool bias_is_aligned(void const* all, int n) {
        return n % 4 == 0 && reinterpret_cast<unsigned long long>(all) % 8 == 0;
    }

    // The biases of query r for neighbouring keys from `first` on; anything behind the row's end.
    __device__ __forceinline__ void load_biases(int r, T const* row, int first, int n, bool aligned) {
        if (aligned) {
#pragma unroll
            for (int i = 0; i < kBiases; i += 4) {
                uint2 const four = *reinterpret_cast<uint2 const*>(row + min(first + i, n - 4));
                bias[r][i / 2] = four.x, bias[r][i / 2 + 1] = four.y;
            }
        } else {
#pragma unroll
            for (int i = 0; i < kBiases; i += 2)
                bias[r][i / 2] = Pair<T>::pack(static_cast<float>(row[min(first + i, n - 1)]),
                                               static_cast<float>(row[min(first + i + 1, n - 1)]));
        }
    }

    __device__ __forceinline__ float2 biases(int r, int j) const { return Pair<T>::unpack(bias[r][j]); }

    // Of the squares of 16 bytes.
    __device__ __forceinline__ static float square_sum(uint4 eight) {
        unsigned const pairs[4] = {eight.x, eight.y, eight.z, eight.w};
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            float2 const x = Pair<T>::unpack(pairs[i]);
            sum += x.x * x.x + x.y * x.y;
        }
        return sum;
    }

    // 1 / max(|x|, 1e-12) from the sum of x's squares.
    __device__ __forceinline__ static float inverse_norm(float squares) { return reciprocal_norm(squares); }

    // e^(score - top), the difference first: in a tile that a large mask hides, what a product is rounded by is no small
    // number.
    __device__ __forceinline__ static float weight(float score, float top) {
        return exp2_approximately((score - top) * kLog2E);
    }

    __device__ __forceinline__ static float reciprocal(float x) { return reciprocal_approximately(x); }
};

// A fragment of floats in two parts, for tensor cores that read the upper 19 bits alone: big is rounded to them, and of
// small one bit at the most is cut off. A NaN has to stay one in the small part; in the big one the carry may make a zero
// of it.
template <int kCount>
struct Split {
    unsigned big[kCount], small[kCount];
    __device__ __forceinline__ void set(int i, float x) {
        big[i] = __float_as_uint(x) + 0x1000u;
        small[i] = __float_as_uint(x - __uint_as_float(big[i] & ~0x1fffu));
    }
};

using SplitA = Split<4>;

struct SplitB : Split<2> {
    __device__ __forceinline__ SplitB(float b0, float b1) { set(0, b0), set(1, b1); }
};

// C += A B, but for the product of the big parts.
__device__ __forceinline__ void mma_rest(float (&c)[4], SplitA const& a, SplitB const& b) {
    mma_tf32(c, a.small, b.big);
    mma_tf32(c, a.big, b.small);
}

// The same in fp32. A thread holds channels 32 b + 8 quad to + 7 of queries and keys, and 32 b + 4 group to + 3 of values.
template <int kDim, int kKeys, int kStride>
struct Products<float, kDim, kKeys, kStride> {
    static constexpr int kBlocks = kDim / 32, kTiles = kKeys / 8, kBiases = kKeys / 4;
    static constexpr bool kBiasesAhead = false;  // there are no registers left for that
    int const lane = threadIdx.x % 32, group = lane / 4, quad = lane % 4;
    float const* q;  // this thread's channels of its first query; the second one lies 8 rows behind
    float bias[2][kBiases];

    __device__ __forceinline__ void take_queries(float const* rows) { q = rows + group * kStride + 8 * quad; }

    __device__ __forceinline__ void add_squares(float (&squares)[2]) const {
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
            for (int b = 0; b < kBlocks; ++b)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float4 const x = four(q + 8 * r * kStride + 32 * b + 4 * half);
                    squares[r] += x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
                }
    }

    __device__ __forceinline__ void score(float (&s)[kTiles][4], float const* keys) const {
#pragma unroll
        for (int j = 0; j < kTiles; ++j)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[j][i] = 0;
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int const channel = 32 * b + 4 * half;
                SplitA x[2];
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    float4 const query = four(q + 8 * r * kStride + channel);
                    x[0].set(r, query.x), x[0].set(2 + r, query.y);
                    x[1].set(r, query.z), x[1].set(2 + r, query.w);
                }
#pragma unroll
                for (int j = 0; j < kTiles; ++j) {
                    float4 const key = four(keys + (8 * j + group) * kStride + 8 * quad + channel);
                    SplitB const y[2] = {{key.x, key.y}, {key.z, key.w}};
                    // What is small comes first: hardly anything of it is cut off.
                    float sum[4] = {};
#pragma unroll
                    for (int step = 0; step < 2; ++step) mma_rest(sum, x[step], y[step]);
#pragma unroll
                    for (int step = 0; step < 2; ++step) mma_tf32(sum, x[step].big, y[step].big);
#pragma unroll
                    for (int i = 0; i < 4; ++i) s[j][i] += sum[i];
                }
            }
    }

    __device__ __forceinline__ void weigh(float (&o)[kDim / 8][4], float const (&w)[kTiles][4], float const* values) const {
#pragma unroll
        for (int j = 0; j < kTiles; ++j) {
            // Columns quad and quad + 4 of the product are the two keys that this thread has weights of.
            SplitA weights;
            weights.set(0, w[j][0]), weights.set(1, w[j][2]), weights.set(2, w[j][1]), weights.set(3, w[j][3]);
#pragma unroll
            for (int b = 0; b < kBlocks; ++b) {
                float const* const row = values + (8 * j + 2 * quad) * kStride + 32 * b + 4 * group;
                float4 const first = four(row), second = four(row + kStride);
                SplitB const v[4] = {{first.x, second.x}, {first.y, second.y}, {first.z, second.z}, {first.w, second.w}};
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    float sum[4] = {};
                    mma_rest(sum, weights, v[c]);
                    mma_tf32(sum, weights.big, v[c].big);
#pragma unroll
                    for (int i = 0; i < 4; ++i) o[4 * b + c][i] += sum[i];
                }
            }
        }
    }

    __device__ __forceinline__ void store(float* to, float const (&o)[kDim / 8][4], int r, float share, int head_dim,
                                          bool by_16_bytes) const {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int const first = 32 * b + 8 * quad + 4 * half;
                float x[4];
#pragma unroll
                for (int c = 0; c < 4; ++c) x[c] = o[4 * b + c][2 * r + half] * share;
                if (by_16_bytes) {
                    if (first < head_dim) *reinterpret_cast<float4*>(to + first) = make_float4(x[0], x[1], x[2], x[3]);
                } else {
#pragma unroll
                    for (int c = 0; c < 4; ++c)
                        if (first + c < head_dim) to[first + c] = x[c];
                }
            }
    }

    __device__ static bool bias_is_aligned(void const* all, int n) {
        return n % 2 == 0 && reinterpret_cast<unsigned long long>(all) % 8 == 0;
    }

    __device__ __forceinline__ void load_biases(int r, float const* row, int first, int n, bool aligned) {
        row += first;
        int const left = n - first;
        if (aligned) {
#pragma unroll
            for (int i = 0; i < kBiases; i += 2) {
                float2 const two = i < left ? *reinterpret_cast<float2 const*>(row + i) : make_float2(0, 0);
                bias[r][i] = two.x, bias[r][i + 1] = two.y;
            }
        } else {
#pragma unroll
            for (int i = 0; i < kBiases; ++i) bias[r][i] = i < left ? row[i] : 0;
        }
    }

    __device__ __forceinline__ float2 biases(int r, int j) const { return make_float2(bias[r][2 * j], bias[r][2 * j + 1]); }

    __device__ __forceinline__ static float square_sum(uint4 bits) {
        float const x[4] = {__uint_as_float(bits.x), __uint_as_float(bits.y), __uint_as_float(bits.z),
                            __uint_as_float(bits.w)};
        return x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3];
    }

    __device__ __forceinline__ static float inverse_norm(float squares) { return 1 / fmaxf(sqrtf(squares), 1e-12f); }

    // The difference first: a product that is rounded would be off by another amount in the next tile.
    __device__ __forceinline__ static float weight(float score, float top) {
        return exp2_approximately((score - top) * kLog2E);
    }

    __device__ __forceinline__ static float reciprocal(float x) { return 1 / x; }

    __device__ __forceinline__ static float4 four(float const* x) { return *reinterpret_cast<float4 const*>(x); }
};

}  // namespace swinopt

// LayerNorm of one row by a part of a warp, a warp, or a block: the arithmetic that several kernels share.
//
//     y[c] = (x[c] - mean) / sqrt(variance + epsilon) * gamma[c] + beta[c],    variance = mean((x - mean)^2)
//
// Ba et al. 2016, arXiv:1607.06450. All of it in float, and the variance from centred values: E[x^2] - E[x]^2 would
// lose its digits where the mean is large, as it is in the residual stream of a trained Swin.
//
// RowInRegisters keeps a row in registers, so that memory is read once: a vector of 16 bytes a lane for as long as a
// warp is enough, and several a lane beyond (layer_norm_plan.h). A warp then computes two rows of 96 channels in half
// precision, of 1024 channels one.
//
// layer_norm_element_by_element makes no assumption on length or alignment. It asks for every element three times,
// which costs three trips to the cache.
#pragma once

#include "dtypes.cuh"
#include "overlap.cuh"

namespace swinopt {

constexpr int kLayerNormThreads = 128;  // of a block; layer_norm_plan.h says the same
constexpr int kLayerNormBlocks = 1;     // of a multiprocessor, at least: left alone, ptxas aims at more and spills

// The sum over groups of kLanes neighbouring threads, in each of them: a part of a warp, a warp, or the block. All
// threads have to be here.
template <int kLanes>
__device__ __forceinline__ float sum_over_lanes(float value) {
    constexpr int kInWarp = kLanes < 32 ? kLanes : 32;
#pragma unroll
    for (int distance = kInWarp / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    if constexpr (kLanes > 32) {
        static_assert(kLanes == kLayerNormThreads, "several warps share a row only if they are the block");
        __shared__ float of_warp[kLayerNormThreads / 32];
        __syncthreads();  // the sum before this one may still be read
        if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
        __syncthreads();
        value = 0.0f;
#pragma unroll
        for (int warp = 0; warp < kLayerNormThreads / 32; ++warp) value += of_warp[warp];
    }
    return value;
}

// Which row the calling thread works on, if every row has kLanes lanes.
template <int kLanes>
__device__ __forceinline__ long long row_of_thread() {
    return static_cast<long long>(blockIdx.x) * (kLayerNormThreads / kLanes) + threadIdx.x / kLanes;
}

// What one lane holds of a row: its vectors lane, lane + kLanes, lane + 2 kLanes ...
//
// There is no branch around a load: the compiler would let each wait for the one before. A lane without a vector of its
// own loads the row's last one again, and leaves it out of the sums.
template <class T, int kLanes, int kVectors>
struct RowInRegisters {
    static constexpr int kWidth = Vector<T>::kWidth;

    float values[kVectors][kWidth];
    int lane;
    int count;    // vectors of the row
    bool exists;  // whether the row is to be written; else it stands in for one beyond the last

    // Of row `number` of so many, each of `features` elements.
    __device__ __forceinline__ RowInRegisters(long long number, long long rows, int features)
        : lane(threadIdx.x % kLanes), count(features / kWidth), exists(number < rows) {}

    __device__ __forceinline__ bool has(int i) const { return lane + i * kLanes < count; }

    // The first channel of vector i.
    __device__ __forceinline__ int channel(int i) const { return min(lane + i * kLanes, count - 1) * kWidth; }

    __device__ __forceinline__ void store(T* row) const {
#pragma unroll
        for (int i = 0; i < kVectors; ++i)
            if (exists && has(i)) store_vector(row + channel(i), values[i]);
    }

    // Normalises in place. All threads of the block have to be here.
    __device__ __forceinline__ void normalize(int channels, float epsilon, T const* gamma, T const* beta) {
        float const reciprocal = 1.0f / static_cast<float>(channels);
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < kWidth; ++j) part += values[i][j];
            sum += has(i) ? part : 0.0f;
        }
        float const mean = sum_over_lanes<kLanes>(sum) * reciprocal;
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            float part = 0.0f;
#pragma unroll
            for (int j = 0; j < kWidth; ++j) {
                values[i][j] -= mean;
                part += values[i][j] * values[i][j];
            }
            squares += has(i) ? part : 0.0f;
        }
        float const scale = rsqrtf(sum_over_lanes<kLanes>(squares) * reciprocal + epsilon);
#pragma unroll
        for (int i = 0; i < kVectors; ++i) {
            float g[kWidth], b[kWidth];
            unpack<T>(load_16_constant_bytes(gamma + channel(i)), g);
            unpack<T>(load_16_constant_bytes(beta + channel(i)), b);
#pragma unroll
            for (int j = 0; j < kWidth; ++j) values[i][j] = values[i][j] * scale * g[j] + b[j];
        }
    }
};

// One warp a row. element(channel) gives the value; it is called three times for each. store(channel, value) takes y.
template <class T, class Element, class Store>
__device__ __forceinline__ void layer_norm_element_by_element(int channels, float epsilon, T const* gamma,
                                                              T const* beta, Element element, Store store) {
    int const lane = threadIdx.x % 32;
    float const reciprocal = 1.0f / static_cast<float>(channels);
    float sum = 0.0f;
    for (int c = lane; c < channels; c += 32) sum += element(c);
    float const mean = sum_over_lanes<32>(sum) * reciprocal;
    float squares = 0.0f;
    for (int c = lane; c < channels; c += 32) {
        float const centred = element(c) - mean;
        squares += centred * centred;
    }
    float const scale = rsqrtf(sum_over_lanes<32>(squares) * reciprocal + epsilon);
    for (int c = lane; c < channels; c += 32)
        store(c, (element(c) - mean) * scale * to_float(gamma[c]) + to_float(beta[c]));
}

}  // namespace swinopt

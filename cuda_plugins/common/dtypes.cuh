// float, __half and __nv_bfloat16 in memory, float in registers: 16 bytes or one element at a time.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace swinopt {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

// Rounds to the nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

// As many elements as one instruction can load. The address has to be a multiple of 16.
template <class T>
struct alignas(16) Vector {
    static constexpr int kWidth = 16 / sizeof(T);
    T elements[kWidth];
};

__device__ __forceinline__ uint4 load_16_bytes(void const* from) { return *static_cast<uint4 const*>(from); }

// For what no kernel in flight writes: the load may be served by the read-only cache and moved past any store. The
// kernel before this one can be in flight (overlap.cuh).
__device__ __forceinline__ uint4 load_16_constant_bytes(void const* from) {
    return __ldg(static_cast<uint4 const*>(from));
}

template <class T>
__device__ __forceinline__ void unpack(uint4 bits, float (&to)[Vector<T>::kWidth]) {
    Vector<T> const& vector = reinterpret_cast<Vector<T> const&>(bits);
#pragma unroll
    for (int i = 0; i < Vector<T>::kWidth; ++i) to[i] = to_float(vector.elements[i]);
}

template <class T>
__device__ __forceinline__ void store_vector(T* to, float const (&from)[Vector<T>::kWidth]) {
    uint4 bits;
    Vector<T>& vector = reinterpret_cast<Vector<T>&>(bits);
#pragma unroll
    for (int i = 0; i < Vector<T>::kWidth; ++i) vector.elements[i] = from_float<T>(from[i]);
    *reinterpret_cast<uint4*>(to) = bits;
}

}  // namespace swinopt

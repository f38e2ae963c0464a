// Floats: minus infinity, and what the special function unit computes in one instruction to about two units in the last
// place.
#pragma once

namespace swinopt {

constexpr float kLog2E = 1.4426950408889634f;

__device__ __forceinline__ float minus_infinity() { return __int_as_float(0xff800000); }

// 2^x with an error of two units in the last place, and 0 for -infinity.
__device__ __forceinline__ float exp2_approximately(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

__device__ __forceinline__ float reciprocal_approximately(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// 1 / max(|x|, 1e-12) from the sum of x's squares.
__device__ __forceinline__ float reciprocal_norm(float squares) {
    float result;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(fmaxf(squares, 1e-24f)));
    return result;
}

}  // namespace swinopt

// x Phi(x) = x (1 + erf(x / sqrt(2))) / 2 in float32, four numbers a thread.
#pragma once

#include <cstdint>

#include "../common/overlap.cuh"

namespace swinopt {

constexpr int kGeluThreads = 256;

struct Gelu {
    float4* x;
    std::int64_t fours;
};

__device__ __forceinline__ float exact_gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }

inline __global__ void __launch_bounds__(kGeluThreads) gelu_kernel(Gelu const p) {
    wait_for_kernels_before();
    std::int64_t const i = static_cast<std::int64_t>(blockIdx.x) * kGeluThreads + threadIdx.x;
    if (i >= p.fours) return;
    float4 const x = p.x[i];
    p.x[i] = make_float4(exact_gelu(x.x), exact_gelu(x.y), exact_gelu(x.z), exact_gelu(x.w));
}

}  // namespace swinopt

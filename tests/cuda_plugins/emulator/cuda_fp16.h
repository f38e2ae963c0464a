// The CPU's stand-in for CUDA's numbers of 16 bits.
#pragma once

#include "cuda_runtime_api.h"

// A number of 16 bits: IEEE's half, or the upper half of a float.
template <bool kIsBFloat>
struct Half {
    std::uint16_t bits;
    Half() = default;
    explicit Half(float x) {
        if constexpr (kIsBFloat) {
            std::uint32_t whole;
            std::memcpy(&whole, &x, 4);
            bits = x != x ? 0x7fff : static_cast<std::uint16_t>((whole + 0x7fff + (whole >> 16 & 1)) >> 16);
        } else {
            _Float16 const half = static_cast<_Float16>(x);
            std::memcpy(&bits, &half, 2);
        }
    }
    explicit operator float() const {
        if constexpr (kIsBFloat) {
            std::uint32_t const whole = static_cast<std::uint32_t>(bits) << 16;
            float x;
            std::memcpy(&x, &whole, 4);
            return x;
        } else {
            _Float16 half;
            std::memcpy(&half, &bits, 2);
            return static_cast<float>(half);
        }
    }
};
using __half = Half<false>;

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half_rn(float x) { return __half(x); }

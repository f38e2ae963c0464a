// The CPU's stand-in for cuda_plugins/common/arithmetic.cuh.
#pragma once

#include <cmath>

namespace swinopt {

constexpr float kLog2E = 1.4426950408889634f;

inline float minus_infinity() { return -HUGE_VALF; }

inline float exp2_approximately(float x) { return std::exp2(x); }
inline float reciprocal_approximately(float x) { return 1 / x; }
inline float reciprocal_norm(float squares) { return 1 / std::sqrt(std::fmax(squares, 1e-24f)); }

}  // namespace swinopt

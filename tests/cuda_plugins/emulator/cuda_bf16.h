// The CPU's stand-in for bfloat16.
#pragma once

#include "cuda_fp16.h"

using __nv_bfloat16 = Half<true>;

inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }

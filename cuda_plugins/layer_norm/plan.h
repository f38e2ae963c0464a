// What layer_norm can do, and how it cuts its work: no CUDA calls. plan.py is the same in Python.
#pragma once

#include "../common/layer_norm_plan.h"
#include "../common/types.h"
#include "params.h"

namespace swinopt {

// Why the kernels cannot compute this, or null if they can. Pointers are not looked at.
inline char const* layer_norm_unsupported(LayerNormParams const& p, DType, Device const& device) {
    if (device.capability < 75) return "LayerNorm needs compute capability 7.5 (Turing) or newer";
    if (p.rows < 1 || p.channels < 1) return "LayerNorm: a tensor is empty, and there is nothing to launch for it";
    if (p.channels > kMostChannels) return "LayerNorm: a row may have 2^30 channels";
    if (!(p.epsilon >= 0.0f && p.epsilon <= 3.4e38f)) return "LayerNorm: epsilon must be a number of at least 0";
    return nullptr;
}

inline LayerNormPlan layer_norm_plan(LayerNormParams const& p, DType dtype) {
    bool const aligned = are_aligned({p.x, p.gamma, p.beta, p.residual, p.output}, 16);
    return layer_norm_plan(p.rows, p.channels, p.channels, size_of(dtype), aligned);
}

}  // namespace swinopt

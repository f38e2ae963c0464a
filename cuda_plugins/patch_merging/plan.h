// What patch_merging can do, and how it cuts its work: no CUDA calls. plan.py is the same in Python.
#pragma once

#include "../common/layer_norm_plan.h"
#include "../common/types.h"
#include "params.h"

namespace swinopt {

// Whether ints can count the merged tokens, and the features of one.
inline bool patch_merging_fits(PatchMergingParams const& p) {
    long long const tokens = static_cast<long long>((p.height - 1) / 2 + 1) * ((p.width - 1) / 2 + 1);
    return tokens <= 2147483647 / p.batch && p.channels <= kMostChannels / 4;
}

// Why the kernels cannot compute this, or null if they can. Pointers are not looked at.
inline char const* patch_merging_unsupported(PatchMergingParams const& p, DType, Device const& device) {
    if (device.capability < 75) return "PatchMerging needs compute capability 7.5 (Turing) or newer";
    if (p.batch < 1 || p.height < 1 || p.width < 1 || p.channels < 1)
        return "PatchMerging: a tensor is empty, and there is nothing to launch for it";
    if (!patch_merging_fits(p))
        return "PatchMerging: there may be 2^31 - 1 merged tokens of 2^30 features";
    if (!(p.epsilon >= 0.0f && p.epsilon <= 3.4e38f)) return "PatchMerging: epsilon must be a number of at least 0";
    return nullptr;
}

// For what is not unsupported.
inline LayerNormPlan patch_merging_plan(PatchMergingParams const& p, DType dtype) {
    int const tokens = p.batch * ((p.height - 1) / 2 + 1) * ((p.width - 1) / 2 + 1);
    bool const aligned = are_aligned({p.x, p.gamma, p.beta, p.output}, 16);
    return layer_norm_plan(tokens, 4 * p.channels, p.channels, size_of(dtype), aligned);
}

}  // namespace swinopt

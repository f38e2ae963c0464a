// What linear can do: no CUDA calls.
#pragma once

#include "../common/types.h"
#include "cublaslt.h"
#include "params.h"

namespace swinopt {

// What cuBLAS advises for Hopper; older GPUs need less, and layers share it.
constexpr std::size_t kLinearWorkspace = std::size_t{32} << 20;

// Why there is no product for this, or null if there is. Pointers are not looked at, but for the residual's.
inline char const* linear_unsupported(LinearParams const& p, DType dtype, Device const& device) {
    if (dtype == DType::kFloat32 && !p.float32)
        return "Linear takes float32 only where its attribute float32 says how: 1 exactly, 2 with factors in TF32";
    if (device.capability < 75) return "Linear needs compute capability 7.5 (Turing) or newer";
    if (dtype == DType::kBFloat16 && device.capability < 80)
        return "Linear in bfloat16 needs compute capability 8.0 (Ampere) or newer";
    if (p.rows < 1 || p.inputs < 1 || p.outputs < 1)
        return "Linear: a tensor is empty, and there is nothing to launch for it";
    if (p.inputs % 8 || p.outputs % 8) return "Linear: the sizes of the weight must be multiples of 8";
    if (p.gelu && p.residual) return "Linear has no GELU together with a residual";
    // Where an engine is built for another machine there may be no GPU, and then no cuBLASLt either.
    if (device.multiprocessors && !cublaslt())
        return "Linear needs cuBLASLt: put libcublasLt.so.11, .12 or .13 where the loader looks (LD_LIBRARY_PATH)";
    return nullptr;
}

// Turing has no TF32, and multiplies exactly.
inline LinearParams as_possible(LinearParams p, Device const& device) {
    if (p.float32 == 2 && device.capability < 80) p.float32 = 1;
    return p;
}

}  // namespace swinopt

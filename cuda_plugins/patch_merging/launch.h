// The launcher of patch_merging, for C++ programs and the TensorRT plugin library.
#pragma once

#include "../common/launch.h"
#include "plan.h"

namespace swinopt {

// Enqueues one kernel. Returns cudaErrorInvalidValue for what patch_merging_unsupported refuses, and for pointers that
// are not aligned to their elements.
cudaError_t patch_merging(PatchMergingParams const& params, DType dtype, Device const& device, cudaStream_t stream);

}  // namespace swinopt

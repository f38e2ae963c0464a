// The launcher of layer_norm, for C++ programs and the TensorRT plugin library.
#pragma once

#include "../common/launch.h"
#include "plan.h"

namespace swinopt {

// Enqueues one kernel. Returns cudaErrorInvalidValue for what layer_norm_unsupported refuses, and for pointers that are
// not aligned to their elements.
cudaError_t layer_norm(LayerNormParams const& params, DType dtype, Device const& device, cudaStream_t stream);

}  // namespace swinopt

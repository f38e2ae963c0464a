// The launcher of add_layer_norm, for C++ programs and the TensorRT plugin library.
#pragma once

#include "../common/launch.h"
#include "plan.h"

namespace swinopt {

// Enqueues one kernel. Returns cudaErrorInvalidValue for what add_layer_norm_unsupported refuses, and for pointers that
// are not aligned to their elements.
cudaError_t add_layer_norm(AddLayerNormParams const& params, DType dtype, Device const& device, cudaStream_t stream);

}  // namespace swinopt

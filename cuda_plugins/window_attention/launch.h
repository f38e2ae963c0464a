// The launcher of window_attention, for C++ programs and the TensorRT plugin library.
#pragma once

#include "../common/launch.h"
#include "plan.h"

namespace swinopt {

// Enqueues one kernel; the fields of `params` that say how the work is cut need not be filled in. Returns
// cudaErrorInvalidValue for what window_attention_unsupported refuses, and cudaErrorMisalignedAddress for pointers that
// are not aligned to their elements.
cudaError_t window_attention(WindowAttentionParams params, DType dtype, Device const& device, cudaStream_t stream);

}  // namespace swinopt

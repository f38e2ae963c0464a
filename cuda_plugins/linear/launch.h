// The launcher of linear, for C++ programs and the TensorRT plugin library.
#pragma once

#include <string>

#include "../common/launch.h"
#include "plan.h"

namespace swinopt {

// Enqueues the product. Returns cudaErrorInvalidValue for what linear_unsupported refuses, and for pointers that are
// not aligned to 16 bytes, or 256 for the workspace; cudaErrorNotSupported where cuBLASLt knows no algorithm, and
// cudaErrorUnknown where it fails.
cudaError_t linear(LinearParams const& params, DType dtype, Device const& device, cudaStream_t stream);

// Times what cuBLASLt proposes for a product of this size on the current GPU, what is like the fastest of that but for
// one setting, and our own kernel (hopper.h), on memory of its own. Returns the fastest as bytes for
// LinearParams::tuned; empty if cuBLASLt's first proposal is as good, or something is missing. Pointers are not looked
// at, but for the residual's. A cuBLASLt of another version takes its own first proposal again.
std::string tune_linear(LinearParams const& params, DType dtype, Device const& device);

}  // namespace swinopt

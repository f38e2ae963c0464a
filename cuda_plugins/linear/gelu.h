// GELU behind a linear in float32, for which the form that cuBLASLt has, with tanh, is too far off.
#pragma once

#include "../common/launch.h"

namespace swinopt {

// x Phi(x) of each number of a dense [rows, features] matrix, in its place (Hendrycks and Gimpel 2016,
// arXiv:1606.08415; Phi is the normal distribution). `features` is a multiple of 4 and x aligned to 16 bytes.
cudaError_t gelu_in_place(float* x, int rows, int features, Device const& device, cudaStream_t stream);

}  // namespace swinopt

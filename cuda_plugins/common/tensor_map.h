// Tensor maps: what bulk copies of the tensor memory accelerator are told about a tensor. Hopper and newer.
#pragma once

#include <cuda.h>

#include "types.h"

namespace swinopt {

// Of a tensor of kAxes, the fastest first: its size, the bytes from one element to the next along every axis but the first,
// and the box that one copy brings. False where the driver refuses it, or knows no tensor maps.
bool describe_tensor(CUtensorMap& map, DType dtype, void const* tensor, int axes, cuuint64_t const* size,
                     cuuint64_t const* pitch, cuuint32_t const* box, CUtensorMapSwizzle swizzle);

template <int kAxes>
bool describe_tensor(CUtensorMap& map, DType dtype, void const* tensor, cuuint64_t const (&size)[kAxes],
                     cuuint64_t const (&pitch)[kAxes - 1], cuuint32_t const (&box)[kAxes], CUtensorMapSwizzle swizzle) {
    return describe_tensor(map, dtype, tensor, kAxes, size, pitch, box, swizzle);
}

}  // namespace swinopt

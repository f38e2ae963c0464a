// The CPU's stand-in for what the driver knows of tensor maps.
#pragma once

#include <cstdint>

using cuuint32_t = std::uint32_t;
using cuuint64_t = std::uint64_t;

enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_64B = 2, CU_TENSOR_MAP_SWIZZLE_128B = 3 };

struct CUtensorMap {
    unsigned char const* tensor;
    int axes;
    cuuint64_t size[5], pitch[5];  // of elements; in bytes
    cuuint32_t box[5];
    CUtensorMapSwizzle swizzle;
};

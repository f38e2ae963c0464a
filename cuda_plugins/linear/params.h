// The arguments of linear().
#pragma once

#include <cstddef>

namespace swinopt {

struct LinearParams {
    // T is __half, __nv_bfloat16 or float, the same for all. The output may not overlap another tensor. Weight and bias are
    // constants: they may be read while the kernel in front of this one still runs.
    void const* x;         // T [rows, inputs]
    void const* weight;    // T [inputs, outputs]
    void const* bias;      // T [outputs]
    void const* residual;  // T [rows, outputs], or null
    void* output;          // T [rows, outputs]

    void* workspace;  // for cuBLASLt, aligned to 256 bytes
    std::size_t workspace_bytes;

    int rows;
    int inputs;
    int outputs;
    int gelu;     // whether the bias is followed by a GELU; not with a residual
    int float32;  // how to multiply where T is float: 0 not at all, 1 exactly, 2 with factors rounded to TF32

    void const* tuned;  // what tune_linear() gave, or null
    std::size_t tuned_bytes;
};

}  // namespace swinopt

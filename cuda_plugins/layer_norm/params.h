// The arguments of every layer_norm kernel. Plain ints and pointers: plan.py has the same struct in ctypes.
#pragma once

namespace swinopt {

struct LayerNormParams {
    // T is float, __half or __nv_bfloat16, the same for all. The output may not overlap another tensor.
    // gamma and beta are constants: no kernel still under way may write them.
    void const* x;         // T [rows, channels]
    void const* gamma;     // T [channels]
    void const* beta;      // T [channels]
    void const* residual;  // T [rows, channels], or null
    void* output;          // T [rows, channels]

    int rows;
    int channels;
    float epsilon;
};

}  // namespace swinopt

// The arguments of every add_layer_norm kernel. Plain ints and pointers: plan.py has the same struct in ctypes.
#pragma once

namespace swinopt {

struct AddLayerNormParams {
    // T is float, __half or __nv_bfloat16, the same for all. No output may overlap another tensor.
    // gamma and beta are constants: no kernel still under way may write them.
    void const* a;      // T [rows, channels]
    void const* b;      // T [rows, channels]
    void const* gamma;  // T [channels]
    void const* beta;   // T [channels]
    void* sum;          // T [rows, channels]
    void* normalized;   // T [rows, channels]

    int rows;
    int channels;
    float epsilon;
};

}  // namespace swinopt

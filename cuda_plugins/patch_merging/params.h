// The arguments of every patch_merging kernel. Plain ints and pointers: plan.py has the same struct in ctypes.
#pragma once

namespace swinopt {

struct PatchMergingParams {
    // T is float, __half or __nv_bfloat16, the same for all. The output overlaps no other tensor.
    // gamma and beta are constants: no kernel still under way may write them.
    void const* x;      // T [batch, height, width, channels]
    void const* gamma;  // T [4 * channels]
    void const* beta;   // T [4 * channels]
    void* output;       // T [batch, ceil(height / 2), ceil(width / 2), 4 * channels]

    int batch;
    int height;
    int width;
    int channels;
    float epsilon;
};

}  // namespace swinopt

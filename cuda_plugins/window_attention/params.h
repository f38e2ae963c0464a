// The arguments of every window_attention kernel. Plain ints and pointers: plan.py has the same struct in ctypes.
#pragma once

namespace swinopt {

struct WindowAttentionParams {
    // T is float, __half or __nv_bfloat16, the same for all. relative_position_bias and logit_scale are constants: no kernel
    // still under way may write them.
    void const* qkv;                     // T [B, *size, 3C]
    void const* relative_position_bias;  // T [num_heads, N, N], N = prod(window)
    void const* logit_scale;             // T [num_heads], or null: scaled dot products
    void const* pad_qkv;                 // T [3C], or null where every size is a multiple of its window
    void* output;                        // T [B, *size, C]

    int batch;
    int size[3];    // leading axes that the map does not have are 1, their shift 0
    int window[3];
    int shift[3];
    int num_heads;
    int head_dim;   // C = num_heads * head_dim
    int roll_first;
    float scale;
    float mask_value;

    // How the work is cut; the plan fills these in.
    int windows[3];  // along each axis
    int roll[3];     // the shift modulo the period of the roll: the padded size, or with roll_first the size
    int windows_per_block;
    int row_groups;
    int heads_per_block;
    float inverse_scale;  // 1 / scale, or 1 with logit_scale
};

}  // namespace swinopt

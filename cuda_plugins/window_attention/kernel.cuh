// Shifted-window attention on a feature map: swinopt::WindowAttention. What it is stands in reference.py, step by step.
//
//   output[token] = softmax(scale q k^T + bias + mask) v       over the window that the token lies in
//
// The kernels read qkv [B, *size, 3C] where the linear before them left it and write [B, *size, C] where the linear behind
// them wants it: roll, partition, padding, mask and the way back are index arithmetic (geometry.cuh), and nothing in
// between touches device memory.
//
// What bounds it. A token costs 6C bytes in and 2C bytes out in 16 bits, and 4 N C operations. Swin-B's first stage with 32
// images (56 x 56 tokens, C = 128, N = 49): 103 MB, which takes 24 us at 4.3 TB/s, and 2.5 G multiply-adds, which take
// 7 us at 790 TFLOP/s; with tiles of 16 x 8, a third more of those. So with windows of 7 and 8 bytes bound it, and the
// tensor cores with windows from about 16 on.
//
//   small.cuh         up to 64 tokens, heads of 32 channels, 16 bits: the Swins as published
//   hopper.cuh        33 to 64 tokens of the same, on Hopper: the C++ library alone (hopper.h)
//   tiled.cuh         up to 1024 tokens, heads of up to 128 channels, 16 bits and, as products of TF32, fp32
//   hopper_tiled.cuh  65 to 256 tokens, heads of 32 channels, 16 bits, on Hopper: the C++ library alone (hopper_tiled.h)
//   single.cuh        fp32 on the plain units, where there is no TF32 or too little shared memory for tiles of it
//
// plan.h and plan.py say which, and how the work is cut.
#pragma once

#include "single.cuh"
#include "small.cuh"
#include "tiled.cuh"

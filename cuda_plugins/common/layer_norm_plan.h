// How the kernels on common/layer_norm.cuh cut their work. Plain C++; layer_norm_plan.py is the same in Python.
#pragma once

namespace swinopt {

// Indices of channels are ints, and some run beyond the last by the lanes of a warp.
constexpr int kMostChannels = 1 << 30;

struct LayerNormPlan {
    int lanes;    // threads that compute one row
    int vectors;  // of 16 bytes that each of them can hold; 0 for the kernel that goes element by element
    int grid;     // blocks
    int block;    // threads of a block
};

// The kernels there are, by how many vectors a row may have. Measured on an H200: a lane has one vector for as long as
// a warp is enough, a lane without one costs more than a lane with several, and a long row takes the block, since a
// lane waits the longer the more it holds.
struct LayerNormShape {
    int lanes, vectors;
};
constexpr LayerNormShape kLayerNormShapes[] = {{4, 1},  {8, 1},  {16, 1}, {32, 1},  {16, 3},  {32, 2}, {32, 3},
                                               {32, 4}, {32, 6}, {128, 2}, {128, 3}, {128, 4}, {128, 8}};

// `run` is how many elements lie side by side at least; `aligned` says that every address is a multiple of 16.
inline LayerNormPlan layer_norm_plan(int rows, int channels, int run, int item_size, bool aligned) {
    constexpr int kBlock = 128;  // kLayerNormThreads of layer_norm.cuh
    int const width = 16 / item_size;
    LayerNormPlan plan{32, 0, 0, kBlock};
    if (aligned && run % width == 0)
        for (LayerNormShape const& shape : kLayerNormShapes)
            if (plan.vectors == 0 && channels / width <= shape.lanes * shape.vectors)
                plan.lanes = shape.lanes, plan.vectors = shape.vectors;
    int const rows_per_block = kBlock / plan.lanes;
    plan.grid = rows / rows_per_block + (rows % rows_per_block != 0);
    return plan;
}

}  // namespace swinopt

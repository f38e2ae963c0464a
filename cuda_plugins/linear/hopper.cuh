// A linear of few rows on Hopper:
//
//     output = act(x W + b) + r
//
// With one image, a product of a Swin takes a few microseconds, of which most is waiting: for the kernel to start, for
// the first tiles, for sums that are far longer than wide. Large libraries are made for large products; this is made for
// short ones.
//
// - The weight is a constant. Its tiles are asked for before the kernels before have ended (common/overlap.cuh), and
//   what is left to wait for afterwards is x.
// - As many tiles as there is room for are under way at once, each a bulk copy with a barrier of its own, brought by one
//   warp. A warpgroup multiplies them in the order in which they come.
// - Where the output has too few tiles to keep all multiprocessors busy, the blocks of a cluster share out the inputs of
//   a tile, and its rows when partial sums, in float, are added up. These pass from block to block, not through memory.
//
// Sums are in float, and so is what follows them, before the one rounding to T.
#pragma once

#include "../common/arithmetic.cuh"
#include "../common/dtypes.cuh"
#include "../common/hopper.cuh"
#include "../common/overlap.cuh"
#include "hopper.h"

namespace swinopt {

struct HopperLinear {
    CUtensorMap x;       // [rows, inputs], in boxes of 64 x 64
    CUtensorMap weight;  // [inputs, outputs], as well
    void const* bias;
    void const* residual;
    void* output;
    int rows;
    int outputs;
    int gelu;
    int chunks;  // tiles of inputs that a block sums over
    int split;
    int stages;
};

__device__ __forceinline__ void load_floats(float (&to)[8], float const* from) {
    float4 const low = *reinterpret_cast<float4 const*>(from), high = *reinterpret_cast<float4 const*>(from + 4);
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// x Phi(x), where Phi is the normal distribution (Hendrycks and Gimpel 2016, arXiv:1606.08415). The error function by
// Abramowitz and Stegun, formula 7.1.26, is off by 1.5e-7 at most.
__device__ __forceinline__ float gelu(float x) {
    float const z = fabsf(x) * 0.7071067811865476f;
    float const t = reciprocal_approximately(fmaf(0.3275911f, z, 1.0f));
    float polynomial = fmaf(1.061405429f, t, -1.453152027f);
    polynomial = fmaf(polynomial, t, 1.421413741f);
    polynomial = fmaf(polynomial, t, -0.284496736f);
    polynomial = fmaf(polynomial, t, 0.254829592f) * t;
    float const tail = polynomial * exp2_approximately(-kLog2E * z * z);
    float const half = 0.5f * x;
    return half + copysignf(half, 1.0f) * (1.0f - tail);
}

constexpr int kHopperConsumers = 4, kHopperWarps = 8;  // a warpgroup multiplies, the next warp brings tiles, all finish

// Grid: clusters of split blocks for the tiles beside one another, row tiles. Shared memory: two barriers for each stage,
// and the stages.
template <class T, int kColumns>
__global__ void __launch_bounds__(32 * kHopperWarps) hopper_linear_kernel(HopperLinear const __grid_constant__ p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    constexpr int kBoxes = kColumns / 64, kPitch = kColumns + kHopperPadding;
    constexpr unsigned kBoxBytes = 2 * 64 * 64, kStageBytes = (1 + kBoxes) * kBoxBytes;

    extern __shared__ __align__(1024) unsigned char memory[];
    let_next_kernel_in();
    float* const sums = reinterpret_cast<float*>(memory + kHopperBarrierBytes);
    unsigned const barriers = shared_address(memory), stages = barriers + kHopperBarrierBytes;
    auto const full = [&](int stage) { return barriers + 16 * stage; };
    auto const empty = [&](int stage) { return barriers + 16 * stage + 8; };

    int const thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    int const split_bits = 31 - __clz(p.split), part = blockIdx.x & (p.split - 1);
    int const first_column = (blockIdx.x >> split_bits) * kColumns, first_row = blockIdx.y * kHopperRows;

    if (thread < p.stages) {
        barrier::init(full(thread), 1);
        barrier::init(empty(thread), kHopperConsumers);
        barrier::publish();
    }
    __syncthreads();

    // A block finishes some rows of the tile, and a thread vectors of one column of these.
    constexpr int kInRow = kColumns / 8, kRowsAtOnce = 32 * kHopperWarps / kInRow, kMost = kHopperRows / kRowsAtOnce;
    int const finished_rows = kHopperRows >> split_bits, column = thread % kInRow * 8;
    bool const has_column = first_column + column < p.outputs;
    auto const row = [&](int i) { return part * finished_rows + thread / kInRow + i * kRowsAtOnce; };
    auto const finishes = [&](int i) {
        return has_column && thread / kInRow + i * kRowsAtOnce < finished_rows && first_row + row(i) < p.rows;
    };
    auto const at = [&](int i) {
        return static_cast<long long>(first_row + row(i)) * p.outputs + first_column + column;
    };

    if (warp == kHopperConsumers) {
        // Not all begin with the same tile: they would ask for the same lines of x at the same time.
        int const begin = (blockIdx.x >> split_bits) % p.chunks;
        auto const input = [&](int chunk) {
            int const turned = begin + chunk;
            return (part * p.chunks + turned - (turned < p.chunks ? 0 : p.chunks)) * kHopperInputs;
        };
        auto const bring_weight = [&](int chunk, int stage) {
            barrier::arrive_and_expect(full(stage), kStageBytes);
#pragma unroll
            for (int box = 0; box < kBoxes; ++box)
                copy_box(stages + stage * kStageBytes + (1 + box) * kBoxBytes, p.weight, first_column + 64 * box,
                         input(chunk), full(stage));
        };
        auto const bring_x = [&](int chunk, int stage) {
            copy_box(stages + stage * kStageBytes, p.x, input(chunk), first_row, full(stage));
        };
        int const early = min(p.stages, p.chunks);
        if (lane < early) bring_weight(lane, lane);
        __syncwarp();
        wait_for_kernels_before();
        if (lane < early) bring_x(lane, lane);
        __syncwarp();
        if (lane == 0) {
            int stage = 0, parity = 0;
            for (int chunk = early; chunk < p.chunks; ++chunk) {
                barrier::wait(empty(stage), parity);
                bring_weight(chunk, stage);
                bring_x(chunk, stage);
                if (++stage == p.stages) stage = 0, parity ^= 1;
            }
        }
        __syncwarp();
    } else {
        wait_for_kernels_before();
    }

    uint4 bias{}, residual[kMost] = {};
    if (has_column) bias = load_16_constant_bytes(static_cast<T const*>(p.bias) + first_column + column);
    if (p.residual) {
#pragma unroll
        for (int i = 0; i < kMost; ++i)
            if (finishes(i)) residual[i] = load_16_bytes(static_cast<T const*>(p.residual) + at(i));
    }

    if (warp < kHopperConsumers) {
        float c[kBoxes][8][4] = {};
        use(c);  // zeros that ptxas sets between products would make these wait for one another
        int stage = 0, parity = 0;
        for (int chunk = 0; chunk < p.chunks; ++chunk) {
            barrier::wait(full(stage), parity);
            std::uint64_t const x = warpgroup::matrix(stages + stage * kStageBytes);
            std::uint64_t const weight = warpgroup::beyond(x, kBoxBytes);
            warpgroup::fence();
#pragma unroll
            for (int k = 0; k < kHopperInputs; k += 16)
#pragma unroll
                for (int box = 0; box < kBoxes; ++box)
                    warpgroup::product<T>(c[box], warpgroup::beyond(x, 2 * k),
                                          warpgroup::beyond(weight, box * kBoxBytes + 128 * k));
            warpgroup::commit();
            // The stage before this one is free for another tile.
            warpgroup::wait<1>();
            if (chunk > 0 && lane == 0) barrier::arrive(empty((stage ? stage : p.stages) - 1));
            if (++stage == p.stages) stage = 0, parity ^= 1;
        }
        warpgroup::wait<0>();
        use(c);
        named_barrier::wait(1, 32 * kHopperConsumers);  // before sums take the place of tiles
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float* const to = sums + (16 * warp + 8 * half + lane / 4) * kPitch + lane % 4 * 2;
#pragma unroll
            for (int box = 0; box < kBoxes; ++box)
#pragma unroll
                for (int i = 0; i < 8; ++i)
                    *reinterpret_cast<float2*>(to + 64 * box + 8 * i) =
                        make_float2(c[box][i][2 * half], c[box][i][2 * half + 1]);
        }
    }

    if (p.split > 1) {
        cluster::arrive_and_release();
        cluster::wait();
    } else {
        __syncthreads();
    }

    float y[kMost][8] = {};
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
        if (!finishes(i)) continue;
        float const* const own = sums + row(i) * kPitch + column;
        constexpr int kAtOnce = 4;  // what comes from other blocks takes long to come
        for (int first = 0; first < p.split; first += kAtOnce) {
            float partial[kAtOnce][8] = {};
#pragma unroll
            for (int s = 0; s < kAtOnce; ++s)
                if (first + s == part)
                    load_floats(partial[s], own);
                else if (first + s < p.split)
                    load_from_cluster(partial[s], address_in(first + s, shared_address(own)));
#pragma unroll
            for (int s = 0; s < kAtOnce; ++s)
#pragma unroll
                for (int j = 0; j < 8; ++j) y[i][j] += partial[s][j];
        }
    }
    use(y);
    // No block may end while others read its sums.
    if (p.split > 1) cluster::arrive();
    float summand[8];
    unpack<T>(bias, summand);
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
        if (!finishes(i)) continue;
#pragma unroll
        for (int j = 0; j < 8; ++j) y[i][j] += summand[j];
        if (p.gelu) {
#pragma unroll
            for (int j = 0; j < 8; ++j) y[i][j] = gelu(y[i][j]);
        }
        float added[8];
        unpack<T>(residual[i], added);
#pragma unroll
        for (int j = 0; j < 8; ++j) y[i][j] += added[j];
        store_vector(static_cast<T*>(p.output) + at(i), y[i]);
    }
    if (p.split > 1) cluster::wait();
#else
    __trap();  // compiled for another architecture than hopper_can() lets in
#endif
}

}  // namespace swinopt

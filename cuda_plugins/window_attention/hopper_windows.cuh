// What Hopper's kernels of windows of whole maps have in common: how windows come to shared memory, what a thread makes of
// a row of scores, and how rows of results leave.
#pragma once

#include "../common/hopper.cuh"
#include "../common/mma.cuh"
#include "../common/tensor_map.h"
#include "geometry.cuh"
#include "hopper.h"

namespace swinopt {

// What kernels are told of the windows.
struct HopperWindows {
    CUtensorMap boxes[3][2];  // of qkv [B, H, W, 3C]: a head's channels, HopperBoxes' heights and widths
    WindowAttentionParams p;
    int windows_each, windows_more;  // a chunk has windows_each, and the first windows_more ones one more
    int stages;
    int abreast;
};

// Fills it in. False where the driver knows no tensor maps.
template <class Plan>
bool describe_windows(HopperWindows& to, WindowAttentionParams const& p, Plan const& plan, DType dtype) {
    int const windows = static_cast<int>(window_attention_windows(p));
    to.p = p;
    to.windows_each = windows / plan.chunks;
    to.windows_more = windows % plan.chunks;
    to.stages = plan.stages;
    to.abreast = plan.abreast;
    HopperBoxes const boxes = hopper_boxes(p);
    cuuint64_t const channels = 3ull * p.num_heads * kHopperHead, columns = p.size[2], rows = p.size[1];
    cuuint64_t const size[] = {channels, columns, rows, static_cast<cuuint64_t>(p.batch)};
    cuuint64_t const pitch[] = {2 * channels, 2 * channels * columns, 2 * channels * columns * rows};
    for (int height = 0; height < 3; ++height)
        for (int width = 0; width < 2; ++width) {
            if (!boxes.heights[height] || !boxes.widths[width]) continue;
            cuuint32_t const box[] = {kHopperHead, static_cast<cuuint32_t>(boxes.widths[width]),
                                      static_cast<cuuint32_t>(boxes.heights[height]), 1};
            if (!describe_tensor(to.boxes[height][width], dtype, p.qkv, size, pitch, box, CU_TENSOR_MAP_SWIZZLE_64B))
                return false;
        }
    return true;
}

// Where a slot lies in its window.
struct Place {
    int row, column;
    __device__ __forceinline__ Place(WindowAttentionParams const& p, int slot) {
        int const wide = p.window[2] - p.shift[2], before = p.window[1] * wide;
        bool const behind = slot >= before;
        Divisor const width(behind ? p.shift[2] : wide);
        slot -= behind ? before : 0;
        row = width.quotient(slot);
        column = slot - row * width.divisor + (behind ? wide : 0);
    }
};

// What threads of any of these kernels know.
struct HopperThread {
    static constexpr unsigned kAll = 0xffffffffu;

    WindowAttentionParams const& p;
    unsigned char* const memory;
    // The shuffle tells the compiler that all threads of a warp have one number.
    int const warp = __shfl_sync(kAll, threadIdx.x / 32, 0), lane = threadIdx.x % 32, quad = lane % 4;
    int const chunk = blockIdx.y, first_window, windows;
    int const n = p.window[1] * p.window[2];
    int const tall = p.window[1] - p.shift[1], wide = p.window[2] - p.shift[2];  // before the seam

    __device__ __forceinline__ HopperThread(HopperWindows const& all, unsigned char* shared)
        : p(all.p),
          memory(shared),
          first_window(chunk * all.windows_each + min(chunk, all.windows_more)),
          windows(all.windows_each + (chunk < all.windows_more)) {}
};

// Walks along the windows; the same in all threads of a warp, and the compiler knows.
struct WindowCursor {
    int image, row, column;

    __device__ __forceinline__ WindowCursor(WindowAttentionParams const& p, int first) {
        Window const window = Window::quickly(p, first);
        image = __shfl_sync(HopperThread::kAll, window.batch, 0);
        row = __shfl_sync(HopperThread::kAll, window.place[1], 0);
        column = __shfl_sync(HopperThread::kAll, window.place[2], 0);
    }

    __device__ __forceinline__ void advance(WindowAttentionParams const& p) {
        if (++column == p.windows[2]) column = 0, ++row;
        if (row == p.windows[1]) row = 0, ++image;
    }
};

// Puts q, k and v of a head of a window on their way to these places in shared memory. A whole warp calls it.
__device__ __forceinline__ void bring_head(CUtensorMap const (&boxes)[3][2], WindowAttentionParams const& p,
                                           WindowCursor const& window, int head, unsigned const (&to)[3],
                                           unsigned barrier) {
    int const tall = p.window[1] - p.shift[1], wide = p.window[2] - p.shift[2];  // before the seam
    int const top = window.row * p.window[1] + p.shift[1], left = window.column * p.window[2] + p.shift[2];
    bool const cut = p.shift[1] && window.row + 1 == p.windows[1];  // by the seam, through its rows
    int const further = window.column + 1 < p.windows[2] ? left + wide : 0;
    barrier::arrive_and_expect_once(barrier, 3 * 2 * kHopperHead * p.window[1] * p.window[2]);
#pragma unroll
    for (int width = 0; width < 2; ++width) {
        if (width == 1 && !p.shift[2]) break;
        int const from = width ? further : left;
#pragma unroll
        for (int part = 0; part < 3; ++part) {
            unsigned const target = to[part] + (width ? 2 * kHopperHead * p.window[1] * wide : 0);
            int const channel = (part * p.num_heads + head) * kHopperHead;
            copy_box_once(target, boxes[cut][width], channel, from, top, window.image, barrier);
            if (cut)
                copy_box_once(target + 2 * kHopperHead * tall * (width ? p.shift[2] : wide), boxes[2][width], channel, from,
                              0, window.image, barrier);
        }
    }
}

// The largest of a row of scores, one of the two that four threads hold.
template <int kTiles>
__device__ __forceinline__ float largest_of_row(float const (&s)[kTiles][4], int r) {
    float top[2] = {s[0][2 * r], s[0][2 * r + 1]};
#pragma unroll
    for (int t = 1; t < kTiles; ++t)
        top[0] = fmaxf(top[0], s[t][2 * r]), top[1] = fmaxf(top[1], s[t][2 * r + 1]);
    return max_of_quad(fmaxf(top[0], top[1]));
}

// Makes the thread's scores of a row weights, 2^exponent(score), and returns their sum.
template <class T, int kTiles, int kSteps, class Exponent>
__device__ __forceinline__ float weigh_row(float const (&s)[kTiles][4], unsigned (&weights)[kSteps][4], int r,
                                           Exponent exponent) {
    float sum[2] = {};
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
        float const x = exp2_approximately(exponent(s[t][2 * r])), y = exp2_approximately(exponent(s[t][2 * r + 1]));
        sum[0] += x, sum[1] += y;
        weights[t / 2][t % 2 * 2 + r] = Pair<T>::pack(x, y);
    }
    return sum[0] + sum[1];
}

// Where row `row` of a matrix of 32 columns of 16 bits has its eight columns number `eight`, as bulk copies lay it out.
__device__ __forceinline__ unsigned char* swizzled(unsigned char* matrix, int row, int eight) {
    return matrix + 64 * row + 16 * (eight ^ (row >> 1 & 3));
}

// Stores 16 rows of a product, times a factor each, by a warp. A thread holds parts of row lane / 4, which belongs to
// `slot` at the place `upper`, and of the one eight slots further. They pass through 16 rows of shared memory, the warp's
// own, so that four threads store 64 bytes in one go.
template <class T>
__device__ __forceinline__ void store_rows(WindowAttentionParams const& p, Window const& window, int head,
                                           float const (&o)[4][4], float const (&factors)[2], int slot,
                                           Place const& upper, Place const& lower, unsigned char* rows) {
    int const lane = threadIdx.x % 32, n = p.window[1] * p.window[2], channels = p.num_heads * kHopperHead;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        unsigned packed[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) packed[j] = Pair<T>::pack(o[j][2 * r] * factors[r], o[j][2 * r + 1] * factors[r]);
        store_matrices(shared_address(swizzled(rows, lane % 8, lane / 8)) + 512 * r, packed);
    }
    __syncwarp();
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        uint4 const vector = *reinterpret_cast<uint4 const*>(swizzled(rows, lane / 4, lane % 4) + 512 * r);
        Place const& place = r ? lower : upper;
        int row = window.place[1] * p.window[1] + p.shift[1] + place.row;
        int column = window.place[2] * p.window[2] + p.shift[2] + place.column;
        row -= row >= p.size[1] ? p.size[1] : 0, column -= column >= p.size[2] ? p.size[2] : 0;
        unsigned const token = (window.batch * p.size[1] + row) * p.size[2] + column;
        T* const to = static_cast<T*>(p.output) + head * kHopperHead + 8 * (lane % 4) + token * channels;
        if (slot + 8 * r < n) store_16_bytes(to, vector.x, vector.y, vector.z, vector.w);
    }
}

}  // namespace swinopt

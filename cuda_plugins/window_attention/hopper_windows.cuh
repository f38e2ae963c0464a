// What Hopper's kernels of windows of whole maps have in common: how windows come to shared memory, what a thread makes of
// a row of scores, and how rows of results leave.
#pragma once

#include "../common/hopper.cuh"
#include "../common/mma.cuh"
#include "../common/tensor_map.h"
#include "geometry.cuh"
#include "hopper.h"

namespace swinopt {

// So many windows, for whoever walks along them: fewer columns than a row of windows has, fewer rows than an image.
struct WindowStep {
    int columns, rows, images;
};

inline WindowStep window_step(WindowAttentionParams const& p, int windows) {
    int const rows = windows / p.windows[2];
    return {windows % p.windows[2], rows % p.windows[1], rows / p.windows[1]};
}

// What kernels are told of the windows.
struct HopperWindows {
    CUtensorMap boxes[3][2];  // of qkv [B, H, W, 3C]: a head's channels, HopperBoxes' heights and widths
    WindowAttentionParams p;
    int windows;                     // of all chunks
    int windows_each, windows_more;  // a chunk has windows_each, the first windows_more one more, the last what is left
    int stages;
    int abreast;
    WindowStep next, next_turn;  // to the next window, and to the next one of a warpgroup
};

// Fills it in; the last chunk has so many windows less than others. False where the driver knows no tensor maps.
template <class Plan>
bool describe_windows(HopperWindows& to, WindowAttentionParams const& p, Plan const& plan, DType dtype, int less = 0) {
    int const windows = static_cast<int>(window_attention_windows(p));
    to.p = p;
    to.windows_each = (windows + less) / plan.chunks;
    to.windows_more = (windows + less) % plan.chunks;
    to.windows = windows;
    to.stages = plan.stages;
    to.abreast = plan.abreast;
    to.next = window_step(p, 1);
    to.next_turn = window_step(p, plan.abreast);
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
          windows(min(all.windows_each + (chunk < all.windows_more), all.windows - first_window)) {}
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

    __device__ __forceinline__ void advance(WindowAttentionParams const& p, WindowStep const& step) {
        column += step.columns, row += step.rows, image += step.images;
        if (column >= p.windows[2]) column -= p.windows[2], ++row;
        if (row >= p.windows[1]) row -= p.windows[1], ++image;
    }

    // Which seams of the rolled map run through the window: 1 for its rows, 2 for its columns, 3 for both.
    __device__ __forceinline__ int seams(WindowAttentionParams const& p) const {
        return (p.shift[1] && row + 1 == p.windows[1] ? 1 : 0) + (p.shift[2] && column + 1 == p.windows[2] ? 2 : 0);
    }

    // Where the result of its first slot goes, in bytes.
    __device__ __forceinline__ unsigned begin(WindowAttentionParams const& p) const {
        int const top = row * p.window[1] + p.shift[1], left = column * p.window[2] + p.shift[2];
        return 2u * kHopperHead * p.num_heads * ((image * p.size[1] + top) * p.size[2] + left);
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
__device__ __forceinline__ int swizzled(int row, int eight) { return 64 * row + 16 * (eight ^ (row >> 1 & 3)); }

// Stores 16 rows of a product by a warp. A thread holds parts of row lane / 4 and of the one eight rows further. They pass
// through 16 rows of shared memory, the warp's own, so that four threads store 64 bytes in one go.
//
// The compiler is told to keep what is here: it would find it anew for each window.
struct RowStore {
    static constexpr unsigned kNowhere = ~0u;

    // In bytes: where the thread's quarter of a row goes, from where the window's first slot goes; in the shared rows, where
    // its parts are put and where its quarter is found.
    unsigned to[2], through[2];
    unsigned behind = 0;  // for each row two bits, as WindowCursor::seams() has them: whether it lies behind the seam

    // `first` is the slot of the first row. Rows behind the window's last slot go nowhere.
    __device__ __forceinline__ RowStore(WindowAttentionParams const& p, int head, int first) {
        unsigned const lane = threadIdx.x % 32, token = 2 * kHopperHead * p.num_heads, line = token * p.size[2];
        int const n = p.window[1] * p.window[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            int const slot = first + lane / 4 + 8 * r;
            Place const place(p, min(slot, n - 1));
            unsigned const offset = place.row * line + place.column * token + 2 * kHopperHead * head + 16 * (lane % 4);
            bool const rows = place.row >= p.window[1] - p.shift[1], columns = place.column >= p.window[2] - p.shift[2];
            to[r] = slot < n ? offset : kNowhere;
            behind |= (rows + 2u * columns) << 2 * r;
        }
        through[0] = swizzled(lane % 8, lane / 8), through[1] = swizzled(lane / 4, lane % 4);
        use(to), use(through), use(behind);
    }

    // Whether the thread's row r lies behind this seam.
    __device__ __forceinline__ bool is_behind(int seam, int r) const { return behind & seam << 2 * r; }

    // Stores the rows, times a factor each, of a window whose first slot goes to `begin`. What lies behind one of its seams
    // goes to the other end of the map.
    template <class T>
    __device__ __forceinline__ void store(WindowAttentionParams const& p, unsigned begin, int seams,
                                          float const (&o)[4][4], float const (&factors)[2], unsigned char* rows) const {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            unsigned packed[4];
#pragma unroll
            for (int j = 0; j < 4; ++j)
                packed[j] = Pair<T>::pack(o[j][2 * r] * factors[r], o[j][2 * r + 1] * factors[r]);
            store_matrices(shared_address(rows) + through[0] + 512 * r, packed);
        }
        __syncwarp();
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            uint4 const vector = *reinterpret_cast<uint4 const*>(rows + through[1] + 512 * r);
            unsigned at = begin + to[r];
            if (seams) {
                unsigned const line = 2u * kHopperHead * p.num_heads * p.size[2];
                if (is_behind(seams & 1, r)) at -= line * p.size[1];
                if (is_behind(seams & 2, r)) at -= line;
            }
            if (to[r] == kNowhere) continue;
            store_16_bytes(static_cast<char*>(p.output) + at, vector.x, vector.y, vector.z, vector.w);
        }
    }
};

}  // namespace swinopt

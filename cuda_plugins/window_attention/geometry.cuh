// Where the slots of a shifted window come from, and which of them see each other. No data is touched here.
#pragma once

#include "../common/arithmetic.cuh"
#include "../common/overlap.cuh"
#include "params.h"

namespace swinopt {

// What the largest score of a softmax over tiles begins with. Minus infinity would make NaN of a tile that is hidden
// altogether.
constexpr float kLowestScore = -3.402823466e38f;

constexpr int kPadded = -1;  // the slot lies in the padding of the map: its q, k and v are pad_qkv
constexpr int kNoSlot = -2;  // beyond the window's last slot

__device__ __forceinline__ int tokens_of_window(WindowAttentionParams const& p) {
    return p.window[0] * p.window[1] * p.window[2];
}

__device__ __forceinline__ int tokens_of_image(WindowAttentionParams const& p) {
    return p.size[0] * p.size[1] * p.size[2];
}

// Divides numbers below 2^21 by multiplication: (n + 0.5) / d is at least 0.5 / d away from the next integer, and the
// error of the product is smaller than that.
struct Divisor {
    int divisor;
    float reciprocal;
    __device__ __forceinline__ explicit Divisor(int d)
        : divisor(d), reciprocal(reciprocal_approximately(static_cast<float>(d))) {}
    __device__ __forceinline__ int quotient(int n) const {
        return __float2int_rz((static_cast<float>(n) + 0.5f) * reciprocal);
    }
};

// One window of one image. Windows are numbered row by row, image by image.
struct Window {
    int place[3];  // among the windows, along each axis
    int batch;

    __device__ __forceinline__ Window(WindowAttentionParams const& p, int index) {
        int const row = index / p.windows[2], plane = row / p.windows[1];
        batch = plane / p.windows[0];
        place[0] = plane - batch * p.windows[0];
        place[1] = row - plane * p.windows[1];
        place[2] = index - row * p.windows[2];
    }

    // The same where there are less than 2^21 windows, in a fraction of the instructions.
    __device__ __forceinline__ static Window quickly(WindowAttentionParams const& p, int index) {
        int const row = Divisor(p.windows[2]).quotient(index), plane = Divisor(p.windows[1]).quotient(row);
        Window window;
        window.batch = Divisor(p.windows[0]).quotient(plane);
        window.place[0] = plane - window.batch * p.windows[0];
        window.place[1] = row - plane * p.windows[1];
        window.place[2] = index - row * p.windows[2];
        return window;
    }

    // Whether a seam of the rolled map runs through the window, so that some slots do not see each other.
    __device__ __forceinline__ bool has_seam(WindowAttentionParams const& p) const {
        bool seam = false;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) seam |= p.shift[axis] > 0 && place[axis] == p.windows[axis] - 1;
        return seam;
    }

private:
    Window() = default;
};

// Splits the number of a slot into its coordinates inside of the window.
struct SlotCoordinates {
    Divisor const height, width;

    __device__ __forceinline__ explicit SlotCoordinates(WindowAttentionParams const& p)
        : height(p.window[1]), width(p.window[2]) {}

    __device__ __forceinline__ void split(int index, int (&inside)[3]) const {
        int const row = width.quotient(index);
        inside[0] = height.quotient(row);
        inside[1] = row - inside[0] * height.divisor;
        inside[2] = index - row * width.divisor;
    }
};

// A slot's place: the token of the image (or kPadded, kNoSlot), and the region of the rolled map as one bit an axis:
// before the seam or behind it.
struct Slot {
    int token;
    int region;
};

// The slot of a window at these coordinates.
__device__ __forceinline__ Slot slot_at(WindowAttentionParams const& p, Window const& window, int const (&inside)[3]) {
    Slot slot{0, 0};
    bool padded = false;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        if (axis == 0 && p.window[0] == 1 && p.size[0] == 1) {  // a map of two axes, as most are
            slot.region = 1;
            continue;
        }
        int const size = p.size[axis], whole = p.windows[axis] * p.window[axis];
        int const position = window.place[axis] * p.window[axis] + inside[axis];
        // Rolled after padding, positions wrap around at the padded size; rolled before it, at the true size, and the
        // padding behind it did not move.
        int const period = p.roll_first ? size : whole;
        int source = position;
        if (position < period) {
            source += p.roll[axis];
            if (source >= period) source -= period;
        }
        padded |= source >= size;
        slot.token = slot.token * size + source;
        slot.region |= (position < whole - p.shift[axis]) << axis;
    }
    if (padded) slot.token = kPadded;
    return slot;
}

// Slot number `index` of a window, or kNoSlot beyond the last.
__device__ __forceinline__ Slot slot_at(WindowAttentionParams const& p, Window const& window,
                                        SlotCoordinates const& coordinates, int index) {
    if (index >= tokens_of_window(p)) return {kNoSlot, 0};
    int inside[3];
    coordinates.split(index, inside);
    return slot_at(p, window, inside);
}

}  // namespace swinopt

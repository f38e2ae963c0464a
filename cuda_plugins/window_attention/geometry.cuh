// Where the slots of a shifted window come from, and which of them see each other. No data is touched here.
#pragma once

#include "params.h"

namespace swinopt {

constexpr int kPadded = -1;  // the slot lies in the padding of the map: its q, k and v are pad_qkv
constexpr int kNoSlot = -2;  // beyond the window's last slot

__device__ __forceinline__ int tokens_of_window(WindowAttentionParams const& p) {
    return p.window[0] * p.window[1] * p.window[2];
}

__device__ __forceinline__ int tokens_of_image(WindowAttentionParams const& p) {
    return p.size[0] * p.size[1] * p.size[2];
}

// One window of one image. Windows are numbered row by row, image by image.
struct Window {
    int place[3];  // among the windows, along each axis
    int batch;

    __device__ __forceinline__ Window(WindowAttentionParams const& p, int index) : place{0, 0, 0}, batch(0) {
        int const along_x = index / p.windows[2], along_y = along_x / p.windows[1];
        place[2] = index - along_x * p.windows[2];
        place[1] = along_x - along_y * p.windows[1];
        batch = along_y / p.windows[0];
        place[0] = along_y - batch * p.windows[0];
    }

    // Whether the seam of the rolled map runs through the window, so that some slots do not see each other.
    __device__ __forceinline__ bool has_seam(WindowAttentionParams const& p) const {
        bool seam = false;
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) seam |= p.shift[axis] > 0 && place[axis] == p.windows[axis] - 1;
        return seam;
    }
};

// Divides small numbers: exact for 0 <= n < 2^20 and divisors up to 1024.
struct Divisor {
    int divisor;
    float reciprocal;
    __device__ __forceinline__ explicit Divisor(int d) : divisor(d) {
        asm volatile("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(static_cast<float>(d)));
    }
    __device__ __forceinline__ int quotient(int n) const {
        return __float2int_rz((static_cast<float>(n) + 0.5f) * reciprocal);
    }
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

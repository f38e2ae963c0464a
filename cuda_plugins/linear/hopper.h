// Linears of few rows on Hopper: the ways in which the kernel shares out a product, and its launcher. Host code.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../common/launch.h"
#include "params.h"

namespace swinopt {

constexpr int kHopperRows = 64, kHopperInputs = 64;  // of a tile
constexpr int kHopperBarrierBytes = 1024;            // tiles lie at multiples of as many
constexpr int kHopperMostStages = 16;
constexpr int kHopperPadding = 8;  // floats behind a row of partial sums: eight rows then begin in different banks

struct HopperShape {
    std::int32_t columns;  // of a block's tile of the output: 64 or 128
    std::int32_t split;    // blocks of a cluster that share out the inputs of a tile: 1, 2, 4 or 8
    std::int32_t stages;   // tiles of inputs that a block has room for

    bool operator==(HopperShape const& o) const {
        return columns == o.columns && split == o.split && stages == o.stages;
    }
};

// Tiles of inputs that a block sums over.
inline int hopper_chunks(LinearParams const& p, HopperShape const& shape) {
    int const chunks = (p.inputs - 1) / kHopperInputs + 1;
    return (chunks - 1) / shape.split + 1;
}

inline int hopper_stage_bytes(HopperShape const& shape) { return 2 * kHopperInputs * (kHopperRows + shape.columns); }

// Barriers and stages; the partial sums lie where the stages were.
inline int hopper_shared_bytes(HopperShape const& shape) {
    int const sums = 4 * kHopperRows * (shape.columns + kHopperPadding);
    return kHopperBarrierBytes + std::max(sums, shape.stages * hopper_stage_bytes(shape));
}

inline bool hopper_can(LinearParams const& p, HopperShape const& s, Device const& device) {
    constexpr int kMostRowTiles = 65535;
    return device.capability == kHopper && (s.columns == 64 || s.columns == 128) &&
           (s.split == 1 || s.split == 2 || s.split == 4 || s.split == 8) &&
           // A stage is emptied while the next one is multiplied.
           s.stages >= std::min(2, hopper_chunks(p, s)) && s.stages <= kHopperMostStages &&
           hopper_shared_bytes(s) <= device.shared_bytes && p.inputs % 8 == 0 && p.outputs % 8 == 0 &&
           (p.rows - 1) / kHopperRows < kMostRowTiles;
}

// Those that may be the fastest for a product.
inline std::vector<HopperShape> hopper_shapes(LinearParams const& p, Device const& device) {
    std::vector<HopperShape> found;
    for (int const columns : {64, 128})
        for (int const split : {1, 2, 4, 8})
            for (int const blocks : {2, 1}) {  // of a multiprocessor, which reserves 1024 bytes for each
                HopperShape shape{columns, split, 0};
                int const room = device.shared_bytes / blocks - (blocks - 1) * 512 - kHopperBarrierBytes;
                int const wanted = std::min(kHopperMostStages, hopper_chunks(p, shape));
                shape.stages = std::min(wanted, room / hopper_stage_bytes(shape));
                bool const is_new = found.empty() || !(found.back() == shape);
                if (is_new && split <= hopper_chunks(p, {columns, 1, 0}) && hopper_can(p, shape, device))
                    found.push_back(shape);
            }
    return found;
}

// Enqueues the product. Pointers are aligned to 16 bytes, and the weight is a constant: it may be read before the
// kernels before have ended. cudaErrorInvalidValue for float32 and for what hopper_can() refuses; cudaErrorNotSupported
// where the driver knows no tensor maps, or this library was compiled without the kernel.
cudaError_t hopper_linear(LinearParams const& p, DType dtype, HopperShape const& shape, Device const& device,
                          cudaStream_t stream);

}  // namespace swinopt

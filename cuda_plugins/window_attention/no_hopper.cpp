// Where nvcc knows no sm_90a, or was not asked for sm_90.
#include "hopper.h"
#include "hopper_tiled.h"

namespace swinopt {

cudaError_t hopper_window_attention(WindowAttentionParams, HopperWindowPlan const&, DType, Device const&, cudaStream_t) {
    return cudaErrorNotSupported;
}

cudaError_t hopper_tiled_attention(WindowAttentionParams, HopperTiledPlan const&, DType, Device const&, cudaStream_t) {
    return cudaErrorNotSupported;
}

}  // namespace swinopt

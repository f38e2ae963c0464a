// Where nvcc knows no sm_90a, or was not asked for sm_90.
#include "hopper.h"

namespace swinopt {

cudaError_t hopper_linear(LinearParams const&, DType, HopperShape const&, Device const&, cudaStream_t) {
    return cudaErrorNotSupported;
}

}  // namespace swinopt

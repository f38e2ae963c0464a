// In place of a launch on a GPU: one that the emulation runs.
#pragma once

#include <cstddef>

#include <cuda_runtime_api.h>

#include "types.h"

namespace swinopt {

template <class Params>
cudaError_t launch_kernel(void (*kernel)(Params), Params params, dim3 blocks, unsigned threads,
                          std::size_t shared_bytes, DType, Device const&, cudaStream_t) {
    emulation::launch([=] { kernel(params); }, blocks, static_cast<int>(threads), shared_bytes);
    return cudaSuccess;
}

}  // namespace swinopt

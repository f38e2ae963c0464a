// How kernels are launched: so that they may overlap (overlap.cuh).
#pragma once

#include <cstddef>

#include <cuda_runtime_api.h>

#include "types.h"

namespace swinopt {

// Enqueues a kernel in clusters of so many blocks. On Hopper it may be brought to the multiprocessors before the kernels
// in front of it have ended, and has to call wait_for_kernels_before(). On newer GPUs, too, it could; but where linears do
// not take part (linear/hopper.h), overlapping costs more than it brings.
template <class Params>
cudaError_t launch_kernel(void (*kernel)(Params), Params params, dim3 blocks, unsigned threads,
                          std::size_t shared_bytes, Device const& device, cudaStream_t stream, unsigned cluster = 1) {
    constexpr int kHopper = 90;
    cudaLaunchAttribute attributes[2]{};
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim = {cluster, 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = device.capability != kHopper ? 0 : cluster > 1 ? 2 : 1;
    void* arguments[] = {&params};
    return cudaLaunchKernelExC(&config, reinterpret_cast<void const*>(kernel), arguments);
}

}  // namespace swinopt

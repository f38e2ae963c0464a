// What every op's launcher needs of CUDA. Host code only.
#pragma once

#include <cuda_runtime_api.h>

#include "types.h"

namespace swinopt {

inline cudaError_t current_device(Device& device) {
    int id = 0, major = 0, minor = 0;
    cudaError_t status = cudaGetDevice(&id);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, id);
    if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, id);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, id);
    if (status == cudaSuccess)
        status = cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
    device.capability = 10 * major + minor;
    return status;
}

}  // namespace swinopt

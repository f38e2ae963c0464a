// What every op's launcher speaks of: element types, the device, and how a refusal is told. Host code only.
#pragma once

#include <cuda_runtime_api.h>

namespace swinopt {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

inline int size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// What a launch plan depends on besides the problem. launch.py's Device is its twin.
struct Device {
    int capability = 0;        // 10 * major + minor: 90 is an H100 or H200
    int multiprocessors = 0;
    int shared_bytes = 0;      // the most dynamic shared memory that one block may ask for
};

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

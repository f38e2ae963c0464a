// How kernels are launched: so that they may overlap (overlap.cuh).
#pragma once

#include <cstddef>

#include <cuda_runtime_api.h>

#include "types.h"

namespace swinopt {

// Whether kernels are to overlap. They could on GPUs newer than Hopper, too, and in fp32; but where linears do not take
// part (linear/hopper.h), it costs more than it brings. SWINOPT_OVERLAP says that this library has those, and code for
// Hopper that waits. Drivers before CUDA 12.3 cannot capture such launches.
inline bool overlaps(DType dtype, Device const& device) {
#ifdef SWINOPT_OVERLAP
    static bool const driver_can = [] {
        constexpr int kOldest = 12030;
        int version = 0;
        return cudaDriverGetVersion(&version) == cudaSuccess && version >= kOldest;
    }();
    return device.capability == kHopper && dtype != DType::kFloat32 && driver_can;
#else
    static_cast<void>(dtype), static_cast<void>(device);
    return false;
#endif
}

constexpr std::size_t kSharedBytesForAll = 48 * 1024;  // that a kernel may use without asking

// Enqueues a kernel in clusters of so many blocks. It has to call wait_for_kernels_before(): it may begin before the
// kernels in front of it have ended.
template <class Params>
cudaError_t launch_kernel(void (*kernel)(Params), Params params, dim3 blocks, unsigned threads,
                          std::size_t shared_bytes, DType dtype, Device const& device, cudaStream_t stream,
                          unsigned cluster = 1) {
    void const* const function = reinterpret_cast<void const*>(kernel);
    if (shared_bytes > kSharedBytesForAll) {
        // Always as much: other threads may launch the same kernel with more.
        cudaError_t const status =
            cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, device.shared_bytes);
        if (status != cudaSuccess) return status;
    }
    void* arguments[] = {&params};
    cudaLaunchAttribute attributes[2]{};
    unsigned count = 0;
    if (overlaps(dtype, device)) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {cluster, 1, 1};
    }
    // Drivers of CUDA 11 before 11.8 know no attributes.
    if (!count) return cudaLaunchKernel(function, blocks, dim3(threads), arguments, shared_bytes, stream);
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    return cudaLaunchKernelExC(&config, function, arguments);
}

}  // namespace swinopt

#include "gelu.h"

#include <limits>

#include "../common/launch_kernel.cuh"
#include "gelu.cuh"

namespace swinopt {

cudaError_t gelu_in_place(float* x, int rows, int features, Device const& device, cudaStream_t stream) {
    std::int64_t const fours = static_cast<std::int64_t>(rows) * (features / 4);
    std::int64_t const blocks = (fours - 1) / kGeluThreads + 1;
    if (blocks > std::numeric_limits<std::int32_t>::max()) return cudaErrorInvalidValue;
    Gelu const arguments{reinterpret_cast<float4*>(x), fours};
    return launch_kernel(gelu_kernel, arguments, dim3(static_cast<unsigned>(blocks)), kGeluThreads, 0,
                         DType::kFloat32, device, stream);
}

}  // namespace swinopt

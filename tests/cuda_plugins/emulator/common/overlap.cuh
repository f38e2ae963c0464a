// In place of programmatic dependent launch: the kernels before end when the first thread waits for them.
#pragma once

#include <cuda_runtime_api.h>

namespace swinopt {

inline void let_next_kernel_in() {}
inline void wait_for_kernels_before() {
    emulation::end_kernels_before();
    emulation::thread().has_waited = true;
}

}  // namespace swinopt

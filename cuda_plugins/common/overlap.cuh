// Programmatic dependent launch: a kernel may be brought to the multiprocessors while the one before it still runs.
//
// CUDA C++ programming guide, "Programmatic Dependent Launch and Synchronization". For compute capability 9.0 and newer;
// on others, and in kernels that were launched without the attribute (launch_kernel.cuh), nothing has to be waited for.
#pragma once

namespace swinopt {

// Lets the next kernel in as soon as all blocks of this one have called it or ended. To be called first.
__device__ __forceinline__ void let_next_kernel_in() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// To be called by every thread before it reads or writes what kernels before may write or read: they have ended then,
// and so have those before them, which they waited for. Constants can be read earlier.
__device__ __forceinline__ void wait_for_kernels_before() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace swinopt

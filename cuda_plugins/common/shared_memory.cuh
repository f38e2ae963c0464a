// Where something lies in shared memory, as instructions want to be told.
#pragma once

namespace swinopt {

__device__ __forceinline__ unsigned shared_address(void const* pointer) {
    return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

}  // namespace swinopt

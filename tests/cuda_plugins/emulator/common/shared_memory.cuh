// Addresses in shared memory, counted from its beginning.
#pragma once

#include <cuda_runtime_api.h>

namespace swinopt {

inline unsigned shared_address(void const* pointer) {
    emulation::check_shared(pointer, 1);
    return static_cast<unsigned>(static_cast<unsigned char const*>(pointer) - emulation::block->shared);
}

}  // namespace swinopt

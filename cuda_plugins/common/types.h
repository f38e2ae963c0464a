// What every op's plan speaks of: element types, the device, where tensors lie. Plain C++ without CUDA.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace swinopt {

enum class DType : int { kFloat32 = 0, kFloat16 = 1, kBFloat16 = 2 };

inline int size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

constexpr int kHopper = 90;  // as Device::capability

// What a launch plan depends on besides the problem. launch.py's Device is its twin.
struct Device {
    int capability = 0;        // 10 * major + minor: 90 is an H100 or H200
    int multiprocessors = 0;
    int shared_bytes = 0;      // the most dynamic shared memory that one block may ask for
};

inline bool are_aligned(std::initializer_list<void const*> pointers, int bytes) {
    for (void const* pointer : pointers)
        if (reinterpret_cast<std::uintptr_t>(pointer) % bytes) return false;
    return true;
}

}  // namespace swinopt

// The CPU's stand-in for cuda_plugins/common/mma.cuh: the same functions, by the definitions of the PTX ISA.
#pragma once

#include "../cuda_bf16.h"
#include "../cuda_fp16.h"
#include "arithmetic.cuh"

namespace swinopt {

template <class T>
struct Pair {
    static unsigned pack(float low, float high) { return T(low).bits | static_cast<unsigned>(T(high).bits) << 16; }
    static float2 unpack(unsigned bits) { return {half(bits, 0), half(bits, 1)}; }
    static float half(unsigned bits, int which) {
        T x;
        x.bits = static_cast<std::uint16_t>(bits >> 16 * which);
        return static_cast<float>(x);
    }
};

struct Fragments {
    unsigned a[4], b[2];
};

template <class T>
void multiply(float (&c)[4], Fragments const& mine, int depth) {
    struct Four {
        float value[4];
    };
    Four const sums = emulation::exchange(mine, [&](auto of) {
        Four sums{};
        int const group = emulation::lane() / 4, quad = emulation::lane() % 4;
        for (int i = 0; i < 4; ++i)
            for (int k = 0; k < depth; ++k) {
                int const owner = k % 8 / 2, column = 2 * quad + i % 2;
                float const x = Pair<T>::half(of(4 * group + owner).a[k / 8 * 2 + i / 2], k % 2);
                float const y = Pair<T>::half(of(4 * column + owner).b[k / 8], k % 2);
                sums.value[i] += x * y;
            }
        return sums;
    });
    for (int i = 0; i < 4; ++i) c[i] += sums.value[i];
}

template <class T>
void mma_k8(float (&c)[4], unsigned a0, unsigned a1, unsigned b0) {
    multiply<T>(c, {{a0, a1, 0, 0}, {b0, 0}}, 8);
}

template <class T>
void mma(float (&c)[4], unsigned const (&a)[4], unsigned b0, unsigned b1) {
    multiply<T>(c, {{a[0], a[1], a[2], a[3]}, {b0, b1}}, 16);
}

// As tensor cores do it: products are exact, and of their sum with C all is cut off that does not fit into a float.
inline void mma_tf32(float (&c)[4], unsigned const (&a)[4], unsigned const (&b)[2]) {
    Fragments const mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    struct Four {
        double value[4];
    };
    Four const sums = emulation::exchange(mine, [&](auto of) {
        Four sums{};
        int const group = emulation::lane() / 4, quad = emulation::lane() % 4;
        for (int i = 0; i < 4; ++i)
            for (int k = 0; k < 8; ++k) {
                int const owner = k % 4, column = 2 * quad + i % 2;
                unsigned const x = of(4 * group + owner).a[k / 4 * 2 + i / 2], y = of(4 * column + owner).b[k / 4];
                sums.value[i] += static_cast<double>(__uint_as_float(x & ~0x1fffu)) * __uint_as_float(y & ~0x1fffu);
            }
        return sums;
    });
    for (int i = 0; i < 4; ++i) {
        double const sum = c[i] + sums.value[i];
        float const nearest = static_cast<float>(sum);
        c[i] = std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
    }
}

inline unsigned transposed(unsigned pair) {
    return emulation::exchange(pair, [](auto of) {
        int const group = emulation::lane() / 4, quad = emulation::lane() % 4;
        unsigned result = 0;
        for (int i = 0; i < 2; ++i)
            result |= (of(4 * (2 * quad + i) + group / 2) >> 16 * (group % 2) & 0xffff) << 16 * i;
        return result;
    });
}

template <bool kTransposed>
void load_eight_by_eight(unsigned (&m)[4], void const* row) {
    if (reinterpret_cast<std::uintptr_t>(row) % 16) emulation::fail("ldmatrix of a row that is not aligned");
    struct Four {
        unsigned value[4];
    };
    Four const found = emulation::exchange(row, [](auto of) {
        int const group = emulation::lane() / 4, quad = emulation::lane() % 4;
        Four found{};
        for (int i = 0; i < 4; ++i)
            for (int half = 0; half < 2; ++half) {
                int const r = kTransposed ? 2 * quad + half : group, c = kTransposed ? group : 2 * quad + half;
                std::uint16_t element;
                std::memcpy(&element, static_cast<char const*>(of(8 * i + r)) + 2 * c, 2);
                found.value[i] |= static_cast<unsigned>(element) << 16 * half;
            }
        return found;
    });
    for (int i = 0; i < 4; ++i) m[i] = found.value[i];
}

inline void load_matrices(unsigned (&m)[4], void const* row) { load_eight_by_eight<false>(m, row); }
inline void load_matrices_transposed(unsigned (&m)[4], void const* row) { load_eight_by_eight<true>(m, row); }

inline void copy_16_bytes(void* to, void const* from, bool there) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16 || (there && reinterpret_cast<std::uintptr_t>(from) % 16))
        emulation::fail("a copy of 16 bytes that is not aligned");
    emulation::check_shared(to, 16);
    emulation::Copy copy{to, {}};
    if (there) std::memcpy(copy.bytes, from, 16);
    if (emulation::copies_are_lazy)
        emulation::thread().groups.back().push_back(copy);
    else
        std::memcpy(to, copy.bytes, 16);
}

inline void commit_copies() { emulation::thread().groups.emplace_back(); }

template <int kPending>
void wait_for_copies() {
    auto& groups = emulation::thread().groups;  // the last one is open yet
    while (groups.size() > kPending + 1) {
        for (emulation::Copy const& copy : groups.front()) std::memcpy(copy.to, copy.bytes, 16);
        groups.pop_front();
    }
}

inline void store_16_bytes(void* to, unsigned x, unsigned y, unsigned z, unsigned w) {
    if (reinterpret_cast<std::uintptr_t>(to) % 16) emulation::fail("a store of 16 bytes that is not aligned");
    if (!emulation::thread().has_waited) emulation::fail("a store to what kernels before may still read");
    *static_cast<uint4*>(to) = {x, y, z, w};
}

inline float sum_of_quad(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

inline float max_of_quad(float x) {
    x = std::fmax(x, __shfl_xor_sync(~0u, x, 1));
    return std::fmax(x, __shfl_xor_sync(~0u, x, 2));
}

}  // namespace swinopt

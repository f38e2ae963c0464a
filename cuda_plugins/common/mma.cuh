// Warp-wide matrix products on tensor cores for __half, __nv_bfloat16 and TF32, and the moves that feed them.
//
// A fragment is the piece of a small matrix that one thread of the warp holds. With group = lane / 4 and quad = lane % 4:
//   A [16 x 16]  a0 (row group, columns 2 quad, +1), a1 (row group + 8), a2 (columns + 8), a3 (row + 8, columns + 8)
//   B [16 x 8]   b0 (rows 2 quad, +1, column group), b1 (rows + 8)
//   C [16 x 8]   c0, c1 (row group, columns 2 quad, +1), c2, c3 (row group + 8)
// (PTX ISA, "Matrix fragments for mma.m16n8k16".) Accumulators are float.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "arithmetic.cuh"
#include "shared_memory.cuh"

namespace swinopt {

// Two numbers of 16 bits in one register, the lower one first.
template <class T>
struct Pair;

template <>
struct Pair<__half> {
    static constexpr bool kIsHalf = true;
    static __device__ __forceinline__ unsigned pack(float low, float high) {
        __half2 const pair = __floats2half2_rn(low, high);
        return *reinterpret_cast<unsigned const*>(&pair);
    }
    static __device__ __forceinline__ float2 unpack(unsigned bits) {
        return __half22float2(*reinterpret_cast<__half2 const*>(&bits));
    }
};

template <>
struct Pair<__nv_bfloat16> {
    static constexpr bool kIsHalf = false;
    static __device__ __forceinline__ unsigned pack(float low, float high) {
        __nv_bfloat162 const pair = __floats2bfloat162_rn(low, high);
        return *reinterpret_cast<unsigned const*>(&pair);
    }
    static __device__ __forceinline__ float2 unpack(unsigned bits) {
        return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
    }
};

// C += A B with the first 8 columns of A and the first 8 rows of B alone.
template <class T>
__device__ __forceinline__ void mma_k8(float (&c)[4], unsigned a0, unsigned a1, unsigned b0) {
    if constexpr (Pair<T>::kIsHalf) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(b0));
    } else {
#if __CUDA_ARCH__ >= 800
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a0), "r"(a1), "r"(b0));
#else
        __trap();  // the plan refuses bfloat16 here
#endif
    }
}

// C += A B.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], unsigned const (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    if constexpr (Pair<T>::kIsHalf) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
            : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
    }
#else
    mma_k8<T>(c, a[0], a[1], b0);
    mma_k8<T>(c, a[2], a[3], b1);
#endif
}

// C += A B in TF32, floats of which the tensor cores read the upper 19 bits alone.
//   A [16 x 8]  a0 (row group, column quad), a1 (row group + 8), a2 (column + 4), a3 (row + 8, column + 4)
//   B [8 x 8]   b0 (row quad, column group), b1 (row + 4)
__device__ __forceinline__ void mma_tf32(float (&c)[4], unsigned const (&a)[4], unsigned const (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    __trap();  // the plan takes another kernel here
#endif
}

// The 8 x 8 matrix of 16-bit numbers that the warp holds, a row in four threads, transposed.
__device__ __forceinline__ unsigned transposed(unsigned pair) {
    unsigned result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
    return result;
}

// Four 8 x 8 matrices from shared memory; lane i names row i % 8 of matrix i / 8, 16 bytes.
__device__ __forceinline__ void load_matrices(unsigned (&m)[4], void const* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row)));
}

__device__ __forceinline__ void load_matrices_transposed(unsigned (&m)[4], void const* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
                 : "r"(shared_address(row)));
}

// 16 bytes from global to shared memory, or 16 zeros, without waiting for them where the GPU can do that. What lies
// beside them comes to the L2 cache as well: another head of the same tokens, which is wanted at about the same time.
__device__ __forceinline__ void copy_16_bytes(void* to, void const* from, bool there) {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
                 "r"(there ? 16 : 0)
                 : "memory");
#else
    *static_cast<uint4*>(to) = there ? *static_cast<uint4 const*>(from) : make_uint4(0, 0, 0, 0);
#endif
}

__device__ __forceinline__ void commit_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's latest groups of copies are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

__device__ __forceinline__ void store_16_bytes(void* to, unsigned x, unsigned y, unsigned z, unsigned w) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}

// The sum or maximum over the four threads that hold a row of C.
__device__ __forceinline__ float sum_of_quad(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

__device__ __forceinline__ float max_of_quad(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

}  // namespace swinopt

// What Hopper (sm_90a) has for matrix products: bulk copies of tiles, barriers that count their bytes, clusters of
// blocks, and products of a warpgroup from shared memory. One function for one instruction of the PTX ISA.
//
// Addresses in shared memory are 32 bits wide; those of another block of the cluster are made by address_in().
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "shared_memory.cuh"

namespace swinopt {

// The same place in the shared memory of block `rank` of the cluster.
__device__ __forceinline__ unsigned address_in(unsigned rank, unsigned address) {
    unsigned there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}

// The barrier of all threads of the cluster; whole warps call these. What a thread wrote before arrive_and_release() can
// be read, in any of the blocks, by those who waited; arrive() promises nothing, and costs next to nothing.
namespace cluster {

__device__ __forceinline__ void arrive() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}

__device__ __forceinline__ void arrive_and_release() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}

__device__ __forceinline__ void wait() {
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

}  // namespace cluster

// Eight floats that lie side by side in another block's shared memory.
__device__ __forceinline__ void load_from_cluster(float (&to)[8], unsigned address) {
#pragma unroll
    for (int i = 0; i < 8; i += 4)
        asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(to[i]), "=f"(to[i + 1]), "=f"(to[i + 2]), "=f"(to[i + 3])
                     : "r"(address + 4 * i)
                     : "memory");
}

// Numbers have to be there at this place, and not only where they are used.
template <int kCount>
__device__ __forceinline__ void use(float (&numbers)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(numbers[i])::"memory");
}
__device__ __forceinline__ void use(unsigned& number) { asm volatile("" : "+r"(number)::"memory"); }
template <int kCount>
__device__ __forceinline__ void use(unsigned (&pairs)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) use(pairs[i]);
}
template <class Numbers, int kCount>
__device__ __forceinline__ void use(Numbers (&numbers)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) use(numbers[i]);
}

// A barrier of so many threads of the block, whole warps. Number 0 is __syncthreads().
namespace named_barrier {

__device__ __forceinline__ void wait(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// For those that need not wait.
__device__ __forceinline__ void arrive(int number, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

}  // namespace named_barrier

// A barrier in shared memory: a phase ends after `arrivals` arrivals and as many bytes as were announced.
namespace barrier {

__device__ __forceinline__ void init(unsigned address, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address), "r"(arrivals) : "memory");
}

// Barriers that were initialised before this are so for copies, too.
__device__ __forceinline__ void publish() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// One arrival, and bytes that are to come.
__device__ __forceinline__ void arrive_and_expect(unsigned address, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address), "r"(bytes) : "memory");
}

// The same by one thread of a warp, all of which call it.
__device__ __forceinline__ void arrive_and_expect_once(unsigned address, unsigned bytes) {
    asm volatile(
        "{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n"
        "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n}\n" ::"r"(address), "r"(bytes)
        : "memory");
}

__device__ __forceinline__ void arrive(unsigned address) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}

// Until the phase of this parity has ended; the first phase has 0.
__device__ __forceinline__ void wait(unsigned address, unsigned parity) {
    unsigned ended;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.b32 %0, 1, 0, p;\n"
            "}\n"
            : "=r"(ended)
            : "r"(address), "r"(parity)
            : "memory");
    } while (!ended);
}

}  // namespace barrier

// A box of a matrix, whose first element stands at (column, row), to shared memory. What lies beyond the matrix is zero.
// Its bytes are counted at the barrier.
__device__ __forceinline__ void copy_box(unsigned to, CUtensorMap const& matrix, int column, int row, unsigned barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(to),
        "l"(&matrix), "r"(column), "r"(row), "r"(barrier)
        : "memory");
}

// Bytes of a constant, multiples of 16 at multiples of 16. By one thread of a warp, all of which call it.
__device__ __forceinline__ void copy_constant_once(unsigned to, void const* from, unsigned bytes, unsigned barrier) {
    asm volatile(
        "{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n"
        "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];\n}\n" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier)
        : "memory");
}

// A box of a map [B, H, W, C], by one thread of a warp, all of which call it.
__device__ __forceinline__ void copy_box_once(unsigned to, CUtensorMap const& map, int channel, int column, int row,
                                              int image, unsigned barrier) {
    asm volatile(
        "{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\n"
        "@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
        "[%6];\n}\n" ::"r"(to), "l"(&map), "r"(channel), "r"(column), "r"(row), "r"(image), "r"(barrier)
        : "memory");
}

// What this thread wrote to shared memory before can be read by bulk copies and products of a warpgroup after it.
__device__ __forceinline__ void publish_to_copies() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Four 8 x 8 matrices of 16-bit numbers to shared memory; lane i names row i % 8 of matrix i / 8, 16 bytes.
__device__ __forceinline__ void store_matrices(unsigned row, unsigned const (&m)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(m[0]), "r"(m[1]),
                 "r"(m[2]), "r"(m[3])
                 : "memory");
}

// Both numbers of a pair, or what the other pair has if that is more. NaN stays NaN.
template <class T>
__device__ __forceinline__ unsigned at_least(unsigned pair, unsigned other) {
    unsigned larger;
    if constexpr (std::is_same_v<T, __half>)
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(larger) : "r"(pair), "r"(other));
    else
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(pair), "r"(other));
    return larger;
}

namespace warpgroup {

// How many registers its threads have from now on, a multiple of 8: fewer than before, or more, when others of the block
// have given as many away.
template <int kCount>
__device__ __forceinline__ void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount) : "memory");
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount) : "memory");
}

// Between other uses of the accumulators and products.
__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

// Ends a group of products.
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until no more than kUnderWay groups are.
template <int kUnderWay>
__device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kUnderWay) : "memory");
}

// A matrix in shared memory, in lines of 64 elements that the copy has swizzled by 128 bytes ("Matrix descriptor"):
// eight lines are 1024 bytes.
__device__ __forceinline__ std::uint64_t matrix(unsigned address) {
    constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62, kEightLines = std::uint64_t{1024 >> 4} << 32;
    constexpr std::uint64_t kLeading = std::uint64_t{1} << 16;  // not used by either matrix below
    return kSwizzle128 | kEightLines | kLeading | ((address & 0x3ffff) >> 4);
}

// The same in lines of 32 elements, swizzled by 64 bytes.
__device__ __forceinline__ std::uint64_t lines_of_64(unsigned address) {
    constexpr std::uint64_t kSwizzle64 = std::uint64_t{2} << 62, kEightLines = std::uint64_t{512 >> 4} << 32;
    constexpr std::uint64_t kLeading = std::uint64_t{1} << 16;  // not used by any matrix below
    return kSwizzle64 | kEightLines | kLeading | ((address & 0x3ffff) >> 4);
}

// A matrix of 16 columns in bricks of eight rows of eight columns: 128 bytes, those of the upper columns behind the others.
__device__ __forceinline__ std::uint64_t bricks(unsigned address) {
    return std::uint64_t{256 >> 4} << 32 | std::uint64_t{128 >> 4} << 16 | (address & 0x3ffff) >> 4;
}

// The matrix that begins so many bytes further on.
__device__ __forceinline__ std::uint64_t beyond(std::uint64_t matrix, unsigned bytes) { return matrix + (bytes >> 4); }

#define SWINOPT_PRODUCT(type)                                                                                         \
    asm volatile(                                                                                                     \
        "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "      \
        "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, "   \
        "%31}, %32, %33, 1, 1, 1, 0, 1;"                                                                             \
        : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]),    \
          "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),    \
          "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),    \
          "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),    \
          "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])                                                  \
        : "l"(a), "l"(b)                                                                                              \
        : "memory")

// C [64 x 64] += A [64 x 16] B [16 x 64]. The lines of A are rows, those of B are rows, too: 16 lines of 64
// columns. In thread t of the warpgroup, with lane = t % 32, c[i][2 h + j] is row 16 (t / 32) + 8 h + lane / 4 and column
// 8 i + 2 (lane % 4) + j.
template <class T>
__device__ __forceinline__ void product(float (&c)[8][4], std::uint64_t a, std::uint64_t b);
template <>
__device__ __forceinline__ void product<__half>(float (&c)[8][4], std::uint64_t a, std::uint64_t b) {
    SWINOPT_PRODUCT("f16");
}
template <>
__device__ __forceinline__ void product<__nv_bfloat16>(float (&c)[8][4], std::uint64_t a, std::uint64_t b) {
    SWINOPT_PRODUCT("bf16");
}

#undef SWINOPT_PRODUCT

#define SWINOPT_ROW(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SWINOPT_SEVEN(c) \
    SWINOPT_ROW(c, 0), SWINOPT_ROW(c, 1), SWINOPT_ROW(c, 2), SWINOPT_ROW(c, 3), SWINOPT_ROW(c, 4), SWINOPT_ROW(c, 5), \
        SWINOPT_ROW(c, 6)
#define SWINOPT_PRODUCT_56(type)                                                                                      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %30, 0;\n"                                                         \
                 "wgmma.mma_async.sync.aligned.m64n56k16.f32." type "." type                                          \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "       \
                 "%20, %21, %22, %23, %24, %25, %26, %27}, "                                                          \
                 "%28, %29, p, 1, 1, 0, 0;\n}\n"                                                                      \
                 : SWINOPT_SEVEN(c)                                                                                   \
                 : "l"(a), "l"(b), "r"(adds ? 1 : 0)                                                                  \
                 : "memory")
#define SWINOPT_PRODUCT_64(type)                                                                                      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                                         \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                          \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "       \
                 "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "                                      \
                 "%32, %33, p, 1, 1, 0, 0;\n}\n"                                                                      \
                 : SWINOPT_SEVEN(c), SWINOPT_ROW(c, 7)                                                                \
                 : "l"(a), "l"(b), "r"(adds ? 1 : 0)                                                                  \
                 : "memory")

// C [64 x 8 kTiles] = A [64 x 16] B^T, or += if it adds; both have rows of the 16 that are summed over. c as above.
template <class T, int kTiles>
__device__ __forceinline__ void product_of_rows(float (&c)[kTiles][4], std::uint64_t a, std::uint64_t b, bool adds) {
    static_assert(kTiles == 7 || kTiles == 8);
    constexpr bool kIsHalf = std::is_same_v<T, __half>;
    if constexpr (kTiles == 7 && kIsHalf) SWINOPT_PRODUCT_56("f16");
    if constexpr (kTiles == 7 && !kIsHalf) SWINOPT_PRODUCT_56("bf16");
    if constexpr (kTiles == 8 && kIsHalf) SWINOPT_PRODUCT_64("f16");
    if constexpr (kTiles == 8 && !kIsHalf) SWINOPT_PRODUCT_64("bf16");
}

#define SWINOPT_PRODUCT_32(type)                                                                                      \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %21, 0;\n"                                                         \
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                                          \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, {%16, %17, %18, %19}, "    \
                 "%20, p, 1, 1, 1;\n}\n"                                                                              \
                 : SWINOPT_ROW(c, 0), SWINOPT_ROW(c, 1), SWINOPT_ROW(c, 2), SWINOPT_ROW(c, 3)                         \
                 : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "l"(beyond(b, 1024 * i)), "r"(adds || i ? 1 : 0) \
                 : "memory")

// C [64 x 32] = A [64 x 16 kSteps] B, or += if it adds. A is held as fragments (mma.cuh), by each warp those of its 16
// rows; B has lines of 32 columns, swizzled by 64 bytes.
template <class T, int kSteps>
__device__ __forceinline__ void multiply(float (&c)[4][4], unsigned (&a)[kSteps][4], std::uint64_t b,
                                         bool adds = false) {
    use(a);
    fence();
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
        if constexpr (std::is_same_v<T, __half>)
            SWINOPT_PRODUCT_32("f16");
        else
            SWINOPT_PRODUCT_32("bf16");
    }
}

// C [64 x 8 kTiles] = A [64 x 32] B^T. A is held as fragments; B has rows of the 32 that are summed over, swizzled by 64
// bytes.
#define SWINOPT_HELD_ROWS_48(type)                                                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %29, 0;\n"                                                         \
                 "wgmma.mma_async.sync.aligned.m64n48k16.f32." type "." type                                          \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "  \
                 "%21, %22, %23}, {%24, %25, %26, %27}, %28, p, 1, 1, 0;\n}\n"                                        \
                 : SWINOPT_ROW(c, 0), SWINOPT_ROW(c, 1), SWINOPT_ROW(c, 2), SWINOPT_ROW(c, 3), SWINOPT_ROW(c, 4),     \
                   SWINOPT_ROW(c, 5)                                                                                  \
                 : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "l"(beyond(b, 32 * i)), "r"(i)             \
                 : "memory")
#define SWINOPT_HELD_ROWS_64(type)                                                                                    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"                                                         \
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                                          \
                 " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, "  \
                 "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n" \
                 : SWINOPT_SEVEN(c), SWINOPT_ROW(c, 7)                                                                \
                 : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "l"(beyond(b, 32 * i)), "r"(i)             \
                 : "memory")
template <class T, int kTiles>
__device__ __forceinline__ void multiply_rows(float (&c)[kTiles][4], unsigned (&a)[2][4], std::uint64_t b) {
    static_assert(kTiles == 6 || kTiles == 8);
    constexpr bool kIsHalf = std::is_same_v<T, __half>;
    use(a);
    fence();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if constexpr (kTiles == 6 && kIsHalf) SWINOPT_HELD_ROWS_48("f16");
        if constexpr (kTiles == 6 && !kIsHalf) SWINOPT_HELD_ROWS_48("bf16");
        if constexpr (kTiles == 8 && kIsHalf) SWINOPT_HELD_ROWS_64("f16");
        if constexpr (kTiles == 8 && !kIsHalf) SWINOPT_HELD_ROWS_64("bf16");
    }
}

#undef SWINOPT_HELD_ROWS_64
#undef SWINOPT_HELD_ROWS_48
#undef SWINOPT_PRODUCT_32
#undef SWINOPT_PRODUCT_64
#undef SWINOPT_PRODUCT_56
#undef SWINOPT_SEVEN
#undef SWINOPT_ROW

}  // namespace warpgroup
}  // namespace swinopt

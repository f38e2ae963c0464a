// Runs CUDA kernels on a CPU, a thread as a fiber, so that they can be tested where there is no GPU. Slow, and exact about
// what a GPU leaves open: copies that nobody waits for never arrive, or arrive at once, as the test likes, and with the
// latter the last warps run as far ahead of the others as they can; threads of a warp that do not all reach a shuffle are
// an error. It knows what the kernels use, and no more of CUDA.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint2 {
    unsigned x, y;
};
struct uint4 {
    unsigned x, y, z, w;
};
struct int2 {
    int x, y;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct __attribute__((aligned(8))) float2 {
    float x, y;
};
struct __attribute__((aligned(16))) float4 {
    float x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMisalignedAddress = 716,
    cudaErrorNotSupported = 801
};
using cudaStream_t = void*;
enum { cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
       cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline cudaError_t cudaGetDevice(int*) { return cudaErrorInvalidValue; }
inline cudaError_t cudaDeviceGetAttribute(int*, int, int) { return cudaErrorInvalidValue; }

namespace emulation {

constexpr std::size_t kSharedBytes = 256 << 10, kStackBytes = 256 << 10;
constexpr int kLanes = 32;

struct Index {
    int x = 0, y = 0, z = 0;
};

struct Barrier {
    int arrived = 0, round = 0;
};

// Under way to shared memory, with a barrier there that counts its bytes.
struct BulkCopy {
    unsigned barrier;
    std::vector<std::pair<unsigned, std::vector<unsigned char>>> pieces;  // by address
};

struct Copy {
    void* to;
    unsigned char bytes[16];
};

struct Warp {
    Barrier barrier;
    std::uint64_t slots[kLanes][4];  // what the lanes show one another
};

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    int id = 0;
    bool done = false, has_waited = false;  // for kernels before
    bool has_published = false;             // to bulk copies and products
    std::vector<unsigned> written;          // by number, 16 bytes each of shared memory, and not published since
    int products = 0;                       // of a warpgroup: 1 under way, 2 committed
    std::deque<std::vector<Copy>> groups{{}};  // of copies under way, the open one last
};

struct Block {
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Barrier barriers[16];  // by number; 0 is __syncthreads()'s
    std::deque<BulkCopy> copies;
    ucontext_t scheduler;
    std::function<void()> body;
    int current = 0, progress = 0;
    unsigned char* shared = nullptr;
    std::size_t shared_bytes = 0;
    std::vector<bool> unpublished;  // whether somebody has written these 16 bytes, as in Thread
};

inline Block* block = nullptr;
inline Index block_index, block_size;
inline bool copies_are_lazy = false, driver_has_tensor_maps = true;

inline Thread& thread() { return block->threads[static_cast<std::size_t>(block->current)]; }
inline Warp& warp() { return block->warps[static_cast<std::size_t>(block->current / kLanes)]; }
inline int lane() { return block->current % kLanes; }
inline Index thread_index() { return {thread().id}; }

// What kernels before write while this one has already begun: ones, until a thread waits for them.
struct Late {
    unsigned char* at;
    std::vector<unsigned char> bytes;
};
inline std::vector<Late> late;

inline void write_late(void* at, std::size_t count) {
    auto* const bytes = static_cast<unsigned char*>(at);
    late.push_back({bytes, {bytes, bytes + count}});
    std::memset(bytes, 0xff, count);
}

inline void end_kernels_before() {
    for (Late const& one : late) std::memcpy(one.at, one.bytes.data(), one.bytes.size());
    late.clear();
}

[[noreturn]] inline void fail(char const* why) {
    int const thread = block ? block->current : -1;
    std::fprintf(stderr, "emulation: %s (block %d, %d, %d, thread %d)\n", why, block_index.x, block_index.y,
                 block_index.z, thread);
    std::abort();
}

inline void yield() { swapcontext(&thread().context, &block->scheduler); }

inline bool arrive(Barrier& barrier, int expected) {
    ++block->progress;
    if (++barrier.arrived < expected) return false;
    barrier.arrived = 0;
    ++barrier.round;
    return true;
}

inline void wait(Barrier& barrier, int expected) {
    int const round = barrier.round;
    if (arrive(barrier, expected)) return;
    while (barrier.round == round) yield();
    ++block->progress;
}

// Shows `mine` to the warp and gives what every lane showed to `read`.
template <class Value, class Read>
auto exchange(Value const& mine, Read read) {
    static_assert(sizeof(Value) <= sizeof(Warp::slots[0]));
    Warp& all = warp();
    std::memcpy(all.slots[lane()], &mine, sizeof(Value));
    wait(all.barrier, kLanes);
    auto const of = [&](int other) {
        Value value;
        std::memcpy(&value, all.slots[other & 31], sizeof(Value));
        return value;
    };
    auto const result = read(of);
    wait(all.barrier, kLanes);
    return result;
}

inline void enter() {
    block->body();
    thread().done = true;
    ++block->progress;
    yield();
}

inline void check_shared(void const* pointer, std::size_t bytes) {
    auto const* p = static_cast<unsigned char const*>(pointer);
    if (p >= block->shared && p < block->shared + kSharedBytes && p + bytes > block->shared + block->shared_bytes)
        fail("shared memory beyond what the block asked for");
}

extern unsigned char* shared_memory();

// Runs `body`, a kernel with its argument, as every thread of every block.
inline void launch(std::function<void()> body, dim3 blocks, int threads, std::size_t shared_bytes) {
    if (threads % kLanes || shared_bytes > kSharedBytes) fail("such a block does not exist");
    block_size.x = threads;
    Block own;
    block = &own;
    own.shared = shared_memory();
    own.shared_bytes = shared_bytes;
    own.threads.resize(static_cast<std::size_t>(threads));
    own.warps.resize(static_cast<std::size_t>(threads / kLanes));
    own.body = std::move(body);
    for (Thread& t : own.threads) t.stack.reset(new char[kStackBytes]);
    for (unsigned number = 0; number < blocks.x * blocks.y * blocks.z; ++number) {
        unsigned const rest = number / blocks.x;
        block_index = {static_cast<int>(number % blocks.x), static_cast<int>(rest % blocks.y),
                       static_cast<int>(rest / blocks.y)};
        // NaN in every type: what is read before it is written shows, and what lies behind the block's part stays NaN.
        std::memset(own.shared, 0xff, kSharedBytes);
        std::fill(std::begin(own.barriers), std::end(own.barriers), Barrier{});
        for (Warp& w : own.warps) w.barrier = {};
        own.unpublished.assign(kSharedBytes / 16, false);
        int left = threads;
        for (int i = 0; i < threads; ++i) {
            Thread& t = own.threads[static_cast<std::size_t>(i)];
            t.id = i, t.done = t.has_waited = t.has_published = false, t.products = 0, t.groups = {{}}, t.written.clear();
            getcontext(&t.context);
            t.context.uc_stack.ss_sp = t.stack.get();
            t.context.uc_stack.ss_size = kStackBytes;
            t.context.uc_link = nullptr;
            makecontext(&t.context, enter, 0);
        }
        auto const run = [&](int first, int count) {
            int alive = 0;
            for (own.current = first; own.current < first + count; ++own.current) {
                if (thread().done) continue;
                swapcontext(&own.scheduler, &thread().context);
                alive += !thread().done;
            }
            return alive;
        };
        while (left) {
            int const before = own.progress;
            left = 0;
            if (copies_are_lazy) {
                left = run(0, threads);
            } else {
                for (int first = threads - kLanes; first >= 0; first -= kLanes) {
                    int alive, was;
                    do {
                        was = own.progress;
                        alive = run(first, kLanes);
                    } while (own.progress != was);
                    left += alive;
                }
            }
            if (left && own.progress == before) fail("threads wait for others that never come");
        }
        if (!own.copies.empty()) fail("copies that nobody waits for");
        for (std::size_t i = own.shared_bytes; i < kSharedBytes; ++i)
            if (own.shared[i] != 0xff) fail("written beyond the shared memory that the block asked for");
    }
    block = nullptr;
    if (!late.empty()) fail("a kernel that waits for none of those before it");
}

}  // namespace emulation

#define threadIdx (emulation::thread_index())
#define blockIdx (emulation::block_index)
#define blockDim (emulation::block_size)

inline void __syncthreads() { emulation::wait(emulation::block->barriers[0], emulation::block_size.x); }
inline void __syncwarp() { emulation::wait(emulation::warp().barrier, emulation::kLanes); }
template <class T>
T __shfl_sync(unsigned, T value, int from) {
    return emulation::exchange(value, [&](auto of) { return of(from); });
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
    return emulation::exchange(value, [&](auto of) { return of(emulation::lane() ^ distance); });
}
inline unsigned __ballot_sync(unsigned, int predicate) {
    return emulation::exchange(predicate, [](auto of) {
        unsigned bits = 0;
        for (int i = 0; i < emulation::kLanes; ++i) bits |= static_cast<unsigned>(of(i) != 0) << i;
        return bits;
    });
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int_as_float(int bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
template <class T>
T __ldg(T const* from) {
    if (reinterpret_cast<std::uintptr_t>(from) % alignof(T) || (sizeof(T) == 16 && reinterpret_cast<std::uintptr_t>(from) % 16))
        emulation::fail("a load that is not aligned");
    return *from;
}
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }

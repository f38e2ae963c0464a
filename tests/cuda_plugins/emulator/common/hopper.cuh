// The CPU's stand-in for what cuda_plugins/common/hopper.cuh has for kernels without clusters, by the PTX ISA.
//
// Copies that are lazy arrive when somebody waits for their barrier, the latest first; others arrive at once. They bring
// what stood there when they were asked for. Products are done at once, but it is an error to go on before they are waited
// for, to have them read what no thread has published, or to copy to where results were stored and not published.
#pragma once

#include <cuda.h>

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "mma.cuh"
#include "shared_memory.cuh"

namespace swinopt {

template <class T>
T& at_shared(unsigned address) {
    unsigned char* const place = emulation::block->shared + address;
    emulation::check_shared(place, sizeof(T));
    if (address % alignof(T)) emulation::fail("an address in shared memory that is not aligned");
    return *reinterpret_cast<T*>(place);
}

inline void check_products() {
    if (emulation::thread().products) emulation::fail("products that have not been waited for");
}

template <class Numbers, int kCount>
void use(Numbers (&)[kCount]) {
    check_products();
}

inline void use(unsigned) {}

namespace named_barrier {

inline void wait(int number, int threads) { emulation::wait(emulation::block->barriers[number], threads); }
inline void arrive(int number, int threads) { emulation::arrive(emulation::block->barriers[number], threads); }

}  // namespace named_barrier

namespace barrier {

// What a barrier is in memory. Memory that is none yet has all bits set.
struct alignas(8) State {
    std::int16_t arrivals, missing;
    std::int32_t bytes_and_phase;  // twice the bytes that are to come, and the parity of the phase

    int bytes() const { return bytes_and_phase >> 1; }
    unsigned parity() const { return bytes_and_phase & 1; }
};

inline State& state(unsigned address) {
    State& found = at_shared<State>(address);
    if (found.arrivals < 1) emulation::fail("a barrier that nobody has initialised");
    return found;
}

inline void change(State& state, int missing, int bytes) {
    ++emulation::block->progress;
    if (missing < 0 && state.missing <= 0) emulation::fail("more arrivals than a barrier expects");
    state.missing = static_cast<std::int16_t>(state.missing + missing);
    state.bytes_and_phase += 2 * bytes;
    if (state.missing || state.bytes()) return;
    state.missing = state.arrivals;
    state.bytes_and_phase ^= 1;
}

inline void init(unsigned address, unsigned arrivals) {
    at_shared<State>(address) = {static_cast<std::int16_t>(arrivals), static_cast<std::int16_t>(arrivals), 0};
}

inline void publish() {}

inline void arrive(unsigned address) {
    check_products();
    change(state(address), -1, 0);
}

inline void arrive_and_expect_once(unsigned address, unsigned bytes) {
    __syncwarp();
    if (emulation::lane() == 0) change(state(address), -1, static_cast<int>(bytes));
    __syncwarp();
}

inline void deliver(emulation::BulkCopy const& copy) {
    int count = 0;
    for (auto const& [address, bytes] : copy.pieces) {
        emulation::check_shared(emulation::block->shared + address, bytes.size());
        std::memcpy(emulation::block->shared + address, bytes.data(), bytes.size());
        count += static_cast<int>(bytes.size());
    }
    change(state(copy.barrier), 0, -count);
}

inline void wait(unsigned address, unsigned parity) {
    while (state(address).parity() == parity) {
        auto& copies = emulation::block->copies;
        auto const latest = std::find_if(
            copies.rbegin(), copies.rend(), [=](emulation::BulkCopy const& copy) { return copy.barrier == address; });
        if (latest == copies.rend()) {
            emulation::yield();
            continue;
        }
        emulation::BulkCopy const copy = std::move(*latest);
        copies.erase(std::next(latest).base());
        deliver(copy);
    }
    ++emulation::block->progress;
}

}  // namespace barrier

inline void publish_to_copies() {
    emulation::thread().has_published = true;
    for (unsigned const line : emulation::thread().written) emulation::block->unpublished[line] = false;
    emulation::thread().written.clear();
}

inline void start(emulation::BulkCopy copy) {
    barrier::state(copy.barrier);
    for (auto const& [address, bytes] : copy.pieces)
        for (std::size_t i = 0; i < bytes.size(); i += 16)
            if (emulation::block->unpublished[(address + i) / 16])
                emulation::fail("a copy to where somebody wrote, and has not published it");
    if (emulation::copies_are_lazy)
        emulation::block->copies.push_back(std::move(copy));
    else
        barrier::deliver(copy);
}

inline void copy_constant_once(unsigned to, void const* from, unsigned bytes, unsigned barrier) {
    __syncwarp();
    if (emulation::lane() == 0) {
        if (to % 16 || reinterpret_cast<std::uintptr_t>(from) % 16 || bytes % 16 || !bytes)
            emulation::fail("a bulk copy that is not aligned, or of nothing");
        auto const* const begin = static_cast<unsigned char const*>(from);
        start({barrier, {{to, {begin, begin + bytes}}}});
    }
    __syncwarp();
}

// Where a byte lies that the swizzle of 64 bytes was asked to put at this address.
inline unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 3) << 4; }

inline void copy_box_once(unsigned to, CUtensorMap const& map, int channel, int column, int row, int image,
                          unsigned barrier) {
    __syncwarp();
    if (emulation::lane() == 0) {
        if (!emulation::thread().has_waited) emulation::fail("a copy of what kernels before may not have written yet");
        if (to % 128 || map.axes != 4 || map.swizzle != CU_TENSOR_MAP_SWIZZLE_64B)
            emulation::fail("a box that is not aligned, or of another kind of map");
        emulation::BulkCopy copy{barrier, {}};
        unsigned line = to;
        for (int y = 0; y < static_cast<int>(map.box[2]); ++y)
            for (int x = 0; x < static_cast<int>(map.box[1]); ++x, line += 2 * map.box[0])
                for (unsigned chunk = 0; chunk < 2 * map.box[0]; chunk += 16) {
                    long long const index[] = {channel + chunk / 2, column + x, row + y, image};
                    std::vector<unsigned char> bytes(16);
                    bool inside = true;
                    long long offset = 0;
                    for (int axis = 0; axis < 4; ++axis) {
                        inside = inside && index[axis] >= 0 && index[axis] < static_cast<long long>(map.size[axis]);
                        offset += index[axis] * static_cast<long long>(map.pitch[axis]);
                    }
                    if (inside) std::memcpy(bytes.data(), map.tensor + offset, 16);
                    copy.pieces.emplace_back(swizzled(line + chunk), std::move(bytes));
                }
        start(std::move(copy));
    }
    __syncwarp();
}

inline void store_matrices(unsigned row, unsigned const (&m)[4]) {
    if (row % 16) emulation::fail("stmatrix to a row that is not aligned");
    for (int i = 0; i < 4; ++i) {
        unsigned const to = __shfl_sync(~0u, row, 8 * i + emulation::lane() / 4);
        at_shared<unsigned>(to + 4 * (emulation::lane() % 4)) = m[i];
        if (emulation::block->unpublished[to / 16]) continue;
        emulation::block->unpublished[to / 16] = true;
        emulation::thread().written.push_back(to / 16);
    }
}

template <class T>
unsigned at_least(unsigned pair, unsigned other) {
    float2 const x = Pair<T>::unpack(pair), least = Pair<T>::unpack(other);
    return Pair<T>::pack(x.x < least.x ? least.x : x.x, x.y < least.y ? least.y : x.y);
}

namespace warpgroup {

// A matrix that products read: where it begins, and how its lines lie.
using Matrix = std::uint64_t;
constexpr Matrix kSwizzled = Matrix{1} << 40;

inline void fence() {}
inline void begin_product() {
    if (!emulation::thread().has_published) emulation::fail("a product may not see what this thread wrote");
    emulation::thread().products = 1;
}
inline void commit() {
    if (emulation::thread().products) emulation::thread().products = 2;
}
template <int kUnderWay>
void wait() {
    if (emulation::thread().products == 1) emulation::fail("products that are waited for before they are committed");
    if (!kUnderWay) emulation::thread().products = 0;
}

inline Matrix lines_of_64(unsigned address) {
    if (address % 16) emulation::fail("a matrix that is not aligned");
    return kSwizzled | address;
}
inline Matrix bricks(unsigned address) { return address; }
inline Matrix beyond(Matrix matrix, unsigned bytes) { return matrix + bytes; }

// Element (line, column) of lines of 32, or of bricks. Lines are swizzled by their address, not by their number.
template <class T>
float element(Matrix matrix, int line, int column) {
    unsigned place = static_cast<unsigned>(matrix);
    if (matrix & kSwizzled)
        place = swizzled(place + 64 * line + 2 * column);
    else
        place += 256 * (line / 8) + 128 * (column / 8) + 16 * (line % 8) + 2 * (column % 8);
    return static_cast<float>(at_shared<T>(place));
}

inline int first_row() { return 16 * (emulation::block->current / 32 % 4) + emulation::lane() / 4; }

template <class T, int kTiles>
void product_of_rows(float (&c)[kTiles][4], Matrix a, Matrix b, bool adds) {
    begin_product();
    __syncwarp();
    for (int e = 0; e < 4; ++e) {
        float x[16];
        for (int k = 0; k < 16; ++k) x[k] = element<T>(a, first_row() + 8 * (e / 2), k);
        for (int t = 0; t < kTiles; ++t) {
            float sum = adds ? c[t][e] : 0;
            for (int k = 0; k < 16; ++k) sum += x[k] * element<T>(b, 8 * t + 2 * (emulation::lane() % 4) + e % 2, k);
            c[t][e] = sum;
        }
    }
    __syncwarp();
}

template <int kCount>
void keep_registers() {}
template <int kCount>
void take_registers() {}

// A row of fragments, one of the two that four threads hold.
template <class T>
void gather_row(float (&x)[16], unsigned const (&fragments)[4], int half) {
    for (int k = 0; k < 16; ++k) {
        unsigned const pair = __shfl_sync(~0u, fragments[k / 8 * 2 + half], emulation::lane() / 4 * 4 + k % 8 / 2);
        x[k] = Pair<T>::half(pair, k % 2);
    }
}

template <class T, int kSteps>
void multiply(float (&c)[4][4], unsigned (&a)[kSteps][4], Matrix b, bool adds = false) {
    begin_product();
    for (int i = 0; i < kSteps; ++i)
        for (int half = 0; half < 2; ++half) {
            float x[16];
            gather_row<T>(x, a[i], half);
            for (int j = 0; j < 4; ++j)
                for (int e = 0; e < 2; ++e) {
                    float sum = adds || i ? c[j][2 * half + e] : 0;
                    for (int k = 0; k < 16; ++k)
                        sum += x[k] * element<T>(b, 16 * i + k, 8 * j + 2 * (emulation::lane() % 4) + e);
                    c[j][2 * half + e] = sum;
                }
        }
}

template <class T, int kTiles>
void multiply_rows(float (&c)[kTiles][4], unsigned (&a)[2][4], Matrix b) {
    begin_product();
    for (int i = 0; i < 2; ++i)
        for (int half = 0; half < 2; ++half) {
            float x[16];
            gather_row<T>(x, a[i], half);
            for (int t = 0; t < kTiles; ++t)
                for (int e = 0; e < 2; ++e) {
                    float sum = i ? c[t][2 * half + e] : 0;
                    for (int k = 0; k < 16; ++k)
                        sum += x[k] * element<T>(b, 8 * t + 2 * (emulation::lane() % 4) + e, 16 * i + k);
                    c[t][2 * half + e] = sum;
                }
        }
}

}  // namespace warpgroup
}  // namespace swinopt

// A cuBLASLt without a GPU: it remembers what it is told, and hands that to whoever asks. VERSION names it.
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "fake_cublaslt.h"

namespace {

int setting(char const* name, int otherwise) {
    char const* const value = std::getenv(name);
    return value ? std::atoi(value) : otherwise;
}

FakeCalls calls;

}  // namespace

struct cublasLtContext {};

struct cublasLtMatmulDescOpaque_t {
    int epilogue = 0;
    void const* volatile bias = nullptr;
};

struct cublasLtMatrixLayoutOpaque_t {
    std::uint64_t rows, columns;
    std::int64_t stride;
};

struct cublasLtMatmulPreferenceOpaque_t {
    std::uint64_t workspace = 0;
    std::uint32_t reductions = 0, alignment = 0;
};

struct Algorithm {
    std::uint64_t data[8];
};

enum { kIndex, kTile, kOption, kCluster };  // where an algorithm has them
constexpr std::uint32_t kTiles[] = {1, 4, 7, 9};
constexpr std::uint32_t kRefusedTile = 9;

struct Heuristic {
    Algorithm algorithm;
    std::size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

extern "C" {

FakeCalls* fake_calls() { return &calls; }

std::size_t cublasLtGetVersion() { return VERSION; }

int cublasLtCreate(cublasLtContext** handle) {
    if (setting("FAKE_TOO_NEW", 0) == VERSION) return 1;
    *handle = new cublasLtContext;
    return 0;
}

int cublasLtDestroy(cublasLtContext* handle) {
    delete handle;
    return 0;
}

int cublasLtMatmulDescCreate(cublasLtMatmulDescOpaque_t** desc, int compute, int scale) {
    calls.compute = compute;
    calls.scale = scale;
    *desc = new cublasLtMatmulDescOpaque_t;
    return 0;
}

int cublasLtMatmulDescDestroy(cublasLtMatmulDescOpaque_t* desc) {
    delete desc;
    return 0;
}

int cublasLtMatmulDescSetAttribute(cublasLtMatmulDescOpaque_t* desc, int attribute, void const* value, std::size_t) {
    if (attribute == 7) std::memcpy(&desc->epilogue, value, sizeof desc->epilogue);
    if (attribute == 8) desc->bias = *static_cast<void const* const*>(value);
    return 0;
}

int cublasLtMatrixLayoutCreate(
    cublasLtMatrixLayoutOpaque_t** layout, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t stride) {
    calls.type = type;
    *layout = new cublasLtMatrixLayoutOpaque_t{rows, columns, stride};
    return 0;
}

int cublasLtMatrixLayoutDestroy(cublasLtMatrixLayoutOpaque_t* layout) {
    delete layout;
    return 0;
}

int cublasLtMatmulPreferenceCreate(cublasLtMatmulPreferenceOpaque_t** preference) {
    *preference = new cublasLtMatmulPreferenceOpaque_t;
    return 0;
}

int cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreferenceOpaque_t* preference) {
    delete preference;
    return 0;
}

int cublasLtMatmulPreferenceSetAttribute(
    cublasLtMatmulPreferenceOpaque_t* preference, int attribute, void const* value, std::size_t) {
    if (attribute == 1) std::memcpy(&preference->workspace, value, sizeof preference->workspace);
    if (attribute == 3) std::memcpy(&preference->reductions, value, sizeof preference->reductions);
    if (attribute >= 5 && attribute <= 8) preference->alignment += *static_cast<std::uint32_t const*>(value);
    return 0;
}

int cublasLtMatmulAlgoGetHeuristic(cublasLtContext*, cublasLtMatmulDescOpaque_t* desc, cublasLtMatrixLayoutOpaque_t* a,
    cublasLtMatrixLayoutOpaque_t* b, cublasLtMatrixLayoutOpaque_t*, cublasLtMatrixLayoutOpaque_t* d,
    cublasLtMatmulPreferenceOpaque_t* preference, int asked, Heuristic* found, int* count) {
    ++calls.heuristics;
    calls.bias_was_known = desc->bias != nullptr;
    calls.workspace = preference->workspace;
    calls.reductions = preference->reductions;
    calls.alignment = preference->alignment;
    std::uint64_t const sizes[] = {a->rows, a->columns, static_cast<std::uint64_t>(a->stride), b->rows, b->columns,
        static_cast<std::uint64_t>(b->stride), d->rows, d->columns, static_cast<std::uint64_t>(d->stride)};
    std::memcpy(calls.sizes, sizes, sizeof sizes);
    *count = 0;
    for (int i = 0; i < asked && i < setting("FAKE_PROPOSALS", 5); ++i) {
        found[i] = {};
        found[i].algorithm.data[kIndex] = static_cast<std::uint64_t>(i);
        found[i].algorithm.data[kTile] = kTiles[0];
        ++*count;
    }
    return 0;
}

int cublasLtMatmulAlgoCheck(cublasLtContext*, cublasLtMatmulDescOpaque_t* desc, cublasLtMatrixLayoutOpaque_t*,
    cublasLtMatrixLayoutOpaque_t*, cublasLtMatrixLayoutOpaque_t*, cublasLtMatrixLayoutOpaque_t*,
    Algorithm const* algorithm, Heuristic* result) {
    *result = {};
    return algorithm->data[kIndex] >= 5 || algorithm->data[kTile] == kRefusedTile || !desc->bias;
}

int cublasLtMatmulAlgoCapGetAttribute(
    Algorithm const*, int attribute, void* value, std::size_t bytes, std::size_t* written) {
    if (attribute != 6 || bytes < sizeof kTiles) return 1;
    std::memcpy(value, kTiles, sizeof kTiles);
    *written = sizeof kTiles;
    return 0;
}

int cublasLtMatmulAlgoConfigSetAttribute(Algorithm* algorithm, int attribute, void const* value, std::size_t bytes) {
    if (bytes != (attribute == 8 ? 2 : 4)) return 1;
    int const place = attribute == 1 ? kTile : attribute == 5 ? kOption : kCluster;
    algorithm->data[place] = 0;
    std::memcpy(&algorithm->data[place], value, bytes);
    return 0;
}

int cublasLtMatmul(cublasLtContext*, cublasLtMatmulDescOpaque_t* desc, void const* alpha, void const*,
    cublasLtMatrixLayoutOpaque_t*, void const*, cublasLtMatrixLayoutOpaque_t*, void const* beta, void const* c,
    cublasLtMatrixLayoutOpaque_t*, void* d, cublasLtMatrixLayoutOpaque_t*, Algorithm const* algorithm, void*,
    std::size_t, void*) {
    void const* const bias = desc->bias;
    if (calls.slow) std::this_thread::sleep_for(std::chrono::microseconds(20));
    // The bias of a call lies before its output in the tests that have several threads.
    if (calls.slow && (desc->bias != bias || static_cast<char const*>(bias) + 4096 != d)) ++calls.confused;
    ++calls.matmuls;
    calls.epilogue = desc->epilogue;
    calls.alpha = *static_cast<float const*>(alpha);
    calls.beta = *static_cast<float const*>(beta);
    calls.in_place = c == d;
    if (calls.capturing && static_cast<int>(algorithm->data[kTile]) == setting("FAKE_TILE_FAILS_IN_CAPTURE", -1)) return 13;
    calls.algorithm = static_cast<int>(algorithm->data[kIndex]);
    calls.tile = static_cast<int>(algorithm->data[kTile]);
    calls.option = static_cast<int>(algorithm->data[kOption]);
    calls.cluster = static_cast<int>(algorithm->data[kCluster]);
    int const microseconds = setting("FAKE_BASE", 10) + 4 * (calls.algorithm != setting("FAKE_BEST", 3)) +
                             3 * (calls.tile != setting("FAKE_TILE", 7)) +
                             2 * (calls.cluster != setting("FAKE_CLUSTER", 3)) + (calls.option != setting("FAKE_OPTION", 2));
    calls.clock += setting("FAKE_TIMES_AS_LONG", 1) * microseconds;
    return setting("FAKE_FAILS", 0);
}
}

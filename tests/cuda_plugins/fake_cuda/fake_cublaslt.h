// What the cuBLASLt of the tests was told last.
#pragma once

#include <atomic>
#include <cstdint>

struct FakeCalls {
    std::atomic<int> heuristics{0}, matmuls{0}, confused{0};
    std::atomic<long> clock{0};  // what events tell the time by, in microseconds
    bool capturing = false;      // whether a stream is captured now
    bool slow = false;           // whether a product takes its time, so that threads meet
    int compute = -1, scale = -1, type = -1, epilogue = -1, algorithm = -1, tile = -1, cluster = -1, option = -1;
    float alpha = -1, beta = -1;
    bool in_place = false, bias_was_known = false;
    std::uint64_t workspace = 0, sizes[9] = {};
    std::uint32_t reductions = 0, alignment = 0;
};

extern "C" FakeCalls* fake_calls();

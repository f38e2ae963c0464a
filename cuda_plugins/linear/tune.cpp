// The fastest way to compute a product, by measuring.
//
// cuBLASLt's proposals come first, best guess first. It knows large products best: small ones, whose time is that of
// getting started, run up to a tenth faster with a tile, a cluster or an option that it does not think of, so what is
// like its fastest proposal but for one of these is tried as well. And so is our own kernel, which overlaps with its
// neighbours.
#include "launch.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "product.h"

namespace swinopt {
namespace {

// By how much an algorithm has to be faster than the first proposal to be taken for it.
constexpr float kWorthwhile = 0.97f;

// By how much our own kernel may take longer than a short product of cuBLASLt's, each in a row of its kind: in an engine
// it overlaps with what stands around it, which cuBLASLt's neither do nor let others do. Measured on an H200
// (benchmarks/NOTES.md): Swin-B's blocks took the least with all linears by it at one image, where some are 0.9 us slower
// so; at eight, where products take 5 us and more, the same allowance cost 2 %.
constexpr float kShort = 0.0045f, kOverlap = 0.001f;  // milliseconds

// Longer products are left to cuBLASLt as it proposes them.
constexpr float kLong = 0.025f;

// Device memory, a stream and events to measure with; each null if there is no more of it.
class Bench {
public:
    Bench() {
        cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
        for (cudaEvent_t& event : events_) cudaEventCreate(&event);
    }

    ~Bench() {
        for (void* memory : memory_) cudaFree(memory);
        for (cudaEvent_t const event : events_) cudaEventDestroy(event);
        if (stream_) cudaStreamDestroy(stream_);
        cudaGetLastError();
    }

    // Numbers of about 1 in float16 and 0.01 in bfloat16 and float32.
    void* allocate(std::size_t bytes) {
        void* memory = nullptr;
        if (cudaMalloc(&memory, bytes) != cudaSuccess) return nullptr;
        memory_.push_back(memory);
        cudaMemsetAsync(memory, 0x3c, bytes, stream_);
        return memory;
    }

    // The shortest of some rounds over the first inputs, in milliseconds for each; a lot if a product fails. The rounds
    // are a graph: launched one by one, small products would be measured by what it takes to launch them. There are more
    // of them until the two shortest agree, since others may be using the GPU.
    template <class Run>
    float time(Run const& run, std::vector<LinearParams> const& inputs, std::size_t count, int rounds) {
        constexpr float kFailed = 1e9f, kAgree = 1.02f;
        constexpr int kPatience = 8;
        count = std::min(count, inputs.size());
        // A kernel may have to be loaded, which must not happen while a stream is captured.
        if (!run(inputs[0], stream_) || cudaStreamSynchronize(stream_) != cudaSuccess) return kFailed;
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t ready = nullptr;
        bool ok = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
        for (std::size_t i = 0; ok && i < count; ++i) ok = run(inputs[i], stream_);
        // Also where a product fails: the stream would stay in the capture.
        ok = cudaStreamEndCapture(stream_, &graph) == cudaSuccess && ok;
        ok = ok && cudaGraphInstantiateWithFlags(&ready, graph, 0) == cudaSuccess;
        float best = kFailed, second = kFailed;
        for (int round = 0; ok && round <= kPatience * rounds; ++round) {
            if (round > rounds && second <= kAgree * best) break;
            float ms = kFailed;
            cudaEventRecord(events_[0], stream_);
            ok = cudaGraphLaunch(ready, stream_) == cudaSuccess;
            cudaEventRecord(events_[1], stream_);
            ok = ok && cudaEventSynchronize(events_[1]) == cudaSuccess;
            ok = ok && cudaEventElapsedTime(&ms, events_[0], events_[1]) == cudaSuccess;
            if (!ok || round == 0) continue;
            second = std::min(second, std::max(best, ms / count));
            best = std::min(best, ms / count);
        }
        if (ready) cudaGraphExecDestroy(ready);
        if (graph) cudaGraphDestroy(graph);
        return ok ? best : kFailed;
    }

private:
    cudaStream_t stream_ = nullptr;
    cudaEvent_t events_[2] = {};
    std::vector<void*> memory_;
};

// As many inputs as it takes to find little of one in the cache again; none if there is no memory for them.
std::vector<LinearParams> inputs_like(LinearParams const& p, DType dtype, Bench& bench) {
    constexpr std::size_t kBytes = std::size_t{256} << 20, kFewest = 2, kMost = 128;
    std::size_t const rows = p.rows, inputs = p.inputs, outputs = p.outputs, each = size_of(dtype);
    std::size_t const bytes = each * (rows * inputs + inputs * outputs + (p.residual ? 2 : 1) * rows * outputs);
    std::size_t const count = std::min(kMost, std::max(kFewest, kBytes / bytes));
    void* const workspace = bench.allocate(p.workspace_bytes);
    std::vector<LinearParams> made;
    for (std::size_t i = 0; i < count; ++i) {
        LinearParams own = p;
        own.x = bench.allocate(each * rows * inputs);
        own.weight = bench.allocate(each * inputs * outputs);
        own.bias = bench.allocate(each * outputs);
        own.residual = p.residual ? bench.allocate(each * rows * outputs) : nullptr;
        own.output = bench.allocate(each * rows * outputs);
        own.workspace = workspace;
        if (!workspace || !own.x || !own.weight || !own.bias || !own.output || (p.residual && !own.residual)) return {};
        made.push_back(own);
    }
    return made;
}

template <class Way>
struct Timed {
    float ms;
    Way way;
};

// Times ways to compute a product.
class Search {
public:
    Search(Product const& product, DType dtype, Device const& device, std::vector<LinearParams> const& inputs,
        Bench& bench)
        : product_(product), dtype_(dtype), device_(device), inputs_(inputs), bench_(bench) {}

    // cuBLASLt's fastest: of the proposals, and of what is like the fastest of these but for one setting. The first
    // proposal if it is as good.
    Timed<Lt::Algorithm> library(std::vector<Lt::Algorithm> const& proposals) {
        measure(proposals);
        if (timed_[0].ms <= kLong) look_around();
        float const first = measured_longer(proposals[0]).ms;
        Timed<Lt::Algorithm> const best = fastest(timed_);
        return best.ms < kWorthwhile * first ? best : Timed<Lt::Algorithm>{first, proposals[0]};
    }

    // The fastest shape of our own kernel; none if it has none.
    std::optional<Timed<HopperShape>> own() {
        if (dtype_ == DType::kFloat32) return std::nullopt;
        std::vector<Timed<HopperShape>> timed;
        for (HopperShape const& shape : hopper_shapes(inputs_[0], device_)) timed.push_back(measured_shortly(shape));
        if (timed.empty()) return std::nullopt;
        return fastest(timed);
    }

private:
    void measure(std::vector<Lt::Algorithm> const& algorithms) {
        for (Lt::Algorithm const& algorithm : algorithms) timed_.push_back(measured_shortly(algorithm));
        sort(timed_);
    }

    // Goes on from the fastest, now in one setting and now in another.
    void look_around() {
        constexpr std::uint32_t kOneBlock = 2;                              // CUBLASLT_CLUSTER_SHAPE_1x1x1
        std::vector<std::uint32_t> const clusters{kOneBlock, 3, 4, 5, 6, 8};  // ..., 2x1x1, 4x1x1, 1x2x1, 2x2x1, 1x4x1
        // Not every tile goes with every cluster, and all go with one block.
        std::vector<Lt::Algorithm> starts = variants(Lt::kCluster, {kOneBlock}), others;
        starts.push_back(timed_[0].way);
        for (Lt::Algorithm const& start : starts)
            for (Lt::Algorithm const& other :
                product_.variants(start, Lt::kTile, product_.tiles(start), inputs_[0].workspace_bytes))
                others.push_back(other);
        measure(others);
        measure(variants(Lt::kCluster, clusters));
        measure(variants(Lt::kOption, {0, 1, 2, 3}));
    }

    std::vector<Lt::Algorithm> variants(Lt::Setting setting, std::vector<std::uint32_t> const& values) const {
        return product_.variants(timed_[0].way, setting, values, inputs_[0].workspace_bytes);
    }

    template <class Way>
    static void sort(std::vector<Timed<Way>>& timed) {
        std::stable_sort(timed.begin(), timed.end(), [](auto const& a, auto const& b) { return a.ms < b.ms; });
    }

    template <class Way>
    Timed<Way> measured_shortly(Way const& way) {
        constexpr std::size_t kInputs = 32;
        constexpr int kRounds = 2;
        return {bench_.time(running(way), inputs_, kInputs, kRounds), way};
    }

    template <class Way>
    Timed<Way> measured_longer(Way const& way) {
        constexpr int kRounds = 5;
        return {bench_.time(running(way), inputs_, inputs_.size(), kRounds), way};
    }

    // Of those that were the fastest in a short measurement.
    template <class Way>
    Timed<Way> fastest(std::vector<Timed<Way>> timed) {
        constexpr std::size_t kFinalists = 6;
        sort(timed);
        timed.resize(std::min(timed.size(), kFinalists));
        for (Timed<Way>& one : timed) one = measured_longer(one.way);
        sort(timed);
        return timed[0];
    }

    auto running(Lt::Algorithm const& algorithm) const {
        return [this, &algorithm](LinearParams const& p, cudaStream_t stream) {
            return product_.run(p, algorithm, stream);
        };
    }

    auto running(HopperShape const& shape) const {
        return [this, &shape](LinearParams const& p, cudaStream_t stream) {
            return hopper_linear(p, dtype_, shape, device_, stream) == cudaSuccess;
        };
    }

    Product const& product_;
    DType dtype_;
    Device const& device_;
    std::vector<LinearParams> const& inputs_;
    Bench& bench_;
    std::vector<Timed<Lt::Algorithm>> timed_;
};

// Nothing if it cannot be measured now.
std::optional<std::string> measured(LinearParams const& p, DType dtype, int id, Device const& device) {
    constexpr int kProposals = 16;  // more than any version makes
    Bench bench;
    std::vector<LinearParams> const inputs = inputs_like(p, dtype, bench);
    if (inputs.empty()) return std::nullopt;
    Product const product(inputs[0], dtype, id);
    std::vector<Lt::Algorithm> const proposals = product.proposals(inputs[0], kProposals);
    if (proposals.empty()) return "";
    Search search(product, dtype, device, inputs, bench);
    Timed<Lt::Algorithm> const library = search.library(proposals);
    std::optional<Timed<HopperShape>> const own = library.ms <= kLong ? search.own() : std::nullopt;
    bool const takes_own = own && own->ms < library.ms + (library.ms <= kShort ? kOverlap : 0);
    if (!takes_own && library.way == proposals[0]) return "";
    Tuned tuned{};
    tuned.version = cublaslt()->version();
    tuned.algorithm = library.way;
    if (takes_own) tuned.shape = own->way;
    return std::string(reinterpret_cast<char const*>(&tuned), sizeof tuned);
}

}  // namespace

std::string tune_linear(LinearParams const& asked, DType dtype, Device const& device) {
    LinearParams const p = as_possible(asked, device);
    static std::mutex mutex;
    static std::map<Key, std::string> known;
    int id = 0;
    if (linear_unsupported(p, dtype, device) || cudaGetDevice(&id) != cudaSuccess) return {};
    // One at a time: two would disturb each other. A network has many products of one size.
    std::lock_guard<std::mutex> const lock(mutex);
    Key key = key_of(p, dtype, id);
    auto const found = known.find(key);
    if (found != known.end()) return found->second;
    std::optional<std::string> const best = measured(p, dtype, id, device);
    if (best) known.emplace(std::move(key), *best);
    return best.value_or("");
}

}  // namespace swinopt

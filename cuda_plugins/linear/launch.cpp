// y = act(x W + b) + r as one matrix product of cuBLASLt, with all that follows in its epilogue.
//
// cuBLASLt counts columns first, so a row-major [rows, n] is its n x rows: it is asked for y' = W' x', whose "rows" are
// the features that bias runs over. Sums are in float32, where TensorRT 8.6 takes sums in float16 if they are faster.
#include "launch.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <vector>

namespace swinopt {
namespace {

using Lt = CublasLt;

constexpr int kProposals = 16;

// By how much a proposal has to be faster than the first one to be taken for it.
constexpr float kWorthwhile = 0.97f;

// The bytes of LinearParams::tuned.
struct Tuned {
    std::uint64_t version;
    Lt::Algorithm algorithm;
};

// One for each GPU, for good: making one takes long, and several threads may use it.
Lt::Handle handle_of(int device) {
    static std::mutex mutex;
    static std::unordered_map<int, Lt::Handle> handles;
    std::lock_guard<std::mutex> const lock(mutex);
    Lt::Handle& handle = handles[device];
    if (!handle && cublaslt()->create(&handle)) handle = nullptr;
    return handle;
}

template <auto kMember>
struct Destroy {
    template <class T>
    void operator()(T* object) const {
        (cublaslt()->*kMember)(object);
    }
};

template <class Pointer, auto kMember>
using Owned = std::unique_ptr<std::remove_pointer_t<Pointer>, Destroy<kMember>>;
using Desc = Owned<Lt::MatmulDesc, &Lt::desc_destroy>;
using Layout = Owned<Lt::MatrixLayout, &Lt::layout_destroy>;
using Preference = Owned<Lt::Preference, &Lt::preference_destroy>;

// Products of one kind and size, as cuBLASLt wants to be told of them.
class Product {
public:
    Product(LinearParams const& p, DType dtype, int device) : handle_(handle_of(device)) {
        cudaDataType_t const type = dtype == DType::kFloat16 ? CUDA_R_16F : CUDA_R_16BF;
        int const epilogue = p.gelu ? Lt::kEpilogueGeluBias : Lt::kEpilogueBias;
        Lt::MatmulDesc desc = nullptr;
        if (!handle_ || lt_.desc_create(&desc, Lt::kCompute32F, CUDA_R_32F)) return;
        desc_.reset(desc);
        weight_ = layout(type, p.outputs, p.inputs);
        x_ = layout(type, p.inputs, p.rows);
        output_ = layout(type, p.outputs, p.rows);
        ok_ = weight_ && x_ && output_ && !lt_.desc_set(desc, Lt::kEpilogue, &epilogue, sizeof epilogue) &&
              set_bias(p.bias);
    }

    // The first algorithms that cuBLASLt thinks of; none if it knows none.
    std::vector<Lt::Algorithm> proposals(LinearParams const& p, int most) const {
        Lt::Preference preference = nullptr;
        if (!ok_ || lt_.preference_create(&preference)) return {};
        Preference const owned(preference);
        // Partial sums of a product that is split along K are added up in float32, too.
        bool ok = !lt_.preference_set(preference, Lt::kReductions, &Lt::kReduceInFloat, sizeof Lt::kReduceInFloat) &&
                  !lt_.preference_set(preference, Lt::kMaxWorkspaceBytes, &p.workspace_bytes, sizeof p.workspace_bytes);
        for (int const alignment : Lt::kAlignments) {
            std::uint32_t const bytes = 16;
            ok = ok && !lt_.preference_set(preference, alignment, &bytes, sizeof bytes);
        }
        std::vector<Lt::Heuristic> found(most);
        int count = 0;
        if (!ok || lt_.heuristic(handle_, desc_.get(), weight_.get(), x_.get(), output_.get(), output_.get(),
                       preference, most, found.data(), &count))
            return {};
        std::vector<Lt::Algorithm> algorithms;
        for (int i = 0; i < count; ++i)
            if (!found[i].state) algorithms.push_back(found[i].algorithm);
        return algorithms;
    }

    bool can_run(Lt::Algorithm const& algorithm, std::size_t workspace_bytes) const {
        Lt::Heuristic found;
        bool const knows = ok_ && !lt_.check(handle_, desc_.get(), weight_.get(), x_.get(), output_.get(),
                                      output_.get(), &algorithm, &found);
        return knows && found.workspace_bytes <= workspace_bytes;
    }

    // Not for several threads at a time: the bias is part of the description.
    bool run(LinearParams const& p, Lt::Algorithm const& algorithm, cudaStream_t stream) const {
        float const one = 1, share = p.residual ? 1 : 0;
        return ok_ && set_bias(p.bias) &&
               !lt_.matmul(handle_, desc_.get(), &one, p.weight, weight_.get(), p.x, x_.get(), &share,
                   p.residual ? p.residual : p.output, output_.get(), p.output, output_.get(), &algorithm, p.workspace,
                   p.workspace_bytes, stream);
    }

private:
    bool set_bias(void const* bias) const {
        return !lt_.desc_set(desc_.get(), Lt::kBiasPointer, &bias, sizeof bias);
    }

    static Layout layout(cudaDataType_t type, int features, int rows) {
        Lt::MatrixLayout made = nullptr;
        return Layout(cublaslt()->layout_create(&made, type, features, rows, features) ? nullptr : made);
    }

    Lt const& lt_ = *cublaslt();
    Lt::Handle handle_;
    Desc desc_;
    Layout weight_, x_, output_;
    bool ok_ = false;
};

// What an algorithm hangs on.
using Key = std::tuple<int, DType, int, int, int, bool, bool, std::size_t, std::string>;

Key key_of(LinearParams const& p, DType dtype, int device) {
    std::string const tuned(static_cast<char const*>(p.tuned), p.tuned ? p.tuned_bytes : 0);
    return {device, dtype, p.rows, p.inputs, p.outputs, p.gelu != 0, p.residual != nullptr, p.workspace_bytes, tuned};
}

struct Prepared {
    Product product;
    std::vector<Lt::Algorithm> algorithms;  // one, or none
};

Prepared prepared(LinearParams const& p, DType dtype, int device) {
    Product product(p, dtype, device);
    Tuned tuned;
    if (p.tuned && p.tuned_bytes == sizeof tuned) {
        std::memcpy(&tuned, p.tuned, sizeof tuned);
        if (tuned.version == cublaslt()->version() && product.can_run(tuned.algorithm, p.workspace_bytes))
            return {std::move(product), {tuned.algorithm}};
    }
    std::vector<Lt::Algorithm> proposals = product.proposals(p, 1);
    return {std::move(product), std::move(proposals)};
}

// Products that were prepared before and are not in use.
class Pool {
public:
    Prepared take(Key const& key, LinearParams const& p, DType dtype, int device) {
        {
            std::lock_guard<std::mutex> const lock(mutex_);
            auto const found = free_.find(key);
            if (found != free_.end()) {
                Prepared ready = std::move(found->second);
                free_.erase(found);
                return ready;
            }
        }
        return prepared(p, dtype, device);
    }

    void give_back(Key key, Prepared ready) {
        constexpr std::size_t kMost = 1024;  // sizes may be dynamic
        std::lock_guard<std::mutex> const lock(mutex_);
        if (free_.size() >= kMost) free_.clear();
        free_.emplace(std::move(key), std::move(ready));
    }

private:
    std::mutex mutex_;
    std::multimap<Key, Prepared> free_;
};

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

    // Numbers of about 1 in float16 and 0.01 in bfloat16.
    void* allocate(std::size_t bytes) {
        void* memory = nullptr;
        if (cudaMalloc(&memory, bytes) != cudaSuccess) return nullptr;
        memory_.push_back(memory);
        cudaMemsetAsync(memory, 0x3c, bytes, stream_);
        return memory;
    }

    // The shortest of some rounds over the inputs, in milliseconds for each; a lot if a product fails.
    float time(Product const& product, std::vector<LinearParams> const& inputs, Lt::Algorithm const& algorithm) {
        constexpr int kRounds = 6;
        constexpr float kFailed = 1e9f;
        float best = kFailed;
        for (int round = 0; round < kRounds; ++round) {
            float ms = kFailed;
            cudaEventRecord(events_[0], stream_);
            for (LinearParams const& p : inputs)
                if (!product.run(p, algorithm, stream_)) return kFailed;
            cudaEventRecord(events_[1], stream_);
            if (cudaEventSynchronize(events_[1]) != cudaSuccess) return kFailed;
            cudaEventElapsedTime(&ms, events_[0], events_[1]);
            if (round > 0) best = std::min(best, ms / inputs.size());
        }
        return best;
    }

private:
    cudaStream_t stream_ = nullptr;
    cudaEvent_t events_[2] = {};
    std::vector<void*> memory_;
};

// As many inputs as it takes to find little of one in the cache again; none if there is no memory for them.
std::vector<LinearParams> inputs_like(LinearParams const& p, Bench& bench) {
    constexpr std::size_t kBytes = std::size_t{256} << 20, kFewest = 2, kMost = 16;
    std::size_t const rows = p.rows, inputs = p.inputs, outputs = p.outputs;
    std::size_t const bytes = 2 * (rows * inputs + inputs * outputs + (p.residual ? 2 : 1) * rows * outputs);
    std::size_t const count = std::min(kMost, std::max(kFewest, kBytes / bytes));
    void* const workspace = bench.allocate(p.workspace_bytes);
    std::vector<LinearParams> made;
    for (std::size_t i = 0; i < count; ++i) {
        LinearParams own = p;
        own.x = bench.allocate(2 * rows * inputs);
        own.weight = bench.allocate(2 * inputs * outputs);
        own.bias = bench.allocate(2 * outputs);
        own.residual = p.residual ? bench.allocate(2 * rows * outputs) : nullptr;
        own.output = bench.allocate(2 * rows * outputs);
        own.workspace = workspace;
        if (!workspace || !own.x || !own.weight || !own.bias || !own.output || (p.residual && !own.residual)) return {};
        made.push_back(own);
    }
    return made;
}

// Nothing if it cannot be measured now.
std::optional<std::string> measured(LinearParams const& p, DType dtype, int device) {
    Bench bench;
    std::vector<LinearParams> const inputs = inputs_like(p, bench);
    if (inputs.empty()) return std::nullopt;
    Product const product(inputs[0], dtype, device);
    std::vector<Lt::Algorithm> const proposals = product.proposals(inputs[0], kProposals);
    if (proposals.size() < 2) return "";
    std::vector<float> times;
    for (Lt::Algorithm const& algorithm : proposals) times.push_back(bench.time(product, inputs, algorithm));
    auto const best = std::min_element(times.begin(), times.end());
    if (*best > kWorthwhile * times.front()) return "";
    Tuned const tuned{cublaslt()->version(), proposals[best - times.begin()]};
    return std::string(reinterpret_cast<char const*>(&tuned), sizeof tuned);
}

}  // namespace

cudaError_t linear(LinearParams const& p, DType dtype, Device const& device, cudaStream_t stream) {
    static Pool& pool = *new Pool;  // never destroyed: threads may still run when the process ends
    if (linear_unsupported(p, dtype, device) || !are_aligned({p.x, p.weight, p.bias, p.residual, p.output}, 16) ||
        !are_aligned({p.workspace}, 256))
        return cudaErrorInvalidValue;
    int id = 0;
    cudaError_t const status = cudaGetDevice(&id);
    if (status != cudaSuccess) return status;
    Key key = key_of(p, dtype, id);
    Prepared ready = pool.take(key, p, dtype, id);
    if (ready.algorithms.empty()) return cudaErrorNotSupported;
    bool const launched = ready.product.run(p, ready.algorithms[0], stream);
    pool.give_back(std::move(key), std::move(ready));
    return launched ? cudaSuccess : cudaErrorUnknown;
}

std::string tune_linear(LinearParams const& p, DType dtype, Device const& device) {
    static std::mutex mutex;
    static std::map<Key, std::string> known;
    int id = 0;
    if (linear_unsupported(p, dtype, device) || cudaGetDevice(&id) != cudaSuccess) return {};
    // One at a time: two would disturb each other. A network has many products of one size.
    std::lock_guard<std::mutex> const lock(mutex);
    Key key = key_of(p, dtype, id);
    auto const found = known.find(key);
    if (found != known.end()) return found->second;
    std::optional<std::string> const best = measured(p, dtype, id);
    if (best) known.emplace(std::move(key), *best);
    return best.value_or("");
}

}  // namespace swinopt

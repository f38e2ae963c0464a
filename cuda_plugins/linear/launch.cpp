// y = act(x W + b) + r as one matrix product with all that follows in its epilogue: cuBLASLt's, or one of our own. In
// float32 a GELU is a kernel behind it.
#include "launch.h"

#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <utility>
#include <vector>

#include "gelu.h"
#include "product.h"

namespace swinopt {
namespace {

struct Prepared {
    Product product;
    std::vector<Lt::Algorithm> algorithms;  // one, or none
};

std::optional<Tuned> tuned_of(LinearParams const& p) {
    Tuned tuned;
    if (!p.tuned || p.tuned_bytes != sizeof tuned) return std::nullopt;
    std::memcpy(&tuned, p.tuned, sizeof tuned);
    return tuned;
}

Prepared prepared(LinearParams const& p, DType dtype, int device) {
    Product product(p, dtype, device);
    std::optional<Tuned> const tuned = tuned_of(p);
    if (tuned && tuned->version == cublaslt()->version() && product.can_run(tuned->algorithm, p.workspace_bytes))
        return {std::move(product), {tuned->algorithm}};
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

}  // namespace

cudaError_t linear(LinearParams const& asked, DType dtype, Device const& device, cudaStream_t stream) {
    LinearParams const p = as_possible(asked, device);
    static Pool& pool = *new Pool;  // never destroyed: threads may still run when the process ends
    if (linear_unsupported(p, dtype, device) || !are_aligned({p.x, p.weight, p.bias, p.residual, p.output}, 16) ||
        !are_aligned({p.workspace}, 256))
        return cudaErrorInvalidValue;
    std::optional<Tuned> const tuned = tuned_of(p);
    if (tuned && tuned->shape.columns) {
        if (hopper_linear(p, dtype, tuned->shape, device, stream) == cudaSuccess) return cudaSuccess;
        cudaGetLastError();  // cuBLASLt may be able to; what is beyond repair fails there, too
    }
    int id = 0;
    cudaError_t const status = cudaGetDevice(&id);
    if (status != cudaSuccess) return status;
    Key key = key_of(p, dtype, id);
    Prepared ready = pool.take(key, p, dtype, id);
    if (ready.algorithms.empty()) return cudaErrorNotSupported;
    bool const launched = ready.product.run(p, ready.algorithms[0], stream);
    pool.give_back(std::move(key), std::move(ready));
    if (!launched) return cudaErrorUnknown;
    bool const gelu_follows = p.gelu && dtype == DType::kFloat32;
    return gelu_follows ? gelu_in_place(static_cast<float*>(p.output), p.rows, p.outputs, device, stream) : cudaSuccess;
}

}  // namespace swinopt

// A product of cuBLASLt, and the algorithms that it knows for it: what linear() and tune_linear() have in common.
//
// cuBLASLt counts columns first, so a row-major [rows, n] is its n x rows: it is asked for y' = W' x', whose "rows" are
// the features that bias runs over. Sums are in float32, where TensorRT 8.6 takes sums in float16 if they are faster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "../common/types.h"
#include "cublaslt.h"
#include "hopper.h"
#include "params.h"

namespace swinopt {

using Lt = CublasLt;

// The bytes of LinearParams::tuned: the fastest algorithm, and the shape of our own kernel that is to be taken instead.
struct Tuned {
    std::uint64_t version;  // cuBLASLt's
    Lt::Algorithm algorithm;
    HopperShape shape;  // no columns: cuBLASLt's algorithm
    std::int32_t reserved;
};
static_assert(sizeof(Tuned) == 88, "no bytes between members: they are compared, and kept in engines");

// One for each GPU, for good: making one takes long, and several threads may use it.
inline Lt::Handle handle_of(int device) {
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
        bool const is_float = dtype == DType::kFloat32;
        cudaDataType_t const type = is_float ? CUDA_R_32F : dtype == DType::kFloat16 ? CUDA_R_16F : CUDA_R_16BF;
        int const compute = is_float && p.float32 == 2 ? Lt::kComputeTF32 : Lt::kCompute32F;
        // cuBLASLt's GELU is the tanh form, too far off for float32 (gelu.h).
        int const epilogue = p.gelu && !is_float ? Lt::kEpilogueGeluBias : Lt::kEpilogueBias;
        Lt::MatmulDesc desc = nullptr;
        if (!handle_ || lt_.desc_create(&desc, compute, CUDA_R_32F)) return;
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

    // Those that differ from `algorithm` in one setting, to one of `values`.
    std::vector<Lt::Algorithm> variants(Lt::Algorithm const& algorithm, Lt::Setting setting,
        std::vector<std::uint32_t> const& values, std::size_t workspace_bytes) const {
        std::vector<Lt::Algorithm> found;
        for (std::uint32_t const value : values) {
            std::uint16_t const small = static_cast<std::uint16_t>(value);
            bool const is_small = setting == Lt::kCluster;
            Lt::Algorithm other = algorithm;
            bool const can = !lt_.set(&other, setting, is_small ? static_cast<void const*>(&small) : &value,
                                 is_small ? sizeof small : sizeof value);
            if (can && !(other == algorithm) && can_run(other, workspace_bytes)) found.push_back(other);
        }
        return found;
    }

    // The tiles that a kind of algorithm knows.
    std::vector<std::uint32_t> tiles(Lt::Algorithm const& algorithm) const {
        std::vector<std::uint32_t> found(1024);
        std::size_t bytes = 0;
        if (lt_.capability(&algorithm, Lt::kTileIds, found.data(), found.size() * sizeof found[0], &bytes)) bytes = 0;
        found.resize(bytes / sizeof found[0]);
        return found;
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
using Key = std::tuple<int, DType, int, int, int, int, bool, bool, std::size_t, std::string>;

inline Key key_of(LinearParams const& p, DType dtype, int device) {
    std::string const tuned(static_cast<char const*>(p.tuned), p.tuned ? p.tuned_bytes : 0);
    return {device, dtype, p.float32, p.rows, p.inputs, p.outputs, p.gelu != 0, p.residual != nullptr,
        p.workspace_bytes, tuned};
}

}  // namespace swinopt

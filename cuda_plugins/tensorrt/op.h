// What a swinopt op is, said once and in no TensorRT's terms: the adapters for TensorRT's plugin interfaces are generic
// over it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "../common/launch.h"

namespace swinopt {

constexpr int kMaxInputs = 4, kMaxOutputs = 2, kMaxRank = 8;

// A dense row-major tensor. An absent input has no rank.
struct Tensor {
    int rank = -1;
    std::int64_t size[kMaxRank] = {};
    void* data = nullptr;

    bool present() const { return rank >= 0; }
};

// How many there are of what the last axis runs over.
inline std::int64_t rows_of(Tensor const& tensor) {
    std::int64_t rows = 1;
    for (int axis = 0; axis + 1 < tensor.rank; ++axis) rows *= tensor.size[axis];
    return rows;
}

// One use of an op, by position in its signature; all tensors have one type.
struct Call {
    DType dtype = DType::kFloat32;
    Tensor inputs[kMaxInputs];
    Tensor outputs[kMaxOutputs];
    void* workspace = nullptr;  // Op::workspace_bytes of it
    std::string_view tuned;     // what Op::tune gave for these shapes, if anything
};

enum class Kind { kInt, kInts, kFloat };

struct Attribute {
    char const* name;
    Kind kind;
    bool required;
    float fallback;  // the value where it is not required and not given
};

// The value of an attribute: `ints` for Kind::kInt (one) and Kind::kInts, `number` for Kind::kFloat.
struct Value {
    std::vector<std::int32_t> ints;
    float number = 0;
};

// In the order of Op::attributes.
using Values = std::vector<Value>;

// An axis of an output has ceil(size of an axis of an input * multiply / divide) elements.
struct Extent {
    int input;
    int axis;
    int multiply;
    int divide;
};

struct Op {
    char const* name;
    std::vector<Attribute> attributes;
    std::vector<char const*> inputs;
    int required_inputs;
    int outputs;

    // What is wrong with the attributes on their own; empty if nothing is.
    std::string (*check_values)(Values const& values);
    // How many axes input 0 has; 0: any number.
    int (*rank)(Values const& values);
    // Every output has as many axes as input 0, which has `rank` of them.
    Extent (*extent)(int axis, int rank);
    // What is wrong with the shapes of the inputs; empty if nothing is. Input 0 has the right rank, sizes are known.
    std::string (*check_shapes)(Values const& values, Call const& call);
    // Why there is no kernel for a call whose shapes are right, or null. Data is not read, null means absent.
    char const* (*unsupported)(Values const& values, Call const& call, Device const& device);
    cudaError_t (*launch)(Values const& values, Call const& call, Device const& device, cudaStream_t stream);

    // Whether there is a kernel for float32; null: always. For float16 and bfloat16 there always is.
    bool (*has_float32)(Values const& values) = nullptr;
    std::size_t workspace_bytes = 0;
    // What a call of these shapes is faster with on the current GPU, as bytes. Data is not read, null means absent.
    std::string (*tune)(Values const& values, Call const& call, Device const& device) = nullptr;
};

// Op::unsupported and Op::launch, where kParamsOf makes the argument of the kernels.
template <auto kParamsOf, auto kUnsupported>
char const* unsupported(Values const& values, Call const& call, Device const& device) {
    return kUnsupported(kParamsOf(values, call), call.dtype, device);
}

template <auto kParamsOf, auto kLaunch>
cudaError_t launch(Values const& values, Call const& call, Device const& device, cudaStream_t stream) {
    return kLaunch(kParamsOf(values, call), call.dtype, device, stream);
}

// Op::rank of ops for any number of axes.
inline int any_rank(Values const&) { return 0; }

// Op::attributes of the ops with a LayerNorm in them, and Op::check_values for these.
std::vector<Attribute> epsilon_alone();
std::string check_epsilon(Values const& values);

Op const& window_attention_op();
Op const& patch_merging_op();
Op const& add_layer_norm_op();
Op const& layer_norm_op();
Op const& linear_op();

// All ops that this library has kernels for.
std::vector<Op const*> const& all_ops();

char const* name_of(DType dtype);

// "[1, 56, 56, 384]"
template <class T>
std::string text(T const* sizes, int count) {
    std::string result = "[";
    for (int i = 0; i < count; ++i) result += (i ? ", " : "") + std::to_string(sizes[i]);
    return result + "]";
}

inline std::string text(Tensor const& tensor) { return text(tensor.size, tensor.rank); }

// Empty if `tensor` is absent or has this shape; else what it is and what it should be.
std::string expect_shape(char const* name, Tensor const& tensor, std::vector<std::int64_t> const& shape);

}  // namespace swinopt

#include "op.h"

#include <algorithm>

namespace swinopt {

std::vector<Op const*> const& all_ops() {
    static std::vector<Op const*> const ops{
        &window_attention_op(), &patch_merging_op(), &add_layer_norm_op(), &layer_norm_op(), &linear_op()};
    return ops;
}

std::vector<Attribute> epsilon_alone() { return {{"epsilon", Kind::kFloat, false, 1e-5f}}; }

std::string check_epsilon(Values const& values) {
    return values[0].number >= 0 ? "" : "epsilon is " + std::to_string(values[0].number);
}

char const* name_of(DType dtype) {
    switch (dtype) {
        case DType::kFloat16: return "float16";
        case DType::kBFloat16: return "bfloat16";
        default: return "float32";
    }
}

std::string expect_shape(char const* name, Tensor const& tensor, std::vector<std::int64_t> const& shape) {
    if (!tensor.present()) return "";
    if (tensor.rank == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), tensor.size)) return "";
    return std::string(name) + " is " + text(tensor) + " and should be " +
           text(shape.data(), static_cast<int>(shape.size()));
}

}  // namespace swinopt

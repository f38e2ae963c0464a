#include "../window_attention/launch.h"

#include <cmath>

#include "op.h"

namespace swinopt {
namespace {

enum { kWindowSize, kShiftSize, kNumHeads, kScale, kMaskValue, kRollFirst };
enum { kQkv, kBias, kLogitScale, kPadQkv };

std::string check_values(Values const& values) {
    std::vector<std::int32_t> const &window = values[kWindowSize].ints, &shift = values[kShiftSize].ints;
    std::string const given = "window_size is " + text(window.data(), static_cast<int>(window.size())) +
                              " and shift_size " + text(shift.data(), static_cast<int>(shift.size()));
    if (window.empty() || window.size() > 3) return given + "; a map has 1 to 3 spatial axes";
    if (window.size() != shift.size()) return given + "; each has one entry a spatial axis";
    for (std::size_t axis = 0; axis < window.size(); ++axis)
        if (window[axis] < 1 || shift[axis] < 0 || shift[axis] >= window[axis])
            return given + "; windows are positive and shifts lie in [0, window)";
    if (values[kNumHeads].ints[0] < 1) return "num_heads is " + std::to_string(values[kNumHeads].ints[0]);
    if (!std::isfinite(values[kScale].number)) return "scale is no finite number";
    return "";
}

int rank(Values const& values) { return 2 + static_cast<int>(values[kWindowSize].ints.size()); }

Extent extent(int axis, int rank) { return {kQkv, axis, 1, axis == rank - 1 ? 3 : 1}; }

std::string check_shapes(Values const& values, Call const& call) {
    std::int64_t const heads = values[kNumHeads].ints[0], channels = call.inputs[kQkv].size[call.inputs[kQkv].rank - 1];
    std::int64_t tokens = 1;
    for (std::int32_t const size : values[kWindowSize].ints) tokens *= size;
    if (channels % (3 * heads))
        return "qkv is " + text(call.inputs[kQkv]) + "; its last axis does not split into q, k and v of " +
               std::to_string(heads) + " heads";
    std::string problem = expect_shape("relative_position_bias", call.inputs[kBias], {heads, tokens, tokens});
    if (problem.empty()) problem = expect_shape("logit_scale", call.inputs[kLogitScale], {heads});
    if (problem.empty()) problem = expect_shape("pad_qkv", call.inputs[kPadQkv], {channels});
    return problem;
}

WindowAttentionParams params_of(Values const& values, Call const& call) {
    Tensor const& qkv = call.inputs[kQkv];
    std::vector<std::int32_t> const &window = values[kWindowSize].ints, &shift = values[kShiftSize].ints;
    WindowAttentionParams params{};
    params.qkv = qkv.data;
    params.relative_position_bias = call.inputs[kBias].data;
    params.logit_scale = call.inputs[kLogitScale].data;
    params.pad_qkv = call.inputs[kPadQkv].data;
    params.output = call.outputs[0].data;
    params.batch = static_cast<int>(qkv.size[0]);
    int const axes = static_cast<int>(window.size());
    for (int i = 0; i < 3; ++i) {
        int const axis = i - (3 - axes);
        params.size[i] = axis < 0 ? 1 : static_cast<int>(qkv.size[1 + axis]);
        params.window[i] = axis < 0 ? 1 : window[axis];
        params.shift[i] = axis < 0 ? 0 : shift[axis];
    }
    params.num_heads = values[kNumHeads].ints[0];
    params.head_dim = static_cast<int>(qkv.size[qkv.rank - 1] / (3 * params.num_heads));
    params.roll_first = values[kRollFirst].ints[0];
    params.scale = values[kScale].number;
    params.mask_value = values[kMaskValue].number;
    return params;
}

}  // namespace

Op const& window_attention_op() {
    static Op const op{
        "WindowAttention",
        {{"window_size", Kind::kInts, true, 0},
         {"shift_size", Kind::kInts, true, 0},
         {"num_heads", Kind::kInt, true, 0},
         {"scale", Kind::kFloat, true, 0},
         {"mask_value", Kind::kFloat, false, -100},
         {"roll_first", Kind::kInt, false, 0}},
        {"qkv", "relative_position_bias", "logit_scale", "pad_qkv"},
        2,
        1,
        check_values,
        rank,
        extent,
        check_shapes,
        unsupported<params_of, window_attention_unsupported>,
        launch<params_of, window_attention>,
    };
    return op;
}

}  // namespace swinopt

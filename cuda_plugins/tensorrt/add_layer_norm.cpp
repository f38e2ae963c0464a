#include "../add_layer_norm/launch.h"

#include <limits>

#include "op.h"

namespace swinopt {
namespace {

enum { kEpsilon };
enum { kA, kB, kGamma, kBeta };
enum { kSum, kNormalized };

Extent extent(int axis, int) { return {kA, axis, 1, 1}; }

std::string check_shapes(Values const&, Call const& call) {
    Tensor const& a = call.inputs[kA];
    if (rows_of(a) > std::numeric_limits<int>::max()) return "a is " + text(a) + "; it may have 2^31 - 1 rows";
    std::int64_t const channels = a.size[a.rank - 1];
    std::string problem = expect_shape("b", call.inputs[kB], {a.size, a.size + a.rank});
    if (problem.empty()) problem = expect_shape("gamma", call.inputs[kGamma], {channels});
    if (problem.empty()) problem = expect_shape("beta", call.inputs[kBeta], {channels});
    return problem;
}

AddLayerNormParams params_of(Values const& values, Call const& call) {
    Tensor const& a = call.inputs[kA];
    AddLayerNormParams params{};
    params.a = a.data;
    params.b = call.inputs[kB].data;
    params.gamma = call.inputs[kGamma].data;
    params.beta = call.inputs[kBeta].data;
    params.sum = call.outputs[kSum].data;
    params.normalized = call.outputs[kNormalized].data;
    params.rows = static_cast<int>(rows_of(a));
    params.channels = static_cast<int>(a.size[a.rank - 1]);
    params.epsilon = values[kEpsilon].number;
    return params;
}

}  // namespace

Op const& add_layer_norm_op() {
    static Op const op{
        "AddLayerNorm",
        epsilon_alone(),
        {"a", "b", "gamma", "beta"},
        4,
        2,
        check_epsilon,
        any_rank,
        extent,
        check_shapes,
        unsupported<params_of, add_layer_norm_unsupported>,
        launch<params_of, add_layer_norm>,
    };
    return op;
}

}  // namespace swinopt

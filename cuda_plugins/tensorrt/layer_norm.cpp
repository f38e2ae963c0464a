#include "../layer_norm/launch.h"

#include <limits>

#include "op.h"

namespace swinopt {
namespace {

enum { kEpsilon };
enum { kX, kGamma, kBeta, kResidual };

Extent extent(int axis, int) { return {kX, axis, 1, 1}; }

std::string check_shapes(Values const&, Call const& call) {
    Tensor const& x = call.inputs[kX];
    if (rows_of(x) > std::numeric_limits<int>::max()) return "x is " + text(x) + "; it may have 2^31 - 1 rows";
    std::int64_t const channels = x.size[x.rank - 1];
    std::string problem = expect_shape("gamma", call.inputs[kGamma], {channels});
    if (problem.empty()) problem = expect_shape("beta", call.inputs[kBeta], {channels});
    if (problem.empty()) problem = expect_shape("residual", call.inputs[kResidual], {x.size, x.size + x.rank});
    return problem;
}

LayerNormParams params_of(Values const& values, Call const& call) {
    Tensor const& x = call.inputs[kX];
    LayerNormParams params{};
    params.x = x.data;
    params.gamma = call.inputs[kGamma].data;
    params.beta = call.inputs[kBeta].data;
    params.residual = call.inputs[kResidual].data;
    params.output = call.outputs[0].data;
    params.rows = static_cast<int>(rows_of(x));
    params.channels = static_cast<int>(x.size[x.rank - 1]);
    params.epsilon = values[kEpsilon].number;
    return params;
}

}  // namespace

Op const& layer_norm_op() {
    static Op const op{
        "LayerNorm",
        epsilon_alone(),
        {"x", "gamma", "beta", "residual"},
        3,
        1,
        check_epsilon,
        any_rank,
        extent,
        check_shapes,
        unsupported<params_of, layer_norm_unsupported>,
        launch<params_of, layer_norm>,
    };
    return op;
}

}  // namespace swinopt

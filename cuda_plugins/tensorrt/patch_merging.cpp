#include "../patch_merging/launch.h"

#include "op.h"

namespace swinopt {
namespace {

enum { kEpsilon };
enum { kX, kGamma, kBeta };

int rank(Values const&) { return 4; }

Extent extent(int axis, int) {
    if (axis == 3) return {kX, axis, 4, 1};
    return {kX, axis, 1, axis == 0 ? 1 : 2};
}

std::string check_shapes(Values const&, Call const& call) {
    std::int64_t const channels = 4 * call.inputs[kX].size[3];
    std::string const problem = expect_shape("gamma", call.inputs[kGamma], {channels});
    return problem.empty() ? expect_shape("beta", call.inputs[kBeta], {channels}) : problem;
}

PatchMergingParams params_of(Values const& values, Call const& call) {
    PatchMergingParams params{};
    params.x = call.inputs[kX].data;
    params.gamma = call.inputs[kGamma].data;
    params.beta = call.inputs[kBeta].data;
    params.output = call.outputs[0].data;
    params.batch = static_cast<int>(call.inputs[kX].size[0]);
    params.height = static_cast<int>(call.inputs[kX].size[1]);
    params.width = static_cast<int>(call.inputs[kX].size[2]);
    params.channels = static_cast<int>(call.inputs[kX].size[3]);
    params.epsilon = values[kEpsilon].number;
    return params;
}

}  // namespace

Op const& patch_merging_op() {
    static Op const op{
        "PatchMerging",
        epsilon_alone(),
        {"x", "gamma", "beta"},
        3,
        1,
        check_epsilon,
        rank,
        extent,
        check_shapes,
        unsupported<params_of, patch_merging_unsupported>,
        launch<params_of, patch_merging>,
    };
    return op;
}

}  // namespace swinopt

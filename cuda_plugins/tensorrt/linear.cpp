#include "../linear/launch.h"

#include <limits>

#include "log.h"
#include "op.h"

namespace swinopt {
namespace {

enum { kGelu, kFloat32 };
enum { kX, kWeight, kBias, kResidual };

constexpr std::size_t kAlignment = 256;  // of the workspace

std::string check_values(Values const& values) {
    std::int32_t const gelu = values[kGelu].ints[0], float32 = values[kFloat32].ints[0];
    if (gelu < 0 || gelu > 1) return "gelu is " + std::to_string(gelu) + "; it is 0 or 1";
    if (float32 < 0 || float32 > 2) return "float32 is " + std::to_string(float32) + "; it is 0, 1 or 2";
    return "";
}

bool has_float32(Values const& values) { return values[kFloat32].ints[0] != 0; }

Extent extent(int axis, int rank) {
    if (axis == rank - 1) return {kWeight, 1, 1, 1};
    return {kX, axis, 1, 1};
}

std::string check_shapes(Values const&, Call const& call) {
    Tensor const &x = call.inputs[kX], &weight = call.inputs[kWeight];
    if (rows_of(x) > std::numeric_limits<int>::max()) return "x is " + text(x) + "; it may have 2^31 - 1 rows";
    std::int64_t const inputs = x.size[x.rank - 1];
    if (weight.rank != 2 || weight.size[0] != inputs)
        return "weight is " + text(weight) + " and should be [" + std::to_string(inputs) + ", outputs]";
    std::string const problem = expect_shape("bias", call.inputs[kBias], {weight.size[1]});
    if (!problem.empty()) return problem;
    std::vector<std::int64_t> shape(x.size, x.size + x.rank);
    shape.back() = weight.size[1];
    return expect_shape("residual", call.inputs[kResidual], shape);
}

LinearParams params_of(Values const& values, Call const& call) {
    Tensor const& weight = call.inputs[kWeight];
    LinearParams params{};
    params.x = call.inputs[kX].data;
    params.weight = weight.data;
    params.bias = call.inputs[kBias].data;
    params.residual = call.inputs[kResidual].data;
    params.output = call.outputs[0].data;
    // TensorRT promises nothing of its alignment.
    auto const workspace = reinterpret_cast<std::uintptr_t>(call.workspace);
    params.workspace = reinterpret_cast<void*>((workspace + kAlignment - 1) / kAlignment * kAlignment);
    params.workspace_bytes = kLinearWorkspace;
    params.rows = static_cast<int>(rows_of(call.inputs[kX]));
    params.inputs = static_cast<int>(weight.size[0]);
    params.outputs = static_cast<int>(weight.size[1]);
    params.gelu = values[kGelu].ints[0];
    params.float32 = values[kFloat32].ints[0];
    params.tuned = call.tuned.data();
    params.tuned_bytes = call.tuned.size();
    return params;
}

cudaError_t launch_linear(Values const& values, Call const& call, Device const& device, cudaStream_t stream) {
    LinearParams const params = params_of(values, call);
    cudaError_t const status = linear(params, call.dtype, device, stream);
    bool const fails = status == cudaErrorUnknown;
    if (fails || status == cudaErrorNotSupported)
        log_error("cuBLASLt " + std::to_string(cublaslt()->version()) +
                  (fails ? " fails at " : " has no algorithm for ") + std::to_string(params.rows) + " rows times [" +
                  std::to_string(params.inputs) + ", " +
                  std::to_string(params.outputs) + "] in " + name_of(call.dtype));
    return status;
}

std::string tune(Values const& values, Call const& call, Device const& device) {
    return tune_linear(params_of(values, call), call.dtype, device);
}

}  // namespace

Op const& linear_op() {
    static Op const op{
        "Linear",
        {{"gelu", Kind::kInt, false, 0}, {"float32", Kind::kInt, false, 0}},
        {"x", "weight", "bias", "residual"},
        3,
        1,
        check_values,
        any_rank,
        extent,
        check_shapes,
        unsupported<params_of, linear_unsupported>,
        launch_linear,
        has_float32,
        /*workspace_bytes=*/kLinearWorkspace + kAlignment,
        tune,
    };
    return op;
}

}  // namespace swinopt

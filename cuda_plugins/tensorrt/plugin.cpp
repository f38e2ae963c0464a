#include "plugin.h"

#include <limits>
#include <utility>

#include "log.h"

namespace swinopt {
namespace {

using nvinfer1::DataType;
using nvinfer1::PluginFieldType;

std::optional<DType> dtype_of(DataType type) {
    switch (type) {
        case DataType::kFLOAT: return DType::kFloat32;
        case DataType::kHALF: return DType::kFloat16;
#if NV_TENSORRT_MAJOR != 8
        case DataType::kBF16: return DType::kBFloat16;
#endif
        default: return std::nullopt;
    }
}

// False without a GPU. A process seldom changes its device, and asking takes longer than launching.
bool find_device(Device& device) {
    thread_local int known = -1;
    thread_local Device remembered;
    int id = -1;
    bool ok = cudaGetDevice(&id) == cudaSuccess;
    if (ok && id != known) {
        ok = current_device(remembered) == cudaSuccess;
        known = ok ? id : -1;
    }
    if (!ok) cudaGetLastError();
    device = remembered;
    return ok;
}

Tensor tensor_of(nvinfer1::Dims const& dims) {
    Tensor tensor;
    tensor.rank = dims.nbDims;
    for (int axis = 0; axis < dims.nbDims && axis < kMaxRank; ++axis) tensor.size[axis] = dims.d[axis];
    return tensor;
}

std::string count_problem(State const& state, int count) {
    std::string names;
    for (char const* name : state.op().inputs) names += (names.empty() ? "" : ", ") + std::string(name);
    return std::to_string(count) + " inputs were given. The op has " + names + ", of which " +
           std::to_string(state.op().required_inputs) + " are required; the field " + State::kInputsPresent +
           " tells which ones are there";
}

void refuse(State const& state, std::string const& reason) {
    log_error("swinopt::" + std::string(state.op().name) + ": " + reason + " [" + state.text() + "]");
}

// What is wrong with a first input of so many axes; empty if nothing is.
std::string rank_problem(State const& state, int rank) {
    int const expected = state.op().rank(state.values());
    if (rank >= 1 && (rank == expected || !expected)) return "";
    return std::string(state.op().inputs[0]) + " has " + std::to_string(rank) + " axes and should have " +
           (expected ? std::to_string(expected) : "at least one");
}

std::string shape_problem(State const& state, Call const& call) {
    Op const& op = state.op();
    Tensor const& first = call.inputs[0];
    std::string const problem = rank_problem(state, first.rank);
    if (!problem.empty()) return problem;
    for (int axis = 0; axis < first.rank; ++axis)
        if (first.size[axis] > std::numeric_limits<std::int32_t>::max() / 4)
            return std::string(op.inputs[0]) + " is " + text(first) + "; an axis may have 2^29 elements";
    return op.check_shapes(state.values(), call);
}

// A call before there is data.
Call call_of(std::vector<int> const& positions, std::vector<Described> const& inputs, DType dtype) {
    // Whether data is null matters, and to cuBLASLt how it is aligned.
    alignas(256) static char there;
    Call call;
    call.dtype = dtype;
    for (std::size_t i = 0; i < positions.size(); ++i) {
        if (positions[i] < 0) continue;
        call.inputs[i] = tensor_of(inputs[positions[i]].dims);
        call.inputs[i].data = &there;
    }
    return call;
}

}  // namespace

Fields::Fields(Op const& op) {
    for (Attribute const& attribute : op.attributes)
        fields_.emplace_back(attribute.name, nullptr,
            attribute.kind == Kind::kFloat ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1);
    fields_.emplace_back(State::kInputsPresent, nullptr, PluginFieldType::kINT32, static_cast<int>(op.inputs.size()));
    collection_ = {static_cast<int>(fields_.size()), fields_.data()};
}

std::optional<State> state_from_fields(Op const& op, nvinfer1::PluginFieldCollection const* fields) {
    State state(op);
    for (int i = 0; fields && i < fields->nbFields; ++i) {
        nvinfer1::PluginField const& field = fields->fields[i];
        bool taken = false;
        if (field.type == PluginFieldType::kINT32 && field.length >= 0) {
            auto const* first = static_cast<std::int32_t const*>(field.data);
            taken = state.set_ints(field.name, {first, first + (first ? field.length : 0)});
        } else if (field.type == PluginFieldType::kFLOAT32 && field.length == 1 && field.data) {
            taken = state.set_number(field.name, *static_cast<float const*>(field.data));
        }
        if (!taken) {
            log_error(std::string("swinopt::") + op.name + " takes no field '" + field.name + "' of type " +
                      std::to_string(static_cast<int>(field.type)) + " and length " + std::to_string(field.length) +
                      "; ints have type int32, numbers float32");
            return std::nullopt;
        }
    }
    std::string const problem = state.complete();
    if (problem.empty()) return state;
    refuse(state, problem);
    return std::nullopt;
}

std::optional<State> state_from_bytes(Op const& op, void const* data, std::size_t size) {
    std::string problem;
    std::optional<State> state = State::read(op, data, size, problem);
    if (!state) log_error(std::string("swinopt::") + op.name + ": " + problem);
    return state;
}

std::optional<nvinfer1::DimsExprs> output_shape(
    State const& state, nvinfer1::DimsExprs const* inputs, int count, nvinfer1::IExprBuilder& builder) {
    std::string const problem = state.positions(count).empty() ? count_problem(state, count)
                                                                : rank_problem(state, inputs[0].nbDims);
    if (!problem.empty()) {
        refuse(state, problem);
        return std::nullopt;
    }
    nvinfer1::DimsExprs shape = inputs[0];
    for (int axis = 0; axis < shape.nbDims; ++axis) {
        // Required inputs come first, so a place among those that are there is a place in the op.
        auto const [input, from, multiply, divide] = state.op().extent(axis, shape.nbDims);
        if (from >= inputs[input].nbDims) {
            refuse(state, std::string(state.op().inputs[input]) + " has " + std::to_string(inputs[input].nbDims) +
                              " axes, too few");
            return std::nullopt;
        }
        shape.d[axis] = inputs[input].d[from];
        if (multiply != 1)
            shape.d[axis] =
                builder.operation(nvinfer1::DimensionOperation::kPROD, *shape.d[axis], *builder.constant(multiply));
        if (divide != 1)
            shape.d[axis] =
                builder.operation(nvinfer1::DimensionOperation::kCEIL_DIV, *shape.d[axis], *builder.constant(divide));
    }
    return shape;
}

bool supports(State const& state, nvinfer1::PluginTensorDesc const& tensor, DataType first) {
    if (tensor.format != nvinfer1::TensorFormat::kLINEAR || tensor.type != first) return false;
    std::optional<DType> const dtype = dtype_of(first);
    Device device;
    // Without a word: TensorRT asks for every type that it knows.
    if (!dtype) return false;
    auto const has_float32 = state.op().has_float32;
    if (*dtype == DType::kFloat32) return !has_float32 || has_float32(state.values());
    return *dtype != DType::kBFloat16 || !find_device(device) || device.capability >= 80;
}

bool check(State const& state, std::vector<Described> const& inputs) {
    std::vector<int> const positions = state.positions(static_cast<int>(inputs.size()));
    if (positions.empty()) {
        refuse(state, count_problem(state, static_cast<int>(inputs.size())));
        return false;
    }
    std::optional<DType> const dtype = dtype_of(inputs[0].type);
    if (!dtype) {
        refuse(state, "tensors are float32, float16 or bfloat16");
        return false;
    }
    for (Described const& input : inputs)
        for (int axis = 0; axis < input.dims.nbDims; ++axis)
            if (input.dims.d[axis] < 0) return true;
    Call const call = call_of(positions, inputs, *dtype);
    std::string problem = shape_problem(state, call);
    Device device;
    bool const found = find_device(device);
    if (!found) device.capability = std::numeric_limits<int>::max();
    if (problem.empty())
        if (char const* reason = state.op().unsupported(state.values(), call, device)) {
            problem = std::string(reason) + " (asked for: " + name_of(*dtype) + " " + state.op().inputs[0] + " " +
                      text(call.inputs[0]);
            if (found) problem += " on compute capability " + std::to_string(device.capability / 10) + "." +
                                  std::to_string(device.capability % 10);
            problem += ")";
        }
    if (problem.empty()) return true;
    refuse(state, problem);
    return false;
}

bool configure(State& state, nvinfer1::DynamicPluginTensorDesc const* inputs, int count) {
    state.settle(count);
    // TensorRT 8 asks a plugin that it has read from an engine, too, for every shape that comes.
    if (state.is_new()) state.tuned.clear();
    bool batch_is_open = false;
    std::vector<Described> known, least, most;
    for (int i = 0; i < count; ++i) {
        nvinfer1::PluginTensorDesc const& desc = inputs[i].desc;
        for (int axis = 0; axis < desc.dims.nbDims; ++axis) {
            if (desc.dims.d[axis] >= 0) continue;
            if (axis > 0) return true;
            batch_is_open = true;
        }
        known.push_back({desc.dims, desc.type});
        least.push_back({inputs[i].min, desc.type});
        most.push_back({inputs[i].max, desc.type});
    }
    if (batch_is_open) return check(state, least) && check(state, most);
    if (!check(state, known)) return false;
    Device device;
    if (state.op().tune && state.is_new() && find_device(device)) {
        Call const call = call_of(state.positions(count), known, *dtype_of(known[0].type));
        state.tuned = state.op().tune(state.values(), call, device);
    }
    return true;
}

int enqueue(State const& state, nvinfer1::PluginTensorDesc const* input_descs,
    nvinfer1::PluginTensorDesc const* output_descs, void const* const* inputs, void* const* outputs, void* workspace,
    cudaStream_t stream) {
    std::vector<int> const positions = state.positions(state.input_count());
    if (positions.empty()) {
        refuse(state, count_problem(state, state.input_count()));
        return -1;
    }
    Call call;
    call.dtype = dtype_of(input_descs[0].type).value_or(DType::kFloat32);
    for (std::size_t i = 0; i < positions.size(); ++i) {
        if (positions[i] < 0) continue;
        call.inputs[i] = tensor_of(input_descs[positions[i]].dims);
        call.inputs[i].data = const_cast<void*>(inputs[positions[i]]);
    }
    for (int i = 0; i < state.op().outputs; ++i) {
        call.outputs[i] = tensor_of(output_descs[i].dims);
        call.outputs[i].data = outputs[i];
    }
    call.workspace = workspace;
    call.tuned = state.tuned;
    Device device;
    cudaError_t const status = find_device(device) ? state.op().launch(state.values(), call, device, stream)
                                                   : cudaErrorNoDevice;
    if (status == cudaSuccess) return 0;
    refuse(state, std::string("the kernel was not launched: ") + cudaGetErrorString(status));
    return -1;
}

}  // namespace swinopt

// What the adapters for TensorRT's plugin interfaces have in common: fields, shapes, types, checks and the launch.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "state.h"

// 1: plugins are IPluginV2DynamicExt, of TensorRT 8 and 9. 0: they are IPluginV3, of TensorRT 10 and newer and of
// TensorRT-RTX, whose own version starts at 1.
#if NV_TENSORRT_MAJOR == 8 || NV_TENSORRT_MAJOR == 9
#define SWINOPT_PLUGIN_V2 1
#else
#define SWINOPT_PLUGIN_V2 0
#endif

namespace swinopt {

constexpr char const* kPluginVersion = "1";
constexpr char const* kPluginNamespace = "swinopt";

#if SWINOPT_PLUGIN_V2
using Creator = nvinfer1::IPluginCreator;
#else
using Creator = nvinfer1::IPluginCreatorInterface;
#endif

// One creator an op. They are never destroyed: a registry may ask for them until the process ends.
std::vector<Creator*> const& creators();

// The fields of an op: its attributes, and State::kInputsPresent.
class Fields {
public:
    explicit Fields(Op const& op);
    nvinfer1::PluginFieldCollection const* collection() const { return &collection_; }

private:
    std::vector<nvinfer1::PluginField> fields_;
    nvinfer1::PluginFieldCollection collection_;
};

// Nothing, with the reason logged as an error, if a field is unknown, missing or wrong.
std::optional<State> state_from_fields(Op const& op, nvinfer1::PluginFieldCollection const* fields);

// Nothing, with the reason logged as an error, if the bytes are not those of State::write().
std::optional<State> state_from_bytes(Op const& op, void const* data, std::size_t size);

// The shape of every output. Nothing, with the reason logged as an error, if the inputs are too many, too few, or have
// the wrong rank.
std::optional<nvinfer1::DimsExprs> output_shape(
    State const& state, nvinfer1::DimsExprs const* inputs, int count, nvinfer1::IExprBuilder& builder);

// Whether a tensor may have this type and format where input 0 has type `first`: linear, all of one type, float16, or
// float32 if the op has it, or bfloat16 if this TensorRT and the GPU have it.
bool supports(State const& state, nvinfer1::PluginTensorDesc const& tensor, nvinfer1::DataType first);

// What check() has to know of a tensor.
struct Described {
    nvinfer1::Dims dims;
    nvinfer1::DataType type;
};

// Whether the kernels can compute this on the current GPU; if not, the reason is logged as an error. Without a GPU, as
// when an engine is built for another machine, this is about the newest GPU; with a dimension that is not known yet
// (-1), the answer is yes.
bool check(State const& state, std::vector<Described> const& inputs);

// check() of what configurePlugin is told; settles the state and, where all sizes are known, tunes it. A batch that is
// open is checked at both ends of the profile. Where another size is open the answer is yes: TensorRT bounds each size
// of an intermediate tensor by itself, and taken together, bounds of height and width may be no shape that ever comes.
// Those that do come are checked then.
bool configure(State& state, nvinfer1::DynamicPluginTensorDesc const* inputs, int count);

// For a settled state. Returns 0, or -1 with the reason logged as an error.
int enqueue(State const& state, nvinfer1::PluginTensorDesc const* input_descs,
    nvinfer1::PluginTensorDesc const* output_descs, void const* const* inputs, void* const* outputs, void* workspace,
    cudaStream_t stream);

}  // namespace swinopt

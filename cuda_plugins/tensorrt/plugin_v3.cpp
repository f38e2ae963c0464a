// The adapter for TensorRT 10 and newer, and for TensorRT-RTX.
#include "plugin.h"

#if !SWINOPT_PLUGIN_V2

namespace swinopt {
namespace {

using namespace nvinfer1;

// The one field that is serialized; it holds the bytes of State::write().
constexpr char const* kStateField = "state";

class PluginV3 final : public IPluginV3,
                       public IPluginV3OneCore,
                       public IPluginV3OneBuild,
                       public IPluginV3OneRuntime {
public:
    explicit PluginV3(State state) : state_(std::move(state)), text_(state_.text()) {}

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
        switch (type) {
            case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
            case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
            case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override { return new PluginV3(state_); }

    char const* getPluginName() const noexcept override { return state_.op().name; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

    int32_t getNbOutputs() const noexcept override { return state_.op().outputs; }

    int32_t getOutputDataTypes(
        DataType* outputs, int32_t output_count, DataType const* inputs, int32_t) const noexcept override {
        for (int i = 0; i < output_count; ++i) outputs[i] = inputs[0];
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t input_count, DimsExprs const*, int32_t, DimsExprs* outputs,
        int32_t output_count, IExprBuilder& builder) noexcept override {
        state_.settle(input_count);
        std::optional<DimsExprs> const shape = output_shape(state_, inputs, input_count, builder);
        for (int i = 0; shape && i < output_count; ++i) outputs[i] = *shape;
        return shape ? 0 : -1;
    }

    bool supportsFormatCombination(
        int32_t position, DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
        return supports(state_, tensors[position].desc, tensors[0].desc.type);
    }

    int32_t configurePlugin(
        DynamicPluginTensorDesc const* in, int32_t count, DynamicPluginTensorDesc const*, int32_t) noexcept override {
        return configure(state_, in, count) ? 0 : -1;
    }

    int32_t onShapeChange(
        PluginTensorDesc const* in, int32_t count, PluginTensorDesc const*, int32_t) noexcept override {
        state_.settle(count);
        std::vector<Described> inputs;
        for (int i = 0; i < count; ++i) inputs.push_back({in[i].dims, in[i].type});
        return check(state_, inputs) ? 0 : -1;
    }

    int32_t enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const* output_descs,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        return swinopt::enqueue(state_, input_descs, output_descs, inputs, outputs, workspace, stream);
    }

    std::size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
        int32_t) const noexcept override {
        return state_.op().workspace_bytes;
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override {
        bytes_ = state_.write();
        field_ = PluginField(kStateField, bytes_.data(), PluginFieldType::kUNKNOWN, static_cast<int>(bytes_.size()));
        fields_ = {1, &field_};
        return &fields_;
    }

    char const* getTimingCacheID() noexcept override { return text_.c_str(); }
    char const* getMetadataString() noexcept override { return text_.c_str(); }

private:
    State state_;
    std::string text_;
    std::string bytes_;
    PluginField field_;
    PluginFieldCollection fields_;
};

class CreatorV3 final : public IPluginCreatorV3One {
public:
    explicit CreatorV3(Op const& op) : op_(op), fields_(op) {}

    IPluginV3* createPlugin(
        char const*, PluginFieldCollection const* fields, TensorRTPhase phase) noexcept override {
        std::optional<State> state;
        if (phase == TensorRTPhase::kBUILD) {
            state = state_from_fields(op_, fields);
        } else {
            PluginField none;
            PluginField const& field = fields && fields->nbFields == 1 ? fields->fields[0] : none;
            state = state_from_bytes(op_, field.data, static_cast<std::size_t>(field.length));
        }
        return state ? new PluginV3(std::move(*state)) : nullptr;
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return fields_.collection(); }
    char const* getPluginName() const noexcept override { return op_.name; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    char const* getPluginNamespace() const noexcept override { return kPluginNamespace; }

private:
    Op const& op_;
    Fields fields_;
};

}  // namespace

std::vector<Creator*> const& creators() {
    static std::vector<Creator*> const all = [] {
        std::vector<Creator*> made;
        for (Op const* op : all_ops()) made.push_back(new CreatorV3(*op));
        return made;
    }();
    return all;
}

}  // namespace swinopt

#endif  // !SWINOPT_PLUGIN_V2

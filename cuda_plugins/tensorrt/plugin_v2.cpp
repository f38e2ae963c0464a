// The adapter for TensorRT 8 and 9.
#include "plugin.h"

#if SWINOPT_PLUGIN_V2

#include <cstring>

namespace swinopt {
namespace {

using namespace nvinfer1;

class PluginV2 final : public IPluginV2DynamicExt {
public:
    explicit PluginV2(State state) : state_(std::move(state)) {}

    char const* getPluginType() const noexcept override { return state_.op().name; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

    int32_t getNbOutputs() const noexcept override { return state_.op().outputs; }

    DataType getOutputDataType(int32_t, DataType const* inputs, int32_t) const noexcept override { return inputs[0]; }

    DimsExprs getOutputDimensions(
        int32_t, DimsExprs const* inputs, int32_t count, IExprBuilder& builder) noexcept override {
        state_.settle(count);
        DimsExprs wrong{};
        wrong.nbDims = -1;
        return output_shape(state_, inputs, count, builder).value_or(wrong);
    }

    bool supportsFormatCombination(
        int32_t position, PluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
        return supports(state_, tensors[position], tensors[0].type);
    }

    // Cannot fail in this interface: initialize() and enqueue() do, after the reason has been logged here. Called again
    // for every shape that comes.
    void configurePlugin(
        DynamicPluginTensorDesc const* in, int32_t count, DynamicPluginTensorDesc const*, int32_t) noexcept override {
        refused_ = !configure(state_, in, count);
    }

    int32_t initialize() noexcept override { return refused_ ? -1 : 0; }
    void terminate() noexcept override {}

    std::size_t getWorkspaceSize(
        PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) const noexcept override {
        return state_.op().workspace_bytes;
    }

    int32_t enqueue(PluginTensorDesc const* input_descs, PluginTensorDesc const* output_descs,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept override {
        if (refused_) return -1;
        return swinopt::enqueue(state_, input_descs, output_descs, inputs, outputs, workspace, stream);
    }

    std::size_t getSerializationSize() const noexcept override { return state_.write().size(); }

    void serialize(void* buffer) const noexcept override {
        std::string const bytes = state_.write();
        std::memcpy(buffer, bytes.data(), bytes.size());
    }

    IPluginV2DynamicExt* clone() const noexcept override { return new PluginV2(*this); }
    void destroy() noexcept override { delete this; }

private:
    State state_;
    std::string namespace_ = kPluginNamespace;
    bool refused_ = false;
};

class CreatorV2 final : public IPluginCreator {
public:
    explicit CreatorV2(Op const& op) : op_(op), fields_(op) {}

    IPluginV2* createPlugin(char const*, PluginFieldCollection const* fields) noexcept override {
        return made(state_from_fields(op_, fields));
    }

    IPluginV2* deserializePlugin(char const*, void const* data, std::size_t size) noexcept override {
        return made(state_from_bytes(op_, data, size));
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return fields_.collection(); }
    char const* getPluginName() const noexcept override { return op_.name; }
    char const* getPluginVersion() const noexcept override { return kPluginVersion; }
    void setPluginNamespace(char const* name) noexcept override { namespace_ = name; }
    char const* getPluginNamespace() const noexcept override { return namespace_.c_str(); }

private:
    IPluginV2* made(std::optional<State> state) const {
        if (!state) return nullptr;
        auto* plugin = new PluginV2(std::move(*state));
        plugin->setPluginNamespace(namespace_.c_str());
        return plugin;
    }

    Op const& op_;
    Fields fields_;
    std::string namespace_ = kPluginNamespace;
};

}  // namespace

std::vector<Creator*> const& creators() {
    static std::vector<Creator*> const all = [] {
        std::vector<Creator*> made;
        for (Op const* op : all_ops()) made.push_back(new CreatorV2(*op));
        return made;
    }();
    return all;
}

}  // namespace swinopt

#endif  // SWINOPT_PLUGIN_V2

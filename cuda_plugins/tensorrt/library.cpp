// What happens when the library is loaded, and what it exports.
#include "plugin.h"

#include <exception>

#include "../add_layer_norm/launch.h"
#include "../layer_norm/launch.h"
#include "../linear/hopper.h"
#include "../linear/launch.h"
#include "../patch_merging/launch.h"
#include "../window_attention/launch.h"
#include "loaded.h"

#define SWINOPT_EXPORT extern "C" __attribute__((visibility("default")))

namespace swinopt {
namespace {

constexpr int kMajor = interface_major(static_cast<int>(NV_TENSORRT_VERSION));

bool is_mine(nvinfer1::IPluginRegistry& registry, Creator& creator, char const* name) {
#if SWINOPT_PLUGIN_V2
    return registry.getPluginCreator(name, kPluginVersion, kPluginNamespace) == &creator;
#else
    return registry.getCreator(name, kPluginVersion, kPluginNamespace) == &creator;
#endif
}

// Registers every op with every TensorRT in the process that has the interfaces this library was compiled for, and
// takes them back before the library goes.
class Registration {
public:
    Registration() noexcept {
        try {
            std::vector<Loaded> const tensorrts = loaded_tensorrts();
            for (Loaded const& tensorrt : tensorrts) add(tensorrt);
            if (tensorrts.empty())
                status_ = "no TensorRT is loaded in this process; load it first, and this library then";
        } catch (std::exception const& error) {
            status_ = error.what();
        }
        if (!registries_.empty()) status_ = "ok";
    }

    ~Registration() { withdraw(); }

    // IPluginRegistry::loadLibrary registers what getCreators returns, and fails for what is registered already.
    void withdraw() noexcept {
        for (nvinfer1::IPluginRegistry* registry : registries_)
            for (Creator* creator : creators()) registry->deregisterCreator(*creator);
        registries_.clear();
    }

    bool compatible() const { return compatible_; }
    char const* status() const { return status_.c_str(); }

private:
    void add(Loaded const& tensorrt) {
        if (interface_major(tensorrt.version) != kMajor) {
            status_ += (status_.empty() ? "" : "; ") + std::string("this library was built for TensorRT ") +
                       std::to_string(kMajor) + ", and " + version_text(tensorrt.version) +
                       " is loaded; build it against the headers of that one (swinopt build-plugins --tensorrt-root)";
            return;
        }
        compatible_ = true;
        nvinfer1::IPluginRegistry* const registry = tensorrt.registry();
        if (!registry) return;
        for (std::size_t i = 0; i < creators().size(); ++i) {
            registry->registerCreator(*creators()[i], kPluginNamespace);
            if (is_mine(*registry, *creators()[i], all_ops()[i]->name)) continue;
            status_ += (status_.empty() ? "" : "; ") + version_text(tensorrt.version) + " has another plugin " +
                       kPluginNamespace + "::" + all_ops()[i]->name + ", version " + kPluginVersion +
                       "; register one of them only";
            for (std::size_t j = 0; j < i; ++j) registry->deregisterCreator(*creators()[j]);
            return;
        }
        pin(tensorrt.path);  // ~Registration calls into it
        registries_.push_back(registry);
    }

    std::vector<nvinfer1::IPluginRegistry*> registries_;
    std::string status_;
    bool compatible_ = false;
};

Registration registration;

template <class Params, class Launch>
int launch_on_current_device(Params const* params, int dtype, void* stream, Launch launch) {
    if (dtype < static_cast<int>(DType::kFloat32) || dtype > static_cast<int>(DType::kBFloat16))
        return cudaErrorInvalidValue;
    Device device;
    cudaError_t const status = current_device(device);
    if (status != cudaSuccess) return status;
    return launch(*params, static_cast<DType>(dtype), device, static_cast<cudaStream_t>(stream));
}

}  // namespace
}  // namespace swinopt

// "ok": the plugins are registered. Anything else is the reason why they are not.
SWINOPT_EXPORT char const* swinopt_plugins_status() { return swinopt::registration.status(); }

// The TensorRT major whose headers this library was compiled with.
SWINOPT_EXPORT int swinopt_plugins_tensorrt_major() { return swinopt::kMajor; }

// The kernels, for programs that do not use TensorRT: `dtype` is a swinopt::DType, the result a cudaError_t. On Hopper they
// overlap with what is enqueued before and after them, so that what params.h calls constant has to be one.
SWINOPT_EXPORT int swinopt_window_attention(swinopt::WindowAttentionParams const* params, int dtype, void* stream) {
    return swinopt::launch_on_current_device(params, dtype, stream, swinopt::window_attention);
}

SWINOPT_EXPORT int swinopt_patch_merging(swinopt::PatchMergingParams const* params, int dtype, void* stream) {
    return swinopt::launch_on_current_device(params, dtype, stream, swinopt::patch_merging);
}

SWINOPT_EXPORT int swinopt_add_layer_norm(swinopt::AddLayerNormParams const* params, int dtype, void* stream) {
    return swinopt::launch_on_current_device(params, dtype, stream, swinopt::add_layer_norm);
}

SWINOPT_EXPORT int swinopt_layer_norm(swinopt::LayerNormParams const* params, int dtype, void* stream) {
    return swinopt::launch_on_current_device(params, dtype, stream, swinopt::layer_norm);
}

SWINOPT_EXPORT int swinopt_linear(swinopt::LinearParams const* params, int dtype, void* stream) {
    return swinopt::launch_on_current_device(params, dtype, stream, swinopt::linear);
}

// A linear by our own kernel for Hopper alone, in this shape; an error where it cannot run.
SWINOPT_EXPORT int swinopt_hopper_linear(
    swinopt::LinearParams const* params, int dtype, swinopt::HopperShape const* shape, void* stream) {
    auto const launch = [shape](swinopt::LinearParams const& p, swinopt::DType type, swinopt::Device const& device,
                            cudaStream_t on) { return swinopt::hopper_linear(p, type, *shape, device, on); };
    return swinopt::launch_on_current_device(params, dtype, stream, launch);
}

// What tune_linear() measures on the current device, for LinearParams::tuned: at most `size` bytes into `tuned`.
// Returns how many; 0 if there is nothing to tell, or too little room.
SWINOPT_EXPORT std::size_t swinopt_tune_linear(
    swinopt::LinearParams const* params, int dtype, char* tuned, std::size_t size) {
    std::string found;
    auto const tune = [&found](swinopt::LinearParams const& p, swinopt::DType type, swinopt::Device const& device,
                          cudaStream_t) {
        found = swinopt::tune_linear(p, type, device);
        return cudaSuccess;
    };
    if (swinopt::launch_on_current_device(params, dtype, nullptr, tune) != cudaSuccess || found.size() > size) return 0;
    return found.copy(tuned, found.size());
}

// The version of the cuBLASLt that linear takes, e.g. 120103, or 0: there is none, and it cannot run.
SWINOPT_EXPORT int swinopt_cublaslt_version() {
    swinopt::CublasLt const* const found = swinopt::cublaslt();
    return found ? static_cast<int>(found->version()) : 0;
}

// The entry points that IPluginRegistry::loadLibrary looks for.
#if SWINOPT_PLUGIN_V2
SWINOPT_EXPORT swinopt::Creator* const* getPluginCreators(std::int32_t& count) {
#else
SWINOPT_EXPORT swinopt::Creator* const* getCreators(std::int32_t& count) {
#endif
    count = 0;
    if (!swinopt::registration.compatible()) return nullptr;
    swinopt::registration.withdraw();
    count = static_cast<std::int32_t>(swinopt::creators().size());
    return swinopt::creators().data();
}

// Asked for by loadLibrary, and not needed: the logger comes from getLogger(), which is the same in every TensorRT,
// while ILoggerFinder is not.
SWINOPT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}

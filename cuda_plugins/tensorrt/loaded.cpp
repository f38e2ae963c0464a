#include "loaded.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdio>
#include <cstring>

#include "log.h"

namespace swinopt {
namespace {

int collect(dl_phdr_info* info, std::size_t, void* paths) {
    char const* slash = std::strrchr(info->dlpi_name, '/');
    char const* name = slash ? slash + 1 : info->dlpi_name;
    if (!std::strncmp(name, "libnvinfer", 10) || !std::strncmp(name, "libtensorrt_rtx", 15))
        static_cast<std::vector<std::string>*>(paths)->push_back(info->dlpi_name);
    return 0;
}

template <class F>
F symbol(void* handle, char const* name) {
    return reinterpret_cast<F>(dlsym(handle, name));
}

void add(std::vector<Loaded>& found, void* handle) {
    auto const registry = symbol<decltype(Loaded::registry)>(handle, "getPluginRegistry");
    auto const version = symbol<int (*)() noexcept>(handle, "getInferLibVersion");
    Dl_info info{};
    if (!registry || !version || !dladdr(reinterpret_cast<void*>(registry), &info)) return;
    for (Loaded const& other : found)
        if (other.registry == registry) return;
    found.push_back({info.dli_fname, version(), registry, symbol<decltype(Loaded::logger)>(handle, "getLogger")});
}

}  // namespace

std::vector<Loaded> loaded_tensorrts() {
    std::vector<Loaded> found;
    add(found, RTLD_DEFAULT);  // also finds a TensorRT that is part of the executable
    // Python, among others, loads TensorRT where RTLD_DEFAULT does not look.
    std::vector<std::string> paths;
    dl_iterate_phdr(collect, &paths);
    for (std::string const& path : paths)
        if (void* handle = dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD)) {
            add(found, handle);
            dlclose(handle);
        }
    return found;
}

std::string version_text(int version) {
    bool const is_rtx = version >= 10000 && version < 20000;
    int const unit = version < 10000 ? 1000 : 10000;
    return (is_rtx ? "TensorRT-RTX " : "TensorRT ") + std::to_string(version / unit) + "." +
           std::to_string(version % unit / 100) + "." + std::to_string(version % 100);
}

void pin(std::string const& path) { dlopen(path.c_str(), RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE); }

void log_error(std::string const& message) noexcept {
    for (Loaded const& tensorrt : loaded_tensorrts())
        if (nvinfer1::ILogger* logger = tensorrt.logger ? tensorrt.logger() : nullptr) {
            logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
            return;
        }
    std::fprintf(stderr, "%s\n", message.c_str());
}

}  // namespace swinopt

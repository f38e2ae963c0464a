#include "cublaslt.h"

#include <dlfcn.h>

#include <optional>

namespace swinopt {
namespace {

template <class F>
bool find(void* library, char const* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
    return function != nullptr;
}

std::optional<CublasLt> read(void* library) {
    CublasLt api;
    bool const whole =
        find(library, "cublasLtGetVersion", api.version) && find(library, "cublasLtCreate", api.create) &&
        find(library, "cublasLtDestroy", api.destroy) &&
        find(library, "cublasLtMatmulDescCreate", api.desc_create) &&
        find(library, "cublasLtMatmulDescDestroy", api.desc_destroy) &&
        find(library, "cublasLtMatmulDescSetAttribute", api.desc_set) &&
        find(library, "cublasLtMatrixLayoutCreate", api.layout_create) &&
        find(library, "cublasLtMatrixLayoutDestroy", api.layout_destroy) &&
        find(library, "cublasLtMatmulPreferenceCreate", api.preference_create) &&
        find(library, "cublasLtMatmulPreferenceDestroy", api.preference_destroy) &&
        find(library, "cublasLtMatmulPreferenceSetAttribute", api.preference_set) &&
        find(library, "cublasLtMatmulAlgoGetHeuristic", api.heuristic) &&
        find(library, "cublasLtMatmulAlgoCheck", api.check) &&
        find(library, "cublasLtMatmulAlgoCapGetAttribute", api.capability) &&
        find(library, "cublasLtMatmulAlgoConfigSetAttribute", api.set) && find(library, "cublasLtMatmul", api.matmul);
    return whole ? std::optional(api) : std::nullopt;
}

bool starts(CublasLt const& api) {
    int gpus = 0;
    bool const has_gpu = cudaGetDeviceCount(&gpus) == cudaSuccess && gpus > 0;
    cudaGetLastError();
    CublasLt::Handle handle = nullptr;
    if (!has_gpu) return true;
    return !api.create(&handle) && !api.destroy(handle);
}

std::optional<CublasLt> load() {
    for (char const* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so.11"})
        if (void* library = dlopen(name, RTLD_LAZY | RTLD_LOCAL))
            if (std::optional<CublasLt> api = read(library); api && starts(*api)) return api;
    return std::nullopt;
}

}  // namespace

CublasLt const* cublaslt() {
    static std::optional<CublasLt> const api = load();
    return api ? &*api : nullptr;
}

}  // namespace swinopt

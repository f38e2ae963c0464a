// The TensorRTs that are loaded in this process. The library is linked against none, so that it serves whichever its
// user runs: trtexec, a server, ONNX Runtime, TensorRT-RTX.
#pragma once

#include <string>
#include <vector>

#include <NvInferRuntime.h>

namespace swinopt {

struct Loaded {
    std::string path;
    int version;  // as NV_TENSORRT_VERSION
    nvinfer1::IPluginRegistry* (*registry)() noexcept;
    nvinfer1::ILogger* (*logger)() noexcept;  // may be null
};

std::vector<Loaded> loaded_tensorrts();

// The TensorRT major whose interfaces a version has. TensorRT-RTX counts from 1: up to 1.4 its plugin registry has the
// layout of TensorRT 10, from 1.5 on that of TensorRT 11.
constexpr int interface_major(int version) {
    if (version < 10000) return version / 1000;
    if (version < 20000) return version < 10500 ? 10 : 11;
    return version / 10000;
}

// "TensorRT 10.15.0", "TensorRT-RTX 1.7.1"
std::string version_text(int version);

// Keeps a loaded library in memory until the process ends, whoever closes it.
void pin(std::string const& path);

}  // namespace swinopt

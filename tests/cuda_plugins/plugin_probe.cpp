// A stand-in for TensorRT that asks the plugin library everything which needs no GPU.
//
//   plugin_probe <library> <version that the stand-in calls itself>
//
// Prints one line a fact: its name, a tab, what it is, another tab, and what TensorRT's logger was told last.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#define IS_V2 (NV_TENSORRT_MAJOR == 8 || NV_TENSORRT_MAJOR == 9)

using namespace nvinfer1;

namespace {

#if IS_V2
using Creator = IPluginCreator;
using Concrete = IPluginCreator;
using Plugin = IPluginV2DynamicExt;
#else
using Creator = IPluginCreatorInterface;
using Concrete = IPluginCreatorV3One;
using Plugin = IPluginV3;
#endif

int version = 0;

class Logger final : public ILogger {
public:
    std::string last;
    void log(Severity, char const* message) noexcept override { last = message; }
} logger;

void tell(char const* name, std::string const& value) {
    std::printf("%s\t%s\t%s\n", name, value.c_str(), logger.last.c_str());
    logger.last.clear();
}

// As far as the library uses it.
class Registry final : public IPluginRegistry {
public:
    std::vector<Creator*> creators;

    Creator* find(char const* name, char const* plugin_version, char const* space) const {
        for (Creator* creator : creators) {
            auto* concrete = static_cast<Concrete*>(creator);
            if (!std::strcmp(concrete->getPluginName(), name) && !std::strcmp(plugin_version, "1") &&
                !std::strcmp(space, "swinopt"))
                return creator;
        }
        return nullptr;
    }

    bool take(Creator& creator, char const* space) {
        auto& concrete = static_cast<Concrete&>(creator);
        if (find(concrete.getPluginName(), concrete.getPluginVersion(), space)) return false;
        creators.push_back(&creator);
        return true;
    }

    bool drop(Creator const& creator) {
        for (std::size_t i = 0; i < creators.size(); ++i)
            if (creators[i] == &creator) {
                creators.erase(creators.begin() + static_cast<std::ptrdiff_t>(i));
                return true;
            }
        return false;
    }

#if NV_TENSORRT_MAJOR != 11
    bool registerCreator(IPluginCreator& creator, char const* space) noexcept override {
#if IS_V2
        return take(creator, space);
#else
        (void)creator, (void)space;
        return false;
#endif
    }
    IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
    IPluginCreator* getPluginCreator(char const* name, char const* v, char const* space) noexcept override {
#if IS_V2
        return find(name, v, space);
#else
        (void)name, (void)v, (void)space;
        return nullptr;
#endif
    }
    bool deregisterCreator(IPluginCreator const& creator) noexcept override {
#if IS_V2
        return drop(creator);
#else
        (void)creator;
        return false;
#endif
    }
#endif
#if !IS_V2
    bool registerCreator(IPluginCreatorInterface& creator, char const* space) noexcept override {
        return take(creator, space);
    }
    IPluginCreatorInterface* const* getAllCreators(int32_t*) const noexcept override { return nullptr; }
    IPluginCreatorInterface* getCreator(char const* name, char const* v, char const* space) noexcept override {
        return find(name, v, space);
    }
    bool deregisterCreator(IPluginCreatorInterface const& creator) noexcept override { return drop(creator); }
    IPluginResource* acquirePluginResource(char const*, IPluginResource*) noexcept override { return nullptr; }
    int32_t releasePluginResource(char const*) noexcept override { return 0; }
#if NV_TENSORRT_VERSION >= 100800
    IPluginCreatorInterface* const* getAllCreatorsRecursive(int32_t*) noexcept override { return nullptr; }
#endif
#endif
    void setErrorRecorder(IErrorRecorder*) noexcept override {}
    IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
    bool isParentSearchEnabled() const override { return false; }
    void setParentSearchEnabled(bool) override {}
    PluginLibraryHandle loadLibrary(char const*) noexcept override { return nullptr; }
    void deregisterLibrary(PluginLibraryHandle) noexcept override {}
};

// Never destroyed: the library gives back its creators when the process ends.
Registry& registry = *new Registry;

struct Attributes {
    std::vector<int> window{7, 7}, shift{3, 3}, heads{4}, present{};
    std::vector<float> scale{0.5f};
};

Plugin* create(Concrete* creator, Attributes const& a) {
    std::vector<PluginField> fields;
    auto const add = [&](char const* name, auto const& values, PluginFieldType type) {
        if (!values.empty()) fields.emplace_back(name, values.data(), type, static_cast<int>(values.size()));
    };
    add("window_size", a.window, PluginFieldType::kINT32);
    add("shift_size", a.shift, PluginFieldType::kINT32);
    add("num_heads", a.heads, PluginFieldType::kINT32);
    add("scale", a.scale, PluginFieldType::kFLOAT32);
    add("inputs_present", a.present, PluginFieldType::kINT32);
    PluginFieldCollection const all{static_cast<int>(fields.size()), fields.data()};
#if IS_V2
    return static_cast<Plugin*>(creator->createPlugin("probe", &all));
#else
    return creator->createPlugin("probe", &all, TensorRTPhase::kBUILD);
#endif
}

#if !IS_V2
IPluginV3OneBuild* building(Plugin* plugin) {
    return static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
#endif

std::string bytes_of(Plugin* plugin) {
#if IS_V2
    std::string bytes(plugin->getSerializationSize(), '\0');
    plugin->serialize(&bytes[0]);
    return bytes;
#else
    auto* runtime = static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    PluginFieldCollection const* fields = runtime->getFieldsToSerialize();
    return {static_cast<char const*>(fields->fields[0].data), static_cast<std::size_t>(fields->fields[0].length)};
#endif
}

Plugin* restore(Concrete* creator, std::string const& bytes) {
#if IS_V2
    return static_cast<Plugin*>(creator->deserializePlugin("probe", bytes.data(), bytes.size()));
#else
    PluginField const field("state", bytes.data(), PluginFieldType::kUNKNOWN, static_cast<int>(bytes.size()));
    PluginFieldCollection const fields{1, &field};
    return creator->createPlugin("probe", &fields, TensorRTPhase::kRUNTIME);
#endif
}

PluginTensorDesc tensor(DataType type, std::vector<int> const& shape, TensorFormat format = TensorFormat::kLINEAR) {
    PluginTensorDesc desc{};
    desc.type = type;
    desc.format = format;
    desc.dims.nbDims = static_cast<int>(shape.size());
    for (std::size_t i = 0; i < shape.size(); ++i) desc.dims.d[i] = shape[i];
    return desc;
}

bool supports(Plugin* plugin, int position, std::vector<PluginTensorDesc> const& tensors) {
#if IS_V2
    return plugin->supportsFormatCombination(position, tensors.data(), 2, 1);
#else
    std::vector<DynamicPluginTensorDesc> dynamic;
    for (PluginTensorDesc const& desc : tensors) dynamic.push_back({desc, desc.dims, desc.dims, desc.dims});
    return building(plugin)->supportsFormatCombination(position, dynamic.data(), 2, 1);
#endif
}

// What the profile says of the first input; nothing for a shape that is known.
struct Profile {
    std::vector<int> least, most;
};

bool configures(Plugin* plugin, std::vector<std::vector<int>> const& shapes, Profile const& profile = {}) {
    std::vector<DynamicPluginTensorDesc> in;
    for (std::vector<int> const& shape : shapes) {
        DynamicPluginTensorDesc dynamic{};
        dynamic.desc = tensor(DataType::kHALF, shape);
        dynamic.min = dynamic.max = dynamic.desc.dims;
        in.push_back(dynamic);
    }
    if (!profile.least.empty()) {
        in[0].min = tensor(DataType::kHALF, profile.least).dims;
        in[0].max = tensor(DataType::kHALF, profile.most).dims;
    }
    DynamicPluginTensorDesc const out{};
#if IS_V2
    static_cast<IPluginV2DynamicExt*>(plugin)->configurePlugin(in.data(), static_cast<int>(in.size()), &out, 1);
    return plugin->initialize() == 0;
#else
    return building(plugin)->configurePlugin(in.data(), static_cast<int>(in.size()), &out, 1) == 0;
#endif
}

char const* yes(bool value) { return value ? "yes" : "no"; }

void ask_about_attributes(Concrete* creator) {
    auto const made = [&](char const* name, auto&& change) {
        Attributes attributes;
        change(attributes);
        tell(name, yes(create(creator, attributes) != nullptr));
    };
    made("creates", [](Attributes&) {});
    made("creates without scale", [](Attributes& a) { a.scale.clear(); });
    made("creates with a shift of a window", [](Attributes& a) { a.shift = {7, 0}; });
    made("creates with four axes", [](Attributes& a) { a.window = a.shift = {1, 1, 1, 1}; });
    made("creates with two heads", [](Attributes& a) { a.heads = {4, 4}; });
    made("creates without qkv", [](Attributes& a) { a.present = {0, 1, 0, 0}; });
    made("creates with pad_qkv alone", [](Attributes& a) { a.present = {1, 1, 0, 1}; });
}

void ask_about_formats(Plugin* plugin) {
    auto const half = tensor(DataType::kHALF, {1, 14, 14, 384}), single = tensor(DataType::kFLOAT, {4, 49, 49});
    auto const packed = tensor(DataType::kHALF, {1, 14, 14, 384}, TensorFormat::kHWC8);
    auto const integer = tensor(DataType::kINT32, {1, 14, 14, 384});
    tell("takes float16", yes(supports(plugin, 0, {half, half, half})));
    tell("takes float32", yes(supports(plugin, 0, {single, single, single})));
    tell("takes int32", yes(supports(plugin, 0, {integer, integer, integer})));
    tell("takes kHWC8", yes(supports(plugin, 0, {packed, packed, packed})));
    tell("mixes types", yes(supports(plugin, 1, {half, single, half})));
    tell("converts", yes(supports(plugin, 2, {half, half, single})));
}

void ask_about_shapes(Concrete* creator) {
    Attributes padded;
    padded.present = {1, 1, 0, 1};
    auto const fits = [&](char const* name, Attributes const& a, std::vector<std::vector<int>> const& shapes,
                          Profile const& profile = {}) {
        tell(name, yes(configures(create(creator, a), shapes, profile)));
    };
    Attributes const plain;
    fits("fits", plain, {{2, 14, 14, 384}, {4, 49, 49}});
    fits("fits unknown sizes", plain, {{-1, -1, -1, 384}, {4, 49, 49}});
    fits("fits sizes whose bounds are no shape", plain, {{-1, -1, -1, 384}, {4, 49, 49}},
         {{1, 7, 8, 384}, {8, 28, 30, 384}});
    fits("fits one of these sizes", plain, {{2, 14, 15, 384}, {4, 49, 49}}, {{1, 7, 7, 384}, {8, 28, 28, 384}});
    fits("fits an open batch", plain, {{-1, 14, 14, 384}, {4, 49, 49}}, {{1, 14, 14, 384}, {8, 14, 14, 384}});
    fits("fits an open batch from none on", plain, {{-1, 14, 14, 384}, {4, 49, 49}},
         {{0, 14, 14, 384}, {8, 14, 14, 384}});
    fits("fits an open batch without end", plain, {{-1, 14, 14, 384}, {4, 49, 49}},
         {{1, 14, 14, 384}, {1 << 28, 14, 14, 384}});
    fits("fits another bias", plain, {{2, 14, 14, 384}, {4, 49, 48}});
    fits("fits channels that do not split", plain, {{2, 14, 14, 385}, {4, 49, 49}});
    fits("fits three axes", plain, {{2, 14, 384}, {4, 49, 49}});
    fits("fits one input", plain, {{2, 14, 14, 384}});
    fits("fits a map to be padded", plain, {{2, 15, 14, 384}, {4, 49, 49}});
    fits("fits a padded map", padded, {{2, 15, 14, 384}, {4, 49, 49}, {384}});
    fits("fits another pad_qkv", padded, {{2, 15, 14, 384}, {4, 49, 49}, {128}});
    Attributes large;
    large.window = {40, 40};
    fits("fits windows of 1600 tokens", large, {{1, 40, 40, 384}, {4, 1600, 1600}});
}

void ask_about_bytes(Concrete* creator, Concrete* another) {
    Attributes attributes;
    attributes.present = {1, 1, 0, 1};
    std::string const bytes = bytes_of(create(creator, attributes));
    Plugin* restored = restore(creator, bytes);
    tell("restores", yes(restored && bytes_of(restored) == bytes));
    tell("restored is the same", yes(restored && configures(restored, {{2, 15, 14, 384}, {4, 49, 49}, {384}})));
    Plugin* plain = create(creator, Attributes{});
    configures(plain, {{2, 14, 14, 384}, {4, 49, 49}});
    attributes.present = {1, 1, 0, 0};
    tell("remembers its inputs", yes(bytes_of(plain) == bytes_of(create(creator, attributes))));
    int truncated = 0;
    for (std::size_t size = 0; size < bytes.size(); ++size)
        truncated += restore(creator, bytes.substr(0, size)) != nullptr;
    tell("restores truncated bytes", std::to_string(truncated));
    tell("restores with bytes to spare", yes(restore(creator, bytes + '\0') != nullptr));
    tell("restores as another op", yes(restore(another, bytes) != nullptr));
    std::string older = bytes.substr(0, bytes.size() - sizeof(std::uint32_t));  // it ended before what was tuned
    older[0] = 1;
    tell("restores the first format", yes(restore(creator, older) != nullptr));
    std::string tuned = older + std::string("\3\0\0\0abc", 7);
    tuned[0] = bytes[0];
    restored = restore(creator, tuned);
    tell("keeps what was tuned", yes(restored && configures(restored, {{2, 15, 14, 384}, {4, 49, 49}, {384}}) &&
                                     bytes_of(restored) == tuned));
    std::string newer = bytes;
    ++newer[0];
    tell("restores a newer format", yes(restore(creator, newer) != nullptr));
    int crashed = 0;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
        std::string damaged = bytes;
        damaged[i] = static_cast<char>(0xff);
        if (Plugin* plugin = restore(creator, damaged)) crashed += bytes_of(plugin) != damaged;
    }
    tell("restores something else", std::to_string(crashed));
}

// Of before linears had a second attribute.
void ask_about_older_linears(Concrete* creator) {
    std::string const bytes = bytes_of(create(creator, Attributes{{}, {}, {}, {1, 1, 1, 0}, {}}));
    std::size_t const count = sizeof(std::uint32_t) + sizeof(std::uint32_t) + std::strlen("Linear");
    std::size_t const value = sizeof(std::uint32_t) + sizeof(std::int32_t) + sizeof(float);
    std::string older = bytes;
    older.erase(count + sizeof(std::uint32_t) + value, value);
    --older[count];
    tell("restores fewer attributes", yes(restore(creator, older) != nullptr));
    older[0] = 2;
    Plugin* restored = restore(creator, older);
    tell("restores a linear of the format before", yes(restored && bytes_of(restored) == bytes));
}

}  // namespace

extern "C" IPluginRegistry* getPluginRegistry() noexcept { return &registry; }
extern "C" ILogger* getLogger() noexcept { return &logger; }
extern "C" int32_t getInferLibVersion() noexcept { return version; }

int main(int, char** arguments) {
    version = std::atoi(arguments[2]);
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) {
        std::fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    auto const status = reinterpret_cast<char const* (*)()>(dlsym(library, "swinopt_plugins_status"));
    tell("status", status());
    tell("registered", std::to_string(registry.creators.size()));
    auto const list = reinterpret_cast<Creator* const* (*)(int32_t&)>(
        dlsym(library, IS_V2 ? "getPluginCreators" : "getCreators"));
    int32_t count = -1;
    Creator* const* creators = list(count);
    tell("listed", std::to_string(count));
    tell("registered after listing", std::to_string(registry.creators.size()));
    if (!creators) return 0;
    auto* attention = static_cast<Concrete*>(creators[0]);
    for (int i = 0; i < count; ++i) {
        auto* creator = static_cast<Concrete*>(creators[i]);
        std::string fields;
        for (int j = 0; j < creator->getFieldNames()->nbFields; ++j)
            fields += std::string(j ? " " : "") + creator->getFieldNames()->fields[j].name;
        tell(creator->getPluginName(), fields);
    }
    ask_about_attributes(attention);
    ask_about_formats(create(attention, Attributes{}));
    ask_about_shapes(attention);
    ask_about_bytes(attention, static_cast<Concrete*>(creators[1]));
    ask_about_older_linears(static_cast<Concrete*>(creators[count - 1]));
    return 0;
}

// The host side of linear without a GPU: what it tells cuBLASLt, what it remembers, what it does where something fails.
//
// Prints a fact a line: its name, a tab, and what it is. CUDA is the few functions below; cuBLASLt is cublaslt.cpp,
// a library by the name that the real one has.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "fake_cublaslt.h"
#include "linear/gelu.h"
#include "linear/hopper.h"
#include "linear/launch.h"

namespace {

long allocated = 0;
bool is_full = false;
long captured_from = 0, graphs = 0, launches = 0;
long times[64];
int events = 0;
FakeCalls* calls = nullptr;

}  // namespace

extern "C" {
cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int*, cudaDeviceAttr, int) { return cudaErrorUnknown; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
cudaError_t cudaMalloc(void** memory, size_t bytes) {
    if (is_full) return cudaErrorMemoryAllocation;
    ++allocated;
    *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
    --allocated;
    std::free(memory);
    return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void*, int, size_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
    *stream = nullptr;
    return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
// What is captured takes no time, and takes it at every launch of the graph. A graph is an odd number, which is twice
// its own time and one.
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
    if (calls->capturing) return cudaErrorUnknown;
    captured_from = calls->clock;
    calls->capturing = true;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
    if (!calls->capturing) return cudaErrorUnknown;
    calls->capturing = false;
    *graph = reinterpret_cast<cudaGraph_t>(2 * (calls->clock - captured_from) + 1);
    calls->clock = captured_from;
    ++graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
    ++graphs;
    *ready = reinterpret_cast<cudaGraphExec_t>(graph);
    return cudaSuccess;
}
// All but every FAKE_ALONE-th waits for others, now longer and now less.
cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t) {
    char const* const alone = std::getenv("FAKE_ALONE");
    if (++launches % (alone ? std::atoi(alone) : 1)) calls->clock += 100 * (1 + launches * launches % 7);
    calls->clock += reinterpret_cast<long>(ready) / 2;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) {
    --graphs;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) {
    --graphs;
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    *event = reinterpret_cast<cudaEvent_t>(&times[events++ % 64]);
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    *reinterpret_cast<long*>(event) = calls->clock;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t first, cudaEvent_t last) {
    *ms = static_cast<float>(*reinterpret_cast<long*>(last) - *reinterpret_cast<long*>(first)) / 1000;
    return cudaSuccess;
}
}

using namespace swinopt;

namespace {

int own_runs = 0;
HopperShape own_shape{};
int gelus = 0, matmuls_before_gelu = 0;
long numbers_of_gelu = 0;

}  // namespace

cudaError_t swinopt::gelu_in_place(float*, int rows, int features, Device const&, cudaStream_t) {
    ++gelus, numbers_of_gelu = static_cast<long>(rows) * features, matmuls_before_gelu = calls->matmuls;
    return cudaSuccess;
}

// Takes FAKE_OWN microseconds, and one more with other than 64 columns and a split of 1; there is none of it at 0.
cudaError_t swinopt::hopper_linear(
    LinearParams const& p, DType, HopperShape const& shape, Device const& device, cudaStream_t) {
    if (!hopper_can(p, shape, device)) return cudaErrorInvalidValue;
    char const* const setting = std::getenv("FAKE_OWN");
    int const microseconds = setting ? std::atoi(setting) : 0;
    if (!microseconds) return cudaErrorNotSupported;
    ++own_runs, own_shape = shape;
    calls->clock += microseconds + (shape.columns != 64 || shape.split != 1);
    return cudaSuccess;
}

namespace {

alignas(256) char memory[1 << 20];
Device const kH200{90, 132, 232448};

LinearParams params(int rows = 100) {
    LinearParams p{};
    p.x = memory, p.weight = memory + 4096, p.bias = memory + 8192, p.output = memory + 12288;
    p.workspace = memory, p.workspace_bytes = kLinearWorkspace;
    p.rows = rows, p.inputs = 64, p.outputs = 32;
    return p;
}

void tell(char const* name, long value) { std::printf("%s\t%ld\n", name, value); }

int run(LinearParams const& p, DType dtype = DType::kFloat16) { return linear(p, dtype, kH200, nullptr); }

LinearParams with(LinearParams p, std::string const& tuned) {
    p.tuned = tuned.data(), p.tuned_bytes = tuned.size();
    return p;
}

}  // namespace

// In float32, where a GELU is a kernel of its own behind the product and the kernel for Hopper has no part.
void tell_float32(LinearParams const& plain, LinearParams const& gelu) {
    for (int const float32 : {1, 2}) {
        LinearParams p = plain;
        p.float32 = float32;
        std::string const mode = float32 == 1 ? "exact " : "tf32 ";
        tell((mode + "product").c_str(), run(p, DType::kFloat32)), tell((mode + "compute").c_str(), calls->compute);
        tell((mode + "type").c_str(), calls->type), tell((mode + "gelus").c_str(), gelus);
    }
    LinearParams turing = params(103);  // a size of its own, that it is described anew
    turing.float32 = 2;
    tell("tf32 on Turing", linear(turing, DType::kFloat32, Device{75, 40, 65536}, nullptr));
    tell("tf32 on Turing compute", calls->compute);
    LinearParams p = gelu;
    p.float32 = 1;
    int const before = calls->matmuls;
    tell("float32 gelu", run(p, DType::kFloat32)), tell("float32 gelu epilogue", calls->epilogue);
    tell("gelus", gelus), tell("numbers of gelu", numbers_of_gelu);
    tell("matmuls before gelu", matmuls_before_gelu - before), tell("matmuls in all", calls->matmuls - before);
    setenv("FAKE_FAILS", "13", 1), run(p, DType::kFloat32), tell("gelus after a failure", gelus);
    setenv("FAKE_FAILS", "0", 1);
    std::string const tuned = tune_linear(p, DType::kFloat32, kH200);
    int const own = own_runs;
    run(with(p, tuned), DType::kFloat32), tell("float32 tuned", static_cast<long>(tuned.size()));
    tell("float32 tuned algorithm", calls->algorithm), tell("float32 own runs", own_runs - own);
    tell("gelus while tuning", gelus - 2);
}

// How many of the shapes that are proposed for products of many sizes the kernel does not have, or could not end.
void tell_shapes() {
    int proposed = 0, impossible = 0, stuck = 0, idle = 0;
    for (int inputs = 8; inputs <= 16384; inputs += 8)
        for (int outputs : {8, 64, 1000, 4096}) {
            LinearParams p = params(49);
            p.inputs = inputs, p.outputs = outputs;
            for (HopperShape const& shape : hopper_shapes(p, kH200)) {
                ++proposed;
                impossible += !hopper_can(p, shape, kH200) || hopper_shared_bytes(shape) > kH200.shared_bytes;
                stuck += shape.stages < 2 && hopper_chunks(p, shape) > 1;
                idle += shape.split > (inputs + kHopperInputs - 1) / kHopperInputs;
            }
        }
    LinearParams p = params();
    p.inputs = 512;
    bool const accepts = hopper_can(p, {64, 1, 1}, kH200) || hopper_can(p, {64, 3, 4}, kH200) ||
                         hopper_can(p, {96, 1, 4}, kH200) || hopper_can(p, {128, 1, 16}, kH200) ||
                         hopper_can(p, {64, 1, 17}, kH200) || hopper_can(p, {64, 1, 4}, {80, 108, 166912});
    tell("shapes", proposed > 10000), tell("impossible shapes", impossible), tell("shapes that are stuck", stuck);
    tell("shapes with idle blocks", idle), tell("accepts what it has not", accepts);
    p.inputs = 64;
    tell("one stage for one tile", hopper_can(p, {64, 1, 1}, kH200));
}

int main() {
    tell_shapes();
    CublasLt const* const found = cublaslt();
    tell("version", found ? static_cast<long>(found->version()) : 0);
    if (!found) return 0;
    for (char const* name : {"libcublasLt.so.13", "libcublasLt.so.12"})
        if (void* library = dlopen(name, RTLD_LAZY | RTLD_NOLOAD)) {
            auto const version = reinterpret_cast<std::size_t (*)()>(dlsym(library, "cublasLtGetVersion"));
            if (version() == found->version())
                calls = reinterpret_cast<FakeCalls* (*)()>(dlsym(library, "fake_calls"))();
        }

    LinearParams const plain = params();
    LinearParams residual = plain, gelu = plain, both = plain;
    residual.residual = memory + 16384, gelu.gelu = 1, both.gelu = 1, both.residual = memory;
    tell("plain", run(plain));
    tell("plain epilogue", calls->epilogue), tell("plain beta", static_cast<long>(calls->beta));
    tell("plain in place", calls->in_place), tell("alpha", static_cast<long>(calls->alpha));
    tell("compute", calls->compute), tell("scale", calls->scale), tell("first algorithm", calls->algorithm);
    tell("bias was known", calls->bias_was_known), tell("workspace", static_cast<long>(calls->workspace >> 20));
    tell("reductions", calls->reductions), tell("alignments", calls->alignment);
    for (int i = 0; i < 9; ++i) tell(("size " + std::to_string(i)).c_str(), static_cast<long>(calls->sizes[i]));
    tell("residual", run(residual)), tell("residual epilogue", calls->epilogue);
    tell("residual beta", static_cast<long>(calls->beta)), tell("residual in place", calls->in_place);
    tell("gelu", run(gelu)), tell("gelu epilogue", calls->epilogue);
    tell("both", run(both)), tell("float32", run(plain, DType::kFloat32));
    tell_float32(plain, gelu);
    LinearParams wrong = plain;
    wrong.output = memory + 2, tell("misaligned", run(wrong));
    wrong = plain, wrong.workspace = memory + 16, tell("misaligned workspace", run(wrong));
    wrong = plain, wrong.outputs = 20, tell("odd size", run(wrong));
    wrong = plain, wrong.rows = 0, tell("empty", run(wrong));

    int const before = calls->heuristics;
    for (int i = 0; i < 5; ++i) run(plain);
    tell("heuristics again", calls->heuristics - before);

    is_full = true;
    tell("tuned without memory", static_cast<long>(tune_linear(plain, DType::kFloat16, kH200).size()));
    is_full = false;
    std::string const tuned = tune_linear(plain, DType::kFloat16, kH200);
    tell("tuned", static_cast<long>(tuned.size())), tell("memory kept", allocated), tell("graphs kept", graphs), tell("captures open", calls->capturing);
    int const measured = calls->matmuls;
    tell("tuned the same", tune_linear(plain, DType::kFloat16, kH200) == tuned);
    tell("measured again", calls->matmuls - measured);
    run(with(plain, tuned)), tell("tuned algorithm", calls->algorithm), tell("tuned tile", calls->tile);
    tell("tuned cluster", calls->cluster), tell("tuned option", calls->option);
    tell("own columns", own_shape.columns), tell("own split", own_shape.split), tell("own stages", own_shape.stages);
    int own_before = own_runs, library_before = calls->matmuls;
    run(with(plain, tuned)), tell("own runs", own_runs - own_before);
    tell("matmuls beside them", calls->matmuls - library_before);
    own_before = own_runs;
    linear(with(plain, tuned), DType::kFloat16, Device{80, 108, 166912}, nullptr);
    tell("own runs on another GPU", own_runs - own_before), tell("algorithm on another GPU", calls->algorithm);
    setenv("FAKE_OWN", "0", 1), tell("without own", run(with(plain, tuned)));
    tell("algorithm without own", calls->algorithm);
    std::string other = tuned;
    if (!other.empty()) {
        ++other[0], setenv("FAKE_OWN", "9", 1), own_before = own_runs, run(with(plain, other));
        tell("own runs beside another cuBLASLt", own_runs - own_before), setenv("FAKE_OWN", "0", 1);
        run(with(plain, other)), tell("algorithm of another version", calls->algorithm);
        other = tuned, other[8] = 9, run(with(plain, other)), tell("algorithm that is refused", calls->algorithm);
        run(with(plain, tuned.substr(0, 40))), tell("algorithm of too few bytes", calls->algorithm);
    }

    setenv("FAKE_FAILS", "13", 1), tell("failing", run(plain)), setenv("FAKE_FAILS", "0", 1);
    tell("after a failure", run(plain));
    setenv("FAKE_PROPOSALS", "0", 1), tell("no algorithm", run(params(101))), setenv("FAKE_PROPOSALS", "5", 1);
    tell("with algorithms again", run(params(101)));

    calls->slow = true;
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; ++i)
        threads.emplace_back([i] {
            LinearParams own = params(102);
            own.bias = memory + 65536 + 8192 * i, own.output = memory + 65536 + 8192 * i + 4096;
            for (int j = 0; j < 50; ++j) run(own);
        });
    for (std::thread& thread : threads) thread.join();
    tell("confused threads", calls->confused);
    return 0;
}

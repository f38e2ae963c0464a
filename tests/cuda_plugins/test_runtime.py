"""Launches against a driver that writes down what it was asked; on a GPU, against the real one."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from swinopt.cuda_plugins import nvrtc, runtime
from swinopt.cuda_plugins.launch import Device, Launch
from swinopt.cuda_plugins.nvrtc import Compiled, CudaError

SUCCESS = SimpleNamespace(value=0, name="CUDA_SUCCESS")


class Parameters(ctypes.Structure):
    _fields_ = (("x", ctypes.c_void_p), ("count", ctypes.c_int), ("factor", ctypes.c_float))


def launch_of(*, shared_bytes: int = 0, kernel: str = "scale", count: int = 3, pointer: int = 0) -> Launch:
    return Launch("toy/kernel.cuh", kernel, (2, 1, 1), 64, shared_bytes, Parameters(pointer, count, 0.5))


class FakeDriver:
    """The functions of the driver that are used, on a machine with one H200."""

    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="shared")
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=132,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=232448,
    )

    def __init__(self) -> None:
        self.context = 7
        self.failing: dict[str, str] = {}
        self.calls: list[tuple[Any, ...]] = []

    def answer(self, function: str, *results: Any) -> tuple[Any, ...]:
        if function in self.failing:
            return (SimpleNamespace(value=1, name=self.failing[function]), *(None for _ in results))
        return (SUCCESS, *results)

    def called(self, function: str) -> list[tuple[Any, ...]]:
        return [arguments for name, *arguments in self.calls if name == function]

    def cuCtxGetId(self, context: Any) -> Any:
        return self.answer("cuCtxGetId", self.context)

    def cuCtxGetCurrent(self) -> Any:
        return self.answer("cuCtxGetCurrent", self.context)

    def cuCtxGetDevice(self) -> Any:
        return self.answer("cuCtxGetDevice", 0)

    def cuDeviceGet(self, ordinal: int) -> Any:
        return self.answer("cuDeviceGet", ordinal)

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> Any:
        return self.answer("cuDeviceGetAttribute", attribute)

    def cuDriverGetVersion(self) -> Any:
        return self.answer("cuDriverGetVersion", 12080)

    def cuModuleLoadData(self, code: bytes) -> Any:
        self.calls.append(("cuModuleLoadData", code))
        time.sleep(0.02)  # long enough for other threads to come by
        return self.answer("cuModuleLoadData", "module")

    def cuModuleGetFunction(self, module: Any, name: bytes) -> Any:
        return self.answer("cuModuleGetFunction", f"function {name.decode()}")

    def cuFuncSetAttribute(self, function: Any, attribute: Any, value: int) -> Any:
        self.calls.append(("cuFuncSetAttribute", function, attribute, value))
        return self.answer("cuFuncSetAttribute")

    def cuLaunchKernel(self, function: Any, *rest: Any) -> Any:
        *shape, stream, arguments, extra = rest
        (address,) = (ctypes.c_void_p * 1).from_address(arguments)
        copied = Parameters.from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(Parameters)))
        self.calls.append(("cuLaunchKernel", function, tuple(shape), stream, copied, extra))
        return self.answer("cuLaunchKernel")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDriver]:
    def compile(source: str, kernel: str, capability: int) -> Compiled:
        assert (source, capability) == ("toy/kernel.cuh", 90)
        return Compiled(b"code of " + kernel.encode(), f"_{kernel}", "", "sm_90")

    fake = FakeDriver()
    monkeypatch.setattr(runtime, "_load_driver", lambda: fake)
    monkeypatch.setattr(runtime, "_loaded", {})
    monkeypatch.setattr(nvrtc, "compile", compile)
    runtime._device.cache_clear()
    yield fake
    runtime._device.cache_clear()


def test_a_launch_hands_over_the_struct_by_value(driver: FakeDriver) -> None:
    runtime.launch(launch_of(shared_bytes=16, pointer=1 << 40, count=11), stream=5)
    ((function, shape, stream, copied, extra),) = driver.called("cuLaunchKernel")
    assert (function, shape, stream, extra) == ("function _scale", (2, 1, 1, 64, 1, 1, 16), 5, 0)
    assert (copied.x, copied.count, copied.factor) == (1 << 40, 11, 0.5)
    assert driver.called("cuModuleLoadData") == [[b"code of scale"]]


def test_a_kernel_is_loaded_once_for_a_context_from_however_many_threads(driver: FakeDriver) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda stream: runtime.launch(launch_of(), stream), range(32)))
    assert len(driver.called("cuLaunchKernel")) == 32
    assert len(driver.called("cuModuleLoadData")) == 1
    runtime.launch(launch_of(kernel="other"), 0)
    driver.context = 8
    runtime.launch(launch_of(), 0)
    assert len(driver.called("cuModuleLoadData")) == 3


def test_prepare_loads_so_that_a_capture_does_not(driver: FakeDriver) -> None:
    runtime.prepare(launch_of(shared_bytes=60_000))
    before = len(driver.calls)
    runtime.launch(launch_of(shared_bytes=60_000), 1)
    assert [call[0] for call in driver.calls[before:]] == ["cuLaunchKernel"]


def test_more_shared_memory_than_every_kernel_may_use_is_asked_for(driver: FakeDriver) -> None:
    for shared_bytes in (48 * 1024, 60_000, 50_000, 70_000):
        runtime.launch(launch_of(shared_bytes=shared_bytes), 0)
    asked = [["function _scale", "shared", 60_000], ["function _scale", "shared", 70_000]]
    assert driver.called("cuFuncSetAttribute") == asked


def test_a_refused_attribute_is_asked_for_again(driver: FakeDriver) -> None:
    driver.failing["cuFuncSetAttribute"] = "CUDA_ERROR_INVALID_VALUE"
    for _ in range(2):
        with pytest.raises(CudaError, match="cuFuncSetAttribute: CUDA_ERROR_INVALID_VALUE"):
            runtime.launch(launch_of(shared_bytes=1 << 20), 0)
    assert not driver.called("cuLaunchKernel")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("cuLaunchKernel", r"cuLaunchKernel: CUDA_ERROR_X for scale with grid \(2, 1, 1\), 64 threads and 0 bytes"),
        ("cuCtxGetId", r"cuCtxGetId: CUDA_ERROR_X: this thread has no CUDA context"),
        ("cuModuleGetFunction", r"cuModuleGetFunction: CUDA_ERROR_X"),
        (
            "cuModuleLoadData",
            r"CUDA_ERROR_X for scale, compiled for sm_90.*one for CUDA 12\.8.*swinopt\[kernels-cu12\]",
        ),
    ],
)
def test_every_status_is_looked_at(driver: FakeDriver, function: str, message: str) -> None:
    driver.failing[function] = "CUDA_ERROR_X"
    with pytest.raises(CudaError, match=message):
        runtime.launch(launch_of(), 0)


def test_a_device_says_what_plans_ask_of_it(driver: FakeDriver) -> None:
    assert runtime.device() == runtime.device(0) == Device(90, 132, 232448)


def test_without_a_context_the_first_device_is_meant(driver: FakeDriver) -> None:
    driver.context = 0
    driver.failing["cuCtxGetDevice"] = "CUDA_ERROR_INVALID_CONTEXT"
    assert runtime.device().capability == 90


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")

    def not_found(flags: int) -> None:
        raise RuntimeError("libcuda.so.1 was not found")

    monkeypatch.setattr(real, "cuInit", not_found)
    runtime._load_driver.cache_clear()
    with pytest.raises(CudaError, match=r"no NVIDIA driver, or none that can be used: libcuda\.so\.1 was not found"):
        runtime.device()


# ----------------------------------------------------------------------------------------------------------- on a GPU

SCALE = """
struct Params { float* x; int count; float factor; };
__global__ void scale(Params const p) {
    extern __shared__ float shared[];
    int const i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.count) return;
    shared[threadIdx.x] = p.x[i];
    p.x[i] = shared[threadIdx.x] * p.factor;
}
"""


@pytest.mark.gpu
def test_a_kernel_runs_on_a_stream_and_in_a_captured_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWINOPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "kernel.cuh").write_text(SCALE)
    monkeypatch.setattr(nvrtc, "SOURCES", tmp_path)
    cuda = runtime._load_driver()

    def call(name: str, *arguments: Any) -> Any:
        return runtime._check(cuda, name, *arguments)

    device = call("cuDeviceGet", 0)
    call("cuCtxSetCurrent", call("cuDevicePrimaryCtxRetain", device))
    stream = call("cuStreamCreate", cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)
    values = (ctypes.c_float * 100)(*range(100))
    size = ctypes.sizeof(values)
    pointer = int(call("cuMemAlloc", size))
    try:
        call("cuMemcpyHtoD", pointer, ctypes.addressof(values), size)
        work = launch_of(shared_bytes=64 * 1024, count=100, pointer=pointer)
        runtime.prepare(work)
        call("cuStreamBeginCapture", stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL)
        runtime.launch(work, int(stream))
        graph = call("cuGraphInstantiate", call("cuStreamEndCapture", stream), 0)
        call("cuGraphLaunch", graph, stream)
        runtime.launch(work, int(stream))
        call("cuStreamSynchronize", stream)
        call("cuMemcpyDtoH", ctypes.addressof(values), pointer, size)
    finally:
        call("cuMemFree", pointer)
    assert list(values) == [i / 4 for i in range(100)]

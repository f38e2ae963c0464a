"""A GPU and a TensorRT that are not there: memory of the host, and an engine that doubles its input.

For all of running an engine that is no business of the GPU: choosing profiles, checking arrays, handing them out,
giving back what was allocated. The engine has an input ``x`` and an output ``y``, float32[-1, 3], and two profiles, for
batches 1 to 4 and 5 to 8.
"""

from __future__ import annotations

import ctypes
import enum
import threading
import weakref
from types import SimpleNamespace
from typing import Any

RANGES = [((1, 3), (2, 3), (4, 3)), ((5, 3), (8, 3), (8, 3))]


class Runtime:
    """The functions of the CUDA runtime: they return a status and what they have to say."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeMode=20)
    cudaComputeMode = SimpleNamespace(cudaComputeModeExclusiveProcess=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.calls: list[str] = []
        self.devices = 1
        self.name, self.minor = b"Pretended GPU\0\0", 0
        self.driver = 13000
        self._of_thread = threading.local()
        self.room = 1 << 20
        self.free = 64 << 30
        self.compute_modes: dict[int, int] = {}
        self.capture_status = 0
        self.clock = 0.0

    def cudaDriverGetVersion(self) -> tuple[int, int]:
        return 0, self.driver

    @property
    def current(self) -> int:
        """The GPU of this thread, which begins with the first."""
        return getattr(self._of_thread, "device", 0)

    @current.setter
    def current(self, device: int) -> None:
        self._of_thread.device = device

    def cudaGetDeviceCount(self) -> tuple[int, int]:
        return 0, self.devices

    def cudaGetDevice(self) -> tuple[int, int]:
        return 0, self.current

    def cudaSetDevice(self, device: int) -> tuple[int]:
        self.current = device
        return (0,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[int, Any]:
        return 0, SimpleNamespace(name=self.name, major=9, minor=self.minor)

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, self.compute_modes.get(device, 0)

    def cudaGetErrorName(self, status: int) -> tuple[int, bytes]:
        return 0, b"cudaErrorPretended"

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"it was only pretended"

    def cudaMemGetInfo(self) -> tuple[int, int, int]:
        return 0, self.free, 80 << 30

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if size > self.room:
            return 2, 0
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return 0, ctypes.addressof(block)

    def cudaFree(self, address: int) -> tuple[int]:
        del self.memory[address]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        ctypes.memmove(target, source, size)
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:
        return self.capture_status, 1

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:
        return 0, 5

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[int, int]:
        return 0, 77

    def cudaEventCreate(self) -> tuple[int, int]:
        return 0, 9

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[int, float]:
        self.clock += 1
        return 0, self.clock

    def __getattr__(self, name: str) -> Any:
        def done(*arguments: Any) -> tuple[int]:
            self.calls.append(name)
            return (0,)

        return done


class _Type(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    BF16 = 3


class _Mode(enum.Enum):
    INPUT = 0
    OUTPUT = 1


class _Profiler:
    pass


class _Logger:
    Severity = enum.IntEnum("Severity", ["INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"])


class _Context:
    def __init__(self, engine: _Engine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.chosen: int | None = None
        self.profiler: Any = None

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        taken = [held for held in self.engine.alive if held.chosen == profile]
        self.chosen = profile
        return self.engine.shares_profiles or not taken

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.chosen is not None
        low, _, high = RANGES[self.chosen]
        self.shapes[name] = tuple(shape)
        return low[0] <= shape[0] <= high[0]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["x"]

    def execute_async_v3(self, stream: int) -> bool:
        count = self.shapes["x"][0] * 3
        source = (ctypes.c_float * count).from_address(self.addresses["x"])
        target = (ctypes.c_float * count).from_address(self.addresses["y"])
        for index, value in enumerate(source):
            target[index] = 2 * value
        if self.profiler is not None:
            self.profiler.report_layer_time("small", 0.25)
            self.profiler.report_layer_time("large", 0.75)
        return True


class _Held:
    """A context as its owner has it: when that lets go of it, it is gone, whatever tests still look at."""

    def __init__(self, context: _Context) -> None:
        object.__setattr__(self, "context", context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.context, name, value)


class _Engine:
    num_io_tensors = 2
    num_optimization_profiles = len(RANGES)

    def __init__(self) -> None:
        self.contexts: list[_Context] = []
        self.alive: weakref.WeakSet[_Held] = weakref.WeakSet()
        self.shares_profiles = False  # TensorRT 8.6 has to be told

    def create_execution_context(self) -> _Held:
        self.contexts.append(_Context(self))
        held = _Held(self.contexts[-1])
        self.alive.add(held)
        return held

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> _Mode:
        return _Mode.INPUT if name == "x" else _Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> _Type:
        return _Type.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return -1, 3

    def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
        return list(RANGES[profile])


class TensorRT:
    """The module."""

    __name__ = "tensorrt"
    __version__ = "8.6.0"
    DataType = _Type
    TensorIOMode = _Mode
    IProfiler = _Profiler
    ILogger = _Logger

    def __init__(self) -> None:
        self.engine = _Engine()

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=lambda plan: self.engine if plan == b"plan" else None)

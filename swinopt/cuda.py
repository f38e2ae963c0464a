"""What an engine needs of the CUDA runtime, through cuda-bindings; every status is looked at.

Nothing of CUDA is loaded before one of these is called, and nothing here needs torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from swinopt.errors import MissingDependencyError, SwinoptError


@functools.cache
def runtime() -> Any:
    """The module with the functions of the CUDA runtime.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise MissingDependencyError(
            "running an engine needs cuda-bindings: pip install cuda-bindings, in the major version of your CUDA driver"
        ) from error
    return runtime


def call(name: str, *arguments: Any) -> Any:
    """Calls a function of the CUDA runtime; what it returns besides the status, a tuple if there are several.

    Raises:
        SwinoptError: the status is not success.
        MissingDependencyError: cuda-bindings is not installed.
    """
    status, *values = getattr(runtime(), name)(*arguments)
    if int(status):
        raise SwinoptError(f"{name} failed: {_reason(status)}")
    return values[0] if len(values) == 1 else tuple(values)


def _reason(status: Any) -> str:
    _, name = runtime().cudaGetErrorName(status)
    _, text = runtime().cudaGetErrorString(status)
    return f"{name.decode()} ({text.decode()})"


def device_count() -> int:
    """How many NVIDIA GPUs this process may use; 0 without a driver, or without cuda-bindings."""
    try:
        status, count = runtime().cudaGetDeviceCount()
    except (MissingDependencyError, RuntimeError):
        return 0
    return 0 if int(status) else int(count)


def require_device(purpose: str) -> None:
    """Refuses to go on without a GPU.

    Args:
        purpose: what it is needed for, to be read before "needs".

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        SwinoptError: there is no GPU, or no driver for it.
    """
    try:
        status, count = runtime().cudaGetDeviceCount()
    except RuntimeError as error:  # the bindings find no library of the driver
        raise SwinoptError(
            f"no NVIDIA GPU was found: {error}. {purpose} needs one; TensorRT-RTX builds without"
        ) from error
    if int(status) or not count:
        reason = _reason(status) if int(status) else "the driver reports none"
        raise SwinoptError(f"no NVIDIA GPU was found: {reason}. {purpose} needs one; TensorRT-RTX builds without")


def current_device() -> int:
    """The number of this thread's GPU."""
    return int(call("cudaGetDevice"))


def device_name() -> str:
    """The name of the current GPU."""
    name = _properties().name
    return name.split(b"\0")[0].decode() if isinstance(name, bytes) else str(name)


def compute_capability() -> str:
    """That of the current GPU, e.g. ``"9.0"``."""
    properties = _properties()
    return f"{properties.major}.{properties.minor}"


def driver_version() -> int:
    """The newest CUDA that the driver knows, e.g. 13000."""
    return int(call("cudaDriverGetVersion"))


def free_memory() -> int:
    """Bytes of the current GPU that nobody has taken."""
    free, _ = call("cudaMemGetInfo")
    return int(free)


def is_exclusive() -> bool:
    """Whether the current GPU is in the mode in which it is for one process at a time."""
    attribute, mode = runtime().cudaDeviceAttr.cudaDevAttrComputeMode, runtime().cudaComputeMode
    found = call("cudaDeviceGetAttribute", attribute, current_device())
    return int(found) == int(mode.cudaComputeModeExclusiveProcess)


def _properties() -> Any:
    return call("cudaGetDeviceProperties", current_device())


@contextmanager
def on_device(ordinal: int) -> Iterator[None]:
    """Makes a GPU the current one of this thread, and then again the one that was: other libraries go by it."""
    before = current_device()
    call("cudaSetDevice", ordinal)
    try:
        yield
    finally:
        if before != ordinal:
            call("cudaSetDevice", before)


class _Handle:
    """Something that the CUDA runtime made and that has to be given back once."""

    def __init__(self, handle: Any, free: str) -> None:
        self.handle = handle
        self._free: Callable[[], None] | None = functools.partial(_give_back, free, handle)

    def close(self) -> None:
        """Gives it back; once is enough."""
        free, self._free = self._free, None
        if free:
            free()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Also where __init__ of a subclass failed, or the interpreter is on its way out.
        if getattr(self, "_free", None):
            self.close()


def _give_back(free: str, handle: Any) -> None:
    # A status here is that of an earlier failure, which was raised where it happened.
    getattr(runtime(), free)(handle)


class Memory(_Handle):
    """Bytes on the current GPU.

    Attributes:
        handle: the address.
        size: the number of bytes.
    """

    def __init__(self, size: int) -> None:
        super().__init__(call("cudaMalloc", max(size, 1)), "cudaFree")
        self.handle = int(self.handle)
        self.size = size


class Stream(_Handle):
    """A stream that does not wait for the default stream."""

    def __init__(self) -> None:
        super().__init__(call("cudaStreamCreateWithFlags", runtime().cudaStreamNonBlocking), "cudaStreamDestroy")

    @property
    def address(self) -> int:
        """The stream as a number, which is how TensorRT and DLPack want it."""
        return int(self.handle)

    def synchronize(self) -> None:
        """Waits until all work in the stream is done."""
        call("cudaStreamSynchronize", self.handle)

    def upload(self, target: int, source: int, size: int) -> None:
        """Copies bytes from the host to the GPU."""
        self._copy(target, source, size, "cudaMemcpyHostToDevice")

    def download(self, target: int, source: int, size: int) -> None:
        """Copies bytes from the GPU to the host."""
        self._copy(target, source, size, "cudaMemcpyDeviceToHost")

    def copy(self, target: int, source: int, size: int) -> None:
        """Copies bytes on the GPU."""
        self._copy(target, source, size, "cudaMemcpyDeviceToDevice")

    def _copy(self, target: int, source: int, size: int, kind: str) -> None:
        call("cudaMemcpyAsync", target, source, size, getattr(runtime().cudaMemcpyKind, kind), self.handle)


class Event(_Handle):
    """A point in a stream."""

    def __init__(self) -> None:
        super().__init__(call("cudaEventCreate"), "cudaEventDestroy")

    def record(self, stream: Stream) -> None:
        """Puts the event behind all work in the stream."""
        call("cudaEventRecord", self.handle, stream.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """The time between two events that have both passed."""
        return float(call("cudaEventElapsedTime", earlier.handle, self.handle))


class Graph(_Handle):
    """Work that was recorded once and can be launched again at little cost.

    Args:
        stream: where to record.
        work: enqueues the work into that stream.

    Raises:
        SwinoptError: the work cannot be recorded.
    """

    def __init__(self, stream: Stream, work: Callable[[], None]) -> None:
        mode = runtime().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", stream.handle, mode)
        try:
            work()
        except BaseException:
            # The stream stays unusable until the recording has ended.
            status, graph = runtime().cudaStreamEndCapture(stream.handle)
            if not int(status):
                call("cudaGraphDestroy", graph)
            raise
        status, graph = runtime().cudaStreamEndCapture(stream.handle)
        if int(status):
            raise SwinoptError(f"the work cannot be recorded as a CUDA graph: {_reason(status)}")
        try:
            super().__init__(call("cudaGraphInstantiate", graph, 0), "cudaGraphExecDestroy")
        finally:
            call("cudaGraphDestroy", graph)

    def launch(self, stream: Stream) -> None:
        """Enqueues the recorded work."""
        call("cudaGraphLaunch", self.handle, stream.handle)

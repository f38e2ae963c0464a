"""Launches kernels through the CUDA driver, on whatever stream and context the caller works with."""

from __future__ import annotations

import ctypes
import functools
import threading
from dataclasses import dataclass
from typing import Any

from swinopt.cuda_plugins import nvrtc
from swinopt.cuda_plugins.launch import Device, Launch
from swinopt.cuda_plugins.nvrtc import INSTALL, CudaError
from swinopt.errors import MissingDependencyError

#: What every kernel may use of dynamic shared memory without asking.
_SHARED_BYTES_FOR_ALL = 48 * 1024

_lock = threading.Lock()
_loaded: dict[tuple[int, str, str], _Kernel] = {}


@dataclass
class _Kernel:
    """A kernel in the memory of a GPU, and the most dynamic shared memory that it may use there."""

    function: Any
    shared_bytes: int = _SHARED_BYTES_FOR_ALL


def device(ordinal: int | None = None) -> Device:
    """What a launch plan has to know of a GPU.

    Args:
        ordinal: which one; None for that of the calling thread's CUDA context, or the first if it has none.

    Raises:
        MissingDependencyError: cuda-bindings is missing.
        CudaError: there is no NVIDIA driver, or no such GPU.
    """
    driver = _load_driver()
    if ordinal is None:
        ordinal = int(_check(driver, "cuCtxGetDevice")) if int(_check(driver, "cuCtxGetCurrent")) else 0
    return _device(ordinal)


def prepare(launch: Launch) -> None:
    """Compiles and loads a kernel into the current CUDA context, unless it is there.

    :func:`launch` does so by itself, but not while a stream is captured into a CUDA graph: a first launch has to come
    before the capture, or this.

    Raises:
        MissingDependencyError: cuda-bindings, NVRTC or the CUDA headers are missing.
        CudaError: the thread has no CUDA context, the kernel does not compile, or the driver refuses it.
    """
    _prepared(_load_driver(), launch)


def launch(launch: Launch, stream: int) -> None:
    """Enqueues a kernel in the current CUDA context; does not wait for it.

    Args:
        launch: the kernel and how its work is cut.
        stream: the handle of the CUDA stream, 0 for the default one.

    Raises:
        MissingDependencyError: cuda-bindings, NVRTC or the CUDA headers are missing.
        CudaError: as :func:`prepare`, or the driver refuses the launch.
    """
    driver = _load_driver()
    kernel = _prepared(driver, launch)
    # The driver copies the argument before it returns.
    arguments = (ctypes.c_void_p * 1)(ctypes.addressof(launch.parameters))
    (status,) = driver.cuLaunchKernel(
        kernel.function, *launch.grid, launch.block, 1, 1, launch.shared_bytes, stream, ctypes.addressof(arguments), 0
    )
    if status.value:
        raise CudaError(
            f"cuLaunchKernel: {status.name} for {launch.kernel} with grid {launch.grid}, {launch.block} threads and "
            f"{launch.shared_bytes} bytes of shared memory"
        )


def _prepared(driver: Any, launch: Launch) -> _Kernel:
    # Unlike its address, the number of a context is never given to another one.
    try:
        context = int(_check(driver, "cuCtxGetId", None))
    except CudaError as error:
        raise CudaError(f"{error}: this thread has no CUDA context, and a launch needs one that is current") from error
    key = (context, launch.source, launch.kernel)
    kernel = _loaded.get(key)
    if kernel is None or kernel.shared_bytes < launch.shared_bytes:
        with _lock:
            kernel = _loaded.get(key) or _load(driver, launch)
            if kernel.shared_bytes < launch.shared_bytes:
                limit = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                _check(driver, "cuFuncSetAttribute", kernel.function, limit, launch.shared_bytes)
                kernel.shared_bytes = launch.shared_bytes
            _loaded[key] = kernel
    return kernel


def _load(driver: Any, launch: Launch) -> _Kernel:
    compiled = nvrtc.compile(launch.source, launch.kernel, device().capability)
    try:
        module = _check(driver, "cuModuleLoadData", compiled.code)
    except CudaError as error:
        version = int(_check(driver, "cuDriverGetVersion"))
        raise CudaError(
            f"{error} for {launch.kernel}, compiled for {compiled.target}. The driver is one for CUDA "
            f"{version // 1000}.{version % 1000 // 10}: a cubin needs an NVRTC of no newer major version, PTX one that "
            f"is no newer at all. {INSTALL}"
        ) from error
    # Also what makes a driver that loads lazily load the code now.
    return _Kernel(_check(driver, "cuModuleGetFunction", module, compiled.lowered_name.encode()))


@functools.cache
def _device(ordinal: int) -> Device:
    driver = _load_driver()
    handle = _check(driver, "cuDeviceGet", ordinal)
    names = driver.CUdevice_attribute

    def attribute(name: str) -> int:
        return int(_check(driver, "cuDeviceGetAttribute", getattr(names, f"CU_DEVICE_ATTRIBUTE_{name}"), handle))

    return Device(
        capability=10 * attribute("COMPUTE_CAPABILITY_MAJOR") + attribute("COMPUTE_CAPABILITY_MINOR"),
        multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
        shared_bytes=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
    )


@functools.cache
def _load_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingDependencyError(f"launching a kernel needs cuda-bindings: {INSTALL}") from error
    try:
        _check(driver, "cuInit", 0)
    except (RuntimeError, OSError) as error:  # the bindings look for the library at the first call
        raise CudaError(f"this machine has no NVIDIA driver, or none that can be used: {error}") from error
    return driver


def _check(driver: Any, function: str, *arguments: Any) -> Any:
    status, *results = getattr(driver, function)(*arguments)
    if status.value:
        raise CudaError(f"{function}: {status.name}")
    return results[0] if results else None

"""Compiles the kernels at run time with NVRTC, so that pip alone is enough: no CUDA toolkit, no compiler, no GPU.

What was compiled once is kept in a folder, ``$SWINOPT_CACHE/kernels`` if that variable is set and else
``swinopt/kernels`` in the user's cache folder. An entry's name is the hash of all that its contents depend on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinopt.cuda_plugins import SOURCES
from swinopt.errors import MissingDependencyError, SwinoptError

#: For the messages of all that needs it.
INSTALL = 'pip install "swinopt[kernels]" (with a driver for CUDA 12: "swinopt[kernels-cu12]")'

_DIGEST_SIZE = hashlib.sha256().digest_size


class CudaError(SwinoptError):
    """NVRTC or the CUDA driver refused; the message has its name for the error, and the log of a compilation."""


@dataclass(frozen=True)
class Compiled:
    """A kernel that a CUDA driver can load.

    Attributes:
        code: a cubin, or PTX with a trailing NUL.
        lowered_name: the kernel's name in it.
        log: what NVRTC and ptxas said.
        target: what the code is for: ``"sm_90"`` is machine code for that architecture alone, ``"compute_90"`` is PTX
            for it and every later one, which the driver translates when it loads it.
    """

    code: bytes
    lowered_name: str
    log: str
    target: str


def compile(launch_source: str, kernel: str, capability: int, *, ptx: bool = False) -> Compiled:
    """Compiles one kernel, or takes it from the cache.

    Args:
        launch_source: the file with the kernel, relative to the folder ``cuda_plugins``.
        kernel: the kernel as a C++ name expression, e.g. ``"swinopt::add_layer_norm<__half>"``.
        capability: of the GPU, ``10 * major + minor``.
        ptx: PTX even where NVRTC could make a cubin.

    Returns:
        A cubin if NVRTC knows the architecture, and else PTX for the newest older one that it knows.

    Raises:
        MissingDependencyError: cuda-bindings, NVRTC or the CUDA headers are missing.
        CudaError: the GPU is older than anything that NVRTC knows, or the kernel does not compile.
    """
    nvrtc, version = _load_nvrtc()
    target = _target(_check(nvrtc, "nvrtcGetSupportedArchs"), capability, ptx)
    options = ["--std=c++17", f"--gpu-architecture={target}"]
    if target.startswith("sm_"):
        options.append("--ptxas-options=-v")
    entry = cache_folder() / f"{_key(launch_source, kernel, options, version)}.kernel"
    cached = _read(entry, target)
    if cached is None:
        headers = _cuda_headers(version[0])
        cached = _compile(nvrtc, launch_source, kernel, target, [*options, f"-I{SOURCES}", f"-I{headers}"])
        # A folder that cannot be written costs time at every start, and nothing else.
        with suppress(OSError):
            _write(entry, cached)
    return cached


def spills(log: str) -> int:
    """How many bytes of registers the kernels of a compilation to a cubin spill to memory, by its log.

    Raises:
        ValueError: the log does not say; that of a compilation to PTX never does.
    """
    stores = re.findall(r"(\d+) bytes spill stores", log)
    if not stores:
        raise ValueError("the log of ptxas has no line on spill stores: was the kernel compiled to a cubin?")
    return sum(map(int, stores))


def cache_folder() -> Path:
    """Where compiled kernels are kept. It need not exist."""
    if own := os.environ.get("SWINOPT_CACHE"):
        return Path(own).expanduser() / "kernels"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "swinopt" / "kernels"


# ---------------------------------------------------------------------------------------------------------- compiling


def _load_nvrtc() -> tuple[Any, tuple[int, int]]:
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise MissingDependencyError(f"compiling a kernel needs cuda-bindings: {INSTALL}") from error
    try:
        major, minor = _check(nvrtc, "nvrtcVersion")
    except (RuntimeError, OSError) as error:  # the bindings look for the library at the first call
        raise MissingDependencyError(f"compiling a kernel needs the NVRTC library: {INSTALL} ({error})") from error
    return nvrtc, (major, minor)


def _target(known: list[int], capability: int, ptx: bool) -> str:
    older = [architecture for architecture in known if architecture <= capability]
    if not older:
        raise CudaError(
            f"this NVRTC compiles for GPUs of compute capability {min(known) / 10} and newer, this one has "
            f"{capability / 10}: install the NVRTC of an older CUDA"
        )
    newest = max(older)
    return f"sm_{newest}" if newest == capability and not ptx else f"compute_{newest}"


def _compile(nvrtc: Any, launch_source: str, kernel: str, target: str, options: list[str]) -> Compiled:
    text = f'#include "{launch_source}"\n'.encode()
    program = _check(nvrtc, "nvrtcCreateProgram", text, f"{launch_source}.cu".encode(), 0, [], [])
    try:
        _check(nvrtc, "nvrtcAddNameExpression", program, kernel.encode())
        encoded = [option.encode() for option in options]
        status = nvrtc.nvrtcCompileProgram(program, len(encoded), encoded)[0]
        log = _bytes_of(nvrtc, "ProgramLog", program).rstrip(b"\0").decode(errors="replace")
        if status.value:
            raise CudaError(f"{kernel} does not compile for {target}: {status.name}\n{log}")
        return Compiled(
            code=_bytes_of(nvrtc, "CUBIN" if target.startswith("sm_") else "PTX", program),
            lowered_name=_check(nvrtc, "nvrtcGetLoweredName", program, kernel.encode()).decode(),
            log=log,
            target=target,
        )
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _bytes_of(nvrtc: Any, what: str, program: Any) -> bytes:
    content = bytes(_check(nvrtc, f"nvrtcGet{what}Size", program))
    _check(nvrtc, f"nvrtcGet{what}", program, content)  # fills it in place
    return content


def _check(nvrtc: Any, function: str, *arguments: Any) -> Any:
    status, *results = getattr(nvrtc, function)(*arguments)
    if status.value:
        raise CudaError(f"{function}: {status.name}")
    return results[0] if len(results) == 1 else results


def _cuda_headers(major: int) -> Path:
    candidates = list(_header_folders(major))
    for folder in candidates:
        if (folder / "cuda_fp16.h").is_file():
            return folder
    raise MissingDependencyError(
        f"compiling a kernel needs the headers of CUDA {major}: {INSTALL}, or set CUDA_HOME to a toolkit; "
        f"cuda_fp16.h is not in {', '.join(map(str, candidates))}"
    )


def _header_folders(major: int) -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec and spec.submodule_search_locations) or ():
        # Up to CUDA 12 every package of NVIDIA's on PyPI has a folder of its own.
        yield Path(root) / (f"cu{major}" if major >= 13 else "cuda_runtime") / "include"
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if toolkit := os.environ.get(variable):
            yield Path(toolkit) / "include"
    yield Path("/usr/local/cuda/include")


# -------------------------------------------------------------------------------------------------------------- cache


def _key(launch_source: str, kernel: str, options: list[str], version: tuple[int, int]) -> str:
    digest = hashlib.sha256(repr((launch_source, kernel, options, version)).encode())
    for path in sorted(path for path in SOURCES.rglob("*") if path.suffix in (".cuh", ".h")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(SOURCES).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _read(entry: Path, target: str) -> Compiled | None:
    """None for no entry and for a damaged one."""
    try:
        content = entry.read_bytes()
    except OSError:
        return None
    digest, payload = content[:_DIGEST_SIZE], content[_DIGEST_SIZE:]
    if hashlib.sha256(payload).digest() != digest:
        return None
    lowered_name, log, code = payload.split(b"\0", 2)
    return Compiled(code, lowered_name.decode(), log.decode(), target)


def _write(entry: Path, compiled: Compiled) -> None:
    payload = b"\0".join((compiled.lowered_name.encode(), compiled.log.encode(), compiled.code))
    entry.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=entry.parent, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(payload).digest() + payload)
        os.replace(name, entry)
    except BaseException:
        os.unlink(name)
        raise

"""The swinopt ops as a C++ library of TensorRT plugins: built with nvcc, found and loaded.

``libswinopt_plugins.so`` registers its plugins with the TensorRT of the process that loads it, be it Python, trtexec
(``--staticPlugins``, ``--dynamicPlugins``) or a server. TensorRT 8 and 9 have no other way to plugins; from TensorRT 10
on, :mod:`swinopt.cuda_plugins.tensorrt.python_plugin` does the same in Python and needs no compiler.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from swinopt.cuda_plugins import SOURCES
from swinopt.cuda_plugins.nvrtc import cache_folder
from swinopt.errors import MissingDependencyError, OptionError, SwinoptError

#: Called with each line that the build prints.
Progress = Callable[[str], None]

#: Names the library to use, instead of one that :func:`build_plugins` put in its place.
VARIABLE = "SWINOPT_PLUGINS"

_HEADER = "NvInferVersion.h"
_CUDA_FOLDERS = "/usr/local"
_TENSORRT_FOLDERS = (
    "/usr/include",
    "/usr/include/x86_64-linux-gnu",
    "/usr/include/aarch64-linux-gnu",
    "/usr/local/TensorRT*",
    "/usr/local/tensorrt*",
    "/opt/tensorrt",
    "/opt/TensorRT*",
)


def build_plugins(
    output: str | os.PathLike[str] | None = None,
    *,
    tensorrt_root: str | os.PathLike[str] | None = None,
    architectures: str | Sequence[int | str] | None = None,
    jobs: int | None = None,
    progress: bool | Progress = False,
) -> Path:
    """Compiles the plugin library. That takes a few minutes, or one for a single architecture.

    Args:
        output: the library's file, or a folder for it; by default where :func:`find_library` looks.
        tensorrt_root: where TensorRT was unpacked, or the folder of its headers. By default ``$TENSORRT_ROOT``, or else
            where packages and archives of TensorRT usually lie.
        architectures: compute capabilities without the dot, as ``"80;90"`` or ``[80, 90]``, or ``"native"`` for the
            ones of this machine's GPUs; by default all for which this nvcc can compile, from 7.5 on.
        jobs: sources, and architectures of a source, that are compiled at a time; by default one a CPU.
        progress: True to print what the build prints, or a function of each line of it.

    Returns:
        The library's path. It is there whole or not at all.

    Raises:
        MissingDependencyError: CMake, nvcc, a C++ compiler, TensorRT's headers or, for ``"native"``, a GPU is missing.
        OptionError: an architecture or number of jobs that cannot be.
        SwinoptError: the sources do not compile, or the library cannot be written.
    """
    if jobs is not None and jobs < 1:
        raise OptionError(f"jobs is {jobs}; at least one process has to compile")
    targets = _architectures(architectures)
    cmake = _program("cmake", "CMake is needed to compile the plugin library: pip install cmake")
    nvcc = _find_nvcc()
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise MissingDependencyError("a C++ compiler is needed to compile the plugin library: apt-get install g++")
    headers = _find_headers(tensorrt_root)
    target = _target(output, _interface_major(_version(headers)))
    workers = jobs or os.cpu_count() or 1
    tell = progress if callable(progress) else (print if progress else None)

    with tempfile.TemporaryDirectory(prefix="swinopt-plugins-") as folder:
        _run(
            [
                cmake,
                f"-S{SOURCES / 'tensorrt'}",
                f"-B{folder}",
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DCMAKE_CUDA_COMPILER={nvcc}",
                f"-DTENSORRT_INCLUDE_DIR={headers}",
                f"-DSWINOPT_NVCC_THREADS={workers}",
                *([f"-DSWINOPT_CUDA_ARCHITECTURES={';'.join(targets)}"] if targets else []),
            ],
            tell,
        )
        _run([cmake, "--build", folder, "--parallel", str(workers)], tell)
        _publish(Path(folder) / "libswinopt_plugins.so", target)
    return target


def find_library(tensorrt_version: str | None = None) -> Path | None:
    """The plugin library that was built: ``$SWINOPT_PLUGINS``, or else what :func:`build_plugins` made.

    Args:
        tensorrt_version: of the TensorRT or TensorRT-RTX that is going to load it, e.g. ``tensorrt.__version__``. By
            default the library that was built last, whatever it was built for.

    Returns:
        Its path, or None if there is none.

    Raises:
        SwinoptError: ``$SWINOPT_PLUGINS`` names no file.
    """
    if named := os.environ.get(VARIABLE):
        path = Path(named).expanduser()
        if not path.is_file():
            raise SwinoptError(f"the environment variable {VARIABLE} names {named}, which is no file")
        return path
    if tensorrt_version is not None:
        major, minor = (int(part) for part in tensorrt_version.split(".")[:2])
        path = _default_place(_interface_major((major, minor)))
        return path if path.is_file() else None
    built = sorted(_library_folder().glob("libswinopt_plugins.trt*.so"), key=lambda path: path.stat().st_mtime)
    return built[-1] if built else None


def load_library(path: str | os.PathLike[str]) -> None:
    """Loads a plugin library, which registers its plugins with every TensorRT in this process that it fits.

    Import ``tensorrt`` or ``tensorrt_rtx`` before.

    Raises:
        SwinoptError: it is no such library, or was built for another TensorRT than the one in this process, or there is
            none; the message says which.
    """
    _load_cublaslt()
    try:
        # An absolute path: a bare name would be looked for where the loader likes.
        library = ctypes.CDLL(str(Path(path).resolve()))
        status = library.swinopt_plugins_status
    except (OSError, AttributeError) as error:
        raise SwinoptError(f"{path} is no library of swinopt plugins that can be loaded: {error}") from error
    status.restype = ctypes.c_char_p
    told = status().decode()
    if told != "ok":
        raise SwinoptError(f"{path}: {told}")


def cublaslt_version(path: str | os.PathLike[str]) -> int:
    """The version of the cuBLASLt that the linears of a plugin library take, e.g. 120103; 0 if none can be loaded.

    Args:
        path: the library, which is loaded (:func:`load_library`).
    """
    library = ctypes.CDLL(str(Path(path).resolve()))
    # A library of an earlier version has no linears.
    version = getattr(library, "swinopt_cublaslt_version", None)
    return int(version()) if version else 0


@functools.cache
def _load_cublaslt() -> None:
    """Loads the cuBLASLts of pip's: the loader, which the plugin library asks for them by name, does not look there."""
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    found = [path for folder in folders for path in folder.glob("*/lib/libcublasLt.so.*")]
    # All of them: the newest may be too new for the driver.
    for path in sorted(found):
        with suppress(OSError):
            ctypes.CDLL(str(path))


# -------------------------------------------------------------------------------------------------------- what it needs


def _program(name: str, missing: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingDependencyError(missing)
    return found


def _find_nvcc() -> Path:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    installed = sorted(Path(_CUDA_FOLDERS).glob("cuda*"), key=_natural, reverse=True)
    on_path = shutil.which("nvcc")
    candidates = [Path(home) / "bin" / "nvcc" for home in homes]
    candidates += [Path(on_path)] if on_path else []
    candidates += [folder / "bin" / "nvcc" for folder in installed]
    for candidate in candidates:
        if os.access(candidate, os.X_OK) and candidate.is_file():
            return candidate
    raise MissingDependencyError(
        "nvcc is needed to compile the plugin library, and is neither in $CUDA_HOME/bin, nor on PATH, nor in "
        f"{_CUDA_FOLDERS}/cuda*/bin: install the CUDA toolkit (https://developer.nvidia.com/cuda-downloads, or "
        "`conda install -c nvidia cuda-nvcc`). TensorRT 10 and newer also take plugins in Python, without a compiler: "
        'pip install "swinopt[tensorrt]"'
    )


def _find_headers(root: str | os.PathLike[str] | None) -> Path:
    given = root if root is not None else os.environ.get("TENSORRT_ROOT")
    places = [Path(given).expanduser()] if given else list(_usual_places())
    for place in places:
        for folder in (place, place / "include"):
            if (folder / _HEADER).is_file():
                return folder.resolve()
    if given:
        source = "tensorrt_root" if root is not None else "TENSORRT_ROOT"
        raise MissingDependencyError(
            f"{source} is {given}, and {_HEADER} is neither there nor in its folder include; give the folder that "
            "TensorRT's archive was unpacked to"
        )
    raise MissingDependencyError(
        f"TensorRT's headers ({_HEADER}) are needed to compile the plugin library, and are in none of "
        f"{', '.join(_TENSORRT_FOLDERS)}. pip's packages do not have them: unpack TensorRT's archive "
        "(https://developer.nvidia.com/tensorrt) of the version that is going to run, and give its folder as "
        "tensorrt_root or in TENSORRT_ROOT; or `apt-get install libnvinfer-headers-dev`"
    )


def _usual_places() -> Iterator[Path]:
    for pattern in _TENSORRT_FOLDERS:
        path = Path(pattern)
        yield from sorted(path.parent.glob(path.name), key=_natural, reverse=True)


def _natural(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path.name)]


def _version(headers: Path) -> tuple[int, int]:
    text = (headers / _HEADER).read_text(encoding="utf-8", errors="replace")
    numbers = []
    for part in ("MAJOR", "MINOR"):
        found = re.search(rf"#define\s+(?:TRT_{part}_RTX|TRT_{part}_ENTERPRISE|NV_TENSORRT_{part})\s+(\d+)", text)
        if found is None:
            raise SwinoptError(f"{headers / _HEADER} does not say which version of TensorRT it belongs to")
        numbers.append(int(found[1]))
    return numbers[0], numbers[1]


def _interface_major(version: tuple[int, int]) -> int:
    """The TensorRT major whose interfaces a version has; loaded.h says the same, and why."""
    major, minor = version
    if major > 1:
        return major
    return 10 if minor < 5 else 11


def _architectures(asked: str | Sequence[int | str] | None) -> list[str]:
    if asked is None:
        return []
    if asked == "native":
        return _native_architectures()
    parts = re.split(r"[;,\s]+", asked.strip()) if isinstance(asked, str) else [str(part) for part in asked]
    wrong = [part for part in parts if not re.fullmatch(r"[1-9]\d{1,2}", part)]
    if wrong or not parts:
        raise OptionError(
            f"architectures is {asked!r}; give compute capabilities without the dot, such as '80;90', or 'native'"
        )
    return sorted(dict.fromkeys(parts), key=int)


def _native_architectures() -> list[str]:
    missing = "architectures is 'native', and no NVIDIA GPU was found"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise MissingDependencyError(f"{missing}: there is no NVIDIA driver; name the architectures") from error
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        raise MissingDependencyError(f"{missing}: the driver reports no device; name the architectures")
    major_attribute, minor_attribute = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
    found = set()
    for device in range(count.value):
        major, minor = ctypes.c_int(), ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(major), major_attribute, device)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), minor_attribute, device)
        found.add(10 * major.value + minor.value)
    return [str(capability) for capability in sorted(found)]


# ------------------------------------------------------------------------------------------------------------- building


def _run(command: list[str], tell: Progress | None) -> None:
    lines: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())
            if tell is not None:
                tell(lines[-1])
    if process.returncode:
        told = "\n".join(lines[-30:])
        raise SwinoptError(f"the plugin library was not built: `{' '.join(command)}` failed\n{told}")


def _library_folder() -> Path:
    return cache_folder().parent / "plugins"


def _default_place(major: int) -> Path:
    return _library_folder() / f"libswinopt_plugins.trt{major}.so"


def _target(output: str | os.PathLike[str] | None, major: int) -> Path:
    if output is None:
        return _default_place(major)
    path = Path(output).expanduser()
    return path / "libswinopt_plugins.so" if path.is_dir() else path


def _publish(built: Path, target: Path) -> None:
    if not built.is_file():
        raise SwinoptError(f"the build ended without an error and without {built.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # On the file system of the target, which replace() needs; a process that has the old library open keeps it.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            os.replace(shutil.copy(built, folder), target)
    except OSError as error:
        raise SwinoptError(f"the plugin library cannot be written to {target}: {error}") from error

"""Building, finding and loading the plugin library, with stand-ins for nvcc and CMake."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from swinopt import plugin_library
from swinopt.errors import MissingDependencyError, OptionError, SwinoptError
from swinopt.plugin_library import build_plugins, find_library, load_library

HEADERS = {
    "8.6": "#define NV_TENSORRT_MAJOR 8 //!< TensorRT major version.\n#define NV_TENSORRT_MINOR 6\n",
    "11.1": "#define TRT_MAJOR_ENTERPRISE 11\n#define TRT_MINOR_ENTERPRISE 1\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE\n#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE\n",
    "rtx 1.4": "#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 4\n#define NV_TENSORRT_MAJOR TRT_MAJOR_RTX\n",
    "rtx 1.7": "#define TRT_MAJOR_RTX 1\n#define TRT_MINOR_RTX 7\n#define NV_TENSORRT_MAJOR TRT_MAJOR_RTX\n",
}

# Notes how it was called, and "compiles" where -B or --build points to.
CMAKE = """#!/bin/sh
echo "$@" >> "$CALLS"
echo "line of $1"
if [ "$1" = "--build" ]; then
    [ -n "$BROKEN" ] && echo "error: no such thing" && exit 2
    [ -z "$NOTHING" ] && echo "a library" > "$2/libswinopt_plugins.so"
fi
exit 0
"""


class Machine:
    """A machine on which nothing is installed but what a test asks for."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.monkeypatch = root, monkeypatch
        self.bin, self.cache, self.calls = root / "bin", root / "cache", root / "calls"
        self.bin.mkdir()
        monkeypatch.setenv("PATH", str(self.bin))
        monkeypatch.setenv("SWINOPT_CACHE", str(self.cache))
        monkeypatch.setenv("CALLS", str(self.calls))
        for name in ("CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT", "CXX", "BROKEN", "NOTHING", plugin_library.VARIABLE):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(plugin_library, "_CUDA_FOLDERS", str(root / "local"))
        monkeypatch.setattr(plugin_library, "_TENSORRT_FOLDERS", (str(root / "local" / "TensorRT*"),))

    def program(self, path: Path, text: str = "#!/bin/sh\n") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def tools(self) -> Machine:
        self.program(self.bin / "cmake", CMAKE)
        self.program(self.bin / "g++")
        self.program(self.bin / "nvcc")
        return self

    def headers(self, folder: str, version: str = "11.1") -> Path:
        place = self.root / folder
        place.mkdir(parents=True)
        (place / "NvInferVersion.h").write_text(HEADERS[version])
        return place

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


# -------------------------------------------------------------------------------------------------- what is missing


def test_cmake_is_asked_for_before_anything_else(machine: Machine) -> None:
    with pytest.raises(MissingDependencyError, match="pip install cmake"):
        build_plugins()


def test_nvcc_is_asked_for_with_the_places_that_were_searched(machine: Machine) -> None:
    machine.tools()
    (machine.bin / "nvcc").unlink()
    with pytest.raises(MissingDependencyError, match=r"nvcc .* \$CUDA_HOME/bin, nor on PATH, nor in .*cuda\*/bin"):
        build_plugins()


def test_a_compiler_is_asked_for(machine: Machine) -> None:
    machine.tools()
    (machine.bin / "g++").unlink()
    with pytest.raises(MissingDependencyError, match=r"apt-get install g\+\+"):
        build_plugins()


def test_headers_are_asked_for_with_the_places_that_were_searched(machine: Machine) -> None:
    machine.tools()
    with pytest.raises(MissingDependencyError, match=r"local/TensorRT\*.*tensorrt_root or in TENSORRT_ROOT"):
        build_plugins()
    assert machine.called() == []


@pytest.mark.parametrize("way", ["tensorrt_root", "TENSORRT_ROOT"])
def test_a_folder_without_headers_is_named_and_no_other_is_taken_for_it(machine: Machine, way: str) -> None:
    machine.tools().headers("local/TensorRT-11/include")
    empty = machine.root / "empty"
    empty.mkdir()
    if way == "TENSORRT_ROOT":
        machine.monkeypatch.setenv(way, str(empty))
    with pytest.raises(MissingDependencyError, match=rf"{way} is .*empty, and NvInferVersion.h is neither there"):
        build_plugins(tensorrt_root=empty if way == "tensorrt_root" else None)


def test_headers_that_tell_no_version_are_refused(machine: Machine) -> None:
    place = machine.tools().headers("headers")
    (place / "NvInferVersion.h").write_text("// nothing\n")
    with pytest.raises(SwinoptError, match="does not say which version"):
        build_plugins(tensorrt_root=place)


@pytest.mark.parametrize("asked", ["sm_90", "9.0", "", "90;x", [90, "fast"], []])
def test_architectures_are_compute_capabilities(machine: Machine, asked: str | list[int | str]) -> None:
    with pytest.raises(OptionError, match="compute capabilities without the dot"):
        build_plugins(architectures=asked)


def test_there_is_at_least_one_job(machine: Machine) -> None:
    with pytest.raises(OptionError, match="jobs is 0"):
        build_plugins(jobs=0)


def test_native_needs_a_gpu(machine: Machine) -> None:
    def no_driver(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    machine.monkeypatch.setattr(plugin_library.ctypes, "CDLL", no_driver)
    with pytest.raises(MissingDependencyError, match="no NVIDIA GPU was found: there is no NVIDIA driver"):
        build_plugins(architectures="native")


# ---------------------------------------------------------------------------------------------------- what is found


def test_cuda_home_comes_before_path_and_the_newest_toolkit_last(machine: Machine) -> None:
    machine.tools()
    home = machine.program(machine.root / "home" / "bin" / "nvcc")
    for name in ("cuda-9.2", "cuda-12.8", "cuda-13.0"):
        newest = machine.program(machine.root / "local" / name / "bin" / "nvcc")
    machine.monkeypatch.setenv("CUDA_HOME", str(machine.root / "home"))
    assert plugin_library._find_nvcc() == home
    machine.monkeypatch.delenv("CUDA_HOME")
    assert plugin_library._find_nvcc() == machine.bin / "nvcc"
    (machine.bin / "nvcc").unlink()
    assert plugin_library._find_nvcc() == newest


def test_headers_come_from_the_newest_tensorrt_unless_one_is_named(machine: Machine) -> None:
    machine.tools()
    old = machine.headers("local/TensorRT-8.6.1/include", "8.6")
    new = machine.headers("local/TensorRT-11.1.0/include")
    assert plugin_library._find_headers(None) == new.resolve()
    machine.monkeypatch.setenv("TENSORRT_ROOT", str(old.parent))
    assert plugin_library._find_headers(None) == old.resolve()
    assert plugin_library._find_headers(new) == new.resolve()


@pytest.mark.parametrize(("version", "major"), [("8.6", 8), ("11.1", 11), ("rtx 1.4", 10), ("rtx 1.7", 11)])
def test_a_library_is_found_by_the_tensorrt_it_was_built_for(machine: Machine, version: str, major: int) -> None:
    built = build_plugins(tensorrt_root=machine.tools().headers("headers", version))
    assert built == machine.cache / "plugins" / f"libswinopt_plugins.trt{major}.so"
    assert built.read_text() == "a library\n" and os.access(built, os.R_OK)
    found = {name for name in ("8.6.0", "10.15.1.29", "11.4.0.106", "1.4.0.76", "1.7.1.116") if find_library(name)}
    assert found == {8: {"8.6.0"}, 10: {"10.15.1.29", "1.4.0.76"}, 11: {"11.4.0.106", "1.7.1.116"}}[major]


def test_without_a_version_the_library_that_was_built_last_is_found(machine: Machine) -> None:
    assert find_library() is None
    machine.tools()
    old = build_plugins(tensorrt_root=machine.headers("a", "11.1"))
    os.utime(old, (1, 1))
    new = build_plugins(tensorrt_root=machine.headers("b", "8.6"))
    assert find_library() == new != old


def test_the_environment_names_a_library(machine: Machine, tmp_path: Path) -> None:
    build_plugins(tensorrt_root=machine.tools().headers("headers"))
    own = tmp_path / "own.so"
    machine.monkeypatch.setenv("SWINOPT_PLUGINS", str(own))
    with pytest.raises(SwinoptError, match=r"SWINOPT_PLUGINS names .*own\.so, which is no file"):
        find_library()
    own.touch()
    assert find_library() == find_library("8.6.0") == own


# ------------------------------------------------------------------------------------------------------------ building


def test_cmake_is_told_what_was_found_and_asked_for(machine: Machine) -> None:
    headers = machine.tools().headers("headers")
    output = machine.root / "deep" / "plugins.so"
    assert build_plugins(output, tensorrt_root=headers, architectures=[90, "80", 90], jobs=3) == output
    configure, build = machine.called()
    assert f"-S{plugin_library.SOURCES / 'tensorrt'}" in configure
    assert f"-DCMAKE_CUDA_COMPILER={machine.bin / 'nvcc'}" in configure
    assert f"-DTENSORRT_INCLUDE_DIR={headers.resolve()}" in configure
    assert configure.endswith("-DSWINOPT_CUDA_ARCHITECTURES=80;90")
    assert build.endswith("--parallel 3")


def test_the_sources_say_what_the_default_architectures_are(machine: Machine) -> None:
    build_plugins(tensorrt_root=machine.tools().headers("headers"))
    assert "ARCHITECTURES" not in machine.called()[0]


def test_an_output_folder_gets_the_library(machine: Machine, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    assert build_plugins(folder, tensorrt_root=machine.tools().headers("h")) == folder / "libswinopt_plugins.so"
    assert [path.name for path in folder.iterdir()] == ["libswinopt_plugins.so"]


def test_progress_gets_every_line(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    headers = machine.tools().headers("headers")
    lines: list[str] = []
    build_plugins(tensorrt_root=headers, progress=lines.append)
    assert [line.split()[-1][:2] for line in lines] == ["-S", "--"]
    assert capsys.readouterr().out == ""
    build_plugins(tensorrt_root=headers, progress=True)
    assert capsys.readouterr().out.splitlines()[-1] == "line of --build"


@pytest.mark.parametrize(
    ("fault", "message"), [("BROKEN", "no such thing"), ("NOTHING", "without libswinopt_plugins.so")]
)
def test_a_build_that_fails_leaves_the_library_that_was_there(machine: Machine, fault: str, message: str) -> None:
    headers = machine.tools().headers("headers")
    output = machine.root / "out" / "plugins.so"
    output.parent.mkdir()
    output.write_text("the old one")
    machine.monkeypatch.setenv(fault, "1")
    with pytest.raises(SwinoptError, match=message):
        build_plugins(output, tensorrt_root=headers)
    assert [path.name for path in output.parent.iterdir()] == ["plugins.so"]
    assert output.read_text() == "the old one"


def test_a_copy_that_fails_leaves_the_library_that_was_there(machine: Machine) -> None:
    headers = machine.tools().headers("headers")
    output = machine.root / "out" / "plugins.so"
    output.parent.mkdir()
    output.write_text("the old one")

    def full(source: Path, folder: str) -> str:
        (Path(folder) / "half").write_text("a li")
        raise OSError("No space left on device")

    machine.monkeypatch.setattr(plugin_library.shutil, "copy", full)
    with pytest.raises(SwinoptError, match=r"cannot be written to .*plugins\.so: No space left"):
        build_plugins(output, tensorrt_root=headers)
    assert [path.name for path in output.parent.iterdir()] == ["plugins.so"]
    assert output.read_text() == "the old one"


def test_a_folder_that_cannot_be_made_is_an_error_of_swinopt(machine: Machine) -> None:
    (machine.root / "file").touch()
    with pytest.raises(SwinoptError, match="cannot be written"):
        build_plugins(machine.root / "file" / "plugins.so", tensorrt_root=machine.tools().headers("headers"))


# ------------------------------------------------------------------------------------------------------------- loading


def test_a_file_that_is_no_library_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "plugins.so"
    path.write_text("a library")
    with pytest.raises(SwinoptError, match=r"plugins\.so is no library of swinopt plugins"):
        load_library(path)


def test_a_library_of_something_else_cannot_be_loaded() -> None:
    with pytest.raises(SwinoptError, match=r"is no library of swinopt plugins .* swinopt_plugins_status"):
        load_library(_a_system_library())


def _a_system_library() -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        if ".so" in line and "libc" in line:
            return line.split()[-1]
    pytest.skip("this process has loaded no libc.so")


def test_the_reason_that_the_library_gives_is_passed_on(tmp_path: Path) -> None:
    source = 'extern "C" char const* swinopt_plugins_status() { return "built for TensorRT 8"; }\n'
    path = tmp_path / "plugins.so"
    try:
        subprocess.run(
            ["c++", "-shared", "-fPIC", "-x", "c++", "-o", str(path), "-"], input=source.encode(), check=True
        )
    except FileNotFoundError:
        pytest.skip("no C++ compiler (c++) on this machine")
    with pytest.raises(SwinoptError, match=r"plugins\.so: built for TensorRT 8"):
        load_library(path)


# ------------------------------------------------------------------------------------------------------------- cuBLASLt


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packages with two cuBLASLts, of which the newer is damaged; the files that were loaded, by name."""
    loaded: list[str] = []
    for place in ("cublas/lib/libcublasLt.so.12", "cu13/lib/libcublasLt.so.13", "cu13/lib/libcublas.so.13"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()

    def load(path: str) -> object:
        if path.endswith(".13"):
            raise OSError("damaged")
        loaded.append(Path(path).name)
        return object()

    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(plugin_library, "find_spec", lambda name: spec)
    monkeypatch.setattr(plugin_library.ctypes, "CDLL", load)
    plugin_library._load_cublaslt.cache_clear()
    monkeypatch.setattr(plugin_library, "_load_cublaslt", plugin_library._load_cublaslt.__wrapped__)
    return loaded


def test_every_cublaslt_of_pip_that_loads_is_loaded(pip: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plugin_library._load_cublaslt()
    assert pip == ["libcublasLt.so.12"]
    monkeypatch.setattr(plugin_library.ctypes, "CDLL", lambda path: pip.append(Path(path).name))
    plugin_library._load_cublaslt()
    assert pip[1:] == ["libcublasLt.so.13", "libcublasLt.so.12"]


def test_without_packages_of_nvidia_nothing_is_loaded(pip: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin_library, "find_spec", lambda name: None)
    plugin_library._load_cublaslt()
    assert pip == []

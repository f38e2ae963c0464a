"""Every kernel that a plan can name compiles for every architecture, and what was compiled once is kept."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from swinopt import cuda_plugins
from swinopt.cuda_plugins import nvrtc
from swinopt.cuda_plugins.launch import CUDA_TYPES, Device, Launch, Tensor
from swinopt.cuda_plugins.nvrtc import CudaError
from swinopt.errors import MissingDependencyError

pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
TOY = "template <class T> __global__ void twice(T* x) { *x += *x; }"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWINOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


# -------------------------------------------------------------------------------------------------------- all kernels


def attention(
    dtype: str, window: int, head_dim: int, *, cosine: bool, pointer: int, device: Device, batch: int = 900
) -> Launch:
    """Of a window an image: many of them, which have blocks to themselves, or few, which several blocks share."""

    def tensor(*shape: int) -> Tensor:
        return Tensor(shape, dtype, pointer)

    n, channels = window * window, 2 * head_dim
    return cuda_plugins.plan(
        "WindowAttention",
        [tensor(batch, window, window, 3 * channels), tensor(2, n, n), tensor(2) if cosine else None, None],
        [tensor(batch, window, window, channels)],
        {"window_size": [window] * 2, "shift_size": [0, 0], "num_heads": 2, "scale": 1.0},
        device,
    )


def add_layer_norm(dtype: str, channels: int, pointer: int, device: Device) -> Launch:
    rows, weights = Tensor((5, channels), dtype, pointer), Tensor((channels,), dtype, pointer)
    attributes = {"epsilon": 1e-5}
    return cuda_plugins.plan("AddLayerNorm", [rows, rows, weights, weights], [rows, rows], attributes, device)


def layer_norm(dtype: str, channels: int, pointer: int, device: Device, *, residual: bool) -> Launch:
    rows, weights = Tensor((5, channels), dtype, pointer), Tensor((channels,), dtype, pointer)
    inputs = [rows, weights, weights, rows if residual else None]
    return cuda_plugins.plan("LayerNorm", inputs, [rows], {"epsilon": 1e-5}, device)


def patch_merging(dtype: str, channels: int, pointer: int, device: Device) -> Launch:
    x, weights = Tensor((1, 5, 5, channels), dtype, pointer), Tensor((4 * channels,), dtype, pointer)
    output = Tensor((1, 3, 3, 4 * channels), dtype, pointer)
    return cuda_plugins.plan("PatchMerging", [x, weights, weights], [output], {"epsilon": 1e-5}, device)


def launches(capability: int) -> Iterator[Launch]:
    device = Device(capability, multiprocessors=100, shared_bytes=64 * 1024)
    larger = Device(capability, multiprocessors=100, shared_bytes=160 * 1024)
    dtypes = [dtype for dtype in CUDA_TYPES if dtype != "bfloat16" or capability >= 80]
    for dtype, pointer in itertools.product(dtypes, (0, 4)):  # aligned to 16 bytes, or to an element alone
        for window, dim, cosine in itertools.product((4, 5, 7, 8, 12), (16, 32, 64, 96, 128), (False, True)):
            for batch in (1, 50, 900):
                yield attention(dtype, window, dim, cosine=cosine, pointer=pointer, device=device, batch=batch)
            if dtype == "float32":
                yield attention(dtype, window, dim, cosine=cosine, pointer=pointer, device=larger)
        for channels in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096):
            yield add_layer_norm(dtype, channels, pointer, device)
            for residual in (False, True):
                yield layer_norm(dtype, channels, pointer, device, residual=residual)
            yield patch_merging(dtype, channels // 4, pointer, device)


def kernels_for(capability: int) -> frozenset[tuple[str, str]]:
    return frozenset((launch.source, launch.kernel) for launch in launches(capability))


def test_no_source_tells_more_architectures_apart() -> None:
    """Compiling all kernels takes a minute, so that of those which get the same ones one has to do."""
    sources = "".join(path.read_text(encoding="utf-8") for path in cuda_plugins.SOURCES.rglob("*.cuh"))
    borders = set(re.findall(r"__CUDA_ARCH__ *(\S+ *\w+)", sources))
    assert borders == {">= 800", ">= 900", "== 900"}
    assert len({kernels_for(capability) for capability in ARCHITECTURES[1:]}) == 1


@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_every_kernel_that_a_plan_can_name_compiles(capability: int) -> None:
    kernels = kernels_for(capability)
    assert {source.split("/")[0] for source, _ in kernels} == set(cuda_plugins.FOLDERS.values())
    assert {row_tiles for _, kernel in kernels for row_tiles in re.findall(r"small<__half, 7, (\d)", kernel)} == set(
        "124"
    )
    for source, kernel in sorted(kernels):
        compiled = nvrtc.compile(source, kernel, capability, ptx=True)
        assert compiled.target == f"compute_{capability}"
        assert f".entry {compiled.lowered_name}(".encode() in compiled.code


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_the_kernels_of_the_usual_models_keep_to_registers(capability: int) -> None:
    device = Device(capability, multiprocessors=100, shared_bytes=64 * 1024)
    few = partial(attention, cosine=False, pointer=0, device=device)
    hot = [few("float16", 7, 32, batch=batch) for batch in (1, 50, 900)]
    if capability >= 80:
        hot += [attention("float32", w, 32, cosine=w > 7, pointer=0, device=device) for w in (7, 8, 12, 16)]
    for dtype in ("float16", "bfloat16") if capability >= 80 else ("float16",):
        hot += [attention(dtype, window, 32, cosine=True, pointer=0, device=device) for window in (8, 16)]
        hot.append(attention(dtype, 12, 32, cosine=False, pointer=0, device=device))
        hot += [add_layer_norm(dtype, channels, 0, device) for channels in (96, 1024)]
        hot += [layer_norm(dtype, c, 0, device, residual=r) for c in (96, 1024, 8192) for r in (False, True)]
        hot += [patch_merging(dtype, channels, 0, device) for channels in (96, 512)]
    spilled = {}
    for launch in hot:
        compiled = nvrtc.compile(launch.source, launch.kernel, capability)
        assert (compiled.target, compiled.code[:4]) == (f"sm_{capability}", b"\x7fELF")
        spilled[launch.kernel] = nvrtc.spills(compiled.log)
    assert not any(spilled.values()), spilled


# ---------------------------------------------------------------------------------------------------- one compilation


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources in place of ours, with a kernel ``twice`` in ``toy/kernel.cuh``."""
    kernel = tmp_path / "sources" / "toy" / "kernel.cuh"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('#include <cuda_fp16.h>\n#include "../factor.h"\n' + TOY)
    (kernel.parent.parent / "factor.h").write_text("constexpr int kFactor = 2;\n")
    monkeypatch.setattr(nvrtc, "SOURCES", tmp_path / "sources")
    return kernel.parent.parent


def compile_toy(capability: int = 90, *, kernel: str = "twice<float>", ptx: bool = False) -> nvrtc.Compiled:
    return nvrtc.compile("toy/kernel.cuh", kernel, capability, ptx=ptx)


@pytest.mark.usefixtures("sources")
def test_an_architecture_that_nvrtc_knows_gets_a_cubin_and_one_after_it_ptx() -> None:
    cubin, ptx = compile_toy(90), compile_toy(999)
    assert (cubin.target, cubin.code[:4]) == ("sm_90", b"\x7fELF")
    assert nvrtc.spills(cubin.log) == 0
    # That of the newest architecture known, which every later GPU can run.
    assert int(ptx.target.removeprefix("compute_")) >= 120
    assert f".entry {ptx.lowered_name}(".encode() in ptx.code
    assert ptx.code.endswith(b"\0")
    with pytest.raises(ValueError, match="compiled to a cubin"):
        nvrtc.spills(ptx.log)


@pytest.mark.usefixtures("sources")
def test_a_gpu_older_than_nvrtc_knows_is_refused() -> None:
    with pytest.raises(CudaError, match=r"compute capability \d\.\d and newer, this one has 3\.5"):
        compile_toy(35)


def test_what_does_not_compile_is_told_with_the_log(sources: Path) -> None:
    with pytest.raises(CudaError, match=r"(?s)thrice<float> does not compile for sm_90: NVRTC_ERROR.*thrice"):
        compile_toy(kernel="thrice<float>")
    (sources / "toy" / "kernel.cuh").write_text("__global__ void twice( {}")
    with pytest.raises(CudaError, match=r"(?s)NVRTC_ERROR_COMPILATION.*kernel\.cuh\(1\): error"):
        compile_toy()


# -------------------------------------------------------------------------------------------------------------- cache


def entries(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that really were compiled."""
    compiled: list[str] = []

    def compile(*arguments: Any) -> nvrtc.Compiled:
        compiled.append(arguments[2])
        return original(*arguments)

    original = nvrtc._compile
    monkeypatch.setattr(nvrtc, "_compile", compile)
    return compiled


@pytest.mark.usefixtures("sources")
def test_the_second_time_nothing_is_compiled(cache: Path, compilations: list[str]) -> None:
    first = compile_toy()
    assert compile_toy() == first
    assert compilations == ["twice<float>"]
    assert [path.suffix for path in entries(cache)] == [".kernel"]


def test_what_the_code_depends_on_makes_another_entry(sources: Path, cache: Path, compilations: list[str]) -> None:
    compile_toy(90)
    compile_toy(80)
    compile_toy(90, ptx=True)
    compile_toy(90, kernel="twice<__half>")
    (sources / "factor.h").write_text("constexpr int kFactor = 3;\n")
    compile_toy(90)
    assert len(compilations) == len(entries(cache)) == 5


@pytest.mark.usefixtures("sources")
@pytest.mark.parametrize("damage", [b"", b"too short", None])
def test_a_damaged_entry_is_compiled_again(damage: bytes | None, cache: Path, compilations: list[str]) -> None:
    first = compile_toy()
    (entry,) = entries(cache)
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if damage is None else damage)
    assert compile_toy().code == first.code
    assert len(compilations) == 2
    assert compile_toy().code == first.code
    assert len(compilations) == 2


@pytest.mark.usefixtures("sources")
def test_a_cache_that_cannot_be_written_does_not_matter(cache: Path, compilations: list[str]) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert compile_toy().code == compile_toy().code
    assert len(compilations) == 2


@pytest.mark.usefixtures("sources")
def test_a_write_that_fails_leaves_nothing_behind(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(nvrtc.os, "replace", fail)
    compile_toy()
    assert entries(cache) == []


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    monkeypatch.setenv("SWINOPT_CACHE", "/own")
    assert nvrtc.cache_folder() == Path("/own/kernels")
    monkeypatch.delenv("SWINOPT_CACHE")
    assert nvrtc.cache_folder() == Path("/shared/swinopt/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert nvrtc.cache_folder() == Path("/home/somebody/.cache/swinopt/kernels")


# ----------------------------------------------------------------------------------------------------- what is missing

PIP = re.escape('pip install "swinopt[kernels]"')


def test_missing_bindings_are_named_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingDependencyError, match=f"cuda-bindings: {PIP}"):
        compile_toy()


def test_a_missing_nvrtc_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found() -> None:
        raise RuntimeError("libnvrtc.so.13 was not found")

    monkeypatch.setattr("cuda.bindings.nvrtc.nvrtcVersion", not_found)
    with pytest.raises(MissingDependencyError, match=rf"NVRTC library: {PIP}.*libnvrtc\.so\.13"):
        compile_toy()


@pytest.mark.usefixtures("sources")
def test_missing_headers_are_named_with_what_installs_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(nvrtc, "_header_folders", lambda major: iter([tmp_path / f"cuda{major}"]))
    with pytest.raises(MissingDependencyError, match=rf"headers of CUDA \d+: {PIP}.*{tmp_path}/cuda\d+"):
        compile_toy()


def test_headers_of_a_toolkit_serve_where_pip_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_fp16.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert nvrtc._cuda_headers(13) == tmp_path / "include"

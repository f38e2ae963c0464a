"""The sub-commands for TensorRT: what they pass on, print and write, with an engine that needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt import cli, cuda, plugin_library, tensorrt, tensorrt_module
from swinopt.choice import Choice
from swinopt.engine import Engine
from swinopt.errors import MissingDependencyError
from swinopt.interface import Interface, Value
from swinopt.testing import parse
from tests import fake_gpu


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(parse("g (float[N, 3] x) => (float[N, 3] y) { y = Add(x, x) }"), tmp_path / "model.onnx")
    (tmp_path / "an.engine").write_bytes(b"plan")
    return tmp_path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = fake_gpu.Runtime()
    monkeypatch.setattr(cuda, "runtime", lambda: runtime)
    monkeypatch.setattr(tensorrt_module, "register_what_there_is", lambda trt: None)
    monkeypatch.setattr(tensorrt_module, "find", lambda name=None: fake_gpu.TensorRT())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What build was asked for."""
    found: dict[str, Any] = {}

    def build(model: Any, **options: Any) -> Engine:
        found.update(options, model=model)
        values = {"x": Value("float32", (-1, 3))}
        choice = Choice("PatchMerging", {}, {"x": (1, 8, 8, 4)}, ("y", "z"), 2.0, 1.0, "standard", "2.00 times as fast")
        return Engine(
            b"plan",
            fake_gpu.TensorRT(),
            interface=Interface(values, values),
            plugin_layers=2,
            precision="bf16",
            notes=["a note"],
            choices=[choice],
        )

    monkeypatch.setattr(tensorrt, "build", build)
    return found


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("swinopt: error: ") and captured.err.count("\n") == 1
    return captured.err


# --------------------------------------------------------------------------------------------------------------- build


def test_build_passes_everything_on(folder: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--precision", "bf16", "--profile", "x=1x3,4x3,8x3", "--timing-cache", "t.cache", "--plugins", "off"]
    more = ["--workspace", "64", "--optimization-level", "2", "--tensorrt", "tensorrt_rtx"]
    assert cli.main(["build", "model.onnx", "-o", "out.engine", *options, *more]) == cli.OK
    assert asked == {
        "model": "model.onnx",
        "precision": "bf16",
        "profiles": [{"x": ((1, 3), (4, 3), (8, 3))}],
        "timing_cache": "t.cache",
        "plugins": "off",
        "workspace": 64,
        "optimization_level": 2,
        "progress": False,
        "tensorrt": "tensorrt_rtx",
    }
    assert Path("out.engine").read_bytes() == b"plan"
    printed = capsys.readouterr().out
    assert "out.engine" in printed and "2 plugin layers" in printed and "a note" in printed
    assert "plugin ms  standard ms" in printed and "standard  2.00 times as fast" in printed


def test_build_as_json_and_quiet(folder: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", "model.onnx", "-o", "out.engine", "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["path"], found["bytes"], found["plugin_layers"], found["notes"]) == ("out.engine", 4, 2, ["a note"])
    assert (found["choices"][0]["op"], found["choices"][0]["chosen"]) == ("PatchMerging", "standard")
    assert asked["profiles"] is None and asked["precision"] == "fp16" and asked["plugins"] == "auto"
    assert cli.main(["build", "model.onnx", "-o", "out.engine", "--plugins", "on", "--quiet"]) == cli.OK
    assert asked["plugins"] == "on"
    assert cli.main(["build", "model.onnx", "-o", "out.engine", "--quiet"]) == cli.OK
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.onnx", "-o", "out.engine", "--profile", "x=1"], "write it as --profile"),
        (["model.onnx", "-o", "no/such/folder/x.engine"], "cannot be written"),
        (["model.onnx", "-o", "./model.onnx"], "different files"),
    ],
)
def test_build_refuses_before_any_work(
    arguments: list[str], message: str, folder: Path, asked: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", *arguments]) == cli.BAD_INPUT
    assert message in one_line(capsys)
    assert not asked


def test_build_with_tensorrt_rtx(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs TensorRT-RTX")
    arguments = ["--tensorrt", "tensorrt_rtx", "--precision", "fp32", "--profile", "x=1x3,4x3,8x3", "--json"]
    assert cli.main(["build", "model.onnx", "-o", "out.engine", *arguments]) == cli.OK
    assert json.loads(capsys.readouterr().out)["bytes"] == Path("out.engine").stat().st_size > 1000


# ----------------------------------------------------------------------------------------------------------- run, bench


@pytest.mark.parametrize("name", ["x.npy", "x=x.npy", "all.npz"])
def test_run_reads_and_writes_arrays(name: str, folder: Path, gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.save("x.npy", x)
    np.savez("all.npz", x=x)
    assert cli.main(["run", "an.engine", "--input", name, "-o", "out.npz"]) == cli.OK
    np.testing.assert_array_equal(np.load("out.npz")["y"], 2 * x)
    assert capsys.readouterr().out == "out.npz: y float32[2, 3]\n"


def test_bfloat16_is_written_as_what_files_can_hold(
    folder: Path, gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    monkeypatch.setattr(Engine, "run", lambda *_: {"y": np.array([1.5, -2], ml_dtypes.bfloat16)})
    np.save("x.npy", np.zeros((1, 3), np.float32))
    assert cli.main(["run", "an.engine", "--input", "x.npy", "-o", "out.npz"]) == cli.OK
    np.testing.assert_array_equal(np.load("out.npz")["y"], np.array([1.5, -2], np.float32))
    assert capsys.readouterr().out == "out.npz: y float32[2]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["an.engine", "--input", "no.npy", "-o", "out.npz"], "no.npy is no .npy or .npz file"),
        (["an.engine", "--input", "an.engine", "-o", "out.npz"], "an.engine is no .npy or .npz file"),
        (["an.engine", "--input", "cut.npz", "-o", "out.npz"], "cut.npz is no .npy or .npz file"),
        (["an.engine", "--input", "x.npy", "-o", "out.npy"], "outputs are written as .npz"),
        (["an.engine", "--input", "x.npy", "--input", "z=x.npy", "-o", "out.npz"], "several inputs need names"),
        (["an.engine", "--input", "z=x.npy", "-o", "out.npz"], "takes x as inputs, and z was given"),
        (["no.engine", "--input", "x.npy", "-o", "out.npz"], "no.engine cannot be read"),
    ],
)
def test_run_refuses(
    arguments: list[str], message: str, folder: Path, gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("x.npy", np.zeros((1, 3), np.float32))
    np.savez("cut.npz", x=np.zeros((1, 3), np.float32))
    Path("cut.npz").write_bytes(Path("cut.npz").read_bytes()[:100])
    assert cli.main(["run", *arguments]) == cli.BAD_INPUT
    assert message in one_line(capsys)
    assert not Path("out.npz").exists()


def test_bench_prints_the_timing_and_the_layers(folder: Path, gpu: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "an.engine", "--batch", "3", "--runs", "5", "--layers"]) == cli.OK
    printed = capsys.readouterr().out
    assert "median 3.000 ms" in printed and "x 3x3; 5 runs" in printed and "large" in printed
    assert cli.main(["bench", "an.engine", "--shape", "x=6x3", "--no-graph", "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert (found["shapes"], found["cuda_graph"], found["runs"]) == ({"x": [6, 3]}, False, 200)
    assert cli.main(["bench", "an.engine", "--layers", "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert list(found["layers"]) == ["large", "small"] and found["kinds"] == {"other": sum(found["layers"].values())}
    assert cli.main(["bench", "an.engine", "--shape", "6x3"]) == cli.BAD_INPUT
    assert "write it as --shape" in one_line(capsys)


# ------------------------------------------------------------------------------------------------------- build-plugins


def test_build_plugins_passes_everything_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def build_plugins(output: Any = None, **options: Any) -> Path:
        asked.append((output, options))
        path = Path("libswinopt_plugins.so")
        path.write_bytes(b"1234")
        return path

    monkeypatch.setattr(plugin_library, "build_plugins", build_plugins)
    options = ["-o", "p.so", "--tensorrt-root", "/opt/trt", "--architectures", "80,90", "--json"]
    assert cli.main(["build-plugins", *options]) == cli.OK
    assert asked == [("p.so", {"tensorrt_root": "/opt/trt", "architectures": "80,90"})]
    assert json.loads(capsys.readouterr().out) == {"path": "libswinopt_plugins.so", "bytes": 4}


def test_build_plugins_without_a_compiler_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build_plugins(*_: Any, **__: Any) -> Path:
        raise MissingDependencyError("nvcc is needed")

    monkeypatch.setattr(plugin_library, "build_plugins", build_plugins)
    assert cli.main(["build-plugins"]) == cli.BAD_INPUT
    assert "nvcc is needed" in one_line(capsys)

"""The command line: what it prints, what it returns, and that bad input is one line, exit code 2 and no file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

import swinopt
from swinopt import cli, registry
from swinopt.rewrite import Rewriter

pytest.importorskip("onnxruntime")

PASSES = "fold-constants, eliminate-noops"


def example(bias: float = 0.5) -> onnx.ModelProto:
    """x -> MatMul -> hidden -> Identity -> same -> Add -> y"""
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["hidden"]),
            helper.make_node("Identity", ["hidden"], ["same"]),
            helper.make_node("Transpose", ["same"], ["turned"], perm=[0, 1]),
            helper.make_node("Add", ["turned", "b"], ["y"]),
        ],
        "example",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.full(8, bias, np.float32), "b")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="example")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, holding model.onnx and, of the same interface, other.onnx."""
    onnx.save(example(), tmp_path / "model.onnx")
    onnx.save(example(bias=0.75), tmp_path / "other.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"model.onnx", "other.onnx"}


# ----------------------------------------------------------------------------------------------------------- optimize


def test_optimize_writes_the_model_and_prints_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "model.onnx", "-o", "out.onnx", "--passes", PASSES]) == cli.OK
    out, err = capsys.readouterr()
    assert "eliminate-noops" in out and "out.onnx" in out and not err
    assert [node.op_type for node in onnx.load("out.onnx").graph.node] == ["MatMul", "Add"]
    assert swinopt.compare("model.onnx", "out.onnx").passed
    assert files(folder) == {"out.onnx"}


def test_optimize_runs_the_pipeline_of_the_target(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "model.onnx", "-o", "out.onnx", "--target", "portable", "--json"]) == cli.OK
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == "portable" and report["verified"] is True
    assert [entry["name"] for entry in report["passes"]] == [step.name for step in swinopt.pipeline("portable")]


def test_optimize_without_verification_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["optimize", "model.onnx", "-o", "out.onnx", "--passes", PASSES, "--no-verify", "--json"]
    assert cli.main(arguments) == cli.OK
    assert json.loads(capsys.readouterr().out)["verified"] is False


@pytest.mark.parametrize(("name", "start"), [("report.html", "<!doctype html>"), ("report.json", "{")])
def test_optimize_writes_the_report(name: str, start: str, folder: Path) -> None:
    assert cli.main(["optimize", "model.onnx", "-o", "out.onnx", "--passes", PASSES, "--report", name]) == cli.OK
    text = Path(name).read_text(encoding="utf-8")
    assert text.lower().startswith(start) and "eliminate-noops" in text
    assert files(folder) == {"out.onnx", name}


def test_quiet_prints_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "model.onnx", "-o", "out.onnx", "--passes", PASSES, "--quiet"]) == cli.OK
    assert capsys.readouterr() == ("", "")


@dataclass(frozen=True)
class Break(swinopt.Pass):
    """Doubles a weight."""

    name: ClassVar[str] = "break"

    def run(self, rewriter: Rewriter) -> None:
        weight = next(t for t in rewriter.graph.tensors().values() if isinstance(t, gs.Constant) and len(t.shape) == 2)
        weight.values = 2 * weight.values
        rewriter.applied += 1


def test_a_pass_that_is_rolled_back_is_exit_code_1(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "available", lambda: {"break": Break})
    assert cli.main(["optimize", "model.onnx", "-o", "out.onnx", "--passes", "break"]) == cli.DIFFERENT
    out = capsys.readouterr().out
    assert "rolled back: break" in out and "hidden" in out
    assert swinopt.compare("model.onnx", "out.onnx").passed


def test_progress_goes_to_stderr_and_only_to_a_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert cli.main(["optimize", "model.onnx", "-o", "out.onnx", "--passes", PASSES, "--json"]) == cli.OK
    out, err = capsys.readouterr()
    json.loads(out)
    assert err


# ------------------------------------------------------------------------------------------- the other sub-commands


def test_inspect_tells_what_a_model_is_made_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "model.onnx"]) == cli.OK
    out = capsys.readouterr().out
    for part in ("example", "ai.onnx 17", "x float[batch, 8]", "y float[batch, 8]", "1 of 4 nodes", "1 MatMul"):
        assert part in out


def test_inspect_goes_to_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "model.onnx", "--json"]) == cli.OK
    found = json.loads(capsys.readouterr().out)
    assert found["ops"] == {"MatMul": 1, "Identity": 1, "Transpose": 1, "Add": 1}
    assert (found["nodes"], found["movement"], found["window_attention"]) == (4, 1, 0)
    assert found["opsets"] == {"ai.onnx": 17} and found["parameters"] == 72
    assert found["inputs"] == {"x": {"dtype": "float", "shape": ["batch", 8]}}
    assert found["bytes"] == Path("model.onnx").stat().st_size


def test_inspect_counts_swinopt_ops() -> None:
    model = example()
    model.graph.node.append(helper.make_node("WindowAttention", ["q", "b"], ["a"], domain="swinopt"))
    found = cli.describe(model)
    assert found["window_attention"] == 1 and found["ops"]["swinopt::WindowAttention"] == 1


def test_compare_tells_same_from_different(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "model.onnx", "model.onnx"]) == cli.OK
    assert capsys.readouterr().out.startswith("same")
    assert cli.main(["compare", "model.onnx", "other.onnx"]) == cli.DIFFERENT
    assert "first tensor that diverges: y" in capsys.readouterr().out
    assert cli.main(["compare", "model.onnx", "other.onnx", "--tolerance", "0.3"]) == cli.OK


def test_compare_goes_to_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compare", "model.onnx", "other.onnx", "--json", "--runs", "3", "--seed", "5", "--no-locate"]
    assert cli.main([*arguments, "--size", "batch=6"]) == cli.DIFFERENT
    data = json.loads(capsys.readouterr().out)
    assert data["max_abs"] == pytest.approx(0.25) and data["seeds"] == [5, 6, 7]
    assert data["outputs"]["y"]["shape"] == [6, 8] and data["first_divergence"] is None


def test_models_of_different_interfaces_are_exit_code_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = example()
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    onnx.save(model, "image.onnx")
    assert cli.main(["compare", "model.onnx", "image.onnx"]) == cli.DIFFERENT
    assert "x in a, image in b" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
def test_passes_lists_the_pipeline(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["passes", "--target", target]) == cli.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [step.name for step in swinopt.pipeline(target)]
    assert all(len(line.split()) > 2 for line in lines)


def test_passes_go_to_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["passes", "--json"]) == cli.OK
    rows = json.loads(capsys.readouterr().out)
    assert {"fold-constants", "spell-out-gelu"} <= {row["name"] for row in rows}
    assert {row["name"] for row in rows} == set(registry.available())
    assert next(row["step"] for row in rows if row["name"] == "fold-constants") == "fold-constants(budget=1048576)"
    assert all(row["summary"] for row in rows)


def test_export_writes_a_checked_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("timm")
    settings = ["img_size=56", "depths=(1,)", "embed_dim=8", "num_heads=(1,)", "num_classes=3"]
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["export", "swin_tiny_patch4_window7_224", "-o", "swin.onnx", "--exporter", "torchscript"]
    assert cli.main([*command, "--dynamic-batch", "--json", *options]) == cli.OK
    written = json.loads(capsys.readouterr().out)
    assert written == {"path": "swin.onnx", "bytes": Path("swin.onnx").stat().st_size, "checked": True}
    assert cli.describe(onnx.load("swin.onnx"))["inputs"]["input"]["shape"] == ["batch", 3, 56, 56]


# ---------------------------------------------------------------------------------------------------------- bad input


def damaged(kind: str, path: Path) -> None:
    whole = example().SerializeToString()
    contents = {
        "empty": b"",
        "truncated": whole[: len(whole) // 2],
        "text": b"this is a README, not a model\n",
        "image": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(64),
        "folder": None,
        "missing": None,
    }[kind]
    if contents is not None:
        path.write_bytes(contents)
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "image", "folder"])
@pytest.mark.parametrize("command", ["optimize", "inspect", "compare"])
def test_what_is_no_model_is_one_line_and_exit_code_2(
    command: str, kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(kind, folder / "bad.onnx")
    before = files(folder)
    rest = {"optimize": ["-o", "out.onnx", "--report", "r.html"], "inspect": [], "compare": ["model.onnx"]}[command]
    assert cli.main([command, "bad.onnx", *rest]) == cli.BAD_INPUT
    assert_one_line(capsys, "bad.onnx")
    assert files(folder) == before


@pytest.mark.parametrize("output", ["no/such/folder/out.onnx", ".", "x" * 300 + ".onnx"])
def test_an_output_that_cannot_be_written(output: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "model.onnx", "-o", output, "--passes", PASSES]) == cli.BAD_INPUT
    assert_one_line(capsys, "cannot be written")
    assert not files(folder)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder in which nobody may write")
def test_an_output_that_fails_late_leaves_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "model.onnx", "-o", "/proc/out.onnx", "--passes", PASSES]) == cli.BAD_INPUT
    assert_one_line(capsys, "/proc/out.onnx cannot be written")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "tensorrt-9000"], "there is no target 'tensorrt-9000'"),
        (["--target", "tensort"], "did you mean 'tensorrt'"),
        (["--passes", "fold-constant"], "did you mean fold-constants"),
        (["--passes", "fold-constants(size=1)"], "options of fold-constants"),
        (["--passes", "fold-constants("], "is no pass"),
        (["--report", "report.pdf"], "must end in .html or .json"),
        (["--report", "no/such/report.html"], "there is no folder"),
        (["-o", "model.onnx"], "must be different files"),
    ],
)
def test_wrong_options_of_optimize(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("model.onnx").read_bytes()
    assert cli.main(["optimize", "model.onnx", "-o", "out.onnx", *options]) == cli.BAD_INPUT
    assert_one_line(capsys, message)
    assert not files(folder) and Path("model.onnx").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["passes", "--target", "nothing"], "there is no target 'nothing'"),
        (["compare", "model.onnx", "model.onnx", "--size", "batch"], "--size name=number"),
        (["compare", "model.onnx", "model.onnx", "--runs", "0"], "at least one run"),
        (["compare", "model.onnx", "model.onnx", "--seed", "-1"], "seeds are numbers from 0"),
        (["export", "swin_tny_patch4_window7_224", "-o", "out.onnx"], "did you mean swin_tiny_patch4_window7_224"),
        (["export", "resnet18", "-o", "no/such/out.onnx"], "there is no folder"),
        (["export", "resnet18", "-o", "out.onnx", "--set", "depth"], "--set name=value"),
        (["export", "resnet18", "-o", "out.onnx", "--set", "path=x"], "path is none"),
    ],
)
def test_wrong_options_of_the_others(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "export":
        pytest.importorskip("timm")
        pytest.importorskip("onnxscript")
    assert cli.main(arguments) == cli.BAD_INPUT
    assert_one_line(capsys, message)
    assert not files(folder)


def test_missing_external_data_is_bad_input(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save_model(example(), "external.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    Path("weights.bin").unlink()
    assert cli.main(["inspect", "external.onnx"]) == cli.BAD_INPUT
    assert_one_line(capsys, "external data")


def assert_one_line(capsys: pytest.CaptureFixture[str], message: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("swinopt: error: ") and err.count("\n") == 1 and message in err


# ----------------------------------------------------------------------------------------------------- debug and usage


def test_debug_shows_where_an_error_came_from(folder: Path) -> None:
    with pytest.raises(swinopt.ModelError):
        cli.main(["inspect", "missing.onnx", "--debug"])


def test_a_fault_of_the_program_is_exit_code_3(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ZeroDivisionError("by\nzero")

    monkeypatch.setattr(cli, "describe", fail)
    assert cli.main(["inspect", "model.onnx"]) == cli.INTERNAL
    assert capsys.readouterr().err == "swinopt: internal error: ZeroDivisionError: by zero (--debug shows where)\n"


@pytest.mark.parametrize(
    "arguments", [[], ["optimise"], ["optimize", "model.onnx"], ["inspect", "model.onnx", "--what"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == cli.BAD_INPUT
    assert "usage: swinopt" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["compare", "--help"]])
def test_help_documents_the_exit_codes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    out = capsys.readouterr().out
    assert caught.value.code == 0 and "exit codes:" in out
    assert all(line in out for line in ("\n  0  ", "\n  1  ", "\n  2  ", "\n  3  "))


def test_python_m_swinopt_is_the_command(folder: Path) -> None:
    done = run_module("inspect", "missing.onnx")
    assert done.returncode == cli.BAD_INPUT and done.stdout == ""
    assert done.stderr == "swinopt: error: missing.onnx: no such file\n"
    assert "Traceback" in run_module("inspect", "missing.onnx", "--debug").stderr
    assert run_module("--version").stdout == f"swinopt {swinopt.__version__}\n"


def test_a_reader_that_leaves_early_is_no_error(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "swinopt", "inspect", "model.onnx"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def run_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "swinopt", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

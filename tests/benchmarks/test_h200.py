"""The table of speeds: what is measured once is kept, what is missed is said, and the page shows what was found."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def h200(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, with a folder of its own for what it writes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("h200", BENCHMARKS / "h200.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "h200", module)
    spec.loader.exec_module(module)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(module, "README", readme)
    return module


def cell(ms: float = 4.0, **other: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ms": ms,
        "spread": 0.01,
        "images_s": 8000 / ms,
        "max_abs_diff": 4e-3,
        "nan": 0,
        "memory_mib": 700,
    }
    machine = {"GPU": "NVIDIA Test", "driver": "1.2", "Python": "3.12.0", "torch": "2.11"}
    return {
        **found,
        "measured": "2026-01-02T03:04:05+00:00",
        "machine": machine,
        "run": "one",
        "of_peak": 0.25,
        **other,
    }


MADE = {"measured": "2026-01-02T03:04:05+00:00", "machine": {}}
PEAKS = {"fp16_tflop_s": 700.0, "tf32_tflop_s": 350.0, "fp32_tflop_s": 50.0, "copy_tb_s": 4.2, "run": "one"}


def whole(h200: ModuleType, row: Any, **other: Any) -> dict[str, Any]:
    """A row that meets every bar, but for what is said."""
    cells = {column: cell(20.0) for column in row.columns} | {"TensorRT": cell(8.0), "compile": cell(7.0)}
    return cells | {"swinopt": cell(4.0)} | {name.replace("_", ", "): value for name, value in other.items()}


def bars(h200: ModuleType, name: str, **other: Any) -> list[str]:
    (row,) = (row for row in h200.ROWS if row.name == name)
    return list(h200.missed_bars(row, whole(h200, row, **other)))


def test_a_row_that_meets_its_bars(h200: ModuleType) -> None:
    assert bars(h200, "Swin-B 224 fp16 B=32") == []


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("Swin-B 224 fp16 B=32", {"swinopt": cell(4.5)}, "0.56 of stock TensorRT's time, bar 0.55"),
        ("Swin-T 224 fp16 B=1", {"swinopt": cell(8.1)}, "1.01 of stock TensorRT's time, bar 1.0"),
        ("Swin-B 224 fp16 B=1", {"compile": cell(6.0)}, "0.67 of torch.compile's time, bar 0.6"),
        ("Swin-T 224 fp16 B=1", {"swinopt": cell(max_abs_diff=7e-3)}, "more than 1.5 times stock TensorRT's 4.0e-03"),
        ("Swin-T 224 fp16 B=1", {"torch": cell(nan=3)}, "torch: 3 NaN"),
        ("Swin-T 224 fp16 B=1", {"torch": None}, "not measured: torch"),
        ("Swin-T 224 fp16 B=1", {"swinopt": {"error": "cannot build"}}, "swinopt: cannot build"),
        ("Swin-B 224 fp16 B=1", {"TensorRT": {"error": "no memory"}}, "TensorRT: no memory"),
        ("Swin-B 224 fp16 B=1", {"compile max": {"error": "no compiler"}}, "compile max: no compiler"),
        # Rounds in turns say more than medians of two processes.
        ("Swin-T 224 fp16 B=1", {"swinopt": cell(4.0, of_stock=[1.0, 1.1, 1.2])}, "1.10 of stock TensorRT's time"),
    ],
)
def test_a_bar_that_is_missed_is_said(h200: ModuleType, name: str, other: dict[str, Any], reason: str) -> None:
    (missed,) = bars(h200, name, **other)
    assert missed.startswith(name) and reason in missed


def test_a_build_that_fails_is_a_result_and_no_missed_bar(h200: ModuleType) -> None:
    assert bars(h200, "Swin-T 224 fp16 B=1", TensorRT_unfolded={"error": "importSlice", "run": "one"}) == []


def test_rounds_in_turns_count_within_a_run_alone(h200: ModuleType) -> None:
    cells = {"swinopt": cell(4.0, of_stock=[0.9], run="two"), "TensorRT": cell(8.0)}
    assert h200.ratio(cells, "TensorRT") == 0.5


def test_what_is_there_is_not_measured_again(h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def measured(column: str, row: Any, python: str, folder: Path, end: float) -> dict[str, Any]:
        asked.append((column, python))
        if column == "peaks":
            return dict(PEAKS)
        if column == "export":
            return {"flop_per_image": 15e9, "largest_output": 2.0}
        if column == "TensorRT, unfolded":
            kept = cell()
            return {"error": "importSlice", "measured": kept["measured"], "machine": kept["machine"]}
        found = cell()
        del found["run"], found["of_peak"]
        return found

    monkeypatch.setattr(h200, "_cell", measured)
    monkeypatch.setattr(h200, "plot", lambda rows, store: None)
    command = ["--folder", str(tmp_path), "--tensorrt-python", "python3.10", "--rows", "Swin-B 224 fp16 B=32"]
    h200.main([*command, "--columns", "torch"])
    assert asked[:3] == [("peaks", sys.executable), ("export", sys.executable), ("torch fp32", sys.executable)]
    assert [column for column, _ in asked[2:]] == ["torch fp32", "torch"]
    asked.clear()
    h200.main(command)
    assert ("torch", sys.executable) not in asked and ("swinopt", "python3.10") in asked
    asked.clear()
    h200.main(command)
    assert asked == []
    kept = json.loads((tmp_path / "results" / "h200.json").read_text())["Swin-B 224 fp16 B=32"]
    assert kept["torch"]["of_peak"] == pytest.approx(15e9 * 32 / 4e-3 / 1e12 / 700)
    assert kept["torch fp32"]["of_peak"] == pytest.approx(15e9 * 32 / 4e-3 / 1e12 / 50)
    assert "of_peak" not in kept["TensorRT, unfolded"]
    page = (tmp_path / "results" / "h200.md").read_text()
    assert "Swin-B 224 fp16 B=32*" in page and "failed: importSlice" in page and "NVIDIA Test" in page


def test_what_takes_long_is_made_first_and_measured_then(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def measured(column: str, row: Any, python: str, folder: Path, end: float, prepare: bool = False) -> dict[str, Any]:
        asked.append((column, prepare))
        made = {"peaks": dict(PEAKS), "export": {"flop_per_image": 15e9}}.get(column, cell())
        made.pop("run", None) if column not in ("peaks", "export") else None
        return made

    monkeypatch.setattr(h200, "_cell", measured)
    monkeypatch.setattr(h200, "plot", lambda rows, store: None)
    rows = ["--rows", "Swin-T 224 fp16 B=1", "--rows", "Swin-S 224 fp16 B=1"]
    h200.main(["--folder", str(tmp_path), *rows, "--at-a-time", "3"])
    first_measured = asked.index(("peaks", False))
    prepared = [column for column, _ in asked[:first_measured]]
    assert prepared[:2] == ["export", "export"]
    # Without max-autotune, which is Swin-B's; swinopt measures as it builds, and is not disturbed.
    assert sorted(prepared[2:]) == sorted(2 * ["TensorRT", "TensorRT, unfolded", "compile", "swinopt, no plugins"])
    assert all(prepare for column, prepare in asked[2:first_measured])
    assert not any(prepare for _, prepare in asked[first_measured:])
    assert [column for column, _ in asked].count("swinopt") == 2


def test_nothing_is_begun_after_the_time(h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a cell was measured"))
    assert h200.main(["--folder", str(tmp_path), "--seconds", "-1", "--at-a-time", "2"]) == 1


def test_what_is_not_done_at_the_end_is_left_for_the_next_run(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = executable(tmp_path / "slow", "exec sleep 60")
    monkeypatch.setattr(sys, "executable", str(slow))
    begun = time.monotonic()
    assert h200.main(["--folder", str(tmp_path), "--seconds", "0.2"]) == 1
    assert h200._cell("torch", h200.ROWS[0], str(slow), tmp_path, time.monotonic() + 0.2) is None
    assert time.monotonic() < begun + 30
    assert not (tmp_path / "results" / "h200.json").exists()
    monkeypatch.setattr(h200, "_LONGEST_CELL", 0.2)
    found = h200._cell("torch", h200.ROWS[0], str(slow), tmp_path, inf)
    assert found["error"] == "not done after 0.2 s"


def executable(path: Path, line: str) -> Path:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
    return path


def test_a_process_that_dies_is_a_result(h200: ModuleType, tmp_path: Path) -> None:
    python = executable(tmp_path / "python", "exit 7")
    found = h200._cell("torch", h200.ROWS[0], str(python), tmp_path, inf)
    assert found["error"] == "the process ended with 7"
    store = h200.Store(tmp_path / "results" / "h200.json")
    store.add("peaks", "peaks", PEAKS)
    store.add(h200.ROWS[0].name, "torch", {**found, "run": "one"})
    assert "failed: the process ended with 7" in h200.page([h200.ROWS[0]], store, [])


def test_what_was_measured_is_not_replaced_by_a_failure(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"peaks": PEAKS, "export": {"flop_per_image": 1e9}}
    monkeypatch.setattr(h200, "_cell", lambda column, *_: dict(found.get(column, {"error": "out of memory", **MADE})))
    monkeypatch.setattr(h200, "plot", lambda rows, store: None)
    store = h200.Store(tmp_path / "results" / "h200.json")
    store.add("Swin-T 224 fp16 B=1", "torch", cell())
    h200.main(["--folder", str(tmp_path), "--rows", "Swin-T 224 fp16 B=1", "--again"])
    kept = json.loads(store.path.read_text())["Swin-T 224 fp16 B=1"]
    assert kept["torch"]["ms"] == 4.0 and kept["compile"]["error"] == "out of memory"


def test_the_page_the_plots_and_the_readme(h200: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the plots")
    store = h200.Store(tmp_path / "results" / "h200.json")
    store.add("peaks", "peaks", PEAKS)
    for row in h200.ROWS[:4]:
        for column, found in whole(h200, row).items():
            store.add(row.name, column, found)
    assert h200.report(store) == 1  # most rows are not there
    results = tmp_path / "results"
    assert "MISSED: Swin-T 224 fp16 B=1: not measured" in (results / "h200.md").read_text()
    assert {path.name for path in results.iterdir()} == {
        "h200.json",
        "h200.md",
        "h200-throughput.svg",
        "h200-peak.svg",
    }
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- speed -->\n\n| ms a batch |") and readme.endswith("<!-- /speed -->\nafter\n")
    assert "old" not in readme and "NVIDIA Test" in readme


def test_every_column_can_be_measured(h200: ModuleType) -> None:
    import cells

    assert {column for row in h200.ROWS for column in row.columns} == set(h200.COLUMNS)
    assert set(cells.COLUMNS) == {*h200.COLUMNS, "export", "peaks"}
    assert {row.model for row in h200.ROWS} == set(cells.MODELS)


def test_an_engine_is_built_once_and_a_failure_tried_again(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs TensorRT-RTX")
    import engines
    import onnx

    from swinopt import plugin_library, tensorrt
    from swinopt.testing import parse

    monkeypatch.setenv("SWINOPT_TENSORRT", "tensorrt_rtx")
    monkeypatch.setattr(plugin_library, "find_library", lambda version=None: None)
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(parse("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }"), good)
    bad.write_bytes(b"no model")
    for _ in range(2):
        made = engines.built(good, "fp16", None)
        assert made["plugin_layers"] == 0 and made["build_s"] >= 0 and "error" not in made
        assert engines.plan_of(good, "fp16", None).stat().st_size > 1000
        assert "is not an ONNX model" in engines.built(bad, "fp16", "off")["error"]
        assert not engines.plan_of(bad, "fp16", "off").exists()
        monkeypatch.setattr(tensorrt, "build", lambda *_, **__: pytest.fail("it was built again"))

"""The page of the kernels: what was measured stands there, and a bar that was missed."""

from __future__ import annotations

import importlib
import json
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("torch", reason='the kernels are measured beside PyTorch: pip install "swinopt[export]"')

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
FOUND: dict[str, Any] = json.loads((BENCHMARKS / "results" / "kernels.json").read_text(encoding="utf-8"))


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, with a folder of its own for what it reads and writes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("kernels")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "kernels.json")
    monkeypatch.setattr("sys.argv", ["kernels.py", "--report"])
    return module


def reported(kernels: ModuleType, found: dict[str, Any]) -> tuple[int, str]:
    """The exit status, and the page."""
    kernels.RESULTS.write_text(json.dumps(found), encoding="utf-8")
    return kernels.main(), kernels.RESULTS.with_suffix(".md").read_text(encoding="utf-8")


def test_the_page_is_that_of_what_was_measured(kernels: ModuleType) -> None:
    there = (BENCHMARKS / "results" / "kernels.md").read_text(encoding="utf-8")
    assert reported(kernels, FOUND)[1] == there, "python benchmarks/kernels.py --report"


def test_a_bar_that_is_missed_is_said(kernels: ModuleType) -> None:
    found = deepcopy(FOUND)
    for row in found["stages"]:
        row["of copy"] = 0.8
    assert reported(kernels, found)[0] == 0
    found["stages"][0]["of copy"] = 0.799
    found["stages"][2]["times faster"] = 2.9
    found["errors"]["float16"]["layer_norm"] = float("inf")
    status, page = reported(kernels, found)
    assert status == 1
    for said in ("stage 1 B=32: 79.9% of", "stage 2 B=32: 2.9 times", "layer_norm in float16: error inf, bar 2.0e-03"):
        assert f"MISSED {said}" in page or f"MISSED Swin-B {said}" in page


def test_without_cublaslt_no_linears_are_on_the_page(kernels: ModuleType) -> None:
    page = reported(kernels, {**FOUND, "linears": [], "chain": []})[1]
    assert "fc1" not in page and "one CUDA graph" not in page and page.endswith("|\n")

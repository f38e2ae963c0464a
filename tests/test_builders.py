"""Processes that build engines of single ops: TensorRT-RTX builds in them without a GPU."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from swinopt import builders, ops, tensorrt, tensorrt_module
from swinopt.builders import Builders
from swinopt.errors import MissingDependencyError, ModelError, SwinoptError
from swinopt.testing import parse

SETUP = {"precision": "fp16", "workspace": None, "optimization_level": None, "linears": False}
MERGING = parse(
    "g (float[1, 8, 8, 16] x) => (float[1, 4, 4, 64] y) { y = swinopt.PatchMerging(x, gamma, beta) }",
    gamma=np.ones(64, np.float32),
    beta=np.zeros(64, np.float32),
)


@pytest.fixture
def rtx() -> str:
    pytest.importorskip("tensorrt_rtx", reason='building without a GPU needs TensorRT-RTX: pip install "swinopt[rtx]"')
    return "tensorrt_rtx"


def started(monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[str]:
    """What is run instead of the usual processes, one after the other; those that have been are taken off."""
    left = list(codes)
    monkeypatch.setattr(builders, "_command", lambda: [sys.executable, "-c", left.pop(0)])
    return left


# ------------------------------------------------------------------------------------------------------- what is built


def test_an_engine_from_another_process_is_the_one_that_would_be_built_here(rtx: str) -> None:
    here = tensorrt.OpBuilder(tensorrt_module.find(rtx), **SETUP)(MERGING, plugin=False)
    with Builders(device=None, tensorrt=rtx, **SETUP) as others:
        there = others.build(MERGING)
    assert ops.uses(MERGING).total() == 1 and there.plugin_layers == 0
    assert (there.interface, there.precision, there.notes) == (here.interface, here.precision, here.notes)
    assert there.inputs["x"].dtype == "float16", "its ends are those of an engine of half precision"
    assert there.plan and str(there) == str(here)


def test_a_process_goes_on_for_whoever_asks_next(rtx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = started(monkeypatch, *3 * ["from swinopt.builders import serve; serve()"])
    with Builders(device=None, tensorrt=rtx, **SETUP) as others:
        for _ in range(3):
            others.build(MERGING)
        assert len(left) == 2, "starting one takes seconds"
        met = threading.Barrier(2)

        def build(_: int) -> int:
            met.wait(timeout=30)
            return len(others.build(MERGING).plan)

        with ThreadPoolExecutor(2) as pool:
            assert all(pool.map(build, range(2)))
        assert len(left) == 1, "two that ask at the same time have one each"


def test_what_cannot_be_built_is_told_and_the_process_goes_on(rtx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = started(monkeypatch, "from swinopt.builders import serve; serve()")
    unknown = parse("g (float[1, 4] x) => (float[1, 4] y) { y = com.example.Unknown(x) }")
    with Builders(device=None, tensorrt=rtx, **SETUP) as others:
        with pytest.raises(ModelError, match=r"does not take the model.*Unknown"):
            others.build(unknown)
        assert others.build(MERGING).plan and not left


def test_what_is_printed_there_is_no_answer(
    rtx: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    noise = """
import os
from swinopt import builders, tensorrt
class Loud(tensorrt.OpBuilder):
    def __call__(self, op, *, plugin):
        os.write(1, b"said by a library\\n")
        return super().__call__(op, plugin=plugin)
tensorrt.OpBuilder = Loud
builders.serve()
"""
    started(monkeypatch, noise)
    with Builders(device=None, tensorrt=rtx, **SETUP) as others:
        assert others.build(MERGING).plan
    assert "said by a library" in capfd.readouterr().err


def test_it_imports_from_where_this_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('this one is from the folder')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        Builders(device=None, tensorrt="tensorrt", **SETUP) as others,
        pytest.raises(MissingDependencyError, match="this one is from the folder"),
    ):
        others.build(MERGING)


def test_a_script_is_not_run_again(rtx: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """As it would be by Python's own way to start processes."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import pickle
from swinopt.builders import Builders
print("begun")
with Builders(device=None, tensorrt={rtx!r}, **{SETUP!r}) as others:
    print(len(others.build(pickle.loads({pickle.dumps(MERGING)!r})).plan) > 0)
""")
    subprocess.run([sys.executable, script], check=True, timeout=120)
    assert capfd.readouterr().out.split() == ["begun", "True"]


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("end", "told"),
    [("os.abort()", "was ended by SIGABRT"), ("os._exit(3)", "ended with exit status 3"), ("1/0", "exit status 1")],
)
def test_a_process_that_ends_is_the_failure_of_one_op(
    end: str, told: str, rtx: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = "import os, pickle, sys; pickle.load(sys.stdin.buffer); pickle.load(sys.stdin.buffer)"
    started(monkeypatch, f"{reads}; {end}", "from swinopt.builders import serve; serve()")
    with Builders(device=None, tensorrt=rtx, **SETUP) as others:
        with pytest.raises(SwinoptError, match=f"the process that built it .*{told}"):
            others.build(MERGING)
        assert others.build(MERGING).plan


def test_a_process_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "_command", lambda: ["/nowhere/python"])
    with (
        Builders(device=None, tensorrt="tensorrt", **SETUP) as others,
        pytest.raises(SwinoptError, match="does not start: No such file"),
    ):
        others.build(MERGING)


def test_a_process_that_answers_nonsense_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, "import time; print('hello', flush=True); time.sleep(600)")
    with (
        Builders(device=None, tensorrt="tensorrt", **SETUP) as others,
        pytest.raises(SwinoptError, match="was ended by SIGKILL"),
    ):
        others.build(MERGING)


def test_closing_ends_what_is_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, "import time; time.sleep(600)")
    with ThreadPoolExecutor(1) as pool:
        with Builders(device=None, tensorrt="tensorrt", **SETUP) as others:
            building = pool.submit(others.build, MERGING)
            while not others._all:
                assert not building.done(), building.exception()
        with pytest.raises(SwinoptError, match="was ended by SIGKILL"):
            building.result(timeout=30)


def test_without_the_gpu_that_it_is_for_nothing_is_built(rtx: str) -> None:
    with (
        Builders(device=99, tensorrt=rtx, **SETUP) as others,
        pytest.raises(SwinoptError, match="cudaSetDevice failed"),
    ):
        others.build(MERGING)

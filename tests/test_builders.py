"""What builds engines of single ops in processes of its own: TensorRT-RTX does it without a GPU."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt import builders, ops, tensorrt, tensorrt_module
from swinopt.builders import InTurn, Processes
from swinopt.engine import Engine
from swinopt.errors import MissingDependencyError, ModelError, SwinoptError
from swinopt.testing import parse

SETUP: dict[str, Any] = {"precision": "fp16", "workspace": None, "optimization_level": None, "linears": False}
MERGING = parse(
    "g (float[1, 8, 8, 16] x) => (float[1, 4, 4, 64] y) { y = swinopt.PatchMerging(x, gamma, beta) }",
    gamma=np.ones(64, np.float32),
    beta=np.zeros(64, np.float32),
)
UNKNOWN = parse("g (float[1, 4] x) => (float[1, 4] y) { y = com.example.Unknown(x) }")

SERVE = "import os; answers = os.dup(1); os.dup2(2, 1); from swinopt import builders, tensorrt; "
USUAL = f"{SERVE} builders.serve(answers)"


@pytest.fixture
def rtx() -> str:
    pytest.importorskip("tensorrt_rtx", reason='building without a GPU needs TensorRT-RTX: pip install "swinopt[rtx]"')
    return "tensorrt_rtx"


def processes(name: str, count: int = 1, device: int | None = None) -> Processes:
    return Processes(count, device=device, tensorrt=name, **SETUP)


def started(monkeypatch: pytest.MonkeyPatch, *codes: str) -> list[str]:
    """What is run instead of the usual processes, one after the other; those that have been are taken off."""
    left = list(codes)
    monkeypatch.setattr(builders, "_command", lambda: [sys.executable, "-c", left.pop(0)])
    return left


def building(body: str) -> str:
    """A process whose builder does this with the ``op`` that it is given."""
    return f"""{SERVE}
def build(op, plugin):
    import time
    {body}
builders._builder = lambda *setup: build
builders.serve(answers)
"""


# ------------------------------------------------------------------------------------------------------- what is built


def test_an_engine_from_another_process_is_the_one_that_would_be_built_here(rtx: str) -> None:
    here = tensorrt.OpBuilder(tensorrt_module.find(rtx), **SETUP)(MERGING, False)
    with processes(rtx) as others:
        there = others.begin(MERGING).result()
    assert ops.uses(MERGING).total() == 1 and there.plugin_layers == 0
    assert (there.interface, there.precision, there.notes) == (here.interface, here.precision, here.notes)
    assert there.inputs["x"].dtype == "float16", "its ends are those of an engine of half precision"
    assert there.plan and str(there) == str(here)


def test_a_process_goes_on_until_it_is_told_to_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    left = started(monkeypatch, *3 * [building("return os.getpid()")])
    with processes("tensorrt") as others:
        first, second = (others.begin(MERGING).result() for _ in range(2))
        assert first == second and len(left) == 2, "starting one takes seconds"
        others.rest()
        with pytest.raises(ProcessLookupError):
            os.kill(int(str(first)), 0)
        assert others.begin(MERGING).result() != first


def test_as_many_build_at_a_time_as_there_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet = f"""open(f"{tmp_path}/{{os.getpid()}}", "w").close()
    while len(os.listdir({str(tmp_path)!r})) < 2:  # for both, or the test does not end
        time.sleep(0.01)
    return os.getpid()"""
    started(monkeypatch, *2 * [building(meet)])  # a third is an error
    with processes("tensorrt", count=2) as others:
        futures = [others.begin(MERGING) for _ in range(4)]
        assert len({future.result(timeout=60) for future in futures}) == 2


def test_what_cannot_be_built_is_told(rtx: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left = started(monkeypatch, USUAL, USUAL)
    with processes(rtx) as others:
        with pytest.raises(ModelError, match=r"does not take the model.*Unknown"):
            others.begin(UNKNOWN).result()
        assert others.begin(MERGING).result().plan and not left, "by another process: that one may be broken"


@pytest.mark.parametrize(
    ("raised", "expected", "told"),
    [
        ("MissingDependencyError('no such library')", MissingDependencyError, "^no such library$"),
        ("KeyError('a bug')", RuntimeError, "^KeyError in a process that builds ops: 'a bug'$"),
    ],
)
def test_what_is_raised_there_is_raised_here(
    raised: str, expected: type[Exception], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, building(f"from swinopt.errors import MissingDependencyError; raise {raised}"))
    with processes("tensorrt") as others, pytest.raises(expected, match=told):
        others.begin(MERGING).result()


def test_what_is_printed_there_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorrt.py").write_text("print('while it is imported', flush=True); raise ImportError('found')\n")
    # More than a pipe holds.
    (tmp_path / "sitecustomize.py").write_text("print('while Python starts\\n' * 10_000, flush=True)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with processes("tensorrt") as others, pytest.raises(MissingDependencyError, match="found"):
        others.begin(MERGING).result()
    assert "while it is imported" in capfd.readouterr().err


def test_a_script_is_not_run_again(rtx: str, tmp_path: Path) -> None:
    """As it would be by Python's own way to start processes."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import pickle
from swinopt.builders import Processes
print("begun")
with Processes(1, device=None, tensorrt={rtx!r}, **{SETUP!r}) as others:
    print(len(others.begin(pickle.loads({pickle.dumps(MERGING)!r})).result().plan) > 0)
""")
    done = subprocess.run([sys.executable, script], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout.split() == ["begun", "True"]


def test_in_turn_it_is_built_here_and_now() -> None:
    engine = Engine(b"plan", None)
    asked: list[tuple[onnx.ModelProto, bool]] = []

    def build(model: onnx.ModelProto, plugin: bool) -> Engine:
        asked.append((model, plugin))
        if model is UNKNOWN:
            raise SwinoptError("it cannot")
        return engine

    with InTurn(build) as here:
        begun = [here.begin(MERGING), here.begin(UNKNOWN)]
        assert asked == [(MERGING, False), (UNKNOWN, False)]
        assert begun[0].result() is engine
        with pytest.raises(SwinoptError, match="it cannot"):
            begun[1].result()


# ------------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(
    ("end", "told"),
    [("os.abort()", r"was ended by signal 6 \(Aborted\)"), ("os._exit(3)", "ended with exit status 3")],
)
def test_a_process_that_ends_is_the_failure_of_one_op(
    end: str, told: str, rtx: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(monkeypatch, building(end), USUAL)
    with processes(rtx) as others:
        with pytest.raises(SwinoptError, match=f"the process that built it {told}"):
            others.begin(MERGING).result()
        assert others.begin(MERGING).result().plan


def test_a_process_that_ends_while_it_waits_is_the_failure_of_none(monkeypatch: pytest.MonkeyPatch) -> None:
    started(monkeypatch, *2 * [building("return os.getpid()")])
    with processes("tensorrt") as others:
        first = int(str(others.begin(MERGING).result()))
        os.kill(first, signal.SIGKILL)
        while next(iter(others._running)).is_running:
            time.sleep(0.01)
        assert others.begin(MERGING).result() != first


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["/nowhere/python"], "does not start: No such file"),
        ([sys.executable, "-c", "1/0"], "ended with exit status 1"),
        ([sys.executable, "-c", "import time; time.sleep(90)"], r"does not start as Python in 0\.5 s"),
    ],
)
def test_where_none_can_be_started_there_are_none(
    command: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "_command", lambda: command)
    monkeypatch.setattr(builders, "_START", 0.5 if "sleep" in command[-1] else 60)
    with pytest.raises(SwinoptError, match=told):
        processes("tensorrt")


def test_the_current_folder_is_not_imported_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "signal.py").write_text("raise ImportError('this one is no part of Python')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    processes("tensorrt").close()


def test_without_the_gpu_that_it_is_for_nothing_is_built(rtx: str) -> None:
    with processes(rtx, device=99) as others, pytest.raises(SwinoptError, match="cudaSetDevice failed"):
        others.begin(MERGING).result()


def test_an_end_does_not_wait_for_what_is_being_built(monkeypatch: pytest.MonkeyPatch) -> None:
    left = started(monkeypatch, *2 * [building("time.sleep(90)")])
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt), processes("tensorrt") as others:
        futures = [others.begin(MERGING) for _ in range(3)]
        while not others._running:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert time.monotonic() - begun < 60 and len(left) == 1
    assert all(future.cancelled() or isinstance(future.exception(), SwinoptError) for future in futures)
    assert not others._running


def test_an_interrupt_is_for_the_one_who_asks(rtx: str) -> None:
    """A terminal sends it to all of them, and a program may well go on after it."""
    with processes(rtx) as others:
        others.begin(MERGING).result()
        (process,) = others._running
        process._process.send_signal(signal.SIGINT)
        assert others.begin(MERGING).result().plan
        assert others._running == {process}

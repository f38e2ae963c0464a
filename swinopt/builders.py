"""Processes that build engines of single ops, several at a time.

In threads of one process TensorRT's builders get in each other's way: three of some forty builds by TensorRT 8.6 that
measured the ops of a Swin, built in eight threads, ended in a segmentation fault, and not in a thread, but in the first
call of TensorRT behind them. Where a process ends, one op cannot be built, and that is all.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing import spawn
from types import TracebackType
from typing import Any

import onnx

from swinopt import cuda
from swinopt.engine import Engine
from swinopt.errors import SwinoptError


class Builders:
    """Builds in as many processes as threads ask at the same time; each process goes on for the next that asks.

    Use it in a ``with``, which ends them all.

    Args:
        device: the GPU that they build for; None for none.
        setup: what :class:`swinopt.tensorrt.OpBuilder` takes, and ``tensorrt``, the name of the module.
    """

    def __init__(self, *, device: int | None, **setup: Any) -> None:
        self._setup = {"device": device, **setup}
        self._idle: list[_Process] = []
        self._all: list[_Process] = []
        self._lock = threading.Lock()

    def build(self, model: onnx.ModelProto) -> Engine:
        """An engine of a model of one op, in standard ops.

        Raises:
            SwinoptError: it cannot be built, or the process that builds it ends. What is raised there is raised here.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
            if process is None:
                process = _Process(self._setup)
                self._all.append(process)
        answer = process.ask(model)
        with self._lock:
            self._idle.append(process)
        if isinstance(answer, SwinoptError):
            raise answer
        engine: Engine = answer
        return engine

    def close(self) -> None:
        """Ends all processes, those that are building as well: threads that wait for one get an error."""
        with self._lock:
            for process in self._all:
                process.kill()
            self._idle.clear()
            self._all.clear()

    def __enter__(self) -> Builders:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Process:
    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup: dict[str, Any] | None = setup
        try:
            self._process = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise SwinoptError(f"the process that was to build it does not start: {error.strerror or error}") from error
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None  # both are pipes
        self._requests, self._answers = requests, answers

    def ask(self, model: onnx.ModelProto) -> Any:
        """What a process makes of a model: an engine, or an error that it raised."""
        try:
            if self._setup is not None:
                pickle.dump(self._setup, self._requests)
                self._setup = None
            pickle.dump(model.SerializeToString(), self._requests)
            self._requests.flush()
            return pickle.load(self._answers)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise SwinoptError(f"the process that built it {self.kill()}") from error

    def kill(self) -> str:
        """Ends the process if it is running; how it ended, in words."""
        self._process.kill()
        status = self._process.wait()
        # Not before: a thread that reads an answer holds the pipe until its end.
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # what was to be written cannot be any more
                pipe.close()
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


def _command() -> list[str]:
    # Python's own way to start processes runs the user's script again, up to where it guards itself against that. What
    # this one was told to import from counts there, too.
    code = f"import sys; sys.path[:] = {[entry for entry in sys.path if isinstance(entry, str)]!r}"
    return [os.fsdecode(spawn.get_executable()), "-c", f"{code}; from swinopt.builders import serve; serve()"]


def serve() -> None:
    """What such a process does: answers each model on standard input by an engine or an error, until there are none."""
    from swinopt import tensorrt, tensorrt_module

    with os.fdopen(os.dup(0), "rb") as requests, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what a library prints is no answer
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt is told by the one who asked
        setup = pickle.load(requests)
        device, name = setup.pop("device"), setup.pop("tensorrt")
        build = None
        while True:
            try:
                model = onnx.ModelProto.FromString(pickle.load(requests))
            except EOFError:
                return
            try:
                if build is None:
                    if device is not None:
                        cuda.call("cudaSetDevice", device)
                    build = tensorrt.OpBuilder(tensorrt_module.find(name), **setup)
                answer: Engine | SwinoptError = build(model, plugin=False)
            except SwinoptError as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()

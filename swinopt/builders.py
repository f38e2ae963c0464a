"""What builds engines of single ops in standard ops: processes of their own, several at a time, or this one in turn.

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
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

import onnx

from swinopt import cuda
from swinopt.engine import Engine
from swinopt.errors import SwinoptError

_AT_A_TIME = 8
_MEMORY = 2 << 30  # bytes on the GPU that one of them may take
_START = 60  # seconds for the first process to be ready
_GRACE = 10  # seconds for a process that said its last to end
_READY = b"swinopt builds\n"

#: Builds an engine of a model of one op: as a plugin, or else in standard ops.
Builder: TypeAlias = Callable[[onnx.ModelProto, bool], Engine]


def standard(here: Builder, *, tensorrt: str, **setup: Any) -> Standard:
    """What builds for the current GPU; to be used in a ``with``.

    Args:
        here: builds in this process, as :class:`swinopt.tensorrt.OpBuilder` does.
        tensorrt: the name of the module.
        setup: what that class takes besides.
    """
    # A program that was frozen would itself be started in Python's place.
    if not cuda.is_exclusive() and not getattr(sys, "frozen", False) and sys.executable:
        memory = max(_MEMORY, (setup["workspace"] or 0) << 20)
        count = max(1, min(_AT_A_TIME, _cpus(), cuda.free_memory() // memory))
        with suppress(SwinoptError):  # Python is part of a program, say, which cannot be started like this
            return Processes(count, device=cuda.current_device(), tensorrt=tensorrt, **setup)
    return InTurn(here)


def _cpus() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InTurn:
    """Builds in this process and thread, whatever is asked for at once."""

    def __init__(self, build: Builder) -> None:
        self._build = build

    def begin(self, model: onnx.ModelProto) -> Future[Engine]:
        """As :meth:`Processes.begin`, but that it has ended as well."""
        future: Future[Engine] = Future()
        try:
            future.set_result(self._build(model, False))
        except Exception as error:
            future.set_exception(error)
        return future

    def rest(self) -> None:
        """Nothing waits here."""

    def __enter__(self) -> InTurn:
        return self

    def __exit__(self, *error: object) -> None:
        pass


class Processes:
    """Builds in processes, each of which goes on for the next op until one fails.

    Args:
        count: how many build at a time.
        device: the GPU that they build for; None for none.
        tensorrt: the name of the module.
        setup: what :class:`swinopt.tensorrt.OpBuilder` takes besides.

    Raises:
        SwinoptError: no process can be started; which is tried with the first one.
    """

    def __init__(self, count: int, *, device: int | None, tensorrt: str, **setup: Any) -> None:
        self._setup = (device, tensorrt, setup)
        self._pool = ThreadPoolExecutor(count)  # a thread waits for each of them
        self._running: set[_Process] = set()
        self._idle: list[_Process] = []
        self._closed = False
        self._lock = threading.Lock()
        try:
            first = self._taken()
            self._pool.submit(first.start).result(_START)
            self._idle.append(first)
        except FutureTimeoutError as error:
            self.close()
            raise SwinoptError(f"{sys.executable} does not start as Python in {_START} s") from error
        except BaseException:
            self.close()
            raise

    def begin(self, model: onnx.ModelProto) -> Future[Engine]:
        """Begins to build an engine of a model of one op, as soon as a process is free.

        What is raised in the process is raised by the future, and SwinoptError if it ends.
        """
        return self._pool.submit(self._build, model)

    def rest(self) -> None:
        """Ends the processes that wait for an op: the GPU is not theirs alone."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            self._end(process)

    def close(self) -> None:
        """Ends all processes, those that build as well."""
        with self._lock:
            self._closed = True
            running = list(self._running)
        try:
            # All at first: another interrupt may come while one is waited for.
            for process in running:
                process.kill()
            for process in running:
                self._end(process)
        finally:
            self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _build(self, model: onnx.ModelProto) -> Engine:
        data = model.SerializeToString()
        process = self._taken()
        try:
            answer = process.ask(data)
            if isinstance(answer, Exception):
                raise answer
        except BaseException:
            # What failed there may have left nothing in working order.
            self._end(process)
            raise
        with self._lock:
            self._idle.append(process)
        engine: Engine = answer
        return engine

    def _taken(self) -> _Process:
        while True:
            with self._lock:
                if self._closed:
                    raise SwinoptError("it was to be built after the end of what builds")
                if not self._idle:
                    process = _Process(self._setup)
                    self._running.add(process)
                    return process
                process = self._idle.pop()
            if process.is_running:
                return process
            self._end(process)

    def _end(self, process: _Process) -> None:
        process.end()
        with self._lock:
            self._running.discard(process)


Standard: TypeAlias = Processes | InTurn


class _Process:
    def __init__(self, setup: Any) -> None:
        try:
            self._process = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise SwinoptError(f"the process that was to build it does not start: {error.strerror or error}") from error
        requests, answers = self._process.stdin, self._process.stdout
        assert requests is not None and answers is not None  # both are pipes
        self._requests, self._answers = requests, answers
        self._setup = setup
        self._is_ready = False

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def start(self) -> None:
        """Waits until the process is ready."""
        with self._told_how_it_ends():
            while not self._is_ready:
                line = self._answers.readline()
                if not line:
                    raise EOFError
                # Before it comes what is printed while Python starts.
                if line == _READY:
                    self._is_ready = True
                    pickle.dump(self._setup, self._requests)

    def ask(self, model: bytes) -> Any:
        """What the process makes of a model: an engine, or an error that it raised."""
        self.start()
        with self._told_how_it_ends():
            pickle.dump(model, self._requests)
            self._requests.flush()
            return pickle.load(self._answers)

    @contextmanager
    def _told_how_it_ends(self) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
            raise SwinoptError(f"the process that built it {self.end()}") from error

    def kill(self) -> None:
        """Ends the process if it is running."""
        self._process.kill()

    def end(self) -> str:
        """Ends the process if it is running, and gives back what it had; how it ended, in words."""
        self.kill()
        status = self._process.wait()
        # Not before: a thread that reads an answer holds the pipe until its end.
        for pipe in (self._requests, self._answers):
            with suppress(OSError):  # what was to be written cannot be any more
                pipe.close()
        if status < 0:
            return f"was ended by signal {-status} ({signal.strsignal(-status)})"
        return f"ended with exit status {status}"


def _command() -> list[str]:
    # Python's own way to start processes runs the user's script again, up to where it guards itself against that. What
    # this process imports from counts there, too, and the current folder no more than here. An interrupt is for the one
    # who asks, and what a library prints no answer.
    path = [entry for entry in sys.path if isinstance(entry, str)]
    code = (
        f"import sys; sys.path[:] = {path!r}; "
        "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); answers = os.dup(1); os.dup2(2, 1); "
        "from swinopt.builders import serve; serve(answers)"
    )
    return [sys.executable, "-c", code]


def serve(answers: int) -> None:
    """What such a process does: for each model on standard input an engine, or an error, until there are none.

    Args:
        answers: the file descriptor to write them to.
    """
    with (
        suppress(EOFError, OSError),  # whoever asks may be gone before the last answer, too
        os.fdopen(os.dup(0), "rb") as requests,
        os.fdopen(answers, "wb") as target,
    ):
        target.write(b"\n" + _READY)
        target.flush()
        setup, build = pickle.load(requests), None
        while True:
            model = onnx.ModelProto.FromString(pickle.load(requests))
            try:
                build = build or _builder(*setup)
                answer: Engine | Exception = build(model, False)
            except SwinoptError as error:
                answer = error
            except Exception as error:
                traceback.print_exc()
                answer = RuntimeError(f"{type(error).__name__} in a process that builds ops: {error}")
            pickle.dump(answer, target)
            target.flush()


def _builder(device: int | None, name: str, setup: dict[str, Any]) -> Builder:
    from swinopt import tensorrt, tensorrt_module

    if device is not None:
        cuda.call("cudaSetDevice", device)
    trt = tensorrt_module.find(name)
    if setup["linears"]:
        tensorrt_module.cublaslt_version(trt)  # loads what TensorRT may take products from, as in the other process
    return tensorrt.OpBuilder(trt, **setup)

"""Inferences of an engine on random inputs, ready to be timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from swinopt import arrays, cuda
from swinopt.errors import OptionError, SwinoptError
from swinopt.interface import Interface, Shape
from swinopt.timing import Timing

if TYPE_CHECKING:
    from swinopt.execution import Context


class Bench:
    """Inferences on random inputs that lie on the GPU already, to be timed as often as one likes.

    Attributes:
        graph: whether CUDA graphs are launched.
    """

    def __init__(
        self,
        context: Context,
        interface: Interface,
        shapes: Mapping[str, Shape],
        rotate: int,
        graph: bool,
        device: int,
        what: str,
        close: Callable[[], None],
    ) -> None:
        self._context, self._shapes, self._rotate, self._what = context, dict(shapes), rotate, what
        self._device, self._close = device, close
        # The context keeps them, and frees them: graphs know addresses, and hold no memory.
        works = context.works = [Work(context, interface, shapes, seed) for seed in range(rotate)]
        for work in works:
            work()
        context.stream.synchronize()
        graphs = _recorded(context, works) if graph else []
        self.graph = bool(graphs)
        self._launches: list[Callable[[], None]] = [partial(g.launch, context.stream) for g in graphs] or list(works)

    def time(self, *, runs: int = 200, warmup: int = 20) -> Timing:
        """How long one inference takes.

        Args:
            runs: how many are timed, each by itself with events.
            warmup: how many are made before.

        Raises:
            OptionError: a number is too small.
            SwinoptError: the engine has been closed, or the GPU failed.
        """
        require_runs(runs, warmup)
        context = self._context
        with cuda.on_device(self._device), context.lock:
            if context.closed:
                raise SwinoptError("the engine, or what was to be timed of it, has been closed")
            for index in range(warmup):
                self._launches[index % self._rotate]()
            marks = [(cuda.Event(), cuda.Event()) for _ in range(runs)]
            for index, (start, end) in enumerate(marks):
                start.record(context.stream)
                self._launches[index % self._rotate]()
                end.record(context.stream)
            # Only now: a host that waits for each run would put its own delay into the next one.
            context.stream.synchronize()
            samples = tuple(end.milliseconds_since(start) for start, end in marks)
            gpu = cuda.device_name()
        return Timing(samples, self._shapes, self.graph, self._rotate, gpu, self._what)

    def close(self) -> None:
        """Gives back what it holds on the GPU, after a measurement that has begun; once is enough."""
        self._close()
        self._launches.clear()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def require_runs(runs: int, warmup: int) -> None:
    """Refuses numbers of runs that nothing can be measured with.

    Raises:
        OptionError: a number is too small.
    """
    if runs < 1 or warmup < 0:
        raise OptionError(f"runs is at least 1 and warmup at least 0, and {runs} and {warmup} were given")


class Work:
    """One inference on random inputs that lie on the GPU already."""

    def __init__(self, context: Context, interface: Interface, shapes: Mapping[str, Shape], seed: int) -> None:
        self._context = context
        self._inputs: dict[str, tuple[Shape, cuda.Memory]] = {}
        rng = np.random.default_rng(seed)
        for name, shape in shapes.items():
            # A million numbers over and over: times do not hang on more of them, and they are slow to make.
            some = arrays.random(rng, interface.inputs[name].dtype, (min(math.prod(shape), 1 << 20),))
            array = np.resize(some, shape)
            memory = cuda.Memory(array.nbytes)
            context.stream.upload(memory.handle, array.ctypes.data, array.nbytes)
            context.stream.synchronize()
            self._inputs[name] = (shape, memory)
            context.set_input(name, shape, memory.handle)
        self._outputs = {
            name: cuda.Memory(arrays.size_of(value.dtype, context.output_shape(name)))
            for name, value in interface.outputs.items()
        }

    def close(self) -> None:
        """Frees inputs and outputs."""
        for memory in (*(memory for _, memory in self._inputs.values()), *self._outputs.values()):
            memory.close()

    def __call__(self) -> None:
        """Enqueues it."""
        for name, (shape, memory) in self._inputs.items():
            self._context.set_input(name, shape, memory.handle)
        for name, memory in self._outputs.items():
            self._context.set_output(name, memory.handle)
        self._context.enqueue()


def _recorded(context: Context, works: list[Work]) -> list[cuda.Graph]:
    """The works as CUDA graphs; none if the engine cannot be captured."""
    graphs: list[cuda.Graph] = []
    for work in works:
        # What changed since the last run is settled in a run of its own, which must not be part of the graph.
        work()
        context.stream.synchronize()
        try:
            graphs.append(cuda.Graph(context.stream, context.enqueue))
        except SwinoptError:
            for graph in graphs:
                graph.close()
            return []
    return graphs

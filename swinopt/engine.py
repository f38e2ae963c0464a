"""A TensorRT engine: run it on arrays of any library, time it, see where the time goes."""

from __future__ import annotations

import html
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from swinopt import tensorrt_module
from swinopt.choice import Choice, Choices
from swinopt.errors import ModelError, OptionError
from swinopt.interface import Interface, Shape, Value, text_of

if TYPE_CHECKING:
    from swinopt.bench import Bench
    from swinopt.execution import Execution
    from swinopt.timing import LayerTimes, Timing


class Engine:
    """A serialized engine with all that it takes to run it.

    :func:`swinopt.tensorrt.build` makes one, :meth:`load` reads one. What needs a GPU happens when it is first needed:
    an engine can be built with TensorRT-RTX, saved, pickled and looked at on a machine without any.

    Attributes:
        plan: the engine, serialized.
        notes: what the builder of the engine should know: numbers that stayed in float32, say.
        choices: which swinopt ops were measured, and what became of them; print it for a table. Like the notes it is
            of the build, and no part of the plan: an engine from a file has none.
    """

    def __init__(
        self,
        plan: bytes,
        trt: Any,
        *,
        interface: Interface | None = None,
        plugin_layers: int | None = None,
        precision: str | None = None,
        notes: Sequence[str] = (),
        choices: Iterable[Choice] = (),
    ) -> None:
        self.plan = plan
        self.precision = precision
        self.notes = tuple(notes)
        self.choices = Choices(choices)
        self._trt = trt
        self._interface = interface
        self._plugin_layers = plugin_layers
        self._execution: Execution | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, tensorrt: str | None = None) -> Engine:
        """Reads a plan that :meth:`save` or trtexec wrote. It is deserialized when it is first needed.

        Args:
            path: the file.
            tensorrt: ``"tensorrt"`` or ``"tensorrt_rtx"``, whichever built it; default as for ``build``.

        Raises:
            ModelError: there is no such file, it cannot be read, or it is empty.
            MissingDependencyError: TensorRT is not installed.
        """
        try:
            plan = Path(path).read_bytes()
        except OSError as error:
            raise ModelError(f"{os.fspath(path)} cannot be read: {error.strerror or error}") from error
        if not plan:
            raise ModelError(f"{os.fspath(path)} is empty")
        return cls(plan, tensorrt_module.find(tensorrt))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the plan, whole or not at all; trtexec loads it as well.

        Raises:
            ModelError: the path cannot be written.
        """
        return write_whole(path, self.plan)

    # ---------------------------------------------------------------------------------------------------- looking at it

    @property
    def interface(self) -> Interface:
        """Inputs, outputs and profiles. For an engine from a file this needs a GPU."""
        if self._interface is None:
            self._interface = self._alive().interface()
        return self._interface

    @property
    def inputs(self) -> Mapping[str, Value]:
        """The inputs by name."""
        return self.interface.inputs

    @property
    def outputs(self) -> Mapping[str, Value]:
        """The outputs by name."""
        return self.interface.outputs

    @property
    def plugin_layers(self) -> int | None:
        """How many layers are plugins; None for an engine from a file, which may not say."""
        return self._plugin_layers

    # ------------------------------------------------------------------------------------------------------ running it

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs for these inputs, by name.

        Args:
            inputs: for each input an array of NumPy, torch, CuPy or anything else that speaks DLPack. What lies on the
                GPU is used where it is and has to be contiguous (it is copied if its address is no multiple of 256,
                which TensorRT wants); everything else is copied there.

        It allocates and waits, so that it cannot stand in a CUDA graph of the caller's.

        Returns:
            Arrays of the library that the inputs are of. They lie on the GPU if an input does.

        Raises:
            OptionError: a name, dtype or shape is not one that the engine takes.
            ModelError: the plan is of another TensorRT or GPU.
            MissingDependencyError: cuda-bindings is not installed.
            SwinoptError: there is no GPU, or it failed.
        """
        return self._alive().run(self.interface, inputs)

    def benchmark(
        self,
        shapes: Mapping[str, Sequence[int]] | None = None,
        *,
        batch: int | None = None,
        runs: int = 200,
        warmup: int = 20,
        rotate: int = 4,
        graph: bool = True,
    ) -> Timing:
        """How long one inference takes on the GPU.

        Args:
            shapes: of the dynamic inputs; by default what the first profile was tuned for.
            batch: another size of their first axis.
            runs: how many inferences are timed, each by itself with events.
            warmup: how many are made before.
            rotate: how many different random inputs take turns, so that none waits in the cache for the next run.
            graph: launch CUDA graphs where the engine can be captured; ``Timing.graph`` says whether it could.

        Raises:
            OptionError: a shape is not one that the engine takes, or a number is below 1.
            ModelError, MissingDependencyError, SwinoptError: as for :meth:`run`.
        """
        from swinopt.bench import require_runs

        require_runs(runs, warmup)
        with self.bench(shapes, batch=batch, rotate=rotate, graph=graph) as bench:
            return bench.time(runs=runs, warmup=warmup)

    def bench(
        self,
        shapes: Mapping[str, Sequence[int]] | None = None,
        *,
        batch: int | None = None,
        rotate: int = 4,
        graph: bool = True,
    ) -> Bench:
        """What :meth:`benchmark` times, made ready: for rounds in turns with other engines. Use it in a ``with``.

        Runs can go on meanwhile, but for those in a profile of an engine that TensorRT 8 has built without swinopt:
        there a profile is for one at a time.

        Args:
            shapes: as for :meth:`benchmark`.
            batch: as for :meth:`benchmark`.
            rotate: as for :meth:`benchmark`.
            graph: as for :meth:`benchmark`.

        Raises:
            OptionError, ModelError, MissingDependencyError, SwinoptError: as for :meth:`benchmark`.
        """
        if rotate < 1:
            raise OptionError(f"rotate is at least 1, and {rotate} was given")
        return self._alive().bench(self.interface, self._shapes(shapes, batch), rotate, graph, str(self))

    def profile(
        self, shapes: Mapping[str, Sequence[int]] | None = None, *, batch: int | None = None, runs: int = 20
    ) -> LayerTimes:
        """Where the time goes, layer by layer; print it.

        Args:
            shapes: as for :meth:`benchmark`.
            batch: as for :meth:`benchmark`.
            runs: how many runs to take the mean of.

        Raises:
            OptionError, ModelError, MissingDependencyError, SwinoptError: as for :meth:`benchmark`.
        """
        if runs < 1:
            raise OptionError(f"runs is at least 1, and {runs} was given")
        return self._alive().profile(self.interface, self._shapes(shapes, batch), runs)

    def _shapes(self, shapes: Mapping[str, Sequence[int]] | None, batch: int | None) -> dict[str, Shape]:
        given = {name: tuple(shape) for name, shape in (shapes or {}).items()}
        unknown = sorted(given.keys() - self.inputs.keys())
        if unknown:
            raise OptionError(f"the engine has no input {', '.join(unknown)}; it has {', '.join(self.inputs)}")
        usual = {name: sizes for name, (_, sizes, _) in next(iter(self.interface.profiles), {}).items()}
        known = {name: given.get(name) or usual.get(name) or value.shape for name, value in self.inputs.items()}
        if batch is None:
            return known
        open_batch = {name for name, value in self.inputs.items() if value.shape[:1] == (-1,)}
        if not open_batch:
            raise OptionError("the engine has one batch size alone: leave batch out")
        return {name: (batch, *shape[1:]) if name in open_batch else shape for name, shape in known.items()}

    # --------------------------------------------------------------------------------------------------------- its life

    def close(self) -> None:
        """Gives back what the engine holds on the GPU, after runs that have begun. Running it again takes it anew."""
        with self._lock:
            execution, self._execution = self._execution, None
        if execution is not None:
            execution.close()

    def __getstate__(self) -> dict[str, Any]:
        # A copy takes what it needs on the GPU for itself.
        return {**self.__dict__, "_trt": self._trt.__name__, "_execution": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({**state, "_trt": tensorrt_module.find(state["_trt"]), "_lock": threading.Lock()})

    def _alive(self) -> Execution:
        with self._lock:
            if self._execution is None:
                from swinopt.execution import Execution

                self._execution = Execution(self.plan, self._trt)
            return self._execution

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __str__(self) -> str:
        parts = [tensorrt_module.describe(self._trt), *([self.precision] if self.precision else [])]
        if self._plugin_layers is not None:
            parts.append(f"{self._plugin_layers} plugin layers")
        return ", ".join(parts)

    def __repr__(self) -> str:
        interface = self._interface
        values = []
        if interface is not None:
            values = [f"{n} {v.dtype}{text_of(v.shape)}" for n, v in [*interface.inputs.items()]]
            values.append("->")
            values += [f"{n} {v.dtype}{text_of(v.shape)}" for n, v in [*interface.outputs.items()]]
        return f"<Engine of {self}, {len(self.plan) / 1e6:.1f} MB{': ' if values else ''}{' '.join(values)}>"

    def _repr_html_(self) -> str:
        rows = [("engine", f"{self}, {len(self.plan) / 1e6:.1f} MB")]
        if self._interface is not None:
            for kind, values in (("input", self._interface.inputs), ("output", self._interface.outputs)):
                rows += [(kind, f"{name} {value.dtype}{text_of(value.shape)}") for name, value in values.items()]
            for profile in self._interface.profiles:
                ranges = (f"{name} {', '.join(map(text_of, sizes))}" for name, sizes in profile.items())
                rows.append(("profile", "; ".join(ranges)))
        rows += [("measured", f"{c.op}, {len(c.nodes)} nodes: {c.chosen}, {c.why}") for c in self.choices]
        rows += [("note", note) for note in self.notes]
        cells = "".join(f"<tr><th>{kind}</th><td>{html.escape(text)}</td></tr>" for kind, text in rows)
        return f"<table>{cells}</table>"


def write_whole(path: str | os.PathLike[str], data: bytes) -> Path:
    """Writes a file whole or not at all.

    Raises:
        ModelError: the path cannot be written.
    """
    target = Path(path)
    # Threads may write the same file: a timing cache, say.
    draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        draft.write_bytes(data)
        os.replace(draft, target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    return target

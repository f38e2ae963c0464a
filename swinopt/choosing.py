"""Plugin or standard ops: for each swinopt op of a model both are built by themselves, timed in turns, and compared.

Building takes most of the time, and of that the standard ops, on the CPU: processes of their own build several at once.
TensorRT times kernels while it builds, and these may be disturbed then: where the two are close, the standard ops are
built once more alone. Plugins are built one by one, since linears are tuned in the meantime; what is timed here is so
alone.

A plugin is a wall to TensorRT: nothing is fused across it. Where TensorRT makes one good kernel of the spelled-out op,
or a size suits the plugin's kernel badly, the standard ops are faster; which it is hangs on the GPU, the TensorRT, the
precision and the size, so that nothing but a measurement tells.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs
from onnx import helper, numpy_helper

import swinopt
from swinopt import choice_cache, cuda, graph, ops, tensorrt_module
from swinopt import profiles as profile
from swinopt.builders import Builder, InTurn, Standard
from swinopt.choice import Choice, Choices, Form, by_time
from swinopt.choice_cache import Times
from swinopt.engine import Engine
from swinopt.errors import MissingDependencyError, SwinoptError
from swinopt.facts import Facts
from swinopt.graph import Array
from swinopt.pipeline import Progress

if TYPE_CHECKING:
    from swinopt.bench import Bench

BUILDING, MEASURING = "building what is measured", "measuring plugins"

_CLOSE = 1.1  # of the plugin's time: what a build alone may make of the standard ops
_ROUNDS = 5
_RUNS = 50
_WARMUP = 10

_IN_WORDS: Mapping[Form, str] = {"plugin": "as a plugin", "standard": "in standard ops"}


def choose(
    model: onnx.ModelProto,
    profiles: profile.Profile | Sequence[profile.Profile] | None,
    here: Builder,
    standard: Callable[[], Standard],
    *,
    trt: Any,
    settings: Mapping[str, Any],
    progress: Progress | None = None,
) -> Choices:
    """What each swinopt op of a model should become on this GPU; those in branches and loops are left out.

    Args:
        model: the model.
        profiles: as for :func:`swinopt.tensorrt.build`; sizes are those of the first one's usual shape.
        here: builds engines of plugins, and of standard ops where one more is wanted.
        standard: makes what builds the others of standard ops; called if there is something to build.
        trt: the TensorRT module.
        settings: of the builds, by name, as far as times depend on them.
        progress: told of every build and every op.

    Raises:
        OptionError: a profile is missing, or does not fit the model.
        ModelError: a swinopt op contradicts its specification.
        MissingDependencyError: there is no plugin for an op, or what runs an engine is not installed.
        SwinoptError: the plugin library cannot be loaded, or CUDA fails.
    """
    needed = ops.uses(model)
    if not needed:
        return Choices()
    # What is not installed is an error, and no reason for another engine.
    tensorrt_module.register_plugins(trt, needed)
    found = _ops_of(graph.load(model), profiles)
    setup = {
        "gpu": cuda.device_name(),
        "compute_capability": cuda.compute_capability(),
        "driver": cuda.driver_version(),
        "tensorrt": tensorrt_module.describe(trt),
        "swinopt": swinopt.__version__,
        "kernels": choice_cache.kernels_hash(trt.__version__),
        "cublaslt": tensorrt_module.cublaslt_version(trt),
        "standard_ops": choice_cache.sources_hash(),
        **settings,
    }
    candidates = [_Candidate(op, {**setup, **op.key()}, here) for op in found]
    measured = [c for c in candidates if c.is_measured]
    choices = []
    with standard() if measured else InTurn(here) as others:
        _build_all(measured, others, progress)
        others.rest()
        for index, candidate in enumerate(candidates):
            if progress:
                progress(MEASURING, index, len(candidates))
            choices.append(candidate.choice(others))
    return Choices(choices)


# ------------------------------------------------------------------------------------------------------ ops of a model


@dataclass
class _Op:
    """A swinopt op in one size.

    ``shapes``, ``dtypes`` (numbers of ONNX) and ``constants`` are by input, absent ones left out; without shapes it is
    one whose sizes cannot be told.
    """

    type: str
    attributes: dict[str, Any]
    opset: int
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, node: gs.Node, facts: Facts) -> _Op:
        spec = ops.spec(node.op)
        attributes = {a.name: _plain(node.attrs.get(a.name, a.default)) for a in spec.attributes}
        op = cls(node.op, attributes, facts.graph.opset)
        given = {i.name: t for i, t in zip(spec.inputs, node.inputs, strict=False) if not t.is_empty()}
        for name, tensor in given.items():
            shape, dtype, value = facts.static_shape(tensor), facts.onnx_dtype(tensor), facts.constant(tensor)
            if shape is None or dtype is None:
                return cls(node.op, attributes, facts.graph.opset)
            op.shapes[name], op.dtypes[name] = shape, dtype
            if value is not None:
                op.constants[name] = value
        return op

    @property
    def computed(self) -> list[str]:
        """The inputs that kernels take from initializers alone and that are none."""
        missing = self.shapes.keys() - self.constants.keys()
        return [i.name for i in ops.spec(self.type).inputs if i.constant and i.name in missing]

    def key(self) -> dict[str, Any]:
        """All that tells the op from another one; the values of constants do not."""
        inputs = {
            name: {
                "shape": list(shape),
                "dtype": onnx.TensorProto.DataType.Name(self.dtypes[name]).lower(),
                "constant": name in self.constants,
            }
            for name, shape in self.shapes.items()
        }
        attributes = {name: list(v) if isinstance(v, tuple) else v for name, v in self.attributes.items()}
        return {"op": self.type, "opset": self.opset, "attributes": attributes, "inputs": inputs}

    def model(self) -> onnx.ModelProto:
        """The op and nothing else: what is constant in the model is so here, and the rest are inputs."""
        spec = ops.spec(self.type)
        outputs = ops.infer_shapes(self.type, [self.shapes.get(i.name) for i in spec.inputs], self.attributes)
        dtype = self.dtypes[spec.inputs[0].name]
        present = [i.name if i.name in self.shapes else "" for i in spec.inputs]
        names = [o.name for o in spec.outputs]
        node = helper.make_node(self.type, present, names, domain=ops.DOMAIN, **self.attributes)
        made = helper.make_graph(
            [node],
            self.type,
            [_value(n, self.dtypes[n], shape) for n, shape in self.shapes.items() if n not in self.constants],
            [_value(o.name, dtype, shape) for o, shape in zip(spec.outputs, outputs, strict=True)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        imports = [helper.make_opsetid("", self.opset), helper.make_opsetid(ops.DOMAIN, ops.VERSION)]
        version = helper.find_min_ir_version_for(imports, True)
        return helper.make_model(made, opset_imports=imports, ir_version=version)

    def choice(self, chosen: Form, why: str, times: Times | None = None, from_cache: bool = False) -> Choice:
        """What was chosen for the op."""
        defaults = ops.spec(self.type).defaults
        told = {name: value for name, value in self.attributes.items() if value != defaults.get(name)}
        plugin_ms, standard_ms = times or (None, None)
        return Choice(self.type, told, self.shapes, tuple(self.nodes), plugin_ms, standard_ms, chosen, why, from_cache)


def _ops_of(model: gs.Graph, profiles: profile.Profile | Sequence[profile.Profile] | None) -> list[_Op]:
    """The swinopt ops, each in each of its sizes once, in the order in which they come."""
    _bind(model, profiles)
    facts = Facts(model)
    found: dict[str, _Op] = {}
    for node in model.nodes:
        if node.domain == ops.DOMAIN:
            op = _Op.of(node, facts)
            same = found.setdefault(json.dumps(op.key(), sort_keys=True), op)
            same.nodes.append(next(tensor.name for tensor in node.outputs if not tensor.is_empty()))
    return list(found.values())


def _bind(model: gs.Graph, profiles: profile.Profile | Sequence[profile.Profile] | None) -> None:
    """Gives the inputs the usual shape of the first profile."""
    if any(tensor.shape is None for tensor in model.inputs):
        return
    inputs = {t.name: tuple(d if isinstance(d, int) and d >= 0 else -1 for d in t.shape) for t in model.inputs}
    usual = {name: shape for name, (_, shape, _) in next(iter(profile.resolve(profiles, inputs)), {}).items()}
    for tensor in model.inputs:
        tensor.shape = list(usual.get(tensor.name, inputs[tensor.name]))


def _value(name: str, dtype: int, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# ----------------------------------------------------------------------------------------------------------- measuring


class _Candidate:
    """An op for which there is something to choose, what is known of it, and what is built to find out."""

    def __init__(self, op: _Op, key: Mapping[str, Any], here: Builder) -> None:
        self.op, self.key = op, key
        self.cached = choice_cache.read(key) if op.shapes else None
        self._here = here
        self._engines: dict[Form, Engine] = {}
        self._failures: dict[Form, str] = {}

    @property
    def is_measured(self) -> bool:
        """Whether its times are still to be found."""
        return bool(self.op.shapes) and not self.op.computed and self.cached is None

    def build_plugin(self) -> None:
        """Builds the plugin, or notes why it cannot be built."""
        self._take("plugin", lambda: self._here(self.op.model(), True))

    def begin(self, standard: Standard) -> Future[Engine]:
        """Begins to build the standard ops."""
        return standard.begin(self.op.model())

    def end(self, begun: Future[Engine]) -> None:
        """Takes what was begun, or notes why it could not be built."""
        self._take("standard", begun.result)

    def _take(self, form: Form, engine: Callable[[], Engine]) -> None:
        self._failures.pop(form, None)
        with _noted(form, self._failures):
            self._engines[form] = engine()

    def choice(self, standard: Standard) -> Choice:
        """What the op should become, by the times that are known or else by a measurement."""
        if not self.op.shapes:
            return self.op.choice("plugin", "its sizes cannot be told")
        if self.op.computed:
            why = f"kernels take {' and '.join(self.op.computed)} from initializers alone"
            return self.op.choice("standard", why)
        times = self.cached or self._measured(standard)
        if times is None:
            # Not kept: what failed for want of memory, say, may not the next time. If both do, the whole model tells.
            only_plugin_fails = self._failures.keys() == {"plugin"}
            why = "; ".join(f"{_IN_WORDS[form]}: {reason}" for form, reason in self._failures.items())
            return self.op.choice("standard" if only_plugin_fails else "plugin", why)
        if not self.cached:
            choice_cache.write(self.key, times)
        chosen = by_time(self.op.type, self.key["precision"], len(self.op.nodes), *times)
        return self.op.choice(*chosen, times=times, from_cache=self.cached is not None)

    def _measured(self, standard: Standard) -> Times | None:
        """Milliseconds as plugin and in standard ops; None if one or both of them do not work."""
        for form in tuple(self._failures):  # maybe for want of memory that others had
            if form == "plugin":
                self.build_plugin()
            else:  # not here, where a process that ends would be this one
                self.end(self.begin(standard))
                standard.rest()
        times = self._timed()
        if times is not None and times[0] < times[1] <= _CLOSE * times[0]:
            # Here: another process would have to start TensorRT and the GPU for it.
            self._take("standard", lambda: self._here(self.op.model(), False))
            times = self._timed()
        self._engines.clear()
        return times

    def _timed(self) -> Times | None:
        medians: dict[Form, list[float]] = {"plugin": [], "standard": []}
        with ExitStack() as stack:
            for engine in self._engines.values():
                stack.enter_context(engine)
            benches = self._benches(stack, graph=True)
            if not all(bench.graph for bench in benches.values()):
                # What cannot be captured would pay for its launches, and the other one not.
                for bench in benches.values():
                    bench.close()
                benches = self._benches(stack, graph=False)
            for number in range(_ROUNDS):
                # In turns, now the one and now the other first: clocks go up and down with time.
                for form in reversed(medians) if number % 2 else medians:
                    with _noted(form, self._failures):
                        if not self._failures:
                            medians[form].append(benches[form].time(runs=_RUNS, warmup=_WARMUP).median)
        return None if self._failures else (median(medians["plugin"]), median(medians["standard"]))

    def _benches(self, stack: ExitStack, *, graph: bool) -> dict[Form, Bench]:
        benches = {}
        for form, engine in self._engines.items():
            with _noted(form, self._failures):
                benches[form] = stack.enter_context(engine.bench(graph=graph))
        return benches


def _build_all(candidates: Sequence[_Candidate], standard: Standard, progress: Progress | None) -> None:
    """Builds both forms of each."""
    if not candidates:
        return
    done = itertools.count()

    def tell() -> None:
        if progress:
            progress(BUILDING, next(done), 2 * len(candidates))

    for candidate in candidates:
        tell()
        candidate.build_plugin()
    begun = {}
    for candidate in candidates:
        future = candidate.begin(standard)
        if future.done():  # it was built here
            tell()
            candidate.end(future)
        else:
            begun[future] = candidate
    for future in as_completed(begun):
        tell()
        begun[future].end(future)


@contextmanager
def _noted(form: Form, failures: dict[Form, str]) -> Iterator[None]:
    """Keeps the reason if this form of an op can be built or run no more."""
    try:
        yield
    except MissingDependencyError:
        raise
    except SwinoptError as error:
        failures.setdefault(form, " ".join(str(error).split()))

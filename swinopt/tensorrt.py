"""Building TensorRT engines: one way for TensorRT 8.6, 10, 11 and TensorRT-RTX.

from swinopt import tensorrt

engine = tensorrt.build(swinopt.optimize("swin.onnx"), precision="fp16")
engine.save("swin.engine")
outputs = engine.run({"input": images})
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from swinopt import builders, choosing, cuda, ops, tensorrt_module
from swinopt import graph as graphs
from swinopt import profiles as profile
from swinopt.api import Optimized
from swinopt.choice import Choices
from swinopt.engine import Engine, write_whole
from swinopt.errors import ModelError, OptionError, SwinoptError
from swinopt.execution import dtype_name
from swinopt.export import require_writable
from swinopt.graph import ModelLike
from swinopt.interface import Interface, Range, Value
from swinopt.lowering import for_parser, fuse_between_attentions
from swinopt.pipeline import Progress
from swinopt.precision import NARROW

__all__ = ["PLUGINS", "PRECISIONS", "Engine", "build"]

PRECISIONS = ("fp16", "bf16", "tf32", "fp32")
PLUGINS = ("auto", "on", "off")
_FLAGS = {"fp16": "FP16", "bf16": "BF16"}
_NARROW_TYPES = {"fp16": "HALF", "bf16": "BF16"}
#: What plugins for linears ask for, in whole MiB: kLinearWorkspace in cuda_plugins/linear/plan.h, and its alignment.
_LINEAR_WORKSPACE = 33
_PLUGIN_LAYERS = ("PLUGIN", "PLUGIN_V2", "PLUGIN_V3")


def build(
    model: ModelLike | Optimized,
    *,
    precision: str = "fp16",
    profiles: profile.Profile | Sequence[profile.Profile] | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    plugins: str = "auto",
    workspace: int | None = None,
    optimization_level: int | None = None,
    progress: bool | Progress = False,
    tensorrt: str | None = None,
) -> Engine:
    """Builds an engine from a model, optimized or not.

    A model for another TensorRT than the one at hand is brought to what that one takes. swinopt ops become plugin
    layers, or standard ops where those are faster on this GPU: a plugin that is not installed is an error, never a
    slower engine.

    TensorRT-RTX builds without a GPU, and then for all the kinds of GPU that it knows; TensorRT needs the GPU that the
    engine is for.

    Args:
        model: what :func:`swinopt.optimize` returned or takes.
        precision: ``"fp16"``, ``"bf16"``, ``"tf32"`` or ``"fp32"``. The first two are upper bounds for TensorRT 8.6
            and 10, which choose for each layer that is no plugin; where the graph alone decides (TensorRT 11, RTX) it
            is converted. Inputs and outputs keep the types that the model declares.
        profiles: for a model with dynamic inputs ``{input: (smallest, usual, largest shape)}``, or several of these.
            By default a dynamic batch goes from 1 to 32 and is tuned for 8; other dynamic sizes need a profile.
        timing_cache: a file that remembers measurements of kernels: read if it is there, and added to. TensorRT-RTX
            measures nothing and leaves it alone.
        plugins: ``"on"`` makes a plugin layer of every swinopt op, ``"off"`` spells all of them out in standard ones.
            Where swinopt's C++ library and cuBLASLt are there, the linears of a model with such ops are plugins, too:
            with bias, residual addition and, in half precision, GELU in one product, whose sums are in float32. The
            embedding of patches is one of them, and the norms beside them become plugins with them: V1's with the
            merging of patches before it, V2's with the residual addition behind it, all others alone.
            ``"auto"`` measures: each op, in each size that the first profile's usual shape gives it, is built by itself
            both ways, and the faster is taken, or the one that works; in half precision a linear may be a tenth slower,
            or all of one size 2.5 microseconds together, for its sums in float32. ``Engine.choices`` tells. Standard
            ops are built by Python processes of their own, up to eight, as CPUs and the GPU's memory allow, or by this
            one where there can be no others. Times are kept in swinopt's cache folder, so that the next build measures
            what is new. TensorRT-RTX measures nothing: there it is the same as ``"on"``, but for linears in fp32 and
            tf32, which stay standard ops.
        workspace: the most MiB of scratch memory that a layer may take; by default TensorRT's own limit. With less than
            33 no linear becomes a plugin.
        optimization_level: from 0, the fastest build, to 5, the longest search for a fast engine; by default TensorRT's
            own, which is 3.
        progress: True to print each phase, or a function of a phase, a step and the number of steps.
        tensorrt: ``"tensorrt"`` or ``"tensorrt_rtx"``; by default what the environment variable ``SWINOPT_TENSORRT``
            names, or else the first of the two that is installed.

    Raises:
        ModelError: the model or the timing cache cannot be read, the latter cannot be written, TensorRT's parser does
            not take the model, or its weights are of another precision than the one that is asked for.
        OptionError: an argument is none that there is, a profile is missing or does not fit, or this TensorRT has no
            such precision.
        MissingDependencyError: TensorRT, a plugin or cuda-bindings is missing.
        SwinoptError: there is no GPU where one is needed, or TensorRT fails.
    """
    if precision not in PRECISIONS:
        raise OptionError(f"there is no precision {precision!r}; there are {', '.join(PRECISIONS)}")
    if plugins not in PLUGINS:
        raise OptionError(f'plugins is "auto", "on" or "off", and not {plugins!r}')
    if workspace is not None and workspace < 1:
        raise OptionError(f"workspace is at least 1 MiB, and {workspace} was given")
    if optimization_level is not None and optimization_level not in range(6):
        raise OptionError(f"optimization_level is 0 to 5, and {optimization_level} was given")
    if timing_cache is not None:
        require_writable(timing_cache)
    proto = model.model if isinstance(model, Optimized) else graphs.load_model(model)
    trt = tensorrt_module.find(tensorrt)
    told = _told(progress)
    linears = (
        bool(ops.uses(proto))
        and plugins != "off"
        # In float32 TensorRT-RTX's own are as exact, and it does not measure which is faster.
        and (precision in NARROW or not tensorrt_module.is_rtx(trt))
        and (workspace is None or workspace >= _LINEAR_WORKSPACE)
        and tensorrt_module.cublaslt_version(trt) > 0
    )
    build = _Build(trt, precision, timing_cache, workspace, optimization_level, told, linears)
    if linears:
        proto = fuse_between_attentions(
            proto, precision=precision, by_graph=not build.by_flags, has_gelu=build.has_gelu
        )
    choices = Choices()
    if plugins == "auto" and not tensorrt_module.is_rtx(trt):
        settings: dict[str, Any] = {
            "precision": precision,
            "workspace": workspace,
            "optimization_level": optimization_level,
        }
        here = OpBuilder(trt, **settings, linears=linears, builder=build.builder)
        others = partial(builders.standard, here, tensorrt=trt.__name__, **settings, linears=linears)
        choices = choosing.choose(proto, profiles, here, others, trt=trt, settings=settings, progress=told)
        build.notes += choices.failures
    return build.engine(proto, profiles, plugins=plugins != "off", choices=choices)


class OpBuilder:
    """Builds engines of single ops, one after the other, for :func:`swinopt.choosing.choose`.

    Args:
        trt: the TensorRT module.
        precision: as for :func:`build`.
        workspace: as for :func:`build`.
        optimization_level: as for :func:`build`.
        linears: whether linears are plugins, which the ends of the engines hang on.
        builder: TensorRT's, if there is one already: making it takes seconds.
    """

    def __init__(
        self,
        trt: Any,
        *,
        precision: str,
        workspace: int | None,
        optimization_level: int | None,
        linears: bool,
        builder: Any = None,
    ) -> None:
        self._trt, self._precision, self._workspace = trt, precision, workspace
        self._level, self._linears, self._builder = optimization_level, linears, builder

    def __call__(self, op: onnx.ModelProto, plugin: bool) -> Engine:
        """An engine of an op, as a plugin or in standard ops.

        Raises:
            SwinoptError: as for :func:`build`.
        """
        one = _Build(self._trt, self._precision, None, self._workspace, self._level, None, self._linears, self._builder)
        self._builder = one.builder
        return one.engine_of_op(op, plugin)


class _Build:
    """One build. TensorRT's objects live as long as this: the parser owns the weights of the network."""

    def __init__(
        self,
        trt: Any,
        precision: str,
        timing_cache: str | os.PathLike[str] | None,
        workspace: int | None,
        optimization_level: int | None,
        progress: Progress | None,
        linears: bool,
        builder: Any = None,
    ) -> None:
        self.linears = linears
        self.trt, self.precision, self.workspace, self.progress = trt, precision, workspace, progress
        self.optimization_level = optimization_level
        self.timing_cache = Path(timing_cache) if timing_cache is not None else None
        self.notes: list[str] = []
        self.by_flags = hasattr(trt.BuilderFlag, "FP16")
        if self.by_flags and precision in _FLAGS and not hasattr(trt.BuilderFlag, _FLAGS[precision]):
            raise OptionError(f"{tensorrt_module.describe(trt)} has no {precision}: take fp16, or TensorRT 10 or newer")
        if not tensorrt_module.is_rtx(trt):
            cuda.require_device("Building with TensorRT")
        self.logger = tensorrt_module.logger(trt)
        self.logger.errors.clear()
        try:
            self.builder = builder or trt.Builder(self.logger)
        except TypeError as error:  # what pybind11 makes of a constructor that gave up
            raise SwinoptError(f"TensorRT does not start: {tensorrt_module.complaints(trt)}") from error
        self.network = self.builder.create_network(self._network_flags())
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.config = self.builder.create_builder_config()
        self.has_gelu: bool = self.parser.supports_operator("Gelu")

    def engine(
        self,
        model: onnx.ModelProto,
        wanted: profile.Profile | Sequence[profile.Profile] | None,
        *,
        plugins: bool,
        choices: Choices,
    ) -> Engine:
        """The engine of a whole model."""
        if self.progress:
            self.progress("preparing the model", 0, 1)
        plugin_layers = self._define(model, plugins=plugins, spelled_out=choices.spelled_out)
        return self._engine(wanted, plugin_layers, choices)

    def engine_of_op(self, model: onnx.ModelProto, plugin: bool) -> Engine:
        """The engine of an op alone: it takes and gives what its neighbours in an engine of this precision would."""
        plugin_layers = self._define(model, plugins=plugin, narrow_ends=True)
        if self.by_flags and self.precision in _NARROW_TYPES:
            tensors = [self.network.get_input(index) for index in range(self.network.num_inputs)]
            tensors += [self.network.get_output(index) for index in range(self.network.num_outputs)]
            for tensor in tensors:
                if tensor.dtype == self.trt.DataType.FLOAT:
                    tensor.dtype = getattr(self.trt.DataType, _NARROW_TYPES[self.precision])
        return self._engine(None, plugin_layers, Choices())

    def _define(self, model: onnx.ModelProto, **options: Any) -> int:
        """Fills the network; returns how many layers of it are plugins."""
        model, kept = for_parser(
            model,
            precision=self.precision,
            by_graph=not self.by_flags,
            has_gelu=self.has_gelu,
            linears=self.linears,
            **options,
        )
        self.notes += [f"{node} stays in float32: {reason}" for node, reason in kept.items()]
        needed = ops.uses(model)
        tensorrt_module.register_plugins(self.trt, needed)
        self._parse(model)
        plugin_layers = self._plugin_layers()
        if plugin_layers < needed.total():
            raise SwinoptError(
                f"{needed.total()} nodes need a plugin, and {tensorrt_module.describe(self.trt)} made {plugin_layers} "
                'plugin layers: please report this, and build with plugins="off" until it is solved'
            )
        return plugin_layers

    def _engine(
        self, wanted: profile.Profile | Sequence[profile.Profile] | None, plugin_layers: int, choices: Choices
    ) -> Engine:
        inputs = _values(self.trt, self.network.num_inputs, self.network.get_input)
        ranges = profile.resolve(wanted, {name: value.shape for name, value in inputs.items()})
        self._configure(ranges)
        plan = self._serialized()
        outputs = _values(self.trt, self.network.num_outputs, self.network.get_output)
        return Engine(
            plan,
            self.trt,
            interface=Interface(inputs, outputs, ranges),
            plugin_layers=plugin_layers,
            precision=self.precision,
            notes=self.notes,
            choices=choices,
        )

    # --------------------------------------------------------------------------------------------------------- network

    def _network_flags(self) -> int:
        known = self.trt.NetworkDefinitionCreationFlag
        wanted = ["EXPLICIT_BATCH", *([] if self.by_flags else ["STRONGLY_TYPED"])]
        return sum(1 << int(getattr(known, name)) for name in wanted if hasattr(known, name))

    def _parse(self, model: onnx.ModelProto) -> None:
        data = graphs.serialised(model)
        if data is not None and len(data) < graphs.PROTOBUF_LIMIT:
            parsed = self.parser.parse(data)
        else:
            with tempfile.TemporaryDirectory(prefix="swinopt-") as folder:
                parsed = self.parser.parse_from_file(str(graphs.save(model, Path(folder) / "model.onnx")))
        if not parsed:
            errors = [self.parser.get_error(index) for index in range(self.parser.num_errors)]
            reasons = "; ".join(" ".join(str(error).split()) for error in errors)
            raise ModelError(
                f"the parser of {tensorrt_module.describe(self.trt)} does not take the model: "
                f"{reasons or 'no reason given'} ({tensorrt_module.complaints(self.trt)})"
            )

    def _plugin_layers(self) -> int:
        kinds = {getattr(self.trt.LayerType, name, None) for name in _PLUGIN_LAYERS}
        return sum(self.network.get_layer(index).type in kinds for index in range(self.network.num_layers))

    # --------------------------------------------------------------------------------------------------- configuration

    def _configure(self, ranges: Sequence[Mapping[str, Range]]) -> None:
        flags = self.trt.BuilderFlag
        if self.precision in _FLAGS and self.by_flags:
            self.config.set_flag(getattr(flags, _FLAGS[self.precision]))
        # TF32 is on by default, and would make "fp32" a number of 10 bits. Half precision falls back to the faster.
        (self.config.clear_flag if self.precision == "fp32" else self.config.set_flag)(flags.TF32)
        # cuDNN's kernels are a default of TensorRT 8 alone; without them an engine does not need cuDNN to run.
        if hasattr(self.config, "set_tactic_sources") and hasattr(self.trt.TacticSource, "CUDNN"):
            cudnn = 1 << int(self.trt.TacticSource.CUDNN)
            self.config.set_tactic_sources(self.config.get_tactic_sources() & ~cudnn)
        if self.workspace is not None:
            self.config.set_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE, self.workspace << 20)
        if self.optimization_level is not None:
            if not hasattr(self.config, "builder_optimization_level"):
                raise OptionError(
                    f"{tensorrt_module.describe(self.trt)} has no optimization levels: leave optimization_level out"
                )
            self.config.builder_optimization_level = self.optimization_level
        if hasattr(self.config, "profiling_verbosity"):
            self.config.profiling_verbosity = self.trt.ProfilingVerbosity.DETAILED
        sharing = getattr(getattr(self.trt, "PreviewFeature", None), "PROFILE_SHARING_0806", None)
        if ranges and sharing is not None:
            # Runs and a bench have a context each; TensorRT 10 is like that by itself.
            self.config.set_preview_feature(sharing, True)
        for each in ranges:
            chosen = self.builder.create_optimization_profile()
            for name, (low, usual, high) in each.items():
                chosen.set_shape(name, low, usual, high)
            if self.config.add_optimization_profile(chosen) < 0:
                raise OptionError(f"TensorRT does not take the profile {dict(each)}")
        if hasattr(self.config, "num_compute_capabilities") and not cuda.device_count():
            self._target_every_gpu()

    def _target_every_gpu(self) -> None:
        every = self.trt.ComputeCapability.__members__
        # Turing (SM75) multiplies no float32 matrices, and bfloat16 neither.
        known = [kind for name, kind in every.items() if name.startswith("SM") and name != "SM75"]
        self.config.num_compute_capabilities = len(known)
        for index, kind in enumerate(known):
            self.config.set_compute_capability(kind, index)
        self.notes.append(f"built without a GPU, for {', '.join(kind.name for kind in known)}")

    # ----------------------------------------------------------------------------------------------------------- build

    def _serialized(self) -> bytes:
        with self._cached_timings(), self._watched():
            plan = self.builder.build_serialized_network(self.network, self.config)
        if plan is None:
            described = tensorrt_module.describe(self.trt)
            raise SwinoptError(f"{described} cannot build the engine: {tensorrt_module.complaints(self.trt)}")
        return bytes(plan)

    @contextmanager
    def _cached_timings(self) -> Iterator[None]:
        path = self.timing_cache
        if path is None or tensorrt_module.is_rtx(self.trt):
            yield
            return
        try:
            known = path.read_bytes() if path.exists() else b""
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
        if not self._take_timings(known):
            self.notes.append(f"{path} is of another TensorRT or GPU, and was replaced")
            self._take_timings(b"")
        yield
        timings = self.config.get_timing_cache()
        # Another build may have written its own in the meantime.
        with suppress(OSError):
            others = self.config.create_timing_cache(path.read_bytes())
            if others is not None:
                timings.combine(others, False)
        write_whole(path, bytes(timings.serialize()))

    def _take_timings(self, known: bytes) -> bool:
        cache = self.config.create_timing_cache(known)
        if cache is None or not self.config.set_timing_cache(cache, False):
            return False
        # 8.6 makes an empty cache of what it cannot read.
        empty = bytes(self.config.create_timing_cache(b"").serialize())
        return known in (b"", empty) or bytes(cache.serialize()) != empty

    @contextmanager
    def _watched(self) -> Iterator[None]:
        progress = self.progress
        if progress is None:
            yield
        elif not hasattr(self.trt, "IProgressMonitor"):
            progress("building", 0, 1)
            yield
        else:
            monitor = _monitor(self.trt, progress)
            self.config.progress_monitor = monitor
            yield
            if monitor.error is not None:
                raise monitor.error


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a module that is chosen at run time
        """Tells of every step. What the listener raises stops the build, and is raised again when TensorRT is out."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step)
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def _tell(self, phase: str, step: int) -> None:
            try:
                progress(phase, step, self.steps.get(phase, 1))
            except BaseException as error:
                self.error = error

    return Monitor()


def _values(trt: Any, count: int, get: Callable[[int], Any]) -> dict[str, Value]:
    tensors = [get(index) for index in range(count)]
    return {t.name: Value(dtype_name(trt, t.dtype), tuple(int(size) for size in t.shape)) for t in tensors}


def _told(progress: bool | Progress) -> Progress | None:
    if callable(progress):
        return progress
    return _print_phase if progress else None


def _print_phase(phase: str, step: int, steps: int) -> None:
    if step == 0:
        print(f"{phase} ({steps} steps)" if steps > 1 else phase, flush=True)

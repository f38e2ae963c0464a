"""The swinopt ops as TensorRT plugins in Python, their kernels compiled by NVRTC: pip alone is enough.

    import tensorrt  # 10 or newer; or tensorrt_rtx
    from swinopt.cuda_plugins.tensorrt import python_plugin

    python_plugin.register(tensorrt)

After that, parsers find a plugin for every op of the swinopt domain, builders take it, and runtimes that live in the
same process execute it; an engine with such a plugin needs :func:`register` wherever it is loaded. The first execution
of a kernel compiles it, which takes a second, once for a machine. Every execution runs some Python on the host: capture
the inference into a CUDA graph, or take the C++ library, where that is not hidden behind the work of the GPU.

TensorRT 10.9 and newer can also take a kernel into the engine ("AOT" plugins: ``tensorrt.plugin.register`` and
``aot_impl``), so that no Python runs later. These plugins do not: TensorRT passes such a kernel addresses and 32-bit
integers one by one, ours take one struct by value, so that each needs a second ``__global__`` function that fills the
struct, and the grid as an expression of symbolic sizes. Nobody has tried that yet.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
from onnx import AttributeProto

from swinopt import cuda_plugins
from swinopt.cuda_plugins import runtime
from swinopt.cuda_plugins.launch import Device, Launch, Tensor, Unsupported
from swinopt.cuda_plugins.nvrtc import CudaError
from swinopt.errors import MissingDependencyError, ModelError
from swinopt.handover import INPUTS_PRESENT
from swinopt.ops import DOMAIN, SPECS, VERSION, Attribute, OpSpec, Shape

_INTEGERS = (AttributeProto.INT, AttributeProto.INTS)
_LISTS = (AttributeProto.INTS, AttributeProto.FLOATS)

#: What is assumed of a GPU that is not here: the most that one can do, so that nothing is refused but by the problem.
_ANY_DEVICE = Device(capability=90, multiprocessors=132, shared_bytes=227 * 1024)

#: A bound only for a caller that passes other addresses every time.
_MOST_LAUNCHES = 256

_refusals: deque[str] = deque(maxlen=64)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def register(trt: Any) -> None:
    """Makes the swinopt ops known to TensorRT's plugin registry, those of them that it does not know yet.

    Args:
        trt: the module ``tensorrt`` (10 or newer) or ``tensorrt_rtx``.

    Raises:
        MissingDependencyError: this TensorRT takes no plugins in Python.
    """
    if not hasattr(trt, "IPluginCreatorV3One"):
        raise MissingDependencyError(
            f"TensorRT {trt.__version__} takes no plugins in Python: take 10 or newer, or build the C++ plugin library"
        )
    registry = trt.get_plugin_registry()
    for creator in _creators(trt):
        if registry.get_creator(creator.name, str(VERSION), DOMAIN) is None:
            registry.register_creator(creator, DOMAIN)


def take_refusals() -> list[str]:
    """Why plugins refused what TensorRT asked of them since the last call, oldest first, each reason once.

    TensorRT prints what a plugin raises to the standard error stream and tells its own caller that a plugin failed.
    """
    reasons = list(dict.fromkeys(_refusals))
    _refusals.clear()
    return reasons


def _remember(spec: OpSpec, error: Exception) -> None:
    reason = str(error) or type(error).__name__
    _refusals.append(reason if reason.startswith(spec.name) else f"{spec.name}: {reason}")


# -------------------------------------------------------------------------------------------------------------- shapes


class _Sizes:
    """Arithmetic on the sizes of a tensor, which TensorRT may know at run time only."""

    def __init__(self, trt: Any, builder: Any) -> None:
        self._operations = trt.DimensionOperation
        self._builder = builder

    def times(self, size: Any, factor: int) -> Any:
        return self._builder.operation(self._operations.PROD, size, self._builder.constant(factor))

    def floor_div(self, size: Any, divisor: int) -> Any:
        return self._builder.operation(self._operations.FLOOR_DIV, size, self._builder.constant(divisor))

    def ceil_div(self, size: Any, divisor: int) -> Any:
        return self._builder.operation(self._operations.CEIL_DIV, size, self._builder.constant(divisor))


_OutputShape = Callable[[_Sizes, list[Any]], list[Any]]


def _same(sizes: _Sizes, first: list[Any]) -> list[Any]:
    return first


def _attended(sizes: _Sizes, qkv: list[Any]) -> list[Any]:
    return [*qkv[:-1], sizes.floor_div(qkv[-1], 3)]


def _merged(sizes: _Sizes, x: list[Any]) -> list[Any]:
    batch, height, width, channels = x
    return [batch, sizes.ceil_div(height, 2), sizes.ceil_div(width, 2), sizes.times(channels, 4)]


#: For each output of an op, how its shape follows from that of the first input. ``OpSpec.infer`` has numbers alone.
_OUTPUT_SHAPES: Mapping[str, tuple[_OutputShape, ...]] = {
    "WindowAttention": (_attended,),
    "PatchMerging": (_merged,),
    "AddLayerNorm": (_same, _same),
    "LayerNorm": (_same,),
}


# -------------------------------------------------------------------------------------------------------------- plugin


def _explained(
    method: Callable[Concatenate[_Plugin, _Arguments], _Result],
) -> Callable[Concatenate[_Plugin, _Arguments], _Result]:
    @functools.wraps(method)
    def explained(self: _Plugin, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        try:
            return method(self, *args, **kwargs)
        except Exception as error:
            _remember(self.spec, error)
            raise

    return explained


class _Plugin:
    """One op of a network: all that ``IPluginV3`` and its three capabilities ask for.

    :func:`_classes` derives it from those of TensorRT, which need not be installed for this module to be imported.
    """

    # Set by TensorRT's own __init__ and read by it through these properties.
    plugin_name: str
    plugin_version: str
    plugin_namespace: str
    num_outputs: int

    def __init__(
        self, trt: Any, spec: OpSpec, attributes: Mapping[str, Any], present: tuple[int, ...] | None = None
    ) -> None:
        for base in _plugin_bases(trt):
            base.__init__(self)
        self.trt, self.spec, self.attributes, self.present = trt, spec, dict(attributes), present
        self.plugin_name, self.plugin_version, self.plugin_namespace = spec.name, str(VERSION), DOMAIN
        self.num_outputs = len(spec.outputs)
        self._dtypes = _dtypes(trt)
        self._launches: dict[Any, Launch] = {}
        self._serialized: Any = None

    def get_capability_interface(self, type: Any) -> _Plugin:
        return self

    def clone(self) -> _Plugin:
        return self.__class__(self.trt, self.spec, self.attributes, self.present)

    # ------------------------------------------------------------------------------------------------ build time

    @_explained
    def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
        unknown = [str(kind) for kind in input_types if kind not in self._dtypes]
        if unknown:
            raise Unsupported(f"an input is {unknown[0]}; there are kernels for {', '.join(self._dtypes.values())}")
        return [input_types[0]] * self.num_outputs

    @_explained
    def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], expr_builder: Any) -> list[Any]:
        shapes = [[dims[axis] for axis in range(len(dims))] for dims in inputs]
        self._check([tuple(s.get_constant_value() if s.is_constant() else None for s in shape) for shape in shapes])
        sizes = _Sizes(self.trt, expr_builder)
        return [self._dims(rule(sizes, shapes[0])) for rule in _OUTPUT_SHAPES[self.spec.name]]

    @_explained
    def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
        this, first = in_out[pos].desc, in_out[0].desc
        dtype = self._dtypes.get(this.type)
        if dtype is None or this.type != first.type or this.format != self.trt.TensorFormat.LINEAR:
            return False
        return dtype != "bfloat16" or _device().capability >= 80

    @_explained
    def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        tensors = [*inputs, *outputs]
        # TensorRT bounds each size of an intermediate tensor by itself. Taken together, bounds of height and width may
        # be no shape that ever comes; on_shape_change sees those that do.
        if any(-1 in tuple(tensor.desc.dims)[1:] for tensor in tensors):
            return
        for bound in ("min", "max"):
            described = [Tensor(tuple(getattr(t, bound)), self._dtypes[t.desc.type]) for t in tensors]
            self._plan(described[: len(inputs)], described[len(inputs) :])

    # ------------------------------------------------------------------------------------------------ run time

    @_explained
    def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        self._plan(self._tensors(inputs), self._tensors(outputs))

    @_explained
    def enqueue(
        self,
        input_desc: Sequence[Any],
        output_desc: Sequence[Any],
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        key = tuple((tuple(d.dims), d.type) for d in input_desc), tuple(inputs), tuple(outputs)
        launch = self._launches.get(key)
        if launch is None:
            launch = self._plan(self._tensors(input_desc, inputs), self._tensors(output_desc, outputs))
            if len(self._launches) >= _MOST_LAUNCHES:
                self._launches.clear()
            self._launches[key] = launch
        runtime.launch(launch, stream)

    def set_tactic(self, tactic: int) -> None:
        """There is one tactic: the plan of a launch is made for the shape."""

    def attach_to_context(self, resource_context: Any) -> _Plugin:
        return self.clone()

    def get_fields_to_serialize(self) -> Any:
        arrays = {a.name: _array(a, self.attributes[a.name]) for a in self.spec.attributes}
        if self.present is not None:
            arrays[INPUTS_PRESENT] = np.array(self.present, np.int32)
        collection = self.trt.PluginFieldCollection([_field(self.trt, name, a) for name, a in arrays.items()])
        # A field points at the array's memory and at its name, and TensorRT reads them later.
        self._serialized = collection, arrays
        return collection

    # ------------------------------------------------------------------------------------------------ both

    def _placed(self, given: Sequence[Any]) -> list[Any]:
        """The inputs at the places that they have in the op, None where absent."""
        present = self.present
        if present is None:
            present = tuple(int(place < len(given)) for place in range(len(self.spec.inputs)))
        if sum(present) != len(given):
            raise ModelError(f"{len(given)} inputs are given, and {INPUTS_PRESENT} is {list(present)}")
        rest = iter(given)
        return [next(rest) if there else None for there in present]

    def _check(self, shapes: Sequence[Shape]) -> None:
        placed = self._placed(shapes)
        missing = [i.name for i, s in zip(self.spec.inputs, placed, strict=True) if s is None and not i.optional]
        if missing:
            raise ModelError(f"{', '.join(missing)} missing")
        self.spec.infer(placed, self.attributes)

    def _plan(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Launch:
        self._check([tensor.shape for tensor in inputs])
        return cuda_plugins.plan(self.spec.name, self._placed(inputs), outputs, self.attributes, _device())

    def _tensors(self, described: Sequence[Any], pointers: Iterable[int] | None = None) -> list[Tensor]:
        addresses = [0] * len(described) if pointers is None else pointers
        return [Tensor(tuple(d.dims), self._dtypes[d.type], p) for d, p in zip(described, addresses, strict=True)]

    def _dims(self, sizes: Sequence[Any]) -> Any:
        dims = self.trt.DimsExprs(len(sizes))
        for axis, size in enumerate(sizes):
            dims[axis] = size
        return dims


class _Creator:
    """Makes the plugins of one op: all that ``IPluginCreatorV3One`` asks for."""

    name: str
    plugin_version: str
    plugin_namespace: str
    field_names: Any

    def __init__(self, trt: Any, spec: OpSpec) -> None:
        trt.IPluginCreatorV3One.__init__(self)
        self.trt, self.spec = trt, spec
        self.name, self.plugin_version, self.plugin_namespace = spec.name, str(VERSION), DOMAIN
        self._arrays = {a.name: _array(a, ()) for a in spec.attributes} | {INPUTS_PRESENT: np.zeros(0, np.int32)}
        self.field_names = trt.PluginFieldCollection([_field(trt, name, a) for name, a in self._arrays.items()])

    def create_plugin(self, name: str, fields: Any, phase: Any) -> _Plugin:
        try:
            given = {fields[i].name: np.array(fields[i].data) for i in range(len(fields))}
            attributes = {a.name: _value(a, given) for a in self.spec.attributes}
            present = tuple(int(flag) for flag in given[INPUTS_PRESENT]) if INPUTS_PRESENT in given else None
            if present is not None and len(present) != len(self.spec.inputs):
                raise ModelError(f"{INPUTS_PRESENT} has {len(present)} entries for {len(self.spec.inputs)} inputs")
        except Exception as error:
            _remember(self.spec, error)
            raise
        plugin: _Plugin = _classes(self.trt)[0](self.trt, self.spec, attributes, present)
        return plugin


def _plugin_bases(trt: Any) -> tuple[Any, ...]:
    return trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime


@functools.cache
def _classes(trt: Any) -> tuple[Any, Any]:
    return (
        types.new_class("SwinoptPlugin", (_Plugin, *_plugin_bases(trt))),
        types.new_class("SwinoptPluginCreator", (_Creator, trt.IPluginCreatorV3One)),
    )


@functools.cache  # TensorRT's registry does not keep them alive
def _creators(trt: Any) -> tuple[Any, ...]:
    make = _classes(trt)[1]
    return tuple(make(trt, spec) for name, spec in SPECS.items() if name in _OUTPUT_SHAPES)


@functools.cache
def _dtypes(trt: Any) -> dict[Any, str]:
    kinds = trt.DataType
    return {kinds.FLOAT: "float32", kinds.HALF: "float16", kinds.BF16: "bfloat16"}


def _device() -> Device:
    try:
        return runtime.device()
    except (CudaError, MissingDependencyError):  # TensorRT-RTX builds without a GPU
        return _ANY_DEVICE


# -------------------------------------------------------------------------------------------------------------- fields


def _array(attribute: Attribute, value: Any) -> Any:
    return np.atleast_1d(np.array(value, np.int32 if attribute.type in _INTEGERS else np.float32))


def _field(trt: Any, name: str, array: Any) -> Any:
    kinds = trt.PluginFieldType
    return trt.PluginField(name, array, kinds.INT32 if array.dtype == np.int32 else kinds.FLOAT32)


def _value(attribute: Attribute, given: Mapping[str, Any]) -> Any:
    if attribute.name not in given:
        if attribute.default is None:
            raise ModelError(f"attribute {attribute.name} missing")
        return attribute.default
    number = int if attribute.type in _INTEGERS else float
    values = tuple(number(v) for v in given[attribute.name])
    return values if attribute.type in _LISTS else values[0]

"""Running a model in ONNX Runtime as it is written, on inputs made for it.

All graph optimizations are off: by default ONNX Runtime fuses LayerNorm, GELU and attention itself, and would hide a
fault in a model that claims to have fused them.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx

from swinopt import handover, ops
from swinopt.errors import MissingDependencyError, OptionError, VerificationError, first_line
from swinopt.graph import PROTOBUF_LIMIT, Array, epsilon_of, load_model, save, serialised, spatial_axes

Feeds: TypeAlias = Mapping[str, Array]

#: Dynamic batch sizes, one run after another; a batch frozen at export shows when the second one runs.
BATCH_SIZES = (1, 4)

# Height and width of images whose sides are dynamic: what suits windows, patches and strides of the published Swins,
# and what suits none of them, so that padding shows. Videos have half of it, with which the last of four stages has a
# map that is as large still as windows are shifted by.
_IMAGE, _ODD_IMAGE = (224, 224), (207, 242)
# Likewise for numbers of tokens, of frames, and whatever else is open. The odd ones are more than a window of 16 and
# differ between axes 1, 3, ... and 2, 4, ...: two axes of one size could be taken for each other.
_LENGTH, _ODD_LENGTHS = 16, (19, 23)
_CHANNELS = 3

# Integer inputs are taken for token ids, and stay below this even where the vocabulary is not visible in the graph.
_LARGEST_INTEGER = 100
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE, onnx.TensorProto.BFLOAT16}
# Through these an index reaches a Gather unchanged, as far as its range goes.
_KEEP_VALUES = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Transpose"}


def run(model: Any, inputs: Feeds) -> dict[str, Array]:
    """The outputs of a model by name, computed by ONNX Runtime on the CPU with its graph optimizations off.

    Args:
        model: anything that :func:`swinopt.graph.load_model` takes.
        inputs: one array for each input, by name; float arrays are cast to the float type that the model declares.

    Raises:
        ModelError: the model cannot be read.
        VerificationError: it cannot be run.
        MissingDependencyError: onnxruntime is not installed.
    """
    proto = load_model(model)
    return Session(proto, "the model").run(given_inputs(proto, inputs)[0])


# ------------------------------------------------------------------------------------------------ inputs and outputs


@dataclass(frozen=True)
class Value:
    """What a model declares of an input or output.

    Attributes:
        dtype: ONNX element type; 0 where it is not declared.
        dims: a number, a symbol or None (neither) for each axis; None where no shape is declared.
    """

    dtype: int
    dims: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Interface:
    """A model's inputs (those that are no weights) and outputs, by name."""

    inputs: dict[str, Value]
    outputs: dict[str, Value]


def interface_of(model: onnx.ModelProto) -> Interface:
    """What the model declares of its inputs and outputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return Interface(
        inputs={value.name: _value(value) for value in model.graph.input if value.name not in weights},
        outputs={value.name: _value(value) for value in model.graph.output},
    )


def _is_fixed(dim: onnx.TensorShapeProto.Dimension) -> bool:
    return dim.HasField("dim_value") and dim.dim_value >= 0


def _value(info: onnx.ValueInfoProto) -> Value:
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        return Value(tensor.elem_type, None)
    # Some tools write -1 for a size that is open.
    sizes = (dim.dim_value if _is_fixed(dim) else (dim.dim_param or None) for dim in tensor.shape.dim)
    return Value(tensor.elem_type, tuple(sizes))


def require_same_interface(a: Interface, b: Interface) -> None:
    """Refuses two models that cannot be given the same inputs or do not declare the same outputs.

    Symbolic sizes fit any size, and float types fit one another.

    Raises:
        VerificationError: names, types or static shapes differ; the message says which.
    """
    for kind, left, right in (("input", a.inputs, b.inputs), ("output", a.outputs, b.outputs)):
        if left.keys() != right.keys():
            raise VerificationError(
                f"the {kind}s of the two models differ: {_names(left)} in a, {_names(right)} in b; "
                "rename them, or compare models of the same interface"
            )
        for name, value in left.items():
            _require_same_value(kind, name, value, right[name])


def _require_same_value(kind: str, name: str, a: Value, b: Value) -> None:
    # A declared type or shape may be missing on an intermediate format's outputs; the run itself then shows them.
    if a.dtype and b.dtype and a.dtype != b.dtype and not (_is_float(a.dtype) and _is_float(b.dtype)):
        types = f"{_dtype_name(a.dtype)} in a and {_dtype_name(b.dtype)} in b"
        raise VerificationError(f"{kind} {name!r} is {types}")
    if a.dims is None or b.dims is None:
        return
    if len(a.dims) != len(b.dims) or any(_clash(m, n) for m, n in zip(a.dims, b.dims, strict=True)):
        raise VerificationError(f"{kind} {name!r} has shape {_shape(a.dims)} in a and {_shape(b.dims)} in b")


def _clash(m: int | str | None, n: int | str | None) -> bool:
    return isinstance(m, int) and isinstance(n, int) and m != n


def _names(values: Iterable[str]) -> str:
    return ", ".join(values) or "none"


def _shape(dims: tuple[int | str | None, ...]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def _is_float(dtype: int) -> bool:
    return dtype in _FLOATS


def _dtype_name(dtype: int) -> str:
    return onnx.TensorProto.DataType.Name(dtype).lower()


def sizes_fixed_by(b: Interface, a: Interface) -> dict[str, int]:
    """The symbols of a that can only be one number, because b has that number on the same axis of the same input."""
    fixed: dict[str, int] = {}
    for name, value in a.inputs.items():
        other = b.inputs[name].dims or ()
        for axis, (dim, size) in enumerate(zip(value.dims or (), other, strict=False)):
            if not isinstance(dim, int) and isinstance(size, int):
                fixed[_symbol(name, axis, dim)] = size
    return fixed


def _symbol(name: str, axis: int, dim: str | None) -> str:
    return dim if dim is not None else f"{name}[{axis}]"


# ----------------------------------------------------------------------------------------------------- random inputs


def random_inputs(
    model: onnx.ModelProto, seeds: Sequence[int], sizes: Mapping[str, int], *, odd: bool = False
) -> list[dict[str, Array]]:
    """One set of inputs a seed: standard normal floats, integers that index what they index, ones for ``*mask*``.

    Args:
        model: the model; the shapes and dtypes are those that it declares.
        seeds: a seed for each set.
        sizes: sizes of symbolic dimensions, by name or, for an unnamed one, as ``input[axis]``. By default the first
            axis alternates between 1 and 4, images are 224 x 224, the frames of videos half of that a side, both with
            3 channels, and all else is 16.
        odd: every second set has images of 207 x 242, and 19 or 23 for what else would be 16.

    Raises:
        VerificationError: an input declares no shape, or is no numeric tensor.
    """
    inputs = interface_of(model).inputs
    limits = {name: _index_limit(model.graph, name) for name, value in inputs.items() if not _is_float(value.dtype)}
    feeds = []
    for index, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        known = _symbol_sizes(inputs, BATCH_SIZES[index % len(BATCH_SIZES)], odd and index % 2 == 1, sizes)
        feeds.append(
            {name: _random_array(rng, name, value, known, limits.get(name, 0)) for name, value in inputs.items()}
        )
    return feeds


def _symbol_sizes(inputs: Mapping[str, Value], batch: int, odd: bool, sizes: Mapping[str, int]) -> dict[str, int]:
    known = dict(sizes)
    for name, value in inputs.items():
        for axis, dim in enumerate(value.dims or ()):
            if not isinstance(dim, int):
                known.setdefault(_symbol(name, axis, dim), _default_size(axis, value.dims or (), batch, odd))
    return known


def _default_size(axis: int, dims: Sequence[object], batch: int, odd: bool) -> int:
    if axis == 0:
        return batch
    spatial = spatial_axes(dims)
    sides = spatial[-2:]
    if axis in sides:
        side = (_ODD_IMAGE if odd else _IMAGE)[sides.index(axis)]
        return side if sides == spatial else side // 2
    if spatial and axis not in spatial:
        return _CHANNELS
    return _ODD_LENGTHS[axis % 2] if odd else _LENGTH


def _random_array(rng: np.random.Generator, name: str, value: Value, sizes: Mapping[str, int], limit: int) -> Array:
    if value.dims is None:
        raise VerificationError(f"input {name!r} declares no shape; give the inputs to compare with")
    shape = [dim if isinstance(dim, int) else sizes[_symbol(name, axis, dim)] for axis, dim in enumerate(value.dims)]
    dtype = _numpy_dtype(name, value.dtype)
    if _is_mask(name):
        return np.ones(shape, dtype)
    if value.dtype == onnx.TensorProto.BOOL:
        return np.asarray(rng.random(shape) < 0.5)
    if _is_float(value.dtype):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, limit, shape).astype(dtype)


def _is_mask(name: str) -> bool:
    return "mask" in name.lower()


def neighbours(model: onnx.ModelProto, inputs: Sequence[Feeds]) -> list[dict[str, Array]]:
    """The inputs with each float replaced by the one above or below it, at random.

    Above and below in the type that the model declares, or in that of most of its weights if that is narrower: a model
    in half precision whose inputs and outputs stayed float32 rounds its inputs itself. Integers, masks and what is not
    finite stay what they are.
    """
    rng = np.random.default_rng(0)
    weights = _type_of_most_weights(model.graph)
    types = {
        name: (value.dtype, weights or value.dtype)
        for name, value in interface_of(model).inputs.items()
        if _is_float(value.dtype) and not _is_mask(name)
    }
    return [
        {name: _neighbour(rng, array, *types[name]) if name in types else array for name, array in feeds.items()}
        for feeds in inputs
    ]


def _neighbour(rng: np.random.Generator, array: Array, *types: int) -> Array:
    declared, weights = (onnx.helper.tensor_dtype_to_np_dtype(dtype) for dtype in types)
    array = array.astype(declared)
    with np.errstate(over="ignore"):
        rounded = array.astype(max(declared, weights, key=epsilon_of))
        towards = np.where(rng.random(array.shape) < 0.5, -np.inf, np.inf).astype(rounded.dtype)
        moved = np.nextafter(rounded, towards)
    return np.where(np.isfinite(rounded) & np.isfinite(moved), moved.astype(declared), array)


def _type_of_most_weights(graph: onnx.GraphProto) -> int | None:
    sizes = Counter[int]()
    stored = {node.input[0] for node in graph.node if node.op_type == "Cast"}  # in a type that they are not used in
    for tensor in graph.initializer:
        if _is_float(tensor.data_type) and tensor.name not in stored:
            sizes[tensor.data_type] += math.prod(tensor.dims)
    return max(sizes, key=sizes.__getitem__, default=None)


def _numpy_dtype(name: str, dtype: int) -> np.dtype[Any]:
    numpy_dtype = onnx.helper.tensor_dtype_to_np_dtype(dtype) if dtype else np.dtype(object)
    if numpy_dtype == np.dtype(object):
        kind = _dtype_name(dtype) if dtype else "no tensor"
        raise VerificationError(f"input {name!r} is {kind}: random inputs are made for numeric tensors only")
    return np.dtype(numpy_dtype)


def _index_limit(graph: onnx.GraphProto, name: str) -> int:
    """How large the integers of an input may be: the smallest table they index, at most 100."""
    lengths = {tensor.name: tensor.dims for tensor in graph.initializer}
    carriers, limit = {name}, _LARGEST_INTEGER
    for node in graph.node:
        if node.op_type in _KEEP_VALUES and node.input and node.input[0] in carriers:
            carriers.update(node.output)
        elif node.op_type == "Gather" and node.input[1] in carriers and node.input[0] in lengths:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
            limit = min(limit, lengths[node.input[0]][axis])
    return limit


def given_inputs(model: onnx.ModelProto, inputs: Feeds | Sequence[Feeds]) -> list[dict[str, Array]]:
    """The inputs that a caller gave, as one mapping a run.

    Raises:
        OptionError: they are no mappings.
        VerificationError: their names are not those of the model's inputs.
    """
    expected = interface_of(model).inputs
    every = [inputs] if isinstance(inputs, Mapping) else list(inputs)
    for feeds in every:
        if not isinstance(feeds, Mapping):
            raise OptionError(f"inputs are a mapping of names to arrays, or several, and not a {type(inputs).__name__}")
        if feeds.keys() != expected.keys():
            raise VerificationError(f"the model takes {_names(expected)} as inputs, and {_names(feeds)} was given")
    return [{name: np.asarray(array) for name, array in feeds.items()} for feeds in every]


# ---------------------------------------------------------------------------------------------------- ONNX Runtime


class Session:
    """An ONNX Runtime session on the CPU without graph optimizations, whose errors are swinopt's own.

    Args:
        model: the model; not kept.
        what: what to call it in an error.
        expose: names of intermediate tensors that :meth:`run` can then be asked for.

    Attributes:
        inputs: names of the model's inputs.

    Raises:
        VerificationError: ONNX Runtime does not load the model.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(self, model: onnx.ModelProto, what: str, *, expose: Sequence[str] = ()) -> None:
        ort = onnxruntime()
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        # Threads that spin while they wait take the processor from the other session and from parallel tests.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._what = what
        self._outputs = [value.name for value in model.graph.output]
        self._types = {name: value.dtype for name, value in interface_of(model).inputs.items()}
        self.inputs = tuple(self._types)
        with _runnable(model, expose) as source:
            try:
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            except Exception as error:
                raise VerificationError(f"{what} cannot be loaded by ONNX Runtime: {first_line(error)}") from error

    def run(self, feeds: Feeds, names: Sequence[str] | None = None) -> dict[str, Array]:
        """The named tensors, by default all outputs; what is no tensor is left out if it was asked for by name.

        Args:
            feeds: an array for each input; float arrays are cast to the float type that the model declares.
            names: outputs or exposed tensors.

        Raises:
            VerificationError: the model does not run on these inputs, or an output is no numeric tensor.
        """
        wanted = list(names or self._outputs)
        try:
            values = self._session.run(wanted, {name: self._cast(name, array) for name, array in feeds.items()})
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            reason = f"{self._what} cannot be run by ONNX Runtime on {shapes}: {first_line(error)}"
            raise VerificationError(reason) from error
        found = {name: value for name, value in zip(wanted, values, strict=True) if _is_numeric(value)}
        if names is None and len(found) != len(wanted):
            missing = _names(name for name in wanted if name not in found)
            raise VerificationError(f"outputs of {self._what} are no numeric tensors and cannot be compared: {missing}")
        return found

    def _cast(self, name: str, array: Array) -> Array:
        dtype = self._types.get(name, 0)
        return array.astype(onnx.helper.tensor_dtype_to_np_dtype(dtype), copy=False) if _is_float(dtype) else array


def _is_numeric(value: object) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


@contextmanager
def _runnable(model: onnx.ModelProto, expose: Sequence[str]) -> Iterator[bytes | str]:
    """The model in a form that ONNX Runtime loads: bytes, or a path where it is too large for a protobuf message."""
    model = _with_bodies(model)
    declared = {value.name for value in model.graph.output}
    extra = onnx.ModelProto()
    extra.graph.output.extend(onnx.ValueInfoProto(name=name) for name in expose if name not in declared)
    # Protobuf merges messages that stand one after the other: more outputs need no copy of the weights.
    additions = extra.SerializeToString()
    data = serialised(model)
    if data is not None and len(data) + len(additions) < PROTOBUF_LIMIT:
        yield data + additions if additions else data
        return
    del data
    with tempfile.TemporaryDirectory(prefix="swinopt-") as folder:
        path = save(model, Path(folder) / "model.onnx")
        with path.open("ab") as file:
            file.write(additions)
        yield str(path)


def _with_bodies(model: onnx.ModelProto) -> onnx.ModelProto:
    if not ops.uses(model) or any(function.domain == ops.DOMAIN for function in model.functions):
        return model
    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    handover.unpack(complete)
    ops.attach_bodies(complete)
    return complete


def onnxruntime() -> Any:
    """The onnxruntime module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            'comparing models needs onnxruntime: pip install "swinopt[cpu]" (or "swinopt[gpu]")'
        ) from error
    return onnxruntime

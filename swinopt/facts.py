"""What is known of every tensor: its dtype, its shape, and where possible its value.

A model with dynamic sizes is looked at through **samples**: every symbolic input size is bound to a concrete number,
two different ones in two samples, and shapes and shape arithmetic are computed for each. A size that differs between
the samples depends on the input; what stays the same, stays the same. For a static model there is one sample, and
everything is exact. Values that hang on a dynamic size are tracked element by element, so that a comparison such as
``batch == 1`` is never mistaken for a constant because it came out alike in both samples. What hangs on a comparison
that may come out otherwise for other sizes (:mod:`swinopt.comparisons`) is not known at all, and neither is what is the
same in both samples, but not for the smallest and the largest sizes (:mod:`swinopt.sizes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import shape_inference
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx

from swinopt import ops
from swinopt.errors import ModelError
from swinopt.evaluate import CannotEvaluate, evaluate, is_deterministic, tensor_type
from swinopt.graph import Array, Tensor, is_standard, literal, producer, size_of
from swinopt.open_sizes import OpenSizes, is_shift
from swinopt.sizes import default_sizes, extreme_sizes, is_size, symbol_of

Shape = tuple[int, ...]

#: Values up to this many elements are computed for every tensor (shape arithmetic); larger ones on demand.
SMALL = 1024
#: The largest value that is ever computed on demand, in elements.
LARGE = 1 << 27

_BFLOAT16 = int(onnx.TensorProto.BFLOAT16)

# Ops that only carry elements from one place to another: what their outputs depend on can be told element by element.
_CARRIES = {"Identity", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Gather", "Concat"}
_CARRIES |= {"Expand", "Tile"}
_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Floor", "Ceil", "Sqrt", "Equal", "Less", "Greater"}
_ELEMENTWISE |= {"LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "Where", "Max", "Min"}
# Their results' elements hang on all that goes in, and how many there are on its shape alone.
_REDUCTIONS = {"ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceMean"}


class Facts:
    """Shapes, dtypes and values of a graph's tensors, computed once a tensor and kept by name.

    Args:
        graph: the graph.
        sizes: a concrete number for each symbolic size, one mapping a sample, e.g. ``[{"batch": 2}, {"batch": 5}]``.
            By default they are chosen.
    """

    _small = SMALL

    def __init__(self, graph: gs.Graph, sizes: Sequence[Mapping[str, int]] | None = None) -> None:
        self.graph = graph
        self._judge: OpenSizes | None = None
        choices = [list(sizes)] if sizes else self._choices()
        unknown, misfits = list[int](), list[ModelError | None]()
        for choice in choices:
            self._sweep(choice)
            unknown.append(sum(shapes is None for name, shapes in self._shapes.items() if name not in self._unsettled))
            misfits.append(self._misfit)
            if unknown[-1] == 0 and self._misfit is None:
                return
        if misfits[0] is not None and None not in misfits:
            raise misfits[0]
        best = self._best(unknown)
        if best < len(choices) - 1:
            self._sweep(choices[best])

    def _choices(self) -> list[list[Mapping[str, int]]]:
        return default_sizes(self.graph.inputs)

    @staticmethod
    def _best(unknown: Sequence[int]) -> int:
        """The choice that leaves the fewest shapes unknown: the last one if it does, since it suits most models."""
        return len(unknown) - 1 if unknown[-1] == min(unknown) else unknown.index(min(unknown))

    def _sweep(self, sizes: list[Mapping[str, int]]) -> None:
        """Learns everything anew, with these sizes in the samples."""
        self.sizes = sizes
        self._misfit: ModelError | None = None
        self._dtypes: dict[str, int | None] = {}
        self._shapes: dict[str, list[Shape] | None] = {}
        self._values: dict[str, list[Array]] = {}
        self._depends: dict[str, Array] = {}
        self._unsettled: set[str] = set()
        self._constants: dict[int, dict[str, Array | None]] = {}
        for tensor in self.graph.inputs:
            self._learn_input(tensor)
        for node in self.graph.nodes:
            self._visit(node)

    @property
    def samples(self) -> range:
        """The indices of the samples."""
        return range(len(self.sizes))

    def shape(self, tensor: Tensor, sample: int = 0) -> Shape | None:
        """The tensor's shape in a sample, all concrete; None where it is unknown."""
        shapes = self.shapes(tensor)
        return None if shapes is None else shapes[sample]

    def dims(self, tensor: Tensor) -> tuple[int | None, ...] | None:
        """The tensor's shape, with None for a size that depends on the input; None where even the rank is unknown."""
        shapes = self.shapes(tensor)
        if shapes is None or len({len(shape) for shape in shapes}) != 1:
            return None
        return tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))

    def static_shape(self, tensor: Tensor) -> Shape | None:
        """The tensor's shape if no size of it depends on the input."""
        dims = self.dims(tensor)
        sizes = tuple(size for size in dims or () if size is not None)
        return None if dims is None or len(sizes) < len(dims) else sizes

    def dtype(self, tensor: Tensor) -> np.dtype[Any] | None:
        """The tensor's NumPy dtype; None where it is unknown or NumPy has none."""
        code = self.onnx_dtype(tensor)
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(code)) if code else None

    def onnx_dtype(self, tensor: Tensor) -> int | None:
        """The tensor's ONNX element type."""
        self.shapes(tensor)
        if isinstance(tensor, gs.Constant):
            return int(dtype_to_onnx(tensor.dtype))
        return self._dtypes.get(tensor.name)

    def value(self, tensor: Tensor, sample: int = 0) -> Array | None:
        """The value that a tensor of shape arithmetic, or a small constant, has in a sample."""
        if isinstance(tensor, gs.Constant):
            return literal(tensor)
        self.shapes(tensor)
        values = self._values.get(tensor.name)
        return None if values is None else values[sample]

    def constant(self, tensor: Tensor, limit: int = LARGE) -> Array | None:
        """The value of a tensor that depends on no input, computed if need be; None if it does, or is too large.

        Args:
            tensor: the tensor.
            limit: the largest number of elements that any step of the computation may have.
        """
        if isinstance(tensor, gs.Constant):
            return literal(tensor)
        # By limit, since what is too large for one may be wanted with another.
        known = self._constants.setdefault(limit, {})
        if tensor.name not in known:
            for node in _computed_by(tensor):
                self._compute_into(known, node, limit, None)
        return known.get(tensor.name)

    def computed(self, tensor: Tensor, sample: int, limit: int = LARGE) -> Array | None:
        """As :meth:`constant`, for a tensor that may also depend on sizes of the input: its value in one sample."""
        if isinstance(tensor, gs.Constant):
            return literal(tensor)
        values: dict[str, Array | None] = {}
        for node in _computed_by(tensor):
            if any(t.name in self._unsettled for t in node.outputs):
                return None
            small = all(t.name in self._values for t in node.outputs)
            # Shape arithmetic may be alike in the samples on its way; what leaves it has to be shown by them.
            if not small and not all(self.is_shown_by_samples(t) for t in node.inputs):
                return None
            self._compute_into(values, node, limit, sample)
        return values.get(tensor.name) if self.is_shown_by_samples(tensor) else None

    def forget_constants(self) -> None:
        """Drops the values that were computed on demand: they are as large as weights."""
        self._constants.clear()

    def has_small_value(self, tensor: Tensor) -> bool:
        """Whether the value is that of shape arithmetic, or small, or left out."""
        if isinstance(tensor, gs.Constant):
            return size_of(tensor) <= self._small
        return tensor.is_empty() or tensor.name in self._values

    def depends(self, tensor: Tensor) -> bool:
        """Whether the value of a tensor of shape arithmetic depends on sizes of the input."""
        flags = self._depends.get(tensor.name)
        return flags is not None and bool(flags.any())

    def is_shown_by_samples(self, tensor: Tensor) -> bool:
        """Whether the samples tell how a tensor of shape arithmetic depends on the input.

        False where it depends, and is the same in all samples all the same: a padding of ``-H % 8``, which is 0 for
        both heights that were looked at, says nothing of other heights. False, too, where it hangs on a comparison that
        may come out otherwise for other sizes (:mod:`swinopt.comparisons`).
        """
        if tensor.name in self._unsettled:
            return False
        if isinstance(tensor, gs.Constant) or not self.depends(tensor):
            return True
        values = [value for sample in self.samples if (value := self.value(tensor, sample)) is not None]
        if len(values) < len(self.samples) or len({value.shape for value in values}) > 1:
            return True
        alike = np.logical_and.reduce([value == values[0] for value in values])
        return alike.size > 0 and not bool((alike & self._depends[tensor.name]).any())

    def learn(self, tensor: Tensor, like: Tensor | None = None, shapes: Sequence[Shape] | None = None) -> None:
        """Tells the shape of a tensor that was just made, where its node does not."""
        known = self.shapes(like) if like is not None else None
        self._shapes[tensor.name] = list(shapes) if shapes is not None else known
        if like is not None:
            self._dtypes[tensor.name] = self.onnx_dtype(like)

    def annotate(self) -> None:
        """Writes dtypes and shapes into the graph's tensors, for whoever reads the model next."""
        for node in self.graph.nodes:
            for tensor in node.outputs:
                dims, dtype = self.dims(tensor), self.onnx_dtype(tensor)
                if dims is not None and dtype is not None and not any(tensor is t for t in self.graph.outputs):
                    tensor.shape, tensor.dtype = list(dims), dtype

    # ------------------------------------------------------------------------------------------------- the sweep

    def _learn_input(self, tensor: gs.Variable) -> None:
        self._dtypes[tensor.name] = _declared_dtype(tensor)
        if tensor.shape is None:
            self._shapes[tensor.name] = None
            return
        self._shapes[tensor.name] = [
            tuple(sizes[symbol_of(tensor, i)] if not is_size(d) else d for i, d in enumerate(tensor.shape))
            for sizes in self.sizes
        ]

    def shapes(self, tensor: Tensor) -> list[Shape] | None:
        """The tensor's shape in every sample, all concrete; None where it is unknown."""
        if isinstance(tensor, gs.Constant):
            return [tuple(tensor.shape)] * len(self.sizes)
        if tensor.name not in self._shapes:
            pending = [tensor]
            while pending:
                node = producer(pending[-1])
                unknown = [t for t in node.inputs if self._is_unvisited(t)] if node else []
                if unknown:
                    pending += unknown
                    continue
                if node:
                    self._visit(node)
                self._shapes.setdefault(pending.pop().name, None)
        return self._shapes[tensor.name]

    def _is_unvisited(self, tensor: Tensor) -> bool:
        return not isinstance(tensor, gs.Constant) and not tensor.is_empty() and tensor.name not in self._shapes

    def _visit(self, node: gs.Node) -> None:
        """Learns all that can be told of the node's outputs."""
        judge = self._open_sizes
        settled = judge is None or judge.is_settled(node)
        reads = is_standard(node) and node.op not in ("Shape", "Size")
        is_known = settled and not (reads and any(t.name in self._unsettled for t in node.inputs))
        if not is_known:
            self._unsettled.update(t.name for t in node.outputs if not t.is_empty())
        # Where comparisons make sizes, and no elements, not even how many elements there are is known.
        has_shape = settled or node.op not in ("Slice", "Range")
        if not (is_known and self._visit_value(node)) and not (has_shape and self._visit_type(node)):
            for tensor in node.outputs:
                self._learn_declared(tensor)
        if judge is None:
            return
        for tensor in node.outputs:
            if not tensor.is_empty() and judge.differs_for_extremes(tensor) and not judge.rolls(node):
                self._unsettled.add(tensor.name)
                self._values.pop(tensor.name, None)
                self._shapes[tensor.name] = None

    @property
    def _open_sizes(self) -> OpenSizes | None:
        """Who judges what holds for other sizes than those of the samples, if there are others."""
        if len(self.sizes) > 1 and self._judge is None:
            try:
                extremes: Facts = _Extremes(self.graph)
            except ModelError:
                extremes = self  # the model takes none of them
            self._judge = OpenSizes(self, extremes)
        return self._judge

    def _visit_value(self, node: gs.Node) -> bool:
        if node.op in ("Shape", "Size") and is_standard(node):
            return self._visit_shape_op(node)
        if not is_deterministic(node) or not node.inputs or not all(self.has_small_value(t) for t in node.inputs):
            return False
        results: list[list[Array]] = []
        for sample in self.samples:
            if sample and all(isinstance(t, gs.Constant) for t in node.inputs):
                results.append(results[0])
                continue
            try:
                results.append(evaluate(node, [self._input_value(t, sample) for t in node.inputs], self.graph.opset))
            except CannotEvaluate:
                return False
        if any(value.size > self._small for outputs in results for value in outputs):
            return False
        depends = self._dependence(node, results)
        for index, tensor in enumerate(node.outputs):
            self._learn_value(tensor, [outputs[index] for outputs in results], depends)
        return True

    def _visit_shape_op(self, node: gs.Node) -> bool:
        shapes = self.shapes(node.inputs[0])
        if shapes is None:
            return False
        if node.op == "Size":
            values = [np.array(np.prod(shape, dtype=np.int64)) for shape in shapes]
        else:
            bounds = slice(node.attrs.get("start", 0), node.attrs.get("end"))
            values = [np.array(shape[bounds], np.int64) for shape in shapes]
        is_of_one_rank = len({v.shape for v in values}) == 1 and not self._is_of_unknown_length(node.inputs[0])
        depends = np.any([v != values[0] for v in values], axis=0) if is_of_one_rank else np.array(True)
        self._learn_value(node.outputs[0], values, depends)
        return True

    def _input_value(self, tensor: Tensor, sample: int) -> Array | None:
        return None if tensor.is_empty() else self.value(tensor, sample)

    def _learn_value(self, tensor: gs.Variable, values: list[Array], depends: Array) -> None:
        self._values[tensor.name] = values
        self._shapes[tensor.name] = [value.shape for value in values]
        self._dtypes[tensor.name] = int(dtype_to_onnx(values[0].dtype))
        self._depends[tensor.name] = depends if len({value.shape for value in values}) == 1 else np.array(True)

    def _dependence(self, node: gs.Node, results: list[list[Array]]) -> Array:
        """Which elements of the node's first output hang on a dynamic size.

        A scalar answer counts for all of them, and for how many there are.
        """
        outputs = results[0]
        flags = [self._depends.get(t.name, np.array(False)) for t in node.inputs]
        if not any(flag.any() for flag in flags):
            return np.array(False)
        all_depend = np.array(True)
        if any(self._is_of_unknown_length(tensor) for tensor in node.inputs):
            # Settled, so that what it leaves of each sample's length it leaves of others.
            lengths, left = set(self.shapes(node.inputs[0]) or ()), {parts[0].shape for parts in results}
            is_cut = node.op == "Slice" and len(lengths) > 1 == len(left)
            return np.broadcast_to(all_depend, outputs[0].shape) if is_cut else all_depend
        if node.op == "Mod" and is_shift(node, self):
            return flags[0]
        if node.op in _ELEMENTWISE:
            try:
                return np.asarray(np.logical_or.reduce(np.broadcast_arrays(*flags)))
            except ValueError:
                return all_depend
        data = len(node.inputs) if node.op == "Concat" else 1
        if node.op in _REDUCTIONS:
            return np.broadcast_to(all_depend, outputs[0].shape)
        if node.op not in _CARRIES or any(flag.any() for flag in flags[data:]):
            return all_depend
        spread = [np.broadcast_to(flags[i], self.shapes(node.inputs[i])[0]) for i in range(data)]  # type: ignore[index]
        if node.op == "Cast":
            return np.array(spread[0])
        rest = [self._input_value(t, 0) for t in node.inputs[data:]]
        try:
            carried = evaluate(node, [*(np.array(s) for s in spread), *rest], self.graph.opset)[0]
        except CannotEvaluate:
            return all_depend
        return carried if carried.shape == outputs[0].shape else all_depend

    def _is_of_unknown_length(self, tensor: Tensor) -> bool:
        """Whether there may be more or fewer elements for other sizes of the input than there are in the samples."""
        flag = self._depends.get(tensor.name)
        return flag is not None and flag.ndim == 0 and bool(flag) and self.shape(tensor) != ()

    def _visit_type(self, node: gs.Node) -> bool:
        """Shapes by the op's own inference, node by node with concrete input shapes."""
        known = [self.shapes(t) if not t.is_empty() else [] for t in node.inputs]
        if any(shapes is None for shapes in known):
            return False
        # Where an op takes bfloat16 only from a later opset on, its shapes are those of float16.
        types = [_with_shapes(self.onnx_dtype(t)) if not t.is_empty() else None for t in node.inputs]
        narrow = any(self.onnx_dtype(t) == _BFLOAT16 for t in node.inputs if not t.is_empty())
        inferred: list[list[tuple[int, Shape]]] = []
        for sample in self.samples:
            shapes = [shapes[sample] if shapes else None for shapes in known]
            outputs = self._inferred(node, shapes, types, sample)
            if outputs is None:
                return False
            if node.op == "Reshape" and _elements([shapes[0] or ()]) != _elements([outputs[0][1]]):
                return False  # inference does not count: the model cannot take this size
            inferred.append(outputs)
        for index, tensor in enumerate(node.outputs):
            if not tensor.is_empty():
                code = inferred[0][index][0]
                self._dtypes[tensor.name] = _BFLOAT16 if narrow and code == onnx.TensorProto.FLOAT16 else code
                self._shapes[tensor.name] = [outputs[index][1] for outputs in inferred]
        return True

    def _inferred(
        self, node: gs.Node, shapes: Sequence[Shape | None], types: Sequence[int | None], sample: int
    ) -> list[tuple[int, Shape]] | None:
        if node.domain == ops.DOMAIN:
            try:
                found = ops.infer_shapes(node.op, shapes, dict(node.attrs))
            except ModelError as error:
                self._misfit = self._misfit or error  # of sizes that the model may not have to take
                return None
            # Sizes are numbers here, so those of the outputs are.
            return [(types[0] or onnx.TensorProto.FLOAT, tuple(int(str(size)) for size in shape)) for shape in found]
        if not is_standard(node) or any(isinstance(value, gs.Graph) for value in node.attrs.values()):
            return None
        proto = OnnxExporter.export_node(node)
        try:
            schema = onnx.defs.get_schema(node.op, self.graph.opset, "")
            outputs = shape_inference.infer_node_outputs(
                schema,
                proto,
                {
                    t.name: tensor_type(c, s)
                    for t, c, s in zip(node.inputs, types, shapes, strict=True)
                    if c and s is not None
                },
                {
                    t.name: onnx.numpy_helper.from_array(v)
                    for t in node.inputs
                    if (v := self._hint(t, sample)) is not None
                },
                opset_imports=[onnx.helper.make_opsetid("", self.graph.opset)],
            )
        except Exception:
            return None
        return _concrete([outputs.get(name) for name in proto.output if name])

    def _hint(self, tensor: Tensor, sample: int) -> Array | None:
        """A value that shape inference may want: small integers, and the scales of Resize."""
        if tensor.is_empty() or (isinstance(tensor, gs.Constant) and size_of(tensor) > SMALL):
            return None
        value = self.value(tensor, sample)
        return value if value is not None and value.ndim <= 1 else None

    def _learn_declared(self, tensor: gs.Variable) -> None:
        """Falls back on what the model itself says of the tensor, where that is concrete."""
        self._dtypes[tensor.name] = _declared_dtype(tensor)
        shape = tensor.shape
        concrete = shape is not None and all(is_size(d) for d in shape)
        self._shapes[tensor.name] = [tuple(shape)] * len(self.sizes) if concrete else None

    # ------------------------------------------------------------------------------------------ values on demand

    def _compute_into(self, values: dict[str, Array | None], node: gs.Node, limit: int, sample: int | None) -> None:
        """Adds the node's outputs to ``values``; None for one that cannot be had. Without a sample, only constants."""
        names = [t.name for t in node.outputs if not t.is_empty()]
        if all(name in values for name in names):
            return
        values.update(dict.fromkeys(names))
        if node.op in ("Shape", "Size") or all(name in self._values for name in names):
            for name in names:
                if name in self._values and (sample is not None or not self._depends[name].any()):
                    values[name] = self._values[name][sample or 0]
            return
        if not is_deterministic(node) or any(_elements(self._shapes.get(name)) > limit for name in names):
            return
        inputs = [
            None if t.is_empty() else literal(t) if isinstance(t, gs.Constant) else values.get(t.name)
            for t in node.inputs
        ]
        if any(value is None and not t.is_empty() for value, t in zip(inputs, node.inputs, strict=True)):
            return
        try:
            outputs = evaluate(node, inputs, self.graph.opset)
        except CannotEvaluate:
            return
        for tensor, value in zip(node.outputs, outputs, strict=False):
            values[tensor.name] = value


class _Extremes(Facts):
    """Facts in two samples of which one has the smallest and one the largest sizes; there are no others."""

    _small = 8 * SMALL  # a range that is small for a sample is larger here

    def _choices(self) -> list[list[Mapping[str, int]]]:
        return extreme_sizes(self.graph.inputs)

    @staticmethod
    def _best(unknown: Sequence[int]) -> int:
        return unknown.index(min(unknown))

    @property
    def _open_sizes(self) -> None:
        return None


def _computed_by(tensor: gs.Variable) -> list[gs.Node]:
    """The nodes that the tensor is computed from, each after those that it needs; empty if an input is among them."""
    order: list[gs.Node] = []
    seen: set[int] = set()
    pending = [(producer(tensor), False)]
    while pending:
        node, ready = pending.pop()
        if node is None:
            return []
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            pending.append((node, True))
            if node.op in ("Shape", "Size"):
                continue
            pending += [
                (producer(t), False) for t in node.inputs if not isinstance(t, gs.Constant) and not t.is_empty()
            ]
    return order


def _concrete(types: Sequence[onnx.TypeProto | None]) -> list[tuple[int, Shape]] | None:
    found = []
    for proto in types:
        if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
            return None
        dims = proto.tensor_type.shape.dim
        if not all(d.HasField("dim_value") for d in dims):
            return None
        found.append((proto.tensor_type.elem_type, tuple(d.dim_value for d in dims)))
    return found


def _with_shapes(dtype: int | None) -> int | None:
    return onnx.TensorProto.FLOAT16 if dtype == _BFLOAT16 else dtype


def _declared_dtype(tensor: gs.Variable) -> int | None:
    return None if tensor.dtype is None else int(dtype_to_onnx(tensor.dtype))


def _elements(shapes: Sequence[Shape] | None) -> int:
    return 0 if not shapes else max(int(np.prod(shape, dtype=np.int64)) for shape in shapes)

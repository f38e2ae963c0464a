"""A model in half precision: for TensorRT where the precision of an engine is the precision of the graph.

TensorRT 11 and TensorRT-RTX build what the graph says: they have no flag that lets an fp32 graph run in fp16.
:func:`convert` writes such a graph. Weights and activations get the narrow type; inputs and outputs of the model keep
theirs. What stays in float32, between two Casts:

- sums and squares outside of a LayerNormalization (which has float32 statistics by definition), and what follows from
  them up to the division: a variance of 65504 is not much of a variance;
- nodes that read a number which the narrow type cannot hold: too large, or a constant that would become zero;
- nodes whose op, in this opset, does not take the narrow type, or is of a domain that swinopt does not know.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import NodeProto, TensorProto, defs, helper, numpy_helper

from swinopt import graph as graphs
from swinopt import ops
from swinopt.errors import ModelError, OptionError
from swinopt.facts import Facts
from swinopt.graph import Array, ModelLike

#: The precisions that have a type of their own in a graph.
NARROW = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}

_FLOAT = TensorProto.FLOAT
_TYPE_NAMES: dict[int, str] = {_FLOAT: "float", TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16"}
# The sums and squares that overflow, and counting, which has no numbers between 2048 and 2050 in fp16.
_SENSITIVE = {
    *("CumSum", "Exp", "Log", "LpNormalization", "MeanVarianceNormalization", "Pow", "Range"),
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum"),
    "ReduceSumSquare",
}
# On the way from a sum of squares to what is divided by its root.
_ON_THE_WAY = {"Clip", "Max", "Reciprocal", "Sqrt"}
_AT_THE_END = {"Div", "Mul"}


@dataclass(frozen=True)
class Converted:
    """What :func:`convert` returns.

    Attributes:
        model: the model; swinopt ops are without bodies.
        kept: nodes that stay in float32 because of a weight, by name, with the reason.
    """

    model: onnx.ModelProto
    kept: dict[str, str] = field(default_factory=dict)


def convert(model: ModelLike, precision: str) -> Converted:
    """The model with float32 weights and activations in half precision; a copy.

    A model that has weights of that type already is taken for what its author wanted, and left as it is.

    Args:
        model: anything that :func:`swinopt.graph.load_model` takes.
        precision: ``"fp16"`` or ``"bf16"``.

    Raises:
        OptionError: the precision is neither.
        ModelError: the model cannot be read, has weights of the other half precision, branches or loops, or a tensor
            whose type cannot be told.
    """
    if precision not in NARROW:
        raise OptionError(f"a graph can be converted to {' or '.join(NARROW)}, and not to {precision!r}")
    graph = graphs.load(model)
    if any(True for _ in graph.subgraphs()):
        raise ModelError(
            f"the model branches or loops, and swinopt does not convert that to {precision}: "
            "give a model that was exported in that precision, or build with fp32 or tf32"
        )
    narrow = NARROW[precision]
    weights = set(_weight_types(graph))
    if narrow in weights:
        return Converted(graphs.to_model(graph, bodies=False))
    other = weights & set(NARROW.values())
    if other:
        found = next(name for name, code in NARROW.items() if code in other)
        raise ModelError(f"the model has {found} weights, and {precision} is asked for: build it with {found}")
    types = _types(graph)
    return _Conversion(graphs.to_model(graph, bodies=False), types, narrow).result()


def fits(weight: TensorProto, precision: str) -> bool:
    """Whether no number of a weight becomes infinite in that precision, one of :data:`NARROW`."""
    value = numpy_helper.to_array(weight)
    return _worst_overflow(value, _rounded(value, NARROW[precision])) is None


def _rounded(value: Array, narrow: int) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        rounded: Array = value.astype(helper.tensor_dtype_to_np_dtype(narrow))
    return rounded


def _worst_overflow(value: Array, rounded: Array) -> float | None:
    overflows = np.isinf(rounded) & ~np.isinf(value)
    return float(np.abs(value[overflows]).max()) if overflows.any() else None


def weight_precisions(model: onnx.ModelProto) -> set[str]:
    """Which half precisions the weights of the model have: of "fp16" and "bf16" none, one or both."""
    found = {weight.data_type for weight in model.graph.initializer}
    return {name for name, code in NARROW.items() if code in found}


def _weight_types(graph: Any) -> Iterator[int]:
    for node in graph.nodes:
        for tensor in node.inputs:
            if isinstance(tensor, gs.Constant):
                yield int(helper.np_dtype_to_tensor_dtype(graphs.dtype_of(tensor)))


def _types(graph: Any) -> dict[str, int]:
    facts = Facts(graph)
    types: dict[str, int] = {}
    for tensor in [*graph.inputs, *(t for node in graph.nodes for t in (*node.inputs, *node.outputs))]:
        if tensor.is_empty() or tensor.name in types:
            continue
        if isinstance(tensor, gs.Constant):
            types[tensor.name] = int(helper.np_dtype_to_tensor_dtype(graphs.dtype_of(tensor)))
            continue
        code = facts.onnx_dtype(tensor)
        if code is None:
            raise ModelError(f"the type of the tensor {tensor.name!r} cannot be told, so that nothing can be converted")
        types[tensor.name] = int(code)
    return types


class _Conversion:
    """One model on its way: every tensor has one type, and Casts stand where a reader wants the other."""

    def __init__(self, model: onnx.ModelProto, types: dict[str, int], narrow: int) -> None:
        self.model, self.types, self.narrow = model, types, narrow
        self.narrowed: set[str] = set()
        self.weights = {weight.name: weight for weight in model.graph.initializer}
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.kept: dict[str, str] = {}
        self.nodes: list[NodeProto] = []
        self.casts: dict[tuple[str, int], str] = {}
        self.rounded: dict[str, Array] = {}

    def result(self) -> Converted:
        graph = self.model.graph
        stays = self._stays()
        outputs = {value.name for value in graph.output}
        for node, in_float32 in zip(list(graph.node), stays, strict=True):
            self._convert(node, in_float32, outputs)
        del graph.node[:]
        graph.node.extend(self.nodes)
        self._finish_weights()
        for value in graph.value_info:
            if value.name in self.narrowed:
                value.type.tensor_type.elem_type = self.narrow
        return Converted(self.model, self.kept)

    # ------------------------------------------------------------------------------------------- what stays in float32

    def _stays(self) -> list[bool]:
        large: set[str] = set()
        stays = []
        for node in self.model.graph.node:
            reads_large = any(name in large for name in node.input)
            if self._is_sensitive(node) or (reads_large and self._is_on_the_way(node)):
                large.update(node.output)
                stays.append(True)
            else:
                at_the_end = reads_large and node.op_type in _AT_THE_END
                stays.append(at_the_end or not self._accepts(node) or self._reads_what_does_not_fit(node))
        return stays

    def _is_sensitive(self, node: NodeProto) -> bool:
        is_square = node.op_type == "Mul" and node.input[0] == node.input[1]
        return not node.domain and (node.op_type in _SENSITIVE or is_square)

    def _is_on_the_way(self, node: NodeProto) -> bool:
        adds_number = node.op_type == "Add" and any(self._is_number(name) for name in node.input)
        return node.op_type in _ON_THE_WAY or adds_number

    def _is_number(self, name: str) -> bool:
        return name in self.weights and int(np.prod(self.weights[name].dims, dtype=np.int64)) == 1

    def _accepts(self, node: NodeProto) -> bool:
        """Whether the op takes the narrow type wherever it has float32 now."""
        if node.domain == ops.DOMAIN:
            return True
        schema = _schema(node, self.opset)
        # The type of what a node makes up is an attribute, not worth a table: a Cast behind it does.
        makes_up = node.op_type == "ConstantOfShape" or any(a.name in ("dtype", "output_dtype") for a in node.attribute)
        if schema is None or makes_up:
            return False
        allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
        wanted = f"tensor({_TYPE_NAMES[self.narrow]})"
        formals = [*_formals(schema.inputs, node.input), *_formals(schema.outputs, node.output)]
        names = [*node.input, *node.output]
        return all(
            wanted in allowed[formal]
            for formal, name in zip(formals, names, strict=True)
            if formal in allowed and self.types.get(name) == _FLOAT
        )

    def _reads_what_does_not_fit(self, node: NodeProto) -> bool:
        for name in node.input:
            if self.types.get(name) == _FLOAT and name in self.weights:
                reason = self._misfit(name)
                if reason:
                    self.kept[node.name or node.output[0]] = reason
                    return True
        return False

    def _misfit(self, name: str) -> str | None:
        value = numpy_helper.to_array(self.weights[name])
        if name not in self.rounded:
            self.rounded[name] = _rounded(value, self.narrow)
        rounded = self.rounded[name]
        worst = _worst_overflow(value, rounded)
        if worst is not None:
            return f"{name} holds {worst:.4g}, which is more than {_TYPE_NAMES[self.narrow]} can"
        if value.size == 1 and value.any() and not rounded.any():
            return f"{name} is {float(value.reshape(-1)[0]):.4g}, which {_TYPE_NAMES[self.narrow]} makes 0"
        return None

    # ---------------------------------------------------------------------------------------------------- the new graph

    def _convert(self, node: NodeProto, in_float32: bool, outputs: set[str]) -> None:
        wanted = self._wanted(node, node.input, "inputs", in_float32)
        for index, (name, code) in enumerate(zip(list(node.input), wanted, strict=True)):
            if code is not None:
                node.input[index] = self._as(name, code)
        made = self._wanted(node, node.output, "outputs", in_float32)
        if node.op_type == "Cast" and not node.domain:
            self._retarget(node, made[0])
        self.nodes.append(node)
        for index, (name, code) in enumerate(zip(list(node.output), made, strict=True)):
            if code is None or code == _FLOAT:
                continue
            if name in outputs:
                inner = f"{name}/{_TYPE_NAMES[code]}"
                node.output[index] = inner
                self.nodes.append(helper.make_node("Cast", [inner], [name], name=f"{name}/Cast", to=_FLOAT))
                self.casts[name, code] = inner
            else:
                self.narrowed.add(name)

    def _wanted(self, node: NodeProto, names: Any, side: str, in_float32: bool) -> list[int | None]:
        """The type of each tensor of one side that is float32 now; None for all others."""
        schema = None if node.domain else _schema(node, self.opset)
        formals = _formals(getattr(schema, side), names) if schema else [""] * len(names)
        return [
            None if self.types.get(name) != _FLOAT else self._chosen(in_float32 or formal == "tensor(float)")
            for name, formal in zip(names, formals, strict=True)
        ]

    def _chosen(self, in_float32: bool) -> int:
        return _FLOAT if in_float32 else self.narrow

    def _as(self, name: str, code: int) -> str:
        """The tensor in the given type, cast where it is in another."""
        if name in self.weights:
            return name if code == _FLOAT else self._narrow_weight(name)
        if (self.narrow if name in self.narrowed else _FLOAT) == code:
            return name
        if (name, code) not in self.casts:
            cast = f"{name}/{_TYPE_NAMES[code]}"
            self.nodes.append(helper.make_node("Cast", [name], [cast], name=f"{cast}/Cast", to=code))
            self.casts[name, code] = cast
        return self.casts[name, code]

    def _narrow_weight(self, name: str) -> str:
        self.casts[name, self.narrow] = f"{name}/{_TYPE_NAMES[self.narrow]}"
        return self.casts[name, self.narrow]

    def _retarget(self, node: NodeProto, code: int | None) -> None:
        for attribute in node.attribute:
            if attribute.name == "to" and code is not None:
                attribute.i = code

    def _finish_weights(self) -> None:
        graph = self.model.graph
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        weights = list(graph.initializer)
        del graph.initializer[:]
        for weight in weights:
            narrow = self.casts.get((weight.name, self.narrow))
            if narrow in read:
                self._misfit(weight.name)
                graph.initializer.append(numpy_helper.from_array(self.rounded.pop(weight.name), narrow))
            if weight.name in read:
                graph.initializer.append(weight)


def _schema(node: NodeProto, opset: int) -> Any:
    try:
        return defs.get_schema(node.op_type, opset, "") if node.domain in ("", "ai.onnx") else None
    except defs.SchemaError:
        return None


def _formals(declared: Any, names: Any) -> list[str]:
    """The type or type variable of each argument; the last one declared may stand for many."""
    return [declared[min(index, len(declared) - 1)].type_str for index in range(len(names))] if declared else []

"""Evaluating single nodes on known values, with the reference implementation that the onnx package ships."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import load_op
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from swinopt.graph import Array, is_standard

RANDOM = {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli"}
#: Quantised weights stay visible as such: folding these would turn them back into floats.
_QUANTISATION = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}


class CannotEvaluate(Exception):
    """The node has no value that could be computed here."""


def is_deterministic(node: gs.Node) -> bool:
    """Whether the node is a standard op whose outputs are a function of its inputs, and no quantisation step."""
    if not is_standard(node) or node.op in RANDOM or node.op in _QUANTISATION:
        return False
    if node.op == "Dropout" and len(node.inputs) > 2:
        return False
    return not any(isinstance(value, gs.Graph) for value in node.attrs.values())


def evaluate(node: gs.Node, inputs: Sequence[Array | None], opset: int) -> list[Array]:
    """The node's outputs on these inputs (None for an optional one that is left out).

    Raises:
        CannotEvaluate: the op is unknown to the reference implementation, or it failed.
    """
    if node.op == "GatherND" and not node.attrs.get("batch_dims"):
        # The reference implementation runs it in a Python loop over all elements.
        data, indices = inputs
        if data is not None and indices is not None:
            return [data[tuple(np.moveaxis(indices, -1, 0))]]
    try:
        implementation = _implementation(node.op, opset)(OnnxExporter.export_node(node), _run_params(opset))
        with np.errstate(all="ignore"):
            outputs = implementation.run(*inputs)
    except Exception as error:
        raise CannotEvaluate(f"{node.op}: {error}") from error
    if not all(isinstance(output, (np.ndarray, np.generic)) for output in outputs):
        raise CannotEvaluate(f"{node.op} makes no tensors")  # but a sequence, or an optional one
    return [np.asarray(output) for output in outputs]


@cache
def _implementation(op_type: str, opset: int) -> Any:
    return load_op("", op_type, opset)


@cache
def _run_params(opset: int) -> dict[str, Any]:
    # What a ReferenceEvaluator hands to its nodes; building one for every node would cost 40 times the evaluation.
    return {
        "log": lambda *_: None,
        "opsets": {"": opset},
        "verbose": 0,
        "new_ops": None,
        "existing_functions": {},
        "evaluator_cls": ReferenceEvaluator,
    }


def tensor_type(dtype: int, shape: Sequence[int]) -> onnx.TypeProto:
    """A tensor type with the given ONNX element type and shape."""
    proto = onnx.TypeProto()
    proto.tensor_type.elem_type = dtype
    proto.tensor_type.shape.SetInParent()
    for size in shape:
        proto.tensor_type.shape.dim.add().dim_value = size
    return proto

"""Eliminate no-ops: nodes whose output is their input.

- ``Identity``; ``Dropout`` outside of training; ``Cast`` and ``CastLike`` to the dtype that is there;
- movement that moves nothing: a Reshape to the same shape, a Transpose that keeps the order, a Slice of everything, a
  Pad by nothing, a Concat of one tensor. Decided by evaluation, so no case is forgotten;
- arithmetic with the neutral element: ``x + 0``, ``x - 0``, ``x * 1``, ``x / 1``, ``x ** 1``, unless the other operand
  broadcasts x to a larger shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Tensor, argument, is_standard, literal, producer, scalar
from swinopt.indices import is_identity
from swinopt.movement import data_inputs, is_movement
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

# The neutral element, and whether it may stand on either side.
_NEUTRAL = {"Add": (0, True), "Sub": (0, False), "Mul": (1, True), "Div": (1, False), "Pow": (1, False)}


@dataclass(frozen=True)
class EliminateNoops(Pass):
    """Drops nodes whose output is their input."""

    name: ClassVar[str] = "eliminate-noops"
    tolerance: ClassVar[float] = 1e-6

    def run(self, rewriter: Rewriter) -> None:
        for node in list(rewriter.graph.nodes):
            if not is_standard(node) or not node.outputs or rewriter.is_dead(node):
                continue
            same = _unchanged_input(node, rewriter)
            if same is not None and not _would_need_identity(node.outputs[0], same, rewriter):
                rewriter.replace(node.outputs[0], same)


def _unchanged_input(node: gs.Node, rewriter: Rewriter) -> Tensor | None:
    if node.op == "Identity":
        return node.inputs[0]
    if node.op == "Dropout" and _is_inference_dropout(node):
        return node.inputs[0]
    if node.op in ("Cast", "CastLike"):
        dtype = rewriter.facts.onnx_dtype
        wanted = node.attrs["to"] if node.op == "Cast" else dtype(node.inputs[1])
        return node.inputs[0] if dtype(node.inputs[0]) == wanted is not None else None
    if node.op in _NEUTRAL:
        return _operand_beside_neutral(node, rewriter)
    return _unmoved(node, rewriter)


def _is_inference_dropout(node: gs.Node) -> bool:
    training = argument(node, 2)
    mask_is_read = len(node.outputs) > 1 and bool(node.outputs[1].outputs)
    value = None if training is None else literal(training)
    return not mask_is_read and (training is None or (value is not None and not value.any()))


def _operand_beside_neutral(node: gs.Node, rewriter: Rewriter) -> Tensor | None:
    neutral, commutes = _NEUTRAL[node.op]
    left, right = node.inputs
    for operand, other in ((left, right), (right, left))[: 2 if commutes else 1]:
        if scalar(other) == neutral or _is_all(other, neutral):
            facts = rewriter.facts
            if facts.shapes(operand) is not None and facts.shapes(operand) == facts.shapes(node.outputs[0]):
                return operand
    return None


def _is_all(tensor: Tensor, value: float) -> bool:
    # A bias that happens to be zero is still a weight: only scalars and tiny constants count as arithmetic.
    array = literal(tensor) if isinstance(tensor, gs.Constant) and np.prod(tensor.shape) <= 4 else None
    return array is not None and array.size > 0 and bool((array == value).all())


def _unmoved(node: gs.Node, rewriter: Rewriter) -> Tensor | None:
    facts = rewriter.facts
    if not is_movement(node, facts) or len(data_inputs(node)) != 1 or len(node.outputs) != 1:
        return None
    (data,) = data_inputs(node)
    if facts.shapes(data) != facts.shapes(node.outputs[0]):
        return None
    region = rewriter.movement.region(node.outputs[0], stop=[data])
    if region is None or region.source is not data:
        return None
    return data if all(is_identity(runs) for runs in region.along(-1)[0]) else None


def _would_need_identity(old: Tensor, new: Tensor, rewriter: Rewriter) -> bool:
    """An output of the graph that is an input, a constant or another output of it can only be an Identity."""
    return rewriter.is_output(old) and (producer(new) is None or rewriter.is_output(new))

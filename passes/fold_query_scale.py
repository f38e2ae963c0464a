"""Fold query scale: a number that multiplies q, k or their product goes into the linear that makes q or k.

    (s * q) k^T = ((x s W_q + s b_q)) k^T

The scale may stand on q, on k, on both (as scaled_dot_product_attention is exported) or on the product. Only the
columns of the weight that make q are touched, so q, k and v may come from one linear; which columns these are is found
by running the movement between the linear and the product on indices. Refused where these columns are also read
without the scale, or the weights are no constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from swinopt.graph import Tensor, made_by, producer, scalar
from swinopt.indices import PAD
from swinopt.linear import Linear, linear_of
from swinopt.movement import exits, is_movement
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class FoldQueryScale(Pass):
    """Multiplies the scale of attention scores into the weights."""

    name: ClassVar[str] = "fold-query-scale"

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("Mul", "Div"):
            factor = _scalar_factor(node)
            if factor is None or rewriter.is_dead(node):
                continue
            data, scale = factor
            operand = _operand_of_scores(node, data, rewriter)
            # A scale of higher rank would add an axis.
            if operand is None or rewriter.facts.shapes(data) != rewriter.facts.shapes(node.outputs[0]):
                continue
            reason = _fold(operand, scale, node, data, rewriter)
            if reason:
                rewriter.refuse(node, reason)


def _scalar_factor(node: gs.Node) -> tuple[Tensor, float] | None:
    for index in (1, 0) if node.op == "Mul" else (1,):
        value = scalar(node.inputs[index])
        if value is not None and value != 0 and np.isfinite(value):
            return node.inputs[1 - index], value if node.op == "Mul" else 1 / value
    return None


def _operand_of_scores(node: gs.Node, data: Tensor, rewriter: Rewriter) -> Tensor | None:
    """The tensor, q or k, that the scale can move to: what it multiplies, or the first operand of the product."""
    scores = made_by(data, "MatMul")
    if scores is not None and not isinstance(scores.inputs[1], gs.Constant):
        read_once = len(data.outputs) == 1 and not rewriter.is_output(data)
        return scores.inputs[0] if read_once and _leads_to(node.outputs[0], "Softmax") else None
    return data if _leads_to(node.outputs[0], "MatMul") else None


def _leads_to(tensor: Tensor, op_type: str) -> bool:
    """Whether the tensor is read by one such op, perhaps after a transpose, a view, or something added."""
    passed = {"Transpose", "Reshape", "Unsqueeze", "Squeeze"} | ({"Add"} if op_type == "Softmax" else set())
    while len(tensor.outputs) == 1:
        node = tensor.outputs[0]
        if node.op == op_type:
            return op_type != "MatMul" or all(producer(t) is not None for t in node.inputs)
        if node.op not in passed:
            return False
        tensor = node.outputs[0]
    return False


def _fold(operand: Tensor, scale: float, node: gs.Node, data: Tensor, rewriter: Rewriter) -> str | None:
    """Moves the scale into the linear behind ``operand``; the reason if it cannot."""
    linear = _linear_behind(operand, rewriter)
    if linear is None:
        return "q or k does not come from a linear with constant weights"
    columns = _columns(operand, linear, rewriter)
    if columns is None:
        return "q or k is made of several tensors"
    for end in exits(linear.output, rewriter.facts):
        touched = _columns(end, linear, rewriter)
        if touched is None:
            return "the linear is read together with something else"
        if not (touched & columns).any():
            continue
        if end is not operand or len(operand.outputs) != 1 or rewriter.is_output(operand):
            return "the columns of the weight that would be scaled are read elsewhere, too"
    region = rewriter.movement.region(operand, stop=[linear.output])
    downstream = {id(t): t for n in (region.nodes if region else ()) for t in n.outputs}
    if operand is not data:
        downstream[id(data)] = data
    factors = np.where(columns, scale, 1.0)
    weight, bias = linear.weight_value(), linear.bias_value() if linear.bias is not None else None
    scaled = linear.applied_to(
        linear.input,
        rewriter,
        (weight * factors).astype(weight.dtype),
        None if bias is None else (bias * factors).astype(bias.dtype),
    )
    rewriter.redefine(linear.output, scaled, downstream.values())
    rewriter.replace(node.outputs[0], scaled if data is linear.output else data)
    return None


def _linear_behind(tensor: Tensor, rewriter: Rewriter) -> Linear | None:
    while (linear := linear_of(tensor)) is None:
        node = producer(tensor)
        if node is None or not is_movement(node, rewriter.facts) or node.op == "Concat":
            return None
        tensor = node.inputs[0]
    return linear


def _columns(tensor: Tensor, linear: Linear, rewriter: Rewriter) -> npt.NDArray[np.bool_] | None:
    """Which output features of the linear are in the tensor."""
    region = rewriter.movement.region(tensor, stop=[linear.output])
    if region is None or region.source is not linear.output:
        return None
    runs = region.runs[0]
    found = np.zeros(linear.features // region.length, bool)
    found[runs[runs != PAD] % found.size] = True
    return np.repeat(found, region.length)

"""Fold attention bias: what is added to attention scores becomes a constant, however it is computed.

- Swin V1 gathers ``table[index]`` and transposes it; Swin V2 runs a small MLP over log-spaced coordinates first, then
  ``16 * sigmoid``. Neither depends on the input, so both become one constant [heads, N, N]. General constant folding
  leaves them alone, because the constant is larger than the table.
- A shift mask that was added to the bias before export ([windows, heads, N, N], as scaled_dot_product_attention wants
  it) is taken apart again: ``bias[h] + mask[w]``, where the mask takes the value 0 or one other. That is as much
  smaller as there are heads and windows. Which window and shift the mask belongs to is not asked here.

Only what is added between a product and a softmax over the last axis is looked at, and only if it is finite or
minus infinity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Array, Tensor, attr, epsilon_of, made_by
from swinopt.movement import VIEW_OPS
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class FoldAttentionBias(Pass):
    """Makes constants of relative position biases, and keeps biases and shift masks apart."""

    name: ClassVar[str] = "fold-attention-bias"

    def run(self, rewriter: Rewriter) -> None:
        for softmax in rewriter.nodes("Softmax"):
            for add in list(_score_additions(softmax, rewriter)):
                _fold(add, rewriter)


def _score_additions(softmax: gs.Node, rewriter: Rewriter) -> Iterator[gs.Node]:
    """The Adds between the product of q and k and the softmax, if the softmax runs over the last axis."""
    shape = rewriter.facts.shape(softmax.inputs[0])
    if shape is None or attr(softmax, "axis", rewriter.graph.opset) not in (-1, len(shape) - 1):
        return
    tensor: Tensor = softmax.inputs[0]
    found = []
    while (node := made_by(tensor, "Add", "Mul", "Div", "Cast", *VIEW_OPS)) is not None:
        index = 0
        if node.op in ("Add", "Mul") and rewriter.facts.constant(node.inputs[0]) is not None:
            index = 1
        found += [node] if node.op == "Add" else []
        tensor = node.inputs[index]
    if made_by(tensor, "MatMul"):
        yield from found


def _fold(add: gs.Node, rewriter: Rewriter) -> None:
    for index in (1, 0):
        value = rewriter.facts.constant(add.inputs[index])
        if value is None:
            continue
        if np.isnan(value).any() or np.isposinf(value).any():
            rewriter.refuse(add, "what is added to the scores holds NaN or infinity")
            return
        if rewriter.facts.shapes(add.inputs[1 - index]) != rewriter.facts.shapes(add.outputs[0]):
            rewriter.refuse(add, "what is added to the scores widens them")
            return
        narrow = _narrow(value)
        parts = _apart(narrow)
        if parts is None and isinstance(add.inputs[index], gs.Constant) and narrow.size == value.size:
            return
        scores, name = add.inputs[1 - index], add.inputs[index].name
        summed = scores
        for part, what in zip(parts or (narrow,), ("bias", "mask"), strict=False):
            constant = rewriter.constant(part, hint=f"{name}/{what}")
            summed = rewriter.op("Add", summed, constant, hint=f"{name}/Add")
            rewriter.facts.learn(summed, like=add.outputs[0])
        rewriter.replace(add.outputs[0], summed)
        return


def _narrow(value: Array) -> Array:
    """The value less what broadcasting repeats anyway: axes along which nothing changes, and leading axes of size 1."""
    for axis in range(value.ndim - 2):
        first = value.take([0], axis)
        value = first if (value == first).all() else value
    while value.ndim > 3 and value.shape[0] == 1:
        value = value[0]
    return value


def _apart(value: Array) -> tuple[Array, Array] | None:
    """[windows, heads, N, N] as a bias [heads, N, N] and a two-valued mask [windows, 1, N, N], if it is their sum."""
    if value.ndim != 4 or min(value.shape[:2]) < 2:
        return None
    # The mask is zero or negative, so wherever some window leaves a pair free, that window has the largest value.
    bias = value.max(axis=0)
    if not np.isfinite(bias).all():
        return None
    above = value - bias
    masked = above < -1.0
    if not masked.any() or not (masked == masked[:, :1]).all():
        return None
    # In double precision, where a mask of half precision does not overflow; masks are round numbers.
    finite = bool(np.isfinite(above).all())
    mask_value = round(float(above[masked].astype(np.float64).mean()), 2) if finite else -np.inf
    mask = np.where(masked[:, :1], mask_value, 0.0).astype(value.dtype)
    with np.errstate(invalid="ignore"):
        wrong = np.abs(bias + mask - value) > epsilon_of(value.dtype) * np.abs(value)
    return None if wrong[np.isfinite(value)].any() else (bias, mask)

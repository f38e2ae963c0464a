"""Fold constants.

A node whose inputs are all known computes the same every time: its outputs become constants. ``Shape`` of a tensor
whose size is known counts as known, which resolves the Shape/Gather/Concat arithmetic around every Reshape of the
TorchScript exporter. Where the batch is dynamic, the elements that do not hang on it are folded all the same, and a
Reshape that only needs to copy or infer one size says so (0 or -1) instead of computing it.

Left alone, because folding them would do harm:

- random ops, ops of other domains, and everything with a body (If, Loop, Scan);
- QuantizeLinear and DequantizeLinear: quantised weights stay quantised;
- what comes out as NaN or infinite although nothing that went in was;
- what would grow the model: Expand, Tile, ConstantOfShape, or the Gather that blows a bias table up. A folded tensor
  may be larger than the constants that it is made of, but all of them together only by ``budget`` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.evaluate import is_deterministic
from swinopt.graph import Array, Tensor, dtype_of, label, literal, size_of
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

#: Values up to this size count for nothing: they are shapes, axes and scalars.
_NEGLIGIBLE_BYTES = 1024


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Computes once what is the same every time.

    Attributes:
        budget: how many bytes the folded tensors together may be larger than the constants they are made of.
    """

    name: ClassVar[str] = "fold-constants"
    budget: int = 1 << 20

    def run(self, rewriter: Rewriter) -> None:
        left = self.budget
        for node in rewriter.graph.nodes:
            if not _is_foldable(node, rewriter):
                continue
            values = [rewriter.facts.constant(t) for t in node.outputs]
            if any(value is None for value in values):
                continue
            known = [value for value in values if value is not None]
            growth = _growth(node, known)
            reason = _objection(node, known, rewriter)
            if growth > left:
                reason = f"{label(node)} would grow the model by {growth} bytes, and {left} of the budget are left"
            if reason:
                rewriter.refuse(node, reason)
                continue
            left -= growth
            for tensor, value in zip(list(node.outputs), known, strict=True):
                rewriter.fold(tensor, value)
        for node in rewriter.nodes("Reshape"):
            _fold_target(node, rewriter)


def _is_foldable(node: gs.Node, rewriter: Rewriter) -> bool:
    if not node.outputs or any(t.is_empty() or rewriter.is_output(t) for t in node.outputs):
        return False
    if not is_deterministic(node):
        return False
    if all(rewriter.facts.value(t) is not None for t in node.outputs):
        return True
    return bool(node.inputs) and all(isinstance(t, gs.Constant) or t.is_empty() for t in node.inputs)


def _fold_target(node: gs.Node, rewriter: Rewriter) -> None:
    """Gives a Reshape whose target is computed from sizes of the input a constant one, if there is one."""
    target = node.inputs[1]
    if isinstance(target, gs.Constant) or rewriter.is_dead(node) or not rewriter.facts.is_shown_by_samples(target):
        return
    shapes, wanted = rewriter.facts.shapes(node.inputs[0]), rewriter.facts.shapes(node.outputs[0])
    if shapes is not None and wanted is not None and shapes != wanted:
        reshaped = rewriter.reshape_to(node.inputs[0], wanted)
        if reshaped is not None:
            rewriter.replace(node.outputs[0], reshaped)


def _growth(node: gs.Node, values: list[Array]) -> int:
    size = sum(value.nbytes for value in values)
    if size <= _NEGLIGIBLE_BYTES:
        return 0
    # A constant that something else reads as well is not saved.
    return max(0, size - sum(_nbytes(t) for t in node.inputs if all(reader is node for reader in t.outputs)))


def _nbytes(tensor: Tensor) -> int:
    return size_of(tensor) * dtype_of(tensor).itemsize if isinstance(tensor, gs.Constant) else 0


def _objection(node: gs.Node, values: list[Array], rewriter: Rewriter) -> str | None:
    for tensor, value in zip(node.outputs, values, strict=True):
        wanted = rewriter.facts.dtype(tensor)
        if wanted is not None and wanted != value.dtype:
            return f"{node.op} gives {value.dtype} here and {wanted} by its definition"
        if not _is_finite(value) and all(_is_finite(literal(t)) for t in node.inputs):
            return f"{node.op} makes NaN or infinity out of finite constants"
    return None


def _is_finite(value: Array | None) -> bool:
    return value is None or value.dtype.kind not in "fc" or bool(np.isfinite(value).all())

"""Fold constants.

A node whose inputs are all known computes the same every time: its outputs become constants. ``Shape`` of a tensor
whose size is known counts as known, which resolves the Shape/Gather/Concat arithmetic around every Reshape of the
TorchScript exporter. Where the batch is dynamic, the elements that do not hang on it are folded all the same, and a
Reshape that only needs to copy or infer one size says so (0 or -1) instead of computing it. Weights that are equal are
often there once, and an Identity for each of the others: its readers get the one, whatever its size.

Left alone, because folding them would do harm:

- random ops, ops of other domains, and everything with a body (If, Loop, Scan);
- QuantizeLinear and DequantizeLinear: quantised weights stay quantised;
- what comes out as NaN or infinite although nothing that went in was;
- what would grow the model: Expand, Tile, ConstantOfShape, or the Gather that blows a bias table up. The tensors that
  are left in the end may be larger than the constants that go for them, but all together only by ``budget`` bytes.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.evaluate import is_deterministic
from swinopt.graph import Array, dtype_of, producer, size_of
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

#: Values up to this size count for nothing: they are shapes, axes and scalars.
_NEGLIGIBLE_BYTES = 1024
#: The largest value, in elements, that is computed to see what becomes of it.
_LARGEST = 1 << 26


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Computes once what is the same every time.

    Attributes:
        budget: how many bytes the folded tensors together may be larger than the constants they are made of.
    """

    name: ClassVar[str] = "fold-constants"
    budget: int = 1 << 20

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("Identity"):
            if isinstance(node.inputs[0], gs.Constant) and not rewriter.is_output(node.outputs[0]):
                rewriter.replace(node.outputs[0], node.inputs[0])
        same = rewriter.applied
        foldable = _foldable(rewriter)
        _keep_to(self.budget, foldable, rewriter)
        folded = [n for n in rewriter.graph.nodes if id(n) in foldable and not rewriter.is_dead(n)]
        for node in [n for n in folded if _is_read_outside(n, foldable)]:
            for tensor, value in zip(list(node.outputs), foldable[id(node)], strict=True):
                rewriter.fold(tensor, value)
        rewriter.applied = same + len(folded)
        rewriter.facts.forget_constants()
        for node in rewriter.nodes("Reshape"):
            _fold_target(node, rewriter)


def _foldable(rewriter: Rewriter) -> dict[int, list[Array]]:
    """The values of the outputs of each node that could be folded, by the node's id."""
    found: dict[int, list[Array]] = {}
    for node in rewriter.graph.nodes:
        if not _may_be_folded(node, found, rewriter):
            continue
        values = [rewriter.facts.constant(t, _LARGEST) for t in node.outputs]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        objection = _objection(node, known, found, rewriter)
        if objection:
            rewriter.refuse(node, objection)
        else:
            found[id(node)] = known
    return found


def _keep_to(budget: int, foldable: dict[int, list[Array]], rewriter: Rewriter) -> None:
    """Takes out of ``foldable`` what would grow the model by more than the budget."""
    # What is refused keeps its constants in the model, and others may have been taken for the price of these.
    while _refuse_some(budget, foldable, rewriter):
        pass


def _refuse_some(budget: int, foldable: dict[int, list[Array]], rewriter: Rewriter) -> bool:
    left, saved, refused = budget, set[int](), False
    place = {id(node): index for index, node in enumerate(rewriter.graph.nodes)}
    # What only foldable nodes read vanishes with them, and costs nothing.
    ends = [node for node in rewriter.graph.nodes if id(node) in foldable and _is_read_outside(node, foldable)]
    # The smallest first, so that a few large tables do not use up what hundreds of small tensors need.
    waiting = [(_growth(node, foldable, saved)[0], -place[id(node)], node) for node in ends]
    heapq.heapify(waiting)
    while waiting:
        last, rank, node = heapq.heappop(waiting)
        growth, going = _growth(node, foldable, saved)
        if growth > last:  # a constant that would have gone with it has gone with another one
            heapq.heappush(waiting, (growth, rank, node))
        elif growth <= left:
            left -= growth
            saved |= going
        else:
            refused = True
            rewriter.refuse(node, f"it would grow the model by {growth} bytes, and {left} of the budget are left")
            above = {id(n): n for n in map(producer, node.inputs) if n is not None and id(n) in foldable}
            new = [n for n in above.values() if not _is_read_outside(n, foldable)]
            del foldable[id(node)]
            for n in new:
                heapq.heappush(waiting, (_growth(n, foldable, saved)[0], -place[id(n)], n))
    return refused


def _may_be_folded(node: gs.Node, foldable: dict[int, list[Array]], rewriter: Rewriter) -> bool:
    if not node.outputs or any(t.is_empty() or rewriter.is_output(t) for t in node.outputs):
        return False
    if not is_deterministic(node):
        return False
    if all(rewriter.facts.value(t) is not None for t in node.outputs):
        return True
    return bool(node.inputs) and all(
        isinstance(t, gs.Constant) or t.is_empty() or id(producer(t)) in foldable for t in node.inputs
    )


def _is_read_outside(node: gs.Node, foldable: dict[int, list[Array]]) -> bool:
    return any(id(reader) not in foldable for tensor in node.outputs for reader in tensor.outputs)


def _growth(node: gs.Node, foldable: dict[int, list[Array]], saved: set[int]) -> tuple[int, set[int]]:
    """How many bytes the node's outputs are more than the constants that go with it, and which constants these are.

    What is in ``saved`` goes already, with another node.
    """
    size = sum(value.nbytes for value in foldable[id(node)])
    if size <= _NEGLIGIBLE_BYTES:
        return 0, set()
    pending, seen, credit, going = [node], {id(node)}, 0, set[int]()
    while pending:
        for tensor in pending.pop().inputs:
            above = producer(tensor)
            if isinstance(tensor, gs.Constant) and id(tensor) not in saved and id(tensor) not in going:
                # A constant that something else reads as well is not saved.
                if all(id(reader) in foldable for reader in tensor.outputs):
                    going.add(id(tensor))
                    credit += size_of(tensor) * dtype_of(tensor).itemsize
            elif above is not None and id(above) in foldable and id(above) not in seen:
                seen.add(id(above))
                pending.append(above)
    return max(0, size - credit), going


def _objection(node: gs.Node, values: list[Array], foldable: dict[int, list[Array]], rewriter: Rewriter) -> str | None:
    for tensor, value in zip(node.outputs, values, strict=True):
        wanted = rewriter.facts.dtype(tensor)
        if wanted is not None and wanted != value.dtype:
            return f"{node.op} gives {value.dtype} here and {wanted} by its definition"
        if not _is_finite(value) and all(
            _is_finite(rewriter.facts.constant(t, _LARGEST)) for t in node.inputs if not t.is_empty()
        ):
            return f"{node.op} makes NaN or infinity out of finite constants"
    return None


def _is_finite(value: Array | None) -> bool:
    return value is None or value.dtype.kind not in "fc" or bool(np.isfinite(value).all())


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

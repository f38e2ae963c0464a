"""What hangs on open sizes: does it hold for all of them, or for those of the samples alone?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.comparisons import COMPARING, Cut, is_arithmetic_settled
from swinopt.graph import Array, Tensor, is_standard, made_by

if TYPE_CHECKING:
    from swinopt.facts import Facts

# How the bounds of a roll's two slices are made of its shift.
_BOUND_ARITHMETIC = {"Sub", "Neg", "Unsqueeze", "Squeeze", "Reshape", "Concat", "Cast"}


class OpenSizes:
    """Judges what a graph's nodes make of open sizes.

    Args:
        facts: of the graph in two samples; the inputs of a node that is asked about are known by then.
        extremes: of the graph for the smallest and for the largest sizes.
    """

    def __init__(self, facts: Facts, extremes: Facts) -> None:
        self._facts, self._extremes = facts, extremes

    def is_settled(self, node: gs.Node) -> bool:
        """Whether all comparisons that the node makes come out for other sizes as they do in the samples."""
        if not is_standard(node):
            return True
        if node.op == "Slice":
            return self._is_slice_settled(node)
        if node.op == "Mod" and is_shift(node, self._facts):
            return True
        if node.op not in COMPARING or not any(self._facts.depends(t) for t in node.inputs):
            return True
        if not all(self._facts.has_small_value(t) for t in node.inputs):
            return True  # no arithmetic of sizes
        inputs = [None if t.is_empty() else self._values_everywhere(t) for t in node.inputs]
        known = all(values is not None or t.is_empty() for values, t in zip(inputs, node.inputs, strict=True))
        return known and is_arithmetic_settled(node, inputs)

    def differs_for_extremes(self, tensor: gs.Variable) -> bool:
        """Whether a size of a tensor, or an element that depends on one, is alike in the samples alone."""
        shapes, others = self._facts.shapes(tensor), self._extremes.shapes(tensor)
        if shapes is None or others is None:
            return False
        if len({len(shape) for shape in (*shapes, *others)}) > 1 or any(
            len(set(sizes[: len(shapes)])) == 1 < len(set(sizes)) for sizes in zip(*shapes, *others, strict=True)
        ):
            return True
        values = self._values_everywhere(tensor) if self._facts.depends(tensor) else None
        if values is None or len({value.shape for value in values}) > 1:
            return False
        same = [value == values[0] for value in values]
        return bool((np.logical_and.reduce(same[: len(shapes)]) & ~np.logical_and.reduce(same)).any())

    def rolls(self, node: gs.Node) -> bool:
        """Whether a node is a Slice of which a roll consists, or computes nothing but its bounds.

        A roll parts a tensor in two, and joins them in the other order. That a map has as much as it is rolled by is
        taken for granted, though the last one of a small image has not: of 64 pixels a side it has 2 tokens, and the
        shift is 3. Such slices leave it as it is; PyTorch rolls it by 1.
        """
        if node.op == "Mod":
            return is_shift(node, self._facts)
        if node.op != "Slice":
            return node.op in _BOUND_ARITHMETIC and _only_bounds_rolls(node.outputs[0])
        other = _other_part(node)
        cuts, rest = (None, None) if other is None else (self._cuts(node), self._cuts(other))
        if other is None or cuts is None or rest is None or len(cuts) != 1 or list(cuts) != list(rest):
            return False
        ((axis, cut),) = cuts.items()
        is_joined_there = (
            node.outputs[0].outputs[0].attrs["axis"] % len(self._facts.shape(node.inputs[0]) or ()) == axis
        )
        is_output = any(t is part.outputs[0] for t in self._facts.graph.outputs for part in (node, other))
        return is_joined_there and not is_output and cut.is_rest_of(rest[axis])

    def _is_slice_settled(self, node: gs.Node) -> bool:
        data, *bounds = node.inputs
        shapes = self._facts.shapes(data)
        if isinstance(data, gs.Constant):
            return True  # a table of positions, of which a model takes no more than it has
        if shapes is None or any(self._facts.value(t) is None for t in bounds if not t.is_empty()):
            return True  # nothing will be said of it anyway
        if len(set(shapes)) == 1 and not any(self._facts.depends(t) for t in node.inputs):
            return True
        cuts = self._cuts(node)
        return cuts is not None and (all(cut.is_settled() for cut in cuts.values()) or self.rolls(node))

    def _cuts(self, node: gs.Node) -> dict[int, Cut] | None:
        """What a Slice does to its axes; None if that is not known."""
        shapes, others = self._facts.shapes(node.inputs[0]), self._extremes.shapes(node.inputs[0])
        numbers = [self._values_everywhere(t) for t in node.inputs[1:] if not t.is_empty()]
        known = [[value.reshape(-1) for value in values] for values in numbers if values is not None]
        if shapes is None or others is None or len(known) < len(numbers):
            return None
        starts, ends, *rest = known
        axes = rest[0][0] if rest else np.arange(starts[0].size)
        steps = rest[1][0] if len(rest) > 1 else np.ones_like(axes)
        everywhere, rank = [*shapes, *others], len(shapes[0])
        # A model that is not valid is for others to complain of.
        if any(len(shape) != rank for shape in everywhere) or any(
            v.size != axes.size for values in known for v in values
        ):
            return None
        if not steps.all() or not all(-rank <= axis < rank for axis in axes):
            return None
        return {
            int(axis) % rank: Cut(
                [shape[axis] for shape in everywhere],
                [int(start[i]) for start in starts],
                [int(end[i]) for end in ends],
                int(step),
            )
            for i, (axis, step) in enumerate(zip(axes, steps, strict=True))
        }

    def _values_everywhere(self, tensor: Tensor) -> list[Array] | None:
        """The value in each sample, and for the smallest and for the largest sizes."""
        found = [facts.value(tensor, sample) for facts in (self._facts, self._extremes) for sample in facts.samples]
        known = [value for value in found if value is not None]
        return known if len(known) == len(found) else None


def is_shift(node: gs.Node, facts: Facts) -> bool:
    """``a mod b`` with ``0 <= a < b`` is a: the shift of a roll, which dynamo exports modulo the map's size.

    Where b is no larger than a the remainder is another number, but rolling by it is rolling by a.
    """
    if not _only_bounds_rolls(node.outputs[0]):
        return False
    pairs = [[facts.value(t, sample) for t in node.inputs] for sample in facts.samples]
    return all(a is not None and b is not None and bool(((a >= 0) & (a < b)).all()) for a, b in pairs)


def _only_bounds_rolls(tensor: gs.Variable) -> bool:
    """Whether all that is made of a number are bounds of the slices that rolls consist of."""
    return bool(tensor.outputs) and all(
        reader.inputs[0] is not tensor and _other_part(reader) is not None
        if reader.op == "Slice"
        else reader.op in _BOUND_ARITHMETIC and _only_bounds_rolls(reader.outputs[0])
        for reader in tensor.outputs
    )


def _other_part(node: gs.Node) -> gs.Node | None:
    """The Slice that takes another part of the same tensor, where a Concat alone reads the two, and joins them."""
    (part,) = node.outputs
    joint = part.outputs[0] if len(part.outputs) == 1 else None
    if joint is None or joint.op != "Concat" or not is_standard(joint) or len(joint.inputs) != 2:
        return None
    (other,) = [made_by(t, "Slice") for t in joint.inputs if t is not part] or [None]
    if other is None or other.inputs[0] is not node.inputs[0] or len(other.outputs[0].outputs) != 1:
        return None
    return other

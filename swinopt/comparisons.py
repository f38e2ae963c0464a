"""Comparisons of open sizes: does one come out for all sizes as it does in the samples?

A Slice that ends at 700 takes everything of both samples, if these are shorter, and cuts what is longer. One that ends
at 128 leaves 128 of both, and fewer of what is shorter. Samples alone do not tell, so a comparison is **settled** if

- it comes out both ways in the samples: they show what follows from either; or
- it comes out alike in the samples and for the smallest and the largest sizes (:func:`swinopt.sizes.extreme_sizes`).

What hangs on a comparison that is not settled is not known, and what reads it is left as it is. Two are believed all
the same: a roll moves by less than there is, and a table of positions is cut to no more than it has.

Every number is given as a list of its values: in each sample, and then for the smallest and for the largest sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from swinopt.graph import Array

# What a Slice that goes to the end of an axis is written with, at least.
_TO_THE_END = 2**31 - 1

# How many values are not of samples.
_EXTREMES = 2

# What the first of two equal numbers counts as by the op's definition: more, or neither more nor less; as either where
# the result is the same.
_MORE, _EQUAL, _EITHER = 1, 0, None
_WITH_EACH_OTHER: dict[str, int | None] = {"Equal": _EQUAL, **dict.fromkeys(("Min", "Max", "Clip", "Range"), _EITHER)}
_WITH_ZERO = {"Relu", "Abs"}
_AMONG_ELEMENTS = {"ReduceMin", "ReduceMax", "TopK"}
#: Ops that compare numbers, and answer with one of them or with so many. Of others the answer itself tells if it is not
#: the same for all sizes, but for Equal: it may be true between two sizes alone.
COMPARING = frozenset({*_WITH_EACH_OTHER, *_WITH_ZERO, *_AMONG_ELEMENTS, "Mod"})


def is_settled(a: Sequence[npt.ArrayLike], b: Sequence[npt.ArrayLike], tie: int | None = _EITHER) -> bool:
    """Whether each comparison of an element of a with one of b is settled.

    Args:
        a: the first number or numbers.
        b: those that they are compared with; they broadcast.
        tie: what an element that equals the other one counts as: more (1), neither more nor less (0), or either (None).
    """
    try:
        gaps = [np.subtract(x, y, dtype=np.float64) for x, y in zip(a, b, strict=True)]
    except (TypeError, ValueError):  # texts; or a broadcast of two sizes that no sample has alike
        return False
    if len({gap.shape for gap in gaps}) > 1:  # of a range, say: only its ends have counterparts
        if not all(gap.size for gap in gaps):
            return False
        gaps = [np.array([gap.min(), gap.max()]) for gap in gaps]
    signs = np.array([np.where(gap == 0, tie or 0, np.sign(gap)) for gap in gaps])
    samples = signs[:-_EXTREMES]
    both_ways = (samples.min(axis=0) < 0) & (samples.max(axis=0) > 0)
    least, most = signs.min(axis=0), signs.max(axis=0)
    alike = (least >= 0) | (most <= 0) if tie is _EITHER else least == most
    return bool((both_ways | alike).all())


def is_arithmetic_settled(node: gs.Node, inputs: Sequence[Sequence[Array] | None]) -> bool:
    """Whether all comparisons that a node of :data:`COMPARING` makes are settled.

    Args:
        node: the node.
        inputs: its inputs; None for one that is left out.
    """
    first, *others = [values for values in inputs if values is not None]
    if node.op in _WITH_ZERO:
        return is_settled(first, [0] * len(first))
    if node.op in _AMONG_ELEMENTS:
        return is_settled([value.reshape(-1, 1) for value in first], [value.reshape(1, -1) for value in first])
    if node.op == "Mod":
        # What is less than the divisor stays what it is. Up to the divisor itself comes the padding (w - h % w) % w.
        pairs = list(zip(first, others[0], strict=True))
        stays = all(((number >= 0) & (number < divisor)).all() for number, divisor in pairs[:-_EXTREMES])
        return not stays or all(((number >= 0) & (number <= divisor)).all() for number, divisor in pairs)
    if node.op in ("Min", "Max"):
        return all(is_settled(a, b) for a, b in combinations([first, *others], 2))
    bounds = others[:1] if node.op == "Range" else others
    return all(is_settled(first, bound, _WITH_EACH_OTHER[node.op]) for bound in bounds)


@dataclass(frozen=True)
class Cut:
    """What a Slice does to one axis: its size and the bounds, in each sample and for the extremes."""

    size: list[int]
    start: list[int]
    end: list[int]
    step: int

    def is_settled(self) -> bool:
        """Whether it is known of the bounds that they lie inside of the axis, and which one comes first."""
        nothing, final = [0] * len(self.size), [n - self._before for n in self.size]
        if not (is_settled(self.start, nothing, _MORE) and is_settled(self.end, nothing, _MORE)):
            return False  # from which end they count
        first, last = self._places(self.start), self._places(self.end)
        for places, bound in ((first, self.start), (last, self.end)):
            inside = is_settled(places, nothing) and is_settled(places, final)
            if abs(bound[0]) < _TO_THE_END and not inside:
                return False
        return is_settled(first, last)

    def is_rest_of(self, other: Cut) -> bool:
        """Whether the two share the axis among them, in all samples, and each gets something of it."""
        if self.size != other.size or (self.step, other.step) != (1, 1):
            return False
        bounds = [zip(cut._places(cut.start), cut._places(cut.end), strict=True) for cut in (self, other)]
        for n, *pair in list(zip(self.size, *bounds, strict=True))[:-_EXTREMES]:
            (start, cut), (cut_too, end) = sorted(pair)
            if not (start == 0 < cut == cut_too < end == n):
                return False
        return True

    @property
    def _before(self) -> int:
        return int(self.step < 0)  # backwards, the end lies before the first element

    def _places(self, bound: list[int]) -> list[int]:
        """Where a bound lies, counted from the beginning."""
        if abs(bound[0]) >= _TO_THE_END:
            return [(n if b > 0 else 0) - self._before for b, n in zip(bound, self.size, strict=True)]
        return [b if b >= 0 else b + n for b, n in zip(bound, self.size, strict=True)]

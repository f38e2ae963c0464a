"""Windows, recognised: of which partition a list of token numbers is, and what of a bias is a shift mask.

Both are compared with the textbook (:mod:`swinopt.textbook`); guesses are cheap, and every one has to be proven.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from swinopt.attention import NoAttention, Term
from swinopt.facts import Facts
from swinopt.graph import Array, epsilon_of
from swinopt.indices import PAD, Indices
from swinopt.movement import Region
from swinopt.textbook import padded_size, shift_mask, window_tokens

#: The largest window, in tokens: 32 x 32. What is larger is global attention, for which there are better kernels.
LARGEST_WINDOW = 1024
#: Stands in for a mask of minus infinity: exp() of it is zero as well, and it does not make NaN of a fully masked row.
_LOWEST_MASK_VALUE = -30000.0


@dataclass(frozen=True)
class Window:
    """How a map was cut: the map's sizes are one entry a sample, all tuples have one entry a spatial axis."""

    sizes: tuple[tuple[int, ...], ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]
    roll_first: bool

    def __str__(self) -> str:
        return f"window {'x'.join(map(str, self.window))}, shift {'x'.join(map(str, self.shift))}"

    @property
    def has_padding(self) -> bool:
        """Whether some map is no multiple of the window."""
        return any(s % w for size in self.sizes for s, w in zip(size, self.window, strict=True))


# ----------------------------------------------------------------------------------------------------------- window


def window_of(source: Region, places: tuple[Indices, ...], slots: int, facts: Facts) -> Window:
    """The partition that puts the source's tokens where they are.

    Args:
        source: the movement before the linears; its source holds the tokens.
        places: for each sample [groups, N]: the token in each slot of each group, or PAD.
        slots: N.
        facts: what is known of the graph.

    Raises:
        NoAttention: it is no partition into windows, shifted or not.
    """
    if slots > LARGEST_WINDOW:
        raise NoAttention(f"a group has {slots} tokens, and a window at most {LARGEST_WINDOW}")
    shapes = facts.shapes(source.source) or []
    batches, tokens = [shape[0] for shape in shapes], [int(np.prod(shape[1:-1])) for shape in shapes]
    for sizes in _map_sizes(source, facts):
        for window in _factorisations(slots, len(sizes[0])):
            found = _matching(sizes, window, places, batches)
            if found is not None:
                return found
    for axes in (2, 3):
        for window in _factorisations(slots, axes):
            steps = [_sizes_by_step(p, count, window) for p, count in zip(places, tokens, strict=True)]
            if tokens[0] == slots:
                continue  # all tokens in one group: attention over a sequence, as far as can be seen
            found = None if None in steps else _matching(tuple(s for s in steps if s), window, places, batches)
            if found is not None:
                return found
    raise NoAttention(f"the {slots} tokens of a group are not a window of a map of {tokens[0]} tokens")


def _sizes_by_step(places: Indices, tokens: int, window: tuple[int, ...]) -> tuple[int, ...] | None:
    """The map's sizes as the first window tells them, where no view does: a step along an axis skips a row, a plane ...

    Only a guess, which :func:`_matching` has to prove.
    """
    if min(window) < 2:
        return None
    corner = places.reshape(-1, *window)[0]
    origin = int(corner.reshape(-1)[0])
    units = np.eye(len(window), dtype=int)[:-1]
    skipped = [tokens, *(int(corner[tuple(unit)]) - origin for unit in units), 1]
    if origin == PAD or min(skipped) < 1 or any(a % b for a, b in pairwise(skipped)):
        return None
    return tuple(a // b for a, b in pairwise(skipped))


def _map_sizes(source: Region, facts: Facts) -> list[tuple[tuple[int, ...], ...]]:
    """The spatial sizes that the source may have: its own, or those of a view of it inside the region."""
    candidates = [source.source, *(t for node in reversed(source.nodes) for t in node.outputs)]
    whole = facts.shapes(source.source) or []
    found = []
    for tensor in candidates:
        shapes = facts.shapes(tensor) or []
        same_tokens = all(
            len(s) in (4, 5) and s[0] == w[0] and s[-1] == w[-1] and np.prod(s) == np.prod(w)
            for s, w in zip(shapes, whole, strict=False)
        )
        sizes = tuple(s[1:-1] for s in shapes)
        if shapes and same_tokens and sizes not in found:
            found.append(sizes)
    return found


def _factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ordered ways to write a number as a product of so many factors, the most even ones first."""

    def split(rest: int, left: int) -> Iterator[tuple[int, ...]]:
        if left == 1:
            yield (rest,)
            return
        for factor in range(1, rest + 1):
            if rest % factor == 0:
                yield from ((factor, *others) for others in split(rest // factor, left - 1))

    yield from sorted(split(number, parts), key=lambda factors: max(factors) / min(factors))


def _matching(
    sizes: tuple[tuple[int, ...], ...], window: tuple[int, ...], places: tuple[Indices, ...], batches: list[int]
) -> Window | None:
    first = np.flatnonzero(places[0] == 0)
    if not first.size:
        return None
    padded = padded_size(sizes[0], window)
    windows = [p // w for p, w in zip(padded, window, strict=True)]
    group, slot = divmod(int(first[0]), math.prod(window))
    if group >= math.prod(windows):
        return None
    # Where the first token has come to: a small map may have nothing but padding in its first slots.
    corners = zip(np.unravel_index(group, windows), window, np.unravel_index(slot, window), strict=True)
    corner = [int(number) * length + int(inside) for number, length, inside in corners]
    for roll_first in (False, True):
        shift = tuple(-place % period for place, period in zip(corner, sizes[0] if roll_first else padded, strict=True))
        if all(s < w for s, w in zip(shift, window, strict=True)) and all(
            _is_partition(p, size, batch, window, shift, roll_first)
            for p, size, batch in zip(places, sizes, batches, strict=True)
        ):
            return Window(sizes, window, shift, roll_first)
    return None


def _is_partition(
    places: Indices,
    size: tuple[int, ...],
    batch: int,
    window: tuple[int, ...],
    shift: tuple[int, ...],
    roll_first: bool,
) -> bool:
    expected = window_tokens(size, window, shift, roll_first=roll_first)
    if places.size != batch * expected.size:
        return False
    offsets = np.arange(batch, dtype=np.int64)[:, None, None] * int(np.prod(size))
    return np.array_equal(np.where(expected == PAD, PAD, expected + offsets).reshape(places.shape), places)


# ---------------------------------------------------------------------------------------------------- bias and mask


def bias_and_mask(terms: list[Term], window: Window, heads: int) -> tuple[Array, float]:
    """The relative position bias [heads, N, N], and what masked pairs get.

    Raises:
        NoAttention: what differs between windows is not the shift mask.
    """
    slots = int(np.prod(window.window))
    bias = np.zeros((heads, slots, slots))
    mask_value = 0.0
    for term in terms:
        per_window = [
            _by_window(value, shape, size, window, heads)
            for value, shape, size in zip(term.values, term.shapes, window.sizes, strict=True)
        ]
        if per_window[0].shape[0] == 1 and all(np.array_equal(p, per_window[0]) for p in per_window):
            bias = bias + per_window[0][0]
            continue
        masks = [shift_mask(size, window.window, window.shift) for size in window.sizes]
        if any(len(values) != len(mask) for values, mask in zip(per_window, masks, strict=True)):
            raise NoAttention("bias or mask depend on the input's size")
        epsilon = epsilon_of(term.values[0].dtype)
        parts = [_split(v, mask, window, epsilon) for v, mask in zip(per_window, masks, strict=True)]
        if any(value != parts[0][1] or not np.array_equal(part, parts[0][0]) for part, value in parts):
            raise NoAttention("bias or mask depend on the input's size")
        bias, mask_value = bias + parts[0][0], mask_value + parts[0][1]
    return bias, max(mask_value, _LOWEST_MASK_VALUE)


def _by_window(value: Array, scores: tuple[int, ...], size: tuple[int, ...], window: Window, heads: int) -> Array:
    """A term as [windows or 1, heads or 1, N, N], in double precision; it must be the same for the whole batch."""
    slots = int(np.prod(window.window))
    windows = shift_mask(size, window.window, window.shift).shape[0]
    value = value.reshape((1,) * (len(scores) - value.ndim) + value.shape)
    if scores[-3:] == (heads, slots, slots) and all(n == 1 for n in value.shape[:-3]):
        return value.reshape(1, *value.shape[-3:]).astype(np.float64)
    if scores[-3:] == (heads, slots, slots):
        value = np.broadcast_to(value, (*scores[:-3], *value.shape[-3:])).reshape(-1, windows, *value.shape[-3:])
    else:
        value = np.broadcast_to(value, scores).reshape(-1, windows, heads, slots, slots)
    if not np.all(value == value[:1]):
        raise NoAttention("the mask differs within the batch")
    return np.asarray(value[0], np.float64)


def _split(values: Array, mask: Array, window: Window, epsilon: float) -> tuple[Array, float]:
    """Splits [windows, heads or 1, N, N] into a bias [heads or 1, N, N] and a number times the mask [windows, N, N]."""
    wrong = NoAttention(f"the mask is not the shift mask of {window}")
    mask = np.asarray(np.broadcast_to(mask[:, None], values.shape))
    free = ~mask
    somewhere_free = np.asarray(free.any(axis=0))
    witness = free.argmax(axis=0)
    bias: Array = np.take_along_axis(values, witness[None], axis=0)[0]
    masked = mask & somewhere_free[None]
    above = (values - bias)[masked] if masked.any() else values[mask]
    mask_value = float(above.reshape(-1)[0]) if above.size else 0.0
    bias = np.where(somewhere_free, bias, 0.0 if not masked.any() else values[0] - mask_value)
    rebuilt = bias[None] + np.where(mask, mask_value, 0.0)
    # A sum of bias and mask that was rounded is off by half a unit in the last place of the mask's value.
    tolerance = epsilon * max(1.0, abs(mask_value)) if np.isfinite(mask_value) else 0.0
    same = np.abs(rebuilt - values) <= tolerance if np.isfinite(mask_value) else (rebuilt == values)
    if not same.all() or mask_value > 0 or not np.isfinite(bias).all():
        raise wrong
    return bias, mask_value

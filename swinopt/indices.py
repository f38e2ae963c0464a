"""Arrays of indices, each a place in another tensor, and what they amount to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from swinopt.facts import Shape

Indices = npt.NDArray[np.int32]

#: What stands in an index array where the region puts a zero of its own.
PAD = -1


def elements(runs: Indices, length: int, axis: int = -1) -> Indices:
    """The elements of runs of this length, side by side along the axis, which is counted from the end."""
    if length == 1:
        return runs
    place = runs.ndim + axis + 1
    apart = np.expand_dims(runs, place)
    steps = np.arange(length, dtype=np.int32).reshape(-1, *[1] * (runs.ndim - place))
    indices = np.where(apart == PAD, PAD, apart * np.int32(length) + steps)
    shape = (*runs.shape[: place - 1], runs.shape[place - 1] * length, *runs.shape[place:])
    found: Indices = indices.reshape(shape)
    found.setflags(write=False)
    return found


def is_identity(indices: Indices) -> bool:
    """Whether the elements keep their order, and none is added or left out that would show in the order."""
    flat = indices.reshape(-1)
    return flat.size > 0 and flat[0] == 0 and flat[-1] == flat.size - 1 and bool((np.diff(flat) == 1).all())


@dataclass(frozen=True)
class Affine:
    """An index array of the form ``sum_i stride_i * j_i`` over a grid of sizes.

    Attributes:
        sizes: the grid, outermost axis first; no axis of size 1, and no two neighbours that could be one.
        strides: how far in the source one step along each axis goes.
    """

    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    def as_transpose(self) -> tuple[Shape, tuple[int, ...]] | None:
        """The source's shape and the permutation of its axes that give this order, if it is a permutation at all."""
        order = sorted(range(len(self.sizes)), key=lambda i: -self.strides[i])
        source = tuple(self.sizes[i] for i in order)
        expected = 1
        for i in reversed(order):
            if self.strides[i] != expected:
                return None
            expected *= self.sizes[i]
        permutation = tuple(order.index(i) for i in range(len(self.sizes)))
        return source, permutation


def affine(indices: Indices) -> Affine | None:
    """The affine form of an index array that starts at 0; None if it has none.

    The innermost axis is the longest run of equal steps from the start; what follows it must be copies of that run at
    other offsets, whose offsets are affine in turn.
    """
    flat = indices.reshape(-1)
    if flat.size == 0 or flat[0] != 0:
        return None
    sizes: list[int] = []
    strides: list[int] = []
    while flat.size > 1:
        stride = int(flat[1]) - int(flat[0])
        breaks = np.flatnonzero(np.diff(flat) != stride)
        run = int(breaks[0]) + 1 if breaks.size else flat.size
        if flat.size % run or stride <= 0:
            return None
        rows = flat.reshape(-1, run)
        if not (rows == rows[:, :1] + np.arange(run, dtype=rows.dtype) * stride).all():
            return None
        sizes.insert(0, run)
        strides.insert(0, stride)
        flat = rows[:, 0]
    return Affine(tuple(sizes), tuple(strides))


def whole_tokens(indices: Indices) -> Indices | None:
    """Flat token numbers, if the last axis of an index array runs through whole tokens (or pads); else None.

    The array may be of runs along that axis as well.
    """
    rows = indices.reshape(-1, indices.shape[-1])
    width = rows.shape[1]
    tokens = np.where(rows[:, 0] == PAD, PAD, rows[:, 0] // width)
    expected = np.where(tokens[:, None] == PAD, PAD, tokens[:, None] * width + np.arange(width, dtype=np.int32))
    return tokens if np.array_equal(expected, rows) else None

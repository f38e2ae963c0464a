"""Patch merging as movement: where 2x2 neighbours of a feature map become the features of one token."""

from __future__ import annotations

from itertools import permutations
from math import prod

import numpy as np

from swinopt.facts import Facts, Shape
from swinopt.indices import PAD, Indices
from swinopt.movement import VIEW_OPS, Region


def maps_of(region: Region, facts: Facts) -> list[Shape] | None:
    """The source's shapes as [B, H, W, C]: its own, or where tokens lie in a line or as rows, those of a view of it.

    Where no view is a map either, the one that would have to be merged: twice as high and wide as the target.
    """
    source = facts.shapes(region.source) or [()]
    views = [
        t for node in region.nodes for t in node.outputs if node.op in VIEW_OPS and node.inputs[0] is region.source
    ]
    for tensor in (region.source, *views):
        shapes = facts.shapes(tensor)
        if shapes and all(len(s) == 4 and s[-1:] == o[-1:] for s, o in zip(shapes, source, strict=True)):
            return shapes
    merged = facts.shapes(region.target) or [()]
    if all(
        len(m) == 4 and s and 4 * s[-1] == m[-1] and prod(s) == prod(m) for s, m in zip(source, merged, strict=True)
    ):
        return [(b, 2 * h, 2 * w, c // 4) for b, h, w, c in merged]
    return None


def merging_order(region: Region, maps: list[Shape], facts: Facts) -> tuple[int, ...] | None:
    """Which neighbour (2 dy + dx) each quarter of the features is, if the region merges patches at all."""
    targets = facts.shapes(region.target)
    if targets is None or targets[0][-1] != 4 * maps[0][-1]:
        return None
    samples, length = region.along(-1)
    in_runs = [(b, h, w, c // length) for b, h, w, c in maps]
    for order in permutations(range(4)):
        if all(
            np.array_equal(_neighbours(source, order).reshape(-1), runs.reshape(-1))
            for source, runs in zip(in_runs, samples, strict=True)
        ):
            return order
    return None


def _neighbours(source: Shape, order: tuple[int, ...]) -> Indices:
    """The index array of patch merging: [B, ceil(H/2), ceil(W/2), 4C]."""
    b, h, w, c = source
    indices = np.arange(b * h * w * c, dtype=np.int32).reshape(source)
    padded = np.pad(indices, ((0, 0), (0, h % 2), (0, w % 2), (0, 0)), constant_values=PAD)
    quarters = [padded[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)]
    return np.concatenate([quarters[i] for i in order], axis=-1)

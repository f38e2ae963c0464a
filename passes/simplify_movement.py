"""Simplify movement: every region of data movement becomes the shortest equivalent.

A region is all movement between a tensor that something computes and a tensor that something reads. What it does is
found by running it on indices (:mod:`swinopt.movement`), and then said anew in the first of these forms that says it,
if that takes fewer nodes than the region would free:

    nothing | Reshape | Transpose | Reshape-Transpose-Reshape | Reshape-Gather-Reshape (a Reshape only where needed)

Refused where a region has several sources, adds pads, or its result has two sizes that depend on the input and that no
Reshape can copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.facts import Shape
from swinopt.graph import Tensor, producer
from swinopt.indices import PAD, Affine, Indices, affine
from swinopt.movement import Region, is_movement, is_view
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class SimplifyMovement(Pass):
    """Says every movement region in as few nodes as it can be said."""

    name: ClassVar[str] = "simplify-movement"
    tolerance: ClassVar[float] = 1e-6

    def run(self, rewriter: Rewriter) -> None:
        for target in _targets(rewriter):
            node = producer(target)
            if node is None or rewriter.is_dead(node):
                continue
            region = rewriter.movement.region(target)
            if region is None:
                continue
            freed = _freed_nodes(region, rewriter)
            if len(freed) < 2 and not _is_nothing(region, rewriter):
                continue
            shorter = _shortest(region, len(freed) - 1, rewriter)
            if shorter is not None:
                rewriter.replace(target, shorter)


def _targets(rewriter: Rewriter) -> list[Tensor]:
    """The tensors that movement makes and that something other than movement reads, the last ones first."""
    found = []
    for node in reversed(rewriter.graph.nodes):
        if is_movement(node, rewriter.facts):
            for tensor in node.outputs:
                read = any(not is_movement(consumer, rewriter.facts) for consumer in tensor.outputs)
                if read or rewriter.is_output(tensor):
                    found.append(tensor)
    return found


def _freed_nodes(region: Region, rewriter: Rewriter) -> list[gs.Node]:
    """The nodes of the region that serve this target alone."""
    freed: set[int] = set()
    found = []
    for node in region.nodes:  # consumers first
        others = [
            consumer
            for tensor in node.outputs
            if tensor is not region.target
            for consumer in tensor.outputs
            if id(consumer) not in freed
        ]
        if not others and not any(rewriter.is_output(t) for t in node.outputs if t is not region.target):
            freed.add(id(node))
            found.append(node)
    return found


def _is_nothing(region: Region, rewriter: Rewriter) -> bool:
    same = rewriter.facts.shapes(region.source) == rewriter.facts.shapes(region.target)
    return same and is_view(region, rewriter.facts)


def _shortest(region: Region, most: int, rewriter: Rewriter) -> Tensor | None:
    """The region said in at most ``most`` nodes; None if it cannot be."""
    if is_view(region, rewriter.facts):
        if _is_nothing(region, rewriter):
            # A tensor that is both an input and an output of the graph can only be joined by a node.
            return None if rewriter.is_output(region.target) and producer(region.source) is None else region.source
        return rewriter.reshape(region.source, region.target) if most >= 1 else None
    grids = [affine(i) for i in region.indices]
    sizes = [int(np.prod(shape)) for shape in rewriter.facts.shapes(region.source) or []]
    # What leaves elements out, or repeats them, is no permutation however regular it is.
    if all(grid is not None for grid in grids) and [i.size for i in region.indices] == sizes:
        transposed = _as_transpose(region, [g for g in grids if g is not None], most, rewriter)
        if transposed is not None:
            return transposed
    return _as_gather(region, most, rewriter)


def _as_transpose(region: Region, grids: list[Affine], most: int, rewriter: Rewriter) -> Tensor | None:
    facts = rewriter.facts
    forms = [grid.as_transpose() for grid in grids]
    if any(form is None for form in forms) or len({form[1] for form in forms if form}) != 1:
        return None
    inner = [form[0] for form in forms if form]
    permutation = next(form[1] for form in forms if form)
    outer = [tuple(shape[axis] for axis in permutation) for shape in inner]
    inner, outer, permutation = _match_ranks(region, inner, outer, permutation, rewriter)
    needed = 1 + (inner != facts.shapes(region.source)) + (outer != facts.shapes(region.target))
    if needed > most:
        return None
    start = rewriter.reshape_to(region.source, inner)
    if start is None:
        return None
    moved = rewriter.op("Transpose", start, perm=list(permutation))
    facts.learn(moved, like=region.source, shapes=outer)
    return rewriter.reshape(moved, region.target)


def _match_ranks(
    region: Region,
    inner: list[tuple[int, ...]],
    outer: list[tuple[int, ...]],
    permutation: tuple[int, ...],
    rewriter: Rewriter,
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], tuple[int, ...]]:
    """Prefers the permutation of the source's own axes where that alone makes the target: no Reshape is needed then."""
    sources, targets = rewriter.facts.shapes(region.source), rewriter.facts.shapes(region.target)
    if sources is None or targets is None or len(sources[0]) != len(targets[0]) or len(sources[0]) > 8:
        return inner, outer, permutation
    for candidate in _axis_orders(sources[0], targets[0]):
        if all(
            tuple(s[a] for a in candidate) == t
            and np.array_equal(np.arange(i.size, dtype=np.int32).reshape(s).transpose(candidate), i)
            for s, t, i in zip(sources, targets, region.indices, strict=True)
        ):
            return sources, targets, candidate
    return inner, outer, permutation


def _axis_orders(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The ways in which axes of these sizes can be permuted into those; axes of size 1 keep their order."""
    orders: list[tuple[int, ...]] = [()]
    for size in target:
        orders = [
            (*order, axis)
            for order in orders
            for axis in range(len(source))
            if source[axis] == size
            and axis not in order
            and (size != 1 or all(a in order for a in range(axis) if source[a] == 1))
        ]
    return orders[:64]


def _as_gather(region: Region, most: int, rewriter: Rewriter) -> Tensor | None:
    """Rows of equal length, picked by one list of numbers that is the same for every leading index (the batch)."""
    splits = [_rows(indices, rewriter.facts.shape(region.source, s)) for s, indices in enumerate(region.indices)]
    if any(split is None for split in splits) or len({split[1].tobytes() for split in splits if split}) != 1:
        return None
    inner: list[Shape] = [split[0] for split in splits if split]
    picks = next(split[1] for split in splits if split)
    outer: list[Shape] = [(lead, picks.size, row) for lead, _, row in inner]
    # A Gather may make several axes of one: then the Reshape behind it is not needed.
    targets = rewriter.facts.shapes(region.target) or []
    shaped = all(t[:1] == o[:1] and t[-1:] == o[-1:] for t, o in zip(targets, outer, strict=True))
    if shaped and len({t[1:-1] for t in targets}) == 1:
        picks, outer = picks.reshape(targets[0][1:-1]), list(targets)
    needed = 1 + (inner != rewriter.facts.shapes(region.source)) + (outer != targets)
    if needed > most:
        return None
    start = rewriter.reshape_to(region.source, inner)
    if start is None:
        return None
    gathered = rewriter.op("Gather", start, rewriter.constant(picks, np.int64, "indices"), axis=1)
    rewriter.facts.learn(gathered, like=region.source, shapes=outer)
    return rewriter.reshape(gathered, region.target)


def _rows(indices: Indices, source: tuple[int, ...] | None) -> tuple[tuple[int, int, int], Indices] | None:
    """(leading, rows, row length) of the source, and the rows that are picked from each leading index."""
    flat = indices.reshape(-1)
    if source is None or len(source) < 2 or flat.size == 0 or (flat == PAD).any():
        return None
    size, leading = int(np.prod(source)), source[0]
    breaks = np.flatnonzero(np.diff(flat) != 1) + 1
    length = int(np.gcd.reduce(np.append(breaks, [flat.size, size // leading])))
    starts = flat[::length]
    if length == 1 or (starts % length).any():
        return None
    per_lead = starts.size // leading
    if starts.size % leading:
        return None
    rows = size // leading // length
    picked = (starts // length).reshape(leading, per_lead)
    first = picked[0]
    if not (picked == first + np.arange(leading, dtype=first.dtype)[:, None] * rows).all():
        return None
    return (leading, rows, length), first

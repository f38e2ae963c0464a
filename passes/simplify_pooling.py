"""Simplify pooling: the mean over all tokens is one ReduceMean of the token layout.

    flatten(mean_{h,w}(transpose(x)))  =  mean_{h,w}(x)              x [B, H, W, C],  transpose(x) [B, C, H, W]

Heads pool channels-first maps, as GlobalAveragePool or as ReduceMean with or without kept axes, and flatten what is
left. Behind a Swin the channels come last, so all of that is the mean over the axes in between. Which elements a mean
runs over is found by running the movement before it on indices, so the spelling does not matter. Refused where the
pooled map is read otherwise as well, since then nothing is saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Tensor
from swinopt.indices import PAD, Indices
from swinopt.movement import exits, is_view
from swinopt.pattern import reduced_axes
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

#: Since this opset the axes of ReduceMean are an input.
_AXES_ARE_INPUT = 18


@dataclass(frozen=True)
class SimplifyPooling(Pass):
    """Takes the mean over all tokens where they lie, without transposing them first."""

    name: ClassVar[str] = "simplify-pooling"

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("GlobalAveragePool", "ReduceMean"):
            if not rewriter.is_dead(node):
                _simplify(node, rewriter)


def _simplify(node: gs.Node, rewriter: Rewriter) -> None:
    facts = rewriter.facts
    region = rewriter.movement.region(node.inputs[0])
    axes = _axes(node, rewriter)
    ends = exits(node.outputs[0], facts)
    if region is None or not region.nodes or axes is None or len(ends) != 1:
        return
    sources = facts.shapes(region.source) or []
    after = rewriter.movement.region(ends[0], stop=[node.outputs[0]])
    if not sources or len(sources[0]) < 3 or after is None or not is_view(after, facts):
        return
    if not all(_is_mean_over_tokens(i, axes, shape) for i, shape in zip(region.indices, sources, strict=True)):
        return
    if len(node.inputs[0].outputs) != 1 or rewriter.is_output(node.inputs[0]):
        rewriter.refuse(node, "the pooled map is read elsewhere")
        return
    mean = _mean(region.source, list(range(1, len(sources[0]) - 1)), rewriter)
    facts.learn(mean, like=region.source, shapes=[(shape[0], shape[-1]) for shape in sources])
    result = rewriter.reshape(mean, ends[0])
    if result is not None:
        rewriter.replace(ends[0], result)


def _axes(node: gs.Node, rewriter: Rewriter) -> tuple[int, ...] | None:
    rank = len(rewriter.facts.shape(node.inputs[0]) or ())
    found = tuple(range(2, rank)) if node.op == "GlobalAveragePool" else reduced_axes(node, rewriter.facts)
    return None if not found else tuple(axis % rank for axis in found)


def _is_mean_over_tokens(indices: Indices, axes: tuple[int, ...], source: tuple[int, ...]) -> bool:
    """Whether each mean, in their order [B, C], runs over exactly the elements of one channel of one image."""
    kept = [axis for axis in range(indices.ndim) if axis not in axes]
    if np.prod([indices.shape[axis] for axis in kept]) != source[0] * source[-1]:
        return False
    rows = indices.transpose(*kept, *axes).reshape(source[0], source[-1], -1)
    if (rows == PAD).any() or rows.size != np.prod(source):
        return False
    expected = np.arange(rows.size).reshape(source[0], -1, source[-1]).swapaxes(1, 2)
    return np.array_equal(np.sort(rows, axis=-1), expected)


def _mean(tensor: Tensor, axes: list[int], rewriter: Rewriter) -> Tensor:
    if rewriter.graph.opset >= _AXES_ARE_INPUT:
        return rewriter.op("ReduceMean", tensor, rewriter.constant(axes, np.int64, "axes"), keepdims=0)
    return rewriter.op("ReduceMean", tensor, axes=axes, keepdims=0)

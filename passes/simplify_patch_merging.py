"""Simplify patch merging: 2x2 neighbours become one token of 4C features, always in the same three nodes.

    [B, H, W, C] -> Reshape [B, H/2, 2, W/2, 2C] -> Transpose -> Reshape [B, H/2, W/2, 4C]        features (dy, dx, c)

Implementations write four strided slices and a Concat in the order (dx, dy, c), or a reshape and a six-dimensional
transpose. The order of features is free: the norm and the reduction that follow can be permuted instead,

    LayerNorm(x[p]) @ W = LayerNorm'(x) @ W',     scale' = scale[p^-1], bias' = bias[p^-1], W' = W[p^-1, :]

and in the order (dy, dx, c) the 2C features of two horizontal neighbours stay together, so that the transpose moves
longer runs and has an axis less. Refused where what follows is no LayerNorm or linear that could be permuted. An odd
map is padded first, as the original does (Swin paper, section 3.1; pad at the end of each axis).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Tensor, attr, is_standard, literal
from swinopt.indices import Indices
from swinopt.linear import Linear, linear_from
from swinopt.merging import maps_of, merging_order
from swinopt.movement import Region, exits, is_view
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

Shape = tuple[int, ...]

# What may stand before the canonical form: nothing, or the padding of an odd map, for which tokens have to be a map.
_BEFORE_MERGING: tuple[list[str], ...] = ([], ["Pad"], ["Pad", "Reshape"])


@dataclass(frozen=True)
class SimplifyPatchMerging(Pass):
    """Writes the gathering of 2x2 neighbours in one way, and permutes the weights behind it to match."""

    name: ClassVar[str] = "simplify-patch-merging"

    def run(self, rewriter: Rewriter) -> None:
        for node in list(rewriter.graph.nodes):
            if (
                rewriter.is_dead(node)
                or not is_standard(node)
                or node.op not in ("LayerNormalization", "MatMul", "Gemm")
            ):
                continue
            merged = node.inputs[0]
            region = rewriter.movement.region(merged)
            if region is None or not region.nodes or len(merged.outputs) != 1 or rewriter.is_output(merged):
                continue
            maps = maps_of(region, rewriter.facts)
            order = merging_order(region, maps, rewriter.facts) if maps else None
            if maps and order is not None and not _is_canonical(region, order):
                reason = _rewrite(region, order, maps, node, rewriter)
                if reason:
                    rewriter.refuse(node, reason)


def _is_canonical(region: Region, order: tuple[int, ...]) -> bool:
    ops = [node.op for node in region.nodes]  # consumers first
    return order == (0, 1, 2, 3) and ops[:3] == ["Reshape", "Transpose", "Reshape"] and ops[3:] in _BEFORE_MERGING


def _rewrite(
    region: Region, order: tuple[int, ...], maps: list[Shape], reader: gs.Node, rewriter: Rewriter
) -> str | None:
    features = (rewriter.facts.shape(region.target) or (0,))[-1]
    # Feature i of the new order was feature new[i] of the old one.
    new = np.arange(features, dtype=np.int32).reshape(4, -1)[np.argsort(order)].reshape(-1)
    norm = reader if reader.op == "LayerNormalization" else None
    linear = _linear_behind(norm.outputs[0] if norm else region.target, rewriter)
    if linear is None:
        return "no linear with constant weights follows the merged patches"
    affine = _permuted_affine(norm, new, rewriter) if norm else []
    if affine is None:
        return "the norm behind the merged patches does not run over their features alone"
    merged = _emit(region, maps, rewriter)
    if merged is None:
        return "the map has two sizes that depend on the input"
    shapes = rewriter.facts.shapes(merged) or []
    if norm:
        merged = rewriter.op("LayerNormalization", merged, *affine, **{**norm.attrs, "axis": -1})
        rewriter.facts.learn(merged, like=norm.outputs[0], shapes=shapes)
    reduced = linear.applied_to(merged, rewriter, linear.weight_value()[new])
    rewriter.facts.learn(reduced, like=linear.output, shapes=[(*s[:-1], linear.features) for s in shapes])
    viewed = rewriter.reshape(reduced, linear.output)
    if viewed is None:
        return "the map has two sizes that depend on the input"
    rewriter.replace(linear.output, viewed)
    return None


def _linear_behind(tensor: Tensor, rewriter: Rewriter) -> Linear | None:
    """The one linear that reads the tensor, perhaps as a view that keeps the features."""
    ends = exits(tensor, rewriter.facts)
    if len(ends) != 1:
        return None
    region = rewriter.movement.region(ends[0], stop=[tensor])
    features = (rewriter.facts.shape(tensor) or (0,))[-1]
    if region is None or not is_view(region, rewriter.facts) or any(i.shape[-1] != features for i in region.indices):
        return None
    return linear_from(ends[0])


def _permuted_affine(norm: gs.Node, new: Indices, rewriter: Rewriter) -> list[gs.Constant] | None:
    """The norm's scale and bias in the new order of features."""
    shape = rewriter.facts.shape(norm.inputs[0]) or ()
    values = [literal(t) for t in norm.inputs[1:]]
    over_features = attr(norm, "axis", rewriter.graph.opset) in (-1, len(shape) - 1)
    if not over_features or any(value is None or value.size != new.size for value in values):
        return None
    return [
        rewriter.constant(value.reshape(-1)[new], hint=f"{tensor.name}/permuted")
        for value, tensor in zip(values, norm.inputs[1:], strict=True)
        if value is not None
    ]


def _emit(region: Region, sources: list[Shape], rewriter: Rewriter) -> Tensor | None:
    facts = rewriter.facts
    source: Tensor = region.source
    pads = {(h % 2, w % 2) for _, h, w, _ in sources}
    if len(pads) != 1:
        return None
    ((down, right),) = pads
    if down or right:
        as_map = rewriter.reshape_to(source, sources)
        if as_map is None:
            return None
        source = rewriter.op("Pad", as_map, rewriter.constant([0, 0, 0, 0, 0, down, right, 0], np.int64, "pads"))
        sources = [(b, h + down, w + right, c) for b, h, w, c in sources]
        facts.learn(source, like=region.source, shapes=sources)
    split = rewriter.reshape_to(source, [(b, h // 2, 2, w // 2, 2 * c) for b, h, w, c in sources])
    if split is None:
        return None
    moved = rewriter.op("Transpose", split, perm=[0, 1, 3, 2, 4])
    facts.learn(moved, like=source, shapes=[(b, h // 2, w // 2, 2, 2 * c) for b, h, w, c in sources])
    # As a map, whatever shape the original gives it: what follows is a stage, and window attention reads maps.
    return rewriter.reshape_to(moved, [(b, h // 2, w // 2, 4 * c) for b, h, w, c in sources])

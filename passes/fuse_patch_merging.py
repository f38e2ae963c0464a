"""Fuse patch merging: the gathering of 2x2 neighbours and the norm behind it become one swinopt::PatchMerging.

    LayerNorm(x[b, 2i + dy, 2j + dx, c])  =  PatchMerging(x)            [B, H, W, C] -> [B, ceil(H/2), ceil(W/2), 4C]

This is the merging of Swin V1, with the norm before the reduction. It is recognised by where each element comes from,
so the spelling does not matter, but the op has one order of features, (dy, dx, c). Another order is refused, since the
norm and the reduction would have to be permuted, which is what simplify-patch-merging does. Refused are also a norm
that does not run over the merged features alone, and a gathering that is read elsewhere, since then it has to be done
anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.merging import maps_of, merging_order
from swinopt.norm import NoNorm, norm_of
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

_ORDER = (0, 1, 2, 3)  # of the neighbours 2 dy + dx, as the op has them


@dataclass(frozen=True)
class FusePatchMerging(Pass):
    """Makes one swinopt::PatchMerging of 2x2 neighbours side by side and the LayerNormalization behind them."""

    name: ClassVar[str] = "fuse-patch-merging"

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("LayerNormalization"):
            reason = _fuse(node, rewriter)
            if reason:
                rewriter.refuse(node, reason)


def _fuse(node: gs.Node, rewriter: Rewriter) -> str | None:
    """Rewrites one norm; where patches are merged before it and it cannot, returns why."""
    merged, normed, facts = node.inputs[0], node.outputs[0], rewriter.facts
    region = rewriter.movement.region(merged)
    maps = maps_of(region, facts) if region and region.nodes else None
    order = merging_order(region, maps, facts) if region and maps else None
    if region is None or maps is None or order is None:
        return None
    if order != _ORDER:
        found = ", ".join(str(divmod(neighbour, 2)) for neighbour in order)
        return f"the neighbours (dy, dx) are in the order {found}: run simplify-patch-merging first"
    if len(merged.outputs) != 1 or rewriter.is_output(merged):
        return "the merged patches are read elsewhere, too"
    try:
        norm = norm_of(node, rewriter)
    except NoNorm as reason:
        return str(reason)
    x = rewriter.reshape_to(region.source, maps)
    if x is None:
        return "the map has two sizes that depend on the input"
    tokens = rewriter.op(
        "PatchMerging",
        x,
        norm.gamma,
        norm.beta,
        domain=ops.DOMAIN,
        hint=f"{normed.name}/PatchMerging",
        epsilon=norm.epsilon,
    )
    result = rewriter.reshape(tokens, normed)
    if result is None:
        return "the shape of the result hangs on two sizes of the input"
    rewriter.replace(normed, result)
    return None

"""Fuse addition and LayerNorm: a residual addition and the norm behind it become one swinopt::AddLayerNorm.

    s = a + b,  y = LayerNorm(s)        =        s, y = AddLayerNorm(a, b)

s is the residual stream, which the next addition reads as well, so the op gives both. Fused is a sum of two computed
tensors of one shape: what is added to every token alike is a bias and belongs to the linear before it. Refused are a
sum that broadcasts, and a norm that does not run over the last axis alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.graph import literal, made_by
from swinopt.norm import NoNorm, norm_of
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class FuseAddLayerNorm(Pass):
    """Makes one swinopt::AddLayerNorm of an addition of two tensors and the LayerNormalization of the sum."""

    name: ClassVar[str] = "fuse-add-layer-norm"

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("LayerNormalization"):
            reason = _fuse(node, rewriter)
            if reason:
                rewriter.refuse(node, reason)


def _fuse(node: gs.Node, rewriter: Rewriter) -> str | None:
    """Rewrites one norm; where a sum of two tensors is before it and it cannot, returns why."""
    total, normed = node.inputs[0], node.outputs[0]
    addition = made_by(total, "Add")
    if addition is None or any(literal(summand) is not None for summand in addition.inputs):
        return None
    shapes = [rewriter.facts.shapes(tensor) for tensor in (*addition.inputs, total)]
    if shapes[0] is None or shapes.count(shapes[0]) != len(shapes):
        return "the two summands are not known to have one shape"
    try:
        norm = norm_of(node, rewriter)
    except NoNorm as reason:
        return str(reason)
    new_total, new_normed = rewriter.op(
        "AddLayerNorm",
        *addition.inputs,
        norm.gamma,
        norm.beta,
        domain=ops.DOMAIN,
        hint=f"{normed.name}/AddLayerNorm",
        count=2,
        epsilon=norm.epsilon,
    )
    rewriter.replace(normed, new_normed)
    rewriter.replace(total, new_total)
    rewriter.applied -= 1  # two tensors are replaced, and one thing is done
    return None

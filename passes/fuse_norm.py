"""Fuse norms: a LayerNorm, and the residual addition behind it, become one swinopt::LayerNorm.

    LayerNorm(x) + residual    = LayerNorm(x, gamma, beta, residual)
    LayerNorm(x)               = LayerNorm(x, gamma, beta)

The addition is the res-post-norm of Swin V2. It goes in where nothing else reads what the norm gives, and the residual
is computed and of the shape of the sum; else it stays what it is, behind a plain LayerNorm. Of two norms that are added
the first takes the other one as its residual. Refused is a norm that does not run over the last axis alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.norm import NoNorm, Norm, norm_of
from swinopt.pipeline import Pass
from swinopt.residual import residual_behind
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class FuseNorm(Pass):
    """Makes one swinopt::LayerNorm of a LayerNormalization and the residual addition behind it."""

    name: ClassVar[str] = "fuse-norm"

    def run(self, rewriter: Rewriter) -> None:
        nodes = {id(node) for node in rewriter.graph.nodes}
        for node in rewriter.nodes("LayerNormalization"):
            try:
                norm = _norm_of(node, rewriter)
            except NoNorm as reason:
                rewriter.refuse(node, str(reason))
                continue
            normed = node.outputs[0]
            added = residual_behind(normed, rewriter, nodes, "norm")
            old, residual = (normed, None) if added is None else (added.total, added.summand)
            new = rewriter.op(
                ops.LAYER_NORM.name,
                node.inputs[0],
                norm.gamma,
                norm.beta,
                residual,
                domain=ops.DOMAIN,
                hint=f"{old.name}/LayerNorm",
                epsilon=norm.epsilon,
            )
            rewriter.replace(old, new)


def _norm_of(node: gs.Node, rewriter: Rewriter) -> Norm:
    if rewriter.graph.opset < ops.MIN_OPSET:
        raise NoNorm(f"swinopt::LayerNorm needs opset {ops.MIN_OPSET}, and this is opset {rewriter.graph.opset}")
    return norm_of(node, rewriter)

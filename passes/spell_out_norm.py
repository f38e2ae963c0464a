"""Spell out norms: the reverse of fuse-norm, for runtimes without the op, and nodes that are faster in standard ops.

    LayerNorm(x, gamma, beta)              =  LayerNormalization(x)
    LayerNorm(x, gamma, beta, residual)    =  LayerNormalization(x) + residual

A bias of zeros is left out. Unlike in the op's definition nothing is cast: in half precision the norm is rounded before
the residual is added, as it is in the models that have both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.graph import Tensor, argument, literal
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class SpellOutNorm(Pass):
    """Writes norms as LayerNormalization and Add.

    Attributes:
        kept: the nodes that stay what they are, each by its output.
    """

    name: ClassVar[str] = "spell-out-norm"
    kept: tuple[str, ...] = ()

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes(ops.LAYER_NORM.name, domain=ops.DOMAIN):
            if node.outputs[0].name not in self.kept:
                rewriter.replace(node.outputs[0], _spelled(node, rewriter))


def _spelled(node: gs.Node, rewriter: Rewriter) -> Tensor:
    x, gamma, beta = node.inputs[:3]
    name, residual, value = node.outputs[0].name, argument(node, 3), literal(beta)
    epsilon = node.attrs.get("epsilon", ops.LAYER_NORM.defaults["epsilon"])
    result: Tensor = rewriter.op(
        "LayerNormalization",
        x,
        gamma,
        beta if value is None or value.any() else None,
        hint=f"{name}/LayerNormalization",
        axis=-1,
        epsilon=epsilon,
    )
    rewriter.facts.learn(result, like=node.outputs[0])
    return result if residual is None else rewriter.op("Add", result, residual, hint=f"{name}/Add")

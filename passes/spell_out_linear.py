"""Spell out linears: the reverse of fuse-linear, for runtimes without the op, and nodes that no plugin can compute.

    Linear(x, W, b)                 =  x W + b
    Linear(x, W, b, gelu=1)         =  gelu(x W + b)
    Linear(x, W, b, residual)       =  x W + b + residual

A bias of zeros is left out. GELU is one node where the opset has it, and else as spell-out-gelu writes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.graph import Tensor, argument, literal
from swinopt.passes.spell_out_gelu import erf_gelu
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

_OPSET_WITH_GELU = 20


@dataclass(frozen=True)
class SpellOutLinear(Pass):
    """Writes linears as MatMul, Add and Gelu.

    Attributes:
        kept: the nodes that stay what they are, each by its output.
    """

    name: ClassVar[str] = "spell-out-linear"
    kept: tuple[str, ...] = ()

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes(ops.LINEAR.name, domain=ops.DOMAIN):
            if node.outputs[0].name not in self.kept:
                rewriter.replace(node.outputs[0], _spelled(node, rewriter))


def _spelled(node: gs.Node, rewriter: Rewriter) -> Tensor:
    x, weight, bias = node.inputs[:3]
    name, residual, value = node.outputs[0].name, argument(node, 3), literal(bias)
    result: Tensor = rewriter.op("MatMul", x, weight, hint=f"{name}/MatMul")
    if value is None or value.any():
        result = rewriter.op("Add", result, bias, hint=f"{name}/bias")
    rewriter.facts.learn(result, like=node.outputs[0])
    if node.attrs.get("gelu", 0):
        has_gelu = rewriter.graph.opset >= _OPSET_WITH_GELU
        result = rewriter.op("Gelu", result, hint=f"{name}/Gelu") if has_gelu else erf_gelu(result, rewriter)
    if residual is not None:
        result = rewriter.op("Add", result, residual, hint=f"{name}/Add")
    return result

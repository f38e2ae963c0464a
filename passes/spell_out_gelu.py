"""Spell out GELU, in the order of operations that TensorRT 8.6 knows to fuse; its parser has no Gelu.

erf:   (x / sqrt(2) -> Erf -> + 1) * x * 1/2
tanh:  (sqrt(2/pi) * (x + 0.044715 * x^3) -> Tanh -> + 1) * x * 1/2
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from swinopt.graph import Tensor, attr, producer
from swinopt.pattern import Match, op, var
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter, Rule, apply_rules

_x = var("x")
_GELU = op("Gelu", _x)


def _spell(match: Match, rewriter: Rewriter) -> Tensor:
    x = match["x"]
    node = producer(match.root)
    tanh = node is not None and node.op == "Gelu" and attr(node, "approximate", rewriter.graph.opset) == "tanh"
    return _tanh(x, rewriter) if tanh else erf_gelu(x, rewriter)


def erf_gelu(x: Tensor, rewriter: Rewriter) -> Tensor:
    """GELU of a tensor whose type is known, by Erf."""

    def number(value: float) -> Tensor:
        return rewriter.float_constant(value, x)

    erf = rewriter.op("Erf", rewriter.op("Div", x, number(math.sqrt(2))))
    return rewriter.op("Mul", rewriter.op("Mul", rewriter.op("Add", erf, number(1)), x), number(0.5))


def _tanh(x: Tensor, rewriter: Rewriter) -> Tensor:
    def number(value: float) -> Tensor:
        return rewriter.float_constant(value, x)

    cube = rewriter.op("Mul", rewriter.op("Pow", x, number(3)), number(0.044715))
    inner = rewriter.op("Mul", rewriter.op("Add", x, cube), number(math.sqrt(2 / math.pi)))
    one_more = rewriter.op("Add", rewriter.op("Tanh", inner), number(1))
    return rewriter.op("Mul", rewriter.op("Mul", one_more, x), number(0.5))


@dataclass(frozen=True)
class SpellOutGelu(Pass):
    """Writes GELU as Erf or Tanh and arithmetic."""

    name: ClassVar[str] = "spell-out-gelu"

    def run(self, rewriter: Rewriter) -> None:
        apply_rules((Rule(_GELU, _spell),), rewriter)

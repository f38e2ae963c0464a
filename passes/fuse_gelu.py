"""Fuse GELU: its two formulas, to one Gelu node (ONNX opset 20).

    erf:   x * 1/2 * (1 + erf(x / sqrt(2)))                                      approximate="none"
    tanh:  x * 1/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 * x^3)))               approximate="tanh"

The factors may stand in any order and nesting; the numbers have to agree to fp16 precision (Hendrycks and Gimpel 2016,
arXiv:1606.08415).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from swinopt.graph import Tensor
from swinopt.pattern import Match, Pattern, either, op, product, var
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter, Rule, apply_rules


def erf_gelu(x: Pattern) -> Pattern:
    """The exact GELU of x."""
    erf = op("Erf", product(x, constant=math.sqrt(0.5)))
    return either(product(x, 1.0 + erf, constant=0.5), product(x, product(1.0 + erf, constant=0.5)))


def tanh_gelu(x: Pattern) -> Pattern:
    """The approximation of GELU by tanh."""
    cubic = either(product(op("Pow", x, 3.0), constant=0.044715), product(x, x, x, constant=0.044715))
    quadratic = either(product(op("Pow", x, 2.0), constant=0.044715), product(x, x, constant=0.044715))
    slope = math.sqrt(2 / math.pi)
    tanh = op("Tanh", either(product(x + cubic, constant=slope), product(x, 1.0 + quadratic, constant=slope)))
    return either(product(x, 1.0 + tanh, constant=0.5), product(x, product(1.0 + tanh, constant=0.5)))


_x = var("x")


def _opset_has_it(match: Match, rewriter: Rewriter) -> str | None:
    opset = rewriter.graph.opset
    return None if opset >= 20 else f"opset {opset} has no Gelu; opset 20 has"


def _exact(match: Match, rewriter: Rewriter) -> Tensor:
    return rewriter.op("Gelu", match["x"], approximate="none")


def _approximate(match: Match, rewriter: Rewriter) -> Tensor:
    return rewriter.op("Gelu", match["x"], approximate="tanh")


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Makes one Gelu of each spelling of it."""

    name: ClassVar[str] = "fuse-gelu"

    def run(self, rewriter: Rewriter) -> None:
        apply_rules(
            (Rule(erf_gelu(_x), _exact, (_opset_has_it,)), Rule(tanh_gelu(_x), _approximate, (_opset_has_it,))),
            rewriter,
        )

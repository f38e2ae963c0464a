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

_x = var("x")
_cube = either(op("Pow", _x, 3.0), product(_x, _x, _x))
_erf = op("Erf", product(_x, constant=math.sqrt(0.5)))
_inner = either(_x + product(_cube, constant=0.044715), product(_x, 1.0 + product(_x, _x, constant=0.044715)))
_inner_squared = product(_x, 1.0 + product(op("Pow", _x, 2.0), constant=0.044715))
_tanh = op("Tanh", product(either(_inner, _inner_squared), constant=math.sqrt(2 / math.pi)))

#: The exact GELU, for other passes to look for.
ERF_GELU: Pattern = either(product(_x, 1.0 + _erf, constant=0.5), product(_x, product(1.0 + _erf, constant=0.5)))
#: Its approximation by tanh.
TANH_GELU: Pattern = either(product(_x, 1.0 + _tanh, constant=0.5), product(_x, product(1.0 + _tanh, constant=0.5)))


def _opset_has_it(match: Match, rewriter: Rewriter) -> str | None:
    opset = rewriter.graph.opset
    return None if opset >= 20 else f"opset {opset} has no Gelu; opset 20 has"


def _exact(match: Match, rewriter: Rewriter) -> Tensor:
    return rewriter.op("Gelu", match["x"], approximate="none")  # type: ignore[no-any-return]


def _approximate(match: Match, rewriter: Rewriter) -> Tensor:
    return rewriter.op("Gelu", match["x"], approximate="tanh")  # type: ignore[no-any-return]


@dataclass(frozen=True)
class FuseGelu(Pass):
    """Makes one Gelu of each spelling of it."""

    name: ClassVar[str] = "fuse-gelu"

    def run(self, rewriter: Rewriter) -> None:
        apply_rules((Rule(ERF_GELU, _exact, (_opset_has_it,)), Rule(TANH_GELU, _approximate, (_opset_has_it,))), rewriter)

"""Fuse bias and GELU for ONNX Runtime, which has one kernel for both.

    gelu(x + bias) = com.microsoft::BiasGelu(x, bias)            bias over the last axis
    gelu(x)        = com.microsoft::Gelu(x)                      where the opset has no Gelu

Only the exact (erf) GELU; the contrib ops' definition is in ONNX Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from swinopt.graph import Tensor
from swinopt.passes.fuse_gelu import erf_gelu
from swinopt.pattern import Match, Pattern, constant, either, op, var
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter, Rule, apply_rules

_DOMAIN = "com.microsoft"
_x = var("x")


def _gelu_of(inner: Pattern) -> Pattern:
    return either(op("Gelu", inner, approximate="none"), erf_gelu(inner))


def _bias_is_over_the_last_axis(match: Match, rewriter: Rewriter) -> str | None:
    shape, dims = tuple(match["bias"].shape), rewriter.facts.dims(match.root)
    widened = rewriter.facts.shapes(match["x"]) != rewriter.facts.shapes(match.root)
    if dims and shape and shape[-1] == dims[-1] and int(np.prod(shape)) == shape[-1] and not widened:
        return None
    return f"what is added before the GELU has shape {list(shape)}, which is no bias over the last axis"


def _opset_has_no_gelu(match: Match, rewriter: Rewriter) -> str | None:
    opset = rewriter.graph.opset
    return None if opset < 20 else f"opset {opset} has a Gelu of its own, which fuse-gelu makes"


def _bias_gelu(match: Match, rewriter: Rewriter) -> Tensor:
    bias = match["bias"]
    if len(bias.shape) > 1:
        bias = rewriter.constant(bias.values.reshape(-1), hint=bias.name)
    return rewriter.op("BiasGelu", match["x"], bias, domain=_DOMAIN)


def _contrib_gelu(match: Match, rewriter: Rewriter) -> Tensor:
    return rewriter.op("Gelu", match["x"], domain=_DOMAIN)


@dataclass(frozen=True)
class FuseBiasGelu(Pass):
    """Makes com.microsoft::BiasGelu of a bias and the GELU behind it."""

    name: ClassVar[str] = "fuse-bias-gelu"

    def run(self, rewriter: Rewriter) -> None:
        biased = Rule(_gelu_of(_x + constant("bias")), _bias_gelu, (_bias_is_over_the_last_axis,))
        apply_rules((biased, Rule(erf_gelu(_x), _contrib_gelu, (_opset_has_no_gelu,))), rewriter)

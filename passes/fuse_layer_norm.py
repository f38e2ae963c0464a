"""Fuse LayerNorm: the decompositions that exporters write, to one LayerNormalization (ONNX opset 17).

    y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias

over the last axes of x. Either Sub may stand once or twice, the square may be a power or a product, the quotient may be
a product with a reciprocal; scale and bias may be missing. Refused where the axes are not the last ones, the means run
over different axes, scale or bias do not fit these axes, or epsilon is not a positive number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from swinopt.graph import Array, Tensor, literal
from swinopt.pattern import Match, constant, either, number, reduce_mean, reduced_axes, sqrt, square, var
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter, Rule, apply_rules

_UNKNOWN = -1

_x = var("x")
_mean = reduce_mean(_x)
_centred = _x - _mean
_mean_of_square = reduce_mean(either(square(_centred), square(_x - reduce_mean(_x))))
_deviation = sqrt(_mean_of_square + number(name="epsilon"))
_normalised = _centred / _deviation
_scaled = _normalised * constant("scale")
_shifted = _scaled + constant("bias")


def _axes(match: Match, rewriter: Rewriter) -> tuple[int, ...] | None:
    return reduced_axes(match.node(_mean), rewriter.facts)


def _opset_has_it(match: Match, rewriter: Rewriter) -> str | None:
    opset = rewriter.graph.opset
    return None if opset >= 17 else f"opset {opset} has no LayerNormalization; opset 17 has"


def _axes_are_the_last(match: Match, rewriter: Rewriter) -> str | None:
    axes = _axes(match, rewriter)
    if not axes:
        return "the axes of the mean are not known"
    if axes != tuple(range(-len(axes), 0)):
        return f"the mean runs over axes {list(axes)}, which are not the last ones"
    return None


def _variance_has_the_same_axes(match: Match, rewriter: Rewriter) -> str | None:
    axes, other = _axes(match, rewriter), reduced_axes(match.node(_mean_of_square), rewriter.facts)
    return None if axes == other else f"the mean runs over axes {axes}, the variance over {other}"


def _epsilon_is_positive(match: Match, rewriter: Rewriter) -> str | None:
    epsilon = match.number("epsilon")
    return None if epsilon > 0 else f"epsilon is {epsilon}, which is not positive"


def _affine_fits(match: Match, rewriter: Rewriter) -> str | None:
    shape = _normalised_shape(match, rewriter)
    for name in ("scale", "bias"):
        tensor = match.get(name)
        if tensor is not None and _affine(tensor, shape) is None:
            return f"the {name} has shape {list(tensor.shape)}, which does not fit the normalised axes {list(shape)}"
    return None


def _normalised_shape(match: Match, rewriter: Rewriter) -> tuple[int, ...]:
    dims, axes = rewriter.facts.dims(match["x"]) or (), _axes(match, rewriter) or ()
    return tuple(_UNKNOWN if size is None else size for size in dims[len(dims) - len(axes) :])


def _affine(tensor: Tensor, shape: tuple[int, ...]) -> Array | None:
    """Scale or bias in the shape of the normalised axes; None if it reaches beyond them."""
    value = literal(tensor)
    if value is None:
        return None
    leading = value.shape[: max(0, value.ndim - len(shape))]
    if any(size != 1 for size in leading):
        return None
    try:
        return np.broadcast_to(value.reshape(value.shape[len(leading) :]), shape)
    except ValueError:
        return None


def _layer_normalization(match: Match, rewriter: Rewriter) -> Tensor:
    shape = _normalised_shape(match, rewriter)
    affine: list[Tensor | None] = []
    for name in ("scale", "bias"):
        tensor = match.get(name)
        fitted = None if tensor is None else _affine(tensor, shape)
        if tensor is not None and fitted is not None:
            affine.append(tensor if tuple(tensor.shape) == shape else rewriter.constant(fitted, hint=tensor.name))
        else:
            affine.append(rewriter.float_constant(np.ones(shape), match["x"], "scale") if name == "scale" else None)
    return rewriter.op("LayerNormalization", match["x"], *affine, axis=-len(shape), epsilon=match.number("epsilon"))


def _dims_are_known(match: Match, rewriter: Rewriter) -> str | None:
    return "the normalised sizes are not known" if _UNKNOWN in _normalised_shape(match, rewriter) else None


_WHERE = (
    _opset_has_it,
    _axes_are_the_last,
    _variance_has_the_same_axes,
    _dims_are_known,
    _epsilon_is_positive,
    _affine_fits,
)
_RULES = tuple(Rule(pattern, _layer_normalization, _WHERE) for pattern in (_shifted, _scaled, _normalised))


@dataclass(frozen=True)
class FuseLayerNorm(Pass):
    """Makes one LayerNormalization of each decomposition of it."""

    name: ClassVar[str] = "fuse-layer-norm"

    def run(self, rewriter: Rewriter) -> None:
        apply_rules(_RULES, rewriter)

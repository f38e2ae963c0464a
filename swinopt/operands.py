"""q, k and v, followed up to the linears that make them: which token and which feature stands where.

Between a linear and the product there may be movement, a scale, a bias that was split off, and the L2 norm of Swin V2's
cosine attention. Places are proven on indices, the norm's included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from swinopt.attention import NoAttention, is_float_cast
from swinopt.facts import Facts
from swinopt.graph import Array, Tensor, argument, is_standard, literal, made_by, producer, scalar
from swinopt.indices import PAD, Indices, elements
from swinopt.linear import Linear, linear_of
from swinopt.movement import Movement, Region, is_movement
from swinopt.pattern import reduced_axes, square, var

#: The largest floor of a norm that still counts as "only there to avoid a division by zero".
_LARGEST_NORM_FLOOR = 1e-5


@dataclass(frozen=True)
class Operand:
    """q, k or v, as tokens and channels of the linear that makes it.

    Attributes:
        linear: the linear.
        tokens: for each sample [groups, N]: the token, counted flat over the linear's output, in each slot; PAD where
            a zero was put in after the linear.
        channels: [heads, head_dim]: the linear's output feature in each place.
        bias: [heads, head_dim]: what is added on the way, the linear's own bias included; None if nothing is.
        scale: a scalar that the operand is multiplied by on its way.
        normalised: whether each head of each token is divided by its L2 norm on its way.
    """

    linear: Linear
    tokens: tuple[Indices, ...]
    channels: Indices
    bias: Array | None
    scale: float
    normalised: bool


def operand_of(tensor: Tensor, heads: int, movement: Movement, *, transposed: bool = False) -> Operand:
    """Follows q, k or v up to the linear that makes it.

    Args:
        tensor: [..., N, head_dim]; its leading axes run over groups, then heads.
        heads: how many heads there are.
        movement: evaluates the movement on the way.
        transposed: whether the tensor is [..., head_dim, N].

    Raises:
        NoAttention: there is no such linear, or what lies between is more than movement, a scale and a norm.
    """
    facts = movement.facts
    passed: dict[int, int] = {}
    scale, norm = 1.0, None
    biases: list[tuple[Tensor, Array]] = []
    current: Tensor = tensor
    while (linear := linear_of(current)) is None:
        node = producer(current)
        if node is None:
            raise NoAttention("q, k or v does not come from a linear with constant weights")
        if (is_movement(node, facts) and node.op != "Concat") or (node.op == "Cast" and is_float_cast(node, facts)):
            below = node.inputs[0]
        elif node.op in ("Mul", "Div") and (factor := _scalar_factor(node)) is not None:
            below = factor[0]
            if biases:
                raise NoAttention("q, k or v is scaled before its bias is added")
            if norm is None:
                scale *= factor[1]
            elif factor[1] <= 0:
                raise NoAttention("q or k is multiplied by a negative number before it is normalised")
        elif norm is None and (norm := _norm_of(node, facts)) is not None:
            below = norm.numerator
        elif node.op == "Add" and (added := _added_bias(node)) is not None:
            below = added[0]
            biases.append(added)
        else:
            raise NoAttention(f"there is a {node.op} between the linear and q, k or v")
        if not is_movement(node, facts):
            passed[id(node)] = next(i for i, t in enumerate(node.inputs) if t is below)
        current = below

    def passes_on(node: gs.Node) -> int | None:
        return passed.get(id(node))

    region = movement.region(tensor, stop=[linear.output], transparent=passes_on)
    if region is None:
        raise NoAttention("q, k or v comes from several tensors")
    tokens, channels = _tokens_and_channels(region, heads, linear.features, transposed)
    if norm is not None:
        _check_norm(norm, linear, channels, movement, passes_on)
    bias = linear.bias_value() if linear.bias is not None or biases else None
    for at, added_bias in biases:
        if bias is not None:
            bias = bias + _by_feature(at, added_bias, linear, movement, passes_on)
    return Operand(linear, tokens, channels, None if bias is None else bias[channels], scale, norm is not None)


def _added_bias(node: gs.Node) -> tuple[Tensor, Array] | None:
    """A bias over the last axis that is added behind a Split of the linear, as some tools merge q, k and v."""
    for index in (1, 0):
        bias = literal(node.inputs[index])
        if bias is not None and bias.ndim and bias.shape[-1] == bias.size:
            return node.inputs[1 - index], bias.reshape(-1)
    return None


def _by_feature(
    at: Tensor, bias: Array, linear: Linear, movement: Movement, passes_on: Callable[[gs.Node], int | None]
) -> Array:
    """The bias by output feature of the linear."""
    region = movement.region(at, stop=[linear.output], transparent=passes_on)
    if region is None or region.indices[0].shape[-1] != bias.size or (region.indices[0] == PAD).any():
        raise NoAttention("what is added to q, k or v is no bias of the linear's features")
    features = region.indices[0].reshape(-1, bias.size) % linear.features
    if not (features == features[:1]).all():
        raise NoAttention("what is added to q, k or v is no bias of the linear's features")
    spread = np.zeros(linear.features, bias.dtype)
    spread[features[0]] = bias
    return spread


def _scalar_factor(node: gs.Node) -> tuple[Tensor, float] | None:
    left, right = node.inputs
    if (value := scalar(right)) is not None and value != 0:
        return left, value if node.op == "Mul" else 1 / value
    if node.op == "Mul" and (value := scalar(left)) is not None:
        return right, value
    return None


@dataclass(frozen=True)
class _Norm:
    """``numerator / max(||reduced||, floor)``; ``passed`` are the nodes between the reduction and the denominator."""

    numerator: Tensor
    denominator: Tensor
    reduce: gs.Node
    reduced: Tensor
    passed: dict[int, int]


def _norm_of(node: gs.Node, facts: Facts) -> _Norm | None:
    """The L2 norm that a Div divides by, or whose reciprocal a Mul multiplies with: torch's ``normalize``.

    Raises:
        NoAttention: the norm has a floor that matters, or a ceiling.
    """
    parts = _numerator_and_denominator(node)
    if parts is None:
        return None
    passed: dict[int, int] = {}
    numerator, tensor = parts
    denominator, rooted = tensor, False
    while (inner := producer(tensor)) is not None and is_standard(inner):
        if (inner.op == "ReduceL2" and not rooted) or (inner.op == "ReduceSumSquare" and rooted):
            return _Norm(numerator, denominator, inner, inner.inputs[0], passed)
        if inner.op == "ReduceSum" and rooted:
            squared = square(var("x")).match(inner.inputs[0], facts)
            return _Norm(numerator, denominator, inner, squared["x"], passed) if squared else None
        below = 0
        if inner.op in ("Clip", "Max"):
            below = 1 if isinstance(inner.inputs[0], gs.Constant) else 0
            _check_floor(inner, below, rooted)
        elif not rooted and (inner.op == "Sqrt" or (inner.op == "Pow" and scalar(inner.inputs[1]) == 0.5)):
            rooted = True
        elif not is_movement(inner, facts) or inner.op == "Concat":
            return None
        if not is_movement(inner, facts):
            passed[id(inner)] = below
        tensor = inner.inputs[below]
    return None


def _numerator_and_denominator(node: gs.Node) -> tuple[Tensor, Tensor] | None:
    if node.op == "Div":
        return node.inputs[0], node.inputs[1]
    for index in (1, 0) if node.op == "Mul" else ():
        reciprocal = made_by(node.inputs[index], "Reciprocal")
        if reciprocal is not None:
            return node.inputs[1 - index], reciprocal.inputs[0]
    return None


def _check_floor(node: gs.Node, below: int, rooted: bool) -> None:
    floor = scalar(argument(node, 1 - below))
    if node.op == "Clip" and argument(node, 2) is not None:
        raise NoAttention("the norm of q or k has a ceiling")
    if floor is None or floor < 0 or (floor**0.5 if rooted else floor) > _LARGEST_NORM_FLOOR:
        raise NoAttention(f"the norm of q or k has a floor of {floor}")


def _check_norm(
    norm: _Norm, linear: Linear, channels: Indices, movement: Movement, passes_on: Callable[[gs.Node], int | None]
) -> None:
    """Every element must be divided by the norm of exactly the channels of its own head of its own token."""
    wrong = NoAttention("q or k is normalised over something else than a head")
    numerator = movement.region(norm.numerator, stop=[linear.output], transparent=passes_on)
    reduced = movement.region(norm.reduced, stop=[linear.output], transparent=passes_on)
    denominator = movement.region(
        norm.denominator, stop=[norm.reduce.outputs[0]], transparent=lambda node: norm.passed.get(id(node))
    )
    axes = reduced_axes(norm.reduce, movement.facts)
    if numerator is None or reduced is None or denominator is None or axes is None or len(axes) != 1:
        raise wrong
    if numerator.source is not linear.output or reduced.source is not linear.output:
        raise wrong
    if denominator.source is not norm.reduce.outputs[0]:
        raise wrong
    head_of = np.full(linear.features, -1)
    head_of[channels] = np.arange(len(channels))[:, None]

    def token_and_head(indices: Indices) -> npt.NDArray[np.int64]:
        tokens = (indices // linear.features).astype(np.int64)
        return np.asarray(tokens * (len(channels) + 1) + head_of[indices % linear.features])

    for top, below, inside in zip(numerator.indices, denominator.indices, reduced.indices, strict=True):
        rows = np.moveaxis(inside, axes[0], -1).reshape(-1, inside.shape[axes[0]])
        ordered = np.sort(rows, axis=1)
        whole = rows.shape[1] == channels.shape[1] and bool((np.diff(ordered, axis=1) > 0).all())
        owner = token_and_head(rows)
        if (rows == PAD).any() or not whole or not (owner == owner[:, :1]).all():
            raise wrong
        if not np.array_equal(np.broadcast_to(owner[:, 0][below], top.shape), token_and_head(top)):
            raise wrong


def _tokens_and_channels(
    region: Region, heads: int, features: int, transposed: bool
) -> tuple[tuple[Indices, ...], Indices]:
    tokens, found = [], None
    samples, length = region.along(-2 if transposed else -1)
    features //= length
    for runs in samples:
        rows = np.swapaxes(runs, -1, -2) if transposed else runs
        slots, width = rows.shape[-2:]
        rows = rows.reshape(-1, heads, slots, width)
        pads = (rows == PAD).any(axis=(1, 3))
        channels = rows % features
        at = np.argwhere(~pads)
        if not at.size:
            raise NoAttention("q, k or v is nothing but padding")
        group, slot = at[0]
        expected = channels[group, :, slot, :]
        token = np.where(pads, PAD, rows[:, 0, :, 0] // features)
        rebuilt = token[:, None, :, None] * features + expected[None, :, None, :]
        if not np.array_equal(np.where(pads[:, None, :, None], PAD, rebuilt), rows):
            raise NoAttention("q, k or v does not hold whole tokens, split into heads")
        if found is not None and not np.array_equal(found, expected):
            raise NoAttention("which channels make a head depends on the input's size")
        found = expected
        tokens.append(token)
    assert found is not None
    return tuple(tokens), elements(found, length)

"""Attention, recognised: from the softmax up to the linears that make q, k and v, and down to the projection.

    softmax(factor * q k^T + terms) v

Nothing here knows of windows: which tokens belong together is :mod:`swinopt.passes.fuse_window_attention`'s question.
Every recognition either succeeds or raises :class:`NoAttention` with the reason, which ends in the report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs

from swinopt.facts import Facts
from swinopt.graph import Array, Tensor, argument, attr, dtype_of, is_standard, literal, made_by, producer, scalar
from swinopt.movement import PAD, VIEW_OPS, Indices, Movement, Region, is_movement
from swinopt.pattern import reduced_axes, square, var
from swinopt.rewrite import Rewriter

#: The largest floor of a norm that still counts as "only there to avoid a division by zero".
_LARGEST_NORM_FLOOR = 1e-5


class NoAttention(Exception):
    """What was looked at is no attention of the kind that was looked for; the message says why."""


# ---------------------------------------------------------------------------------------------------------- linears


@dataclass(frozen=True)
class Linear:
    """``input @ weight + bias``, with ``weight`` [K, N] and ``bias`` [N] or None."""

    input: Tensor
    output: Tensor
    weight: gs.Constant
    bias: gs.Constant | None
    transposed: bool = False

    @property
    def features(self) -> int:
        """N, the number of output features."""
        return int(self.weight.shape[0 if self.transposed else 1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the weight."""
        return dtype_of(self.weight)

    def weight_value(self) -> Array:
        """The weight as [K, N]."""
        value = literal(self.weight)
        assert value is not None
        return value.T if self.transposed else value

    def bias_value(self) -> Array:
        """The bias as [N]; zeros if there is none."""
        value = literal(self.bias)
        return np.zeros(self.features, self.dtype) if value is None else value.reshape(-1)

    def applied_to(
        self, x: Tensor, rewriter: Rewriter, weight: Array | None = None, bias: Array | None = None
    ) -> Tensor:
        """A new linear on ``x``, with other weights [K, N] and bias [N] where they are given."""
        name = self.output.name
        if weight is None and not self.transposed:
            weights: Tensor = self.weight
        else:
            weights = rewriter.constant(self.weight_value() if weight is None else weight, hint=self.weight.name)
        result: Tensor = rewriter.op("MatMul", x, weights, hint=f"{name}/MatMul")
        if bias is None and self.bias is None:
            return result
        biases = self.bias if bias is None else rewriter.constant(bias.astype(self.dtype), hint=f"{name}/bias")
        return rewriter.op("Add", result, biases, hint=f"{name}/Add")


def linear_of(tensor: Tensor) -> Linear | None:
    """The linear that ends in this tensor: MatMul with a constant, with or without the Add of its bias, or a Gemm."""
    add = made_by(tensor, "Add")
    if add is not None:
        for product, bias in ((0, 1), (1, 0)):
            inner = _product(add.inputs[product])
            if inner is not None and inner.bias is None and _is_bias(add.inputs[bias], inner.features):
                return Linear(inner.input, tensor, inner.weight, add.inputs[bias], inner.transposed)
        return None
    return _product(tensor)


def linear_from(tensor: Tensor) -> Linear | None:
    """The linear that alone reads this tensor."""
    if len(tensor.outputs) != 1:
        return None
    result = tensor.outputs[0].outputs[0]
    inner = _product(result)
    if inner is None or inner.input is not tensor:
        return None
    if inner.bias is None and len(result.outputs) == 1:
        with_bias = linear_of(result.outputs[0].outputs[0])
        if with_bias is not None and with_bias.input is tensor:
            return with_bias
    return inner


def _product(tensor: Tensor) -> Linear | None:
    node = made_by(tensor, "MatMul", "Gemm")
    if node is None or not isinstance(node.inputs[1], gs.Constant) or len(node.inputs[1].shape) != 2:
        return None
    if literal(node.inputs[1]) is None:
        return None
    if node.op == "MatMul":
        return Linear(node.inputs[0], tensor, node.inputs[1], None)
    plain = node.attrs.get("alpha", 1.0) == node.attrs.get("beta", 1.0) == 1.0 and not node.attrs.get("transA", 0)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    found = Linear(node.inputs[0], tensor, node.inputs[1], bias, bool(node.attrs.get("transB", 0)))
    return found if plain and (bias is None or _is_bias(bias, found.features)) else None


def _is_bias(tensor: Tensor, features: int) -> bool:
    if not isinstance(tensor, gs.Constant) or not tensor.shape:
        return False
    return tuple(tensor.shape)[-1] == features and int(np.prod(tensor.shape)) == features


# ------------------------------------------------------------------------------------------------------- the scores


@dataclass(frozen=True)
class Term:
    """What is added to the scores, independent of the input's values: its value and the scores' shape, by sample."""

    values: list[Array]
    shapes: list[tuple[int, ...]]


@dataclass
class Scores:
    """``softmax(factor * q k^T + terms)``.

    Attributes:
        q: [..., N, head_dim].
        k_transposed: [..., head_dim, N].
        scale: the scalar part of the factor.
        head_factors: the part of the factor that differs between heads ([..., heads, 1, 1]), None if it does not.
        terms: what is added, in no particular order.
    """

    q: Tensor
    k_transposed: Tensor
    scale: float = 1.0
    head_factors: Array | None = None
    terms: list[Term] = field(default_factory=list)


def scores_of(softmax: gs.Node, facts: Facts) -> Scores:
    """What the softmax runs over, down to the product of q and k.

    Raises:
        NoAttention: it is no such sum of constants and a product.
    """
    shape = facts.shape(softmax.inputs[0])
    axis = attr(softmax, "axis", facts.graph.opset)
    if shape is None or axis not in (-1, len(shape) - 1):
        raise NoAttention("the softmax does not run over the last axis")
    terms: list[Term] = []
    scale, head_factors = 1.0, None
    tensor: Tensor = softmax.inputs[0]
    while True:
        node = producer(tensor)
        if node is None or not is_standard(node):
            raise NoAttention("the softmax is not over a product of q and k")
        if node.op == "MatMul":
            return Scores(node.inputs[0], node.inputs[1], scale, head_factors, terms)
        if _passes_scores_on(node, facts):
            tensor = node.inputs[0]
            continue
        if node.op not in ("Add", "Mul", "Div"):
            raise NoAttention(f"there is a {node.op} between the product of q and k and the softmax")
        values, other = _constant_operand(node, facts)
        value = values[0]
        if node.op == "Add":
            if scale != 1.0 or head_factors is not None:
                raise NoAttention("a constant is added to the scores before they are scaled")
            shapes = facts.shapes(tensor)
            if shapes is None:
                raise NoAttention("the shape of the scores is not known")
            terms.append(Term(values, shapes))
        elif any(not np.array_equal(value, v) for v in values):
            raise NoAttention("the scores are multiplied by what depends on the input's size")
        elif value.size == 1 and (number := float(value.reshape(-1)[0])):
            scale *= number if node.op == "Mul" else 1 / number
        elif node.op == "Mul" and head_factors is None and value.shape[-3:] == (value.size, 1, 1):
            head_factors = value
        else:
            raise NoAttention(f"the scores are multiplied by a constant of shape {list(value.shape)}")
        tensor = other


def _passes_scores_on(node: gs.Node, facts: Facts) -> bool:
    """Whether the node is a view that keeps the last two axes, or a cast between floats."""
    if node.op == "Cast" and is_standard(node):
        return _is_float_cast(node, facts)
    before, after = facts.shapes(node.inputs[0]), facts.shapes(node.outputs[0])
    if node.op not in VIEW_OPS or before is None or after is None:
        return False
    return all(a[-2:] == b[-2:] for a, b in zip(before, after, strict=True))


def _is_float_cast(node: gs.Node, facts: Facts) -> bool:
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)
    return node.attrs.get("to") in floats and facts.onnx_dtype(node.inputs[0]) in floats


def _constant_operand(node: gs.Node, facts: Facts) -> tuple[list[Array], Tensor]:
    """The operand that depends on no value of the input, as it is in each sample, and the other one."""
    for index in (1, 0) if node.op != "Div" else (1,):
        operand = node.inputs[index]
        value = facts.constant(operand)
        values = [facts.computed(operand, s) if value is None else value for s in facts.samples]
        known = [v for v in values if v is not None]
        if len(known) == len(values):
            return known, node.inputs[1 - index]
    raise NoAttention(f"the {node.op} between the product of q and k and the softmax has no constant operand")


@dataclass(frozen=True)
class Attention:
    """``softmax(factor * q k^T + terms) v``: the scores as in :class:`Scores`, and what is made of them.

    Attributes:
        scores: what the softmax runs over; ``scores.k_transposed`` is [..., N, head_dim] if ``k_is_transposed`` is not.
        k_is_transposed: whether k comes as [..., head_dim, N].
        v: [..., N, head_dim].
        output: [..., N, head_dim].
    """

    scores: Scores
    k_is_transposed: bool
    v: Tensor
    output: Tensor


def attention_of(node: gs.Node, facts: Facts) -> Attention:
    """The attention that is built around a Softmax, or that an Attention node (ONNX opset 23) is.

    Raises:
        NoAttention: it is none, or of another kind.
    """
    if node.op == "Attention":
        return _from_attention_op(node, facts)
    scores = scores_of(node, facts)
    product = probabilities_product(node, facts)
    return Attention(scores, True, product.inputs[1], product.outputs[0])


def _from_attention_op(node: gs.Node, facts: Facts) -> Attention:
    q, k, v = node.inputs[:3]
    shapes = facts.shapes(q)
    if shapes is None or len(shapes[0]) != 4:
        raise NoAttention("q of the Attention node is not [batch, heads, N, head_dim]")
    unlike = [name for name in ("is_causal", "softcap", "qk_matmul_output_mode") if node.attrs.get(name)]
    if unlike or len(node.outputs) > 1 or any(argument(node, i) is not None for i in range(4, len(node.inputs))):
        raise NoAttention(f"the Attention node has {', '.join(unlike) or 'a cache'}")
    scale = node.attrs.get("scale") or shapes[0][-1] ** -0.5
    mask = argument(node, 3)
    terms = []
    if mask is not None:
        values = [facts.computed(mask, sample) for sample in facts.samples]
        known = [value for value in values if value is not None and value.dtype != np.bool_]
        if len(known) < len(values):
            raise NoAttention("the mask of the Attention node is not constant, or not additive")
        terms.append(Term(known, [(*shape[:-1], shape[-2]) for shape in shapes]))
    return Attention(Scores(q, k, scale, None, terms), False, v, node.outputs[0])


# ----------------------------------------------------------------------------------------------------------- q, k, v


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
        if (is_movement(node, facts) and node.op != "Concat") or (node.op == "Cast" and _is_float_cast(node, facts)):
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
    passes_on: Callable[[gs.Node], int | None] = lambda node: passed.get(id(node))  # noqa: E731
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
    for indices in region.indices:
        rows = np.swapaxes(indices, -1, -2) if transposed else indices
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
    return tuple(tokens), found


# ------------------------------------------------------------------------------------------------------ the way out


def exits(tensor: Tensor, facts: Facts) -> list[Tensor]:
    """The tensors in which the movement that starts at this one ends: something else reads them."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    pending = [tensor]
    outputs = {id(t) for t in facts.graph.outputs}
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if id(current) in outputs or not current.outputs:
            found[id(current)] = current
        for node in current.outputs:
            if node.op in ("Shape", "Size") and is_standard(node):
                continue  # reads no values
            if is_movement(node, facts):
                pending += node.outputs
            elif not isinstance(node.attrs.get("body"), gs.Graph):
                found[id(current)] = current
    return list(found.values())


def probabilities_product(softmax: gs.Node, facts: Facts) -> gs.Node:
    """The product of the softmax with v.

    Raises:
        NoAttention: something else reads the softmax as well, or instead.
    """
    tensor = softmax.outputs[0]
    while True:
        if len(tensor.outputs) != 1 or any(tensor is t for t in facts.graph.outputs):
            raise NoAttention("the attention probabilities are read by more than the product with v")
        node = tensor.outputs[0]
        if node.op == "MatMul" and node.inputs[0] is tensor:
            return node
        if not _passes_scores_on(node, facts):
            raise NoAttention(f"the softmax is read by a {node.op} and not by the product with v")
        tensor = node.outputs[0]

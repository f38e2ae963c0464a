"""Attention, recognised: from the softmax up to the linears that make q, k and v, and down to the projection.

    softmax(factor * q k^T + terms) v

Nothing here knows of windows: which tokens belong together is :mod:`swinopt.passes.fuse_window_attention`'s question.
Every recognition either succeeds or raises :class:`NoAttention` with the reason, which ends in the report.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from swinopt.facts import Facts
from swinopt.graph import Array, Tensor, argument, attr, is_standard, producer
from swinopt.movement import VIEW_OPS


class NoAttention(Exception):
    """What was looked at is no attention of the kind that was looked for; the message says why."""


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
    if axis != -1 and (shape is None or axis != len(shape) - 1):
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
        return is_float_cast(node, facts)
    before, after = facts.shapes(node.inputs[0]), facts.shapes(node.outputs[0])
    if node.op not in VIEW_OPS or before is None or after is None:
        return False
    return all(a[-2:] == b[-2:] for a, b in zip(before, after, strict=True))


def is_float_cast(node: gs.Node, facts: Facts) -> bool:
    """Whether a Cast leads from one float type to another: it rounds, and means nothing else."""
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

"""Sink token views: a Reshape that only regroups tokens moves past everything that works token by token.

    f(reshape(x)) = reshape(f(x))                        f = LayerNorm, linear, bias, activation ... over the last axis
    reshape(x) + reshape(y) = reshape(x + y)             residuals

Between two blocks the tokens lie as [B, H, W, C] or as [B, H*W, C], whatever the implementation liked, and some change
at every step. A view that sinks far enough meets its inverse and both are gone; the map keeps its two dimensions from
the stem to the head, which is what window attention reads.

Only views of a computed tensor sink, not the views inside a partition: those belong to its movement.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Tensor, is_standard, literal, made_by, producer
from swinopt.linear import linear_of
from swinopt.movement import VIEW_OPS, is_movement
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter
from swinopt.tokenwise import BINARY, OVER_LAST_AXIS, is_parameter, is_tokenwise


@dataclass(frozen=True)
class SinkTokenViews(Pass):
    """Moves Reshapes of the token axes behind what works token by token."""

    name: ClassVar[str] = "sink-token-views"

    def run(self, rewriter: Rewriter) -> None:
        # Producers come first, so a view goes as far as it can in one sweep; later sweeps join what met.
        for node in list(rewriter.graph.nodes):
            if rewriter.is_dead(node) or not is_standard(node) or len(node.outputs) != 1:
                continue
            sunk = _sink(node, rewriter)
            if sunk is not None:
                rewriter.replace(node.outputs[0], sunk)


def _sink(node: gs.Node, rewriter: Rewriter) -> Tensor | None:
    if node.op in VIEW_OPS:
        return _joined(node, rewriter)
    if node.op == "Transpose":
        return _turned_before_flattened(node, rewriter)
    if node.op == "Gemm":
        return _linear(node, rewriter)
    if not is_tokenwise(node, rewriter):
        return None
    lifted = _lifted_inputs(node, rewriter)
    if lifted is None:
        return None
    out_shapes = rewriter.facts.shapes(node.outputs[0])
    # All of them have the same shape, and the first that is no constant is one of them.
    base_shapes = rewriter.facts.shapes(next(t for t in lifted if not isinstance(t, gs.Constant)))
    if out_shapes is None or base_shapes is None:
        return None
    shapes = [(*shape[:-1], out[-1]) for shape, out in zip(base_shapes, out_shapes, strict=True)]
    attrs = dict(node.attrs)
    if node.op in OVER_LAST_AXIS:
        attrs["axis"] = -1
    moved = rewriter.op(node.op, *lifted, hint=f"{node.outputs[0].name}/map", **attrs)
    rewriter.facts.learn(moved, like=node.outputs[0], shapes=shapes)
    return rewriter.reshape(moved, node.outputs[0])


def _turned_before_flattened(node: gs.Node, rewriter: Rewriter) -> Tensor | None:
    """[B, C, H, W] - [B, C, H*W] - [B, H*W, C] as [B, C, H, W] - [B, H, W, C] - [B, H*W, C]: the view comes last."""
    view = made_by(node.inputs[0], *VIEW_OPS)
    if node.attrs.get("perm") != [0, 2, 1] or view is None or not is_movement(view, rewriter.facts):
        return None
    image: Tensor = view.inputs[0]
    shapes, flat = rewriter.facts.shapes(image), rewriter.facts.shapes(view.outputs[0])
    if shapes is None or flat is None or len(shapes[0]) not in (4, 5):
        return None
    if any(s[:2] != f[:2] for s, f in zip(shapes, flat, strict=True)):
        return None
    turned = rewriter.op("Transpose", image, perm=[0, *range(2, len(shapes[0])), 1])
    rewriter.facts.learn(turned, like=image, shapes=[(s[0], *s[2:], s[1]) for s in shapes])
    return rewriter.reshape(turned, node.outputs[0])


def _linear(node: gs.Node, rewriter: Rewriter) -> Tensor | None:
    """A Gemm over all tokens as [B*L, C] is a linear over the map."""
    base, linear = _viewed(node.inputs[0], rewriter), linear_of(node.outputs[0])
    if base is None or linear is None:
        return None
    shapes = rewriter.facts.shapes(base) or []
    if all(np.prod(shape[1:-1]) == 1 for shape in shapes):
        return None  # one token an image, behind the pooling: Gemm is as good, and one node less
    moved = linear.applied_to(base, rewriter)
    rewriter.facts.learn(moved, like=node.outputs[0], shapes=[(*shape[:-1], linear.features) for shape in shapes])
    return rewriter.reshape(moved, node.outputs[0])


def _joined(node: gs.Node, rewriter: Rewriter) -> Tensor | None:
    """A view of a view, said as one."""
    base = _viewed(node.inputs[0], rewriter)
    if base is None:
        return None
    return rewriter.reshape(base, node.outputs[0])


def _viewed(tensor: Tensor, rewriter: Rewriter) -> Tensor | None:
    """The computed tensor that this one is a view of the tokens of: same elements, same last axis."""
    node = made_by(tensor, *VIEW_OPS)
    if node is None or not is_movement(node, rewriter.facts):
        return None
    base: Tensor = node.inputs[0]
    shapes, viewed = rewriter.facts.shapes(base), rewriter.facts.shapes(tensor)
    if shapes is None or viewed is None or (is_movement(producer(base), rewriter.facts) and not _is_layout(base)):
        return None
    same_last_axis = all(s and v and s[-1] == v[-1] for s, v in zip(shapes, viewed, strict=True))
    return base if same_last_axis and len(shapes[0]) >= 2 and not isinstance(base, gs.Constant) else None


def _is_layout(tensor: Tensor) -> bool:
    """Whether the tensor is an image map just turned to tokens: the one movement that starts a token layout."""
    node = made_by(tensor, "Transpose")
    return node is not None and node.attrs.get("perm") in ([0, 2, 3, 1], [0, 2, 3, 4, 1])


def _lifted_inputs(node: gs.Node, rewriter: Rewriter) -> list[Any] | None:
    """The node's inputs with every view replaced by what it views; None unless they still fit together."""
    lifted: list[Any] = []
    bases: list[Tensor] = []
    viewed: list[Tensor] = []
    for index, tensor in enumerate(node.inputs):
        if is_parameter(node, index) or tensor.is_empty():
            lifted.append(tensor)
            continue
        base = _viewed(tensor, rewriter)
        if base is None:
            return None
        lifted.append(base)
        bases.append(base)
        viewed.append(tensor)
    if not bases or len({str(rewriter.facts.shapes(b)) for b in bases}) != 1:
        return None
    if len({str(rewriter.facts.shapes(v)) for v in viewed}) != 1:
        return None
    if node.op in BINARY:
        lifted = [_constant_for(t, bases[0], viewed[0], rewriter) if isinstance(t, gs.Constant) else t for t in lifted]
    return None if any(t is None for t in lifted) else lifted


def _constant_for(constant: gs.Constant, base: Tensor, viewed: Tensor, rewriter: Rewriter) -> gs.Constant | None:
    """An operand that goes with the view, as it goes with the tensor that is viewed."""
    shape = tuple(constant.shape)
    if all(size == 1 for size in shape[:-1]):
        rank = len(rewriter.facts.shape(base) or ())
        return constant if len(shape) <= rank else None
    view_dims, base_dims = rewriter.facts.dims(viewed), rewriter.facts.dims(base)
    value = literal(constant)
    if value is None or view_dims is None or base_dims is None or len(shape) != len(view_dims):
        return None
    # One value a token (a position embedding): it must cover all token axes but the batch.
    tokens, wanted = view_dims[1:-1], base_dims[1:-1]
    if shape[0] != 1 or shape[1:-1] != tokens or None in wanted or np.prod(wanted) != np.prod(tokens):  # type: ignore[arg-type]
        return None
    return rewriter.constant(value.reshape(1, *wanted, shape[-1]), hint=constant.name)  # type: ignore[arg-type]

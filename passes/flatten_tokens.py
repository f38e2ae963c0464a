"""Flatten tokens: from one window attention to the next the tokens lie as rows, [B*H*W, C].

    f(x) = reshape(f(reshape(x, [-1, C])), [B, H, W, -1])        f = linear, LayerNorm, bias, residual, activation ...

Everything between two attentions works token by token, so the values stay the same. But TensorRT takes the product of
a map [B, H, W, C] and a weight for B*H small products of W rows each, which leave most of a tensor core idle; as rows
it is one large product. A region starts at a linear, reaches as far as what follows works token by token, and is
framed by one Reshape where it starts and one for each reader that wants the map. Tokens in one line, [B, L, C], stay:
what fuses the attention of other models looks for that.

Where more than one size of the map depends on the input, the Reshape back takes them from the map that the region
starts at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Tensor, is_standard, literal, made_by
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter, reshape_target
from swinopt.tokenwise import BINARY, OVER_LAST_AXIS, is_parameter, is_tokenwise

#: The opset from which on Shape can leave out the last axis.
_SHAPE_OF_SOME_AXES = 15


@dataclass(frozen=True)
class FlattenTokens(Pass):
    """Lets linears, and what works token by token behind them, run on rows of tokens."""

    name: ClassVar[str] = "flatten-tokens"

    def run(self, rewriter: Rewriter) -> None:
        rows = _Rows(rewriter)
        # Producers come first, so a region grows with every node.
        for node in list(rewriter.graph.nodes):
            if rewriter.is_dead(node) or not is_standard(node) or len(node.outputs) != 1:
                continue
            if is_tokenwise(node, rewriter):
                rows.flatten(node)


class _Rows:
    """The tensors that are there as rows."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter
        self._of: dict[int, Tensor] = {}  # rows of the maps that regions start at, by the map's id
        self._map: dict[int, Tensor] = {}  # a map with the same leading sizes, by the id of rows
        self._sizes: dict[int, Tensor] = {}  # what a Reshape back to a map has to say, by the map's id

    def flatten(self, node: gs.Node) -> None:
        """Lets one node work on rows, if it is a linear or reads some already."""
        output, facts = node.outputs[0], self._rewriter.facts
        shapes = facts.shapes(output)
        places = [i for i, t in enumerate(node.inputs) if not (t.is_empty() or is_parameter(node, i))]
        tokens = [node.inputs[i] for i in places]
        if shapes is None or len(shapes[0]) < 4 or not tokens:
            return
        if node.op != "MatMul" and not any(self._view_of(t) for t in tokens):
            return
        leading = [shape[:-1] for shape in shapes]
        if any([shape[:-1] for shape in facts.shapes(t) or []] != leading for t in tokens):
            return
        inputs: list[Tensor | None] = [None if t.is_empty() else t for t in node.inputs]
        if node.op in BINARY:
            inputs = [_for_rows(t, self._rewriter) if isinstance(t, gs.Constant) else t for t in inputs]
            if any(t is None for t in inputs):
                return
        flat = [_flat(shape) for shape in shapes]
        if reshape_target(flat, shapes) is None and self._rewriter.graph.opset < _SHAPE_OF_SOME_AXES:
            self._rewriter.refuse(
                node, f"more than one size depends on the input: that takes opset {_SHAPE_OF_SOME_AXES}"
            )
            return
        for i in places:
            inputs[i] = self._rows_of(node.inputs[i])
        attrs = {**node.attrs, "axis": -1} if node.op in OVER_LAST_AXIS else node.attrs
        new = self._rewriter.op(node.op, *inputs, hint=f"{output.name}/rows", **attrs)
        facts.learn(new, like=output, shapes=flat)
        self._map[id(new)] = self._map[id(inputs[places[0]])]
        self._rewriter.replace(output, self._rewriter.reshape_to(new, shapes) or self._back(new, shapes))

    def _back(self, rows: Tensor, shapes: Sequence[Sequence[int]]) -> Tensor:
        """The map that rows stand for, where several of its sizes depend on the input."""
        rewriter, start = self._rewriter, self._map[id(rows)]
        if id(start) not in self._sizes:
            leading = rewriter.op("Shape", start, start=0, end=-1)
            self._sizes[id(start)] = rewriter.op("Concat", leading, rewriter.constant([-1], np.int64), axis=0)
        view: Tensor = rewriter.op("Reshape", rows, self._sizes[id(start)])
        rewriter.facts.learn(view, like=rows, shapes=[tuple(shape) for shape in shapes])
        return view

    def _rows_of(self, tensor: Tensor) -> Tensor:
        seen = self._view_of(tensor) or self._of.get(id(tensor))
        if seen is not None:
            return seen
        shapes = self._rewriter.facts.shapes(tensor) or []
        rows = self._rewriter.reshape_to(tensor, [_flat(shape) for shape in shapes])
        assert rows is not None  # one size is known, the other one is the rest
        self._of[id(tensor)], self._map[id(rows)] = rows, tensor
        return rows

    def _view_of(self, tensor: Tensor) -> Tensor | None:
        """The rows that the tensor is a view of."""
        node = made_by(tensor, "Reshape")
        return node.inputs[0] if node is not None and id(node.inputs[0]) in self._map else None


def _flat(shape: Sequence[int]) -> tuple[int, int]:
    return int(np.prod(shape[:-1])), shape[-1]


def _for_rows(constant: gs.Constant, rewriter: Rewriter) -> Tensor | None:
    """An operand that is the same for all tokens, as it goes with rows; None if it is not the same."""
    shape = tuple(constant.shape)
    if any(size != 1 for size in shape[:-1]):
        return None
    value = literal(constant)
    if len(shape) <= 2 or value is None:
        return constant
    return rewriter.constant(value.reshape(shape[-1:]), hint=constant.name)

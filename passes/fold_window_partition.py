"""Fold window partition: roll and partition in standard ops, as one movement, joined with the split into heads.

For runtimes without the swinopt kernels. Partition has moved past the linears already (fuse-window-attention), so all
that is left to move is q, k, v on the way in and the result on the way out, and heads have to be split and merged
there anyway:

    without shift   Reshape-Transpose-Reshape: partition and head split are one transpose
    with shift      Reshape-Gather-Reshape-Transpose: roll and partition are one Gather of constant indices

against Slice-Slice-Concat twice, Pad, Reshape, Transpose, Reshape and then the head split, as exported. Where a map is
no multiple of the window, the Gather reads a row of zeros for a padded token, and the bias of the linear is added
behind it. Refused where the size of the map depends on the input: the op then keeps its function body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.facts import Shape
from swinopt.graph import Tensor, argument, literal, producer
from swinopt.indices import PAD
from swinopt.linear import linear_of
from swinopt.passes.fuse_window_attention import FuseWindowAttention
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter
from swinopt.textbook import shift_mask, window_tokens

_NORM_FLOOR = 1e-12


@dataclass(frozen=True)
class FoldWindowPartition(Pass):
    """Writes window attention in standard ops, with as little movement as there can be.

    Attributes:
        kept: the nodes that stay what they are, each by its output.
    """

    name: ClassVar[str] = "fold-window-partition"
    kept: tuple[str, ...] = ()

    def run(self, rewriter: Rewriter) -> None:
        FuseWindowAttention().run(rewriter)
        for node in rewriter.nodes("WindowAttention", domain=ops.DOMAIN):
            if node.outputs[0].name not in self.kept:
                _Lowering.of(node, rewriter)


class _Lowering:
    """One WindowAttention in standard ops. Shapes in comments: L = windows, N = slots, h = heads, d = head_dim."""

    @classmethod
    def of(cls, node: gs.Node, rewriter: Rewriter) -> None:
        dims = rewriter.facts.dims(node.inputs[0])
        if dims is None or None in dims[1:]:
            rewriter.refuse(node, "the size of the map depends on the input")
            return
        lowering = cls(node, rewriter)
        rewriter.replace(node.outputs[0], lowering.result())

    def __init__(self, node: gs.Node, rewriter: Rewriter) -> None:
        self.node, self.rewriter = node, rewriter
        shapes = rewriter.facts.shapes(node.inputs[0]) or []
        self.batches = [shape[0] for shape in shapes]
        self.size: tuple[int, ...] = shapes[0][1:-1]
        self.window, self.shift = tuple(node.attrs["window_size"]), tuple(node.attrs["shift_size"])
        self.heads: int = node.attrs["num_heads"]
        self.dim = shapes[0][-1] // 3 // self.heads
        roll_first = bool(node.attrs.get("roll_first", 0))
        self.tokens = window_tokens(self.size, self.window, self.shift, roll_first=roll_first)
        self.windows, self.slots = self.tokens.shape
        self.padded = bool((self.tokens == PAD).any())
        # A three-dimensional map would need a transpose of ten axes; TensorRT stops at eight.
        self.as_transpose = not any(self.shift) and not self.padded and len(self.size) == 2

    def result(self) -> Tensor:
        query, key, value = self._op("Split", self._partitioned(), self._ints([1, 1, 1]), count=3, axis=0)
        if argument(self.node, 2) is not None:
            query, key = self._normalised(query), self._normalised(key)
        scores = self._op("MatMul", query, self._op("Transpose", key, perm=[0, 1, 2, 3, 5, 4]))
        scores = self._op("Mul", scores, self._factor())
        scores = self._op("Add", scores, self.node.inputs[1])
        if any(self.shift):
            mask = shift_mask(self.size, self.window, self.shift)[:, None] * self.node.attrs.get("mask_value", -100.0)
            scores = self._op("Add", scores, self._floats(mask))
        attended = self._op("MatMul", self._op("Softmax", scores, axis=-1), value)
        return self._reversed(attended)

    # -------------------------------------------------------------------------------------------------- in and out

    def _partitioned(self) -> Tensor:
        """[3, B, L, h, N, d]"""
        split = (3, self.heads, self.dim)
        shape = [(3, b, self.windows, self.heads, self.slots, self.dim) for b in self.batches]
        if self.as_transpose:
            (rows, columns), (high, wide) = self._grid(), self.window
            grid = self._reshape(self.node.inputs[0], [(b, rows, high, columns, wide, *split) for b in self.batches])
            moved = self._op("Transpose", grid, perm=[5, 0, 1, 3, 6, 2, 4, 7])
            self._learn(moved, [(3, b, rows, columns, self.heads, high, wide, self.dim) for b in self.batches])
            return self._reshape(moved, shape)
        windows = self._reshape(self._gathered(), [(b, self.windows, self.slots, *split) for b in self.batches])
        moved = self._op("Transpose", windows, perm=[3, 0, 1, 4, 2, 5])
        self._learn(moved, shape)
        return moved

    def _gathered(self) -> Tensor:
        """[B, L, N, 3C]"""
        width, count = 3 * self.heads * self.dim, int(np.prod(self.size))
        source, pad_value = self._unpadded()
        flat = self._reshape(source, [(b, count, width) for b in self.batches])
        if self.padded:
            flat = self._op("Pad", flat, self._ints([0, 0, 0, 0, 1, 0]))
        gathered = self._op("Gather", flat, self._ints(np.where(self.tokens == PAD, count, self.tokens)), axis=1)
        self._learn(gathered, [(b, self.windows, self.slots, width) for b in self.batches])
        if pad_value is not None:
            gathered = self._op("Add", gathered, pad_value)
            self._learn(gathered, [(b, self.windows, self.slots, width) for b in self.batches])
        return gathered

    def _unpadded(self) -> tuple[Tensor, Tensor | None]:
        """qkv less what a padded token is, and what a padded token is: then pads are zeros."""
        qkv, pad = self.node.inputs[0], argument(self.node, 3)
        if not self.padded or pad is None:
            return qkv, None
        linear, value = linear_of(qkv), literal(pad)
        if (
            linear is not None
            and linear.bias is not None
            and value is not None
            and np.array_equal(linear.bias_value(), value)
        ):
            bias = linear.bias
            product = next(t for t in (producer(qkv) or self.node).inputs if t is not bias)
            if len(qkv.outputs) == 1 and product.outputs:
                self._learn(product, self.rewriter.facts.shapes(qkv) or [])
                return product, bias
        less = self._op("Sub", qkv, pad)
        self._learn(less, self.rewriter.facts.shapes(qkv) or [])
        return less, pad

    def _reversed(self, attended: Tensor) -> Tensor:
        """[1, B, L, h, N, d] to [B, H, W, C]"""
        width = self.heads * self.dim
        maps = [(b, *self.size, width) for b in self.batches]
        self._learn(attended, [(1, b, self.windows, self.heads, self.slots, self.dim) for b in self.batches])
        if self.as_transpose:
            (rows, columns), (high, wide) = self._grid(), self.window
            shape = [(b, rows, columns, self.heads, high, wide, self.dim) for b in self.batches]
            moved = self._op("Transpose", self._reshape(attended, shape), perm=[0, 1, 4, 2, 5, 3, 6])
            self._learn(moved, [(b, rows, high, columns, wide, self.heads, self.dim) for b in self.batches])
            return self._reshape(moved, maps)
        moved = self._op("Transpose", attended, perm=[0, 1, 2, 4, 3, 5])
        self._learn(moved, [(1, b, self.windows, self.slots, self.heads, self.dim) for b in self.batches])
        flat = self._reshape(moved, [(b, self.windows * self.slots, width) for b in self.batches])
        back = np.full(int(np.prod(self.size)), PAD)
        slots = np.flatnonzero(self.tokens != PAD)
        back[self.tokens.reshape(-1)[slots]] = slots
        ordered = self._op("Gather", flat, self._ints(back.reshape(self.size)), axis=1)
        self._learn(ordered, maps)
        return ordered

    # ------------------------------------------------------------------------------------------------------- pieces

    def _normalised(self, tensor: Tensor) -> Tensor:
        axes = {"axes": [-1]} if self.rewriter.graph.opset < 18 else {}
        inputs = [] if axes else [self._ints([-1])]
        norm = self._op("ReduceL2", tensor, *inputs, keepdims=1, **axes)
        return self._op("Div", tensor, self._op("Max", norm, self._floats(_NORM_FLOOR)))

    def _factor(self) -> Tensor:
        per_head = argument(self.node, 2)
        if per_head is None:
            return self._floats(self.node.attrs.get("scale", 1.0))
        value = literal(per_head)
        if value is None:
            return self._op("Unsqueeze", per_head, self._ints([1, 2]))
        return self._floats(value.reshape(-1, 1, 1))

    def _grid(self) -> tuple[int, int]:
        rows, columns = (size // window for size, window in zip(self.size, self.window, strict=True))
        return rows, columns

    def _op(self, op_type: str, *inputs: Tensor, **attrs: Any) -> Any:
        return self.rewriter.op(op_type, *inputs, hint=f"{self.node.outputs[0].name}/{op_type}", **attrs)

    def _ints(self, value: Any) -> gs.Constant:
        return self.rewriter.constant(value, np.int64, "ints")

    def _floats(self, value: Any) -> gs.Constant:
        return self.rewriter.float_constant(value, self.node.inputs[0])

    def _learn(self, tensor: Tensor, shapes: Sequence[Shape]) -> None:
        self.rewriter.facts.learn(tensor, like=self.node.inputs[0], shapes=shapes)

    def _reshape(self, tensor: Tensor, shapes: Sequence[Shape]) -> Tensor:
        shaped = self.rewriter.reshape_to(tensor, shapes)
        assert shaped is not None, "only the batch depends on the input, and one size always can"
        return shaped

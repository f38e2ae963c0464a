"""Fuse linears: a product with constant weights, its bias, and what stands behind it, become one swinopt::Linear.

    gelu(x W + b)          = Linear(x, W, b, gelu=1)
    x W + b + residual     = Linear(x, W, b, residual)
    x W + b                = Linear(x, W, b)

The GELU is the exact one (erf), in all the spellings that fuse-gelu knows; the residual is computed and of the shape of
the sum. Either goes in only where nothing else reads what the linear gives. Of two linears that are added, the first
takes the other one as its residual. Refused are sizes that are no multiples of 8, a dtype that the op does not have,
and a bias that adds an axis. A GELU or a residual that does not fit stays what it is, behind a plain Linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.graph import Tensor, producer
from swinopt.linear import Linear, linear_at, linear_of
from swinopt.op_spec import FLOATS
from swinopt.passes.fuse_gelu import erf_gelu
from swinopt.pattern import either, op, var
from swinopt.pipeline import Pass
from swinopt.residual import residual_behind
from swinopt.rewrite import Rewriter

_x = var("x")
_GELU = either(op("Gelu", _x, approximate="none"), erf_gelu(_x))
#: A row of so many float16 is 16 bytes, which is what tensor cores are fed with at once.
MULTIPLE = 8


@dataclass(frozen=True)
class FuseLinear(Pass):
    """Makes one swinopt::Linear of a linear and the GELU or the residual addition behind it."""

    name: ClassVar[str] = "fuse-linear"

    def run(self, rewriter: Rewriter) -> None:
        linears = _Linears(rewriter)
        for node in rewriter.nodes("MatMul", "Gemm"):
            linears.fuse(node)


class _Linears:
    """The linears of a graph, and what stands behind them."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter
        # Others may read a tensor as well: nodes in the bodies of If and Loop, which nothing out here can replace.
        self._nodes = {id(node) for node in rewriter.graph.nodes}
        self._gelu_of: dict[int, Tensor] = {}
        for node in rewriter.graph.nodes:
            match = _GELU.match(node.outputs[0], rewriter.facts) if node.outputs else None
            if match is not None:
                self._gelu_of.setdefault(id(match["x"]), match.root)
        self._weights: dict[int, Tensor] = {}

    def fuse(self, product: gs.Node) -> None:
        """Makes one node of the linear that starts with this product, if it is one."""
        linear = self._linear_at(product)
        if linear is None:
            return
        reason = self._misfit(linear)
        if reason:
            self._rewriter.refuse(product, reason)
            return
        activated = self._activated(linear.output)
        added = residual_behind(linear.output, self._rewriter, self._nodes, "linear")
        if activated is not None:
            self._replace(activated, linear, gelu=1)
        elif added is not None:
            self._replace(added.total, linear, residual=added.summand)
        else:
            self._replace(linear.output, linear)

    def _replace(self, old: Tensor, linear: Linear, residual: Tensor | None = None, gelu: int | None = None) -> None:
        new = self._rewriter.op(
            "Linear",
            linear.input,
            self._weight(linear),
            self._bias(linear),
            residual,
            domain=ops.DOMAIN,
            hint=f"{old.name}/Linear",
            gelu=gelu,
        )
        self._rewriter.replace(old, new)

    def _linear_at(self, node: gs.Node) -> Linear | None:
        linear, product = linear_at(node), node.outputs[0]
        if linear is None or linear.output is product:
            return linear
        has_bias = not self._rewriter.is_output(product) and id(producer(linear.output)) in self._nodes
        return linear if has_bias else linear_of(product)

    def _misfit(self, linear: Linear) -> str | None:
        """Why the op cannot compute the linear."""
        facts, opset = self._rewriter.facts, self._rewriter.graph.opset
        before, after = facts.dims(linear.input), facts.dims(linear.output)
        if opset < ops.MIN_OPSET:
            return f"swinopt::Linear needs opset {ops.MIN_OPSET}, and this is opset {opset}"
        if facts.onnx_dtype(linear.weight) not in FLOATS:
            return "the linear is of a dtype other than float32, float16 and bfloat16"
        if linear.input_features % MULTIPLE or linear.features % MULTIPLE:
            sizes = f"{linear.input_features} to {linear.features}"
            return f"the linear goes from {sizes} features, which are not both multiples of {MULTIPLE}"
        if before is None or after is None:
            return "it is not known how many axes the linear has"
        if len(before) != len(after):
            return "the bias adds an axis to the product"
        return "the linear is of a single vector" if len(after) < 2 else None

    def _activated(self, result: Tensor) -> Tensor | None:
        """The GELU of what a linear gives, if the linear can take it in."""
        activated, facts = self._gelu_of.get(id(result)), self._rewriter.facts
        if activated is None:
            return None
        if facts.shapes(activated) != facts.shapes(result):
            self._rewriter.refuse(activated, "the GELU adds an axis to what the linear gives")
        elif not self._is_read_only_for(activated, result):
            self._rewriter.refuse(activated, "what the linear gives is read elsewhere, and not by the GELU alone")
        else:
            return activated
        return None

    def _is_read_only_for(self, end: Tensor, start: Tensor) -> bool:
        between: dict[int, gs.Node] = {}
        pending = [end]
        while pending:
            node = producer(pending.pop())
            if node is not None and id(node) not in between:
                between[id(node)] = node
                pending += [tensor for tensor in node.inputs if tensor is not start]
        inner = [start, *(t for node in between.values() for t in node.outputs if t is not end)]
        readers = {id(node) for tensor in inner for node in tensor.outputs}
        return readers <= between.keys() and not any(self._rewriter.is_output(tensor) for tensor in inner)

    def _weight(self, linear: Linear) -> Tensor:
        if not linear.transposed:
            return linear.weight
        # By the constant, since the rewriter does not find large values again.
        key = id(linear.weight)
        if key not in self._weights:
            self._weights[key] = self._rewriter.constant(linear.weight_value(), hint=linear.weight.name)
        return self._weights[key]

    def _bias(self, linear: Linear) -> Tensor:
        if linear.bias is None:
            return self._rewriter.constant(linear.bias_value(), hint=f"{linear.output.name}/no_bias")
        if len(linear.bias.shape) == 1:
            return linear.bias
        return self._rewriter.constant(linear.bias_value(), hint=linear.bias.name)

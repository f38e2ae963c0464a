"""Linears: ``x @ weight + bias`` with constant weights, however the graph spells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Array, Tensor, dtype_of, literal, made_by, size_of
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class Linear:
    """``input @ weight + bias``, with ``weight`` [K, N] and ``bias`` [N] or None."""

    input: Tensor
    output: Tensor
    weight: gs.Constant
    bias: gs.Constant | None
    transposed: bool = False

    @property
    def input_features(self) -> int:
        """K, the number of input features."""
        return int(self.weight.shape[1 if self.transposed else 0])

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
        if bias is None:
            return rewriter.op("Add", result, self.bias, hint=f"{name}/Add")
        # In the shape of the old bias, which may have more axes than the product, and widen it.
        shape = self.bias.shape if self.bias is not None and size_of(self.bias) == bias.size else [bias.size]
        biases = rewriter.constant(bias.astype(self.dtype).reshape(shape), hint=f"{name}/bias")
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
    found = linear_at(tensor.outputs[0]) if len(tensor.outputs) == 1 else None
    return found if found is not None and found.input is tensor else None


def linear_at(node: gs.Node) -> Linear | None:
    """The linear whose product this node is; with its bias, if that alone reads the product."""
    result = node.outputs[0]
    inner = _product(result)
    if inner is not None and inner.bias is None and len(result.outputs) == 1:
        with_bias = linear_of(result.outputs[0].outputs[0])
        if with_bias is not None and with_bias.input is inner.input:
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

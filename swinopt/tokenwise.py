"""What works token by token: on the last axis of every token alone, whatever axes the tokens are arranged in."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from swinopt.graph import attr
from swinopt.rewrite import Rewriter

UNARY = {"Gelu", "Relu", "Erf", "Tanh", "Sigmoid", "Sqrt", "Exp", "Neg", "Cast", "HardSwish", "LeakyRelu", "Clip"}
OVER_LAST_AXIS = {"LayerNormalization", "Softmax", "LogSoftmax"}
BINARY = {"Add", "Sub", "Mul", "Div", "Pow"}


def is_tokenwise(node: gs.Node, rewriter: Rewriter) -> bool:
    """Whether the node works token by token: a linear, a norm over the last axis, or something element by element.

    Two operands of an elementwise op may still not go together: that is for the caller to see.
    """
    shape = rewriter.facts.shape(node.outputs[0])
    if shape is None or len(shape) < 2:
        return False
    if node.op in OVER_LAST_AXIS:
        axis = attr(node, "axis", rewriter.graph.opset)
        # Scale and bias of a norm may have more axes, and then be another one for each token.
        parameters = [rewriter.facts.shape(tensor) for tensor in node.inputs[1:] if not tensor.is_empty()]
        is_same_for_all = all(parameter is not None and len(parameter) == 1 for parameter in parameters)
        return axis in (-1, len(shape) - 1) and len(node.outputs) == 1 and is_same_for_all
    if node.op == "MatMul":
        return isinstance(node.inputs[1], gs.Constant) and len(node.inputs[1].shape) == 2
    return node.op in UNARY or node.op in BINARY


def is_parameter(node: gs.Node, index: int) -> bool:
    """Whether this input of a tokenwise node is a constant, or something else that holds no tokens."""
    if isinstance(node.inputs[index], gs.Constant):
        return True
    return index > 0 and node.op in ("LayerNormalization", "MatMul", "Clip")

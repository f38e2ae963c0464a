"""The specification of ``swinopt::Linear``, and its definition in standard ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import AttributeProto, FunctionProto, NodeProto

from swinopt.errors import ModelError
from swinopt.op_spec import Attribute, Input, OpSpec, Output, Shape, has_input, parse_body, require_shape

_DOC = """\
A linear, and the GELU or the residual addition behind it.

    output = act(x W + b) + residual

act is the identity or, with gelu, GELU(x) = x Phi(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415), where Phi is the
distribution function of the standard normal distribution. Sums are float32 at least, and the result is rounded once, at
the end. For float16 and bfloat16 a kernel may take the tanh form of GELU, which is off by less than 4.8e-4, half a unit
in the last place of float16 at 1. A node has gelu or residual, not both. All sizes but K and N may be dynamic. T is
float32, float16 or bfloat16. Kernels for float32 have to be told how they may multiply: float32 is 1 if products are
those of float32, and 2 if factors may be rounded to the 10 bits of TF32 first; with 0 there is no such kernel.
"""


def _shapes(inputs: Sequence[Shape | None], attributes: Mapping[str, Any]) -> list[Shape]:
    x, weight, bias, residual = inputs
    assert x is not None and weight is not None and bias is not None
    _require_one_of_both(attributes["gelu"], residual is not None)
    if attributes["float32"] not in (0, 1, 2):
        raise ModelError(f"Linear: float32 is {attributes['float32']}, and must be 0, 1 or 2")
    if len(x) < 2:
        raise ModelError(f"Linear: x {x} must be [..., K] with at least one axis before K")
    *outer, inner = x
    require_shape("Linear: weight", weight, (inner, None))
    require_shape("Linear: bias", bias, weight[1:])
    features = bias[0] if weight[1] is None else weight[1]
    shape: Shape = (*outer, features)
    require_shape("Linear: residual", residual, shape)
    return [tuple(a if b is None else b for a, b in zip(residual or shape, shape, strict=True))]


def _require_one_of_both(gelu: int, residual: bool) -> None:
    if gelu not in (0, 1):
        raise ModelError(f"Linear: gelu is {gelu}, and must be 0 or 1")
    if gelu and residual:
        raise ModelError("Linear: a node with gelu has no residual")


# In all that follows, "to" of a Cast is 1 for float32 and 9 for bool.
_PRODUCT = """
x_float = Cast <to: int = 1> (x)
weight_float = Cast <to: int = 1> (weight)
bias_float = Cast <to: int = 1> (bias)
product = MatMul (x_float, weight_float)
linear = Add (product, bias_float)
"""

_PLAIN = """
output = CastLike (linear, x)
"""

# A runtime that knows one definition for a name runs this one for nodes without gelu as well: hence the Where.
_GELU = """
root_two = Constant <value_float: float = 1.4142135623730951> ()
one = Constant <value_float: float = 1.0> ()
half = Constant <value_float: float = 0.5> ()
scaled = Div (linear, root_two)
error_function = Erf (scaled)
one_more = Add (error_function, one)
doubled = Mul (linear, one_more)
activated = Mul (doubled, half)
gelu_int = Constant <value_int: int = @gelu> ()
is_gelu = Cast <to: int = 9> (gelu_int)
result = Where (is_gelu, activated, linear)
output = CastLike (result, x)
"""

_RESIDUAL = """
residual_float = Cast <to: int = 1> (residual)
result = Add (linear, residual_float)
output = CastLike (result, x)
"""


def _body(node: NodeProto, opset: int) -> FunctionProto:
    gelu, residual = next((a.i for a in node.attribute if a.name == "gelu"), 0), has_input(node, 3)
    _require_one_of_both(gelu, residual)
    steps = _RESIDUAL if residual else _GELU if gelu else _PLAIN
    body = parse_body(LINEAR, _PRODUCT + steps, opset, 4 if residual else 3)
    body.overload = "residual" if residual else "gelu" if gelu else ""
    return body


#: The op.
LINEAR = OpSpec(
    name="Linear",
    doc=_DOC,
    inputs=(
        Input("x", "[..., K]", "T: the tokens"),
        Input("weight", "[K, N]", "T: what they are multiplied by", constant=True),
        Input("bias", "[N]", "T: summand behind the product", constant=True),
        Input("residual", "[..., N]", "T: added at the end; leading sizes are those of x", optional=True),
    ),
    attributes=(
        Attribute("gelu", AttributeProto.INT, "1: GELU of x W + b; 0: x W + b itself", 0),
        Attribute("float32", AttributeProto.INT, "of kernels for float32: 0: none; 1: exact; 2: factors in TF32", 0),
    ),
    outputs=(Output("output", "[..., N]", "T: the result"),),
    infer=_shapes,
    body=_body,
)

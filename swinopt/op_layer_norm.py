"""The specifications of the ops with a LayerNorm in them, and their definitions in standard ONNX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnx import AttributeProto, FunctionProto, NodeProto

from swinopt.errors import ModelError
from swinopt.op_spec import Attribute, Dim, Input, OpSpec, Output, Shape, has_input, parse_body, require_shape

_EPSILON = Attribute("epsilon", AttributeProto.FLOAT, "added to the variance", 1e-5)

# ----------------------------------------------------------------------------------------------------- PatchMerging

_PATCH_MERGING_DOC = """\
2x2 neighbours of a feature map become one token, and its LayerNorm (Liu et al. 2021, arXiv:2103.14030, section 3.1).

    merged[b, i, j, (2 dy + dx) C + c] = x[b, 2 i + dy, 2 j + dx, c]        dy, dx in {0, 1}
    output = (merged - mean) / sqrt(variance + epsilon) * gamma + beta      mean and variance over the 4 C features

A neighbour beyond an odd map is zero, and takes part in mean and variance. Statistics are float32 at least. Batch and
spatial sizes may be dynamic. T is float32, float16 or bfloat16.
"""


def _patch_merging_shapes(inputs: Sequence[Shape | None], attributes: Mapping[str, Any]) -> list[Shape]:
    x, gamma, beta = inputs
    assert x is not None
    if len(x) != 4:
        raise ModelError(f"PatchMerging: x {x} must be [B, H, W, C]")
    batch, height, width, channels = x
    features = 4 * channels if isinstance(channels, int) else None
    require_shape("PatchMerging: gamma", gamma, (features,))
    require_shape("PatchMerging: beta", beta, (features,))
    return [(batch, _half(height), _half(width), features)]


def _half(size: Dim) -> Dim:
    return (size + 1) // 2 if isinstance(size, int) else None


# "to" of a Cast is 1 for float32.
_PATCH_MERGING_STEPS = """
one_each = Constant <value_ints: ints = [1, 1]> ()
two = Constant <value_ints: ints = [2]> ()
no_pads_before = Constant <value_ints: ints = [0, 0, 0, 0, 0]> ()
no_pad_of_channels = Constant <value_ints: ints = [0]> ()
batch = Shape <start: int = 0, end: int = 1> (x)
size = Shape <start: int = 1, end: int = 3> (x)
channels = Shape <start: int = 3> (x)
odd = Mod (size, two)
pads = Concat <axis: int = 0> (no_pads_before, odd, no_pad_of_channels)
x_float = Cast <to: int = 1> (x)
even_map = Pad (x_float, pads)
even_size = Add (size, odd)
half_size = Div (even_size, two)
half_height, half_width = Split <axis: int = 0> (half_size, one_each)
two_neighbours = Mul (channels, two)
four_neighbours = Mul (two_neighbours, two)
split_shape = Concat <axis: int = 0> (batch, half_height, two, half_width, two_neighbours)
split_map = Reshape (even_map, split_shape)
lines_inside = Transpose <perm: ints = [0, 1, 3, 2, 4]> (split_map)
merged_shape = Concat <axis: int = 0> (batch, half_size, four_neighbours)
merged = Reshape (lines_inside, merged_shape)
gamma_float = Cast <to: int = 1> (gamma)
beta_float = Cast <to: int = 1> (beta)
normalized = LayerNormalization <axis: int = -1, epsilon: float = @epsilon> (merged, gamma_float, beta_float)
output = CastLike (normalized, x)
"""


def _patch_merging_body(node: NodeProto, opset: int) -> FunctionProto:
    return parse_body(PATCH_MERGING, _PATCH_MERGING_STEPS, opset)


PATCH_MERGING = OpSpec(
    name="PatchMerging",
    doc=_PATCH_MERGING_DOC,
    inputs=(
        Input("x", "[B, H, W, C]", "T: the feature map"),
        Input("gamma", "[4C]", "T: factor behind the norm, in the order (dy, dx, c)", constant=True),
        Input("beta", "[4C]", "T: summand behind the norm", constant=True),
    ),
    attributes=(_EPSILON,),
    outputs=(Output("output", "[B, ceil(H / 2), ceil(W / 2), 4C]", "T: the merged tokens, normalised"),),
    infer=_patch_merging_shapes,
    body=_patch_merging_body,
)

# ----------------------------------------------------------------------------------------------------- AddLayerNorm

_ADD_LAYER_NORM_DOC = """\
A residual addition and the LayerNorm of its sum (Ba et al. 2016, arXiv:1607.06450).

    sum = a + b
    normalized = (a + b - mean) / sqrt(variance + epsilon) * gamma + beta       mean and variance over the last axis

The addition is float32 at least, and so are the statistics: those of a + b before it is rounded to T. All sizes but the
last may be dynamic. T is float32, float16 or bfloat16.
"""


def _add_layer_norm_shapes(inputs: Sequence[Shape | None], attributes: Mapping[str, Any]) -> list[Shape]:
    a, b, gamma, beta = inputs
    assert a is not None and b is not None
    if not a:
        raise ModelError("AddLayerNorm: a is a single number, and an axis to normalise over is needed")
    require_shape("AddLayerNorm: b", b, a)
    require_shape("AddLayerNorm: gamma", gamma, a[-1:])
    require_shape("AddLayerNorm: beta", beta, a[-1:])
    shape = tuple(y if x is None else x for x, y in zip(a, b, strict=True))
    return [shape, shape]


_ADD_LAYER_NORM_STEPS = """
a_float = Cast <to: int = 1> (a)
b_float = Cast <to: int = 1> (b)
gamma_float = Cast <to: int = 1> (gamma)
beta_float = Cast <to: int = 1> (beta)
total = Add (a_float, b_float)
result = LayerNormalization <axis: int = -1, epsilon: float = @epsilon> (total, gamma_float, beta_float)
sum = CastLike (total, a)
normalized = CastLike (result, a)
"""


def _add_layer_norm_body(node: NodeProto, opset: int) -> FunctionProto:
    return parse_body(ADD_LAYER_NORM, _ADD_LAYER_NORM_STEPS, opset)


ADD_LAYER_NORM = OpSpec(
    name="AddLayerNorm",
    doc=_ADD_LAYER_NORM_DOC,
    inputs=(
        Input("a", "[..., C]", "T: one summand"),
        Input("b", "[..., C]", "T: the other one, of the same shape"),
        Input("gamma", "[C]", "T: factor behind the norm", constant=True),
        Input("beta", "[C]", "T: summand behind the norm", constant=True),
    ),
    attributes=(_EPSILON,),
    outputs=(
        Output("sum", "[..., C]", "T: a + b"),
        Output("normalized", "[..., C]", "T: the LayerNorm of the sum"),
    ),
    infer=_add_layer_norm_shapes,
    body=_add_layer_norm_body,
)

# -------------------------------------------------------------------------------------------------------- LayerNorm

_LAYER_NORM_DOC = """\
LayerNorm (Ba et al. 2016, arXiv:1607.06450), and the residual addition behind it, if there is one: the res-post-norm of
Swin V2 (Liu et al. 2021, arXiv:2111.09883, section 3.1).

    output = (x - mean) / sqrt(variance + epsilon) * gamma + beta + residual    mean and variance over the last axis

Statistics are float32 at least, and so is the residual addition: the result is rounded once, at the end. All sizes but
the last may be dynamic. T is float32, float16 or bfloat16.
"""


def _layer_norm_shapes(inputs: Sequence[Shape | None], attributes: Mapping[str, Any]) -> list[Shape]:
    x, gamma, beta, residual = inputs
    assert x is not None
    if not x:
        raise ModelError("LayerNorm: x is a single number, and an axis to normalise over is needed")
    require_shape("LayerNorm: gamma", gamma, x[-1:])
    require_shape("LayerNorm: beta", beta, x[-1:])
    require_shape("LayerNorm: residual", residual, x)
    return [tuple(b if a is None else a for a, b in zip(x, residual or x, strict=True))]


_LAYER_NORM_STEPS = """
x_float = Cast <to: int = 1> (x)
gamma_float = Cast <to: int = 1> (gamma)
beta_float = Cast <to: int = 1> (beta)
normalized = LayerNormalization <axis: int = -1, epsilon: float = @epsilon> (x_float, gamma_float, beta_float)
"""

_LAYER_NORM_ALONE = """
output = CastLike (normalized, x)
"""

_LAYER_NORM_RESIDUAL = """
residual_float = Cast <to: int = 1> (residual)
total = Add (normalized, residual_float)
output = CastLike (total, x)
"""


def _layer_norm_body(node: NodeProto, opset: int) -> FunctionProto:
    residual = has_input(node, 3)
    steps = _LAYER_NORM_STEPS + (_LAYER_NORM_RESIDUAL if residual else _LAYER_NORM_ALONE)
    body = parse_body(LAYER_NORM, steps, opset, 4 if residual else 3)
    body.overload = "residual" if residual else ""
    return body


LAYER_NORM = OpSpec(
    name="LayerNorm",
    doc=_LAYER_NORM_DOC,
    inputs=(
        Input("x", "[..., C]", "T: the tokens"),
        Input("gamma", "[C]", "T: factor behind the norm", constant=True),
        Input("beta", "[C]", "T: summand behind the norm", constant=True),
        Input("residual", "[..., C]", "T: added at the end; of the shape of x", optional=True),
    ),
    attributes=(_EPSILON,),
    outputs=(Output("output", "[..., C]", "T: the result"),),
    infer=_layer_norm_shapes,
    body=_layer_norm_body,
)

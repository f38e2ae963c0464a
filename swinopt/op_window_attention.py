"""The specification of ``swinopt::WindowAttention``, and its definition in standard ONNX."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import AttributeProto, FunctionProto, NodeProto

from swinopt.errors import ModelError
from swinopt.op_spec import Attribute, Input, OpSpec, Output, Shape, has_input, parse_body, require_shape

_DOC = """\
Shifted-window multi-head self-attention over a feature map (Liu et al. 2021, arXiv:2103.14030, section 3.2).

The map is padded at the end of each spatial axis to a multiple of window_size, rolled by -shift_size, and partitioned
into windows of N = prod(window_size) slots; with roll_first the unpadded map is rolled and then padded. In each window
and head

    softmax(scale * q k^T + relative_position_bias + mask) v

where mask is mask_value for two slots from different regions of the shifted map and 0 otherwise. Padded slots take part
as keys, under the same mask as any other slot. The slots go back to where they came from; padded ones are dropped.
With logit_scale (Swin V2, arXiv:2111.09883, section 3.3) q and k are divided by max(L2 norm, 1e-12) along the head, and
logit_scale takes the place of scale. Statistics and sums are float32 at least. Batch and spatial sizes may be dynamic.
T is float32, float16 or bfloat16. Kernels take relative_position_bias and logit_scale from initializers alone.
"""


def _shapes(inputs: Sequence[Shape | None], attributes: Mapping[str, Any]) -> list[Shape]:
    qkv, bias, logit_scale, pad_qkv = inputs
    assert qkv is not None and bias is not None
    window, heads = _window_and_heads(attributes)
    if len(qkv) != len(window) + 2:
        raise ModelError(f"WindowAttention: qkv {qkv} must be [B, *spatial, 3C] with {len(window)} spatial axes")
    *outer, channels = qkv
    n = math.prod(window)
    require_shape("WindowAttention: relative_position_bias", bias, (heads, n, n))
    require_shape("WindowAttention: logit_scale", logit_scale, (heads,))
    require_shape("WindowAttention: pad_qkv", pad_qkv, (channels,))
    if isinstance(channels, int) and channels % (3 * heads):
        raise ModelError(f"WindowAttention: {channels} channels of qkv cannot be split into q, k, v of {heads} heads")
    for size, extent in zip(outer[1:], window, strict=True):
        if isinstance(size, int) and size % extent and pad_qkv is None:
            raise ModelError(f"WindowAttention: size {size} is no multiple of window {extent}, so pad_qkv is needed")
    return [(*outer, channels // 3 if isinstance(channels, int) else None)]


def _window_and_heads(attributes: Mapping[str, Any]) -> tuple[tuple[int, ...], int]:
    window = tuple(int(w) for w in attributes["window_size"])
    shift = tuple(int(s) for s in attributes["shift_size"])
    if len(window) != len(shift) or not all(0 <= s < w for s, w in zip(shift, window, strict=True)):
        raise ModelError(f"WindowAttention: shift_size {shift} must lie in [0, window_size), window_size is {window}")
    if not window or attributes["num_heads"] < 1:
        raise ModelError("WindowAttention: window_size must not be empty, and num_heads must be positive")
    return window, int(attributes["num_heads"])


def function_body(*, cosine: bool, padded: bool, opset: int) -> FunctionProto:
    """The definition of ``WindowAttention`` in standard ONNX operators, for any number of spatial axes.

    A function cannot ask whether an optional input is present, hence the variants.

    Args:
        cosine: with ``logit_scale`` (Swin V2), else without.
        padded: with ``pad_qkv``, and then for any spatial size. Else running it fails where a size is no multiple of
            the window.
        opset: the version of the standard operators, 17 or later. A model's checker wants the model's own.

    Returns:
        A function of the swinopt domain, without ``overload``. Its inputs are those of the op up to the last one
        that it uses. All of the attention is computed in float32.

    Raises:
        ModelError: ``opset`` is below 17.
    """
    steps = (
        _CONSTANTS,
        _SLOTS,
        _PADDED_TOKENS if padded else _TOKENS,
        _HEADS,
        _COSINE_SCORES if cosine else _DOT_PRODUCT_SCORES,
        _MASK,
        _OUTPUT,
    )
    count = 4 if padded else 3 if cosine else 2
    return parse_body(WINDOW_ATTENTION, "".join(steps), opset, count)


# In all that follows, "to" of a Cast is 1 for float32, 7 for int64 and 9 for bool.
_CONSTANTS = """
zero = Constant <value_int: int = 0> ()
one = Constant <value_int: int = 1> ()
two = Constant <value_int: int = 2> ()
just_one = Constant <value_ints: ints = [1]> ()
the_rest = Constant <value_ints: ints = [-1]> ()
first_axis = Constant <value_ints: ints = [0]> ()
last_axis = Constant <value_ints: ints = [-1]> ()
window = Constant <value_ints: ints = @window_size> ()
shift = Constant <value_ints: ints = @shift_size> ()
heads_scalar = Constant <value_int: int = @num_heads> ()
heads = Unsqueeze (heads_scalar, first_axis)
batch = Shape <start: int = 0, end: int = 1> (qkv)
size = Shape <start: int = 1, end: int = -1> (qkv)
channels = Shape <start: int = -1> (qkv)
axes = Shape (window)
last_in_window = Sub (window, one)
grown = Add (size, last_in_window)
grid = Div (grown, window)
padded_size = Mul (grid, window)
num_windows = ReduceProd <keepdims: int = 1> (grid)
window_area = ReduceProd <keepdims: int = 1> (window)
num_tokens = ReduceProd <keepdims: int = 1> (size)
end_of_tokens = Squeeze (num_tokens)
"""

# NonZero of all ones lists every coordinate in row-major order. Over [*grid, *window] that is: window by window, slot
# by slot. `position` [num_slots, axes] is where a slot lies in the rolled map.
_SLOTS = """
grid_and_window = Concat <axis: int = 0> (grid, window)
everywhere = ConstantOfShape <value: tensor = int64[1] {1}> (grid_and_window)
coordinates_by_axis = NonZero (everywhere)
coordinates = Transpose <perm: ints = [1, 0]> (coordinates_by_axis)
halves = Concat <axis: int = 0> (axes, axes)
which_window, which_slot = Split <axis: int = 1> (coordinates, halves)
window_start = Mul (which_window, window)
position = Add (window_start, which_slot)
shifted = Add (position, shift)
token_ids = Range (zero, end_of_tokens, one)
tokens_shape = Concat <axis: int = 0> (batch, the_rest, channels)
tokens_as_given = Reshape (qkv, tokens_shape)
tokens_unpadded = Cast <to: int = 1> (tokens_as_given)
"""

# The Reshape to the padded size is what fails where padding would be needed.
_TOKENS = """
token_map = Reshape (token_ids, padded_size)
source = Mod (shifted, padded_size)
tokens = Identity (tokens_unpadded)
"""

# Rolled after padding, positions wrap around at the padded size; rolled before it, at the true size, and what lies
# beyond is padding that did not move. The padding of the map is one extra token behind all others.
_PADDED_TOKENS = """
unpadded_map = Reshape (token_ids, size)
pads_before = Sub (size, size)
pads_after = Sub (padded_size, size)
pads = Concat <axis: int = 0> (pads_before, pads_after)
token_map = Pad (unpadded_map, pads, end_of_tokens)
rolls_first = Constant <value_int: int = @roll_first> ()
rolls_unpadded = Cast <to: int = 9> (rolls_first)
period = Where (rolls_unpadded, size, padded_size)
rolls = Less (position, period)
wrapped = Mod (shifted, period)
source = Where (rolls, wrapped, position)
pad_token = Cast <to: int = 1> (pad_qkv)
pad_shape = Concat <axis: int = 0> (batch, just_one, channels)
pad_in_batch = Expand (pad_token, pad_shape)
tokens = Concat <axis: int = 1> (tokens_unpadded, pad_in_batch)
"""

_HEADS = """
token_in_slot = GatherND (token_map, source)
slots = Gather <axis: int = 1> (tokens, token_in_slot)
three = Constant <value_ints: ints = [3]> ()
heads_shape = Concat <axis: int = 0> (batch, num_windows, window_area, three, heads, the_rest)
split_slots = Reshape (slots, heads_shape)
qkv_heads = Transpose <perm: ints = [3, 0, 1, 4, 2, 5]> (split_slots)
q = Gather <axis: int = 0> (qkv_heads, zero)
k = Gather <axis: int = 0> (qkv_heads, one)
v = Gather <axis: int = 0> (qkv_heads, two)
"""

_DOT_PRODUCT_SCORES = """
scale = Constant <value_float: float = @scale> ()
scaled_q = Mul (q, scale)
k_transposed = Transpose <perm: ints = [0, 1, 2, 4, 3]> (k)
scores = MatMul (scaled_q, k_transposed)
"""

_COSINE_SCORES = """
smallest_norm = Constant <value_float: float = 1e-12> ()
q_squared = Mul (q, q)
q_square_sum = ReduceSum <keepdims: int = 1> (q_squared, last_axis)
q_norm = Sqrt (q_square_sum)
q_divisor = Max (q_norm, smallest_norm)
unit_q = Div (q, q_divisor)
k_squared = Mul (k, k)
k_square_sum = ReduceSum <keepdims: int = 1> (k_squared, last_axis)
k_norm = Sqrt (k_square_sum)
k_divisor = Max (k_norm, smallest_norm)
unit_k = Div (k, k_divisor)
k_transposed = Transpose <perm: ints = [0, 1, 2, 4, 3]> (unit_k)
cosine = MatMul (unit_q, k_transposed)
logit_scale_float = Cast <to: int = 1> (logit_scale)
after_heads = Constant <value_ints: ints = [1, 2]> ()
scale_by_head = Unsqueeze (logit_scale_float, after_heads)
scores = Mul (cosine, scale_by_head)
"""

# Only the border at -shift runs through windows (the one at -window lies between them), so a region is told by one bit
# an axis: before that border or not.
_MASK = """
border = Sub (padded_size, shift)
before_border = Less (position, border)
bits = Cast <to: int = 7> (before_border)
num_axes = Squeeze (axes)
bit_numbers = Range (zero, num_axes, one)
bit_values = Pow (two, bit_numbers)
weighted_bits = Mul (bits, bit_values)
region = ReduceSum <keepdims: int = 0> (weighted_bits, last_axis)
region_shape = Concat <axis: int = 0> (num_windows, just_one, window_area)
region_by_window = Reshape (region, region_shape)
key_axis = Constant <value_ints: ints = [2]> ()
query_axis = Constant <value_ints: ints = [3]> ()
region_of_key = Unsqueeze (region_by_window, key_axis)
region_of_query = Unsqueeze (region_by_window, query_axis)
same_region = Equal (region_of_query, region_of_key)
visible = Constant <value_float: float = 0.0> ()
masked = Constant <value_float: float = @mask_value> ()
mask = Where (same_region, visible, masked)
bias = Cast <to: int = 1> (relative_position_bias)
bias_and_mask = Add (mask, bias)
biased_scores = Add (scores, bias_and_mask)
"""

# Sorting the tokens of all slots tells in which slot each token is, since padding sorts behind every token.
_OUTPUT = """
weights = Softmax <axis: int = -1> (biased_scores)
heads_out = MatMul (weights, v)
slots_out = Transpose <perm: ints = [0, 1, 3, 2, 4]> (heads_out)
num_slots = Shape (token_in_slot)
slots_out_shape = Concat <axis: int = 0> (batch, num_slots, the_rest)
attended_slots = Reshape (slots_out, slots_out_shape)
sorted_tokens, slot_of_token = TopK <largest: int = 0, sorted: int = 1> (token_in_slot, num_tokens)
attended_tokens = Gather <axis: int = 1> (attended_slots, slot_of_token)
outer_shape = Shape <start: int = 0, end: int = -1> (qkv)
output_shape = Concat <axis: int = 0> (outer_shape, the_rest)
output = Reshape (attended_tokens, output_shape)
attention = CastLike (output, qkv)
"""


def _body(node: NodeProto, opset: int) -> FunctionProto:
    cosine, padded = has_input(node, 2), has_input(node, 3)
    body = function_body(cosine=cosine, padded=padded, opset=opset)
    body.overload = ("scaled_cosine" if cosine else "dot_product") + ("_padded" if padded else "")
    return body


#: The op.
WINDOW_ATTENTION = OpSpec(
    name="WindowAttention",
    doc=_DOC,
    inputs=(
        Input("qkv", "[B, *spatial, 3C]", "T: query, key, value of every token, each [num_heads, C / num_heads]"),
        Input("relative_position_bias", "[num_heads, N, N]", "T: added to the scores, query by key", constant=True),
        Input(
            "logit_scale",
            "[num_heads]",
            "T: scale of the cosine, exp'ed and clamped already",
            optional=True,
            constant=True,
        ),
        Input(
            "pad_qkv",
            "[3C]",
            "T: the qkv of a padded token; needed where a spatial size is no multiple of the window",
            optional=True,
            uniform=True,
        ),
    ),
    attributes=(
        Attribute("window_size", AttributeProto.INTS, "tokens of a window, one entry an axis"),
        Attribute("shift_size", AttributeProto.INTS, "cyclic shift in [0, window_size), one entry an axis"),
        Attribute("num_heads", AttributeProto.INT, "number of attention heads"),
        Attribute("scale", AttributeProto.FLOAT, "factor of the scores; not used with logit_scale"),
        Attribute("mask_value", AttributeProto.FLOAT, "added to the scores of masked pairs", -100.0),
        Attribute("roll_first", AttributeProto.INT, "1: roll, then pad (timm); 0: pad, then roll (all others)", 0),
    ),
    outputs=(Output("attention", "[B, *spatial, C]", "T: every token attended to those of its window"),),
    infer=_shapes,
    body=_body,
)

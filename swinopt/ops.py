"""The swinopt domain: for each op one neutral specification, its shape rule, and its definition in standard ONNX.

A custom op carries its own definition: :func:`attach_bodies` adds it to a model as an ONNX function, so that any
runtime without a kernel for the op computes it nevertheless, and every kernel has something to be compared with.
:func:`strip_bodies` takes the definitions away again, for TensorRT, whose plugins take the nodes' place.

A new op is one entry in :data:`SPECS`: an :class:`OpSpec` with a shape rule and a body.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, helper, inliner, numpy_helper, parser

from swinopt.errors import ModelError

DOMAIN = "swinopt"
VERSION = 1

#: What the bodies are written in. The operators they use mean the same in every later opset.
MIN_OPSET = 17

#: Attributes that any node may carry: they tell TensorRT's parser which plugin to take, and change nothing else.
PLUGIN_ATTRIBUTES = ("plugin_version", "plugin_namespace")

#: A dimension is a number, a name, or unknown.
Dim: TypeAlias = int | str | None
Shape: TypeAlias = tuple[Dim, ...]

STAND_IN = "swinopt.absent"
_IR_WITH_ATTRIBUTE_DEFAULTS = 9
_IR_WITH_OVERLOADS = 10


@dataclass(frozen=True)
class Input:
    """One input of an op.

    ``uniform`` marks an optional input that changes the body but not the meaning of nodes without it: where some nodes
    of a model have it and others do not, all of them get the body that takes it.
    """

    name: str
    shape: str
    doc: str
    optional: bool = False
    uniform: bool = False


@dataclass(frozen=True)
class Attribute:
    """One attribute of an op; required where ``default`` is None."""

    name: str
    type: AttributeProto.AttributeType
    doc: str
    default: int | float | None = None


@dataclass(frozen=True)
class OpSpec:
    """All there is to know about an op.

    Attributes:
        name: the ``op_type``.
        doc: the definition, in words and formulas.
        inputs: in order; the optional ones last.
        attributes: by name.
        output: the shape of the only output, in words.
        infer: from the input shapes (None where absent) and the attributes (defaults filled in) to the output shapes.
        body: from a node and an opset to the node's definition; ``overload`` of it names the variant.
    """

    name: str
    doc: str
    inputs: tuple[Input, ...]
    attributes: tuple[Attribute, ...]
    output: str
    infer: Callable[[Sequence[Shape | None], Mapping[str, Any]], list[Shape]]
    body: Callable[[NodeProto, int], FunctionProto]

    @property
    def required_inputs(self) -> int:
        """How many of the inputs every node has."""
        return sum(not i.optional for i in self.inputs)

    @property
    def required_attributes(self) -> tuple[str, ...]:
        """The attributes that every node has."""
        return tuple(a.name for a in self.attributes if a.default is None)

    @property
    def defaults(self) -> dict[str, int | float]:
        """The attributes that a node may leave out, and what they are then."""
        return {a.name: a.default for a in self.attributes if a.default is not None}


# -------------------------------------------------------------------------------------------------- WindowAttention

_WINDOW_ATTENTION = """\
Shifted-window multi-head self-attention over a feature map (Liu et al. 2021, arXiv:2103.14030, section 3.2).

The map is padded at the end of each spatial axis to a multiple of window_size, rolled by -shift_size, and partitioned
into windows of N = prod(window_size) slots; with roll_first the unpadded map is rolled and then padded. In each window
and head

    softmax(scale * q k^T + relative_position_bias + mask) v

where mask is mask_value for two slots from different regions of the shifted map and 0 otherwise. Padded slots take part
as keys, under the same mask as any other slot. The slots go back to where they came from; padded ones are dropped.
With logit_scale (Swin V2, arXiv:2111.09883, section 3.3) q and k are divided by max(L2 norm, 1e-12) along the head, and
logit_scale takes the place of scale. Statistics and sums are float32 at least. Batch and spatial sizes may be dynamic.
T is float32, float16 or bfloat16.
"""


def _window_attention_shapes(inputs: Sequence[Shape | None], attributes: Mapping[str, Any]) -> list[Shape]:
    qkv, bias, logit_scale, pad_qkv = inputs
    assert qkv is not None and bias is not None
    window, heads = _window_and_heads(attributes)
    if len(qkv) != len(window) + 2:
        raise ModelError(f"WindowAttention: qkv {qkv} must be [B, *spatial, 3C] with {len(window)} spatial axes")
    *outer, channels = qkv
    n = math.prod(window)
    _require("WindowAttention: relative_position_bias", bias, (heads, n, n))
    _require("WindowAttention: logit_scale", logit_scale, (heads,))
    _require("WindowAttention: pad_qkv", pad_qkv, (channels,))
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
    if opset < MIN_OPSET:
        raise ModelError(f"the swinopt ops need opset {MIN_OPSET} or later, this is {opset}: convert the model first")
    spec = SPECS["WindowAttention"]
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
    return _parse_body(spec, "".join(steps), [i.name for i in spec.inputs[:count]], ["attention"], opset)


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


def _window_attention_body(node: NodeProto, opset: int) -> FunctionProto:
    cosine, padded = _has_input(node, 2), _has_input(node, 3)
    body = function_body(cosine=cosine, padded=padded, opset=opset)
    body.overload = ("scaled_cosine" if cosine else "dot_product") + ("_padded" if padded else "")
    return body


#: The ops of the swinopt domain by name.
SPECS: Mapping[str, OpSpec] = {
    "WindowAttention": OpSpec(
        name="WindowAttention",
        doc=_WINDOW_ATTENTION,
        inputs=(
            Input("qkv", "[B, *spatial, 3C]", "T: query, key, value of every token, each [num_heads, C / num_heads]"),
            Input("relative_position_bias", "[num_heads, N, N]", "T: added to the scores, query by key"),
            Input("logit_scale", "[num_heads]", "T: scale of the cosine, exp'ed and clamped already", optional=True),
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
        output="[B, *spatial, C]",
        infer=_window_attention_shapes,
        body=_window_attention_body,
    ),
}


# ---------------------------------------------------------------------------------------------------------- any op


def infer_shapes(
    op_type: str, input_shapes: Sequence[Shape | None], attributes: Mapping[str, Any]
) -> list[tuple[Dim, ...]]:
    """The output shapes of a swinopt op.

    Args:
        op_type: its name.
        input_shapes: by position, None for an absent optional input. Dimensions are ints, names, or None where
            unknown; a check that would need an unknown dimension is left out.
        attributes: by name, as Python numbers and sequences of them.

    Raises:
        ModelError: there is no such op, an input or attribute is missing or unknown, or shapes contradict each other.
    """
    spec = _spec(op_type)
    inputs = [*input_shapes, *[None] * (len(spec.inputs) - len(input_shapes))]
    missing = [i.name for i, shape in zip(spec.inputs, inputs, strict=False) if shape is None and not i.optional]
    missing += [name for name in spec.required_attributes if name not in attributes]
    if missing:
        raise ModelError(f"{op_type}: {', '.join(missing)} missing")
    unknown = set(attributes) - {a.name for a in spec.attributes} - set(PLUGIN_ATTRIBUTES)
    if unknown:
        raise ModelError(f"{op_type}: unknown attributes {', '.join(sorted(unknown))}")
    if len(inputs) > len(spec.inputs):
        raise ModelError(f"{op_type}: more than {len(spec.inputs)} inputs")
    return spec.infer(inputs, {**spec.defaults, **attributes})


def uses(model: ModelProto) -> Counter[str]:
    """How many nodes of each swinopt op the graph of the model has, its subgraphs included."""
    return Counter(node.op_type for node in _nodes(model))


def attach_bodies(model: ModelProto) -> None:
    """Adds the definitions of the swinopt ops that the model uses; in place, and the same if done twice.

    If one definition fits all nodes of an op, it is the only one, and any runtime that knows functions can run the
    model. Where only some nodes have ``pad_qkv``, the others get a stand-in of NaN, which none of them reads as long
    as its windows fit: then padding that nobody provided for is seen at once. Nodes with and without ``logit_scale``
    in one model need two definitions under one name (``overload``, IR version 10): ONNX Runtime 1.27 or later. Older
    ones know one definition for a name, and refuse the model.

    The standard opset stays; the IR version is raised to what the definitions need, if it is lower.

    Raises:
        ModelError: the model uses a swinopt op that does not exist, uses one inside a function of its own, or is of
            an opset below 17.
    """
    strip_bodies(model)
    for function in model.functions:
        if any(node.domain == DOMAIN for node in _walk(function.node)):
            raise ModelError(f"function {function.name} uses a swinopt op: inline it with onnx.inliner first")
    nodes = list(_nodes(model))
    if not nodes:
        return
    _complete_uniform_inputs(model, nodes)
    opset = _standard_opset(model)
    bodies: dict[str, dict[str, FunctionProto]] = defaultdict(dict)
    for node in nodes:
        body = _spec(node.op_type).body(node, opset)
        node.overload = body.overload
        bodies[node.op_type][body.overload] = body
    for op_type, variants in bodies.items():
        if len(variants) == 1:
            _drop_overloads([*variants.values(), *(n for n in nodes if n.op_type == op_type)])
        # A runtime that ignores overloads keeps the last. It must not run by mistake: the last in this order asks
        # for an input that the nodes of the other variant lack.
        model.functions.extend(variants[name] for name in sorted(variants))
    overloaded = any(len(variants) > 1 for variants in bodies.values())
    model.ir_version = max(model.ir_version, _IR_WITH_OVERLOADS if overloaded else _IR_WITH_ATTRIBUTE_DEFAULTS)
    _import_domain(model)


def inline_bodies(model: ModelProto) -> ModelProto:
    """The model with every swinopt op replaced by its body, so that standard ops alone are left.

    Raises:
        ModelError: as :func:`attach_bodies`.
    """
    for node in _nodes(model):
        if node.domain == DOMAIN:
            # The inliner does not know the defaults of a function's attributes.
            _set_missing(node, _spec(node.op_type).defaults)
    attach_bodies(model)
    inlined = inliner.inline_local_functions(model)
    imports = [opset for opset in inlined.opset_import if opset.domain != DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(imports)
    return inlined


def name_plugins(model: ModelProto) -> None:
    """Writes into every node of the domain which TensorRT plugin runs it, in place.

    A parser that knows functions prefers a body to a plugin, unless the node asks for the plugin by name.
    """
    for node in _nodes(model):
        if node.domain == DOMAIN:
            _set_missing(node, {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)})


def _set_missing(node: NodeProto, attributes: Mapping[str, Any]) -> None:
    there = {attribute.name for attribute in node.attribute}
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if k not in there)


def strip_bodies(model: ModelProto) -> None:
    """Takes away what :func:`attach_bodies` added, in place; the nodes stay, without empty inputs at their end."""
    nodes = list(_nodes(model))
    for node in nodes:
        inputs = ["" if name == STAND_IN else name for name in node.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        node.input[:] = inputs
    _drop_overloads(nodes)
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name == STAND_IN:
            del model.graph.initializer[index]
    for index in reversed(range(len(model.functions))):
        if model.functions[index].domain == DOMAIN:
            del model.functions[index]


def _complete_uniform_inputs(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    for node, index in _missing_uniform_inputs(nodes):
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = STAND_IN
    if any(STAND_IN in node.input for node in nodes):
        model.graph.initializer.append(numpy_helper.from_array(np.full(1, np.nan, np.float32), STAND_IN))


def _missing_uniform_inputs(nodes: Sequence[NodeProto]) -> Iterator[tuple[NodeProto, int]]:
    for op_type in {node.op_type for node in nodes}:
        same_op = [node for node in nodes if node.op_type == op_type]
        for index, declared in enumerate(_spec(op_type).inputs):
            without = [node for node in same_op if not _has_input(node, index)]
            if declared.uniform and len(without) < len(same_op):
                yield from ((node, index) for node in without)


def _parse_body(spec: OpSpec, text: str, inputs: Sequence[str], outputs: Sequence[str], opset: int) -> FunctionProto:
    defaults = [helper.make_attribute(name, value) for name, value in spec.defaults.items()]
    body = parser.parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{spec.name} <{', '.join(spec.required_attributes)}> ({', '.join(inputs)}) => ({', '.join(outputs)})\n"
        f"{{ {text} }}"
    )
    body.attribute_proto.extend(defaults)
    body.doc_string = spec.doc
    return body


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    return (node for node in _walk(model.graph.node) if node.domain == DOMAIN)


def _walk(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            subgraphs: list[GraphProto] = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in subgraphs:
                yield from _walk(subgraph.node)


def _has_input(node: NodeProto, index: int) -> bool:
    return len(node.input) > index and bool(node.input[index])


def _drop_overloads(protos: Iterable[NodeProto | FunctionProto]) -> None:
    for proto in protos:
        proto.ClearField("overload")


def _standard_opset(model: ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _import_domain(model: ModelProto) -> None:
    versions = [o for o in model.opset_import if o.domain == DOMAIN] or [model.opset_import.add(domain=DOMAIN)]
    for version in versions:
        version.version = VERSION


def _spec(op_type: str) -> OpSpec:
    if op_type not in SPECS:
        raise ModelError(f"the swinopt domain has no op {op_type}; it has {', '.join(SPECS)}")
    return SPECS[op_type]


def _require(what: str, shape: Shape | None, expected: Shape) -> None:
    if shape is None:
        return
    pairs = zip(shape, expected, strict=False)
    contradicted = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
    if len(shape) != len(expected) or contradicted:
        raise ModelError(f"{what} has shape {shape}, but {expected} is needed")

"""Small ONNX graphs that spell things out in standard ops, the way exporters do.

:class:`Builder` writes one node after another; :func:`swin_attention` writes a whole window attention, in any of the
spellings that are met in the wild, or spoilt at one place (``spoil``) to see that it is not taken for one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from swinopt import graph as graphs
from swinopt import ops
from swinopt.facts import Facts
from swinopt.graph import Tensor
from swinopt.textbook import padded_size, shift_mask

Array = npt.NDArray[Any]

#: Changes a tensor on its way: from the builder and the tensor's name to the name of what stands in for it.
Spoil = Callable[["Builder", str], str]


class Builder:
    """Writes a model node by node; tensors go by their names.

    ``far_end`` is the end of a Slice that means "to the end", as exporters write it.
    """

    far_end = 2**63 - 1

    def __init__(self, *, opset: int = 17, seed: int = 0, dtype: Any = np.float32) -> None:
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def input(self, shape: Sequence[int | str], name: str = "x", dtype: Any = None) -> str:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def constant(self, value: npt.ArrayLike, dtype: Any = None) -> str:
        array = np.asarray(value)
        if dtype is None and array.dtype.kind == "f":
            dtype = self.dtype
        name = f"c{len(self.initializers)}"
        self.initializers.append(
            numpy_helper.from_array(np.ascontiguousarray(array.astype(dtype or array.dtype)), name)
        )
        self.initializers[-1].dims[:] = array.shape
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weights(self, *shape: int, scale: float = 1.0) -> str:
        return self.constant(self.random.standard_normal(shape) * scale)

    def op(self, op_type: str, *inputs: str, domain: str = "", **attrs: Any) -> str:
        return self.ops(op_type, *inputs, count=1, domain=domain, **attrs)[0]

    def ops(self, op_type: str, *inputs: str, count: int, domain: str = "", **attrs: Any) -> list[str]:
        number = len(self.nodes)
        outputs = [f"{op_type.lower()}{number}" + (f".{i}" if count > 1 else "") for i in range(count)]
        name = f"{op_type}_{number}"
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, name=name, domain=domain, **attrs))
        return outputs

    def model(self, *outputs: str, shapes: Mapping[str, Sequence[int | str]] | None = None) -> onnx.ModelProto:
        """The model with these outputs, which get a node of their own name: ``y``, or ``y0``, ``y1`` ..."""
        names = ["y"] if len(outputs) == 1 else [f"y{i}" for i in range(len(outputs))]
        made = {name for node in self.nodes for name in node.output}
        for node in self.nodes:
            for old, new in zip(outputs, names, strict=True):
                if old in made:
                    node.input[:] = [new if name == old else name for name in node.input]
                    node.output[:] = [new if name == old else name for name in node.output]
        for old, new in zip(outputs, names, strict=True):
            if old not in made:
                self.nodes.append(helper.make_node("Identity", [old], [new], name=f"Identity_{new}"))
        graph = helper.make_graph(
            self.nodes,
            "graph",
            self.inputs,
            [helper.make_empty_tensor_value_info(name) for name in names],
            self.initializers,
        )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in sorted({n.domain for n in self.nodes} - {""})]
        model = helper.make_model(graph, opset_imports=imports, ir_version=9)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
        known = {v.name: v for v in inferred.graph.output}
        for output in model.graph.output:
            output.CopyFrom(known[output.name])
            if not output.type.tensor_type.elem_type:
                output.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(self.dtype)
            if shapes and output.name in shapes:
                kind = output.type.tensor_type.elem_type
                output.CopyFrom(helper.make_tensor_value_info(output.name, kind, shapes[output.name]))
        return model

    # ------------------------------------------------------------------------------------------------ common pieces

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.ints(*shape))

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, perm=perm)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis), self.ints(step))

    def roll(self, x: str, shift: int, axis: int) -> str:
        """As torch.roll: two slices put together the other way round."""
        if not shift:
            return x
        parts = [self.slice(x, -shift, self.far_end, axis), self.slice(x, 0, -shift, axis)]
        return self.op("Concat", *parts, axis=axis)

    def linear(self, x: str, k: int, n: int, *, bias: bool = True, gemm: bool = False, constant: bool = True) -> str:
        if gemm:
            flat = self.reshape(x, -1, k)
            inputs = [flat, self.weights(n, k, scale=k**-0.5), *([self.weights(n)] if bias else [])]
            return self.op("Gemm", *inputs, transB=1)
        weight = self.weights(k, n, scale=k**-0.5)
        product = self.op(
            "MatMul", x, weight if constant else self.op("Neg", self.input((k, n), f"w{len(self.inputs)}"))
        )
        return self.op("Add", self.weights(n), product) if bias else product

    def layer_norm(self, x: str, channels: int, axis: int = -1) -> str:
        scale, bias = self.weights(channels), self.weights(channels)
        return self.op("LayerNormalization", x, scale, bias, axis=axis, epsilon=1e-5)


def gelu_node(b: Builder, x: str) -> str:
    return b.op("Gelu", x)


def erf_gelu(b: Builder, x: str) -> str:
    one_plus = b.op("Add", b.op("Erf", b.op("Div", x, b.constant(2**0.5))), b.constant(1.0))
    return b.op("Mul", b.op("Mul", x, one_plus), b.constant(0.5))


def erf_gelu_halved_first(b: Builder, x: str) -> str:
    one_plus = b.op("Add", b.constant(1.0), b.op("Erf", b.op("Mul", x, b.constant(0.5**0.5))))
    return b.op("Mul", b.op("Mul", b.constant(0.5), x), one_plus)


def session_of(model: onnx.ModelProto) -> Any:
    """ONNX Runtime on the model as it is written; failures are exceptions, and nothing is printed."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def session_with_bodies(model: onnx.ModelProto) -> Any:
    """:func:`session_of` after the swinopt ops got their definitions, which have to pass ONNX's checker."""
    ops.attach_bodies(model)
    onnx.checker.check_model(model, full_check=True)
    return session_of(model)


def run(model: onnx.ModelProto, *inputs: Array) -> list[Array]:
    """The model's outputs in ONNX Runtime."""
    session = session_of(model)
    return list(session.run(None, {i.name: array for i, array in zip(session.get_inputs(), inputs, strict=True)}))


def constants_of(text: str, numbers: Mapping[str, Any]) -> dict[str, Array]:
    """Those of the numbers that a text in ONNX's syntax reads, as arrays."""
    read = set(re.findall(r"\w+", text))
    return {name: np.array(value) for name, value in numbers.items() if name in read}


def known(model: onnx.ModelProto, **sizes: list[int]) -> tuple[Facts, dict[str, Tensor]]:
    """Facts with the given sizes (one a sample for each symbol), and the tensors by name."""
    graph = graphs.load(model)
    samples = [{name: values[i] for name, values in sizes.items()} for i in range(len(next(iter(sizes.values()), ())))]
    return Facts(graph, samples or None), graph.tensors()


# ------------------------------------------------------------------------------------------------- window partition


def batch_of(b: Builder) -> str:
    """The size of the first axis of x."""
    return b.op("Slice", b.op("Shape", "x"), b.ints(0), b.ints(1))


def partition(b: Builder, x: str, size: Sequence[int], window: Sequence[int], channels: int) -> str:
    """[B, *size, C] to [B * windows, N, C]; the size is a multiple of the window."""
    tiled = [extent for s, w in zip(size, window, strict=True) for extent in (s // w, w)]
    axes = range(1, 1 + len(tiled))
    split = b.reshape(x, -1, *tiled, channels)
    return b.reshape(b.transpose(split, 0, *axes[::2], *axes[1::2], 1 + len(tiled)), -1, math.prod(window), channels)


def reverse(b: Builder, x: str, size: Sequence[int], window: Sequence[int], channels: int) -> str:
    """[B * windows, N, C] to [B, *size, C]."""
    n = len(size)
    split = b.reshape(x, -1, *(s // w for s, w in zip(size, window, strict=True)), *window, channels)
    order = [axis for i in range(n) for axis in (1 + i, 1 + n + i)]
    return b.reshape(b.transpose(split, 0, *order, 1 + 2 * n), -1, *size, channels)


def shifted_partition(
    b: Builder,
    x: str,
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    channels: int,
    *,
    roll_first: bool = False,
) -> str:
    """Pad, roll and partition a map [B, *size, C], or roll, pad and partition."""
    padded = padded_size(size, window)
    steps = [lambda t: _pad_map(b, t, size, padded), lambda t: _roll_map(b, t, [-s for s in shift])]
    for step in reversed(steps) if roll_first else steps:
        x = step(x)
    return partition(b, x, padded, window, channels)


def shifted_reverse(
    b: Builder,
    x: str,
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    channels: int,
    *,
    roll_first: bool = False,
) -> str:
    """The inverse of :func:`shifted_partition`."""
    padded = padded_size(size, window)
    x = reverse(b, x, padded, window, channels)
    steps = [lambda t: _roll_map(b, t, shift), lambda t: _crop_map(b, t, size, padded)]
    for step in reversed(steps) if roll_first else steps:
        x = step(x)
    return x


def _roll_map(b: Builder, x: str, shift: Sequence[int]) -> str:
    for axis, s in enumerate(shift, start=1):
        x = b.roll(x, s, axis)
    return x


def _pad_map(b: Builder, x: str, size: Sequence[int], padded: Sequence[int]) -> str:
    if tuple(size) == tuple(padded):
        return x
    after = [p - s for s, p in zip(size, padded, strict=True)]
    return b.op("Pad", x, b.ints(*[0] * (len(size) + 2), 0, *after, 0))


def _crop_map(b: Builder, x: str, size: Sequence[int], padded: Sequence[int]) -> str:
    for axis, (s, p) in enumerate(zip(size, padded, strict=True), start=1):
        x = b.slice(x, 0, s, axis) if s != p else x
    return x


# -------------------------------------------------------------------------------------------------------- attention

Scale = Literal["q", "k", "both", "scores", "div", "none"]
Terms = Literal["two", "tiled", "one", "one-5d", "bias", "mask", "none"]
Order = Literal["3hd", "h3d", "hd3", "3dh", "kvq"]


def swin_attention(
    batch: int | str = 1,
    size: Sequence[int] = (4, 4),
    window: Sequence[int] = (2, 2),
    shift: Sequence[int] = (0, 0),
    *,
    heads: int = 2,
    head_dim: int = 4,
    roll_first: bool = False,
    cosine: bool = False,
    separate: bool = False,
    gemm: bool = False,
    bmm: bool = False,
    order: Order = "3hd",
    scale: Scale = "q",
    terms: Terms = "two",
    mask_value: float = -100.0,
    mask: Array | None = None,
    bias: bool = True,
    projection: bool = True,
    merge: Literal["hd", "dh"] = "hd",
    pad_after_linear: bool = False,
    late_bias: bool = False,
    tokens: bool = False,
    residual: bool = True,
    opset: int = 17,
    dtype: Any = np.float32,
    seed: int = 0,
    spoil: Mapping[str, Spoil] | None = None,
) -> onnx.ModelProto:
    """One window attention between a computed map and a residual, with random weights.

    Args:
        batch: the batch size, or the name of a dynamic one.
        size: the map, one entry a spatial axis.
        window: the window, likewise.
        shift: the cyclic shift, likewise.
        heads: number of heads.
        head_dim: channels of a head.
        roll_first: roll before padding (timm) and not after it.
        cosine: Swin V2: q and k normalised, a factor for each head.
        separate: three linears for q, k and v.
        gemm: linears as Gemm on flattened tokens.
        bmm: q, k and v as [groups * heads, N, d], as torch.bmm has them.
        order: how the joint linear's features are laid out; "kvq" is "3hd" with k, v and q in this order.
        scale: where the scores are scaled.
        terms: what is added to the scores, and how: bias and mask as "two" Adds (the mask's over five axes), the mask
            "tiled" to all groups, both as "one" constant for all groups, the same over five axes ("one-5d"), only one
            of them, or "none".
        mask_value: what masked pairs get.
        mask: [windows, N, N], instead of the shift's mask.
        bias: whether the linears have biases.
        projection: whether a linear follows.
        merge: how the heads are merged; "dh" has the head as the inner axis.
        pad_after_linear: pad and partition q, k and v, and not what they are made of.
        late_bias: one linear without bias, split in three, and each part is given its bias then.
        tokens: the map is [B, H * W, C] before and after.
        residual: whether the map is added at the end.
        opset: version of the standard opset.
        dtype: of activations and weights.
        seed: of the weights.
        spoil: changes at "x", "windows", "qkv", "q", "k", "v", "scores", "biased", "probabilities", "attended",
            "merged", "projected", "returned".
    """
    assert not (late_bias and (separate or pad_after_linear))
    b = Builder(opset=opset, seed=seed, dtype=dtype)
    channels, slots = heads * head_dim, math.prod(window)
    windows = math.prod(p // w for p, w in zip(padded_size(size, window), window, strict=True))
    groups = batch * windows if isinstance(batch, int) else -1
    spoils = dict(spoil or {})

    def at(place: str, tensor: str) -> str:
        return spoils.pop(place)(b, tensor) if place in spoils else tensor

    def cut(x: str, width: int) -> str:
        return shifted_partition(b, x, size, window, shift, width, roll_first=roll_first)

    # From the map to q, k and v: each [groups, heads, N, d].
    shape = (batch, math.prod(size), channels) if tokens else (batch, *size, channels)
    source = b.op("Tanh", b.input(shape))
    x = at("x", b.reshape(source, -1, *size, channels) if tokens else source)
    x = x if pad_after_linear else at("windows", cut(x, channels))
    parts = []
    for _ in range(3) if separate else range(1):
        made = at(
            "qkv", b.linear(x, channels, channels if separate else 3 * channels, bias=bias and not late_bias, gemm=gemm)
        )
        width = channels if separate else 3 * channels
        parts.append(cut(b.reshape(made, -1, *size, width), width) if pad_after_linear else made)
    if late_bias:
        parts = [
            b.op("Add", t, b.weights(channels))
            for t in b.ops("Split", parts[0], b.ints(*[channels] * 3), count=3, axis=-1)
        ]
    if separate or late_bias:
        q, k, v = (b.transpose(b.reshape(t, -1, slots, heads, head_dim), 0, 2, 1, 3) for t in parts)
    else:
        q, k, v = _split_heads(b, parts[0], slots, heads, head_dim, order)

    if cosine:
        q, k = (_normalised(b, t) for t in (q, k))
    factor = head_dim**-0.5
    if not cosine and scale in ("q", "both"):
        q = b.op("Mul", q, b.constant(factor if scale == "q" else factor**0.5))
    if not cosine and scale in ("k", "both"):
        k = b.op("Mul", b.constant(factor if scale == "k" else factor**0.5), k)
    q, k, v = at("q", q), at("k", k), at("v", v)

    # From q, k and v to the attended values: [groups, heads, N, d].
    if bmm:
        flat = [b.reshape(t, -1, slots, head_dim) for t in (q, k, v)]
        scores = b.reshape(b.op("MatMul", flat[0], b.transpose(flat[1], 0, 2, 1)), -1, heads, slots, slots)
    else:
        scores = b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2))
    if cosine:
        scores = b.op("Mul", scores, b.constant(b.random.uniform(1, 20, (heads, 1, 1))))
    elif scale in ("scores", "div"):
        scores = b.op(
            *(("Mul", scores, b.constant(factor)) if scale == "scores" else ("Div", scores, b.constant(1 / factor)))
        )
    scores = at("scores", scores)
    mask = shift_mask(size, window, shift) if mask is None else mask
    scores = _with_terms(b, scores, terms, np.where(mask, mask_value, 0.0), groups, heads, any(shift))
    scores = at("biased", scores)
    if bmm:
        weights = b.op("Softmax", b.reshape(scores, -1, slots, slots), axis=2)
        attended = b.reshape(b.op("MatMul", at("probabilities", weights), flat[2]), -1, heads, slots, head_dim)
    else:
        attended = b.op("MatMul", at("probabilities", b.op("Softmax", scores, axis=-1)), v)
    attended = at("attended", attended)

    # And back to the map.
    merged = b.transpose(attended, *((0, 2, 1, 3) if merge == "hd" else (0, 2, 3, 1)))
    merged = at("merged", b.reshape(merged, -1, slots, channels))
    if projection:
        merged = at("projected", b.linear(merged, channels, channels, bias=bias, gemm=gemm))
    result = at("returned", shifted_reverse(b, merged, size, window, shift, channels, roll_first=roll_first))
    if tokens:
        result = b.reshape(result, -1, math.prod(size), channels)
    result = b.op("Add", source, result) if residual else b.op("Tanh", result)
    assert not spoils, f"nothing is there to spoil: {list(spoils)}"
    return b.model(result, shapes={"y": shape})


def _split_heads(b: Builder, qkv: str, slots: int, heads: int, head_dim: int, order: Order) -> tuple[str, ...]:
    """[groups, N, 3C] to q, k and v; the Gather of one index is how torch's ``qkv[0]`` is exported."""
    letters = "3hd" if order == "kvq" else order
    sizes = {"3": 3, "h": heads, "d": head_dim}
    split = b.reshape(qkv, -1, slots, *(sizes[letter] for letter in letters))
    at = {letter: 2 + letters.index(letter) for letter in letters}
    first = b.transpose(split, at["3"], 0, at["h"], 1, at["d"])
    q, k, v = (b.op("Gather", first, b.constant(np.int64(i)), axis=0) for i in range(3))
    return (v, q, k) if order == "kvq" else (q, k, v)


def _normalised(b: Builder, x: str) -> str:
    norm = b.op("ReduceL2", x, axes=[-1], keepdims=1) if b.opset < 18 else b.op("ReduceL2", x, b.ints(-1), keepdims=1)
    floored = b.op("Clip", norm, b.constant(1e-12))
    return b.op("Div", x, b.op("Expand", floored, b.op("Shape", x)))


def _with_terms(b: Builder, scores: str, terms: Terms, mask: Array, groups: int, heads: int, shifted: bool) -> str:
    windows, slots = mask.shape[:2]
    bias = b.random.standard_normal((heads, slots, slots))
    if terms == "none" or (terms == "mask" and not shifted):
        return scores
    if terms == "bias" or (not shifted and terms in ("two", "tiled")):
        return b.op("Add", scores, b.constant(bias))
    if terms in ("tiled", "one"):
        times = groups // windows
        if terms == "tiled":
            scores = b.op("Add", scores, b.constant(bias))
            return b.op("Add", scores, b.constant(np.tile(mask[:, None], (times, 1, 1, 1))))
        return b.op("Add", scores, b.constant(np.tile(mask[:, None] + bias, (times, 1, 1, 1))))
    if terms == "two":
        scores = b.op("Add", scores, b.constant(bias[None]))
    value = mask[:, None] + bias if terms == "one-5d" else mask[None, :, None]
    scores = b.op("Add", b.reshape(scores, -1, windows, heads, slots, slots), b.constant(value))
    return b.reshape(scores, -1, heads, slots, slots)

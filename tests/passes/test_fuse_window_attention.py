from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import swinopt
from swinopt import ops
from swinopt.passes import FuseWindowAttention
from swinopt.pipeline import Pass
from swinopt.testing import assert_equivalent, parse, refuses, rewrites
from swinopt.textbook import shift_mask
from tests import graphs
from tests.graphs import Builder, Spoil, swin_attention

FUSE = FuseWindowAttention()


def fused(model: onnx.ModelProto, *, pass_: Pass = FUSE, tolerance: float | None = None) -> dict[str, Any]:
    """Fuses, compares the numbers with the op's function body in ONNX Runtime, and returns the op's attributes."""
    after = rewrites(model, pass_, applied=1, tolerance=tolerance)
    (node,) = [node for node in after.graph.node if node.domain == ops.DOMAIN]
    left = {n.op_type for n in after.graph.node}
    assert not left & {"Softmax", "Slice", "Concat", "Pad", "Gather", "Split", "Transpose"}, left
    inputs = dict(zip(("qkv", "relative_position_bias", "logit_scale", "pad_qkv"), node.input, strict=False))
    return {
        **{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
        "inputs": {k for k, v in inputs.items() if v},
    }


# ---------------------------------------------------------------------------------------------- positives, per spelling

SPELLINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "q scaled": {"scale": "q"},
    "k scaled": {"scale": "k"},
    "q and k scaled": {"scale": "both"},
    "scores scaled": {"scale": "scores"},
    "scores divided": {"scale": "div"},
    "nothing scaled": {"scale": "none"},
    "channels as [heads, 3, d]": {"order": "h3d"},
    "channels as [heads, d, 3]": {"order": "hd3"},
    "channels as [3, d, heads]": {"order": "3dh"},
    "k, v, q": {"order": "kvq"},
    "three linears": {"separate": True},
    "Gemm": {"gemm": True},
    "three Gemms": {"gemm": True, "separate": True},
    "no biases": {"bias": False},
    "three linears without biases": {"separate": True, "bias": False},
    "no projection": {"projection": False},
    "no projection, a linear in front that is Gemm": {"projection": False, "gemm": True},
    "heads merged as [d, heads]": {"merge": "dh"},
    "heads merged as [d, heads], with Gemm": {"merge": "dh", "gemm": True},
    "products of three axes": {"bmm": True},
    "map given as tokens": {"tokens": True},
    "no residual": {"residual": False},
    "one head": {"heads": 1},
    "three heads": {"heads": 3, "head_dim": 2},
    "the window is the map": {"window": (4, 4)},
    "qkv before the partition": {"pad_after_linear": True},
    "biases behind the split": {"late_bias": True, "scale": "scores"},
    "biases behind the split, q scaled": {"late_bias": True},
    "opset 20": {"opset": 20},
}


UNSHIFTED = ("the window is the map", "qkv before the partition")


@pytest.mark.parametrize("version", ["V1", "V2"])
@pytest.mark.parametrize(
    ("name", "shift"), [(n, s) for n in SPELLINGS for s in ((0, 0), (1, 1)) if n not in UNSHIFTED or not any(s)]
)
def test_every_spelling_becomes_one_node(name: str, shift: tuple[int, int], version: str) -> None:
    options = SPELLINGS[name]
    found = fused(swin_attention(2, shift=shift, cosine=version == "V2", **options))
    heads = options.get("heads", 2)
    assert found["window_size"] == list(options.get("window", (2, 2))) and found["shift_size"] == list(shift)
    assert found["num_heads"] == heads
    assert found["mask_value"] == (-100 if any(shift) else 0)
    assert ("logit_scale" in found["inputs"]) == (version == "V2") and "pad_qkv" not in found["inputs"]
    if version == "V1":
        expected = 1 if options.get("scale") == "none" else options.get("head_dim", 4) ** -0.5
        assert found["scale"] == pytest.approx(expected)


# A constant for each group has no dynamic batch.
TERMS = [
    (batch, terms)
    for batch in (1, 2, "batch")
    for terms in ("two", "tiled", "one", "one-5d", "bias", "mask", "none")
    if batch != "batch" or terms not in ("tiled", "one")
]


@pytest.mark.parametrize(("batch", "terms"), TERMS)
@pytest.mark.parametrize("bmm", [False, True], ids=["4-D", "3-D"])
def test_bias_and_mask_are_taken_by_value(batch: int | str, terms: Any, bmm: bool) -> None:
    model = swin_attention(batch, shift=(1, 1), terms=terms, bmm=bmm)
    if bmm and terms in ("mask", "none"):
        refuses(model, FUSE, "how many heads")
        return
    found = fused(model)
    assert found["mask_value"] == pytest.approx(0 if terms in ("bias", "none") else -100, rel=1e-6)


def mask_tiled_to_the_batch(b: Builder, x: str) -> str:
    mask = b.constant(np.where(shift_mask((4, 4), (2, 2), (1, 1)), -100.0, 0.0)[:, None])
    return b.op("Add", x, b.op("Tile", mask, b.op("Concat", graphs.batch_of(b), b.ints(1, 1, 1), axis=0)))


def mask_expanded_to_the_batch(b: Builder, x: str) -> str:
    """As TorchScript exports expand: a size of -1 would stay as it is."""
    mask = b.constant(np.where(shift_mask((4, 4), (2, 2), (1, 1)), -100.0, 0.0)[None, :, None])
    wanted = b.op("Concat", graphs.batch_of(b), b.ints(4, 1, 4, 4), axis=0)
    stays = b.op("Equal", wanted, b.ints(-1, -1, -1, -1, -1))
    expanded = b.op("Expand", mask, b.op("Where", stays, b.ints(1, 1, 1, 1, 1), wanted))
    return b.op("Add", x, b.reshape(expanded, -1, 1, 4, 4))


@pytest.mark.parametrize("write", [mask_tiled_to_the_batch, mask_expanded_to_the_batch])
def test_a_mask_that_is_repeated_for_a_dynamic_batch_is_the_mask(write: Spoil) -> None:
    found = fused(swin_attention("batch", shift=(1, 1), terms="bias", spoil={"biased": write}))
    assert found["mask_value"] == -100


@pytest.mark.parametrize("terms", ["two", "one", "one-5d"])
@pytest.mark.parametrize(
    ("mask_value", "expected"),
    [(-100.0, -100.0), (-np.inf, -30000.0), (-1e9, -30000.0), (-65504.0, -30000.0), (-5.0, -5.0), (0.0, 0.0)],
)
def test_any_mask_value_is_taken_over(terms: Any, mask_value: float, expected: float) -> None:
    found = fused(swin_attention(2, shift=(1, 1), terms=terms, mask_value=mask_value))
    assert found["mask_value"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("terms", ["two", "one", "one-5d"])
@pytest.mark.parametrize("cosine", [False, True], ids=["V1", "V2"])
def test_fp16_models_are_fused_too(terms: Any, cosine: bool) -> None:
    fused(swin_attention(2, shift=(1, 1), terms=terms, cosine=cosine, dtype=np.float16), tolerance=2e-2)


@pytest.mark.parametrize("cosine", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("bias", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize("terms", ["two", "one"])
@pytest.mark.parametrize("roll_first", [False, True], ids=["pad first", "roll first"])
def test_a_map_that_is_no_multiple_of_the_window_is_padded(
    roll_first: bool, terms: Any, bias: bool, cosine: bool
) -> None:
    model = swin_attention(2, (5, 7), (3, 4), (1, 2), roll_first=roll_first, terms=terms, bias=bias, cosine=cosine)
    found = fused(model)
    assert found.get("roll_first", 0) == roll_first and "pad_qkv" in found["inputs"]
    assert found["window_size"] == [3, 4] and found["shift_size"] == [1, 2]


@pytest.mark.parametrize("size", [(2, 9), (9, 1), (2, 2), (1, 2)], ids=str)
def test_a_map_may_be_smaller_than_the_shift(size: tuple[int, int]) -> None:
    """Padded and then rolled, such a map has nothing but padding in the first slots."""
    found = fused(swin_attention(2, size, (5, 4), (2, 2)))
    assert found["window_size"] == [5, 4] and found["shift_size"] == [2, 2] and "roll_first" not in found


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("order", ["3hd", "h3d"])
def test_the_padding_is_in_the_ops_order_of_channels(separate: bool, order: Any) -> None:
    fused(swin_attention("batch", (3, 5), (2, 2), (1, 0), separate=separate, order=order))


def test_a_bias_behind_the_split_is_in_the_padding_too() -> None:
    fused(swin_attention(2, (3, 5), (2, 2), (1, 1), late_bias=True))


def test_padding_behind_a_linear_without_bias_is_the_same_as_before_it() -> None:
    found = fused(swin_attention(2, (3, 5), (2, 2), pad_after_linear=True, bias=False))
    assert "pad_qkv" in found["inputs"]


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.sampled_from([2, 2, 3]))
    window = [draw(st.integers(1, 4 if axes == 2 else 3)) for _ in range(axes)]
    size = [draw(st.integers(1, 7 if axes == 2 else 4)) for _ in range(axes)]
    roll_first = draw(st.booleans())
    most = [min(w, s) if roll_first else w for w, s in zip(window, size, strict=True)]
    shift = [draw(st.integers(0, m - 1)) for m in most]
    return {"size": tuple(size), "window": tuple(window), "shift": tuple(shift), "roll_first": roll_first}


@settings(deadline=None, max_examples=50)
@given(
    geometries(),
    st.sampled_from([1, 2, "batch"]),
    st.booleans(),
    st.sampled_from(["two", "one-5d", "bias"]),
    st.integers(0, 99),
)
def test_whatever_map_window_and_shift_the_result_is_the_same(
    geometry: dict[str, Any], batch: int | str, cosine: bool, terms: Any, seed: int
) -> None:
    """Some are refused: a single shifted window has pairs whose bias and mask cannot be told apart. None is wrong."""
    model = swin_attention(batch, cosine=cosine, terms=terms, seed=seed, **geometry)
    after = FUSE(model)
    assert_equivalent(model, after)
    if all(s > w > 1 for s, w in zip(geometry["size"], geometry["window"], strict=True)):
        assert ops.uses(after)["WindowAttention"] == 1


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [
        ((4, 6), (2, 3), (1, 2)),
        ((4, 6), (2, 3), (0, 1)),
        ((4, 6), (2, 3), (1, 0)),
        ((6, 4), (3, 2), (2, 1)),
        ((2, 8), (2, 4), (0, 2)),
        ((4, 4, 4), (2, 2, 2), (1, 0, 1)),
        ((3, 4, 5), (2, 2, 3), (1, 1, 1)),
        ((8, 8), (4, 2), (2, 1)),
    ],
)
@pytest.mark.parametrize("batch", [1, "batch"])
def test_maps_windows_and_shifts_need_not_be_square(size: Any, window: Any, shift: Any, batch: Any) -> None:
    found = fused(swin_attention(batch, size, window, shift))
    assert found["window_size"] == list(window) and found["shift_size"] == list(shift)


def dynamic_map(batch: int | str, window: tuple[int, int], *, padded: bool, tokens: bool = False) -> onnx.ModelProto:
    """An unshifted attention over a map whose sizes, and the padding, are computed from the image's.

    With ``tokens`` the map is [B, H * W, C] before and after; without padding these are cut into windows at once.
    """
    b = Builder(opset=17)
    image = b.input((batch, 3, "height", "width"))
    stem = b.transpose(b.op("Conv", image, b.weights(8, 3, 4, 4, scale=0.2), strides=[4, 4]), 0, 2, 3, 1)

    def size(tensor: str, axis: int) -> str:
        return b.op("Slice", b.op("Shape", tensor), b.ints(axis), b.ints(axis + 1))

    source = x = b.op("Tanh", b.reshape(stem, 0, -1, 8) if tokens else stem)
    if tokens:
        sizes = b.op("Concat", *(size(stem, i) for i in range(3)), b.ints(8), axis=0)
        x = b.op("Reshape", source, sizes)
    cut = x
    if padded:
        rest = [
            b.op("Mod", b.op("Sub", b.ints(w), b.op("Mod", size(x, i), b.ints(w))), b.ints(w))
            for i, w in enumerate(window, 1)
        ]
        cut = b.op("Pad", x, b.op("Concat", b.ints(0, 0, 0, 0, 0), *rest, b.ints(0), axis=0))
    tiles = [b.op("Div", size(cut, i), b.ints(w)) for i, w in enumerate(window, 1)]
    h, w = window
    tiled = b.op(
        "Reshape",
        cut if padded else source,
        b.op("Concat", size(x, 0), tiles[0], b.ints(h), tiles[1], b.ints(w, 8), axis=0),
    )
    windows = b.reshape(b.transpose(tiled, 0, 1, 3, 2, 4, 5), -1, h * w, 8)
    q, k, v = graphs._split_heads(b, b.linear(windows, 8, 24), h * w, 2, 4, "3hd")
    scores = b.op("Add", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), b.weights(2, h * w, h * w))
    attended = b.transpose(b.op("MatMul", b.op("Softmax", scores, axis=-1), v), 0, 2, 1, 3)
    merged = b.linear(b.reshape(attended, -1, h * w, 8), 8, 8)
    back = b.op("Reshape", merged, b.op("Concat", size(x, 0), *tiles, b.ints(h, w, 8), axis=0))
    back = b.transpose(back, 0, 1, 3, 2, 4, 5)
    back = b.op("Reshape", back, b.op("Concat", size(x, 0), size(cut, 1), size(cut, 2), b.ints(8), axis=0))
    for axis in (1, 2) if padded else ():
        back = b.op("Slice", back, b.ints(0), size(x, axis), b.ints(axis))
    back = b.reshape(back, 0, -1, 8) if tokens else back
    return b.model(b.op("Add", source, back), shapes={"y": (batch, "n", 8) if tokens else (batch, "h", "w", 8)})


@pytest.mark.parametrize("batch", [1, "batch"])
@pytest.mark.parametrize("window", [(7, 7), (8, 8), (5, 6)])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_map_of_dynamic_size_is_fused_with_its_padding(batch: Any, window: tuple[int, int], tokens: bool) -> None:
    model = dynamic_map(batch, window, padded=True, tokens=tokens)
    after = FUSE(model)
    assert ops.uses(after)["WindowAttention"] == 1
    for height, width in ((32, 64), (52, 40), (60, 44)):
        comparison = swinopt.compare(model, after, sizes={"height": height, "width": width}, tolerance=1e-5)
        assert comparison.passed, f"{height}x{width}: {comparison}"


def test_a_map_of_dynamic_size_that_is_never_padded_is_right_or_refused() -> None:
    model = dynamic_map(1, (8, 8), padded=False)
    comparison = swinopt.compare(model, FUSE(model), sizes={"height": 64, "width": 96}, tolerance=1e-5)
    assert comparison.passed, str(comparison)


def test_tokens_of_a_map_of_dynamic_size_are_no_map_where_the_model_makes_none_of_them() -> None:
    refuses(dynamic_map(1, (8, 8), padded=False, tokens=True), FUSE, "hangs on two sizes")


def test_two_blocks_in_a_row_are_both_fused() -> None:
    first, second = swin_attention(2, seed=1), swin_attention(2, shift=(1, 1), seed=2)
    joined = onnx.compose.merge_models(
        onnx.compose.add_prefix(first, "first/"),
        onnx.compose.add_prefix(second, "second/"),
        io_map=[("first/y", "second/x")],
    )
    after = rewrites(joined, FUSE, applied=2)
    assert ops.uses(after)["WindowAttention"] == 2


def test_a_result_that_is_read_as_map_and_as_tokens_is_fused_for_both() -> None:
    def both(b: Builder, x: str) -> str:
        return b.op("Add", x, b.reshape(b.op("Tanh", b.reshape(x, -1, 16, 8)), -1, 4, 4, 8))

    rewrites(swin_attention(2, shift=(1, 1), spoil={"returned": both}), FUSE)


def test_two_results_of_one_shape_are_one_tensor() -> None:
    def twice(b: Builder, x: str) -> str:
        return b.op("Add", b.op("Tanh", x), b.reshape(b.reshape(x, -1, 16, 8), -1, 4, 4, 8))

    rewrites(swin_attention(2, spoil={"returned": twice}), FUSE)


def test_features_may_be_left_out_and_taken_twice() -> None:
    fused(swin_attention(2, shift=(1, 1), spoil={"q": lambda b, x: b.op("Gather", x, b.ints(0, 0, 3, 2), axis=3)}))


def test_a_view_of_the_scores_that_keeps_the_pairs_is_passed() -> None:
    def view(b: Builder, x: str) -> str:
        return b.reshape(b.op("Unsqueeze", x, b.ints(0)), -1, 2, 4, 4)

    for place in ("scores", "biased", "probabilities"):
        fused(swin_attention(2, shift=(1, 1), spoil={place: view}))


def test_a_cast_between_floats_is_passed() -> None:
    def to_double_and_back(b: Builder, x: str) -> str:
        return b.op("Cast", b.op("Cast", x, to=onnx.TensorProto.DOUBLE), to=onnx.TensorProto.FLOAT)

    for place in ("q", "k", "v", "scores", "biased", "probabilities"):
        fused(swin_attention(2, shift=(1, 1), spoil={place: to_double_and_back}))


NORMS: dict[str, Callable[[Builder, str], str]] = {
    "ReduceSum of a power": lambda b, x: b.op(
        "Sqrt", b.op("ReduceSum", b.op("Pow", x, b.constant(2.0)), b.ints(-1), keepdims=1)
    ),
    "ReduceSum of a product": lambda b, x: b.op("Sqrt", b.op("ReduceSum", b.op("Mul", x, x), b.ints(-1), keepdims=1)),
    "ReduceL2": lambda b, x: b.op("ReduceL2", x, b.ints(3), keepdims=1),
    "ReduceSumSquare": lambda b, x: b.op("Sqrt", b.op("ReduceSumSquare", x, b.ints(-1))),
    "without the reduced axis, put back": lambda b, x: b.op(
        "Unsqueeze", b.op("ReduceL2", x, b.ints(-1), keepdims=0), b.ints(-1)
    ),
}
FLOORS: dict[str, Callable[[Builder, str], str]] = {
    "Clip": lambda b, x: b.op("Clip", x, b.constant(1e-12)),
    "Max": lambda b, x: b.op("Max", b.constant(1e-6), x),
}
QUOTIENTS: dict[str, Callable[[Builder, str, str], str]] = {
    "Div": lambda b, x, norm: b.op("Div", x, norm),
    "Div by Expand": lambda b, x, norm: b.op("Div", x, b.op("Expand", norm, b.op("Shape", x))),
}


@pytest.mark.parametrize("quotient", QUOTIENTS)
@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("norm", NORMS)
def test_every_spelling_of_the_cosine_is_one(norm: str, floor: str, quotient: str, spell_norm: Any) -> None:
    spell_norm(lambda b, x: QUOTIENTS[quotient](b, x, FLOORS[floor](b, NORMS[norm](b, x))))
    assert "logit_scale" in fused(swin_attention(2, shift=(1, 1), cosine=True, opset=18))["inputs"]


def test_one_factor_for_all_heads_is_a_logit_scale_too() -> None:
    def factor(b: Builder, x: str) -> str:
        return b.op("Mul", x, b.constant(1.5))

    fused(swin_attention(2, shift=(1, 1), cosine=True, spoil={"q": factor}))


def test_a_positive_factor_before_the_norm_makes_no_difference(spell_norm: Any) -> None:
    normalised = graphs._normalised
    spell_norm(lambda b, x: normalised(b, b.op("Mul", x, b.constant(0.5))))
    fused(swin_attention(2, shift=(1, 1), cosine=True))


def test_compare_agrees_that_the_fused_model_is_the_same() -> None:
    model = swin_attention("batch", (5, 6), (2, 3), (1, 2))
    comparison = swinopt.compare(model, FUSE(model), tolerance=1e-6)
    assert comparison.passed, str(comparison)


def test_an_attention_in_a_body_is_told() -> None:
    model = parse(
        """g (bool c, float[2, 3] x) => (float[2, 3] y) {
            y = If(c) <then_branch = a () => (float[2, 3] t) { t = Softmax(x) },
                       else_branch = b () => (float[2, 3] e) { e = Identity(x) }>
        }"""
    )
    refuses(model, FUSE, "in the body of an If, Loop or Scan")

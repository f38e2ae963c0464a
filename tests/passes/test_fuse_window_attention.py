from __future__ import annotations

from collections.abc import Callable, Mapping
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
from swinopt.testing import assert_equivalent, refuses, rewrites
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


def batch_of(b: Builder) -> str:
    return b.op("Slice", b.op("Shape", "x"), b.ints(0), b.ints(1))


def mask_tiled_to_the_batch(b: Builder, x: str) -> str:
    mask = b.constant(np.where(shift_mask((4, 4), (2, 2), (1, 1)), -100.0, 0.0)[:, None])
    return b.op("Add", x, b.op("Tile", mask, b.op("Concat", batch_of(b), b.ints(1, 1, 1), axis=0)))


def mask_expanded_to_the_batch(b: Builder, x: str) -> str:
    """As TorchScript exports expand: a size of -1 would stay as it is."""
    mask = b.constant(np.where(shift_mask((4, 4), (2, 2), (1, 1)), -100.0, 0.0)[None, :, None])
    wanted = b.op("Concat", batch_of(b), b.ints(4, 1, 4, 4), axis=0)
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
    shift = [draw(st.integers(0, min(w, s) - 1)) for w, s in zip(window, size, strict=True)]
    return {"size": tuple(size), "window": tuple(window), "shift": tuple(shift), "roll_first": draw(st.booleans())}


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


@pytest.fixture
def spell_norm(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Builder, str], str]], None]:
    return lambda write: monkeypatch.setattr(graphs, "_normalised", write)


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


# ------------------------------------------------------------------------------------------- near misses, with reason


def relu(b: Builder, x: str) -> str:
    return b.op("Relu", x)


def to_int_and_back(b: Builder, x: str) -> str:
    return b.op("Cast", b.op("Cast", x, to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)


def with_input(op: str, *shape: int) -> Spoil:
    return lambda b, x: b.op(op, x, b.input(shape, "other"))


def swapped(axis: int, size: int) -> Spoil:
    """The first two along an axis changed places."""
    return lambda b, x: b.op("Gather", x, b.ints(1, 0, *range(2, size)), axis=axis)


def reversed_for_two_images(b: Builder, windows: str) -> str:
    """Back to the map and into windows again, as a trace writes it that has seen a batch of two."""
    tiled = b.transpose(b.reshape(windows, 2, 2, 2, 2, 2, -1), 0, 1, 3, 2, 4, 5)
    return graphs.partition(b, b.reshape(tiled, -1, 4, 4, 8), (4, 4), (2, 2), 8)


def mask_of(size: tuple[int, int] = (4, 4), shift: tuple[int, int] = (1, 1), flip: Any = None) -> Any:
    mask = shift_mask(size, (2, 2), shift).copy()
    if flip is not None:
        mask[flip] = ~mask[flip]
    return mask


def as_float(b: Builder) -> str:
    return b.op("Cast", batch_of(b), to=onnx.TensorProto.FLOAT)


def is_one(b: Builder) -> str:
    return b.op("Cast", b.op("Equal", batch_of(b), b.ints(1)), to=onnx.TensorProto.FLOAT)


NEAR_MISSES: dict[str, tuple[Mapping[str, Any], str]] = {
    # masks
    "one pair of the mask is wrong": ({"mask": mask_of(flip=(1, 0, 1))}, "not the shift mask of window 2x2, shift 1x1"),
    "one pair more is masked": ({"mask": mask_of(flip=(0, 0, 1)), "terms": "one"}, "not the shift mask"),
    "one pair less is masked": ({"mask": mask_of(flip=(3, 0, 1)), "terms": "one-5d"}, "not the shift mask"),
    "the mask is that of another shift": ({"mask": mask_of(shift=(1, 0))}, "not the shift mask"),
    "the mask is that of a shift where there is none": (
        {"mask": mask_of(), "shift": (0, 0), "terms": "one-5d"},
        "not the shift mask",
    ),
    "the mask is transposed": ({"mask": mask_of(shift=(0, 1)), "shift": (1, 0)}, "not the shift mask"),
    "the mask differs within the batch": (
        {"spoil": {"biased": lambda b, x: b.op("Add", x, b.constant(np.repeat([0.0, 1.0], 4).reshape(8, 1, 1, 1)))}},
        "differs within the batch",
    ),
    "masked pairs are favoured": ({"mask_value": 100.0}, "not the shift mask"),
    # scores
    "the softmax runs over the queries": (
        {
            "spoil": {
                "biased": lambda b, x: b.transpose(b.op("Softmax", b.transpose(x, 0, 1, 3, 2), axis=2), 0, 1, 3, 2)
            }
        },
        "does not run over the last axis",
    ),
    "the softmax runs over all pairs": (
        {
            "spoil": {
                "biased": lambda b, x: b.reshape(x, -1, 2, 16),
                "probabilities": lambda b, x: b.reshape(x, -1, 2, 4, 4),
            }
        },
        "Reshape between the product of q and k and the softmax",
    ),
    "the pairs are regrouped behind the softmax": (
        {"spoil": {"probabilities": lambda b, x: b.reshape(b.reshape(x, -1, 2, 2, 8), -1, 2, 4, 4)}},
        "read by a Reshape",
    ),
    "the bias is no constant": (
        {"terms": "none", "spoil": {"scores": with_input("Add", 2, 4, 4)}},
        "Add .* has no constant operand",
    ),
    "the scale is no constant": ({"spoil": {"scores": with_input("Mul")}}, "Mul .* has no constant operand"),
    "the scores are the divisor": (
        {"spoil": {"scores": lambda b, x: b.op("Div", b.constant(1.0), x)}},
        "Div .* has no constant operand",
    ),
    "the scores are divided by zero": (
        {"spoil": {"scores": lambda b, x: b.op("Div", x, b.constant(0.0))}},
        "multiplied by a constant",
    ),
    "the scores are scaled behind the bias": (
        {"spoil": {"biased": lambda b, x: b.op("Mul", x, b.constant(0.5))}},
        "added to the scores before they are scaled",
    ),
    "the scores go through tanh": (
        {"spoil": {"scores": lambda b, x: b.op("Tanh", x)}},
        "there is a Tanh between the product",
    ),
    "the scores are rounded": ({"spoil": {"scores": to_int_and_back}}, "there is a Cast between the product"),
    "the scores are multiplied pair by pair": (
        {"spoil": {"scores": lambda b, x: b.op("Mul", x, b.weights(4, 4))}},
        r"multiplied by a constant of shape \[4, 4\]",
    ),
    "the heads have factors in V1": (
        {"spoil": {"scores": lambda b, x: b.op("Mul", x, b.constant([[[2.0]], [[3.0]]]))}},
        "factors of their own",
    ),
    "the windows have factors": (
        {
            "batch": 1,
            "heads": 4,
            "cosine": True,
            "spoil": {"scores": lambda b, x: b.op("Mul", x, b.weights(4, 1, 1, 1))},
        },
        r"multiplied by a constant of shape \[4, 1, 1, 1\]",
    ),
    "the heads have factors twice": (
        {"cosine": True, "spoil": {"scores": lambda b, x: b.op("Mul", x, b.weights(2, 1, 1))}},
        "multiplied by a constant of shape",
    ),
    "there is no product": ({"spoil": {"biased": lambda b, x: b.input((8, 2, 4, 4), "other")}}, "not over a product"),
    "the bias grows with the batch": (
        {
            "batch": "batch",
            "spoil": {"biased": lambda b, x: b.op("Add", x, b.op("Mul", b.weights(2, 4, 4), as_float(b)))},
        },
        "bias or mask depend on the input's size",
    ),
    "the scores grow with the batch": (
        {"batch": "batch", "spoil": {"scores": lambda b, x: b.op("Mul", x, as_float(b))}},
        "multiplied by what depends on the input's size",
    ),
    "the bias is there for a batch of one only": (
        {
            "batch": "batch",
            "spoil": {"biased": lambda b, x: b.op("Add", x, b.op("Mul", b.weights(2, 4, 4), is_one(b)))},
        },
        "Add .* has no constant operand",
    ),
    "the scale is another for a batch of one": (
        {"batch": "batch", "spoil": {"scores": lambda b, x: b.op("Mul", x, b.op("Add", is_one(b), b.constant(1.0)))}},
        "Mul .* has no constant operand",
    ),
    # probabilities
    "the probabilities go through dropout in training": (
        {"spoil": {"probabilities": lambda b, x: b.op("Dropout", x, b.constant(0.5), b.constant(True))}},
        "read by a Dropout",
    ),
    "the probabilities are scaled": (
        {"spoil": {"probabilities": lambda b, x: b.op("Mul", x, b.constant(2.0))}},
        "read by a Mul",
    ),
    "the probabilities are rounded": ({"spoil": {"probabilities": to_int_and_back}}, "read by a Cast"),
    # q, k, v
    "q goes through relu": ({"spoil": {"q": relu}}, "there is a Relu between the linear and q, k or v"),
    "k goes through relu": ({"spoil": {"k": relu}}, "there is a Relu between the linear and q, k or v"),
    "v goes through relu": ({"spoil": {"v": relu}}, "there is a Relu between the linear and q, k or v"),
    "the linear is followed by relu": ({"spoil": {"qkv": relu}}, "there is a Relu between the linear and q, k or v"),
    "q is rounded": ({"spoil": {"q": to_int_and_back}}, "there is a Cast between the linear"),
    "v is scaled": ({"spoil": {"v": lambda b, x: b.op("Mul", x, b.constant(2.0))}}, "v is scaled"),
    "q is scaled channel by channel": (
        {"spoil": {"q": lambda b, x: b.op("Mul", x, b.weights(4))}},
        "there is a Mul between the linear",
    ),
    "q is shifted": (
        {"scale": "scores", "spoil": {"q": lambda b, x: b.op("Add", x, b.weights(4))}},
        "no bias of the linear's features",
    ),
    "q is shifted token by token": (
        {"scale": "scores", "spoil": {"q": lambda b, x: b.op("Add", x, b.weights(4, 4))}},
        "there is a Add between the linear",
    ),
    "q is shifted behind its scale": (
        {"spoil": {"q": lambda b, x: b.op("Add", b.op("Mul", x, b.constant(2.0)), b.weights(4))}},
        "no bias of the linear's features|scaled before its bias",
    ),
    "q, k and v are rolled behind the linear": ({"pad_after_linear": True}, "there is a Concat between the linear"),
    "q comes from nowhere": (
        {"spoil": {"q": lambda b, x: b.input((8, 2, 4, 4), "other")}},
        "does not come from a linear",
    ),
    "the weights are no constants": (
        {"spoil": {"qkv": lambda b, x: b.linear(b.slice(x, 0, 8, 2), 8, 24, constant=False)}},
        "MatMul between the linear and q, k or v|does not come from a linear",
    ),
    "k is that of other tokens": ({"spoil": {"k": swapped(2, 4)}}, "not of the same tokens"),
    "v is that of other tokens": ({"spoil": {"v": swapped(2, 4)}}, "not of the same tokens"),
    "v is that of another window": ({"spoil": {"v": swapped(0, 8)}}, "not of the same tokens"),
    "k is that of fewer tokens": (
        {"terms": "none", "spoil": {p: lambda b, x: b.slice(x, 0, 2, 2) for p in "kv"}},
        "not of the same tokens",
    ),
    "q has tokens in its heads": (
        {"spoil": {"q": lambda b, x: b.reshape(b.transpose(x, 0, 2, 1, 3), -1, 2, 4, 4)}},
        "does not hold whole tokens, split into heads",
    ),
    "the heads of k are those of another window": (
        {"spoil": {"k": lambda b, x: b.transpose(b.reshape(x, 2, 8, 4, 4), 1, 0, 2, 3)}},
        "does not hold whole tokens, split into heads",
    ),
    "one channel of one token is another's": (
        {
            "spoil": {
                "q": lambda b, x: b.reshape(
                    b.op("Gather", b.reshape(x, -1), b.constant(np.r_[1, 0, 2:256].astype(np.int64))), 8, 2, 4, 4
                )
            }
        },
        "does not hold whole tokens, split into heads",
    ),
    "q, k and v are padded behind the linear": (
        {"size": (3, 5), "shift": (0, 0), "pad_after_linear": True},
        "padded behind its linear",
    ),
    # the way in
    "the windows are shuffled": ({"spoil": {"windows": swapped(0, 8)}}, "not a window of a map"),
    "the tokens of the windows are shuffled": ({"spoil": {"windows": swapped(1, 4)}}, "not a window of a map"),
    "the channels of the tokens are shuffled": (
        {"spoil": {"windows": swapped(2, 8)}},
        "moved before the linear is not whole tokens",
    ),
    "the map is rolled once more": ({"spoil": {"x": lambda b, x: b.roll(x, -2, 1)}}, "not a window of a map"),
    "the map is transposed": ({"spoil": {"x": lambda b, x: b.transpose(x, 0, 2, 1, 3)}}, "not a window of a map"),
    "the map is flipped": ({"spoil": {"x": lambda b, x: b.slice(x, -1, -9, 1, -1)}}, "not a window of a map"),
    "the batch is turned round": ({"spoil": {"x": lambda b, x: b.slice(x, -1, -9, 0, -1)}}, "not a window of a map"),
    "the windows are dilated": (
        {
            "shift": (0, 0),
            "spoil": {
                "x": lambda b, x: b.reshape(b.transpose(b.reshape(x, 2, 2, 2, 2, 2, 8), 0, 2, 1, 4, 3, 5), 2, 4, 4, 8)
            },
        },
        "not a window of a map",
    ),
    "a part of the batch is attended to": (
        {"batch": 4, "residual": False, "spoil": {"x": lambda b, x: b.slice(x, 0, 2, 0)}},
        "not a window of a map",
    ),
    "the map is put together of two": (
        {"spoil": {"x": lambda b, x: b.op("Concat", b.slice(x, 0, 2, 1), b.op("Neg", b.slice(x, 2, 4, 1)), axis=1)}},
        "come from several tensors",
    ),
    # the way out
    "the attended values go through relu": (
        {"projection": False, "spoil": {"merged": relu}},
        "do not come back|not merged",
    ),
    "two channels are swapped and no linear follows": (
        {"spoil": {"merged": swapped(2, 8)}, "projection": False},
        "heads are not merged in order",
    ),
    "the heads of two tokens are merged": (
        {"spoil": {"attended": lambda b, x: b.reshape(x, -1, 4, 2, 4)}},
        "heads are not merged token by token",
    ),
    "the heads are merged as [d, heads] and no linear follows": (
        {"merge": "dh", "projection": False},
        "heads are not merged in order",
    ),
    "half of the channels are padding": (
        {"spoil": {"merged": lambda b, x: b.op("Pad", b.slice(x, 0, 4, 2), b.ints(0, 0, 0, 0, 0, 4))}},
        "heads are not merged token by token",
    ),
    "half of the channels are there twice": (
        {"spoil": {"merged": lambda b, x: b.op("Concat", b.slice(x, 0, 4, 2), b.slice(x, 0, 4, 2), axis=2)}},
        "heads are not merged",
    ),
    "the tokens are rolled back by another shift": (
        {"spoil": {"returned": lambda b, x: b.roll(x, 1, 2)}},
        "do not come back to where they were",
    ),
    "the windows are put back in another order": (
        {"spoil": {"projected": swapped(0, 8)}},
        "do not come back to where they were",
    ),
    "the channels are shuffled behind the projection": (
        {"spoil": {"projected": swapped(2, 8)}},
        "what follows the projection does not move whole tokens",
    ),
    "something is read before the tokens are back": (
        {"spoil": {"returned": lambda b, x: b.op("Add", x, b.roll(x, 1, 1))}},
        "do not come back to where they were",
    ),
    "a trace has fixed the batch of the reverse": (
        {"batch": "batch", "spoil": {"projected": reversed_for_two_images}},
        r"the batch is dynamic, and on the way it is taken for 2, .* window_reverse infer the batch \(-1\)",
    ),
    # V2
    "only q is normalised": (
        {"spoil": {"q": lambda b, x: graphs._normalised(b, x)}},
        "only one of q and k is normalised",
    ),
    "only k is normalised": (
        {"spoil": {"k": lambda b, x: graphs._normalised(b, x)}},
        "only one of q and k is normalised",
    ),
    "v is normalised too": (
        {"cosine": True, "spoil": {"v": lambda b, x: graphs._normalised(b, x)}},
        "normalised",
    ),
    "q is normalised twice": (
        {"cosine": True, "spoil": {"q": lambda b, x: graphs._normalised(b, x)}},
        "there is a Div between the linear",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_it_is_refused_that(name: str) -> None:
    options, reason = NEAR_MISSES[name]
    refuses(swin_attention(**{"batch": 2, "shift": (1, 1), **options}), FUSE, reason)


NORM_NEAR_MISSES: dict[str, tuple[Callable[[Builder, str], str], str]] = {
    "over the tokens": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(2), keepdims=1), b.constant(1e-12))),
        "normalised over something else than a head",
    ),
    "over tokens and channels": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(2, 3), keepdims=1), b.constant(1e-12))),
        "normalised over something else than a head",
    ),
    "over all heads at once": (
        lambda b, x: b.transpose(
            b.reshape(normalised_last(b, b.reshape(b.transpose(x, 0, 2, 1, 3), -1, 4, 8)), -1, 4, 2, 4), 0, 2, 1, 3
        ),
        "normalised over something else than a head",
    ),
    "over half a head": (
        lambda b, x: b.reshape(normalised_last(b, b.reshape(x, -1, 2, 4, 2, 2)), -1, 2, 4, 4),
        "normalised over something else than a head",
    ),
    "with a floor that matters": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(0.5))),
        "has a floor of 0.5",
    ),
    "with a ceiling": (
        lambda b, x: b.op(
            "Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(1e-12), b.constant(1.0))
        ),
        "has a floor|has a ceiling",
    ),
    "with an epsilon": (
        lambda b, x: b.op("Div", x, b.op("Add", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(0.1))),
        "there is a Div between the linear",
    ),
    "by the sum of absolute values": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL1", x, b.ints(-1), keepdims=1), b.constant(1e-12))),
        "there is a Div between the linear",
    ),
    "by the norm of something else": (
        lambda b, x: b.op(
            "Div", x, b.op("Clip", b.op("ReduceL2", b.op("Exp", x), b.ints(-1), keepdims=1), b.constant(1e-12))
        ),
        "normalised over something else than a head",
    ),
    "and multiplied by a negative number before": (
        lambda b, x: normalised_last(b, b.op("Mul", x, b.constant(-1.0))),
        "multiplied by a negative number before it is normalised",
    ),
}


def normalised_last(b: Builder, x: str) -> str:
    return b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(1e-12)))


@pytest.mark.parametrize("name", NORM_NEAR_MISSES)
def test_it_is_no_cosine_if_q_and_k_are_normalised(name: str, spell_norm: Any) -> None:
    write, reason = NORM_NEAR_MISSES[name]
    spell_norm(write)
    refuses(swin_attention(2, shift=(1, 1), cosine=True, opset=18), FUSE, reason)


def test_it_is_no_cosine_if_the_norm_is_that_of_another_tensor_in_the_same_places() -> None:
    def by_the_norm_of_exp(b: Builder, x: str) -> str:
        heads = producers(b, x, "Transpose", "Reshape")
        exp = b.transpose(b.reshape(b.op("Exp", heads), -1, 4, 2, 4), 0, 2, 1, 3)
        return b.op("Div", x, b.op("Clip", b.op("ReduceL2", exp, b.ints(-1), keepdims=1), b.constant(1e-12)))

    model = swin_attention(2, separate=True, scale="scores", opset=18, spoil={p: by_the_norm_of_exp for p in "qk"})
    refuses(model, FUSE, "normalised over something else than a head")


def producers(b: Builder, tensor: str, *op_types: str) -> str:
    """The tensor that nodes of these types, the last one first, make this one of."""
    for op_type in op_types:
        (node,) = [node for node in b.nodes if tensor in node.output]
        assert node.op_type == op_type
        tensor = node.input[0]
    return tensor


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("probabilities", "read by more than the product with v"),
        ("attended", "heads are merged|attended values are read in several places"),
        ("merged", "attended values are read in several places|do not come back"),
        ("projected", "do not come back|does not move whole tokens"),
    ],
)
def test_it_is_refused_if_something_else_reads(place: str, reason: str) -> None:
    kept: list[str] = []

    def read(b: Builder, x: str) -> str:
        kept.append(b.op("Sigmoid", x))
        return x

    model = swin_attention(2, shift=(1, 1), spoil={place: read})
    model.graph.output.append(onnx.helper.make_tensor_value_info(kept[0], onnx.TensorProto.FLOAT, None))
    refuses(onnx.shape_inference.infer_shapes(model), FUSE, reason)


@pytest.mark.parametrize("place", ["scores", "qkv", "q", "k", "v", "windows"])
def test_what_is_read_on_the_way_in_is_computed_for_its_other_reader_still(place: str) -> None:
    kept: list[str] = []

    def read(b: Builder, x: str) -> str:
        kept.append(b.op("Sigmoid", x))
        return x

    model = swin_attention(2, shift=(1, 1), spoil={place: read})
    model.graph.output.append(onnx.helper.make_tensor_value_info(kept[0], onnx.TensorProto.FLOAT, None))
    rewrites(onnx.shape_inference.infer_shapes(model), FUSE, applied=1)


def test_probabilities_that_are_an_output_are_refused() -> None:
    model = swin_attention(2, shift=(1, 1))
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(softmax.output[0], onnx.TensorProto.FLOAT, (8, 2, 4, 4))
    )
    refuses(model, FUSE, "read by more than the product with v")


def test_attention_over_a_sequence_is_refused() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 7, 8)))
    q, k, v = graphs._split_heads(b, b.linear(x, 8, 24), 7, 2, 4, "3hd")
    weights = b.op("Softmax", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), axis=-1)
    merged = b.reshape(b.transpose(b.op("MatMul", weights, v), 0, 2, 1, 3), -1, 7, 8)
    refuses(b.model(b.linear(merged, 8, 8)), FUSE, "no spatial layout|not a window")


def test_values_of_another_width_are_refused() -> None:
    """The op has one head_dim, and 7 and 4 are neither multiples of one another nor far apart."""
    b = Builder()
    windows = graphs.partition(b, b.input((1, 4, 4, 8)), (4, 4), (2, 2), 8)
    q, k, v = (b.reshape(b.linear(windows, 8, 2 * width), 4, 4, 2, width) for width in (7, 7, 4))
    scores = b.op("MatMul", b.transpose(q, 0, 2, 1, 3), b.transpose(k, 0, 2, 3, 1))
    attended = b.op(
        "MatMul", b.op("Softmax", b.op("Add", scores, b.weights(2, 4, 4)), axis=-1), b.transpose(v, 0, 2, 1, 3)
    )
    merged = b.reshape(b.transpose(attended, 0, 2, 1, 3), 4, 4, 8)
    refuses(b.model(graphs.reverse(b, merged, (4, 4), (2, 2), 8)), FUSE, "a head has 7 features in q and k, and 4 in v")


def test_q_and_k_of_different_maps_are_refused() -> None:
    b = Builder()
    one, two = b.op("Tanh", b.input((2, 4, 4, 8))), b.op("Exp", b.input((2, 4, 4, 8), "z"))
    q, k, v = (
        b.transpose(b.reshape(b.linear(graphs.partition(b, t, (4, 4), (2, 2), 8), 8, 8), -1, 4, 2, 4), 0, 2, 1, 3)
        for t in (one, two, two)
    )
    weights = b.op("Softmax", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), axis=-1)
    merged = b.reshape(b.transpose(b.op("MatMul", weights, v), 0, 2, 1, 3), -1, 4, 8)
    model = b.model(b.op("Neg", graphs.reverse(b, b.linear(merged, 8, 8), (4, 4), (2, 2), 8)))
    refuses(model, FUSE, "q, k and v come from different tensors")


def test_an_image_of_two_dynamic_sizes_is_refused_where_the_window_is_not_proven() -> None:
    b = Builder()
    b.op("Softmax", b.op("MatMul", b.input((2, "n", 4)), b.input((2, 4, "n"), "k")), axis=-1)
    refuses(b.model(b.op("MatMul", b.nodes[-1].output[0], b.input((2, "n", 4), "v"))), FUSE, "how many heads|linear")


def test_a_softmax_that_is_no_attention_is_refused_with_a_reason() -> None:
    b = Builder()
    refuses(b.model(b.op("Softmax", b.input((2, 10)), axis=-1)), FUSE, "not over a product of q and k")


def test_a_softmax_of_another_domain_is_not_looked_at() -> None:
    model = swin_attention(2)
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmax.domain = "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    assert ops.uses(FUSE(model))["WindowAttention"] == 0


def test_one_attention_that_is_refused_does_not_keep_others_from_being_fused() -> None:
    first, second = swin_attention(2, seed=1), swin_attention(2, shift=(1, 1), seed=2, spoil={"q": relu})
    joined = onnx.compose.merge_models(
        onnx.compose.add_prefix(first, "first/"),
        onnx.compose.add_prefix(second, "second/"),
        io_map=[("first/y", "second/x")],
    )
    rewrites(joined, FUSE, applied=1)

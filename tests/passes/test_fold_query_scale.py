from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt.passes import FoldQueryScale
from swinopt.testing import assert_equivalent, leaves_alone, refuses, rewrites
from tests.graphs import Builder, Scale, run, swin_attention

FOLD = FoldQueryScale()
B, N, HEADS, D = 2, 5, 2, 4
C = HEADS * D

Change = Callable[[Builder, str], str]


def times(factor: float = 0.5, op_type: str = "Mul", *, left: bool = False, shape: tuple[int, ...] = ()) -> Change:
    def change(b: Builder, x: str) -> str:
        constant = b.constant(np.full(shape, factor))
        return b.op(op_type, constant, x) if left else b.op(op_type, x, constant)

    return change


def unchanged(b: Builder, x: str) -> str:
    return x


def attention(
    *,
    q: Change = unchanged,
    k: Change = unchanged,
    k_transposed: Change = unchanged,
    v: Change = unchanged,
    scores: Change = unchanged,
    qkv: Change = unchanged,
    linear: Callable[[Builder, str, int], str] = lambda b, x, n: b.linear(x, C, n),
    separate: bool = False,
    batch: int | str = B,
    dtype: Any = np.float32,
    more_outputs: Callable[[dict[str, str]], list[str]] = lambda tensors: [],
) -> onnx.ModelProto:
    """Attention over a sequence [batch, N, C], which a test can change at each place."""
    b = Builder(dtype=dtype)
    x = b.input((batch, N, C))
    t: dict[str, str] = {}
    if separate:
        parts = [b.transpose(b.reshape(linear(b, x, C), -1, N, HEADS, D), 0, 2, 1, 3) for _ in range(3)]
    else:
        t["qkv"] = qkv(b, linear(b, x, 3 * C))
        split = b.transpose(b.reshape(t["qkv"], -1, N, 3, HEADS, D), 2, 0, 3, 1, 4)
        parts = [b.op("Gather", split, b.constant(np.int64(i)), axis=0) for i in range(3)]
    t |= dict(zip("qkv", parts, strict=True)) if separate else dict(zip(("q", "k", "v"), parts, strict=True))
    t["scaled q"] = q(b, t["q"])
    t["scaled k"] = k(b, t["k"])
    t["scores"] = b.op("MatMul", t["scaled q"], k_transposed(b, b.transpose(t["scaled k"], 0, 1, 3, 2)))
    t["scaled scores"] = scores(b, t["scores"])
    attended = b.op("MatMul", b.op("Softmax", t["scaled scores"], axis=-1), v(b, t["v"]))
    return b.model(b.reshape(b.transpose(attended, 0, 2, 1, 3), -1, N, C), *more_outputs(t))


def weights_of(model: onnx.ModelProto) -> list[np.ndarray[Any, Any]]:
    """The weights in the order in which they are read."""
    values = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    read = [name for node in model.graph.node for name in node.input if name in values]
    return [values[name] for name in dict.fromkeys(read) if values[name].dtype.kind == "f"]


def counts(model: onnx.ModelProto) -> dict[str, int]:
    ops = [node.op_type for node in model.graph.node]
    return {op: ops.count(op) for op in ops}


def folded(model: onnx.ModelProto, *, applied: int = 1, tolerance: float | None = None) -> onnx.ModelProto:
    after = rewrites(model, FOLD, applied=applied, tolerance=tolerance)
    assert not {"Mul", "Div"} & set(counts(after))
    return after


# --------------------------------------------------------------------------------------------------------- spellings

PLACES: dict[str, dict[str, Change]] = {
    "q": {"q": times()},
    "k": {"k": times()},
    "k transposed": {"k_transposed": times()},
    "the scores": {"scores": times()},
    "q, from the left": {"q": times(left=True)},
    "the scores, from the left": {"scores": times(left=True)},
    "q, as a quotient": {"q": times(3.0, "Div")},
    "k, as a quotient": {"k": times(3.0, "Div")},
    "the scores, as a quotient": {"scores": times(3.0, "Div")},
    "q, by a vector of one": {"q": times(shape=(1,))},
    "the scores, by one element of four axes": {"scores": times(shape=(1, 1, 1, 1))},
    "q, by a negative number": {"q": times(-0.5)},
    "q, and transposed then": {
        "q": lambda b, x: b.transpose(b.transpose(times()(b, x), 0, 1, 3, 2), 0, 1, 3, 2),
    },
    "the scores, and a bias is added then": {
        "scores": lambda b, x: b.op("Add", times()(b, x), b.weights(HEADS, N, N)),
    },
    "the scores, which are viewed then": {
        "scores": lambda b, x: b.reshape(b.op("Unsqueeze", times()(b, x), b.ints(0)), -1, HEADS, N, N),
    },
}

LINEARS: dict[str, Callable[[Builder, str, int], str]] = {
    "with bias": lambda b, x, n: b.linear(x, C, n),
    "without bias": lambda b, x, n: b.linear(x, C, n, bias=False),
    "Gemm": lambda b, x, n: b.reshape(b.linear(x, C, n, gemm=True), -1, N, n),
    "Gemm without bias": lambda b, x, n: b.reshape(b.linear(x, C, n, gemm=True, bias=False), -1, N, n),
    "Gemm, not transposed": lambda b, x, n: b.reshape(
        b.op("Gemm", b.reshape(x, -1, C), b.weights(C, n), b.weights(1, n)), -1, N, n
    ),
}


@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
@pytest.mark.parametrize("place", PLACES)
def test_a_scale_goes_into_the_weights_wherever_it_multiplies(place: str, separate: bool) -> None:
    folded(attention(**PLACES[place], separate=separate))


@pytest.mark.parametrize("separate", [False, True], ids=["joint", "separate"])
@pytest.mark.parametrize("place", ["q", "k", "the scores"])
@pytest.mark.parametrize("linear", LINEARS)
def test_a_scale_goes_into_every_kind_of_linear(linear: str, place: str, separate: bool) -> None:
    before = attention(**PLACES[place], separate=separate, linear=LINEARS[linear])
    after = folded(before)
    assert sum(w.size for w in weights_of(after)) <= sum(w.size for w in weights_of(before))


@pytest.mark.parametrize("linear", LINEARS)
@pytest.mark.parametrize("side", ["q", "k", "the scores"])
def test_a_scale_right_behind_the_linear_goes_into_it(side: str, linear: str) -> None:
    """As Hugging Face has it: ``self.q_proj(x) * self.scaling``, and the heads are split then."""

    def split(x: str) -> str:
        return b.transpose(b.reshape(x, -1, N, HEADS, D), 0, 2, 1, 3)

    b = Builder()
    x = b.input((B, N, C))
    q, k = LINEARS[linear](b, x, C), LINEARS[linear](b, x, C)
    q = times()(b, q) if side == "q" else q
    k = times()(b, k) if side == "k" else k
    scores = b.op("MatMul", split(q), b.transpose(split(k), 0, 1, 3, 2))
    folded(b.model(b.op("Softmax", times()(b, scores) if side == "the scores" else scores, axis=-1)))


def test_a_scale_between_linear_and_product_with_nothing_else_goes_into_it() -> None:
    b = Builder()
    x = b.input((B, N, C))
    q, k = times()(b, b.linear(x, C, D)), b.transpose(b.linear(x, C, D), 0, 2, 1)
    folded(b.model(b.op("Softmax", b.op("MatMul", q, k), axis=-1)))


def test_only_the_columns_of_q_are_scaled() -> None:
    before = attention(q=times(0.25))
    (bias, weight), (new_weight, new_bias) = weights_of(before)[:2][::-1], weights_of(folded(before))
    factors = np.repeat([0.25, 1, 1], C).astype(np.float32)
    np.testing.assert_array_equal(new_weight, weight * factors)
    np.testing.assert_array_equal(new_bias, bias * factors)


def test_only_the_columns_of_k_are_scaled() -> None:
    before = attention(k=times(0.25))
    weight = weights_of(before)[0]
    np.testing.assert_array_equal(weights_of(folded(before))[0], weight * np.repeat([1, 0.25, 1], C))


def test_a_scale_of_the_scores_goes_to_q() -> None:
    before = attention(scores=times(0.25))
    weight = weights_of(before)[0]
    np.testing.assert_array_equal(weights_of(folded(before))[0], weight * np.repeat([0.25, 1, 1], C))


def test_half_a_scale_on_q_and_half_on_k_both_go() -> None:
    before = attention(q=times(0.5**0.5), k_transposed=times(0.5**0.5, left=True))
    weight = weights_of(before)[0]
    after = folded(before, applied=2)
    np.testing.assert_allclose(weights_of(after)[0], weight * np.repeat([0.5**0.5, 0.5**0.5, 1], C), rtol=1e-6)


def test_a_scale_of_q_and_one_of_the_scores_both_go() -> None:
    before = attention(q=times(0.5), scores=times(3.0, "Div"))
    weight = weights_of(before)[0]
    after = folded(before, applied=2)
    np.testing.assert_allclose(weights_of(after)[0], weight * np.repeat([1 / 6, 1, 1], C), rtol=1e-6)


def test_a_dynamic_batch_is_no_hindrance() -> None:
    folded(attention(q=times(), batch="batch"))


def test_half_precision_stays_half() -> None:
    after = folded(attention(q=times(), dtype=np.float16), tolerance=1e-2)
    assert {w.dtype for w in weights_of(after)} == {np.dtype(np.float16)}


@pytest.mark.parametrize("order", ["3hd", "h3d", "hd3", "3dh", "kvq"])
@pytest.mark.parametrize("scale", ["q", "k", "both", "scores", "div"])
def test_in_a_window_attention_the_columns_are_found_through_partition_and_split(scale: Scale, order: Any) -> None:
    model = swin_attention("batch", shift=(1, 1), scale=scale, order=order)
    folded(model, applied=2 if scale == "both" else 1)


@pytest.mark.parametrize("options", [{"separate": True}, {"gemm": True}, {"bias": False}, {"bmm": True}], ids=str)
def test_in_a_window_attention_the_linears_may_be_of_any_kind(options: dict[str, Any]) -> None:
    for scale in ("q", "k"):
        folded(swin_attention(2, scale=scale, **options))


def test_two_attentions_that_share_a_weight_get_their_own_where_they_differ() -> None:
    b = Builder()
    x, weight, bias = b.input((B, N, C)), b.weights(C, 3 * C), b.weights(3 * C)
    results = []
    for factor in (0.5, 0.25, None):
        made = b.op("Add", b.op("MatMul", x, weight), bias)
        split = b.transpose(b.reshape(made, -1, N, 3, HEADS, D), 2, 0, 3, 1, 4)
        q, k, v = (b.op("Gather", split, b.constant(np.int64(i)), axis=0) for i in range(3))
        q = q if factor is None else times(factor)(b, q)
        results.append(b.op("MatMul", b.op("Softmax", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2))), v))
    after = folded(b.model(*results), applied=2)
    assert len([w for w in weights_of(after) if w.ndim == 2]) == 3


def test_two_attentions_that_share_a_weight_and_a_scale_still_share() -> None:
    b = Builder()
    x, weight = b.input((B, N, C)), b.weights(C, C)
    results = []
    for _ in range(2):
        q = b.transpose(b.reshape(b.op("MatMul", x, weight), -1, N, HEADS, D), 0, 2, 1, 3)
        k = b.transpose(b.reshape(b.linear(x, C, C), -1, N, HEADS, D), 0, 2, 3, 1)
        results.append(b.op("Softmax", b.op("MatMul", times()(b, q), k)))
    after = folded(b.model(*results), applied=2)
    assert len([w for w in weights_of(after) if w.ndim == 2]) == 3


def test_a_tensor_whose_values_change_gets_another_name() -> None:
    for place in ("q", "k", "the scores"):
        before = attention(**PLACES[place])
        after = folded(before)
        x = np.random.default_rng(0).standard_normal((B, N, C)).astype(np.float32)
        old, new = (every_tensor(model, x) for model in (before, after))
        for name in old.keys() & new.keys():
            np.testing.assert_allclose(old[name], new[name], rtol=1e-4, atol=1e-5, err_msg=name)


def every_tensor(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    names = [name for node in model.graph.node for name in node.output]
    del shown.graph.output[:]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return dict(zip(names, run(shown, x), strict=True))


# -------------------------------------------------------------------------------------------------------- near misses

ELSEWHERE = "the columns of the weight that would be scaled are read elsewhere, too"


@pytest.mark.parametrize("place", ["q", "qkv"])
@pytest.mark.parametrize("scaled", [{"q": times()}, {"scores": times()}], ids=["q", "scores"])
def test_columns_that_are_read_without_the_scale_are_refused(scaled: dict[str, Change], place: str) -> None:
    kept: list[str] = []

    def read(b: Builder, x: str) -> str:
        kept.append(b.op("Sigmoid", x))
        return x

    changes = {**scaled}
    if place == "qkv":
        changes["qkv"] = read
    else:
        scale = scaled.get("q", unchanged)
        changes["q"] = lambda b, x: scale(b, read(b, x))
    before = attention(**changes, more_outputs=lambda t: kept)
    assert_equivalent(before, before)
    refuses(before, FOLD, ELSEWHERE)


@pytest.mark.parametrize("place", ["q", "qkv"])
@pytest.mark.parametrize("scaled", [{"q": times()}, {"scores": times()}], ids=["q", "scores"])
def test_columns_that_are_an_output_are_refused(scaled: dict[str, Change], place: str) -> None:
    refuses(attention(**scaled, more_outputs=lambda t: [t[place]]), FOLD, ELSEWHERE)


def test_scores_that_are_an_output_before_they_are_scaled_keep_their_values() -> None:
    leaves_alone(attention(scores=times(), more_outputs=lambda t: [t["scores"]]), FOLD)


def test_scores_that_are_read_before_they_are_scaled_keep_their_values() -> None:
    before = attention(scores=lambda b, x: b.op("Add", times()(b, x), b.op("Tanh", x)))
    assert_equivalent(before, before)
    leaves_alone(before, FOLD)


@pytest.mark.parametrize("place", ["scaled q", "scaled scores"])
def test_what_is_an_output_behind_the_scale_is_the_same_still(place: str) -> None:
    scaled = {"q": times()} if place == "scaled q" else {"scores": times()}
    before = attention(**scaled, more_outputs=lambda t: [t[place]])
    assert_equivalent(before, FOLD(before))


def test_other_columns_may_be_read_by_anything() -> None:
    for place in ("k", "v"):
        folded(attention(q=times(), more_outputs=lambda t, place=place: [t[place]]))


def test_q_that_is_k_as_well_is_refused() -> None:
    b = Builder()
    q = b.reshape(b.linear(b.input((B, N, C)), C, D), -1, N, D)
    scores = b.op("MatMul", q, b.transpose(q, 0, 2, 1))
    refuses(b.model(b.op("Softmax", times()(b, scores))), FOLD, ELSEWHERE)


def test_a_linear_that_is_read_together_with_something_else_is_refused() -> None:
    kept: list[str] = []

    def joined(b: Builder, x: str) -> str:
        kept.append(b.op("Sigmoid", b.op("Concat", x, b.op("Neg", "x"), axis=2)))
        return x

    refuses(attention(q=times(), qkv=joined, more_outputs=lambda t: kept), FOLD, "read together with something else")


REFUSED: dict[str, dict[str, Any]] = {
    "the weights are no constants": {"linear": lambda b, x, n: b.linear(x, C, n, constant=False)},
    "the linear is followed by relu": {"qkv": lambda b, x: b.op("Relu", x)},
    "q is put together of two": {
        "q": lambda b, x: times()(b, b.op("Concat", b.slice(x, 0, 2, 2), b.op("Neg", b.slice(x, 2, N, 2)), axis=2))
    },
    "the Gemm has a factor": {
        "linear": lambda b, x, n: b.reshape(b.op("Gemm", b.reshape(x, -1, C), b.weights(C, n), alpha=0.5), -1, N, n)
    },
    "two scales follow each other": {"q": lambda b, x: times(2.0)(b, times(3.0, "Div")(b, x))},
    "a token has a bias of its own": {"linear": lambda b, x, n: b.op("Add", b.linear(x, C, n), b.weights(N, n))},
}


@pytest.mark.parametrize("scaled", ["q", "scores"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_that(name: str, scaled: str) -> None:
    options = {"q": times(), **REFUSED[name]}
    if scaled == "scores":
        options["scores"] = times()
        if "q" not in REFUSED[name]:
            options["q"] = unchanged
    before = attention(**options)
    assert_equivalent(before, before)
    refuses(before, FOLD, "does not come from a linear with constant weights")


LEFT_ALONE: dict[str, dict[str, Change]] = {
    "a factor for each head on the scores": {"scores": lambda b, x: b.op("Mul", x, b.weights(HEADS, 1, 1))},
    "a factor for each channel": {"q": lambda b, x: b.op("Mul", x, b.weights(D))},
    "a factor that is an input": {"q": lambda b, x: b.op("Mul", x, b.input((), "factor"))},
    "a factor of zero": {"q": times(0.0)},
    "a reciprocal": {"scores": times(2.0, "Div", left=True)},
    "a sum": {"q": times(2.0, "Add")},
    "a function behind the scale": {"q": lambda b, x: b.op("Tanh", times()(b, x))},
    "a function behind the scaled scores": {"scores": lambda b, x: b.op("Tanh", times()(b, x))},
    "a scale that is read twice": {
        "q": lambda b, x: b.op("Add", *[times()(b, x)] * 2),
    },
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_it_leaves_alone(name: str) -> None:
    before = attention(**LEFT_ALONE[name])
    if name != "a reciprocal":
        assert_equivalent(before, before)
    leaves_alone(before, FOLD)


def test_scaled_scores_that_lead_to_no_softmax_are_left_alone() -> None:
    b = Builder()
    x = b.input((B, N, C))
    product = b.op("MatMul", b.linear(x, C, D), b.transpose(b.linear(x, C, D), 0, 2, 1))
    leaves_alone(b.model(b.op("Sigmoid", times()(b, product))), FOLD)


def test_a_scale_between_two_linears_is_left_alone() -> None:
    b = Builder()
    leaves_alone(b.model(b.linear(times()(b, b.linear(b.input((B, N, C)), C, C)), C, D)), FOLD)


def test_a_scale_behind_the_product_with_a_constant_is_left_alone() -> None:
    b = Builder()
    leaves_alone(b.model(b.op("Softmax", times()(b, b.linear(b.input((B, N, C)), C, D, bias=False)))), FOLD)


@pytest.mark.parametrize("place", ["q", "the scores"])
def test_a_scale_that_adds_an_axis_still_adds_it(place: str) -> None:
    b = Builder()
    x = b.input((N, C))
    q, k = b.linear(x, C, D), b.transpose(b.linear(x, C, D), 1, 0)
    scale = times(shape=(1, 1, 1))
    scores = b.op("MatMul", scale(b, q), k) if place == "q" else scale(b, b.op("MatMul", q, k))
    before = b.model(b.op("Softmax", scores))
    assert_equivalent(before, FOLD(before))


def test_a_bias_that_adds_an_axis_still_adds_it() -> None:
    b = Builder()
    q = b.op("Add", b.op("MatMul", b.input((N, C)), b.weights(C, C)), b.weights(1, 1, C))
    scores = b.op("MatMul", times()(b, b.transpose(q, 0, 2, 1)), b.op("Tanh", b.input((1, N, N), "k")))
    before = b.model(b.op("Softmax", scores))
    assert_equivalent(before, FOLD(before))

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from swinopt.passes import FoldAttentionBias
from swinopt.testing import assert_equivalent, leaves_alone, refuses, rewrites
from swinopt.textbook import relative_position_index, shift_mask
from tests.graphs import Builder

FOLD = FoldAttentionBias()
WINDOW, HEADS, N, D = (2, 2), 2, 4, 3
FOLDED = {"Transpose": 1, "MatMul": 2, "Add": 1, "Softmax": 1}
APART = {**FOLDED, "Add": 2}
MASK = shift_mask((4, 4), WINDOW, (1, 1))

Write = Callable[[Builder], str]
Array = npt.NDArray[Any]


def attention(
    *terms: Write,
    groups: int | str = 4,
    left: bool = False,
    axis: int | None = -1,
    between: Callable[[Builder, str], str] = lambda b, scores: scores,
    opset: int = 17,
    dtype: Any = np.float32,
) -> onnx.ModelProto:
    """softmax(q k^T + terms) v with q, k and v as inputs [groups, heads, N, D]."""
    b = Builder(opset=opset, dtype=dtype)
    q, k, v = (b.input((groups, HEADS, N, D), name) for name in "qkv")
    scores = between(b, b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)))
    for write in terms:
        term = write(b)
        scores = b.op("Add", term, scores) if left else b.op("Add", scores, term)
    attrs = {} if axis is None else {"axis": axis}
    return b.model(b.op("MatMul", b.op("Softmax", scores, **attrs), v), shapes={"y": (groups, HEADS, N, D)})


def weights_of(model: onnx.ModelProto) -> list[Array]:
    return [onnx.numpy_helper.to_array(w) for w in model.graph.initializer]


def weight_bytes(model: onnx.ModelProto) -> int:
    return sum(w.nbytes for w in weights_of(model))


# --------------------------------------------------------------------------------------------------------- spellings


def by_index(b: Builder, rows: str) -> str:
    """[positions, heads] to [heads, N, N]: table[index.view(-1)].view(N, N, -1).permute(2, 0, 1)."""
    gathered = b.op("Gather", rows, b.ints(*relative_position_index(WINDOW).reshape(-1)), axis=0)
    return b.transpose(b.reshape(gathered, N, N, -1), 2, 0, 1)


def table(b: Builder) -> str:
    return b.op("Unsqueeze", by_index(b, b.weights(9, HEADS)), b.ints(0))


def table_without_leading_axis(b: Builder) -> str:
    return by_index(b, b.weights(9, HEADS))


def table_by_a_square_index(b: Builder) -> str:
    rows = b.op("Gather", b.weights(9, HEADS), b.constant(relative_position_index(WINDOW)), axis=0)
    return b.op("Unsqueeze", b.transpose(rows, 2, 0, 1), b.ints(0))


def gather_nd(b: Builder) -> str:
    index = np.stack(np.divmod(relative_position_index(WINDOW), 3), axis=-1)
    return b.transpose(b.op("GatherND", b.weights(3, 3, HEADS), b.constant(index)), 2, 0, 1)


def position_mlp(b: Builder) -> str:
    """Swin V2: an MLP over log-spaced coordinates, then 16 * sigmoid."""
    coordinates = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1], indexing="ij"), axis=-1)[None] * 8.0
    spaced = b.constant(np.sign(coordinates) * np.log2(np.abs(coordinates) + 1) / 3)
    hidden = b.op("Relu", b.linear(spaced, 2, 16))
    rows = b.reshape(b.linear(hidden, 16, HEADS, bias=False), -1, HEADS)
    return b.op("Unsqueeze", b.op("Mul", b.constant(16.0), b.op("Sigmoid", by_index(b, rows))), b.ints(0))


SPELLINGS: dict[str, Write] = {
    "a table by a flat index": table,
    "the same of three axes": table_without_leading_axis,
    "a table by a square index": table_by_a_square_index,
    "a table by GatherND": gather_nd,
    "an MLP over positions": position_mlp,
    "a constant behind an Identity": lambda b: b.op("Identity", b.weights(1, HEADS, N, N)),
    "a table that is cast": lambda b: b.op("Cast", by_index(b, b.constant(np.eye(9, HEADS), np.float64)), to=1),
}


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_one_constant_per_head(name: str, left: bool) -> None:
    after = rewrites(attention(SPELLINGS[name], left=left), FOLD, applied=1, expect=FOLDED)
    (bias,) = weights_of(after)
    assert bias.shape == (HEADS, N, N) and bias.dtype == np.float32
    assert weight_bytes(after) == HEADS * N * N * 4


@pytest.mark.parametrize("options", [{"groups": "groups"}, {"axis": 3}, {"axis": None}, {"opset": 20}], ids=str)
def test_batch_axis_and_opset_do_not_matter(options: dict[str, Any]) -> None:
    rewrites(attention(table, **options), FOLD, applied=1, expect=FOLDED)


def test_half_precision_stays_half() -> None:
    after = rewrites(attention(table, dtype=np.float16), FOLD, applied=1, expect=FOLDED)
    assert [w.dtype for w in weights_of(after)] == [np.float16]


@pytest.mark.parametrize(
    "between",
    [
        lambda b, s: b.op("Mul", s, b.constant(0.5)),
        lambda b, s: b.op("Mul", b.op("Exp", b.weights(HEADS, 1, 1)), s),
        lambda b, s: b.op("Div", s, b.constant(2.0)),
        lambda b, s: b.reshape(b.reshape(s, 2, 2, HEADS, N, N), 4, HEADS, N, N),
        lambda b, s: b.op("Cast", b.op("Cast", s, to=onnx.TensorProto.DOUBLE), to=onnx.TensorProto.FLOAT),
        lambda b, s: b.op("Add", s, b.weights(HEADS, N, N)),
    ],
    ids=["a scale", "a computed factor per head", "a quotient", "views", "casts", "another bias"],
)
def test_what_stands_between_product_and_bias_is_passed_over(between: Callable[[Builder, str], str]) -> None:
    rewrites(attention(table, between=between), FOLD, applied=1)


def test_several_terms_are_folded_each() -> None:
    after = rewrites(attention(table, position_mlp, gather_nd), FOLD, applied=3, expect={**FOLDED, "Add": 3})
    assert [w.shape for w in weights_of(after)] == [(HEADS, N, N)] * 3


def test_what_another_reads_of_the_computation_stays() -> None:
    b = Builder()
    q, k, v = (b.input((4, HEADS, N, D), name) for name in "qkv")
    bias = table(b)
    biased = b.op("Add", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), bias)
    model = b.model(b.op("MatMul", b.op("Softmax", biased), v), b.op("Neg", bias))
    after = rewrites(model, FOLD, applied=1)
    assert {"Gather", "Neg"} <= {node.op_type for node in after.graph.node}


# --------------------------------------------------------------------------------------- bias and mask in one constant


def in_one(
    mask_value: float = -100.0,
    mask: Array = MASK,
    *,
    leading: Sequence[int] = (),
    change: Callable[[Array], None] = lambda value: None,
    computed: bool = False,
) -> Write:
    """Bias and mask as one constant [windows, heads, N, N]; ``change`` spoils it."""

    def write(b: Builder) -> str:
        bias = b.random.standard_normal((HEADS, N, N)).astype(b.dtype)
        value = (bias + np.where(mask[:, None], b.dtype.type(mask_value), b.dtype.type(0))).astype(b.dtype)
        change(value)
        constant = b.constant(value.reshape(*leading, *value.shape))
        return b.op("Identity", constant) if computed else constant

    return write


def assert_is_apart(after: onnx.ModelProto, mask_value: float, dtype: Any = np.float32) -> None:
    parts = {w.ndim: w for w in weights_of(after)}
    assert parts[3].shape == (HEADS, N, N) and parts[4].shape == (4, 1, N, N)
    assert {w.dtype for w in parts.values()} == {np.dtype(dtype)}
    np.testing.assert_array_equal(parts[4], np.where(MASK[:, None], dtype(mask_value), dtype(0)))
    assert weight_bytes(after) == (HEADS + 4) * N * N * np.dtype(dtype).itemsize


@pytest.mark.parametrize("computed", [False, True], ids=["a constant", "computed"])
@pytest.mark.parametrize("mask_value", [-100.0, -np.inf, -5.0, -1e9])
def test_bias_and_mask_in_one_constant_are_taken_apart(mask_value: float, computed: bool) -> None:
    after = rewrites(attention(in_one(mask_value, computed=computed)), FOLD, applied=1, expect=APART)
    assert_is_apart(after, mask_value)


@pytest.mark.parametrize("mask_value", [-100.0, -np.inf, -10000.0, -65504.0])
def test_they_are_taken_apart_in_half_precision(mask_value: float) -> None:
    after = rewrites(attention(in_one(mask_value), dtype=np.float16), FOLD, applied=1, expect=APART)
    assert_is_apart(after, mask_value, np.float16)


def test_leading_axes_of_size_one_make_no_difference() -> None:
    def write(b: Builder, scores: str) -> str:
        scores = b.op("Add", b.reshape(scores, -1, 4, HEADS, N, N), in_one(leading=(1,))(b))
        return b.reshape(scores, -1, HEADS, N, N)

    after = rewrites(attention(groups=8, between=write), FOLD, applied=1, expect={**APART, "Reshape": 2})
    assert {w.shape for w in weights_of(after) if w.ndim > 1} == {(HEADS, N, N), (4, 1, N, N)}


def test_a_mask_of_any_windows_is_taken_apart_not_only_the_shifts() -> None:
    mask = np.random.default_rng(0).random((4, N, N)) < 0.3
    assert mask.any() and not mask.all(axis=0).any()
    rewrites(attention(in_one(mask=mask)), FOLD, applied=1, expect=APART)


def test_a_pair_that_is_masked_in_every_window_is_part_of_the_bias() -> None:
    mask = MASK.copy()
    mask[:, 0, 1] = True
    after = rewrites(attention(in_one(mask=mask)), FOLD, applied=1, expect=APART)
    (bias,) = [w for w in weights_of(after) if w.ndim == 3]
    assert (bias[:, 0, 1] < -90).all()


def test_taken_apart_twice_changes_nothing() -> None:
    leaves_alone(FOLD(attention(in_one())), FOLD)


def spoilt(index: Any, value: Any) -> Callable[[Array], None]:
    def change(array: Array) -> None:
        array[index] = array[index] + value

    return change


MASKED = tuple(np.argwhere(MASK)[0])
WHOLE: dict[str, Write] = {
    "the bias of one window differs": in_one(change=spoilt((1, 0, 2, 3), 0.5)),
    "the bias of one window differs a little": in_one(change=spoilt((1, 0, 2, 3), 1e-3)),
    "there is no mask, and one window differs a little": in_one(0.0, change=spoilt((1, 0, 2, 3), 1e-3)),
    "the biases of all windows differ": lambda b: b.weights(4, HEADS, N, N),
    "one pair has another mask value": in_one(change=spoilt((MASKED[0], slice(None), *MASKED[1:]), -100.0)),
    "one pair is minus infinity": in_one(change=spoilt((MASKED[0], slice(None), *MASKED[1:]), -np.inf)),
    "the mask differs between heads": in_one(change=spoilt((0, 1, 0, 1), -100.0)),
    "a pair is minus infinity in every window": in_one(change=spoilt((slice(None), slice(None), 0, 1), -np.inf)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_constant_is_left_whole_where(name: str) -> None:
    before = attention(WHOLE[name])
    assert_equivalent(before, before)
    leaves_alone(before, FOLD)


@pytest.mark.parametrize("name", WHOLE)
def test_what_computes_it_is_folded_to_one_constant_all_the_same_where(name: str) -> None:
    after = rewrites(attention(lambda b: b.op("Identity", WHOLE[name](b))), FOLD, applied=1, expect=FOLDED)
    assert [w.shape for w in weights_of(after)] == [(4, HEADS, N, N)]


@pytest.mark.parametrize("shape", [(HEADS, N, N), (1, HEADS, N, N), (4, 1, N, N), (N,), ()], ids=str)
def test_a_constant_that_is_apart_already_is_left_alone(shape: tuple[int, ...]) -> None:
    leaves_alone(attention(lambda b: b.weights(*shape)), FOLD)


def test_a_constant_that_is_alike_in_all_windows_is_kept_once() -> None:
    after = rewrites(attention(in_one(0.0)), FOLD, applied=1, expect=FOLDED)
    assert [w.shape for w in weights_of(after)] == [(HEADS, N, N)]


def test_a_bias_that_is_repeated_for_the_batch_is_kept_once() -> None:
    def expanded(b: Builder) -> str:
        return b.op("Expand", table(b), b.ints(4, HEADS, N, N))

    after = rewrites(attention(expanded), FOLD, applied=1, expect=FOLDED)
    assert weight_bytes(after) == HEADS * N * N * 4


def test_a_mask_that_is_repeated_for_every_head_is_kept_once_per_window() -> None:
    def tiled(b: Builder) -> str:
        mask = b.constant(np.where(MASK[:, None], -100.0, 0.0))
        return b.op("Tile", mask, b.ints(1, HEADS, 1, 1))

    after = rewrites(attention(tiled), FOLD, applied=1)
    assert weight_bytes(after) <= (HEADS + 4) * N * N * 4


# -------------------------------------------------------------------------------------------------------- near misses


@pytest.mark.parametrize("computed", [False, True], ids=["a constant", "computed"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bias_that_is_not_finite_is_refused(value: float, computed: bool) -> None:
    write = in_one(change=spoilt((0, 0, 0, 0), value), computed=computed)
    refuses(attention(write), FOLD, "what is added to the scores holds NaN or infinity")


def test_a_bias_of_minus_infinity_is_a_mask_and_folded() -> None:
    def causal(b: Builder) -> str:
        return b.op("Identity", b.constant(np.triu(np.full((N, N), -np.inf), 1)))

    rewrites(attention(causal), FOLD, applied=1, expect=FOLDED)


def from_input(b: Builder) -> str:
    return b.op("Unsqueeze", by_index(b, b.op("Tanh", b.input((9, HEADS), "rows"))), b.ints(0))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_bias_that_depends_on_an_input_is_left_alone(left: bool) -> None:
    before = attention(from_input, left=left)
    assert_equivalent(before, before)
    leaves_alone(before, FOLD)


def test_a_bias_beside_one_that_depends_on_an_input_is_folded() -> None:
    rewrites(attention(from_input, table), FOLD, applied=1)


def test_a_random_bias_is_left_alone() -> None:
    def noise(b: Builder) -> str:
        return b.op("Add", table(b), b.op("RandomNormal", shape=[1, HEADS, N, N]))

    leaves_alone(attention(noise), FOLD)


def relu_behind_the_bias(b: Builder) -> str:
    return b.op("Softmax", b.op("Relu", b.op("Add", scores_of(b), table(b))))


def softmax_over_tanh(b: Builder) -> str:
    return b.op("Softmax", b.op("Add", b.op("Tanh", b.input((2, 3, 5))), b.op("Neg", b.weights(5))))


def sigmoid(b: Builder) -> str:
    return b.op("Sigmoid", b.op("Add", scores_of(b), table(b)))


def difference(b: Builder) -> str:
    return b.op("Softmax", b.op("Sub", table(b), scores_of(b)))


def classifier(b: Builder) -> str:
    return b.op("Softmax", b.linear(b.input((2, 8)), 8, 5), axis=-1)


def scores_of(b: Builder) -> str:
    return b.op("MatMul", b.input((4, HEADS, N, D), "q"), b.input((4, HEADS, D, N), "k"))


@pytest.mark.parametrize("write", [relu_behind_the_bias, softmax_over_tanh, sigmoid, difference, classifier])
def test_what_is_no_bias_of_attention_scores_is_left_alone(write: Write) -> None:
    b = Builder()
    before = b.model(write(b))
    assert_equivalent(before, before)
    leaves_alone(before, FOLD)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_a_softmax_over_another_axis_is_left_alone(axis: int) -> None:
    leaves_alone(attention(table, axis=axis), FOLD)


@pytest.mark.parametrize("op_type", ["Relu", "Tanh", "Neg"])
def test_a_bias_that_something_else_parts_from_the_product_is_left_alone(op_type: str) -> None:
    leaves_alone(attention(table, between=lambda b, scores: b.op(op_type, scores)), FOLD)


def test_a_bias_that_adds_an_axis_still_adds_it() -> None:
    b = Builder()
    q, k, v = b.input((HEADS, N, D), "q"), b.input((HEADS, D, N), "k"), b.input((HEADS, N, D), "v")
    biased = b.op("Add", b.op("MatMul", q, k), table(b))
    before = b.model(b.op("MatMul", b.op("Softmax", biased), v))
    assert [d.dim_value for d in before.graph.output[0].type.tensor_type.shape.dim] == [1, HEADS, N, D]
    assert_equivalent(before, FOLD(before))

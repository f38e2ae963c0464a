from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinopt.passes import SimplifyPatchMerging
from swinopt.testing import assert_equivalent, leaves_alone, refuses, rewrites
from tests.graphs import Builder, run

SIMPLIFY = SimplifyPatchMerging()
C = 3
#: The neighbours (dy, dx) in the order in which the papers' code concatenates them, and in the order that is emitted.
DX_DY, DY_DX = ((0, 0), (1, 0), (0, 1), (1, 1)), ((0, 0), (0, 1), (1, 0), (1, 1))

Spell = Callable[[Builder, str, tuple[int, int]], str]


def slices(
    b: Builder, x: str, size: tuple[int, int], order: Sequence[tuple[int, int]] = DX_DY, step: tuple[int, int] = (2, 2)
) -> str:
    """x[:, dy::2, dx::2] four times, side by side."""

    def quarter(dy: int, dx: int) -> str:
        return b.slice(b.slice(x, dy, b.far_end, 1, step[0]), dx, b.far_end, 2, step[1])

    return b.op("Concat", *(quarter(dy, dx) for dy, dx in order), axis=-1)


def slices_of_both_axes(b: Builder, x: str, size: tuple[int, int]) -> str:
    parts = [
        b.op("Slice", x, b.ints(dy, dx), b.ints(b.far_end, b.far_end), b.ints(1, 2), b.ints(2, 2)) for dy, dx in DX_DY
    ]
    return b.op("Concat", *parts, axis=3)


def slices_row_by_row(b: Builder, x: str, size: tuple[int, int]) -> str:
    rows = [b.slice(x, dy, b.far_end, 1, 2) for dy in (0, 1)]
    return b.op("Concat", *(b.slice(rows[dy], dx, b.far_end, 2, 2) for dy, dx in DX_DY), axis=-1)


def transpose(b: Builder, x: str, size: tuple[int, int], *axes: int) -> str:
    h, w = size
    split = b.reshape(x, -1, h // 2, 2, w // 2, 2, C)
    return b.reshape(b.transpose(split, *axes), -1, h // 2, w // 2, 4 * C)


def transpose_dx_dy(b: Builder, x: str, size: tuple[int, int]) -> str:
    return transpose(b, x, size, 0, 1, 3, 4, 2, 5)


def split_and_concat(b: Builder, x: str, size: tuple[int, int]) -> str:
    """Halves by Split, after the pairs have been given an axis of their own."""
    h, w = size
    rows = b.ops("Split", b.reshape(x, -1, h // 2, 2, w, C), b.ints(1, 1), count=2, axis=2)
    quarters = []
    for row in rows:
        flat = b.reshape(row, -1, h // 2, w // 2, 2, C)
        quarters += b.ops("Split", flat, b.ints(1, 1), count=2, axis=3)
    return b.op("Concat", *(b.reshape(quarters[i], -1, h // 2, w // 2, C) for i in (0, 2, 1, 3)), axis=-1)


SPELLINGS: dict[str, Spell] = {
    "slices": slices,
    "slices of both axes": slices_of_both_axes,
    "slices of rows, and slices of these": slices_row_by_row,
    "a transpose of six axes": transpose_dx_dy,
    "splits": split_and_concat,
}


def merging(
    spell: Spell = slices,
    size: tuple[int, int] = (4, 6),
    *,
    batch: int | str = 2,
    norm: str = "before",
    flat: bool = True,
    linear: Callable[[Builder, str], str] = lambda b, x: b.linear(x, 4 * C, 2 * C, bias=False),
    write_norm: Callable[[Builder, str], str] = lambda b, x: b.layer_norm(x, 4 * C),
    tokens: bool = False,
    pad: bool = True,
    opset: int = 17,
    more: Callable[[Builder, dict[str, str]], list[str]] = lambda b, tensors: [],
) -> onnx.ModelProto:
    """A computed map, merged, with a norm before the reduction (V1), behind it (V2) or nowhere."""
    b = Builder(opset=opset)
    h, w = size
    x = source = b.op("Tanh", b.input((batch, h * w, C) if tokens else (batch, h, w, C)))
    if tokens:
        x = b.reshape(x, -1, h, w, C)
    if pad and (h % 2 or w % 2):
        x = b.op("Pad", x, b.ints(0, 0, 0, 0, 0, h % 2, w % 2, 0))
        size = h + h % 2, w + w % 2
    merged = spell(b, x, size)
    if flat:
        merged = b.reshape(merged, -1, size[0] * size[1] // 4, 4 * C)
    normed = write_norm(b, merged) if norm == "before" else merged
    reduced = linear(b, normed)
    result = b.layer_norm(reduced, 2 * C) if norm == "behind" else reduced
    return b.model(b.op("Tanh", result), *more(b, {"source": source, "merged": merged, "normed": normed}))


def before_linear(model: onnx.ModelProto) -> list[str]:
    """The ops between the map and the first norm or linear, in order; asserts that they are one line."""
    made = {name: node for node in model.graph.node for name in node.output}
    (start,) = [n for n in model.graph.node if n.op_type in ("LayerNormalization", "MatMul")][:1]
    line, node = [], made.get(start.input[0])
    while node is not None and node.op_type != "Tanh":
        line.append(node.op_type)
        node = made.get(node.input[0])
    return line[::-1]


def simplified(model: onnx.ModelProto, movement: Sequence[str] = ("Reshape", "Transpose", "Reshape")) -> None:
    after = rewrites(model, SIMPLIFY, applied=1)
    assert before_linear(after) == list(movement)
    left = [n.op_type for n in after.graph.node]
    assert not {"Slice", "Concat", "Split"} & set(left) and left.count("Transpose") == 1
    (transposed,) = [n for n in after.graph.node if n.op_type == "Transpose"]
    assert list(transposed.attribute[0].ints) == [0, 1, 3, 2, 4]
    leaves_alone(after, SIMPLIFY)


# --------------------------------------------------------------------------------------------------------- spellings


@pytest.mark.parametrize("norm", ["before", "behind", "nowhere"])
@pytest.mark.parametrize("flat", [True, False], ids=["tokens", "a map"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_becomes_reshape_transpose_reshape(name: str, flat: bool, norm: str) -> None:
    simplified(merging(SPELLINGS[name], norm=norm, flat=flat))


@pytest.mark.parametrize("norm", ["before", "behind"])
@pytest.mark.parametrize("order", [DX_DY, DY_DX, DX_DY[::-1], (*DY_DX[1:], DY_DX[0])], ids=str)
def test_every_order_of_features_goes_into_the_weights(order: Sequence[tuple[int, int]], norm: str) -> None:
    simplified(merging(lambda b, x, size: slices(b, x, size, order), norm=norm))


LINEARS: dict[str, Callable[[Builder, str], str]] = {
    "MatMul": lambda b, x: b.linear(x, 4 * C, 2 * C, bias=False),
    "MatMul with bias": lambda b, x: b.linear(x, 4 * C, 2 * C),
    "Gemm": lambda b, x: b.linear(x, 4 * C, 2 * C, gemm=True),
    "Gemm without bias": lambda b, x: b.linear(x, 4 * C, 2 * C, gemm=True, bias=False),
    "Gemm, not transposed": lambda b, x: b.op("Gemm", b.reshape(x, -1, 4 * C), b.weights(4 * C, 5), b.weights(5)),
}


@pytest.mark.parametrize("batch", [1, 2, "batch"])
@pytest.mark.parametrize("norm", ["before", "nowhere"])
@pytest.mark.parametrize("name", LINEARS)
def test_every_kind_of_reduction(name: str, norm: str, batch: int | str) -> None:
    simplified(merging(linear=LINEARS[name], norm=norm, batch=batch))


@pytest.mark.parametrize("norm", ["before", "behind"])
@pytest.mark.parametrize("size", [(3, 4), (4, 3), (5, 7), (1, 1)])
def test_an_odd_map_is_padded_first(size: tuple[int, int], norm: str) -> None:
    simplified(merging(size=size, norm=norm), ("Pad", "Reshape", "Transpose", "Reshape"))


@pytest.mark.parametrize("norm", ["before", "behind"])
def test_a_map_of_tokens_is_read_as_it_is(norm: str) -> None:
    simplified(merging(tokens=True, norm=norm))


def test_a_dynamic_batch_of_tokens() -> None:
    simplified(merging(tokens=True, batch="batch"))


def test_an_odd_map_of_tokens_is_padded_as_a_map() -> None:
    after = rewrites(merging(size=(3, 5), tokens=True), SIMPLIFY, applied=1)
    assert before_linear(after) == ["Reshape", "Pad", "Reshape", "Transpose", "Reshape"]
    leaves_alone(after, SIMPLIFY)


@pytest.mark.parametrize("axis", [-1, 2])
def test_the_norm_keeps_its_epsilon_and_runs_over_the_features(axis: int) -> None:
    def norm(b: Builder, x: str) -> str:
        return b.op("LayerNormalization", x, b.weights(4 * C), b.weights(4 * C), axis=axis, epsilon=0.5)

    after = rewrites(merging(write_norm=norm), SIMPLIFY, applied=1)
    (node,) = [n for n in after.graph.node if n.op_type == "LayerNormalization"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert attributes["axis"] == -1 and attributes["epsilon"] == 0.5


def test_a_norm_without_bias() -> None:
    simplified(merging(write_norm=lambda b, x: b.op("LayerNormalization", x, b.weights(4 * C))))


def test_a_view_between_norm_and_reduction_is_passed() -> None:
    simplified(merging(linear=lambda b, x: b.linear(b.reshape(x, -1, 4 * C), 4 * C, 5), flat=False))


def of_an_image(height: int | str, width: int | str, batch: int | str = 1) -> onnx.ModelProto:
    b = Builder()
    x = b.transpose(b.input((batch, C, height, width)), 0, 2, 3, 1)
    return b.model(b.linear(slices(b, b.op("Tanh", x), (0, 0)), 4 * C, 2 * C))


@pytest.mark.parametrize(("height", "width", "batch"), [("h", 6, 1), (4, "w", 1), ("h", 6, "batch")])
def test_one_size_that_depends_on_the_input_is_copied_or_inferred(
    height: int | str, width: int | str, batch: int | str
) -> None:
    before = of_an_image(height, width, batch)
    after = rewrites(before, SIMPLIFY, applied=1)
    for h, w in ((4, 6), (4, 10), (8, 6)):
        if height in ("h", h) and width in ("w", w):
            feed = np.random.default_rng(0).standard_normal((1, C, h, w)).astype(np.float32)
            np.testing.assert_allclose(run(before, feed)[0], run(after, feed)[0], atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.permutations(DY_DX),
    st.sampled_from(["before", "behind"]),
    st.booleans(),
    st.sampled_from([1, 3, "batch"]),
)
def test_whatever_size_and_order_the_result_is_the_same(
    h: int, w: int, order: Sequence[tuple[int, int]], norm: str, tokens: bool, batch: int | str
) -> None:
    before = merging(
        lambda b, x, size: slices(b, x, size, order), (h, w), norm=norm, tokens=tokens, batch=batch, flat=tokens
    )
    rewrites(before, SIMPLIFY, applied=1)


# -------------------------------------------------------------------------------------------------------- near misses


@pytest.mark.parametrize("flat", [True, False], ids=["tokens", "a map"])
def test_what_is_simple_already_is_left_alone(flat: bool) -> None:
    def spell(b: Builder, x: str, size: tuple[int, int]) -> str:
        h, w = size
        moved = b.transpose(b.reshape(x, -1, h // 2, 2, w // 2, 2 * C), 0, 1, 3, 2, 4)
        return b.reshape(moved, -1, h * w // 4, 4 * C) if flat else b.reshape(moved, -1, h // 2, w // 2, 4 * C)

    leaves_alone(merging(spell, flat=False), SIMPLIFY)


def doubled(b: Builder, x: str, size: tuple[int, int]) -> str:
    return slices(b, x, size, ((0, 0), (0, 0), (0, 0), (1, 1)))


def other_stride(b: Builder, x: str, size: tuple[int, int]) -> str:
    parts = [b.slice(b.slice(x, dy, 2 + dy, 1), dx, 3 + dx, 2) for dy, dx in DX_DY]
    return b.op("Concat", *parts, axis=-1)


def two_sources(b: Builder, x: str, size: tuple[int, int]) -> str:
    other = b.op("Neg", x)
    of = zip([x, x, x, other], DX_DY, strict=True)
    parts = [b.slice(b.slice(t, dy, b.far_end, 1, 2), dx, b.far_end, 2, 2) for t, (dy, dx) in of]
    return b.op("Concat", *parts, axis=-1)


def one_by_four(b: Builder, x: str, size: tuple[int, int]) -> str:
    return b.reshape(x, -1, size[0] // 2, size[1] // 2, 4 * C)


def interleaved(b: Builder, x: str, size: tuple[int, int]) -> str:
    """The same neighbours, with the channel as the outer axis of the features."""
    return transpose(b, x, size, 0, 1, 3, 5, 2, 4)


def columns_first(b: Builder, x: str, size: tuple[int, int]) -> str:
    """The same neighbours, with the tokens transposed."""
    return b.transpose(slices(b, x, size), 0, 2, 1, 3)


def backwards(b: Builder, x: str, size: tuple[int, int]) -> str:
    return slices(b, b.slice(x, -1, -(2**31), 1, -1), size)


@pytest.mark.parametrize(
    "spell", [doubled, other_stride, two_sources, one_by_four, interleaved, columns_first, backwards]
)
@pytest.mark.parametrize("norm", ["before", "behind"])
def test_what_merges_otherwise_is_left_alone(spell: Spell, norm: str) -> None:
    before = merging(spell, norm=norm)
    assert_equivalent(before, before)
    leaves_alone(before, SIMPLIFY)


def test_a_map_that_is_padded_in_front_is_left_alone() -> None:
    def spell(b: Builder, x: str, size: tuple[int, int]) -> str:
        return slices(b, b.op("Pad", x, b.ints(0, 1, 1, 0, 0, 0, 0, 0)), size)

    leaves_alone(merging(spell, (5, 3), pad=False, flat=False), SIMPLIFY)


def test_a_map_that_is_padded_with_ones_is_merged_as_it_is_then() -> None:
    def spell(b: Builder, x: str, size: tuple[int, int]) -> str:
        return slices(b, b.op("Pad", x, b.ints(0, 0, 0, 0, 0, 1, 1, 0), b.constant(1.0)), size)

    simplified(merging(spell, (5, 3), pad=False, flat=False), ("Pad", "Reshape", "Transpose", "Reshape"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no linear follows the norm": (
        {"linear": lambda b, x: b.op("Sigmoid", x)},
        "no linear with constant weights follows",
    ),
    "an activation stands before the linear": (
        {"linear": lambda b, x: b.linear(b.op("Relu", x), 4 * C, 5)},
        "no linear with constant weights follows",
    ),
    "the weights are no constants": (
        {"linear": lambda b, x: b.linear(x, 4 * C, 5, constant=False)},
        "no linear with constant weights follows",
    ),
    "the features are moved once more before the linear": (
        {"linear": lambda b, x: b.linear(b.op("Gather", x, b.ints(1, 0, *range(2, 4 * C)), axis=-1), 4 * C, 5)},
        "no linear with constant weights follows",
    ),
    "the norm is read elsewhere, too": (
        {"more": lambda b, t: [b.op("Sigmoid", t["normed"])]},
        "no linear with constant weights follows",
    ),
    "the norm is read elsewhere as a view": (
        {
            "linear": lambda b, x: b.linear(x, 4 * C, 5, gemm=True),
            "more": lambda b, t: [b.op("Sigmoid", b.reshape(t["normed"], -1))],
        },
        "no linear with constant weights follows",
    ),
    "half of the features are a token to the linear": (
        {"linear": lambda b, x: b.linear(b.reshape(x, 2, -1, 2 * C), 2 * C, 5)},
        "no linear with constant weights follows",
    ),
    "the norm runs over two axes": (
        {"write_norm": lambda b, x: b.op("LayerNormalization", x, b.weights(6, 4 * C), b.weights(6, 4 * C), axis=1)},
        "does not run over their features alone",
    ),
    "the norm runs over two axes, one of size one": (
        {
            "size": (2, 2),
            "write_norm": lambda b, x: b.op("LayerNormalization", x, b.weights(1, 4 * C), axis=1),
        },
        "does not run over their features alone",
    ),
    "the scale of the norm is an input": (
        {"write_norm": lambda b, x: b.op("LayerNormalization", x, b.input((4 * C,), "scale"))},
        "the norm",
    ),
    "the scale of the norm is one number": (
        {"write_norm": lambda b, x: b.op("LayerNormalization", x, b.weights(1))},
        "the norm",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_that(name: str) -> None:
    options, reason = REFUSED[name]
    before = merging(**options)
    if "one number" not in name:
        assert_equivalent(before, before)
    refuses(before, SIMPLIFY, reason)


def test_a_norm_that_is_read_as_a_view_before_the_linear_reads_it_is_refused() -> None:
    kept: list[str] = []

    def norm(b: Builder, x: str) -> str:
        normed = b.layer_norm(x, 4 * C)
        kept.append(b.op("Sigmoid", b.reshape(normed, -1)))
        return b.reshape(normed, -1, 4 * C)

    before = merging(write_norm=norm, more=lambda b, t: kept)
    refuses(before, SIMPLIFY, "no linear with constant weights follows")


def test_weights_that_are_no_constants_are_refused_without_a_norm_too() -> None:
    before = merging(norm="behind", linear=lambda b, x: b.linear(x, 4 * C, 2 * C, constant=False))
    refuses(before, SIMPLIFY, "no linear with constant weights follows")


def test_two_sizes_that_depend_on_the_input_are_refused() -> None:
    refuses(of_an_image("h", "w"), SIMPLIFY, "two sizes that depend on the input")


@pytest.mark.parametrize("norm", ["before", "behind"])
def test_merged_patches_that_are_read_elsewhere_too_are_left_alone(norm: str) -> None:
    leaves_alone(merging(norm=norm, more=lambda b, t: [b.op("Sigmoid", t["merged"])]), SIMPLIFY)


@pytest.mark.parametrize("norm", ["before", "behind"])
def test_merged_patches_that_are_an_output_too_are_left_alone(norm: str) -> None:
    leaves_alone(merging(norm=norm, more=lambda b, t: [t["merged"]]), SIMPLIFY)


def test_the_map_may_be_read_elsewhere() -> None:
    simplified(merging(more=lambda b, t: [b.op("Sigmoid", t["source"])]))


def test_a_norm_that_is_an_output_keeps_its_values() -> None:
    before = merging(more=lambda b, t: [t["normed"]])
    assert_equivalent(before, SIMPLIFY(before))

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt.passes import FusePatchMerging, SimplifyPatchMerging
from swinopt.testing import assert_equivalent, leaves_alone, refuses, rewrites
from tests.graphs import Builder

FUSE = FusePatchMerging()
C = 3
#: The neighbours (dy, dx) in the op's order, and in the order of the published code.
DY_DX, DX_DY = ((0, 0), (0, 1), (1, 0), (1, 1)), ((0, 0), (1, 0), (0, 1), (1, 1))

Spell = Callable[[Builder, str, tuple[int, int]], str]


def slices(b: Builder, x: str, size: tuple[int, int], order: Sequence[tuple[int, int]] = DY_DX) -> str:
    """x[:, dy::2, dx::2] four times, side by side."""

    def quarter(dy: int, dx: int) -> str:
        return b.slice(b.slice(x, dy, b.far_end, 1, 2), dx, b.far_end, 2, 2)

    return b.op("Concat", *(quarter(dy, dx) for dy, dx in order), axis=-1)


def canonical(b: Builder, x: str, size: tuple[int, int]) -> str:
    """As simplify-patch-merging writes it."""
    h, w = size
    moved = b.transpose(b.reshape(x, -1, h // 2, 2, w // 2, 2 * C), 0, 1, 3, 2, 4)
    return b.reshape(moved, -1, h // 2, w // 2, 4 * C)


def six_axes(b: Builder, x: str, size: tuple[int, int]) -> str:
    h, w = size
    split = b.reshape(x, -1, h // 2, 2, w // 2, 2, C)
    return b.reshape(b.transpose(split, 0, 1, 3, 2, 4, 5), -1, h // 2, w // 2, 4 * C)


SPELLINGS: dict[str, Spell] = {"slices": slices, "as simplified": canonical, "six axes": six_axes}


def merging(
    spell: Spell = canonical,
    size: tuple[int, int] = (4, 6),
    *,
    batch: int | str = 2,
    flat: bool = False,
    tokens: bool = False,
    norm: Callable[[Builder, str], str] | None = lambda b, x: b.layer_norm(x, 4 * C),
    dtype: Any = np.float32,
    opset: int = 17,
    more: Callable[[Builder, dict[str, str]], list[str]] = lambda b, tensors: [],
) -> onnx.ModelProto:
    """A computed map, merged, with a norm and a reduction behind it."""
    b = Builder(opset=opset, dtype=dtype)
    h, w = size
    x = source = b.op("Tanh", b.input((batch, h * w, C) if tokens else (batch, h, w, C)))
    if tokens:
        x = b.reshape(x, -1, h, w, C)
    if h % 2 or w % 2:
        x = b.op("Pad", x, b.ints(0, 0, 0, 0, 0, h % 2, w % 2, 0))
        size = h + h % 2, w + w % 2
    merged = spell(b, x, size)
    if flat:
        merged = b.reshape(merged, -1, size[0] * size[1] // 4, 4 * C)
    normed = norm(b, merged) if norm else merged
    result = b.op("Tanh", b.linear(normed, 4 * C, 2 * C, bias=False))
    return b.model(result, *more(b, {"source": source, "merged": merged, "normed": normed}))


def fused(before: onnx.ModelProto, *, others: dict[str, int] | None = None) -> onnx.NodeProto:
    """Asserts that map, op and reduction are one line, but for `others`."""
    expect = {"Tanh": 2, "swinopt::PatchMerging": 1, "MatMul": 1, **(others or {})}
    after = rewrites(before, FUSE, applied=1, expect=expect)
    leaves_alone(after, FUSE)
    (node,) = [node for node in after.graph.node if node.op_type == "PatchMerging"]
    return node


# ---------------------------------------------------------------------------------------------------------- it applies


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_gathering_and_its_norm_become_one_node(name: str) -> None:
    node = fused(merging(SPELLINGS[name]))
    assert node.domain == "swinopt" and len(node.input) == 3


@pytest.mark.parametrize("size", [(5, 6), (4, 7), (5, 7), (1, 1)], ids=str)
def test_the_padding_of_an_odd_map_goes_with_it(size: tuple[int, int]) -> None:
    fused(merging(slices, size))


@pytest.mark.parametrize("opset", [17, 18, 20])
def test_a_dynamic_batch_stays_dynamic(opset: int) -> None:
    fused(merging(batch="batch", opset=opset))


def test_a_map_of_any_even_size_will_do() -> None:
    b = Builder()
    x = b.op("Tanh", b.input(("batch", "h", "w", C)))
    twice = b.op("Concat", x, x, axis=1)
    even = b.op("Exp", b.op("Concat", twice, twice, axis=2))
    before = b.model(b.op("Tanh", b.layer_norm(slices(b, even, (0, 0)), 4 * C)))
    rewrites(before, FUSE, applied=1, expect={"Tanh": 2, "Concat": 2, "Exp": 1, "swinopt::PatchMerging": 1})


def test_tokens_in_one_axis_are_viewed_as_a_map_and_back() -> None:
    fused(merging(tokens=True, flat=True), others={"Reshape": 2})


@pytest.mark.parametrize("batch", [2, "batch"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_tokens_as_rows_are_viewed_as_a_map(name: str, batch: int | str) -> None:
    b = Builder()
    rows = b.op("Tanh", b.reshape(b.input((batch, 4, 6, C)), -1, C))
    merged = SPELLINGS[name](b, b.reshape(rows, -1, 4, 6, C), (4, 6))
    before = b.model(b.op("Tanh", b.layer_norm(merged, 4 * C)))
    rewrites(before, FUSE, applied=1, expect={"Reshape": 2, "Tanh": 2, "swinopt::PatchMerging": 1})


@pytest.mark.parametrize("batch", [2, "batch"])
def test_rows_that_no_view_makes_a_map_of_are_recognised_by_what_is_merged(batch: int | str) -> None:
    b = Builder()
    rows = b.op("Tanh", b.reshape(b.input((batch, 4, 6, C)), -1, C))
    moved = b.transpose(b.reshape(rows, -1, 2, 3, 2 * C), 0, 2, 1, 3)  # batch and height are one axis
    merged = b.reshape(moved, -1, 2, 3, 4 * C)
    before = b.model(b.op("Tanh", b.layer_norm(merged, 4 * C)))
    rewrites(before, FUSE, applied=1, expect={"Reshape": 2, "Tanh": 2, "swinopt::PatchMerging": 1})


@pytest.mark.parametrize("shape", [(2, 4, 4, 8), (2, 16, 8)], ids=str)
def test_one_number_in_every_place_is_no_map(shape: tuple[int, ...]) -> None:
    b = Builder()
    filled = b.op("Expand", b.op("Tanh", b.input(())), b.ints(*shape))
    before = b.model(b.op("Tanh", b.layer_norm(filled, 8)))
    leaves_alone(before, FUSE)
    leaves_alone(before, SimplifyPatchMerging())


def test_the_features_may_be_viewed_as_tokens_before_the_norm() -> None:
    fused(merging(flat=True, batch="batch"), others={"Reshape": 1})


def test_a_norm_without_bias_gets_one_of_zeros() -> None:
    before = merging(norm=lambda b, x: b.op("LayerNormalization", x, b.weights(4 * C), axis=-1))
    fused(before)


@pytest.mark.parametrize("epsilon", [None, 1e-6, 0.5])
def test_epsilon_is_taken_over(epsilon: float | None) -> None:
    attributes = {} if epsilon is None else {"epsilon": epsilon}

    def norm(b: Builder, x: str) -> str:
        return b.op("LayerNormalization", x, b.weights(4 * C), b.weights(4 * C), axis=3, **attributes)

    node = fused(merging(norm=norm))
    assert [round(a.f, 8) for a in node.attribute] == [epsilon or 1e-5]


def test_scale_and_bias_may_be_computed() -> None:
    fused(merging(norm=lambda b, x: b.op("LayerNormalization", x, b.input((4 * C,), "s"), b.input((4 * C,), "o"))))


def test_a_norm_that_is_an_output_keeps_its_name() -> None:
    before = merging(more=lambda b, t: [t["normed"]])
    rewrites(before, FUSE, applied=1)


def test_the_map_may_be_read_elsewhere() -> None:
    fused(merging(more=lambda b, t: [b.op("Sigmoid", t["source"])]), others={"Sigmoid": 1})


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_half_precision_stays_half(dtype: Any) -> None:
    after = FUSE(merging(dtype=dtype))
    assert {t.data_type for t in after.graph.initializer} == {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}


@pytest.mark.parametrize("target", ["portable", "onnxruntime", "tensorrt"])
def test_any_target_runs_what_it_makes(target: str) -> None:
    before = merging(lambda b, x, size: slices(b, x, size, DX_DY), (5, 6), batch="batch", flat=True)
    pipeline = swinopt.Pipeline(*swinopt.pipeline(target).steps, FUSE)
    result = swinopt.optimize(before, passes=pipeline, target=target)
    assert {p.name: p.applied for p in result.report.passes}["fuse-patch-merging"] == 1
    assert swinopt.compare(before, result.model).passed


# --------------------------------------------------------------------------------------------------------- near misses


def test_another_order_of_the_neighbours_is_refused_until_it_is_permuted() -> None:
    before = merging(lambda b, x, size: slices(b, x, size, DX_DY))
    refuses(before, FUSE, r"order \(0, 0\), \(1, 0\), \(0, 1\), \(1, 1\): run simplify-patch-merging first")
    fused(SimplifyPatchMerging()(before))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the merged patches are read elsewhere": ({"more": lambda b, t: [b.op("Sigmoid", t["merged"])]}, "read elsewhere"),
    "the merged patches are an output": ({"more": lambda b, t: [t["merged"]]}, "read elsewhere"),
    "the norm runs over two axes": (
        {"norm": lambda b, x: b.op("LayerNormalization", x, b.weights(3, 4 * C), axis=2)},
        "does not run over the last axis alone",
    ),
    "the norm runs over all axes": (
        {"norm": lambda b, x: b.op("LayerNormalization", x, b.weights(2, 3, 4 * C), axis=1)},
        "does not run over the last axis alone",
    ),
    "the scale is one number": (
        {"norm": lambda b, x: b.op("LayerNormalization", x, b.weights(1), b.weights(4 * C))},
        "the scale of the norm is not one number for each of 12 channels",
    ),
    "the bias has an axis more": (
        {"norm": lambda b, x: b.op("LayerNormalization", x, b.weights(4 * C), b.weights(1, 4 * C))},
        "the bias of the norm is not one number for each of 12 channels",
    ),
    "the mean is read as well": (
        {
            "norm": lambda b, x: b.op(
                "Add", *b.ops("LayerNormalization", x, b.weights(4 * C), b.weights(4 * C), count=2)
            )
        },
        "the mean or the deviation of the norm is read",
    ),
    "the norm is of float64": ({"dtype": np.float64}, "other than float32, float16 and bfloat16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_that(name: str) -> None:
    options, reason = REFUSED[name]
    refuses(merging(**options), FUSE, reason)


LEFT_ALONE: dict[str, dict[str, Any]] = {
    "no norm": {"norm": None},
    "a neighbour comes twice": {"spell": lambda b, x, s: slices(b, x, s, (*DY_DX[:3], DY_DX[0]))},
    "a view of the map": {"spell": lambda b, x, s: b.reshape(x, -1, s[0] // 2, s[1] // 2, 4 * C)},
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_it_is_left_alone_if_there_is(name: str) -> None:
    before = merging(**LEFT_ALONE[name])
    assert_equivalent(before, before)
    leaves_alone(before, FUSE)


def test_a_norm_behind_the_reduction_is_left_alone() -> None:
    b = Builder()
    merged = canonical(b, b.op("Tanh", b.input((2, 4, 6, C))), (4, 6))
    leaves_alone(b.model(b.layer_norm(b.linear(merged, 4 * C, 2 * C, bias=False), 2 * C)), FUSE)

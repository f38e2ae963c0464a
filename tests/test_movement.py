"""Movement by evaluation, against ONNX Runtime for random chains, and against the textbook for windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinopt import graph as graphs
from swinopt.facts import Facts
from swinopt.graph import Tensor
from swinopt.indices import PAD, is_identity
from swinopt.movement import Movement, Region, data_inputs, is_movement
from swinopt.textbook import padded_size, window_tokens
from tests.chains import Chain, chains
from tests.graphs import Builder, run, shifted_partition, shifted_reverse
from tests.test_indices import check_affine

Array = npt.NDArray[Any]
fast = settings(deadline=None, max_examples=60)


def load(model: onnx.ModelProto) -> tuple[Movement, list[Tensor]]:
    graph = graphs.load(model)
    return Movement(Facts(graph)), list(graph.outputs)


def region_of(model: onnx.ModelProto, **options: Any) -> Region:
    movement, (target,) = load(model)
    region = movement.region(target, **options)
    assert region is not None
    return region


def moved(indices: Array, data: Array) -> Array:
    return np.where(indices == PAD, 0, data.reshape(-1)[indices]).astype(data.dtype)


# --------------------------------------------------------------------------------------- random chains of random ops


@fast
@given(chains())
def test_the_indices_of_a_random_chain_are_what_onnx_runtime_makes_of_it(chain: Chain) -> None:
    model = chain.b.model(chain.tensor)
    region = region_of(model)
    (indices,) = region.indices
    assert region.source.name == "x" and indices.shape == chain.shape
    data = np.random.default_rng(0).standard_normal(tuple(region.source.shape)).astype(np.float32)
    np.testing.assert_array_equal(moved(indices, data), run(model, data)[0])


@fast
@given(chains(batch=True), st.sampled_from([1, 3]))
def test_the_indices_of_a_random_chain_hold_for_another_batch_as_well(chain: Chain, batch: int) -> None:
    model = chain.b.model(chain.tensor)
    graph = graphs.load(model)
    region = Movement(Facts(graph, [{"batch": batch}])).region(graph.outputs[0])
    assert region is not None and region.indices[0].shape == (batch, *chain.shape)
    data = np.random.default_rng(0).standard_normal((batch, *region.source.shape[1:])).astype(np.float32)
    np.testing.assert_array_equal(moved(region.indices[0], data), run(model, data)[0])


@fast
@given(chains())
def test_an_affine_form_of_a_random_chain_is_exact(chain: Chain) -> None:
    (indices,) = region_of(chain.b.model(chain.tensor)).indices
    check_affine(indices)


# --------------------------------------------------------------------------------------------------------- windows


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], bool]:
    axes = draw(st.integers(2, 3))
    window = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    size = tuple(draw(st.integers(1, 6 if axes == 2 else 4)) for _ in range(axes))
    # A roll by all of an axis or more is no roll of an exporter's.
    shift = tuple(draw(st.integers(0, min(w, s) - 1)) for w, s in zip(window, size, strict=True))
    return size, window, shift, draw(st.booleans())


def expected_partition(tokens: Array, size: tuple[int, ...], batch: int, channels: int) -> Array:
    batches = np.arange(batch)[:, None, None] * math.prod(size)
    placed = np.where(tokens == PAD, PAD, tokens + batches).reshape(-1, tokens.shape[1], 1)
    return np.where(placed == PAD, PAD, placed * channels + np.arange(channels))


@fast
@given(geometries(), st.sampled_from([1, 2, "batch"]))
def test_a_partition_in_onnx_ops_is_exactly_the_textbooks(geometry: Any, batch: int | str) -> None:
    size, window, shift, roll_first = geometry
    b = Builder()
    cut = shifted_partition(b, b.input((batch, *size, 2)), size, window, shift, 2, roll_first=roll_first)
    movement, (target,) = load(b.model(cut))
    region = movement.region(target)
    assert region is not None and len(region.indices) == (2 if batch == "batch" else 1)
    tokens = window_tokens(size, window, shift, roll_first=roll_first)
    for sample, indices in enumerate(region.indices):
        count = (movement.facts.shape(region.source, sample) or (0,))[0]
        np.testing.assert_array_equal(indices, expected_partition(tokens, size, count, 2))


@fast
@given(geometries())
def test_a_partition_and_its_reverse_move_nothing(geometry: Any) -> None:
    size, window, shift, roll_first = geometry
    b = Builder()
    cut = shifted_partition(b, b.input((2, *size, 3)), size, window, shift, 3, roll_first=roll_first)
    back = shifted_reverse(b, cut, size, window, shift, 3, roll_first=roll_first)
    (indices,) = region_of(b.model(back)).indices
    assert indices.shape == (2, *size, 3) and is_identity(indices)


@fast
@given(geometries())
def test_a_reverse_is_exactly_the_inverse_of_the_textbooks_partition(geometry: Any) -> None:
    size, window, shift, roll_first = geometry
    tokens = window_tokens(size, window, shift, roll_first=roll_first)
    b = Builder()
    back = shifted_reverse(b, b.input((len(tokens), tokens.shape[1], 1)), size, window, shift, 1, roll_first=roll_first)
    (indices,) = region_of(b.model(back)).indices
    slots = np.full(math.prod(size), PAD)
    slots[tokens[tokens != PAD]] = np.flatnonzero(tokens.reshape(-1) != PAD)
    np.testing.assert_array_equal(indices.reshape(-1), slots)


@fast
@given(geometries(), st.data())
def test_a_partition_that_is_wrong_in_one_place_is_another_one(geometry: Any, data: st.DataObject) -> None:
    size, window, shift, roll_first = geometry
    tokens = window_tokens(size, window, shift, roll_first=roll_first)
    groups = len(tokens)
    if tokens.size < 2:
        return
    b = Builder()
    cut = shifted_partition(b, b.input((1, *size, 1)), size, window, shift, 1, roll_first=roll_first)
    order = np.arange(tokens.size)
    i, j = data.draw(st.lists(st.integers(0, tokens.size - 1), min_size=2, max_size=2, unique=True))
    order[[i, j]] = order[[j, i]]
    swapped = b.op("Gather", b.reshape(cut, -1), b.constant(order), axis=0)
    (indices,) = region_of(b.model(b.reshape(swapped, groups, -1))).indices
    np.testing.assert_array_equal(indices, tokens.reshape(-1)[order].reshape(tokens.shape))
    assert np.array_equal(indices, tokens) == (tokens.reshape(-1)[i] == tokens.reshape(-1)[j])


@fast
@given(geometries(), st.data())
def test_another_shift_or_window_gives_other_indices(geometry: Any, data: st.DataObject) -> None:
    size, window, shift, _ = geometry
    other = tuple(data.draw(st.integers(0, min(w, s) - 1)) for w, s in zip(window, size, strict=True))
    b = Builder()
    movement, targets = load(
        b.model(
            *(
                shifted_partition(b, b.input((1, *size, 1), f"x{s}"), size, window, s, 1)
                for s in dict.fromkeys((shift, other))
            )
        )
    )
    found = [movement.region(t) for t in targets]
    for s, region in zip(dict.fromkeys((shift, other)), found, strict=True):
        assert region is not None
        np.testing.assert_array_equal(region.indices[0][..., 0], window_tokens(size, window, s))


def test_what_is_padded_is_marked_in_the_partition() -> None:
    b = Builder()
    region = region_of(b.model(shifted_partition(b, b.input((1, 5, 7, 1)), (5, 7), (3, 4), (1, 2), 1)))
    assert (region.indices[0] == PAD).sum() == math.prod(padded_size((5, 7), (3, 4))) - 35


# ------------------------------------------------------------------------------------------------------------ runs

#: What is written behind a map, the length of the longest runs that it leaves whole, and the axis along which they lie.
RUNS: dict[str, tuple[tuple[int, ...], Callable[[Builder, str], str], int, int]] = {
    "partition": ((2, 4, 6, 6), lambda b, x: shifted_partition(b, x, (4, 6), (2, 3), (1, 1), 6), 6, -1),
    "padded partition": ((1, 5, 7, 6), lambda b, x: shifted_partition(b, x, (5, 7), (3, 4), (1, 2), 6), 6, -1),
    "heads": ((3, 4, 12), lambda b, x: b.transpose(b.reshape(x, 3, 4, 3, 4), 0, 2, 1, 3), 4, -1),
    "heads, transposed": ((3, 4, 12), lambda b, x: b.transpose(b.reshape(x, 3, 4, 3, 4), 0, 2, 3, 1), 4, -2),
    "heads as rows, transposed": (
        (3, 4, 12),
        lambda b, x: b.reshape(b.transpose(b.reshape(x, 3, 4, 3, 4), 0, 2, 3, 1), 9, 4, 4),
        4,
        -2,
    ),
    "there and back": ((3, 4, 12), lambda b, x: b.transpose(b.transpose(x, 0, 2, 1), 0, 2, 1), 12, -1),
    "transposed, then tokens parted": ((2, 6, 4), lambda b, x: b.reshape(b.transpose(x, 0, 2, 1), 2, 4, 2, 3), 1, -1),
    "transposed, then channels parted": ((2, 6, 4), lambda b, x: b.reshape(b.transpose(x, 0, 2, 1), 4, 2, 6), 2, -2),
    "half of the channels": ((2, 3, 8), lambda b, x: b.slice(x, 0, 4, 2), 1, -1),
    "all channels, backwards": ((2, 3, 8), lambda b, x: b.op("Slice", x, b.ints(7), b.ints(-9), "", b.ints(-1)), 8, -1),
    "one third": ((2, 6), lambda b, x: b.ops("Split", x, b.ints(1, 2, 3), count=3, axis=-1)[1], 1, -1),
    "one third of tokens": ((6, 4), lambda b, x: b.ops("Split", x, b.ints(1, 2, 3), count=3)[1], 4, -1),
    "channels picked": ((2, 4), lambda b, x: b.op("Gather", x, b.ints(1, 0, 3, 2), axis=-1), 1, -1),
    "tokens picked": ((3, 4), lambda b, x: b.op("Gather", x, b.constant(np.array([[2, 0]]))), 4, -1),
    "picked behind": (
        (2, 4, 3),
        lambda b, x: b.op("Gather", b.transpose(x, 0, 2, 1), b.ints(1, 1), axis=2),
        1,
        -1,
    ),
    "one for all": ((3, 1, 4), lambda b, x: b.op("Expand", x, b.ints(2, 1, 5, 1)), 4, -1),
    "one channel for all": ((3, 1), lambda b, x: b.op("Expand", x, b.ints(3, 4)), 1, -1),
    "padded at all ends but one": (
        (2, 3, 4),
        lambda b, x: b.op("Pad", x, b.ints(0, 1, 0, 1, -1, 0), b.constant(0.0)),
        4,
        -1,
    ),
    "padded channels": ((2, 3, 4), lambda b, x: b.op("Pad", x, b.ints(0, 0, 0, 0, 0, 4), b.constant(0.0)), 1, -1),
    "side by side": ((3, 4), lambda b, x: b.op("Concat", x, b.slice(x, 1, 2, 0), axis=0), 4, -1),
    "channels side by side": ((3, 4), lambda b, x: b.op("Concat", x, b.reshape(x, 3, 4), axis=-1), 4, -1),
    "neither here nor there": (
        (3, 3),
        lambda b, x: b.op("Concat", x, b.transpose(x, 1, 0), axis=0),
        1,
        -1,
    ),
    "depth to space": ((1, 8, 2, 2), lambda b, x: b.op("DepthToSpace", x, blocksize=2), 1, -1),
    "nothing": ((0, 2), lambda b, x: b.op("Reshape", b.transpose(x, 1, 0), b.ints(0), allowzero=1), 1, -1),
    "a new axis at the end": ((2, 4), lambda b, x: b.op("Unsqueeze", x, b.ints(-1)), 1, -1),
}


@pytest.mark.parametrize(("shape", "write", "length", "axis"), RUNS.values(), ids=RUNS)
def test_runs_are_as_long_as_no_step_parts_them(
    shape: tuple[int, ...], write: Callable[[Builder, str], str], length: int, axis: int
) -> None:
    b = Builder()
    model = b.model(write(b, b.input(shape)))
    region = region_of(model)
    assert (region.length, region.axis) == (length, axis)
    (indices,), (runs,) = region.indices, region.runs
    assert runs.size * length == indices.size
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(moved(indices, data), run(model, data)[0])
    other = -1 if axis == -2 else -2
    assert region.along(axis) == (region.runs, length)
    assert region.along(other) == (region.indices, 1)
    with pytest.raises(ValueError, match="read-only"):
        indices[...] = 0


@pytest.mark.parametrize(
    ("write", "length"),
    [
        (lambda b, x: b.op("Relu", x), 2),  # a source without a step behind it
        (lambda b, x: b.transpose(x, 1, 0), 2),
        # Channels up to a multiple of 4, as maps are padded: none are missing of 4, and 2 of 6.
        (
            lambda b, x: b.op(
                "Pad",
                x,
                b.op(
                    "Concat",
                    b.ints(0, 0, 0),
                    b.op("Mod", b.op("Neg", b.slice(b.op("Shape", x), 1, 2, 0)), b.ints(4)),
                    axis=0,
                ),
                b.constant(0.0),
            ),
            1,
        ),
    ],
    ids=["source", "transposed", "padded"],
)
def test_runs_are_those_of_all_sizes(write: Callable[[Builder, str], str], length: int) -> None:
    b = Builder()
    model = b.model(write(b, b.input((3, "c"))))
    graph = graphs.load(model)
    region = Movement(Facts(graph, [{"c": 4}, {"c": 6}])).region(graph.outputs[0])
    assert region is not None and region.length == length
    for indices, channels in zip(region.indices, (4, 6), strict=True):
        data = np.random.default_rng(0).random((3, channels), np.float32)
        np.testing.assert_array_equal(moved(indices, data), run(model, data)[0])


# ------------------------------------------------------------------------------------------------------ single ops

SINGLE_OPS: list[tuple[tuple[int, ...], Callable[[Builder, str], str], Any]] = [
    ((4,), lambda b, x: b.slice(x, -1, -99, 0, -1), [3, 2, 1, 0]),
    ((4,), lambda b, x: b.slice(x, 3, -5, -1, -2), [3, 1]),
    ((0,), lambda b, x: b.slice(x, 3, -5, 0, -1), []),
    ((4,), lambda b, x: b.slice(x, 3, -4, 0, -1), [3, 2, 1]),
    ((4,), lambda b, x: b.slice(x, -9, -99, 0, -1), [0]),
    ((4,), lambda b, x: b.slice(x, 9, 0, 0, -2), [3, 1]),
    ((4,), lambda b, x: b.op("Slice", x, b.ints(-9), b.ints(-2)), [0, 1]),
    ((2, 3), lambda b, x: b.op("Slice", x, b.ints(0, 1), b.ints(1, 9)), [[1, 2]]),
    ((2, 3), lambda b, x: b.op("Slice", x, b.ints(1, 0), b.ints(9, 1), b.ints(-1, -2)), [[1, 2]]),
    ((4, 2), lambda b, x: b.op("Slice", x, b.ints(0), b.ints(4), "", b.ints(2)), [[0, 1], [4, 5]]),
    ((4,), lambda b, x: b.op("Pad", x, b.ints(-1, 2)), [1, 2, 3, PAD, PAD]),
    ((2, 2), lambda b, x: b.op("Pad", x, b.ints(1, -1), "", b.ints(-1)), [[PAD, 0], [PAD, 2]]),
    ((2, 2), lambda b, x: b.op("Pad", x, b.ints(0, 1, 0, 0), b.constant(0.0)), [[PAD, 0, 1], [PAD, 2, 3]]),
    ((5,), lambda b, x: b.ops("Split", x, b.ints(3, 2), count=2, axis=-1)[1], [3, 4]),
    ((5,), lambda b, x: b.ops("Split", x, b.ints(1, 3, 1), count=3)[1], [1, 2, 3]),
    ((5,), lambda b, x: b.ops("Split", x, count=3, num_outputs=3)[2], [4]),
    ((6,), lambda b, x: b.ops("Split", x, count=2, num_outputs=2)[1], [3, 4, 5]),
    ((3,), lambda b, x: b.op("Gather", x, b.constant(np.int64(-1))), 2),
    ((2, 2), lambda b, x: b.op("Gather", x, b.constant(np.array([[-1, 0]])), axis=-1), [[[1, 0]], [[3, 2]]]),
    ((2, 1), lambda b, x: b.op("Expand", x, b.ints(2, 1, 2)), [[[0, 0], [1, 1]], [[0, 0], [1, 1]]]),
    ((2, 2), lambda b, x: b.op("Transpose", x), [[0, 2], [1, 3]]),
    ((2, 2), lambda b, x: b.op("Concat", x, x, axis=-1), [[0, 1, 0, 1], [2, 3, 2, 3]]),
    ((1, 4, 1, 1), lambda b, x: b.op("DepthToSpace", x, blocksize=2), [[[[0, 1], [2, 3]]]]),
    (
        (1, 8, 1, 1),
        lambda b, x: b.op("DepthToSpace", x, blocksize=2, mode="DCR"),
        [[[[0, 2], [4, 6]], [[1, 3], [5, 7]]]],
    ),
    (
        (1, 8, 1, 1),
        lambda b, x: b.op("DepthToSpace", x, blocksize=2, mode="CRD"),
        [[[[0, 1], [2, 3]], [[4, 5], [6, 7]]]],
    ),
    ((1, 1, 2, 2), lambda b, x: b.op("SpaceToDepth", x, blocksize=2), [[[[0]], [[1]], [[2]], [[3]]]]),
    ((2, 3), lambda b, x: b.op("Flatten", x, axis=0), [[0, 1, 2, 3, 4, 5]]),
    ((2, 3), lambda b, x: b.reshape(x, 0, -1, 1), [[[0], [1], [2]], [[3], [4], [5]]]),
    ((1, 2, 1), lambda b, x: b.op("Squeeze", x), [0, 1]),
    ((2,), lambda b, x: b.op("Unsqueeze", x, b.ints(0, -1)), [[[0], [1]]]),
]


@pytest.mark.parametrize(("shape", "write", "indices"), SINGLE_OPS)
def test_a_single_op_moves_as_the_specification_says(
    shape: tuple[int, ...], write: Callable[[Builder, str], str], indices: Any
) -> None:
    b = Builder(opset=18)
    model = b.model(write(b, b.input(shape)))
    (found,) = region_of(model).indices
    assert found.tolist() == indices
    data = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(moved(found, data), run(model, data)[0])


NO_MOVEMENT: dict[str, Callable[[Builder, str], str]] = {
    "pads with something": lambda b, x: b.op("Pad", x, b.ints(1, 1, 1, 1), b.constant(1.0)),
    "pads with what the input says": lambda b, x: b.op("Pad", x, b.ints(1, 1, 1, 1), b.input((), "value")),
    "reflects": lambda b, x: b.op("Pad", x, b.ints(1, 1, 1, 1), mode="reflect"),
    "repeats the edge": lambda b, x: b.op("Pad", x, b.ints(1, 1, 1, 1), mode="edge"),
    "pads by what the input says": lambda b, x: b.op("Pad", x, b.input((4,), "pads", np.int64)),
    "slices where the input says": lambda b, x: b.op("Slice", x, b.input((1,), "start", np.int64), b.ints(4)),
    "gathers what the input says": lambda b, x: b.op("Gather", x, b.input((2,), "index", np.int64)),
    "reshapes as the input says": lambda b, x: b.op("Reshape", x, b.input((2,), "shape", np.int64)),
    "is of another domain": lambda b, x: b.op("Transpose", x, domain="elsewhere", perm=[1, 0]),
    "computes": lambda b, x: b.op("Relu", x),
}


@pytest.mark.parametrize("name", NO_MOVEMENT)
def test_it_is_no_movement_what(name: str) -> None:
    b = Builder(opset=18)
    made = NO_MOVEMENT[name](b, b.input((4, 4)))
    graph = graphs.load(b.model(made, shapes={"y": (4, 4)} if "domain" in name else None))
    assert not is_movement(graph.nodes[-1], Facts(graph))


def test_what_is_read_by_a_movement_node_is_told_from_its_parameters() -> None:
    b = Builder()
    x = b.input((2, 2))
    graph = graphs.load(b.model(b.op("Concat", b.op("Gather", x, b.ints(1, 0)), x, axis=0)))
    gather, concat = graph.nodes
    assert [t.name for t in data_inputs(gather)] == ["x"]
    assert [t.name for t in data_inputs(concat)] == [gather.outputs[0].name, "x"]


# --------------------------------------------------------------------------------------------------------- regions


def test_a_region_goes_up_to_the_first_tensor_that_is_computed() -> None:
    b = Builder()
    computed = b.op("Relu", b.transpose(b.input((2, 3)), 1, 0))
    region = region_of(b.model(b.reshape(b.transpose(computed, 1, 0), 6)))
    assert region.source.name == computed and region.target.name == "y"
    assert [node.op for node in region.nodes] == ["Reshape", "Transpose"]
    np.testing.assert_array_equal(region.indices[0], [0, 2, 4, 1, 3, 5])


def test_a_node_that_is_met_on_two_paths_counts_once_and_after_its_consumers() -> None:
    b = Builder()
    shared = b.transpose(b.input((2, 2)), 1, 0)
    region = region_of(b.model(b.op("Concat", b.slice(shared, 1, 2, 0), shared, axis=0)))
    assert [node.op for node in region.nodes] == ["Concat", "Slice", "Transpose"]
    np.testing.assert_array_equal(region.indices[0], [[1, 3], [0, 2], [1, 3]])


def test_a_region_has_one_source_only() -> None:
    b = Builder()
    x = b.input((2, 2))
    movement, (target,) = load(b.model(b.op("Concat", b.op("Relu", x), b.op("Neg", x), axis=0)))
    assert movement.region(target) is None


def test_a_constant_is_a_source_of_its_own() -> None:
    b = Builder()
    movement, (target,) = load(b.model(b.op("Concat", b.input((2, 2)), b.weights(2, 2), axis=0)))
    assert movement.region(target) is None


def test_a_region_stops_where_it_is_told_to() -> None:
    b = Builder()
    middle = b.transpose(b.input((2, 3)), 1, 0)
    movement, (target,) = load(b.model(b.reshape(middle, 6)))
    stop = target.inputs[0].inputs[0]
    region = movement.region(target, stop=[stop])
    assert region is not None and region.source is stop and is_identity(region.indices[0])
    alone = movement.region(stop, stop=[stop])
    assert alone is not None and alone.source is stop and alone.nodes == () and is_identity(alone.indices[0])


def test_a_transparent_node_passes_its_places_on() -> None:
    b = Builder()
    scaled = b.op("Mul", b.constant(2.0), b.transpose(b.input((2, 3)), 1, 0))
    model = b.model(b.reshape(scaled, 6))
    assert region_of(model).source.name == scaled
    region = region_of(model, transparent=lambda node: 1 if node.op == "Mul" else None)
    assert region.source.name == "x" and [n.op for n in region.nodes] == ["Reshape", "Mul", "Transpose"]
    np.testing.assert_array_equal(region.indices[0], [0, 3, 1, 4, 2, 5])


def test_where_the_batch_is_dynamic_there_is_an_array_for_each_sample() -> None:
    b = Builder()
    x = b.input(("batch", 2, 3))
    shape = b.op("Concat", b.op("Gather", b.op("Shape", x), b.ints(0)), b.ints(6), axis=0)
    movement, (target,) = load(b.model(b.op("Reshape", b.transpose(x, 0, 2, 1), shape)))
    region = movement.region(target)
    assert region is not None and len(region.indices) == 2
    assert [i.shape for i in region.indices] == [(sizes["batch"], 6) for sizes in movement.facts.sizes]
    for indices in region.indices:
        np.testing.assert_array_equal(indices[1], [6, 9, 7, 10, 8, 11])


def test_where_no_shape_is_known_there_is_no_region() -> None:
    b = Builder()
    unknown = b.op("Strange", b.input((2, 3)), domain="elsewhere")
    movement, (target,) = load(b.model(b.reshape(unknown, 6), shapes={"y": (6,)}))
    region = movement.region(target)
    assert region is None or region.source is target


def test_the_indices_of_a_region_cannot_be_changed() -> None:
    b = Builder()
    region = region_of(b.model(b.op("Transpose", b.input((2, 3)))))
    with pytest.raises(ValueError, match="read-only"):
        region.indices[0][0, 0] = 1


# ----------------------------------------------------------------------------------------------------------- cache

ALIKE: dict[str, tuple[tuple[int, ...], list[Callable[[Builder, str], str]]]] = {
    "start of a Slice": ((4, 4), [lambda b, x: b.slice(x, 0, 2, 0), lambda b, x: b.slice(x, 1, 3, 0)]),
    "step of a Slice": ((4, 4), [lambda b, x: b.slice(x, 0, 2, 0), lambda b, x: b.slice(x, 0, 4, 0, 2)]),
    "axis of a Slice": (
        (4, 4, 4),
        [
            lambda b, x: b.slice(b.slice(x, 0, 2, 0), 0, 2, 1),
            lambda b, x: b.transpose(b.slice(b.slice(x, 0, 2, 1), 0, 2, 0), 1, 0, 2),
        ],
    ),
    "axes or steps of a Slice": (
        (2, 4, 4),
        [
            lambda b, x: b.op("Slice", x, b.ints(0, 0), b.ints(2, 4), b.ints(1, 2)),
            lambda b, x: b.op("Slice", x, b.ints(0, 0), b.ints(2, 4), "", b.ints(1, 2)),
        ],
    ),
    "indices of a Gather": (
        (3, 3),
        [lambda b, x: b.op("Gather", x, b.ints(0, 1)), lambda b, x: b.op("Gather", x, b.ints(1, 0))],
    ),
    "axis of a Gather": (
        (3, 3),
        [
            lambda b, x: b.op("Gather", x, b.ints(2, 1, 0), axis=0),
            lambda b, x: b.op("Gather", x, b.ints(2, 1, 0), axis=1),
        ],
    ),
    "permutation of a Transpose": (
        (2, 2, 2),
        [lambda b, x: b.transpose(x, 0, 2, 1), lambda b, x: b.transpose(x, 1, 0, 2)],
    ),
    "output of a Split": ((4,), [lambda b, x, i=i: b.ops("Split", x, b.ints(2, 2), count=2)[i] for i in (0, 1)]),
    "sizes of a Split": (
        (6,),
        [lambda b, x, s=s: b.ops("Split", x, b.ints(*s), count=3)[1] for s in ([1, 2, 3], [3, 2, 1])],
    ),
    "places of a Pad": (
        (3, 3),
        [lambda b, x: b.op("Pad", x, b.ints(1, 0, 0, 0)), lambda b, x: b.op("Pad", x, b.ints(0, 0, 1, 0))],
    ),
    "order of a Concat": (
        (2, 2),
        [
            lambda b, x: b.op("Concat", b.transpose(x, 1, 0), x, axis=0),
            lambda b, x: b.op("Concat", x, b.transpose(x, 1, 0), axis=0),
        ],
    ),
    "axis of a Concat": (
        (1, 1, 2),
        [
            lambda b, x: b.reshape(b.op("Concat", x, x, axis=0), 4),
            lambda b, x: b.reshape(b.op("Concat", b.reshape(x, 2, 1), b.reshape(x, 2, 1), axis=1), 4),
        ],
    ),
    "mode of a DepthToSpace": (
        (1, 8, 1, 1),
        [lambda b, x, m=m: b.op("DepthToSpace", x, blocksize=2, mode=m) for m in ("DCR", "CRD")],
    ),
    "shape of a Reshape": (
        (12,),
        [
            lambda b, x: b.reshape(b.op("Transpose", b.reshape(x, 3, 4)), 12),
            lambda b, x: b.reshape(b.op("Transpose", b.reshape(x, 4, 3)), 12),
        ],
    ),
}


@pytest.mark.parametrize("name", ALIKE)
def test_regions_that_differ_in_one_thing_only_are_not_mixed_up(name: str) -> None:
    shape, writers = ALIKE[name]
    b = Builder(opset=17)
    x = b.input(shape)
    model = b.model(*(write(b, x) for write in writers))
    movement, targets = load(model)
    regions = [movement.region(t) for t in targets]
    data = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    outputs = run(model, data)
    assert not np.array_equal(*outputs), "these two are meant to differ"
    for region, output in zip(regions, outputs, strict=True):
        assert region is not None
        np.testing.assert_array_equal(moved(region.indices[0], data), output)


@fast
@given(st.data())
def test_one_movement_for_many_regions_gives_what_one_for_each_gives(data: st.DataObject) -> None:
    b = Builder(opset=18)
    x = b.input((2, 2, 2))
    ends = []
    for _ in range(4):
        t = x
        for _ in range(data.draw(st.integers(1, 3))):
            kind = data.draw(st.integers(0, 3))
            if kind == 0:
                t = b.transpose(t, *data.draw(st.permutations(range(3))))
            elif kind == 1:
                t = b.op("Gather", t, b.ints(*data.draw(st.permutations(range(2)))), axis=data.draw(st.integers(0, 2)))
            elif kind == 2:
                axis = data.draw(st.integers(0, 2))
                parts = b.ops("Split", t, b.ints(1, 1), count=2, axis=axis)
                t = b.op("Concat", *data.draw(st.permutations(parts)), axis=axis)
            else:
                t = b.slice(t, -1, -9, data.draw(st.integers(0, 2)), -1)
        ends.append(t)
    model = b.model(*ends)
    movement, targets = load(model)
    for target in targets:
        shared, alone = movement.region(target), Movement(movement.facts).region(target)
        assert shared is not None and alone is not None
        np.testing.assert_array_equal(shared.indices[0], alone.indices[0])

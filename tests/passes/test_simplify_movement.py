from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinopt import Pipeline
from swinopt import graph as graphs
from swinopt.passes import FuseWindowAttention, SimplifyMovement
from swinopt.testing import leaves_alone, rewrites
from tests.chains import Chain, chains
from tests.graphs import Builder, partition, run, shifted_partition, shifted_reverse, swin_attention

Write = Callable[[Builder, str], str]

#: Movement changes no value: everything here is compared exactly.
EXACT: dict[str, Any] = {"tolerance": 0.0}


def between(shape: tuple[Any, ...], write: Write) -> onnx.ModelProto:
    """A piece of movement from a tensor that is computed to one that computes."""
    b = Builder(opset=18)
    return b.model(b.op("Neg", write(b, b.op("Tanh", b.input(shape)))))


def becomes(shape: tuple[Any, ...], write: Write, **expect: int) -> onnx.ModelProto:
    """Asserts what is left of the movement."""
    return rewrites(between(shape, write), SimplifyMovement(), expect={"Tanh": 1, "Neg": 1, **expect}, **EXACT)


def roll_back(b: Builder, x: str) -> str:
    return b.roll(b.roll(x, 2, 1), -2, 1)


# ------------------------------------------------------------------------------------------------------- the forms

NOTHING: dict[str, tuple[tuple[Any, ...], Write]] = {
    "a Reshape and its inverse": ((2, 6), lambda b, x: b.reshape(b.reshape(x, 3, 4), 2, 6)),
    "a Transpose and its inverse": ((2, 3, 4), lambda b, x: b.transpose(b.transpose(x, 1, 2, 0), 2, 0, 1)),
    "a Transpose that keeps the order": ((2, 3), lambda b, x: b.transpose(x, 0, 1)),
    "a Slice of everything": ((4, 3), lambda b, x: b.slice(x, 0, 9, 0)),
    "a Pad by nothing": ((4, 3), lambda b, x: b.op("Pad", x, b.ints(0, 0, 0, 0))),
    "an Expand to the same shape": ((4, 3), lambda b, x: b.op("Expand", x, b.ints(1, 3))),
    "a Gather of everything": ((3, 2), lambda b, x: b.op("Gather", x, b.ints(0, 1, -1))),
    "a roll and its inverse": ((1, 5, 2), roll_back),
    "a Split put together again": (
        (2, 5),
        lambda b, x: b.op("Concat", *b.ops("Split", x, b.ints(2, 3), count=2, axis=1), axis=1),
    ),
    "a Pad and its crop": ((2, 5), lambda b, x: b.slice(b.op("Pad", x, b.ints(0, 0, 0, 2)), 0, 5, 1)),
    "SpaceToDepth and its inverse": (
        (1, 2, 4, 4),
        lambda b, x: b.op("DepthToSpace", b.op("SpaceToDepth", x, blocksize=2), blocksize=2),
    ),
    "a shifted partition and its reverse": (
        (2, 5, 7, 3),
        lambda b, x: shifted_reverse(b, shifted_partition(b, x, (5, 7), (3, 4), (1, 2), 3), (5, 7), (3, 4), (1, 2), 3),
    ),
    "a partition and its reverse, with a dynamic batch": (
        ("batch", 4, 4, 3),
        lambda b, x: shifted_reverse(b, shifted_partition(b, x, (4, 4), (2, 2), (1, 0), 3), (4, 4), (2, 2), (1, 0), 3),
    ),
}


@pytest.mark.parametrize("name", NOTHING)
def test_nothing_is_left_of_what_moves_nothing(name: str) -> None:
    becomes(*NOTHING[name])


ONE_RESHAPE: dict[str, tuple[tuple[Any, ...], Write]] = {
    "several Reshapes": ((2, 6), lambda b, x: b.reshape(b.reshape(b.reshape(x, 3, 4), 12), 4, 3)),
    "a Transpose of axes of size one": ((2, 1, 3), lambda b, x: b.reshape(b.transpose(x, 1, 0, 2), 6)),
    "Squeeze and Unsqueeze": ((2, 1, 3), lambda b, x: b.op("Unsqueeze", b.op("Squeeze", x, b.ints(1)), b.ints(0))),
    "Flatten and Reshape": ((2, 3, 2), lambda b, x: b.reshape(b.op("Flatten", x), 3, 4)),
    "a partition into windows as wide as the map": ((2, 4, 3, 5), lambda b, x: partition(b, x, (4, 3), (2, 3), 5)),
    "a roll and its inverse in other axes": ((1, 4, 2), lambda b, x: b.reshape(roll_back(b, x), 2, 4)),
    "with a dynamic batch": (("batch", 4, 3), lambda b, x: b.reshape(b.reshape(x, -1, 2, 6), 0, 12)),
    "into the batch": (("batch", 4, 3), lambda b, x: b.reshape(b.reshape(x, 0, 2, 6), -1, 3)),
}


@pytest.mark.parametrize("name", ONE_RESHAPE)
def test_what_keeps_the_order_becomes_one_reshape(name: str) -> None:
    becomes(*ONE_RESHAPE[name], Reshape=1)


ONE_TRANSPOSE: dict[str, tuple[tuple[Any, ...], Write]] = {
    "two Transposes": ((2, 3, 4), lambda b, x: b.transpose(b.transpose(x, 1, 0, 2), 0, 2, 1)),
    "in axes of its own": ((2, 3, 4), lambda b, x: b.reshape(b.transpose(b.reshape(x, 2, 12), 1, 0), 3, 4, 2)),
    "of what was cut and put together": (
        (4, 3),
        lambda b, x: b.op("Concat", *(b.transpose(t, 1, 0) for t in b.ops("Split", x, b.ints(1, 3), count=2)), axis=1),
    ),
    "with axes of size one": ((1, 2, 1, 3), lambda b, x: b.reshape(b.transpose(b.reshape(x, 2, 3), 1, 0), 1, 3, 1, 2)),
    "of axes of one size": ((2, 2, 2), lambda b, x: b.transpose(b.transpose(x, 1, 0, 2), 0, 2, 1)),
    "with a dynamic batch": (("batch", 2, 3), lambda b, x: b.transpose(b.transpose(x, 1, 0, 2), 1, 2, 0)),
    "that moves a dynamic batch": (("batch", 2, 3), lambda b, x: b.transpose(b.transpose(x, 1, 0, 2), 0, 2, 1)),
    "of two dynamic sizes": (("n", "m", 3), lambda b, x: b.transpose(b.transpose(x, 0, 2, 1), 2, 0, 1)),
}


@pytest.mark.parametrize("name", ONE_TRANSPOSE)
def test_what_permutes_axes_becomes_one_transpose(name: str) -> None:
    becomes(*ONE_TRANSPOSE[name], Transpose=1)


def wordy_partition(b: Builder, x: str) -> str:
    """A partition of 4x6 by 2x3 in more steps than are needed."""
    split = b.transpose(b.reshape(x, -1, 2, 2, 2, 3, 5), 0, 1, 3, 2, 5, 4)
    return b.reshape(b.transpose(split, 0, 1, 2, 3, 5, 4), -1, 6, 5)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_a_partition_becomes_a_transpose_between_two_reshapes(batch: Any) -> None:
    becomes((batch, 4, 6, 5), wordy_partition, Reshape=2, Transpose=1)


@pytest.mark.parametrize(
    ("write", "reshapes"),
    [
        (lambda b, x: b.transpose(b.transpose(b.reshape(x, 2, 2, 3), 0, 2, 1), 1, 0, 2), 1),
        (lambda b, x: b.reshape(b.transpose(b.transpose(x, 1, 0), 1, 0), 3, 4), 1),
        (lambda b, x: b.reshape(b.reshape(b.transpose(x, 1, 0), 2, 6), 12), 1),
    ],
)
def test_only_the_reshapes_that_are_needed_stay(write: Write, reshapes: int) -> None:
    model = rewrites(between((4, 3), write), SimplifyMovement(), **EXACT)
    assert [node.op_type for node in model.graph.node].count("Reshape") == reshapes


GATHERS: dict[str, tuple[tuple[Any, ...], Write, dict[str, int]]] = {
    "a roll": ((2, 5, 3), lambda b, x: b.roll(x, 2, 1), {"Gather": 1}),
    "a roll, with a dynamic batch": (("batch", 5, 3), lambda b, x: b.roll(x, 2, 1), {"Gather": 1}),
    "two rolls": ((2, 4, 6, 3), lambda b, x: b.roll(b.roll(x, 1, 1), 2, 2), {"Reshape": 2, "Gather": 1}),
    "a roll and several axes": ((2, 6, 3), lambda b, x: b.reshape(b.roll(x, 1, 1), 2, 2, 3, 3), {"Gather": 1}),
    "a roll of the split axes": (
        (2, 6, 3),
        lambda b, x: b.reshape(b.roll(x, 1, 1), 2, 18),
        {"Gather": 1, "Reshape": 1},
    ),
    "a shifted partition": (
        (2, 4, 6, 5),
        lambda b, x: shifted_partition(b, x, (4, 6), (2, 3), (1, 1), 5),
        {"Reshape": 2, "Gather": 1},
    ),
    "a shifted partition, with a dynamic batch": (
        ("batch", 4, 6, 5),
        lambda b, x: shifted_partition(b, x, (4, 6), (2, 3), (1, 1), 5),
        {"Reshape": 2, "Gather": 1},
    ),
    "what leaves elements out": ((2, 6, 3), lambda b, x: b.slice(b.slice(x, 1, 6, 1), 0, 3, 1, 2), {"Gather": 1}),
    "what repeats elements": ((2, 3, 2), lambda b, x: b.op("Concat", b.slice(x, 1, 3, 1), x, axis=1), {"Gather": 1}),
    "the first rows": (
        (4, 3, 2),
        lambda b, x: b.reshape(b.slice(b.slice(x, 0, 3, 1), 0, 2, 1), 4, 4),
        {"Reshape": 1, "Gather": 1},
    ),
}


@pytest.mark.parametrize("name", GATHERS)
def test_what_picks_rows_becomes_one_gather(name: str) -> None:
    shape, write, expect = GATHERS[name]
    becomes(shape, write, **expect)


# ------------------------------------------------------------------------------------------------------ near misses

STAYS: dict[str, tuple[tuple[Any, ...], Write]] = {
    "is one Reshape": ((2, 6), lambda b, x: b.reshape(x, 3, 4)),
    "is one Transpose": ((2, 6), lambda b, x: b.transpose(x, 1, 0)),
    "is one Slice": ((4, 3), lambda b, x: b.slice(x, 1, 3, 0)),
    "is a partition already": ((2, 4, 6, 5), lambda b, x: partition(b, x, (4, 6), (2, 3), 5)),
    "is a leading Slice in another shape": ((4, 3), lambda b, x: b.reshape(b.slice(x, 0, 2, 0), 6)),
    "is a leading Slice, transposed": ((4, 3), lambda b, x: b.transpose(b.slice(x, 0, 2, 0), 1, 0)),
    "picks single elements": ((2, 5), lambda b, x: b.op("Gather", b.roll(x, 2, 1), b.ints(0, 3, 1, 4, 2), axis=1)),
    "picks parts of rows": ((2, 3, 4), lambda b, x: b.slice(b.slice(x, 1, 4, 2), 0, 2, 2)),
    "rolls a dynamic axis": (("batch", "length", 3), lambda b, x: b.roll(x, 1, 1)),
    "adds rows of pads": ((2, 5, 4), lambda b, x: b.slice(b.op("Pad", x, b.ints(0, 1, 0, 0, 0, 0)), 0, 5, 1)),
    "adds pads": ((2, 5), lambda b, x: b.transpose(b.op("Pad", b.transpose(x, 1, 0), b.ints(0, 0, 1, 0)), 1, 0)),
    "has two sources": ((2, 5), lambda b, x: b.transpose(b.op("Concat", b.op("Neg", x), x, axis=0), 1, 0)),
    "swaps two dynamic sizes by a Reshape": (
        ("n", "m", 3),
        lambda b, x: b.op("Reshape", x, b.op("Gather", b.op("Shape", x), b.ints(1, 0, 2))),
    ),
    "takes off a part of a dynamic size": (
        ("n", 3),
        lambda b, x: b.op(
            "Slice", x, b.op("Cast", b.op("Equal", b.op("Shape", x, end=1), b.ints(1)), to=7), b.ints(99)
        ),
    ),
    "pads to a multiple that both samples are": (
        (1, 4, "height", "width"),
        lambda b, x: padded_to_a_multiple(b, x),
    ),
}


def padded_to_a_multiple(b: Builder, x: str) -> str:
    height = b.op("Shape", x, start=2, end=3)
    rest = b.op("Mod", b.op("Sub", b.ints(8), b.op("Mod", height, b.ints(8))), b.ints(8))
    return b.op("Pad", x, b.op("Concat", b.ints(0), rest, axis=0), "", b.ints(2))


@pytest.mark.parametrize("name", STAYS)
def test_it_stays_if_it(name: str) -> None:
    leaves_alone(between(*STAYS[name]), SimplifyMovement())


def test_a_leading_slice_is_no_view() -> None:
    write: Write = lambda b, x: b.reshape(b.reshape(b.slice(x, 0, 1, 1), 2, 3), 6)  # noqa: E731
    becomes((1, 4, 6), write, Gather=1, Reshape=1)


def test_a_leading_slice_is_no_transposition() -> None:
    def write(b: Builder, x: str) -> str:
        return b.transpose(b.transpose(b.transpose(b.slice(x, 0, 2, 0), 1, 0), 1, 0), 1, 0)

    leaves_alone(between((4, 3), write), SimplifyMovement())


# ------------------------------------------------------------------------------------- several readers and outputs


def test_what_several_read_is_not_copied_for_each() -> None:
    b = Builder()
    split = b.transpose(
        b.transpose(b.reshape(b.op("Tanh", b.input((2, 4, 24))), 2, 4, 3, 2, 4), 2, 0, 1, 3, 4), 0, 1, 3, 2, 4
    )
    q, k, v = (b.op("Gather", split, b.constant(np.int64(i)), axis=0) for i in range(3))
    model = b.model(*(b.op("Neg", t) for t in (q, k, v)))
    after = SimplifyMovement()(model)
    assert len(after.graph.node) <= len(model.graph.node)
    data = np.random.default_rng(0).standard_normal((2, 4, 24)).astype(np.float32)
    for left, right in zip(run(model, data), run(after, data), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("exposed", [False, True], ids=["read", "output"])
def test_what_cannot_be_freed_is_not_said_again(exposed: bool) -> None:
    b = Builder()
    windows = partition(b, b.op("Tanh", b.input((2, 4, 6, 5))), (4, 6), (2, 3), 5)
    model = b.model(windows if exposed else b.op("Neg", windows), b.op("Relu", b.reshape(windows, -1, 5)))
    leaves_alone(model, SimplifyMovement())


def test_a_shared_step_is_left_for_its_other_reader() -> None:
    b = Builder()
    shared = b.transpose(b.op("Tanh", b.input((2, 3, 4))), 1, 0, 2)
    model = b.model(b.op("Neg", shared), b.op("Neg", b.transpose(shared, 1, 0, 2)))
    rewrites(model, SimplifyMovement(), expect={"Tanh": 1, "Neg": 2, "Transpose": 1}, **EXACT)


def test_a_target_that_movement_reads_as_well_is_simplified_for_both() -> None:
    b = Builder()
    twice = b.transpose(b.transpose(b.op("Tanh", b.input((2, 3, 4))), 1, 0, 2), 0, 2, 1)
    model = b.model(b.op("Neg", twice), b.op("Neg", b.transpose(twice, 2, 0, 1)))
    rewrites(model, SimplifyMovement(), expect={"Tanh": 1, "Neg": 2, "Transpose": 1}, **EXACT)


def test_a_step_that_is_an_output_stays() -> None:
    b = Builder()
    middle = b.transpose(b.op("Tanh", b.input((2, 3))), 1, 0)
    model = b.model(middle, b.op("Neg", b.transpose(middle, 1, 0)))
    rewrites(model, SimplifyMovement(), expect={"Tanh": 1, "Neg": 1, "Transpose": 1}, **EXACT)


def test_a_region_that_ends_in_an_output_is_simplified_and_the_output_keeps_its_name() -> None:
    b = Builder()
    model = b.model(b.transpose(b.transpose(b.op("Tanh", b.input((2, 3, 4))), 1, 2, 0), 1, 2, 0))
    after = rewrites(model, SimplifyMovement(), expect={"Tanh": 1, "Transpose": 1}, **EXACT)
    assert [output.name for output in after.graph.output] == ["y"]


def test_an_output_that_is_a_computed_tensor_again_takes_its_place() -> None:
    b = Builder()
    model = b.model(b.transpose(b.transpose(b.op("Tanh", b.input((2, 3))), 1, 0), 1, 0))
    rewrites(model, SimplifyMovement(), expect={"Tanh": 1}, **EXACT)


def test_an_output_that_is_an_input_again_stays() -> None:
    b = Builder()
    leaves_alone(b.model(b.transpose(b.transpose(b.input((2, 3)), 1, 0), 1, 0)), SimplifyMovement())


def test_two_outputs_of_one_value_keep_both_names() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 3)))
    model = b.model(x, b.transpose(b.transpose(x, 1, 0), 1, 0))
    after = rewrites(model, SimplifyMovement(), **EXACT)
    assert [output.name for output in after.graph.output] == ["y0", "y1"] and len(after.graph.node) <= 3


def test_movement_of_an_input_is_simplified_too() -> None:
    b = Builder()
    model = b.model(b.op("Neg", b.transpose(b.transpose(b.input((2, 3)), 1, 0), 1, 0)))
    rewrites(model, SimplifyMovement(), expect={"Neg": 1}, **EXACT)


def test_what_a_branch_reads_is_kept() -> None:
    from onnx import helper

    b = Builder()
    twice = b.transpose(b.transpose(b.op("Tanh", b.input((2, 3))), 1, 0), 1, 0)
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, [twice], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, (2, 3))],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    model = b.model(b.op("If", b.op("Cast", b.input((), "f"), to=9), **branches), shapes={"y": (2, 3)})
    rewrites(model, SimplifyMovement(), expect={"Tanh": 1, "Cast": 1, "If": 1}, **EXACT)


# --------------------------------------------------------------------------------------------------- properties


def check_chain(chain: Chain, outputs: list[str], batches: tuple[int, ...] = (0,)) -> None:
    model = chain.b.model(*outputs)
    after = SimplifyMovement()(model)
    assert len(after.graph.node) <= len(graphs.load(model).nodes)
    onnx.checker.check_model(after)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    for batch in batches:
        data = np.random.default_rng(0).standard_normal([d or batch for d in shape]).astype(np.float32)
        for left, right in zip(run(model, data), run(after, data), strict=True):
            np.testing.assert_array_equal(left, right)


@settings(deadline=None, max_examples=50)
@given(chains(computed=True))
def test_a_random_chain_gets_no_longer_and_stays_the_same(chain: Chain) -> None:
    check_chain(chain, [chain.b.op("Neg", chain.tensor)])


@settings(deadline=None, max_examples=50)
@given(chains(computed=True, batch=True))
def test_a_random_chain_with_a_dynamic_batch_stays_the_same_at_any_batch(chain: Chain) -> None:
    check_chain(chain, [chain.b.op("Neg", chain.tensor)], batches=(1, 2, 4))


@settings(deadline=None, max_examples=50)
@given(chains(computed=True, most=8), st.data())
def test_a_random_chain_that_is_read_along_its_way_stays_the_same(chain: Chain, data: st.DataObject) -> None:
    read = data.draw(st.sets(st.sampled_from(chain.tensors), max_size=3))
    exposed = data.draw(st.sets(st.sampled_from(chain.tensors), max_size=1))
    outputs = [chain.b.op("Neg", t) for t in sorted({*read, chain.tensor})]
    check_chain(chain, [*outputs, *exposed])


def test_a_second_run_finds_nothing_more_to_do() -> None:
    once = SimplifyMovement()(between((2, 4, 6, 5), wordy_partition))
    leaves_alone(once, SimplifyMovement())


def test_the_movement_of_a_window_attention_can_be_simplified_before_it_is_fused() -> None:
    model = swin_attention(2, (4, 6), (2, 3), (1, 1))
    simplified = rewrites(model, SimplifyMovement())
    assert len(simplified.graph.node) < len(model.graph.node)
    rewrites(model, Pipeline(SimplifyMovement(), FuseWindowAttention()))

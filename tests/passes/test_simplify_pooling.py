from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt.passes import SimplifyPooling
from swinopt.testing import assert_equivalent, leaves_alone, refuses, rewrites
from tests.graphs import Builder, run

SIMPLIFY = SimplifyPooling()
H, W, C = 3, 4, 5
POOLED = {"Tanh": 1, "ReduceMean": 1, "Sigmoid": 1}

Step = Callable[[Builder, str], str]


def channels_first(b: Builder, x: str) -> str:
    return b.transpose(x, 0, 3, 1, 2)


def mean(*axes: int, keepdims: int | None = 1) -> Step:
    """ReduceMean as the opset has it: its axes are an attribute, or an input since opset 18."""

    def step(b: Builder, x: str) -> str:
        attrs = {} if keepdims is None else {"keepdims": keepdims}
        if b.opset < 18:
            return b.op("ReduceMean", x, axes=axes, **attrs)
        return b.op("ReduceMean", x, b.ints(*axes), **attrs)

    return step


def average(b: Builder, x: str) -> str:
    return b.op("GlobalAveragePool", x)


def nothing(b: Builder, x: str) -> str:
    return x


def flatten(b: Builder, x: str) -> str:
    return b.op("Flatten", x, axis=1)


def head(
    pool: Step,
    view: Step = nothing,
    *,
    before: Step = channels_first,
    shape: tuple[int | str, ...] = (2, H, W, C),
    opset: int = 17,
    more: Callable[[Builder, dict[str, str]], list[str]] = lambda b, tensors: [],
) -> onnx.ModelProto:
    """A map of tokens, moved, pooled and viewed, between two functions."""
    b = Builder(opset=opset)
    source = b.op("Tanh", b.input(shape))
    moved = before(b, source)
    pooled = pool(b, moved)
    viewed = view(b, pooled)
    return b.model(b.op("Sigmoid", viewed), *more(b, {"source": source, "moved": moved, "pooled": pooled}))


def simplified(before: onnx.ModelProto, expect: dict[str, int] = POOLED, axes: list[int] | None = None) -> None:
    after = rewrites(before, SIMPLIFY, applied=1, expect=expect)
    (node,) = [n for n in after.graph.node if n.op_type == "ReduceMean"]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    constants = {w.name: onnx.numpy_helper.to_array(w) for w in after.graph.initializer}
    found = constants[node.input[1]].tolist() if len(node.input) > 1 else attributes["axes"]
    assert found == (axes or [1, 2]) and attributes["keepdims"] == 0
    leaves_alone(after, SIMPLIFY)


# --------------------------------------------------------------------------------------------------------- spellings

POOLS: dict[str, tuple[Step, Step]] = {
    "GlobalAveragePool, Flatten": (average, flatten),
    "GlobalAveragePool, Reshape": (average, lambda b, x: b.reshape(x, -1, C)),
    "GlobalAveragePool, Squeeze": (average, lambda b, x: b.op("Squeeze", x, b.ints(2, 3))),
    "GlobalAveragePool, Squeeze twice": (
        average,
        lambda b, x: b.op("Squeeze", b.op("Squeeze", x, b.ints(3)), b.ints(2)),
    ),
    "ReduceMean, Flatten": (mean(2, 3), flatten),
    "ReduceMean that says nothing of the axes it keeps, Flatten": (mean(2, 3, keepdims=None), flatten),
    "ReduceMean, Reshape": (mean(-1, -2), lambda b, x: b.reshape(x, 0, -1)),
    "ReduceMean, Squeeze": (mean(-2, -1), lambda b, x: b.op("Squeeze", x, b.ints(-1, -2))),
    "ReduceMean that drops its axes": (mean(2, 3, keepdims=0), nothing),
    "ReduceMean that drops its axes, counted from the end": (mean(-2, -1, keepdims=0), nothing),
    "ReduceMean that drops its axes, Identity": (mean(2, 3, keepdims=0), lambda b, x: b.op("Identity", x)),
}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("name", POOLS)
def test_every_spelling_becomes_one_mean_of_the_token_layout(name: str, opset: int) -> None:
    pool, view = POOLS[name]
    simplified(head(pool, view, opset=opset))


@pytest.mark.parametrize("pool", [average, mean(2, 3)], ids=["GlobalAveragePool", "ReduceMean"])
def test_kept_axes_that_nothing_takes_away_are_put_back(pool: Step) -> None:
    simplified(head(pool), {**POOLED, "Reshape": 1})


@pytest.mark.parametrize("batch", [1, "batch"])
def test_the_batch_may_be_one_or_dynamic(batch: int | str) -> None:
    simplified(head(average, flatten, shape=(batch, H, W, C)))
    simplified(head(average, shape=(batch, H, W, C)), {**POOLED, "Reshape": 1})


def test_the_map_may_be_dynamic() -> None:
    b = Builder()
    tokens = b.op("Relu", b.transpose(b.op("Tanh", b.input(("batch", C, "h", "w"))), 0, 2, 3, 1))
    before = b.model(b.op("Sigmoid", flatten(b, average(b, channels_first(b, tokens)))))
    after = rewrites(before, SIMPLIFY, applied=1, expect={**POOLED, "Relu": 1, "Transpose": 1})
    x = b.random.standard_normal((3, C, 2, 7)).astype(np.float32)
    np.testing.assert_allclose(run(after, x)[0], run(before, x)[0], atol=1e-6)


MOVEMENTS: dict[str, tuple[Step, Step, tuple[int, ...], list[int]]] = {
    "tokens of one axis": (lambda b, x: b.transpose(x, 0, 2, 1), mean(2, keepdims=0), (2, H * W, C), [1]),
    "tokens of one axis, as AdaptiveAvgPool1d": (
        lambda b, x: b.transpose(x, 0, 2, 1),
        lambda b, x: flatten(b, average(b, x)),
        (2, H * W, C),
        [1],
    ),
    "a map that is made one of tokens": (
        lambda b, x: b.reshape(x, -1, H * W, C),
        mean(1, keepdims=0),
        (2, H, W, C),
        [1, 2],
    ),
    "a volume": (
        lambda b, x: b.transpose(x, 0, 4, 1, 2, 3),
        lambda b, x: flatten(b, average(b, x)),
        (2, 2, H, W, C),
        [1, 2, 3],
    ),
    "tokens that are shuffled": (
        lambda b, x: b.transpose(b.op("Gather", x, b.ints(2, 0, 1), axis=1), 0, 3, 2, 1),
        mean(2, 3, keepdims=0),
        (2, H, W, C),
        [1, 2],
    ),
    "rows and columns exchanged": (
        lambda b, x: b.transpose(x, 0, 2, 1, 3),
        mean(1, 2, keepdims=0),
        (2, H, W, C),
        [1, 2],
    ),
}


@pytest.mark.parametrize("name", MOVEMENTS)
def test_whatever_movement_keeps_the_tokens_of_an_image_together_goes(name: str) -> None:
    before, pool, shape, axes = MOVEMENTS[name]
    simplified(head(pool, before=before, shape=shape), axes=axes)


def test_the_map_may_be_read_elsewhere() -> None:
    simplified(head(average, flatten, more=lambda b, t: [b.op("Neg", t["source"])]), {**POOLED, "Neg": 1})


def test_an_output_keeps_its_name_and_shape() -> None:
    for view, shape in ((flatten, (2, C)), (nothing, (2, C, 1, 1))):
        b = Builder()
        x = b.input((2, H, W, C))
        before = b.model(view(b, average(b, channels_first(b, x))))
        after = rewrites(before, SIMPLIFY, applied=1)
        assert [d.dim_value for d in after.graph.output[0].type.tensor_type.shape.dim] == list(shape)


# -------------------------------------------------------------------------------------------------------- near misses

LEFT_ALONE: dict[str, dict[str, Any]] = {
    "the mean over the channels": {"pool": mean(1, keepdims=0)},
    "the mean over channels and rows": {"pool": mean(1, 2, keepdims=0)},
    "the mean over rows alone": {"pool": mean(2, keepdims=0)},
    "the mean over columns alone": {"pool": mean(-1)},
    "the mean over the images": {"pool": mean(0, 2, 3, keepdims=0)},
    "the mean over everything": {"pool": lambda b, x: b.op("ReduceMean", x, keepdims=0)},
    "the maximum": {"pool": lambda b, x: b.op("GlobalMaxPool", x), "view": flatten},
    "the sum": {"pool": lambda b, x: b.op("ReduceSum", x, b.ints(2, 3), keepdims=0)},
    "a mean that is not behind movement": {"pool": mean(1, 2, keepdims=0), "before": nothing},
    "a mean behind a function": {
        "pool": average,
        "view": flatten,
        "before": lambda b, x: b.op("Exp", b.transpose(x, 0, 3, 1, 2)),
    },
    "a part of the map": {
        "pool": average,
        "view": flatten,
        "before": lambda b, x: channels_first(b, b.slice(x, 0, 2, 1)),
    },
    "a padded map": {
        "pool": average,
        "view": flatten,
        "before": lambda b, x: channels_first(b, b.op("Pad", x, b.ints(0, 0, 0, 0, 0, 1, 0, 0))),
    },
    "a map with one row twice": {
        "pool": average,
        "view": flatten,
        "before": lambda b, x: channels_first(b, b.op("Gather", x, b.ints(0, 1, 1), axis=1)),
    },
    "channels that are shuffled": {
        "pool": average,
        "view": flatten,
        "before": lambda b, x: channels_first(b, b.op("Gather", x, b.ints(1, 0, 2, 3, 4), axis=3)),
    },
    "means of which only some are read": {"pool": average, "view": lambda b, x: b.slice(flatten(b, x), 0, 2, 1)},
    "means that are put in another order": {"pool": average, "view": lambda b, x: b.transpose(flatten(b, x), 1, 0)},
    "means of groups of channels": {"pool": lambda b, x: average(b, b.reshape(x, 2, 1, C * H, W)), "view": flatten},
    "an image that is a map of its own": {"pool": average, "view": flatten, "before": nothing},
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_it_leaves_alone(name: str) -> None:
    before = head(**LEFT_ALONE[name])
    assert_equivalent(before, before)
    leaves_alone(before, SIMPLIFY)


def test_means_that_are_read_with_and_without_their_axes_are_left_alone() -> None:
    leaves_alone(head(average, flatten, more=lambda b, t: [b.op("Neg", t["pooled"])]), SIMPLIFY)


def test_means_that_are_an_output_with_their_axes_are_left_alone() -> None:
    leaves_alone(head(average, flatten, more=lambda b, t: [t["pooled"]]), SIMPLIFY)


def test_a_pooled_map_that_is_read_elsewhere_is_refused() -> None:
    before = head(average, flatten, more=lambda b, t: [b.op("Neg", t["moved"])])
    assert_equivalent(before, before)
    refuses(before, SIMPLIFY, "the pooled map is read elsewhere")


def test_a_pooled_map_that_is_an_output_is_refused() -> None:
    refuses(head(average, flatten, more=lambda b, t: [t["moved"]]), SIMPLIFY, "the pooled map is read elsewhere")


def test_axes_that_are_an_input_are_left_alone() -> None:
    b = Builder(opset=18)
    moved = channels_first(b, b.op("Tanh", b.input((2, H, W, C))))
    pooled = b.op("ReduceMean", moved, b.input((2,), "axes", np.int64), keepdims=1)
    leaves_alone(b.model(b.op("Sigmoid", pooled), shapes={"y": (2, "c", "h", "w")}), SIMPLIFY)


def test_no_axes_that_mean_no_mean_are_left_alone() -> None:
    def pool(b: Builder, x: str) -> str:
        return b.op("ReduceMean", x, b.constant(np.zeros(0, np.int64)), keepdims=1, noop_with_empty_axes=1)

    before = head(pool, opset=18)
    assert_equivalent(before, before)
    leaves_alone(before, SIMPLIFY)

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from swinopt import Pipeline
from swinopt.passes import EliminateNoops, FlattenTokens, SinkTokenViews
from swinopt.testing import leaves_alone, refuses, rewrites
from tests.graphs import Builder

Write = Callable[[Builder, str], str]

MAP, C = (2, 4, 3, 8), 8
SHAPES = {
    "map": MAP,
    "video": (2, 2, 2, 3, C),
    "dynamic batch": ("batch", 4, 3, C),
    "dynamic height": (2, "height", 3, C),
    "open map": ("batch", "height", "width", C),
}


def on_map(write: Write, shape: tuple[Any, ...] = MAP) -> onnx.ModelProto:
    """Something that works on a computed map."""
    b = Builder(opset=20)
    return b.model(write(b, b.op("Sigmoid", b.input(shape))))


def ops_of(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def linear(b: Builder, x: str) -> str:
    return b.op("MatMul", x, b.weights(C, C))


def ranks(model: onnx.ModelProto, *op_types: str) -> list[int]:
    """The ranks of what these nodes make, as shape inference has them."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    shapes = {v.name: len(v.type.tensor_type.shape.dim) for v in (*inferred.value_info, *inferred.output)}
    return [shapes[node.output[0]] for node in inferred.node if node.op_type in op_types]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_linear_works_on_rows(shape: tuple[Any, ...]) -> None:
    after = rewrites(on_map(linear, shape), FlattenTokens(), applied=1)
    sizes = ["Shape", "Concat"] if shape == SHAPES["open map"] else []
    assert sorted(ops_of(after)) == sorted(["Sigmoid", "Reshape", "MatMul", "Reshape", *sizes])
    assert ranks(after, "MatMul") == [2]


FOLLOWS: dict[str, Write] = {
    "a bias": lambda b, x: b.op("Add", x, b.weights(C)),
    "a bias in front": lambda b, x: b.op("Add", b.weights(1, 1, C), x),
    "a bias with all axes": lambda b, x: b.op("Add", x, b.weights(1, 1, 1, C)),
    "a number": lambda b, x: b.op("Mul", x, b.constant(0.5)),
    "a number with axes": lambda b, x: b.op("Sub", b.constant([[[0.5]]]), x),
    "a norm": lambda b, x: b.layer_norm(x, C),
    "a norm over axis 3": lambda b, x: b.layer_norm(x, C, axis=3),
    "Gelu": lambda b, x: b.op("Gelu", x),
    "Clip": lambda b, x: b.op("Clip", x, "", b.constant(0.6)),
    "Cast": lambda b, x: b.op("Cast", x, to=onnx.TensorProto.FLOAT16),
    "Softmax": lambda b, x: b.op("Softmax", x, axis=-1),
    "another linear": lambda b, x: b.op("MatMul", x, b.weights(C, 5)),
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_a_region_reaches_past(name: str) -> None:
    after = rewrites(on_map(lambda b, x: FOLLOWS[name](b, linear(b, x))), FlattenTokens(), applied=2)
    assert ops_of(after)[1] == ops_of(after)[-1] == "Reshape" and ops_of(after).count("Reshape") == 2


def mlp(b: Builder, x: str) -> str:
    return b.linear(b.op("Gelu", b.linear(b.layer_norm(x, C), C, 4 * C)), 4 * C, C)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_residual_stream_lies_as_rows_behind_its_first_linear(shape: tuple[Any, ...]) -> None:
    """The first block flattens the map and what its norm makes of it; from there on all is rows."""

    def blocks(b: Builder, x: str) -> str:
        for _ in range(3):
            x = b.op("Add", x, mlp(b, x))
        return b.op("Neg", b.op("Transpose", x, perm=[*range(len(shape))][::-1]))

    after = rewrites(on_map(blocks, shape), FlattenTokens())
    assert ops_of(after).count("Reshape") == 3
    assert ranks(after, "MatMul", "Add", "Gelu") == [2] * (6 + 9 + 3)
    assert ranks(after, "LayerNormalization") == [len(shape), 2, 2]


def test_every_reader_that_wants_the_map_gets_it() -> None:
    def write(b: Builder, x: str) -> str:
        x = linear(b, x)
        turned = b.op("Transpose", x, perm=[0, 2, 1, 3])
        return b.op("Concat", b.op("Transpose", b.op("Relu", x), perm=[0, 2, 1, 3]), turned, axis=0)

    after = rewrites(on_map(write), FlattenTokens(), applied=2)
    assert ops_of(after).count("Reshape") == 3


def test_two_rows_of_one_map_are_added_as_rows() -> None:
    after = rewrites(on_map(lambda b, x: b.op("Add", linear(b, x), linear(b, x))), FlattenTokens(), applied=3)
    assert ops_of(after).count("Reshape") == 2


def test_twice_changes_no_more_than_once() -> None:
    after = rewrites(on_map(mlp), FlattenTokens())
    leaves_alone(after, FlattenTokens())


def test_sunk_views_and_rows_are_each_other_s_inverse() -> None:
    model = on_map(mlp)
    after = rewrites(model, Pipeline(FlattenTokens(), SinkTokenViews(), EliminateNoops(), FlattenTokens()))
    assert sorted(ops_of(after)) == sorted(ops_of(rewrites(model, FlattenTokens())))


def test_an_open_map_says_its_sizes_once() -> None:
    def write(b: Builder, x: str) -> str:
        for _ in range(3):
            x = b.op("Transpose", b.op("Add", x, mlp(b, x)), perm=[0, 2, 1, 3])
        return x

    after = rewrites(on_map(write, ("batch", "height", "width", C)), FlattenTokens())
    # Three regions, since a transposed map is another one.
    assert ops_of(after).count("Shape") == ops_of(after).count("Concat") == 3
    assert ranks(after, "MatMul") == [2] * 6


def test_an_open_map_needs_an_opset_that_can_say_its_sizes() -> None:
    b = Builder(opset=14)
    model = b.model(linear(b, b.op("Sigmoid", b.input(("batch", "height", 3, C)))))
    refuses(model, FlattenTokens(), "more than one size depends on the input")


STAYS: dict[str, Write] = {
    "a norm and an activation without a linear": lambda b, x: b.op("Relu", b.layer_norm(x, C)),
    "a product of two maps": lambda b, x: b.op("MatMul", x, b.op("Transpose", x, perm=[0, 1, 3, 2])),
    "a weight for each plane": lambda b, x: b.op("MatMul", x, b.weights(2, 4, C, C)),
    "a weight in front": lambda b, x: b.op("MatMul", b.weights(3, 3), x),
}


@pytest.mark.parametrize("name", STAYS)
def test_is_left_alone(name: str) -> None:
    leaves_alone(on_map(STAYS[name]), FlattenTokens())


def test_tokens_that_lie_in_a_line_stay() -> None:
    """As in a ViT: what fuses such attention looks for [B, L, C]."""
    leaves_alone(on_map(mlp, (2, 12, C)), FlattenTokens())


ENDS: dict[str, Write] = {
    "a number for each token": lambda b, x: b.op("Add", x, b.weights(1, 4, 3, 1)),
    "a bias that adds an axis": lambda b, x: b.op("Add", x, b.weights(1, 1, 1, 1, C)),
    "a gate for each image": lambda b, x: b.op("Mul", x, b.op("ReduceMean", x, b.ints(1, 2))),
    "a norm over two axes": lambda b, x: b.op("LayerNormalization", x, b.weights(3, C), axis=2),
    "a norm whose scale has all axes": lambda b, x: b.op("LayerNormalization", x, b.weights(1, 1, 1, C), axis=-1),
    "a norm with a scale for each token": lambda b, x: b.op("LayerNormalization", x, b.weights(4, 3, C), axis=-1),
    "Softmax over another axis": lambda b, x: b.op("Softmax", x, axis=1),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_region_ends_before(name: str) -> None:
    after = rewrites(on_map(lambda b, x: ENDS[name](b, linear(b, x))), FlattenTokens(), applied=1)
    assert ops_of(after)[:4] == ["Sigmoid", "Reshape", "MatMul", "Reshape"]

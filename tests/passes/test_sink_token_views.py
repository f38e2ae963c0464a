from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt import Pipeline
from swinopt.passes import EliminateNoops, FuseWindowAttention, SimplifyMovement, SinkTokenViews
from swinopt.testing import leaves_alone, rewrites
from tests.graphs import Builder, swin_attention

Write = Callable[[Builder, str], str]

MAP, TOKENS, C = (2, 4, 3, 8), (2, 12, 8), 8


def on_tokens(write: Write, shape: tuple[Any, ...] = MAP, tokens: tuple[int, ...] = (-1, 12, C)) -> onnx.ModelProto:
    """Something that works on the tokens of a computed map."""
    b = Builder(opset=20)
    return b.model(write(b, b.reshape(b.op("Sigmoid", b.input(shape)), *tokens)))


def ops_of(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


# ------------------------------------------------------------------------------------------------- what views pass

TOKENWISE: dict[str, Write] = {
    "LayerNormalization": lambda b, x: b.layer_norm(x, C),
    "LayerNormalization over the last of three axes": lambda b, x: b.layer_norm(x, C, axis=2),
    "MatMul": lambda b, x: b.op("MatMul", x, b.weights(C, 5)),
    "Gelu": lambda b, x: b.op("Gelu", x),
    "Relu": lambda b, x: b.op("Relu", x),
    "Erf": lambda b, x: b.op("Erf", x),
    "Tanh": lambda b, x: b.op("Tanh", x),
    "Sigmoid": lambda b, x: b.op("Sigmoid", x),
    "Sqrt": lambda b, x: b.op("Sqrt", x),
    "Exp": lambda b, x: b.op("Exp", x),
    "Neg": lambda b, x: b.op("Neg", x),
    "Cast": lambda b, x: b.op("Cast", x, to=onnx.TensorProto.FLOAT16),
    "HardSwish": lambda b, x: b.op("HardSwish", x),
    "LeakyRelu": lambda b, x: b.op("LeakyRelu", x, alpha=0.3),
    "Clip": lambda b, x: b.op("Clip", x, b.constant(0.2), b.constant(0.6)),
    "Clip from above": lambda b, x: b.op("Clip", x, "", b.constant(0.6)),
    "Add of a bias": lambda b, x: b.op("Add", x, b.weights(C)),
    "Add of a bias in front": lambda b, x: b.op("Add", b.weights(1, 1, C), x),
    "Sub of a number": lambda b, x: b.op("Sub", x, b.constant(0.5)),
    "Sub from a number": lambda b, x: b.op("Sub", b.constant([0.5]), x),
    "Mul by layer scale": lambda b, x: b.op("Mul", b.weights(1, C), x),
    "Div by a number": lambda b, x: b.op("Div", x, b.constant([[[0.5]]])),
    "Div of a number": lambda b, x: b.op("Div", b.constant(0.5), x),
    "Pow": lambda b, x: b.op("Pow", x, b.constant(2.0)),
    "Add of a position embedding": lambda b, x: b.op("Add", x, b.weights(1, 12, C)),
    "Mul by a number a token": lambda b, x: b.op("Mul", b.weights(1, 12, 1), x),
}


@pytest.mark.parametrize("shape", [MAP, ("batch", 4, 3, C)], ids=["static", "dynamic batch"])
@pytest.mark.parametrize("name", TOKENWISE)
def test_a_view_sinks_past(name: str, shape: tuple[Any, ...]) -> None:
    model = on_tokens(TOKENWISE[name], shape)
    assert ops_of(model)[1] == "Reshape"
    tolerance = None if "MatMul" in name or "LayerNormalization" in name else 0.0
    after = rewrites(model, SinkTokenViews(), applied=1, tolerance=tolerance)
    assert sorted(ops_of(after)) == sorted(ops_of(model)) and ops_of(after)[-1] == "Reshape"


def test_a_gemm_over_flattened_tokens_becomes_a_linear_over_the_map() -> None:
    model = on_tokens(lambda b, x: b.linear(x, C, 5, gemm=True), tokens=(-1, C))
    after = rewrites(model, Pipeline(EliminateNoops(), SinkTokenViews()))
    assert ops_of(after) == ["Sigmoid", "MatMul", "Add", "Reshape"]


def test_a_gemm_over_one_token_an_image_stays() -> None:
    b = Builder(opset=20)
    pooled = b.reshape(b.op("Sigmoid", b.input((2, 1, 1, C))), 2, C)
    leaves_alone(b.model(b.op("Gemm", pooled, b.weights(C, 5), b.weights(5))), SinkTokenViews())


def test_an_image_is_turned_to_tokens_before_it_is_flattened() -> None:
    def write(b: Builder, x: str) -> str:
        return b.layer_norm(b.transpose(x, 0, 2, 1), C)

    after = rewrites(on_tokens(write, (2, C, 4, 3), (2, C, 12)), SinkTokenViews())
    assert ops_of(after) == ["Sigmoid", "Transpose", "LayerNormalization", "Reshape"]


@pytest.mark.parametrize("shape", [MAP, ("batch", 4, 3, C), (2, 2, 2, 3, C)], ids=["static", "dynamic batch", "video"])
def test_a_view_sinks_past_a_whole_mlp(shape: tuple[Any, ...]) -> None:
    def write(b: Builder, x: str) -> str:
        hidden = b.op("Gelu", b.linear(b.layer_norm(x, C), C, 4 * C))
        return b.linear(hidden, 4 * C, C)

    after = rewrites(on_tokens(write, shape), SinkTokenViews())
    assert ops_of(after).count("Reshape") == 1 and ops_of(after)[-1] == "Reshape"


def test_a_view_and_its_inverse_meet() -> None:
    def write(b: Builder, x: str) -> str:
        return b.op("Neg", b.reshape(b.layer_norm(x, C), -1, 4, 3, C))

    after = rewrites(on_tokens(write), SinkTokenViews())
    assert ops_of(after) == ["Sigmoid", "LayerNormalization", "Neg"]


def test_views_of_views_are_joined() -> None:
    after = rewrites(on_tokens(lambda b, x: b.reshape(b.op("Unsqueeze", x, b.ints(1)), -1, C)), SinkTokenViews())
    assert ops_of(after) == ["Sigmoid", "Reshape"]


def test_a_residual_with_views_on_both_sides_is_added_on_the_map() -> None:
    def write(b: Builder, x: str) -> str:
        return b.op("Add", x, b.linear(b.layer_norm(x, C), C, C))

    after = rewrites(on_tokens(write), SinkTokenViews())
    assert ops_of(after) == ["Sigmoid", "LayerNormalization", "MatMul", "Add", "Add", "Reshape"]


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
def test_two_maps_of_one_shape_are_joined_as_maps(op: str) -> None:
    b = Builder(opset=20)
    left, right = (b.op(kind, b.input(MAP, name)) for kind, name in (("Sigmoid", "x1"), ("Exp", "x2")))
    model = b.model(b.op(op, b.reshape(left, *TOKENS), b.reshape(right, *TOKENS)))
    after = rewrites(model, SinkTokenViews(), applied=1, tolerance=0.0)
    assert ops_of(after).count("Reshape") == 1 and ops_of(after)[-1] == "Reshape"


def test_a_view_that_others_read_too_stays_for_them() -> None:
    b = Builder(opset=20)
    tokens = b.reshape(b.op("Sigmoid", b.input(MAP)), *TOKENS)
    model = b.model(b.op("Neg", tokens), b.op("ReduceMean", tokens, b.ints(1)))
    rewrites(model, SinkTokenViews(), expect={"Sigmoid": 1, "Reshape": 2, "Neg": 1, "ReduceMean": 1})


def test_a_view_that_is_an_output_stays_one() -> None:
    b = Builder(opset=20)
    tokens = b.reshape(b.op("Sigmoid", b.input(MAP)), *TOKENS)
    model = b.model(tokens, b.op("Neg", tokens))
    after = rewrites(model, SinkTokenViews(), tolerance=0.0)
    assert [o.name for o in after.graph.output] == ["y0", "y1"]


def test_an_output_keeps_its_name_and_shape() -> None:
    after = rewrites(on_tokens(lambda b, x: b.op("Relu", x)), SinkTokenViews())
    (output,) = after.graph.output
    assert output.name == "y" and [d.dim_value for d in output.type.tensor_type.shape.dim] == [*TOKENS]


def test_fp16_stays_fp16() -> None:
    b = Builder(opset=20, dtype=np.float16)
    model = b.model(b.op("Add", b.reshape(b.op("Sigmoid", b.input(MAP)), *TOKENS), b.weights(1, 12, C)))
    after = rewrites(model, SinkTokenViews(), tolerance=0.0)
    assert all(i.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64) for i in after.graph.initializer)


def test_the_whole_way_from_tokens_to_tokens_becomes_a_map() -> None:
    model = swin_attention(2, (4, 4), (2, 2), (1, 1), tokens=True, residual=False)
    pipeline = Pipeline(EliminateNoops(), SimplifyMovement(), FuseWindowAttention(), SinkTokenViews())
    after = rewrites(model, pipeline)
    assert ops_of(after).count("Reshape") <= 2


# ------------------------------------------------------------------------------------------------------ near misses

STAYS: dict[str, tuple[Write, tuple[Any, ...], tuple[int, ...]]] = {
    "the view changes the last axis": (lambda b, x: b.op("Relu", x), MAP, (2, 4, 24)),
    "the view changes the last axis and a linear follows": (lambda b, x: b.linear(x, 24, 5), MAP, (2, 4, 24)),
    "the weights are computed": (lambda b, x: b.op("MatMul", x, b.op("Neg", b.input((C, 5), "w"))), MAP, (2, 12, C)),
    "the weights are on the left": (lambda b, x: b.op("MatMul", b.weights(5, 12), x), MAP, (2, 12, C)),
    "the weights differ within the batch": (lambda b, x: b.op("MatMul", x, b.weights(2, C, 5)), MAP, (2, 12, C)),
    "the norm runs over several axes": (
        lambda b, x: b.op("LayerNormalization", x, b.weights(12, C), b.weights(12, C), axis=1),
        MAP,
        (2, 12, C),
    ),
    "the softmax runs over the tokens": (lambda b, x: b.op("Softmax", x, axis=1), MAP, (2, 12, C)),
    "the mean is taken over the tokens": (lambda b, x: b.op("ReduceMean", x, b.ints(1)), MAP, (2, 12, C)),
    "a constant differs within the batch": (lambda b, x: b.op("Add", x, b.weights(2, 12, C)), MAP, (2, 12, C)),
    "a constant has tokens and no batch": (lambda b, x: b.op("Add", x, b.weights(12, C)), MAP, (2, 12, C)),
    "a constant adds an axis": (lambda b, x: b.op("Add", x, b.weights(2, 2, 12, C)), MAP, (2, 12, C)),
    "the other operand is no view": (
        lambda b, x: b.op("Add", x, b.op("Neg", b.input((2, 12, C), "z"))),
        MAP,
        (2, 12, C),
    ),
    "the other operand is an input of one number": (lambda b, x: b.op("Mul", x, b.input((), "z")), MAP, (2, 12, C)),
    "the views differ": (
        lambda b, x: b.op("Add", x, b.reshape(b.op("Neg", b.input((2, 6, 2, C), "z")), 2, 12, C)),
        MAP,
        (2, 12, C),
    ),
    "the views are broadcast against each other": (
        lambda b, x: b.op("Add", x, b.reshape(b.op("Neg", b.input(MAP, "z")), 24, 1, C)),
        MAP,
        (24, C),
    ),
    "a flat image is turned another way": (lambda b, x: b.transpose(x, 2, 1, 0), (2, C, 4, 3), (2, C, 12)),
    "one view is broadcast": (
        lambda b, x: b.op("Add", x, b.reshape(b.op("Neg", b.input((1, 4, 3, C), "z")), 1, 12, C)),
        MAP,
        (2, 12, C),
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_a_view_stays_where(name: str) -> None:
    leaves_alone(on_tokens(*STAYS[name]), SinkTokenViews())


def test_a_view_stays_where_the_op_is_of_another_domain() -> None:
    b = Builder(opset=20)
    strange = b.op("Relu", b.reshape(b.op("Sigmoid", b.input(MAP)), *TOKENS), domain="elsewhere")
    leaves_alone(b.model(strange, shapes={"y": TOKENS}), SinkTokenViews())


def test_a_view_of_a_moved_tensor_belongs_to_its_movement() -> None:
    b = Builder(opset=20)
    rolled = b.roll(b.op("Sigmoid", b.input(MAP)), 1, 1)
    leaves_alone(b.model(b.op("Relu", b.reshape(rolled, *TOKENS))), SinkTokenViews())


def test_a_view_of_a_constant_stays() -> None:
    b = Builder(opset=20)
    table = b.reshape(b.weights(4, 3, C), 12, C)
    leaves_alone(b.model(b.op("Add", b.input(TOKENS), b.op("Relu", table))), SinkTokenViews())


def test_a_split_of_channels_into_heads_stays_in_its_place() -> None:
    def write(b: Builder, x: str) -> str:
        return b.op("Relu", b.reshape(x, -1, 12, 2, 4))

    b = Builder(opset=20)
    model = b.model(write(b, b.op("Sigmoid", b.input(TOKENS))))
    leaves_alone(model, SinkTokenViews())


def test_tokens_of_two_dynamic_sizes_stay_where_no_reshape_can_say_them() -> None:
    b = Builder(opset=20)
    tokens = b.op("Sigmoid", b.input(("batch", "length", C)))
    leaves_alone(b.model(b.op("Relu", b.op("Unsqueeze", tokens, b.ints(0)))), SinkTokenViews())


def test_tokens_of_two_dynamic_sizes_sink_where_a_reshape_can_say_them() -> None:
    b = Builder(opset=20)
    tokens = b.op("Sigmoid", b.input(("batch", "length", C)))
    after = rewrites(b.model(b.op("Relu", b.op("Unsqueeze", tokens, b.ints(1)))), SinkTokenViews(), tolerance=0.0)
    assert ops_of(after) == ["Sigmoid", "Relu", "Reshape"]

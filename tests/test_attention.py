"""The parts of an attention, each recognised for itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from swinopt import graph as graphs
from swinopt.attention import NoAttention, probabilities_product, scores_of
from swinopt.facts import Facts
from swinopt.graph import Tensor
from swinopt.indices import PAD
from swinopt.linear import linear_from, linear_of
from swinopt.movement import Movement, exits
from swinopt.operands import operand_of
from swinopt.rewrite import Rewriter
from swinopt.testing import assert_equivalent
from tests.graphs import Builder, run


def loaded(model: onnx.ModelProto) -> tuple[Facts, dict[str, Tensor]]:
    graph = graphs.load(model)
    return Facts(graph), graph.tensors()


def end_of(b: Builder, *outputs: str) -> tuple[Facts, Tensor]:
    facts, tensors = loaded(b.model(*outputs))
    return facts, tensors["y" if len(outputs) == 1 else "y0"]


# ---------------------------------------------------------------------------------------------------------- linears

LINEARS: dict[str, Any] = {
    "MatMul": lambda b, x: b.op("MatMul", x, b.weights(3, 5)),
    "MatMul and Add": lambda b, x: b.op("Add", b.op("MatMul", x, b.weights(3, 5)), b.weights(5)),
    "Add in front": lambda b, x: b.op("Add", b.weights(1, 5), b.op("MatMul", x, b.weights(3, 5))),
    "Gemm": lambda b, x: b.op("Gemm", x, b.weights(3, 5), b.weights(5)),
    "Gemm without bias": lambda b, x: b.op("Gemm", x, b.weights(3, 5)),
    "transposed Gemm": lambda b, x: b.op("Gemm", x, b.weights(5, 3), b.weights(5), transB=1),
    "Gemm and Add": lambda b, x: b.op("Add", b.op("Gemm", x, b.weights(3, 5)), b.weights(5)),
}


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_is_its_weight_and_bias(name: str) -> None:
    b = Builder()
    model = b.model(LINEARS[name](b, b.input((4, 3))))
    _, tensors = loaded(model)
    linear = linear_of(tensors["y"])
    assert linear is not None and linear.input.name == "x" and linear.output.name == "y" and linear.features == 5
    data = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_allclose(
        data @ linear.weight_value() + linear.bias_value(), run(model, data)[0], rtol=1e-5, atol=1e-5
    )
    assert linear.bias_value().shape == (5,) and (linear.bias is None) == (not linear.bias_value().any())


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_is_found_from_its_input_too(name: str) -> None:
    b = Builder()
    _, tensors = loaded(b.model(b.op("Relu", LINEARS[name](b, b.op("Tanh", b.input((4, 3)))))))
    (tanh,) = tensors["x"].outputs
    linear = linear_from(tanh.outputs[0])
    assert linear is not None and linear == linear_of(linear.output)
    assert [node.op for node in linear.output.outputs] == ["Relu"]


@pytest.mark.parametrize("name", LINEARS)
def test_a_linear_is_applied_to_another_tensor(name: str) -> None:
    b = Builder()
    model = b.model(b.op("Relu", LINEARS[name](b, b.op("Tanh", b.input((4, 3))))))
    graph = graphs.load(model)
    rewriter = Rewriter(graph)
    (tanh,) = rewriter.nodes("Tanh")
    linear = linear_from(tanh.outputs[0])
    assert linear is not None
    rewriter.replace(linear.output, linear.applied_to(tanh.outputs[0], rewriter))
    rewriter.finish()
    assert "Gemm" not in {node.op for node in graph.nodes}
    assert_equivalent(model, graph, tolerance=1e-6)


NO_LINEARS: dict[str, Any] = {
    "the weight is computed": lambda b, x: b.op("MatMul", x, b.op("Neg", b.input((3, 5), "w"))),
    "the weight is on the left": lambda b, x: b.op("MatMul", b.weights(5, 4), x),
    "there is a weight for each row": lambda b, x: b.op("MatMul", x, b.weights(4, 3, 5)),
    "the product is scaled": lambda b, x: b.op("Gemm", x, b.weights(3, 5), b.weights(5), alpha=2.0),
    "the bias is scaled": lambda b, x: b.op("Gemm", x, b.weights(3, 5), b.weights(5), beta=2.0),
    "the input is transposed": lambda b, x: b.op("Gemm", x, b.weights(4, 5), transA=1),
    "the bias differs by row": lambda b, x: b.op("Gemm", x, b.weights(3, 5), b.weights(4, 5)),
    "the bias is one number": lambda b, x: b.op("Gemm", x, b.weights(3, 5), b.weights(1)),
    "the bias is computed": lambda b, x: b.op("Add", b.op("MatMul", x, b.weights(3, 5)), b.input((5,), "bias")),
    "there are two biases": lambda b, x: b.op(
        "Add", b.op("Add", b.op("MatMul", x, b.weights(3, 5)), b.weights(5)), b.weights(5)
    ),
    "it is an activation": lambda b, x: b.op("Relu", b.op("MatMul", x, b.weights(3, 5))),
    "it is of another domain": lambda b, x: b.op("MatMul", x, b.weights(3, 5), domain="elsewhere"),
}


@pytest.mark.parametrize("name", NO_LINEARS)
def test_it_is_no_linear_where(name: str) -> None:
    b = Builder()
    _, tensors = loaded(b.model(NO_LINEARS[name](b, b.input((4, 3)))))
    assert linear_of(tensors["y"]) is None


def test_an_add_that_something_else_stands_between_is_no_part_of_the_linear() -> None:
    b = Builder()
    product = b.op("MatMul", b.input((4, 3)), b.weights(3, 5))
    _, tensors = loaded(b.model(b.op("Add", product, b.weights(5)), b.op("Relu", product)))
    linear = linear_from(tensors["x"])
    assert linear is not None and linear.bias is None and linear.output.name == product


def test_a_tensor_with_two_readers_belongs_to_no_linear() -> None:
    b = Builder()
    x = b.input((4, 3))
    _, tensors = loaded(b.model(b.op("MatMul", x, b.weights(3, 5)), b.op("Relu", x)))
    assert linear_from(tensors["x"]) is None


# ------------------------------------------------------------------------------------------------------- the scores


def scores(write: Any, *, axis: int = -1) -> Any:
    """What is recognised of a softmax over something that is made of q k^T [4, 2, 3, 3]."""
    b = Builder(opset=18)
    product = b.op("MatMul", b.input((4, 2, 3, 5), "q"), b.input((4, 2, 5, 3), "k"))
    facts, tensors = loaded(b.model(b.op("Softmax", write(b, product), axis=axis)))
    return scores_of(tensors["y"].inputs[0], facts)


def test_a_softmax_of_a_plain_product_has_neither_scale_nor_terms() -> None:
    found = scores(lambda b, x: x)
    assert (found.q.name, found.k_transposed.name) == ("q", "k")
    assert found.scale == 1 and found.head_factors is None and found.terms == []


def test_the_last_axis_may_be_counted_from_the_start() -> None:
    assert scores(lambda b, x: x, axis=3).scale == 1


def test_factors_are_multiplied_and_terms_collected() -> None:
    def write(b: Builder, x: str) -> str:
        x = b.op("Div", b.op("Mul", b.constant([2.0]), x), b.constant(8.0))
        x = b.op("Mul", x, b.constant(np.full((2, 1, 1), 3.0)))
        x = b.op("Add", b.constant(np.full((2, 3, 3), 5.0)), x)
        return b.op("Add", b.reshape(x, 2, 2, 2, 3, 3), b.constant(np.full((1, 2, 1, 3, 3), 7.0)))

    found = scores(write)
    assert found.scale == 0.25 and found.head_factors.shape == (2, 1, 1)
    assert [(t.values[0].flat[0], t.shapes) for t in found.terms] == [(7, [(2, 2, 2, 3, 3)]), (5, [(4, 2, 3, 3)])]


def test_a_constant_that_is_computed_from_constants_is_one() -> None:
    found = scores(lambda b, x: b.op("Add", x, b.op("Neg", b.constant(np.full((3, 3), 2.0)))))
    assert (found.terms[0].values[0] == -2).all()


# ------------------------------------------------------------------------------------------------------- q, k and v


def operand(write: Any, *, heads: int = 2, transposed: bool = False, features: int = 12, bias: bool = True) -> Any:
    """What is recognised of something that is made of the output [3, 4, 12] of a linear."""
    b = Builder(opset=18)
    product = b.op("MatMul", b.input((3, 4, 5)), b.weights(5, features))
    made = b.op("Add", product, b.constant(np.arange(features, dtype=float))) if bias else product
    facts, tensor = end_of(b, b.op("Tanh", write(b, made)))
    return operand_of(tensor.inputs[0].inputs[0], heads, Movement(facts), transposed=transposed)


def split(b: Builder, x: str) -> str:
    """The second of three, as [3, heads, 4, 2]."""
    part = b.ops("Split", x, b.ints(4, 4, 4), count=3, axis=-1)[1]
    return b.transpose(b.reshape(part, 3, 4, 2, 2), 0, 2, 1, 3)


def test_an_operand_is_tokens_and_channels_of_its_linear() -> None:
    found = operand(split)
    np.testing.assert_array_equal(found.tokens[0], np.arange(12).reshape(3, 4))
    assert found.channels.tolist() == [[4, 5], [6, 7]] and found.bias.tolist() == [[4, 5], [6, 7]]
    assert found.scale == 1 and not found.normalised and found.linear.features == 12


def test_k_may_be_transposed() -> None:
    found = operand(lambda b, x: b.transpose(split(b, x), 0, 1, 3, 2), transposed=True)
    assert found.channels.tolist() == [[4, 5], [6, 7]]
    np.testing.assert_array_equal(found.tokens[0], np.arange(12).reshape(3, 4))


def test_an_operand_may_be_scaled_several_times() -> None:
    found = operand(lambda b, x: b.op("Div", b.op("Mul", b.constant(3.0), split(b, x)), b.constant(2.0)))
    assert found.scale == 1.5


def test_an_operand_of_a_linear_without_bias_has_none() -> None:
    assert operand(split, bias=False).bias is None


def test_what_is_padded_behind_the_linear_is_a_pad() -> None:
    found = operand(lambda b, x: split(b, b.op("Pad", b.slice(x, 0, 3, 1), b.ints(0, 0, 0, 0, 1, 0))))
    assert found.tokens[0].tolist() == [[0, 1, 2, PAD], [4, 5, 6, PAD], [8, 9, 10, PAD]]


def test_a_bias_that_is_added_to_one_part_is_told_by_channel() -> None:
    def write(b: Builder, x: str) -> str:
        part = b.op(
            "Add", b.ops("Split", x, b.ints(4, 4, 4), count=3, axis=-1)[2], b.constant([100.0, 200.0, 300.0, 400.0])
        )
        return b.transpose(b.reshape(part, 3, 4, 2, 2), 0, 2, 1, 3)

    assert operand(write).bias.tolist() == [[108, 209], [310, 411]]
    assert operand(write, bias=False).bias.tolist() == [[100, 200], [300, 400]]


def test_a_norm_over_the_channels_of_a_head_is_recognised_before_the_heads_are_moved() -> None:
    def write(b: Builder, x: str) -> str:
        heads = b.reshape(b.ops("Split", x, b.ints(4, 4, 4), count=3, axis=-1)[0], 3, 4, 2, 2)
        norm = b.op("Clip", b.op("ReduceL2", heads, b.ints(-1)), b.constant(1e-12))
        return b.transpose(b.op("Div", heads, b.op("Expand", norm, b.ints(3, 4, 2, 2))), 0, 2, 1, 3)

    assert operand(write).normalised


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda b, x: b.op("Relu", split(b, x)), "there is a Relu between"),
        (lambda b, x: split(b, b.op("Mul", x, b.weights(12))), "there is a Mul between"),
        (lambda b, x: b.op("Mul", split(b, x), b.input((), "factor")), "there is a Mul between"),
        (lambda b, x: b.reshape(x, 3, 2, 4, 6), "does not hold whole tokens"),
        (lambda b, x: b.op("Concat", split(b, x), split(b, x), axis=2), "there is a Concat between"),
        (
            lambda b, x: b.op("Mul", b.op("Add", split(b, x), b.constant([0.0, 1.0])), b.constant(2.0)),
            "no bias of the linear's",
        ),
        (
            lambda b, x: split(b, b.op("Add", b.op("Mul", x, b.constant(2.0)), b.weights(12))),
            "scaled before its bias is added",
        ),
    ],
)
def test_what_is_more_than_movement_scale_bias_and_norm_is_no_operand(write: Any, reason: str) -> None:
    with pytest.raises(NoAttention, match=reason):
        operand(write)


def test_nothing_but_padding_is_no_operand() -> None:
    with pytest.raises(NoAttention, match="nothing but padding"):
        operand(lambda b, x: b.slice(b.op("Pad", split(b, x), b.ints(0, 0, 0, 0, 0, 0, 4, 0)), 4, 8, 2))


# ------------------------------------------------------------------------------------------------------ the way out


def test_movement_ends_where_something_else_reads() -> None:
    b = Builder()
    moved = b.transpose(b.op("Tanh", b.input((2, 3))), 1, 0)
    parts = b.ops("Split", moved, b.ints(1, 2), count=2)
    facts, tensors = loaded(b.model(b.op("Relu", moved), b.op("Neg", parts[0]), b.reshape(parts[1], 4)))
    start = facts.graph.nodes[0].outputs[0]
    assert {t.name for t in exits(start, facts)} == {moved, parts[0], "y2"}
    assert [t.name for t in exits(tensors[parts[0]], facts)] == [parts[0]]


def test_an_output_that_movement_reads_as_well_is_an_exit() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 3)))
    facts, tensors = loaded(b.model(x, b.op("Relu", b.transpose(x, 1, 0))))
    transposed = facts.graph.nodes[-1].inputs[0].name
    assert {t.name for t in exits(tensors["y0"], facts)} == {"y0", transposed}


def product_of(write: Any, **more: Any) -> gs.Node:
    b = Builder()
    softmax = b.op("Softmax", b.input((4, 2, 3, 3)), axis=-1)
    facts, _ = loaded(b.model(*write(b, softmax, b.input((4, 2, 3, 5), "v"))))
    (node,) = [node for node in facts.graph.nodes if node.op == "Softmax"]
    return probabilities_product(node, facts)


def test_the_product_with_v_is_found_behind_views() -> None:
    assert product_of(lambda b, p, v: [b.op("MatMul", p, v)]).op == "MatMul"
    node = product_of(lambda b, p, v: [b.op("MatMul", b.reshape(p, 8, 3, 3), b.reshape(v, 8, 3, 5))])
    assert node.op == "MatMul" and [t.inputs[0].op for t in node.inputs] == ["Reshape", "Reshape"]


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda b, p, v: [b.op("MatMul", p, v), b.op("Relu", p)], "read by more than the product"),
        (lambda b, p, v: [b.op("MatMul", p, v), p], "read by more than the product"),
        (lambda b, p, v: [p], "read by more than the product"),
        (lambda b, p, v: [b.op("MatMul", b.transpose(v, 0, 1, 3, 2), p)], "read by a MatMul"),
        (lambda b, p, v: [b.op("MatMul", b.transpose(p, 0, 1, 3, 2), v)], "read by a Transpose"),
        (lambda b, p, v: [b.op("MatMul", b.op("Exp", p), v)], "read by a Exp"),
    ],
)
def test_probabilities_that_do_more_than_weigh_v_are_no_attention(write: Any, reason: str) -> None:
    with pytest.raises(NoAttention, match=reason):
        product_of(write)

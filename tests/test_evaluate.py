"""Single nodes on known values."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from swinopt import graph as graphs
from swinopt.evaluate import CannotEvaluate, evaluate, is_deterministic, tensor_type
from tests.graphs import Builder


def node_of(op_type: str, *inputs: str, count: int = 1, domain: str = "", opset: int = 18, **attrs: object) -> gs.Node:
    b = Builder(opset=opset)
    b.ops(op_type, *inputs, count=count, domain=domain, **attrs)
    return graphs.load(b.model(*b.nodes[-1].output)).nodes[-1]


def test_a_node_is_evaluated_as_its_operator_says() -> None:
    x = np.array([[1.0, 4.0], [9.0, 16.0]], np.float32)
    (root,) = evaluate(node_of("Sqrt", "x"), [x], 18)
    np.testing.assert_array_equal(root, [[1, 2], [3, 4]])
    assert root.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.int64])
def test_dtypes_are_kept(dtype: type) -> None:
    (total,) = evaluate(node_of("Add", "a", "b"), [np.ones(2, dtype), np.full(2, 2, dtype)], 18)
    assert total.dtype == dtype and total.tolist() == [3, 3]


def test_an_optional_input_may_be_left_out() -> None:
    (clipped,) = evaluate(node_of("Clip", "x", "", "most"), [np.arange(4.0), None, np.array(2.0)], 18)
    assert clipped.tolist() == [0, 1, 2, 2]


def test_every_output_is_given() -> None:
    parts = evaluate(node_of("Split", "x", "sizes", count=2, axis=0), [np.arange(5), np.array([2, 3])], 18)
    assert [part.tolist() for part in parts] == [[0, 1], [2, 3, 4]]


def test_the_opset_decides_what_an_operator_means() -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    as_attribute = evaluate(node_of("ReduceMean", "x", opset=17, axes=[1], keepdims=0), [x], 17)
    as_input = evaluate(node_of("ReduceMean", "x", "axes", opset=18, keepdims=0), [x, np.array([1])], 18)
    assert as_attribute[0].tolist() == as_input[0].tolist() == [1, 4]


def test_a_result_without_axes_is_an_array_too() -> None:
    (total,) = evaluate(node_of("ReduceSum", "x", keepdims=0), [np.arange(4)], 18)
    assert isinstance(total, np.ndarray) and total.shape == ()


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        (node_of("Strange", "x"), [np.ones(2)]),
        (node_of("MatMul", "a", "b"), [np.ones((2, 3)), np.ones((2, 3))]),
        (node_of("Reshape", "a", "b"), [np.ones(4), np.array([3])]),
    ],
    ids=["unknown op", "shapes that do not fit", "another number of elements"],
)
def test_what_has_no_value_is_said_to_have_none(node: gs.Node, inputs: list[np.ndarray]) -> None:
    with pytest.raises(CannotEvaluate, match=node.op):
        evaluate(node, inputs, 18)


def test_evaluation_prints_and_warns_nothing(
    capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    (quotient,) = evaluate(node_of("Div", "a", "b"), [np.ones(1, np.float32), np.zeros(1, np.float32)], 18)
    assert np.isinf(quotient).all() and not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("node", "deterministic"),
    [
        (node_of("Add", "a", "b"), True),
        (node_of("Dropout", "x"), True),
        (node_of("Dropout", "x", "ratio", "training"), False),
        (node_of("RandomNormalLike", "x"), False),
        (node_of("Multinomial", "x"), False),
        (node_of("Bernoulli", "x"), False),
        (node_of("QuantizeLinear", "x", "s"), False),
        (node_of("DequantizeLinear", "x", "s"), False),
        (node_of("DynamicQuantizeLinear", "x", count=3), False),
        (node_of("Add", "a", "b", domain="elsewhere"), False),
    ],
    ids=lambda value: (
        f"{value.domain or ''}{value.op}-{len(value.inputs)}" if isinstance(value, gs.Node) else str(value)
    ),
)
def test_only_what_is_the_same_every_time_is_deterministic(node: gs.Node, deterministic: bool) -> None:
    assert is_deterministic(node) is deterministic


def test_a_node_with_a_body_is_not_looked_into() -> None:
    node = node_of("Neg", "x")
    node.attrs["body"] = gs.Graph()
    assert not is_deterministic(node)


def test_a_tensor_type_names_dtype_and_shape() -> None:
    proto = tensor_type(1, (2, 0))
    assert proto.tensor_type.elem_type == 1 and [d.dim_value for d in proto.tensor_type.shape.dim] == [2, 0]
    assert tensor_type(7, ()).tensor_type.HasField("shape")

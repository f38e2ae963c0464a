"""Graphs in half precision: what becomes narrow, what stays in float32, and that the numbers stay close."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import swinopt
from swinopt import ops, precision
from swinopt.errors import ModelError, OptionError
from swinopt.testing import parse

RNG = np.random.default_rng(0)
NARROW = [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)]


def floats(*shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return RNG.standard_normal(shape).astype(np.float32)


def converted(model: onnx.ModelProto, to: str = "fp16") -> onnx.ModelProto:
    result = precision.convert(model, to).model
    runnable = onnx.ModelProto()
    runnable.CopyFrom(result)
    ops.attach_bodies(runnable)
    onnx.checker.check_model(runnable, full_check=True)
    return result


def types(model: onnx.ModelProto) -> dict[str, int]:
    """The type of every tensor, as ONNX infers it."""
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    found = {w.name: w.data_type for w in known.initializer}
    return found | {v.name: v.type.tensor_type.elem_type for v in (*known.input, *known.value_info, *known.output)}


def counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("name", "code"), NARROW)
def test_weights_and_activations_become_narrow_and_the_ends_do_not(name: str, code: int) -> None:
    model = parse(
        "g (float[N, 8] x) => (float[N, 4] y) { a = MatMul(x, w)  b = Add(a, c)  y = Relu(b) }",
        w=floats(8, 4),
        c=floats(4),
    )
    original = model.SerializeToString()
    result = converted(model, name)

    assert {weight.data_type for weight in result.graph.initializer} == {code}
    assert counts(result) == {"Cast": 2, "MatMul": 1, "Add": 1, "Relu": 1}
    found = types(result)
    assert found["a"] == found["b"] == code
    assert found["x"] == found["y"] == TensorProto.FLOAT
    assert model.SerializeToString() == original


def test_the_numbers_stay_close() -> None:
    model = parse(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
            a = Conv<kernel_shape=[2, 2], strides=[2, 2]>(x, k)  b = Reshape(a, shape)  t = Transpose<perm=[0, 2, 1]>(b)
            n = LayerNormalization<axis=-1>(t, gamma, beta)  g = Gelu(n)  m = ReduceMean<keepdims=0>(g, one)
            y = Gemm<transB=1>(m, w, c) }""",
        k=floats(16, 3, 2, 2),
        shape=np.array([0, 16, 16]),
        gamma=floats(16),
        beta=floats(16),
        one=np.array([1]),
        w=floats(5, 16),
        c=floats(5),
    )
    result = converted(model)
    comparison = swinopt.compare(model, result, tolerance=5e-3)
    assert comparison.passed, comparison
    assert comparison.max_abs > 1e-6, "nothing was converted"


def test_a_swinopt_op_has_one_type_for_all_its_inputs() -> None:
    model = parse(
        """g (float[1, 4, 4, 12] x) => (float[1, 4, 4, 4] y) {
            y = swinopt.WindowAttention<window_size=[2,2], shift_size=[1,1], num_heads=2, scale=0.7>(x, bias, s)}""",
        bias=floats(2, 4, 4),
        s=np.array([3.0, 5.0], np.float32),
    )
    result = converted(model)
    assert {weight.data_type for weight in result.graph.initializer} == {TensorProto.FLOAT16}
    assert not result.functions
    assert swinopt.compare(model, result, tolerance=5e-3).passed


def test_a_variance_by_hand_stays_in_float32_up_to_the_division() -> None:
    model = parse(
        """g (float[N, 8] x) => (float[N, 8] y) {
            mean = ReduceMean<keepdims=1>(x, last)  d = Sub(x, mean)  square = Pow(d, two)
            var = ReduceMean<keepdims=1>(square, last)  some = Add(var, eps)  std = Sqrt(some)  y = Div(d, std) }""",
        last=np.array([-1]),
        two=np.array(2.0, np.float32),
        eps=np.array(1e-5, np.float32),
    )
    found = types(converted(model))
    assert {found[name] for name in ("mean", "square", "var", "some", "std")} == {TensorProto.FLOAT}
    assert found["d"] == TensorProto.FLOAT16
    # 300 squared is more than float16 has.
    large = {"x": 300 * floats(4, 8)}
    assert swinopt.compare(model, converted(model), large, tolerance=5e-3).passed


def test_zeros_are_still_normalised_to_zeros() -> None:
    model = parse(
        """g (float[N, 8] x) => (float[N, 8] y) {
            norm = ReduceL2<keepdims=1>(x, last)  some = Max(norm, floor)
            unit = Div(x, some)  y = Mul(unit, three) }""",
        last=np.array([-1]),
        floor=np.array(1e-12, np.float32),
        three=np.array(3.0, np.float32),
    )
    result = converted(model)
    assert swinopt.compare(model, result, {"x": np.zeros((2, 8), np.float32)}, tolerance=0).passed
    assert types(result)["unit"] == TensorProto.FLOAT


@pytest.mark.parametrize(
    ("value", "reason"),
    [([1.0, 1e5], r"holds 1e\+05, which is more than float16 can"), ([1e-9], "is 1e-09, which float16 makes 0")],
)
def test_numbers_that_float16_cannot_hold_stay_and_are_told(value: list[float], reason: str) -> None:
    model = parse(
        "g (float[N, 1] x) => (float[N, M] y) { a = Relu(x)  b = Add(a, c)  y = Neg(b) }",
        c=np.array(value, np.float32),
    )
    result = precision.convert(model, "fp16")
    ((node, told),) = result.kept.items()
    assert node == "b"
    assert told.startswith("c ")
    assert re.search(reason, told)
    found = types(result.model)
    assert (found["a"], found["b"], found["c"]) == (TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT)
    assert not precision.convert(model, "bf16").kept


def test_infinity_is_a_mask_and_no_overflow() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Min(x, m) }", m=np.array([np.inf, 1], np.float32))
    assert not precision.convert(model, "fp16").kept


def test_a_weight_that_both_kinds_read_is_there_in_both() -> None:
    model = parse(
        "g (float[N, 2] x) => (float[N, 2] y) { a = Add(x, w)  p = Pow(w, two)  y = Mul(a, p) }",
        w=floats(2),
        two=np.array(2.0, np.float32),
    )
    result = converted(model)
    assert sorted(weight.name for weight in result.graph.initializer) == ["two", "w", "w/float16"]
    assert swinopt.compare(model, result, tolerance=5e-3).passed


def test_ops_of_unknown_domains_keep_float32() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Relu(x)  b = acme.Thing(a)  y = Relu(b) }")
    with pytest.raises(ModelError, match="the type of the tensor 'b' cannot be told"):
        precision.convert(model, "fp16")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    result = precision.convert(model, "fp16").model
    inputs = {node.op_type: list(node.input) for node in result.graph.node}
    assert inputs["Thing"] == ["a/float"]
    assert counts(result)["Cast"] == 4


def test_integers_and_what_makes_them_stay() -> None:
    model = parse(
        """g (float[N, 4] x) => (int64[N] y, float[N, 4] z) {
            y = ArgMax<axis=1, keepdims=0>(x)  f = Cast<to=1>(y)  e = Unsqueeze(f, one)  z = Add(x, e) }""",
        one=np.array([1]),
    )
    result = converted(model)
    found = types(result)
    assert (found["y"], found["f"], found["z"]) == (TensorProto.INT64, TensorProto.FLOAT16, TensorProto.FLOAT)
    assert swinopt.compare(model, result, tolerance=5e-3).passed


def test_an_output_that_others_read_is_cast_once() -> None:
    model = parse("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x)  z = Neg(y) }")
    result = converted(model)
    assert counts(result) == {"Cast": 3, "Relu": 1, "Neg": 1}
    assert swinopt.compare(model, result, tolerance=5e-3).passed


def test_a_model_of_that_precision_is_left_as_it_is() -> None:
    model = parse(
        "g (float[2] x) => (float[2] y) { a = Cast<to=10>(x)  b = Mul(a, w)  y = Cast<to=1>(b) }",
        w=np.ones(2, np.float16),
    )
    assert precision.convert(model, "fp16").model.graph.node == model.graph.node
    with pytest.raises(ModelError, match="has fp16 weights, and bf16 is asked for"):
        precision.convert(model, "bf16")
    assert precision.weight_precisions(model) == {"fp16"}


def test_branches_are_refused() -> None:
    branch = parse("g () => (float[2] r) { r = Neg(x) }").graph
    model = parse("g (float[2] x, bool c) => (float[2] y) { y = Identity(x) }")
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    model.graph.node[0].CopyFrom(node)
    with pytest.raises(ModelError, match="branches or loops"):
        precision.convert(model, "fp16")


def test_a_precision_that_no_graph_has() -> None:
    with pytest.raises(OptionError, match="fp16 or bf16, and not to 'tf32'"):
        precision.convert(parse("g (float[2] x) => (float[2] y) { y = Relu(x) }"), "tf32")

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt.passes import FuseBiasGelu
from swinopt.testing import assert_equivalent, leaves_alone, parse, refuses, rewrites
from tests.graphs import Builder, erf_gelu, erf_gelu_halved_first, gelu_node

FUSE = FuseBiasGelu()
C = 6

Step = Callable[[Builder, str], str]


def tanh(b: Builder, x: str) -> str:
    cubic = b.op("Mul", b.constant(0.044715), b.op("Pow", x, b.constant(3.0)))
    inner = b.op("Mul", b.constant((2 / np.pi) ** 0.5), b.op("Add", x, cubic))
    return b.op("Mul", b.op("Mul", b.constant(0.5), x), b.op("Add", b.constant(1.0), b.op("Tanh", inner)))


def model(
    gelu: Step,
    bias: tuple[int, ...] | None = (C,),
    *,
    left: bool = False,
    shape: tuple[int | str, ...] = (2, 5, C),
    opset: int = 20,
    dtype: Any = np.float32,
    constant: bool = True,
    more: Callable[[Builder, dict[str, str]], list[str]] = lambda b, tensors: [],
) -> onnx.ModelProto:
    b = Builder(opset=opset, dtype=dtype)
    biased = source = b.op("Neg", b.input(shape))
    if bias is not None:
        added = b.weights(*bias) if constant else b.op("Exp", b.input(bias, "bias"))
        biased = b.op("Add", *((added, source) if left else (source, added)))
    return b.model(b.op("Neg", gelu(b, biased)), *more(b, {"biased": biased}))


def fused(before: onnx.ModelProto, op_type: str, *, others: dict[str, int] | None = None, **options: Any) -> None:
    after = rewrites(before, FUSE, applied=1, **options)
    nodes = [node for node in after.graph.node if node.op_type != "Neg"]
    counts = {op: sum(n.op_type == op for n in nodes) for op in {n.op_type for n in nodes}}
    assert counts == {op_type: 1, **(others or {})}
    (node,) = [node for node in nodes if node.op_type == op_type]
    assert node.domain == "com.microsoft"
    if op_type == "BiasGelu":
        assert [list(w.dims) for w in after.graph.initializer if w.name == node.input[1]] == [[C]]
    leaves_alone(after, FUSE)


# --------------------------------------------------------------------------------------------------------- spellings

SPELLINGS: dict[str, tuple[Step, int]] = {
    "one node": (gelu_node, 20),
    "erf": (erf_gelu, 17),
    "erf, halved first": (erf_gelu_halved_first, 17),
    "erf in an opset that has a node": (erf_gelu, 20),
}


@pytest.mark.parametrize("bias", [(C,), (1, C), (1, 1, C)], ids=str)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("name", SPELLINGS)
def test_bias_and_gelu_become_one_node(name: str, left: bool, bias: tuple[int, ...]) -> None:
    gelu, opset = SPELLINGS[name]
    fused(model(gelu, bias, left=left, opset=opset), "BiasGelu")


@pytest.mark.parametrize("name", ["erf", "erf, halved first"])
def test_a_gelu_without_bias_becomes_one_node_where_the_opset_has_none(name: str) -> None:
    gelu, opset = SPELLINGS[name]
    fused(model(gelu, None, opset=opset), "Gelu")


@pytest.mark.parametrize("shape", [("batch", 5, C), (2, "n", C), (C,), (1, 2, 3, C)], ids=str)
def test_any_shape_that_ends_in_the_features_will_do(shape: tuple[int | str, ...]) -> None:
    fused(model(gelu_node, shape=shape), "BiasGelu")


def test_the_bias_of_a_linear_is_one() -> None:
    b = Builder(opset=17)
    before = b.model(erf_gelu(b, b.linear(b.input((2, 3)), 3, C)))
    rewrites(before, FUSE, applied=1, expect={"MatMul": 1, "com.microsoft::BiasGelu": 1})


def test_a_bias_that_two_share_is_one_constant() -> None:
    b = Builder(opset=20)
    x, bias = b.input((2, C)), b.weights(1, C)
    before = b.model(gelu_node(b, b.op("Add", x, bias)), gelu_node(b, b.op("Add", bias, b.op("Neg", x))))
    after = rewrites(before, FUSE, applied=2)
    assert [list(w.dims) for w in after.graph.initializer] == [[C]]


def test_half_precision_stays_half() -> None:
    after = FUSE(model(gelu_node, (1, C), dtype=np.float16))
    assert [w.data_type for w in after.graph.initializer] == [onnx.TensorProto.FLOAT16]


def test_a_biased_tensor_that_is_read_elsewhere_stays() -> None:
    before = model(gelu_node, more=lambda b, t: [b.op("Neg", t["biased"])])
    fused(before, "BiasGelu", others={"Add": 1})


# -------------------------------------------------------------------------------------------------------- near misses

NO_BIAS = "which is no bias over the last axis"
REFUSED: dict[str, dict[str, Any]] = {
    "a bias for each token": {"bias": (5, 1)},
    "a bias for each element": {"bias": (5, C)},
    "a bias for each image": {"bias": (2, 1, 1)},
    "one number": {"bias": ()},
    "one number in a vector": {"bias": (1,)},
    "a bias that adds an axis": {"bias": (1, 1, C), "shape": (5, C)},
    "a bias that widens the tensor": {"bias": (C,), "shape": (5, 1)},
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_to_take_for_a_bias(name: str) -> None:
    before = model(gelu_node, **REFUSED[name])
    assert_equivalent(before, before)
    refuses(before, FUSE, NO_BIAS)


def test_what_is_added_before_an_erf_gelu_and_is_no_bias_stays_in_front_of_it() -> None:
    fused(model(erf_gelu, (5, 1), opset=17), "Gelu", others={"Add": 1})


def test_a_bias_that_is_no_constant_is_left_alone() -> None:
    before = model(gelu_node, constant=False)
    assert_equivalent(before, before)
    leaves_alone(before, FUSE)


@pytest.mark.parametrize(
    "gelu", [tanh, lambda b, x: b.op("Gelu", x, approximate="tanh")], ids=["spelt out", "one node"]
)
def test_the_approximation_by_tanh_is_left_alone(gelu: Step) -> None:
    before = model(gelu)
    assert_equivalent(before, before)
    leaves_alone(before, FUSE)


@pytest.mark.parametrize("op_type", ["Relu", "Tanh", "Erf", "Sigmoid"])
def test_another_function_of_a_biased_tensor_is_left_alone(op_type: str) -> None:
    leaves_alone(model(lambda b, x: b.op(op_type, x)), FUSE)


def test_a_bias_that_is_taken_away_is_left_alone() -> None:
    leaves_alone(
        parse("g (float[2, 6] x) => (float[2, 6] y) { d = Sub(x, bias)  y = Gelu(d) }", bias=np.ones(6, np.float32)),
        FUSE,
    )


def test_a_gelu_that_the_opset_has_is_left_alone_where_there_is_no_bias() -> None:
    leaves_alone(model(gelu_node, None), FUSE)


def test_an_erf_gelu_without_bias_is_left_to_fuse_gelu_where_the_opset_has_a_node() -> None:
    leaves_alone(model(erf_gelu, None, opset=20), FUSE)

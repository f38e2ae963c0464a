from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt.passes import FuseAddLayerNorm
from swinopt.testing import assert_equivalent, leaves_alone, refuses, rewrites
from tests.graphs import Builder

FUSE = FuseAddLayerNorm()
C = 6

Norm = Callable[[Builder, str], str]


def residual(
    shape: tuple[int | str, ...] = (2, 5, C),
    *,
    other: tuple[int | str, ...] | None = None,
    norm: Norm = lambda b, x: b.layer_norm(x, C),
    dtype: Any = np.float32,
    opset: int = 17,
    more: Callable[[Builder, dict[str, str]], list[str]] = lambda b, tensors: [],
) -> onnx.ModelProto:
    """Two computed tensors, added and normalised."""
    b = Builder(opset=opset, dtype=dtype)
    x = b.op("Tanh", b.input(shape))
    y = b.op("Sigmoid", b.input(other or shape, "z"))
    total = b.op("Add", x, y)
    normed = norm(b, total)
    return b.model(b.op("Neg", normed), *more(b, {"x": x, "total": total, "normed": normed}))


BRANCHES = {"Tanh": 1, "Sigmoid": 1, "Neg": 1, "swinopt::AddLayerNorm": 1}


def fused(before: onnx.ModelProto, *, others: dict[str, int] | None = None) -> onnx.NodeProto:
    after = rewrites(before, FUSE, applied=1, expect={**BRANCHES, **(others or {})})
    leaves_alone(after, FUSE)
    (node,) = [node for node in after.graph.node if node.op_type == "AddLayerNorm"]
    return node


# ---------------------------------------------------------------------------------------------------------- it applies


@pytest.mark.parametrize("shape", [(2, 5, C), ("batch", 5, C), ("batch", "h", "w", C), (C,), (1, 2, 3, 4, C)], ids=str)
def test_the_sum_and_its_norm_become_one_node(shape: tuple[int | str, ...]) -> None:
    node = fused(residual(shape))
    assert node.domain == "swinopt" and (len(node.input), len(node.output)) == (4, 2)


def test_the_next_addition_reads_the_sum_of_the_op() -> None:
    before = residual(more=lambda b, t: [b.op("Add", t["total"], b.op("Exp", t["normed"]))])
    (total,) = [node.output[0] for node in before.graph.node if node.op_type == "Add"][:1]
    node = fused(before, others={"Add": 1, "Exp": 1})
    assert node.output[0] == total


def test_sum_and_norm_may_be_outputs() -> None:
    rewrites(residual(more=lambda b, t: [t["total"], t["normed"]]), FUSE, applied=1)


def test_a_residual_stream_is_fused_at_every_norm() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 5, C)))
    for _ in range(3):
        x = b.op("Add", x, b.linear(b.layer_norm(x, C), C, C))
    after = rewrites(b.model(b.layer_norm(x, C)), FUSE, applied=3)
    kinds = [node.op_type for node in after.graph.node]
    # The first norm is behind no addition; three biases are added, and no residual by itself.
    assert (kinds.count("AddLayerNorm"), kinds.count("LayerNormalization"), kinds.count("Add")) == (3, 1, 3)


def test_the_second_of_two_norms_of_a_sum_reads_the_sum_of_the_op() -> None:
    before = residual(more=lambda b, t: [b.op("Exp", b.layer_norm(t["total"], C))])
    fused(before, others={"Exp": 1, "LayerNormalization": 1})


def test_a_tensor_may_be_added_to_itself() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 5, C)))
    before = b.model(b.layer_norm(b.op("Add", x, x), C))
    rewrites(before, FUSE, applied=1, expect={"Tanh": 1, "swinopt::AddLayerNorm": 1})


def test_a_norm_without_bias_gets_one_of_zeros() -> None:
    fused(residual(norm=lambda b, x: b.op("LayerNormalization", x, b.weights(C))))


@pytest.mark.parametrize("epsilon", [None, 1e-6, 0.5])
def test_epsilon_is_taken_over(epsilon: float | None) -> None:
    attributes = {} if epsilon is None else {"epsilon": epsilon}

    def norm(b: Builder, x: str) -> str:
        return b.op("LayerNormalization", x, b.weights(C), b.weights(C), axis=2, **attributes)

    node = fused(residual(norm=norm))
    assert [round(a.f, 8) for a in node.attribute] == [epsilon or 1e-5]


def test_scale_and_bias_may_be_computed() -> None:
    fused(residual(norm=lambda b, x: b.op("LayerNormalization", x, b.input((C,), "s"), b.input((C,), "o"))))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_half_precision_stays_half(dtype: Any) -> None:
    after = rewrites(residual(dtype=dtype), FUSE, applied=1)
    assert {t.data_type for t in after.graph.initializer} == {onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))}


@pytest.mark.parametrize("target", ["portable", "onnxruntime", "tensorrt"])
def test_any_target_runs_what_it_makes(target: str) -> None:
    before = residual(("batch", 5, C), more=lambda b, t: [b.op("Exp", t["total"])])
    pipeline = swinopt.Pipeline(*swinopt.pipeline(target).steps, FUSE)
    result = swinopt.optimize(before, passes=pipeline, target=target)
    assert {p.name: p.applied for p in result.report.passes}["fuse-add-layer-norm"] == 1
    assert swinopt.compare(before, result.model).passed


# --------------------------------------------------------------------------------------------------------- near misses

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "one summand is broadcast": ({"other": (1, 5, C)}, "not known to have one shape"),
    "one summand is broadcast to more axes": ({"other": (5, C)}, "not known to have one shape"),
    "both are broadcast": ({"shape": (2, 1, C), "other": (1, 5, C)}, "not known to have one shape"),
    "the sizes go by other names": ({"shape": ("a", 5, C), "other": (1, 5, C)}, "not known to have one shape"),
    "the norm runs over two axes": (
        {"norm": lambda b, x: b.op("LayerNormalization", x, b.weights(5, C), axis=1)},
        "does not run over the last axis alone",
    ),
    "the scale is one number": (
        {"norm": lambda b, x: b.op("LayerNormalization", x, b.weights(1), b.weights(C))},
        "the scale of the norm is not one number for each of 6 channels",
    ),
    "the bias is one for each token": (
        {"norm": lambda b, x: b.op("LayerNormalization", x, b.weights(C), b.weights(5, C))},
        "the bias of the norm is not one number for each of 6 channels",
    ),
    "the mean is read as well": (
        {"norm": lambda b, x: b.op("Add", *b.ops("LayerNormalization", x, b.weights(C), b.weights(C), count=2))},
        "the mean or the deviation of the norm is read",
    ),
    "the norm is of float64": ({"dtype": np.float64}, "other than float32, float16 and bfloat16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_that(name: str) -> None:
    options, reason = REFUSED[name]
    refuses(residual(**options), FUSE, reason)


def test_a_bias_is_left_alone() -> None:
    b = Builder()
    before = b.model(b.layer_norm(b.op("Add", b.op("Tanh", b.input((2, 5, C))), b.weights(C)), C))
    assert_equivalent(before, before)
    leaves_alone(before, FUSE)


def test_a_constant_of_the_same_shape_is_left_alone() -> None:
    b = Builder()
    leaves_alone(b.model(b.layer_norm(b.op("Add", b.weights(2, 5, C), b.op("Tanh", b.input((2, 5, C)))), C)), FUSE)


@pytest.mark.parametrize("op_type", ["Sub", "Mul", "Max"])
def test_another_operation_before_the_norm_is_left_alone(op_type: str) -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 5, C)))
    leaves_alone(b.model(b.layer_norm(b.op(op_type, x, b.op("Exp", x)), C)), FUSE)


def test_a_sum_that_is_moved_before_its_norm_is_left_alone() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 5, C)))
    total = b.op("Add", x, b.op("Exp", x))
    leaves_alone(b.model(b.layer_norm(b.transpose(total, 1, 0, 2), C)), FUSE)

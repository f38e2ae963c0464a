from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import graph
from swinopt.passes import FuseNorm
from swinopt.rewrite import Rewriter
from swinopt.testing import assert_equivalent, leaves_alone, parse, refuses, rewrites
from tests.graphs import Builder

FUSE = FuseNorm()
C = 6

Step = Callable[[Builder, str], str]


def norm(b: Builder, x: str) -> str:
    return b.layer_norm(x, C)


def nothing(b: Builder, x: str) -> str:
    return x


def residual(b: Builder, x: str, shape: tuple[int | str, ...] = (2, 5, C), *, left: bool = False) -> str:
    other = b.op("Sigmoid", b.input(shape, "z"))
    return b.op("Add", *((other, x) if left else (x, other)))


def model(
    normed: Step = norm,
    behind: Step = nothing,
    *,
    shape: tuple[int | str, ...] = (2, 5, C),
    dtype: Any = np.float32,
    opset: int = 17,
) -> onnx.ModelProto:
    """A computed tensor, normalised, and what stands behind it."""
    b = Builder(opset=opset, dtype=dtype)
    return b.model(b.op("Neg", behind(b, normed(b, b.op("Tanh", b.input(shape))))))


def kinds(after: onnx.ModelProto) -> list[str]:
    found = [node for node in after.graph.node if node.op_type == "LayerNorm"]
    assert all(node.domain == "swinopt" and len(node.output) == 1 for node in found)
    return ["residual" if len(node.input) == 4 else "plain" for node in found]


def fused(before: onnx.ModelProto, *wanted: str, others: dict[str, int] | None = None) -> onnx.ModelProto:
    """Asserts that the model becomes these LayerNorms and ``others``."""
    sigmoid = sum(node.op_type == "Sigmoid" for node in before.graph.node)
    expect = {"Tanh": 1, "Neg": 1, "swinopt::LayerNorm": len(wanted), **({"Sigmoid": sigmoid} if sigmoid else {})}
    after = rewrites(before, FUSE, applied=len(wanted), expect={**expect, **(others or {})})
    assert kinds(after) == list(wanted)
    leaves_alone(after, FUSE)
    return after


# ---------------------------------------------------------------------------------------------------------- it applies

SHAPES: list[tuple[int | str, ...]] = [
    *[(C,), (5, C), ("rows", C), ("batch", 5, C), ("batch", "h", "w", C), (1, 2, 3, 4, C)]
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_norm_becomes_one_node(shape: tuple[int | str, ...]) -> None:
    fused(model(shape=shape), "plain")


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_norm_takes_in_its_residual(shape: tuple[int | str, ...], left: bool) -> None:
    after = fused(model(behind=lambda b, x: residual(b, x, shape, left=left), shape=shape), "residual")
    (node,) = [node for node in after.graph.node if node.op_type == "LayerNorm"]
    made_by = {n.output[0]: n.op_type for n in after.graph.node}
    assert [made_by[node.input[i]] for i in (0, 3)] == ["Tanh", "Sigmoid"]


def test_a_block_of_swin_v2_has_both_its_additions_in_its_norms() -> None:
    b = Builder()
    x = b.op("Tanh", b.input(("batch", 5, C)))
    for _ in range(2):
        x = b.op("Add", x, b.layer_norm(b.op("Exp", x), C))
    fused(b.model(b.op("Neg", x)), "residual", "residual", others={"Exp": 2})


def test_the_result_keeps_its_name_where_it_is_an_output() -> None:
    for behind in (nothing, residual):
        b = Builder()
        before = b.model(behind(b, b.layer_norm(b.input((2, 5, C)), C)))
        (node,) = [node for node in FUSE(before).graph.node if node.op_type == "LayerNorm"]
        assert node.output == ["y"]


def test_a_norm_without_bias_gets_one_of_zeros() -> None:
    fused(model(lambda b, x: b.op("LayerNormalization", x, b.weights(C))), "plain")


@pytest.mark.parametrize("epsilon", [None, 1e-6, 0.5])
def test_epsilon_is_taken_over(epsilon: float | None) -> None:
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    after = fused(
        model(lambda b, x: b.op("LayerNormalization", x, b.weights(C), b.weights(C), axis=2, **attributes)), "plain"
    )
    (node,) = [node for node in after.graph.node if node.op_type == "LayerNorm"]
    assert [round(a.f, 8) for a in node.attribute] == [epsilon or 1e-5]


def test_scale_and_bias_may_be_computed() -> None:
    fused(model(lambda b, x: b.op("LayerNormalization", x, b.input((C,), "s"), b.input((C,), "o"))), "plain")


def test_half_precision_stays_half() -> None:
    # The norm of the formula is rounded to fp16 before the addition, that of the op is not.
    after = rewrites(model(behind=residual, dtype=np.float16), FUSE, applied=1, tolerance=2e-3)
    assert {t.data_type for t in after.graph.initializer} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize("target", ["portable", "onnxruntime", "tensorrt"])
def test_any_target_runs_what_it_makes(target: str) -> None:
    before = model(behind=lambda b, x: residual(b, x, ("batch", 5, C)), shape=("batch", 5, C))
    pipeline = swinopt.Pipeline(*swinopt.pipeline(target).steps, FUSE)
    result = swinopt.optimize(before, passes=pipeline, target=target)
    assert {p.name: p.applied for p in result.report.passes}["fuse-norm"] == 1
    assert swinopt.compare(before, result.model).passed


# --------------------------------------------------------------------------------------------------------- near misses

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "it runs over two axes": (
        {"normed": lambda b, x: b.op("LayerNormalization", x, b.weights(5, C), axis=1)},
        "does not run over the last axis alone",
    ),
    "the scale is one number": (
        {"normed": lambda b, x: b.op("LayerNormalization", x, b.weights(1), b.weights(C))},
        "the scale of the norm is not one number for each of 6 channels",
    ),
    "the bias is one for each token": (
        {"normed": lambda b, x: b.op("LayerNormalization", x, b.weights(C), b.weights(5, C))},
        "the bias of the norm is not one number for each of 6 channels",
    ),
    "the mean is read as well": (
        {"normed": lambda b, x: b.op("Add", *b.ops("LayerNormalization", x, b.weights(C), b.weights(C), count=2))},
        "the mean or the deviation of the norm is read",
    ),
    "it is of float64": ({"dtype": np.float64}, "other than float32, float16 and bfloat16"),
}


@pytest.mark.parametrize("behind", [nothing, residual], ids=["plain", "residual"])
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_that(name: str, behind: Step) -> None:
    options, reason = REFUSED[name]
    before = model(**options, behind=behind)
    assert_equivalent(before, before)
    refuses(before, FUSE, reason)


def test_a_number_of_channels_that_is_not_known_is_refused() -> None:
    text = "g (float[2, 8] x) => (float[2, 8] y) { u = acme.Op(x)  y = LayerNormalization(u, w) }"
    refuses(parse(text, w=np.ones(8, np.float32)), FUSE, "number of channels that the norm runs over is not known")


def test_an_opset_that_is_too_old_is_refused() -> None:
    """ONNX has no LayerNormalization there, which did not keep some from writing it."""
    text = "g (float[2, 8] x) => (float[2, 8] y) { y = LayerNormalization(x, w, w) }"
    rewriter = Rewriter(graph.load(parse(text, w=np.ones(8, np.float32), opset=16)))
    FUSE.run(rewriter)
    assert [refusal.reason for refusal in rewriter.refusals] == [
        "swinopt::LayerNorm needs opset 17, and this is opset 16"
    ]
    assert not rewriter.applied


def test_a_norm_and_a_sum_of_another_domain_are_left_alone() -> None:
    text = "g (float[2, 8] x, float[2, 8] z) => (float[2, 8] y) { n = LayerNormalization(x, w)  y = acme.Add(n, z) }"
    weights = {"w": np.ones(8, np.float32)}
    leaves_alone(parse(text.replace("LayerN", "acme.LayerN"), **weights), FUSE)
    assert kinds(FUSE(parse(text, **weights))) == ["plain"]

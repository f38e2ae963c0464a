from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import Pipeline
from swinopt.passes import FlattenTokens, FuseLinear
from swinopt.testing import assert_equivalent, leaves_alone, parse, refuses, rewrites
from tests.graphs import Builder, erf_gelu, erf_gelu_halved_first, gelu_node, swin_attention

FUSE = FuseLinear()
K, N = 8, 16

Step = Callable[[Builder, str], str]
Weights = dict[str, np.ndarray[Any, Any]]


def bias_behind(b: Builder, x: str) -> str:
    return b.op("Add", b.op("MatMul", x, b.weights(K, N)), b.weights(N))


def bias_with_axes(b: Builder, x: str) -> str:
    return b.op("Add", b.op("MatMul", x, b.weights(K, N)), b.weights(1, 1, N))


def gemm(b: Builder, x: str) -> str:
    return b.op("Gemm", b.reshape(x, -1, K), b.weights(K, N), b.weights(1, N))


LINEARS: dict[str, Step] = {
    "with bias": lambda b, x: b.linear(x, K, N),
    "with bias behind": bias_behind,
    "with a bias of more axes": bias_with_axes,
    "without bias": lambda b, x: b.linear(x, K, N, bias=False),
    "Gemm": gemm,
    "Gemm, transposed": lambda b, x: b.linear(x, K, N, gemm=True),
    "Gemm without bias": lambda b, x: b.linear(x, K, N, gemm=True, bias=False),
}


def erf_halved_last(b: Builder, x: str) -> str:
    one_plus = b.op("Add", b.op("Erf", b.op("Div", x, b.constant(2**0.5))), b.constant(1.0))
    return b.op("Mul", x, b.op("Div", one_plus, b.constant(2.0)))


GELUS: dict[str, Step] = {
    "one node": gelu_node,
    "erf": erf_gelu,
    "erf, halved first": erf_gelu_halved_first,
    "erf, halved last": erf_halved_last,
}


def nothing(b: Builder, x: str) -> str:
    return x


def residual(b: Builder, x: str, shape: tuple[int | str, ...] = (2, 5, N), *, left: bool = False) -> str:
    other = b.op("Sigmoid", b.input(shape, "z"))
    return b.op("Add", *((other, x) if left else (x, other)))


def rows_residual(b: Builder, x: str) -> str:
    return residual(b, x, (10, N))


def model(
    linear: Step = LINEARS["with bias"],
    behind: Step = nothing,
    *,
    shape: tuple[int | str, ...] = (2, 5, K),
    dtype: Any = np.float32,
    opset: int = 20,
    more: Callable[[Builder, dict[str, str]], list[str]] = lambda b, tensors: [],
) -> onnx.ModelProto:
    b = Builder(opset=opset, dtype=dtype)
    result = linear(b, b.op("Tanh", b.input(shape)))
    end = behind(b, result)
    return b.model(b.op("Neg", end), *more(b, {"result": result, "end": end}))


def kinds(after: onnx.ModelProto) -> list[str]:
    """What each Linear has, in order."""
    found = []
    for node in after.graph.node:
        if node.op_type == "Linear":
            assert node.domain == "swinopt" and len(node.output) == 1
            gelu = bool(node.attribute and node.attribute[0].i)
            found.append("gelu" if gelu else "residual" if len(node.input) == 4 else "plain")
    return found


def fused(before: onnx.ModelProto, *wanted: str, others: dict[str, int] | None = None, **options: Any) -> Weights:
    """Asserts that the model becomes these Linears and ``others``; returns the constants by name."""
    after = rewrites(before, FUSE, applied=len(wanted), **options)
    assert kinds(after) == list(wanted)
    found = Counter(node.op_type for node in after.graph.node)
    for op_type in ("Tanh", "Neg", "Sigmoid", "Reshape", "Linear"):
        found.pop(op_type, None)
    assert dict(found) == (others or {})
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in after.graph.initializer}
    for node in after.graph.node:
        if node.op_type == "Linear":
            assert [weights[name].ndim for name in node.input[1:3]] == [2, 1]
    leaves_alone(after, FUSE)
    return weights


# ---------------------------------------------------------------------------------------------------------- it applies


@pytest.mark.parametrize("linear", LINEARS)
def test_a_linear_becomes_one_node(linear: str) -> None:
    fused(model(LINEARS[linear]), "plain")


@pytest.mark.parametrize("gelu", GELUS)
@pytest.mark.parametrize("linear", LINEARS)
def test_a_linear_takes_in_its_gelu(linear: str, gelu: str) -> None:
    fused(model(LINEARS[linear], GELUS[gelu]), "gelu")


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("linear", LINEARS)
def test_a_linear_takes_in_its_residual(linear: str, left: bool) -> None:
    shape = (10, N) if linear.startswith("Gemm") else (2, 5, N)
    fused(model(LINEARS[linear], lambda b, x: residual(b, x, shape, left=left)), "residual")


SHAPES: dict[str, tuple[int | str, ...]] = {
    "rows": (5, K),
    "any number of rows": ("rows", K),
    "any batch": ("batch", 5, K),
    "a map of any size": ("batch", "height", "width", K),
    "video": (1, 2, 3, 4, K),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_axes_before_the_features_will_do(shape: tuple[int | str, ...]) -> None:
    fused(model(shape=shape), "plain")
    fused(model(behind=erf_gelu, shape=shape), "gelu")
    fused(model(behind=lambda b, x: residual(b, x, (*shape[:-1], N)), shape=shape), "residual")


def test_weights_are_taken_over_as_they_are() -> None:
    before = model()
    weights = fused(before, "plain")
    assert set(weights) == {w.name for w in before.graph.initializer}


def test_weights_of_a_transposed_gemm_are_transposed() -> None:
    before = model(LINEARS["Gemm, transposed"])
    (old,) = [w for w in map(onnx.numpy_helper.to_array, before.graph.initializer) if w.ndim == 2]
    (new,) = [w for w in fused(before, "plain").values() if w.ndim == 2]
    assert old.shape == (N, K)
    np.testing.assert_array_equal(new, old.T)


@pytest.mark.parametrize("behind", [nothing, erf_gelu, rows_residual], ids=["plain", "gelu", "residual"])
@pytest.mark.parametrize("linear", ["without bias", "Gemm without bias"])
def test_half_precision_stays_half(linear: str, behind: Step) -> None:
    before = model(LINEARS[linear], behind, dtype=np.float16, shape=(10, K), opset=17)
    # The steps of the formula are rounded to fp16, those of the op are not.
    weights = fused(before, {nothing: "plain", erf_gelu: "gelu"}.get(behind, "residual"), tolerance=2e-3)
    assert {w.dtype for w in weights.values() if w.dtype.kind == "f"} == {np.dtype(np.float16)}


def test_bfloat16() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    text = "g (bfloat16[2, 8] x, bfloat16[2, 16] z) => (bfloat16[2, 16] y) { p = MatMul(x, w)  y = Add(p, z) }"
    after = FUSE(parse(text, w=np.ones((K, N), bfloat16)))
    assert kinds(after) == ["residual"]
    assert {w.data_type for w in after.graph.initializer} == {onnx.TensorProto.BFLOAT16}


def test_two_linears_may_share_their_weights() -> None:
    for transposed in (0, 1):
        b = Builder(opset=20)
        x, w, bias = b.input((5, K)), b.weights(*((N, K) if transposed else (K, N))), b.weights(1, N)
        y, z = (b.op("Gemm", t, w, bias, transB=transposed) for t in (x, b.op("Neg", x)))
        weights = fused(b.model(b.op("Gelu", y), z), "gelu", "plain")
        assert sorted(w.shape for w in weights.values()) == [(K, N), (N,)]


def test_large_weights_that_two_share_are_transposed_once() -> None:
    b = Builder(opset=20)
    x, w = b.input((2, 1024)), b.weights(1032, 1024)
    before = b.model(*(b.op("Gemm", t, w, transB=1) for t in (x, b.op("Neg", x))))
    assert sorted(w.shape for w in fused(before, "plain", "plain").values()) == [(1024, 1032), (1032,)]


def test_each_residual_goes_to_the_linear_beside_it() -> None:
    b = Builder(opset=20)
    x = b.op("Tanh", b.input(("batch", 5, K)))
    h = b.op("Add", x, b.linear(b.layer_norm(x, K), K, K))
    y = b.op("Add", h, b.linear(b.op("Gelu", b.linear(b.layer_norm(h, K), K, N)), N, K))
    after = rewrites(b.model(b.op("Neg", y)), FUSE, applied=3)
    assert kinds(after) == ["residual", "gelu", "residual"]
    assert [node.op_type for node in after.graph.node] == [
        *("Tanh", "LayerNormalization", "Linear", "LayerNormalization", "Linear", "Linear", "Neg")
    ]
    projection, inner, outer = [node for node in after.graph.node if node.op_type == "Linear"]
    assert projection.input[3] == after.graph.node[0].output[0]
    assert outer.input[3] == projection.output[0] and outer.input[0] == inner.output[0]


def test_where_the_first_of_two_does_not_fit_the_second_takes_it() -> None:
    def two(b: Builder, x: str) -> str:
        return b.op("Add", b.linear(b.slice(x, 0, 7, 2), 7, N), b.linear(x, K, N))

    fused(model(two), "residual", others={"Slice": 1, "MatMul": 1, "Add": 1})


def test_the_result_keeps_its_name_where_it_is_an_output() -> None:
    for behind in (nothing, erf_gelu, residual):
        b = Builder(opset=20)
        before = b.model(behind(b, b.linear(b.input((2, 5, K)), K, N)))
        (node,) = [node for node in FUSE(before).graph.node if node.op_type == "Linear"]
        assert node.output == ["y"]


def test_a_bias_in_the_body_of_an_if_stays_there() -> None:
    before = parse(
        """g (float[5, 8] x, float[5, 16] z, bool c) => (float[5, 16] y) {
            p = MatMul(x, w)
            y = If(c) <then_branch = a () => (float[5, 16] t) { t = Add(p, b) },
                       else_branch = e () => (float[5, 16] f) { f = Add(z, b) }>
        }""",
        w=np.ones((K, N), np.float32),
        b=np.ones(N, np.float32),
    )
    fused(before, "plain", others={"If": 1})


# ------------------------------------------------------------------------------------- what stays behind a plain Linear


def reason_of(before: onnx.ModelProto) -> list[str]:
    result = swinopt.optimize(before, passes=FUSE, verify=False)
    return [refusal.reason for p in result.report.passes for refusal in p.refusals]


@pytest.mark.parametrize("gelu", GELUS)
def test_a_gelu_is_refused_where_something_else_reads_the_linear(gelu: str) -> None:
    left = {"one node": {"Gelu": 1}}.get(gelu, {"Erf": 1, "Add": 1, "Mul": 2, "Div": 1})
    if gelu == "erf, halved first":
        left = {"Erf": 1, "Add": 1, "Mul": 3}
    if gelu == "erf, halved last":
        left = {"Erf": 1, "Add": 1, "Mul": 1, "Div": 2}
    for more in (lambda b, t: [b.op("Sigmoid", t["result"])], lambda b, t: [t["result"]]):
        before = model(behind=GELUS[gelu], more=more)
        fused(before, "plain", others=left)
        assert reason_of(before) == ["what the linear gives is read elsewhere, and not by the GELU alone"]


def test_a_gelu_is_refused_where_something_inside_it_is_read_elsewhere() -> None:
    inner: list[str] = []

    def leaky(b: Builder, x: str) -> str:
        inner.append(b.op("Erf", b.op("Div", x, b.constant(2**0.5))))
        return b.op("Mul", b.op("Mul", x, b.op("Add", inner[-1], b.constant(1.0))), b.constant(0.5))

    left = {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
    for more in (lambda b, t: [inner[-1]], lambda b, t: [b.op("Sigmoid", inner[-1])]):
        before = model(behind=leaky, more=more)
        fused(before, "plain", others=left)
        assert reason_of(before) == ["what the linear gives is read elsewhere, and not by the GELU alone"]


def test_a_gelu_that_two_read_is_taken_in() -> None:
    fused(model(behind=erf_gelu, more=lambda b, t: [b.op("Sigmoid", t["end"]), t["end"]]), "gelu")


def test_a_gelu_that_adds_an_axis_is_refused() -> None:
    def widened(b: Builder, x: str) -> str:
        one_plus = b.op("Add", b.op("Erf", b.op("Div", x, b.constant(2**0.5))), b.constant([[[[1.0]]]]))
        return b.op("Mul", b.op("Mul", x, one_plus), b.constant(0.5))

    before = model(behind=widened)
    fused(before, "plain", others={"Div": 1, "Erf": 1, "Add": 1, "Mul": 2})
    assert reason_of(before) == ["the GELU adds an axis to what the linear gives"]


STAYS: dict[str, tuple[Step, dict[str, int]]] = {
    "the tanh form of GELU": (lambda b, x: b.op("Gelu", x, approximate="tanh"), {"Gelu": 1}),
    "another activation": (lambda b, x: b.op("Relu", x), {"Relu": 1}),
    "a GELU of something scaled": (lambda b, x: gelu_node(b, b.op("Mul", x, b.constant(2.0))), {"Mul": 1, "Gelu": 1}),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays_behind_a_plain_linear(name: str) -> None:
    behind, others = STAYS[name]
    before = model(behind=behind)
    fused(before, "plain", others=others)
    assert reason_of(before) == []


def test_a_residual_behind_a_gelu_stays() -> None:
    fused(model(behind=lambda b, x: residual(b, gelu_node(b, x))), "gelu", others={"Add": 1})


def test_a_gelu_behind_a_residual_stays() -> None:
    fused(model(behind=lambda b, x: gelu_node(b, residual(b, x))), "residual", others={"Gelu": 1})


PRODUCTS_READ: dict[str, Callable[[Builder, str, str], list[str]]] = {
    "read by something": lambda b, product, biased: [biased, b.op("Sigmoid", product)],
    "an output": lambda b, product, biased: [biased, product],
}


@pytest.mark.parametrize("name", PRODUCTS_READ)
def test_a_bias_stays_apart_where_the_product_without_it_is(name: str) -> None:
    b = Builder(opset=20)
    product = b.op("MatMul", b.input((5, K)), b.weights(K, N))
    biased = b.op("Gelu", b.op("Add", product, b.weights(N)))
    fused(b.model(*PRODUCTS_READ[name](b, product, biased)), "plain", others={"Add": 1, "Gelu": 1})


# ---------------------------------------------------------------------------------------------------------- near misses

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "the input features are no multiple of 8": (
        {"linear": lambda b, x: b.linear(b.slice(x, 0, 6, 2), 6, N)},
        "the linear goes from 6 to 16 features, which are not both multiples of 8",
    ),
    "the output features are no multiple of 8": (
        {"linear": lambda b, x: b.linear(x, K, 10, gemm=True)},
        "the linear goes from 8 to 10 features",
    ),
    "it is of float64": ({"dtype": np.float64}, "other than float32, float16 and bfloat16"),
    "the bias adds an axis": (
        {"linear": lambda b, x: b.op("Add", b.op("MatMul", x, b.weights(K, N)), b.weights(1, 1, 1, N))},
        "the bias adds an axis to the product",
    ),
    "the bias makes rows of a vector": (
        {"linear": lambda b, x: b.op("Add", b.op("MatMul", x, b.weights(K, N)), b.weights(1, N)), "shape": (K,)},
        "the bias adds an axis to the product",
    ),
    "it is of a vector": ({"shape": (K,)}, "the linear is of a single vector"),
    "the opset is too old": ({"opset": 16}, "swinopt::Linear needs opset 17, and this is opset 16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_that(name: str) -> None:
    options, reason = REFUSED[name]
    before = model(**options)
    assert_equivalent(before, before)
    refuses(before, FUSE, reason)


@pytest.mark.parametrize("behind", [gelu_node, lambda b, x: residual(b, x, (2, 5, 10))], ids=["gelu", "residual"])
def test_what_is_behind_a_linear_that_is_refused_is_left_alone(behind: Step) -> None:
    refuses(model(lambda b, x: b.linear(x, K, 10), behind), FUSE, "from 8 to 10 features")


def test_a_number_of_axes_that_is_not_known_is_refused() -> None:
    text = "g (float[2, 8] x) => (float[2, 16] y) { u = acme.Op(x)  y = MatMul(u, w) }"
    refuses(parse(text, w=np.ones((K, N), np.float32)), FUSE, "not known how many axes")


LEFT_ALONE: dict[str, Step] = {
    "weights that are computed": lambda b, x: b.linear(x, K, N, constant=False),
    "a weight for each image": lambda b, x: b.op("MatMul", x, b.weights(2, K, N)),
    "a vector": lambda b, x: b.op("MatMul", x, b.weights(K)),
    "weights in front": lambda b, x: b.op("MatMul", b.weights(N, 5), x),
    "a product of two maps": lambda b, x: b.op("MatMul", x, b.transpose(x, 0, 2, 1)),
    "a Gemm with a factor": lambda b, x: b.op("Gemm", b.reshape(x, -1, K), b.weights(K, N), alpha=0.5),
    "a Gemm of a transposed matrix": lambda b, x: b.op("Gemm", b.reshape(x, K, -1), b.weights(K, N), transA=1),
    "a Gemm that adds a matrix": lambda b, x: b.op("Gemm", b.reshape(x, -1, K), b.weights(K, N), b.weights(10, N)),
    "a GELU without a linear": gelu_node,
}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_it_leaves_alone(name: str) -> None:
    before = model(LEFT_ALONE[name])
    assert_equivalent(before, before)
    leaves_alone(before, FUSE)
    assert reason_of(before) == []


def test_a_product_and_a_sum_of_another_domain_are_left_alone() -> None:
    text = "g (float[2, 8] x, float[2, 16] z) => (float[2, 16] y) { p = MatMul(x, w)  y = acme.Add(p, z) }"
    weights = {"w": np.ones((K, N), np.float32)}
    leaves_alone(parse(text.replace("MatMul", "acme.MatMul"), **weights), FUSE)
    after = FUSE(parse(text, **weights))
    assert [(node.domain, node.op_type) for node in after.graph.node] == [("swinopt", "Linear"), ("acme", "Add")]


# ------------------------------------------------------------------------------------------------------- whole blocks


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-8.6", "portable"])
@pytest.mark.parametrize("batch", [2, "batch"], ids=str)
def test_behind_the_pipeline_of_any_target_the_linears_of_an_attention_are_two(batch: int | str, target: str) -> None:
    before = swin_attention(batch, (4, 4), (2, 2), (1, 1))
    result = swinopt.optimize(before, passes=Pipeline(*swinopt.pipeline(target).steps, FUSE), target=target)
    assert (result.report.passes[-1].name, result.report.passes[-1].applied) == ("fuse-linear", 2)
    if target != "portable":  # where the op becomes standard ops again
        assert kinds(result.model) == ["plain", "residual"]
    assert swinopt.compare(before, result.model).passed


def test_it_works_on_rows_of_tokens() -> None:
    def block(b: Builder, x: str) -> str:
        h = b.op("Add", x, b.linear(b.layer_norm(x, K), K, K))
        return b.op("Add", h, b.linear(erf_gelu(b, b.linear(b.layer_norm(h, K), K, N)), N, K))

    b = Builder(opset=20)
    x = b.op("Tanh", b.input(("batch", 4, 3, K)))
    after = rewrites(b.model(b.op("Neg", block(b, block(b, x)))), Pipeline(FlattenTokens(), FUSE))
    assert kinds(after) == ["residual", "gelu", "residual"] * 2
    assert not {"MatMul", "Add", "Erf"} & {node.op_type for node in after.graph.node}

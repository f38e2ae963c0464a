from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import swinopt
from swinopt.passes import FuseLayerNorm
from swinopt.testing import assert_equivalent, leaves_alone, parse, refuses, rewrites

C = 6
FUSED = {"LayerNormalization": 1}


def random(*shape: int, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def layer_norm(
    *,
    x: str = f"float[2, 5, {C}]",
    axes: str = "-1",
    variance_axes: str | None = None,
    opset: int = 17,
    centred: str = "d = Sub(x, mean)",
    again: str = "",
    square: str = "s = Pow(d, two)",
    root: str = "r = Sqrt(ve)",
    normalise: str = "n = Div(d, r)",
    affine: str = "a = Mul(n, scale)  y = Add(a, bias)",
    epsilon: float | npt.NDArray[Any] = 1e-5,
    keepdims: str = "",
    y: str | None = None,
    **weights: npt.NDArray[Any],
) -> onnx.ModelProto:
    """LayerNorm as exporters spell it, each line of which a test can spell differently."""
    half = "float16" in x
    dtype = np.float16 if half else np.float32

    def mean(output: str, of: str, axes: str) -> str:
        if opset >= 18:
            constant = f"{output}_axes = Constant<value_ints = [{axes}]>()"
            return f"{constant}  {output} = ReduceMean{keepdims}({of}, {output}_axes)"
        more = keepdims.strip("<>") + ", " if keepdims else ""
        return f"{output} = ReduceMean<{more}axes = [{axes}]>({of})"

    text = f"""g ({x} x) => ({y or x} y) {{
        {mean("mean", "x", axes)}
        {centred}
        {again}
        {square}
        {mean("v", "s", variance_axes or axes)}
        ve = Add(v, epsilon)
        {root}
        {normalise}
        {affine}
    }}"""
    weights = {"scale": random(C, dtype=dtype), "bias": random(C, dtype=dtype) + dtype(1), **weights}
    numbers = {"two": np.array(2, dtype), "half": np.array(0.5, dtype), "one": np.array(1, dtype)}
    known = {**numbers, "epsilon": np.asarray(epsilon, dtype), **weights}
    return parse(text, opset=opset, **{name: value for name, value in known.items() if name in text.replace("(", " ")})


def fused_node(model: onnx.ModelProto) -> dict[str, Any]:
    (node,) = model.graph.node
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


# ------------------------------------------------------------------------------------------------------- spellings


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param({}, id="as the TorchScript exporter writes it"),
        pytest.param({"again": "d2 = Sub(x, mean)", "square": "s = Pow(d2, two)"}, id="subtracted twice"),
        pytest.param({"square": "s = Mul(d, d)"}, id="square as a product"),
        pytest.param(
            {"again": "d2 = Sub(x, mean)", "square": "s = Mul(d2, d2)"}, id="subtracted twice, square as a product"
        ),
        pytest.param({"root": "r = Pow(ve, half)"}, id="root as a power"),
        pytest.param({"normalise": "i = Reciprocal(r)  n = Mul(d, i)"}, id="times a Reciprocal"),
        pytest.param({"normalise": "i = Reciprocal(r)  n = Mul(i, d)"}, id="Reciprocal on the left"),
        pytest.param({"normalise": "i = Div(one, r)  n = Mul(d, i)"}, id="times one over"),
        pytest.param({"affine": "a = Mul(scale, n)  y = Add(bias, a)"}, id="scale and bias on the left"),
        pytest.param({"affine": "y = Mul(n, scale)"}, id="no bias"),
        pytest.param({"affine": "y = Identity(n)"}, id="neither scale nor bias"),
        pytest.param({"opset": 18}, id="axes as an input"),
        pytest.param({"axes": "2"}, id="axis counted from the front"),
        pytest.param({"axes": "2", "variance_axes": "-1"}, id="axis counted from either end"),
        pytest.param({"keepdims": "<keepdims = 1>"}, id="keepdims said although it is the default"),
        pytest.param({"epsilon": 1e-3}, id="a large epsilon"),
        pytest.param({"epsilon": [1e-5]}, id="epsilon of shape [1]"),
    ],
)
def test_every_spelling_becomes_one_node(spelling: dict[str, Any]) -> None:
    expect = FUSED if spelling.get("affine") != "y = Identity(n)" else {**FUSED, "Identity": 1}
    rewrites(layer_norm(**spelling), FuseLayerNorm(), applied=1, expect=expect)


@pytest.mark.parametrize("scale", [(C,), (1, C), (1, 1, C), (), (1,), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("bias", [(C,), (1, 1, C), ()], ids=str)
def test_scale_and_bias_of_every_fitting_shape(scale: tuple[int, ...], bias: tuple[int, ...]) -> None:
    before = layer_norm(scale=random(*scale, 1)[..., 0], bias=random(*bias, 2)[..., 0])
    after = rewrites(before, FuseLayerNorm(), applied=1, expect=FUSED)
    shapes = {w.name: list(w.dims) for w in after.graph.initializer}
    assert [shapes[name] for name in after.graph.node[0].input[1:]] == [[C], [C]]


@pytest.mark.parametrize("opset", [17, 18, 22])
def test_several_trailing_axes(opset: int) -> None:
    before = layer_norm(x="float[2, 3, 4, 6]", axes="-2, -1", opset=opset, scale=random(4, 6), bias=random(1, 6))
    after = rewrites(before, FuseLayerNorm(), applied=1, expect=FUSED)
    assert fused_node(after)["axis"] == -2


def test_all_axes() -> None:
    rewrites(layer_norm(x="float[5, 6]", axes="0, 1", scale=random(5, 6)), FuseLayerNorm(), expect=FUSED)


def test_the_order_in_which_axes_are_written_does_not_matter() -> None:
    rewrites(layer_norm(x="float[2, 4, 6]", axes="2, 1", variance_axes="-2, -1"), FuseLayerNorm(), expect=FUSED)


def test_half_precision_stays_half() -> None:
    after = rewrites(layer_norm(x=f"float16[2, 5, {C}]", epsilon=1e-4), FuseLayerNorm(), applied=1, expect=FUSED)
    assert {w.data_type for w in after.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_half_precision_without_scale_gets_a_scale_of_its_own_dtype() -> None:
    before = layer_norm(x=f"float16[2, 5, {C}]", epsilon=1e-4, affine="y = Neg(n)")
    after = rewrites(before, FuseLayerNorm(), applied=1)
    assert [w.data_type for w in after.graph.initializer] == [onnx.TensorProto.FLOAT16]


def test_dynamic_leading_sizes() -> None:
    rewrites(layer_norm(x=f"float[N, L, {C}]"), FuseLayerNorm(), applied=1, expect=FUSED)


def test_epsilon_is_taken_from_the_model() -> None:
    after = rewrites(layer_norm(epsilon=2.5e-4), FuseLayerNorm())
    assert math.isclose(fused_node(after)["epsilon"], 2.5e-4, rel_tol=1e-6)


def test_the_output_keeps_its_name_and_one_constant_is_shared_by_many() -> None:
    text = f"""g (float[2, {C}] x) => (float[2, {C}] p, float[2, {C}] q) {{
        m1 = ReduceMean<axes = [-1]>(x)  d1 = Sub(x, m1)  s1 = Mul(d1, d1)  v1 = ReduceMean<axes = [-1]>(s1)
        e1 = Add(v1, epsilon)  r1 = Sqrt(e1)  p = Div(d1, r1)
        z = Relu(x)
        m2 = ReduceMean<axes = [-1]>(z)  d2 = Sub(z, m2)  s2 = Mul(d2, d2)  v2 = ReduceMean<axes = [-1]>(s2)
        e2 = Add(v2, epsilon)  r2 = Sqrt(e2)  q = Div(d2, r2)
    }}"""
    before = parse(text, opset=17, epsilon=np.array(1e-5, np.float32))
    after = rewrites(before, FuseLayerNorm(), applied=2, expect={"LayerNormalization": 2, "Relu": 1})
    assert len(after.graph.initializer) == 1


def test_intermediates_that_are_read_elsewhere_stay() -> None:
    before = layer_norm(affine="a = Mul(n, scale)  b = Add(a, bias)  y = Add(b, d)")
    rewrites(before, FuseLayerNorm(), applied=1, expect={**FUSED, "ReduceMean": 1, "Sub": 1, "Add": 1})


def test_a_scaled_result_that_is_read_before_the_bias_too_keeps_the_bias_apart_or_doubles_nothing() -> None:
    before = layer_norm(affine="a = Mul(n, scale)  b = Add(a, bias)  y = Mul(a, b)")
    after = rewrites(before, FuseLayerNorm())
    counts = [node.op_type for node in after.graph.node]
    assert not {"ReduceMean", "Sub", "Sqrt"} & set(counts)


# ------------------------------------------------------------------------------------------------------ near misses


@pytest.mark.parametrize(
    ("spelling", "reason"),
    [
        pytest.param({"opset": 16}, "opset 16 has no LayerNormalization; opset 17 has", id="old opset"),
        pytest.param({"axes": "1"}, r"axes \[-2\], which are not the last", id="an axis in the middle"),
        pytest.param({"axes": "0, 2"}, r"axes \[-3, -1\], which are not the last", id="axes with a gap"),
        pytest.param(
            {"x": "float[2, 6, 6]", "variance_axes": "1"}, "mean runs over axes .* variance over", id="two axes"
        ),
        pytest.param({"variance_axes": "1, 2"}, "mean runs over axes .* variance over", id="variance over more axes"),
        pytest.param({"epsilon": 0.0}, "epsilon is 0.0, which is not positive", id="no epsilon"),
        pytest.param({"epsilon": -1e-5}, "epsilon is -.*, which is not positive", id="negative epsilon"),
        pytest.param(
            {"x": "float[2, 5, W]", "scale": random(1), "bias": random(1)}, "sizes are not known", id="a dynamic axis"
        ),
    ],
)
def test_near_misses_are_refused_with_the_reason(spelling: dict[str, Any], reason: str) -> None:
    before = layer_norm(**spelling)
    assert_equivalent(before, before)  # it is a model that runs
    refuses(before, FuseLayerNorm(), reason)


@pytest.mark.parametrize(
    ("spelling", "reason", "left"),
    [
        pytest.param(
            {"scale": random(5, 1)}, r"scale has shape \[5, 1\].* fit", ("Mul", "Add"), id="along another axis"
        ),
        pytest.param({"scale": random(2, 1, C)}, r"scale has shape \[2, 1, 6\]", ("Mul", "Add"), id="for each image"),
        pytest.param({"bias": random(5, C)}, r"bias has shape \[5, 6\].* fit", ("Add",), id="bias for each token"),
        pytest.param(
            {"bias": random(1, 2, 1, C), "y": "float[1, 2, 5, 6]", "x": "float[2, 1, 6]"},
            r"bias has",
            ("Add",),
            id="rank",
        ),
        pytest.param(
            {"x": "float[2, 1]", "y": "float[2, 6]"}, r"scale has shape \[6\].* fit", ("Mul", "Add"), id="broadcasts x"
        ),
    ],
)
def test_scale_or_bias_that_does_not_fit_stays_behind_a_fused_rest(
    spelling: dict[str, Any], reason: str, left: tuple[str, ...]
) -> None:
    before = layer_norm(**spelling)
    rewrites(before, FuseLayerNorm(), applied=1, expect={**FUSED, **dict.fromkeys(left, 1)})
    (report,) = swinopt.optimize(before, passes=FuseLayerNorm()).report.passes
    assert any(re.search(reason, refusal.reason) for refusal in report.refusals)


def test_scale_and_bias_that_are_computed_stay_behind_a_fused_rest() -> None:
    before = layer_norm(x="float[5, 6]", affine="w = Tanh(x)  a = Mul(n, w)  y = Add(a, bias)")
    rewrites(before, FuseLayerNorm(), applied=1, expect={**FUSED, "Tanh": 1, "Mul": 1, "Add": 1})


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param({"square": "s = Pow(d, three)", "three": np.array(3, np.float32)}, id="no square"),
        pytest.param({"square": "s = Mul(d, x)"}, id="a product of two"),
        pytest.param({"root": "r = Identity(ve)"}, id="no root"),
        pytest.param({"root": "r = Pow(ve, third)", "third": np.array(1 / 3, np.float32)}, id="third root"),
        pytest.param({"centred": "d = Sub(mean, x)"}, id="the wrong way round"),
        pytest.param({"centred": "d = Identity(x)"}, id="not centred"),
        pytest.param({"again": "t = Tanh(x)  d2 = Sub(t, mean)", "square": "s = Mul(d2, d2)"}, id="two tensors"),
        pytest.param({"normalise": "n = Div(x, r)"}, id="quotient not centred"),
        pytest.param({"normalise": "n = Div(r, d)"}, id="quotient upside down"),
        pytest.param({"epsilon": [[[1e-5]] * 5]}, id="epsilon of many elements"),
        pytest.param({"x": "float[6, 6]", "keepdims": "<keepdims = 0>"}, id="axes that are dropped"),
    ],
)
def test_what_is_no_layer_norm_is_left_alone(spelling: dict[str, Any]) -> None:
    before = layer_norm(**spelling)
    assert_equivalent(before, before)
    leaves_alone(before, FuseLayerNorm())


@pytest.mark.parametrize(
    "spelling",
    [
        pytest.param({"epsilon": [[[1e-5]]]}, id="epsilon"),
        pytest.param({"two": np.full((1, 1, 1), 2, np.float32)}, id="exponent"),
        pytest.param({"scale": random(1, 1, C)}, id="scale"),
        pytest.param({"bias": random(1, 1, C)}, id="bias"),
    ],
)
def test_a_constant_that_adds_an_axis_is_not_swallowed(spelling: dict[str, Any]) -> None:
    before = layer_norm(x="float[5, 6]", y="float[1, 5, 6]", **spelling)
    assert_equivalent(before, FuseLayerNorm()(before))

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

from swinopt.passes import FuseGelu
from swinopt.testing import assert_equivalent, leaves_alone, parse, refuses, rewrites

NUMBERS = {
    "half": 0.5,
    "minus_half": -0.5,
    "one": 1.0,
    "minus_one": -1.0,
    "two": 2.0,
    "three": 3.0,
    "four": 4.0,
    "root2": math.sqrt(2),
    "inverse_root2": math.sqrt(0.5),
    "k": 0.044715,
    "inverse_k": 1 / 0.044715,
    "c": math.sqrt(2 / math.pi),
    "k_wrong": 0.0457,
    "c_wrong": 0.8,
    "root2_wrong": 1.4,
    "half_wrong": 0.51,
    "one_wrong": 1.01,
    "logistic": 1.702,
}


def model(body: str, *, dtype: str = "float", shape: str = "N, 3, 4", opset: int = 20) -> onnx.ModelProto:
    kind = {"float": np.float32, "float16": np.float16, "double": np.float64}[dtype]
    names = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    numbers = {name: np.array(value, kind) for name, value in NUMBERS.items() if name in names}
    return parse(f"g ({dtype}[{shape}] x) => ({dtype}[{shape}] y) {{ {body} }}", opset=opset, **numbers)


def approximation(after: onnx.ModelProto) -> str:
    (node,) = after.graph.node
    return {a.name: a.s.decode() for a in node.attribute}.get("approximate", "none")


ERF = "d = Div(x, root2)  e = Erf(d)  p = Add(e, one)"
CUBE = "x2 = Mul(x, x)  x3 = Mul(x2, x)"
END = "m = Mul(x, p)  y = Mul(m, half)"
TANH_END = f"t = Tanh(a)  p = Add(t, one)  {END}"
TANH = f"{CUBE}  s = Mul(x3, k)  i = Add(x, s)  a = Mul(i, c)  t = Tanh(a)  p = Add(t, one)"

ERF_SPELLINGS = {
    "x (1 + erf) times a half": f"{ERF}  m = Mul(x, p)  y = Mul(m, half)",
    "half on the left": f"{ERF}  m = Mul(p, x)  y = Mul(half, m)",
    "x/2 times the rest": f"{ERF}  h = Mul(x, half)  y = Mul(h, p)",
    "the rest times x/2": f"{ERF}  h = Mul(half, x)  y = Mul(p, h)",
    "half of the rest times x": f"{ERF}  h = Mul(p, half)  y = Mul(x, h)",
    "divided by two": f"{ERF}  m = Mul(x, p)  y = Div(m, two)",
    "x divided by two": f"{ERF}  h = Div(x, two)  y = Mul(h, p)",
    "inner factor as a product": f"d = Mul(x, inverse_root2)  e = Erf(d)  p = Add(one, e)  {END}",
    "inner factor in two steps": f"a = Div(x, two)  d = Mul(a, root2)  e = Erf(d)  p = Add(e, one)  {END}",
    "two signs that cancel": f"{ERF}  n = Neg(x)  m = Mul(n, p)  y = Mul(m, minus_half)",
}
TANH_SPELLINGS = {
    "x (1 + tanh) times a half": f"{TANH}  m = Mul(x, p)  y = Mul(m, half)",
    "x/2 times the rest": f"{TANH}  h = Mul(x, half)  y = Mul(h, p)",
    "half of the rest times x": f"{TANH}  h = Mul(half, p)  y = Mul(h, x)",
    "cube as a power": f"x3 = Pow(x, three)  s = Mul(k, x3)  i = Add(s, x)  a = Mul(c, i)  {TANH_END}",
    "factor in the cube": f"x2 = Mul(x, x)  s = Mul(x2, k)  s3 = Mul(s, x)  i = Add(x, s3)  a = Mul(i, c)  {TANH_END}",
    "cube divided": f"{CUBE}  s = Div(x3, inverse_k)  i = Add(x, s)  a = Mul(i, c)  {TANH_END}",
    "x factored out": f"x2 = Mul(x, x)  s = Mul(x2, k)  o = Add(s, one)  i = Mul(x, o)  a = Mul(i, c)  {TANH_END}",
    "x factored out, as Hugging Face writes it": "xc = Mul(x, c)  xk = Mul(k, x)  s = Mul(xk, x)  o = Add(one, s)"
    "  a = Mul(xc, o)  t = Tanh(a)  p = Add(one, t)  h = Mul(x, half)  y = Mul(h, p)",
    "x factored out, square as a power": f"x2 = Pow(x, two)  s = Mul(x2, k)  o = Add(one, s)  xc = Mul(x, c)"
    f"  a = Mul(xc, o)  {TANH_END}",
}


@pytest.mark.parametrize("body", ERF_SPELLINGS.values(), ids=ERF_SPELLINGS)
def test_every_order_and_nesting_of_the_erf_form(body: str) -> None:
    after = rewrites(model(body), FuseGelu(), applied=1, expect={"Gelu": 1})
    assert approximation(after) == "none"


@pytest.mark.parametrize("body", TANH_SPELLINGS.values(), ids=TANH_SPELLINGS)
def test_every_order_and_nesting_of_the_tanh_form(body: str) -> None:
    after = rewrites(model(body), FuseGelu(), applied=1, expect={"Gelu": 1})
    assert approximation(after) == "tanh"


@pytest.mark.parametrize("body", [*list(ERF_SPELLINGS.values())[:2], *list(TANH_SPELLINGS.values())[:1]])
def test_half_precision(body: str) -> None:
    # The intermediates of the formula are rounded to fp16, those of Gelu are not.
    rewrites(model(body, dtype="float16"), FuseGelu(), applied=1, expect={"Gelu": 1}, tolerance=2e-3)


def test_each_of_many_is_fused() -> None:
    body = f"{ERF}  m = Mul(x, p)  g = Mul(m, half)  r = Relu(g)"
    body += "  d2 = Div(r, root2)  e2 = Erf(d2)  p2 = Add(e2, one)  m2 = Mul(r, p2)  y = Mul(m2, half)"
    rewrites(model(body), FuseGelu(), applied=2, expect={"Gelu": 2, "Relu": 1})


def test_intermediates_that_are_read_elsewhere_stay() -> None:
    body = f"{ERF}  m = Mul(x, p)  g = Mul(m, half)  y = Add(g, e)"
    rewrites(model(body), FuseGelu(), applied=1, expect={"Gelu": 1, "Div": 1, "Erf": 1, "Add": 1})


def test_a_further_factor_stays_apart() -> None:
    body = f"{ERF}  m = Mul(x, p)  g = Mul(m, half)  y = Mul(g, three)"
    rewrites(model(body), FuseGelu(), applied=1, expect={"Gelu": 1, "Mul": 1})


@pytest.mark.parametrize("opset", [13, 19])
@pytest.mark.parametrize("form", [ERF, TANH], ids=["erf", "tanh"])
def test_an_opset_without_gelu_is_refused(opset: int, form: str) -> None:
    refuses(
        model(f"{form}  m = Mul(x, p)  y = Mul(m, half)", opset=opset),
        FuseGelu(),
        f"opset {opset} has no Gelu; opset 20",
    )


NO_GELU = {
    "wrong root of two": f"d = Div(x, root2_wrong)  e = Erf(d)  p = Add(e, one)  {END}",
    "root of two on the wrong side": f"d = Mul(x, root2)  e = Erf(d)  p = Add(e, one)  {END}",
    "wrong one": f"d = Div(x, root2)  e = Erf(d)  p = Add(e, one_wrong)  {END}",
    "minus one": f"d = Div(x, root2)  e = Erf(d)  p = Add(e, minus_one)  {END}",
    "one minus": f"d = Div(x, root2)  e = Erf(d)  p = Sub(one, e)  {END}",
    "wrong half": f"{ERF}  m = Mul(x, p)  y = Mul(m, half_wrong)",
    "wrong sign": f"{ERF}  m = Mul(x, p)  y = Mul(m, minus_half)",
    "one sign too many": f"{ERF}  n = Neg(x)  m = Mul(n, p)  y = Mul(m, half)",
    "no half": f"{ERF}  y = Mul(x, p)",
    "half divided by x": f"{ERF}  m = Mul(x, p)  y = Div(half, m)",
    "two different tensors": f"{ERF}  z = Relu(x)  m = Mul(z, p)  y = Mul(m, half)",
    "tanh without its polynomial": f"a = Mul(x, c)  t = Tanh(a)  p = Add(t, one)  {END}",
    "wrong cubic factor": TANH.replace("k)", "k_wrong)") + f"  {END}",
    "wrong outer factor": TANH.replace("c)", "c_wrong)") + f"  {END}",
    "a square in place of the cube": TANH.replace("Mul(x3, k)", "Mul(x2, k)") + f"  {END}",
    "the fourth power": f"x3 = Pow(x, four)  s = Mul(x3, k)  i = Add(x, s)  a = Mul(i, c)  {TANH_END}",
    "the cube of another": f"z = Abs(x)  x3 = Pow(z, three)  s = Mul(x3, k)  i = Add(x, s)  a = Mul(i, c)  {TANH_END}",
    "sigmoid approximation": "a = Mul(x, logistic)  s = Sigmoid(a)  y = Mul(x, s)",
}


@pytest.mark.parametrize("body", NO_GELU.values(), ids=NO_GELU)
def test_what_is_not_quite_gelu_is_left_alone(body: str) -> None:
    before = model(body)
    assert_equivalent(before, before)
    leaves_alone(before, FuseGelu())


def test_a_factor_for_each_channel_is_no_number() -> None:
    before = parse(
        "g (float[2, 3] x) => (float[2, 3] y) "
        "{ d = Div(x, root2)  e = Erf(d)  p = Add(e, one)  m = Mul(x, p)  y = Mul(m, halves) }",
        root2=np.array(math.sqrt(2), np.float32),
        one=np.array(1, np.float32),
        halves=np.full(3, 0.5, np.float32),
    )
    leaves_alone(before, FuseGelu())


@pytest.mark.parametrize("name", ["root2", "one", "half"])
def test_a_constant_that_adds_an_axis_is_not_swallowed(name: str) -> None:
    numbers = {key: np.array(NUMBERS[key], np.float32) for key in ("root2", "one", "half")}
    numbers[name] = numbers[name].reshape(1, 1, 1)
    text = f"g (float[2, 3] x) => (float[1, 2, 3] y) {{ {ERF}  m = Mul(x, p)  y = Mul(m, half) }}"
    before = parse(text, **numbers)
    assert_equivalent(before, FuseGelu()(before))


def test_ops_of_another_domain_are_not_taken_for_the_standard_ones() -> None:
    text = f"g (float[2] x) => (float[2] y) {{ d = Div(x, root2)  e = acme.Erf(d)  p = Add(e, one)  {END} }}"
    numbers = {key: np.array(NUMBERS[key], np.float32) for key in ("root2", "one", "half")}
    leaves_alone(parse(text, **numbers), FuseGelu())

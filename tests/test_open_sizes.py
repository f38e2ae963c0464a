"""What hangs on how an open size compares with a constant is right on both sides of the constant."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt.testing import parse
from tests.graphs import run

END = 2**63 - 1

# Every model answers with y, made of t [1, 1, height, 8] along its height h.
_READ = "y = Neg(s)"
_COUNT = "n = Shape<start = 2, end = 3>(s)  g = Cast<to = 1>(n)  m = ReduceMean<keepdims = 0>(t)  y = Add(g, m)"
_UP_TO = f"s = Slice(t, zero, e, axis)  {_READ}"
_UP_TO_COUNT = f"s = Slice(t, zero, e, axis)  {_COUNT}"
_FROM_COUNT = f"s = Slice(t, b, h, axis)  {_COUNT}"

#: Body, the constant k that heights are compared with, and further constants; the samples have heights 196 and 569.
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "the first of more": (f"s = Slice(t, zero, k, axis)  {_READ}", 700, {}),
    "the last of more": (f"s = Slice(t, minus, end, axis)  {_READ}", 700, {"minus": [-700], "end": [END]}),
    "the first": (f"s = Slice(t, zero, k, axis)  {_COUNT}", 128, {}),
    "the last": (f"s = Slice(t, minus, end, axis)  {_COUNT}", 128, {"minus": [-128], "end": [END]}),
    "all but the first": (f"s = Slice(t, k, end, axis)  {_COUNT}", 700, {"end": [END]}),
    "all but the last": (f"s = Slice(t, zero, minus, axis)  {_COUNT}", 700, {"minus": [-700]}),
    "backwards": (
        f"a = Slice(t, k, past, axis, back)  s = Slice(a, back, past, axis, back)  {_READ}",
        700,
        {"past": [-END], "back": [-1]},
    ),
    "one of so many": (f"s = Slice(t, zero, end, axis, k)  {_COUNT}", 600, {"end": [END]}),
    "Min": (f"e = Min(h, k)  {_UP_TO}", 700, {}),
    "Min of less": (f"e = Min(k, h)  {_UP_TO_COUNT}", 128, {}),
    "Clip": (f"i = Squeeze(h)  c = Clip(i, , most)  e = Unsqueeze(c, zero)  {_UP_TO}", 700, {"most": 700}),
    "Where": (f"l = Less(h, k)  e = Where(l, h, k)  {_UP_TO}", 700, {}),
    "ReduceMin": (f"c = Concat<axis = 0>(h, k)  e = ReduceMin<axes = [0]>(c)  {_UP_TO}", 700, {}),
    "Mod": (f"e = Mod(h, k)  {_UP_TO}", 700, {}),
    "Mod of the constant": (f"b = Mod(k, h)  s = Slice(t, b, h, axis)  {_READ}", 100, {}),
    "Abs": (f"d = Sub(h, k)  a = Abs(d)  e = Sub(k, a)  {_UP_TO}", 700, {}),
    "Relu": (f"d = Sub(h, k)  f = Cast<to = 1>(d)  r = Relu(f)  b = Cast<to = 7>(r)  {_FROM_COUNT}", 100, {}),
    "Max": (f"d = Sub(h, k)  b = Max(d, zero)  {_FROM_COUNT}", 100, {}),
    "a difference": (f"b = Sub(h, k)  {_FROM_COUNT}", 100, {}),
    "padding up to more": (
        f"d = Sub(k, h)  p = Max(d, zero)  q = Concat<axis = 0>(none, p, zero)  s = Pad(t, q)  {_COUNT}",
        700,
        {"none": [0] * 6},
    ),
    "padding up to less": (
        "d = Sub(k, h)  p = Max(d, zero)  q = Concat<axis = 0>(none, p, zero)  r = Pad(t, q)  "
        f"s = Slice(r, zero, h, axis)  {_READ}",
        100,
        {"none": [0] * 6},
    ),
    "Range": (
        f"i = Squeeze(h)  e = Min(i, most)  r = Range(from, e, by)  s = Gather<axis = 2>(t, r)  {_READ}",
        700,
        {"most": 700, "from": 0, "by": 1},
    ),
    "a Slice of a Range": (
        f"i = Squeeze(h)  r = Range(from, i, by)  c = Slice(r, zero, k)  s = Gather<axis = 2>(t, c)  {_READ}",
        700,
        {"from": 0, "by": 1},
    ),
}


def model_of(body: str, **constants: Any) -> onnx.ModelProto:
    text = f"g (float[1, 1, H, 8] x) => (y) {{ t = Tanh(x)  h = Shape<start = 2, end = 3>(t)  {body} }}"
    read = set(re.findall(r"\w+", text))
    return parse(text, opset=17, **{name: np.array(value) for name, value in constants.items() if name in read})


@pytest.mark.parametrize(("body", "constant", "others"), MODELS.values(), ids=MODELS)
def test_an_open_size_may_be_on_either_side_of_a_constant(body: str, constant: int, others: dict[str, Any]) -> None:
    original = model_of(body, zero=[0], axis=[2], k=[constant], **others)
    optimized = swinopt.optimize(original, target="portable", verify=False).model
    for height in (constant // 2, constant - 1, constant, constant + 1, 2 * constant + 3):
        x = np.random.default_rng(height).standard_normal((1, 1, height, 8)).astype(np.float32)
        (expected,), (actual,) = run(original, x), run(optimized, x)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=f"height {height}")

"""What hangs on how an open size compares with a constant is right on both sides of the constant."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt.sizes import default_sizes
from swinopt.testing import parse
from tests.graphs import Builder, constants_of, known, run

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
    return parse(text, opset=17, **constants_of(text, constants))


@pytest.mark.parametrize(("body", "constant", "others"), MODELS.values(), ids=MODELS)
def test_an_open_size_may_be_on_either_side_of_a_constant(body: str, constant: int, others: dict[str, Any]) -> None:
    original = model_of(body, zero=[0], axis=[2], k=[constant], **others)
    optimized = swinopt.optimize(original, target="portable", verify=False).model
    for height in (constant // 2, constant - 1, constant, constant + 1, 2 * constant + 3):
        x = np.random.default_rng(height).standard_normal((1, 1, height, 8)).astype(np.float32)
        (expected,), (actual,) = run(original, x), run(optimized, x)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=f"height {height}")


# ------------------------------------------------------------------------------------------------ what is known of them


def dims_of_a_part(first: int, last: int, step: int = 1, *, shape: str = "1, 2, H, W") -> tuple[int | None, ...] | None:
    """What is known of a Slice of an image along its height."""
    facts, tensors = known(
        parse(
            f"g (float[{shape}] x) => (y) {{ t = Tanh(x)  y = Slice(t, first, last, axis, step) }}",
            **{name: np.array([v]) for name, v in {"first": first, "last": last, "axis": 2, "step": step}.items()},
        )
    )
    return facts.dims(tensors["y"])


@pytest.mark.parametrize(
    ("first", "last", "step", "length"),
    [
        (0, END, 1, None),
        (3, END, 1, None),
        (0, -3, 1, None),
        (-1, -END, -1, None),
        (0, 3, 1, 3),
        (-3, END, 1, 3),
        (2, 8, 3, 2),
        (0, 32, 1, 32),
        (5, 3, 1, 0),
        (-1, 0, 1, 0),
    ],
)
def test_a_part_of_an_image_is_known_if_the_smallest_has_it_too(
    first: int, last: int, step: int, length: int | None
) -> None:
    assert dims_of_a_part(first, last, step) == (1, 2, length, None)


@pytest.mark.parametrize(
    ("first", "last", "step"),
    [
        (0, 33, 1),
        (-33, END, 1),
        (0, 700, 1),
        (-700, END, 1),
        (700, END, 1),
        (0, -700, 1),
        (0, END, 600),
        (33, -END, -1),
    ],
)
def test_a_part_that_smaller_or_larger_images_do_not_have_is_not_known(first: int, last: int, step: int) -> None:
    assert dims_of_a_part(first, last, step) is None


def test_a_part_of_images_that_are_a_multiple_of_a_window_is_known_if_the_smallest_of_them_has_it() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((1, 3, "height", "width")))
    sizes = [b.op("Div", b.op("Shape", x, start=axis, end=axis + 1), b.ints(224)) for axis in (2, 3)]
    tiled = b.op("Reshape", x, b.op("Concat", b.ints(1, 3), sizes[0], b.ints(224), sizes[1], b.ints(224), axis=0))
    part = b.op("Slice", x, b.ints(0), b.ints(200), b.ints(2))
    facts, tensors = known(
        b.model(b.op("Concat", b.reshape(tiled, -1), b.reshape(part, -1), axis=0), shapes={"y": ("n",)})
    )
    assert facts.dims(tensors[part]) == (1, 3, 200, None)


#: Of a height h all that comes out as it does for 196 and 569, and otherwise from more than 700 or less than 100 on.
UNSETTLED = {
    "Less": "c = Less(h, more)  y = Where(c, h, more)",
    "LessOrEqual": "c = LessOrEqual(h, more)  y = Where(c, h, more)",
    "Greater": "c = Greater(h, more)  y = Where(c, more, h)",
    "GreaterOrEqual": "c = GreaterOrEqual(h, more)  y = Where(c, more, h)",
    "Equal": "c = Equal(h, more)  y = Where(c, one, h)",
    "Min": "y = Min(h, more)",
    "Max": "y = Max(less, h)",
    "Clip": "i = Squeeze(h)  y = Clip(i, , most)",
    "Mod": "y = Mod(h, more)",
    "Abs": "d = Sub(more, h)  y = Abs(d)",
    "Sign": "d = Sub(h, less)  s = Sign(d)  y = Mul(s, h)",
    "Relu": "d = Sub(h, less)  f = Cast<to = 1>(d)  y = Relu(f)",
    "ReduceMin": "c = Concat<axis = 0>(h, more)  y = ReduceMin<axes = [0]>(c)",
    "ReduceMax": "c = Concat<axis = 0>(h, less)  y = ReduceMax<axes = [0]>(c)",
    "TopK": "c = Concat<axis = 0>(h, more)  y, i = TopK<largest = 0>(c, one)",
    "Range": "i = Squeeze(h)  y = Range(least, i, by)",
}


@pytest.mark.parametrize("body", UNSETTLED.values(), ids=UNSETTLED)
def test_what_hangs_on_an_open_size_and_a_constant_may_be_otherwise(body: str) -> None:
    numbers: dict[str, Any] = {"more": [700], "less": [100], "one": [1], "most": 700, "least": 100, "by": 1}
    text = f"g (float[1, 2, H, W] x) => (y) {{ h = Shape<start = 2, end = 3>(x)  {body} }}"
    facts, tensors = known(parse(text, opset=17, **constants_of(text, numbers)))
    assert facts.value(tensors["y"]) is None and not facts.is_shown_by_samples(tensors["y"])


def test_the_padding_to_a_multiple_is_known_though_no_sample_is_one() -> None:
    text = """g (float[1, 2, H, W] x) => (y) {
        h = Shape<start = 2, end = 3>(x)  r = Mod(h, eight)  d = Sub(eight, r)  y = Mod(d, eight) }"""
    facts, tensors = known(parse(text, opset=17, eight=np.array([8])), H=[196, 569], W=[196, 569])
    assert [facts.value(tensors["y"], sample).tolist() for sample in facts.samples] == [[4], [7]]


def test_what_is_not_known_of_a_number_is_known_of_what_is_multiplied_by_it() -> None:
    facts, tensors = known(
        parse(
            """g (float[1, 2, H, W] x) => (y) { h = Shape<start = 2, end = 3>(x)  n = Min(h, few)
               f = Cast<to = 1>(n)  t = Mul(x, f)  y = Slice(t, zero, three, axis) }""",
            **{"few": np.array([100]), "zero": np.array([0]), "three": np.array([3]), "axis": np.array([2])},
        )
    )
    assert facts.value(tensors["n"]) is None and facts.dims(tensors["y"]) == (1, 2, 3, None)


def test_a_part_that_is_not_known_makes_no_other_samples_better() -> None:
    text = "g (float[1, 2, H, W] x) => (y) { y = Slice(x, zero, most, axis) }"
    facts, tensors = known(parse(text, zero=np.array([0]), most=np.array([690]), axis=np.array([2])))
    assert facts.dims(tensors["y"]) is None and facts.sizes == default_sizes(facts.graph.inputs)[0]


def test_of_a_part_along_no_axis_nothing_is_known() -> None:
    body = "g (float[1, 2, H, W] x) => (y) { t = Tanh(x)  y = Slice(t, first, last, axis) }"
    facts, tensors = known(parse(body, first=np.array([0]), last=np.array([3]), axis=np.array([4])))
    assert facts.dims(tensors["y"]) is None


ROLL = "a = Slice(t, k, end, axis)  b = Slice(t, zero, k, axis)  y = Concat<axis = 2>(a, b)"
#: Of images of up to 40 pixels, neither part is as long as the Slices say.
NEAR_ROLLS = {
    "by more than there is": ROLL.replace("k,", "more,"),
    "joined along another axis": ROLL.replace("axis = 2", "axis = 3"),
    "with a third part": ROLL.replace("(a, b)", "(a, b, b)"),
    "of two tensors": ROLL.replace("b = Slice(t", "b = Slice(x"),
    "less a part": ROLL.replace("zero, k", "one, k"),
    "of which a part is read": ROLL + "  z = Relu(b)",
    "of which a part is measured": ROLL + "  z = Shape(b)",
}


def dims_of_a_roll(body: str, y: str = "y") -> tuple[int | None, ...] | None:
    """What is known of b, the first part of an image of open height."""
    text = f"g (float[1, 2, H, W] x) => ({y}) {{ t = Tanh(x)  {body} }}"
    numbers = {"k": [40], "more": [700], "end": [END], "axis": [2], "zero": [0], "one": [1]}
    facts, tensors = known(parse(text, **constants_of(text, numbers)))
    return facts.dims(tensors["b"])


@pytest.mark.parametrize("body", [ROLL, ROLL.replace("(a, b)", "(b, a)")], ids=["forth", "back"])
def test_the_parts_of_a_roll_are_known_though_a_small_image_has_less_of_them(body: str) -> None:
    assert dims_of_a_roll(body) == (1, 2, 40, None)


@pytest.mark.parametrize("body", NEAR_ROLLS.values(), ids=NEAR_ROLLS)
def test_the_parts_of_what_is_no_roll_are_not_known(body: str) -> None:
    assert dims_of_a_roll(body) is None


def test_a_part_of_a_roll_that_is_an_output_is_not_known() -> None:
    assert dims_of_a_roll(ROLL, "y, b") is None


def test_an_unknown_op_does_not_make_the_smallest_image_larger() -> None:
    assert dims_of_a_roll("z = elsewhere.Strange(x)  b = Slice(t, zero, k, axis)", "b, z") is None

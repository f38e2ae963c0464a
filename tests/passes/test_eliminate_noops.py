from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from swinopt.passes import EliminateNoops
from swinopt.testing import assert_equivalent, leaves_alone, parse, rewrites

CONSTANTS: dict[str, npt.NDArray[Any]] = {
    "zero": np.array(0, np.float32),
    "one": np.array(1, np.float32),
    "zero1": np.zeros(1, np.float32),
    "zeros4": np.zeros(4, np.float32),
    "ones4": np.ones((1, 1, 4), np.float32),
    "almost": np.array(1 + 1e-6, np.float32),
    "mixed": np.array([1, 1, 1, 2], np.float32),
    "row": np.zeros((2, 1), np.float32),
    "column": np.zeros((5, 1, 1, 1), np.float32),
    "izero": np.array(0, np.int64),
    "off": np.array(False),
    "on": np.array(True),
    "ratio": np.array(0.5, np.float32),
    "shape": np.array([2, 3, 4]),
    "copy": np.array([0, 0, 4]),
    "rest": np.array([0, -1, 4]),
    "other": np.array([3, 2, 4]),
    "c0": np.array([0]),
    "c1": np.array([1]),
    "c3": np.array([3]),
    "c2": np.array([2]),
    "c4": np.array([4]),
    "huge": np.array([2**63 - 1]),
    "minus1": np.array([-1]),
    "minus4": np.array([-4]),
    "minus5": np.array([-5]),
    "pads0": np.zeros(6, np.int64),
    "pads1": np.array([0, 0, 1, 0, 0, 0]),
    "pads_shift": np.array([0, 0, 1, 0, 0, -1]),
    "order": np.array([0, 1, 2, 3]),
    "reversed": np.array([3, 2, 1, 0]),
    "none": np.zeros(3, np.int64),
    "once": np.array([1, 1, 1]),
    "tiles": np.array([1, 1, 2]),
}


def model(body: str, x: str = "float[2, 3, 4]", y: str | None = None, opset: int = 20) -> onnx.ModelProto:
    """A model of a body that reads ``x`` and makes ``t``, which a Neg turns into the output ``y``."""
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return parse(
        f"g ({x} x) => ({y or x} y) {{ {body}  y = Neg(t) }}",
        opset=opset,
        **{name: value for name, value in CONSTANTS.items() if name in used},
    )


NOOPS = {
    "Identity": "t = Identity(x)",
    "several in a row": "a = Identity(x)  b = Add(a, zero)  c = Mul(b, one)  t = Reshape(c, shape)",
    "Dropout": "t = Dropout(x)",
    "Dropout with a ratio": "t = Dropout(x, ratio)",
    "Dropout outside of training": "t = Dropout(x, ratio, off)",
    "Dropout whose mask nobody reads": "t, mask = Dropout(x, ratio, off)",
    "Cast to the dtype that is there": "t = Cast<to = 1>(x)",
    "x + 0": "t = Add(x, zero)",
    "0 + x": "t = Add(zero, x)",
    "x + [0]": "t = Add(x, zero1)",
    "x + zeros for each channel": "t = Add(x, zeros4)",
    "x - 0": "t = Sub(x, zero)",
    "x * 1": "t = Mul(x, one)",
    "1 * x": "t = Mul(one, x)",
    "x * ones for each channel": "t = Mul(ones4, x)",
    "x / 1": "t = Div(x, one)",
    "x ** 1": "t = Pow(x, one)",
    "Reshape to the same shape": "t = Reshape(x, shape)",
    "Reshape that copies": "t = Reshape(x, copy)",
    "Reshape with a rest": "t = Reshape(x, rest)",
    "Transpose that keeps the order": "t = Transpose<perm = [0, 1, 2]>(x)",
    "Slice of everything": "t = Slice(x, c0, huge, c2, c1)",
    "Slice of everything without axes": "t = Slice(x, none, shape)",
    "Slice from minus the size": "t = Slice(x, minus4, c4, c2)",
    "Pad by nothing": "t = Pad(x, pads0)",
    "Pad by nothing with a value": "t = Pad(x, pads0, ratio)",
    "Concat of one": "t = Concat<axis = 1>(x)",
    "Split into one": "t = Split<axis = 1, num_outputs = 1>(x)",
    "Gather of everything": "t = Gather<axis = 2>(x, order)",
    "Expand to the same shape": "t = Expand(x, once)",
}


@pytest.mark.parametrize("body", NOOPS.values(), ids=NOOPS)
def test_what_changes_nothing_goes(body: str) -> None:
    rewrites(model(body), EliminateNoops(), expect={"Neg": 1}, tolerance=0)


@pytest.mark.parametrize(
    ("x", "body"),
    [
        pytest.param("float[6, 4]", "t = Flatten<axis = 1>(x)", id="Flatten of a matrix"),
        pytest.param("float[2, 1, 1, 3]", "t = Transpose<perm = [0, 2, 1, 3]>(x)", id="Transpose of sizes 1"),
        pytest.param("float[N, 3, 4]", "t = Reshape(x, rest)", id="Reshape of a dynamic batch"),
        pytest.param("float[N, 3, 4]", "t = Add(x, zero)", id="zero added to a dynamic batch"),
        pytest.param("float[N, 3, 4]", "t = Slice(x, c0, huge, c0)", id="Slice of a dynamic batch"),
        pytest.param("float16[2, 3]", "t = Cast<to = 10>(x)", id="Cast of half to half"),
        pytest.param("int64[2, 3]", "t = Add(x, izero)", id="zero of an integer"),
        pytest.param("float[2, 3, 4]", "s = Shape(x)  t = Reshape(x, s)", id="Reshape to its own shape"),
    ],
)
def test_what_changes_nothing_goes_for_other_inputs_too(x: str, body: str) -> None:
    rewrites(model(body, x), EliminateNoops(), applied=1, expect={"Neg": 1}, tolerance=0)


NEAR_MISSES = {
    "x + 1": "t = Add(x, one)",
    "0 - x": "t = Sub(zero, x)",
    "1 / x": "t = Div(one, x)",
    "1 ** x": "t = Pow(one, x)",
    "x * 0": "t = Mul(x, zero)",
    "x / almost 1": "t = Div(x, almost)",
    "x * mixed": "t = Mul(x, mixed)",
    "Dropout in training": "t = Dropout(x, ratio, on)",
    "Cast to a smaller dtype": "h = Cast<to = 10>(x)  t = Cast<to = 1>(h)",
    "Transpose": "a = Transpose<perm = [2, 1, 0]>(x)  b = Relu(a)  t = Transpose<perm = [2, 1, 0]>(b)",
    "Slice backwards": "t = Slice(x, minus1, minus5, c2, minus1)",
    "Gather backwards": "t = Gather<axis = 2>(x, reversed)",
    "Pad that moves": "t = Pad(x, pads_shift)",
    "Concat of two that are sliced": "a = Slice(x, c1, huge, c2)  b = Slice(x, c0, c1, c2)  t = Concat<axis = 2>(a, b)",
    "Relu": "t = Relu(x)",
}


@pytest.mark.parametrize("body", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_what_changes_something_stays(body: str) -> None:
    leaves_alone(model(body), EliminateNoops())


@pytest.mark.parametrize(
    ("x", "y", "body"),
    [
        pytest.param("float[2, 3, 4]", "float[5, 2, 3, 4]", "t = Add(x, column)", id="zeros that broadcast"),
        pytest.param("float[3, 1]", "float[1, 3, 4]", "t = Mul(x, ones4)", id="ones that broadcast"),
        pytest.param("float[4]", "float[1, 1, 4]", "t = Mul(x, ones4)", id="ones that add axes"),
        pytest.param("float[2, 3, 4]", "float[3, 2, 4]", "t = Reshape(x, other)", id="Reshape to another shape"),
        pytest.param("float[2, 3, 4]", "float[2, 3, 5]", "t = Pad(x, pads1)", id="Pad"),
        pytest.param("float[2, 3, 4]", "float[2, 3, 3]", "t = Slice(x, c1, c4, c2)", id="Slice from 1"),
        pytest.param("float[2, 3, 4]", "float[2, 3, 3]", "t = Slice(x, c0, c3, c2)", id="Slice up to 3"),
        pytest.param("float[2, 3, 4]", "float[2, 6, 4]", "t = Concat<axis = 1>(x, x)", id="Concat of two"),
        pytest.param("float[2, 3, 4]", "float[2, 3, 8]", "t = Tile(x, tiles)", id="Tile"),
        pytest.param("float[1, 3, 4]", "float[2, 3, 4]", "t = Expand(x, shape)", id="Expand"),
        pytest.param("float[N, 3, 4]", "float[M, 3, 4]", "t = Slice(x, c0, c2, c0)", id="Slice of a dynamic batch"),
        pytest.param("float[N, 4]", "float[N, 4]", "t = Add(x, row)", id="zeros that fix the batch"),
        pytest.param("int64[3]", "int32[3]", "t = Cast<to = 6>(x)", id="Cast of an integer"),
    ],
)
def test_what_changes_the_shape_or_dtype_stays(x: str, y: str, body: str) -> None:
    leaves_alone(model(body, x, y), EliminateNoops())


def test_a_mask_that_is_read_keeps_its_dropout() -> None:
    leaves_alone(
        parse("g (float[2] x) => (float[2] y, bool[2] z) { t, mask = Dropout(x)  y = Neg(t)  z = Not(mask) }"),
        EliminateNoops(),
    )


def test_a_mask_that_is_an_output_is_still_computed() -> None:
    before = parse("g (float[2] x) => (float[2] y, bool[2] mask) { t, mask = Dropout(x)  y = Neg(t) }")
    after = EliminateNoops()(before)
    assert_equivalent(before, after, tolerance=0)
    assert "Dropout" in [node.op_type for node in after.graph.node]


def test_a_bias_of_zeros_is_a_weight_and_stays() -> None:
    text = "g (float[2, 8] x) => (float[2, 8] y) { t = Neg(x)  s = Add(t, bias)  y = Exp(s) }"
    before = parse(text, bias=np.zeros(8, np.float32))
    leaves_alone(before, EliminateNoops())


@pytest.mark.parametrize("multiple", [2, 3, 4, 7, 8, 16])
def test_padding_and_crop_of_an_open_size_stay(multiple: int) -> None:
    before = parse(
        """g (float[1, 3, H, 8] x) => (float[1, 3, H, 8] y) {
            h = Shape<start = 2, end = 3>(x)  minus = Neg(h)  beyond = Mod(minus, multiple)
            pads = Concat<axis = 0>(none, beyond, last)  p = Pad(x, pads)  t = Neg(p)  y = Slice(t, first, h, two)
        }""",
        multiple=np.array([multiple]),
        none=np.zeros(6, np.int64),
        last=np.array([0]),
        first=np.array([0]),
        two=np.array([2]),
    )
    leaves_alone(before, EliminateNoops())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("g (float[2] x) => (float[2] y) { y = Identity(x) }", id="input to output"),
        pytest.param("g (float[2] x) => (float[2] y, float[2] z) { y = Neg(x)  z = Identity(y) }", id="output twice"),
        pytest.param(
            "g (float[2] x) => (float[2] y, float[2] k) { y = Neg(x)  k = Identity(w) }", id="constant to output"
        ),
    ],
)
def test_an_identity_that_the_outputs_need_stays(text: str) -> None:
    weights = {"w": np.ones(2, np.float32)} if "(w)" in text else {}
    before = parse(text, **weights)
    leaves_alone(before, EliminateNoops())
    assert_equivalent(before, EliminateNoops()(before), tolerance=0)


def test_the_output_of_the_graph_keeps_its_name() -> None:
    before = parse("g (float[2] x) => (float[2] y) { t = Neg(x)  y = Identity(t) }")
    after = rewrites(before, EliminateNoops(), applied=1, expect={"Neg": 1})
    assert after.graph.node[0].output == ["y"]


def test_an_output_that_is_read_inside_too() -> None:
    before = parse(
        "g (float[2] x) => (float[2] y, float[2] z) { t = Neg(x)  y = Identity(t)  s = Add(t, y)  z = Exp(s) }"
    )
    rewrites(before, EliminateNoops(), applied=1, expect={"Neg": 1, "Add": 1, "Exp": 1})


def test_two_outputs_of_one_tensor() -> None:
    before = parse("g (float[2] x) => (float[2] y, float[2] z) { t = Neg(x)  y = Identity(t)  z = Identity(t) }")
    rewrites(before, EliminateNoops(), applied=1, expect={"Neg": 1, "Identity": 1})


def test_a_tensor_that_a_branch_reads() -> None:
    before = parse(
        """g (float[2] x, bool[1] c) => (float[2] y) {
            n = Neg(x)  t = Identity(n)
            y = If(c) <then_branch = a () => (float[2] p) { p = Exp(t) },
                       else_branch = b () => (float[2] q) { q = Abs(t) }>
        }"""
    )
    rewrites(before, EliminateNoops(), applied=1, expect={"Neg": 1, "If": 1})


def test_a_chain_that_ends_in_the_input() -> None:
    before = parse("g (float[2] x) => (float[2] y) { a = Identity(x)  b = Identity(a)  y = Identity(b) }")
    rewrites(before, EliminateNoops(), applied=2, expect={"Identity": 1})


def test_nodes_of_other_domains_are_not_taken_for_the_standard_ones() -> None:
    leaves_alone(parse("g (float[2] x) => (float[2] y) { t = acme.Identity(x)  y = Neg(t) }"), EliminateNoops())

from __future__ import annotations

import onnx
import pytest

from swinopt import Pipeline
from swinopt.passes import FuseGelu, SpellOutGelu
from swinopt.testing import assert_equivalent, leaves_alone, parse, rewrites

ERF = {"Div": 1, "Erf": 1, "Add": 1, "Mul": 2}
TANH = {"Pow": 1, "Mul": 4, "Add": 2, "Tanh": 1}


def gelu(attributes: str = "", dtype: str = "float") -> onnx.ModelProto:
    return parse(f"g ({dtype}[N, 5] x) => ({dtype}[N, 5] y) {{ y = Gelu{attributes}(x) }}")


@pytest.mark.parametrize(
    ("attributes", "expect"),
    [("", ERF), ('<approximate = "none">', ERF), ('<approximate = "tanh">', TANH)],
    ids=["left out", "none", "tanh"],
)
def test_both_forms(attributes: str, expect: dict[str, int]) -> None:
    after = rewrites(gelu(attributes), SpellOutGelu(), applied=1, expect=expect)
    assert after.graph.output[0].name == "y"


@pytest.mark.parametrize("attributes", ["", '<approximate = "tanh">'])
def test_the_numbers_have_the_dtype_of_the_input(attributes: str) -> None:
    after = rewrites(gelu(attributes, "float16"), SpellOutGelu(), applied=1, tolerance=4e-3)
    assert {w.data_type for w in after.graph.initializer} == {onnx.TensorProto.FLOAT16}


def test_many_share_their_numbers() -> None:
    before = parse("g (float[2] x) => (float[2] y) { a = Gelu(x)  b = Gelu(a)  y = Gelu(b) }")
    after = rewrites(before, SpellOutGelu(), applied=3, expect={op: 3 * count for op, count in ERF.items()})
    assert len(after.graph.initializer) == 3


@pytest.mark.parametrize("attributes", ["", '<approximate = "tanh">'])
def test_fusing_again_gives_the_same_node_back(attributes: str) -> None:
    before = gelu(attributes)
    after = rewrites(before, Pipeline(SpellOutGelu(), FuseGelu()), applied=2, expect={"Gelu": 1})
    assert_equivalent(before, after, tolerance=0)


def test_the_result_needs_no_opset_that_has_gelu() -> None:
    after = SpellOutGelu()(gelu())
    after.opset_import[0].version = 17
    onnx.checker.check_model(after)
    assert_equivalent(gelu(), after)


def test_a_gelu_of_another_domain_is_left_alone() -> None:
    leaves_alone(parse("g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"), SpellOutGelu())

from __future__ import annotations

from itertools import permutations

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from swinopt import graph as graphs
from swinopt.facts import Facts
from swinopt.pattern import (
    Match,
    Pattern,
    constant,
    either,
    number,
    op,
    product,
    reduce_mean,
    reduced_axes,
    sqrt,
    square,
    var,
)
from swinopt.testing import parse

NUMBERS = {"two": 2.0, "three": 3.0, "six": 6.0, "half": 0.5, "one": 1.0, "zero": 0.0}


def match(pattern: Pattern, body: str, opset: int = 20, **weights: np.ndarray) -> Match | None:  # type: ignore[type-arg]
    """The pattern at the output of a body over the inputs a, b and c."""
    known = {name: np.array(value, np.float32) for name, value in NUMBERS.items() if name in body}
    inputs = "float[2, 4] a, float[2, 4] b, float[2, 4] c"
    model = parse(f"g ({inputs}) => (float[2, 4] y) {{ {body} }}", opset=opset, **known, **weights)
    graph = graphs.load(model)
    before = graphs.to_model(graph).SerializeToString(deterministic=True)
    found = pattern.match(graph.outputs[0], Facts(graph))
    assert graphs.to_model(graph).SerializeToString(deterministic=True) == before, "matching changed the graph"
    return found


def names(found: Match | None) -> dict[str, str] | None:
    return None if found is None else {k: t.name for k, t in found.bindings.items() if isinstance(k, str)}


x, z, w = var("x"), var("z"), var("w")


def test_sums_and_products_match_in_either_order() -> None:
    for body in ("n = Neg(b)  y = Add(a, n)", "n = Neg(b)  y = Add(n, a)"):
        assert names(match(x + op("Neg", z), body)) == {"x": "a", "z": "b"}
    for body in ("n = Neg(b)  y = Mul(a, n)", "n = Neg(b)  y = Mul(n, a)"):
        assert names(match(x * op("Neg", z), body)) == {"x": "a", "z": "b"}


def test_differences_and_quotients_match_in_their_own_order_only() -> None:
    assert match(x - op("Neg", z), "n = Neg(b)  y = Sub(a, n)")
    assert not match(x - op("Neg", z), "n = Neg(b)  y = Sub(n, a)")
    assert match(x / op("Neg", z), "n = Neg(b)  y = Div(a, n)")
    assert not match(x / op("Neg", z), "n = Neg(b)  y = Div(n, a)")


@pytest.mark.parametrize(
    "body", ["y = Div(a, b)", "r = Reciprocal(b)  y = Mul(a, r)", "r = Div(one, b)  y = Mul(r, a)"]
)
def test_a_quotient_may_be_a_product_with_a_reciprocal(body: str) -> None:
    assert (names(match(x / z, body)) or {})["x"] == "a"


def test_a_variable_is_the_same_tensor_wherever_it_occurs() -> None:
    assert match(x + op("Neg", x), "n = Neg(a)  y = Add(a, n)")
    assert not match(x + op("Neg", x), "n = Neg(b)  y = Add(a, n)")


def test_an_expression_is_the_same_tensor_wherever_it_occurs() -> None:
    centred = x - z
    assert match(centred * op("Exp", centred), "d = Sub(a, b)  e = Exp(d)  y = Mul(d, e)")
    assert not match(centred * op("Exp", centred), "d = Sub(a, b)  d2 = Sub(a, b)  e = Exp(d2)  y = Mul(d, e)")
    assert match(centred * op("Exp", x - z), "d = Sub(a, b)  d2 = Sub(a, b)  e = Exp(d2)  y = Mul(d, e)")


def test_backtracking_finds_the_order_in_which_all_fits() -> None:
    pattern = (x + z) * op("Neg", x)
    assert names(match(pattern, "s = Add(a, b)  n = Neg(b)  y = Mul(s, n)")) == {"x": "b", "z": "a"}
    assert names(match(pattern, "s = Add(a, b)  n = Neg(b)  y = Mul(n, s)")) == {"x": "b", "z": "a"}


def test_numbers_are_compared_to_the_precision_of_half() -> None:
    assert match(x * 2.0, "y = Mul(a, two)")
    assert match(x * 2.0, "y = Mul(k, a)", k=np.array([[2.0005]], np.float32))
    assert not match(x * 2.0, "y = Mul(a, k)", k=np.array(2.01, np.float32))
    assert not match(x * 2.0, "y = Mul(a, k)", k=np.full(4, 2, np.float32))
    assert not match(x * 2.0, "y = Mul(a, b)")
    assert match(x + 0.0, "y = Add(a, zero)")
    assert not match(x + 0.0, "y = Add(a, k)", k=np.array(1e-9, np.float32))


def test_a_number_with_a_name_can_be_read() -> None:
    found = match(x + number(name="epsilon"), "y = Add(k, a)", k=np.array([[0.25]], np.float32))
    assert found is not None and found.number("epsilon") == 0.25
    assert found["x"].name == "a" and found.get("nothing") is None


def test_constants_of_any_shape() -> None:
    found = match(x * constant("scale"), "y = Mul(k, a)", k=np.ones((1, 4), np.float32))
    assert found is not None and found["scale"].name == "k"
    assert not match(x * constant("scale"), "y = Mul(b, a)")


def test_ops_by_name_and_attribute_with_the_default_of_the_schema() -> None:
    assert match(op("Softmax", x, axis=-1), "y = Softmax(a)")
    assert match(op("Softmax", x, axis=1), "y = Softmax<axis = 1>(a)")
    assert not match(op("Softmax", x, axis=1), "y = Softmax(a)")
    assert match(op(("Relu", "Abs"), x), "y = Abs(a)")
    assert not match(op(("Relu", "Abs"), x), "y = Neg(a)")
    assert not match(op("Relu", x), "y = acme.Relu(a)")
    assert not match(op("Relu", x, no_such_attribute=1), "y = Relu(a)")


def test_inputs_are_counted() -> None:
    assert not match(op("Clip", x, z), "y = Clip(a)")
    assert not match(op("Clip", x), "y = Clip(a, zero)")
    assert match(op("Clip", x, further=1), "y = Clip(a, zero)")
    assert not match(op("Clip", x, further=1), "y = Clip(a, zero, two)")
    assert match(op("Clip", x), "y = Clip(a, , )")


def test_an_input_that_is_left_out_is_nothing_that_could_match() -> None:
    assert not match(op("Clip", x, z), "y = Clip(a, , two)")


def test_an_op_that_gives_several_outputs_matches_at_the_first() -> None:
    assert not match(op("Split", x), "s, y = Split<axis = 0, num_outputs = 2>(a)")


def test_the_first_alternative_that_fits() -> None:
    pattern = either(op("Neg", x) + z, x + z)
    assert names(match(pattern, "n = Neg(a)  y = Add(b, n)")) == {"x": "a", "z": "b"}
    assert names(match(pattern, "y = Add(a, b)")) == {"x": "a", "z": "b"}


def test_the_node_of_an_expression() -> None:
    inner = op("Neg", x)
    found = match(op("Exp", inner), "n = Neg(a)  y = Exp(n)")
    assert found is not None and found.node(inner).op == "Neg" and found.root.name == "y"


PRODUCTS = [
    "p = Mul({0}, {1})  q = Mul(p, {2})  y = Mul(q, six)",
    "p = Mul({0}, six)  q = Mul(p, {1})  y = Mul({2}, q)",
    "p = Mul({0}, {1})  q = Mul(six, {2})  y = Mul(p, q)",
    "p = Mul({0}, two)  q = Mul({1}, three)  r = Mul(p, {2})  y = Mul(r, q)",
    "p = Div({0}, half)  q = Mul(p, three)  r = Mul({1}, {2})  y = Mul(q, r)",
]


@pytest.mark.parametrize("body", PRODUCTS)
@pytest.mark.parametrize("order", list(permutations("abc")), ids="".join)
def test_a_product_matches_in_every_order_and_nesting(body: str, order: tuple[str, ...]) -> None:
    found = names(match(product(x, z, w, constant=6.0), body.format(*order)))
    assert found is not None and sorted(found.values()) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "body",
    [
        "p = Mul(a, b)  y = Mul(p, c)",  # no six
        "p = Mul(a, b)  q = Mul(p, c)  n = Neg(q)  y = Mul(n, six)",  # another sign
        "p = Mul(a, b)  q = Mul(p, six)  y = Div(q, c)",  # a quotient
        "p = Mul(a, b)  q = Mul(p, six)  y = Add(q, c)",  # a sum
        "p = Mul(a, b)  y = Mul(p, six)",  # a factor is missing
        "p = Mul(a, b)  q = Mul(p, c)  y = Div(six, q)",  # upside down
    ],
)
def test_what_is_another_product_does_not_match(body: str) -> None:
    assert not match(product(x, z, w, constant=6.0), body)


def test_signs_may_stand_anywhere_in_a_product() -> None:
    pattern = product(op("Exp", x), op("Abs", z), constant=6.0)
    assert match(pattern, "e = Exp(a)  n = Neg(e)  b1 = Abs(b)  m = Neg(b1)  p = Mul(n, m)  y = Mul(p, six)")
    assert match(pattern, "e = Exp(a)  b1 = Abs(b)  p = Mul(e, b1)  q = Mul(p, six)  n = Neg(q)  y = Neg(n)")
    assert not match(pattern, "e = Exp(a)  n = Neg(e)  b1 = Abs(b)  p = Mul(n, b1)  y = Mul(p, six)")


def test_a_factor_that_is_a_product_itself_stays_whole_where_it_has_to() -> None:
    pattern = product(x, op("Exp", x), constant=2.0)
    found = match(pattern, "m = Mul(a, b)  e = Exp(m)  p = Mul(m, e)  y = Mul(p, two)")
    assert found is not None and found["x"].name == "m"


def test_a_division_by_zero_is_no_factor() -> None:
    assert not match(product(x, constant=2.0), "y = Div(a, zero)")


def test_roots_and_squares() -> None:
    assert match(sqrt(x), "y = Sqrt(a)") and match(sqrt(x), "y = Pow(a, half)")
    assert not match(sqrt(x), "y = Pow(a, two)")
    assert match(square(x), "y = Pow(a, two)") and match(square(x), "y = Mul(a, a)")
    assert not match(square(x), "y = Mul(a, b)") and not match(square(x), "y = Pow(a, half)")


@pytest.mark.parametrize(
    ("body", "opset", "axes", "expected"),
    [
        ("y = ReduceMean<axes = [-1]>(a)", 17, None, (-1,)),
        ("y = ReduceMean<axes = [1, 0]>(a)", 17, None, (-2, -1)),
        ("y = ReduceMean(a, axes)", 18, [0], (-2,)),
        ("y = ReduceMean(a, axes)", 18, [-1, 0], (-2, -1)),
    ],
)
def test_axes_of_a_mean_as_attribute_and_as_input(
    body: str, opset: int, axes: list[int] | None, expected: tuple[int, ...]
) -> None:
    weights = {} if axes is None else {"axes": np.array(axes)}
    found = match(reduce_mean(x), body, opset, **weights)
    assert found is not None
    graph = graphs.load(parse(f"g (float[2, 4] a) => (float[M, K] y) {{ {body} }}", opset=opset, **weights))
    assert reduced_axes(graph.nodes[0], Facts(graph)) == expected


def test_a_mean_that_drops_its_axes_does_not_match() -> None:
    assert not match(reduce_mean(x), "y = ReduceMean<axes = [-1], keepdims = 0>(a)", 17)


def test_axes_that_are_not_known() -> None:
    text = "g (float[2, 4] a, int64[1] axes) => (float[M, K] y) { y = ReduceMean(a, axes) }"
    graph = graphs.load(parse(text))
    assert reduced_axes(graph.nodes[0], Facts(graph)) is None


def test_a_pattern_can_be_used_at_many_places() -> None:
    pattern = x + op("Neg", z)
    graph = graphs.load(
        parse("g (float[2] a, float[2] b) => (float[2] y) { n = Neg(b)  s = Add(a, n)  m = Neg(s)  y = Add(m, a) }")
    )
    facts = Facts(graph)
    found = [pattern.match(node.outputs[0], facts) for node in graph.nodes if isinstance(node, gs.Node)]
    assert [names(f) for f in found] == [None, {"x": "a", "z": "b"}, None, {"x": "a", "z": "s"}]


def test_chains_of_numbers_are_unfolded_once_and_not_in_every_order() -> None:
    chain = "  ".join(f"a{i + 1} = Mul(a{i}, c)  b{i + 1} = Mul(b{i}, c)" for i in range(12))
    model = parse(
        f"g (float[2] a0, float[2] b0) => (float[2] y) {{ {chain}  y = Mul(a12, b12) }}", c=np.array(2.0, np.float32)
    )
    graph = graphs.load(model)
    found = product(var("a"), var("b"), constant=2.0**24).match(graph.outputs[0], Facts(graph))
    assert found is not None
    assert {found["a"].name, found["b"].name} == {"a0", "b0"}

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from swinopt import graph as graphs
from swinopt.graph import Tensor
from swinopt.pattern import Match, number, op, var
from swinopt.rewrite import Rewriter, Rule, apply_rules, reshape_target
from swinopt.structure import fault, interface
from swinopt.testing import assert_equivalent, parse

W = np.array([1, 2, 3], np.float32)


def rewriter(text: str, **weights: np.ndarray) -> Rewriter:  # type: ignore[type-arg]
    return Rewriter(graphs.load(parse(text, **weights)))


def tensor(r: Rewriter, name: str) -> Tensor:
    every = [t for node in r.graph.nodes for t in (*node.inputs, *node.outputs)]
    return next(t for t in (*r.graph.inputs, *every) if t.name == name)


def finished(r: Rewriter) -> onnx.ModelProto:
    expected = interface(r.graph)
    r.finish()
    assert fault(r.graph, expected) is None
    return graphs.to_model(r.graph)


def ops(r: Rewriter) -> list[str]:
    return [node.op for node in r.graph.nodes]


CHAIN = "g (float[N, 3] x) => (float[N, 3] y) { a = Neg(x)  b = Exp(a)  c = Log(b)  y = Abs(c) }"


# ------------------------------------------------------------------------------------------------------------ making


def test_a_new_node_with_everything() -> None:
    r = rewriter(CHAIN)
    out = r.op("Clip", tensor(r, "a"), None, r.constant(2.0, np.float32), hint="mine")
    node = out.inputs[0]
    assert node.op == "Clip" and out.name == "mine" and node.attrs == {}
    assert [t.is_empty() for t in node.inputs] == [False, True, False]
    assert r.applied == 0


def test_inputs_that_are_left_out_at_the_end_are_not_written() -> None:
    r = rewriter(CHAIN)
    node = r.op("LayerNormalization", tensor(r, "a"), r.constant(W), None, axis=-1, epsilon=None).inputs[0]
    assert len(node.inputs) == 2 and node.attrs == {"axis": -1}


def test_several_outputs() -> None:
    r = rewriter(CHAIN)
    outputs = r.op("Split", tensor(r, "a"), count=3, axis=1, num_outputs=3)
    assert len(outputs) == 3 and len({t.name for t in outputs}) == 3
    assert all(t.inputs[0] is outputs[0].inputs[0] for t in outputs)


def test_names_are_never_given_twice() -> None:
    r = rewriter(CHAIN)
    made = [r.op("Neg", tensor(r, "x"), hint=hint) for hint in ("x", "y", "a", "new", "new", "new")]
    made.append(r.constant(W, hint="new"))
    known = ["x", "a", "b", "c", "y", *(t.name for t in made)]
    assert len(set(known)) == len(known)


def test_names_inside_of_bodies_are_not_given_again() -> None:
    r = rewriter(
        """g (float[2] x, bool[1] c) => (float[2] y) {
            y = If(c) <then_branch = a () => (float[2] t) { i = Exp(x)  t = Neg(i) },
                       else_branch = b () => (float[2] e) { e = Abs(x) }>
        }"""
    )
    assert not {r.op("Neg", tensor(r, "c"), hint=name).name for name in ("i", "t", "e")} & {"i", "t", "e"}


def test_equal_small_constants_are_shared() -> None:
    r = rewriter(CHAIN)
    assert r.constant(1.5, np.float32) is r.constant(np.float32(1.5))
    assert r.constant([1, 2], np.int64) is r.constant(np.array([1, 2]))
    different = [
        r.constant(1, np.float32),
        r.constant(1, np.float16),
        r.constant([1], np.float32),
        r.constant(1, np.int64),
    ]
    assert len({id(c) for c in different}) == 4
    assert r.constant(0.0, np.float32) is not r.constant(-0.0, np.float32)


def test_a_constant_is_a_copy() -> None:
    r = rewriter(CHAIN)
    array = W.copy()
    made = r.constant(array)
    array[:] = 0
    np.testing.assert_array_equal(made.values, W)


@pytest.mark.parametrize("value", [np.array(3.0), np.zeros((0, 2)), np.arange(6).reshape(2, 3).T])
def test_constants_keep_their_shape(value: np.ndarray) -> None:  # type: ignore[type-arg]
    made = rewriter(CHAIN).constant(value)
    assert tuple(made.shape) == value.shape
    np.testing.assert_array_equal(made.values, value)


def test_a_constant_of_the_dtype_of_a_tensor() -> None:
    r = rewriter("g (float16[2] x) => (float16[2] y) { y = Neg(x) }")
    assert r.float_constant(1, tensor(r, "x")).dtype == np.float16


# --------------------------------------------------------------------------------------------------------- replacing


def test_a_new_node_takes_the_name_of_what_it_stands_in_for() -> None:
    r = rewriter(CHAIN)
    r.replace(tensor(r, "c"), r.op("Identity", tensor(r, "a")))
    after = finished(r)
    assert r.applied == 1
    assert [(n.op_type, n.output[0]) for n in after.graph.node] == [("Neg", "a"), ("Identity", "c"), ("Abs", "y")]
    assert_equivalent(parse(CHAIN), after)


def test_an_existing_tensor_keeps_its_own_name() -> None:
    r = rewriter(CHAIN)
    r.replace(tensor(r, "c"), tensor(r, "a"))
    after = finished(r)
    assert [(n.op_type, n.input[0]) for n in after.graph.node] == [("Neg", "x"), ("Abs", "a")]
    assert_equivalent(parse(CHAIN), after)


def test_an_output_of_the_graph_keeps_its_name_whatever_stands_in() -> None:
    text = "g (float[2] x) => (float[2] y) { a = Neg(x)  b = Neg(a)  y = Neg(b) }"
    r = rewriter(text)
    r.replace(tensor(r, "y"), tensor(r, "a"))
    after = finished(r)
    assert [(n.op_type, n.output[0]) for n in after.graph.node] == [("Neg", "y")]
    assert_equivalent(parse(text), after)


def test_an_output_that_becomes_an_input_or_constant_needs_an_identity() -> None:
    text = "g (float[3] x) => (float[3] y) { a = Neg(x)  y = Neg(a) }"
    for name in ("x", "w"):
        r = rewriter(text)
        r.replace(tensor(r, "y"), tensor(r, "x") if name == "x" else r.constant(W))
        after = finished(r)
        assert [(n.op_type, n.output[0]) for n in after.graph.node] == [("Identity", "y")]


def test_an_output_that_becomes_another_output_needs_an_identity() -> None:
    text = "g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x)  y = Exp(a)  b = Neg(x)  z = Exp(b) }"
    r = rewriter(text)
    r.replace(tensor(r, "z"), tensor(r, "y"))
    after = finished(r)
    assert sorted(ops(r)) == ["Exp", "Identity", "Neg"]
    assert_equivalent(parse(text), after)


def test_all_readers_read_the_new_tensor() -> None:
    text = """g (float[2] x) => (float[2] y, float[2] z) {
        a = Neg(x)  b = Neg(a)  c = Add(b, b)  y = Mul(c, b)  z = Exp(b)
    }"""
    r = rewriter(text)
    r.replace(tensor(r, "b"), tensor(r, "x"))
    after = finished(r)
    assert ops(r) == ["Add", "Mul", "Exp"]
    assert_equivalent(parse(text), after)


def test_a_branch_reads_the_new_tensor_too() -> None:
    text = """g (float[2] x, bool[1] c) => (float[2] y) {
        a = Neg(x)  b = Neg(a)
        y = If(c) <then_branch = p () => (float[2] t) { t = Exp(b) }, else_branch = q () => (float[2] e) { e = Abs(b) }>
    }"""
    for new in ("input", "node"):
        r = rewriter(text)
        b = next(n for n in r.graph.nodes if n.outputs[0].name == "b").outputs[0]
        r.replace(b, r.graph.inputs[0] if new == "input" else r.op("Identity", r.graph.inputs[0]))
        assert_equivalent(parse(text), finished(r))


def test_what_nobody_reads_any_more_goes_and_what_others_read_stays() -> None:
    r = rewriter("g (float[2] x) => (float[2] y, float[2] z) { a = Neg(x)  b = Exp(a)  y = Log(b)  z = Abs(a) }")
    r.replace(tensor(r, "y"), r.op("Relu", tensor(r, "x")))
    finished(r)
    assert sorted(ops(r)) == ["Abs", "Neg", "Relu"]


def test_what_is_cut_off_is_not_seen_in_the_same_sweep() -> None:
    r = rewriter(CHAIN)
    r.replace(tensor(r, "c"), tensor(r, "a"))
    assert [n.op for n in r.nodes("Exp", "Log", "Neg", "Abs")] == ["Neg", "Abs"]


def test_replacing_a_tensor_by_itself_is_nothing() -> None:
    r = rewriter(CHAIN)
    r.replace(tensor(r, "c"), tensor(r, "c"))
    assert r.applied == 0 and len(finished(r).graph.node) == 4


SPLIT = """g (float[4] x) => (float[2] y, float[2] z) {
    a, b = Split<axis = 0, num_outputs = 2>(x)  y = Neg(a)  z = Exp(b)
}"""


@pytest.mark.parametrize("name", ["a", "b"])
def test_one_of_several_outputs(name: str) -> None:
    r = rewriter(SPLIT)
    start = 0 if name == "a" else 2
    r.replace(tensor(r, name), r.op("Slice", tensor(r, "x"), r.constant([start]), r.constant([start + 2])))
    assert_equivalent(parse(SPLIT), finished(r))
    assert sorted(ops(r)) == ["Exp", "Neg", "Slice", "Split"]


def test_all_of_several_outputs() -> None:
    r = rewriter(SPLIT)
    for start, name in enumerate("ab"):
        r.replace(tensor(r, name), r.op("Slice", tensor(r, "x"), r.constant([2 * start]), r.constant([2 * start + 2])))
    assert_equivalent(parse(SPLIT), finished(r))
    assert sorted(ops(r)) == ["Exp", "Neg", "Slice", "Slice"]


def test_folding_one_of_several_outputs() -> None:
    text = """g (float[2] x) => (float[2] y, float[2] z) {
        a, b = Split<axis = 0, num_outputs = 2>(w)  y = Add(x, a)  z = Add(x, b)
    }"""
    w = np.arange(4, dtype=np.float32)
    r = rewriter(text, w=w)
    r.fold(tensor(r, "a"), w[:2])
    assert_equivalent(parse(text, w=w), finished(r))


def test_folding_a_tensor() -> None:
    text = "g (float[3] x) => (float[3] y) { n = Neg(w)  e = Exp(n)  y = Add(x, e) }"
    r = rewriter(text, w=W)
    r.fold(tensor(r, "e"), np.exp(-W))
    after = finished(r)
    assert ops(r) == ["Add"] and after.graph.node[0].input == ["x", "e"]
    assert_equivalent(parse(text, w=W), after)


# ----------------------------------------------------------------------------------------------------------- keeping


def test_refusals_are_kept_once_each_with_the_name_of_the_place() -> None:
    r = rewriter(CHAIN)
    for _ in range(3):
        r.refuse(tensor(r, "b"), "too hot")
        r.refuse(r.graph.nodes[1], "too hot")
        r.refuse(r.graph.nodes[1], "too cold")
    assert [(f.node, f.reason) for f in r.refusals] == [("b", "too hot"), ("b", "too cold")]


def test_the_graph_is_sorted_and_otherwise_left_in_order() -> None:
    r = rewriter("g (float[2] x) => (float[2] y) { a = Neg(x)  b = Exp(x)  c = Abs(x)  d = Add(a, b)  y = Add(d, c) }")
    r.replace(tensor(r, "a"), r.op("Relu", tensor(r, "x")))
    finished(r)
    assert ops(r) == ["Exp", "Abs", "Relu", "Add", "Add"] or ops(r) == ["Relu", "Exp", "Add", "Abs", "Add"]
    before = ops(r)
    finished(r)
    assert ops(r) == before


def test_dead_nodes_go_in_chains() -> None:
    r = rewriter("g (float[2] x) => (float[2] y) { a = Neg(x)  b = Exp(a)  c = Log(b)  y = Abs(x) }")
    finished(r)
    assert ops(r) == ["Abs"]


def test_unused_inputs_of_the_graph_stay() -> None:
    r = rewriter("g (float[2] x, float[2] z) => (float[2] y) { y = Abs(x) }")
    assert [i.name for i in finished(r).graph.input] == ["x", "z"]


# ------------------------------------------------------------------------------------------------------------ reshape


@pytest.mark.parametrize(
    ("shapes", "wanted", "target"),
    [
        ([(2, 6)], [(3, 4)], [3, 4]),
        ([(2, 6), (5, 6)], [(2, 2, 3), (5, 2, 3)], [0, 2, 3]),
        ([(2, 6), (5, 6)], [(4, 3), (10, 3)], [-1, 3]),
        ([(2, 6, 4), (5, 6, 4)], [(12, 4), (30, 4)], [-1, 4]),
        ([(12, 4), (30, 4)], [(2, 6, 4), (5, 6, 4)], [-1, 6, 4]),
        ([(2, 8, 8, 3), (5, 16, 16, 3)], [(2, 64, 3), (5, 256, 3)], [0, -1, 3]),
        ([(2, 64, 3), (5, 256, 3)], [(2, 8, 8, 3), (5, 16, 16, 3)], None),
        ([(2,)], [()], []),
    ],
)
def test_what_a_reshape_has_to_say(
    shapes: list[tuple[int, ...]], wanted: list[tuple[int, ...]], target: list[int] | None
) -> None:
    assert reshape_target(shapes, wanted) == target


def test_a_reshape_to_the_shape_that_is_there_is_none() -> None:
    r = rewriter("g (float[N, 3] x) => (float[N, 3] y, float[3, N] z) { y = Neg(x)  z = Transpose(x) }")
    x = tensor(r, "x")
    assert r.reshape(x, tensor(r, "y")) is x
    assert len(r.graph.nodes) == 2
    made = r.reshape(x, tensor(r, "z"))
    assert made is not None and r.facts.shapes(made) == r.facts.shapes(tensor(r, "z"))


def test_a_reshape_of_an_unknown_shape_is_refused() -> None:
    r = rewriter("g (float[N, 3] x) => (float[N, 3] y) { z = acme.Thing(x)  y = acme.Thing(z) }")
    assert r.reshape(tensor(r, "z"), tensor(r, "x")) is None


# -------------------------------------------------------------------------------------------------------------- rules

_x = var("x")


def test_a_rule_applies_under_its_conditions_and_else_says_why() -> None:
    def positive(match: Match, r: Rewriter) -> str | None:
        return None if match.number("k") > 0 else f"k is {match.number('k')}"

    def small(match: Match, r: Rewriter) -> str | None:
        return None if match.number("k") < 10 else "k is large"

    rule = Rule(
        op("Relu", _x * number(name="k")), lambda m, r: r.op("Mul", r.op("Relu", m["x"]), m["k"]), (positive, small)
    )
    text = (
        "g (float[3] x) => (float[3] y, float[3] z, float[3] u)"
        " { a = Mul(x, p)  y = Relu(a)  b = Mul(x, n)  z = Relu(b)  c = Mul(x, q)  u = Relu(c) }"
    )
    weights = {"p": np.float32(2), "n": np.float32(-2), "q": np.float32(20)}
    r = rewriter(text, **{key: np.array(value) for key, value in weights.items()})
    apply_rules([rule], r)
    after = finished(r)
    assert r.applied == 1
    assert {(f.node, f.reason) for f in r.refusals} == {("z", "k is -2.0"), ("u", "k is large")}
    assert_equivalent(parse(text, **{key: np.array(value) for key, value in weights.items()}), after)


def test_rules_are_applied_until_none_fits() -> None:
    rule = Rule(op("Neg", op("Neg", _x)), lambda m, r: m["x"])
    body = "  ".join(f"a{i + 1} = Neg(a{i})" for i in range(9))
    text = f"g (float[2] a0) => (float[2] y) {{ {body}  y = Abs(a9) }}"
    r = rewriter(text)
    apply_rules([rule], r)
    assert_equivalent(parse(text), finished(r))
    assert ops(r) == ["Neg", "Abs"] and r.applied == 4


def test_the_earlier_rule_comes_first() -> None:
    rules = [
        Rule(op("Neg", _x), lambda m, r: r.op("Relu", m["x"])),
        Rule(op("Neg", _x), lambda m, r: r.op("Abs", m["x"])),
    ]
    r = rewriter("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    apply_rules(rules, r)
    finished(r)
    assert ops(r) == ["Relu"]


def test_rules_that_undo_each_other_come_to_an_end() -> None:
    rules = [
        Rule(op("Neg", _x), lambda m, r: r.op("Abs", m["x"])),
        Rule(op("Abs", _x), lambda m, r: r.op("Neg", m["x"])),
    ]
    r = rewriter("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    apply_rules(rules, r)
    finished(r)
    assert len(ops(r)) == 1


def test_a_replacement_that_gives_nothing_is_no_application() -> None:
    r = rewriter(CHAIN)
    apply_rules([Rule(op("Neg", _x), lambda m, r: None)], r)
    assert r.applied == 0 and len(finished(r).graph.node) == 4


def test_a_replacement_of_another_shape_is_refused() -> None:
    r = rewriter("g (float[2, 3] x) => (float[2, 3] y) { a = Neg(x)  y = Abs(a) }")
    apply_rules([Rule(op("Neg", _x), lambda m, r: r.op("Transpose", m["x"], perm=[1, 0]))], r)
    assert r.applied == 0 and ops(r)[:2] == ["Neg", "Abs"]
    assert "shape [3, 2] instead of [2, 3]" in r.refusals[0].reason
    assert len(finished(r).graph.node) == 2


def test_a_pattern_that_ends_at_a_later_output_is_not_found() -> None:
    r = rewriter("g (float[4] x) => (float[2] y) { a, b = Split<axis = 0, num_outputs = 2>(x)  y = Neg(b) }")
    apply_rules([Rule(op("Split", _x), lambda m, r: m["x"])], r)
    assert isinstance(r.graph, gs.Graph)
    assert r.applied == 0

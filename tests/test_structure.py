from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from swinopt import graph as graphs
from swinopt.structure import fault, interface
from swinopt.testing import parse

TEXT = "g (float[2, 3] x) => (float[2, 3] y) { m = Mul(x, w)  t = Tanh(m)  s = Softmax<axis = -1>(t)  y = Add(s, x) }"


def sound() -> gs.Graph:
    return graphs.load(parse(TEXT, w=np.ones(3, np.float32)))


def test_a_sound_graph_has_no_fault() -> None:
    graph = sound()
    assert fault(graph, interface(graph)) is None


def test_the_interface_is_names_dtypes_and_shapes() -> None:
    graph = graphs.load(parse("g (float[N, 3] x, int64[2] i) => (float16[2] y) { y = acme.Thing(x, i) }"))
    assert interface(graph) == (
        (("x", np.float32, ("N", 3)), ("i", np.int64, (2,))),
        (("y", np.float16, (2,)),),
    )


def remove_producer(graph: gs.Graph) -> None:
    graph.nodes.remove(next(n for n in graph.nodes if n.op == "Tanh"))


def swap(graph: gs.Graph) -> None:
    graph.nodes.insert(0, graph.nodes.pop(2))


def make_twice(graph: gs.Graph) -> None:
    graph.nodes.append(gs.Node("Relu", inputs=[graph.inputs[0]], outputs=[gs.Variable("t")]))


def make_an_input(graph: gs.Graph) -> None:
    graph.nodes.append(gs.Node("Relu", inputs=[graph.nodes[0].outputs[0]], outputs=[gs.Variable("x")]))


def detach_output(graph: gs.Graph) -> None:
    graph.nodes[-1].outputs[0] = gs.Variable("z")


def rename_output(graph: gs.Graph) -> None:
    graph.outputs[0].name = "z"


def rename_input(graph: gs.Graph) -> None:
    graph.inputs[0].name = "z"


def reshape_output(graph: gs.Graph) -> None:
    graph.outputs[0].shape = (3, 2)


def recast_output(graph: gs.Graph) -> None:
    graph.outputs[0].dtype = np.float16


def drop_output(graph: gs.Graph) -> None:
    graph.outputs.clear()


def add_input(graph: gs.Graph) -> None:
    graph.inputs.append(gs.Variable("more", np.float32, (1,)))


def no_such_op(graph: gs.Graph) -> None:
    graph.nodes[1].op = "Tangens"


def too_many_inputs(graph: gs.Graph) -> None:
    graph.nodes[1].inputs.append(graph.inputs[0])


def no_such_attribute(graph: gs.Graph) -> None:
    graph.nodes[2].attrs["axes"] = [1]


def wrong_attribute(graph: gs.Graph) -> None:
    graph.nodes[2].attrs["axis"] = "last"


def op_of_a_newer_opset(graph: gs.Graph) -> None:
    graph.nodes[1].op = "Gelu"
    graph.opset = 19


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (remove_producer, r"Softmax '.*' reads 't', which nothing before it makes"),
        (swap, r"Softmax '.*' reads 't', which nothing before it makes"),
        (make_twice, "'t' is made twice"),
        (make_an_input, "'x' is made twice"),
        (detach_output, "nothing makes the output 'y'"),
        (rename_output, "its inputs and outputs were"),
        (rename_input, "its inputs and outputs were"),
        (reshape_output, "its inputs and outputs were"),
        (recast_output, "its inputs and outputs were"),
        (drop_output, "its inputs and outputs were"),
        (add_input, "its inputs and outputs were"),
        (no_such_op, "Tangens"),
        (too_many_inputs, "input"),
        (no_such_attribute, "axes"),
        (wrong_attribute, "axis"),
        (op_of_a_newer_opset, "Gelu"),
    ],
)
def test_what_is_broken_is_named(damage: Callable[[gs.Graph], None], complaint: str) -> None:
    graph = sound()
    expected = interface(graph)
    damage(graph)
    found = fault(graph, expected)
    assert found is not None and re.search(complaint, found), found


def test_ops_of_other_domains_are_taken_on_trust() -> None:
    graph = graphs.load(parse("g (float[2] x) => (float[2] y) { t = acme.Thing<level = 3>(x)  y = Neg(t) }"))
    assert fault(graph, interface(graph)) is None


def branching() -> gs.Graph:
    return graphs.load(
        parse(
            """g (float[2] x, bool[1] c) => (float[2] y) {
                n = Neg(x)
                y = If(c) <then_branch = a () => (float[2] t) { t = Add(n, x) },
                           else_branch = b () => (float[2] e) { e = Abs(x) }>
            }"""
        )
    )


def test_a_graph_with_branches_that_read_what_is_around_them_is_sound() -> None:
    graph = branching()
    assert fault(graph, interface(graph)) is None


def test_a_branch_that_reads_what_nothing_makes() -> None:
    graph = branching()
    expected = interface(graph)
    graph.nodes.pop(0)
    assert fault(graph, expected) is not None


def test_a_broken_node_beside_a_branch() -> None:
    graph = branching()
    expected = interface(graph)
    graph.nodes[0].op = "Nega"
    assert fault(graph, expected) is not None

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

from swinopt import graph as graphs
from swinopt.passes import ALL
from swinopt.rewrite import Rewriter
from swinopt.snapshot import Snapshot
from swinopt.testing import parse
from tests.graphs import Builder, swin_attention

W = np.arange(6, dtype=np.float32).reshape(2, 3)


def model() -> onnx.ModelProto:
    """A bit of everything: weights, several outputs, attributes of all kinds, optional inputs, a branch in a branch."""
    return parse(
        """g (float[2, 3] x, bool c, float[1] unused) => (float[3, 2] y, float[2, 3] z) {
            a = Add(x, w)
            p, q = Split<axis = 0, num_outputs = 2>(a)
            j = Concat<axis = 0>(q, p)
            m = Clip(j, , top)
            t = Transpose<perm = [1, 0]>(m)
            y = Abs(t)
            f = Neg(w)
            z = If(c) <
                then_branch = then () => (float[2, 3] o) { h = Mul(a, w)  o = Relu(h) },
                else_branch = else () => (float[2, 3] o) {
                    k = Neg(a)
                    o = If(c) <
                        then_branch = deep () => (float[2, 3] r) { r = Sub(k, f) },
                        else_branch = flat () => (float[2, 3] r) { r = Identity(j) }
                    >
                }
            >
        }""",
        w=W,
        top=np.array(4, np.float32),
    )


def node(graph: gs.Graph, op: str) -> gs.Node:
    return next(n for n in graph.nodes if n.op == op)


def body(graph: gs.Graph, name: str = "then_branch") -> gs.Graph:
    return node(graph, "If").attrs[name]


def written(graph: gs.Graph) -> bytes:
    return graphs.to_model(graph).SerializeToString(deterministic=True)


def edges(graph: gs.Graph) -> list[tuple[int, list[int], list[int]]]:
    """Which nodes make and read each tensor, as the tensors themselves see it."""
    nodes = [*graph.nodes, *graphs.subgraph_nodes(graph)]
    tensors = {id(t): t for n in nodes for t in (*n.inputs, *n.outputs)}
    return [(key, [id(n) for n in t.inputs], sorted(id(n) for n in t.outputs)) for key, t in tensors.items()]


# ------------------------------------------------------------------------------------------------- what a pass can do


def remove_nodes(graph: gs.Graph) -> None:
    del graph.nodes[2:]


def add_nodes(graph: gs.Graph) -> None:
    x = graph.inputs[0]
    for i in range(3):
        out = gs.Variable(f"new{i}")
        graph.nodes.append(gs.Node("Exp", name=f"new{i}", inputs=[x], outputs=[out]))
        x = out
    node(graph, "Add").inputs[0] = x


def put_a_node_into_an_edge(graph: gs.Graph) -> None:
    transpose = node(graph, "Transpose")
    out = gs.Variable("between")
    graph.nodes.append(gs.Node("Exp", inputs=[transpose.inputs[0]], outputs=[out]))
    transpose.inputs[0] = out


def reverse_the_order(graph: gs.Graph) -> None:
    graph.nodes.reverse()


def swap_nodes_for_a_new_list(graph: gs.Graph) -> None:
    graph.nodes = list(reversed(graph.nodes))[:3]


def swap_inputs(graph: gs.Graph) -> None:
    inputs = node(graph, "Concat").inputs
    inputs[0], inputs[1] = inputs[1], inputs[0]


def drop_inputs(graph: gs.Graph) -> None:
    node(graph, "Add").inputs.clear()
    node(graph, "Clip").inputs.pop()


def drop_outputs(graph: gs.Graph) -> None:
    node(graph, "Split").outputs.clear()
    node(graph, "Transpose").outputs.clear()


def swap_outputs(graph: gs.Graph) -> None:
    outputs = list(node(graph, "Split").outputs)
    node(graph, "Split").outputs.clear()
    node(graph, "Split").outputs.extend(outputs[::-1])


def leave_an_edge_that_only_one_end_knows(graph: gs.Graph) -> None:
    """What onnx_graphsurgeon makes of an iterator: the list has the tensors, and the tensors do not have the node."""
    x = graph.inputs[0]
    node(graph, "Add").inputs.extend(t for t in [x, x])


def change_op_name_and_domain(graph: gs.Graph) -> None:
    abs_ = node(graph, "Abs")
    abs_.op, abs_.name, abs_.domain = "Special", "other", "elsewhere"


def replace_an_attribute(graph: gs.Graph) -> None:
    node(graph, "Concat").attrs["axis"] = 1
    node(graph, "Transpose").attrs["perm"] = [0, 1]


def add_and_remove_attributes(graph: gs.Graph) -> None:
    node(graph, "Abs").attrs["alpha"] = 1.0
    del node(graph, "Transpose").attrs["perm"]


def replace_all_attributes(graph: gs.Graph) -> None:
    node(graph, "Split").attrs = {"axis": 1}


def write_into_an_attribute(graph: gs.Graph) -> None:
    node(graph, "Transpose").attrs["perm"].reverse()


def rename_tensors(graph: gs.Graph) -> None:
    for n in graph.nodes:
        for t in n.outputs:
            t.name += "/renamed"


def rename_inputs_and_weights(graph: gs.Graph) -> None:
    for t in (*graph.inputs, *node(graph, "Add").inputs):
        t.name += "/renamed"


def give_tensors_other_shapes_and_dtypes(graph: gs.Graph) -> None:
    for t in (*graph.inputs, *graph.outputs, *(t for n in graph.nodes for t in n.outputs)):
        t.shape, t.dtype = [7], np.int64


def write_into_a_shape(graph: gs.Graph) -> None:
    graph.inputs[0].shape[0] = 7
    graph.outputs[0].shape.append(7)


def fold_to_a_constant(graph: gs.Graph) -> None:
    node(graph, "Neg").outputs[0].inputs.clear()
    tensor = next(t for n in graphs.subgraph_nodes(graph) for t in n.inputs if t.name == "f")
    tensor.to_constant(-W)


def turn_an_output_into_a_constant(graph: gs.Graph) -> None:
    graph.outputs[0].inputs.clear()
    graph.outputs[0].to_constant(W.T)


def turn_a_constant_into_a_variable(graph: gs.Graph) -> None:
    node(graph, "Add").inputs[1].to_variable(np.float32, [2, 3])


def give_a_weight_other_values(graph: gs.Graph) -> None:
    node(graph, "Add").inputs[1].values = W + 1


def rewire_the_outputs(graph: gs.Graph) -> None:
    graph.outputs[0] = node(graph, "Transpose").outputs[0]
    graph.outputs.append(node(graph, "Concat").outputs[0])


def rewire_the_inputs(graph: gs.Graph) -> None:
    graph.inputs = [gs.Variable("other", np.float32, [2, 3])]
    node(graph, "Add").inputs[0] = graph.inputs[0]


def exchange_the_lists_of_inputs_and_outputs(graph: gs.Graph) -> None:
    graph.inputs, graph.outputs = list(graph.inputs[:1]), list(reversed(graph.outputs))


def rewire_inside_a_branch(graph: gs.Graph) -> None:
    mul = node(body(graph), "Mul")
    mul.inputs[0], mul.inputs[1] = graph.inputs[0], node(graph, "Concat").outputs[0]
    mul.op = "Sub"


def rewire_inside_a_branch_of_a_branch(graph: gs.Graph) -> None:
    deep = body(body(graph, "else_branch"))
    node(deep, "Sub").inputs[0] = graph.inputs[0]
    node(deep, "Sub").attrs["axis"] = 3


def rename_inside_a_branch(graph: gs.Graph) -> None:
    for n in graphs.subgraph_nodes(graph):
        n.name += "/renamed"
        n.outputs[0].name += "/renamed"


def remove_a_node_inside_a_branch(graph: gs.Graph) -> None:
    branch = body(graph)
    relu = node(branch, "Relu")
    branch.nodes.remove(relu)
    relu.inputs.clear()


def add_a_node_inside_a_branch(graph: gs.Graph) -> None:
    branch = body(graph)
    out = gs.Variable("inner")
    branch.nodes.insert(0, gs.Node("Exp", name="inner", inputs=[graph.inputs[0]], outputs=[out]))
    node(branch, "Mul").inputs[0] = out


def rewire_the_output_of_a_branch(graph: gs.Graph) -> None:
    branch = body(graph)
    branch.outputs[0] = node(branch, "Mul").outputs[0]


def exchange_the_branches(graph: gs.Graph) -> None:
    attrs = node(graph, "If").attrs
    attrs["then_branch"], attrs["else_branch"] = attrs["else_branch"], attrs["then_branch"]


def remove_the_branches(graph: gs.Graph) -> None:
    if_ = node(graph, "If")
    graph.nodes.remove(if_)
    if_.inputs.clear()
    if_.outputs.clear()
    for n in graphs.subgraph_nodes(graph):
        n.inputs.clear()


def raise_the_opset(graph: gs.Graph) -> None:
    graph.opset = 22
    graph.name = "other"


def import_a_domain(graph: gs.Graph) -> None:
    graph.import_domains = [*(graph.import_domains or ()), onnx.helper.make_opsetid("elsewhere", 3)]


def everything_goes(graph: gs.Graph) -> None:
    for n in [*graphs.subgraph_nodes(graph), *graph.nodes]:
        n.inputs.clear()
        n.outputs.clear()
    graph.nodes.clear()
    graph.inputs.clear()
    graph.outputs.clear()


CHANGES: list[Callable[[gs.Graph], None]] = [
    remove_nodes,
    add_nodes,
    put_a_node_into_an_edge,
    reverse_the_order,
    swap_nodes_for_a_new_list,
    swap_inputs,
    drop_inputs,
    drop_outputs,
    swap_outputs,
    leave_an_edge_that_only_one_end_knows,
    change_op_name_and_domain,
    replace_an_attribute,
    add_and_remove_attributes,
    replace_all_attributes,
    write_into_an_attribute,
    rename_tensors,
    rename_inputs_and_weights,
    give_tensors_other_shapes_and_dtypes,
    write_into_a_shape,
    fold_to_a_constant,
    turn_an_output_into_a_constant,
    turn_a_constant_into_a_variable,
    give_a_weight_other_values,
    rewire_the_outputs,
    rewire_the_inputs,
    exchange_the_lists_of_inputs_and_outputs,
    rewire_inside_a_branch,
    rewire_inside_a_branch_of_a_branch,
    rename_inside_a_branch,
    remove_a_node_inside_a_branch,
    add_a_node_inside_a_branch,
    rewire_the_output_of_a_branch,
    exchange_the_branches,
    remove_the_branches,
    raise_the_opset,
    import_a_domain,
    everything_goes,
]


def seen(graph: gs.Graph) -> tuple[Any, ...]:
    """What can be told of a graph without writing it, which a half-destroyed one does not allow."""
    nodes = [*graph.nodes, *graphs.subgraph_nodes(graph)]
    return (
        [(n.name, n.op, n.domain, [t.name for t in n.inputs], [t.name for t in n.outputs]) for n in nodes],
        [{k: v.name if isinstance(v, gs.Graph) else str(v) for k, v in n.attrs.items()} for n in nodes],
        [(type(t).__name__, t.name, str(t.shape), str(t.dtype)) for n in nodes for t in (*n.inputs, *n.outputs)],
        [str(graphs.literal(t)) for n in nodes for t in n.inputs if isinstance(t, gs.Constant)],
        [[(t.name, str(t.shape)) for t in side] for side in (graph.inputs, graph.outputs)],
        [[t.name for t in inner.outputs] for inner in graph.subgraphs(recursive=True)],
        (graph.opset, graph.name, str(graph.import_domains)),
    )


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_a_pass_does_is_undone(change: Callable[[gs.Graph], None]) -> None:
    graph = graphs.load(model())
    before, edges_before, seen_before = written(graph), edges(graph), seen(graph)
    nodes = list(graph.nodes)
    snapshot = Snapshot(graph)
    change(graph)
    assert seen(graph) != seen_before, "the change is one"
    snapshot.restore()
    assert seen(graph) == seen_before
    assert edges(graph) == edges_before
    assert written(graph) == before
    assert all(new is old for new, old in zip(graph.nodes, nodes, strict=True))


def test_all_changes_at_once_are_undone() -> None:
    graph = graphs.load(model())
    before = written(graph)
    snapshot = Snapshot(graph)
    for change in (add_nodes, fold_to_a_constant, rewire_inside_a_branch, rename_tensors, rewire_the_outputs):
        change(graph)
    snapshot.restore()
    assert written(graph) == before


def test_restoring_what_was_not_changed_changes_nothing() -> None:
    graph = graphs.load(model())
    before, edges_before = written(graph), edges(graph)
    Snapshot(graph).restore()
    assert written(graph) == before and edges(graph) == edges_before


def test_a_restored_graph_can_be_changed_and_restored_once_more() -> None:
    graph = graphs.load(model())
    before = written(graph)
    for change in (remove_nodes, fold_to_a_constant, replace_an_attribute, everything_goes):
        snapshot = Snapshot(graph)
        change(graph)
        snapshot.restore()
        assert written(graph) == before


def test_one_snapshot_restores_as_often_as_one_likes() -> None:
    graph = graphs.load(model())
    before = written(graph)
    snapshot = Snapshot(graph)
    for change in (add_nodes, remove_nodes, replace_an_attribute, add_and_remove_attributes, rewire_the_outputs):
        change(graph)
        snapshot.restore()
        assert written(graph) == before, change.__name__


def test_new_nodes_leave_no_trace_on_the_tensors_that_they_read() -> None:
    graph = graphs.load(model())
    snapshot = Snapshot(graph)
    x = graph.inputs[0]
    readers = list(x.outputs)
    stray = gs.Node("Exp", inputs=[x], outputs=[gs.Variable("stray")])  # never put into the graph
    assert stray in x.outputs
    snapshot.restore()
    assert len(x.outputs) == len(readers) and all(a is b for a, b in zip(x.outputs, readers, strict=True))


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_every_pass_of_the_library_is_undone(kind: Any) -> None:
    graph = graphs.load(swin_attention(2, (3, 5), (2, 2), (1, 1), opset=20))
    before, edges_before = written(graph), edges(graph)
    snapshot = Snapshot(graph)
    rewriter = Rewriter(graph)
    kind().run(rewriter)
    rewriter.finish()
    snapshot.restore()
    assert written(graph) == before and edges(graph) == edges_before


# ------------------------------------------------------------------------------------------------------------ weights


def heavy() -> gs.Graph:
    b = Builder()
    x = b.input((2, 1024))
    for _ in range(4):
        x = b.op("MatMul", x, b.weights(1024, 1024))
    return graphs.load(b.model(x))


@pytest.mark.parametrize("loaded", [False, True], ids=["not loaded yet", "loaded"])
def test_weights_are_shared_and_not_copied(loaded: bool) -> None:
    graph = heavy()
    weights = [n.inputs[1] for n in graph.nodes]
    if loaded:
        for weight in weights:
            weight.values = np.zeros((1024, 1024), np.float32)
    stored = [weight._values for weight in weights]
    tracemalloc.start()
    try:
        snapshot = Snapshot(graph)
        snapshot.restore()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 < 4 * weights[0].shape[0] ** 2
    assert all(weight._values is value for weight, value in zip(weights, stored, strict=True))


def test_a_weight_that_was_written_into_fails_at_once() -> None:
    graph = graphs.load(model())
    weight = node(graph, "Add").inputs[1]
    weight.values = W.copy()
    Snapshot(graph)
    with pytest.raises(ValueError, match="read-only"):
        weight.values[0, 0] = 7


def test_a_weight_that_was_loaded_meanwhile_is_as_before() -> None:
    graph = graphs.load(model())
    before = written(graph)
    snapshot = Snapshot(graph)
    for n in graph.nodes:
        for t in n.inputs:
            if isinstance(t, gs.Constant):
                t.values  # noqa: B018
    snapshot.restore()
    assert written(graph) == before

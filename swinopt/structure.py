"""Whether a graph is still a graph: the checks that cost nothing and run after every pass."""

from __future__ import annotations

from typing import Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from swinopt import ops
from swinopt.graph import is_standard, subgraph_nodes

Interface: TypeAlias = tuple[tuple[tuple[str, Any, Any], ...], ...]


def interface(graph: gs.Graph) -> Interface:
    """What a pass must not change: names, dtypes and shapes of the graph's inputs and outputs."""
    return tuple(
        tuple((t.name, t.dtype, None if t.shape is None else tuple(t.shape)) for t in tensors)
        for tensors in (graph.inputs, graph.outputs)
    )


def foreign_ops(graph: gs.Graph) -> frozenset[str]:
    """Ops that the graph has in the standard domain although the standard has none of that name: a runtime's own."""
    return frozenset(
        node.op
        for node in graph.nodes
        if is_standard(node) and not onnx.defs.has(node.op, max_inclusive_version=graph.opset)
    )


def fault(graph: gs.Graph, expected: Interface, foreign: frozenset[str] = frozenset()) -> str | None:
    """What is wrong with the graph, or None.

    Inputs and outputs are the expected ones, every tensor is made once and before it is read, and the ONNX checker
    finds nothing in any node.

    Args:
        graph: the graph.
        expected: its :func:`interface` before it was changed.
        foreign: its :func:`foreign_ops` before it was changed, which the checker would complain of.
    """
    if interface(graph) != expected:
        return f"its inputs and outputs were {expected} and are {interface(graph)}"
    made = {t.name for t in graph.inputs}
    for node in graph.nodes:
        for tensor in (*node.inputs, *_read_by_bodies(node)):
            if isinstance(tensor, gs.Variable) and not tensor.is_empty() and tensor.name not in made:
                return f"{node.op} {node.name!r} reads {tensor.name!r}, which nothing before it makes"
        for tensor in node.outputs:
            if not tensor.is_empty() and tensor.name in made:
                return f"{tensor.name!r} is made twice"
            made.add(tensor.name)
    missing = [t.name for t in graph.outputs if t.name not in made and not isinstance(t, gs.Constant)]
    if missing:
        return f"nothing makes the output {missing[0]!r}"
    return _checker_complaint(graph, foreign)


def _can_be_judged(node: gs.Node, foreign: frozenset[str]) -> bool:
    has_body = any(isinstance(value, gs.Graph) for value in node.attrs.values())
    return not has_body and not (is_standard(node) and node.op in foreign)


def _read_by_bodies(node: gs.Node) -> list[gs.Variable]:
    """What the bodies of If, Loop and Scan read from around them."""
    read = []
    for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
        inner = [*body.nodes, *subgraph_nodes(body)]
        local = {id(t) for n in inner for t in n.outputs} | {id(t) for t in body.inputs}
        local |= {id(t) for deeper in body.subgraphs(recursive=True) for t in deeper.inputs}
        read += [t for t in (*(t for n in inner for t in n.inputs), *body.outputs) if id(t) not in local]
    return [t for t in read if isinstance(t, gs.Variable)]


def _checker_complaint(graph: gs.Graph, foreign: frozenset[str]) -> str | None:
    """What the ONNX checker says; the constants are declared as inputs, since it would copy them to look at them."""
    # What the checker cannot judge is left to others, and what it makes is declared: bodies read tensors around them,
    # which the checker does not see, and an op that the standard does not have may be a runtime's own.
    judged = [_can_be_judged(node, foreign) for node in graph.nodes]
    plain = [node for node, can in zip(graph.nodes, judged, strict=True) if can]
    others = [node for node, can in zip(graph.nodes, judged, strict=True) if not can]
    made_by_others = [t for node in others for t in node.outputs if not t.is_empty()]
    constants = {t.name: t for node in plain for t in node.inputs if isinstance(t, gs.Constant)}
    inputs = [*graph.inputs, *constants.values(), *made_by_others]
    outputs = [OnnxExporter.export_value_info_proto(t, do_type_check=False) for t in graph.outputs]
    declared = [OnnxExporter.export_value_info_proto(t, do_type_check=False) for t in inputs]
    for info in (*declared, *outputs):
        # The checker wants a shape, if only an empty one; a model need not declare any.
        info.type.tensor_type.shape.SetInParent()
        info.type.tensor_type.elem_type = info.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    proto = onnx.helper.make_graph(
        [OnnxExporter.export_node(node) for node in plain],
        graph.name or "graph",
        declared,
        outputs,
    )
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    domains = {str(node.domain): 1 for node in graph.nodes if node.domain}
    imports = {o.domain: o.version for o in graph.import_domains or ()}
    context.opset_imports = {**domains, ops.DOMAIN: ops.VERSION, **imports, "": graph.opset}
    try:
        onnx.checker.check_graph(proto, context)
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0]
    return None

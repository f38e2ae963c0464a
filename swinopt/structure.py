"""Whether a graph is still a graph: the checks that cost nothing and run after every pass."""

from __future__ import annotations

from typing import Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from swinopt import ops
from swinopt.graph import subgraph_nodes

Interface: TypeAlias = tuple[tuple[tuple[str, Any, Any], ...], ...]


def interface(graph: gs.Graph) -> Interface:
    """What a pass must not change: names, dtypes and shapes of the graph's inputs and outputs."""
    return tuple(
        tuple((t.name, t.dtype, None if t.shape is None else tuple(t.shape)) for t in tensors)
        for tensors in (graph.inputs, graph.outputs)
    )


def fault(graph: gs.Graph, expected: Interface) -> str | None:
    """What is wrong with the graph, or None.

    Inputs and outputs are the expected ones, every tensor is made once and before it is read, and the ONNX checker
    finds nothing in any node.
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
    return _checker_complaint(graph)


def _read_by_bodies(node: gs.Node) -> list[gs.Variable]:
    """What the bodies of If, Loop and Scan read from around them."""
    read = []
    for body in (value for value in node.attrs.values() if isinstance(value, gs.Graph)):
        inner = [*body.nodes, *subgraph_nodes(body)]
        local = {id(t) for n in inner for t in n.outputs} | {id(t) for t in body.inputs}
        local |= {id(t) for deeper in body.subgraphs(recursive=True) for t in deeper.inputs}
        read += [t for t in (*(t for n in inner for t in n.inputs), *body.outputs) if id(t) not in local]
    return [t for t in read if isinstance(t, gs.Variable)]


def _checker_complaint(graph: gs.Graph) -> str | None:
    """What the ONNX checker says; the constants are declared as inputs, since it would copy them to look at them."""
    # Bodies read tensors around them, which the checker does not see: what such a node makes is declared as well.
    has_body = [any(isinstance(value, gs.Graph) for value in node.attrs.values()) for node in graph.nodes]
    plain = [node for node, body in zip(graph.nodes, has_body, strict=True) if not body]
    branching = [node for node, body in zip(graph.nodes, has_body, strict=True) if body]
    made_by_bodies = [t for node in branching for t in node.outputs if not t.is_empty()]
    constants = {t.name: t for node in plain for t in node.inputs if isinstance(t, gs.Constant)}
    inputs = [*graph.inputs, *constants.values(), *made_by_bodies]
    outputs = [OnnxExporter.export_value_info_proto(t, do_type_check=False) for t in graph.outputs]
    declared = [OnnxExporter.export_value_info_proto(t, do_type_check=False) for t in inputs]
    for info in (*declared, *outputs):
        # The checker wants a shape, if only an empty one; a model need not declare any.
        info.type.tensor_type.shape.SetInParent()
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

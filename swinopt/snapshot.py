"""A graph as it was, to go back to: what lets a pass be rolled back without copying the graph before every pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import subgraph_nodes


class Snapshot:
    """Remembers edges, attributes and tensors of a graph; weights are shared, not copied.

    Args:
        graph: the graph. :meth:`restore` brings this same object back to what it is now.
    """

    def __init__(self, graph: gs.Graph) -> None:
        self._graph = graph
        self._order = list(graph.nodes)
        self._interface = list(graph.inputs), list(graph.outputs)
        self._nodes = [
            (node, node.name, node.op, node.domain, dict(node.attrs), list(node.inputs), list(node.outputs))
            for node in _all_nodes(graph)
        ]
        tensors = {id(t): t for _, _, _, _, _, ins, outs in self._nodes for t in (*ins, *outs)}
        tensors.update((id(t), t) for side in self._interface for t in side)
        self._tensors = [(t, type(t), _plain(t)) for t in tensors.values()]
        for tensor in tensors.values():
            # Arrays are shared with the snapshot: a pass that writes into one fails at once instead of escaping it.
            if isinstance(tensor, gs.Constant) and isinstance(tensor._values, np.ndarray):
                tensor._values.setflags(write=False)

    def restore(self) -> None:
        """Undoes every change since the snapshot was taken."""
        for node in _all_nodes(self._graph):
            node.inputs.clear()
            node.outputs.clear()
        for tensor, kind, state in self._tensors:
            tensor.inputs.clear()
            tensor.outputs.clear()
            edges = {"inputs": tensor.inputs, "outputs": tensor.outputs}
            tensor.__class__ = kind
            tensor.__dict__.clear()
            tensor.__dict__.update(edges)
            tensor.__dict__.update(state)
        for node, name, op, domain, attrs, inputs, outputs in self._nodes:
            node.name, node.op, node.domain, node.attrs = name, op, domain, attrs
            node.inputs.clear()
            node.outputs.clear()
            node.inputs.extend(inputs)
            node.outputs.extend(outputs)
        self._graph.nodes = self._order
        self._graph.inputs, self._graph.outputs = self._interface


def _all_nodes(graph: gs.Graph) -> list[gs.Node]:
    return [*graph.nodes, *subgraph_nodes(graph)]


def _plain(tensor: Any) -> dict[str, Any]:
    return {key: value for key, value in vars(tensor).items() if key not in ("inputs", "outputs")}

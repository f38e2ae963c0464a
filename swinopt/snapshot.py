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
        self._graphs = [(g, _fields(g)) for g in (graph, *graph.subgraphs(recursive=True))]
        self._nodes = [(node, _fields(node)) for node in _all_nodes(graph)]
        tensors = {id(t): t for node, _ in self._nodes for t in (*node.inputs, *node.outputs)}
        tensors.update((id(t), t) for g, _ in self._graphs for t in (*g.inputs, *g.outputs))
        self._tensors = [(tensor, type(tensor), _fields(tensor)) for tensor in tensors.values()]
        for tensor in tensors.values():
            # Arrays are shared with the snapshot: a pass that writes into one fails at once instead of escaping it.
            if isinstance(tensor, gs.Constant) and isinstance(tensor._values, np.ndarray):
                tensor._values.setflags(write=False)

    def restore(self) -> None:
        """Undoes every change since the snapshot was taken."""
        for graph, fields in self._graphs:
            _restore(graph, fields)
        for node, fields in self._nodes:
            _restore(node, fields)
        for tensor, kind, fields in self._tensors:
            tensor.__class__ = kind
            _restore(tensor, fields)


_EDGES = ("inputs", "outputs")


def _all_nodes(graph: gs.Graph) -> list[gs.Node]:
    return [*graph.nodes, *subgraph_nodes(graph)]


def _fields(thing: Any) -> dict[str, Any]:
    """What the object's attributes are, with lists and dictionaries as copies."""
    return {key: _copied(value) for key, value in vars(thing).items()}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return list(value) if isinstance(value, list) else value


def _restore(thing: Any, fields: dict[str, Any]) -> None:
    # The lists of edges of nodes and tensors stay the objects that they are, and are written into as plain lists: both
    # ends are restored here, and what onnx_graphsurgeon does to keep them in step fails where a pass left them apart.
    lists = {key: vars(thing)[key] for key in _EDGES if not isinstance(thing, gs.Graph)}
    thing.__dict__.clear()
    thing.__dict__.update({key: _copied(value) for key, value in fields.items()}, **lists)
    for key, items in lists.items():
        list.clear(items)
        list.extend(items, fields[key])

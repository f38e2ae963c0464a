"""The parts of a Swin's graph: blocks, patch mergings and the rest. graphs.py says what is counted as what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Anatomy:
    """The op types of a Swin graph, sorted into its parts as graphs.py says."""

    blocks: list[list[str]]
    mergings: list[list[str]]
    rest: list[str]


def dissect(model: onnx.ModelProto) -> Anatomy:
    """Sorts every node of a model into a block, a patch merging or the rest."""
    anatomy = Anatomy([], [], [])
    between: list[str] = []
    needs_mlp = False
    for op_types, is_residual in _pieces(model.graph):
        if is_residual and not needs_mlp and {"WindowAttention", "Softmax"} & set(op_types):
            _place(between, anatomy)
            between, needs_mlp = [], True
            anatomy.blocks.append(list(op_types))
        elif needs_mlp:
            anatomy.blocks[-1] += op_types
            needs_mlp = not is_residual
        else:
            between += op_types
    anatomy.rest.extend(between)
    return anatomy


def _place(between: list[str], anatomy: Anatomy) -> None:
    if not anatomy.blocks:
        anatomy.rest.extend(between)
    elif {"MatMul", "Gemm", "Conv"} & set(between):
        anatomy.mergings.append(between)
    else:
        anatomy.blocks[-1] += between


def _pieces(graph: onnx.GraphProto) -> Iterator[tuple[list[str], bool]]:
    """The op types between one tensor that carries everything and the next, and whether they are a residual branch."""
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last_use |= {value.name: len(graph.node) for value in graph.output}
    live = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    carrier, piece = next(iter(live), ""), []
    for index, node in enumerate(graph.node):
        piece.append(node.op_type)
        live = {name for name in (*live, *node.output) if last_use.get(name, -1) > index}
        if len(live) == 1:
            yield piece, node.op_type == "Add" and carrier in node.input
            (carrier,), piece = live, []
    yield piece, False

"""Data movement, recognised by what it does and not by how it is spelled.

Reshape, Transpose, Slice, Concat, Pad, Gather, Split and their like compute nothing: every element of their result is
an element of the input, or a pad. So a whole region of them is one array of indices, found by running the region on
``arange``. Two regions with the same array are the same function: equality of integers is a proof, with no tolerance
and no list of spellings. Where sizes are dynamic, the array is computed for every sample (:mod:`swinopt.facts`).

A region of a Swin seldom parts the channels of a token, or of a head: whole runs of elements move as one. Then the
array is found for these runs, of which there are 32 or 128 times fewer, and only who asks for elements gets them.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from swinopt.facts import Facts, Shape
from swinopt.graph import Tensor, argument, attr, is_standard, producer, scalar
from swinopt.indices import PAD, Indices, elements, is_identity


@dataclass(frozen=True)
class Region:
    """A connected piece of data movement.

    Attributes:
        source: the one tensor that all elements come from.
        target: the tensor that the region makes.
        runs: for each sample, an array of the target's shape, but for ``axis``, which is shorter by the factor
            ``length``: which run of ``length`` elements of the source's last axis is there, or :data:`PAD`.
        length: of a run.
        axis: of the target along which runs lie, from the end.
        nodes: the movement nodes of the region, consumers first.
    """

    source: Tensor
    target: Tensor
    runs: tuple[Indices, ...]
    length: int
    axis: int
    nodes: tuple[gs.Node, ...]

    @cached_property
    def indices(self) -> tuple[Indices, ...]:
        """For each sample, an array of the target's shape: flat positions in ``source``, or :data:`PAD`."""
        return tuple(elements(runs, self.length, self.axis) for runs in self.runs)

    def along(self, axis: int) -> tuple[tuple[Indices, ...], int]:
        """The runs along this axis, from the end, and their length; elements and 1 if they lie along another one."""
        return (self.runs, self.length) if axis == self.axis else (self.indices, 1)


# ----------------------------------------------------------------------------------------------------- single steps


class _InRuns:
    """Facts of tensors whose elements are runs, each along an axis of its tensor; of others as they are."""

    def __init__(self, facts: Facts, length: int, axes: Mapping[int, int]) -> None:
        self._facts, self._length, self._axes = facts, length, axes
        self.graph, self.value = facts.graph, facts.value

    def shape(self, tensor: Tensor, sample: int = 0) -> Shape | None:
        shape, axis = self._facts.shape(tensor, sample), self._axes.get(id(tensor))
        if shape is None or axis is None:
            return shape
        sizes = list(shape)
        sizes[axis] //= self._length
        return tuple(sizes)


Step = Callable[[gs.Node, list[npt.NDArray[Any]], int, _InRuns, int], npt.NDArray[Any]]


def _reshape(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    return data[0].reshape(facts.shape(node.outputs[output], sample))


def _transpose(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    return data[0].transpose(node.attrs.get("perm"))


def _concat(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    return np.concatenate(data, axis=node.attrs["axis"])


def _slice(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    starts, ends, axes, steps = (_ints(node, i, facts, sample) for i in (1, 2, 3, 4))
    result = data[0]
    for i, (start, end) in enumerate(zip(starts or (), ends or (), strict=True)):
        axis, step = axes[i] if axes else i, steps[i] if steps else 1
        size = data[0].shape[axis]
        # The operator's clamping, which is not NumPy's where the step is negative.
        low, high = (0, size) if step > 0 else (-1, size - 1)
        first, last = (min(max(j + size if j < 0 else j, low), high) for j in (start, end))
        picked = range(max(first, 0), last, step) if size else range(0)
        result = np.take(result, picked, axis=axis)
    return result


def _split(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    axis = attr(node, "axis", facts.graph.opset) or 0
    sizes = [facts.shape(t, sample)[axis] for t in node.outputs]  # type: ignore[index]
    return np.split(data[0], np.cumsum(sizes)[:-1], axis=axis)[output]


def _gather(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    rows = facts.value(node.inputs[1], sample)
    assert rows is not None, "is_movement asks for it"
    return np.take(data[0], rows, axis=node.attrs.get("axis", 0))


def _expand(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    return np.broadcast_to(data[0], facts.shape(node.outputs[output], sample))  # type: ignore[arg-type]


def _pad(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    pads = _ints(node, 1, facts, sample) or []
    axes = _ints(node, 3, facts, sample) or list(range(data[0].ndim))
    padded = data[0]
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[i + len(axes)]
        size = padded.shape[axis]
        padded = np.take(padded, range(max(0, -before), size - max(0, -after)), axis=axis)
        widths = [(0, 0)] * padded.ndim
        widths[axis] = (max(0, before), max(0, after))
        padded = np.pad(padded, widths, constant_values=PAD)
    return padded


def _depth_to_space(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    (n, c, h, w), b = data[0].shape, node.attrs["blocksize"]
    if node.attrs.get("mode", "DCR") == "DCR":
        return data[0].reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return data[0].reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


def _space_to_depth(node: gs.Node, data: list[Any], output: int, facts: _InRuns, sample: int) -> Any:
    (n, c, h, w), b = data[0].shape, node.attrs["blocksize"]
    return data[0].reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


_STEPS: dict[str, Step] = {
    "Identity": lambda node, data, output, facts, sample: data[0],
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
#: The ops that only move elements.
MOVEMENT_OPS = frozenset(_STEPS)
#: Those among them that keep the order of all elements.
VIEW_OPS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})


def is_movement(node: gs.Node | None, facts: Facts) -> bool:
    """Whether the node only moves elements, to places that are known."""
    if node is None or not is_standard(node) or node.op not in MOVEMENT_OPS:
        return False
    if any(facts.shapes(t) is None for t in (*data_inputs(node), *node.outputs)):
        return False
    parameters = [t for t in node.inputs[1:] if not t.is_empty()] if node.op != "Concat" else []
    if not all(facts.is_shown_by_samples(t) for t in parameters):
        return False
    if node.op in ("Slice", "Gather") and any(facts.value(t) is None for t in parameters):
        return False
    return node.op != "Pad" or _pads_with_zeros(node, facts)


def data_inputs(node: gs.Node) -> list[Tensor]:
    """The inputs whose elements the movement node moves."""
    return list(node.inputs) if node.op == "Concat" else list(node.inputs[:1])


def _pads_with_zeros(node: gs.Node, facts: Facts) -> bool:
    value, axes = argument(node, 2), argument(node, 3)
    pads = facts.value(node.inputs[1])
    if pads is None or (axes is not None and facts.value(axes) is None):
        return False
    zeros = node.attrs.get("mode", "constant") == "constant" and (value is None or scalar(value) == 0)
    return zeros or not any(facts.value(node.inputs[1], s).any() for s in facts.samples)  # type: ignore[union-attr]


def _ints(node: gs.Node, index: int, facts: Facts | _InRuns, sample: int) -> list[int] | None:
    tensor = argument(node, index)
    value = None if tensor is None else facts.value(tensor, sample)
    return None if value is None else [int(i) for i in value.reshape(-1)]


def _axis_behind(node: gs.Node, tensor: Tensor, axis: int, facts: Facts, sample: int) -> int | None:
    """Along which axis of ``tensor``, which the node makes, runs lie that lay along ``axis`` of its data, from the end.

    None if the node parts them. Their length divides the size of the axis before and behind.
    """
    if not is_movement(node, facts) or node.op == "Identity":
        return axis
    before, behind = facts.shape(data_inputs(node)[0], sample), facts.shape(tensor, sample)
    assert before is not None and behind is not None, "is_movement asks for it"
    place = len(before) + axis
    if node.op == "Transpose":
        order = node.attrs.get("perm", range(len(before))[::-1])
        return list(order).index(place) - len(before)
    if node.op in VIEW_OPS:
        return axis if _behind(before, axis) == _behind(behind, axis) else None
    if node.op in ("Expand", "Concat"):
        return axis
    if node.op in ("Split", "Gather"):
        moved = (attr(node, "axis", facts.graph.opset) or 0) % len(before)
        return axis if moved != place and (node.op == "Split" or moved < place) else None
    if node.op in ("Slice", "Pad"):
        numbers, axes = _ints(node, 1, facts, sample) or [], _ints(node, 3, facts, sample)
        if axes is None:
            axes = list(range(len(numbers) if node.op == "Slice" else len(before)))
        if node.op == "Pad":
            axes = [a for i, a in enumerate(axes) if numbers[i] or numbers[i + len(axes)]]
        return axis if place not in [a % len(before) for a in axes] else None
    return None


def _behind(shape: Shape, axis: int) -> Shape:
    return shape[len(shape) + axis + 1 :]


# ---------------------------------------------------------------------------------------------------- whole regions


class Movement:
    """Evaluates movement regions of one graph; equal regions, of which a Swin has many, are evaluated once.

    Args:
        facts: what is known of the graph.
        transparent: nodes that are to count as movement although they compute, with the input that they pass on:
            an elementwise factor, say, which changes values but not places.
    """

    # A Swin has about two dozen distinct regions; where elements of the largest stage move one by one, an array takes
    # 10 MB, times the batch.
    _KEEP_BYTES = 1 << 28

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._known: OrderedDict[Hashable, Indices] = OrderedDict()

    def region(
        self, target: Tensor, stop: Sequence[Tensor] = (), transparent: Callable[[gs.Node], int | None] | None = None
    ) -> Region | None:
        """The largest movement region that makes ``target`` from a single source; None if there are several.

        Args:
            target: the tensor that the region makes.
            stop: tensors that count as sources although movement makes them.
            transparent: tells of a node that computes but keeps all places which of its inputs it passes on.
        """
        stops = {id(t) for t in stop}
        inputs_of: dict[int, list[Tensor]] = {}
        order: list[tuple[Tensor, gs.Node]] = []
        sources: dict[int, Tensor] = {}

        def enter(tensor: Tensor) -> list[Tensor]:
            """The tensors that this one is moved from; none if it is a source."""
            node = producer(tensor)
            if node is None or id(tensor) in stops:
                return []
            if is_movement(node, self.facts):
                return data_inputs(node)
            passed_on = transparent(node) if transparent else None
            return [] if passed_on is None else [node.inputs[passed_on]]

        pending: list[tuple[Tensor, bool]] = [(target, False)]
        while pending:
            tensor, ready = pending.pop()
            if ready:
                order.append((tensor, tensor.inputs[0]))
            elif id(tensor) not in inputs_of:
                inputs_of[id(tensor)] = enter(tensor)
                if inputs_of[id(tensor)]:
                    pending.append((tensor, True))
                    pending += [(t, False) for t in inputs_of[id(tensor)]]
                else:
                    sources[id(tensor)] = tensor
        if len(sources) != 1:
            return None
        (source,) = sources.values()
        if self.facts.shapes(source) is None:
            return None
        length, axes = self._runs(source, order, inputs_of)
        in_runs = _InRuns(self.facts, length, axes)
        runs = tuple(self._evaluate(source, order, inputs_of, in_runs, sample) for sample in self.facts.samples)
        nodes = {id(node): node for _, node in reversed(order)}
        return Region(source, target, runs, length, axes.get(id(target), -1), tuple(nodes.values()))

    def _runs(
        self, source: Tensor, order: list[tuple[Tensor, gs.Node]], inputs_of: dict[int, list[Tensor]]
    ) -> tuple[int, dict[int, int]]:
        """The length of the longest runs that no step parts, and for each tensor the axis along which they lie.

        Nothing of the latter if they are elements.
        """
        axes = {id(source): -1}
        length = math.gcd(*(self._size(source, -1, sample) for sample in self.facts.samples))
        for tensor, node in order:
            if length <= 1:
                return 1, {}
            found = {
                _axis_behind(node, tensor, axes[id(data)], self.facts, sample)
                for data in inputs_of[id(tensor)]
                for sample in self.facts.samples
            }
            axis = found.pop()
            if found or axis is None:
                return 1, {}
            axes[id(tensor)] = axis
            length = math.gcd(length, *(self._size(tensor, axis, sample) for sample in self.facts.samples))
        return (length, axes) if length > 1 else (1, {})

    def _size(self, tensor: Tensor, axis: int, sample: int) -> int:
        shape = self.facts.shape(tensor, sample)
        return shape[axis] if shape and len(shape) >= -axis else 1

    def _evaluate(
        self,
        source: Tensor,
        order: list[tuple[Tensor, gs.Node]],
        inputs_of: dict[int, list[Tensor]],
        facts: _InRuns,
        sample: int,
    ) -> Indices:
        shape = facts.shape(source, sample)
        assert shape is not None
        numbers = {id(source): 0}
        key: list[Hashable] = [shape]
        for number, (tensor, node) in enumerate(order, start=1):
            numbers[id(tensor)] = number
            inputs = tuple(numbers[id(t)] for t in inputs_of[id(tensor)])
            key.append((inputs, *self._signature(tensor, node, facts, sample)))
        if tuple(key) in self._known:
            self._known.move_to_end(tuple(key))
            return self._known[tuple(key)]
        # The arrays of inner steps are dropped after their last use: they may be as large as the activations.
        values = {id(source): np.arange(np.prod(shape, dtype=np.int64), dtype=np.int32).reshape(shape)}
        last_use = {id(t): tensor for tensor, _ in order for t in inputs_of[id(tensor)]}
        for tensor, node in order:
            data = [values[id(t)] for t in inputs_of[id(tensor)]]
            step = _STEPS[node.op] if is_movement(node, self.facts) else _STEPS["Identity"]
            values[id(tensor)] = step(node, data, _output_index(node, tensor), facts, sample)
            for used in inputs_of[id(tensor)]:
                if last_use[id(used)] is tensor:
                    values.pop(id(used), None)
        # Not ascontiguousarray, which makes a scalar a vector.
        indices = np.asarray(values[id(order[-1][0])] if order else values[id(source)], order="C")
        indices.setflags(write=False)
        self._known[tuple(key)] = indices
        while sum(known.nbytes for known in self._known.values()) > self._KEEP_BYTES and len(self._known) > 1:
            self._known.popitem(last=False)
        return indices

    def _signature(self, tensor: Tensor, node: gs.Node, facts: _InRuns, sample: int) -> tuple[Hashable, ...]:
        parameters = []
        for parameter in node.inputs[1:] if node.op != "Concat" else []:
            value = None if parameter.is_empty() else self.facts.value(parameter, sample)
            parameters.append(None if value is None else (value.dtype.str, value.tobytes()))
        return (
            node.op,
            _output_index(node, tensor),
            tuple(facts.shape(t, sample) for t in node.outputs),
            tuple(sorted((key, str(value)) for key, value in node.attrs.items())),
            tuple(parameters),
        )


def _output_index(node: gs.Node, tensor: Tensor) -> int:
    return next(i for i, t in enumerate(node.outputs) if t is tensor)


def exits(tensor: Tensor, facts: Facts) -> list[Tensor]:
    """The tensors in which the movement that starts at this one ends: something else reads them."""
    found: dict[int, Tensor] = {}
    seen: set[int] = set()
    pending = [tensor]
    outputs = {id(t) for t in facts.graph.outputs}
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        if id(current) in outputs or not current.outputs:
            found[id(current)] = current
        for node in current.outputs:
            if node.op in ("Shape", "Size") and is_standard(node):
                continue  # reads no values
            if is_movement(node, facts):
                pending += node.outputs
            else:
                found[id(current)] = current
    return list(found.values())


# --------------------------------------------------------------------------------------------- what a region amounts to


def is_view(region: Region, facts: Facts) -> bool:
    """Whether the region keeps all elements of its source in their order, whatever their shape."""
    samples, length = region.along(-1)
    return all(
        runs.size * length == np.prod(facts.shape(region.source, sample) or (0,)) and is_identity(runs)
        for sample, runs in enumerate(samples)
    )

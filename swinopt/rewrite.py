"""Changing a graph: the only place where edges are cut and joined.

A pass says *what* stands in for *what*; the :class:`Rewriter` makes the nodes, keeps the names, drops what nobody
reads any more, and remembers how often the pass applied and where it refused. A :class:`Rule` is the common case:
a formula to look for, the conditions under which it may be replaced, and the replacement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from swinopt.facts import Facts
from swinopt.graph import Array, Tensor, in_topological_order, is_standard, label, producer, subgraph_nodes
from swinopt.movement import Movement
from swinopt.pattern import Match, Pattern
from swinopt.report import Refusal

_DEDUPLICATED_ELEMENTS = 1 << 20
_MAX_SWEEPS = 16


class Rewriter:
    """A graph under change by one pass.

    Args:
        graph: the graph; it is changed in place, and kept in topological order by :meth:`finish`.
        facts: what is known of its tensors; computed if not given. Facts outlive a change, since a tensor keeps its
            name exactly as long as it keeps its meaning.

    Attributes:
        applied: how many rewrites were made.
        refusals: where the pass looked and did not apply, and why.
    """

    def __init__(self, graph: gs.Graph, facts: Facts | None = None) -> None:
        self.graph = graph
        self.facts = facts or Facts(graph)
        self.facts.graph = graph
        self.movement = Movement(self.facts)
        self.applied = 0
        self.refusals: list[Refusal] = []
        self._constants: dict[tuple[str, bytes], gs.Constant] = {}
        self._output_ids = {id(t) for t in graph.outputs}

    @cached_property
    def _names(self) -> set[str]:
        nodes = [*self.graph.nodes, *subgraph_nodes(self.graph)]
        tensors = [t.name for node in nodes for t in (*node.inputs, *node.outputs)]
        return {*tensors, *(t.name for t in (*self.graph.inputs, *self.graph.outputs)), *(node.name for node in nodes)}

    # ------------------------------------------------------------------------------------------------------ making

    def op(
        self, op_type: str, *inputs: Tensor | None, domain: str = "", hint: str = "", count: int = 1, **attrs: Any
    ) -> Any:
        """A new node; returns its output, or the list of them if ``count`` is more than one.

        Args:
            op_type: the operator.
            inputs: its inputs; None for an optional one that is left out.
            domain: the operator's domain.
            hint: what the output's name starts with; by default the first input's name.
            count: number of outputs.
            attrs: attributes; one that is None is left out.
        """
        hint = hint or f"{next((t.name for t in inputs if t is not None), op_type)}/{op_type}"
        outputs = [gs.Variable(self._unique(hint)) for _ in range(count)]
        present = list(inputs)
        while present and present[-1] is None:
            present.pop()
        node = gs.Node(
            op_type,
            name=self._unique(f"{op_type}_{outputs[0].name}"),
            attrs={key: value for key, value in attrs.items() if value is not None},
            inputs=[gs.Variable.empty() if t is None else t for t in present],
            outputs=outputs,
            domain=domain or None,
        )
        self.graph.nodes.append(node)
        return outputs[0] if count == 1 else outputs

    def constant(self, value: npt.ArrayLike, dtype: Any = None, hint: str = "constant") -> gs.Constant:
        """A new constant, or one that this pass made before if it is small and equal."""
        array = np.array(value, dtype)
        if array.size > _DEDUPLICATED_ELEMENTS:
            return gs.Constant(self._unique(hint), np.ascontiguousarray(array))
        key = (f"{array.dtype}{array.shape}", hashlib.sha256(array.tobytes()).digest())
        if key not in self._constants:
            self._constants[key] = gs.Constant(self._unique(hint), np.ascontiguousarray(array).reshape(array.shape))
        return self._constants[key]

    def reshape(self, tensor: Tensor, like: Tensor, hint: str = "") -> Tensor | None:
        """``tensor`` in the shape that ``like`` has, or ``tensor`` itself if it has it; None if no single Reshape
        says so, because two sizes depend on the input and neither is copied from ``tensor``."""
        shapes, wanted = self.facts.shapes(tensor), self.facts.shapes(like)
        if shapes is None or wanted is None:
            return None
        return self.reshape_to(tensor, wanted, hint)

    def reshape_to(self, tensor: Tensor, wanted: Sequence[tuple[int, ...]], hint: str = "") -> Tensor | None:
        """As :meth:`reshape`, with the wanted shape given for every sample."""
        shapes = self.facts.shapes(tensor)
        if shapes == list(wanted):
            return tensor
        target = reshape_target(shapes or [], wanted)
        if target is None:
            return None
        result: Tensor = self.op("Reshape", tensor, self.constant(target, np.int64, "shape"), hint=hint)
        self.facts.learn(result, like=tensor, shapes=wanted)
        return result

    def _unique(self, hint: str) -> str:
        name, number = hint, 1
        while name in self._names:
            number += 1
            name = f"{hint}_{number}"
        self._names.add(name)
        return name

    # --------------------------------------------------------------------------------------------------- replacing

    def replace(self, old: Tensor, new: Tensor) -> None:
        """Lets everything that read ``old`` read ``new``. The tensor keeps its name where a new node makes it."""
        if new is old:
            return
        self.applied += 1
        dead = producer(old)
        made_here = producer(new) is not None and not new.outputs and id(new) not in self._output_ids
        if made_here or id(old) in self._output_ids:
            self._take_over(old, new)
        else:
            self._redirect(old, new)
        if dead is not None:
            self._drop([dead])

    def redefine(self, old: Tensor, new: Tensor, downstream: Iterable[Tensor] = ()) -> None:
        """Lets everything that read ``old`` read ``new``, whose values are others.

        Args:
            old: a tensor that something computes.
            new: what is to be read instead; it has the same shape and dtype.
            downstream: the tensors that change their values with it; they get new names, since a name stands for a
                meaning: verification compares tensors by name.
        """
        dead = producer(old)
        self._redirect(old, new)
        self.facts.learn(new, like=old)
        for tensor in downstream:
            shapes = self.facts.shapes(tensor)
            if not self.is_output(tensor) and shapes is not None:
                renamed = gs.Variable(self._unique(f"{tensor.name}/redefined"))
                self.facts.learn(renamed, like=tensor)
                tensor.name = renamed.name
        if dead is not None:
            self._drop([dead])

    def fold(self, tensor: Tensor, value: Array) -> None:
        """Turns a tensor into a constant of its own name; what computed it goes, unless it computes more."""
        dead = producer(tensor)
        self._detach(tensor)
        tensor.to_constant(np.ascontiguousarray(value).reshape(value.shape))
        self.applied += 1
        if dead is not None:
            self._drop([dead])

    def is_output(self, tensor: Tensor) -> bool:
        """Whether the tensor is an output of the graph."""
        return id(tensor) in self._output_ids

    def _take_over(self, old: Tensor, new: Tensor) -> None:
        node = producer(new)
        if node is None or id(new) in self._output_ids:
            self.op("Identity", new, hint=old.name)
            node = self.graph.nodes[-1]
            new = node.outputs[0]
        self._detach(old)
        index = next(i for i, t in enumerate(node.outputs) if t is new)
        self._redirect(new, old)
        node.outputs[index] = old
        node.name = self._unique(f"{node.op}_{old.name}")

    def _detach(self, tensor: Tensor) -> None:
        """Leaves what computes the tensor without it; its other outputs keep their places."""
        for node in list(tensor.inputs):
            index = next(i for i, t in enumerate(node.outputs) if t is tensor)
            node.outputs[index] = gs.Variable(self._unique(f"{tensor.name}/unused"))

    @staticmethod
    def _redirect(old: Tensor, new: Tensor) -> None:
        for consumer in {id(node): node for node in old.outputs}.values():
            for index, tensor in enumerate(consumer.inputs):
                if tensor is old:
                    consumer.inputs[index] = new

    def _drop(self, nodes: list[gs.Node]) -> None:
        """Cuts off nodes that nobody reads any more, so that matching in the same sweep does not see them."""
        while nodes:
            node = nodes.pop()
            if self.is_dead(node):
                above = [producer(t) for t in node.inputs]
                node.inputs.clear()
                nodes += [n for n in above if n is not None]

    def is_dead(self, node: gs.Node) -> bool:
        """Whether nothing reads the node's outputs."""
        return not any(t.outputs or id(t) in self._output_ids for t in node.outputs)

    # ----------------------------------------------------------------------------------------------------- keeping

    def refuse(self, at: gs.Node | Tensor, reason: str) -> None:
        """Remembers that the pass looked here and did not apply."""
        name = label(at) if isinstance(at, gs.Node) else at.name
        refusal = Refusal(name, reason)
        if refusal not in self.refusals:
            self.refusals.append(refusal)

    def nodes(self, *op_types: str, domain: str = "") -> list[gs.Node]:
        """The living nodes of these types, of the standard domain or another one, producers before consumers."""

        def is_meant(node: gs.Node) -> bool:
            return node.op in op_types and (node.domain == domain if domain else is_standard(node))

        return [node for node in self.graph.nodes if is_meant(node) and not self.is_dead(node)]

    def finish(self) -> None:
        """Leaves the graph clean: dead nodes gone, the rest in topological order."""
        living = [node for node in self.graph.nodes if not self.is_dead(node)]
        while len(living) < len(self.graph.nodes):
            for node in self.graph.nodes:
                if self.is_dead(node):
                    node.inputs.clear()
            self.graph.nodes = living
            living = [node for node in living if not self.is_dead(node)]
        self.graph.nodes = in_topological_order(living)

    def float_constant(self, value: npt.ArrayLike, like: Tensor, hint: str = "constant") -> gs.Constant:
        """A constant of the dtype of ``like``."""
        return self.constant(value, self.facts.dtype(like) or np.float32, hint)


def reshape_target(shapes: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> list[int] | None:
    """What a Reshape node has to say to turn ``shapes`` into ``wanted`` (one each a sample); None if it cannot.

    A size that differs between the samples is said as 0, "copy", where the input has it at the same place, and once
    as -1.
    """
    target: list[int] = []
    for axis, sizes in enumerate(zip(*wanted, strict=True)):
        copied = all(axis < len(s) and s[axis] == size for s, size in zip(shapes, sizes, strict=True))
        if len(set(sizes)) == 1 and sizes[0]:
            target.append(sizes[0])
        else:
            target.append(0 if copied else -1)
    return target if target.count(-1) <= 1 else None


Condition = Callable[[Match, Rewriter], "str | None"]
Replacement = Callable[[Match, Rewriter], "Tensor | None"]


@dataclass(frozen=True)
class Rule:
    """One rewrite: what to look for, when it may be replaced, by what.

    Attributes:
        pattern: the formula; it is looked for at the first output of every node.
        rewrite: returns the tensor that stands in for the matched one.
        where: the preconditions: each returns None if it holds, else the reason for the refusal.
    """

    pattern: Pattern
    rewrite: Replacement
    where: tuple[Condition, ...] = ()

    def apply(self, tensor: Tensor, rewriter: Rewriter) -> bool:
        """Rewrites ``tensor`` if the rule fits; refusals are remembered by the rewriter."""
        match = self.pattern.match(tensor, rewriter.facts)
        if match is None:
            return False
        for condition in self.where:
            reason = condition(match, rewriter)
            if reason is not None:
                rewriter.refuse(tensor, reason)
                return False
        new = self.rewrite(match, rewriter)
        if new is None:
            return False
        shapes, wanted = rewriter.facts.shapes(new), rewriter.facts.shapes(tensor)
        if shapes is not None and wanted is not None and shapes != wanted:
            # A constant of higher rank adds axes by broadcasting, which no formula says.
            rewriter.refuse(tensor, f"the replacement has shape {list(shapes[0])} instead of {list(wanted[0])}")
            return False
        rewriter.replace(tensor, new)
        return True


def apply_rules(rules: Iterable[Rule], rewriter: Rewriter) -> None:
    """Applies the rules, consumers first and the earlier rule first, until none fits any more."""
    rules = tuple(rules)
    for _ in range(_MAX_SWEEPS):
        before = rewriter.applied
        for node in reversed(list(rewriter.graph.nodes)):
            if node.outputs and not rewriter.is_dead(node):
                any(rule.apply(node.outputs[0], rewriter) for rule in rules)
        if rewriter.applied == before:
            return
        rewriter.finish()

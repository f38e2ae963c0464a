"""Arithmetic patterns, written as the formula they stand for.

    x = var("x")
    centred = x - mean(x)
    pattern = centred / sqrt(mean(square(centred)) + number("epsilon"))

A sub-expression that is the same Python object has to be the same tensor wherever it occurs. ``+`` and ``*`` match
their operands in either order; :func:`product` matches any nesting of multiplications and divisions by its factors
alone. Matching never changes the graph.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import onnx_graphsurgeon as gs

from swinopt.facts import Facts
from swinopt.graph import Array, Tensor, attr, is_standard, literal, producer, scalar

#: How far a number in a model may be from the number in a formula: fp16 keeps 11 bits.
RELATIVE_TOLERANCE = 1e-3

Bindings = Mapping[object, Tensor]


@dataclass(frozen=True)
class Match:
    """What the variables of a pattern stand for at one place in a graph.

    Attributes:
        root: the tensor at which the pattern was matched.
        bindings: the tensor for each variable's name.
    """

    root: Tensor
    bindings: Bindings

    def __getitem__(self, name: str) -> Tensor:
        return self.bindings[name]

    def get(self, name: str) -> Tensor | None:
        """The variable's tensor; None if the alternative that matched does not have the variable."""
        return self.bindings.get(name)

    def number(self, name: str) -> float:
        """The value of a variable that stands for a single number."""
        value = scalar(self.bindings[name])
        assert value is not None, f"{name} is no number"
        return value

    def node(self, pattern: Pattern) -> gs.Node:
        """The node at which a sub-expression matched."""
        return self.bindings[pattern].inputs[0]


class Pattern(ABC):
    """A formula over tensors. Build it from :func:`var`, :func:`op` and the arithmetic operators."""

    def match(self, tensor: Tensor, facts: Facts) -> Match | None:
        """The first way in which the formula fits this tensor."""
        bindings = next(self.solve(tensor, {}, facts), None)
        return None if bindings is None else Match(tensor, bindings)

    @abstractmethod
    def solve(self, tensor: Tensor, bindings: Bindings, facts: Facts) -> Iterator[Bindings]:
        """All ways in which the formula fits this tensor, given what is bound already."""

    def __add__(self, other: Pattern | float) -> Pattern:
        return _Op(("Add",), (self, lift(other)), commutative=True)

    def __radd__(self, other: float) -> Pattern:
        return lift(other) + self

    def __sub__(self, other: Pattern | float) -> Pattern:
        return _Op(("Sub",), (self, lift(other)))

    def __mul__(self, other: Pattern | float) -> Pattern:
        return _Op(("Mul",), (self, lift(other)), commutative=True)

    def __rmul__(self, other: float) -> Pattern:
        return lift(other) * self

    def __truediv__(self, other: Pattern | float) -> Pattern:
        quotient = _Op(("Div",), (self, lift(other)))
        inverse = either(_Op(("Reciprocal",), (lift(other),)), _Op(("Div",), (number(1.0), lift(other))))
        return either(quotient, self * inverse)


def lift(value: Pattern | float) -> Pattern:
    """A number as a pattern."""
    return value if isinstance(value, Pattern) else number(value)


@dataclass(frozen=True, eq=False)
class _Var(Pattern):
    name: str

    def solve(self, tensor: Tensor, bindings: Bindings, facts: Facts) -> Iterator[Bindings]:
        bound = bindings.get(self.name)
        if bound is None:
            yield {**bindings, self.name: tensor}
        elif bound is tensor:
            yield bindings


@dataclass(frozen=True, eq=False)
class _Constant(Pattern):
    name: str

    def solve(self, tensor: Tensor, bindings: Bindings, facts: Facts) -> Iterator[Bindings]:
        if literal(tensor) is not None:
            yield from _Var(self.name).solve(tensor, bindings, facts)


@dataclass(frozen=True, eq=False)
class _Number(Pattern):
    value: float | None
    name: str | None = None

    def solve(self, tensor: Tensor, bindings: Bindings, facts: Facts) -> Iterator[Bindings]:
        found = scalar(tensor)
        if found is None or (self.value is not None and not _close(found, self.value)):
            return
        yield {**bindings, self.name: tensor} if self.name else bindings


@dataclass(frozen=True, eq=False)
class _Op(Pattern):
    op_types: tuple[str, ...]
    inputs: tuple[Pattern, ...]
    commutative: bool = False
    attrs: Mapping[str, Any] = field(default_factory=dict)
    further: int = 0

    def solve(self, tensor: Tensor, bindings: Bindings, facts: Facts) -> Iterator[Bindings]:
        if self in bindings:
            if bindings[self] is tensor:
                yield bindings
            return
        node = producer(tensor)
        if node is None or node.op not in self.op_types or not is_standard(node) or node.outputs[0] is not tensor:
            return
        present = [t for t in node.inputs if not t.is_empty()]
        if present[: len(self.inputs)] != list(node.inputs[: len(self.inputs)]):
            return
        if not len(self.inputs) <= len(present) <= len(self.inputs) + self.further or not self._attributes_fit(
            node, facts
        ):
            return
        bindings = {**bindings, self: tensor}
        for order in permutations(self.inputs) if self.commutative else (self.inputs,):
            yield from _solve_all(order, list(node.inputs), bindings, facts)

    def _attributes_fit(self, node: gs.Node, facts: Facts) -> bool:
        return all(attr(node, key, facts.graph.opset) == value for key, value in self.attrs.items())


@dataclass(frozen=True, eq=False)
class _Either(Pattern):
    alternatives: tuple[Pattern, ...]

    def solve(self, tensor: Tensor, bindings: Bindings, facts: Facts) -> Iterator[Bindings]:
        for alternative in self.alternatives:
            yield from alternative.solve(tensor, bindings, facts)


@dataclass(frozen=True, eq=False)
class _Product(Pattern):
    factors: tuple[Pattern, ...]
    constant: float

    def solve(self, tensor: Tensor, bindings: Bindings, facts: Facts) -> Iterator[Bindings]:
        # Where a factor is a product itself it has to stay whole: so unfold step by step, the shallow way first.
        for factors, constant in _unfoldings(tensor, len(self.factors)):
            if _close(constant, self.constant):
                for order in permutations(self.factors):
                    yield from _solve_all(order, factors, bindings, facts)


def _unfoldings(tensor: Tensor, count: int) -> Iterator[tuple[list[Tensor], float]]:
    """The ways to write a tensor as ``count`` factors and a number, by unfolding Mul, Div and Neg from the top."""
    pending: list[tuple[list[Tensor], float]] = [([tensor], 1.0)]
    seen: set[tuple[int, ...]] = set()
    while pending:
        factors, constant = pending.pop(0)
        # Two chains can be unfolded in any order, which makes no difference.
        key = tuple(sorted(map(id, factors)))
        if key in seen:
            continue
        seen.add(key)
        if len(factors) == count:
            yield factors, constant
        for i, factor in enumerate(factors):
            node = producer(factor)
            if node is None or node.op not in ("Mul", "Div", "Neg") or not is_standard(node):
                continue
            rest = [*factors[:i], *factors[i + 1 :]]
            left = node.inputs[0]
            if node.op == "Neg":
                pending.append(([*rest, left], -constant))
                continue
            right = node.inputs[1]
            number_left, number_right = scalar(left), scalar(right)
            if number_right is not None:
                if node.op == "Mul" or number_right:
                    pending.append(
                        ([*rest, left], constant * number_right if node.op == "Mul" else constant / number_right)
                    )
            elif node.op == "Mul" and number_left is not None:
                pending.append(([*rest, right], constant * number_left))
            elif node.op == "Mul" and len(factors) < count:
                pending.append(([*rest, left, right], constant))


def _solve_all(
    patterns: Sequence[Pattern], tensors: Sequence[Tensor], bindings: Bindings, facts: Facts
) -> Iterator[Bindings]:
    if not patterns:
        yield bindings
        return
    for found in patterns[0].solve(tensors[0], bindings, facts):
        yield from _solve_all(patterns[1:], tensors[1:], found, facts)


def _close(found: float, wanted: float) -> bool:
    return math.isclose(found, wanted, rel_tol=RELATIVE_TOLERANCE)


# ------------------------------------------------------------------------------------------------- the vocabulary


def var(name: str) -> Pattern:
    """Any tensor; the same one wherever the name occurs."""
    return _Var(name)


def constant(name: str) -> Pattern:
    """A constant of any shape."""
    return _Constant(name)


def number(value: float | None = None, name: str | None = None) -> Pattern:
    """A constant with a single element, equal to ``value`` (to fp16 precision) if that is given."""
    return _Number(value, name)


def op(op_types: str | Sequence[str], *inputs: Pattern | float, further: int = 0, **attrs: Any) -> Pattern:
    """A standard op of one of these types.

    Args:
        op_types: the type, or several.
        inputs: what its inputs have to be; it must have no others, ...
        further: ... or at most so many, which the rule has to look at.
        attrs: attributes that it must have; the schema's default counts where one is left out.
    """
    types = (op_types,) if isinstance(op_types, str) else tuple(op_types)
    return _Op(types, tuple(lift(p) for p in inputs), attrs=attrs, further=further)


def either(*alternatives: Pattern) -> Pattern:
    """The first alternative that fits."""
    return _Either(alternatives)


def product(*factors: Pattern, constant: float = 1.0) -> Pattern:
    """The product of the factors and a number, whatever the order and nesting of Mul, Div by a number, and Neg."""
    return _Product(factors, constant)


def sqrt(x: Pattern) -> Pattern:
    """The square root."""
    return either(op("Sqrt", x), op("Pow", x, 0.5))


def square(x: Pattern) -> Pattern:
    """The square, as a power or a product."""
    return either(op("Pow", x, 2.0), x * x)


def reduce_mean(x: Pattern) -> Pattern:
    """The mean over some axes; which, the rule has to check (:func:`reduced_axes`)."""
    return op("ReduceMean", x, keepdims=1, further=1)


def reduced_axes(node: gs.Node, facts: Facts) -> tuple[int, ...] | None:
    """The axes that a Reduce* node reduces, counted from the end (negative); None where they are unknown."""
    axes: Array | Sequence[int] | None = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and not node.inputs[1].is_empty():
        axes = facts.constant(node.inputs[1])
    shape = facts.shape(node.inputs[0])
    if axes is None or shape is None:
        return None
    return tuple(sorted(int(axis) - len(shape) if axis >= 0 else int(axis) for axis in axes))

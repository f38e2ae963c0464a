"""What a TensorRT engine takes and gives: names, dtypes, shapes, and the profiles: which sizes it was built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from swinopt.errors import OptionError

Shape: TypeAlias = tuple[int, ...]
#: The smallest, the usual and the largest shape of an input.
Range: TypeAlias = tuple[Shape, Shape, Shape]


@dataclass(frozen=True)
class Value:
    """An input or output of an engine: its dtype ("float32", ...) and its shape, with -1 for an open size."""

    dtype: str
    shape: Shape


@dataclass(frozen=True)
class Interface:
    """What an engine takes and gives, by name.

    Attributes:
        inputs: in order.
        outputs: in order.
        profiles: for each optimization profile the range of each dynamic input; empty if there is none.
    """

    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    profiles: tuple[Mapping[str, Range], ...] = ()

    def profile_for(self, shapes: Mapping[str, Shape]) -> int:
        """The first profile that takes inputs of these shapes.

        Raises:
            OptionError: none does; the message says what was given and what is possible.
        """
        for name, shape in shapes.items():
            expected = self.inputs[name].shape
            fits = len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected, strict=True))
            if not fits:
                raise OptionError(
                    f"input {name!r} has shape {text_of(shape)}, and the engine takes {text_of(expected)}"
                )
        for index, profile in enumerate(self.profiles):
            if all(_within(shapes[name], allowed) for name, allowed in profile.items()):
                return index
        if not self.profiles:
            return 0
        given = ", ".join(f"{name} {text_of(shapes[name])}" for name in self.profiles[0])
        possible = "; or ".join(
            ", ".join(f"{name} {text_of(low)} to {text_of(high)}" for name, (low, _, high) in profile.items())
            for profile in self.profiles
        )
        raise OptionError(f"no profile of the engine takes {given}: it was built for {possible}")


def _within(shape: Shape, allowed: Range) -> bool:
    low, _, high = allowed
    return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))


def text_of(shape: Sequence[int]) -> str:
    """A shape as people read it: ``[?, 3, 224, 224]``."""
    return f"[{', '.join('?' if size == -1 else str(size) for size in shape)}]"

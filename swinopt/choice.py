"""What became of the swinopt ops of an engine, plugins or standard ops, and why: as measured on the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from swinopt.precision import NARROW

Form = Literal["plugin", "standard"]

#: By how much the plugin may be slower, as a fraction, before it loses: less is no difference that a clock can tell.
TIE = 0.02
#: The same in half precision for ops whose plugin is more exact than standard ops, or else in milliseconds of a model,
#: with what it has for it: a linear's sums may be in float16 where TensorRT chooses. A head of few rows is slower by a
#: part of what kernels take to start, and engines with it in standard ops differed from PyTorch by 4e-3 and 5e-3, those
#: without by 2e-3.
WORTH = {"Linear": (0.10, 0.0025, "sums are in float32")}
_NO_WORTH = (TIE, 0.0, "")

_HEADINGS = ("op", "inputs", "nodes", "plugin ms", "standard ms", "chosen", "why")
_NUMBERS = ("nodes", "plugin ms", "standard ms")


@dataclass(frozen=True)
class Choice:
    """One op in one size, of which a model may have several nodes.

    Attributes:
        op: its type.
        attributes: by name, those that differ from the op's defaults.
        shapes: by input, at the usual shape of the first profile; empty where they cannot be told.
        nodes: the nodes that it is about, each by its first output.
        plugin_ms: milliseconds of the plugin by itself; None where there was nothing to measure.
        standard_ms: milliseconds of the op spelled out in standard ones; None where there was nothing to measure.
        chosen: ``"plugin"`` or ``"standard"``.
        why: the reason, in words.
        from_cache: whether it was measured at an earlier build.
    """

    op: str
    attributes: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    nodes: tuple[str, ...]
    plugin_ms: float | None
    standard_ms: float | None
    chosen: Form
    why: str
    from_cache: bool = False

    def to_dict(self) -> dict[str, Any]:
        """All of it in types that JSON knows."""
        found = asdict(self)
        return {
            **found,
            "attributes": {name: list(v) if isinstance(v, tuple) else v for name, v in self.attributes.items()},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "nodes": list(self.nodes),
        }

    def _cells(self) -> tuple[str, ...]:
        whole = {name: value for name, value in self.attributes.items() if not isinstance(value, float)}
        attributes = ", ".join(f"{name}={_sizes(v) if isinstance(v, tuple) else v}" for name, v in whole.items())
        return (
            f"{self.op}({attributes})" if attributes else self.op,
            ", ".join(f"{name} {_sizes(shape)}" for name, shape in self.shapes.items()),
            str(len(self.nodes)),
            _milliseconds(self.plugin_ms),
            _milliseconds(self.standard_ms),
            self.chosen,
            f"{self.why}, measured before" if self.from_cache else self.why,
        )


class Choices(tuple[Choice, ...]):
    """The choices of a build, one for each op in each size; print it for a table."""

    __slots__ = ()

    @property
    def spelled_out(self) -> frozenset[str]:
        """The nodes that are spelled out in standard ops, each by its first output."""
        return frozenset(name for choice in self if choice.chosen == "standard" for name in choice.nodes)

    @property
    def failures(self) -> list[str]:
        """What should have been plugins and cannot, with the reasons."""
        return [
            f"{choice.op} of {', '.join(choice.nodes)} is spelled out: {choice.why}"
            for choice in self
            if choice.chosen == "standard" and choice.plugin_ms is None
        ]

    def __str__(self) -> str:
        if not self:
            return ""
        rows = [_HEADINGS, *(choice._cells() for choice in self)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join("  ".join(map(_aligned, row, widths, _HEADINGS)).rstrip() for row in rows)


def by_time(op: str, precision: str, nodes: int, plugin_ms: float, standard_ms: float) -> tuple[Form, str]:
    """The faster of the two, and the reason; the plugin, if there is no telling, or if it is worth the difference.

    Args:
        op: its type.
        precision: of the engine.
        nodes: how many nodes of a model are to become it.
        plugin_ms: milliseconds of one as a plugin.
        standard_ms: the same in standard ops.
    """
    if plugin_ms <= standard_ms * (1 + TIE) and standard_ms <= plugin_ms * (1 + TIE):
        return "plugin", f"the same within {TIE:.0%}"
    if plugin_ms < standard_ms:
        return "plugin", f"{standard_ms / plugin_ms:.2f} times as fast"
    share, least, reason = WORTH.get(op, _NO_WORTH) if precision in NARROW else _NO_WORTH
    if plugin_ms <= standard_ms + max(share * standard_ms, least / nodes):
        return "plugin", f"{plugin_ms / standard_ms:.2f} times as long, and {reason}"
    return "standard", f"{plugin_ms / standard_ms:.2f} times as fast"


def _aligned(cell: str, width: int, heading: str) -> str:
    return cell.rjust(width) if heading in _NUMBERS else cell.ljust(width)


def _sizes(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

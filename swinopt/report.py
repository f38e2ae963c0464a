"""What each pass did to a model, and why it refused.

``swinopt.optimize`` fills a :class:`Report`; nothing here looks at a graph. A report is a value: it
prints as text, shows itself in a notebook, becomes a page of HTML, and survives the way through JSON unchanged.
"""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from swinopt.errors import OptionError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

Status = Literal["applied", "unchanged", "rolled back"]
_STYLES = {"applied": "green", "unchanged": "dim", "rolled back": "bold red"}
_T = TypeVar("_T")


@dataclass(frozen=True)
class Refusal:
    """One place where a pass did not apply: name of the node, or of its first output, and what did not hold there."""

    node: str
    reason: str


@dataclass(frozen=True)
class PassReport:
    """What one pass did.

    Attributes:
        name: name of the pass.
        status: ``"applied"``, ``"unchanged"`` or ``"rolled back"``.
        applied: number of rewrites made; 0 after a roll-back.
        nodes_before: number of nodes in the graph before the pass.
        nodes_after: number of nodes in the graph after the pass and, if there was one, its roll-back.
        seconds: time of the pass itself, in seconds.
        verify_seconds: time of checking the numbers, in seconds; the structure's is in ``seconds``.
        max_abs_diff: largest absolute difference of any output to the untouched model's; None where not checked.
        refusals: the places where the pass did not apply.
        note: why the pass was rolled back.
        first_divergence: name of the first tensor that differs from the untouched model's.
        remark: which differences are above the pass's tolerance, and no more than rounding makes in this model.
        ops_after: op type to number of nodes, after the pass and its roll-back.
    """

    name: str
    status: Status
    applied: int
    nodes_before: int
    nodes_after: int
    seconds: float
    verify_seconds: float = 0.0
    max_abs_diff: float | None = None
    refusals: tuple[Refusal, ...] = ()
    note: str | None = None
    first_divergence: str | None = None
    remark: str | None = None
    ops_after: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _own(self, "refusals", "ops_after")


@dataclass(frozen=True)
class Report:
    """What a pipeline did, pass by pass.

    Attributes:
        target: name of the target the model was optimized for.
        passes: one report a pass, in the order in which they ran.
        ops_before: op type to number of nodes, of the untouched model.
        ops_after: op type to number of nodes, of the optimized model.
        seconds: time of the whole run, verification included, in seconds.
        model: path of the model, or name of its graph.
        versions: package to version, of what took part.
        verified: whether numbers were compared with the untouched model's.
        max_abs_diff: largest absolute difference of any final output to the untouched model's; None where not checked.
    """

    target: str
    passes: tuple[PassReport, ...]
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    seconds: float
    model: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    verified: bool = False
    max_abs_diff: float | None = None

    def __post_init__(self) -> None:
        _own(self, "passes", "ops_before", "ops_after", "versions")

    @property
    def nodes_before(self) -> int:
        """Number of nodes in the untouched model."""
        return sum(self.ops_before.values())

    @property
    def nodes_after(self) -> int:
        """Number of nodes in the optimized model."""
        return sum(self.ops_after.values())

    @property
    def ok(self) -> bool:
        """Whether no pass had to be rolled back."""
        return all(p.status != "rolled back" for p in self.passes)

    def to_dict(self) -> dict[str, Any]:
        """The report in types that JSON knows, with ``ok``, ``nodes_before`` and ``nodes_after`` for other readers."""
        return {**_plain(self), "ok": self.ok, "nodes_before": self.nodes_before, "nodes_after": self.nodes_after}

    def to_json(self, indent: int | None = 2) -> str:
        """The report as strict JSON; a difference that is not finite becomes the string ``"nan"`` or ``"inf"``."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        """The report that :meth:`to_dict` was called on; keys it does not know are left out.

        Raises:
            OptionError: this is no report.
        """
        with _reading():
            return _restore(cls, {**data, "passes": [_restored_pass(entry) for entry in data["passes"]]})

    @classmethod
    def from_json(cls, text: str | bytes) -> Report:
        """The report that :meth:`to_json` was called on.

        Raises:
            OptionError: this is no JSON, or no report.
        """
        with _reading():
            return cls.from_dict(json.loads(text))

    def summary(self) -> str:
        """One line: nodes, time, passes and the largest difference."""
        counts = Counter(p.status for p in self.passes)
        undone = f", {counts['rolled back']} rolled back" if counts["rolled back"] else ""
        passes = f"{counts['applied']} of {len(self.passes)} passes applied{undone}"
        numbers = f"max abs diff {difference(self.max_abs_diff)}" if self.verified else "numbers not checked"
        nodes = f"{self.nodes_before} -> {self.nodes_after} nodes ({change(self.nodes_before, self.nodes_after)})"
        return f"{nodes} in {duration(self.seconds)}; {passes}; {numbers}"

    def __rich__(self) -> RenderableType:
        from rich.box import SIMPLE_HEAD

        return self._renderable(SIMPLE_HEAD)

    def __str__(self) -> str:
        from rich.box import Box
        from rich.console import Console

        # A log file or a Windows pipe may not be able to encode the lines that a terminal draws.
        ruled = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)
        # So wide that nothing wraps: whoever greps a log for a node name must find it in one piece.
        text = io.StringIO()
        console = Console(file=text, width=10_000, color_system=None, force_terminal=False, force_jupyter=False)
        console.print(self._renderable(ruled))
        return "\n".join(line.rstrip() for line in text.getvalue().split("\n")).rstrip()

    def to_html(self) -> str:
        """A page of HTML that needs nothing but itself: a picture of where the nodes went, and the tables."""
        from swinopt.report_html import page

        return page(self)

    def _repr_html_(self) -> str:
        from swinopt.report_html import fragment

        return fragment(self)

    def _renderable(self, frame: Any) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        title = printable(f"{self.model} for {self.target}" if self.model else self.target)
        parts: list[RenderableType] = [Text(title, style="bold"), self._table(frame), Text()]
        undone = [p for p in self.passes if p.status == "rolled back"]
        parts += [Text(f"rolled back: {printable(p.name)}: {why_rolled_back(p)}", style="bold red") for p in undone]
        allowed = allowed_for_rounding(self.passes)
        parts += [Text(f"rounding: {allowed}")] if allowed else []
        for p in self.passes:
            if p.refusals:
                parts.append(Text(f"{printable(p.name)} refused ({len(p.refusals)}):"))
            for reason, nodes in group_refusals(p.refusals):
                shown = ", ".join(printable(node) for node in nodes[:3]) + (", ..." if len(nodes) > 3 else "")
                line = Text.assemble(printable(reason), (f"  (x{len(nodes)}: {shown})", "dim"))
                parts.append(Padding(line, (0, 0, 0, 2), expand=False))
        parts.append(Text(self.summary(), style="bold" if self.ok else "bold red"))
        return Group(*parts)

    def _table(self, frame: Any) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=frame, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("pass", overflow="fold", min_width=14)
        for heading in ("applied", "nodes", "time", "max diff", "refused"):
            table.add_column(heading, justify="right", no_wrap=True)
        for p in self.passes:
            style = _STYLES[p.status]
            # Text, not str: rich would read "[bold]" in a str as markup.
            name = Text(printable(p.name), style=style if p.status == "rolled back" else "")
            applied = Text(str(p.applied) if p.status == "applied" else p.status, style=style)
            numbers = (duration(p.seconds), difference(p.max_abs_diff), str(len(p.refusals) or ""))
            table.add_row(name, applied, f"{p.nodes_before} -> {p.nodes_after}", *numbers)
        return table


def group_refusals(refusals: Iterable[Refusal]) -> list[tuple[str, list[str]]]:
    """Each reason with the nodes it was given for, the most frequent reason first."""
    groups: dict[str, list[str]] = {}
    for refusal in refusals:
        groups.setdefault(refusal.reason, []).append(refusal.node or "(unnamed)")
    return sorted(groups.items(), key=lambda group: -len(group[1]))


def why_rolled_back(p: PassReport) -> str:
    """The note of a pass that was rolled back, and the first tensor that diverged."""
    where = f"; first tensor that diverges: {printable(p.first_divergence)}" if p.first_divergence else ""
    return (printable(p.note) if p.note else "no reason given") + where


def allowed_for_rounding(passes: Iterable[PassReport]) -> str:
    """Names of the passes that added to what differs by rounding, with the last one's remark; empty if none did."""
    added, worst = list[PassReport](), 0.0
    for p in passes:
        if p.status != "rolled back" and p.max_abs_diff is not None and p.max_abs_diff > worst:
            worst = p.max_abs_diff
            added += [p] if p.remark else []
    return printable(f"{', '.join(dict.fromkeys(p.name for p in added))}: {added[-1].remark}") if added else ""


def printable(text: str) -> str:
    r"""The text in one line, with escapes for what a terminal obeys and XML rejects (``\x1b``, ``\u202e``, ...)."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


def duration(seconds: float) -> str:
    """A time given in seconds, in the unit that suits its size."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.00095 or not seconds else "<1 ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def difference(value: float | None) -> str:
    """A largest absolute difference, two digits; ``-`` where it was not measured."""
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def change(before: int, after: int) -> str:
    """The change from one count to another, in percent."""
    return f"{100 * (after - before) / before:+.0f} %" if before else "new" if after else "+0 %"


@contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise OptionError(f"not a swinopt report ({error!r}): give what Report.to_json() returned") from error


def _own(instance: object, *names: str) -> None:
    # Plain tuples and dicts: a report read back equals the one written, and a caller's Counter can go on counting.
    for name in names:
        value = getattr(instance, name)
        object.__setattr__(instance, name, dict(value) if isinstance(value, Mapping) else tuple(value))


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Real) and not isinstance(value, bool):
        # NumPy's scalars are Integral or Real, yet json refuses most of them.
        number = int(value) if isinstance(value, Integral) else float(value)
        return number if math.isfinite(number) else str(number)
    return value


def _restore(cls: type[_T], data: Mapping[str, Any]) -> _T:
    known = {f.name: data[f.name] for f in fields(cls) if f.name in data}  # type: ignore[arg-type]
    if known.get("max_abs_diff") is not None:
        known["max_abs_diff"] = float(known["max_abs_diff"])
    return cls(**known)


def _restored_pass(data: Mapping[str, Any]) -> PassReport:
    if data["status"] not in _STYLES:
        raise ValueError(f"status {data['status']!r}")
    return _restore(PassReport, {**data, "refusals": [_restore(Refusal, entry) for entry in data.get("refusals", ())]})

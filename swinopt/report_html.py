"""A :class:`~swinopt.report.Report` as HTML: one page that needs nothing but itself, or a fragment for a notebook.

The picture shows where the nodes went: a bar a pass, stacked by kind of operation, what the model is for at the bottom
and what the exporter added on top. Ribbons between the bars show which pass removed what.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from swinopt.report import (
    PassReport,
    Report,
    allowed_for_rounding,
    change,
    difference,
    duration,
    group_refusals,
    printable,
    why_rolled_back,
)

#: Kind of operation to the ONNX operators of that kind, from the bottom of a bar to its top.
GROUPS: Mapping[str, frozenset[str]] = {
    name: frozenset(ops.split())
    for name, ops in {
        "swinopt ops": "",
        "linear": "MatMul Gemm Conv ConvTranspose Einsum MatMulInteger QLinearMatMul QLinearConv FusedMatMul",
        "norm": "LayerNormalization SkipLayerNormalization SimplifiedLayerNormalization RMSNormalization"
        " BatchNormalization InstanceNormalization GroupNormalization LpNormalization MeanVarianceNormalization",
        "activation": "Gelu FastGelu QuickGelu BiasGelu Erf Relu LeakyRelu PRelu Elu Selu Celu Sigmoid HardSigmoid Tanh"
        " Swish HardSwish Mish Softplus Softsign",
        "arithmetic": "Add Sub Mul Div Pow Sqrt Reciprocal Neg Abs Sign Exp Log Min Max Clip Where Softmax LogSoftmax"
        " Sum Mean ReduceMean ReduceSum ReduceSumSquare ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2"
        " GlobalAveragePool AveragePool MaxPool Attention MultiHeadAttention",
        "layout": "Reshape Transpose Slice Concat Gather Pad Split Squeeze Unsqueeze Flatten Expand Tile Identity"
        " DepthToSpace SpaceToDepth GatherND GatherElements ScatterND ScatterElements Trilu Compress",
        "shape and constants": "Shape Size Constant ConstantOfShape Cast CastLike Range Mod Floor Ceil Round Equal"
        " Not And Or Xor Less LessOrEqual Greater GreaterOrEqual NonZero OneHot EyeLike",
        "other": "",
    }.items()
}
_COLOURS = ("#8250c8", "#3b74c4", "#1f9c8d", "#77ad3c", "#dba21f", "#dd6b37", "#b84a6d", "#8d939c")


def group_of(op_type: str) -> str:
    """The kind, a key of :data:`GROUPS`, of an op type such as ``"Add"`` or ``"swinopt::PatchMerging"``."""
    domain, _, name = op_type.rpartition("::")
    if domain == "swinopt":
        return "swinopt ops"
    return next((group for group, ops in GROUPS.items() if name in ops), "other")


def page(report: Report) -> str:
    """A complete page of HTML, free of scripts and of links to anything outside it."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>swinopt: {_text(report.model or report.target)}</title>\n<style>{_PAGE_CSS}{_CSS}</style>\n</head>\n"
        f"<body>\n{_content(report)}\n</body>\n</html>\n"
    )


def fragment(report: Report) -> str:
    """The same content for a notebook; its style reaches nothing outside it."""
    return f"<style>{_CSS}</style>\n{_content(report)}"


def _content(report: Report) -> str:
    top = (_heading(report), _alerts(report), _rounding(report), _picture(report))
    parts = (*top, _passes(report), _refusals(report), _details(report))
    return '<div class="swinopt-report">\n' + "\n".join(part for part in parts if part) + "\n</div>"


def _text(text: str) -> str:
    return escape(printable(text))


def _signed(number: str) -> str:
    return number.replace("-", "−")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


# ---------------------------------------------------------------------------------------------------- words and tables


def _heading(report: Report) -> str:
    counts = Counter(p.status for p in report.passes)
    others = [f"{counts[status]} {status}" for status in ("unchanged", "rolled back") if counts[status]]
    checking = sum(p.verify_seconds for p in report.passes)
    nodes = f"{report.nodes_before} → {report.nodes_after}"
    numbers = (difference(report.max_abs_diff), "to the untouched model") if report.verified else ("not checked", "")
    tiles = (
        ("nodes", nodes, _signed(change(report.nodes_before, report.nodes_after))),
        ("passes applied", f"{counts['applied']} of {len(report.passes)}", ", ".join(others)),
        ("time", duration(report.seconds), f"{duration(checking)} of it checking" if checking else ""),
        ("max abs diff", *numbers),
    )
    shown = "".join(
        f'<div><dt>{label}</dt><dd>{escape(value)}</dd><dd class="small">{escape(hint)}</dd></div>'
        for label, value, hint in tiles
    )
    name = _text(report.model) if report.model else "Optimization report"
    return f'<h1>{name}</h1>\n<p class="small">swinopt, for {_text(report.target)}</p>\n<dl class="tiles">{shown}</dl>'


def _alerts(report: Report) -> str:
    return "\n".join(
        f'<p class="alert"><b>{_text(p.name)}</b> was rolled back: {escape(why_rolled_back(p))}</p>'
        for p in report.passes
        if p.status == "rolled back"
    )


def _rounding(report: Report) -> str:
    allowed = allowed_for_rounding(report.passes)
    return f'<p class="small">Rounding: {escape(allowed)}</p>' if allowed else ""


def _passes(report: Report) -> str:
    most = max((abs(p.nodes_after - p.nodes_before) for p in report.passes), default=0) or 1
    rows = []
    for number, p in enumerate(report.passes, 1):
        delta = p.nodes_after - p.nodes_before
        bar = f'<i class="{"more" if delta > 0 else "less"}" style="width:{50 * abs(delta) / most:.1f}px"></i>'
        left = (str(number), printable(p.name), p.status, str(p.applied or ""), f"{p.nodes_before} → {p.nodes_after}")
        right = (
            duration(p.seconds),
            duration(p.verify_seconds) if p.verify_seconds else "",
            difference(p.max_abs_diff) if p.max_abs_diff is not None else "",
            str(len(p.refusals) or ""),
        )
        changed = f"{bar}<span>{_signed(f'{delta:+d}')}</span>" if delta else ""
        cells = "".join(f"<td>{cell}</td>" for cell in (*map(escape, left), changed, *map(escape, right)))
        rows.append(f'<tr class="{escape(p.status.replace(" ", "-"))}">{cells}</tr>')
    names = ("", "pass", "status", "rewrites", "nodes", "change", "time", "check", "max abs diff", "refused")
    return f'<h2>Passes</h2>\n<div class="wide">{_table("passes", names, rows)}</div>' if rows else ""


def _refusals(report: Report) -> str:
    blocks = []
    for p in report.passes:
        groups = group_refusals(p.refusals)
        reasons = "".join(
            f"<li>{_text(reason)} <b>×{len(nodes)}</b><br><code>{', '.join(map(_text, nodes))}</code></li>"
            for reason, nodes in groups
        )
        if groups:
            summary = f"{_plural(len(p.refusals), 'place')}, {_plural(len(groups), 'reason')}"
            blocks.append(
                f'<details><summary>{_text(p.name)} <span class="small">{summary}</span></summary>'
                f"<ul>{reasons}</ul></details>"
            )
    return "<h2>Where passes refused, and why</h2>\n" + "\n".join(blocks) if blocks else ""


def _details(report: Report) -> str:
    present = {op for counts in (report.ops_before, report.ops_after) for op, count in counts.items() if count}
    names = sorted(present, key=lambda op: (-report.ops_before.get(op, 0), op))
    ops = []
    for op in names:
        before, after = report.ops_before.get(op, 0), report.ops_after.get(op, 0)
        ops.append(
            f"<tr><td>{_text(op)}</td><td>{group_of(op)}</td><td>{before}</td><td>{after}</td>"
            f"<td>{_signed(change(before, after))}</td></tr>"
        )
    total = (
        f"<tr><th>total</th><td></td><td>{report.nodes_before}</td><td>{report.nodes_after}</td>"
        f"<td>{_signed(change(report.nodes_before, report.nodes_after))}</td></tr>"
    )
    table = _table("ops", ("operator", "kind", "before", "after", "change"), [*ops, total])
    versions = " · ".join(f"{_text(name)} {_text(version)}" for name, version in report.versions.items())
    return (
        f"<h2>Operators</h2>\n<details><summary>{_plural(len(names), 'operator')}, before and after</summary>"
        f'<div class="wide">{table}</div></details>' + (f'\n<p class="small foot">{versions}</p>' if versions else "")
    )


def _table(kind: str, names: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>\n' + "\n".join(rows) + "\n</tbody></table>"


# --------------------------------------------------------------------------------------------------------- the picture

_TOP, _HEIGHT, _LEFT, _RIGHT = 40, 300, 185, 175  # pixels: margins around the bars, and their height
_WEDGE, _LENS = 56, 30  # pixels: the way to the enlarged last bar, and its width


@dataclass(frozen=True)
class _State:
    """The graph after one pass: the nodes of each kind, and the pass that left them (None: nobody yet)."""

    title: str
    counts: Mapping[str, int]
    ops: Mapping[str, int]
    by: PassReport | None = None

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def _states(report: Report) -> list[_State]:
    states = [_State("original", _by_group(report.ops_before), report.ops_before)]
    for p in report.passes:
        before = states[-1]
        # A pass that did not say what it left: the same as before where the total stands, of unknown kind elsewhere.
        ops = p.ops_after or (before.ops if p.nodes_after == before.total else {"of unknown kind": p.nodes_after})
        states.append(_State(p.name, _by_group(ops), ops, p))
    return states


def _by_group(ops: Mapping[str, int]) -> dict[str, int]:
    counts = dict.fromkeys(GROUPS, 0)
    for op, count in ops.items():
        counts[group_of(op)] += count
    return counts


def _edges(state: _State, scale: float) -> dict[str, tuple[float, float]]:
    """Lower and upper edge of each kind's band, in pixels from the top of the picture; ``scale`` is pixels a node."""
    edges, y = {}, float(_TOP + _HEIGHT)
    for group, count in state.counts.items():
        edges[group] = (y, y - count * scale)
        y -= count * scale
    return edges


def _picture(report: Report) -> str:
    states = _states(report)
    most = max(state.total for state in states)
    if not most:
        return ""
    step = min(90.0, max(36.0, 660 / len(states)))
    bar, end = step * 0.56, _LEFT + step * (len(states) - 1) + step * 0.56
    longest = max(len(_short(state.title)) for state in states)
    width, height = end + _WEDGE + _LENS + _RIGHT, _TOP + _HEIGHT + 32 + 4.2 * longest
    scale = _HEIGHT / most
    marks = [_bands(state, _LEFT + i * step, bar, scale, states[max(i - 1, 0)]) for i, state in enumerate(states)]
    flows = [
        _ribbons(_edges(a, scale), _edges(b, scale), _LEFT + i * step + bar, _LEFT + (i + 1) * step, "flow")
        for i, (a, b) in enumerate(pairwise(states))
    ]
    marks += [_labels(states[0], _edges(states[0], scale), _LEFT - 7, "end")]
    if states[-1].total:
        marks += [_lens(states[-1], end, scale)]
    label = f"Nodes by kind after each pass: from {states[0].total} to {states[-1].total}"
    return (
        '<h2>Where the nodes went</h2>\n<div class="wide">'
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'style="min-width:{0.75 * width:.0f}px" role="img" aria-label="{label}">\n'
        + "\n".join([*flows, *marks])
        + "\n</svg></div>"
    )


def _bands(state: _State, x: float, bar: float, scale: float, before: _State) -> str:
    rolled_back = state.by is not None and state.by.status == "rolled back"
    status = state.by.status if state.by else "original"
    edges, middle = _edges(state, scale), x + bar / 2
    top = _TOP + _HEIGHT - state.total * scale
    delta = state.total - before.total
    told = f"{state.title}: {state.total} nodes" + (f" ({delta:+d})" if delta else "") + f", {status}"
    out = [f'<g><rect class="hit" x="{x:.1f}" y="{_TOP}" width="{bar:.1f}" height="{_HEIGHT}"/>']
    for index, (group, (low, high)) in enumerate(edges.items()):
        if state.counts[group]:
            tip = _tip(state, before, group)
            out.append(
                f'<rect class="k{index}" x="{x:.1f}" y="{high:.2f}" width="{bar:.1f}" height="{low - high:.2f}">'
                f"<title>{tip}</title></rect>"
            )
    if rolled_back:
        box = f'x="{x - 3:.1f}" y="{top - 3:.1f}" width="{bar + 6:.1f}" height="{state.total * scale + 6:.1f}"'
        out.append(f'<rect class="undone" {box} rx="3"/>')
    out.append(f'<text class="count" x="{middle:.1f}" y="{top - 8:.1f}" text-anchor="middle">{state.total}</text>')
    turn = f"translate({middle + 5:.1f} {_TOP + _HEIGHT + 18}) rotate(-38)"
    name = escape(_short(state.title))
    out.append(f'<text class="name {status.replace(" ", "-")}" transform="{turn}" text-anchor="end">{name}</text>')
    return "".join(out) + f"<title>{_text(told)}</title></g>"


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= 26 else name[:25] + "…"


def _tip(state: _State, before: _State, group: str) -> str:
    delta = state.counts[group] - before.counts[group]
    ops = sorted(((n, op) for op, n in state.ops.items() if n and group_of(op) == group), reverse=True)
    shown = ", ".join(f"{op} {n}" for n, op in ops[:6]) + (", ..." if len(ops) > 6 else "")
    head = f"{state.title}: {state.counts[group]} {group}" + (f" ({delta:+d})" if delta else "")
    return _text(f"{head}: {shown}" if shown else head)


def _ribbons(
    left: Mapping[str, tuple[float, float]], right: Mapping[str, tuple[float, float]], x0: float, x1: float, kind: str
) -> str:
    out = []
    for index, group in enumerate(GROUPS):
        (a, b), (c, d) = left[group], right[group]
        if a - b or c - d:
            points = f"{x0:.1f},{a:.2f} {x0:.1f},{b:.2f} {x1:.1f},{d:.2f} {x1:.1f},{c:.2f}"
            out.append(f'<polygon class="{kind} k{index}" points="{points}"/>')
    return "".join(out)


def _lens(state: _State, x: float, scale: float) -> str:
    """The last bar once more, as high as the picture: few nodes are left, and these are the ones worth a look."""
    enlarged = _HEIGHT / state.total
    small, large, at = _edges(state, scale), _edges(state, enlarged), x + _WEDGE
    bands = "".join(
        f'<rect class="k{index}" x="{at:.1f}" y="{high:.2f}" width="{_LENS}" height="{low - high:.2f}">'
        f"<title>{_tip(state, state, group)}</title></rect>"
        for index, (group, (low, high)) in enumerate(large.items())
        if state.counts[group]
    )
    note = f"enlarged ×{enlarged / scale:.0f}" if enlarged / scale >= 1.5 else ""
    return (
        _ribbons(small, large, x, at, "wedge")
        + bands
        + f'<text class="count" x="{at + _LENS / 2:.1f}" y="{_TOP - 8}" text-anchor="middle">{state.total}</text>'
        + f'<text class="note" x="{at + _LENS / 2:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{note}</text>'
        + _labels(state, large, at + _LENS + 7, "start")
    )


def _labels(state: _State, edges: Mapping[str, tuple[float, float]], x: float, anchor: str) -> str:
    groups = [group for group in GROUPS if state.counts[group]]
    heights = _apart([(low + high) / 2 for low, high in (edges[group] for group in groups)], 15.0)
    out = []
    for group, y in zip(groups, heights, strict=True):
        swatch = f'<tspan class="k{list(GROUPS).index(group)}">■</tspan>'
        words = f'{group} <tspan class="value">{state.counts[group]}</tspan>'
        words = f"{words} {swatch}" if anchor == "end" else f"{swatch} {words}"
        out.append(f'<text class="label" x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{words}</text>')
    return "".join(out)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The descending heights, moved until neighbours are ``gap`` pixels apart and all are beside the bars."""
    placed: list[float] = []
    for y in heights:
        placed.append(min(y, placed[-1] - gap) if placed else min(y, _TOP + _HEIGHT - 4.0))
    limit = float(_TOP)
    for index in reversed(range(len(placed))):
        placed[index] = max(placed[index], limit)
        limit = placed[index] + gap
    return placed


_PAGE_CSS = """
body { margin: 0; background: #fff; }
body > .swinopt-report { max-width: 1120px; margin: 0 auto; padding: 32px 24px 48px; }
@media (prefers-color-scheme: dark) { body { background: #14171c; } }
"""

_CSS = """
.swinopt-report { --ink: #1d232b; --soft: #66707c; --line: #dfe3e8; --paper: #fff; --panel: #f5f7f9; --bad: #c4302b;
  --good: #1d7f4e; background: var(--paper); color: var(--ink); font: 14px/1.5 system-ui, sans-serif; padding: 12px; }
@media (prefers-color-scheme: dark) { .swinopt-report { --ink: #e4e8ee; --soft: #98a2af; --line: #323943;
  --paper: #14171c; --panel: #1e232a; --bad: #ff7b72; --good: #56c98d; } }
.swinopt-report h1 { font-size: 22px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
.swinopt-report h2 { font-size: 15px; margin: 30px 0 8px; }
.swinopt-report .small { color: var(--soft); font-size: 12.5px; margin: 2px 0; font-weight: 400; }
.swinopt-report .tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0; }
.swinopt-report .tiles div { flex: 1 1 150px; background: var(--panel); border-radius: 8px; padding: 10px 14px; }
.swinopt-report dt { color: var(--soft); font-size: 12.5px; font-weight: 400; }
.swinopt-report dd { margin: 0; font-size: 20px; font-weight: 600; white-space: nowrap; }
.swinopt-report dd.small { font-size: 12.5px; font-weight: 400; min-height: 1.5em; }
.swinopt-report .alert { border-left: 4px solid var(--bad); background: var(--panel); padding: 8px 14px;
  border-radius: 0 8px 8px 0; overflow-wrap: anywhere; }
.swinopt-report .alert b { color: var(--bad); }
.swinopt-report .wide { overflow-x: auto; }
.swinopt-report table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px;
  color: inherit; }
.swinopt-report table.passes { width: 100%; }
.swinopt-report :is(th, td) { padding: 5px 10px; text-align: right; white-space: nowrap; background: none;
  border: 0; border-bottom: 1px solid var(--line); }
.swinopt-report thead th { color: var(--soft); font-weight: 500; }
.swinopt-report .passes :is(th, td):nth-child(-n+3) { text-align: left; }
.swinopt-report .ops :is(th, td):nth-child(-n+2) { text-align: left; }
.swinopt-report .passes td:nth-child(2) { font-weight: 500; }
.swinopt-report .passes td:nth-child(3) { font-size: 12px; }
.swinopt-report .passes :is(td:nth-child(1), .unchanged td:nth-child(3)) { color: var(--soft); font-size: 12px; }
.swinopt-report .applied td:nth-child(3) { color: var(--good); }
.swinopt-report .rolled-back :is(td:nth-child(2), td:nth-child(3)) { color: var(--bad); font-weight: 600; }
.swinopt-report td i { display: inline-block; height: 8px; border-radius: 2px; background: var(--good); }
.swinopt-report td i + span { display: inline-block; min-width: 4em; }
.swinopt-report td i.more { background: var(--bad); }
.swinopt-report details { border-bottom: 1px solid var(--line); padding: 6px 0; }
.swinopt-report summary { cursor: pointer; font-weight: 500; }
.swinopt-report ul { margin: 6px 0; padding-left: 22px; }
.swinopt-report li { margin-bottom: 6px; overflow-wrap: anywhere; }
.swinopt-report code { color: var(--soft); font-size: 12px; background: none; }
.swinopt-report .foot { margin-top: 28px; }
.swinopt-report svg { display: block; max-width: 100%; height: auto; }
.swinopt-report svg text { fill: var(--ink); font-size: 12px; }
.swinopt-report svg .count { font-weight: 600; font-size: 11.5px; }
.swinopt-report svg :is(.note, .unchanged, .label) { fill: var(--soft); }
.swinopt-report svg .rolled-back { fill: var(--bad); font-weight: 600; }
.swinopt-report svg .value { font-weight: 600; fill: var(--ink); }
.swinopt-report svg .hit { fill: transparent; }
.swinopt-report svg .undone { fill: none; stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; }
.swinopt-report svg .flow { opacity: 0.35; }
.swinopt-report svg .wedge { opacity: 0.14; }
""" + "".join(f".swinopt-report .k{i} {{ fill: {colour}; }}\n" for i, colour in enumerate(_COLOURS))

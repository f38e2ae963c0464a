"""The page of the table that graphs.py measures, and the README's short one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from graphs_table import FORBIDDEN_IN_BLOCKS, TARGETS, Row, counted
from pages import fill_in, table

README = Path(__file__).resolve().parent.parent / "README.md"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _parts(row: Row) -> str:
    return f"{_number(row.blocks.get('tensorrt'))} / {row.merging} / {row.rest}"


def _nodes(target: str, row: Row) -> str:
    return _number(row.nodes.get(target))


def _difference(target: str, row: Row) -> str:
    value = row.diff.get(target)
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


_GRAPH_COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "exporter": lambda row: row.exporter,
    "as exported": lambda row: _number(row.exported or None),
    "onnxsim": lambda row: _number(row.onnxsim),
    **{target: partial(_nodes, target) for target in TARGETS},
    "WindowAttention": lambda row: f"{row.attentions} of {row.block_count}" if row.block_count else "-",
    "block / merging / rest": lambda row: _parts(row) if row.block_count else "-",
    "block (8.6)": lambda row: _number(row.blocks.get("tensorrt-8.6")),
    "forbidden": lambda row: counted(row.forbidden) if row.block_count else "-",
}
_COST_COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "exporter": lambda row: row.exporter,
    "max abs output": lambda row: f"{row.scale:.2g}",
    **{f"diff {target}": partial(_difference, target) for target in TARGETS},
    "optimize": lambda row: _seconds(row.seconds),
    "onnxsim": lambda row: _seconds(row.onnxsim_seconds),
    "file": lambda row: _megabytes(row.file_bytes),
    "peak memory": lambda row: _megabytes(row.peak_bytes),
    "peak / file": lambda row: f"{row.peak_bytes / row.file_bytes:.1f}" if row.peak_bytes else "-",
}


def _table(columns: dict[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    return "\n".join(table(list(columns), [[column(row) for column in columns.values()] for row in rows], left=2))


def as_markdown(rows: Sequence[Row], misses: Sequence[str], setting: dict[str, str]) -> str:
    """The tables with where, when and with what they were measured."""
    verdict = [f"- {miss}" for miss in misses] or ["None is missed."]
    parts = [
        "# The graphs that swinopt makes",
        "Written by `python benchmarks/graphs.py`, whose docstring says what is counted as what.",
        "\n".join(f"- {name}: {value}" for name, value in setting.items()),
        "## Nodes",
        "By target; `block / merging / rest`: nodes of the largest block, of the largest patch merging, and of stem "
        "and head together, for target tensorrt; `block (8.6)`: nodes of the largest block for target tensorrt-8.6; "
        f"`forbidden`: {', '.join(FORBIDDEN_IN_BLOCKS)} left inside blocks for either of the two.",
        _table(_GRAPH_COLUMNS, rows),
        "## Numbers, time and memory",
        "Largest absolute difference to the exported model on two random inputs, fp32, ONNX Runtime without "
        "optimizations, by target; median time of `optimize(path, verify=False)` for target tensorrt and of "
        "`onnxsim.simplify(path)`, taking turns in one process; highest resident memory of a process that does nothing "
        "but one `optimize`, interpreter and packages included.",
        _table(_COST_COLUMNS, rows),
        "## Bars missed",
        "\n".join(verdict),
    ]
    return "\n\n".join(parts) + "\n"


#: The rows and columns that stand in the README.
_README_MODELS = ("swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224", "swinv2_tiny_window8_256")
_README_COLUMNS = {
    **{name: _GRAPH_COLUMNS[name] for name in ("model", "exporter", "as exported", "onnxsim", "tensorrt", "portable")},
    "max abs diff": _COST_COLUMNS["diff tensorrt"],
}


def write_into_readme(rows: Sequence[Row], setting: dict[str, str]) -> None:
    """Puts the README's rows between its two markers."""
    short = _table(_README_COLUMNS, [row for row in rows if row.model in _README_MODELS])
    measured = "\n".join(
        [
            "Measured by `python benchmarks/graphs.py`; [all its results](benchmarks/results/graphs.md).",
            "",
            *(f"- {name}: {setting[name]}" for name in ("date", "machine", "system", "packages")),
        ]
    )
    fill_in(README, "measured", f"{short}\n\n{measured}")

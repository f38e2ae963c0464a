"""The page of the table that h200.py measures: what missed its bar, the plots, and the README's short table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cells import PEAKS
from h200_table import COLUMNS, ROWS, Row, Store
from pages import fill_in, table, tell_missed

README = Path(__file__).resolve().parent.parent / "README.md"
OURS, STOCK, COMPILED = "swinopt", "TensorRT", ("compile", "compile max")

#: Most of another column's time that swinopt may take: by row, of stock TensorRT and of the better torch.compile.
STOCK_BARS = {"Swin-B 224 fp16 B=32": 0.55, "Swin-B 224 fp16 B=1": 0.70, "SwinV2-B 256 w16 fp16 B=32": 0.60}
COMPILE_BARS = {"Swin-B 224 fp16 B=32": 0.70, "Swin-B 224 fp16 B=1": 0.60}
#: Most of stock TensorRT's difference to PyTorch that swinopt may show.
DIFFERENCE_BAR = 1.5
_UNDATED = {"Date": None}  # of a plot: it changes with the results alone


def report(store: Store) -> int:
    """Writes the page and the plots beside the store, and the README's table; 1 if a bar is missed."""
    rows = [row for row in ROWS if any(store.row(row).values())]
    if not rows:
        print("nothing has been measured yet")
        return 1
    missed = [bar for row in ROWS for bar in missed_bars(row, store.row(row))]
    folder = store.path.parent
    (folder / "h200.md").write_text(page(rows, store, missed), encoding="utf-8")
    plot(rows, store, folder)
    write_into_readme(rows, store)
    return tell_missed(missed)


def missed_bars(row: Row, cells: dict[str, Any]) -> Iterator[str]:
    """What one row does not reach, or does not show."""
    absent = [column for column, cell in cells.items() if cell is None]
    if absent:
        yield f"{row.name}: not measured" + (f": {', '.join(absent)}" if len(absent) < len(cells) else "")
    for column, cell in cells.items():
        if cell and cell.get("nan"):
            yield f"{row.name}, {column}: {cell['nan']} NaN"
        # Stock TensorRT may fail; what nobody can then be compared with is no bar that is met.
        if cell and "error" in cell and column in (OURS, *(COMPILED if row.name in COMPILE_BARS else ())):
            yield f"{row.name}, {column}: {cell['error']}"
    ours = cells[OURS]
    if not ours or "ms" not in ours:
        return
    if row.name in STOCK_BARS and cells[STOCK] and "error" in cells[STOCK]:
        yield f"{row.name}, {STOCK}: {cells[STOCK]['error']}"
    stock, compiled = ratio(cells, STOCK), [r for column in COMPILED if (r := ratio(cells, column))]
    if stock is not None and stock > STOCK_BARS.get(row.name, 1.0):
        yield f"{row.name}: {stock:.2f} of stock TensorRT's time, bar {STOCK_BARS.get(row.name, 1.0)}"
    if row.name in COMPILE_BARS and compiled and max(compiled) > COMPILE_BARS[row.name]:
        yield f"{row.name}: {max(compiled):.2f} of torch.compile's time, bar {COMPILE_BARS[row.name]}"
    if stock is not None and ours["max_abs_diff"] > DIFFERENCE_BAR * cells[STOCK]["max_abs_diff"]:
        yield (
            f"{row.name}: differs by {ours['max_abs_diff']:.1e}, more than {DIFFERENCE_BAR} times stock TensorRT's "
            f"{cells[STOCK]['max_abs_diff']:.1e}"
        )


def ratio(cells: dict[str, Any], column: str) -> float | None:
    """swinopt's time as a part of another column's: of rounds in turns where there are some, else of the medians."""
    ours, other = cells.get(OURS), cells.get(column)
    if column == STOCK and ours and other and "of_stock" in ours and ours["run"] == other.get("run"):
        return float(ours["of_stock"][len(ours["of_stock"]) // 2])
    return ours["ms"] / other["ms"] if ours and other and "ms" in ours and "ms" in other else None


def page(rows: Sequence[Row], store: Store, missed: Sequence[str]) -> str:
    peaks = store.cells[PEAKS][PEAKS]
    runs = {cell["run"] for row in rows for cell in store.row(row).values() if cell}
    lines = [
        "# Swins in every runtime",
        "",
        "Measured by `python benchmarks/h200.py`; random weights. Milliseconds a batch, median; below it images a "
        "second and the largest difference to PyTorch in fp32 (TF32 off). `-`: not part of the row; empty: not "
        "measured yet. PyTorch, TensorRT and swinopt by events of the GPU, ONNX Runtime by the clock, with its own "
        "synchronization; the engines of a run share one timing cache.",
        "",
        *(f"- {name}: {value}" for name, value in setting(rows, store).items()),
        f"- peaks: {peaks['fp16_tflop_s']:.0f} TFLOP/s in fp16, {peaks['tf32_tflop_s']:.0f} in tf32, "
        f"{peaks['fp32_tflop_s']:.0f} in fp32 (products of 8192 x 8192), a copy {peaks['copy_tb_s']:.2f} TB/s",
        f"- runs: {len(runs)}; cells with * are from another one than swinopt's",
        "",
        *table(
            ["", *COLUMNS, "of stock", "of compile"],
            [[row.name, *_cells(row, store, COLUMNS, _text), *_ratios(row, store)] for row in rows],
        ),
        "",
        "## More of each",
        "",
        *table(
            ["row", "column", "ms", "spread", "images/s", "of peak", "max abs diff", "NaN", "build s", "memory MiB"],
            [_details(row, column, cell) for row in rows for column, cell in store.row(row).items() if cell],
        ),
        "",
        "## Bars",
        "",
        *([f"- MISSED: {bar}" for bar in missed] or ["All are met."]),
        "",
        "![Throughput of Swin-B 224 in fp16 over the batch](h200-throughput.svg)",
        "",
        "![Share of the peak](h200-peak.svg)",
        "",
    ]
    return "\n".join(lines)


def setting(rows: Sequence[Row], store: Store) -> dict[str, str]:
    """Where, when and with what; of everything that was found, if it was not always the same."""
    cells = [cell for row in rows for cell in store.row(row).values() if cell]
    found = {"date": ", ".join(sorted({cell["measured"][:10] for cell in cells}))}
    for name, of in (("machine", ("GPU", "driver")), ("packages", None)):
        parts: dict[str, set[str]] = {}
        for cell in cells:
            known = {**cell["machine"], **({"tensorrt": cell["TensorRT"]} if "TensorRT" in cell else {})}
            for key, value in known.items():
                if (key in of) if of else (key not in ("GPU", "driver", "Python")):
                    parts.setdefault(key, set()).add(value)
        found[name] = ", ".join(f"{key} {' and '.join(sorted(values))}" for key, values in parts.items())
    return found


def _cells(row: Row, store: Store, columns: Iterable[str], text: Callable[[dict[str, Any] | None], str]) -> list[str]:
    """The row's cells as texts; a * marks those that were not measured in the run that swinopt was measured in."""
    cells = store.row(row)
    run = (cells[OURS] or {}).get("run")
    is_other = {column: bool(run and cell and cell["run"] != run) for column, cell in cells.items()}
    return [text(cells[c]) + "*" * is_other[c] if c in cells else "-" for c in columns]


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if "error" in cell:
        return f"failed: {cell['error'][:60]}"
    return f"{cell['ms']:.2f}<br>{cell['images_s']:.0f}/s, {_difference(cell)}"


def _difference(cell: dict[str, Any]) -> str:
    return f"{cell['nan']} NaN" if cell["nan"] else f"{cell['max_abs_diff']:.1e}"


def _ratios(row: Row, store: Store) -> list[str]:
    cells = store.row(row)
    compiled = [r for column in COMPILED if (r := ratio(cells, column))]
    stock = ratio(cells, STOCK)
    return [f"{stock:.2f}" if stock else "", f"{max(compiled):.2f}" if compiled else ""]


def _details(row: Row, column: str, cell: dict[str, Any]) -> list[str]:
    if "error" in cell:
        return [row.name, column, f"failed: {cell['error']}", *[""] * 7]
    return [
        row.name,
        column,
        f"{cell['ms']:.3f}",
        f"{cell['spread']:.1%}",
        f"{cell['images_s']:.0f}",
        f"{cell['of_peak']:.1%}" if "of_peak" in cell else "",
        f"{cell['max_abs_diff']:.1e}",
        str(cell["nan"]),
        f"{cell['build_s'] + cell.get('optimize_s', 0):.1f}" if "build_s" in cell else "",
        str(cell["memory_mib"]),
    ]


def plot(rows: Sequence[Row], store: Store, folder: Path) -> None:
    """Throughput of Swin-B over the batch, and the share of the peak of every row."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "h200"  # or the names in it would be others every time
    base = sorted((row for row in rows if (row.model, row.precision) == ("Swin-B 224", "fp16")), key=lambda r: r.batch)
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for column in COLUMNS:
        points = [(row.batch, c["images_s"]) for row in base if (c := store.row(row).get(column)) and "ms" in c]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=column)
    axes.set(xlabel="batch", ylabel="images a second", title="Swin-B 224, fp16", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(folder / "h200-throughput.svg", bbox_inches="tight", metadata=_UNDATED)
    shares = {
        column: [100 * (store.row(row).get(column) or {}).get("of_peak", 0) for row in rows]
        for column in (OURS, STOCK, *COMPILED)
    }
    shown = [column for column, values in shares.items() if any(values)]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.22 * len(rows) * max(1, len(shown))))
    height = 0.8 / max(1, len(shown))
    for index, column in enumerate(shown):
        axes.barh([place + index * height for place in range(len(rows))], shares[column], height, label=column)
    axes.set_yticks([place + 0.4 for place in range(len(rows))], [row.name for row in rows], fontsize=8)
    axes.set(xlabel="% of what a large matrix product of the same precision reaches")
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    figure.savefig(folder / "h200-peak.svg", bbox_inches="tight", metadata=_UNDATED)
    pyplot.close("all")


def write_into_readme(rows: Sequence[Row], store: Store) -> None:
    """Puts a short table between the README's markers, if any: of what swinopt and stock TensorRT have both run."""
    rows = [row for row in rows if store.row(row)[STOCK] and store.row(row)[OURS]]
    columns = [column for column in COLUMNS if any(store.row(row).get(column) for row in rows)]
    lines = table(
        ["ms a batch", *columns, "of stock", "of compile"],
        [[row.name, *_cells(row, store, columns, _short), *_ratios(row, store)] for row in rows],
    )
    measured = "\n".join(lines)
    where = "\n".join(f"- {name}: {value}" for name, value in setting(rows, store).items())
    source = (
        "In parentheses the largest difference to PyTorch in fp32. What is told of stock is from rounds in which both "
        "engines take turns, if one run made both, the rest from each alone; cells with * are from another run than "
        "swinopt's; `-` is no part of the row. Measured by `python benchmarks/h200.py`; "
        "[all its results](benchmarks/results/h200.md)."
    )
    fill_in(README, "speed", f"{measured}\n\n{source}\n\n{where}")


def _short(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return "fails" if "error" in cell else f"{cell['ms']:.2f} ({_difference(cell)})"

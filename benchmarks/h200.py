"""The table: Swins of every size in PyTorch, ONNX Runtime and TensorRT, with and without swinopt, on the GPU at hand.

    python benchmarks/h200.py [--tensorrt-python PYTHON] [--onnxruntime-python PYTHON] [--folder FOLDER]
                              [--rows TEXT] [--columns TEXT] [--seconds N] [--at-a-time N] [--report]

Run it where PyTorch with CUDA and timm are. TensorRT and ONNX Runtime may live in Pythons of their own; TensorRT 8.6
needs the plugin library in its place or named by SWINOPT_PLUGINS. A full run takes many hours, most of them
TensorRT's builds, so it can run in parts: what results/h200.json has is not measured again, unless ``--again`` is
given; ``--rows`` and ``--columns`` take names or parts of them, several if need be; with ``--seconds`` it ends after
that time, and leaves what is not done then for the next run; ``--at-a-time`` first makes the engines and compiled
modules of all that is asked for, so many at the same time: they may disturb one another's choices a little, stock
TensorRT's and swinopt's alike. The cells of a row are measured one after the other, each in a process of its own, and
bear the time of their run: the report says which rows are from more than one. Engines of swinopt and of stock
TensorRT are timed in turns as well, where one run makes both, and that is what their ratio is taken from. Exports and
stock engines that plugins.py has left in the same FOLDER serve here, too.

Writes benchmarks/results/h200.json, h200.md, two plots and, where the README has the markers ``<!-- speed -->`` and
``<!-- /speed -->``, the table between them; ``--report`` does only that. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cells import PEAKS, PREPARE
from pages import fill_in, table

from swinopt.engine import write_whole

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
_LONGEST_CELL = 1800  # seconds

#: Column to the Python that runs it.
COLUMNS = {
    "torch fp32": "torch",
    "torch": "torch",
    "compile": "torch",
    "compile max": "torch",
    "ONNX Runtime": "onnxruntime",
    "ONNX Runtime, optimized": "onnxruntime",
    "TensorRT": "tensorrt",
    "TensorRT, unfolded": "tensorrt",
    "swinopt, no plugins": "tensorrt",
    "swinopt": "tensorrt",
}
OURS, STOCK, COMPILED = "swinopt", "TensorRT", ("compile", "compile max")


@dataclass(frozen=True)
class Row:
    """One model in one precision, at one batch size."""

    model: str
    precision: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.model} {self.precision} B={self.batch}"

    @property
    def columns(self) -> tuple[str, ...]:
        left_out = set()
        if self.precision != "fp16":
            left_out |= {"torch fp32"}
        if self.model != "Swin-B 224":
            left_out |= {"compile max"}
        return tuple(column for column in COLUMNS if column not in left_out)


ROWS = (
    *(Row("Swin-B 224", "fp16", batch) for batch in (1, 32, 8, 64)),
    *(Row("Swin-B 224", precision, batch) for precision in ("fp32", "tf32") for batch in (1, 32)),
    *(
        Row(model, "fp16", batch)
        for model in ("SwinV2-B 256 w16", "Swin-T 224", "Swin-S 224", "Swin-L 224", "Swin-B 384 w12")
        for batch in (1, 32)
    ),
)

#: Most of another column's time that swinopt may take: by row, of stock TensorRT and of the better torch.compile.
STOCK_BARS = {"Swin-B 224 fp16 B=32": 0.55, "Swin-B 224 fp16 B=1": 0.70, "SwinV2-B 256 w16 fp16 B=32": 0.60}
COMPILE_BARS = {"Swin-B 224 fp16 B=32": 0.70, "Swin-B 224 fp16 B=1": 0.60}
#: Most of stock TensorRT's difference to PyTorch that swinopt may show.
DIFFERENCE_BAR = 1.5


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensorrt-python", default=sys.executable, help="the Python that has TensorRT")
    parser.add_argument("--onnxruntime-python", default=sys.executable, help="the Python that has onnxruntime-gpu")
    kept = "where exports, inputs and engines lie; what is there is not made again"
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "h200", help=kept)
    parser.add_argument("--rows", action="append", help="a part of the names of rows to measure")
    parser.add_argument("--columns", action="append", help="a part of the names of columns to measure")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this time")
    parser.add_argument("--at-a-time", type=int, default=0, help="engines and modules to be made at the same time")
    parser.add_argument("--again", action="store_true", help="measure what has been measured before, too")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the results")
    arguments = parser.parse_args(argv)
    store = Store(RESULTS / "h200.json")
    if not arguments.report:
        measure(arguments, store)
    return report(store)


class Store:
    """What has been measured, by row and column, in one JSON file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def has(self, row: str, column: str) -> bool:
        return column in self.cells.get(row, {})

    def add(self, row: str, column: str, found: dict[str, Any]) -> None:
        self.cells.setdefault(row, {})[column] = found
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, f"{json.dumps(self.cells, indent=1)}\n".encode())

    def row(self, row: Row) -> dict[str, Any]:
        return {column: self.cells.get(row.name, {}).get(column) for column in row.columns}


# ------------------------------------------------------------------------------------------------------------ measuring


def measure(arguments: argparse.Namespace, store: Store) -> None:
    """Measures what is asked for and not there, cell by cell."""
    pythons = {
        "torch": sys.executable,
        "tensorrt": arguments.tensorrt_python,
        "onnxruntime": arguments.onnxruntime_python,
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run, end = datetime.now().isoformat(), time.monotonic() + arguments.seconds
    wanted = {row: missing for row in ROWS if (missing := _missing(row, arguments, store))}
    if arguments.at_a_time:
        _prepare(wanted, pythons, arguments.folder, arguments.at_a_time, end)
    for row, missing in wanted.items():
        # Every run measures its peaks, and what others read does not outlive the machine.
        if store.cells.get(PEAKS, {}).get(PEAKS, {}).get("run") != run:
            peaks = _cell(PEAKS, row, sys.executable, arguments.folder, end)
            if peaks is None:
                return
            if "error" in peaks:
                raise SystemExit(f"nothing can be measured here: {peaks['error']}")
            store.add(PEAKS, PEAKS, {**peaks, "run": run})
        exported = _cell("export", row, sys.executable, arguments.folder, end)
        if exported is None:
            return
        if "error" in exported:
            print(f"{row.name} cannot be exported: {exported['error']}")
            continue
        for column in missing:
            found = _cell(column, row, pythons[COLUMNS[column]], arguments.folder, end)
            if found is None:
                return
            if "error" in found and "ms" in store.cells.get(row.name, {}).get(column, {}):
                print(f"{row.name}, {column}: kept what was measured before, since now: {found['error']}")
                continue
            peaks = store.cells[PEAKS][PEAKS]
            store.add(row.name, column, {**found, **_shares(found, exported, peaks, row, column), "run": run})


def _missing(row: Row, arguments: argparse.Namespace, store: Store) -> list[str]:
    """The columns of a row that are asked for, and not there."""
    if arguments.rows is not None and not any(part in row.name for part in arguments.rows):
        return []
    return [
        column
        for column in row.columns
        if (arguments.columns is None or any(part in column for part in arguments.columns))
        and (arguments.again or not store.has(row.name, column))
    ]


def _prepare(wanted: dict[Row, list[str]], pythons: dict[str, str], folder: Path, at_a_time: int, end: float) -> None:
    """Makes what takes long, several at the same time; what fails is told by the cell that wants it."""

    def make(task: tuple[Row, str]) -> None:
        row, column = task
        python = sys.executable if column == "export" else pythons[COLUMNS[column]]
        _cell(column, row, python, folder, end, prepare=column != "export")

    with ThreadPoolExecutor(at_a_time) as pool:
        list(pool.map(make, [(row, "export") for row in wanted]))
        columns = [column for column in COLUMNS if column in PREPARE]
        list(pool.map(make, [(row, c) for row, missing in wanted.items() for c in columns if c in missing]))


def _cell(column: str, row: Row, python: str, folder: Path, end: float, prepare: bool = False) -> dict[str, Any] | None:
    """Runs one cell in a process of its own; one that dies is a result as well, and None is one that was cut off."""
    output = folder / f"{row.name} {column}.json".replace(" ", "_")
    output.unlink(missing_ok=True)
    names = [column, row.model, row.precision, str(row.batch), str(folder), str(output)]
    names += ["--prepare"] if prepare else []
    left = end - time.monotonic()
    if left <= 0:
        return None
    print(f"{row.name}: {column}{' (to be measured)' if prepare else ''}", flush=True)
    lost = {"measured": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": {}}
    command = [python, str(ROOT / "benchmarks" / "cells.py"), *names]
    try:
        done = subprocess.run(command, timeout=min(_LONGEST_CELL, left))
    except subprocess.TimeoutExpired:
        return None if left < _LONGEST_CELL else {"error": f"not done after {_LONGEST_CELL} s", **lost}
    if not output.exists():
        return {"error": f"the process ended with {done.returncode}", **lost}
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return found


def _shares(
    found: dict[str, Any], exported: dict[str, Any], peaks: dict[str, Any], row: Row, column: str
) -> dict[str, Any]:
    """The share of what a large matrix product of the precision reaches."""
    peak = peaks.get(f"{'fp32' if column == 'torch fp32' else row.precision}_tflop_s")
    if "ms" not in found or not peak:
        return {}
    return {"of_peak": exported["flop_per_image"] * row.batch / found["ms"] / 1e9 / peak}


# ------------------------------------------------------------------------------------------------------------ reporting


def report(store: Store) -> int:
    """Writes the page, the plots and the README's table; 1 if a bar is missed."""
    rows = [row for row in ROWS if any(store.row(row).values())]
    if not rows:
        print("nothing has been measured yet")
        return 1
    missed = [bar for row in ROWS for bar in missed_bars(row, store.row(row))]
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "h200.md").write_text(page(rows, store, missed), encoding="utf-8")
    plot(rows, store)
    write_into_readme(rows, store)
    print("\n".join(f"MISSED: {bar}" for bar in missed) or "every bar is met")
    return 1 if missed else 0


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
        "synchronization; build times share one timing cache, so that later columns build faster.",
        "",
        *(f"- {name}: {value}" for name, value in setting(rows, store).items()),
        f"- peaks: {peaks['fp16_tflop_s']:.0f} TFLOP/s in fp16, {peaks['tf32_tflop_s']:.0f} in tf32, "
        f"{peaks['fp32_tflop_s']:.0f} in fp32 (products of 8192 x 8192), a copy {peaks['copy_tb_s']:.2f} TB/s",
        f"- runs: {len(runs)}; rows with * are from more than one",
        "",
        *table(
            ["", *COLUMNS, "of stock", "of compile"],
            [[_row_name(row, store), *_cells(row, store), *_ratios(row, store)] for row in rows],
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


def _row_name(row: Row, store: Store) -> str:
    runs = {cell["run"] for cell in store.row(row).values() if cell}
    return row.name + ("*" if len(runs) > 1 else "")


def _cells(row: Row, store: Store) -> list[str]:
    cells = store.row(row)
    return ["-" if column not in cells else _text(cells[column]) for column in COLUMNS]


def _text(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    if "error" in cell:
        return f"failed: {cell['error'][:60]}"
    difference = f"{cell['nan']} NaN" if cell["nan"] else f"{cell['max_abs_diff']:.1e}"
    return f"{cell['ms']:.2f}<br>{cell['images_s']:.0f}/s, {difference}"


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


def plot(rows: Sequence[Row], store: Store) -> None:
    """Throughput of Swin-B over the batch, and the share of the peak of every row."""
    from matplotlib import pyplot

    base = sorted((row for row in rows if (row.model, row.precision) == ("Swin-B 224", "fp16")), key=lambda r: r.batch)
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for column in COLUMNS:
        points = [(row.batch, c["images_s"]) for row in base if (c := store.row(row).get(column)) and "ms" in c]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=column)
    axes.set(xlabel="batch", ylabel="images a second", title="Swin-B 224, fp16", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(RESULTS / "h200-throughput.svg", bbox_inches="tight")
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
    figure.savefig(RESULTS / "h200-peak.svg", bbox_inches="tight")
    pyplot.close("all")


def write_into_readme(rows: Sequence[Row], store: Store) -> None:
    """Puts a short table between the README's markers, where it has them."""
    shown = ("torch", "compile", "ONNX Runtime", "TensorRT", "swinopt, no plugins", "swinopt")
    lines = table(
        ["ms a batch", *shown, "of stock"],
        [
            [
                _row_name(row, store),
                *(_short(store.row(row).get(column)) for column in shown),
                _ratios(row, store)[0],
            ]
            for row in rows
        ],
    )
    measured = "\n".join(lines)
    where = "\n".join(f"- {name}: {value}" for name, value in setting(rows, store).items())
    source = "Measured by `python benchmarks/h200.py`; [all its results](benchmarks/results/h200.md)."
    fill_in(README, "speed", f"{measured}\n\n{source}\n\n{where}")


def _short(cell: dict[str, Any] | None) -> str:
    if cell is None:
        return ""
    return "fails" if "error" in cell else f"{cell['ms']:.2f}" + (" (NaN)" if cell["nan"] else "")


if __name__ == "__main__":
    sys.exit(main())

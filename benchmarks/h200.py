"""Measures the table: Swins of every size in PyTorch, ONNX Runtime and TensorRT, with and without swinopt.

    python benchmarks/h200.py [--tensorrt-python PYTHON] [--onnxruntime-python PYTHON] [--folder FOLDER]
                              [--rows TEXT] [--columns TEXT] [--gpus 0,1] [--seconds N] [--at-a-time N]
                              [--again] [--report]

Run it where PyTorch with CUDA and timm are. TensorRT and ONNX Runtime may live in Pythons of their own; TensorRT 8.6
needs the plugin library in its place or named by SWINOPT_PLUGINS. A full run takes many hours, most of them
TensorRT's builds, so it can run in parts: what results/h200.json has is not measured again, unless ``--again`` is
given. ``--rows`` and ``--columns`` take names, or parts of names, several if need be, and rows are measured in the
order in which they are named; with ``--seconds`` it ends after that time, and leaves what is not done then for the
next run; ``--at-a-time`` makes engines and compiled modules ahead, so many at the same time, in the order in which
they are measured, and halts them while a row is. They may disturb one another's choices, stock TensorRT's and
swinopt's alike, as may a halt while a kernel is timed; with one image, eight at a time have cost swinopt a seventh.
Exports and stock engines that plugins.py has left in the same FOLDER serve here, too.

The cells of a row are measured one after the other, each in a process of its own, and bear the time of their run: the
report marks what is from another run than swinopt's. Engines of swinopt and of stock TensorRT are timed in turns as
well, where one run makes both, and that is what their ratio is taken from.

With ``--gpus`` the rows are dealt out in turns to several GPUs, which should be of one kind. A row stays on its GPU, so
that its ratios are of one machine; ``--at-a-time`` then holds for each GPU, and its own rows. They share the host, and
what one builds may slow down what another one measures by the clock. Each GPU's shares are of its own peaks; the page
tells those that were measured last.

Keeps what it measures in benchmarks/results/h200.json, from which h200_page.py makes the page; ``--report`` does only
that. Exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from cells import PEAKS, PREPARE
from engines import HALTS, running_since
from h200_page import report
from h200_table import COLUMNS, ROWS, Row, Store

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_LONGEST_CELL = 1800  # seconds
_GLANCE = 0.2  # seconds after which is looked whether a cell has to end

_ROW_NAMES = tuple(row.name for row in ROWS)
#: Rows of one model and batch read the same exports: of the cells that write them, one runs at a time.
_EXPORTING = {(row.model, row.batch): threading.Lock() for row in ROWS}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensorrt-python", default=sys.executable, help="the Python that has TensorRT")
    parser.add_argument("--onnxruntime-python", default=sys.executable, help="the Python that has onnxruntime-gpu")
    kept = "where exports, inputs and engines lie; what is there is not made again"
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "h200", help=kept)
    parser.add_argument("--rows", action="append", help="a part of the names of rows to measure")
    parser.add_argument("--columns", action="append", help="a part of the names of columns to measure")
    dealt = "GPUs to deal the rows out to, as nvidia-smi counts them; by default the first that CUDA finds"
    parser.add_argument("--gpus", type=_indices, default=[None], metavar="0,1", help=dealt)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end after this time")
    at_a_time = "engines and modules to be made ahead at the same time, on each GPU"
    parser.add_argument("--at-a-time", type=int, default=0, help=at_a_time)
    parser.add_argument("--again", action="store_true", help="measure what has been measured before, too")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the results")
    arguments = parser.parse_args(argv)
    for option, parts, names in (("rows", arguments.rows, _ROW_NAMES), ("columns", arguments.columns, tuple(COLUMNS))):
        for part in parts or ():
            if not any(part in name for name in names):
                parser.error(f"--{option}: {part!r} is no part of any name; there are {', '.join(names)}")
    store = Store(RESULTS / "h200.json")
    if not arguments.report:
        measure(arguments, store)
    return report(store)


def _indices(text: str) -> list[int]:
    """Each once: two workers on one GPU would disturb one another."""
    return list(dict.fromkeys(int(index) for index in text.split(",")))


def measure(arguments: argparse.Namespace, store: Store) -> None:
    """Measures what is asked for and not there, on each GPU by a thread of its own."""
    pythons = {
        "torch": sys.executable,
        "tensorrt": arguments.tensorrt_python,
        "onnxruntime": arguments.onnxruntime_python,
    }
    arguments.folder.mkdir(parents=True, exist_ok=True)
    run = Run(
        name=datetime.now().isoformat(),
        pythons=pythons,
        folder=arguments.folder,
        at_a_time=arguments.at_a_time,
        store=store,
        end=time.monotonic() + arguments.seconds,
    )
    wanted = [(row, missing) for row in ROWS if (missing := _missing(row, arguments, store))]
    wanted.sort(key=lambda asked: _place(asked[0].name, arguments.rows, _ROW_NAMES))
    gpus: list[int | None] = arguments.gpus
    # There and back, since small and large batches take turns in ROWS.
    places = [*range(len(gpus)), *reversed(range(len(gpus)))]
    shares: dict[int | None, dict[Row, list[str]]] = {gpu: {} for gpu in gpus}
    for index, (row, missing) in enumerate(wanted):
        shares[gpus[places[index % len(places)]]][row] = missing
    with ThreadPoolExecutor(len(gpus)) as pool:
        try:
            workers = [pool.submit(Worker(run, gpu, share).work) for gpu, share in shares.items() if share]
            for worker in as_completed(workers):
                worker.result()
        except BaseException:  # an interrupt, too: the others would go on for hours
            run.end = float("-inf")
            raise


def _missing(row: Row, arguments: argparse.Namespace, store: Store) -> list[str]:
    """The columns of a row that are asked for, and not there."""
    if _place(row.name, arguments.rows, _ROW_NAMES) is None:
        return []
    return [
        column
        for column in row.columns
        if _place(column, arguments.columns, COLUMNS.keys()) is not None
        and (arguments.again or not store.has(row.name, column))
    ]


def _place(name: str, parts: Sequence[str] | None, names: Collection[str]) -> int | None:
    """Which of the parts asks for it first, if one does; all of it is asked for without any.

    A whole name is no part of others, or there would be no asking for "swinopt" alone.
    """
    if parts is None:
        return 0
    return next((i for i, part in enumerate(parts) if (part == name if part in names else part in name)), None)


@dataclass
class Run:
    """What the workers of one run share. ``end`` is by :func:`time.monotonic`; put into the past, it ends them all."""

    name: str
    pythons: dict[str, str]
    folder: Path
    at_a_time: int
    store: Store
    end: float
    exported: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)


class Worker:
    """Measures some rows, cell by cell, on one GPU; on the first that the environment shows if ``gpu`` is None."""

    def __init__(self, run: Run, gpu: int | None, wanted: dict[Row, list[str]]) -> None:
        self.run, self.gpu, self.wanted = run, gpu, wanted
        self._ahead: set[subprocess.Popen[bytes]] = set()
        self._beginning = threading.Lock()
        self._halts = run.folder / f"halts-{gpu}.txt"
        self._halts.unlink(missing_ok=True)

    def work(self) -> None:
        # Every run measures the peaks of its GPUs, and what others read does not outlive the machine.
        peaks = self.cell(PEAKS, next(iter(self.wanted)))
        if peaks is None:
            return
        if "error" in peaks:
            raise SystemExit(self._told(f"nothing can be measured here: {peaks['error']}"))
        self.run.store.add(PEAKS, PEAKS, {**peaks, "run": self.run.name})
        with ThreadPoolExecutor(self.run.at_a_time or 1) as pool:
            made = [column for column in COLUMNS if column in PREPARE and self.run.at_a_time]
            ahead = {
                row: [pool.submit(self._prepare, column, row) for column in made if column in missing]
                for row, missing in self.wanted.items()
            }
            try:
                for row, missing in self.wanted.items():
                    for prepared in ahead[row]:
                        prepared.result()
                    exported = self._exported(row)
                    with self._alone():
                        self._measure(row, missing, exported, peaks)
            except BaseException:  # what is being made would go on for minutes
                self.run.end = float("-inf")
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    def _prepare(self, column: str, row: Row) -> None:
        """Makes what takes long; what fails is told by the cell that wants it."""
        exported = self._exported(row)
        if exported is not None and "error" not in exported:
            self.cell(column, row, prepare=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """What is being made on this GPU is halted meanwhile, and nothing is begun."""
        with self._beginning:
            begun = time.monotonic()
            halted = [process for process in self._ahead if _signal(process, signal.SIGSTOP)]
            try:
                yield
            finally:
                # Those that were halted read it when they tell how long they ran.
                with self._halts.open("a", encoding="utf-8") as halts:
                    halts.write(f"{begun} {time.monotonic()}\n")
                for process in halted:
                    _signal(process, signal.SIGCONT)

    def _measure(
        self, row: Row, missing: Sequence[str], exported: dict[str, Any] | None, peaks: dict[str, Any]
    ) -> None:
        """Measures cells of a row, until the time is over."""
        if exported is None:
            return
        if "error" in exported:
            self._say(f"{row.name} cannot be exported: {exported['error']}")
            return
        store = self.run.store
        for column in missing:
            found = self.cell(column, row)
            if found is None:
                return
            if "error" in found and "ms" in store.cells.get(row.name, {}).get(column, {}):
                self._say(f"{row.name}, {column}: kept what was measured before, since now: {found['error']}")
                continue
            shares = _shares(found, exported, peaks, row, column)
            store.add(row.name, column, {**found, **shares, "run": self.run.name})

    def _exported(self, row: Row) -> dict[str, Any] | None:
        known, key = self.run.exported, (row.model, row.batch)
        with _EXPORTING[key]:
            found = known.get(key) or self.cell("export", row)
            if found is not None and "error" not in found:
                known[key] = found
            return found

    def cell(self, column: str, row: Row, prepare: bool = False) -> dict[str, Any] | None:
        """Runs one cell in a process of its own; one that dies is a result as well, and None one that was cut off."""
        if time.monotonic() >= self.run.end:
            return None
        self._say(f"{row.name}: {column}{' (to be measured)' if prepare else ''}")
        output = self.run.folder / f"{row.name} {column}.json".replace(" ", "_")
        output.unlink(missing_ok=True)
        python = self.run.pythons[COLUMNS.get(column, "torch")]
        names = [column, row.model, row.precision, str(row.batch), str(self.run.folder), str(output)]
        command = [python, str(ROOT / "benchmarks" / "cells.py"), *names, *(["--prepare"] if prepare else [])]
        lost = {"measured": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": {}}
        with self._begun(command, ahead=prepare or column == "export") as process:
            begun = time.monotonic()
            while (ended := process.poll()) is None and self._may_run(begun):
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_GLANCE)
            _signal(process, signal.SIGKILL)
        if ended is None and time.monotonic() >= self.run.end:
            return None
        if ended is None:
            found: dict[str, Any] = {"error": f"not done after {_LONGEST_CELL} s", **lost}
        elif output.exists():
            found = json.loads(output.read_text(encoding="utf-8"))
        else:
            found = {"error": f"the process ended with {ended}", **lost}
        told = {key: value for key, value in found.items() if key != "machine"}
        self._say(f"{row.name}, {column}: {told}")
        return found

    def _may_run(self, begun: float) -> bool:
        now = time.monotonic()
        is_long = now - begun >= _LONGEST_CELL and running_since(begun, self._halts) >= _LONGEST_CELL
        return now < self.run.end and not is_long

    @contextmanager
    def _begun(self, command: Sequence[str], *, ahead: bool) -> Iterator[subprocess.Popen[bytes]]:
        changing = self._beginning if ahead else nullcontext()
        with changing:
            # A group of its own is halted and ended with all that compiles for it. In a session of its own it would
            # stay halted if this process were killed; so the system hangs it up.
            process = subprocess.Popen(command, env=self._environment(), preexec_fn=os.setpgrp)
            if ahead:
                self._ahead.add(process)
        with process:
            yield process
        with changing:
            self._ahead.discard(process)

    def _environment(self) -> dict[str, str]:
        # A cell that crashes says where.
        environment = {**os.environ, HALTS: str(self._halts), "PYTHONFAULTHANDLER": "1"}
        if self.gpu is None:
            return environment
        # In the order of nvidia-smi, which is asked about the GPU, too; CUDA's own puts the fastest one first.
        return {**environment, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": str(self.gpu)}

    def _say(self, text: str) -> None:
        # In one piece: print would write the end of the line for itself, maybe behind another thread's line.
        print(f"{self._told(text)}\n", end="", flush=True)

    def _told(self, text: str) -> str:
        return text if self.gpu is None else f"GPU {self.gpu}: {text}"


def _signal(process: subprocess.Popen[bytes], number: int) -> bool:
    """Signals a cell and all that it has begun; whether it is running."""
    if process.poll() is not None:
        return False
    with suppress(ProcessLookupError):  # another thread may have seen it end in the meantime
        os.killpg(process.pid, number)
    return True


def _shares(
    found: dict[str, Any], exported: dict[str, Any], peaks: dict[str, Any], row: Row, column: str
) -> dict[str, Any]:
    """The share of what a large matrix product of the precision reaches."""
    peak = peaks.get(f"{'fp32' if column == 'torch fp32' else row.precision}_tflop_s")
    if "ms" not in found or not peak:
        return {}
    return {"of_peak": exported["flop_per_image"] * row.batch / found["ms"] / 1e9 / peak}


if __name__ == "__main__":
    sys.exit(main())

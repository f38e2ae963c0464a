"""The table of h200.py: its rows and columns, and the file that keeps what has been measured of them."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swinopt.engine import write_whole

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


class Store:
    """What has been measured, by row and column, in one JSON file. Threads may add to it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cells: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        self._adding = threading.Lock()

    def has(self, row: str, column: str) -> bool:
        return column in self.cells.get(row, {})

    def add(self, row: str, column: str, found: dict[str, Any]) -> None:
        # Until the file is written, too: it is written whole, and an older one would replace a newer one.
        with self._adding:
            self.cells.setdefault(row, {})[column] = found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, f"{json.dumps(self.cells, indent=1)}\n".encode())

    def row(self, row: Row) -> dict[str, Any]:
        return {column: self.cells.get(row.name, {}).get(column) for column in row.columns}

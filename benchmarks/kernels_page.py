"""The page of what kernels.py has measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pages import table

_SETTING = ("GPU", "driver", "Python")

_ERRORS = (
    "Largest error ‖out - ref‖ / ‖ref‖ against float64 over the sweep of the tests (windows, shifts, heads, sizes that "
    "are no multiple, misaligned pointers, V1 and V2)."
)
_SPEED = (
    "Speed, input and output bytes counted once, beside the large copy above, and the time of a copy of as many bytes; "
    "then PyTorch's roll, partition, scaled_dot_product_attention with bias and mask, reverse and roll in fp16."
)
_LINEARS = (
    "Linears with what follows them (GELU behind fc1, the residual addition behind proj and fc2), tuned as those of an "
    "engine; beside them PyTorch's product with bias, and GELU or addition by themselves."
)
_CHAIN = "All blocks as one CUDA graph, without TensorRT: what its engines are made of, and most of their time."


def page(found: dict[str, Any], missed: Sequence[str]) -> str:
    """The text of results/kernels.md, of what results/kernels.json holds."""
    machine, errors = found["machine"], [{"type": name, **row} for name, row in found["errors"].items()]
    packages = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in _SETTING)
    lines = [
        "# The CUDA kernels",
        "",
        "Measured by `python benchmarks/kernels.py`, all in one run.",
        "",
        f"- date: {found['date']}",
        f"- machine: {', '.join(f'{name} {machine[name]}' for name in _SETTING)}",
        f"- packages: {packages}; kernels by {found['kernels']}",
        f"- a copy of 8 GB moves {found['copy_tb_s']:.2f} TB/s (read and written)",
        f"- bars: {'all met' if not missed else '; '.join('MISSED ' + bar for bar in missed)}",
    ]
    for heading, *tables in (
        (_ERRORS, errors),
        (_SPEED, found["stages"], found["norms"]),
        (_LINEARS, found["linears"]),
        (_CHAIN, found["chain"]),
    ):
        # Without cuBLASLt no linears are measured.
        if tables[0]:
            lines += ["", heading, *(line for rows in tables for line in ("", *_table(rows)))]
    return "\n".join([*lines, ""])


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    heads = list(rows[0])
    return table(heads, [[text(row.get(head, "")) for head in heads] for row in rows])


def text(value: Any) -> str:
    """A cell."""
    return f"{value:.1e}" if isinstance(value, float) and 0 < value < 1e-2 else str(value)

"""What the pages of results have in common: tables, and the places that a command fills in a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], left: int | None = None) -> list[str]:
    """The lines of a table in Markdown; rows that are too short end in empty cells.

    Columns from ``left`` on are aligned to the right; by default none is.
    """
    left = len(heads) if left is None else left
    full = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * left + "---:|" * (len(heads) - left),
        *(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in full),
    ]


def tell_missed(bars: Sequence[str]) -> int:
    """Prints the bars that were missed; the exit status."""
    print("\n".join(f"MISSED: {bar}" for bar in bars) or "every bar is met")
    return 1 if bars else 0


def fill_in(path: Path, name: str, content: str) -> None:
    """Puts ``content`` between ``<!-- name -->`` and ``<!-- /name -->``; leaves a file without these as it is."""
    start, stop = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(stop)
    if found:
        path.write_text(f"{before}{start}\n\n{content}\n\n{stop}{after}", encoding="utf-8")

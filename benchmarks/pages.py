"""What the pages of results have in common: tables, and the places that a command fills in a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """The lines of a table in Markdown; rows that are too short end in empty cells."""
    full = [[*row, *[""] * (len(heads) - len(row))] for row in rows]
    return [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in full),
    ]


def fill_in(path: Path, name: str, content: str) -> None:
    """Puts ``content`` between ``<!-- name -->`` and ``<!-- /name -->``; leaves a file without these as it is."""
    start, stop = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = path.read_text(encoding="utf-8").partition(start)
    _, found, after = rest.partition(stop)
    if found:
        path.write_text(f"{before}{start}\n\n{content}\n\n{stop}{after}", encoding="utf-8")

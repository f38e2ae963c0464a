"""What the command line shows while it works, and how it says sizes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def silent(quiet: bool) -> bool:
    """Whether nothing is to be shown: it was asked for, or nobody looks."""
    return quiet or not sys.stderr.isatty()


@contextmanager
def progress(quiet: bool, start: str = "reading the model") -> Iterator[bool | Callable[[str, int, int], None]]:
    """A progress bar on stderr, as the function that moves it; False where nobody looks."""
    if silent(quiet):
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(start, total=None)
        yield lambda name, index, total: bar.update(task, description=name, completed=index, total=total)


@contextmanager
def status(quiet: bool, what: str) -> Iterator[None]:
    """A line on stderr that says what is going on."""
    if silent(quiet):
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(what)):
        yield


def size_on_disk(path: Path) -> int:
    """Bytes of a model with the weights beside it."""
    return sum(file.stat().st_size for file in (path, Path(f"{path}.data")) if file.exists())


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:.1f} MB"

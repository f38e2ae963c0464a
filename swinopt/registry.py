"""The passes that there are: the library's own, and those that other packages register.

A package registers a pass through the entry-point group ``swinopt.passes``::

    [project.entry-points."swinopt.passes"]
    my-pass = "my_package.module:MyPass"
"""

from __future__ import annotations

import difflib
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from swinopt.errors import OptionError

if TYPE_CHECKING:
    from swinopt.pipeline import Pass

ENTRY_POINT_GROUP = "swinopt.passes"


def available() -> dict[str, type[Pass]]:
    """All passes by name; one that another package registers under a built-in name does not replace it.

    Raises:
        OptionError: a registered pass cannot be loaded.
    """
    from swinopt import passes
    from swinopt.pipeline import Pass

    found: dict[str, type[Pass]] = {kind.name: kind for kind in passes.ALL}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        try:
            kind = point.load()
        except Exception as error:
            raise OptionError(f"the pass {point.name} of {point.value} cannot be loaded: {error}") from error
        if not (isinstance(kind, type) and issubclass(kind, Pass)):
            raise OptionError(f"the pass {point.name} of {point.value} is no subclass of swinopt.Pass")
        if getattr(kind, "name", None) != point.name:
            raise OptionError(f"the pass {point.name} of {point.value} calls itself {getattr(kind, 'name', None)!r}")
        found.setdefault(kind.name, kind)
    return found


def find(name: str) -> type[Pass]:
    """The pass of that name.

    Raises:
        OptionError: there is none; the message names similar ones.
    """
    from swinopt import passes

    # One broken package must not get in the way of a pass that is not its own.
    for kind in passes.ALL:
        if kind.name == name:
            return kind
    known = available()
    if name not in known:
        close = difflib.get_close_matches(name, known)
        hint = f"; did you mean {', '.join(close)}?" if close else f"; there are: {', '.join(sorted(known))}"
        raise OptionError(f"there is no pass {name!r}{hint}")
    return known[name]

"""What was measured of an op as a plugin and in standard ops, known the next time.

It is kept in a folder, ``$SWINOPT_CACHE/choices`` if that variable is set and else ``swinopt/choices`` in the user's
cache folder. An entry's name is the hash of all that the times depend on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import swinopt
from swinopt import passes, plugin_library
from swinopt.cuda_plugins import SOURCES, nvrtc
from swinopt.engine import write_whole
from swinopt.errors import ModelError

_KERNEL_SOURCES = ("*.cuh", "*.h", "*.cu", "*.py")

#: Milliseconds as plugin and in standard ops.
Times: TypeAlias = tuple[float, float]


def kernels_hash(tensorrt_version: str) -> str:
    """A hash of the plugins: of the library if there is one, and else of the sources of those in Python."""
    library = plugin_library.find_library(tensorrt_version)
    digest = hashlib.sha256()
    for path in [library] if library else sorted(p for kind in _KERNEL_SOURCES for p in SOURCES.rglob(kind)):
        content = path.read_bytes()
        digest.update(f"{path.name if library else path.relative_to(SOURCES)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def sources_hash() -> str:
    """A hash of the modules that spell swinopt ops out."""
    digest = hashlib.sha256()
    for folder in (Path(swinopt.__file__).parent, Path(passes.__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where times are kept. It need not exist."""
    return nvrtc.cache_folder().parent / "choices"


def _entry(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / f"{digest}.json"


def read(key: Mapping[str, Any]) -> Times | None:
    """The times that were measured before; None if there are none, or they cannot be read."""
    try:
        found = json.loads(_entry(key).read_bytes())
        times = float(found["plugin_ms"]), float(found["standard_ms"])
        known = found["key"] == key
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return times if known and all(math.isfinite(time) and time > 0 for time in times) else None


def write(key: Mapping[str, Any], times: Times) -> None:
    """Keeps the times, if the folder can be written."""
    entry = _entry(key)
    content = {"plugin_ms": times[0], "standard_ms": times[1], "key": key}
    # A folder that cannot be written costs time at every build, and nothing else.
    with suppress(OSError, ModelError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_whole(entry, f"{json.dumps(content, indent=2)}\n".encode())

"""Which TensorRT is used, what it has to say, and its plugins: the same for 8.6, 10, 11 and TensorRT-RTX."""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections import deque
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from swinopt import ops
from swinopt.alias_library import add_name
from swinopt.cuda_plugins import FOLDERS
from swinopt.errors import MissingDependencyError, OptionError, SwinoptError, first_line

#: Names the module to use where both are installed and no argument says so.
VARIABLE = "SWINOPT_TENSORRT"
_NAMES = ("tensorrt", "tensorrt_rtx")
_RTX_LIBRARY = "libtensorrt_rtx.so"
_PYTHON_PLUGINS = "swinopt.cuda_plugins.tensorrt.python_plugin"

_log = logging.getLogger("swinopt.tensorrt")


def find(name: str | None = None) -> Any:
    """The TensorRT module.

    Args:
        name: ``"tensorrt"`` or ``"tensorrt_rtx"``; by default what the environment variable ``SWINOPT_TENSORRT`` names,
            or else the first of the two that can be imported.

    Raises:
        OptionError: there is no such module.
        MissingDependencyError: it is not installed, or a library that it needs is not.
    """
    name = name or os.environ.get(VARIABLE) or None
    if name is not None and name not in _NAMES:
        raise OptionError(f"there is no TensorRT module {name!r}; there are {' and '.join(_NAMES)}")
    reasons = []
    for candidate in (name,) if name else _NAMES:
        try:
            trt = import_module(candidate)
            trt.Builder  # noqa: B018 - a package whose libraries are missing may be imported as an empty one
        except (ImportError, OSError, AttributeError) as error:
            reasons.append(first_line(error))
            continue
        if is_rtx(trt):
            _show_the_parser_its_library()
        return trt
    raise MissingDependencyError(
        'engines need TensorRT: pip install "swinopt[tensorrt]", or "swinopt[rtx]" for TensorRT-RTX '
        f"({'; '.join(reasons)})"
    )


def is_rtx(trt: Any) -> bool:
    """Whether the module is TensorRT-RTX, which builds without a GPU and compiles kernels where it runs."""
    return bool(trt.__name__ == "tensorrt_rtx")


def describe(trt: Any) -> str:
    """The name and version of a TensorRT module."""
    return f"{'TensorRT-RTX' if is_rtx(trt) else 'TensorRT'} {trt.__version__}"


def _show_the_parser_its_library() -> None:
    found = find_spec("tensorrt_rtx_libs")
    folders = list(found.submodule_search_locations or ()) if found else []
    for library in (path for folder in folders for path in Path(folder).glob(f"{_RTX_LIBRARY}.*")):
        try:
            add_name(library, _RTX_LIBRARY)
        except OSError as error:
            raise MissingDependencyError(
                f"{_RTX_LIBRARY} cannot be found, and TensorRT-RTX would end the process for want of it: put a link "
                f"of that name to {library} into a folder on LD_LIBRARY_PATH ({first_line(error)})"
            ) from error
        return


# ----------------------------------------------------------------------------------------------------------- messages


@functools.cache
def logger(trt: Any) -> Any:
    """The logger of a module, one a process as TensorRT wants it.

    It passes everything on to the Python logger ``swinopt.tensorrt``, and keeps the last errors for :func:`complaints`;
    that of a process that builds single ops (:mod:`swinopt.builders`) is its own, and what it logs not seen here.
    """
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.INFO,
        severity.VERBOSE: logging.DEBUG,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # a module that is chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=20)

        def log(self, level: Any, message: str) -> None:
            if levels[level] == logging.ERROR:
                self.errors.append(" ".join(message.split()))
            # Errors come back in an exception, and warnings are for whoever asks: neither belongs on a terminal.
            _log.log(min(levels[level], logging.INFO), message)

    return Logger()


def complaints(trt: Any) -> str:
    """The errors since the last time this was asked, in one line; for the end of a message."""
    errors = logger(trt).errors
    plugins = sys.modules.get(_PYTHON_PLUGINS)
    # What a plugin in Python raises does not reach the logger, and says more than what does.
    reasons = [*(plugins.take_refusals() if plugins else ()), *errors]
    errors.clear()
    return "; ".join(dict.fromkeys(reasons)) or "TensorRT gave no reason"


# ------------------------------------------------------------------------------------------------------------ plugins


def register_plugins(trt: Any, needed: Iterable[str]) -> None:
    """Makes sure that TensorRT has a plugin for each of these swinopt ops.

    TensorRT before 10 takes plugins from a C++ library alone. Later ones take those of the library if it is built,
    or else those in Python.

    Raises:
        MissingDependencyError: there is none for one of them; the message says how to come by it.
        SwinoptError: the plugin library cannot be loaded.
    """
    if not _without_plugin(trt, needed):
        return
    from swinopt import plugin_library

    library = plugin_library.find_library(trt.__version__)
    if library is not None:
        plugin_library.load_library(library)
    elif hasattr(trt, "IPluginV3"):
        import_module(_PYTHON_PLUGINS).register(trt)
    missing = _without_plugin(trt, needed)
    if missing:
        which = f"{library} has no plugin" if library else f"{describe(trt)} has no plugin"
        raise MissingDependencyError(
            f"{which} for {', '.join(missing)}: build the plugin library with `swinopt build-plugins`, "
            'or build without plugins (plugins="off", --plugins off)'
        )


def cublaslt_version(trt: Any) -> int:
    """The version of the cuBLASLt by which linears can be plugins, e.g. 120103.

    0 if they cannot: plugins in Python have none, and the C++ library has, if there is a cuBLASLt for it.

    Raises:
        SwinoptError: the plugin library cannot be loaded.
    """
    from swinopt import plugin_library

    library = plugin_library.find_library(trt.__version__)
    if library is None:
        return 0
    try:
        register_plugins(trt, [ops.LINEAR.name])
    except MissingDependencyError:  # a library of an earlier version
        return 0
    return plugin_library.cublaslt_version(library)


def register_what_there_is(trt: Any) -> str | None:
    """Registers the plugins that this installation has, for an engine that may need them or not.

    Returns:
        Why there are not all of them; to be told if the engine does need them.
    """
    from swinopt import plugin_library

    try:
        # Without a library there are those in Python, for some of the ops.
        in_python = hasattr(trt, "IPluginV3") and plugin_library.find_library(trt.__version__) is None
        register_plugins(trt, FOLDERS if in_python else ops.SPECS)
    except SwinoptError as error:
        return str(error)
    return None


def _without_plugin(trt: Any, needed: Iterable[str]) -> list[str]:
    registry = trt.get_plugin_registry()
    # Lists, since TensorRT 8.6 logs an error where it is asked for a plugin that is not there. Its own list knows
    # nothing of IPluginV3; where newer versions have it, it is for old plugins alone.
    there = registry.all_creators if hasattr(registry, "all_creators") else registry.plugin_creator_list
    known = {tuple(getattr(c, key, None) for key in ("name", "plugin_version", "plugin_namespace")) for c in there}
    return [name for name in needed if (name, str(ops.VERSION), ops.DOMAIN) not in known]

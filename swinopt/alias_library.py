"""A second name for a shared library that is loaded already.

TensorRT-RTX's ONNX parser opens ``libtensorrt_rtx.so`` when it meets a plugin, and ends the process if there is none;
the packages on PyPI bring ``libtensorrt_rtx.so.1`` alone. A link of that name would have to lie on ``LD_LIBRARY_PATH``
before Python starts. What the loader does look at later are the names that loaded libraries give themselves: so an
empty library is loaded that calls itself ``libtensorrt_rtx.so`` and depends on the real one, where symbols are found.
"""

from __future__ import annotations

import ctypes
import struct
import tempfile
from pathlib import Path

_HEADER, _SEGMENT, _ENTRY, _SYMBOL = 64, 56, 16, 24
_LOAD, _DYNAMIC = 1, 2
_READ_WRITE = 6
_PAGE = 1 << 16
_NEEDED, _STRING_TABLE, _SYMBOL_TABLE, _STRINGS_SIZE, _SYMBOL_SIZE, _SONAME = 1, 5, 6, 10, 11, 14


def add_name(library: Path, name: str) -> None:
    """Lets ``dlopen(name)`` find a library in this process.

    Args:
        library: a 64-bit ELF library that is loaded already, under the name of its file.
        name: the further name, without a folder; nothing happens if the loader finds it already.

    Raises:
        OSError: the library cannot be read, or is not loaded.
    """
    try:
        ctypes.CDLL(name)
        return
    except OSError:
        pass
    with library.open("rb") as file:
        header = file.read(_HEADER)
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(empty_library(header, name, library.name))
        file.flush()
        ctypes.CDLL(file.name)


def empty_library(header: bytes, name: str, needed: str) -> bytes:
    """An ELF library without code that is called ``name`` and depends on ``needed``.

    Args:
        header: the first 64 bytes of another library for the same machine.
        name: what the library calls itself.
        needed: the name of the library that it depends on.
    """
    strings = b"\0" + name.encode() + b"\0" + needed.encode() + b"\0"
    dynamic = _HEADER + 2 * _SEGMENT
    symbols = dynamic + 7 * _ENTRY
    text = symbols + _SYMBOL
    end = text + len(strings)
    entries = (
        (_SONAME, 1),
        (_NEEDED, 2 + len(name)),
        (_STRING_TABLE, text),
        (_STRINGS_SIZE, len(strings)),
        (_SYMBOL_TABLE, symbols),
        (_SYMBOL_SIZE, _SYMBOL),
        (0, 0),
    )
    # Identification, machine and flags are those of the other library; there are two segments and no sections.
    flags = struct.unpack_from("<I", header, 48)[0]
    start = header[:24] + struct.pack("<QQQIHHHHHH", 0, _HEADER, 0, flags, _HEADER, _SEGMENT, 2, 0, 0, 0)
    segments = struct.pack("<IIQQQQQQ", _LOAD, _READ_WRITE, 0, 0, 0, end, end, _PAGE)
    at, size = dynamic, symbols - dynamic
    segments += struct.pack("<IIQQQQQQ", _DYNAMIC, _READ_WRITE, at, at, at, size, size, 8)
    return start + segments + b"".join(struct.pack("<QQ", *entry) for entry in entries) + bytes(_SYMBOL) + strings

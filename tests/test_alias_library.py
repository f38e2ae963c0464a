"""A second name for a library: in a process of its own, since names cannot be taken back."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, pathlib, re, sys
from swinopt.alias_library import add_name
libm = next(line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/libm[.-]", line))
name = "libswinopt-by-another-name.so"
try:
    ctypes.CDLL(name)
    sys.exit("the name is taken")
except OSError:
    pass
add_name(pathlib.Path(libm), name)
cosine = ctypes.CDLL(name).cos
cosine.restype, cosine.argtypes = ctypes.c_double, [ctypes.c_double]
assert cosine(0.0) == 1.0
add_name(pathlib.Path("/no/such/library.so"), name)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the loader of Linux is what this is for")
def test_the_loader_finds_a_library_by_its_second_name() -> None:
    program = f"import ctypes; ctypes.CDLL('libm.so.6')\n{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

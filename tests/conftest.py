"""What every test shares: the installed package is the one under test, and GPU tests skip where there is no GPU."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the checkout on sys.path, where it would shadow the installed package: a module missing from
# the wheel would then go unnoticed, and `passes` would be importable under a second name.
sys.path[:] = [entry for entry in sys.path if Path(entry or os.getcwd()).resolve() != ROOT]


@functools.cache
def _gpu_count() -> int:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _gpu_count():
        pytest.skip("no NVIDIA GPU: libcuda.so.1 is missing or reports no device")

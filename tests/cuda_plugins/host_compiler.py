"""Compiles what the C++ launchers decide, without the kernels, so that Python can be held against it."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swinopt import cuda_plugins


def load(source: str, folder: Path) -> ctypes.CDLL:
    """The source as a library; quotes in its includes are relative to the kernels. Skips where it cannot be built."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: neither g++ nor clang++ is on the PATH")
    toolkits = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    packages = [found for entry in sys.path for found in Path(entry or ".").glob("nvidia/*/include")]
    needed = ("cuda_runtime_api.h", "crt/host_defines.h")  # two packages of pip, into one folder
    headers = next((f for f in (*packages, *toolkits) if all((f / name).exists() for name in needed)), None)
    if headers is None:
        pytest.skip(f"no CUDA headers: {' and '.join(needed)} are not both in packages of pip, nor below CUDA_HOME")
    library = folder / "launchers.so"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-x", "c++", "-"]
    command += [f"-I{cuda_plugins.SOURCES}", f"-isystem{headers}", "-o", str(library)]
    done = subprocess.run(command, input=source, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))

"""Compiles what the C++ launchers decide, without the kernels, so that Python can be held against it."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from swinopt import cuda_plugins
from swinopt.cuda_plugins.launch import Launch


def load(op: str, params: type[ctypes.Structure], source: str, folder: Path) -> ctypes.CDLL:
    """The ``plan.h`` of an op as a library, with what is defined in the source; skips where it cannot be built.

    ``layout(field)`` tells where a field of ``params`` lies in C++, and ``layout(-1)`` how large the struct is.
    """
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: neither g++ nor clang++ is on the PATH")
    offsets = ", ".join(f"offsetof({params.__name__}, {field[0]})" for field in params._fields_)
    text = f"""
        #include <cstddef>
        #include "{op}/plan.h"
        using namespace swinopt;
        extern "C" {{
        int layout(int field) {{
            int const offsets[] = {{{offsets}}};
            return field < 0 ? sizeof({params.__name__}) : offsets[field];
        }}
        {source}
        }}"""
    library = folder / "launchers.so"
    command = [compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-x", "c++", "-"]
    command += [f"-I{cuda_plugins.SOURCES}", "-o", str(library)]
    done = subprocess.run(command, input=text, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def assert_laid_out_alike(library: ctypes.CDLL, params: type[ctypes.Structure]) -> None:
    assert ctypes.sizeof(params) == library.layout(-1)
    for number, field in enumerate(params._fields_):
        assert getattr(params, field[0]).offset == library.layout(number), field[0]


class LayerNormPlan(ctypes.Structure):
    """``LayerNormPlan`` of ``common/layer_norm_plan.h``."""

    _fields_ = [(name, ctypes.c_int) for name in ("lanes", "vectors", "grid", "block")]


def load_layer_norm(op: str, params: type[ctypes.Structure], folder: Path) -> ctypes.CDLL:
    """:func:`load` for an op on ``common/layer_norm.cuh``, with ``plan`` and ``unsupported`` as they are in C++."""
    source = f"""
        char const* unsupported({params.__name__} p, int dtype, int capability) {{
            return {op}_unsupported(p, static_cast<DType>(dtype), Device{{capability, 132, 232448}});
        }}
        LayerNormPlan plan({params.__name__} p, int dtype) {{ return {op}_plan(p, static_cast<DType>(dtype)); }}"""
    library = load(op, params, source, folder)
    library.unsupported.argtypes, library.unsupported.restype = [params, ctypes.c_int, ctypes.c_int], ctypes.c_char_p
    library.plan.argtypes, library.plan.restype = [params, ctypes.c_int], LayerNormPlan
    return library


def assert_cut_alike(library: ctypes.CDLL, launch: Launch, dtype: int, more: str) -> None:
    """A launch of :func:`load_layer_norm`'s op, in Python and in C++; ``more`` ends the arguments of its templates."""
    there = library.plan(launch.parameters, dtype)
    shape = f", {there.lanes}, {there.vectors}{more}>" if there.vectors else f"{more}>"
    assert launch.kernel.endswith(shape) and ("_any<" in launch.kernel) == (not there.vectors)
    assert (launch.grid, launch.block) == ((there.grid, 1, 1), there.block)
    assert library.unsupported(launch.parameters, dtype, 90) is None

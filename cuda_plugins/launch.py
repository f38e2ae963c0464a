"""What a kernel launch is, in Python: the neutral form that every op's ``plan`` returns and that adapters carry out.

``common/types.h`` is the same for C++. An op is a folder with ``reference.py`` (the truth, in NumPy), ``kernel.cuh``
(the device code, for nvcc and NVRTC alike), ``params.h`` (what a kernel is given), ``plan.h`` and ``plan.py`` (how the
work is cut, for C++ and for Python; a test holds the two against each other) and ``launch.cu``.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from swinopt.errors import SwinoptError

#: Element types: our name to the one in CUDA C++, and the size in bytes.
CUDA_TYPES = {"float32": "float", "float16": "__half", "bfloat16": "__nv_bfloat16"}
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Tensor:
    """A dense row-major tensor on a GPU.

    Attributes:
        shape: its sizes.
        dtype: "float32", "float16" or "bfloat16".
        pointer: its device address; 0 where only the shape is known.
    """

    shape: tuple[int, ...]
    dtype: str
    pointer: int = 0


@dataclass(frozen=True)
class Device:
    """What a launch plan depends on besides the problem.

    Attributes:
        capability: ``10 * major + minor``: 90 is an H100 or H200.
        multiprocessors: how many the GPU has.
        shared_bytes: the most dynamic shared memory that one block may ask for.
    """

    capability: int
    multiprocessors: int
    shared_bytes: int


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes:
        source: the file with the kernel, relative to the folder of this module.
        kernel: the kernel as an NVRTC name expression, e.g. ``"swinopt::add_layer_norm<__half>"``.
        grid: blocks along x, y, z.
        block: threads of a block.
        shared_bytes: dynamic shared memory of a block.
        parameters: the kernel's only argument, passed by value.
    """

    source: str
    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int
    parameters: ctypes.Structure


class Unsupported(SwinoptError, ValueError):
    """The kernels cannot compute what was asked for; the message says what they can."""

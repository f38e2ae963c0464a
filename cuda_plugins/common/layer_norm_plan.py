"""How the kernels on ``layer_norm.cuh`` cut their work; ``layer_norm_plan.h`` is the same in C++."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from swinopt.cuda_plugins.launch import CUDA_TYPES, ITEM_SIZES, Device, Tensor, Unsupported

#: The oldest GPU that the kernels are compiled for: Turing.
MIN_CAPABILITY = 75
#: Rows are counted by ints; so are channels, and some indices run beyond the last by the lanes of a warp.
MAX_ROWS = 2**31 - 1
MAX_CHANNELS = 2**30
#: What a float can hold, nearly.
MAX_FLOAT = 3.4e38

_BLOCK = 128
# Threads of a row, and vectors of each: the kernels there are, by how long a row may be.
_SHAPES = (
    *((4, 1), (8, 1), (16, 1), (32, 1), (16, 3), (32, 2), (32, 3), (32, 4), (32, 6)),
    *((128, 2), (128, 3), (128, 4), (128, 8)),
)


@dataclass(frozen=True)
class LayerNormPlan:
    """One launch of a kernel that normalises rows.

    Attributes:
        lanes: threads that compute one row.
        vectors: how many of 16 bytes each of them can hold; 0 for the kernel that goes element by element.
        grid: blocks.
        block: threads of a block.
    """

    lanes: int
    vectors: int
    grid: int
    block: int

    def kernel(self, name: str, dtype: str) -> str:
        """The NVRTC name expression of the kernel, if ``name`` is what the op's kernels begin with."""
        element = CUDA_TYPES[dtype]
        if not self.vectors:
            return f"swinopt::{name}_any<{element}>"
        return f"swinopt::{name}<{element}, {self.lanes}, {self.vectors}>"


def layer_norm_plan(rows: int, channels: int, run: int, dtype: str, *, aligned: bool) -> LayerNormPlan:
    """Cuts the work.

    Args:
        rows: how many there are.
        channels: elements of a row.
        run: how many of them lie side by side at least.
        dtype: of the elements.
        aligned: whether every address is a multiple of 16.
    """
    width = 16 // ITEM_SIZES[dtype]
    fitting = [shape for shape in _SHAPES if channels // width <= math.prod(shape)]
    lanes, vectors = fitting[0] if aligned and run % width == 0 and fitting else (32, 0)
    return LayerNormPlan(lanes, vectors, -(-rows // (_BLOCK // lanes)), _BLOCK)


def are_aligned(tensors: Mapping[str, Tensor], size: int) -> bool:
    """Whether all addresses are a multiple of so many bytes."""
    return all(tensor.pointer % size == 0 for tensor in tensors.values())


def require(op_type: str, tensors: Mapping[str, Tensor], epsilon: float, device: Device) -> None:
    """Asks for what all of these kernels need.

    Raises:
        Unsupported: the GPU is too old, the tensors are of several dtypes or of one without kernels, one of them is
            empty or not aligned to its elements, or epsilon is no number that can be added to a variance.
    """
    if device.capability < MIN_CAPABILITY:
        raise Unsupported(
            f"{op_type} needs compute capability {MIN_CAPABILITY / 10} (Turing) or newer, "
            f"this GPU has {device.capability / 10}"
        )
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    if len(set(dtypes.values())) != 1 or not set(dtypes.values()) <= set(CUDA_TYPES):
        given = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise Unsupported(f"{op_type} needs all tensors of one dtype, {', '.join(CUDA_TYPES)}; given are {given}")
    for name, tensor in tensors.items():
        if math.prod(tensor.shape) == 0:
            raise Unsupported(f"{op_type}: {name} {list(tensor.shape)} is empty, and there is nothing to launch for it")
        if tensor.pointer % ITEM_SIZES[tensor.dtype]:
            raise Unsupported(f"{op_type}: {name} at {tensor.pointer:#x} is not aligned to its {tensor.dtype} elements")
    if not 0 <= epsilon <= MAX_FLOAT:
        raise Unsupported(f"{op_type}: epsilon {epsilon} must be a number of at least 0")


def require_size(op_type: str, rows: int, channels: int) -> None:
    """Asks for what the kernels can count.

    Raises:
        Unsupported: there is more.
    """
    if rows > MAX_ROWS or channels > MAX_CHANNELS:
        raise Unsupported(
            f"{op_type}: {rows} rows of {channels} channels are too many; "
            f"{MAX_ROWS} rows of {MAX_CHANNELS} channels are possible"
        )


def require_shape(op_type: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Asks for a shape.

    Raises:
        Unsupported: the tensor has another one.
    """
    if tuple(tensor.shape) != shape:
        raise Unsupported(f"{op_type}: {name} has shape {list(tensor.shape)}, and {list(shape)} is needed")

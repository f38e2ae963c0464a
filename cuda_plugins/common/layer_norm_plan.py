"""How the kernels on ``layer_norm.cuh`` cut their work; ``layer_norm_plan.h`` is the same in C++."""

from __future__ import annotations

import math
from dataclasses import dataclass

from swinopt.cuda_plugins.launch import CUDA_TYPES, ITEM_SIZES, Unsupported

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

    def kernel(self, name: str, dtype: str, *more: str) -> str:
        """The NVRTC name expression of the kernel, if ``name`` is what the op's kernels begin with.

        ``more`` are the arguments that its templates have behind the usual ones.
        """
        cut = [str(self.lanes), str(self.vectors)] if self.vectors else []
        arguments = ", ".join([CUDA_TYPES[dtype], *cut, *more])
        return f"swinopt::{name}{'' if self.vectors else '_any'}<{arguments}>"


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


def require_norm(op_type: str, rows: int, channels: int, epsilon: float) -> None:
    """Asks for a norm that the kernels can compute.

    Raises:
        Unsupported: there is more than they can count, or epsilon is no number that can be added to a variance.
    """
    if not 0 <= epsilon <= MAX_FLOAT:
        raise Unsupported(f"{op_type}: epsilon {epsilon} must be a number of at least 0")
    if rows > MAX_ROWS or channels > MAX_CHANNELS:
        raise Unsupported(
            f"{op_type}: {rows} rows of {channels} channels are too many; "
            f"{MAX_ROWS} rows of {MAX_CHANNELS} channels are possible"
        )

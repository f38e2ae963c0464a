"""What every op asks of its tensors and of the GPU before it plans a launch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from swinopt.cuda_plugins.launch import CUDA_TYPES, ITEM_SIZES, Device, Tensor, Unsupported

#: The oldest GPU that the kernels are compiled for: Turing.
MIN_CAPABILITY = 75
#: Of an axis: kernels count with ints.
MAX_SIZE = 2**31 - 1


def require_tensors(op_type: str, tensors: Mapping[str, Tensor], device: Device) -> None:
    """Asks for tensors that kernels can read and write.

    Raises:
        Unsupported: the GPU is too old, the tensors are of several dtypes or of one without kernels, one of them is
            empty, has an axis that no int can count, or is not aligned to its elements.
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
        if max(tensor.shape, default=1) > MAX_SIZE:
            raise Unsupported(
                f"{op_type}: {name} {list(tensor.shape)} is too large; an axis may have up to {MAX_SIZE} elements"
            )
        if tensor.pointer % ITEM_SIZES[tensor.dtype]:
            raise Unsupported(f"{op_type}: {name} at {tensor.pointer:#x} is not aligned to its {tensor.dtype} elements")


def require_shape(op_type: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Asks for a shape.

    Raises:
        Unsupported: the tensor has another one.
    """
    if tuple(tensor.shape) != shape:
        raise Unsupported(f"{op_type}: {name} has shape {list(tensor.shape)}, and {list(shape)} is needed")


def are_aligned(tensors: Iterable[Tensor | None], size: int) -> bool:
    """Whether all addresses are a multiple of so many bytes; absent tensors do not count."""
    return all(tensor is None or tensor.pointer % size == 0 for tensor in tensors)

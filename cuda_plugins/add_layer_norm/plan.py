"""How ``swinopt::AddLayerNorm`` is launched; ``plan.h`` is the same in C++."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from swinopt.cuda_plugins.common.layer_norm_plan import layer_norm_plan, require_norm
from swinopt.cuda_plugins.common.require import are_aligned, require_shape, require_tensors
from swinopt.cuda_plugins.launch import Device, Launch, Tensor, Unsupported

_OP = "AddLayerNorm"


class AddLayerNormParams(ctypes.Structure):
    """The struct of ``params.h``."""

    _fields_: ClassVar = [
        ("a", ctypes.c_void_p),
        ("b", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        ("sum", ctypes.c_void_p),
        ("normalized", ctypes.c_void_p),
        ("rows", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    ]


def plan(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], attributes: Mapping[str, Any], device: Device
) -> Launch:
    """How a GPU computes ``sum = a + b`` and ``normalized = LayerNorm(a + b)``.

    Args:
        inputs: a and b ``[..., C]``, gamma and beta ``[C]``.
        outputs: sum and normalized ``[..., C]``. Neither may overlap another tensor.
        attributes: epsilon.
        device: the GPU.

    Raises:
        Unsupported: dtypes differ or are none of float32, float16 and bfloat16; shapes do not fit; a tensor is empty,
            too large, or not aligned to its elements; the GPU is older than Turing.
    """
    names = ("a", "b", "gamma", "beta", "sum", "normalized")
    given = [*inputs, *outputs]
    if len(inputs) != 4 or len(outputs) != 2 or any(tensor is None for tensor in given):
        raise Unsupported(f"{_OP} needs a, b, gamma and beta, and makes sum and normalized")
    tensors = {name: tensor for name, tensor in zip(names, given, strict=True) if tensor is not None}
    require_tensors(_OP, tensors, device)
    shape = tuple(tensors["a"].shape)
    if not shape:
        raise Unsupported(f"{_OP}: a is a single number, and an axis to normalise over is needed")
    for name in ("b", "sum", "normalized"):
        require_shape(_OP, name, tensors[name], shape)
    for name in ("gamma", "beta"):
        require_shape(_OP, name, tensors[name], shape[-1:])
    rows, channels, epsilon = math.prod(shape[:-1]), shape[-1], float(attributes["epsilon"])
    require_norm(_OP, rows, channels, epsilon)

    dtype = tensors["a"].dtype
    cut = layer_norm_plan(rows, channels, channels, dtype, aligned=are_aligned(tensors.values(), 16))
    return Launch(
        source="add_layer_norm/kernel.cuh",
        kernel=cut.kernel("add_layer_norm", dtype),
        grid=(cut.grid, 1, 1),
        block=cut.block,
        shared_bytes=0,
        parameters=AddLayerNormParams(*(tensors[name].pointer for name in names), rows, channels, epsilon),
    )

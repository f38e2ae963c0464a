"""How ``swinopt::LayerNorm`` is launched; ``plan.h`` is the same in C++."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from swinopt.cuda_plugins.common.layer_norm_plan import layer_norm_plan, require_norm
from swinopt.cuda_plugins.common.require import are_aligned, require_shape, require_tensors
from swinopt.cuda_plugins.launch import Device, Launch, Tensor, Unsupported

_OP = "LayerNorm"
_INPUTS = ("x", "gamma", "beta", "residual")


class LayerNormParams(ctypes.Structure):
    """The struct of ``params.h``."""

    _fields_: ClassVar = [
        ("x", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("rows", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    ]


def plan(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], attributes: Mapping[str, Any], device: Device
) -> Launch:
    """How a GPU computes ``LayerNorm(x)``, or ``LayerNorm(x) + residual``.

    Args:
        inputs: x ``[..., C]``, gamma and beta ``[C]``, and residual ``[..., C]``, which may be None or left out.
        outputs: output ``[..., C]``, which may not overlap another tensor.
        attributes: epsilon.
        device: the GPU.

    Raises:
        Unsupported: dtypes differ or are none of float32, float16 and bfloat16; shapes do not fit; a tensor is empty,
            too large, or not aligned to its elements; the GPU is older than Turing.
    """
    given = [*inputs, *[None] * (len(_INPUTS) - len(inputs))]
    if len(given) != len(_INPUTS) or len(outputs) != 1 or any(tensor is None for tensor in given[:3]):
        raise Unsupported(f"{_OP} needs x, gamma and beta, takes a residual, and makes one output")
    named = {**dict(zip(_INPUTS, given, strict=True)), "output": outputs[0]}
    tensors = {name: tensor for name, tensor in named.items() if tensor is not None}
    require_tensors(_OP, tensors, device)
    shape = tuple(tensors["x"].shape)
    if not shape:
        raise Unsupported(f"{_OP}: x is a single number, and an axis to normalise over is needed")
    for name, tensor in tensors.items():
        require_shape(_OP, name, tensor, shape[-1:] if name in ("gamma", "beta") else shape)
    rows, channels, epsilon = math.prod(shape[:-1]), shape[-1], float(attributes["epsilon"])
    require_norm(_OP, rows, channels, epsilon)

    dtype = tensors["x"].dtype
    cut = layer_norm_plan(rows, channels, channels, dtype, aligned=are_aligned(tensors.values(), 16))
    has_residual = "true" if "residual" in tensors else "false"
    pointers = [0 if tensor is None else tensor.pointer for tensor in named.values()]
    return Launch(
        source="layer_norm/kernel.cuh",
        kernel=cut.kernel("layer_norm", dtype, has_residual),
        grid=(cut.grid, 1, 1),
        block=cut.block,
        shared_bytes=0,
        parameters=LayerNormParams(*pointers, rows, channels, epsilon),
    )

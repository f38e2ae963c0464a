"""How ``swinopt::PatchMerging`` is launched; ``plan.h`` is the same in C++."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from swinopt.cuda_plugins.common.layer_norm_plan import layer_norm_plan, require_norm
from swinopt.cuda_plugins.common.require import are_aligned, require_shape, require_tensors
from swinopt.cuda_plugins.launch import Device, Launch, Tensor, Unsupported

_OP = "PatchMerging"


class PatchMergingParams(ctypes.Structure):
    """The struct of ``params.h``."""

    _fields_: ClassVar = [
        ("x", ctypes.c_void_p),
        ("gamma", ctypes.c_void_p),
        ("beta", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("batch", ctypes.c_int),
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("epsilon", ctypes.c_float),
    ]


def plan(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], attributes: Mapping[str, Any], device: Device
) -> Launch:
    """How a GPU gathers 2x2 neighbours and normalises them.

    Args:
        inputs: x ``[B, H, W, C]``, gamma and beta ``[4C]``.
        outputs: ``[B, ceil(H / 2), ceil(W / 2), 4C]``. It may not overlap another tensor.
        attributes: epsilon.
        device: the GPU.

    Raises:
        Unsupported: dtypes differ or are none of float32, float16 and bfloat16; shapes do not fit; a tensor is empty,
            too large, or not aligned to its elements; the GPU is older than Turing.
    """
    names = ("x", "gamma", "beta", "output")
    given = [*inputs, *outputs]
    if len(inputs) != 3 or len(outputs) != 1 or any(tensor is None for tensor in given):
        raise Unsupported(f"{_OP} needs x, gamma and beta, and makes one output")
    tensors = {name: tensor for name, tensor in zip(names, given, strict=True) if tensor is not None}
    require_tensors(_OP, tensors, device)
    if len(tensors["x"].shape) != 4:
        raise Unsupported(f"{_OP}: x has shape {list(tensors['x'].shape)}, and [B, H, W, C] is needed")
    batch, height, width, channels = tensors["x"].shape
    merged = (batch, (height + 1) // 2, (width + 1) // 2)
    features = 4 * channels
    require_shape(_OP, "output", tensors["output"], (*merged, features))
    for name in ("gamma", "beta"):
        require_shape(_OP, name, tensors[name], (features,))
    tokens = merged[0] * merged[1] * merged[2]
    epsilon = float(attributes["epsilon"])
    require_norm(_OP, tokens, features, epsilon)

    dtype = tensors["x"].dtype
    cut = layer_norm_plan(tokens, features, channels, dtype, aligned=are_aligned(tensors.values(), 16))
    return Launch(
        source="patch_merging/kernel.cuh",
        kernel=cut.kernel("patch_merging", dtype),
        grid=(cut.grid, 1, 1),
        block=cut.block,
        shared_bytes=0,
        parameters=PatchMergingParams(
            *(tensors[name].pointer for name in names), batch, height, width, channels, epsilon
        ),
    )

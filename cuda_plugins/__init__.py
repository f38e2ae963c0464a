"""CUDA kernels for the swinopt ops: one folder an op (see :mod:`swinopt.cuda_plugins.launch`), and TensorRT adapters.

:func:`plan` is the way in for whoever launches a kernel from Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from swinopt.cuda_plugins.launch import Device, Launch, Tensor, Unsupported

#: The folder of the sources; kernels include one another relative to their own place.
SOURCES = Path(__file__).resolve().parent

#: Op type to the folder with its kernels.
FOLDERS = {
    "WindowAttention": "window_attention",
    "PatchMerging": "patch_merging",
    "AddLayerNorm": "add_layer_norm",
    "LayerNorm": "layer_norm",
}


def plan(
    op_type: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    attributes: Mapping[str, Any],
    device: Device,
) -> Launch:
    """How a GPU computes an op of the swinopt domain.

    Args:
        op_type: its name.
        inputs: by position, None for an absent optional one.
        outputs: by position.
        attributes: all of them, defaults filled in.
        device: the GPU.

    Raises:
        Unsupported: there is no kernel for this; the message says what was asked and what is possible.
    """
    if op_type not in FOLDERS:
        raise Unsupported(f"there is no kernel for {op_type}; there are kernels for {', '.join(FOLDERS)}")
    module = import_module(f"swinopt.cuda_plugins.{FOLDERS[op_type]}.plan")
    launch: Launch = module.plan(inputs, outputs, attributes, device)
    return launch

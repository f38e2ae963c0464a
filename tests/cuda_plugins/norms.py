"""The ops on ``common/layer_norm.cuh``, and plans of them that differ in one thing from what can be computed."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swinopt import cuda_plugins
from swinopt.cuda_plugins.add_layer_norm.plan import AddLayerNormParams
from swinopt.cuda_plugins.launch import Device, Launch, Tensor
from swinopt.cuda_plugins.layer_norm.plan import LayerNormParams
from swinopt.cuda_plugins.patch_merging.plan import PatchMergingParams

H200 = Device(capability=90, multiprocessors=132, shared_bytes=232448)
SHAPE = (2, 56, 56, 96)


@dataclass(frozen=True)
class Norm:
    """An op that normalises rows.

    Attributes:
        op: its type.
        params: what its kernels are given.
        inputs: the names of its inputs.
        outputs: the names of its outputs.
        patch: a row is gathered from this many pixels along either side of the map.
        more: what the templates of its kernels have behind the usual arguments.
    """

    op: str
    params: type[ctypes.Structure]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ("output",)
    patch: int = 1
    more: str = ""

    def __str__(self) -> str:
        return self.op if self.more != ", false" else f"{self.op} without residual"

    @property
    def names(self) -> tuple[str, ...]:
        return *self.inputs, *self.outputs

    @property
    def folder(self) -> str:
        return cuda_plugins.FOLDERS[self.op]

    def shapes(self, shape: tuple[int, ...] = SHAPE) -> dict[str, tuple[int, ...]]:
        """Of every tensor, if ``shape`` is that of the first."""
        rows = shape
        if self.patch > 1:
            b, h, w = (*shape, 1, 1)[:3]
            rows = (b, -(-h // self.patch), -(-w // self.patch), self.patch**2 * shape[-1])
        other = {"gamma": rows[-1:], "beta": rows[-1:], **dict.fromkeys(self.outputs, rows)}
        return {name: other.get(name, shape) for name in self.names}

    def plan(
        self,
        shape: tuple[int, ...] = SHAPE,
        dtype: str = "float16",
        *,
        device: Device = H200,
        epsilon: float = 1e-5,
        pointers: Mapping[str, int] | None = None,
        other: Mapping[str, Tensor | None] | None = None,
    ) -> Launch:
        """``other`` has what takes the place of a tensor."""
        at = pointers or {}
        given: dict[str, Any] = {
            name: Tensor(size, dtype, at.get(name, 0)) for name, size in self.shapes(shape).items()
        }
        given |= other or {}
        inputs, outputs = ([given[name] for name in names] for names in (self.inputs, self.outputs))
        return cuda_plugins.plan(self.op, inputs, outputs, {"epsilon": epsilon}, device)


ADD_LAYER_NORM = Norm("AddLayerNorm", AddLayerNormParams, ("a", "b", "gamma", "beta"), ("sum", "normalized"))
LAYER_NORM = Norm("LayerNorm", LayerNormParams, ("x", "gamma", "beta", "residual"), more=", true")
WITHOUT_RESIDUAL = Norm("LayerNorm", LayerNormParams, ("x", "gamma", "beta"), more=", false")
PATCH_MERGING = Norm("PatchMerging", PatchMergingParams, ("x", "gamma", "beta"), patch=2)

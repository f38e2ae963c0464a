"""The plugin library's linears as its C interface has them: for tests and benchmarks on a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch

from tests.cuda_plugins import truth

WORKSPACE = 32 << 20


class Params(ctypes.Structure):
    """LinearParams of cuda_plugins/linear/params.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "residual", "output", "workspace")),
        ("workspace_bytes", ctypes.c_size_t),
        *((name, ctypes.c_int) for name in ("rows", "inputs", "outputs", "gelu", "float32")),
        ("tuned", ctypes.c_void_p),
        ("tuned_bytes", ctypes.c_size_t),
    )


class Call:
    """One call of the library; the tensors live as long as it."""

    def __init__(
        self,
        x: Any,
        weight: Any,
        bias: Any,
        residual: Any,
        output: Any,
        gelu: int = 0,
        tuned: bytes = b"",
        float32: int = 0,
    ) -> None:
        workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")
        self.tensors = (x, weight, bias, residual, output, workspace)
        self.tuned = ctypes.create_string_buffer(tuned, len(tuned)) if tuned else None
        pointers = [None if t is None else t.data_ptr() for t in self.tensors]
        sizes = [x.numel() // x.shape[-1], *weight.shape]
        bytes_at = ctypes.addressof(self.tuned) if self.tuned is not None else None
        self.params = Params(*pointers, WORKSPACE, *sizes, gelu, float32, bytes_at, len(tuned))
        self.dtype = truth.DTYPES[x.dtype]

    def launch(self, library: Any) -> int:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        status: int = library.swinopt_linear(ctypes.byref(self.params), self.dtype, stream)
        return status

    def launch_own(self, library: Any, *shape: int) -> int:
        """By our own kernel for Hopper, in a HopperShape of cuda_plugins/linear/hopper.h: columns, split, stages."""
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        given = (ctypes.c_int32 * 3)(*shape)
        status: int = library.swinopt_hopper_linear(ctypes.byref(self.params), self.dtype, given, stream)
        return status

    def tune(self, library: Any) -> bytes:
        room = ctypes.create_string_buffer(256)
        library.swinopt_tune_linear.restype = ctypes.c_size_t
        count = library.swinopt_tune_linear(ctypes.byref(self.params), self.dtype, room, ctypes.c_size_t(256))
        return room.raw[:count]


def tensors(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> list[Any]:
    def random(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)

    return [random(rows, inputs), random(inputs, outputs) / inputs**0.5, random(outputs), random(rows, outputs)]


def overlapping_is_the_same(run: Callable[[bool], Any], start: Any) -> bool:
    """Whether kernels of one graph, which may overlap, always give the bits that they give one by one.

    Args:
        run: enqueues kernels that change the tensor ``start`` and returns it; waits for each of them if told so.
        start: what they begin with.
    """
    begin = start.clone()
    one_by_one = run(True).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(False)
    for _ in range(20):
        start.copy_(begin)
        graph.replay()
        if not torch.equal(start, one_by_one):
            return False
    return True

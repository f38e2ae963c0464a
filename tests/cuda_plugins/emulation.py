"""Kernels run on the CPU: emulator/ stands for what they use of CUDA, and the host's compiler for nvcc."""

from __future__ import annotations

import ctypes
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from swinopt import cuda_plugins
from swinopt.cuda_plugins.launch import Device, Tensor
from tests.cuda_plugins import truth

HOPPER, AMPERE, TURING = Device(90, 132, 232448), Device(80, 108, 166912), Device(75, 40, 65536)
#: One file an op, since each launcher has an anonymous namespace of its own.
DRIVER = """
#include "cuda_runtime_api.h"
#include "{op}/launch.cu"
extern "C" int {op}(swinopt::{params} const* params, int dtype, int capability, int multiprocessors, int shared_bytes,
                    int lazy) {{
    emulation::copies_are_lazy = lazy;
    swinopt::Device const device{{capability, multiprocessors, shared_bytes}};
    return swinopt::{op}(*params, static_cast<swinopt::DType>(dtype), device, nullptr);
}}
"""
#: A kernel that is for Hopper alone, and what it would make of an attention.
FOR_HOPPER = """
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#include "cuda_runtime_api.h"
#include "window_attention/{file}.cu"
extern "C" void {plan}_plan(swinopt::WindowAttentionParams p, int dtype, int capability, int multiprocessors,
                            int shared_bytes, decltype(swinopt::{plan}_plan({{}}, {{}}, {{}}))* plan) {{
    swinopt::Device const device{{capability, multiprocessors, shared_bytes}};
    swinopt::window_attention_plan(p, static_cast<swinopt::DType>(dtype), device);
    *plan = swinopt::{plan}_plan(p, static_cast<swinopt::DType>(dtype), device);
}}
"""
GELU = """
#include "cuda_runtime_api.h"
#include "linear/gelu.cu"
extern "C" int gelu_in_place(float* x, int rows, int features) {
    return swinopt::gelu_in_place(x, rows, features, swinopt::Device{90, 132, 232448}, nullptr);
}
"""
#: Inputs that params.h calls constant, and that kernels read before they wait for the kernels before them.
CONSTANTS = {"WindowAttention": (1, 2)}
SHARED_MEMORY = """
#include "cuda_runtime_api.h"
namespace swinopt { __align__(1024) unsigned char shared[emulation::kSharedBytes]; }
unsigned char* emulation::shared_memory() { return swinopt::shared; }
extern "C" void write_late(void* at, std::size_t bytes) { emulation::write_late(at, bytes); }
extern "C" void driver_has_tensor_maps(int has) { emulation::driver_has_tensor_maps = has; }
"""


def build(folder: Path) -> ctypes.CDLL:
    """The launchers and kernels as they are, but for the instructions that only GPUs have."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on the PATH (clang++ has no _Float16 in every version)")
    for name in ("common", "linear", *cuda_plugins.FOLDERS.values()):
        shutil.copytree(cuda_plugins.SOURCES / name, folder / name)
    shutil.copytree(Path(__file__).parent / "emulator", folder, dirs_exist_ok=True)
    for source in folder.glob("*/*.cuh"):
        # Shared memory of a fixed size: one block runs at a time.
        text = source.read_text(encoding="utf-8")
        source.write_text(re.sub(r"(?<!extern )\b__shared__", "static", text), encoding="utf-8")
    (folder / "shared.cpp").write_text(SHARED_MEMORY, encoding="utf-8")
    (folder / "gelu.cpp").write_text(GELU, encoding="utf-8")
    for file, plan in {"hopper": "hopper_window", "hopper_tiled": "hopper_tiled"}.items():
        (folder / f"{file}.cpp").write_text(FOR_HOPPER.format(file=file, plan=plan), encoding="utf-8")
    for op_type, op in cuda_plugins.FOLDERS.items():
        (folder / f"{op}.cpp").write_text(DRIVER.format(op=op, params=f"{op_type}Params"), encoding="utf-8")
    library = folder / "emulated.so"
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-w", f"-I{folder}", "-o", str(library)]
    done = subprocess.run(
        [*command, *map(str, folder.glob("*.cpp")), str(folder / "common" / "tensor_map.cpp")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(library))


def numbers(shape: Sequence[int], *, dtype: torch.dtype, factor: float = 1.0, misaligned: bool = False) -> torch.Tensor:
    """Normal numbers, aligned to 16 bytes or to an element alone."""
    start = 1 if misaligned else 0
    memory = torch.empty(math.prod(shape) + start, dtype=dtype)
    random = torch.Generator().manual_seed(sum(shape))
    return memory[start:].reshape(tuple(shape)).copy_(factor * torch.randn(tuple(shape), generator=random))


class Poisoned:
    """An output full of NaN, with NaN before and behind it."""

    def __init__(self, *shape: int, dtype: torch.dtype, misaligned: bool = False) -> None:
        before, count = 17 if misaligned else 16, math.prod(shape)
        self._all = torch.full((count + 64,), math.nan, dtype=dtype)
        self.tensor = self._all[before : before + count].view(shape)

    def check(self) -> None:
        """All of it was written, and nothing beside it."""
        assert not self.tensor.isnan().any()
        assert int(self._all.isnan().sum()) == 64


def run(
    emulated: ctypes.CDLL,
    op_type: str,
    inputs: Sequence[torch.Tensor | None],
    outputs: Sequence[Poisoned],
    attributes: dict[str, Any],
    *,
    device: Device = HOPPER,
    lazy: bool = True,
) -> None:
    launched(emulated, op_type, inputs, [output.tensor for output in outputs], attributes, device=device, lazy=lazy)
    for output in outputs:
        output.check()


def launched(
    emulated: ctypes.CDLL,
    op_type: str,
    inputs: Sequence[torch.Tensor | None],
    outputs: Sequence[torch.Tensor],
    attributes: dict[str, Any],
    *,
    device: Device = HOPPER,
    lazy: bool = True,
) -> None:
    described = [
        None if t is None else Tensor(tuple(t.shape), str(t.dtype).removeprefix("torch."), t.data_ptr())
        for t in (*inputs, *outputs)
    ]
    launch = cuda_plugins.plan(op_type, described[: len(inputs)], described[len(inputs) :], attributes, device)
    sizes = (device.capability, device.multiprocessors, device.shared_bytes)
    dtype = truth.DTYPES[outputs[0].dtype]
    # A kernel may begin before the ones that write its inputs have ended.
    for index, tensor in enumerate(inputs):
        if tensor is not None and index not in CONSTANTS.get(op_type, ()):
            emulated.write_late(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes))
    status = getattr(emulated, cuda_plugins.FOLDERS[op_type])(ctypes.byref(launch.parameters), dtype, *sizes, int(lazy))
    assert status == 0


def error_of(
    emulated: ctypes.CDLL,
    size: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    head_dim: int,
    heads: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    cosine: bool = False,
    roll_first: bool = False,
    scale: float = 0.25,
    device: Device = HOPPER,
    lazy: bool = True,
    misaligned: bool = False,
) -> float:
    """The error of window attention on random inputs."""
    make = partial(numbers, dtype=dtype, misaligned=misaligned)
    inputs = truth.attention_inputs(make, batch, size, window, head_dim, heads, cosine)
    attributes = truth.attention_attributes(window, shift, heads, scale, roll_first)
    return error_on(emulated, inputs, attributes, device=device, lazy=lazy, misaligned=misaligned)


def error_on(
    emulated: ctypes.CDLL,
    inputs: Sequence[torch.Tensor | None],
    attributes: dict[str, Any],
    *,
    device: Device = HOPPER,
    lazy: bool = True,
    misaligned: bool = False,
) -> float:
    """The error of window attention on these inputs."""
    qkv = inputs[0]
    assert qkv is not None
    output = Poisoned(*qkv.shape[:-1], qkv.shape[-1] // 3, dtype=qkv.dtype, misaligned=misaligned)
    run(emulated, "WindowAttention", inputs, [output], attributes, device=device, lazy=lazy)
    return truth.relative_error(output.tensor, truth.window_attention(*inputs, **attributes))

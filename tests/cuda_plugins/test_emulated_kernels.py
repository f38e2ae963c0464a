"""The kernels, run on the CPU by emulating what they use of CUDA, against float64.

Slow, so sizes are small and devices have few multiprocessors: that gives blocks several windows each. What only a GPU
can show is in test_gpu_kernels.py.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import re
import shutil
import subprocess
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from swinopt import cuda_plugins  # noqa: E402 - only where torch is
from swinopt.cuda_plugins.launch import Device, Tensor  # noqa: E402 - as above
from tests.cuda_plugins import truth  # noqa: E402 - needs torch itself

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
#: The kernels that are for Hopper alone, and what they would make of an attention.
FOR_HOPPER = """
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#include "cuda_runtime_api.h"
#include "window_attention/hopper.cu"
extern "C" void hopper_plan(swinopt::WindowAttentionParams p, int dtype, int capability, int multiprocessors,
                            int shared_bytes, swinopt::HopperWindowPlan* plan) {
    swinopt::Device const device{capability, multiprocessors, shared_bytes};
    swinopt::window_attention_plan(p, static_cast<swinopt::DType>(dtype), device);
    *plan = swinopt::hopper_window_plan(p, static_cast<swinopt::DType>(dtype), device);
}
"""
SHARED_MEMORY = """
#include "cuda_runtime_api.h"
namespace swinopt { __align__(1024) unsigned char shared[emulation::kSharedBytes]; }
unsigned char* emulation::shared_memory() { return swinopt::shared; }
extern "C" void write_late(void* at, std::size_t bytes) { emulation::write_late(at, bytes); }
extern "C" void driver_has_tensor_maps(int has) { emulation::driver_has_tensor_maps = has; }
"""


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The launchers and kernels as they are, but for the instructions that only GPUs have."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on the PATH (clang++ has no _Float16 in every version)")
    folder = tmp_path_factory.mktemp("emulated")
    for name in ("common", *cuda_plugins.FOLDERS.values()):
        shutil.copytree(cuda_plugins.SOURCES / name, folder / name)
    shutil.copytree(Path(__file__).parent / "emulator", folder, dirs_exist_ok=True)
    for source in folder.glob("*/*.cuh"):
        # Shared memory of a fixed size: one block runs at a time.
        text = source.read_text(encoding="utf-8")
        source.write_text(re.sub(r"(?<!extern )\b__shared__", "static", text), encoding="utf-8")
    (folder / "shared.cpp").write_text(SHARED_MEMORY, encoding="utf-8")
    (folder / "for_hopper.cpp").write_text(FOR_HOPPER, encoding="utf-8")
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
    for tensor in inputs:
        if tensor is not None:
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
    output = Poisoned(batch, *size, heads * head_dim, dtype=dtype, misaligned=misaligned)
    run(emulated, "WindowAttention", inputs, [output], attributes, device=device, lazy=lazy)
    return truth.relative_error(output.tensor, truth.window_attention(*inputs, **attributes))


@pytest.mark.parametrize("lazy", [True, False], ids=["late copies", "early copies"])
@pytest.mark.parametrize("multiprocessors", [1, 3, 108])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("window", "size"),
    [((7, 7), (14, 21)), ((8, 8), (16, 15)), ((4, 4), (9, 8)), ((5, 7), (10, 13)), ((6, 6), (7, 4)), ((1, 3), (2, 5))],
    ids=str,
)
def test_small_windows(
    emulated: ctypes.CDLL,
    window: tuple[int, int],
    size: tuple[int, int],
    cosine: bool,
    multiprocessors: int,
    lazy: bool,
) -> None:
    """One multiprocessor gives every block several windows in a row; with more of them two or four blocks share one."""
    device = Device(80, multiprocessors, AMPERE.shared_bytes)
    shift = tuple(w // 2 for w in window)
    error = error_of(
        emulated, size, window, shift, 32, 2, torch.float16, cosine=cosine, device=device, lazy=lazy, roll_first=cosine
    )
    assert error < truth.TOLERANCES[torch.float16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [1, 3, 4, 5])
def test_heads_side_by_side(emulated: ctypes.CDLL, heads: int, dtype: torch.dtype) -> None:
    device = Device(80, 1, AMPERE.shared_bytes)
    assert (
        error_of(emulated, (7, 14), (7, 7), (3, 3), 32, heads, dtype, batch=3, device=device) < truth.TOLERANCES[dtype]
    )


@pytest.mark.parametrize("lazy", [True, False], ids=["late copies", "early copies"])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("window", "size", "head_dim"),
    [
        ((12, 12), (12, 13), 32),
        ((9, 9), (9, 18), 16),
        ((7, 7), (7, 8), 64),
        ((8, 9), (8, 9), 128),
        ((4, 4), (4, 6), 20),
    ],
    ids=str,
)
def test_tiles(
    emulated: ctypes.CDLL, window: tuple[int, int], size: tuple[int, int], head_dim: int, cosine: bool, lazy: bool
) -> None:
    shift = (window[0] // 2, 0)
    error = error_of(emulated, size, window, shift, head_dim, 1, torch.float16, cosine=cosine, lazy=lazy)
    assert error < truth.TOLERANCES[torch.float16]


@pytest.mark.parametrize("device", [HOPPER, TURING], ids=["tensor cores", "plain units"])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("window", "size", "head_dim"),
    [((7, 7), (9, 7), 32), ((2, 4, 4), (3, 4, 8), 32), ((9,), (20,), 32), ((9, 8), (9, 8), 64), ((9, 9), (10, 9), 95)],
    ids=str,
)
def test_single_precision(
    emulated: ctypes.CDLL, window: tuple[int, ...], size: tuple[int, ...], head_dim: int, cosine: bool, device: Device
) -> None:
    shift = tuple(w // 2 for w in window)
    error = error_of(emulated, size, window, shift, head_dim, 2, torch.float32, cosine=cosine, device=device)
    assert error < truth.TOLERANCES[torch.float32]


@pytest.mark.parametrize("part", [0, 1, 2], ids=["q", "k", "v"])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0x7FC00000, -1], ids=hex)
def test_a_nan_is_not_lost(emulated: ctypes.CDLL, bits: int, part: int) -> None:
    """The one that arithmetic makes on a GPU has all bits set: one more, and it would be a zero."""
    qkv = numbers((1, 7, 7, 96), dtype=torch.float32)
    qkv.view(torch.int32)[0, 3, 3, 32 * part] = bits
    output = torch.zeros(1, 7, 7, 32)
    bias = torch.zeros(1, 49, 49)
    attributes = truth.attention_attributes((7, 7), (0, 0), 1, 0.25)
    launched(emulated, "WindowAttention", [qkv, bias, None, None], [output], attributes)
    expected = truth.window_attention(qkv, bias, None, None, **attributes)
    assert torch.equal(output.isnan(), expected.isnan()) and output.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_three_axes_and_a_small_gpu(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    for roll_first, device in itertools.product((False, True), (TURING, HOPPER)):
        error = error_of(
            emulated, (3, 5, 4), (2, 4, 4), (1, 2, 2), 32, 2, dtype, roll_first=roll_first, device=device, lazy=False
        )
        assert error < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("scale", [-0.5, 0.0, 3.0])
def test_any_scale(emulated: ctypes.CDLL, scale: float) -> None:
    assert (
        error_of(emulated, (7, 7), (7, 7), (0, 0), 32, 1, torch.float16, scale=scale) < truth.TOLERANCES[torch.float16]
    )


class HopperPlan(ctypes.Structure):
    """HopperWindowPlan of cuda_plugins/window_attention/hopper.h."""

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("heads", "abreast", "stages", "chunks", "threads", "shared_bytes")
    )


def hopper_plan(
    emulated: ctypes.CDLL,
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    heads: int,
    *,
    batch: int = 1,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float16,
    device: Device = HOPPER,
    pointer: int = 1 << 20,
    **attributes: Any,
) -> HopperPlan:
    n, name = math.prod(window), str(dtype).removeprefix("torch.")
    padded = any(s % w for s, w in zip(size, window, strict=True))
    shapes = [(batch, *size, 3 * heads * head_dim), (heads, n, n), None, (3 * heads * head_dim,) if padded else None]
    given = [None if shape is None else Tensor(shape, name, pointer) for shape in shapes]
    attributes = {**truth.attention_attributes(window, shift, heads, head_dim**-0.5), **attributes}
    output = Tensor((batch, *size, heads * head_dim), name, pointer)
    launch = cuda_plugins.plan("WindowAttention", given, [output], attributes, device)
    plan = HopperPlan()
    sizes = (device.capability, device.multiprocessors, device.shared_bytes)
    emulated.hopper_plan(launch.parameters, truth.DTYPES[dtype], *sizes, ctypes.byref(plan))
    return plan


#: size, window, shift, heads, batch, multiprocessors: one window alone, seams through rows, columns and both, windows
#: and heads abreast, blocks with fewer windows than others, places that are used again and again, one axis and three.
ON_HOPPER = [
    ((7, 7), (7, 7), (0, 0), 1, 1, 1),
    ((7, 7), (7, 7), (3, 3), 3, 2, 3),
    ((14, 14), (7, 7), (3, 3), 2, 1, 1),
    ((14, 14), (7, 7), (3, 3), 2, 1, 3),
    ((14, 7), (7, 7), (3, 0), 2, 3, 1),
    ((7, 14), (7, 7), (0, 3), 4, 2, 1),
    ((14, 21), (7, 7), (5, 1), 1, 2, 5),
    ((14, 21), (7, 7), (5, 1), 1, 7, 1),
    ((16, 8), (8, 8), (4, 4), 3, 3, 1),
    ((8, 16), (8, 8), (2, 6), 2, 2, 3),
    ((12, 6), (6, 6), (2, 4), 5, 1, 1),
    ((10, 16), (5, 8), (2, 4), 2, 2, 1),
    ((6, 22), (3, 11), (1, 5), 3, 2, 1),
    ((100,), (50,), (24,), 1, 1, 1),
    ((1, 14, 14), (1, 7, 7), (0, 3, 3), 2, 1, 3),
]


@pytest.mark.parametrize("lazy", [True, False], ids=["late copies", "early copies"])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("size", "window", "shift", "heads", "batch", "multiprocessors"), ON_HOPPER, ids=str)
def test_small_windows_on_hopper(
    emulated: ctypes.CDLL,
    size: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    heads: int,
    batch: int,
    multiprocessors: int,
    cosine: bool,
    lazy: bool,
) -> None:
    device = Device(90, multiprocessors, HOPPER.shared_bytes)
    assert hopper_plan(emulated, size, window, shift, heads, batch=batch, device=device).heads
    dtype, roll_first = torch.bfloat16 if cosine else torch.float16, cosine
    error = error_of(
        emulated, size, window, shift, 32, heads, dtype,
        batch=batch, cosine=cosine, roll_first=roll_first, device=device, lazy=lazy,
    )  # fmt: skip
    assert error < truth.TOLERANCES[dtype]


def test_a_driver_without_tensor_maps(emulated: ctypes.CDLL) -> None:
    """The kernel of other GPUs takes over."""
    emulated.driver_has_tensor_maps(0)
    try:
        error = error_of(emulated, (14, 14), (7, 7), (3, 3), 32, 2, torch.float16)
    finally:
        emulated.driver_has_tensor_maps(1)
    assert error < truth.TOLERANCES[torch.float16]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_masks_that_16_bits_do_not_hold(emulated: ctypes.CDLL, dtype: torch.dtype, cosine: bool) -> None:
    size, window, shift = (14, 7), (7, 7), (3, 3)
    inputs = truth.attention_inputs(partial(numbers, dtype=dtype), 1, size, window, 32, 1, cosine)
    for value in (0.0, -0.37, -7.3, -100.0, -1e4, -1e9, -3e38):
        attributes = {**truth.attention_attributes(window, shift, 1, 0.25), "mask_value": value}
        assert hopper_plan(emulated, size, window, shift, 1, dtype=dtype, mask_value=value).heads
        output = Poisoned(1, *size, 32, dtype=dtype)
        run(emulated, "WindowAttention", inputs, [output], attributes)
        expected = truth.window_attention(*inputs, **attributes)
        assert truth.relative_error(output.tensor, expected) < truth.TOLERANCES[dtype], value


@pytest.mark.parametrize("device", [HOPPER, AMPERE], ids=["Hopper", "Ampere"])
def test_what_is_not_finite_stays_in_its_window(emulated: ctypes.CDLL, device: Device) -> None:
    """Each block has several windows one after the other, in the same places."""
    device = Device(device.capability, 1, device.shared_bytes)
    qkv, bias = numbers((12, 7, 7, 96), dtype=torch.float16), numbers((1, 49, 49), dtype=torch.float16)
    attributes = truth.attention_attributes((7, 7), (0, 0), 1, 0.25)
    clean, spoiled = (torch.zeros(12, 7, 7, 32, dtype=torch.float16) for _ in range(2))
    launched(emulated, "WindowAttention", [qkv, bias, None, None], [clean], attributes, device=device)
    qkv[::2] = math.inf
    launched(emulated, "WindowAttention", [qkv, bias, None, None], [spoiled], attributes, device=device)
    assert torch.equal(spoiled[1::2], clean[1::2])
    assert spoiled[::2].isnan().all()


def test_what_the_kernel_for_hopper_takes(emulated: ctypes.CDLL) -> None:
    plan = partial(hopper_plan, emulated)
    swin = ((56, 56), (7, 7), (3, 3), 4)
    assert plan(*swin).heads and plan(*swin, dtype=torch.bfloat16).heads
    refused = {
        "another GPU": plan(*swin, device=AMPERE),
        "float32": plan(*swin, dtype=torch.float32),
        "padding": plan((57, 56), *swin[1:]),
        "three axes": plan((8, 14, 14), (2, 7, 7), (1, 3, 3), 4),
        "a large window": plan((24, 24), (12, 12), (6, 6), 4),
        "a small window": plan((20, 20), (5, 5), (2, 2), 4),
        "boxes that begin in the middle of a line": plan((12, 12), (6, 6), (3, 3), 4),
        "another head": plan(*swin, head_dim=64),
        "pointers": plan(*swin, pointer=8),
        "a mask that favours": plan(*swin, mask_value=1.0),
        "a mask that 16 bits do not hold beside this scale": plan(*swin, scale=1e-4, mask_value=-1e4),
        "a mask that 16 bits have no digits for beside this scale": plan(*swin, scale=1e7),
        "no scale": plan(*swin, scale=0.0),
        "a bias of more than 2^31 bytes": plan((8, 8), (8, 8), (0, 0), 1 << 18),
        "offsets of more than 32 bits": plan((448, 448), (7, 7), (3, 3), 4, batch=64),
    }
    assert [why for why, found in refused.items() if found.heads] == []


def test_how_the_kernel_for_hopper_cuts_its_work(emulated: ctypes.CDLL) -> None:
    """No block is more than a multiprocessor holds, and there are no more of them, unless heads leave no choice."""
    for (window, side), heads, batch, multiprocessors in itertools.product(
        (((7, 7), 56), ((7, 7), 7), ((8, 8), 64), ((8, 8), 8), ((5, 7), 35)),
        (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 96),
        (1, 2, 7, 32, 64),
        (1, 78, 114, 132),
    ):
        device = Device(90, multiprocessors, HOPPER.shared_bytes)
        plan = hopper_plan(emulated, (side, side), window, (0, 0), heads, batch=batch, device=device)
        case = (window, side, heads, batch, multiprocessors, [getattr(plan, name) for name, _ in plan._fields_])
        windows, warpgroups = batch * side * side // math.prod(window), plan.heads * plan.abreast
        assert plan.heads and heads % plan.heads == 0, case
        assert 1 <= warpgroups <= 4 and plan.threads == 128 * warpgroups + 64, case
        assert 1 <= plan.stages <= 3 and warpgroups * plan.stages <= 32, case
        assert plan.shared_bytes <= device.shared_bytes, case
        assert 1 <= plan.chunks <= windows and plan.abreast <= -(-windows // plan.chunks), case
        groups = heads // plan.heads
        assert groups * plan.chunks <= max(groups, multiprocessors), case


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
def test_misaligned_pointers(emulated: ctypes.CDLL, dtype: torch.dtype) -> None:
    error = error_of(emulated, (7, 8), (7, 7), (3, 3), 32, 1, dtype, misaligned=True)
    assert error < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 96), (3, 7, 33), (2, 1024), (1, 4104)], ids=str)
def test_add_layer_norm(emulated: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, misaligned: bool) -> None:
    make = partial(numbers, dtype=dtype, misaligned=misaligned)
    inputs = [make(shape, factor=2.0), make(shape), make(shape[-1:]), make(shape[-1:], factor=0.5)]
    outputs = [Poisoned(*shape, dtype=dtype, misaligned=misaligned) for _ in range(2)]
    run(emulated, "AddLayerNorm", inputs, outputs, {"epsilon": 1e-5})
    for output, expected in zip(outputs, truth.add_layer_norm(*inputs, epsilon=1e-5), strict=True):
        assert truth.relative_error(output.tensor, expected) < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 96), (3, 7, 33), (2, 1024), (3, 384), (1, 4104)], ids=str)
def test_layer_norm(
    emulated: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, misaligned: bool, residual: bool
) -> None:
    make = partial(numbers, dtype=dtype, misaligned=misaligned)
    # A residual of its own numbers: those of x come from the same seed.
    inputs = [make(shape, factor=2.0).add_(1), make(shape[-1:]), make(shape[-1:], factor=0.5)]
    inputs += [make(shape).cos_()] if residual else []
    output = Poisoned(*shape, dtype=dtype, misaligned=misaligned)
    run(emulated, "LayerNorm", inputs, [output], {"epsilon": 1e-5})
    assert truth.relative_error(output.tensor, truth.layer_norm(*inputs, epsilon=1e-5)) < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("channels", [8, 33])
def test_the_sum_of_norm_and_residual_is_rounded_once(emulated: ctypes.CDLL, channels: int, misaligned: bool) -> None:
    """Of 1 and a small norm float16 would keep half the digits, and the residual takes the 1 away."""
    make = partial(numbers, dtype=torch.float16, misaligned=misaligned)
    shape = (3, channels)
    x, gamma = make(shape), make((channels,)).fill_(2**-9)
    inputs = [x, gamma, make((channels,)).fill_(1), make(shape).fill_(-1)]
    output = Poisoned(*shape, dtype=torch.float16, misaligned=misaligned)
    run(emulated, "LayerNorm", inputs, [output], {"epsilon": 1e-5})
    assert truth.relative_error(output.tensor, truth.layer_norm(*inputs, epsilon=1e-5)) < 1e-3


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 4, 6, 32), (1, 3, 5, 33), (1, 1, 2, 384)], ids=str)
def test_patch_merging(emulated: ctypes.CDLL, shape: tuple[int, ...], dtype: torch.dtype, misaligned: bool) -> None:
    batch, height, width, channels = shape
    make = partial(numbers, dtype=dtype, misaligned=misaligned)
    inputs = [make(shape), make((4 * channels,)), make((4 * channels,), factor=0.5)]
    output = Poisoned(batch, -(-height // 2), -(-width // 2), 4 * channels, dtype=dtype, misaligned=misaligned)
    run(emulated, "PatchMerging", inputs, [output], {"epsilon": 1e-5})
    assert truth.relative_error(output.tensor, truth.patch_merging(*inputs, epsilon=1e-5)) < truth.TOLERANCES[dtype]

"""Window attention's kernels, run on the CPU by emulating what they use of CUDA, against float64.

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
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from swinopt import cuda_plugins  # noqa: E402 - only where torch is
from swinopt.cuda_plugins.launch import Device, Tensor  # noqa: E402
from tests.cuda_plugins import truth  # noqa: E402

Attend = Callable[..., int]
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
HOPPER, TURING = Device(90, 132, 232448), Device(75, 40, 65536)
DRIVER = """
#include "cuda_runtime_api.h"
namespace swinopt { __align__(16) unsigned char shared[emulation::kSharedBytes]; }
unsigned char* emulation::shared_memory() { return swinopt::shared; }
%s
extern "C" int attend(swinopt::WindowAttentionParams const* params, int dtype, int capability, int multiprocessors,
                      int shared_bytes, int lazy) {
    emulation::copies_are_lazy = lazy;
    swinopt::Device const device{capability, multiprocessors, shared_bytes};
    return swinopt::window_attention(*params, static_cast<swinopt::DType>(dtype), device, nullptr);
}
"""


@pytest.fixture(scope="module")
def attend(tmp_path_factory: pytest.TempPathFactory) -> Attend:
    """The launcher as it is, but for the syntax of the launch and the instructions that only GPUs have."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ on the PATH (clang++ has no _Float16 in every version)")
    folder = tmp_path_factory.mktemp("emulated")
    for name in ("common", "window_attention"):
        shutil.copytree(cuda_plugins.SOURCES / name, folder / name)
    shutil.copytree(Path(__file__).parent / "emulator", folder, dirs_exist_ok=True)
    launcher = (folder / "window_attention" / "launch.cu").read_text(encoding="utf-8")
    launch = re.compile(r"(\w+)<<<(.+?), (.+?), (.+?), .+?>>>\((\w+)\)")
    driver, count = launch.subn(r"emulation::launch(\1, \2, \3, \4, \5)", launcher)
    assert count == 1
    (folder / "window_attention" / "driver.cpp").write_text(DRIVER % driver, encoding="utf-8")
    library = folder / "emulated.so"
    command = [compiler, "-std=c++17", "-O2", "-shared", "-fPIC", "-w", f"-I{folder}", "-o", str(library)]
    done = subprocess.run([*command, str(folder / "window_attention" / "driver.cpp")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return ctypes.CDLL(str(library)).attend


def error_of(
    attend: Attend,
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
    random = torch.Generator().manual_seed(sum(size) + heads)

    def numbers(*shape: int, factor: float = 1.0) -> torch.Tensor:
        memory = torch.empty(math.prod(shape) + 9, dtype=dtype)
        skipped = 1 if misaligned else 0
        tensor = memory[skipped : skipped + math.prod(shape)].reshape(shape)
        return tensor.copy_(factor * torch.randn(shape, generator=random))

    n, channels = math.prod(window), heads * head_dim
    qkv, bias = numbers(batch, *size, 3 * channels, factor=1.5), numbers(heads, n, n)
    logit_scale = numbers(heads).abs_().mul_(5).add_(5) if cosine else None
    pad_qkv = numbers(3 * channels) if any(s % w for s, w in zip(size, window, strict=True)) else None
    guarded = torch.full((batch * math.prod(size) * channels + 65,), math.nan, dtype=dtype)
    output = guarded[1 if misaligned else 0 :][: batch * math.prod(size) * channels].view(batch, *size, channels)
    attributes = {
        "window_size": window,
        "shift_size": shift,
        "num_heads": heads,
        "scale": scale,
        "mask_value": -100.0,
        "roll_first": int(roll_first),
    }
    described = [
        None if t is None else Tensor(tuple(t.shape), str(t.dtype).removeprefix("torch."), t.data_ptr())
        for t in (qkv, bias, logit_scale, pad_qkv, output)
    ]
    launch = cuda_plugins.plan("WindowAttention", described[:4], described[4:], attributes, device)
    status = attend(
        ctypes.byref(launch.parameters),
        TYPES[dtype],
        device.capability,
        device.multiprocessors,
        device.shared_bytes,
        int(lazy),
    )
    assert status == 0
    assert int(guarded.isnan().sum()) == 65  # all of the output was written, and nothing beside it
    return truth.relative_error(output, truth.window_attention(qkv, bias, logit_scale, pad_qkv, **attributes))


@pytest.mark.parametrize("lazy", [True, False], ids=["late copies", "early copies"])
@pytest.mark.parametrize("multiprocessors", [1, 132])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("window", "size"),
    [((7, 7), (14, 21)), ((8, 8), (16, 15)), ((4, 4), (9, 8)), ((5, 7), (10, 13)), ((6, 6), (7, 4)), ((1, 3), (2, 5))],
    ids=str,
)
def test_small_windows(
    attend: Attend, window: tuple[int, int], size: tuple[int, int], cosine: bool, multiprocessors: int, lazy: bool
) -> None:
    """One multiprocessor gives every block several windows in a row, many give several blocks a window."""
    device = Device(90, multiprocessors, HOPPER.shared_bytes)
    shift = tuple(w // 2 for w in window)
    error = error_of(
        attend, size, window, shift, 32, 2, torch.float16, cosine=cosine, device=device, lazy=lazy, roll_first=cosine
    )
    assert error < truth.TOLERANCES[torch.float16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [1, 3, 4, 5])
def test_heads_side_by_side(attend: Attend, heads: int, dtype: torch.dtype) -> None:
    device = Device(90, 1, HOPPER.shared_bytes)
    assert error_of(attend, (7, 14), (7, 7), (3, 3), 32, heads, dtype, batch=3, device=device) < truth.TOLERANCES[dtype]


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
    attend: Attend, window: tuple[int, int], size: tuple[int, int], head_dim: int, cosine: bool, lazy: bool
) -> None:
    shift = (window[0] // 2, 0)
    error = error_of(attend, size, window, shift, head_dim, 1, torch.float16, cosine=cosine, lazy=lazy)
    assert error < truth.TOLERANCES[torch.float16]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(("window", "size"), [((7, 7), (9, 7)), ((2, 4, 4), (3, 4, 8)), ((9,), (20,))], ids=str)
def test_single_precision(attend: Attend, window: tuple[int, ...], size: tuple[int, ...], cosine: bool) -> None:
    shift = tuple(w // 2 for w in window)
    assert error_of(attend, size, window, shift, 32, 2, torch.float32, cosine=cosine) < truth.TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_three_axes_and_a_small_gpu(attend: Attend, dtype: torch.dtype) -> None:
    for roll_first, device in itertools.product((False, True), (TURING, HOPPER)):
        error = error_of(
            attend, (3, 5, 4), (2, 4, 4), (1, 2, 2), 32, 2, dtype, roll_first=roll_first, device=device, lazy=False
        )
        assert error < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("scale", [-0.5, 0.0, 3.0])
def test_any_scale(attend: Attend, scale: float) -> None:
    assert error_of(attend, (7, 7), (7, 7), (0, 0), 32, 1, torch.float16, scale=scale) < truth.TOLERANCES[torch.float16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_misaligned_pointers(attend: Attend, dtype: torch.dtype) -> None:
    error = error_of(attend, (7, 8), (7, 7), (3, 3), 32, 1, dtype, misaligned=True)
    assert error < truth.TOLERANCES[dtype]

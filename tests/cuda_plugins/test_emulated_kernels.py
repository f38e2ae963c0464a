"""The kernels, run on the CPU by emulating what they use of CUDA, against float64.

Slow, so sizes are small and devices have few multiprocessors: that gives blocks several windows each. Those for Hopper
alone are in test_emulated_hopper.py; what only a GPU can show is in test_gpu_kernels.py.
"""

from __future__ import annotations

import ctypes
import itertools
from functools import partial

import pytest

torch = pytest.importorskip("torch")

from swinopt.cuda_plugins.launch import Device  # noqa: E402 - only where torch is
from tests.cuda_plugins import truth  # noqa: E402 - needs torch itself
from tests.cuda_plugins.emulation import (  # noqa: E402 - as above
    AMPERE,
    HOPPER,
    TURING,
    Poisoned,
    error_of,
    launched,
    numbers,
    run,
)


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


@pytest.mark.parametrize(("rows", "features"), [(1, 8), (7, 40), (33, 96)])
def test_gelu_behind_a_linear_in_float32(emulated: ctypes.CDLL, rows: int, features: int) -> None:
    """In its place, whole, and nothing beside it: as exact as float32 is."""
    x = numbers((rows, features), dtype=torch.float32, factor=3.0)
    output = Poisoned(rows, features, dtype=torch.float32)
    output.tensor.copy_(x)
    emulated.write_late(ctypes.c_void_p(output.tensor.data_ptr()), ctypes.c_size_t(4 * x.numel()))
    assert emulated.gelu_in_place(ctypes.c_void_p(output.tensor.data_ptr()), rows, features) == 0
    output.check()
    expected = torch.nn.functional.gelu(x.double())
    assert (output.tensor.double() - expected).abs().max() < 5e-7

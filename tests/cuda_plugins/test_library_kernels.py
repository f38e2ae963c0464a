"""Window attention of the C++ plugin library on a GPU against float64: it has kernels that NVRTC is not given."""

from __future__ import annotations

import ctypes
import itertools
import math
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cuda.bindings", reason="planning launches needs cuda-bindings")

from tests.cuda_plugins import linears, truth  # noqa: E402 - needs torch

pytestmark = pytest.mark.gpu

HALVES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in (torch.float16, torch.bfloat16)]
#: size, window, shift of whole maps, with windows of 33 to 64 tokens: what hopper.h takes, and some that it does not.
WINDOWS = (
    ((56, 56), (7, 7), (3, 3)),
    ((56, 56), (7, 7), (0, 0)),
    ((28, 14), (7, 7), (3, 0)),
    ((14, 28), (7, 7), (0, 3)),
    ((7, 7), (7, 7), (3, 3)),
    ((21, 7), (7, 7), (5, 1)),
    ((64, 64), (8, 8), (4, 4)),
    ((16, 24), (8, 8), (1, 7)),
    ((10, 16), (5, 8), (2, 4)),
    ((8, 8), (8, 8), (0, 0)),
    ((12, 18), (6, 6), (2, 4)),
    ((18, 12), (6, 6), (3, 3)),
    ((10, 14), (5, 7), (2, 3)),
    ((12, 22), (3, 11), (1, 5)),
)
#: The same of 65 to 256 tokens, for hopper_tiled.h.
LARGE_WINDOWS = (
    ((48, 48), (12, 12), (6, 6)),
    ((24, 24), (12, 12), (0, 0)),
    ((12, 12), (12, 12), (0, 0)),
    ((32, 32), (16, 16), (8, 8)),
    ((16, 16), (16, 16), (0, 0)),
    ((32, 16), (16, 16), (8, 0)),
    ((16, 48), (16, 16), (0, 2)),
    ((20, 30), (10, 10), (4, 6)),
    ((18, 28), (9, 14), (3, 6)),
    ((16, 32), (8, 16), (4, 2)),
    ((26, 12), (13, 6), (1, 2)),
    ((30, 30), (15, 15), (7, 7)),
    ((24, 24), (12, 12), (5, 5)),
)
HEADS, BATCHES = (1, 2, 3, 4, 5, 6, 16), (1, 3, 40)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", HALVES)
def test_window_attention_of_every_map(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    errors = {
        (shape, heads, cosine): truth.window_attention_error(
            *shape, *heads, dtype, batch=2, cosine=cosine, library=library
        )
        for shape, heads, cosine in itertools.product(truth.MAPS, truth.HEADS, (False, True))
    }
    assert truth.too_large(errors, dtype) == {}


@pytest.mark.parametrize("windows", [WINDOWS, LARGE_WINDOWS], ids=["small", "large"])
@pytest.mark.parametrize("dtype", HALVES)
def test_window_attention_of_whole_maps(library: ctypes.CDLL, dtype: torch.dtype, windows: Any) -> None:
    """From one window to several for each warpgroup of every multiprocessor."""
    errors = {
        (shape, heads, batch, cosine): truth.window_attention_error(
            *shape, 32, heads, dtype, batch=batch, cosine=cosine, library=library
        )
        for shape, heads, batch, cosine in itertools.product(windows, HEADS, BATCHES, (False, True))
    }
    assert truth.too_large(errors, dtype) == {}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("case", [WINDOWS[2], LARGE_WINDOWS[0]], ids=["small", "large"])
def test_masks_that_16_bits_do_not_hold(library: ctypes.CDLL, case: Any, cosine: bool, dtype: torch.dtype) -> None:
    errors = {
        value: truth.window_attention_error(*case, 32, 4, dtype, cosine=cosine, mask_value=value, library=library)
        for value in (0.0, -0.37, -7.3, -100.0, -1e4, -1e9, -3.4e38, -math.inf, 2.5)
    }
    assert truth.too_large(errors, dtype) == {}


@pytest.mark.parametrize("dtype", HALVES)
def test_tiles_that_are_hidden_altogether(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    errors = {}
    for batch in (1, 200):  # in one image there is too little to do for the kernel of large windows
        inputs = truth.inputs_with_hidden_tiles(partial(truth.random, dtype=dtype), batch)
        case = partial(truth.window_attention_error, *truth.HIDDEN_TILES, 32, 1, dtype, scale=0.25, library=library)
        for mask in truth.HIDING:
            errors[batch, mask] = case(batch=batch, mask_value=mask, inputs=inputs)
    assert truth.too_large(errors, dtype) == {}


@pytest.mark.parametrize("dtype", HALVES)
def test_window_attention_of_misaligned_pointers(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    errors = {
        shape: truth.window_attention_error(*shape, 32, 4, dtype, misaligned=True, library=library)
        for shape in WINDOWS + LARGE_WINDOWS
    }
    assert truth.too_large(errors, dtype) == {}


def kernels_of(
    library: ctypes.CDLL, size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> set[str]:
    """The kernels that a profiler sees."""
    inputs = truth.attention_inputs(
        lambda shape, factor=1.0: factor * torch.randn(shape, device="cuda", dtype=torch.float16),
        1, size, window, 32, 4, False,
    )  # fmt: skip
    output = torch.empty(1, *size, 128, device="cuda", dtype=torch.float16)
    attributes = truth.attention_attributes(window, shift, 4, 32**-0.5)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        truth.launched("WindowAttention", inputs, [output], attributes, library)
        torch.cuda.synchronize()
    return {event.key for event in profile.key_averages() if "window_attention" in event.key}


@pytest.mark.usefixtures("hopper")
def test_hopper_has_a_kernel_of_its_own_for_whole_maps(library: ctypes.CDLL) -> None:
    for case in (WINDOWS[0], WINDOWS[1], LARGE_WINDOWS[0], LARGE_WINDOWS[3]):
        (kernel,) = kernels_of(library, *case)
        assert "hopper" in kernel
    for size, window, shift in (((13, 20), (7, 7), (3, 3)), ((25, 24), (12, 12), (6, 6))):
        (kernel,) = kernels_of(library, size, window, shift)
        assert "hopper" not in kernel


@pytest.mark.parametrize("case", [WINDOWS[2], LARGE_WINDOWS[0]], ids=["small", "large"])
def test_what_is_not_finite_stays_in_its_window(library: ctypes.CDLL, case: Any) -> None:
    size, window, shift = case
    n = math.prod(window)
    qkv = torch.randn(40, *size, 384, device="cuda", dtype=torch.float16)
    bias = torch.randn(4, n, n, device="cuda", dtype=torch.float16)
    attributes = truth.attention_attributes(window, shift, 4, 32**-0.5)
    clean, spoiled = (torch.empty(40, *size, 128, device="cuda", dtype=torch.float16) for _ in range(2))
    torch.cuda.synchronize()  # the bias is a constant
    truth.launched("WindowAttention", [qkv, bias, None, None], [clean], attributes, library)
    qkv[1::2] = float("nan")
    truth.launched("WindowAttention", [qkv, bias, None, None], [spoiled], attributes, library)
    assert torch.equal(spoiled[::2], clean[::2])
    assert torch.isnan(spoiled[1::2]).all()


@pytest.mark.usefixtures("cublaslt")
@pytest.mark.parametrize("batch", [1, 8, 40])
def test_kernels_that_overlap_give_what_they_give_one_by_one(library: ctypes.CDLL, batch: int) -> None:
    """Each reads what the one before writes, and writes what the one before that has read."""
    x = torch.randn(batch * 196, 512, device="cuda", dtype=torch.float16)
    _, weight, bias, _ = linears.tensors(1, 512, 1536, torch.float16)
    qkv = torch.empty(batch * 196, 1536, device="cuda", dtype=torch.float16)
    tables = torch.randn(16, 49, 49, device="cuda", dtype=torch.float16)
    linear = linears.Call(x, weight, bias, None, qkv)
    norm = [torch.randn(512, device="cuda", dtype=torch.float16) for _ in range(2)]

    def multiply() -> None:
        assert linear.launch(library) == 0

    def normalize() -> None:
        truth.launched("LayerNorm", [x, *norm], [x], {"epsilon": 1e-5}, library)

    def attend(block: int) -> None:
        attributes = truth.attention_attributes((7, 7), (3 * (block % 2),) * 2, 16, 32**-0.5)
        inputs = [qkv.view(batch, 14, 14, 1536), tables, None, None]
        truth.launched("WindowAttention", inputs, [x.view(batch, 14, 14, 512)], attributes, library)

    def run(wait: bool) -> Any:
        for block in range(20):
            for launch in (multiply, partial(attend, block), normalize):
                launch()
                if wait:
                    torch.cuda.synchronize()
        return x

    assert linears.overlapping_is_the_same(run, x)

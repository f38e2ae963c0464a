"""Every kernel on a GPU against float64: sizes, types, poisoned outputs, pointers that are barely aligned."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("cuda.bindings", reason="launching kernels needs cuda-bindings")

from tests.cuda_plugins import truth  # noqa: E402 - needs torch

pytestmark = pytest.mark.gpu

TYPES = [pytest.param(dtype, id=str(dtype).removeprefix("torch.")) for dtype in truth.TOLERANCES]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", truth.HEADS, ids=lambda heads: "x".join(map(str, heads)))
def test_window_attention(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    assert truth.too_large(errors_of_maps(heads, dtype), dtype) == {}


def errors_of_maps(heads: tuple[int, int], dtype: torch.dtype) -> dict[Any, float]:
    """By size, window, shift, whether attention is cosine and whether the roll comes first."""
    errors: dict[Any, float] = {}
    for number, (size, window, shift) in enumerate(truth.MAPS):
        for cosine, roll_first in itertools.product((False, True), repeat=2):
            errors[size, window, shift, cosine, roll_first] = truth.window_attention_error(
                size, window, shift, *heads, dtype, batch=1 + number % 3, cosine=cosine, roll_first=roll_first
            )
    return errors


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("heads", [(32, 4), (24, 2), (128, 1)], ids=lambda heads: "x".join(map(str, heads)))
def test_window_attention_of_misaligned_pointers(dtype: torch.dtype, heads: tuple[int, int]) -> None:
    for size, window, shift in truth.MAPS[:8]:
        error = truth.window_attention_error(size, window, shift, *heads, dtype, misaligned=True)
        assert error < truth.TOLERANCES[dtype], (size, window, shift)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("batch", [1, 40, 300])
def test_window_attention_of_many_windows(dtype: torch.dtype, batch: int) -> None:
    """Blocks that take several windows each, and a last one that takes fewer."""
    for window, shift, heads in (((7, 7), (3, 3), 3), ((7, 7), (3, 3), 4), ((8, 8), (4, 4), 4), ((4, 4), (2, 2), 2)):
        error = truth.window_attention_error((20, 22), window, shift, 32, heads, dtype, batch=batch, cosine=batch == 40)
        assert error < truth.TOLERANCES[dtype], (window, shift, heads)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1e-8, 3.0])
@pytest.mark.parametrize("dtype", TYPES)
def test_window_attention_with_any_scale(dtype: torch.dtype, scale: float) -> None:
    assert truth.window_attention_error((14, 14), (7, 7), (3, 3), 32, 4, dtype, scale=scale) < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TYPES)
def test_tiles_that_are_hidden_altogether(dtype: torch.dtype) -> None:
    inputs = truth.inputs_with_hidden_tiles(partial(truth.random, dtype=dtype))
    errors = {
        mask: truth.window_attention_error(
            *truth.HIDDEN_TILES, 32, 1, dtype, scale=0.25, mask_value=mask, inputs=inputs
        )
        for mask in truth.HIDING
    }
    assert truth.too_large(errors, dtype) == {}


@pytest.mark.parametrize("dtype", TYPES)
def test_window_attention_of_zeros_has_no_nan(dtype: torch.dtype) -> None:
    """A token of zeros has no direction, which cosine attention asks for."""
    for window in ((7, 7), (8, 8), (12, 12)):
        n = window[0] * window[1]
        qkv = torch.zeros(1, *window, 3 * 64, dtype=dtype, device="cuda")
        output = truth.Buffer((1, *window, 64), dtype)
        bias, logit_scale = truth.random((2, n, n), dtype), torch.full((2,), 100.0, dtype=dtype, device="cuda")
        attributes = {"window_size": window, "shift_size": (0, 0), "num_heads": 2, "scale": 1.0}
        truth.launched("WindowAttention", [qkv, bias, logit_scale, None], [output.tensor], attributes)
        assert (output.tensor == 0).all()


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", truth.ROWS, ids=str)
def test_add_layer_norm(shape: Sequence[int], dtype: torch.dtype, misaligned: bool) -> None:
    assert truth.add_layer_norm_error(shape, dtype, misaligned=misaligned) < truth.TOLERANCES[dtype]


def test_add_layer_norm_of_a_large_mean() -> None:
    """E[x^2] - E[x]^2 would lose all digits here."""
    assert truth.add_layer_norm_error((64, 256), torch.float32, mean=300.0) < 1e-4


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", truth.ROWS, ids=str)
def test_layer_norm(shape: Sequence[int], dtype: torch.dtype, misaligned: bool, residual: bool) -> None:
    error = truth.layer_norm_error(shape, dtype, residual=residual, misaligned=misaligned)
    assert error < truth.TOLERANCES[dtype]


def test_layer_norm_of_a_large_mean() -> None:
    """E[x^2] - E[x]^2 would lose all digits here as well."""
    assert truth.layer_norm_error((64, 256), torch.float32, residual=False, mean=300.0) < 1e-4


@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", truth.PATCHES, ids=str)
def test_patch_merging(shape: Sequence[int], dtype: torch.dtype, misaligned: bool) -> None:
    assert truth.patch_merging_error(shape, dtype, misaligned=misaligned) < truth.TOLERANCES[dtype]


#: One launch of each template and of each way through it, small enough for a tool that slows everything down.
SHORT_SWEEP = """
import itertools
import torch
from tests.cuda_plugins import truth
for dtype in truth.TOLERANCES:
    for size, window, shift in (truth.MAPS[2], truth.MAPS[5], truth.MAPS[7], truth.MAPS[15]):
        for heads, cosine, misaligned in ((2, False, False), (3, True, False), (1, False, True)):
            error = truth.window_attention_error(
                size, window, shift, 32, heads, dtype, batch=2, cosine=cosine, misaligned=misaligned
            )
            assert error < truth.TOLERANCES[dtype], (size, window, dtype, heads, error)
    for side, cosine in itertools.product((21, 70), (False, True)):  # two blocks a window; many windows a block
        assert truth.window_attention_error(
            (side, side), (7, 7), (3, 3), 32, 4, dtype, batch=9, cosine=cosine
        ) < truth.TOLERANCES[dtype]
    assert truth.window_attention_error((9, 9), (7, 7), (3, 3), 128, 1, dtype) < truth.TOLERANCES[dtype]
    assert truth.add_layer_norm_error((5, 96), dtype) < truth.TOLERANCES[dtype]
    for channels, residual in itertools.product((96, 33), (False, True)):
        assert truth.layer_norm_error((5, channels), dtype, residual=residual) < truth.TOLERANCES[dtype]
    assert truth.patch_merging_error((2, 5, 6, 32), dtype) < truth.TOLERANCES[dtype]
for size, window, shift in (truth.MAPS[2], truth.MAPS[7]):
    for head_dim, cosine, misaligned in ((32, False, False), (64, True, False), (95, True, True)):
        error = truth.window_attention_error(
            size, window, shift, head_dim, 2, torch.float32, cosine=cosine, misaligned=misaligned
        )
        assert error < truth.TOLERANCES[torch.float32], (size, window, head_dim, error)
torch.cuda.synchronize()
print("swept")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on the PATH; it comes with the CUDA toolkit")
    # PyTorch's pool of memory would make one allocation of all tensors, and hide what lies between them. Calls that the
    # driver refuses are no errors of kernels: cuda-bindings asks it for every function that there may be.
    options = ["--report-api-errors", "no"] if tool == "memcheck" else []
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(
        [sanitizer, "--tool", tool, *options, "--error-exitcode", "9", sys.executable, "-c", SHORT_SWEEP],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0 and "swept" in done.stdout, (done.stdout + done.stderr)[-4000:]

"""The fast references of the GPU tests against the NumPy truth of each op, on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from swinopt.cuda_plugins.add_layer_norm import reference as add_layer_norm
from swinopt.cuda_plugins.layer_norm import reference as layer_norm
from swinopt.cuda_plugins.patch_merging import reference as patch_merging
from swinopt.cuda_plugins.window_attention import reference as window_attention

torch = pytest.importorskip("torch")

from tests.cuda_plugins import truth  # noqa: E402 - needs torch


def numbers(*shape: int) -> Any:
    return torch.from_numpy(np.random.default_rng(sum(shape)).standard_normal(shape))


@pytest.mark.parametrize("roll_first", [False, True])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((8, 8), (4, 4), (2, 2)), ((5, 7), (4, 3), (2, 0)), ((2, 3), (4, 4), (3, 3)), ((3, 5, 4), (2, 2, 4), (1, 1, 0))],
)
def test_window_attention(size: Any, window: Any, shift: Any, cosine: bool, roll_first: bool) -> None:
    heads, channels, n = 2, 6, int(np.prod(window))
    inputs = [
        numbers(2, *size, 3 * channels),
        numbers(heads, n, n),
        5 * numbers(heads).abs() if cosine else None,
        numbers(3 * channels),
    ]
    attributes = {
        "window_size": window,
        "shift_size": shift,
        "num_heads": heads,
        "scale": 0.5,
        "mask_value": -3.0,
        "roll_first": roll_first,
    }
    expected = window_attention.window_attention(*(None if t is None else t.numpy() for t in inputs), **attributes)
    actual = truth.window_attention(*inputs, **attributes)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12)


def test_add_layer_norm() -> None:
    inputs = [numbers(3, 5, 8), numbers(3, 5, 8) + 1, numbers(8), numbers(8)]
    expected = add_layer_norm.add_layer_norm(*(t.numpy() for t in inputs), epsilon=1e-5)
    for a, e in zip(truth.add_layer_norm(*inputs, epsilon=1e-5), expected, strict=True):
        np.testing.assert_allclose(a.numpy(), e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm(residual: bool) -> None:
    inputs = [numbers(3, 5, 8), numbers(8), numbers(8), *([numbers(3, 5, 8) + 1] if residual else [])]
    expected = layer_norm.layer_norm(*(t.numpy() for t in inputs), epsilon=1e-5)
    np.testing.assert_allclose(truth.layer_norm(*inputs, epsilon=1e-5).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(4, 6), (5, 3), (1, 1)])
def test_patch_merging(size: tuple[int, int]) -> None:
    inputs = [numbers(2, *size, 3), numbers(12), numbers(12)]
    expected = patch_merging.patch_merging(*(t.numpy() for t in inputs), epsilon=1e-5)
    np.testing.assert_allclose(truth.patch_merging(*inputs, epsilon=1e-5).numpy(), expected, rtol=0, atol=1e-12)

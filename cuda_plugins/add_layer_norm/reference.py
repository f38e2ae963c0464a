"""A sum and its LayerNorm in NumPy, in float64: the truth that every implementation must meet.

Source: Ba et al. 2016, "Layer Normalization", arXiv:1607.06450, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def add_layer_norm(a: Array, b: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> tuple[Array, Array]:
    """``a + b`` and its LayerNorm over the last axis: ``swinopt::AddLayerNorm``, version 1.

    Args:
        a: ``[..., C]``.
        b: the same shape as ``a``.
        gamma: ``[C]``, the factor behind the norm.
        beta: ``[C]``, the summand behind it.
        epsilon: added to the variance.

    Returns:
        The sum, and the LayerNorm of the sum before it is rounded; both ``[..., C]`` in the dtype of ``a``.

    Raises:
        ValueError: the shapes do not fit.
    """
    if a.shape != b.shape or gamma.shape != a.shape[-1:] or beta.shape != a.shape[-1:]:
        raise ValueError(f"shapes do not fit: a {a.shape}, b {b.shape}, gamma {gamma.shape}, beta {beta.shape}")
    total = a.astype(np.float64) + b.astype(np.float64)
    centred = total - total.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    normalized = centred / np.sqrt(variance + epsilon) * gamma.astype(np.float64) + beta.astype(np.float64)
    return total.astype(a.dtype), normalized.astype(a.dtype)

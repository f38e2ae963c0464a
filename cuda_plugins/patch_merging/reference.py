"""Patch merging up to its reduction in NumPy, in float64: the truth that every implementation must meet.

Source: Liu et al. 2021, "Swin Transformer", arXiv:2103.14030, section 3.1; the norm before the reduction is that of the
published code (Swin V2 puts it behind).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def patch_merging(x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-5) -> Array:
    """2x2 neighbours side by side, and their LayerNorm: ``swinopt::PatchMerging``, version 1.

    Args:
        x: ``[B, H, W, C]``. A neighbour beyond an odd map is zero, and takes part in the statistics.
        gamma: ``[4C]``, the factor behind the norm, in the order (dy, dx, c).
        beta: ``[4C]``, the summand behind it.
        epsilon: added to the variance.

    Returns:
        ``[B, ceil(H / 2), ceil(W / 2), 4C]`` in the dtype of ``x``; feature ``(2 dy + dx) * C + c`` of token (i, j)
        is channel c at (2i + dy, 2j + dx).

    Raises:
        ValueError: the shapes do not fit.
    """
    features = (4 * x.shape[-1],)
    if x.ndim != 4 or gamma.shape != features or beta.shape != features:
        raise ValueError(f"shapes do not fit: x {x.shape}, gamma {gamma.shape}, beta {beta.shape}")
    _, height, width, _ = x.shape
    even = np.pad(x.astype(np.float64), ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    merged = np.concatenate([even[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], axis=-1)
    centred = merged - merged.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    normalized = centred / np.sqrt(variance + epsilon) * gamma.astype(np.float64) + beta.astype(np.float64)
    return np.asarray(normalized.astype(x.dtype))

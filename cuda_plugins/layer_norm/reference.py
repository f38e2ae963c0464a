"""LayerNorm and a residual addition in NumPy, in float64: the truth that every implementation must meet.

Sources: Ba et al. 2016, "Layer Normalization", arXiv:1607.06450, section 3; Liu et al. 2021, "Swin Transformer V2",
arXiv:2111.09883, section 3.1, for the addition behind it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def layer_norm(x: Array, gamma: Array, beta: Array, residual: Array | None = None, *, epsilon: float = 1e-5) -> Array:
    """``LayerNorm(x) + residual`` over the last axis: ``swinopt::LayerNorm``, version 1.

    Args:
        x: ``[..., C]``.
        gamma: ``[C]``, the factor behind the norm.
        beta: ``[C]``, the summand behind it.
        residual: the same shape as ``x``, or None for none.
        epsilon: added to the variance.

    Returns:
        ``[..., C]`` in the dtype of ``x``, rounded once.

    Raises:
        ValueError: the shapes do not fit.
    """
    shapes = [array.shape for array in (gamma, beta)]
    if shapes != [x.shape[-1:]] * 2 or (residual is not None and residual.shape != x.shape):
        added = "none" if residual is None else residual.shape
        raise ValueError(f"shapes do not fit: x {x.shape}, gamma {shapes[0]}, beta {shapes[1]}, residual {added}")
    exact = x.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    variance = np.square(centred).mean(-1, keepdims=True)
    result = centred / np.sqrt(variance + epsilon) * gamma.astype(np.float64) + beta.astype(np.float64)
    if residual is not None:
        result = result + residual.astype(np.float64)
    rounded: Array = result.astype(x.dtype)
    return rounded

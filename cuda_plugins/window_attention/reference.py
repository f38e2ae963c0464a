"""Window attention in NumPy, step by step as the papers describe it: the truth that every implementation must meet.

Nothing clever on purpose: the map is padded, rolled and partitioned, one window at a time is attended to, and the way
back undoes each step. All of it in float64.

Sources: Liu et al. 2021, arXiv:2103.14030, section 3.2 (shifted windows, relative position bias); Liu et al. 2022,
"Swin Transformer V2", arXiv:2111.09883, section 3.3 (scaled cosine attention).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def window_attention(
    qkv: Array,
    relative_position_bias: Array,
    logit_scale: Array | None = None,
    pad_qkv: Array | None = None,
    *,
    window_size: Sequence[int],
    shift_size: Sequence[int],
    num_heads: int,
    scale: float,
    mask_value: float = -100.0,
    roll_first: bool = False,
) -> Array:
    """Shifted-window attention over a feature map: ``swinopt::WindowAttention``, version 1.

    Args:
        qkv: ``[B, *spatial, 3C]``: query, key and value of every token, each split as ``[num_heads, C / num_heads]``.
        relative_position_bias: ``[num_heads, N, N]`` with ``N = prod(window_size)``, query by key.
        logit_scale: ``[num_heads]``, after exponential and clamp. With it, q and k are L2-normalised and ``scale``
            is not used (Swin V2).
        pad_qkv: ``[3C]``, the ``qkv`` of a padded token.
        window_size: tokens per axis of a window.
        shift_size: cyclic shift per axis, in ``[0, window_size)``.
        num_heads: number of attention heads.
        scale: factor of the scores without ``logit_scale``.
        mask_value: added to the score of two slots from different regions of the shifted map.
        roll_first: roll the unpadded map and pad then, as timm does, instead of padding first.

    Returns:
        ``[B, *spatial, C]`` in the dtype of ``qkv``.

    Raises:
        ValueError: a spatial size is no multiple of its window and ``pad_qkv`` is missing, or shapes do not fit.
    """
    size = qkv.shape[1:-1]
    axes = tuple(range(1, 1 + len(size)))
    padding = [(0, -s % w) for s, w in zip(size, window_size, strict=True)]
    x = qkv.astype(np.float64)
    if roll_first:
        x = np.roll(x, [-s for s in shift_size], axes)
    x = _pad(x, padding, pad_qkv)
    if not roll_first:
        x = np.roll(x, [-s for s in shift_size], axes)

    regions = _regions(x.shape[1:-1], window_size, shift_size)
    attended = np.empty((*x.shape[:-1], x.shape[-1] // 3))
    corners = itertools.product(*(range(0, p, w) for p, w in zip(x.shape[1:-1], window_size, strict=True)))
    for corner in corners:
        window = tuple(slice(start, start + w) for start, w in zip(corner, window_size, strict=True))
        region = regions[window].reshape(-1)
        bias = relative_position_bias.astype(np.float64) + np.where(region[:, None] == region, 0.0, mask_value)
        tokens = x[(slice(None), *window)]
        slots = tokens.reshape(len(x), -1, x.shape[-1])
        result = _attention(slots, bias, num_heads, scale, logit_scale)
        attended[(slice(None), *window)] = result.reshape(*tokens.shape[:-1], -1)

    crop = (slice(None), *(slice(0, s) for s in size))
    attended = np.roll(attended[crop], shift_size, axes) if roll_first else np.roll(attended, shift_size, axes)[crop]
    return attended.astype(qkv.dtype)


def _attention(slots: Array, bias: Array, num_heads: int, scale: float, logit_scale: Array | None) -> Array:
    """[B, N, 3C] to [B, N, C]; ``bias`` is [num_heads, N, N] and holds the mask already."""
    batch, n, channels = slots.shape
    q, k, v = slots.reshape(batch, n, 3, num_heads, channels // 3 // num_heads).transpose(2, 0, 3, 1, 4)
    if logit_scale is None:
        scores = scale * (q @ k.swapaxes(-1, -2))
    else:
        cosine = _normalised(q) @ _normalised(k).swapaxes(-1, -2)
        scores = logit_scale.astype(np.float64)[:, None, None] * cosine
    scores = scores + bias
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.asarray((weights @ v).transpose(0, 2, 1, 3).reshape(batch, n, -1))


def _normalised(x: Array) -> Array:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12))


def _pad(x: Array, padding: Sequence[tuple[int, int]], pad_qkv: Array | None) -> Array:
    if not any(after for _, after in padding):
        return x
    if pad_qkv is None:
        raise ValueError("a spatial size is no multiple of the window: pad_qkv is needed")
    padded = np.pad(x, [(0, 0), *padding, (0, 0)])
    is_pad = np.pad(np.zeros(x.shape[1:-1], bool), padding, constant_values=True)
    padded[:, is_pad] = pad_qkv.astype(np.float64)
    return padded


def _regions(size: Sequence[int], window_size: Sequence[int], shift_size: Sequence[int]) -> Array:
    """The labels of the rolled map, written as the Swin reference writes them: one slice after another."""
    regions = np.zeros(tuple(size), np.int64)
    slices = [(slice(0, -w), slice(-w, -s), slice(-s, None)) for w, s in zip(window_size, shift_size, strict=True)]
    for label, region in enumerate(itertools.product(*slices)):
        regions[region] = label
    return regions

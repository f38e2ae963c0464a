"""What the Swin papers define, as arrays of integers.

Every exporter spells window partition, cyclic shift and attention mask differently, but all of them move the same
tokens to the same slots. So here is which token lands where, for any number of spatial axes: two for images, three for
video. Two index arrays are equal or they are not; no tolerance is involved.

All sizes are in tokens. ``size`` is the feature map, ``window`` the attention window, ``shift`` the cyclic shift; each
has one entry per spatial axis. ``N = prod(window)`` is the number of slots of a window, and the windows tile the map
padded to :func:`padded_size`.

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV 2021,
arXiv:2103.14030, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


def padded_size(size: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """The least multiple of ``window``, axis by axis, that holds ``size``.

    Raises:
        ValueError: the two have different numbers of axes, or an entry is not positive.
    """
    _check(size, window)
    return tuple(-(-s // w) * w for s, w in zip(size, window, strict=True))


def window_tokens(
    size: Sequence[int], window: Sequence[int], shift: Sequence[int], *, roll_first: bool = False
) -> Indices:
    """Which token of the map lies in which slot of which window.

    The shifted configuration of section 3.2 with the "efficient batch computation" by a cyclic shift towards the
    top-left. Padding is at the end of every axis. The implementations differ in what comes first, and agree wherever
    nothing is padded:

    * ``roll_first=False``: pad, roll by ``-shift``, partition (Microsoft, Hugging Face, torchvision);
    * ``roll_first=True``: roll by ``-shift`` over the unpadded map, pad, partition (timm).

    Returns:
        int64 ``[num_windows, N]``; windows and the slots in them are in row-major order. An entry is the row-major
        index of a token in the map of shape ``size``, or -1 in a padded slot.

    Raises:
        ValueError: the arguments have different numbers of axes, a size or window is not positive, or a shift is
            not in ``[0, window)``.
    """
    _check(size, window, shift)
    axes = tuple(range(len(size)))
    back = [-s for s in shift]
    tokens = np.arange(math.prod(size), dtype=np.int64).reshape(tuple(size))
    if roll_first:
        tokens = np.roll(tokens, back, axes)
    padding = [(0, p - s) for s, p in zip(size, padded_size(size, window), strict=True)]
    tokens = np.pad(tokens, padding, constant_values=-1)
    if not roll_first:
        tokens = np.roll(tokens, back, axes)
    return _partition(tokens, window)


def shift_regions(size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> Indices:
    """The label of the sub-window, contiguous in the unrolled map, that each slot comes from.

    The Swin code labels the rolled and padded map by the slices ``(0, -window)``, ``(-window, -shift)`` and
    ``(-shift, None)`` of every axis, in this order, counting up with the last axis fastest. On an axis without shift
    the third slice is ``slice(0, None)``: it covers the whole axis, which therefore is one region, labelled 2.

    Returns:
        int64 ``[num_windows, N]``, in the order of :func:`window_tokens`. Padding adds no regions of its own.

    Raises:
        ValueError: as :func:`window_tokens`.
    """
    _check(size, window, shift)
    regions = np.zeros((), np.int64)
    for p, w, s in zip(padded_size(size, window), window, shift, strict=True):
        position = np.arange(p)
        along_axis = np.where(position >= (p - s if s else 0), 2, position >= p - w)
        regions = regions[..., None] * 3 + along_axis
    return _partition(regions, window)


def shift_mask(size: Sequence[int], window: Sequence[int], shift: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which pairs of slots must not attend to each other: those of different :func:`shift_regions`.

    Returns:
        bool ``[num_windows, N, N]``, True where the attention is masked; symmetric, with a False diagonal.

    Raises:
        ValueError: as :func:`window_tokens`.
    """
    regions = shift_regions(size, window, shift)
    return np.asarray(regions[:, :, None] != regions[:, None, :])


def relative_position_index(window: Sequence[int]) -> Indices:
    """Which row of the relative position bias table belongs to a pair of slots.

    With M the window size, relative positions along an axis lie in ``[-M + 1, M - 1]``; the table has
    ``prod(2 * M - 1)`` rows, in row-major order of the relative position, query minus key (section 3.2, "Relative
    position bias").

    Returns:
        int64 ``[N, N]``, query by key.

    Raises:
        ValueError: an entry of ``window`` is not positive.
    """
    _check(window, window)
    position = np.indices(tuple(window)).reshape(len(window), -1)
    relative = position[:, :, None] - position[:, None, :]
    rows = [along_axis + w - 1 for along_axis, w in zip(relative, window, strict=True)]
    return np.asarray(np.ravel_multi_index(rows, tuple(2 * w - 1 for w in window)), np.int64)


def _partition(array: npt.NDArray[Any], window: Sequence[int]) -> Indices:
    """[padded H, padded W, ...] to [num_windows, N]."""
    tiled = [extent for p, w in zip(array.shape, window, strict=True) for extent in (p // w, w)]
    grid_first = [*range(0, len(tiled), 2), *range(1, len(tiled), 2)]
    return np.asarray(array.reshape(tiled).transpose(grid_first).reshape(-1, math.prod(window)), np.int64)


def _check(size: Sequence[int], window: Sequence[int], shift: Sequence[int] | None = None) -> None:
    if not len(size) == len(window) == len(window if shift is None else shift):
        raise ValueError(f"size {size}, window {window} and shift {shift} must have one entry per spatial axis each")
    if min(*size, *window) < 1:
        raise ValueError(f"size {size} and window {window} must be positive")
    if shift is not None and not all(0 <= s < w for s, w in zip(shift, window, strict=True)):
        raise ValueError(f"shift {shift} must lie in [0, window) with window {window}")

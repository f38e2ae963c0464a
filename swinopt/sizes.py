"""Which sizes a model is looked at with, where they are open: those of its samples, and the extremes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import spatial_axes

# (first sample, second sample) for a symbolic size, by what it is likely to be. Every symbol has numbers of its own, in
# another ratio in each sample, and what is alike is alike for a reason: the two are a prime number apart, so that they
# leave different remainders, and of two symbols each is the larger one in one sample. Spatial sizes do so at first, and
# padding shows for every window; where a model does not pad they have to suit it: first the patches, then the stride,
# then windows of 7, then of 8 and 16. The first of three sizes is the number of frames.
_SIZES = ((2, 5), (6, 4), (8, 3), (13, 2), (18, 1))
_SPATIAL_SIZES = (
    ((196, 569), (154, 677), (263, 556), (317, 546)),
    ((224, 580), (160, 612), (192, 708)),
    ((224, 576), (160, 640), (192, 704)),
    ((224, 448), (672, 224), (448, 896)),
    ((256, 512), (768, 256), (512, 1024)),
)
_FRAMES = ((8, 22), (11, 18))

#: The smallest image, in pixels a side, that a model of open height and width is taken to be for: one token of the last
#: of the usual four stages. What is known of such a model holds from here on, for videos of 8 frames or more; whatever
#: else is open may be 1.
SMALLEST_IMAGE = 32
# (smallest, largest), sides first of all images, and then of those that suit a model without padding.
_EXTREME_SIDES = ((SMALLEST_IMAGE, 4093), (224, 3584), (256, 4096))
_EXTREME_SIZES, _EXTREME_FRAMES = (1, 1023), (8, 1016)


def default_sizes(inputs: Iterable[gs.Variable]) -> list[list[Mapping[str, int]]]:
    """Choices of samples for the symbolic sizes of these inputs, the best first; one empty sample if there are none."""
    inputs = list(inputs)
    choices = [_samples(inputs, spatial, _SIZES, _FRAMES) for spatial in _SPATIAL_SIZES]
    return choices[:1] if choices[0] == choices[1] else choices


def extreme_sizes(inputs: Iterable[gs.Variable]) -> list[list[Mapping[str, int]]]:
    """Choices of two samples, one of the smallest and one of the largest sizes that a model is taken to be for.

    The images of the first go from :data:`SMALLEST_IMAGE` up; the others are for models that take none so small.
    """
    inputs = list(inputs)
    return [_samples(inputs, [sides], [_EXTREME_SIZES], [_EXTREME_FRAMES]) for sides in _EXTREME_SIDES]


def _samples(
    inputs: Iterable[gs.Variable],
    spatial_sizes: Iterable[tuple[int, int]],
    plain_sizes: Iterable[tuple[int, int]],
    frames: Iterable[tuple[int, int]],
) -> list[Mapping[str, int]]:
    symbols: dict[str, tuple[int, int]] = {}
    plain, spatial, temporal = cycle(plain_sizes), cycle(spatial_sizes), cycle(frames)
    for tensor in inputs:
        sides = spatial_axes(tensor.shape or ())
        for axis, size in enumerate(tensor.shape or ()):
            symbol = symbol_of(tensor, axis)
            if is_size(size) or symbol in symbols:
                continue
            if axis not in sides:
                symbols[symbol] = next(plain)
            else:
                symbols[symbol] = next(temporal if axis in sides[:-2] else spatial)
    return [dict(zip(symbols, sample, strict=True)) for sample in zip(*symbols.values(), strict=True)] or [{}]


def is_size(dim: object) -> bool:
    """Whether a dimension is a number, and not open."""
    return isinstance(dim, (int, np.integer)) and int(dim) >= 0


def symbol_of(tensor: gs.Variable, axis: int) -> str:
    """What the open size of an input's axis goes by: its own name, or one made up for this axis alone."""
    dim = tensor.shape[axis]
    return dim if isinstance(dim, str) and dim else f"{tensor.name}[{axis}]"

"""Random chains of movement ops, for property tests."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from tests.graphs import Builder

MOST_ELEMENTS = 300


class Chain:
    """Draws movement nodes one after another.

    Attributes:
        shape: what the last node makes, by the specification's rules; without the batch.
        tensor: its name.
        tensors: the names of all tensors so far.
        lead: 1 if there is a dynamic batch axis in front, which stays where it is; else 0.
    """

    def __init__(self, draw: st.DrawFn, *, batch: bool, computed: bool) -> None:
        self.draw = draw
        self.lead = int(batch)
        self.b = Builder(opset=18)
        self.shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4 - self.lead)))
        self.tensor = self.b.input((*(["batch"] if batch else []), *self.shape))
        if computed:
            self.tensor = self.b.op("Tanh", self.tensor)
        self.tensors = [self.tensor]

    def pick(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def axis(self, rank: int | None = None) -> tuple[int, int]:
        """An axis, and how it is written: from the start or from the end."""
        rank = len(self.shape) if rank is None else rank
        axis = self.pick(0, rank - 1)
        return axis, axis - rank if self.draw(st.booleans()) else axis + self.lead

    def sized(self, axis: int, size: int) -> tuple[int, ...]:
        return (*self.shape[:axis], size, *self.shape[axis + 1 :])

    def then(self, tensor: str, shape: tuple[int, ...]) -> None:
        self.tensor, self.shape = tensor, shape
        self.tensors.append(tensor)

    # ---------------------------------------------------------------------------------------------------- the ops

    def reshape(self) -> None:
        rest, sizes = math.prod(self.shape), []
        while rest > 1 and len(sizes) < 4:
            sizes.append(self.draw(st.sampled_from([d for d in range(2, rest + 1) if rest % d == 0])))
            rest //= sizes[-1]
        shape = (*sizes, rest)
        written = list(shape)
        for i, size in enumerate(shape):
            if i < len(self.shape) and self.shape[i] == size and self.draw(st.booleans()):
                written[i] = 0
        if self.lead:
            written.insert(0, self.draw(st.sampled_from([0, -1])))
        elif self.draw(st.booleans()):
            written[self.pick(0, len(shape) - 1)] = -1
        self.then(self.b.reshape(self.tensor, *written), shape)

    def transpose(self) -> None:
        perm = self.draw(st.permutations(range(len(self.shape))))
        reverses = not self.lead and perm == list(range(len(perm)))[::-1]
        attrs = {} if reverses else {"perm": [*range(self.lead), *(axis + self.lead for axis in perm)]}
        self.then(self.b.op("Transpose", self.tensor, **attrs), tuple(self.shape[axis] for axis in perm))

    def slice(self) -> None:
        axis, written = self.axis()
        size, step = self.shape[axis], self.draw(st.sampled_from([1, 2, 3, -1, -2]))
        start = self.pick(-size - 2, size + 1)
        end = self.draw(st.sampled_from([*range(-size - 2, size + 3), 2**63 - 1, -(2**63) + 1]))
        length = len(range(*clamped(start, end, step, size)))
        if length:
            self.then(self.b.slice(self.tensor, start, end, written, step), self.sized(axis, length))

    def split(self) -> None:
        axis, written = self.axis()
        size = self.shape[axis]
        if size < 2:
            return
        cuts = sorted(self.draw(st.sets(st.integers(1, size - 1), min_size=1, max_size=2)))
        sizes = np.diff([0, *cuts, size]).tolist()
        parts = self.b.ops("Split", self.tensor, self.b.ints(*sizes), count=len(sizes), axis=written)
        if self.draw(st.booleans()):
            self.then(self.b.op("Concat", *self.draw(st.permutations(parts)), axis=written), self.shape)
        else:
            kept = self.pick(0, len(parts) - 1)
            self.then(parts[kept], self.sized(axis, sizes[kept]))

    def concat(self) -> None:
        axis, written = self.axis()
        size = self.shape[axis]
        most = max(1, size - 1)
        part = self.b.slice(self.tensor, 0, most, axis + self.lead)
        self.then(self.b.op("Concat", part, self.tensor, axis=written), self.sized(axis, size + most))

    def pad(self) -> None:
        if self.lead or self.draw(st.booleans()):
            axis, written = self.axis()
            axes, extra = [axis], ["", self.b.ints(written)]
        else:
            axes, extra = list(range(len(self.shape))), self.draw(st.sampled_from([[], [self.b.constant(0.0)]]))
        pads = [self.pick(-1 if self.shape[axis] > 2 else 0, 2) for axis in axes + axes]
        shape = list(self.shape)
        for axis, before, after in zip(axes, pads, pads[len(axes) :], strict=False):
            shape[axis] += before + after
        self.then(self.b.op("Pad", self.tensor, self.b.ints(*pads), *extra), tuple(shape))

    def gather(self) -> None:
        axis, written = self.axis()
        size = self.shape[axis]
        shape = self.draw(st.sampled_from([(), (1,), (3,), (2, 2)] if len(self.shape) > 1 else [(1,), (3,), (2, 2)]))
        values = [self.pick(-size, size - 1) for _ in range(math.prod(shape))]
        indices = self.b.constant(np.array(values, np.int64).reshape(shape))
        result = self.b.op("Gather", self.tensor, indices, axis=written)
        self.then(result, (*self.shape[:axis], *shape, *self.shape[axis + 1 :]))

    def unsqueeze(self) -> None:
        axis = self.pick(0, len(self.shape))
        shape = (*self.shape[:axis], 1, *self.shape[axis:])
        written = axis - len(shape) if self.draw(st.booleans()) else axis + self.lead
        self.then(self.b.op("Unsqueeze", self.tensor, self.b.ints(written)), shape)

    def squeeze(self) -> None:
        ones = [axis for axis, size in enumerate(self.shape) if size == 1]
        if ones and len(self.shape) > 1:
            axis = self.draw(st.sampled_from(ones))
            shape = self.shape[:axis] + self.shape[axis + 1 :]
            self.then(self.b.op("Squeeze", self.tensor, self.b.ints(axis + self.lead)), shape)

    def expand(self) -> None:
        target = tuple(self.pick(1, 3) if size == 1 else self.draw(st.sampled_from([1, size])) for size in self.shape)
        more = (2,) if not self.lead and self.draw(st.booleans()) else ()
        written = self.b.ints(*[1] * self.lead, *more, *target)
        self.then(self.b.op("Expand", self.tensor, written), np.broadcast_shapes(self.shape, (*more, *target)))

    def flatten(self) -> None:
        if not self.lead:
            axis = self.pick(-len(self.shape), len(self.shape))
            at = axis + len(self.shape) if axis < 0 else axis
            shape = (math.prod(self.shape[:at]), math.prod(self.shape[at:]))
            self.then(self.b.op("Flatten", self.tensor, axis=axis), shape)

    def depth_to_space(self) -> None:
        if len(self.shape) + self.lead == 4 and self.shape[-3] % 4 == 0:
            *n, c, h, w = self.shape
            mode = self.draw(st.sampled_from([{}, {"mode": "DCR"}, {"mode": "CRD"}]))
            self.then(self.b.op("DepthToSpace", self.tensor, blocksize=2, **mode), (*n, c // 4, h * 2, w * 2))

    def space_to_depth(self) -> None:
        if len(self.shape) + self.lead == 4 and self.shape[-2] % 2 == 0 and self.shape[-1] % 2 == 0:
            *n, c, h, w = self.shape
            self.then(self.b.op("SpaceToDepth", self.tensor, blocksize=2), (*n, c * 4, h // 2, w // 2))

    def identity(self) -> None:
        self.then(self.b.op("Identity", self.tensor), self.shape)

    GROWING = (concat, pad, gather, expand)
    OTHERS = (
        reshape, transpose, slice, split, unsqueeze, squeeze, flatten, depth_to_space, space_to_depth, identity,
    )  # fmt: skip

    def step(self) -> None:
        small = math.prod(self.shape) <= MOST_ELEMENTS / 3 and len(self.shape) < 6
        self.draw(st.sampled_from([*self.OTHERS, *(self.GROWING if small else ())]))(self)


def clamped(start: int, end: int, step: int, size: int) -> tuple[int, int, int]:
    """The bounds of a Slice as the specification clamps them."""
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return min(max(start, 0), size), min(max(end, 0), size), step
    return min(max(start, 0), size - 1), min(max(end, -1), size - 1), step


@st.composite
def chains(draw: st.DrawFn, *, batch: bool = False, computed: bool = False, most: int = 6) -> Chain:
    """One to ``most`` movement ops on the input, or on a tensor computed from it."""
    chain = Chain(draw, batch=batch, computed=computed)
    for _ in range(draw(st.integers(1, most))):
        chain.step()
    return chain

"""Fuse window attention: everything from the partition to its reverse becomes one swinopt::WindowAttention.

    before: pad - roll - partition - QKV - heads - softmax(s q k^T + bias + mask) v - proj - reverse - roll - crop
    after:  QKV - WindowAttention - proj                                  (tokens stay [B, H, W, C] throughout)

It rests on one identity: a linear works token by token, so it commutes with every permutation P of the tokens,
``linear(P x) = P linear(x)``, and a padded token is the linear's bias. Partition and roll thus move past QKV and the
projection, and what is left between them reads and writes the un-partitioned map.

The places are proven on indices (:mod:`swinopt.movement`): where each slot of each window comes from has to be the
textbook's shifted partition of some window and shift, and where it goes its inverse. Bias and mask are taken by value:
what differs between windows must be a constant times the textbook's mask of exactly this window and shift. Swin V1
(scaled products) and V2 (cosines with a factor for each head) differ in two factors only. q, k and v may come from
one linear or from three, in any order of channels; the weights are put in the op's order.

Refused, with the reason in the report, is whatever is not proven: another mask, unknown sizes, probabilities that are
read elsewhere, weights that are no constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.attention import (
    Attention,
    Linear,
    NoAttention,
    Operand,
    Scores,
    Term,
    attention_of,
    exits,
    linear_from,
    operand_of,
)
from swinopt.graph import Array, Tensor, epsilon_of
from swinopt.movement import PAD, Indices, Region
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter
from swinopt.textbook import shift_mask, window_tokens

#: Stands in for a mask of minus infinity: exp() of it is zero as well, and it does not make NaN of a fully masked row.
_LOWEST_MASK_VALUE = -30000.0


@dataclass(frozen=True)
class Window:
    """How a map was cut: the map's sizes are one entry a sample, all tuples have one entry a spatial axis."""

    sizes: tuple[tuple[int, ...], ...]
    window: tuple[int, ...]
    shift: tuple[int, ...]
    roll_first: bool

    def __str__(self) -> str:
        return f"window {'x'.join(map(str, self.window))}, shift {'x'.join(map(str, self.shift))}"

    @property
    def has_padding(self) -> bool:
        """Whether some map is no multiple of the window."""
        return any(s % w for size in self.sizes for s, w in zip(size, self.window, strict=True))


@dataclass(frozen=True)
class FuseWindowAttention(Pass):
    """Makes one swinopt::WindowAttention of each attention over shifted windows, partition and reverse included."""

    name: ClassVar[str] = "fuse-window-attention"

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("Softmax", "Attention"):
            if rewriter.is_dead(node):
                continue
            try:
                _fuse(node, rewriter)
            except NoAttention as reason:
                rewriter.refuse(node, str(reason))


def _fuse(node: gs.Node, rewriter: Rewriter) -> None:
    movement = rewriter.movement
    found = attention_of(node, rewriter.facts)
    scores = found.scores
    heads, slots = _heads_and_slots(found, rewriter)
    q = operand_of(scores.q, heads, movement)
    k = operand_of(scores.k_transposed, heads, movement, transposed=found.k_is_transposed)
    v = operand_of(found.v, heads, movement)
    if q.normalised != k.normalised or v.normalised:
        raise NoAttention("only one of q and k is normalised")
    if v.scale != 1:
        raise NoAttention("v is scaled")
    source, places = _common_source((q, k, v), rewriter)
    window = _window_of(source, places, slots, rewriter)
    bias, mask_value = _bias_and_mask(scores.terms, window, heads, rewriter)
    proj, results = _way_out(found.output, places, heads, q.channels.shape[1], source, rewriter)

    x = _as_map(source, window, rewriter)
    qkv = _qkv(x, (q, k, v), rewriter)
    scale = scores.scale * q.scale * k.scale
    attention = rewriter.op(
        "WindowAttention",
        qkv,
        rewriter.float_constant(bias, qkv, f"{found.output.name}/relative_position_bias"),
        _logit_scale(scores, q, scale, heads, qkv, rewriter),
        rewriter.float_constant(_pad_value((q, k, v)), qkv, "pad_qkv") if window.has_padding else None,
        domain=ops.DOMAIN,
        hint=f"{found.output.name}/WindowAttention",
        window_size=list(window.window),
        shift_size=list(window.shift),
        num_heads=heads,
        scale=1.0 if q.normalised else scale,
        mask_value=mask_value,
        **({"roll_first": 1} if window.roll_first else {}),
    )
    out = proj.linear.applied_to(attention, rewriter, proj.weight) if proj else attention
    shaped = [rewriter.reshape(out, result) for result in results]
    if any(tensor is None for tensor in shaped):
        raise NoAttention("the shape of the result hangs on two sizes of the input")
    stands_for: dict[int, Tensor] = {}
    for result, tensor in zip(results, shaped, strict=True):
        assert tensor is not None
        # Two results of the map's own shape are one tensor, and after the first replacement that has the first's name.
        rewriter.replace(result, stands_for.setdefault(id(tensor), tensor))
        stands_for[id(tensor)] = result


# ------------------------------------------------------------------------------------------------------------ sizes


def _heads_and_slots(found: Attention, rewriter: Rewriter) -> tuple[int, int]:
    """Heads from whatever differs between them: the bias, a factor, or the shape of the scores."""
    scores = found.scores
    shape = rewriter.facts.shape(scores.q)
    if shape is None or len(shape) < 3:
        raise NoAttention("the shape of q is not known")
    if rewriter.facts.shape(found.v) is None:
        raise NoAttention("the shape of v is not known")
    if len(shape) == 3:  # [groups * heads, N, head_dim]
        heads = [t.values[0].shape[-3] for t in scores.terms if t.values[0].ndim >= 3 and t.values[0].shape[-3] > 1]
        heads += [len(scores.head_factors.reshape(-1))] if scores.head_factors is not None else []
        if not heads:
            raise NoAttention("how many heads there are cannot be told")
        return heads[0], shape[-2]
    return shape[-3], shape[-2]


def _common_source(operands: tuple[Operand, ...], rewriter: Rewriter) -> tuple[Region, tuple[Indices, ...]]:
    """The movement before the linears, and the token of its source in each slot of each window: [groups, N]."""
    regions: dict[int, Region] = {}
    places: list[tuple[Indices, ...]] = []
    for operand in operands:
        linear = operand.linear
        if operand.bias is not None and any((tokens == PAD).any() for tokens in operand.tokens):
            raise NoAttention("q, k or v is padded behind its linear")
        if id(linear.input) not in regions:
            region = rewriter.movement.region(linear.input)
            if region is None:
                raise NoAttention("the tokens come from several tensors")
            regions[id(linear.input)] = region
        region = regions[id(linear.input)]
        places.append(tuple(_placed(region, s, tokens) for s, tokens in enumerate(operand.tokens)))
    if len({id(region.source) for region in regions.values()}) != 1:
        raise NoAttention("q, k and v come from different tensors")
    if any(not np.array_equal(a, b) for other in places[1:] for a, b in zip(places[0], other, strict=True)):
        raise NoAttention("q, k and v are not of the same tokens")
    return next(iter(regions.values())), places[0]


def _placed(region: Region, sample: int, tokens: Indices) -> Indices:
    moved = whole_tokens(region.indices[sample])
    if moved is None:
        raise NoAttention("what is moved before the linear is not whole tokens")
    return np.where(tokens == PAD, PAD, moved[tokens])


def whole_tokens(indices: Indices) -> Indices | None:
    """Flat token numbers, if the last axis of an index array runs through whole tokens (or pads); else None."""
    rows = indices.reshape(-1, indices.shape[-1])
    width = rows.shape[1]
    tokens = np.where(rows[:, 0] == PAD, PAD, rows[:, 0] // width)
    expected = np.where(tokens[:, None] == PAD, PAD, tokens[:, None] * width + np.arange(width, dtype=np.int32))
    return tokens if np.array_equal(expected, rows) else None


# ----------------------------------------------------------------------------------------------------------- window


def _window_of(source: Region, places: tuple[Indices, ...], slots: int, rewriter: Rewriter) -> Window:
    shapes = rewriter.facts.shapes(source.source) or []
    batches, tokens = [shape[0] for shape in shapes], [int(np.prod(shape[1:-1])) for shape in shapes]
    for sizes in _map_sizes(source, rewriter):
        for window in _factorisations(slots, len(sizes[0])):
            found = _matching(sizes, window, places, batches)
            if found is not None:
                return found
    for axes in (2, 3):
        for window in _factorisations(slots, axes):
            steps = [_sizes_by_step(p, count, window) for p, count in zip(places, tokens, strict=True)]
            found = None if None in steps else _matching(tuple(s for s in steps if s), window, places, batches)
            if found is not None:
                return found
    raise NoAttention(f"the {slots} tokens of a group are not a window of a map of {tokens[0]} tokens")


def _sizes_by_step(places: Indices, tokens: int, window: tuple[int, ...]) -> tuple[int, ...] | None:
    """The map's sizes as the first window tells them, where no view does: a step along an axis skips a row, a plane ...

    Only a guess, which :func:`_matching` has to prove.
    """
    if min(window) < 2:
        return None
    corner = places.reshape(-1, *window)[0]
    origin = int(corner.reshape(-1)[0])
    units = np.eye(len(window), dtype=int)[:-1]
    skipped = [tokens, *(int(corner[tuple(unit)]) - origin for unit in units), 1]
    if origin == PAD or min(skipped) < 1 or any(a % b for a, b in pairwise(skipped)):
        return None
    return tuple(a // b for a, b in pairwise(skipped))


def _map_sizes(source: Region, rewriter: Rewriter) -> list[tuple[tuple[int, ...], ...]]:
    """The spatial sizes that the source may have: its own, or those of a view of it inside the region."""
    facts = rewriter.facts
    candidates = [source.source, *(t for node in reversed(source.nodes) for t in node.outputs)]
    whole = facts.shapes(source.source) or []
    found = []
    for tensor in candidates:
        shapes = facts.shapes(tensor) or []
        same_tokens = all(
            len(s) in (4, 5) and s[0] == w[0] and s[-1] == w[-1] and np.prod(s) == np.prod(w)
            for s, w in zip(shapes, whole, strict=False)
        )
        sizes = tuple(s[1:-1] for s in shapes)
        if shapes and same_tokens and sizes not in found:
            found.append(sizes)
    return found


def _factorisations(number: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ordered ways to write a number as a product of so many factors, the most even ones first."""

    def split(rest: int, left: int) -> Iterator[tuple[int, ...]]:
        if left == 1:
            yield (rest,)
            return
        for factor in range(1, rest + 1):
            if rest % factor == 0:
                yield from ((factor, *others) for others in split(rest // factor, left - 1))

    yield from sorted(split(number, parts), key=lambda factors: max(factors) / min(factors))


def _matching(
    sizes: tuple[tuple[int, ...], ...], window: tuple[int, ...], places: tuple[Indices, ...], batches: list[int]
) -> Window | None:
    first = int(places[0].reshape(-1)[0])
    if first == PAD or first >= np.prod(sizes[0]):
        return None
    shift = tuple(int(i) for i in np.unravel_index(first, sizes[0]))
    if any(s >= w for s, w in zip(shift, window, strict=True)):
        return None
    for roll_first in (False, True):
        if all(
            _is_partition(p, size, batch, window, shift, roll_first)
            for p, size, batch in zip(places, sizes, batches, strict=True)
        ):
            return Window(sizes, window, shift, roll_first)
    return None


def _is_partition(
    places: Indices,
    size: tuple[int, ...],
    batch: int,
    window: tuple[int, ...],
    shift: tuple[int, ...],
    roll_first: bool,
) -> bool:
    expected = window_tokens(size, window, shift, roll_first=roll_first)
    if places.size != batch * expected.size:
        return False
    offsets = np.arange(batch, dtype=np.int64)[:, None, None] * int(np.prod(size))
    return np.array_equal(np.where(expected == PAD, PAD, expected + offsets).reshape(places.shape), places)


# ---------------------------------------------------------------------------------------------------- bias and mask


def _bias_and_mask(terms: list[Term], window: Window, heads: int, rewriter: Rewriter) -> tuple[Array, float]:
    """The relative position bias [heads, N, N], and what masked pairs get.

    Raises:
        NoAttention: what differs between windows is not the shift mask.
    """
    slots = int(np.prod(window.window))
    bias = np.zeros((heads, slots, slots))
    mask_value = 0.0
    for term in terms:
        per_window = [
            _by_window(value, shape, size, window, heads)
            for value, shape, size in zip(term.values, term.shapes, window.sizes, strict=True)
        ]
        if per_window[0].shape[0] == 1 and all(np.array_equal(p, per_window[0]) for p in per_window):
            bias = bias + per_window[0][0]
            continue
        masks = [shift_mask(size, window.window, window.shift) for size in window.sizes]
        if any(len(values) != len(mask) for values, mask in zip(per_window, masks, strict=True)):
            raise NoAttention("bias or mask depend on the input's size")
        epsilon = epsilon_of(term.values[0].dtype)
        parts = [_split(v, mask, window, epsilon) for v, mask in zip(per_window, masks, strict=True)]
        if any(value != parts[0][1] or not np.array_equal(part, parts[0][0]) for part, value in parts):
            raise NoAttention("bias or mask depend on the input's size")
        bias, mask_value = bias + parts[0][0], mask_value + parts[0][1]
    return bias, max(mask_value, _LOWEST_MASK_VALUE)


def _by_window(value: Array, scores: tuple[int, ...], size: tuple[int, ...], window: Window, heads: int) -> Array:
    """A term as [windows or 1, heads or 1, N, N], in double precision; it must be the same for the whole batch."""
    slots = int(np.prod(window.window))
    windows = shift_mask(size, window.window, window.shift).shape[0]
    value = value.reshape((1,) * (len(scores) - value.ndim) + value.shape)
    if scores[-3:] == (heads, slots, slots) and all(n == 1 for n in value.shape[:-3]):
        return value.reshape(1, *value.shape[-3:]).astype(np.float64)
    if scores[-3:] == (heads, slots, slots):
        value = np.broadcast_to(value, (*scores[:-3], *value.shape[-3:])).reshape(-1, windows, *value.shape[-3:])
    else:
        value = np.broadcast_to(value, scores).reshape(-1, windows, heads, slots, slots)
    if not np.all(value == value[:1]):
        raise NoAttention("the mask differs within the batch")
    return np.asarray(value[0], np.float64)


def _split(values: Array, mask: Array, window: Window, epsilon: float) -> tuple[Array, float]:
    """Splits [windows, heads or 1, N, N] into a bias [heads or 1, N, N] and a number times the mask [windows, N, N]."""
    wrong = NoAttention(f"the mask is not the shift mask of {window}")
    mask = np.asarray(np.broadcast_to(mask[:, None], values.shape))
    free = ~mask
    somewhere_free = np.asarray(free.any(axis=0))
    witness = free.argmax(axis=0)
    bias: Array = np.take_along_axis(values, witness[None], axis=0)[0]
    masked = mask & somewhere_free[None]
    above = (values - bias)[masked] if masked.any() else values[mask]
    mask_value = float(above.reshape(-1)[0]) if above.size else 0.0
    bias = np.where(somewhere_free, bias, 0.0 if not masked.any() else values[0] - mask_value)
    rebuilt = bias[None] + np.where(mask, mask_value, 0.0)
    # A sum of bias and mask that was rounded is off by half a unit in the last place of the mask's value.
    tolerance = epsilon * max(1.0, abs(mask_value)) if np.isfinite(mask_value) else 0.0
    same = np.abs(rebuilt - values) <= tolerance if np.isfinite(mask_value) else (rebuilt == values)
    if not same.all() or mask_value > 0 or not np.isfinite(bias).all():
        raise wrong
    return bias, mask_value


# ------------------------------------------------------------------------------------------------------ the way out


@dataclass(frozen=True)
class Projection:
    """The linear behind the attention, and its weight if that has to be reordered."""

    linear: Linear
    weight: Array | None


def _way_out(
    product: Tensor, places: tuple[Indices, ...], heads: int, head_dim: int, source: Region, rewriter: Rewriter
) -> tuple[Projection | None, list[Tensor]]:
    """The projection, and the tensors in which the tokens are back in the map's order.

    Raises:
        NoAttention: they do not come back to where they were.
    """
    merged = exits(product, rewriter.facts)
    if len(merged) != 1:
        raise NoAttention("the attended values are read in several places")
    slots, channels = _merged_heads(product, merged[0], heads, head_dim, rewriter)
    linear = linear_from(merged[0])
    if linear is None:
        if not np.array_equal(channels, np.arange(channels.size)):
            raise NoAttention("the heads are not merged in order, and no linear follows that could undo it")
        results, through = merged, tuple(slots)
        _check_return([through], places, rewriter)
        return None, results
    results = exits(linear.output, rewriter.facts)
    for result in results:
        region = rewriter.movement.region(result, stop=[linear.output])
        tokens = [whole_tokens(i) for i in region.indices] if region else [None]
        if any(t is None or (t == PAD).any() for t in tokens):
            raise NoAttention("what follows the projection does not move whole tokens")
        _check_return([tuple(s[t] for s, t in zip(slots, tokens, strict=True))], places, rewriter)
    # Row i of the weight belongs to channel channels[i]; the op gives the channels in order.
    weight = None if _in_order(channels) else linear.weight_value()[np.argsort(channels)]
    return Projection(linear, weight), results


def _in_order(channels: Indices) -> bool:
    return np.array_equal(channels, np.arange(channels.size))


def _merged_heads(
    product: Tensor, merged: Tensor, heads: int, head_dim: int, rewriter: Rewriter
) -> tuple[list[Indices], Indices]:
    """For each sample the slot (window * N + n) of each merged token, and the channel (head * d + i) in each place."""
    region = rewriter.movement.region(merged, stop=[product])
    if region is None:
        raise NoAttention("the heads are merged with something else")
    slots, channels = [], None
    for sample, indices in enumerate(region.indices):
        shape = rewriter.facts.shape(product, sample) or ()
        rows = indices.reshape(-1, indices.shape[-1])
        if rows.shape[1] != heads * head_dim or (rows == PAD).any():
            raise NoAttention("the heads are not merged token by token")
        group_head, slot, place = np.unravel_index(rows, (int(np.prod(shape[:-2])), shape[-2], shape[-1]))
        where = (group_head // heads) * shape[-2] + slot
        which = (group_head % heads) * head_dim + place
        if not (where == where[:, :1]).all() or not (which == which[:1]).all():
            raise NoAttention("the heads are not merged token by token")
        if channels is not None and not np.array_equal(channels, which[0]):
            raise NoAttention("how heads are merged depends on the input's size")
        channels = which[0]
        slots.append(where[:, 0])
    assert channels is not None
    return slots, channels


def _check_return(results: list[tuple[Indices, ...]], places: tuple[Indices, ...], rewriter: Rewriter) -> None:
    for slots in results:
        for slot, place in zip(slots, places, strict=True):
            if not np.array_equal(place.reshape(-1)[slot], np.arange((place != PAD).sum())):
                raise NoAttention("the tokens do not come back to where they were before the partition")


# --------------------------------------------------------------------------------------------------- what is emitted


def _qkv(x: Tensor, operands: tuple[Operand, ...], rewriter: Rewriter) -> Tensor:
    """q, k and v of every token side by side, in the order of channels that the op reads."""
    first = operands[0].linear
    order = np.concatenate([operand.channels.reshape(-1) for operand in operands])
    one_linear = all(o.linear.output is first.output for o in operands) and first.features == order.size
    if one_linear and _in_order(order) and np.array_equal(_pad_value(operands), first.bias_value()):
        return first.applied_to(x, rewriter)
    weight = np.concatenate([o.linear.weight_value()[:, o.channels.reshape(-1)] for o in operands], axis=1)
    has_bias = any(operand.bias is not None for operand in operands)
    return first.applied_to(x, rewriter, weight, _pad_value(operands) if has_bias else None)


def _pad_value(operands: tuple[Operand, ...]) -> Array:
    """What the linears make of a token of zeros: their biases."""
    return np.concatenate(
        [(np.zeros_like(o.channels, o.linear.dtype) if o.bias is None else o.bias).reshape(-1) for o in operands]
    )


def _as_map(source: Region, window: Window, rewriter: Rewriter) -> Tensor:
    shapes = rewriter.facts.shapes(source.source) or []
    wanted = [(s[0], *size, s[-1]) for s, size in zip(shapes, window.sizes, strict=True)]
    shaped = rewriter.reshape_to(source.source, wanted)
    if shaped is None:
        raise NoAttention("the shape of the map hangs on two sizes of the input")
    return shaped


def _logit_scale(
    scores: Scores, q: Operand, scale: float, heads: int, like: Tensor, rewriter: Rewriter
) -> gs.Constant | None:
    if not q.normalised:
        if scores.head_factors is not None:
            raise NoAttention("the heads have factors of their own, and q and k are not normalised")
        return None
    factors = np.ones(1) if scores.head_factors is None else scores.head_factors.astype(np.float64)
    if factors.size not in (1, heads):
        raise NoAttention(f"the scores are multiplied by {factors.size} factors for {heads} heads")
    return rewriter.float_constant(np.broadcast_to(factors.reshape(-1) * scale, heads), like, "logit_scale")

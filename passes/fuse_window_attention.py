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

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_graphsurgeon as gs

from swinopt import ops
from swinopt.attention import Attention, NoAttention, Scores, attention_of
from swinopt.graph import Array, Tensor, is_standard, subgraph_nodes
from swinopt.indices import PAD, Indices, elements, whole_tokens
from swinopt.linear import Linear, linear_from
from swinopt.movement import Region, exits
from swinopt.operands import Operand, operand_of
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter
from swinopt.windows import Window, bias_and_mask, window_of

#: What an attention is looked for at.
_SOFTMAXES = ("Softmax", "Attention")


@dataclass(frozen=True)
class FuseWindowAttention(Pass):
    """Makes one swinopt::WindowAttention of each attention over shifted windows, partition and reverse included."""

    name: ClassVar[str] = "fuse-window-attention"

    def run(self, rewriter: Rewriter) -> None:
        for node in subgraph_nodes(rewriter.graph):
            if node.op in _SOFTMAXES and is_standard(node):
                rewriter.refuse(
                    node, "it is in the body of an If, Loop or Scan, and only what is around these is rewritten"
                )
        for node in rewriter.nodes(*_SOFTMAXES):
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
    if v.channels.shape != q.channels.shape:
        raise NoAttention(f"a head has {q.channels.shape[1]} features in q and k, and {v.channels.shape[1]} in v")
    source, places = _common_source((q, k, v), rewriter)
    window = window_of(source, places, slots, rewriter.facts)
    bias, mask_value = bias_and_mask(scores.terms, window, heads)
    proj, results = _way_out(found.output, places, heads, q.channels.shape[1], rewriter)

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
    moved = whole_tokens(region.along(-1)[0][sample])
    if moved is None:
        raise NoAttention("what is moved before the linear is not whole tokens")
    return np.where(tokens == PAD, PAD, moved[tokens])


# ------------------------------------------------------------------------------------------------------ the way out


@dataclass(frozen=True)
class Projection:
    """The linear behind the attention, and its weight if that has to be reordered."""

    linear: Linear
    weight: Array | None


def _way_out(
    product: Tensor, places: tuple[Indices, ...], heads: int, head_dim: int, rewriter: Rewriter
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
        if not _in_order(channels):
            raise NoAttention("the heads are not merged in order, and no linear follows that could undo it")
        _check_return(slots, places, product, merged[0], rewriter)
        return None, merged
    results = exits(linear.output, rewriter.facts)
    for result in results:
        region = rewriter.movement.region(result, stop=[linear.output])
        tokens = [whole_tokens(runs) for runs in region.along(-1)[0]] if region else [None]
        if any(t is None or (t == PAD).any() for t in tokens):
            raise NoAttention("what follows the projection does not move whole tokens")
        returned = [s[t] for s, t in zip(slots, tokens, strict=True)]
        _check_return(returned, places, linear.output, result, rewriter)
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
    samples, length = region.along(-1)
    runs_of_head = head_dim // length
    for sample, runs in enumerate(samples):
        shape = rewriter.facts.shape(product, sample) or ()
        rows = runs.reshape(-1, runs.shape[-1])
        if rows.shape[1] != heads * runs_of_head or (rows == PAD).any():
            raise NoAttention("the heads are not merged token by token")
        group_head, slot, place = np.unravel_index(rows, (int(np.prod(shape[:-2])), shape[-2], runs_of_head))
        where = (group_head // heads) * shape[-2] + slot
        which = (group_head % heads) * runs_of_head + place
        if not (where == where[:, :1]).all() or not (which == which[:1]).all():
            raise NoAttention("the heads are not merged token by token")
        if channels is not None and not np.array_equal(channels, which[0]):
            raise NoAttention("how heads are merged depends on the input's size")
        channels = which[0]
        slots.append(where[:, 0])
    if channels is None or not _in_order(np.sort(channels)):
        raise NoAttention("the heads are not merged token by token")
    return slots, elements(channels, length)


def _check_return(
    slots: list[Indices], places: tuple[Indices, ...], start: Tensor, result: Tensor, rewriter: Rewriter
) -> None:
    """The slots that are read, in order, must hold the map's tokens in order."""
    for slot, place in zip(slots, places, strict=True):
        if not np.array_equal(place.reshape(-1)[slot], np.arange((place != PAD).sum())):
            reason = "the tokens do not come back to where they were before the partition"
            batch = _frozen_batch(start, result, rewriter)
            if batch is not None:
                reason += (
                    f": the batch is dynamic, and on the way it is taken for {batch}, so that the images of any other "
                    f"batch are mixed up. A window_reverse that computes the batch with int() exports like this: "
                    f"export the model with a static batch, or let window_reverse infer the batch (-1)"
                )
            raise NoAttention(reason)


def _frozen_batch(start: Tensor, result: Tensor, rewriter: Rewriter) -> int | None:
    """The number that stands, somewhere between the two tensors, for the first axis that is dynamic in both."""
    region = rewriter.movement.region(result, stop=[start])
    if region is None or any((rewriter.facts.dims(tensor) or (0,))[0] is not None for tensor in (start, result)):
        return None
    between = [rewriter.facts.dims(node.outputs[0]) for node in region.nodes if node.op == "Reshape"]
    return next((dims[0] for dims in between if dims and dims[0] is not None), None)


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
    if shaped is not None:
        return shaped
    # Two sizes hang on the input: what the model itself says of them is right for all of these.
    for node in source.nodes:
        if node.op == "Reshape" and rewriter.facts.shapes(node.outputs[0]) == wanted and not _copies_sizes(node):
            view: Tensor = rewriter.op("Reshape", source.source, node.inputs[1])
            rewriter.facts.learn(view, like=source.source, shapes=wanted)
            return view
    raise NoAttention("the shape of the map hangs on two sizes of the input")


def _copies_sizes(reshape: gs.Node) -> bool:
    """Whether a 0 may stand in the target for the size of what this node, and no other, reshapes."""
    return not reshape.attrs.get("allowzero") and isinstance(reshape.inputs[1], gs.Constant)


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

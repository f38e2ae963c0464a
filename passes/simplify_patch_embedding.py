"""Simplify patch embedding: a convolution whose patches do not overlap is a linear on patches.

    Conv(x, W, stride = kernel)  =  transpose(patches(x) W')        x [B, C, H, W] -> [B, N, H / k, W / k]

patches(x) [B, H / k, W / k, C k k] has the values of each patch side by side (Liu et al. 2021, arXiv:2103.14030,
section 3.1, patch partition and linear embedding), and W' [C k k, N] the weights of each output in the same order. The
product has its channels last, where a Swin wants them, so that the transposition here and the model's own cancel each
other: refused is what is not transposed so, since it would be transposed twice in place of a convolution. Any number of
spatial axes. Refused are maps that are no multiple of the patch, of which a convolution leaves out the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_graphsurgeon as gs

from swinopt.graph import Array, Tensor, argument, attr, literal
from swinopt.movement import VIEW_OPS
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class SimplifyPatchEmbedding(Pass):
    """Makes a linear on patches of a convolution whose kernel is its stride.

    Attributes:
        multiple: refuses linears whose numbers of inputs and outputs are no multiples of it, for runtimes that gain
            nothing by them.
    """

    multiple: int = 1
    name: ClassVar[str] = "simplify-patch-embedding"

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("Conv"):
            weight = literal(node.inputs[1])
            if weight is not None and _is_on_patches(node, weight, rewriter):
                reason = _simplify(node, weight, self.multiple, rewriter)
                if reason:
                    rewriter.refuse(node, reason)


def _is_on_patches(node: gs.Node, weight: Array, rewriter: Rewriter) -> bool:
    opset, kernel = rewriter.graph.opset, list(weight.shape[2:])
    strides, pads = node.attrs.get("strides", []), node.attrs.get("pads", [])
    is_dense = attr(node, "group", opset) == 1 and set(node.attrs.get("dilations", [])) <= {1}
    is_bare = not any(pads) and attr(node, "auto_pad", opset) in ("NOTSET", "VALID")
    # A kernel of one is a linear on every pixel: no patch, and nothing to gather.
    return list(strides) == kernel and math.prod(kernel) > 1 and is_dense and is_bare


def _simplify(node: gs.Node, weight: Array, multiple: int, rewriter: Rewriter) -> str | None:
    """Rewrites one convolution, or returns why not."""
    facts, (x, output) = rewriter.facts, (node.inputs[0], node.outputs[0])
    features, channels, *kernel = weight.shape
    shapes, axes, inputs = facts.shapes(x), len(kernel), channels * math.prod(kernel)
    bias = argument(node, 2)
    if features % multiple or inputs % multiple:
        return f"the linear goes from {inputs} to {features} features, which are not both multiples of {multiple}"
    if not _channels_go_last(output, rewriter):
        return "the channels of the result are not transposed to the end"
    if shapes is None:
        return "the shape of the map is not known"
    if bias is not None and literal(bias) is None:
        return "the bias is computed"
    sizes = (facts.dims(x) or ())[2:]
    if any(size is None and step > 1 for size, step in zip(sizes, kernel, strict=False)):
        return "a size of the map depends on the input, and may be no multiple of the patch"
    if any(size % step for shape in shapes for size, step in zip(shape[2:], kernel, strict=True)):
        return f"the map is no multiple of its patches of {'x'.join(map(str, kernel))}"
    split = [
        (s[0], channels, *(n for size, step in zip(s[2:], kernel, strict=True) for n in (size // step, step)))
        for s in shapes
    ]
    inner, outer = [3 + 2 * i for i in range(axes)], [2 + 2 * i for i in range(axes)]
    perm = [0, *outer, 1, *inner]
    apart = [tuple(s[i] for i in perm) for s in split]
    side_by_side = [(*s[: axes + 1], math.prod(s[axes + 1 :])) for s in apart]
    view = rewriter.reshape_to(x, split)
    gathered = None if view is None else _transposed(view, perm, rewriter)
    patches = None if gathered is None else rewriter.reshape_to(gathered, side_by_side)
    if patches is None:
        return "more than one size of the map depends on the input"
    name = output.name
    matrix = rewriter.constant(weight.reshape(features, -1).T, hint=node.inputs[1].name)
    tokens: Tensor = rewriter.op("MatMul", patches, matrix, hint=f"{name}/MatMul")
    facts.learn(tokens, like=output, shapes=[(*s[:-1], features) for s in side_by_side])
    if bias is not None:
        product, tokens = tokens, rewriter.op("Add", tokens, bias, hint=f"{name}/Add")
        facts.learn(tokens, like=product)
    rewriter.replace(output, _transposed(tokens, [0, axes + 1, *range(1, axes + 1)], rewriter))
    return None


def _channels_go_last(tensor: Tensor, rewriter: Rewriter) -> bool:
    """Whether all that reads a map [B, C, ...] transposes C to the end, maybe behind a view of what follows it."""
    if rewriter.is_output(tensor) or not tensor.outputs:
        return False
    return all(
        node.attrs.get("perm", [0])[-1] == 1
        if node.op == "Transpose"
        else node.op in VIEW_OPS and _keeps_channels(node, rewriter) and _channels_go_last(node.outputs[0], rewriter)
        for node in tensor.outputs
    )


def _keeps_channels(view: gs.Node, rewriter: Rewriter) -> bool:
    before, after = rewriter.facts.shapes(view.inputs[0]) or [], rewriter.facts.shapes(view.outputs[0]) or []
    return bool(before) and [shape[:2] for shape in before] == [shape[:2] for shape in after]


def _transposed(tensor: Tensor, perm: list[int], rewriter: Rewriter) -> Tensor:
    result: Tensor = rewriter.op("Transpose", tensor, perm=perm)
    shapes = rewriter.facts.shapes(tensor) or []
    rewriter.facts.learn(result, like=tensor, shapes=[tuple(shape[i] for i in perm) for shape in shapes])
    return result

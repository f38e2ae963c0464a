"""The residual addition behind what an op computes, where a swinopt op can take it in."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from swinopt.graph import Tensor, is_standard, literal
from swinopt.rewrite import Rewriter


@dataclass(frozen=True)
class Residual:
    """An addition of two computed tensors of one shape.

    Attributes:
        total: the sum.
        summand: what is added, in whatever order the sum has it.
    """

    total: Tensor
    summand: Tensor


def residual_behind(result: Tensor, rewriter: Rewriter, nodes: Container[int], giver: str) -> Residual | None:
    """The addition that alone reads a tensor, if the op that makes the tensor can take it in.

    Refuses an addition that broadcasts.

    Args:
        result: what the op computes.
        rewriter: of the graph.
        nodes: the ids of the graph's own nodes. Those in the bodies of If and Loop read tensors as well, and nothing
            out here can replace them.
        giver: what makes the tensor, in words, for the reason of a refusal.
    """
    addition = result.outputs[0] if len(result.outputs) == 1 else None
    if addition is None or addition.op != "Add" or not is_standard(addition) or id(addition) not in nodes:
        return None
    left, right = addition.inputs
    total, summand = addition.outputs[0], right if left is result else left
    if literal(summand) is not None or rewriter.is_output(result):
        return None
    shapes = rewriter.facts.shapes(result)
    if shapes is None or shapes != rewriter.facts.shapes(summand):
        rewriter.refuse(total, f"the residual is not known to have the shape of what the {giver} gives")
        return None
    return Residual(total, summand)

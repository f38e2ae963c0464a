"""What a LayerNormalization node says, in the form that the swinopt ops with a norm in them take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from swinopt.graph import Tensor, argument, attr
from swinopt.op_spec import FLOATS
from swinopt.rewrite import Rewriter


class NoNorm(Exception):
    """The node is no norm that a swinopt op could compute; the message says why."""


@dataclass(frozen=True)
class Norm:
    """A LayerNorm over the last axis.

    Attributes:
        gamma: the factor behind it, ``[C]``.
        beta: the summand behind it, ``[C]``.
        epsilon: what is added to the variance.
    """

    gamma: Tensor
    beta: Tensor
    epsilon: float


def norm_of(node: gs.Node, rewriter: Rewriter) -> Norm:
    """Reads a LayerNormalization node; a missing bias becomes one of zeros.

    Raises:
        NoNorm: it does not run over the last axis alone, scale or bias do not have one number for each channel, the
            dtype is none that the ops have, or mean or deviation are read as well.
    """
    facts, x = rewriter.facts, node.inputs[0]
    dims = facts.dims(x)
    channels = dims[-1] if dims else None
    if not dims or channels is None:
        raise NoNorm("the number of channels that the norm runs over is not known")
    if attr(node, "axis", rewriter.graph.opset) not in (-1, len(dims) - 1):
        raise NoNorm("the norm does not run over the last axis alone")
    if facts.onnx_dtype(x) not in FLOATS:
        raise NoNorm("the norm is of a dtype other than float32, float16 and bfloat16")
    if any(t.outputs or rewriter.is_output(t) for t in node.outputs[1:]):
        raise NoNorm("the mean or the deviation of the norm is read as well")
    gamma, beta = node.inputs[1], argument(node, 2)
    if beta is None:
        beta = rewriter.float_constant(np.zeros(channels), gamma, f"{gamma.name}/no_bias")
    for name, tensor in (("scale", gamma), ("bias", beta)):
        if facts.static_shape(tensor) != (channels,):
            raise NoNorm(f"the {name} of the norm is not one number for each of {channels} channels")
    return Norm(gamma, beta, float(attr(node, "epsilon", rewriter.graph.opset)))

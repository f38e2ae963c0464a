"""What looks like attention over windows, and is none that the op computes: refused, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt import ops
from swinopt.passes import FuseWindowAttention
from swinopt.testing import refuses, rewrites
from swinopt.textbook import shift_mask
from tests import graphs
from tests.graphs import Builder, Spoil, swin_attention

FUSE = FuseWindowAttention()


def relu(b: Builder, x: str) -> str:
    return b.op("Relu", x)


def to_int_and_back(b: Builder, x: str) -> str:
    return b.op("Cast", b.op("Cast", x, to=onnx.TensorProto.INT32), to=onnx.TensorProto.FLOAT)


def with_input(op: str, *shape: int) -> Spoil:
    return lambda b, x: b.op(op, x, b.input(shape, "other"))


def swapped(axis: int, size: int) -> Spoil:
    """The first two along an axis changed places."""
    return lambda b, x: b.op("Gather", x, b.ints(1, 0, *range(2, size)), axis=axis)


def reversed_for_two_images(b: Builder, windows: str) -> str:
    """Back to the map and into windows again, as a trace writes it that has seen a batch of two."""
    tiled = b.transpose(b.reshape(windows, 2, 2, 2, 2, 2, -1), 0, 1, 3, 2, 4, 5)
    return graphs.partition(b, b.reshape(tiled, -1, 4, 4, 8), (4, 4), (2, 2), 8)


def mask_of(size: tuple[int, int] = (4, 4), shift: tuple[int, int] = (1, 1), flip: Any = None) -> Any:
    mask = shift_mask(size, (2, 2), shift).copy()
    if flip is not None:
        mask[flip] = ~mask[flip]
    return mask


def as_float(b: Builder) -> str:
    return b.op("Cast", graphs.batch_of(b), to=onnx.TensorProto.FLOAT)


def is_one(b: Builder) -> str:
    return b.op("Cast", b.op("Equal", graphs.batch_of(b), b.ints(1)), to=onnx.TensorProto.FLOAT)


NEAR_MISSES: dict[str, tuple[Mapping[str, Any], str]] = {
    # masks
    "one pair of the mask is wrong": ({"mask": mask_of(flip=(1, 0, 1))}, "not the shift mask of window 2x2, shift 1x1"),
    "one pair more is masked": ({"mask": mask_of(flip=(0, 0, 1)), "terms": "one"}, "not the shift mask"),
    "one pair less is masked": ({"mask": mask_of(flip=(3, 0, 1)), "terms": "one-5d"}, "not the shift mask"),
    "the mask is that of another shift": ({"mask": mask_of(shift=(1, 0))}, "not the shift mask"),
    "the mask is that of a shift where there is none": (
        {"mask": mask_of(), "shift": (0, 0), "terms": "one-5d"},
        "not the shift mask",
    ),
    "the mask is transposed": ({"mask": mask_of(shift=(0, 1)), "shift": (1, 0)}, "not the shift mask"),
    "the mask differs within the batch": (
        {"spoil": {"biased": lambda b, x: b.op("Add", x, b.constant(np.repeat([0.0, 1.0], 4).reshape(8, 1, 1, 1)))}},
        "differs within the batch",
    ),
    "masked pairs are favoured": ({"mask_value": 100.0}, "not the shift mask"),
    # scores
    "the softmax runs over the queries": (
        {
            "spoil": {
                "biased": lambda b, x: b.transpose(b.op("Softmax", b.transpose(x, 0, 1, 3, 2), axis=2), 0, 1, 3, 2)
            }
        },
        "does not run over the last axis",
    ),
    "the softmax runs over all pairs": (
        {
            "spoil": {
                "biased": lambda b, x: b.reshape(x, -1, 2, 16),
                "probabilities": lambda b, x: b.reshape(x, -1, 2, 4, 4),
            }
        },
        "Reshape between the product of q and k and the softmax",
    ),
    "the pairs are regrouped behind the softmax": (
        {"spoil": {"probabilities": lambda b, x: b.reshape(b.reshape(x, -1, 2, 2, 8), -1, 2, 4, 4)}},
        "read by a Reshape",
    ),
    "the bias is no constant": (
        {"terms": "none", "spoil": {"scores": with_input("Add", 2, 4, 4)}},
        "Add .* has no constant operand",
    ),
    "the scale is no constant": ({"spoil": {"scores": with_input("Mul")}}, "Mul .* has no constant operand"),
    "the scores are the divisor": (
        {"spoil": {"scores": lambda b, x: b.op("Div", b.constant(1.0), x)}},
        "Div .* has no constant operand",
    ),
    "the scores are divided by zero": (
        {"spoil": {"scores": lambda b, x: b.op("Div", x, b.constant(0.0))}},
        "multiplied by a constant",
    ),
    "the scores are scaled behind the bias": (
        {"spoil": {"biased": lambda b, x: b.op("Mul", x, b.constant(0.5))}},
        "added to the scores before they are scaled",
    ),
    "the scores go through tanh": (
        {"spoil": {"scores": lambda b, x: b.op("Tanh", x)}},
        "there is a Tanh between the product",
    ),
    "the scores are rounded": ({"spoil": {"scores": to_int_and_back}}, "there is a Cast between the product"),
    "the scores are multiplied pair by pair": (
        {"spoil": {"scores": lambda b, x: b.op("Mul", x, b.weights(4, 4))}},
        r"multiplied by a constant of shape \[4, 4\]",
    ),
    "the heads have factors in V1": (
        {"spoil": {"scores": lambda b, x: b.op("Mul", x, b.constant([[[2.0]], [[3.0]]]))}},
        "factors of their own",
    ),
    "the windows have factors": (
        {
            "batch": 1,
            "heads": 4,
            "cosine": True,
            "spoil": {"scores": lambda b, x: b.op("Mul", x, b.weights(4, 1, 1, 1))},
        },
        r"multiplied by a constant of shape \[4, 1, 1, 1\]",
    ),
    "the heads have factors twice": (
        {"cosine": True, "spoil": {"scores": lambda b, x: b.op("Mul", x, b.weights(2, 1, 1))}},
        "multiplied by a constant of shape",
    ),
    "there is no product": ({"spoil": {"biased": lambda b, x: b.input((8, 2, 4, 4), "other")}}, "not over a product"),
    "the bias grows with the batch": (
        {
            "batch": "batch",
            "spoil": {"biased": lambda b, x: b.op("Add", x, b.op("Mul", b.weights(2, 4, 4), as_float(b)))},
        },
        "bias or mask depend on the input's size",
    ),
    "the scores grow with the batch": (
        {"batch": "batch", "spoil": {"scores": lambda b, x: b.op("Mul", x, as_float(b))}},
        "multiplied by what depends on the input's size",
    ),
    "the bias is there for a batch of one only": (
        {
            "batch": "batch",
            "spoil": {"biased": lambda b, x: b.op("Add", x, b.op("Mul", b.weights(2, 4, 4), is_one(b)))},
        },
        "Add .* has no constant operand",
    ),
    "the scale is another for a batch of one": (
        {"batch": "batch", "spoil": {"scores": lambda b, x: b.op("Mul", x, b.op("Add", is_one(b), b.constant(1.0)))}},
        "Mul .* has no constant operand",
    ),
    # probabilities
    "the probabilities go through dropout in training": (
        {"spoil": {"probabilities": lambda b, x: b.op("Dropout", x, b.constant(0.5), b.constant(True))}},
        "read by a Dropout",
    ),
    "the probabilities are scaled": (
        {"spoil": {"probabilities": lambda b, x: b.op("Mul", x, b.constant(2.0))}},
        "read by a Mul",
    ),
    "the probabilities are rounded": ({"spoil": {"probabilities": to_int_and_back}}, "read by a Cast"),
    # q, k, v
    "q goes through relu": ({"spoil": {"q": relu}}, "there is a Relu between the linear and q, k or v"),
    "k goes through relu": ({"spoil": {"k": relu}}, "there is a Relu between the linear and q, k or v"),
    "v goes through relu": ({"spoil": {"v": relu}}, "there is a Relu between the linear and q, k or v"),
    "the linear is followed by relu": ({"spoil": {"qkv": relu}}, "there is a Relu between the linear and q, k or v"),
    "q is rounded": ({"spoil": {"q": to_int_and_back}}, "there is a Cast between the linear"),
    "v is scaled": ({"spoil": {"v": lambda b, x: b.op("Mul", x, b.constant(2.0))}}, "v is scaled"),
    "q is scaled channel by channel": (
        {"spoil": {"q": lambda b, x: b.op("Mul", x, b.weights(4))}},
        "there is a Mul between the linear",
    ),
    "q is shifted": (
        {"scale": "scores", "spoil": {"q": lambda b, x: b.op("Add", x, b.weights(4))}},
        "no bias of the linear's features",
    ),
    "q is shifted token by token": (
        {"scale": "scores", "spoil": {"q": lambda b, x: b.op("Add", x, b.weights(4, 4))}},
        "there is a Add between the linear",
    ),
    "q is shifted behind its scale": (
        {"spoil": {"q": lambda b, x: b.op("Add", b.op("Mul", x, b.constant(2.0)), b.weights(4))}},
        "no bias of the linear's features|scaled before its bias",
    ),
    "q, k and v are rolled behind the linear": ({"pad_after_linear": True}, "there is a Concat between the linear"),
    "q comes from nowhere": (
        {"spoil": {"q": lambda b, x: b.input((8, 2, 4, 4), "other")}},
        "does not come from a linear",
    ),
    "the weights are no constants": (
        {"spoil": {"qkv": lambda b, x: b.linear(b.slice(x, 0, 8, 2), 8, 24, constant=False)}},
        "MatMul between the linear and q, k or v|does not come from a linear",
    ),
    "k is that of other tokens": ({"spoil": {"k": swapped(2, 4)}}, "not of the same tokens"),
    "v is that of other tokens": ({"spoil": {"v": swapped(2, 4)}}, "not of the same tokens"),
    "v is that of another window": ({"spoil": {"v": swapped(0, 8)}}, "not of the same tokens"),
    "k is that of fewer tokens": (
        {"terms": "none", "spoil": {p: lambda b, x: b.slice(x, 0, 2, 2) for p in "kv"}},
        "not of the same tokens",
    ),
    "q has tokens in its heads": (
        {"spoil": {"q": lambda b, x: b.reshape(b.transpose(x, 0, 2, 1, 3), -1, 2, 4, 4)}},
        "does not hold whole tokens, split into heads",
    ),
    "the heads of k are those of another window": (
        {"spoil": {"k": lambda b, x: b.transpose(b.reshape(x, 2, 8, 4, 4), 1, 0, 2, 3)}},
        "does not hold whole tokens, split into heads",
    ),
    "one channel of one token is another's": (
        {
            "spoil": {
                "q": lambda b, x: b.reshape(
                    b.op("Gather", b.reshape(x, -1), b.constant(np.r_[1, 0, 2:256].astype(np.int64))), 8, 2, 4, 4
                )
            }
        },
        "does not hold whole tokens, split into heads",
    ),
    "q, k and v are padded behind the linear": (
        {"size": (3, 5), "shift": (0, 0), "pad_after_linear": True},
        "padded behind its linear",
    ),
    # the way in
    "the windows are shuffled": ({"spoil": {"windows": swapped(0, 8)}}, "not a window of a map"),
    "the tokens of the windows are shuffled": ({"spoil": {"windows": swapped(1, 4)}}, "not a window of a map"),
    "the channels of the tokens are shuffled": (
        {"spoil": {"windows": swapped(2, 8)}},
        "moved before the linear is not whole tokens",
    ),
    "the map is rolled once more": ({"spoil": {"x": lambda b, x: b.roll(x, -2, 1)}}, "not a window of a map"),
    "the map is transposed": ({"spoil": {"x": lambda b, x: b.transpose(x, 0, 2, 1, 3)}}, "not a window of a map"),
    "the map is flipped": ({"spoil": {"x": lambda b, x: b.slice(x, -1, -9, 1, -1)}}, "not a window of a map"),
    "the batch is turned round": ({"spoil": {"x": lambda b, x: b.slice(x, -1, -9, 0, -1)}}, "not a window of a map"),
    "the windows are dilated": (
        {
            "shift": (0, 0),
            "spoil": {
                "x": lambda b, x: b.reshape(b.transpose(b.reshape(x, 2, 2, 2, 2, 2, 8), 0, 2, 1, 4, 3, 5), 2, 4, 4, 8)
            },
        },
        "not a window of a map",
    ),
    "a part of the batch is attended to": (
        {"batch": 4, "residual": False, "spoil": {"x": lambda b, x: b.slice(x, 0, 2, 0)}},
        "not a window of a map",
    ),
    "the map is put together of two": (
        {"spoil": {"x": lambda b, x: b.op("Concat", b.slice(x, 0, 2, 1), b.op("Neg", b.slice(x, 2, 4, 1)), axis=1)}},
        "come from several tensors",
    ),
    # the way out
    "the attended values go through relu": (
        {"projection": False, "spoil": {"merged": relu}},
        "do not come back|not merged",
    ),
    "two channels are swapped and no linear follows": (
        {"spoil": {"merged": swapped(2, 8)}, "projection": False},
        "heads are not merged in order",
    ),
    "the heads of two tokens are merged": (
        {"spoil": {"attended": lambda b, x: b.reshape(x, -1, 4, 2, 4)}},
        "heads are not merged token by token",
    ),
    "the heads are merged as [d, heads] and no linear follows": (
        {"merge": "dh", "projection": False},
        "heads are not merged in order",
    ),
    "half of the channels are padding": (
        {"spoil": {"merged": lambda b, x: b.op("Pad", b.slice(x, 0, 4, 2), b.ints(0, 0, 0, 0, 0, 4))}},
        "heads are not merged token by token",
    ),
    "half of the channels are there twice": (
        {"spoil": {"merged": lambda b, x: b.op("Concat", b.slice(x, 0, 4, 2), b.slice(x, 0, 4, 2), axis=2)}},
        "heads are not merged",
    ),
    "the tokens are rolled back by another shift": (
        {"spoil": {"returned": lambda b, x: b.roll(x, 1, 2)}},
        "do not come back to where they were",
    ),
    "the windows are put back in another order": (
        {"spoil": {"projected": swapped(0, 8)}},
        "do not come back to where they were",
    ),
    "the channels are shuffled behind the projection": (
        {"spoil": {"projected": swapped(2, 8)}},
        "what follows the projection does not move whole tokens",
    ),
    "something is read before the tokens are back": (
        {"spoil": {"returned": lambda b, x: b.op("Add", x, b.roll(x, 1, 1))}},
        "do not come back to where they were",
    ),
    "a trace has fixed the batch of the reverse": (
        {"batch": "batch", "spoil": {"projected": reversed_for_two_images}},
        r"the batch is dynamic, and on the way it is taken for 2, .* window_reverse infer the batch \(-1\)",
    ),
    # V2
    "only q is normalised": (
        {"spoil": {"q": lambda b, x: graphs._normalised(b, x)}},
        "only one of q and k is normalised",
    ),
    "only k is normalised": (
        {"spoil": {"k": lambda b, x: graphs._normalised(b, x)}},
        "only one of q and k is normalised",
    ),
    "v is normalised too": (
        {"cosine": True, "spoil": {"v": lambda b, x: graphs._normalised(b, x)}},
        "normalised",
    ),
    "q is normalised twice": (
        {"cosine": True, "spoil": {"q": lambda b, x: graphs._normalised(b, x)}},
        "there is a Div between the linear",
    ),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_it_is_refused_that(name: str) -> None:
    options, reason = NEAR_MISSES[name]
    refuses(swin_attention(**{"batch": 2, "shift": (1, 1), **options}), FUSE, reason)


NORM_NEAR_MISSES: dict[str, tuple[Callable[[Builder, str], str], str]] = {
    "over the tokens": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(2), keepdims=1), b.constant(1e-12))),
        "normalised over something else than a head",
    ),
    "over tokens and channels": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(2, 3), keepdims=1), b.constant(1e-12))),
        "normalised over something else than a head",
    ),
    "over all heads at once": (
        lambda b, x: b.transpose(
            b.reshape(normalised_last(b, b.reshape(b.transpose(x, 0, 2, 1, 3), -1, 4, 8)), -1, 4, 2, 4), 0, 2, 1, 3
        ),
        "normalised over something else than a head",
    ),
    "over half a head": (
        lambda b, x: b.reshape(normalised_last(b, b.reshape(x, -1, 2, 4, 2, 2)), -1, 2, 4, 4),
        "normalised over something else than a head",
    ),
    "with a floor that matters": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(0.5))),
        "has a floor of 0.5",
    ),
    "with a ceiling": (
        lambda b, x: b.op(
            "Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(1e-12), b.constant(1.0))
        ),
        "has a floor|has a ceiling",
    ),
    "with an epsilon": (
        lambda b, x: b.op("Div", x, b.op("Add", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(0.1))),
        "there is a Div between the linear",
    ),
    "by the sum of absolute values": (
        lambda b, x: b.op("Div", x, b.op("Clip", b.op("ReduceL1", x, b.ints(-1), keepdims=1), b.constant(1e-12))),
        "there is a Div between the linear",
    ),
    "by the norm of something else": (
        lambda b, x: b.op(
            "Div", x, b.op("Clip", b.op("ReduceL2", b.op("Exp", x), b.ints(-1), keepdims=1), b.constant(1e-12))
        ),
        "normalised over something else than a head",
    ),
    "and multiplied by a negative number before": (
        lambda b, x: normalised_last(b, b.op("Mul", x, b.constant(-1.0))),
        "multiplied by a negative number before it is normalised",
    ),
}


def normalised_last(b: Builder, x: str) -> str:
    return b.op("Div", x, b.op("Clip", b.op("ReduceL2", x, b.ints(-1), keepdims=1), b.constant(1e-12)))


@pytest.mark.parametrize("name", NORM_NEAR_MISSES)
def test_it_is_no_cosine_if_q_and_k_are_normalised(name: str, spell_norm: Any) -> None:
    write, reason = NORM_NEAR_MISSES[name]
    spell_norm(write)
    refuses(swin_attention(2, shift=(1, 1), cosine=True, opset=18), FUSE, reason)


def test_it_is_no_cosine_if_the_norm_is_that_of_another_tensor_in_the_same_places() -> None:
    def by_the_norm_of_exp(b: Builder, x: str) -> str:
        heads = producers(b, x, "Transpose", "Reshape")
        exp = b.transpose(b.reshape(b.op("Exp", heads), -1, 4, 2, 4), 0, 2, 1, 3)
        return b.op("Div", x, b.op("Clip", b.op("ReduceL2", exp, b.ints(-1), keepdims=1), b.constant(1e-12)))

    model = swin_attention(2, separate=True, scale="scores", opset=18, spoil={p: by_the_norm_of_exp for p in "qk"})
    refuses(model, FUSE, "normalised over something else than a head")


def producers(b: Builder, tensor: str, *op_types: str) -> str:
    """The tensor that nodes of these types, the last one first, make this one of."""
    for op_type in op_types:
        (node,) = [node for node in b.nodes if tensor in node.output]
        assert node.op_type == op_type
        tensor = node.input[0]
    return tensor


def read_elsewhere(place: str) -> onnx.ModelProto:
    """An attention of which one tensor is read by something else as well."""
    kept: list[str] = []

    def read(b: Builder, x: str) -> str:
        kept.append(b.op("Sigmoid", x))
        return x

    model = swin_attention(2, shift=(1, 1), spoil={place: read})
    model.graph.output.append(onnx.helper.make_tensor_value_info(kept[0], onnx.TensorProto.FLOAT, None))
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("probabilities", "read by more than the product with v"),
        ("attended", "heads are merged|attended values are read in several places"),
        ("merged", "attended values are read in several places|do not come back"),
        ("projected", "do not come back|does not move whole tokens"),
    ],
)
def test_it_is_refused_if_something_else_reads(place: str, reason: str) -> None:
    refuses(read_elsewhere(place), FUSE, reason)


@pytest.mark.parametrize("place", ["scores", "qkv", "q", "k", "v", "windows"])
def test_what_is_read_on_the_way_in_is_computed_for_its_other_reader_still(place: str) -> None:
    rewrites(read_elsewhere(place), FUSE, applied=1)


def test_probabilities_that_are_an_output_are_refused() -> None:
    model = swin_attention(2, shift=(1, 1))
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(softmax.output[0], onnx.TensorProto.FLOAT, (8, 2, 4, 4))
    )
    refuses(model, FUSE, "read by more than the product with v")


def test_attention_over_a_sequence_is_refused() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((2, 7, 8)))
    q, k, v = graphs._split_heads(b, b.linear(x, 8, 24), 7, 2, 4, "3hd")
    weights = b.op("Softmax", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), axis=-1)
    merged = b.reshape(b.transpose(b.op("MatMul", weights, v), 0, 2, 1, 3), -1, 7, 8)
    refuses(b.model(b.linear(merged, 8, 8)), FUSE, "no spatial layout|not a window")


def test_values_of_another_width_are_refused() -> None:
    """The op has one head_dim, and 7 and 4 are neither multiples of one another nor far apart."""
    b = Builder()
    windows = graphs.partition(b, b.input((1, 4, 4, 8)), (4, 4), (2, 2), 8)
    q, k, v = (b.reshape(b.linear(windows, 8, 2 * width), 4, 4, 2, width) for width in (7, 7, 4))
    scores = b.op("MatMul", b.transpose(q, 0, 2, 1, 3), b.transpose(k, 0, 2, 3, 1))
    attended = b.op(
        "MatMul", b.op("Softmax", b.op("Add", scores, b.weights(2, 4, 4)), axis=-1), b.transpose(v, 0, 2, 1, 3)
    )
    merged = b.reshape(b.transpose(attended, 0, 2, 1, 3), 4, 4, 8)
    refuses(b.model(graphs.reverse(b, merged, (4, 4), (2, 2), 8)), FUSE, "a head has 7 features in q and k, and 4 in v")


def test_q_and_k_of_different_maps_are_refused() -> None:
    b = Builder()
    one, two = b.op("Tanh", b.input((2, 4, 4, 8))), b.op("Exp", b.input((2, 4, 4, 8), "z"))
    q, k, v = (
        b.transpose(b.reshape(b.linear(graphs.partition(b, t, (4, 4), (2, 2), 8), 8, 8), -1, 4, 2, 4), 0, 2, 1, 3)
        for t in (one, two, two)
    )
    weights = b.op("Softmax", b.op("MatMul", q, b.transpose(k, 0, 1, 3, 2)), axis=-1)
    merged = b.reshape(b.transpose(b.op("MatMul", weights, v), 0, 2, 1, 3), -1, 4, 8)
    model = b.model(b.op("Neg", graphs.reverse(b, b.linear(merged, 8, 8), (4, 4), (2, 2), 8)))
    refuses(model, FUSE, "q, k and v come from different tensors")


def test_an_image_of_two_dynamic_sizes_is_refused_where_the_window_is_not_proven() -> None:
    b = Builder()
    b.op("Softmax", b.op("MatMul", b.input((2, "n", 4)), b.input((2, 4, "n"), "k")), axis=-1)
    refuses(b.model(b.op("MatMul", b.nodes[-1].output[0], b.input((2, "n", 4), "v"))), FUSE, "how many heads|linear")


def test_a_softmax_that_is_no_attention_is_refused_with_a_reason() -> None:
    b = Builder()
    refuses(b.model(b.op("Softmax", b.input((2, 10)), axis=-1)), FUSE, "not over a product of q and k")


def test_a_softmax_of_another_domain_is_not_looked_at() -> None:
    model = swin_attention(2)
    (softmax,) = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmax.domain = "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    assert ops.uses(FUSE(model))["WindowAttention"] == 0


def test_one_attention_that_is_refused_does_not_keep_others_from_being_fused() -> None:
    first, second = swin_attention(2, seed=1), swin_attention(2, shift=(1, 1), seed=2, spoil={"q": relu})
    joined = onnx.compose.merge_models(
        onnx.compose.add_prefix(first, "first/"),
        onnx.compose.add_prefix(second, "second/"),
        io_map=[("first/y", "second/x")],
    )
    rewrites(joined, FUSE, applied=1)

"""The form in which TensorRT's parser takes a model with swinopt ops, and the way back.

Four things differ from plain ONNX. Function bodies are gone: a plugin takes the place of each node. Each node names
that plugin. Attributes are written out, defaults as well: the parser warns of each field of a plugin that a node does
not set. And a TensorRT network knows no absent inputs (the 8.6 parser makes an empty constant of the name ``""``),
so that the present ones move together, and the attribute ``inputs_present`` says which they are: ``[1, 1, 0, 1]`` of a
``WindowAttention`` means that its third and last input is ``pad_qkv``.
"""

from __future__ import annotations

from onnx import ModelProto, NodeProto, helper

from swinopt import ops
from swinopt.errors import ModelError

#: INTS, one 0 or 1 for each input that the op's specification lists.
INPUTS_PRESENT = "inputs_present"


def for_plugins(model: ModelProto) -> ModelProto:
    """The model as TensorRT's parser takes it; a copy. Doing it twice changes nothing.

    Raises:
        ModelError: the model uses a swinopt op that does not exist, or gives one more inputs than it has.
    """
    packed = ModelProto()
    packed.CopyFrom(model)
    pack(packed)
    return packed


def pack(model: ModelProto) -> None:
    """:func:`for_plugins` in place."""
    ops.strip_bodies(model)
    ops.name_plugins(model)
    ops.write_defaults(model)
    for node in ops.nodes(model):
        if not _present(node):
            _pack(node)


def unpack(model: ModelProto) -> None:
    """Gives every input its own place again, in place: what runs function bodies needs that.

    Raises:
        ModelError: a node's ``inputs_present`` does not fit its inputs.
    """
    for node in ops.nodes(model):
        present = _present(node)
        if present:
            _unpack(node, present)


def _pack(node: NodeProto) -> None:
    declared = len(ops.spec(node.op_type).inputs)
    if len(node.input) > declared:
        raise ModelError(f"{node.op_type}: {len(node.input)} inputs are given, and it has {declared}")
    present = [int(bool(name)) for name in node.input]
    present += [0] * (declared - len(present))
    node.input[:] = [name for name in node.input if name]
    node.attribute.append(helper.make_attribute(INPUTS_PRESENT, present))


def _unpack(node: NodeProto, present: list[int]) -> None:
    if sum(present) != len(node.input) or len(present) != len(ops.spec(node.op_type).inputs):
        raise ModelError(f"{node.op_type}: {INPUTS_PRESENT} is {present}, and {len(node.input)} inputs are there")
    given = iter(list(node.input))
    inputs = [next(given) if there else "" for there in present]
    while inputs and not inputs[-1]:
        inputs.pop()
    node.input[:] = inputs
    kept = [attribute for attribute in node.attribute if attribute.name != INPUTS_PRESENT]
    del node.attribute[:]
    node.attribute.extend(kept)


def _present(node: NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == INPUTS_PRESENT), [])

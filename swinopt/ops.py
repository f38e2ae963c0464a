"""The swinopt domain: for each op one neutral specification, its shape rule, and its definition in standard ONNX.

A custom op carries its own definition: :func:`attach_bodies` adds it to a model as an ONNX function, so that any
runtime without a kernel for the op computes it nevertheless, and every kernel has something to be compared with.
:func:`strip_bodies` takes the definitions away again, for TensorRT, whose plugins take the nodes' place.

A new op is one entry in :data:`SPECS`: an :class:`OpSpec` with a shape rule and a body, in a file of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, helper, inliner, numpy_helper

from swinopt.errors import ModelError
from swinopt.op_layer_norm import ADD_LAYER_NORM, LAYER_NORM, PATCH_MERGING
from swinopt.op_linear import LINEAR
from swinopt.op_spec import DOMAIN, MIN_OPSET, Attribute, Dim, Input, OpSpec, Output, Shape, has_input
from swinopt.op_window_attention import WINDOW_ATTENTION, function_body

__all__ = [
    "DOMAIN",
    "LAYER_NORM",
    "LINEAR",
    "MIN_OPSET",
    "PLUGIN_ATTRIBUTES",
    "SPECS",
    "STAND_IN",
    "VERSION",
    "Attribute",
    "Dim",
    "Input",
    "OpSpec",
    "Output",
    "Shape",
    "attach_bodies",
    "first_output",
    "function_body",
    "infer_shapes",
    "inline_bodies",
    "name_plugins",
    "nodes",
    "spec",
    "strip_bodies",
    "uses",
    "write_defaults",
]

VERSION = 1

#: Attributes that any node may carry: they tell TensorRT's parser which plugin to take, and change nothing else.
PLUGIN_ATTRIBUTES = ("plugin_version", "plugin_namespace")

#: The domain of nodes that are hidden for a while from what would lower them.
_HIDDEN = f"{DOMAIN}.hidden"

STAND_IN = "swinopt.absent"
_IR_WITH_ATTRIBUTE_DEFAULTS = 9
_IR_WITH_OVERLOADS = 10

#: The ops of the swinopt domain by name.
SPECS: Mapping[str, OpSpec] = {
    op.name: op for op in (WINDOW_ATTENTION, PATCH_MERGING, ADD_LAYER_NORM, LAYER_NORM, LINEAR)
}


def spec(op_type: str) -> OpSpec:
    """The specification of a swinopt op.

    Raises:
        ModelError: there is no such op.
    """
    if op_type not in SPECS:
        raise ModelError(f"the swinopt domain has no op {op_type}; it has {', '.join(SPECS)}")
    return SPECS[op_type]


def nodes(model: ModelProto) -> Iterator[NodeProto]:
    """The nodes of the swinopt domain in the graph of the model, its subgraphs included."""
    return (node for node in walk(model.graph.node) if node.domain == DOMAIN)


def first_output(node: NodeProto) -> str:
    """What a node is told by: unlike its name, that of the first tensor that it computes is there, and its alone."""
    return next(name for name in node.output if name)


def infer_shapes(
    op_type: str, input_shapes: Sequence[Shape | None], attributes: Mapping[str, Any]
) -> list[tuple[Dim, ...]]:
    """The output shapes of a swinopt op.

    Args:
        op_type: its name.
        input_shapes: by position, None for an absent optional input. Dimensions are ints, names, or None where
            unknown; a check that would need an unknown dimension is left out.
        attributes: by name, as Python numbers and sequences of them.

    Raises:
        ModelError: there is no such op, an input or attribute is missing or unknown, or shapes contradict each other.
    """
    op = spec(op_type)
    inputs = [*input_shapes, *[None] * (len(op.inputs) - len(input_shapes))]
    missing = [i.name for i, shape in zip(op.inputs, inputs, strict=False) if shape is None and not i.optional]
    missing += [name for name in op.required_attributes if name not in attributes]
    if missing:
        raise ModelError(f"{op_type}: {', '.join(missing)} missing")
    unknown = set(attributes) - {a.name for a in op.attributes} - set(PLUGIN_ATTRIBUTES)
    if unknown:
        raise ModelError(f"{op_type}: unknown attributes {', '.join(sorted(unknown))}")
    if len(inputs) > len(op.inputs):
        raise ModelError(f"{op_type}: more than {len(op.inputs)} inputs")
    return op.infer(inputs, {**op.defaults, **attributes})


def uses(model: ModelProto) -> Counter[str]:
    """How many nodes of each swinopt op the graph of the model has, its subgraphs included."""
    return Counter(node.op_type for node in nodes(model))


def attach_bodies(model: ModelProto) -> None:
    """Adds the definitions of the swinopt ops that the model uses; in place, and the same if done twice.

    If one definition fits all nodes of an op, it is the only one, and any runtime that knows functions can run the
    model. Where only some nodes have ``pad_qkv``, the others get a stand-in of NaN, which none of them reads as long
    as its windows fit: then padding that nobody provided for is seen at once. Nodes with and without ``logit_scale``
    in one model need two definitions under one name (``overload``, IR version 10), and so do linears of different
    kinds, and norms with and without a residual: ONNX Runtime 1.27 or later. Older ones know one definition for a
    name, and refuse the model unless that one fits all nodes.

    The standard opset stays; the IR version is raised to what the definitions need, if it is lower.

    Raises:
        ModelError: the model uses a swinopt op that does not exist, uses one inside a function of its own, or is of
            an opset below 17.
    """
    strip_bodies(model)
    for function in model.functions:
        if any(node.domain == DOMAIN for node in walk(function.node)):
            raise ModelError(f"function {function.name} uses a swinopt op: inline it with onnx.inliner first")
    used = list(nodes(model))
    if not used:
        return
    _complete_uniform_inputs(model, used)
    opset = _standard_opset(model)
    bodies: dict[str, dict[str, FunctionProto]] = defaultdict(dict)
    for node in used:
        body = spec(node.op_type).body(node, opset)
        node.overload = body.overload
        bodies[node.op_type][body.overload] = body
    for op_type, variants in bodies.items():
        if len(variants) == 1:
            _drop_overloads([*variants.values(), *(n for n in used if n.op_type == op_type)])
        # A runtime that ignores overloads keeps the last. It must not run by mistake: the last in this order asks
        # for an input that the nodes of the other variants lack, or is right for them as well.
        model.functions.extend(variants[name] for name in sorted(variants))
    overloaded = any(len(variants) > 1 for variants in bodies.values())
    model.ir_version = max(model.ir_version, _IR_WITH_OVERLOADS if overloaded else _IR_WITH_ATTRIBUTE_DEFAULTS)
    _import_domain(model)


def inline_bodies(model: ModelProto, kept: Collection[str] = ()) -> ModelProto:
    """The model with swinopt ops replaced by their bodies, so that standard ops are left.

    Args:
        model: the model.
        kept: the nodes that stay what they are, each by its first output; they come without bodies.

    Raises:
        ModelError: as :func:`attach_bodies`.
    """
    strip_bodies(model)
    for node in list(nodes(model)):
        if first_output(node) in kept:
            node.domain = _HIDDEN
    write_defaults(model)  # the inliner does not know the defaults of a function's attributes
    attach_bodies(model)
    inlined = inliner.inline_local_functions(model)
    imports = [opset for opset in inlined.opset_import if opset.domain != DOMAIN]
    del inlined.opset_import[:]
    inlined.opset_import.extend(imports)
    hidden = [node for node in walk(inlined.graph.node) if node.domain == _HIDDEN]
    for node in hidden:
        node.domain = DOMAIN
    if hidden:
        _import_domain(inlined)
    return inlined


def name_plugins(model: ModelProto) -> None:
    """Writes into every node of the domain which TensorRT plugin runs it, in place.

    A parser that knows functions prefers a body to a plugin, unless the node asks for the plugin by name.
    """
    for node in nodes(model):
        _set_missing(node, {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)})


def write_defaults(model: ModelProto) -> None:
    """Writes into every node of the domain the attributes that it leaves to their defaults, in place.

    Raises:
        ModelError: the model uses a swinopt op that does not exist.
    """
    for node in nodes(model):
        _set_missing(node, spec(node.op_type).defaults)


def _set_missing(node: NodeProto, attributes: Mapping[str, Any]) -> None:
    there = {attribute.name for attribute in node.attribute}
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if k not in there)


def strip_bodies(model: ModelProto) -> None:
    """Takes away what :func:`attach_bodies` added, in place; the nodes stay, without empty inputs at their end."""
    used = list(nodes(model))
    for node in used:
        inputs = ["" if name == STAND_IN else name for name in node.input]
        while inputs and not inputs[-1]:
            inputs.pop()
        node.input[:] = inputs
    _drop_overloads(used)
    for index in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[index].name == STAND_IN:
            del model.graph.initializer[index]
    for index in reversed(range(len(model.functions))):
        if model.functions[index].domain == DOMAIN:
            del model.functions[index]


def _complete_uniform_inputs(model: ModelProto, used: Sequence[NodeProto]) -> None:
    for node, index in _missing_uniform_inputs(used):
        node.input.extend([""] * (index + 1 - len(node.input)))
        node.input[index] = STAND_IN
    if any(STAND_IN in node.input for node in used):
        model.graph.initializer.append(numpy_helper.from_array(np.full(1, np.nan, np.float32), STAND_IN))


def _missing_uniform_inputs(used: Sequence[NodeProto]) -> Iterator[tuple[NodeProto, int]]:
    for op_type in {node.op_type for node in used}:
        same_op = [node for node in used if node.op_type == op_type]
        for index, declared in enumerate(spec(op_type).inputs):
            without = [node for node in same_op if not has_input(node, index)]
            if declared.uniform and len(without) < len(same_op):
                yield from ((node, index) for node in without)


def walk(level: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """These nodes and those in their subgraphs."""
    for node in level:
        yield node
        for attribute in node.attribute:
            subgraphs: list[GraphProto] = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for subgraph in subgraphs:
                yield from walk(subgraph.node)


def _drop_overloads(protos: Iterable[NodeProto | FunctionProto]) -> None:
    for proto in protos:
        proto.ClearField("overload")


def _standard_opset(model: ModelProto) -> int:
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def _import_domain(model: ModelProto) -> None:
    versions = [o for o in model.opset_import if o.domain == DOMAIN] or [model.opset_import.add(domain=DOMAIN)]
    for version in versions:
        version.version = VERSION

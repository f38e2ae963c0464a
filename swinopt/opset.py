"""Moving a model between opset versions, with the converter that the onnx package ships.

The converter sees the graph without its large weights: it would copy them, and it has no use for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import version_converter

from swinopt.errors import ModelError

#: The oldest opset that is converted; what is older spells half of its ops differently.
OLDEST = 7
_SMALL_BYTES = 1024
#: Ops for which the converter knows no way back, and whose nodes mean the same in an older opset if valid there.
_ALIKE = ("ConstantOfShape", "GlobalMaxPool", "Pad", "Split")
#: What such nodes are called while the converter, which leaves other domains alone, is at work.
_HIDDEN = "swinopt.hidden"


def version_of(model: onnx.ModelProto) -> int:
    """The version of the standard opset that the model uses.

    Raises:
        ModelError: it names none.
    """
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            return int(opset.version)
    raise ModelError("the model does not say which version of the standard opset it uses")


def convert(model: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """The model in the given opset version; the model itself if it has it already.

    Raises:
        ModelError: the model is too old, or an op in it cannot be said in that version.
    """
    current = version_of(model)
    if current == version:
        return model
    if current < OLDEST:
        raise ModelError(f"the model uses opset {current}; export it again with opset {OLDEST} or newer (17 is best)")
    light = without_weights(model)
    if version < current:
        _drop_new_defaults(light, current, version)
        _hide_what_is_alike(light, current, version)
    try:
        converted = version_converter.convert_version(light, version)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"opset {current} cannot be converted to {version}: {reason}") from error
    _show_again(converted)
    return _with_weights(converted, model)


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which every large weight is an input of the same name."""
    light = onnx.ModelProto()
    light.ir_version = max(4, model.ir_version)
    light.producer_name, light.producer_version = model.producer_name, model.producer_version
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.metadata_props.extend(model.metadata_props)
    light.doc_string, light.domain, light.model_version = model.doc_string, model.domain, model.model_version
    graph, source = light.graph, model.graph
    graph.name, graph.doc_string = source.name, source.doc_string
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.node.extend(source.node)
    graph.sparse_initializer.extend(source.sparse_initializer)
    inputs = {i.name for i in source.input}
    for weight in source.initializer:
        if weight.ByteSize() <= _SMALL_BYTES:
            graph.initializer.append(weight)
        elif weight.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))
    return light


def _with_weights(converted: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    weights = {w.name: w for w in model.graph.initializer}
    inputs = {i.name for i in model.graph.input}
    there = {w.name for w in converted.graph.initializer}
    kept = [i for i in converted.graph.input if i.name in inputs or i.name not in weights]
    del converted.graph.input[:]
    converted.graph.input.extend(kept)
    converted.graph.initializer.extend(w for name, w in weights.items() if name not in there)
    return converted


def _known_in_both(
    model: onnx.ModelProto, current: int, version: int
) -> Iterator[tuple[onnx.NodeProto, onnx.defs.OpSchema, onnx.defs.OpSchema]]:
    """The nodes of standard ops that both versions have, each with its schemas in the current one and in the other."""
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            schemas = [onnx.defs.get_schema(node.op_type, opset, "") for opset in (current, version)]
        except onnx.defs.SchemaError:
            continue
        yield node, schemas[0], schemas[1]


def _drop_new_defaults(model: onnx.ModelProto, current: int, version: int) -> None:
    """Attributes that an older schema lacks say nothing where they have their default."""
    for node, new_schema, old_schema in _known_in_both(model, current, version):
        new, old = new_schema.attributes, old_schema.attributes
        kept = [
            a
            for a in node.attribute
            if a.name in old
            or a.name not in new
            or onnx.helper.get_attribute_value(a) != onnx.helper.get_attribute_value(new[a.name].default_value)
        ]
        del node.attribute[:]
        node.attribute.extend(kept)


def _hide_what_is_alike(model: onnx.ModelProto, current: int, version: int) -> None:
    """Renames the domain of nodes that need no conversion and that the converter would stop at."""
    hidden = False
    for node, new, old in _known_in_both(model, current, version):
        if node.op_type not in _ALIKE or old.since_version == new.since_version:
            continue
        if node.op_type == "Split":
            _drop_even_count(node, model)
        attributes = {a.name for a in node.attribute}
        wraps = any(a.name == "mode" and a.s == b"wrap" for a in node.attribute)
        if len(node.input) <= old.max_input and attributes <= old.attributes.keys() and not wraps:
            node.domain, hidden = _HIDDEN, True
    if hidden:
        model.opset_import.add(domain=_HIDDEN, version=1)


def _drop_even_count(split: onnx.NodeProto, model: onnx.ModelProto) -> None:
    """Takes num_outputs from a Split into equal parts, which an older one makes of as many outputs by itself."""
    attributes = {a.name: a.i for a in split.attribute}
    values = (*model.graph.input, *model.graph.value_info)
    shape = next((v.type.tensor_type.shape.dim for v in values if v.name == split.input[0]), ())
    axis = attributes.get("axis", 0)
    if "num_outputs" not in attributes or not -len(shape) <= axis < len(shape):
        return
    size = shape[axis].dim_value
    if size and size % attributes["num_outputs"] == 0:
        kept = [a for a in split.attribute if a.name != "num_outputs"]
        del split.attribute[:]
        split.attribute.extend(kept)


def _show_again(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.domain == _HIDDEN:
            node.domain = ""
    kept = [opset for opset in model.opset_import if opset.domain != _HIDDEN]
    del model.opset_import[:]
    model.opset_import.extend(kept)

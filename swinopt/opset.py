"""Moving a model between opset versions, with the converter that the onnx package ships.

The converter sees the graph without its large weights: it would copy them, and it has no use for them.
"""

from __future__ import annotations

import onnx
from onnx import version_converter

from swinopt.errors import ModelError

#: The oldest opset that is converted; what is older spells half of its ops differently.
OLDEST = 7
_SMALL_BYTES = 1024


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
    try:
        converted = version_converter.convert_version(light, version)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"opset {current} cannot be converted to {version}: {reason}") from error
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


def _drop_new_defaults(model: onnx.ModelProto, current: int, version: int) -> None:
    """Attributes that an older schema lacks say nothing where they have their default."""
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            new = onnx.defs.get_schema(node.op_type, current, "").attributes
            old = onnx.defs.get_schema(node.op_type, version, "").attributes
        except onnx.defs.SchemaError:
            continue
        kept = [
            a
            for a in node.attribute
            if a.name in old
            or a.name not in new
            or onnx.helper.get_attribute_value(a) != onnx.helper.get_attribute_value(new[a.name].default_value)
        ]
        del node.attribute[:]
        node.attribute.extend(kept)

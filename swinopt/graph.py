"""Reading, writing and asking: how a model gets into a graph and out again, and the questions every pass asks of it.

The graph is a :class:`onnx_graphsurgeon.Graph`. Nothing here changes an edge of it; that is
:mod:`swinopt.rewrite`'s business alone.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import inliner

from swinopt import ops
from swinopt.errors import ModelError

#: All that swinopt accepts as a model: a path, serialised bytes, ``onnx.ModelProto``, ``gs.Graph``,
#: ``onnx_ir.Model`` or ``torch.onnx.ONNXProgram``.
ModelLike: TypeAlias = Any
Array: TypeAlias = npt.NDArray[Any]
Tensor: TypeAlias = gs.Variable | gs.Constant

#: A protobuf message cannot be serialised beyond 2 GiB; what is larger is saved with its weights beside it.
PROTOBUF_LIMIT = 2**31 - 2**20
_STANDARD_DOMAINS = ("", "ai.onnx", None)


# ---------------------------------------------------------------------------------------------------------- reading


def load_model(model: ModelLike) -> onnx.ModelProto:
    """The model as an ``onnx.ModelProto`` with all weights in memory.

    A ``ModelProto`` is returned as it is, not copied: do not change it.

    Raises:
        ModelError: the file is missing, empty, truncated or no ONNX model, its external data is missing, or the
            object is none that swinopt knows.
    """
    if isinstance(model, onnx.ModelProto):
        return _checked(_with_external_data(model, ""), "the model")
    if isinstance(model, gs.Graph):
        return to_model(model)
    if isinstance(model, (str, os.PathLike)):
        return _from_file(Path(model))
    if isinstance(model, (bytes, bytearray, memoryview)):
        return _checked(_parse(bytes(model), "the given bytes"), "the given bytes")
    proto = getattr(model, "model_proto", None)  # torch.onnx.ONNXProgram
    if isinstance(proto, onnx.ModelProto):
        return _checked(proto, "the exported program")
    if type(model).__module__.split(".")[0] == "onnx_ir":
        import onnx_ir

        return _checked(onnx_ir.to_proto(model), "the onnx_ir model")
    raise ModelError(
        f"cannot read a model from a {type(model).__name__}: give a path, bytes, onnx.ModelProto, "
        "onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram"
    )


def load(model: ModelLike) -> gs.Graph:
    """The model as a graph of its own: changing it leaves what was given untouched.

    Functions are inlined (those of the swinopt domain are dropped: the library carries their definition) and
    ``Constant`` nodes become constants.

    Raises:
        ModelError: as :func:`load_model`.
    """
    proto = load_model(model)
    if proto.functions:
        proto = _inlined(proto)
    try:
        graph = gs.import_onnx(proto)
    except Exception as error:
        raise ModelError(f"the model's graph cannot be read: {error}") from error
    graph.fingerprint = None
    _constants_out_of_nodes(graph)
    return graph


def _from_file(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if path.is_dir():
        raise ModelError(f"{path} is a folder; give the .onnx file in it")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise ModelError(f"{path} is empty")
    proto = _parse(data, str(path))
    del data
    return _checked(_with_external_data(proto, str(path.parent)), str(path))


def _parse(data: bytes, source: str) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:
        raise ModelError(f"{source} is not an ONNX model, or it is truncated ({len(data)} bytes)") from error
    return proto


def _checked(proto: onnx.ModelProto, source: str) -> onnx.ModelProto:
    # Protobuf parses many foreign files "successfully" into unknown fields, hence the look at what came out.
    if not proto.ir_version or not proto.opset_import or not proto.graph.output:
        raise ModelError(f"{source} is not an ONNX model: it has no IR version, opset or outputs")
    return proto


def _with_external_data(proto: onnx.ModelProto, folder: str) -> onnx.ModelProto:
    external = [t for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if not external:
        return proto
    if not folder:
        raise ModelError(
            f"the weights of {len(external)} tensors lie in another file; give the path of the model instead, "
            "or load them first with onnx.load_external_data_for_model"
        )
    try:
        onnx.load_external_data_for_model(proto, folder)
    except Exception as error:
        raise ModelError(f"external data of the model cannot be read from {folder}: {error}") from error
    return proto


def _inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    light = onnx.ModelProto()
    light.CopyFrom(proto)
    ops.strip_bodies(light)
    return inliner.inline_local_functions(light) if light.functions else light


def _constants_out_of_nodes(graph: gs.Graph) -> None:
    outputs = {id(t) for t in graph.outputs}
    for node in graph.nodes:
        if node.op != "Constant" or not is_standard(node) or id(node.outputs[0]) in outputs:
            continue
        value = _constant_of(node)
        if value is not None:
            tensor = node.outputs[0]
            tensor.inputs.clear()
            tensor.to_constant(value)
    graph.cleanup(remove_unused_node_outputs=False, remove_unused_graph_inputs=False)


def _constant_of(node: gs.Node) -> Array | None:
    (key, value), *_ = node.attrs.items()
    if key == "value" and isinstance(value, gs.Constant):
        return literal(value)
    dtype = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.array(value, dtype[key]) if key in dtype else None


# ---------------------------------------------------------------------------------------------------------- writing


def to_model(graph: gs.Graph, *, bodies: bool = True) -> onnx.ModelProto:
    """The graph as an ``onnx.ModelProto`` of its own.

    Args:
        graph: the graph; not changed.
        bodies: attach the function bodies of the swinopt ops in it, so that any ONNX runtime can run it.

    Raises:
        ModelError: the graph cannot be written as ONNX.
    """
    try:
        model = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:
        raise ModelError(f"the graph cannot be written as ONNX: {error}") from error
    model.producer_name = model.producer_name or "swinopt"
    ops.strip_bodies(model)
    if bodies:
        ops.attach_bodies(model)
    return model


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> Path:
    """Writes the model whole or not at all; above 2 GiB the weights go to ``<name>.data`` beside it.

    Raises:
        ModelError: the path cannot be written.
    """
    target = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            draft = Path(folder) / target.name
            if model.ByteSize() < PROTOBUF_LIMIT:
                draft.write_bytes(model.SerializeToString())
            else:
                copy = onnx.ModelProto()
                copy.CopyFrom(model)
                onnx.save_model(copy, draft, save_as_external_data=True, location=f"{target.name}.data")
                os.replace(f"{draft}.data", f"{target}.data")
            os.replace(draft, target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


# ----------------------------------------------------------------------------------------------------------- asking


def is_standard(node: gs.Node) -> bool:
    """Whether the node is of the standard ONNX domain."""
    return node.domain in _STANDARD_DOMAINS


def producer(tensor: Tensor) -> gs.Node | None:
    """The node that computes the tensor; None for a constant or a graph input."""
    return tensor.inputs[0] if tensor.inputs else None


def made_by(tensor: Tensor, *op_types: str) -> gs.Node | None:
    """The tensor's producer if it is a standard op of one of these types."""
    node = producer(tensor)
    return node if node is not None and node.op in op_types and is_standard(node) else None


def literal(tensor: Tensor | None) -> Array | None:
    """The value of a constant, in its own dtype; None for everything else, and for dtypes that NumPy lacks."""
    if not isinstance(tensor, gs.Constant) or not isinstance(tensor.dtype, (np.dtype, type)):
        return None
    return np.asarray(tensor.values)


def size_of(constant: gs.Constant) -> int:
    """Number of elements, without loading the value."""
    return int(np.prod(constant.shape, dtype=np.int64))


def scalar(tensor: Tensor | None) -> float | None:
    """The value of a constant with a single element."""
    if not isinstance(tensor, gs.Constant) or size_of(tensor) != 1:
        return None
    value = literal(tensor)
    return None if value is None else float(value.reshape(-1)[0])


def attr(node: gs.Node, name: str, opset: int) -> Any:
    """The node's attribute, or the default that its schema gives (exporters leave defaults out); None if neither."""
    if name in node.attrs:
        return node.attrs[name]
    with suppress(onnx.defs.SchemaError):
        default = onnx.defs.get_schema(node.op, opset, node.domain or "").attributes[name].default_value
        if default.type:
            value = onnx.helper.get_attribute_value(default)
            return value.decode() if isinstance(value, bytes) else value
    return None


def argument(node: gs.Node, index: int) -> Tensor | None:
    """The node's input at ``index``; None where an optional one is left out."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return None
    return node.inputs[index]  # type: ignore[no-any-return]


def subgraph_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes inside the bodies of If, Loop and Scan."""
    for inner in graph.subgraphs(recursive=True):
        yield from inner.nodes


def op_counts(graph: gs.Graph) -> Counter[str]:
    """How many nodes of each type the graph has; ops of other domains with the domain in front."""
    return Counter(node.op if is_standard(node) else f"{node.domain}::{node.op}" for node in graph.nodes)


def label(node: gs.Node) -> str:
    """What a report calls the node: its name, else its first output's."""
    return str(node.name or node.outputs[0].name)

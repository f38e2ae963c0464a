"""Reading, writing and asking: how a model gets into a graph and out again, and the questions every pass asks of it.

The graph is a :class:`onnx_graphsurgeon.Graph`. Once it is loaded nothing here changes an edge of it; that is
:mod:`swinopt.rewrite`'s business alone.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx import inliner
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter, dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from swinopt import handover, ops
from swinopt import opset as opsets
from swinopt.errors import ModelError

#: All that swinopt accepts as a model: a path, serialised bytes, ``onnx.ModelProto``, ``gs.Graph``,
#: ``onnx_ir.Model`` or ``torch.onnx.ONNXProgram``.
ModelLike: TypeAlias = Any
Array: TypeAlias = npt.NDArray[Any]
Tensor: TypeAlias = gs.Variable | gs.Constant

#: A protobuf message cannot be serialised beyond 2 GiB; what is larger is saved with its weights beside it.
PROTOBUF_LIMIT = 2**31 - 2**20
#: Models of this opset or newer are taken as they are, if they cannot be brought up to the one that is wanted.
OLDEST_OPSET = 13
# An axis of so many is taken for the channels of an image: one of 8 or more may be a feature map's width.
_MOST_CHANNELS = 4
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
        return _checked(_with_external_data(_parse(bytes(model), "the given bytes"), ""), "the given bytes")
    proto = getattr(model, "model_proto", None)  # torch.onnx.ONNXProgram
    if isinstance(proto, onnx.ModelProto):
        return _checked(_with_external_data(proto, ""), "the exported program")
    if type(model).__module__.split(".")[0] == "onnx_ir":
        import onnx_ir

        return _checked(_with_external_data(onnx_ir.to_proto(model), ""), "the onnx_ir model")
    raise ModelError(
        f"cannot read a model from a {type(model).__name__}: give a path, bytes, onnx.ModelProto, "
        "onnx_graphsurgeon.Graph, onnx_ir.Model or torch.onnx.ONNXProgram"
    )


def load(model: ModelLike, *, opset: int | None = None) -> gs.Graph:
    """The model as a graph of its own: changing it leaves what was given untouched.

    Functions are inlined (those of the swinopt domain are dropped: the library carries their definition), ``Constant``
    nodes become constants, and nodes come behind those that they read. Weights are shared with the model until they are
    changed.

    Args:
        model: the model.
        opset: the standard opset to bring the model up to; a newer one is kept.

    Raises:
        ModelError: as :func:`load_model`; or the model is of an opset below 13 that cannot be brought up.
    """
    proto = load_model(model)
    weights = {t.name: t for t in proto.graph.initializer}
    light = opsets.without_weights(proto)
    handover.unpack(light)
    if light.functions:
        light = _inlined(light)
    light = _raised(light, opset)
    try:
        graph = gs.import_onnx(light)
    except Exception as error:
        raise ModelError(f"the model's graph cannot be read: {error}") from error
    graph.metadata_props = list(proto.metadata_props)
    graph.model_identity = proto.doc_string, proto.domain, proto.model_version
    _weights_in(graph, weights)
    _constants_out_of_nodes(graph)
    # Converters to float16 append nodes that belong to the front.
    graph.nodes = in_topological_order(graph.nodes)
    return graph


def _raised(model: onnx.ModelProto, wanted: int | None) -> onnx.ModelProto:
    """The model in at least the wanted opset, or as close to it as the converter gets."""
    current = opsets.version_of(model)
    if wanted is None or current >= wanted:
        return model
    try:
        return opsets.convert(model, wanted)
    except ModelError:
        if current < OLDEST_OPSET:
            raise
        return model


def _weights_in(graph: gs.Graph, weights: dict[str, onnx.TensorProto]) -> None:
    """Puts the weights in the place of the inputs that stood for them."""
    for tensor in graph.inputs:
        if tensor.name in weights:
            tensor.to_constant(LazyValues(weights[tensor.name]))
    graph.inputs = [t for t in graph.inputs if isinstance(t, gs.Variable)]


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
    # Constant nodes and the bodies of If and Loop may have weights elsewhere, too.
    tensors = onnx.external_data_helper._get_all_tensors(proto)
    external = [t for t in tensors if onnx.external_data_helper.uses_external_data(t)]
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


def _inlined(light: onnx.ModelProto) -> onnx.ModelProto:
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
    graph.nodes = [node for node in graph.nodes if node.outputs]


def _constant_of(node: gs.Node) -> Array | None:
    if not node.attrs:
        return None
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
    # Not gs.export_onnx: it copies all weights twice.
    model = onnx.ModelProto()
    proto = model.graph
    proto.name, proto.doc_string = graph.name or "graph", graph.doc_string or ""
    domains = {o.domain: o.version for o in graph.import_domains or ()}
    domains = {**{str(n.domain): 1 for n in graph.nodes if n.domain}, **domains, "": graph.opset}
    model.opset_import.extend(onnx.helper.make_opsetid(*item) for item in domains.items())
    model.ir_version = max(graph.ir_version or 8, onnx.helper.find_min_ir_version_for(model.opset_import, True))
    model.producer_name, model.producer_version = graph.producer_name or "", graph.producer_version or ""
    model.metadata_props.extend(getattr(graph, "metadata_props", ()))
    model.doc_string, model.domain, model.model_version = getattr(graph, "model_identity", ("", "", 0))
    try:
        proto.input.extend(OnnxExporter.export_value_info_proto(t, do_type_check=False) for t in graph.inputs)
        proto.output.extend(OnnxExporter.export_value_info_proto(t, do_type_check=False) for t in graph.outputs)
        proto.node.extend(OnnxExporter.export_node(node) for node in graph.nodes)
        ends = {t.name for t in (*graph.inputs, *graph.outputs)}
        for tensor in _tensors(graph):
            if isinstance(tensor, gs.Constant):
                _export_constant(tensor, proto)
            elif tensor.dtype is not None and tensor.shape is not None and tensor.name not in ends:
                proto.value_info.append(OnnxExporter.export_value_info_proto(tensor, do_type_check=False))
    except Exception as error:
        raise ModelError(f"the graph cannot be written as ONNX: {error}") from error
    if bodies:
        ops.attach_bodies(model)
    return model


def _tensors(graph: gs.Graph) -> Iterator[Tensor]:
    """Every named tensor of the graph once; those inside of bodies belong to the bodies."""
    seen: set[str] = set()
    readers = [*graph.nodes, *subgraph_nodes(graph)]
    inside = {t.name for node in subgraph_nodes(graph) for t in node.outputs}
    inside |= {t.name for inner in graph.subgraphs(recursive=True) for t in inner.inputs}
    for tensor in (t for node in readers for t in (*node.inputs, *node.outputs)):
        if not tensor.is_empty() and tensor.name not in seen and tensor.name not in inside:
            seen.add(tensor.name)
            yield tensor
    yield from (t for t in graph.outputs if isinstance(t, gs.Constant) and t.name not in seen)


def _export_constant(tensor: gs.Constant, proto: onnx.GraphProto) -> None:
    if isinstance(tensor._values, SparseValues):
        proto.sparse_initializer.append(OnnxExporter.export_sparse_tensor_proto(tensor))
    elif isinstance(tensor._values, LazyValues):
        weight = proto.initializer.add()
        weight.CopyFrom(tensor._values.tensor)
        weight.name = tensor.name
    else:
        proto.initializer.append(OnnxExporter.export_tensor_proto(tensor))


def save(model: onnx.ModelProto, path: str | os.PathLike[str]) -> Path:
    """Writes the model whole or not at all; above 2 GiB the weights go to ``<name>.data`` beside it.

    Raises:
        ModelError: the path cannot be written.
    """
    target = Path(path)
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            draft = Path(folder) / target.name
            data = serialised(model)
            if data is not None and len(data) < PROTOBUF_LIMIT:
                draft.write_bytes(data)
            else:
                copy = onnx.ModelProto()
                copy.CopyFrom(model)
                onnx.save_model(copy, draft, save_as_external_data=True, location=f"{target.name}.data")
                # onnx writes the data for its owner alone.
                os.chmod(f"{draft}.data", stat.S_IMODE(draft.stat().st_mode))
                os.replace(f"{draft}.data", f"{target}.data")
            os.replace(draft, target)
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def serialised(model: onnx.ModelProto) -> bytes | None:
    """The model in one piece; None if protobuf refuses, which it does above 2 GiB."""
    try:
        return model.SerializeToString()
    except Exception:  # another one in every implementation of protobuf; asking for the size first raises as well
        return None


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
    """The value of a constant, in its own dtype; None for everything else.

    bfloat16 and the float8 types come as the extension types of the package ml_dtypes.
    """
    if not isinstance(tensor, gs.Constant):
        return None
    lazy = tensor._values
    if isinstance(lazy, LazyValues) and not isinstance(lazy, SparseValues):
        return onnx.numpy_helper.to_array(lazy.tensor)  # gs would convert dtypes that NumPy lacks to float32
    return np.asarray(tensor.values)


def spatial_axes(shape: Sequence[object]) -> tuple[int, ...]:
    """The axes of height and width, and of frames before them, of images or videos; none of what is neither.

    They are all but the first axis and that of the channels, which is the second as long as nothing speaks against it.
    What is open is no number of channels: then these are last, as in [N, H, W, 3] (more than a few only behind sizes
    that are all open), or follow the frames, as in [N, T, 3, H, W].
    """
    if len(shape) not in (4, 5):
        return ()
    channels = _channel_axis(shape)
    return tuple(axis for axis in range(1, len(shape)) if axis != channels)


def _channel_axis(shape: Sequence[object]) -> int:
    known = [size if isinstance(size, int) and size > 0 else None for size in shape]
    last, few = known[-1], range(1, _MOST_CHANNELS + 1)
    if known[1] is None:
        if last in few or (last is not None and not any(known[1:-1])):
            return len(shape) - 1
        if len(shape) == 5 and known[2] in few:
            return 2
    return 1


def size_of(constant: gs.Constant) -> int:
    """Number of elements, without loading the value."""
    return int(np.prod(constant.shape, dtype=np.int64))


def scalar(tensor: Tensor | None) -> float | None:
    """The value of a constant with a single element."""
    if not isinstance(tensor, gs.Constant) or size_of(tensor) != 1:
        return None
    value = literal(tensor)
    return None if value is None or value.dtype.kind in "cSUO" else float(value.reshape(-1)[0])


def dtype_of(constant: gs.Constant) -> np.dtype[Any]:
    """The constant's dtype, without loading the value; bfloat16 and the like as those of ml_dtypes."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(dtype_to_onnx(constant.dtype)))


def epsilon_of(dtype: Any) -> float:
    """The distance from 1 to the next larger number of a float dtype, bfloat16 included."""
    try:
        return float(np.finfo(dtype).eps)
    except ValueError:
        return 2.0**-7


def attr(node: gs.Node, name: str, opset: int) -> Any:
    """The node's attribute, or the default that its schema gives (exporters leave defaults out); None if neither."""
    if name in node.attrs:
        return node.attrs[name]
    with suppress(onnx.defs.SchemaError, KeyError):
        default = onnx.defs.get_schema(node.op, opset, node.domain or "").attributes[name].default_value
        if default.type:
            value = onnx.helper.get_attribute_value(default)
            return value.decode() if isinstance(value, bytes) else value
    return None


def argument(node: gs.Node, index: int) -> Tensor | None:
    """The node's input at ``index``; None where an optional one is left out."""
    if index >= len(node.inputs) or node.inputs[index].is_empty():
        return None
    return node.inputs[index]


def subgraph_nodes(graph: gs.Graph) -> Iterator[gs.Node]:
    """The nodes inside the bodies of If, Loop and Scan."""
    for inner in graph.subgraphs(recursive=True):
        yield from inner.nodes


def in_topological_order(nodes: Sequence[gs.Node]) -> list[gs.Node]:
    """The nodes with each after those that it reads, otherwise in the order in which they are."""
    order: dict[int, gs.Node] = {}
    inside = {id(node) for node in nodes}
    for first in nodes:
        pending = [first]
        entered: set[int] = set()
        while pending:
            node = pending[-1]
            needed = (
                [] if id(node) in entered else [n for n in _read_by(node) if id(n) in inside and id(n) not in order]
            )
            entered.add(id(node))
            if needed:
                pending += needed
            else:
                order.setdefault(id(node), node)
                pending.pop()
    return list(order.values())


def _read_by(node: gs.Node) -> list[gs.Node]:
    """The producers of what the node reads, in its bodies too."""
    bodies = [value for value in node.attrs.values() if isinstance(value, gs.Graph)]
    inner = [n for body in bodies for n in (*body.nodes, *subgraph_nodes(body))]
    return [n for reader in (node, *inner) for t in reader.inputs for n in t.inputs]


def op_counts(graph: gs.Graph | onnx.ModelProto) -> Counter[str]:
    """How many nodes of each type a graph, or a model's graph, has; ops of other domains with the domain in front."""
    if isinstance(graph, onnx.ModelProto):
        named = [(node.domain, node.op_type) for node in graph.graph.node]
    else:
        named = [(node.domain, node.op) for node in graph.nodes]
    return Counter(op if domain in _STANDARD_DOMAINS else f"{domain}::{op}" for domain, op in named)


def label(node: gs.Node) -> str:
    """What a report calls the node: its name, else its first output's."""
    return str(node.name or node.outputs[0].name)

"""From any model to what the TensorRT at hand parses: precision, plugins, opset."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

import onnx

from swinopt import handover, ops, opset, passes
from swinopt.errors import ModelError
from swinopt.graph import op_counts
from swinopt.passes.fuse_linear import MULTIPLE as FUSED_MULTIPLE
from swinopt.pipeline import Pipeline
from swinopt.precision import NARROW, convert, fits, weight_precisions
from swinopt.targets import TARGETS

#: What parsers that do not know Gelu read at most.
_OLD_OPSET = TARGETS["tensorrt-8.6"].newest_opset
#: How linears multiply float32: their attribute of that name.
_FLOAT32 = {"fp32": 1, "tf32": 2}


def for_parser(
    model: onnx.ModelProto,
    *,
    precision: str,
    by_graph: bool,
    plugins: bool,
    has_gelu: bool,
    linears: bool = True,
    spelled_out: Collection[str] = (),
    narrow_ends: bool = False,
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """The model as a parser takes it; a copy.

    Args:
        model: any model, optimized or not.
        precision: of the engine.
        by_graph: whether the graph decides the precision, and not flags of the builder.
        plugins: whether plugins run the swinopt ops; else they are spelled out in standard ones.
        has_gelu: whether the parser knows Gelu: one that does not stops at opset 17 as well.
        linears: whether there is a plugin for linears.
        spelled_out: the swinopt ops that are spelled out all the same, each by its first output.
        narrow_ends: where the graph decides the precision, whether inputs and outputs get it, too.

    Returns:
        The model, and the nodes that stay in float32 although less is asked for, with the reasons.

    Raises:
        ModelError: the weights are of another precision, or the model cannot be converted.
    """
    kept: Mapping[str, str] = {}
    if not has_gelu:
        # First of all: the converter knows no way back from some newer ops, and passes write what the opset has.
        model = _aged(model)
    if ops.uses(model):
        # A weight behind a Cast or an Identity is as constant as an initializer.
        model = Pipeline(passes.FoldConstants())(model)
        able = {ops.first_output(node) for node in ops.nodes(model)} if plugins else set()
        as_plugins = able - set(spelled_out) - _without_plugin(model, precision, by_graph, linears)
        if len(as_plugins) < ops.uses(model).total():
            model = _spelled_out(model, frozenset(as_plugins))
        # The models that swinopt has brought to maps; others keep the form that their authors gave them.
        model = Pipeline(passes.FlattenTokens())(model)
    if by_graph and precision in NARROW:
        converted = convert(model, precision)
        model, kept = converted.model, converted.kept
        if narrow_ends:
            model = _with_narrow_ends(model, NARROW[precision])
    else:
        _require_precision(model, precision)
    return handover.for_plugins(model), kept


def fuse_between_attentions(
    model: onnx.ModelProto, *, precision: str, by_graph: bool, has_gelu: bool
) -> onnx.ModelProto:
    """The model with a plugin's op for what lies between attentions: linears, norms, the merging of patches; a copy.

    The embedding of patches becomes a linear. Linears and norms are swinopt ops only where a plugin can compute them,
    and norms only beside a plugin: elsewhere TensorRT fuses them with what is around them. A residual addition goes to
    the linear before it, and where a norm stands between them to the norm.

    Args:
        model: one that swinopt has brought to maps.
        precision: as for :func:`for_parser`.
        by_graph: as for :func:`for_parser`.
        has_gelu: as for :func:`for_parser`.
    """
    model = Pipeline(
        passes.FoldConstants(),
        passes.FusePatchMerging(),
        passes.SimplifyPatchEmbedding(multiple=FUSED_MULTIPLE),
        passes.SimplifyMovement(),
        passes.FlattenTokens(),
        passes.FuseLinear(),
        passes.FuseNorm(),
    )(model if has_gelu else _aged(model))
    for node in ops.nodes(model):
        if node.op_type == ops.LINEAR.name and precision in _FLOAT32:
            others = [attribute for attribute in node.attribute if attribute.name != "float32"]
            del node.attribute[:]
            node.attribute.extend([*others, onnx.helper.make_attribute("float32", _FLOAT32[precision])])
    without = _without_plugin(model, precision, by_graph, True)
    if without:
        kept = _all_but(without, model)
        model = Pipeline(passes.SpellOutLinear(kept=kept), passes.SpellOutNorm(kept=kept))(model)
    lonely = _norms_beside_no_plugin(model)
    return Pipeline(passes.SpellOutNorm(kept=_all_but(lonely, model)))(model) if lonely else model


def _all_but(outputs: Collection[str], model: onnx.ModelProto) -> tuple[str, ...]:
    """The swinopt ops but for some, each by its first output."""
    return tuple(sorted({ops.first_output(node) for node in ops.nodes(model)} - set(outputs)))


def _norms_beside_no_plugin(model: onnx.ModelProto) -> set[str]:
    """The norms that neither read what another plugin makes nor are read by one, each by its output."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    read_by = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            read_by[name].append(node)

    def sources(name: str) -> Iterator[onnx.NodeProto]:
        if name in made_by:
            yield from sources(made_by[name].input[0]) if _is_reshape(made_by[name]) else [made_by[name]]

    def readers(name: str) -> Iterator[onnx.NodeProto]:
        for node in read_by[name]:
            yield from readers(node.output[0]) if _is_reshape(node) else [node]

    norms = {node.output[0]: node for node in ops.nodes(model) if node.op_type == ops.LAYER_NORM.name}
    beside = {
        name: {ops.first_output(n) for n in (*sources(norm.input[0]), *readers(name)) if n.domain == ops.DOMAIN}
        for name, norm in norms.items()
    }
    lonely = set(norms)
    while joined := {name for name in lonely if beside[name] - lonely}:
        lonely -= joined
    return lonely


def _is_reshape(node: onnx.NodeProto) -> bool:
    return node.op_type == "Reshape" and not node.domain


def _without_plugin(model: onnx.ModelProto, precision: str, by_graph: bool, linears: bool) -> set[str]:
    """The ops that no plugin can compute, each by its first output.

    Those with a computed tensor where kernels read ahead; all linears, or those that have to stay in float32 among
    others that do not; and those with numbers that the precision cannot hold, as well as such norms.
    """
    weights = {weight.name: weight for weight in model.graph.initializer}
    # Where the graph decides, one that has narrow weights is what its author wanted, float32 in between included.
    is_decided = by_graph and precision in weight_precisions(model)

    def has_none(node: onnx.NodeProto) -> bool:
        inputs = zip(ops.spec(node.op_type).inputs, node.input, strict=False)
        if any(declared.constant and name and name not in weights for declared, name in inputs):
            return True
        if node.op_type not in (ops.LINEAR.name, ops.LAYER_NORM.name):
            return False
        read = [weights[name] for name in node.input[1:3] if name in weights]
        is_linear = node.op_type == ops.LINEAR.name
        if is_linear and (not linears or (is_decided and any(map(_is_float32, read)))):
            return True
        if precision in NARROW:
            return not all(fits(weight, precision) for weight in read)
        return is_linear and not any(a.name == "float32" and a.i for a in node.attribute)

    return {ops.first_output(node) for node in ops.nodes(model) if has_none(node)}


def _is_float32(weight: onnx.TensorProto) -> bool:
    return bool(weight.data_type == onnx.TensorProto.FLOAT)


def _spelled_out(model: onnx.ModelProto, kept: frozenset[str]) -> onnx.ModelProto:
    names = tuple(sorted(kept))
    model = Pipeline(
        passes.SpellOutLinear(kept=names),
        passes.SpellOutNorm(kept=names),
        passes.FoldWindowPartition(kept=names),
        passes.FoldQueryScale(),
    )(model)
    if any(ops.first_output(node) not in kept for node in ops.nodes(model)):
        # What no pass can lower, on maps of open size, has its definition, with arithmetic on shapes that may be known.
        model = ops.inline_bodies(model, kept)
    return Pipeline(passes.FoldConstants(), passes.SimplifyMovement(), passes.EliminateNoops())(model)


def _with_narrow_ends(model: onnx.ModelProto, narrow: int) -> onnx.ModelProto:
    """The converted model without the Casts at its inputs and outputs; what is read in float32 there stays so."""
    graph = model.graph
    for value in graph.input:
        if all(_casts_to(node) == narrow for node in graph.node if value.name in node.input):
            value.type.tensor_type.elem_type = narrow
    for value in graph.output:
        made_by = next(node for node in graph.node if value.name in node.output)
        is_read = any(value.name in node.input for node in graph.node)
        if _casts_to(made_by) == onnx.TensorProto.FLOAT and not is_read:
            value.type.tensor_type.elem_type = narrow
            del made_by.attribute[:]
            made_by.attribute.append(onnx.helper.make_attribute("to", narrow))
    # Casts to the type that is there now.
    return Pipeline(passes.EliminateNoops())(model)


def _casts_to(node: onnx.NodeProto) -> int | None:
    is_cast = node.op_type == "Cast" and not node.domain
    return next((int(a.i) for a in node.attribute if a.name == "to"), None) if is_cast else None


def _require_precision(model: onnx.ModelProto, precision: str) -> None:
    other = weight_precisions(model) - {precision}
    if other:
        raise ModelError(
            f"the model has {' and '.join(sorted(other))} weights, and {precision} is asked for: build it with "
            f"{sorted(other)[0]}, or give the fp32 model"
        )


def _aged(model: onnx.ModelProto) -> onnx.ModelProto:
    if op_counts(model)["Gelu"]:
        model = passes.SpellOutGelu()(model)
    if _OLD_OPSET is not None and opset.version_of(model) > _OLD_OPSET:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        ops.strip_bodies(bare)
        model = opset.convert(bare, _OLD_OPSET)
    return model

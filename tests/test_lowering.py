"""What a parser is given: whatever the model was made for, it comes out as this TensorRT takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import handover, ops, opset
from swinopt.errors import ModelError
from swinopt.graph import op_counts
from swinopt.lowering import for_parser, fuse_between_attentions
from swinopt.testing import parse

#: As TensorRT 8.6 and as TensorRT 11.
OLD: dict[str, Any] = {"by_graph": False, "has_gelu": False}
NEW: dict[str, Any] = {"by_graph": True, "has_gelu": True}


def floats(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def model(batch: int | str = "N") -> onnx.ModelProto:
    """Opset 20, with Gelu, a ReduceMean whose axes are an input, and swinopt ops of all kinds."""
    return parse(
        f"""g (float[{batch}, 8, 8, 12] x) => (float[{batch}, 16] y) {{
            g = Gelu(x)  a = swinopt.WindowAttention
                <window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(g, bias)
            s, n = swinopt.AddLayerNorm(a, a, gamma, beta)  m = swinopt.PatchMerging(n, gamma4, beta4)
            y = ReduceMean<keepdims=0>(m, axes) }}""",
        bias=floats(2, 16, 16),
        gamma=floats(4),
        beta=floats(4),
        gamma4=floats(16),
        beta4=floats(16),
        axes=np.array([1, 2]),
    )


@pytest.mark.parametrize("plugins", [True, False])
def test_a_graph_for_new_parsers_is_brought_to_old_ones(plugins: bool) -> None:
    found, kept = for_parser(model(), precision="fp16", plugins=plugins, **OLD)

    assert opset.version_of(found) == 17 and not found.functions and not kept
    assert not op_counts(found)["Gelu"]
    assert {weight.data_type for weight in found.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert ops.uses(found).total() == (3 if plugins else 0)
    assert swinopt.compare(model(), found, tolerance=1e-5).passed


@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_without_plugins_standard_ops_are_left(batch: int | str, precision: str) -> None:
    found, _ = for_parser(model(batch), precision=precision, plugins=False, **NEW)

    assert {node.domain for node in found.graph.node} == {""}
    # Nothing asks for a shape that is known, and nothing is cast back and forth.
    assert not {"CastLike", "Shape", "Range", "NonZero"} & op_counts(found).keys()
    assert swinopt.compare(model(batch), found, tolerance=1e-2 if precision == "fp16" else 1e-5).passed


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("names", [["a"], ["s"], ["m"], ["a", "m"], ["s", "m"], ["a", "s", "m"]], ids=",".join)
def test_some_ops_are_spelled_out_and_the_others_stay(
    names: list[str], batch: int | str, versions: dict[str, Any]
) -> None:
    found, _ = for_parser(model(batch), precision="fp32", plugins=True, spelled_out=names, **versions)

    assert {ops.first_output(node) for node in ops.nodes(found)} == {"a", "s", "m"} - set(names)
    assert not found.functions and {node.domain for node in found.graph.node} <= {"", "swinopt"}
    assert ("Softmax" in op_counts(found)) == ("a" in names)
    assert not {"CastLike", "Shape", "Range", "NonZero"} & op_counts(found).keys()
    for node in ops.nodes(found):
        assert {"plugin_version", "plugin_namespace", handover.INPUTS_PRESENT} <= {a.name for a in node.attribute}
    assert swinopt.compare(model(batch), found, tolerance=1e-5).passed


@pytest.mark.parametrize("name", ["a", "b"])
def test_two_of_one_op_may_become_different_things(name: str) -> None:
    """On a map of open size, so that the one that is spelled out is spelled out by its definition."""
    attention = "swinopt.WindowAttention<window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>"
    both = parse(
        f"""g (float[N, 12, H, 8] x) => (float[N, H, 8, 4] a, float[N, H, 8, 4] b) {{
            t = Transpose<perm=[0,2,3,1]>(x)  a = {attention}(t, bias, "", pad)  b = {attention}(t, bias) }}""",
        bias=floats(2, 16, 16),
        pad=floats(12),
    )
    found, _ = for_parser(both, precision="fp32", plugins=True, spelled_out=[name], **NEW)
    (kept,) = ops.nodes(found)
    assert kept.output[0] == ("b" if name == "a" else "a")
    assert len(kept.input) == (2 if name == "a" else 3), "a stand-in for an absent input stayed"
    assert ops.STAND_IN not in {weight.name for weight in found.graph.initializer}
    assert swinopt.compare(both, found, inputs={"x": floats(2, 12, 8, 8)}, tolerance=1e-5).passed


def test_what_was_given_stays_as_it_was() -> None:
    given = model()
    before = given.SerializeToString()
    for options in (OLD, NEW):
        for plugins in (True, False):
            for_parser(given, precision="fp16", plugins=plugins, **options)
        for_parser(given, precision="fp16", plugins=True, spelled_out=["a", "m"], **options)
    assert given.SerializeToString() == before


def test_a_handed_over_graph_is_taken_again() -> None:
    handed = handover.for_plugins(model())
    for plugins in (True, False):
        found, _ = for_parser(handed, precision="fp32", plugins=plugins, **OLD)
        assert swinopt.compare(model(), found, tolerance=1e-5).passed


@pytest.mark.parametrize("precision", ["bf16", "tf32", "fp32"])
def test_weights_of_another_precision(precision: str) -> None:
    half = parse("g (float16[2] x) => (float16[2] y) { y = Mul(x, w) }", w=np.ones(2, np.float16))
    for options in (OLD, NEW):
        with pytest.raises(ModelError, match=f"fp16 weights, and {precision} is asked for: build it with fp16"):
            for_parser(half, precision=precision, plugins=True, **options)
        for_parser(half, precision="fp16", plugins=True, **options)


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("batch", [2, "N"])
def test_tokens_lie_as_rows_from_one_attention_to_the_next(batch: int | str, versions: dict[str, Any]) -> None:
    """A linear on a map [B, H, W, C] would be B*H products of W rows each."""
    block = parse(
        f"""g (float[{batch}, 8, 8, 4] x) => (float[{batch}, 8, 8, 4] y) {{
            q = MatMul(x, w)  a = swinopt.WindowAttention
                <window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(q, bias)
            p = MatMul(a, v)  y = Add(p, x) }}""",
        bias=floats(2, 16, 16),
        w=floats(4, 12),
        v=floats(4, 4),
    )
    found, _ = for_parser(block, precision="fp32", plugins=True, **versions)
    assert op_counts(found) == {"MatMul": 2, "Add": 1, "Reshape": 4, "swinopt::WindowAttention": 1}
    made_rows = {node.output[0] for node in found.graph.node if node.op_type == "Reshape"}
    assert all(node.input[0] in made_rows for node in found.graph.node if node.op_type == "MatMul")
    assert swinopt.compare(block, found, tolerance=1e-5).passed

    spelled, _ = for_parser(block, precision="fp32", plugins=True, spelled_out=["a"], **versions)
    linears = [node for node in spelled.graph.node if node.input[-1] in {w.name for w in spelled.graph.initializer}]
    made_rows = {node.output[0] for node in spelled.graph.node if node.op_type == "Reshape"}
    assert [node.input[0] in made_rows for node in linears if node.op_type == "MatMul"] == [True, True]

    found, _ = for_parser(block, precision="fp32", plugins=False, **versions)
    made_rows = {node.output[0] for node in found.graph.node if node.op_type == "Reshape"}
    weights = {weight.name for weight in found.graph.initializer}
    linears = [node for node in found.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    assert len(linears) == 2 and all(node.input[0] in made_rows for node in linears)
    assert swinopt.compare(block, found, tolerance=1e-5).passed

    plain = parse("g (float[2, 8, 8, 4] x) => (float[2, 8, 8, 4] y) { y = MatMul(x, w) }", w=floats(4, 4))
    assert op_counts(for_parser(plain, precision="fp32", plugins=True, **versions)[0]) == {"MatMul": 1}


def block_of_linears(dtype: Any = np.float32, large: float = 0.0) -> onnx.ModelProto:
    element = "float" if dtype == np.float32 else "float16"
    weights = {"w": floats(16, 48), "v": floats(16, 16), "u": floats(16, 64), "t": floats(64, 16), "b": floats(64)}
    weights["b"][0] += large
    return parse(
        f"""g ({element}[N, 8, 8, 16] x) => ({element}[N, 8, 8, 16] y) {{
            q = MatMul(x, w)  a = swinopt.WindowAttention
                <window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(q, bias)
            p = MatMul(a, v)  h = Add(p, x)  m = MatMul(h, u)  f = Add(m, b)  g = Gelu(f)  y = MatMul(g, t) }}""",
        bias=floats(2, 16, 16).astype(dtype),
        **{name: (0.25 * value).astype(dtype) for name, value in weights.items()},
    )


def linears_of(model: onnx.ModelProto, versions: dict[str, Any], precision: str = "fp16") -> onnx.ModelProto:
    return fuse_between_attentions(model, precision=precision, **versions)


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
def test_linears_become_plugins(versions: dict[str, Any]) -> None:
    linears = linears_of(block_of_linears(), versions)
    assert ops.uses(linears) == {"WindowAttention": 1, "Linear": 4}

    found, _ = for_parser(linears, precision="fp16", plugins=True, **versions)
    assert op_counts(found).keys() <= {"swinopt::WindowAttention", "swinopt::Linear", "Reshape", "Cast"}
    assert swinopt.compare(block_of_linears(), found, tolerance=1e-2 if versions["by_graph"] else 1e-5).passed

    attention = {"WindowAttention": 1}
    for precision, float32 in (("fp32", 1), ("tf32", 2)):
        found, _ = for_parser(
            linears_of(block_of_linears(), versions, precision), precision=precision, plugins=True, **versions
        )
        assert ops.uses(found) == {**attention, "Linear": 4}
        told = [a.i for n in ops.nodes(found) for a in n.attribute if n.op_type == "Linear" and a.name == "float32"]
        assert told == 4 * [float32]
        again = fuse_between_attentions(
            linears_of(block_of_linears(), versions, precision), precision=precision, **versions
        )
        assert [
            sum(a.name == "float32" for a in n.attribute) for n in ops.nodes(again) if n.op_type == "Linear"
        ] == 4 * [1]
        assert swinopt.compare(block_of_linears(), found).passed
    for options, left in (
        # What has not been told how to multiply in float32 has no kernel for it.
        ({"precision": "fp32", "plugins": True}, attention),
        ({"precision": "fp16", "plugins": True, "linears": False}, attention),
        ({"precision": "fp16", "plugins": False}, {}),
    ):
        found, _ = for_parser(linears, **options, **versions)
        assert ops.uses(found) == left
        assert swinopt.compare(block_of_linears(), found, tolerance=1e-2).passed


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("batch", [2, "N"])
def test_what_lies_before_and_between_stages_becomes_plugins(batch: int | str, versions: dict[str, Any]) -> None:
    """The embedding of patches, a norm behind merged patches, and all linears."""
    given = parse(
        f"""g (float[{batch}, 3, 32, 32] image) => (float[{batch}, 16, 32] y) {{
            e = Conv<kernel_shape=[4,4], strides=[4,4]>(image, k, c)  f = Reshape(e, rows)
            t = Transpose<perm=[0,2,1]>(f)  x = Reshape(t, map)  q = MatMul(x, w)
            a = swinopt.WindowAttention<window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(q, bias)
            p = MatMul(a, v)  h = Add(p, x)  s = Reshape(h, halves)  n = Transpose<perm=[0,1,3,2,4]>(s)
            m = Reshape(n, merged)  l = LayerNormalization<axis=-1>(m, gamma, beta)  y = MatMul(l, u) }}""",
        k=0.25 * floats(16, 3, 4, 4),
        c=floats(16),
        rows=np.array([0, 16, 64]),
        map=np.array([0, 8, 8, 16]),
        w=0.25 * floats(16, 48),
        bias=floats(2, 16, 16),
        v=0.25 * floats(16, 16),
        halves=np.array([-1, 4, 2, 4, 32]),
        merged=np.array([-1, 16, 64]),
        gamma=floats(64),
        beta=floats(64),
        u=0.25 * floats(64, 32),
    )
    found = linears_of(given, versions)
    assert ops.uses(found) == {"WindowAttention": 1, "Linear": 4, "PatchMerging": 1}
    assert not op_counts(found).keys() & {"Conv", "LayerNormalization", "MatMul", "Add"}
    assert op_counts(found)["Transpose"] == 1, "of the image, to patches"
    assert swinopt.compare(given, found, tolerance=1e-5).passed

    spelled, _ = for_parser(found, precision="fp16", plugins=False, **versions)
    assert not ops.uses(spelled)
    assert swinopt.compare(given, spelled, tolerance=1e-2 if versions["by_graph"] else 1e-5).passed


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
def test_a_linear_that_is_spelled_out_is_what_it_was(versions: dict[str, Any], dtype: Any) -> None:
    """Nothing more, or it would be measured against a handicap: no casts, no bias of zeros, GELU as it was."""
    given = block_of_linears(dtype)
    linears = linears_of(given, versions)
    spelled = [ops.first_output(node) for node in ops.nodes(linears) if node.op_type == "Linear"]
    found, _ = for_parser(linears, precision="fp16", plugins=True, spelled_out=spelled, **versions)
    plain, _ = for_parser(given, precision="fp16", plugins=True, **versions)
    assert op_counts(found) == op_counts(plain) and op_counts(found)["MatMul"] == 4
    assert swinopt.compare(given, found, tolerance=1e-2).passed

    found, _ = for_parser(linears, precision="fp16", plugins=True, spelled_out=spelled[1:], **versions)
    assert ops.uses(found) == {"WindowAttention": 1, "Linear": 1} and op_counts(found)["MatMul"] == 3
    assert swinopt.compare(given, found, tolerance=1e-2).passed


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
def test_a_linear_with_a_number_that_half_precision_cannot_hold_is_no_plugin(versions: dict[str, Any]) -> None:
    given = block_of_linears(large=4e5)
    linears = linears_of(given, versions)
    assert ops.uses(linears)["Linear"] == 3
    assert ops.uses(linears_of(given, versions, "bf16"))["Linear"] == 4
    # Of a model that somebody else fused as well.
    everywhere = linears_of(given, versions, "bf16")
    found, kept = for_parser(everywhere, precision="fp16", plugins=True, **versions)
    assert ops.uses(found)["Linear"] == 3
    assert any("holds 1e+05" in reason for reason in kept.values()) == versions["by_graph"]


def test_float32_in_a_model_of_half_precision_is_no_plugin_where_the_graph_decides() -> None:
    given = parse(
        """g (float16[N, 8, 8, 16] x) => (float16[N, 8, 8, 16] y) {
            q = MatMul(x, w)  a = swinopt.WindowAttention
                <window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(q, bias)
            f = Cast<to=1>(a)  p = MatMul(f, v)  y = Cast<to=10>(p) }""",
        bias=floats(2, 16, 16).astype(np.float16),
        w=floats(16, 48).astype(np.float16),
        v=floats(16, 16),
    )
    assert ops.uses(linears_of(given, NEW))["Linear"] == 1
    assert ops.uses(linears_of(given, OLD))["Linear"] == 2


def all_ops(batch: int | str = "N") -> onnx.ModelProto:
    """One node of each op, named by its first output."""
    return parse(
        f"""g (float[{batch}, 8, 8, 16] x) => (float[{batch}, 4, 4, 64] m) {{
            l = swinopt.Linear<float32=1>(x, w, b)
            a = swinopt.WindowAttention
                <window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(l, bias, logit_scale)
            n = swinopt.LayerNorm(a, gamma, beta)
            s, t = swinopt.AddLayerNorm(n, x, gamma2, beta2)
            m = swinopt.PatchMerging(t, gamma3, beta3) }}""",
        w=0.25 * floats(16, 48),
        b=floats(48),
        bias=floats(2, 16, 16),
        logit_scale=floats(2),
        gamma=floats(16),
        beta=1 + floats(16),
        gamma2=floats(16),
        beta2=1 + floats(16),
        gamma3=floats(64),
        beta3=1 + floats(64),
    )


#: What kernels may read early, by the node of :func:`all_ops` that reads it.
CONSTANTS = {"l": "w b", "a": "bias logit_scale", "n": "gamma beta", "s": "gamma2 beta2", "m": "gamma3 beta3"}


def with_computed(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The model with the negative of a new input, ``given``, in the place of a weight."""
    (weight,) = [weight for weight in model.graph.initializer if weight.name == name]
    model.graph.input.append(onnx.helper.make_tensor_value_info("given", weight.data_type, weight.dims))
    model.graph.node.insert(0, onnx.helper.make_node("Neg", ["given"], [name]))
    model.graph.initializer.remove(weight)
    return model


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize(("reader", "weight"), [(name, w) for name, read in CONSTANTS.items() for w in read.split()])
def test_what_reads_a_computed_weight_is_no_plugin(reader: str, weight: str, versions: dict[str, Any]) -> None:
    """Its kernel would read the weight while that may still be written."""
    given = with_computed(all_ops(), weight)
    for fused in (given, linears_of(given, versions, "fp32")):
        found, _ = for_parser(fused, precision="fp32", plugins=True, **versions)
        assert {ops.first_output(node) for node in ops.nodes(found)} == CONSTANTS.keys() - {reader}
        assert swinopt.compare(given, found, tolerance=1e-5).passed
    found, _ = for_parser(given, precision="fp16", plugins=True, **versions)
    assert reader not in {ops.first_output(node) for node in ops.nodes(found)}


def test_of_two_attentions_the_one_with_a_computed_bias_is_no_plugin() -> None:
    attention = "swinopt.WindowAttention<window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>"
    given = parse(
        f"""g (float[N, 8, 8, 12] x, float[2, 16, 16] given) => (float[N, 8, 8, 4] y) {{
            n = Neg(given)  a = {attention}(x, n)  b = {attention}(x, bias)  c = {attention}(x, given)
            s = Add(a, b)  y = Add(s, c) }}""",
        bias=floats(2, 16, 16),
    )
    found, _ = for_parser(given, precision="fp32", plugins=True, **NEW)
    assert [ops.first_output(node) for node in ops.nodes(found)] == ["b"] and op_counts(found)["Softmax"] == 2
    assert swinopt.compare(given, found, tolerance=1e-5).passed


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_weights_are_constant_however_they_are_written(precision: str, versions: dict[str, Any]) -> None:
    """And what kernels read no sooner than all else may be computed."""
    given = parse(
        """g (float[N, 6, 6, 24] x, float[24] given) => (float[N, 3, 3, 32] m) {
            c = Identity(bias)  p = Neg(given)  a = swinopt.WindowAttention
                <window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(x, c, "", p)
            w = Cast<to=1>(wide)  b = Constant<value_floats=[1., 2., 3., 4., 5., 6., 7., 8.]>()
            l = swinopt.Linear<float32=1>(a, w, b, a)  m = swinopt.PatchMerging(l, gamma, beta) }""",
        bias=floats(2, 16, 16),
        wide=floats(8, 8).astype(np.float64),
        gamma=floats(32),
        beta=floats(32),
    )
    for fused in (given, handover.for_plugins(given), linears_of(given, versions, precision)):
        found, _ = for_parser(fused, precision=precision, plugins=True, narrow_ends=True, **versions)
        assert ops.uses(found) == {"WindowAttention": 1, "Linear": 1, "PatchMerging": 1}


def block_of_norms(kind: str, dtype: Any = np.float32, large: float = 0.0, batch: int | str = "N") -> onnx.ModelProto:
    """The attention of a block with its norm, before it as in V1 or behind it as in V2, and a norm at the end."""
    element = "float" if dtype == np.float32 else "float16"
    norm = "LayerNormalization<axis=-1, epsilon=0.001>"
    before, behind = {
        "v1": (f"n = {norm}(x, gamma, beta)  q = MatMul(n, w)", "h = Add(p, x)"),
        "v2": ("q = MatMul(x, w)", f"n = {norm}(p, gamma, beta)  h = Add(x, n)"),
    }[kind]
    weights = {"bias": floats(2, 16, 16), "w": 0.25 * floats(16, 48), "v": 0.25 * floats(16, 16), "beta": floats(16)}
    weights |= {"gamma": 1 + floats(16), "gamma2": 2 + floats(16)}
    weights["gamma"][0] += large
    return parse(
        f"""g ({element}[{batch}, 8, 8, 16] image) => ({element}[{batch}, 8, 8, 16] y) {{
            i = MatMul(image, v)  x = Sigmoid(i)  {before}
            a = swinopt.WindowAttention<window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(q, bias)
            p = MatMul(a, v)  {behind}  y = {norm}(h, gamma2, beta) }}""",
        **{name: value.astype(dtype) for name, value in weights.items()},
    )


def norms_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in ops.nodes(model) if node.op_type == "LayerNorm"]


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("batch", [2, "N"])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_norms_become_plugins_where_linears_do(kind: str, batch: int | str, versions: dict[str, Any]) -> None:
    given = block_of_norms(kind, batch=batch)
    found, _ = for_parser(linears_of(given, versions), precision="fp16", plugins=True, **versions)
    assert ops.uses(found) == {"WindowAttention": 1, "Linear": 3, "LayerNorm": 2}
    assert not op_counts(found).keys() & {"LayerNormalization", "Add", "MatMul"}
    handed = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in norms_of(found)]
    residual = [1, 1, 1, int(kind == "v2")]
    assert [told[handover.INPUTS_PRESENT] for told in handed] == [residual, [1, 1, 1, 0]]
    assert all(told["epsilon"] == pytest.approx(1e-3) for told in handed)
    assert swinopt.compare(given, found, tolerance=1e-2 if versions["by_graph"] else 1e-5).passed
    # They read and write rows of tokens, as linears do.
    plain, _ = for_parser(given, precision="fp16", plugins=True, **versions)
    assert op_counts(found)["Reshape"] == op_counts(plain)["Reshape"]
    writers = {node.output[0]: node.op_type for node in found.graph.node}
    assert [writers[node.input[0]] for node in norms_of(found)][kind == "v1"] == "Linear"


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize(("columns", "linears", "norms"), [(8, 4, 3), (6, 3, 0)])
def test_a_norm_among_standard_ops_stays_with_them(
    columns: int, linears: int, norms: int, versions: dict[str, Any]
) -> None:
    """As a plugin it would be a wall in what TensorRT fuses; behind a norm that is a plugin it is not the first one."""
    given = parse(
        """g (float[2, 8, 8, 16] image) => (float[2, 8, 8, 16] y, float[2, 8, 8, 16] z) {
            q = MatMul(image, w)
            a = swinopt.WindowAttention<window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.7>(q, bias)
            p = MatMul(a, v)  r = Relu(p)  i = MatMul(r, v)  y = Sigmoid(i)
            k = MatMul(y, u)  t = Reshape(k, tokens)  m = LayerNormalization(t, gamma, beta)
            n = LayerNormalization(m, gamma, beta)  o = LayerNormalization(n, gamma, beta)  s = Exp(o)
            f = Reshape(s, map)  z = Tile(f, times) }""",
        bias=floats(2, 16, 16),
        w=0.25 * floats(16, 48),
        v=0.25 * floats(16, 16),
        u=0.25 * floats(16, columns),
        gamma=floats(columns),
        beta=floats(columns),
        tokens=np.array([2, 64, columns]),
        map=np.array([2, 8, 8, columns]),
        times=np.array([1, 1, 1, 16 // columns or 1]),
    )
    given.graph.output[1].type.tensor_type.shape.dim[3].dim_value = columns * (16 // columns)
    found = linears_of(given, versions)
    assert ops.uses(found)["Linear"] == linears and ops.uses(found)["LayerNorm"] == norms
    assert op_counts(found)["LayerNormalization"] == 3 - norms
    assert swinopt.compare(given, found, tolerance=1e-4).passed


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_there_is_a_plugin_for_norms_in_any_precision_and_without_a_cublaslt(precision: str) -> None:
    found, _ = for_parser(
        linears_of(block_of_norms("v2"), NEW), precision=precision, plugins=True, linears=False, **NEW
    )
    assert ops.uses(found) == {"WindowAttention": 1, "LayerNorm": 2}
    assert swinopt.compare(block_of_norms("v2"), found, tolerance=1e-2 if precision == "fp16" else 1e-5).passed


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_norm_that_is_spelled_out_is_what_it_was(kind: str, versions: dict[str, Any], dtype: Any) -> None:
    given = block_of_norms(kind, dtype)
    fused = linears_of(given, versions)
    spelled = [ops.first_output(node) for node in ops.nodes(fused) if node.op_type != "WindowAttention"]
    found, _ = for_parser(fused, precision="fp16", plugins=True, spelled_out=spelled, **versions)
    plain, _ = for_parser(given, precision="fp16", plugins=True, **versions)
    assert op_counts(found) == op_counts(plain) and op_counts(found)["LayerNormalization"] == 2
    assert swinopt.compare(given, found, tolerance=1e-2).passed

    first, second = (ops.first_output(node) for node in norms_of(fused))
    found, _ = for_parser(fused, precision="fp16", plugins=True, spelled_out=[second], **versions)
    assert [ops.first_output(node) for node in norms_of(found)] == [first]
    assert ops.uses(found)["Linear"] == 3 and op_counts(found)["LayerNormalization"] == 1
    assert swinopt.compare(given, found, tolerance=1e-2).passed


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_norm_with_a_number_that_half_precision_cannot_hold_is_no_plugin(kind: str, versions: dict[str, Any]) -> None:
    given = block_of_norms(kind, large=1e5)
    fused, everywhere = linears_of(given, versions), linears_of(given, versions, "bf16")
    # V2's last norm has no plugin beside it then.
    assert [len(norms_of(model)) for model in (fused, everywhere)] == [int(kind == "v1"), 2]
    assert op_counts(fused)["LayerNormalization"] == 2 - len(norms_of(fused))
    assert op_counts(fused)["Add"] == (kind == "v2")
    # Of a model that somebody else fused as well.
    for model, norms in ((fused, len(norms_of(fused))), (everywhere, 1)):
        found, kept = for_parser(model, precision="fp16", plugins=True, **versions)
        assert len(norms_of(found)) == norms
        assert any("holds 1e+05" in reason for reason in kept.values()) == versions["by_graph"]


@pytest.mark.parametrize("versions", [OLD, NEW], ids=["old parsers", "new parsers"])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_norm_with_a_computed_scale_stays_with_tensorrt(kind: str, versions: dict[str, Any]) -> None:
    given = with_computed(block_of_norms(kind), "gamma")
    fused = linears_of(given, versions)
    assert "gamma" not in {name for node in norms_of(fused) for name in node.input}
    assert "gamma" in {name for n in fused.graph.node if n.op_type == "LayerNormalization" for name in n.input}
    assert swinopt.compare(given, fused, tolerance=1e-5).passed

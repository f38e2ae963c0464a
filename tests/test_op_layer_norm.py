"""The ops with a LayerNorm in them: their definitions in standard ONNX, run by ONNX Runtime, against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from swinopt import ops
from swinopt.cuda_plugins.add_layer_norm.reference import add_layer_norm
from swinopt.cuda_plugins.layer_norm.reference import layer_norm
from swinopt.cuda_plugins.patch_merging.reference import patch_merging
from swinopt.errors import ModelError
from tests import graphs, ort

Array = npt.NDArray[Any]
RANKS = {"PatchMerging": (4, 1, 1), "AddLayerNorm": (3, 3, 1, 1), "LayerNorm": (3, 1, 1, 3)}


def model_of(
    op_type: str, inputs: int | None = None, *, opset: int = 17, elem_type: int = TensorProto.FLOAT, **attributes: Any
) -> onnx.ModelProto:
    """One node with so many inputs, or all; tensors go by the names of the specification, and sizes are dynamic."""
    spec, ranks = ops.SPECS[op_type], RANKS[op_type][:inputs]
    names, outputs = [i.name for i in spec.inputs[:inputs]], [o.name for o in spec.outputs]
    graph = helper.make_graph(
        [helper.make_node(op_type, names, outputs, domain=ops.DOMAIN, **attributes)],
        "one_node",
        [helper.make_tensor_value_info(n, elem_type, [None] * r) for n, r in zip(names, ranks, strict=True)],
        [helper.make_tensor_value_info(n, elem_type, [None] * ranks[0]) for n in outputs],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def session_of(model: onnx.ModelProto) -> Any:
    onnx.checker.check_model(model, full_check=True)
    return graphs.session_of(model)


def run(op_type: str, inputs: Sequence[Array], **settings: Any) -> list[Array]:
    model = model_of(op_type, len(inputs), **settings)
    ops.attach_bodies(model)
    feeds = {i.name: value for i, value in zip(ops.SPECS[op_type].inputs, inputs, strict=False)}
    outputs: list[Array] = session_of(model).run(None, feeds)
    return outputs


def merging_inputs(batch: int, size: tuple[int, int], channels: int = 3, dtype: Any = np.float32) -> list[Array]:
    random = np.random.default_rng(0)
    shapes = ((batch, *size, channels), (4 * channels,), (4 * channels,))
    return [random.normal(1, 1, shape).astype(dtype) for shape in shapes]


def adding_inputs(shape: tuple[int, ...] = (2, 5, 8), dtype: Any = np.float32) -> list[Array]:
    random = np.random.default_rng(0)
    return [random.normal(1, 1, size).astype(dtype) for size in (shape, shape, shape[-1:], shape[-1:])]


def norm_inputs(residual: bool, shape: tuple[int, ...] = (2, 5, 8), dtype: Any = np.float32) -> list[Array]:
    random = np.random.default_rng(0)
    shapes = [shape, shape[-1:], shape[-1:], *([shape] if residual else [])]
    return [random.normal(1, 1, size).astype(dtype) for size in shapes]


# ------------------------------------------------------------------------------------------------ body against truth


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (3, 5), (1, 1), (2, 1)], ids=str)
def test_patch_merging_computes_the_truth(size: tuple[int, int]) -> None:
    inputs = merging_inputs(2, size)
    (output,) = run("PatchMerging", inputs, epsilon=1e-3)
    np.testing.assert_allclose(output, patch_merging(*inputs, epsilon=1e-3), rtol=1e-5, atol=1e-5)


def test_add_layer_norm_computes_the_truth() -> None:
    inputs = adding_inputs()
    outputs = run("AddLayerNorm", inputs, epsilon=1e-3)
    for output, wanted in zip(outputs, add_layer_norm(*inputs, epsilon=1e-3), strict=True):
        np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 5, 8), (3, 1, 7)], ids=str)
@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm_computes_the_truth(residual: bool, shape: tuple[int, ...]) -> None:
    inputs = norm_inputs(residual, shape)
    (output,) = run("LayerNorm", inputs, epsilon=1e-3)
    np.testing.assert_allclose(output, layer_norm(*inputs, epsilon=1e-3), rtol=1e-5, atol=1e-5)


def test_a_residual_makes_a_difference() -> None:
    inputs = norm_inputs(True)
    assert np.abs(layer_norm(*inputs) - layer_norm(*inputs[:3])).max() > 0.1


@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm_alone_has_the_same_epsilon(residual: bool) -> None:
    inputs = norm_inputs(residual)
    inputs[0] = inputs[0] * 1e-3
    wanted = layer_norm(*inputs, epsilon=1e-5)
    assert np.abs(wanted - layer_norm(*inputs, epsilon=1e-6)).max() > 0.1
    np.testing.assert_allclose(run("LayerNorm", inputs)[0], wanted, rtol=1e-5, atol=1e-5)
    inlined = ops.inline_bodies(model_of("LayerNorm", len(inputs)))
    assert {node.domain for node in inlined.graph.node} == {""}
    assert ("Add" in {node.op_type for node in inlined.graph.node}) == residual


@ort.needs_overloads
def test_norms_with_and_without_a_residual_in_one_model_are_overloads() -> None:
    inputs = norm_inputs(True)
    model = both_norms()
    ops.attach_bodies(model)
    assert [f.overload for f in model.functions] == ["", "residual"] and model.ir_version == 10
    outputs = session_of(model).run(None, dict(zip(("x", "gamma", "beta", "residual"), inputs, strict=True)))
    for output, wanted in zip(outputs, (layer_norm(*inputs[:3]), layer_norm(*inputs)), strict=True):
        np.testing.assert_allclose(output, wanted, rtol=1e-5, atol=1e-5)


def test_a_runtime_that_knows_one_definition_for_a_name_refuses_norms_of_both_kinds() -> None:
    model = both_norms()
    ops.attach_bodies(model)
    # As ONNX Runtime before 1.27: the last definition of a name is the one.
    del model.functions[:-1]
    for proto in (*model.functions, *model.graph.node):
        proto.ClearField("overload")
    with pytest.raises(Exception, match=r"LayerNorm|Cast"):
        graphs.session_of(model)


def both_norms() -> onnx.ModelProto:
    model = model_of("LayerNorm")
    (node,) = model.graph.node
    model.graph.node.insert(0, helper.make_node("LayerNorm", node.input[:3], ["alone"], domain=ops.DOMAIN))
    model.graph.output.insert(0, helper.make_tensor_value_info("alone", TensorProto.FLOAT, [None] * 3))
    return model


def test_epsilon_is_a_hundred_thousandth_where_nothing_is_said() -> None:
    inputs = adding_inputs()
    inputs[0], inputs[1] = inputs[0] * 1e-3, inputs[1] * 1e-3
    wanted = add_layer_norm(*inputs, epsilon=1e-5)[1]
    assert np.abs(wanted - add_layer_norm(*inputs, epsilon=1e-6)[1]).max() > 0.1
    np.testing.assert_allclose(run("AddLayerNorm", inputs)[1], wanted, rtol=1e-5, atol=1e-5)
    inlined = ops.inline_bodies(model_of("AddLayerNorm"))
    assert {node.domain for node in inlined.graph.node} == {""}
    feeds = {i.name: value for i, value in zip(ops.SPECS["AddLayerNorm"].inputs, inputs, strict=True)}
    np.testing.assert_allclose(session_of(inlined).run(["normalized"], feeds)[0], wanted, rtol=1e-5, atol=1e-5)


def test_one_session_takes_any_batch_and_size() -> None:
    model = model_of("PatchMerging")
    ops.attach_bodies(model)
    session = session_of(model)
    for batch, size in [(1, (2, 2)), (3, (5, 4)), (2, (1, 7))]:
        inputs = merging_inputs(batch, size)
        (output,) = session.run(None, dict(zip(("x", "gamma", "beta"), inputs, strict=True)))
        np.testing.assert_allclose(output, patch_merging(*inputs), rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32() -> None:
    half: dict[str, Any] = {"elem_type": TensorProto.FLOAT16}
    merging = merging_inputs(2, (5, 4), dtype=np.float16)
    merging[0] *= 500  # squares of this overflow float16
    (output,) = run("PatchMerging", merging, **half)
    assert output.dtype == np.float16
    np.testing.assert_allclose(output, patch_merging(*merging), rtol=2**-10, atol=1e-5)
    adding = adding_inputs(dtype=np.float16)
    adding[0] *= 500
    total, normalized = run("AddLayerNorm", adding, **half)
    wanted = add_layer_norm(*adding)
    np.testing.assert_array_equal(total, wanted[0])
    np.testing.assert_allclose(normalized, wanted[1], rtol=2**-10, atol=1e-5)
    for residual in (False, True):
        norm = norm_inputs(residual, dtype=np.float16)
        norm[0] *= 500
        (output,) = run("LayerNorm", norm, **half)
        assert output.dtype == np.float16
        np.testing.assert_allclose(output, layer_norm(*norm), rtol=2**-10, atol=1e-5)


def test_the_sum_of_norm_and_residual_is_rounded_once() -> None:
    """1 + 2^-11 is no float16, and would be lost in between."""
    x, gamma = np.float16([[[-1, 1]]]), np.float16([2**-11, 2**-11])
    beta, residual = np.ones(2, np.float16), np.full((1, 1, 2), -1, np.float16)
    (output,) = run("LayerNorm", [x, gamma, beta, residual], elem_type=TensorProto.FLOAT16, epsilon=0.0)
    np.testing.assert_allclose(output, [[[-(2**-11), 2**-11]]], rtol=1e-3)


def test_the_norm_is_that_of_the_sum_before_it_is_rounded() -> None:
    probe = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> norm (float[1, 2] x) => (float[1, 2] y) <float[2] ones = {1, 1}> '
        "{ y = LayerNormalization <epsilon = 0.0> (x, ones) }"
    )
    if session_of(probe).run(None, {"x": np.float32([[2048.25, 2048.75]])})[0].tolist() != [[-1, 1]]:
        pytest.skip("this ONNX Runtime takes the variance as E[x^2] - E[x]^2, which loses all digits here")
    a, b = np.float16([[[2048, 2048]]]), np.float16([[[0.25, 0.75]]])
    ones, zeros = np.ones(2, np.float16), np.zeros(2, np.float16)
    total, normalized = run("AddLayerNorm", [a, b, ones, zeros], elem_type=TensorProto.FLOAT16, epsilon=0.0)
    assert total.tolist() == [[[2048, 2048]]] and normalized.tolist() == [[[-1, 1]]]


@pytest.mark.parametrize("op_type", RANKS)
def test_bfloat16(op_type: str) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    inputs = {
        "PatchMerging": merging_inputs(2, (5, 4)),
        "AddLayerNorm": adding_inputs(),
        "LayerNorm": norm_inputs(True),
    }[op_type]
    model = model_of(op_type)
    (node,) = model.graph.node
    into = [helper.make_node("Cast", [n], [f"{n}_16"], to=TensorProto.BFLOAT16) for n in node.input]
    back = [helper.make_node("Cast", [f"{n}_16"], [n], to=TensorProto.FLOAT) for n in node.output]
    node.input[:], node.output[:] = [f"{n}_16" for n in node.input], [f"{n}_16" for n in node.output]
    nodes = [*into, node, *back]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    ops.attach_bodies(model)
    feeds = {i.name: value for i, value in zip(ops.SPECS[op_type].inputs, inputs, strict=True)}
    rounded = [value.astype(bfloat16) for value in inputs]
    truth = {"PatchMerging": patch_merging, "AddLayerNorm": add_layer_norm, "LayerNorm": layer_norm}[op_type]
    wanted = truth(*rounded) if op_type == "AddLayerNorm" else [truth(*rounded)]
    for output, exact in zip(session_of(model).run(None, feeds), wanted, strict=True):
        np.testing.assert_allclose(output, exact.astype(np.float32), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18, 20, 21])
def test_the_body_is_of_the_opset_of_the_model(opset: int) -> None:
    inputs = merging_inputs(1, (3, 4))
    (output,) = run("PatchMerging", inputs, opset=opset)
    np.testing.assert_allclose(output, patch_merging(*inputs), rtol=1e-5, atol=1e-5)
    assert len(run("AddLayerNorm", adding_inputs(), opset=opset)) == 2
    assert len(run("LayerNorm", norm_inputs(True), opset=opset)) == 1


@pytest.mark.parametrize("op_type", RANKS)
def test_the_body_needs_opset_17(op_type: str) -> None:
    with pytest.raises(ModelError, match="opset 17"):
        ops.attach_bodies(model_of(op_type, opset=16))


def test_a_map_without_gamma_for_every_feature_does_not_run() -> None:
    x, gamma, beta = merging_inputs(1, (4, 4))
    with pytest.raises(Exception, match="LayerNormalization"):
        run("PatchMerging", [x, gamma[:6], beta])


# ------------------------------------------------------------------------------------------------------------ shapes


def test_shapes_of_patch_merging() -> None:
    def infer(*shapes: Any) -> list[tuple[Any, ...]]:
        return ops.infer_shapes("PatchMerging", shapes, {"plugin_version": "1"})

    assert infer((2, 6, 9, 8), (32,), (32,)) == [(2, 3, 5, 32)]
    assert infer(("B", "H", None, 8), (32,), (None,)) == [("B", None, None, 32)]
    assert infer((1, 1, 1, "C"), (32,), (32,)) == [(1, 1, 1, None)]


def test_shapes_of_add_layer_norm() -> None:
    def infer(*shapes: Any) -> list[tuple[Any, ...]]:
        return ops.infer_shapes("AddLayerNorm", shapes, {"epsilon": 1e-6})

    assert infer((2, 49, 8), (2, 49, 8), (8,), (8,)) == [(2, 49, 8)] * 2
    assert infer(("B", None, 8), (None, 49, None), (8,), (8,)) == [("B", 49, 8)] * 2
    assert infer((8,), (8,), (8,), (8,)) == [(8,)] * 2


def test_shapes_of_layer_norm() -> None:
    def infer(*shapes: Any) -> list[tuple[Any, ...]]:
        return ops.infer_shapes("LayerNorm", shapes, {"epsilon": 1e-6})

    assert infer((2, 49, 8), (8,), (8,)) == [(2, 49, 8)]
    assert infer((2, 49, 8), (8,), (8,), None) == [(2, 49, 8)]
    assert infer(("B", None, 8), (8,), (8,), (None, 49, None)) == [("B", 49, 8)]
    assert infer((8,), (8,), (8,), (8,)) == [(8,)]


@pytest.mark.parametrize(
    ("op_type", "shapes", "reason"),
    [
        ("PatchMerging", [(1, 16, 8), (32,), (32,)], r"x \(1, 16, 8\) must be \[B, H, W, C\]"),
        ("PatchMerging", [(1, 4, 4, 8), (8,), (32,)], r"gamma has shape \(8,\), but \(32,\)"),
        ("PatchMerging", [(1, 4, 4, 8), (32,), (1, 32)], "beta has shape"),
        ("PatchMerging", [(1, 4, 4, 8), (32,)], "beta missing"),
        ("AddLayerNorm", [(2, 4, 8), (1, 4, 8), (8,), (8,)], r"b has shape \(1, 4, 8\), but \(2, 4, 8\)"),
        ("AddLayerNorm", [(2, 4, 8), (4, 8), (8,), (8,)], r"b has shape \(4, 8\)"),
        ("AddLayerNorm", [(2, 4, 8), (2, 4, 8), (4,), (8,)], "gamma has shape"),
        ("AddLayerNorm", [(2, 4, 8), (2, 4, 8), (8,), (1,)], "beta has shape"),
        ("AddLayerNorm", [(), (), (), ()], "a single number"),
        ("LayerNorm", [(2, 4, 8), (4,), (8,)], r"gamma has shape \(4,\), but \(8,\)"),
        ("LayerNorm", [(2, 4, 8), (8,), (1,)], "beta has shape"),
        ("LayerNorm", [(2, 4, 8), (8,), (8,), (1, 4, 8)], r"residual has shape \(1, 4, 8\), but \(2, 4, 8\)"),
        ("LayerNorm", [(2, 4, 8), (8,), (8,), (4, 8)], r"residual has shape \(4, 8\)"),
        ("LayerNorm", [(2, 4, 8), (8,)], "beta missing"),
        ("LayerNorm", [(), (1,), (1,)], "a single number"),
        ("LayerNorm", [(2, 8), (8,), (8,), (2, 8), (2, 8)], "more than 4 inputs"),
    ],
)
def test_inconsistent_inputs_are_named(op_type: str, shapes: list[Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        ops.infer_shapes(op_type, shapes, {})

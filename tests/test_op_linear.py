"""Linear: its definition in standard ONNX, run by ONNX Runtime without optimizations, against the NumPy truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from swinopt import ops
from swinopt.errors import ModelError
from tests import graphs, ort
from tests.graphs import session_with_bodies

Array = npt.NDArray[Any]
NAMES = ("x", "weight", "bias", "residual")
K, N = 8, 16
#: What a node says, and whether it has a residual, by the name of the variant.
KINDS: dict[str, tuple[dict[str, int], bool]] = {
    "plain": ({}, False),
    "plain, and says so": ({"gelu": 0}, False),
    "gelu": ({"gelu": 1}, False),
    "residual": ({}, True),
}


def tensors(kind: str = "plain", shape: tuple[int, ...] = (2, 5, K), dtype: Any = np.float32) -> dict[str, Array]:
    random = np.random.default_rng(0)
    shapes = {"x": shape, "weight": (K, N), "bias": (N,)}
    if KINDS[kind][1]:
        shapes["residual"] = (*shape[:-1], N)
    return {name: random.standard_normal(shapes[name]).astype(dtype) for name in shapes}


def exact(x: Array, weight: Array, bias: Array, residual: Array | None = None, *, gelu: int = 0) -> Array:
    """The op in float64, not rounded."""
    result = x.astype(np.float64) @ weight.astype(np.float64) + bias.astype(np.float64)
    if gelu:
        result *= (1 + np.vectorize(math.erf)(result / math.sqrt(2))) / 2
    return result if residual is None else result + residual.astype(np.float64)


def truth(kind: str, inputs: dict[str, Array]) -> Array:
    return exact(**inputs, **KINDS[kind][0]).astype(inputs["x"].dtype)


def model_of(
    calls: Mapping[str, tuple[str, dict[str, Array]]], *, opset: int = 17, elem_type: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """One node per call, of a kind; all inputs are graph inputs with dynamic sizes, named by the prefix of the call."""
    nodes, inputs, outputs = [], [], []
    for prefix, (kind, values) in calls.items():
        names = [prefix + name for name in NAMES if name in values]
        nodes.append(helper.make_node("Linear", names, [f"{prefix}out"], domain=ops.DOMAIN, **KINDS[kind][0]))
        inputs += [helper.make_tensor_value_info(prefix + n, elem_type, [None] * v.ndim) for n, v in values.items()]
        outputs.append(helper.make_tensor_value_info(f"{prefix}out", elem_type, [None] * values["x"].ndim))
    graph = helper.make_graph(nodes, "calls", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(kind: str, inputs: dict[str, Array], **settings: Any) -> Array:
    output: Array = session_with_bodies(model_of({"": (kind, inputs)}, **settings)).run(None, inputs)[0]
    return output


# ------------------------------------------------------------------------------------------------ body against truth


@pytest.mark.parametrize("shape", [(5, K), (2, 5, K), (1, 2, 3, K)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_body_computes_the_truth(kind: str, shape: tuple[int, ...]) -> None:
    inputs = tensors(kind, shape)
    np.testing.assert_allclose(run(kind, inputs), truth(kind, inputs), rtol=1e-5, atol=1e-5)


def test_the_kinds_differ() -> None:
    plain, gelu, residual = (truth(kind, tensors(kind)) for kind in ("plain", "gelu", "residual"))
    assert min(np.abs(a - b).max() for a, b in [(plain, gelu), (plain, residual), (gelu, residual)]) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32_and_rounded_once(kind: str) -> None:
    inputs = tensors(kind, (2, 50, K), np.float16)
    output = run(kind, inputs, elem_type=TensorProto.FLOAT16)
    assert output.dtype == np.float16
    off = np.abs(output.astype(np.float64) - exact(**inputs, **KINDS[kind][0]))
    # Half a unit in the last place, and what float32 is off by.
    assert (off <= 0.5 * np.spacing(np.abs(output)).astype(np.float64) + 1e-5).all()


def test_a_sum_that_float16_cannot_hold_may_come_back() -> None:
    x, weight = np.full((1, 2), 200, np.float16), np.full((2, 1), 200, np.float16)
    bias, residual = np.full(1, -30000, np.float16), np.full((1, 1), -20000, np.float16)
    inputs = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    assert run("residual", inputs, elem_type=TensorProto.FLOAT16).tolist() == [[30000]]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind: str) -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    inputs = tensors(kind)
    model = model_of({"": (kind, inputs)})
    (node,) = model.graph.node
    into = [helper.make_node("Cast", [n], [f"{n}_16"], to=TensorProto.BFLOAT16) for n in node.input]
    back = helper.make_node("Cast", ["out_16"], ["out"], to=TensorProto.FLOAT)
    node.input[:], node.output[:] = [f"{n}_16" for n in node.input], ["out_16"]
    nodes = [*into, node, back]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (output,) = session_with_bodies(model).run(None, inputs)
    rounded = {name: value.astype(bfloat16) for name, value in inputs.items()}
    np.testing.assert_allclose(output, truth(kind, rounded).astype(np.float32), rtol=2**-7, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_session_takes_any_batch_and_size(kind: str) -> None:
    session = session_with_bodies(model_of({"": (kind, tensors(kind))}))
    for shape in [(1, 1, K), (3, 7, K), (2, 20, K)]:
        inputs = tensors(kind, shape)
        np.testing.assert_allclose(session.run(None, inputs)[0], truth(kind, inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("opset", [17, 18, 20, 21, 23])
@pytest.mark.parametrize("kind", KINDS)
def test_body_is_of_the_opset_of_the_model(kind: str, opset: int) -> None:
    ort.require_opset(opset)
    inputs = tensors(kind)
    np.testing.assert_allclose(run(kind, inputs, opset=opset), truth(kind, inputs), rtol=1e-5, atol=1e-5)


def test_body_needs_opset_17() -> None:
    with pytest.raises(ModelError, match="opset 17"):
        ops.attach_bodies(model_of({"": ("plain", tensors())}, opset=16))


@pytest.mark.parametrize("kind", KINDS)
def test_inlined_the_op_is_standard_ops_with_its_defaults(kind: str) -> None:
    inputs = tensors(kind)
    inlined = ops.inline_bodies(model_of({"": (kind, inputs)}))
    assert {node.domain for node in inlined.graph.node} == {""}
    assert ("Erf" in {node.op_type for node in inlined.graph.node}) == (kind == "gelu")
    output = graphs.session_of(inlined).run(None, inputs)[0]
    np.testing.assert_allclose(output, truth(kind, inputs), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- several nodes in a model


def calls_of(*kinds: str) -> dict[str, tuple[str, dict[str, Array]]]:
    return {f"{number}_": (kind, tensors(kind, (2, 5 + number, K))) for number, kind in enumerate(kinds)}


def feeds_of(calls: Mapping[str, tuple[str, dict[str, Array]]]) -> dict[str, Array]:
    return {prefix + name: value for prefix, (_, values) in calls.items() for name, value in values.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_of_one_kind_share_one_body(kind: str) -> None:
    calls = calls_of(kind, kind)
    model = model_of(calls)
    for output, (_, inputs) in zip(session_with_bodies(model).run(None, feeds_of(calls)), calls.values(), strict=True):
        np.testing.assert_allclose(output, truth(kind, inputs), rtol=1e-5, atol=1e-5)
    (function,) = model.functions
    assert not function.overload and list(function.input) == [name for name in NAMES if name in tensors(kind)]
    assert model.ir_version == 9


MIXTURES = [
    ("plain", "gelu"),
    ("gelu", "plain, and says so"),
    ("plain", "residual"),
    ("residual", "gelu"),
    ("plain", "gelu", "residual", "plain"),
]


@ort.needs_overloads
@pytest.mark.parametrize("kinds", MIXTURES, ids=" and ".join)
def test_nodes_of_several_kinds_in_one_model_are_overloads(kinds: tuple[str, ...]) -> None:
    calls = calls_of(*kinds)
    model = model_of(calls)
    outputs = session_with_bodies(model).run(None, feeds_of(calls))
    for output, (kind, inputs) in zip(outputs, calls.values(), strict=True):
        np.testing.assert_allclose(output, truth(kind, inputs), rtol=1e-5, atol=1e-5)
    assert {f.overload for f in model.functions} == {kind.partition("plain")[0] for kind in kinds}
    assert model.ir_version == 10


@pytest.mark.parametrize("kinds", MIXTURES, ids=" and ".join)
def test_a_runtime_that_knows_one_definition_for_a_name_computes_the_truth_or_nothing(kinds: tuple[str, ...]) -> None:
    calls = calls_of(*kinds)
    model = model_of(calls)
    ops.attach_bodies(model)
    # As ONNX Runtime before 1.27: the last definition of a name is the one.
    del model.functions[:-1]
    for proto in (*model.functions, *model.graph.node):
        proto.ClearField("overload")
    if "residual" in kinds:
        with pytest.raises(Exception, match=r"Linear|Cast"):
            graphs.session_of(model)
        return
    outputs = graphs.session_of(model).run(None, feeds_of(calls))
    for output, (kind, inputs) in zip(outputs, calls.values(), strict=True):
        np.testing.assert_allclose(output, truth(kind, inputs), rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ shapes


def test_shapes() -> None:
    def infer(*shapes: Any, **attributes: Any) -> list[tuple[Any, ...]]:
        return ops.infer_shapes("Linear", shapes, attributes)

    assert infer((49, 8), (8, 16), (16,)) == [(49, 16)]
    assert infer((2, 7, 7, 8), (8, 16), (16,), gelu=1, plugin_version="1") == [(2, 7, 7, 16)]
    assert infer((2, 49, 8), (8, 16), (16,), (2, 49, 16), gelu=0) == [(2, 49, 16)]
    assert infer((2, 49, 8), (8, 16), (16,), None, gelu=1, float32=2) == [(2, 49, 16)]
    assert infer(("B", None, 8), (8, 16), (16,)) == [("B", None, 16)]
    assert infer(("B", None, 8), (8, 16), (16,), (None, 49, 16)) == [("B", 49, 16)]
    assert infer((None, 49, None), (8, None), (16,), (2, None, None)) == [(2, 49, 16)]
    assert infer((2, None), (None, None), (None,), (None, 16)) == [(2, 16)]


@pytest.mark.parametrize(
    ("shapes", "attributes", "reason"),
    [
        ([(8,), (8, 16), (16,)], {}, r"x \(8,\) must be \[\.\.\., K\]"),
        ([(), (8, 16), (16,)], {}, r"x \(\) must be"),
        ([(2, 4), (8, 16), (16,)], {}, r"weight has shape \(8, 16\), but \(4, None\)"),
        ([(2, 8), (8,), (16,)], {}, "weight has shape"),
        ([(2, 8), (1, 8, 16), (16,)], {}, "weight has shape"),
        ([(2, 8), (8, 16), (8,)], {}, r"bias has shape \(8,\), but \(16,\)"),
        ([(2, 8), (8, 16), (1, 16)], {}, "bias has shape"),
        ([(2, 8), (8, 16), (16,), (2, 8)], {}, r"residual has shape \(2, 8\), but \(2, 16\)"),
        ([(2, 8), (8, 16), (16,), (1, 16)], {}, "residual has shape"),
        ([(2, 5, 8), (8, 16), (16,), (5, 16)], {}, "residual has shape"),
        ([(2, 8), (8, 16), (16,), (2, 16)], {"gelu": 1}, "a node with gelu has no residual"),
        ([(2, 8), (8, 16), (16,)], {"gelu": 2}, "gelu is 2, and must be 0 or 1"),
        ([(2, 8), (8, 16), (16,)], {"float32": 3}, "float32 is 3, and must be 0, 1 or 2"),
        ([(2, 8), (8, 16), (16,)], {"relu": 1}, "unknown attributes relu"),
        ([(2, 8), (8, 16)], {}, "bias missing"),
        ([(2, 8), (8, 16), (16,), (2, 16), (1,)], {}, "more than 4 inputs"),
    ],
)
def test_inconsistent_inputs_are_named(shapes: list[Any], attributes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        ops.infer_shapes("Linear", shapes, attributes)


def test_a_node_with_gelu_and_residual_has_no_definition() -> None:
    model = model_of({"": ("residual", tensors("residual"))})
    model.graph.node[0].attribute.append(helper.make_attribute("gelu", 1))
    with pytest.raises(ModelError, match="a node with gelu has no residual"):
        ops.attach_bodies(model)

"""The definitions in standard ONNX, run by ONNX Runtime without optimizations, against the NumPy truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from swinopt import ops
from swinopt.cuda_plugins.window_attention.reference import window_attention
from swinopt.errors import ModelError
from tests import ort
from tests.graphs import session_with_bodies

Array = npt.NDArray[Any]
HEADS, HEAD_DIM = 2, 4
CHANNELS = HEADS * HEAD_DIM


def attributes(window: Sequence[int], shift: Sequence[int], **changed: Any) -> dict[str, Any]:
    return {"window_size": list(window), "shift_size": list(shift), "num_heads": HEADS, "scale": 0.5, **changed}


def tensors(
    size: Sequence[int], window: Sequence[int], *, batch: int = 1, cosine: bool = False, padded: bool = False
) -> dict[str, Array]:
    """Random inputs of one node; the scores are large enough for the softmax to be far from uniform."""
    random = np.random.default_rng(0)
    n = int(np.prod(window))
    inputs = {
        "qkv": 2 * random.standard_normal((batch, *size, 3 * CHANNELS)),
        "relative_position_bias": random.standard_normal((HEADS, n, n)),
    }
    if cosine:
        inputs["logit_scale"] = random.uniform(1, 20, HEADS)
    if padded:
        inputs["pad_qkv"] = 2 * random.standard_normal(3 * CHANNELS)
    return {name: value.astype(np.float32) for name, value in inputs.items()}


def truth(inputs: dict[str, Array], attrs: dict[str, Any]) -> Array:
    arguments: dict[str, Any] = {**inputs, **attrs}
    return window_attention(**arguments)


def node(prefix: str, inputs: dict[str, Array], attrs: dict[str, Any]) -> onnx.NodeProto:
    names = [prefix + name if name in inputs else "" for name in (i.name for i in ops.SPECS["WindowAttention"].inputs)]
    return helper.make_node("WindowAttention", names, [prefix + "out"], domain=ops.DOMAIN, **attrs)


def model_of(
    calls: dict[str, tuple[dict[str, Array], dict[str, Any]]], *, opset: int = 17, elem_type: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """One node per call; all inputs are graph inputs with dynamic sizes, named by the prefix of the call."""
    inputs = [
        helper.make_tensor_value_info(prefix + name, elem_type, [None] * value.ndim)
        for prefix, (values, _) in calls.items()
        for name, value in values.items()
    ]
    outputs = [
        helper.make_tensor_value_info(prefix + "out", elem_type, [None] * values["qkv"].ndim)
        for prefix, (values, _) in calls.items()
    ]
    nodes = [node(prefix, values, attrs) for prefix, (values, attrs) in calls.items()]
    graph = helper.make_graph(nodes, "calls", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(calls: dict[str, tuple[dict[str, Array], dict[str, Any]]], **settings: Any) -> list[Array]:
    feeds = {prefix + name: v for prefix, (values, _) in calls.items() for name, v in values.items()}
    outputs: list[Array] = session_with_bodies(model_of(calls, **settings)).run(None, feeds)
    return outputs


# ------------------------------------------------------------------------------------------------ body against truth

GEOMETRIES = [
    pytest.param((6, 6), (3, 3), (0, 0), id="no-shift"),
    pytest.param((6, 6), (3, 3), (1, 1), id="shift"),
    pytest.param((8, 6), (4, 3), (2, 0), id="shift-on-one-axis"),
    pytest.param((4, 9), (2, 3), (1, 2), id="window-not-square"),
    pytest.param((4, 4), (4, 4), (2, 2), id="one-window"),
    pytest.param((6,), (3,), (1,), id="one-axis"),
    pytest.param((4, 4, 6), (2, 4, 3), (1, 0, 1), id="video"),
]
PADDED_GEOMETRIES = [
    pytest.param((5, 7), (3, 3), (0, 0), id="no-shift"),
    pytest.param((5, 7), (3, 3), (1, 1), id="shift"),
    pytest.param((7, 6), (4, 3), (2, 1), id="pad-one-axis"),
    pytest.param((2, 3), (4, 4), (3, 1), id="map-smaller-than-window"),
    pytest.param((6, 6), (3, 3), (1, 2), id="nothing-to-pad"),
    pytest.param((3, 5, 4), (2, 3, 3), (1, 1, 2), id="video"),
]


@pytest.mark.parametrize("cosine", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize(("size", "window", "shift"), GEOMETRIES)
def test_body_computes_the_truth(
    size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], cosine: bool
) -> None:
    inputs, attrs = tensors(size, window, batch=2, cosine=cosine), attributes(window, shift)
    (output,) = run({"": (inputs, attrs)})
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("roll_first", [0, 1], ids=["pad-then-roll", "roll-then-pad"])
@pytest.mark.parametrize("cosine", [False, True], ids=["v1", "v2"])
@pytest.mark.parametrize(("size", "window", "shift"), PADDED_GEOMETRIES)
def test_body_computes_the_truth_with_padding(
    size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...], cosine: bool, roll_first: int
) -> None:
    inputs = tensors(size, window, batch=2, cosine=cosine, padded=True)
    attrs = attributes(window, shift, roll_first=roll_first)
    (output,) = run({"": (inputs, attrs)})
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def test_the_two_orders_of_roll_and_pad_differ_where_something_is_padded() -> None:
    inputs = tensors((5, 7), (3, 3), padded=True)
    pad_first, roll_first = (truth(inputs, attributes((3, 3), (1, 1), roll_first=order)) for order in (0, 1))
    assert np.abs(pad_first - roll_first).max() > 0.1


@pytest.mark.parametrize("mask_value", [0.0, -1.5, -200.0])
def test_mask_value_is_added_to_the_scores(mask_value: float) -> None:
    inputs, attrs = tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1), mask_value=mask_value)
    (output,) = run({"": (inputs, attrs)})
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def test_zero_vectors_have_cosine_zero() -> None:
    inputs, attrs = tensors((6, 6), (3, 3), cosine=True), attributes((3, 3), (1, 1))
    inputs["qkv"][:, :2] = 0
    (output,) = run({"": (inputs, attrs)})
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_one_session_takes_any_batch_and_size(padded: bool) -> None:
    attrs = attributes((3, 2), (1, 1))
    session = session_with_bodies(model_of({"": (tensors((3, 2), (3, 2), padded=padded), attrs)}))
    sizes = [(1, (3, 2)), (3, (9, 4)), (2, (6, 12)), *([(2, (4, 5)), (1, (1, 1))] if padded else [])]
    for batch, size in sizes:
        inputs = tensors(size, (3, 2), batch=batch, padded=padded)
        np.testing.assert_allclose(session.run(None, inputs)[0], truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def test_without_pad_qkv_a_size_that_does_not_fit_is_an_error() -> None:
    attrs = attributes((3, 3), (1, 1))
    session = session_with_bodies(model_of({"": (tensors((6, 6), (3, 3)), attrs)}))
    for size in [(7, 6), (6, 5), (5, 7), (2, 2)]:
        with pytest.raises(Exception, match="Reshape"):
            session.run(None, tensors(size, (3, 3)))


@pytest.mark.parametrize("cosine", [False, True], ids=["v1", "v2"])
def test_half_precision_is_computed_in_float32(cosine: bool) -> None:
    inputs = tensors((5, 6), (3, 3), cosine=cosine, padded=True)
    inputs = {name: value.astype(np.float16) for name, value in inputs.items()}
    inputs["qkv"] *= 20 if cosine else 1  # squares of this overflow float16
    attrs = attributes((3, 3), (1, 1))
    (output,) = run({"": (inputs, attrs)}, elem_type=TensorProto.FLOAT16)
    assert output.dtype == np.float16
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=2**-10, atol=1e-6)  # one unit in the last place


def test_bfloat16() -> None:
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    inputs, attrs = tensors((5, 6), (3, 3), padded=True), attributes((3, 3), (1, 1))
    model = model_of({"": (inputs, attrs)})
    call = model.graph.node[0]
    casts = [helper.make_node("Cast", [name], [f"{name}_16"], to=TensorProto.BFLOAT16) for name in inputs]
    back = helper.make_node("Cast", ["out_16"], ["out"], to=TensorProto.FLOAT)
    call.input[:] = [f"{name}_16" if name else "" for name in call.input]
    call.output[:] = ["out_16"]
    nodes = [*casts, call, back]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (output,) = session_with_bodies(model).run(None, inputs)
    rounded = {name: value.astype(bfloat16) for name, value in inputs.items()}
    np.testing.assert_allclose(output, truth(rounded, attrs).astype(np.float32), rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("opset", [17, 18, 20, 21, 23])
def test_body_is_of_the_opset_of_the_model(opset: int) -> None:
    ort.require_opset(opset)
    inputs, attrs = tensors((5, 6), (3, 3), cosine=True, padded=True), attributes((3, 3), (1, 1))
    (output,) = run({"": (inputs, attrs)}, opset=opset)
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def test_body_needs_opset_17() -> None:
    with pytest.raises(ModelError, match="opset 17"):
        ops.function_body(cosine=False, padded=False, opset=16)


# ------------------------------------------------------------------------------------------- several nodes in a model


def test_one_body_serves_nodes_of_any_size_shift_and_rank() -> None:
    calls = {
        "image_": (tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1))),
        "wide_": (tensors((4, 8), (2, 4)), attributes((2, 4), (0, 2), mask_value=-1.0)),
        "video_": (tensors((2, 4, 4), (2, 2, 4)), attributes((2, 2, 4), (1, 0, 2))),
    }
    model = model_of(calls)
    for output, (inputs, attrs) in zip(run(calls), calls.values(), strict=True):
        np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)
    ops.attach_bodies(model)
    assert [function.overload for function in model.functions] == [""]
    assert model.ir_version == 9


def test_nodes_with_and_without_pad_share_one_body() -> None:
    calls = {
        "fits_": (tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1))),
        "padded_": (tensors((5, 7), (3, 3), padded=True), attributes((3, 3), (1, 1))),
    }
    model = model_of(calls)
    session = session_with_bodies(model)
    assert [function.overload for function in model.functions] == [""]
    feeds = {prefix + name: v for prefix, (values, _) in calls.items() for name, v in values.items()}
    for output, (inputs, attrs) in zip(session.run(None, feeds), calls.values(), strict=True):
        np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)
    # A size that the node without pad_qkv was not made for must not give plausible numbers.
    misfit = feeds | {"fits_qkv": tensors((5, 6), (3, 3))["qkv"]}
    assert np.isnan(session.run(["fits_out"], misfit)[0]).any()


@ort.needs_overloads
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("v1_first", [False, True])
def test_v1_and_v2_in_one_model_are_overloads(padded: bool, v1_first: bool) -> None:
    size = (5, 6) if padded else (6, 6)
    calls = {
        str(cosine): (tensors(size, (3, 3), cosine=cosine, padded=padded), attributes((3, 3), (1, 1)))
        for cosine in ([False, True] if v1_first else [True, False])
    }
    for output, (inputs, attrs) in zip(run(calls), calls.values(), strict=True):
        np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)
    model = model_of(calls)
    ops.attach_bodies(model)
    assert len({function.overload for function in model.functions}) == 2
    assert model.functions[-1].overload.startswith("scaled_cosine")
    assert model.ir_version == 10


# ------------------------------------------------------------------------------------------------- attach and strip


def mixed_model() -> onnx.ModelProto:
    return model_of(
        {
            "a_": (tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1))),
            "b_": (tensors((5, 7), (3, 3), padded=True), attributes((3, 3), (0, 0))),
            "c_": (tensors((6, 6), (3, 3), cosine=True), attributes((3, 3), (1, 0))),
        }
    )


def test_attaching_twice_is_attaching_once() -> None:
    once = mixed_model()
    ops.attach_bodies(once)
    twice = onnx.ModelProto()
    twice.CopyFrom(once)
    ops.attach_bodies(twice)
    assert twice.SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_strip_undoes_attach() -> None:
    model = mixed_model()
    ops.strip_bodies(model)
    before = model.graph.SerializeToString(deterministic=True)
    ops.attach_bodies(model)
    assert model.functions and model.graph.initializer
    ops.strip_bodies(model)
    assert model.graph.SerializeToString(deterministic=True) == before
    assert not model.functions


def test_strip_leaves_other_functions_and_initializers() -> None:
    model = mixed_model()
    other = helper.make_function(
        "elsewhere", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", 17)]
    )
    model.functions.append(other)
    model.graph.initializer.append(helper.make_tensor("weight", TensorProto.FLOAT, [1], [1.0]))
    ops.attach_bodies(model)
    ops.strip_bodies(model)
    assert [function.name for function in model.functions] == ["Twice"]
    assert [tensor.name for tensor in model.graph.initializer] == ["weight"]


def test_a_model_without_swinopt_ops_is_left_alone() -> None:
    graph = helper.make_graph([], "empty", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=6)
    before = model.SerializeToString()
    ops.attach_bodies(model)
    assert model.SerializeToString() == before


def test_a_later_ir_version_stays_and_the_domain_is_imported_once() -> None:
    model = mixed_model()
    model.ir_version = 11
    ops.attach_bodies(model)
    ops.attach_bodies(model)
    assert model.ir_version == 11
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17), ("swinopt", 1)]


def test_nodes_may_name_their_plugin_and_end_in_empty_inputs() -> None:
    inputs = tensors((6, 6), (3, 3))
    attrs = attributes((3, 3), (1, 1))
    model = model_of({"": (inputs, attrs | {"plugin_version": "1", "plugin_namespace": "swinopt"})})
    assert model.graph.node[0].input[-1] == ""
    (output,) = session_with_bodies(model).run(None, inputs)
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def test_inlined_the_op_is_standard_ops_with_its_defaults() -> None:
    inputs, attrs = tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1))
    inlined = ops.inline_bodies(model_of({"": (inputs, attrs)}))
    assert {n.domain for n in inlined.graph.node} == {""} and not inlined.functions
    assert [o.domain for o in inlined.opset_import] == [""]
    (output,) = session_with_bodies(inlined).run(None, inputs)
    np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def test_nodes_that_are_kept_stay_ops_beside_inlined_ones() -> None:
    calls = {
        "a_": (tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1))),
        "b_": (tensors((5, 7), (3, 3), padded=True), attributes((3, 3), (0, 0))),
    }
    feeds = {prefix + name: value for prefix, (values, _) in calls.items() for name, value in values.items()}
    for kept in ("a_out", "b_out"):
        model = model_of(calls)
        ops.attach_bodies(model)
        inlined = ops.inline_bodies(model, [kept])
        assert [node.output[0] for node in ops.nodes(inlined)] == [kept]
        assert {n.domain for n in inlined.graph.node} == {"", ops.DOMAIN} and not inlined.functions
        assert {(o.domain, o.version) for o in inlined.opset_import} == {("", 17), (ops.DOMAIN, ops.VERSION)}
        for output, (inputs, attrs) in zip(session_with_bodies(inlined).run(None, feeds), calls.values(), strict=True):
            np.testing.assert_allclose(output, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def with_subgraph() -> onnx.ModelProto:
    """A node without pad_qkv in a branch, beside one with it in the main graph."""
    model = model_of({"padded_": (tensors((5, 7), (3, 3), padded=True), attributes((3, 3), (0, 0)))})
    chosen = helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [None] * 4)
    fits = node("", tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1)))
    fits.output[0] = "chosen"
    branch = helper.make_graph([fits], "branch", [], [chosen])
    model.graph.node.append(helper.make_node("If", ["yes"], ["chosen"], then_branch=branch, else_branch=branch))
    model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    for name, rank in (("qkv", 4), ("relative_position_bias", 3)):
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank))
    model.graph.output.append(chosen)
    return model


def test_uses_counts_nodes_in_subgraphs_too() -> None:
    assert ops.uses(mixed_model()) == {"WindowAttention": 3}
    assert ops.uses(with_subgraph()) == {"WindowAttention": 3}


def test_nodes_in_subgraphs_get_bodies() -> None:
    inputs, attrs = tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1))
    padded = {f"padded_{name}": value for name, value in tensors((5, 7), (3, 3), padded=True).items()}
    (chosen,) = session_with_bodies(with_subgraph()).run(["chosen"], inputs | padded)
    np.testing.assert_allclose(chosen, truth(inputs, attrs), rtol=1e-5, atol=1e-5)


def test_a_swinopt_op_inside_a_function_is_refused() -> None:
    model = mixed_model()
    model.functions.append(
        helper.make_function(
            "elsewhere",
            "Block",
            ["qkv", "bias"],
            ["y"],
            [helper.make_node("WindowAttention", ["qkv", "bias"], ["y"], domain=ops.DOMAIN)],
            [helper.make_opsetid(ops.DOMAIN, 1)],
        )
    )
    with pytest.raises(ModelError, match=r"Block.*inline"):
        ops.attach_bodies(model)


def test_old_opsets_and_unknown_ops_are_refused() -> None:
    with pytest.raises(ModelError, match="opset 17"):
        ops.attach_bodies(model_of({"": (tensors((6, 6), (3, 3)), attributes((3, 3), (1, 1)))}, opset=16))
    model = mixed_model()
    model.graph.node[0].op_type = "WindowDressing"
    with pytest.raises(ModelError, match="WindowDressing"):
        ops.attach_bodies(model)


# ----------------------------------------------------------------------------------------------------- specification


def test_shapes() -> None:
    def infer(*shapes: Any, **changed: Any) -> list[tuple[Any, ...]]:
        return ops.infer_shapes("WindowAttention", shapes, attributes((3, 3), (1, 1), **changed))

    assert infer((2, 6, 9, 24), (2, 9, 9)) == [(2, 6, 9, 8)]
    assert infer(("B", None, "W", 24), (2, 9, 9), (2,)) == [("B", None, "W", 8)]
    assert infer((1, 5, 7, 24), (2, 9, 9), None, (24,)) == [(1, 5, 7, 8)]
    assert infer((1, 6, 6, "3C"), (None, 9, 9), None, (24,), plugin_version="1") == [(1, 6, 6, None)]


@pytest.mark.parametrize(
    ("shapes", "changed", "reason"),
    [
        ([(1, 6, 24), (2, 9, 9)], {}, "2 spatial axes"),
        ([(1, 6, 6, 24), (3, 9, 9)], {}, "relative_position_bias"),
        ([(1, 6, 6, 24), (2, 9)], {}, "relative_position_bias"),
        ([(1, 6, 6, 24), (2, 9, 9), (3,)], {}, "logit_scale"),
        ([(1, 6, 6, 24), (2, 9, 9), None, (8,)], {}, "pad_qkv"),
        ([(1, 6, 6, 26), (2, 9, 9)], {}, "26 channels"),
        ([(1, 6, 7, 24), (2, 9, 9)], {}, "size 7 is no multiple"),
        ([(1, 6, 6, 24), (2, 9, 9)], {"shift_size": [3, 0]}, "shift_size"),
        ([(1, 6, 6, 24), (2, 9, 9)], {"shift_size": [-1, 0]}, "shift_size"),
        ([(1, 6, 6, 24), (2, 9, 9)], {"shift_size": [0]}, "shift_size"),
        ([(1, 6, 6, 24), (2, 9, 9)], {"num_heads": 0}, "num_heads"),
        ([(1, 6, 6, 24), (2, 9, 9)], {"mask": -1.0}, "unknown attributes.*mask"),
        ([(1, 6, 6, 24)], {}, "relative_position_bias missing"),
        ([(1, 6, 6, 24), (2, 9, 9), None, None, (1,)], {}, "more than 4 inputs"),
    ],
)
def test_inconsistent_inputs_are_named(shapes: list[Any], changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        ops.infer_shapes("WindowAttention", shapes, attributes((3, 3), (1, 1), **changed))


def test_missing_attributes_and_unknown_ops_are_named() -> None:
    with pytest.raises(ModelError, match="shift_size, num_heads, scale missing"):
        ops.infer_shapes("WindowAttention", [(1, 6, 6, 24), (2, 9, 9)], {"window_size": [3, 3]})
    with pytest.raises(ModelError, match="WindowDressing"):
        ops.infer_shapes("WindowDressing", [], {})


@pytest.mark.parametrize("spec", ops.SPECS.values(), ids=lambda spec: spec.name)
def test_body_declares_what_the_specification_says(spec: ops.OpSpec) -> None:
    call = helper.make_node(spec.name, [i.name for i in spec.inputs], ["out"], domain=ops.DOMAIN)
    body = spec.body(call, 20)
    assert (body.domain, body.name) == (ops.DOMAIN, spec.name)
    assert list(body.input) == [i.name for i in spec.inputs]
    assert list(body.attribute) == list(spec.required_attributes)
    assert list(body.output) == [o.name for o in spec.outputs]
    defaults = {a.name: helper.get_attribute_value(a) for a in body.attribute_proto}
    assert defaults == pytest.approx(spec.defaults)  # ONNX keeps floats in single precision
    assert [(o.domain, o.version) for o in body.opset_import] == [("", 20)]
    types = {a.name: a.type for a in spec.attributes}
    assert all(a.type == types[a.name] for a in body.attribute_proto)
    assert ops.SPECS[spec.name] is spec
    assert all(i.optional for i in spec.inputs[spec.required_inputs :])

"""The form for TensorRT's parser: no bodies, plugins by name, inputs without gaps, and the way back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import graph as graphs
from swinopt import handover, ops
from swinopt.errors import ModelError
from swinopt.testing import parse

RNG = np.random.default_rng(0)
WEIGHTS = {
    "bias": RNG.standard_normal((2, 4, 4)).astype(np.float32),
    "scale": np.array([3.0, 5.0], np.float32),
    "pad": RNG.standard_normal(12).astype(np.float32),
}


def attention(*inputs: str, size: int = 4) -> onnx.ModelProto:
    """One WindowAttention with window 2x2 and two heads, on a map of this size."""
    text = (
        f"g (float[1, {size}, {size}, 12] qkv) => (float[1, {size}, {size}, 4] y) {{ y = swinopt.WindowAttention"
        f"<window_size = [2, 2], shift_size = [1, 1], num_heads = 2, scale = 1.0>({', '.join(inputs)}) }}"
    )
    return parse(text, **{name: WEIGHTS[name] for name in inputs if name in WEIGHTS})


def the_node(model: onnx.ModelProto) -> tuple[list[str], dict[str, Any]]:
    (node,) = (node for node in model.graph.node if node.domain == ops.DOMAIN)
    return list(node.input), {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize(("inputs", "present"), [("x, w, w", [1, 1, 1, 0]), ("x, w, w, z", [1, 1, 1, 1])])
def test_a_norm_says_whether_it_has_a_residual(inputs: str, present: list[int]) -> None:
    text = f"g (float[2, 8] x, float[2, 8] z) => (float[2, 8] y) {{ r = swinopt.LayerNorm({inputs})  y = Add(r, z) }}"
    model = parse(text, w=np.ones(8, np.float32))
    handed = handover.for_plugins(model)
    assert the_node(handed)[1][handover.INPUTS_PRESENT] == present
    assert the_node(handed)[1]["epsilon"] == pytest.approx(1e-5)
    handover.unpack(handed)
    assert the_node(handed)[0] == the_node(model)[0] == inputs.split(", ")


@pytest.mark.parametrize(
    ("inputs", "packed", "present"),
    [
        (["qkv", "bias"], ["qkv", "bias"], [1, 1, 0, 0]),
        (["qkv", "bias", "scale"], ["qkv", "bias", "scale"], [1, 1, 1, 0]),
        (["qkv", "bias", '""', "pad"], ["qkv", "bias", "pad"], [1, 1, 0, 1]),
        (["qkv", "bias", "scale", "pad"], ["qkv", "bias", "scale", "pad"], [1, 1, 1, 1]),
    ],
    ids=["required", "cosine", "padded", "all"],
)
def test_present_inputs_move_together_and_come_back(inputs: list[str], packed: list[str], present: list[int]) -> None:
    model = attention(*inputs)
    before, attributes = the_node(model)
    handed = handover.for_plugins(model)
    found, told = the_node(handed)

    assert found == packed
    assert told[handover.INPUTS_PRESENT] == present
    assert (told["plugin_namespace"], told["plugin_version"]) == (b"swinopt", b"1")
    assert (told["mask_value"], told["roll_first"]) == (-100.0, 0), "parsers warn of fields that are not set"
    assert the_node(model) == (before, attributes), "what was given must stay as it was"
    handover.unpack(handed)
    found, told = the_node(handed)
    assert found == before
    assert {key: told[key] for key in attributes} == attributes and handover.INPUTS_PRESENT not in told


def test_every_field_of_a_plugin_is_set_and_what_was_set_stays() -> None:
    model = parse(
        """g (float[1, 4, 4, 2] x) => (float[1, 4, 4, 2] s, float[1, 2, 2, 8] y) {
            s, n = swinopt.AddLayerNorm(x, x, gamma, beta)  y = swinopt.PatchMerging<epsilon = 0.5>(n, wide, wide) }""",
        gamma=np.ones(2, np.float32),
        beta=np.zeros(2, np.float32),
        wide=np.ones(8, np.float32),
    )
    handed = handover.for_plugins(model)
    for node, epsilon in zip(handed.graph.node, (1e-5, 0.5), strict=True):
        told = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert told.keys() == {a.name for a in ops.spec(node.op_type).attributes} | {
            *ops.PLUGIN_ATTRIBUTES,
            handover.INPUTS_PRESENT,
        }
        assert told["epsilon"] == pytest.approx(epsilon)
    assert swinopt.compare(model, handed, tolerance=0).passed


def test_bodies_and_stand_ins_are_gone() -> None:
    text = """
        g (float[1, 4, 4, 12] a, float[1, 3, 3, 12] b) => (float[1, 4, 4, 4] y, float[1, 3, 3, 4] z) {
            y = swinopt.WindowAttention<window_size=[2,2], shift_size=[0,0], num_heads=2, scale=1.0>(a, bias)
            z = swinopt.WindowAttention<window_size=[2,2], shift_size=[0,0], num_heads=2, scale=1.0>(b, bias, "", pad)
        }"""
    model = parse(text, bias=WEIGHTS["bias"], pad=WEIGHTS["pad"])
    ops.attach_bodies(model)
    assert ops.STAND_IN in model.graph.node[0].input, "without it this test shows nothing"
    handed = handover.for_plugins(model)

    assert not handed.functions
    assert [list(node.input) for node in handed.graph.node] == [["a", "bias"], ["b", "bias", "pad"]]
    assert {weight.name for weight in handed.graph.initializer} == {"bias", "pad"}
    assert swinopt.compare(model, handed, tolerance=0).passed


def test_doing_it_twice_changes_nothing() -> None:
    once = handover.for_plugins(attention("qkv", "bias", '""', "pad", size=3))
    assert handover.for_plugins(once) == once


def test_models_without_swinopt_ops_stay_as_they_are() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    assert handover.for_plugins(model) == model


def test_a_graph_is_read_from_it_with_every_input_in_its_place() -> None:
    graph = graphs.load(handover.for_plugins(attention("qkv", "bias", '""', "pad", size=3)))
    (node,) = graph.nodes
    assert [tensor.name for tensor in node.inputs] == ["qkv", "bias", "", "pad"]
    assert handover.INPUTS_PRESENT not in node.attrs


def test_inputs_that_do_not_fit_what_is_said_of_them() -> None:
    model = handover.for_plugins(attention("qkv", "bias"))
    model.graph.node[0].input.append("qkv")
    with pytest.raises(ModelError, match=r"inputs_present is \[1, 1, 0, 0\], and 3 inputs are there"):
        handover.unpack(model)


def test_more_inputs_than_the_op_has() -> None:
    with pytest.raises(ModelError, match="5 inputs are given, and it has 4"):
        handover.for_plugins(attention("qkv", "bias", "scale", "pad", "qkv"))


@pytest.mark.parametrize("size", [3, 4])
def test_the_target_for_8_6_is_saved_in_it_and_still_computes_the_same(size: int) -> None:
    model = attention("qkv", "bias", '""', "pad", size=size)
    result = swinopt.optimize(model, target="tensorrt-8.6")
    inputs, attributes = the_node(result.model)

    assert inputs == ["qkv", "bias", "pad"]
    assert attributes[handover.INPUTS_PRESENT] == [1, 1, 0, 1]
    assert swinopt.compare(model, result.model, tolerance=1e-6).passed
    again = swinopt.optimize(result.model, target="tensorrt")
    assert the_node(again.model)[0] == ["qkv", "bias", "", "pad"]

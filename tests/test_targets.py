from __future__ import annotations

import pytest

import swinopt
from swinopt import opset, targets
from swinopt.errors import OptionError
from swinopt.testing import assert_equivalent, parse
from tests.graphs import swin_attention

GELU = "g (float[N, 6] x) => (float[N, 6] y) { a = Gelu(x)  y = Neg(a) }"
HALVES = (
    "g (float[N, 6] x) => (float[N, 6] y) { "
    "r = Constant<value_float = 1.4142135>()  d = Div(x, r)  e = Erf(d)  one = Constant<value_float = 1.0>()"
    "  p = Add(e, one)  m = Mul(x, p)  half = Constant<value_float = 0.5>()  y = Mul(m, half) }"
)


def ops(model: object) -> set[str]:
    return {node.op_type for node in model.graph.node}  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_target_has_a_pipeline_that_can_be_read(name: str) -> None:
    pipeline = swinopt.pipeline(name)
    assert len(pipeline) > 3
    assert pipeline.passes[0].name == "fold-constants"
    assert str(swinopt.Pipeline.parse(str(pipeline))) == str(pipeline)
    assert targets.find(name).name == name


def test_the_default_is_tensorrt() -> None:
    assert str(swinopt.pipeline()) == str(swinopt.pipeline("tensorrt"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tensort", "did you mean 'tensorrt'?"),
        ("TensorRT-8.6", "did you mean 'tensorrt-8.6'?"),
        ("openvino", "there are: portable, onnxruntime, tensorrt, tensorrt-8.6"),
        ("", "there are: "),
        (None, "there are: "),
    ],
)
def test_an_unknown_target_is_refused_with_a_hint(name: object, hint: str) -> None:
    with pytest.raises(OptionError) as caught:
        targets.find(name)  # type: ignore[arg-type]
    assert "there is no target" in str(caught.value) and hint in str(caught.value)


def test_tensorrt_gets_gelu_as_one_node() -> None:
    result = swinopt.optimize(parse(HALVES, opset=17), target="tensorrt")
    assert ops(result.model) == {"Gelu"}
    assert opset.version_of(result.model) >= 20


def test_tensorrt_8_6_gets_gelu_spelled_out_in_an_opset_that_its_parser_reads() -> None:
    result = swinopt.optimize(parse(GELU, opset=20), target="tensorrt-8.6")
    assert ops(result.model) == {"Div", "Erf", "Add", "Mul", "Neg"}
    assert opset.version_of(result.model) == 17
    assert not result.model.functions
    assert_equivalent(parse(GELU), result.model)


@pytest.mark.parametrize("name", ["portable", "onnxruntime"])
def test_the_other_targets_run_in_onnxruntime(name: str) -> None:
    for text in (GELU, HALVES):
        before = parse(text, opset=20)
        assert_equivalent(before, swinopt.optimize(before, target=name).model)


def test_portable_means_standard_ops() -> None:
    result = swinopt.optimize(parse(HALVES, opset=17), target="portable")
    assert {node.domain for node in result.model.graph.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_newer_opset_is_kept_unless_the_target_has_a_limit(name: str) -> None:
    result = swinopt.optimize(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }", opset=21), target=name)
    assert opset.version_of(result.model) == (17 if name == "tensorrt-8.6" else 21)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_what_a_plugin_runs_names_the_plugin(name: str) -> None:
    result = swinopt.optimize(swin_attention(), target=name)
    nodes = [node for node in result.model.graph.node if node.domain == "swinopt"]
    named = [{a.name: a.s for a in node.attribute if a.name.startswith("plugin_")} for node in nodes]
    wanted = {"plugin_namespace": b"swinopt", "plugin_version": b"1"}
    assert named == ([wanted] if name.startswith("tensorrt") else [])
    # Once more, as on a file that was optimized before: the names are there already.
    again = swinopt.optimize(result.model, target=name, verify=name != "tensorrt-8.6")
    assert len(again.model.graph.node) == len(result.model.graph.node)
    assert all(len({a.name for a in n.attribute}) == len(n.attribute) for n in again.model.graph.node)

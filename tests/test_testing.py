from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import swinopt.testing
from swinopt import Pass, Pipeline, Rewriter
from swinopt.errors import ModelError
from swinopt.passes import EliminateNoops, FoldConstants, FuseGelu
from swinopt.testing import assert_equivalent, leaves_alone, parse, refuses, rewrites

TEXT = "g (float[N, 3] x) => (float[N, 3] y) { t = Identity(x)  y = Neg(t) }"


@dataclass(frozen=True)
class Double(Pass):
    """Turns Neg(x) into Neg(2 x), which is wrong."""

    name: ClassVar[str] = "double"
    by: float = 2.0
    count: bool = True

    def run(self, rewriter: Rewriter) -> None:
        for node in rewriter.nodes("Neg"):
            new = rewriter.op("Mul", node.inputs[0], rewriter.float_constant(-self.by, node.inputs[0]))
            rewriter.replace(node.outputs[0], new)
        if not self.count:
            rewriter.applied = 0


@dataclass(frozen=True)
class Forgetful(Pass):
    """Refuses everything, and says so."""

    name: ClassVar[str] = "forgetful"

    def run(self, rewriter: Rewriter) -> None:
        rewriter.refuse(rewriter.graph.nodes[0], "I forgot how")


@dataclass(frozen=True)
class Break(Pass):
    """Cuts an edge."""

    name: ClassVar[str] = "break"

    def run(self, rewriter: Rewriter) -> None:
        rewriter.nodes("Neg")[0].inputs[0] = gs.Variable("nowhere")
        rewriter.applied += 1


@dataclass(frozen=True)
class Fail(Pass):
    """Has a bug."""

    name: ClassVar[str] = "fail"

    def run(self, rewriter: Rewriter) -> None:
        raise KeyError("bug")


# --------------------------------------------------------------------------------------------------------------- parse


def test_a_graph_in_text_becomes_a_model() -> None:
    model = parse(TEXT, opset=17)
    assert model.opset_import[0].version == 17
    onnx.checker.check_model(model)


def test_other_domains_are_declared() -> None:
    model = parse("g (float[2] x) => (float[2] y) { t = acme.Thing(x)  y = Neg(t) }")
    assert {o.domain: o.version for o in model.opset_import} == {"": 20, "acme": 1}


def test_a_whole_model_in_text_keeps_its_versions() -> None:
    model = parse(f'  <ir_version: 8, opset_import: ["" : 13]> {TEXT}')
    assert (model.ir_version, model.opset_import[0].version) == (8, 13)


def test_weights_are_given_as_arrays() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Mul(x, w) }", w=np.array([2, 3], np.float32))
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).tolist() == [2, 3]


@pytest.mark.parametrize("text", ["g (float[2] x) => ", "nonsense", "<ir_version: 8> => ", ""])
def test_text_that_is_no_model(text: str) -> None:
    with pytest.raises(ModelError, match="the text is no ONNX model"):
        parse(text)


# ------------------------------------------------------------------------------------------------------------ rewrites


def test_a_right_pass_is_let_through_and_its_model_returned() -> None:
    after = rewrites(TEXT, EliminateNoops(), applied=1, expect={"Neg": 1})
    assert [node.op_type for node in after.graph.node] == ["Neg"]


def test_all_kinds_of_models_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(parse(TEXT), path)
    for model in (path, str(path), path.read_bytes(), parse(TEXT), gs.import_onnx(parse(TEXT))):
        rewrites(model, EliminateNoops(), applied=1)
        assert_equivalent(model, TEXT)
        leaves_alone(model, FuseGelu())


def test_a_pipeline_is_taken_for_a_pass() -> None:
    text = "g (float[3] x) => (float[3] y) { n = Neg(w)  t = Identity(x)  y = Add(t, n) }"
    before = parse(text, w=np.ones(3, np.float32))
    rewrites(before, Pipeline(FoldConstants(), EliminateNoops()), applied=2, expect={"Add": 1})


def test_a_pass_that_does_not_apply_fails_with_its_refusals() -> None:
    with pytest.raises(AssertionError, match=r"forgetful applied not at all, and at least once(.|\n)*I forgot how"):
        rewrites(TEXT, Forgetful())


def test_another_number_of_applications_fails() -> None:
    with pytest.raises(AssertionError, match="applied once, and 2 times was expected"):
        rewrites(TEXT, EliminateNoops(), applied=2)


@pytest.mark.parametrize("expect", [{}, {"Neg": 2}, {"Abs": 1}, {"Neg": 1, "Abs": 1}])
def test_other_ops_than_expected_fail(expect: dict[str, int]) -> None:
    with pytest.raises(AssertionError, match=r"eliminate-noops left {'Neg': 1}, and"):
        rewrites(TEXT, EliminateNoops(), expect=expect)


def test_other_numbers_fail() -> None:
    with pytest.raises(AssertionError, match=r"the models do not compute the same(.|\n)*DIFFERENT"):
        rewrites(TEXT, Double())
    rewrites(TEXT, Double(by=1 + 1e-7))
    with pytest.raises(AssertionError):
        rewrites(TEXT, Double(by=1 + 1e-3))
    rewrites(TEXT, Double(by=1 + 1e-3), tolerance=1e-2)


def test_a_broken_graph_fails() -> None:
    with pytest.raises(AssertionError, match=r"break left the graph broken: .*nowhere"):
        rewrites(TEXT, Break())


def test_a_bug_comes_through_as_it_is() -> None:
    for tool in (rewrites, leaves_alone):
        with pytest.raises(KeyError, match="bug"):
            tool(TEXT, Fail())
    with pytest.raises(KeyError, match="bug"):
        refuses(TEXT, Fail(), "")


def test_a_pass_that_changes_what_it_was_given_fails() -> None:
    before = parse(TEXT)

    @dataclass(frozen=True)
    class Mutate(Pass):
        name: ClassVar[str] = "mutate"

        def run(self, rewriter: Rewriter) -> None:
            EliminateNoops().run(rewriter)
            before.graph.node[1].op_type = "Abs"

    with pytest.raises(AssertionError, match="mutate changed the model that it was given"):
        rewrites(before, Mutate())


def test_a_missing_model_is_an_error_and_no_failure(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        rewrites(tmp_path / "no.onnx", EliminateNoops())


# ------------------------------------------------------------------------------------------- refuses and leaves_alone


def test_a_refusal_with_the_reason_is_let_through() -> None:
    refuses(TEXT, Forgetful(), "forgot")
    refuses(TEXT, Forgetful(), r"^I \w+ how$")


def test_another_reason_fails() -> None:
    with pytest.raises(AssertionError, match=r"no reason like 'too hot'; it gave: \['I forgot how'\]"):
        refuses(TEXT, Forgetful(), "too hot")


def test_no_reason_fails() -> None:
    with pytest.raises(AssertionError, match="it gave: none at all"):
        refuses(TEXT, FuseGelu(), "")


def test_a_pass_that_applies_fails() -> None:
    with pytest.raises(AssertionError, match="applied once, and not at all was expected"):
        refuses(TEXT, EliminateNoops(), "")
    with pytest.raises(AssertionError, match="applied once, and not at all was expected"):
        leaves_alone(TEXT, EliminateNoops())


def test_a_pass_that_applies_without_counting_it_fails() -> None:
    with pytest.raises(AssertionError, match="does not count as applied, and yet changed the nodes"):
        leaves_alone(TEXT, Double(count=False))


def test_a_pass_that_changes_a_weight_without_counting_it_fails() -> None:
    @dataclass(frozen=True)
    class Sneak(Pass):
        name: ClassVar[str] = "sneak"

        def run(self, rewriter: Rewriter) -> None:
            weight = rewriter.nodes("Mul")[0].inputs[1]
            weight.values = weight.values * 2

    before = parse("g (float[2] x) => (float[2] y) { y = Mul(x, w) }", w=np.ones(2, np.float32))
    with pytest.raises(AssertionError, match="changed the initializers"):
        leaves_alone(before, Sneak())


def test_dead_nodes_and_constant_nodes_are_no_change() -> None:
    leaves_alone(
        "g (float[2] x) => (float[2] y) { k = Constant<value_float = 1.0>()  dead = Exp(x)  y = Mul(x, k) }", FuseGelu()
    )


# ------------------------------------------------------------------------------------------------- assert_equivalent


def test_equal_models() -> None:
    assert_equivalent(TEXT, "g (float[N, 3] x) => (float[N, 3] y) { y = Neg(x) }", tolerance=0)


def test_unequal_models_fail_with_the_first_tensor_that_diverges() -> None:
    other = "g (float[N, 3] x) => (float[N, 3] y) { t = Abs(x)  y = Neg(t) }"
    with pytest.raises(AssertionError, match="first tensor that diverges: t"):
        assert_equivalent(TEXT, other)


@pytest.mark.parametrize(
    "other",
    [
        "g (float[N, 3] z) => (float[N, 3] y) { y = Neg(z) }",
        "g (float[N, 3] x) => (float[N, 3] z) { z = Neg(x) }",
        "g (float[N, 4] x) => (float[N, 4] y) { y = Neg(x) }",
        "g (float[N, 3] x) => (float[N, 3] y) { y = acme.Neg(x) }",
    ],
)
def test_models_that_cannot_be_compared_fail(other: str) -> None:
    with pytest.raises(AssertionError, match="cannot be compared"):
        assert_equivalent(TEXT, other)


def test_what_becomes_nan_fails() -> None:
    other = "g (float[N, 3] x) => (float[N, 3] y) { z = Sub(x, x)  q = Div(z, z)  y = Add(q, x) }"
    with pytest.raises(AssertionError, match="became NaN or Inf"):
        assert_equivalent(TEXT, other, tolerance=1e9)


def test_a_batch_that_was_frozen_fails() -> None:
    other = parse(
        "g (float[N, 3] x) => (float[N, 3] y) { r = Reshape(x, s)  y = Neg(r) }", s=np.array([1, 3], np.int64)
    )
    with pytest.raises(AssertionError):
        assert_equivalent(TEXT, other)


# ------------------------------------------------------------------------------------------------------------- import


def test_the_import_needs_neither_pytest_nor_onnxruntime() -> None:
    code = (
        "import sys, swinopt.testing; print(sorted({'pytest', 'onnxruntime', 'torch', 'onnx_ir'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_the_example_in_the_docstring_runs() -> None:
    text = swinopt.testing.__doc__ or ""
    example = [line[4:] for line in text.splitlines() if line.startswith("    ")]
    space: dict[str, object] = {}
    exec("\n".join(example), space)
    (test,) = (value for name, value in space.items() if name.startswith("test_"))
    test()  # type: ignore[operator]


def test_the_failures_do_not_depend_on_assert_statements() -> None:
    code = (
        "from swinopt.testing import leaves_alone; from swinopt.passes import EliminateNoops\n"
        f"try: leaves_alone({TEXT!r}, EliminateNoops())\n"
        "except AssertionError: print('caught')"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "caught"

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import swinopt
from swinopt.errors import MissingDependencyError, ModelError, OptionError
from swinopt.passes import EliminateNoops, FoldConstants, FuseGelu
from swinopt.testing import assert_equivalent, parse

TEXT = "g (float[N, 3] x) => (float[N, 3] y) { n = Neg(w)  m = Mul(x, n)  i = Identity(m)  y = Tanh(i) }"
W = np.array([1, 2, 3], np.float32)


def model(w: Any = W) -> onnx.ModelProto:
    return parse(TEXT, w=w)


def ops(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


# ---------------------------------------------------------------------------------------------------- what comes out


def test_a_model_that_is_no_swin_is_simplified_and_computes_the_same() -> None:
    result = swinopt.optimize(model())
    assert ops(result.model) == ["Mul", "Tanh"]
    assert_equivalent(model(), result.model, tolerance=0)
    onnx.checker.check_model(result.model)
    assert result.report.verified and result.report.ok and result.report.max_abs_diff == 0


@pytest.mark.parametrize("kind", ["path", "bytes", "proto", "graph"])
@pytest.mark.parametrize("verify", [True, False])
def test_what_was_given_is_never_changed(kind: str, verify: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(model(), path)
    given: Any = {"path": path, "bytes": path.read_bytes(), "proto": model(), "graph": gs.import_onnx(model())}[kind]

    def state() -> bytes:
        if kind == "graph":
            return gs.export_onnx(given).SerializeToString(deterministic=True)  # type: ignore[no-any-return]
        if kind == "proto":
            return given.SerializeToString(deterministic=True)  # type: ignore[no-any-return]
        return given if kind == "bytes" else path.read_bytes()

    before = state()
    result = swinopt.optimize(given, verify=verify)
    assert ops(result.model) == ["Mul", "Tanh"]
    result.model.graph.node[0].op_type = "Changed"
    for weight in result.model.graph.initializer:
        weight.Clear()
    assert state() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_the_report_counts_what_was_there_and_what_is_left() -> None:
    report = swinopt.optimize(model(), target="portable").report
    assert dict(report.ops_before) == {"Neg": 1, "Mul": 1, "Identity": 1, "Tanh": 1}
    assert dict(report.ops_after) == {"Mul": 1, "Tanh": 1}
    assert (report.nodes_before, report.nodes_after, report.target, report.model) == (4, 2, "portable", "g")
    assert report.seconds > 0 and {"swinopt", "onnx", "numpy", "python"} <= set(report.versions)


def test_ops_of_other_domains_are_named_alike_before_and_after() -> None:
    before = parse("g (float[2] x) => (float[2] y) { a = Identity(x)  y = acme.Thing(a) }")
    report = swinopt.optimize(before, verify=False).report
    assert dict(report.ops_before) == {"Identity": 1, "acme::Thing": 1}
    assert dict(report.ops_after) == {"acme::Thing": 1}


def test_the_path_is_what_the_report_calls_the_model(tmp_path: Path) -> None:
    path = tmp_path / "some.onnx"
    onnx.save_model(model(), path)
    assert swinopt.optimize(path, verify=False).report.model == str(path)


def test_it_prints_in_every_place() -> None:
    result = swinopt.optimize(model(), target="portable")
    assert repr(result) == "<Optimized for portable: 4 -> 2 nodes>"
    assert "fold-constants" in str(result) and "4 -> 2 nodes" in str(result)
    page = result._repr_html_()
    assert "fold-constants" in page and page.count("<table") == page.count("</table>") > 0


def test_saving(tmp_path: Path) -> None:
    result = swinopt.optimize(model())
    path = result.save(tmp_path / "out.onnx")
    assert onnx.load(path) == result.model
    with pytest.raises(ModelError, match="cannot be written"):
        result.save(tmp_path / "no" / "out.onnx")


def test_optimizing_twice_finds_nothing_more() -> None:
    once = swinopt.optimize(model())
    twice = swinopt.optimize(once.model)
    assert [p.applied for p in twice.report.passes] == [0] * len(twice.report.passes)
    assert ops(twice.model) == ops(once.model)


def test_the_same_model_gives_the_same_result() -> None:
    first, second = (swinopt.optimize(model(), verify=False).model.SerializeToString(deterministic=True) for _ in "ab")
    assert first == second


def test_unknown_ops_are_left_alone() -> None:
    before = parse(
        'g (float[2] x) => (float[2] y) { a = Identity(x)  b = acme.Thing<level = 3, kind = "k">(a, , w)  y = Neg(b) }',
        w=np.ones(2, np.float32),
    )
    after = swinopt.optimize(before, verify=False).model
    assert [(n.domain, n.op_type) for n in after.graph.node] == [("acme", "Thing"), ("", "Neg")]
    assert list(after.graph.node[0].input) == ["x", "", "w"]
    assert {a.name: onnx.helper.get_attribute_value(a) for a in after.graph.node[0].attribute} == {
        "level": 3,
        "kind": b"k",
    }


# ------------------------------------------------------------------------------------------------------------- passes


@pytest.mark.parametrize(
    ("passes", "names"),
    [
        ("fold-constants(budget=0), eliminate-noops", ["fold-constants", "eliminate-noops"]),
        (FoldConstants(), ["fold-constants"]),
        ([FoldConstants(), EliminateNoops()], ["fold-constants", "eliminate-noops"]),
        ((EliminateNoops(),), ["eliminate-noops"]),
        (swinopt.Pipeline(FuseGelu(), FoldConstants()), ["fuse-gelu", "fold-constants"]),
        ([swinopt.Pipeline(FuseGelu()), FoldConstants()], ["fuse-gelu", "fold-constants"]),
        ("", []),
        ((), []),
    ],
)
def test_passes_may_be_a_text_a_pass_several_or_a_pipeline(passes: Any, names: list[str]) -> None:
    result = swinopt.optimize(model(), passes=passes)
    assert [p.name for p in result.report.passes] == names
    assert_equivalent(model(), result.model, tolerance=0)


@pytest.mark.parametrize(
    "passes", [FoldConstants, [FoldConstants], ["fold-constants"], 7, "no-such-pass", "fuse-gelu(x=1)"]
)
def test_passes_that_are_none(passes: Any) -> None:
    with pytest.raises(OptionError):
        swinopt.optimize(model(), passes=passes)


@pytest.mark.parametrize("target", ["tensort", "", None, 7])
def test_an_unknown_target(target: Any) -> None:
    with pytest.raises(OptionError, match="there is no target"):
        swinopt.optimize(model(), target=target)
    with pytest.raises(OptionError, match="there is no target"):
        swinopt.pipeline(target)


# ------------------------------------------------------------------------------------------------------------- progress


def test_progress_is_told_to_a_function() -> None:
    told: list[tuple[str, int, int]] = []
    swinopt.optimize(
        model(),
        passes="fold-constants, eliminate-noops",
        progress=lambda name, number, count: told.append((name, number, count)),
    )
    assert told == [("fold-constants", 0, 2), ("eliminate-noops", 1, 2)]


def test_progress_is_printed_if_wanted_and_else_nothing_is(capsys: pytest.CaptureFixture[str]) -> None:
    swinopt.optimize(model(), passes="fold-constants, eliminate-noops", progress=True)
    assert capsys.readouterr().out == "[1/2] fold-constants\n[2/2] eliminate-noops\n"
    swinopt.optimize(model(), passes="fold-constants, eliminate-noops")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("verify", [True, False])
def test_weights_with_nan_are_refused_by_name(dtype: type[np.floating[Any]], verify: bool) -> None:
    name = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]  # type: ignore[index]
    before = parse(
        f"g ({name}[2] x) => ({name}[2] y) {{ a = Add(x, fine)  y = Add(a, bad) }}",
        fine=np.array([1, np.inf], dtype),
        bad=np.array([1, np.nan], dtype),
    )
    with pytest.raises(ModelError, match="the weight 'bad' holds NaN"):
        swinopt.optimize(before, verify=verify)


@pytest.mark.filterwarnings("error")
def test_infinite_weights_are_a_mask_and_no_fault() -> None:
    before = parse("g (float[3] x) => (float[3] y) { y = Min(x, m) }", m=np.array([np.inf, -np.inf, 1], np.float32))
    assert ops(swinopt.optimize(before).model) == ["Min"]


def test_a_model_that_does_not_run_is_refused_only_where_numbers_are_wanted() -> None:
    before = parse("g (float[2] x) => (float[2] y) { y = acme.Thing(x) }")
    with pytest.raises(swinopt.ModelError, match=r"ONNX Runtime.*verify=False"):
        swinopt.optimize(before)
    assert ops(swinopt.optimize(before, verify=False).model) == ["Thing"]


def test_an_op_that_only_some_runtime_has_is_left_alone_in_the_standard_domain_too() -> None:
    before = parse("g (float[2] x) => (float[2] y, float[2] z) { a = Identity(x)  y = Neg(a)  z = Relu(x) }")
    before.graph.node[2].op_type = "EfficientNMS_TRT"
    result = swinopt.optimize(before, verify=False)
    assert result.report.ok
    assert ops(result.model) == ["Neg", "EfficientNMS_TRT"]


def test_a_model_that_is_broken_from_the_start_is_not_blamed_on_a_pass() -> None:
    before = parse("g (float[2] x) => (float[2] y) { a = Identity(x)  y = Neg(a) }")
    before.graph.node[1].input[0] = "nowhere"
    with pytest.raises(swinopt.ModelError, match="not valid"):
        swinopt.optimize(before, verify=False)


def test_a_damaged_weight_is_named() -> None:
    before = parse("g (float[2] x) => (float[2] y) { y = Add(x, w) }", w=np.ones(2, np.float32))
    before.graph.initializer[0].raw_data = b"123"
    with pytest.raises(swinopt.ModelError, match="'w' is damaged"):
        swinopt.optimize(before, verify=False)


def test_sequences_are_no_constants() -> None:
    before = parse(
        "g (float[2] x) => (float[2] y) { s = SequenceConstruct(w, w)  i = Constant<value_int = 0>()"
        "  a = SequenceAt(s, i)  y = Add(x, a) }",
        w=np.ones(2, np.float32),
    )
    result = swinopt.optimize(before)
    assert result.report.ok


def test_a_missing_onnxruntime_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "onnxruntime":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"swinopt\[cpu\]"):
        swinopt.optimize(model())
    assert ops(swinopt.optimize(model(), verify=False).model) == ["Mul", "Tanh"]


def test_a_bad_file_or_target_is_found_before_any_work(tmp_path: Path) -> None:
    told: list[str] = []
    for arguments in (
        {"model": tmp_path / "no.onnx"},
        {"model": model(), "target": "x"},
        {"model": model(), "passes": "x"},
    ):
        with pytest.raises(swinopt.SwinoptError):
            swinopt.optimize(progress=lambda *a: told.append(a[0]), **arguments)  # type: ignore[arg-type]
    assert not told


@pytest.mark.parametrize("name", [n for n in swinopt.__all__ if n.endswith("Error")])
def test_every_error_is_a_swinopt_error(name: str) -> None:
    assert issubclass(getattr(swinopt, name), swinopt.SwinoptError)

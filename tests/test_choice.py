"""What becomes of a swinopt op, a plugin or standard ops: with a TensorRT and times that are made up."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import builders, choosing, ops, plugin_library, tensorrt, tensorrt_module
from swinopt.choice import Choice, Choices, by_time
from swinopt.engine import Engine
from swinopt.errors import MissingDependencyError, ModelError, OptionError, SwinoptError
from swinopt.graph import op_counts
from swinopt.testing import parse
from tests.lab import TIMES, Lab, chosen, entries, floats, model, set_up

processes = builders.Processes  # in the lab there are others


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    return set_up("10.9.0", monkeypatch, tmp_path)


@pytest.fixture
def lab_11(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    return set_up("11.1.0", monkeypatch, tmp_path)


# ----------------------------------------------------------------------------------------------------------- decisions


def test_each_op_becomes_what_is_faster(lab: Lab) -> None:
    engine = lab.build()
    assert chosen(engine) == {"a": "plugin", "c": "plugin", "e": "plugin", "s": "standard", "y": "standard"}
    final = onnx.load_model_from_string(engine.plan)
    assert ops.uses(final) == {"WindowAttention": 3}
    assert engine.plugin_layers == 3
    assert {node.domain for node in final.graph.node} == {"", "swinopt"}
    assert op_counts(final)["LayerNormalization"] == 2
    assert swinopt.compare(model(), final, tolerance=1e-5).passed


@pytest.mark.parametrize("batch", [2, "N"])
def test_only_the_sizes_that_lose_are_spelled_out(batch: int | str, lab: Lab) -> None:
    lab.times["WindowAttention"] = (lambda made: 3.0 if is_plain(made) else 1.0), 2.0
    engine = lab.build(model(batch))
    assert chosen(engine) == {"a": "standard", "c": "plugin", "e": "standard", "s": "standard", "y": "standard"}
    final = onnx.load_model_from_string(engine.plan)
    assert [node.output[0] for node in ops.nodes(final)] == ["c"]
    assert engine.plugin_layers == 1
    assert swinopt.compare(model(batch), final, tolerance=1e-5).passed
    # What is spelled out is so as it is without any plugin: not by its definition, which looks for tokens by value.
    assert not {"TopK", "GatherND"} & op_counts(final).keys()


def is_plain(made: onnx.ModelProto) -> bool:
    """Whether the attention that is timed is the one without a shift."""
    (node,) = ops.nodes(made)
    return next(list(a.ints) for a in node.attribute if a.name == "shift_size") == [0, 0]


def test_where_every_op_loses_no_plugin_is_left(lab: Lab) -> None:
    lab.times = dict.fromkeys(TIMES, (2.0, 1.0))
    engine = lab.build()
    assert engine.plugin_layers == 0
    assert swinopt.compare(model(), onnx.load_model_from_string(engine.plan), tolerance=1e-5).passed


@pytest.mark.parametrize(
    ("op", "plugin", "standard", "expected", "why"),
    [
        ("WindowAttention", 1.0, 1.5, "plugin", "1.50 times as fast"),
        ("WindowAttention", 1.0, 1.0, "plugin", "the same within 2%"),
        ("WindowAttention", 1.019, 1.0, "plugin", "the same within 2%"),
        ("WindowAttention", 1.021, 1.0, "standard", "1.02 times as fast"),
        ("WindowAttention", 3.0, 1.0, "standard", "3.00 times as fast"),
        ("Linear", 1.0, 1.5, "plugin", "1.50 times as fast"),
        ("Linear", 1.01, 1.0, "plugin", "the same within 2%"),
        ("Linear", 1.09, 1.0, "plugin", "1.09 times as long, and sums are in float32"),
        ("Linear", 0.0095, 0.0075, "plugin", "1.27 times as long, and sums are in float32"),
        ("Linear", 0.0101, 0.0075, "standard", "1.35 times as fast"),
        ("LayerNorm", 0.0095, 0.0075, "standard", "1.27 times as fast"),
        ("Linear", 1.11, 1.0, "standard", "1.11 times as fast"),
    ],
)
def test_a_tie_goes_to_the_plugin(op: str, plugin: float, standard: float, expected: str, why: str) -> None:
    assert by_time(op, "fp16", 1, plugin, standard) == (expected, why)


def test_what_a_linear_may_be_slower_is_little_in_all() -> None:
    assert by_time("Linear", "fp16", 2, 0.0087, 0.0075)[0] == "plugin"
    assert by_time("Linear", "fp16", 18, 0.0087, 0.0075)[0] == "standard"
    assert by_time("Linear", "fp16", 18, 0.0082, 0.0075)[0] == "plugin", "a tenth it may be"


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_in_float32_a_linear_has_no_better_sums_to_be_slower_for(precision: str) -> None:
    assert by_time("Linear", precision, 1, 1.09, 1.0) == ("standard", "1.09 times as fast")
    assert by_time("Linear", precision, 1, 0.0095, 0.0075)[0] == "standard"
    assert by_time("Linear", precision, 1, 1.01, 1.0)[0] == "plugin"


def test_a_parser_of_old_gets_what_it_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lab = set_up("8.6.0", monkeypatch, tmp_path)
    engine = lab.build()
    assert engine.plugin_layers == 3 and ops.uses(onnx.load_model_from_string(engine.plan)) == {"WindowAttention": 3}
    assert {opset.version for made in lab.built for opset in made.opset_import if not opset.domain} == {17}


# ------------------------------------------------------------------------------------------------------- what is built


def test_what_is_alike_is_measured_once(lab: Lab) -> None:
    engine = lab.build()
    assert [(c.op, c.attributes.get("shift_size"), c.nodes) for c in engine.choices] == [
        ("WindowAttention", (0, 0), ("a", "e")),
        ("WindowAttention", (2, 2), ("c",)),
        ("AddLayerNorm", None, ("s",)),
        ("PatchMerging", None, ("y",)),
    ]
    assert [ops.uses(made).total() for made in lab.built] == [1] * 4 + [0] * 4 + [3]
    assert len(lab.closed) == 8, "an engine that was measured keeps memory of the GPU"


@pytest.mark.parametrize(
    ("cpus", "free", "workspace", "builds"),
    [(4, 64, None, 4), (1, 64, None, 1), (64, 5, None, 2), (64, 1, None, 1), (64, 64, 22000, 2)],
)
def test_standard_ops_are_built_as_many_at_a_time_as_there_is_room_for(
    cpus: int, free: int, workspace: int | None, builds: int, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "_cpus", lambda: cpus)
    lab.gpu.free = free << 30
    lab.gpu.current = 1
    met = threading.Barrier(builds)

    def together(made: onnx.ModelProto) -> bool:
        if made.graph.name != "g" and not ops.uses(made):
            met.wait(timeout=30)  # for all of them, or the test fails
        else:
            assert threading.current_thread() is threading.main_thread(), "linears are tuned while a plugin is built"
        return False

    lab.fails = together
    lab.build(workspace=workspace)
    assert lab.devices == [1], "they are for the GPU of the caller"
    assert len(lab.trt.builders) == 1 + builds, "making a builder takes long"
    assert lab.rests == 1, "what waits holds memory of the GPU while others are timed"


@pytest.mark.parametrize("reason", ["exclusive", "frozen", "embedded", "no Python"])
def test_where_there_can_be_no_other_process_all_is_built_in_this_one(
    reason: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.gpu.current = 1
    if reason == "exclusive":
        lab.gpu.compute_modes = {1: 3}
    elif reason == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    elif reason == "embedded":
        monkeypatch.setattr(sys, "executable", "")
    else:
        monkeypatch.setattr(builders, "Processes", processes)
        monkeypatch.setattr(sys, "executable", "/bin/true")
    threads: set[int] = set()

    def alone(made: onnx.ModelProto) -> bool:
        threads.add(threading.get_ident())
        return made.graph.name == "AddLayerNorm" and not ops.uses(made)

    lab.fails = alone
    told: list[int] = []
    engine = lab.build(progress=lambda phase, step, steps: told.append(len(lab.built)))
    assert told[4:8] == [5, 6, 7, 8], "of each when it is built"
    assert (threads, lab.devices, len(lab.trt.builders)) == ({threading.get_ident()}, [], 1)
    assert chosen(engine) == {"a": "plugin", "e": "plugin", "c": "plugin", "s": "plugin", "y": "standard"}


def test_what_fails_among_others_is_built_again_alone(lab: Lab) -> None:
    failed: list[str] = []

    def once(made: onnx.ModelProto) -> bool:
        is_first = made.graph.name == "AddLayerNorm" and not ops.uses(made) and not failed
        failed.extend(["AddLayerNorm"] * is_first)
        return is_first

    lab.fails = once
    choice = lab.build().choices[2]
    assert failed and (choice.chosen, choice.plugin_ms, choice.standard_ms) == ("standard", 3.0, 1.0)


def test_an_op_is_measured_alone_with_its_constants(lab: Lab) -> None:
    lab.build()
    plugin = lab.alone[0]
    standard = next(made for made in lab.alone[4:] if made.graph.name == "WindowAttention")
    assert op_counts(plugin) == {"swinopt::WindowAttention": 1}
    assert [value.name for value in plugin.graph.input] == [value.name for value in standard.graph.input] == ["qkv"]
    (bias,) = plugin.graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(bias), floats(2, 16, 16))
    # What is computed is an input.
    given = parse(
        """g (float[1, 6, 8, 12] x, float[12] t) => (float[1, 6, 8, 4] y) { y = swinopt.WindowAttention
            <window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(x, bias, "", t) }""",
        bias=floats(2, 16, 16),
    )
    lab.build(given)
    assert [value.name for value in lab.alone[0].graph.input] == ["qkv", "pad_qkv"]
    assert len(lab.alone[0].graph.initializer) == 1


def test_what_reads_a_computed_bias_is_not_measured(lab: Lab) -> None:
    """No plugin may run it."""
    given = parse(
        """g (float[1, 8, 8, 12] x, float[2, 16, 16] t, float[2] l) => (float[1, 8, 8, 4] y) {
            y = swinopt.WindowAttention<window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(x, t, l) }"""
    )
    engine = lab.build(given)
    assert not lab.alone and not engine.plugin_layers and chosen(engine) == {"y": "standard"}
    why = "kernels take relative_position_bias and logit_scale from initializers alone"
    assert engine.notes == (f"WindowAttention of y is spelled out: {why}",)


def test_inputs_that_are_absent_stay_so(lab: Lab) -> None:
    attention = "swinopt.WindowAttention<window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>"
    given = parse(
        f"""g (float[1, 6, 8, 12] x) => (float[1, 6, 8, 4] y, float[1, 6, 8, 4] z) {{
            y = {attention}(x, bias, "", pad)  z = {attention}(x, bias, logit, pad) }}""",
        bias=floats(2, 16, 16),
        logit=floats(2),
        pad=floats(12),
    )
    engine = lab.build(given)
    assert [list(c.shapes) for c in engine.choices] == [
        ["qkv", "relative_position_bias", "pad_qkv"],
        ["qkv", "relative_position_bias", "logit_scale", "pad_qkv"],
    ]
    (first,), (second,) = ops.nodes(lab.alone[0]), ops.nodes(lab.alone[1])
    assert list(first.input) == ["qkv", "relative_position_bias", "pad_qkv"]
    assert len(second.input) == 4


@pytest.mark.parametrize(
    ("profiles", "batch"),
    [
        (None, 8),
        ({"x": [(b, 8, 8, 12) for b in (1, 3, 9)]}, 3),
        ([{"x": [(b, 8, 8, 12) for b in sizes]} for sizes in ((1, 5, 6), (7, 8, 9))], 5),
    ],
)
def test_sizes_are_those_that_the_first_profile_is_tuned_for(profiles: Any, batch: int, lab: Lab) -> None:
    engine = lab.build(profiles=profiles)
    assert [next(iter(c.shapes.values()))[0] for c in engine.choices] == [batch] * 4
    (value,) = lab.alone[0].graph.input
    assert [d.dim_value for d in value.type.tensor_type.shape.dim] == [batch, 8, 8, 12]
    assert engine.interface.inputs["x"].shape == (-1, 8, 8, 12), "only what is measured has a fixed size"


def test_a_profile_that_does_not_fit_is_told_before_anything_is_built(lab: Lab) -> None:
    with pytest.raises(OptionError, match="the profile lacks x"):
        lab.build(profiles={"z": [(1, 8, 8, 12)] * 3})
    assert not lab.built


@pytest.mark.parametrize(("precision", "kind"), [("fp32", 1), ("tf32", 1), ("fp16", 10), ("bf16", 16)])
def test_where_the_graph_decides_the_ends_are_of_the_precision(precision: str, kind: int, lab_11: Lab) -> None:
    lab_11.build(precision=precision)
    assert len(lab_11.alone) == 8
    for made in lab_11.alone:
        ends = {value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)}
        assert ends == {kind}
        assert not op_counts(made)["Cast"], "the neighbours in a whole engine make none either"
        assert {w.data_type for w in made.graph.initializer} <= {kind, onnx.TensorProto.INT64}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")])
def test_where_flags_decide_the_ends_are_of_the_precision(
    precision: str, dtype: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[set[str]] = []
    monkeypatch.setattr(
        Engine,
        "bench",
        lambda engine, graph: (
            found.append({v.dtype for v in (*engine.inputs.values(), *engine.outputs.values())})
            or lab.bench(engine, graph)
        ),
    )
    engine = lab.build(precision=precision)
    assert found and all(each == {dtype} for each in found)
    assert {w.data_type for made in lab.alone for w in made.graph.initializer} == {1, 7}, "TensorRT converts weights"
    assert engine.inputs["x"].dtype == "float32", "the model's own ends are what the model declares"


def test_what_stays_in_float32_is_given_float32(lab_11: Lab) -> None:
    given = parse(
        """g (float[1, 8, 8, 12] x) => (float[1, 8, 8, 4] y) {
            y = swinopt.WindowAttention<window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(x, bias) }""",
        bias=np.full((2, 16, 16), -1e6, np.float32),
    )
    lab_11.build(given, precision="fp16")
    plugin = lab_11.alone[0]
    assert [value.type.tensor_type.elem_type for value in (*plugin.graph.input, *plugin.graph.output)] == [1, 1]


# ------------------------------------------------------------------------------------------------------- what is timed


def test_both_are_timed_in_turns_and_one_slow_round_decides_nothing(lab: Lab) -> None:
    slow = iter([1.0, 50.0, 1.0, 50.0, 1.0] * 2)
    lab.times["WindowAttention"] = (lambda made: next(slow)), 2.0
    engine = lab.build()
    assert engine.choices[0].plugin_ms == 1.0 and engine.choices[0].chosen == "plugin"
    rounds = [plugin for op, plugin, _ in lab.timed[:10]]
    assert rounds == [True, False, False, True, True, False, False, True, True, False]


@pytest.mark.parametrize("plugin", [True, False])
def test_neither_is_captured_if_one_cannot_be(plugin: bool, lab: Lab) -> None:
    lab.graph = lambda is_plugin: is_plugin != plugin
    lab.build()
    assert {is_captured for _, _, is_captured in lab.timed} == {False}
    assert lab.open == 8, "what was made ready for graphs keeps memory of the GPU"


def test_the_listener_is_told(lab: Lab) -> None:
    told: list[tuple[str, int, int]] = []
    lab.build(progress=lambda *step: told.append(step))
    assert told[:8] == [(choosing.BUILDING, index, 8) for index in range(8)]
    assert told[8:12] == [(choosing.MEASURING, index, 4) for index in range(4)]
    assert "preparing the model" in [phase for phase, _, _ in told[12:]]


def test_a_listener_that_raises_ends_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builders, "_AT_A_TIME", 1)
    built_then: list[int] = []

    def listen(phase: str, step: int, steps: int) -> None:
        if phase == choosing.BUILDING and step == 4:  # the first of the standard ops is there
            built_then.append(len(lab.built))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.build(progress=listen)
    assert len(lab.built) <= built_then[0] + 2 < 8, "but for what had begun, nothing more is built"


@pytest.mark.parametrize(("standard", "builds"), [(1.05, 3), (1.2, 2), (0.9, 2)])
def test_where_they_are_close_standard_ops_are_built_again_alone(standard: float, builds: int, lab: Lab) -> None:
    """Other builds may have disturbed the one among them."""
    times = iter([standard] * 5 + [0.5] * 5)
    lab.times["PatchMerging"] = 1.0, lambda made: next(times)
    here = []

    def noted(made: onnx.ModelProto) -> bool:
        if made.graph.name == "PatchMerging":
            here.append(threading.current_thread() is threading.main_thread())
        return False

    lab.fails = noted
    choice = lab.build().choices[-1]
    assert here == [True, False, True][:builds], "another process would take long to start"
    assert lab.rests == 1
    assert (choice.chosen, choice.standard_ms) == {
        1.05: ("standard", 0.5),
        1.2: ("plugin", 1.2),
        0.9: ("standard", 0.9),
    }[standard]


# ------------------------------------------------------------------------------------------------------ what goes wrong


def of(op: str, plugin: bool) -> Callable[[onnx.ModelProto], bool]:
    return lambda made: made.graph.name == op and bool(ops.uses(made)) == plugin


def test_what_cannot_be_built_is_not_taken(lab: Lab) -> None:
    lab.fails = of("WindowAttention", True)
    engine = lab.build()
    assert engine.plugin_layers == 0
    choice = engine.choices[0]
    assert (choice.chosen, choice.plugin_ms, choice.standard_ms) == ("standard", None, None)
    assert choice.why.startswith("as a plugin: TensorRT 10.9.0 cannot build the engine")
    assert any("is spelled out: as a plugin: TensorRT 10.9.0 cannot build" in note for note in engine.notes)
    # A failure is not kept: both attentions are measured anew.
    lab.fails = lambda made: False
    engine = lab.build()
    assert [c.chosen for c in engine.choices] == ["plugin", "plugin", "standard", "standard"]
    assert [c.from_cache for c in engine.choices] == [False, False, True, True]


def test_what_cannot_be_spelled_out_is_a_plugin(lab: Lab) -> None:
    lab.fails = of("AddLayerNorm", False)
    choice = lab.build().choices[2]
    assert choice.chosen == "plugin", "the plugin is slower, and works"
    assert choice.why.startswith("in standard ops: TensorRT 10.9.0 cannot build the engine")


@pytest.mark.parametrize(("plugin", "expected"), [(True, "standard"), (False, "plugin")])
def test_what_does_not_run_is_not_taken(plugin: bool, expected: str, lab: Lab, tmp_path: Path) -> None:
    failure = ModelError("out of\n memory")
    lab.times["PatchMerging"] = (failure, 1.0) if plugin else (1.0, failure)
    choice = lab.build().choices[-1]
    assert choice.chosen == expected
    assert choice.why == f"{'as a plugin' if plugin else 'in standard ops'}: out of memory"
    assert len(entries(tmp_path)) == 3


def test_a_failure_on_the_way_is_one_as_well(lab: Lab) -> None:
    times = iter([1.0, 1.0])

    def runs_out(made: onnx.ModelProto) -> float:
        if (time := next(times, None)) is None:
            raise SwinoptError("it fell over")
        return time

    lab.times["PatchMerging"] = runs_out, 1.0
    choice = lab.build().choices[-1]
    assert (choice.chosen, choice.why) == ("standard", "as a plugin: it fell over")


def test_where_neither_works_the_whole_model_tells(lab: Lab) -> None:
    lab.fails = lambda made: made.graph.name == "PatchMerging"
    engine = lab.build()
    choice = engine.choices[-1]
    assert choice.chosen == "plugin"
    assert "as a plugin: " in choice.why and "; in standard ops: " in choice.why
    lab.fails = lambda made: True
    with pytest.raises(SwinoptError, match="cannot build the engine"):
        lab.build()


def test_a_plugin_that_nobody_has_is_an_error_and_no_slower_engine(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_module, "_without_plugin", lambda trt, needed: list(needed))
    monkeypatch.delattr(lab.trt, "IPluginV3")
    with pytest.raises(MissingDependencyError, match="no plugin for"):
        lab.build()
    assert not lab.built


def test_a_library_that_cannot_be_loaded_is_an_error_and_no_slower_engine(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(path: Path) -> None:
        raise SwinoptError(f"{path} is of another TensorRT")

    lab.trt.plugins = False
    monkeypatch.setattr(plugin_library, "find_library", lambda version=None: tmp_path / "library.so")
    monkeypatch.setattr(plugin_library, "load_library", refuse)
    with pytest.raises(SwinoptError, match="is of another TensorRT"):
        lab.build()
    assert not lab.built


def test_plugin_layers_are_counted_where_some_ops_are_spelled_out(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.build()
    counted = tensorrt._Build._plugin_layers
    monkeypatch.setattr(tensorrt._Build, "_plugin_layers", lambda build: counted(build) - 1)
    with pytest.raises(SwinoptError, match=r"3 nodes need a plugin, and TensorRT 10\.9\.0 made 2"):
        lab.build()


def test_what_is_missing_to_run_engines_is_an_error(lab: Lab) -> None:
    lab.times["WindowAttention"] = (MissingDependencyError("cuda-bindings"), 1.0)
    with pytest.raises(MissingDependencyError, match="cuda-bindings"):
        lab.build()


def test_an_op_whose_sizes_cannot_be_told_stays_a_plugin(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    given = model(2)
    given.graph.input[0].type.tensor_type.ClearField("shape")

    def nothing(made: onnx.ModelProto, plugin: bool) -> Engine:
        raise AssertionError("nothing is built")

    choices = choosing.choose(given, None, nothing, lambda: builders.InTurn(nothing), trt=lab.trt, settings={})
    assert {c.chosen for c in choices} == {"plugin"} and {c.why for c in choices} == {"its sizes cannot be told"}
    assert sorted(name for c in choices for name in c.nodes) == ["a", "c", "e", "s", "y"]
    assert not choices.spelled_out


def test_an_op_in_a_branch_stays_a_plugin(lab: Lab) -> None:
    given = model()
    (attention,) = [node for node in given.graph.node if node.output[0] == "e"]
    inner = onnx.NodeProto()
    inner.CopyFrom(attention)
    inner.output[0] = "inner"
    ends = [onnx.helper.make_tensor_value_info("inner", 1, [None] * 4)]
    branch = onnx.helper.make_graph([inner], "branch", [], ends)
    attention.CopyFrom(onnx.helper.make_node("If", ["yes"], ["e"], then_branch=branch, else_branch=branch))
    given.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "yes"))
    lab.times = dict.fromkeys(TIMES, (2.0, 1.0))
    engine = lab.build(given)
    assert {"a", "c"} <= chosen(engine).keys() and "inner" not in chosen(engine)
    final = onnx.load_model_from_string(engine.plan)
    assert {node.output[0] for node in ops.nodes(final)} >= {"inner"}


# -------------------------------------------------------------------------------------------- where nothing is measured


def test_without_swinopt_ops_nothing_is_measured(lab: Lab) -> None:
    engine = lab.build(parse("g (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"))
    assert len(lab.built) == 1 and not lab.timed and not engine.choices and not engine.notes


@pytest.mark.parametrize(("plugins", "layers"), [("on", 5), ("off", 0)])
def test_what_was_asked_for_is_not_measured(plugins: str, layers: int, lab: Lab) -> None:
    engine = lab.build(plugins=plugins)
    assert engine.plugin_layers == layers
    assert len(lab.built) == 1 and not lab.timed and not engine.choices


def test_tensorrt_rtx_measures_nothing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.trt, "__name__", "tensorrt_rtx", raising=False)
    engine = lab.build()
    assert engine.plugin_layers == 5 and len(lab.built) == 1 and not engine.choices and not engine.notes


# ---------------------------------------------------------------------------------------------------------------- table


def test_the_choices_print_as_a_table() -> None:
    shapes = {"qkv": (8, 56, 56, 288), "relative_position_bias": (3, 49, 49)}
    attributes = {"window_size": (7, 7), "shift_size": (3, 3), "scale": 0.177}
    times: dict[str, Any] = {"plugin_ms": 0.1234, "standard_ms": 0.25, "from_cache": True}
    unknown: dict[str, Any] = {"plugin_ms": None, "standard_ms": None}
    table = Choices(
        [
            Choice(
                "WindowAttention", attributes, shapes, ("a", "b"), chosen="plugin", why="2.03 times as fast", **times
            ),
            Choice("PatchMerging", {}, {}, ("c",), chosen="standard", why="as a plugin: no memory", **unknown),
        ]
    )
    heading, first, second = str(table).splitlines()
    assert heading.split() == ["op", "inputs", "nodes", "plugin", "ms", "standard", "ms", "chosen", "why"]
    assert first.split("  ")[0] == "WindowAttention(window_size=7x7, shift_size=3x3)"
    assert "  qkv 8x56x56x288, relative_position_bias 3x49x49  " in first
    assert first.endswith("0.1234       0.2500  plugin    2.03 times as fast, measured before")
    assert second.endswith("     -            -  standard  as a plugin: no memory")
    for title, end in (("nodes", "2"), ("plugin ms", "0.1234"), ("standard ms", "0.2500")):
        assert heading.index(title) + len(title) == first.index(f" {end} ") + 1 + len(end), "numbers end in one line"
    assert heading.index("chosen") == first.index("plugin  ") == second.index("standard")
    assert table.spelled_out == {"c"}
    assert str(Choices()) == ""
    assert json.loads(json.dumps(table[0].to_dict())) == {
        "op": "WindowAttention",
        "attributes": {"window_size": [7, 7], "shift_size": [3, 3], "scale": 0.177},
        "shapes": {"qkv": [8, 56, 56, 288], "relative_position_bias": [3, 49, 49]},
        "nodes": ["a", "b"],
        "plugin_ms": 0.1234,
        "standard_ms": 0.25,
        "chosen": "plugin",
        "why": "2.03 times as fast",
        "from_cache": True,
    }


def test_an_engine_shows_its_choices_and_a_file_has_none(lab: Lab, tmp_path: Path) -> None:
    engine = lab.build()
    assert "AddLayerNorm, 1 nodes: standard, 3.00 times as fast" in engine._repr_html_()
    assert "WindowAttention" in str(engine.choices)
    assert Engine.load(engine.save(tmp_path / "an.engine")).choices == ()

"""Building engines with TensorRT-RTX, which needs no GPU for it: graphs, precisions, profiles, refusals."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import choosing, cuda, graph, ops, plugin_library, tensorrt, tensorrt_module
from swinopt.engine import Engine
from swinopt.errors import MissingDependencyError, ModelError, OptionError, SwinoptError
from swinopt.testing import parse

trt = pytest.importorskip(
    "tensorrt_rtx", reason='building without a GPU needs TensorRT-RTX: pip install "swinopt[rtx]"'
)
pytest.importorskip("cuda.bindings.runtime", reason="the plugins in Python need cuda-bindings")

RNG = np.random.default_rng(0)
BATCHES = ((1, 8, 8, 16), (4, 8, 8, 16), (8, 8, 8, 16))


@pytest.fixture(autouse=True)
def plugins_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever library lies on this machine: it may be an old one, and is not what is tested here."""
    monkeypatch.setattr(plugin_library, "find_library", lambda version=None: None)


def floats(*shape: int) -> Any:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def block(batch: int | str = 1, *, gelu: bool = False) -> onnx.ModelProto:
    """What is left of a Swin block: norm, linear, window attention, linear."""
    return parse(
        f"""g (float[{batch}, 8, 8, 16] x) => (float[{batch}, 8, 8, 16] y) {{
            n = LayerNormalization<axis=-1>(x, gamma, beta)  a = MatMul(n, w)
            t = swinopt.WindowAttention<window_size=[4,4], shift_size=[2,2], num_heads=2, scale=0.18>(a, bias)
            p = MatMul(t, v)  {"y = Gelu(p)" if gelu else "y = Add(p, x)"} }}""",
        gamma=floats(16),
        beta=floats(16),
        w=floats(16, 192),
        bias=floats(2, 16, 16),
        v=floats(64, 16),
    )


def residual() -> onnx.ModelProto:
    """An addition and its norm, then a patch merging."""
    return parse(
        """g (float[1, 8, 8, 16] x) => (float[1, 8, 8, 16] s, float[1, 4, 4, 64] y) {
            s, n = swinopt.AddLayerNorm(x, x, gamma, beta)  y = swinopt.PatchMerging(n, gamma4, beta4) }""",
        gamma=floats(16),
        beta=floats(16),
        gamma4=floats(64),
        beta4=floats(64),
    )


def normed() -> onnx.ModelProto:
    """A norm with a residual, and one without."""
    return parse(
        """g (float[1, 8, 8, 16] x) => (float[1, 8, 8, 16] y) {
            s = Sigmoid(x)  r = swinopt.LayerNorm(s, gamma, beta, x)  y = swinopt.LayerNorm(r, gamma, beta) }""",
        gamma=floats(16),
        beta=floats(16),
    )


def build(model: Any, **options: Any) -> Engine:
    return tensorrt.build(model, tensorrt="tensorrt_rtx", **options)


# -------------------------------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], swinopt.Optimized]:
    """Whole models of timm, optimized for TensorRT."""
    pytest.importorskip("timm", reason="exporting needs timm")
    folder = tmp_path_factory.mktemp("models")

    def make(name: str, dynamic: bool) -> swinopt.Optimized:
        path = folder / f"{name}.{dynamic}.onnx"
        swinopt.export(name, path, exporter="torchscript", dynamic_batch=dynamic, check=False)
        # That passes keep the numbers is what their own tests are for.
        return swinopt.optimize(path, verify=False)

    return make


@pytest.mark.parametrize(
    ("name", "size", "dynamic", "precision"),
    [
        ("swin_tiny_patch4_window7_224", 224, False, "fp16"),
        ("swin_tiny_patch4_window7_224", 224, True, "fp32"),
        ("swinv2_tiny_window8_256", 256, False, "fp32"),
        ("swinv2_tiny_window8_256", 256, True, "fp16"),
    ],
)
def test_every_block_of_a_swin_becomes_a_plugin_layer(
    name: str, size: int, dynamic: bool, precision: str, optimized: Callable[[str, bool], swinopt.Optimized]
) -> None:
    image = (3, size, size)
    profiles = {"input": [(batch, *image) for batch in (1, 4, 8)]} if dynamic else None
    result = optimized(name, dynamic)
    engine = build(result, precision=precision, profiles=profiles)

    assert engine.plugin_layers == ops.uses(result.model).total() >= 12
    assert ops.uses(result.model)["WindowAttention"] == 12
    assert engine.inputs["input"].shape == ((-1, *image) if dynamic else (1, *image))
    assert (engine.inputs["input"].dtype, engine.outputs["output"].dtype) == ("float32", "float32")
    parameters = sum(int(np.prod(w.dims, dtype=np.int64)) for w in result.model.graph.initializer)
    # An engine that is half as large has weights that are half as wide: "fp16" is no name alone.
    assert len(engine.plan) / parameters == pytest.approx(2 if precision == "fp16" else 4, rel=0.15)


# --------------------------------------------------------------------------------------------------------- small models


@pytest.mark.parametrize("precision", tensorrt.PRECISIONS)
def test_every_precision_builds(precision: str) -> None:
    engine = build(block(), precision=precision)
    assert (engine.precision, engine.plugin_layers) == (precision, 1)
    assert f"{precision}, 1 plugin layers" in repr(engine)
    assert "float32[1, 8, 8, 16]" in repr(engine)


@pytest.mark.parametrize("batch", [1, "N"])
def test_without_plugins_the_ops_are_spelled_out(batch: int | str) -> None:
    profiles = {"x": BATCHES} if batch == "N" else None
    assert build(block(batch), plugins="off", profiles=profiles).plugin_layers == 0


def test_where_nothing_is_measured_auto_is_on() -> None:
    """TensorRT-RTX measures nothing, and nothing here has a GPU to measure on."""
    told: dict[str, set[str]] = {"auto": set(), "on": set()}
    auto, on = (
        build(residual(), plugins=plugins, progress=lambda phase, *_, into=phases: into.add(phase))
        for plugins, phases in told.items()
    )
    assert auto.plugin_layers == on.plugin_layers == 2
    assert (auto.interface, auto.notes, auto.choices) == (on.interface, on.notes, ())
    assert told["auto"] == told["on"] and choosing.MEASURING not in told["auto"]
    assert len(auto.plan) == len(on.plan)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_an_op_to_be_measured_builds_in_both_forms(precision: str, dtype: str) -> None:
    measured = [op for made in (block("N"), residual(), normed()) for op in choosing._ops_of(graph.load(made), None)]
    assert [op.type for op in measured] == ["WindowAttention", "AddLayerNorm", "PatchMerging", "LayerNorm", "LayerNorm"]
    module = tensorrt_module.find("tensorrt_rtx")
    for op in measured:
        for plugin in (True, False):
            engine = tensorrt._Build(module, precision, None, None, None, None, False).engine_of_op(op.model(), plugin)
            assert engine.plugin_layers == int(plugin)
            assert {value.dtype for value in (*engine.inputs.values(), *engine.outputs.values())} == {dtype}


@pytest.mark.parametrize("names", [["s"], ["y"]])
def test_ops_of_which_some_are_spelled_out_build(names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensorrt.for_parser
    monkeypatch.setattr(tensorrt, "for_parser", lambda model, **o: given(model, **{**o, "spelled_out": names}))
    assert build(residual()).plugin_layers == 1


def test_ops_with_several_outputs_build_with_plugins_and_without() -> None:
    assert build(residual()).plugin_layers == 2
    assert build(residual(), plugins="off").plugin_layers == 0


def test_a_graph_for_8_6_and_an_unoptimized_one_build_as_well() -> None:
    assert build(swinopt.optimize(block(gelu=True), target="tensorrt-8.6", verify=False)).plugin_layers == 1
    assert build(parse("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }")).plugin_layers == 0


def test_one_profile_several_and_none() -> None:
    assert build(block("N")).interface.profiles == ({"x": ((1, 8, 8, 16), (8, 8, 8, 16), (32, 8, 8, 16))},)
    several = [{"x": [(1, 8, 8, 16)] * 3}, {"x": BATCHES}]
    assert build(block("N"), profiles=several).interface.profiles[1] == {"x": BATCHES}
    with pytest.raises(OptionError, match=r"no dynamic input: leave profiles out"):
        build(block(), profiles={"x": BATCHES})


def test_building_tells_how_far_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    build(block(), progress=lambda *step: told.append(step))
    assert told[0][0] == "preparing the model"
    assert len({name for name, _, _ in told}) > 1
    build(block(), progress=True)
    assert "preparing the model" in capsys.readouterr().out


def test_what_the_listener_raises_ends_the_build() -> None:
    class Enough(Exception):
        pass

    def listen(name: str, step: int, steps: int) -> None:
        if name != "preparing the model":
            raise Enough

    with pytest.raises(Enough):
        build(block(), progress=listen)


def test_a_timing_cache_is_left_alone_where_nothing_is_measured(tmp_path: Path) -> None:
    build(block(), timing_cache=tmp_path / "timing.cache")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------- saved files


def test_a_saved_engine_is_the_plan_and_nothing_else(tmp_path: Path) -> None:
    engine = build(block())
    path = engine.save(tmp_path / "block.engine")
    assert path.read_bytes() == engine.plan
    assert [file.name for file in tmp_path.iterdir()] == ["block.engine"]
    loaded = Engine.load(path, tensorrt="tensorrt_rtx")
    assert loaded.plan == engine.plan
    assert "TensorRT-RTX" in repr(loaded) and loaded.plugin_layers is None


@pytest.mark.skipif(cuda.device_count() > 0, reason="there is a GPU here")
def test_running_without_a_gpu_says_so() -> None:
    engine = build(block())
    for use in (lambda: engine.run({"x": np.zeros((1, 8, 8, 16), np.float32)}), engine.benchmark, engine.profile):
        with pytest.raises(SwinoptError, match="no NVIDIA GPU was found"):
            use()
    assert "built without a GPU, for SM80" in engine.notes[-1]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_what_the_parser_does_not_take_is_told_with_its_reason() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    model.graph.node[0].op_type = "NoSuchOp"
    with pytest.raises(ModelError, match=r"the parser of TensorRT-RTX .* does not take the model: .*NoSuchOp"):
        build(model, precision="fp32")


def test_why_a_plugin_refuses_is_told() -> None:
    # Two spatial axes, and a window of three: the plugin sees it, and TensorRT alone would not say.
    model = block()
    (attribute,) = (a for n in model.graph.node for a in n.attribute if a.name == "window_size")
    attribute.ints.append(4)
    with pytest.raises(SwinoptError, match=r"WindowAttention: .*window_size"):
        build(model)


def test_a_plugin_that_nobody_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_module, "_without_plugin", lambda trt, needed: list(needed))
    with pytest.raises(MissingDependencyError, match=r"no plugin for WindowAttention: .*swinopt build-plugins.*off"):
        build(block())
    assert build(block(), plugins="off").plugin_layers == 0


def test_a_plugin_that_was_not_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_bodies(model: onnx.ModelProto, **_: Any) -> Any:
        # A node that has a body and does not name its plugin: the parser prefers the body and says nothing.
        ops.attach_bodies(model)
        return model, {}

    monkeypatch.setattr(tensorrt, "for_parser", with_bodies)
    with pytest.raises(SwinoptError, match=r"2 nodes need a plugin, and TensorRT-RTX .* made 0"):
        build(residual(), precision="fp32")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "no precision 'int8'; there are fp16, bf16, tf32, fp32"),
        ({"plugins": "no"}, '"auto", "on" or "off", and not \'no\''),
        ({"profiles": {"x": [(1, 8, 8, 16)]}}, "three shapes"),
    ],
)
def test_options_that_there_are_not(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(block("N"), **options)


def test_weights_of_another_precision_are_never_taken_for_what_was_asked() -> None:
    model = parse(
        "g (float[1, 2] x) => (float[1, 2] y) { a = Cast<to=10>(x)  b = Mul(a, w)  y = Cast<to=1>(b) }",
        w=np.ones(2, np.float16),
    )
    assert build(model).precision == "fp16"
    with pytest.raises(ModelError, match="has fp16 weights, and fp32 is asked for: build it with fp16"):
        build(model, precision="fp32")


def test_weights_that_stay_in_float32_are_in_the_notes() -> None:
    model = parse("g (float[1, 2] x) => (float[1, 2] y) { y = Mul(x, w) }", w=np.array([1, 1e6], np.float32))
    assert "y stays in float32: w holds 1e+06" in build(model).notes[0]


# ----------------------------------------------------------------------------------------------------------- the module


def test_the_module_is_the_one_that_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tensorrt_module.find("tensorrt_rtx") is trt
    monkeypatch.setenv(tensorrt_module.VARIABLE, "tensorrt_rtx")
    assert tensorrt_module.find() is trt
    monkeypatch.setenv(tensorrt_module.VARIABLE, "tensort")
    with pytest.raises(OptionError, match="no TensorRT module 'tensort'"):
        tensorrt_module.find()


def test_a_module_that_is_missing_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt_module, "import_module", missing)
    monkeypatch.delenv(tensorrt_module.VARIABLE, raising=False)
    with pytest.raises(MissingDependencyError, match=r"swinopt\[tensorrt\].*'tensorrt'; .*'tensorrt_rtx'"):
        tensorrt_module.find()


def test_errors_are_kept_for_the_exception_and_stay_off_the_terminal(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = tensorrt_module.logger(trt)
    logger.errors.clear()
    with caplog.at_level(logging.INFO, "swinopt.tensorrt"):
        logger.log(trt.ILogger.Severity.ERROR, "it  broke\n")
        logger.log(trt.ILogger.Severity.WARNING, "it may break")
    assert tensorrt_module.complaints(trt) == "it broke"
    assert tensorrt_module.complaints(trt) == "TensorRT gave no reason"
    assert "it may break" in caplog.text
    assert capfd.readouterr() == ("", "")

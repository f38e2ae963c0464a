"""Engines on a GPU: with TensorRT 8.6 and the plugin library, or any later one; against ONNX Runtime in fp32.

The models are written here, so that neither torch nor timm is needed.
"""

from __future__ import annotations

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import cuda, session, tensorrt, tensorrt_module
from swinopt.choice import by_time
from swinopt.engine import Engine
from swinopt.errors import MissingDependencyError, ModelError, OptionError
from swinopt.precision import NARROW
from swinopt.testing import parse

pytestmark = pytest.mark.gpu
pytest.importorskip("onnxruntime", reason="the outputs are compared with those of ONNX Runtime")

#: What an output of order 1 may be off by: a few roundings of the narrowest number that the engine computes with.
TOLERANCE = {"fp32": 2e-5, "tf32": 5e-3, "fp16": 5e-3, "bf16": 4e-2}
RNG = np.random.default_rng(0)


def floats(*shape: int, scale: float = 1.0) -> Any:
    return (scale * RNG.standard_normal(shape)).astype(np.float32)


def swin(*, cosine: bool = False, padded: bool = False) -> onnx.ModelProto:
    """A small Swin as swinopt leaves it: patch embedding, two blocks of which one is shifted, and a head."""
    size, window, heads, width = (10, 7, 2, 64) if padded else (14, 7, 2, 64)
    tokens = window * window
    optional = ["scale" if cosine else '""', "pad" if padded else '""']
    inputs = ", ".join(["bias", *optional[: 2 if padded else 1 if cosine else 0]])
    weights: dict[str, Any] = {
        "k": floats(width, 3, 4, 4, scale=0.15),
        "shape": np.array([0, width, size * size]),
        "map": np.array([0, size, size, width]),
        "bias": floats(heads, tokens, tokens),
        "axes": np.array([1, 2]),
        "h": floats(width, 10),
    }
    if cosine:
        weights["scale"] = np.array([3.0, 7.0], np.float32)
    if padded:
        weights["pad"] = floats(3 * width)
    body = ""
    for index, shift in enumerate((0, 3)):
        last = f"x{index}"
        weights |= {
            f"g{index}": 1 + floats(width, scale=0.1),
            f"b{index}": floats(width, scale=0.1),
            f"q{index}": floats(width, 3 * width, scale=0.125),
            f"p{index}": floats(width, width, scale=0.125),
        }
        body += f"""
            n{index} = LayerNormalization<axis=-1>({last}, g{index}, b{index})  l{index} = MatMul(n{index}, q{index})
            a{index} = swinopt.WindowAttention<window_size=[{window},{window}], shift_size=[{shift},{shift}],
                num_heads={heads}, scale=0.177>(l{index}, {inputs})
            o{index} = MatMul(a{index}, p{index})  r{index} = Gelu(o{index})  x{index + 1} = Add({last}, r{index})"""
    text = f"""g (float[N, 3, {4 * size}, {4 * size}] image) => (float[N, 10] logits) {{
        e = Conv<kernel_shape=[4,4], strides=[4,4]>(image, k)  f = Reshape(e, shape)
        t = Transpose<perm=[0,2,1]>(f)  x0 = Reshape(t, map) {body}
        m = ReduceMean<keepdims=0>(x2, axes)  logits = MatMul(m, h) }}"""
    return parse(text, **weights)


MODELS = {"v1": swin(), "v2": swin(cosine=True), "padded": swin(padded=True), "both": swin(cosine=True, padded=True)}


def linears(precision: str) -> int:
    """How many of a model's linears are plugins: all but that of the head, whose size is no multiple of 8."""
    trt = tensorrt_module.find()
    measures = not tensorrt_module.is_rtx(trt)
    return 5 if tensorrt_module.cublaslt_version(trt) and (measures or precision in NARROW) else 0


def norms(precision: str) -> int:
    """How many of a model's norms are plugins: they are wherever linears are."""
    return 2 if linears(precision) else 0


def images(model: onnx.ModelProto, batch: int, seed: int = 1) -> Any:
    side = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    return np.random.default_rng(seed).standard_normal((batch, 3, side, side)).astype(np.float32)


def build(model: onnx.ModelProto | swinopt.Optimized, **options: Any) -> Engine:
    proto = model.model if isinstance(model, swinopt.Optimized) else model
    sizes = {"image": [images(proto, batch).shape for batch in (1, 4, 8)]}
    try:
        # What is tested here are numbers: TensorRT need not look for the fastest kernels.
        return tensorrt.build(model, **{"profiles": sizes, "plugins": "on", "optimization_level": 1, **options})
    except MissingDependencyError as error:
        pytest.skip(str(error))


def assert_close(found: Any, model: onnx.ModelProto, image: Any, precision: str) -> None:
    expected = session.run(model, {"image": image})["logits"]
    assert expected.std() > 0.1, "outputs this small would hide a difference"
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= TOLERANCE[precision] * max(1.0, np.abs(expected).max())


@pytest.fixture(scope="module", autouse=True)
def this_gpu() -> None:
    """Skips everything where this TensorRT runs nothing on this GPU: TensorRT-RTX knows no Hopper."""
    try:
        trivial = tensorrt.build(parse("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }"), precision="fp32")
    except MissingDependencyError as error:
        pytest.skip(str(error))
    with trivial:
        try:
            trivial.run({"x": np.zeros((1, 4), np.float32)})
        except ModelError as error:
            if "does not support this compute capability" not in str(error):
                raise
            pytest.skip(str(error))


@pytest.fixture(scope="module")
def engine() -> Any:
    """One engine for whatever is no matter of the model; closed at the end."""
    with build(MODELS["v1"], precision="fp32") as made:
        yield made


@pytest.mark.skipif(cuda.device_count() < 2, reason="needs two GPUs")
def test_engines_on_two_gpus_run_in_one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each on the one that was current when it was built, whichever is when it runs."""
    monkeypatch.setenv("SWINOPT_CACHE", str(tmp_path))
    image = images(MODELS["v1"], 2)
    with cuda.on_device(1), build(MODELS["v1"], precision="fp16", plugins="auto") as second:
        assert all(choice.plugin_ms for choice in second.choices)
        assert_close(second.run({"image": image})["logits"], MODELS["v1"], image, "fp16")
        with cuda.on_device(0), build(MODELS["v1"], precision="fp16") as first:
            for engine in (first, second, first):
                assert_close(engine.run({"image": image})["logits"], MODELS["v1"], image, "fp16")
                assert cuda.current_device() == 0


def test_runs_and_benches_of_one_profile_live_side_by_side() -> None:
    """TensorRT 8.6 has to be told at the build that a profile is for several contexts."""
    image = images(MODELS["v1"], 2)
    with build(MODELS["v1"], precision="fp16") as engine:
        before = engine.run({"image": image})["logits"]
        with engine.bench(batch=2) as bench, engine.bench(batch=4) as other:
            assert bench.time(runs=5).median > 0 and other.time(runs=5).median > 0
            np.testing.assert_array_equal(engine.run({"image": image})["logits"], before)
            assert bench.time(runs=5).shapes == {"image": image.shape}


@pytest.mark.parametrize("plugins", ["on", "off"])
@pytest.mark.parametrize("precision", tensorrt.PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_an_engine_computes_what_the_model_does(name: str, precision: str, plugins: str) -> None:
    model = MODELS[name]
    try:
        made = build(model, precision=precision, plugins=plugins)
    except OptionError as error:
        pytest.skip(str(error))  # TensorRT 8.6 has no bf16
    with made:
        assert made.plugin_layers == (2 + linears(precision) + norms(precision) if plugins == "on" else 0)
        for batch in (1, 3, 8):
            image = images(model, batch)
            assert_close(made.run({"image": image})["logits"], model, image, precision)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("name", ["v1", "both"])
def test_what_is_measured_to_be_faster_is_taken(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tensorrt_module.is_rtx(tensorrt_module.find()):
        pytest.skip("TensorRT-RTX measures nothing")
    monkeypatch.setenv("SWINOPT_CACHE", str(tmp_path))
    model, image = MODELS[name], images(MODELS[name], 4)
    for from_cache in (False, True):
        with build(model, precision=precision, plugins="auto") as made:
            attentions = [choice for choice in made.choices if choice.op == "WindowAttention"]
            assert len(attentions) == 2, "with and without a shift"
            assert sum(len(c.nodes) for c in made.choices if c.op == "Linear") == linears(precision)
            assert sum(len(c.nodes) for c in made.choices if c.op == "LayerNorm") == norms(precision)
            for choice in made.choices:
                assert choice.plugin_ms and choice.standard_ms and choice.from_cache == from_cache, choice.why
                times = choice.plugin_ms, choice.standard_ms
                assert choice.chosen == by_time(choice.op, precision, len(choice.nodes), *times)[0]
            assert all(choice.shapes["qkv"][0] == 4 for choice in attentions), "the usual batch of the profile"
            assert made.plugin_layers == sum(len(c.nodes) for c in made.choices if c.chosen == "plugin")
            assert_close(made.run({"image": image})["logits"], model, image, precision)


def test_a_saved_engine_is_the_same(engine: Engine, tmp_path: Path) -> None:
    image = images(MODELS["v1"], 2)
    expected = engine.run({"image": image})["logits"]
    with Engine.load(engine.save(tmp_path / "v1.engine")) as loaded:
        assert loaded.interface == engine.interface
        np.testing.assert_array_equal(loaded.run({"image": image})["logits"], expected)


def test_a_damaged_plan_is_an_error(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "damaged.engine"
    path.write_bytes(engine.plan[: len(engine.plan) // 2])
    with pytest.raises(ModelError, match="cannot load the engine"):
        Engine.load(path).run({"image": images(MODELS["v1"], 1)})


def test_tensors_on_the_gpu_stay_there(engine: Engine) -> None:
    torch = pytest.importorskip("torch", reason="tensors of torch are what is given here")
    if not torch.cuda.is_available():
        pytest.skip("this torch sees no GPU")
    image = torch.from_numpy(images(MODELS["v1"], 2)).cuda()
    out = engine.run({"image": image})["logits"]
    assert out.is_cuda
    assert_close(out.cpu().numpy(), MODELS["v1"], image.cpu().numpy(), "fp32")
    with pytest.raises(RuntimeError, match="size of tensor"):  # and not whatever becomes of it as the output is dropped
        engine.run({"image": image})["logits"] + torch.zeros(7, device="cuda")
    before = torch.cuda.mem_get_info()[0]
    for _ in range(50):
        out = engine.run({"image": image})["logits"]
    del out
    gc.collect()
    assert torch.cuda.mem_get_info()[0] >= before - 2**24, "outputs that nobody holds any more were kept"


def test_shapes_outside_of_the_profile_are_refused_and_the_engine_goes_on(engine: Engine) -> None:
    with pytest.raises(OptionError, match="no profile of the engine takes"):
        engine.run({"image": images(MODELS["v1"], 9)})
    assert engine.run({"image": images(MODELS["v1"], 1)})["logits"].shape == (1, 10)


def test_several_profiles_are_chosen_by_shape() -> None:
    model = MODELS["v1"]
    each = [{"image": [images(model, b).shape] * 3} for b in (1, 4)]
    with build(model, precision="fp32", profiles=each) as made:
        for batch in (4, 1, 4):
            image = images(model, batch)
            assert_close(made.run({"image": image})["logits"], model, image, "fp32")


def test_threads_may_share_an_engine(engine: Engine) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        image = images(MODELS["v1"], 1 + seed % 3, seed)
        expected = session.run(MODELS["v1"], {"image": image})["logits"]
        for _ in range(10):
            if np.abs(engine.run({"image": image})["logits"] - expected).max() > 1e-3:
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_benchmark_is_of_the_order_of_a_small_model(engine: Engine) -> None:
    timing = engine.benchmark(batch=8, runs=50)
    assert len(timing.samples) == 50
    assert 0.005 < timing.median < 50
    assert timing.shapes["image"][0] == 8
    assert engine.benchmark(runs=10, graph=False).graph is False
    image = images(MODELS["v1"], 1)
    assert_close(engine.run({"image": image})["logits"], MODELS["v1"], image, "fp32")


def test_a_profile_names_the_plugins_and_leaves_the_engine_as_it_was(engine: Engine) -> None:
    layers = engine.profile(batch=2, runs=3)
    assert layers.total > 0
    assert list(layers.layers.values()) == sorted(layers.layers.values(), reverse=True)
    image = images(MODELS["v1"], 2)
    assert_close(engine.run({"image": image})["logits"], MODELS["v1"], image, "fp32")


def test_a_timing_cache_makes_the_next_build_the_same(tmp_path: Path) -> None:
    if tensorrt_module.is_rtx(tensorrt_module.find()):
        pytest.skip("TensorRT-RTX measures nothing")
    path = tmp_path / "timing.cache"
    build(MODELS["v1"], timing_cache=path).close()
    written = path.read_bytes()
    assert written
    assert not build(MODELS["v1"], timing_cache=path).notes
    path.write_bytes(b"no timing cache")
    assert "was replaced" in build(MODELS["v1"], timing_cache=path).notes[0]


def test_an_optimized_model_is_taken_as_it_is() -> None:
    for target in ("tensorrt", "tensorrt-8.6"):
        result = swinopt.optimize(MODELS["padded"], target=target)
        image = images(MODELS["padded"], 2)
        with build(result, precision="fp32") as made:
            assert_close(made.run({"image": image})["logits"], MODELS["padded"], image, "fp32")

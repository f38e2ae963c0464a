"""The Python plugins: what they say to TensorRT, and what TensorRT-RTX builds of them, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from swinopt import ops
from swinopt.cuda_plugins import FOLDERS, runtime
from swinopt.cuda_plugins.launch import Device, Launch, Unsupported
from swinopt.cuda_plugins.tensorrt import python_plugin
from swinopt.errors import MissingDependencyError, ModelError

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

H200 = Device(capability=90, multiprocessors=132, shared_bytes=232448)
ATTRIBUTES = {"window_size": [7, 7], "shift_size": [3, 3], "num_heads": 3, "scale": 0.25}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(runtime, "device", lambda: H200)
    python_plugin.register(trt)
    python_plugin.take_refusals()
    yield
    python_plugin.take_refusals()


def field(name: str, *values: float) -> Any:
    integers = all(isinstance(value, int) for value in values)
    array = np.array(values, np.int32 if integers else np.float32)
    return trt.PluginField(name, array, trt.PluginFieldType.INT32 if integers else trt.PluginFieldType.FLOAT32)


def fields(**attributes: Any) -> list[Any]:
    """What a parser makes of a node's attributes. The caller keeps the list: TensorRT's collection does not."""
    return [field(name, *np.atleast_1d(value).tolist()) for name, value in attributes.items()]


def creator(op_type: str) -> Any:
    return trt.get_plugin_registry().get_creator(op_type, "1", "swinopt")


def plugin(op_type: str = "WindowAttention", **attributes: Any) -> Any:
    given = fields(**(attributes or ATTRIBUTES))
    return creator(op_type).create_plugin("node", trt.PluginFieldCollection(given), trt.TensorRTPhase.BUILD)


# ------------------------------------------------------------------------------------------------------------ creators


def test_every_op_with_kernels_has_one_creator_however_often_it_is_registered() -> None:
    before = len(trt.get_plugin_registry().all_creators)
    python_plugin.register(trt)
    assert len(trt.get_plugin_registry().all_creators) == before
    for name in FOLDERS:
        names = [f.name for f in creator(name).field_names]
        assert names == [*(a.name for a in ops.SPECS[name].attributes), "inputs_present"]


def test_a_tensorrt_without_plugins_in_python_is_refused() -> None:
    with pytest.raises(MissingDependencyError, match=r"8\.6\.1 takes no plugins in Python"):
        python_plugin.register(SimpleNamespace(__version__="8.6.1"))


def test_fields_become_attributes_and_defaults_are_filled_in() -> None:
    made = plugin(**ATTRIBUTES, roll_first=1)
    assert made.attributes == {
        "window_size": (7, 7),
        "shift_size": (3, 3),
        "num_heads": 3,
        "scale": 0.25,
        "mask_value": -100.0,
        "roll_first": 1,
    }
    assert (made.plugin_name, made.plugin_namespace, made.plugin_version) == ("WindowAttention", "swinopt", "1")
    assert (made.num_outputs, plugin("AddLayerNorm", epsilon=0.5).num_outputs) == (1, 2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scale": None, "num_heads": None}, "attribute num_heads missing"),
        ({"inputs_present": [1, 1, 0]}, "inputs_present has 3 entries for 4 inputs"),
    ],
)
def test_fields_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**ATTRIBUTES, **changed}.items() if value is not None}
    with pytest.raises(ModelError, match=message):
        plugin(**given)
    assert python_plugin.take_refusals() == [f"WindowAttention: {message}"]
    assert python_plugin.take_refusals() == []


@pytest.mark.parametrize("present", [None, [1, 1, 0, 1]])
def test_what_is_serialized_makes_the_same_plugin_again(present: list[int] | None) -> None:
    more = {} if present is None else {"inputs_present": present}
    first = plugin(**ATTRIBUTES, **more, mask_value=-50.0)
    again = creator("WindowAttention").create_plugin("node", first.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
    assert again is not first
    for other in (again, first.clone(), first.attach_to_context(None)):
        assert (other.attributes, other.present) == (first.attributes, present and tuple(present))


# ------------------------------------------------------------------------------------------------- types and formats

KINDS = {"float32": trt.DataType.FLOAT, "float16": trt.DataType.HALF, "bfloat16": trt.DataType.BF16}


def desc(shape: tuple[int, ...], kind: Any = trt.DataType.FLOAT, layout: Any = trt.TensorFormat.LINEAR) -> Any:
    return SimpleNamespace(dims=shape, type=kind, format=layout)


def takes(kinds: list[Any], layout: Any = trt.TensorFormat.LINEAR) -> list[bool]:
    described = [SimpleNamespace(desc=desc((1,), kind, layout)) for kind in kinds]
    return [plugin().supports_format_combination(pos, described, len(kinds) - 1) for pos in range(len(kinds))]


def test_it_takes_dense_tensors_of_one_type() -> None:
    for kind in KINDS.values():
        assert takes([kind] * 3) == [True, True, True]
    assert takes([trt.DataType.HALF, trt.DataType.FLOAT, trt.DataType.HALF]) == [True, False, True]
    assert takes([trt.DataType.INT32] * 3) == [False, False, False]
    assert takes([trt.DataType.HALF] * 2, trt.TensorFormat.CHW2) == [False, False]


def test_bfloat16_needs_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "device", lambda: Device(75, 40, 64 * 1024))
    assert takes([trt.DataType.BF16] * 2) == [False, False]
    assert takes([trt.DataType.HALF] * 2) == [True, True]


def test_outputs_have_the_type_of_the_input() -> None:
    assert plugin("AddLayerNorm", epsilon=0.5).get_output_data_types([trt.DataType.HALF] * 4) == [trt.DataType.HALF] * 2
    with pytest.raises(
        Unsupported, match=r"an input is DataType\.INT8; there are kernels for float32, float16, bfloat16"
    ):
        plugin().get_output_data_types([trt.DataType.INT8] * 2)


# -------------------------------------------------------------------------------------------------------------- shapes


class Integers:
    """The arithmetic of the shape rules, on numbers."""

    def times(self, size: int, factor: int) -> int:
        return size * factor

    def floor_div(self, size: int, divisor: int) -> int:
        return size // divisor

    def ceil_div(self, size: int, divisor: int) -> int:
        return -(-size // divisor)


@pytest.mark.parametrize("op_type", FOLDERS)
def test_symbolic_shapes_are_those_of_the_specification(op_type: str) -> None:
    rules: Any = python_plugin._OUTPUT_SHAPES[op_type]
    for batch, height, width in itertools.product((1, 5), (7, 14), (7, 21)):
        shapes: list[Any] = {
            "WindowAttention": [(batch, height, width, 36), (3, 49, 49)],
            "PatchMerging": [(batch, height, width, 8), (32,), (32,)],
            "AddLayerNorm": [(batch, height, width, 8)] * 2 + [(8,)] * 2,
            "LayerNorm": [(batch, height, width, 8), (8,), (8,), (batch, height, width, 8)],
        }[op_type]
        attributes: dict[str, Any] = ATTRIBUTES if op_type == "WindowAttention" else {}
        wanted = ops.infer_shapes(op_type, shapes, attributes)
        assert [tuple(rule(Integers(), list(shapes[0]))) for rule in rules] == wanted


def constants(shape: tuple[int, ...]) -> list[Any]:
    """What TensorRT makes of sizes that it knows."""
    return [SimpleNamespace(is_constant=lambda: True, get_constant_value=lambda size=size: size) for size in shape]


@pytest.mark.parametrize(
    ("present", "shapes", "message"),
    [
        (None, [(2, 14, 16, 288), (3, 49, 49)], "WindowAttention: size 16 is no multiple of window 7"),
        (None, [(2, 14, 14, 288), (3, 64, 64)], "WindowAttention: relative_position_bias has shape"),
        (None, [(2, 14, 14, 288)], "WindowAttention: relative_position_bias missing"),
        ([1, 1, 0, 1], [(2, 14, 14, 288), (3, 49, 49)], r"WindowAttention: 2 inputs are given, and .* \[1, 1, 0, 1\]"),
        ([1, 1, 0, 1], [(2, 14, 16, 288), (3, 49, 49), (3,)], "WindowAttention: pad_qkv has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_with_a_reason(
    present: list[int] | None, shapes: list[tuple[int, ...]], message: str
) -> None:
    made = plugin(**ATTRIBUTES, **({} if present is None else {"inputs_present": present}))
    with pytest.raises(ModelError):
        made.get_output_shapes([constants(shape) for shape in shapes], [], None)
    (reason,) = python_plugin.take_refusals()
    assert re.match(message, reason)


# -------------------------------------------------------------------------------------------------- plans and launches


def dynamic(shape: tuple[int, ...], least: tuple[int, ...], most: tuple[int, ...]) -> Any:
    return SimpleNamespace(desc=desc(shape), min=least, opt=least, max=most)


def configure(side: int, window: int, batches: tuple[int, int], *, height: int | None = None) -> None:
    n, (least, most) = window * window, batches
    made = plugin(**{**ATTRIBUTES, "window_size": [window] * 2})
    batch = least if least == most else -1
    height = side if height is None else height

    def of(channels: int) -> Any:
        return dynamic((batch, height, side, channels), (least, side, side, channels), (most, side, side, channels))

    made.configure_plugin([of(288), dynamic((3, n, n), (3, n, n), (3, n, n))], [of(96)])


def test_a_problem_without_a_kernel_is_refused_as_the_engine_is_built() -> None:
    configure(14, 7, (1, 1))
    configure(14, 7, (1, 8))
    with pytest.raises(Unsupported, match="a window of 1600 tokens is too large"):
        configure(40, 40, (1, 8))
    assert "a window of 1600 tokens is too large" in python_plugin.take_refusals()[0]
    # Where height is open, min and max need not be shapes that ever come.
    configure(40, 40, (1, 8), height=-1)


def test_a_shape_without_a_kernel_is_refused_as_it_comes() -> None:
    made = plugin()
    made.on_shape_change([desc((2, 14, 14, 288)), desc((3, 49, 49))], [desc((2, 14, 14, 96))])
    with pytest.raises(ModelError, match="no multiple of window 7"):
        made.on_shape_change([desc((2, 15, 14, 288)), desc((3, 49, 49))], [desc((2, 15, 14, 96))])


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Launch, int]]:
    launches: list[tuple[Launch, int]] = []
    monkeypatch.setattr(runtime, "launch", lambda launch, stream: launches.append((launch, stream)))
    return launches


def enqueue(made: Any, batch: int, *addresses: int, stream: int = 5) -> None:
    shapes = [(batch, 8, 8, 288), (3, 49, 49), (288,)]
    kind = trt.DataType.HALF
    inputs = [desc(shape, kind) for shape in shapes]
    made.enqueue(inputs, [desc((batch, 8, 8, 96), kind)], addresses[:3], addresses[3:], 0, stream)


def test_a_launch_has_the_addresses_at_the_places_of_the_op(launched: list[tuple[Launch, int]]) -> None:
    enqueue(plugin(**ATTRIBUTES, inputs_present=[1, 1, 0, 1]), 2, 256, 512, 768, 1024)
    ((launch, stream),) = launched
    p: Any = launch.parameters
    assert (p.qkv, p.relative_position_bias, p.logit_scale, p.pad_qkv, p.output) == (256, 512, None, 768, 1024)
    assert (p.batch, list(p.window), p.num_heads, p.mask_value) == (2, [1, 7, 7], 3, -100.0)
    assert stream == 5
    assert "__half" in launch.kernel


def test_a_launch_is_planned_once_for_a_shape_and_its_addresses(launched: list[tuple[Launch, int]]) -> None:
    made = plugin(**ATTRIBUTES, inputs_present=[1, 1, 0, 1])
    for batch, address in ((2, 256), (2, 256), (3, 256), (2, 128), (2, 256)):
        enqueue(made, batch, address, 512, 768, 1024)
    plans = [id(launch) for launch, _ in launched]
    assert plans[0] == plans[1] == plans[4]
    assert len(set(plans)) == 3
    assert [(launch.parameters.batch, launch.parameters.qkv) for launch, _ in launched[2:4]] == [(3, 256), (2, 128)]


def test_an_error_of_a_launch_reaches_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(launch: Launch, stream: int) -> None:
        raise Unsupported("out of luck")

    monkeypatch.setattr(runtime, "launch", fail)
    with pytest.raises(Unsupported, match="out of luck"):
        enqueue(plugin(**ATTRIBUTES, inputs_present=[1, 1, 0, 1]), 2, 256, 512, 768, 1024)
    assert python_plugin.take_refusals() == ["WindowAttention: out of luck"]


# ------------------------------------------------------------------------------------------- TensorRT-RTX without a GPU

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}


def one_node(op_type: str, dtype: str, *shapes: tuple[int | str, ...], **attributes: Any) -> onnx.ModelProto:
    """A model whose only input is the first one of the op; the others are constants."""
    kind = TYPES[dtype]
    names = [f"constant{i}" for i in range(1, len(shapes))]
    outputs = [f"output{i}" for i in range(len(ops.SPECS[op_type].outputs))]
    node = helper.make_node(
        op_type, ["x", *names], outputs, domain="swinopt", plugin_namespace="swinopt", plugin_version="1", **attributes
    )
    weights = [
        helper.make_tensor(name, kind, shape, np.linspace(-1, 1, int(np.prod(shape))).tolist())
        for name, shape in zip(names, shapes[1:], strict=True)
    ]
    graph = helper.make_graph(
        [node],
        "one_node",
        [helper.make_tensor_value_info("x", kind, shapes[0])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        weights,
    )
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("swinopt", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def attention(dtype: str, *shapes: tuple[int | str, ...], **attributes: Any) -> onnx.ModelProto:
    first, *optional = shapes
    return one_node("WindowAttention", dtype, first, (3, 49, 49), *optional, **ATTRIBUTES, **attributes)


def merging(*shape: int | str) -> onnx.ModelProto:
    return one_node("PatchMerging", "float16", shape, (384,), (384,), epsilon=1e-5)


#: Name to model and to the shape that TensorRT computes for each output; an open size is -1.
MODELS = {
    **{f"static {dtype}": (attention(dtype, (2, 14, 21, 288)), [2, 14, 21, 96]) for dtype in TYPES},
    "batch float32": (attention("float32", ("n", 14, 21, 288)), [-1, 14, 21, 96]),
    "batch float16": (attention("float16", ("n", 14, 21, 288)), [-1, 14, 21, 96]),
    "cosine": (attention("float16", ("n", 14, 21, 288), (3,)), [-1, 14, 21, 96]),
    "padded": (attention("float16", ("n", 15, 20, 288), (288,), inputs_present=[1, 1, 0, 1]), [-1, 15, 20, 96]),
    "open map": (attention("float16", ("n", "h", "w", 288), (288,), inputs_present=[1, 1, 0, 1]), [-1, -1, -1, 96]),
    "merging": (merging("n", 7, 8, 96), [-1, 4, 4, 384]),
    "merging an open map": (merging("n", "h", 7, 96), [-1, -1, 4, 384]),
    "adding": (
        one_node("AddLayerNorm", "float16", (2, 49, 96), (2, 49, 96), (96,), (96,), epsilon=1e-5),
        [2, 49, 96],
    ),
    "norm": (one_node("LayerNorm", "float16", ("n", 49, 96), (96,), (96,), epsilon=1e-5), [-1, 49, 96]),
    "norm and residual": (
        one_node("LayerNorm", "float16", (2, 49, 96), (96,), (96,), (2, 49, 96), epsilon=1e-5),
        [2, 49, 96],
    ),
}
REFUSED = {
    "never padded": attention("float16", ("n", 15, 14, 288)),
    "no kernel": one_node(
        "WindowAttention",
        "float16",
        ("n", 40, 40, 12),
        (1, 1600, 1600),
        window_size=[40, 40],
        shift_size=[0, 0],
        num_heads=1,
        scale=1.0,
    ),
}


BUILD = """
import json, sys
import tensorrt_rtx as trt
from swinopt.cuda_plugins.tensorrt import python_plugin

python_plugin.register(trt)
builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
results = {}
for path in sys.argv[1:]:
    network = builder.create_network(0)
    result = results[path] = {"parsed": trt.OnnxParser(network, builder.logger).parse_from_file(path)}
    if result["parsed"]:
        config = builder.create_builder_config()
        x = network.get_input(0)
        if -1 in x.shape:
            profile = builder.create_optimization_profile()
            profile.set_shape(x.name, *([n if size < 0 else size for size in x.shape] for n in (1, 4, 8)))
            config.add_optimization_profile(profile)
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        result["plugins"] = sum(layer.type == trt.LayerType.PLUGIN_V3 for layer in layers)
        result["outputs"] = [tuple(network.get_output(i).shape) for i in range(network.num_outputs)]
        plan = builder.build_serialized_network(network, config)
        result["bytes"] = 0 if plan is None else plan.nbytes
    result["refusals"] = python_plugin.take_refusals()
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What TensorRT-RTX makes of each of the models, in a process of its own.

    Its parser opens the library by a name that the package does not have. A link of that name has to lie on
    LD_LIBRARY_PATH before a process starts.
    """
    folder = tmp_path_factory.mktemp("rtx")
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None
    (libraries,) = spec.submodule_search_locations or ()
    (folder / "libtensorrt_rtx.so").symlink_to(next(Path(libraries).glob("libtensorrt_rtx.so.*")))
    models = {name: model for name, (model, _) in MODELS.items()} | REFUSED
    paths = {str(folder / f"{name}.onnx"): name for name in models}
    for path, name in paths.items():
        onnx.save(models[name], path)
    result = subprocess.run(
        [sys.executable, "-c", BUILD, *paths],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return {paths[path]: report for path, report in json.loads(result.stdout).items()}


@pytest.mark.parametrize("name", list(MODELS))
def test_tensorrt_rtx_parses_and_builds(name: str, built: dict[str, Any]) -> None:
    report = built[name]
    shapes = [MODELS[name][1]] * (2 if name == "adding" else 1)
    assert (report["parsed"], report["plugins"], report["outputs"]) == (True, 1, shapes)
    assert report["bytes"] > 1000
    assert report["refusals"] == []


def test_tensorrt_rtx_refuses_what_the_plugin_refuses(built: dict[str, Any]) -> None:
    report = built["never padded"]
    assert not report["parsed"]
    assert report["refusals"] == ["WindowAttention: size 15 is no multiple of window 7, so pad_qkv is needed"]
    report = built["no kernel"]
    assert (report["parsed"], report["bytes"]) == (True, 0)
    assert "a window of 1600 tokens is too large" in report["refusals"][0]

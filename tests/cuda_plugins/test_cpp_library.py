"""The C++ plugin library, compiled: against a stand-in for TensorRT of any version, and in TensorRT-RTX.

Set ``TENSORRT_ROOT`` to the headers to compile it with. The kernels are held against their reference elsewhere.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from swinopt import ops, plugin_library
from swinopt.plugin_library import build_plugins

SOURCE = Path(__file__).with_name("plugin_probe.cpp")

pytestmark = pytest.mark.skipif(
    not (os.environ.get("TENSORRT_ROOT") and shutil.which("nvcc") and shutil.which("cmake")),
    reason="compiles with nvcc and CMake against the headers in TENSORRT_ROOT, and they are not all there",
)


@pytest.fixture(scope="module")
def major() -> int:
    headers = plugin_library._find_headers(None)
    return plugin_library._interface_major(plugin_library._version(headers))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_plugins(tmp_path_factory.mktemp("plugins"), architectures=[90])


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("probe") / "probe"
    headers = plugin_library._find_headers(None)
    options = ["-std=c++17", "-Xcompiler=-rdynamic,-Wno-deprecated-declarations", "-cudart=none", f"-I{headers}"]
    subprocess.run(["nvcc", "-x", "c++", *options, str(SOURCE), "-o", str(program), "-ldl"], check=True, timeout=120)
    return program


def ask(probe: Path, library: Path, version: int) -> dict[str, tuple[str, str]]:
    done = subprocess.run([probe, library, str(version)], capture_output=True, text=True, check=True, timeout=60)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: (value, logged) for name, value, logged in lines}


@pytest.fixture(scope="module")
def facts(probe: Path, library: Path, major: int) -> dict[str, tuple[str, str]]:
    return ask(probe, library, 1000 * major if major < 10 else 10000 * major)


def test_the_plugins_register_when_the_library_is_loaded(facts: dict[str, tuple[str, str]]) -> None:
    assert facts["status"] == ("ok", "")
    assert facts["registered"][0] == str(len(ops.SPECS))


def test_a_registry_that_loads_the_library_itself_gets_all_and_finds_none_there(
    facts: dict[str, tuple[str, str]],
) -> None:
    assert facts["listed"][0] == str(len(ops.SPECS))
    assert facts["registered after listing"][0] == "0"


def test_fields_are_attributes_and_which_inputs_are_present(facts: dict[str, tuple[str, str]]) -> None:
    for name, spec in ops.SPECS.items():
        assert facts[name][0].split() == [*(attribute.name for attribute in spec.attributes), "inputs_present"]


# (version as getInferLibVersion tells it, the majors whose libraries fit)
VERSIONS = [(8601, 8), (9300, 9), (100000, 10), (101500, 10), (110100, 11), (120000, 12), (10400, 10), (10500, 11)]


@pytest.mark.parametrize(("version", "fits"), VERSIONS)
def test_the_library_registers_where_interfaces_are_the_same_and_nowhere_else(
    probe: Path, library: Path, major: int, version: int, fits: int
) -> None:
    facts = ask(probe, library, version)
    if fits == major:
        assert facts["status"][0] == "ok" and facts["listed"][0] == str(len(ops.SPECS))
        return
    assert f"was built for TensorRT {major}, and TensorRT" in facts["status"][0]
    assert facts["registered"][0] == facts["listed"][0] == "0"


@pytest.mark.parametrize(
    ("fact", "expected", "reason"),
    [
        ("creates", "yes", ""),
        ("creates without scale", "no", "the attribute scale is missing"),
        ("creates with a shift of a window", "no", "shift_size [7, 0]; windows are positive"),
        ("creates with four axes", "no", "1 to 3 spatial axes"),
        ("creates with two heads", "no", "takes no field 'num_heads' of type 5 and length 2"),
        ("creates without qkv", "no", "inputs_present is [0, 1, 0, 0]"),
        ("creates with pad_qkv alone", "yes", ""),
        ("takes float16", "yes", ""),
        ("takes float32", "yes", ""),
        ("takes int32", "no", ""),
        ("takes kHWC8", "no", ""),
        ("mixes types", "no", ""),
        ("converts", "no", ""),
        ("fits", "yes", ""),
        ("fits unknown sizes", "yes", ""),
        ("fits sizes whose bounds are no shape", "yes", ""),
        ("fits one of these sizes", "no", "pad_qkv is needed (asked for: float16 qkv [2, 14, 15, 384])"),
        ("fits an open batch", "yes", ""),
        ("fits an open batch from none on", "no", "an empty feature map"),
        ("fits an open batch without end", "no", "the feature map is too large"),
        ("fits another bias", "no", "relative_position_bias is [4, 49, 48] and should be [4, 49, 49]"),
        ("fits channels that do not split", "no", "does not split into q, k and v of 4 heads"),
        ("fits three axes", "no", "qkv has 3 axes and should have 4"),
        ("fits one input", "no", "1 inputs were given"),
        ("fits a map to be padded", "no", "pad_qkv is needed (asked for: float16 qkv [2, 15, 14, 384])"),
        ("fits a padded map", "yes", ""),
        ("fits another pad_qkv", "no", "pad_qkv is [128] and should be [384]"),
        ("fits windows of 1600 tokens", "no", "windows may have up to 1024 tokens"),
        ("restores", "yes", ""),
        ("restored is the same", "yes", ""),
        ("remembers its inputs", "yes", ""),
        ("restores truncated bytes", "0", "is damaged"),
        ("restores with bytes to spare", "no", "is damaged"),
        ("restores as another op", "no", "it is no whole PatchMerging"),
        ("restores the first format", "yes", ""),
        ("restores fewer attributes", "no", "is damaged"),
        ("restores a linear of the format before", "yes", ""),
        ("keeps what was tuned", "yes", ""),
        ("restores a newer format", "no", "has format 4, and this library reads up to format 3"),
        ("restores something else", "0", ""),
    ],
)
def test_a_plugin_takes_what_it_can_compute_and_says_why_not(
    facts: dict[str, tuple[str, str]], fact: str, expected: str, reason: str
) -> None:
    value, logged = facts[fact]
    assert value == expected
    assert reason in logged


@pytest.mark.parametrize("function", ["window_attention", "patch_merging", "add_layer_norm", "layer_norm", "linear"])
@pytest.mark.parametrize("dtype", [-1, 3])
def test_a_c_program_that_names_no_dtype_gets_an_error(library: Path, function: str, dtype: int) -> None:
    params = ctypes.create_string_buffer(256)
    launch = getattr(ctypes.CDLL(str(library)), f"swinopt_{function}")
    assert launch(params, dtype, None) == 1  # cudaErrorInvalidValue


def test_linears_find_the_cublaslt_of_pip(library: Path) -> None:
    spec = find_spec("nvidia")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    if not any(found for folder in folders for found in folder.glob("*/lib/libcublasLt.so.*")):
        pytest.skip("pip has installed no cuBLAS here")
    code = "import sys, swinopt.plugin_library as p; p._load_cublaslt(); print(p.cublaslt_version(sys.argv[1]))"
    # In a process of its own, in which nobody has loaded one.
    done = subprocess.run([sys.executable, "-c", code, str(library)], capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 110000


# -------------------------------------------------------------------------------------------------------- TensorRT-RTX

RTX = """
import json, sys
import tensorrt_rtx as trt
from swinopt.plugin_library import load_library

class Logger(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []
    def log(self, severity, message):
        if severity <= trt.ILogger.Severity.ERROR:
            self.errors.append(message)

load_library(sys.argv[1])
logger = Logger()
builder = trt.Builder(logger)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, logger)
parsed = parser.parse(open(sys.argv[2], "rb").read())
config = builder.create_builder_config()
profiles = json.loads(sys.argv[3])
if profiles:
    profile = builder.create_optimization_profile()
    for name, shapes in profiles.items():
        profile.set_shape(name, *shapes)
    config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config) if parsed else None
kinds = [network.get_layer(i).type for i in range(network.num_layers)]
print(json.dumps({
    "plugins": kinds.count(trt.LayerType.PLUGIN_V3),
    "outputs": [[list(t.shape), str(t.dtype)] for t in map(network.get_output, range(network.num_outputs))],
    "built": plan is not None,
    "errors": logger.errors,
}))
"""


@pytest.fixture(scope="module")
def rtx(library: Path, major: int, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Parses and builds a model in a process of its own, and tells what came of it."""
    version = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed").__version__
    fits = plugin_library._interface_major((int(version.split(".")[0]), int(version.split(".")[1])))
    if fits != major:
        pytest.skip(f"TENSORRT_ROOT is TensorRT {major}, and TensorRT-RTX {version} takes libraries of {fits}")
    package = find_spec("tensorrt_rtx_libs")
    assert package is not None and package.submodule_search_locations
    folder = tmp_path_factory.mktemp("rtx")
    # The parser opens libtensorrt_rtx.so, and the package has libtensorrt_rtx.so.1 alone.
    real = Path(package.submodule_search_locations[0]) / "libtensorrt_rtx.so.1"
    (folder / "libtensorrt_rtx.so").symlink_to(real)

    def build(model: onnx.ModelProto, profiles: dict[str, Any] | None = None) -> dict[str, Any]:
        path = folder / "model.onnx"
        onnx.save(model, path)
        command = [sys.executable, "-c", RTX, str(library), str(path), json.dumps(profiles or {})]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return told

    return build


def one_node(
    op_type: str,
    inputs: dict[str, tuple[int | str, ...]],
    weights: dict[str, tuple[int, ...]],
    dtype: type[np.generic] = np.float32,
    outputs: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = [f"output{index}" for index in range(outputs)]
    node = helper.make_node(op_type, [*inputs, *weights], names, domain="swinopt", **attributes)
    node.attribute.extend(
        [helper.make_attribute("plugin_namespace", "swinopt"), helper.make_attribute("plugin_version", "1")]
    )
    rng = np.random.default_rng(0)
    graph = helper.make_graph(
        [node],
        op_type,
        [helper.make_tensor_value_info(name, element, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, element, None) for name in names],
        [numpy_helper.from_array(rng.standard_normal(shape).astype(dtype), name) for name, shape in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("swinopt", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


ATTENTION = {"window_size": [7, 7], "shift_size": [3, 3], "num_heads": 4, "scale": 0.25}


def test_window_attention_parses_and_builds(rtx: Any) -> None:
    model = one_node("WindowAttention", {"qkv": (2, 14, 14, 384)}, {"bias": (4, 49, 49)}, **ATTENTION)
    assert rtx(model) == {
        "plugins": 1,
        "outputs": [[[2, 14, 14, 128], "DataType.FLOAT"]],
        "built": True,
        "errors": [],
    }


def test_window_attention_parses_and_builds_with_every_size_dynamic(rtx: Any) -> None:
    weights = {"bias": (4, 49, 49), "pad": (384,)}
    attributes = {**ATTENTION, "inputs_present": [1, 1, 0, 1]}
    model = one_node("WindowAttention", {"qkv": ("B", "H", "W", 384)}, weights, np.float16, **attributes)
    told = rtx(model, {"qkv": [[1, 7, 8, 384], [4, 14, 15, 384], [8, 28, 28, 384]]})
    assert told == {"plugins": 1, "outputs": [[[-1, -1, -1, 128], "DataType.HALF"]], "built": True, "errors": []}


def test_patch_merging_rounds_odd_sizes_up(rtx: Any) -> None:
    model = one_node("PatchMerging", {"x": (3, 7, 10, 8)}, {"gamma": (32,), "beta": (32,)}, epsilon=1e-5)
    told = rtx(model)
    assert told["outputs"] == [[[3, 4, 5, 32], "DataType.FLOAT"]] and told["built"]


def test_add_layer_norm_has_two_outputs(rtx: Any) -> None:
    inputs: dict[str, tuple[int | str, ...]] = {"a": (2, 49, 96), "b": (2, 49, 96)}
    told = rtx(one_node("AddLayerNorm", inputs, {"gamma": (96,), "beta": (96,)}, outputs=2))
    assert told["outputs"] == [[[2, 49, 96], "DataType.FLOAT"]] * 2 and told["built"]


@pytest.mark.parametrize("residual", [False, True])
def test_layer_norm_has_the_shape_of_its_input(rtx: Any, residual: bool) -> None:
    inputs: dict[str, tuple[int | str, ...]] = {"x": ("N", 49, 96)}
    model = one_node("LayerNorm", inputs, {"gamma": (96,), "beta": (96,)}, np.float16, epsilon=1e-5)
    profile = [[1, 49, 96], [4, 49, 96], [8, 49, 96]]
    shapes = {"x": profile}
    if residual:
        model.graph.node[0].input.append("residual")
        model.graph.input.append(helper.make_tensor_value_info("residual", TensorProto.FLOAT16, ("N", 49, 96)))
        shapes["residual"] = profile
    told = rtx(model, shapes)
    assert told == {"plugins": 1, "outputs": [[[-1, 49, 96], "DataType.HALF"]], "built": True, "errors": []}


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"gamma": (95,), "beta": (96,)}, "gamma is [95] and should be [96]"),
        ({"gamma": (96,), "beta": (1,)}, "beta is [1] and should be [96]"),
        ({"gamma": (96,), "beta": (96,), "residual": (1, 96)}, "residual is [1, 96] and should be [49, 96]"),
    ],
)
def test_a_layer_norm_that_is_none_fails_the_build(rtx: Any, weights: dict[str, tuple[int, ...]], reason: str) -> None:
    told = rtx(one_node("LayerNorm", {"x": (49, 96)}, weights))
    assert told["plugins"] == 1 and not told["built"]
    assert reason in "\n".join(told["errors"])


@pytest.mark.parametrize("residual", [False, True])
def test_a_linear_has_the_features_of_its_weight(rtx: Any, residual: bool) -> None:
    inputs: dict[str, tuple[int | str, ...]] = {"x": ("N", 49, 96)}
    model = one_node("Linear", inputs, {"weight": (96, 64), "bias": (64,)}, np.float16, gelu=int(not residual))
    shapes = {"x": [[1, 49, 96], [4, 49, 96], [8, 49, 96]]}
    if residual:
        model.graph.node[0].input.append("residual")
        model.graph.input.append(helper.make_tensor_value_info("residual", TensorProto.FLOAT16, ("N", 49, 64)))
        shapes["residual"] = [[1, 49, 64], [4, 49, 64], [8, 49, 64]]
    told = rtx(model, shapes)
    assert told == {"plugins": 1, "outputs": [[[-1, 49, 64], "DataType.HALF"]], "built": True, "errors": []}


@pytest.mark.parametrize("float32", [1, 2])
def test_a_linear_that_is_told_how_multiplies_in_float32(rtx: Any, float32: int) -> None:
    constants = {"weight": (96, 64), "bias": (64,)}
    told = rtx(one_node("Linear", {"x": (49, 96)}, constants, np.float32, gelu=1, float32=float32))
    assert told == {"plugins": 1, "outputs": [[[49, 64], "DataType.FLOAT"]], "built": True, "errors": []}


def test_a_linear_that_is_told_what_there_is_not_is_refused(rtx: Any) -> None:
    told = rtx(one_node("Linear", {"x": (49, 96)}, {"weight": (96, 64), "bias": (64,)}, np.float32, float32=3))
    assert not told["built"] and "float32 is 3; it is 0, 1 or 2" in "\n".join(told["errors"])


@pytest.mark.parametrize(
    ("shapes", "dtype", "reason"),
    [
        ({"weight": (95, 64), "bias": (64,)}, np.float16, "weight is [95, 64] and should be [96, outputs]"),
        ({"weight": (96, 64), "bias": (65,)}, np.float16, "bias is [65] and should be [64]"),
        ({"weight": (96, 20), "bias": (20,)}, np.float16, "multiples of 8"),
        ({"weight": (96, 64), "bias": (64,)}, np.float32, ""),  # nobody has told how to multiply
    ],
)
def test_a_linear_that_is_none_fails_the_build(
    rtx: Any, shapes: dict[str, tuple[int, ...]], dtype: type[np.generic], reason: str
) -> None:
    told = rtx(one_node("Linear", {"x": (49, 96)}, shapes, dtype))
    assert told["plugins"] == 1 and not told["built"]
    assert reason in "\n".join(told["errors"])


def test_what_the_kernels_cannot_compute_fails_the_build_with_the_reason(rtx: Any) -> None:
    attributes = {**ATTENTION, "window_size": [40, 40]}
    told = rtx(one_node("WindowAttention", {"qkv": (1, 40, 40, 384)}, {"bias": (4, 1600, 1600)}, **attributes))
    assert not told["built"]
    assert "windows may have up to 1024 tokens" in "\n".join(told["errors"])


def test_integers_are_refused(rtx: Any) -> None:
    inputs: dict[str, tuple[int | str, ...]] = {"a": (2, 8), "b": (2, 8)}
    told = rtx(one_node("AddLayerNorm", inputs, {"gamma": (8,), "beta": (8,)}, np.int32, outputs=2))
    assert told["plugins"] == 1 and not told["built"]

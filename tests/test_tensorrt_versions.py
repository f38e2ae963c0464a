"""What each TensorRT is asked for: 8.6, 10 and 11 as they are described, since none of them is here to be asked."""

from __future__ import annotations

import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt import choosing, cuda, ops, opset, plugin_library, tensorrt, tensorrt_module
from swinopt.choice import Choices
from swinopt.errors import MissingDependencyError, ModelError, OptionError, SwinoptError
from swinopt.graph import op_counts
from swinopt.ops import SPECS
from swinopt.testing import parse
from tests import fake_gpu

#: The names that the enumerations of a version have; the numbers are never the same.
FLAGS = {
    "8.6.0": ("GPU_FALLBACK", "FP16", "INT8", "TF32"),
    "10.9.0": ("FP16", "BF16", "INT8", "TF32"),
    "11.1.0": ("DEBUG", "TF32"),
}
NETWORK_FLAGS = {
    "8.6.0": ("EXPLICIT_BATCH", "EXPLICIT_PRECISION"),
    "10.9.0": ("EXPLICIT_BATCH", "STRONGLY_TYPED"),
    "11.1.0": ("PREFER_AOT_PYTHON_PLUGINS", "STRONGLY_TYPED"),
}
LAYERS = {"8.6.0": ("SHUFFLE", "PLUGIN_V2"), "10.9.0": ("PLUGIN_V2", "PLUGIN_V3"), "11.1.0": ("SHUFFLE", "PLUGIN_V3")}


class Config:
    def __init__(self) -> None:
        self.flags: set[Any] = {"TF32"}
        self.profiles: list[Any] = []
        self.limits: dict[Any, int] = {}
        self.profiling_verbosity: Any = None
        self.cache: bytes | None = None

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.limits[pool] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.ranges)
        return 0

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data.startswith(b"nothing") else TimingCache(data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.data.startswith(b"foreign"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class TimingCache:
    """Names of what was measured; what "foreign" was is of another GPU."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.kept = set(data.split()) - {b"unreadable", b"foreign"}

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        is_taken = ignore_mismatch or not other.data.startswith(b"foreign")
        self.kept |= other.kept if is_taken else set()
        return is_taken

    def serialize(self) -> bytes:
        return b" ".join(sorted({*self.kept, b"measured"}))


class TensorRT:
    """The module, in one of its versions."""

    __name__ = "tensorrt"
    ILogger = fake_gpu._Logger
    DataType = fake_gpu._Type
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")

    def __init__(self, version: str) -> None:
        self.__version__ = version
        self.BuilderFlag = enum.IntEnum("BuilderFlag", FLAGS[version])
        self.NetworkDefinitionCreationFlag = enum.IntEnum("Network", NETWORK_FLAGS[version])
        self.LayerType = enum.Enum("LayerType", LAYERS[version])  # type: ignore[misc]
        self.config = Config()
        self.network_flags = 0
        self.parsed = onnx.ModelProto()
        self.plugins = True
        self.lacks: set[str] = set()
        self.plan: Any = b"plan"
        if version != "8.6.0":
            self.IPluginV3 = object

    def get_plugin_registry(self) -> Any:
        registered = [
            SimpleNamespace(name=name, plugin_version="1", plugin_namespace="swinopt")
            for name in SPECS
            if self.plugins and name not in self.lacks
        ]
        return SimpleNamespace(**{"plugin_creator_list" if self.__version__ == "8.6.0" else "all_creators": registered})

    def Builder(self, logger: Any) -> Any:
        def profile() -> Any:
            ranges: dict[str, Any] = {}
            return SimpleNamespace(ranges=ranges, set_shape=lambda name, *shapes: ranges.update({name: shapes}))

        return SimpleNamespace(
            create_network=self._network,
            create_builder_config=lambda: self.config,
            create_optimization_profile=profile,
            build_serialized_network=lambda network, config: self.plan,
        )

    def _network(self, flags: int) -> Any:
        self.network_flags = flags
        tensor = SimpleNamespace(name="x", dtype=self.DataType.FLOAT, shape=(-1, 8, 8, 12))
        network = SimpleNamespace(num_inputs=1, num_outputs=1, get_input=lambda i: tensor, get_output=lambda i: tensor)
        kind = list(self.LayerType)[1]
        network.get_layer = lambda index: SimpleNamespace(type=kind)
        return network

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        def take(data: bytes) -> bool:
            self.parsed.ParseFromString(data)
            network.num_layers = ops.uses(self.parsed).total()
            return True

        has_gelu = self.__version__ != "8.6.0"
        return SimpleNamespace(parse=take, num_errors=0, supports_operator=lambda name: name != "Gelu" or has_gelu)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    runtime = fake_gpu.Runtime()
    monkeypatch.setattr(cuda, "runtime", lambda: runtime)
    # What is measured has tests of its own; here nothing is chosen, and every op stays a plugin.
    monkeypatch.setattr(choosing, "choose", lambda *_, **__: Choices())

    def choose(version: str) -> TensorRT:
        trt = TensorRT(version)
        monkeypatch.setattr(tensorrt_module, "find", lambda name=None: trt)
        return trt

    return choose


def model() -> onnx.ModelProto:
    return parse(
        """g (float[N, 8, 8, 12] x) => (float[N, 8, 8, 4] y) { g = Gelu(x)
            y = swinopt.WindowAttention<window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(g, bias) }""",
        bias=np.zeros((2, 16, 16), np.float32),
    )


@pytest.mark.parametrize(
    ("version", "precision", "flags", "weights"),
    [
        ("8.6.0", "fp32", set(), "FLOAT"),
        ("8.6.0", "tf32", {"TF32"}, "FLOAT"),
        ("8.6.0", "fp16", {"TF32", "FP16"}, "FLOAT"),
        ("10.9.0", "fp32", set(), "FLOAT"),
        ("10.9.0", "fp16", {"TF32", "FP16"}, "FLOAT"),
        ("10.9.0", "bf16", {"TF32", "BF16"}, "FLOAT"),
        ("11.1.0", "fp32", set(), "FLOAT"),
        ("11.1.0", "tf32", {"TF32"}, "FLOAT"),
        ("11.1.0", "fp16", {"TF32"}, "FLOAT16"),
        ("11.1.0", "bf16", {"TF32"}, "BFLOAT16"),
    ],
)
def test_a_precision_is_flags_or_the_graph(
    version: str, precision: str, flags: set[str], weights: str, use: Any
) -> None:
    trt = use(version)
    engine = tensorrt.build(model(), precision=precision)

    assert trt.config.flags == flags
    assert {onnx.TensorProto.DataType.Name(w.data_type) for w in trt.parsed.graph.initializer} == {weights}
    network = {flag.name for flag in trt.NetworkDefinitionCreationFlag if trt.network_flags & 1 << flag}
    assert network == {"8.6.0": {"EXPLICIT_BATCH"}, "10.9.0": {"EXPLICIT_BATCH"}, "11.1.0": {"STRONGLY_TYPED"}}[version]
    assert engine.plugin_layers == 1
    assert trt.config.profiling_verbosity == "detailed", "the inspector would not say which layers are plugins"


def test_8_6_has_no_bf16(use: Any) -> None:
    use("8.6.0")
    with pytest.raises(OptionError, match=r"TensorRT 8.6.0 has no bf16: take fp16, or TensorRT 10"):
        tensorrt.build(model(), precision="bf16")


def test_8_6_gets_what_its_parser_knows(use: Any) -> None:
    trt = use("8.6.0")
    tensorrt.build(model())
    assert opset.version_of(trt.parsed) == 17
    assert "Gelu" not in {node.op_type for node in trt.parsed.graph.node}
    trt = use("10.9.0")
    tensorrt.build(model())
    assert opset.version_of(trt.parsed) == 20
    assert "Gelu" in {node.op_type for node in trt.parsed.graph.node}


def test_profiles_and_workspace_are_passed_on(use: Any) -> None:
    trt = use("8.6.0")
    shapes = tuple((batch, 8, 8, 12) for batch in (1, 2, 4))
    tensorrt.build(model(), profiles={"x": shapes}, workspace=64)
    assert trt.config.profiles == [{"x": shapes}]
    assert trt.config.limits == {"workspace": 64 << 20}


@pytest.mark.parametrize("before", [b"", b"known"])
def test_a_timing_cache_is_read_and_added_to(use: Any, before: bytes, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    if before:
        path.write_bytes(before)
    use("10.9.0")
    assert not tensorrt.build(model(), timing_cache=path).notes
    assert path.read_bytes().split() == [*before.split(), b"measured"]


@pytest.mark.parametrize("other", [b"foreign others", b"unreadable", b"nothing"])
def test_a_timing_cache_of_elsewhere_is_replaced(use: Any, other: bytes, tmp_path: Path) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(other)
    use("10.9.0")
    assert "another TensorRT or GPU, and was replaced" in tensorrt.build(model(), timing_cache=path).notes[0]
    assert path.read_bytes() == b"measured"


@pytest.mark.parametrize(
    ("others", "expected"),
    [(b"others", b"known measured others"), (b"foreign", b"known measured"), (None, b"known measured")],
)
def test_builds_at_the_same_time_keep_what_each_has_measured(
    use: Any, others: bytes | None, expected: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "timing.cache"
    path.write_bytes(b"known")

    def write_others(step: str, *_: int) -> None:
        if step == "building" and others is not None:
            path.write_bytes(others)
        elif step == "building":
            path.unlink()

    use("8.6.0")
    tensorrt.build(model(), timing_cache=path, progress=write_others)
    assert path.read_bytes() == expected


@pytest.mark.parametrize("place", [".", "no/such/folder/timing.cache"])
def test_a_timing_cache_that_cannot_be_written_is_told_before_the_build(place: str, use: Any, tmp_path: Path) -> None:
    trt = use("10.9.0")
    with pytest.raises(ModelError, match="cannot be written"):
        tensorrt.build(model(), timing_cache=tmp_path / place)
    assert not trt.parsed.ByteSize()


def test_the_optimization_level_is_passed_on_where_there_is_one(use: Any) -> None:
    trt = use("8.6.0")
    with pytest.raises(OptionError, match="no optimization levels"):
        tensorrt.build(model(), optimization_level=1)
    trt = use("10.9.0")
    trt.config.builder_optimization_level = 3
    tensorrt.build(model())
    assert trt.config.builder_optimization_level == 3
    tensorrt.build(model(), optimization_level=0)
    assert trt.config.builder_optimization_level == 0


@pytest.mark.parametrize("level", [-1, 6])
def test_an_optimization_level_that_cannot_be(level: int, use: Any) -> None:
    use("10.9.0")
    with pytest.raises(OptionError, match=f"0 to 5, and {level} was given"):
        tensorrt.build(model(), optimization_level=level)


@pytest.mark.parametrize("workspace", [0, -1])
def test_a_workspace_that_cannot_be(workspace: int, use: Any) -> None:
    use("10.9.0")
    with pytest.raises(OptionError, match=f"at least 1 MiB, and {workspace} was given"):
        tensorrt.build(model(), workspace=workspace)


@pytest.mark.parametrize("version", FLAGS)
def test_plugins_come_from_the_library_if_it_is_there(
    version: str, use: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt = use(version)
    trt.plugins = False
    asked: list[Any] = []

    def load(path: Path) -> None:
        asked.append(path)
        trt.plugins = True

    monkeypatch.setattr(plugin_library, "find_library", lambda found: tmp_path / found)
    monkeypatch.setattr(plugin_library, "load_library", load)
    monkeypatch.setattr(plugin_library, "cublaslt_version", lambda path: 0)
    assert tensorrt.build(model()).plugin_layers == 1
    assert asked == [tmp_path / version]


@pytest.mark.parametrize("version", FLAGS)
@pytest.mark.parametrize(
    ("precision", "plugins", "cublaslt", "linears"),
    [
        ("fp16", "on", 120103, 1),
        ("fp16", "auto", 120103, 1),
        ("fp16", "on", 0, 0),
        ("fp16", "off", 120103, 0),
        ("fp32", "on", 120103, 1),
        ("tf32", "auto", 120103, 1),
        ("fp32", "on", 0, 0),
    ],
)
def test_linears_are_plugins_where_there_is_a_cublaslt(
    version: str,
    precision: str,
    plugins: str,
    cublaslt: int,
    linears: int,
    use: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    trt = use(version)
    monkeypatch.setattr(plugin_library, "find_library", lambda found: tmp_path / found)
    monkeypatch.setattr(plugin_library, "cublaslt_version", lambda path: cublaslt)
    block = parse(
        """g (float[N, 8, 8, 16] x) => (float[N, 8, 8, 16] y) { n = LayerNormalization(x, gamma)  q = MatMul(n, w)
            y = swinopt.WindowAttention<window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(q, bias) }""",
        bias=np.zeros((2, 16, 16), np.float32),
        w=np.ones((16, 48), np.float32),
        gamma=np.ones(16, np.float32),
    )
    engine = tensorrt.build(block, precision=precision, plugins=plugins)
    # The norm goes with the linear.
    assert engine.plugin_layers == (0 if plugins == "off" else 1 + 2 * linears)
    counts = op_counts(trt.parsed)
    assert counts["swinopt::Linear"] == counts["swinopt::LayerNorm"] == 1 - counts["LayerNormalization"] == linears
    told = [a.i for n in trt.parsed.graph.node if n.op_type == "Linear" for a in n.attribute if a.name == "float32"]
    assert told == linears * [{"fp16": 0, "fp32": 1, "tf32": 2}[precision]]


@pytest.fixture
def with_a_linear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> onnx.ModelProto:
    """An attention behind a linear, where there are a library and a cuBLASLt for it."""
    monkeypatch.setattr(plugin_library, "find_library", lambda found: tmp_path / found)
    monkeypatch.setattr(plugin_library, "cublaslt_version", lambda path: 120103)
    return parse(
        """g (float[N, 8, 8, 16] x) => (float[N, 8, 8, 16] y) { q = MatMul(x, w)
            y = swinopt.WindowAttention<window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(q, bias) }""",
        bias=np.zeros((2, 16, 16), np.float32),
        w=np.ones((16, 48), np.float32),
    )


@pytest.mark.parametrize(("precision", "linears"), [("fp16", 1), ("fp32", 0), ("tf32", 0)])
def test_what_measures_nothing_keeps_its_own_linears_in_float32(
    precision: str, linears: int, with_a_linear: onnx.ModelProto, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = use("11.1.0")
    monkeypatch.setattr(trt, "__name__", "tensorrt_rtx", raising=False)
    tensorrt.build(with_a_linear, precision=precision)
    assert op_counts(trt.parsed)["swinopt::Linear"] == linears


def test_with_little_scratch_memory_no_linear_is_a_plugin(with_a_linear: onnx.ModelProto, use: Any) -> None:
    trt = use("8.6.0")
    for workspace, linears in ((32, 0), (33, 1)):
        tensorrt.build(with_a_linear, plugins="on", workspace=workspace)
        assert op_counts(trt.parsed)["swinopt::Linear"] == linears


def test_linears_of_a_fused_model_are_spelled_out_where_there_is_no_plugin_for_them(
    use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = use("10.9.0")
    trt.lacks = {"Linear"}
    monkeypatch.setattr(plugin_library, "find_library", lambda found: None)
    fused = parse(
        """g (float[N, 8, 8, 16] x) => (float[N, 8, 8, 16] y) { q = swinopt.Linear(x, w, b)
            y = swinopt.WindowAttention<window_size=[4,4], shift_size=[0,0], num_heads=2, scale=0.7>(q, bias) }""",
        bias=np.zeros((2, 16, 16), np.float32),
        w=np.ones((16, 48), np.float32),
        b=np.ones(48, np.float32),
    )
    for precision in ("fp16", "fp32"):
        assert tensorrt.build(fused, precision=precision, plugins="on").plugin_layers == 1
        assert op_counts(trt.parsed)["MatMul"] == 1


@pytest.mark.parametrize(("library", "missing"), [(False, None), (True, "no plugin for Linear")])
def test_an_engine_misses_linears_only_where_the_library_should_have_them(
    library: bool, missing: str | None, use: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt = use("10.9.0")
    trt.lacks = {"Linear"}
    monkeypatch.setattr(plugin_library, "find_library", lambda found: tmp_path / found if library else None)
    monkeypatch.setattr(plugin_library, "load_library", lambda path: None)
    told = tensorrt_module.register_what_there_is(trt)
    assert (told is None) if missing is None else (told is not None and missing in told)


def test_a_library_from_before_there_were_linears_has_none(
    use: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt = use("10.9.0")
    trt.lacks = {"Linear"}
    monkeypatch.setattr(plugin_library, "find_library", lambda found: tmp_path / found)
    monkeypatch.setattr(plugin_library, "load_library", lambda path: None)
    monkeypatch.setattr(plugin_library, "cublaslt_version", lambda path: 120103)
    assert tensorrt_module.cublaslt_version(trt) == 0
    trt.lacks = set()
    assert tensorrt_module.cublaslt_version(trt) == 120103


def test_8_6_takes_plugins_from_the_library_alone(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    use("8.6.0").plugins = False
    monkeypatch.setattr(plugin_library, "find_library", lambda found: None)
    with pytest.raises(
        MissingDependencyError, match=r"TensorRT 8.6.0 has no plugin for WindowAttention: .*build-plugins"
    ):
        tensorrt.build(model())


def test_a_build_that_fails_says_what_tensorrt_said(use: Any) -> None:
    trt = use("10.9.0")

    def fails(network: Any, config: Any) -> None:
        tensorrt_module.logger(trt).log(trt.ILogger.Severity.ERROR, "out of patience")

    builder = trt.Builder(None)
    builder.build_serialized_network = fails
    trt.Builder = lambda logger: builder
    with pytest.raises(SwinoptError, match=r"TensorRT 10.9.0 cannot build the engine: out of patience"):
        tensorrt.build(model())


def test_a_large_network_is_parsed_from_a_file(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = use("10.9.0")
    found: list[str] = []
    parser = trt.OnnxParser

    def with_file(network: Any, logger: Any) -> Any:
        made = parser(network, logger)
        small = made.parse
        made.parse_from_file = lambda path: found.append(path) or small(Path(path).read_bytes())
        made.parse = None
        return made

    trt.OnnxParser = with_file
    monkeypatch.setattr("swinopt.graph.PROTOBUF_LIMIT", 10)
    monkeypatch.setattr("swinopt.graph.save", lambda m, path: path.write_bytes(m.SerializeToString()) and path)
    assert tensorrt.build(model()).plugin_layers == 1
    assert not Path(found[0]).exists(), "the file is for the parser alone"


def test_a_driver_that_is_not_there_at_all_is_no_gpu_either(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found() -> None:
        raise RuntimeError("libcuda.so.1 was not found")

    use("11.1.0")
    monkeypatch.setattr(cuda.runtime(), "cudaGetDeviceCount", not_found, raising=False)
    with pytest.raises(SwinoptError, match=r"no NVIDIA GPU was found: libcuda.so.1 was not found\. Building"):
        tensorrt.build(model())


def test_building_with_tensorrt_needs_the_gpu(use: Any) -> None:
    use("11.1.0")
    cuda.runtime().devices = 0
    with pytest.raises(SwinoptError, match=r"no NVIDIA GPU was found: .*Building with TensorRT needs one"):
        tensorrt.build(model())

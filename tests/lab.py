"""A TensorRT, a GPU and times that are made up, for tests of what is chosen by measuring."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from swinopt import builders, cuda, ops, plugin_library, tensorrt, tensorrt_module
from swinopt.engine import Engine
from swinopt.testing import parse
from swinopt.timing import Timing
from tests import fake_gpu
from tests.test_tensorrt_versions import TensorRT


def floats(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def model(batch: int | str = "N") -> onnx.ModelProto:
    """Three attentions, of which two are alike, and the other two ops."""
    attention = "swinopt.WindowAttention<window_size=[4,4], shift_size=[{0},{0}], num_heads=2, scale=0.7>"
    return parse(
        f"""g (float[{batch}, 8, 8, 12] x) => (float[{batch}, 4, 4, 16] y) {{
            a = {attention.format(0)}(x, bias)  b = MatMul(a, w)
            c = {attention.format(2)}(b, bias)  d = MatMul(c, w)
            e = {attention.format(0)}(d, bias2)
            s, n = swinopt.AddLayerNorm(a, e, gamma, beta)  y = swinopt.PatchMerging(n, gamma4, beta4) }}""",
        bias=floats(2, 16, 16),
        bias2=1 + floats(2, 16, 16),
        w=floats(4, 12),
        gamma=floats(4),
        beta=floats(4),
        gamma4=floats(16),
        beta4=floats(16),
    )


#: Milliseconds of the ops of that model, as plugin and in standard ops.
TIMES = {"WindowAttention": (1.0, 2.0), "AddLayerNorm": (3.0, 1.0), "PatchMerging": (2.0, 1.0)}


class Lab:
    """A TensorRT whose engines are the models that they are built of, and a clock that says what it is told.

    Attributes:
        built: every model that was built.
        timed: the op, whether it is a plugin, and whether a graph is launched, of every round.
        times: by op, for a plugin and for standard ops; what is an exception is raised instead.
        fails: whether a model cannot be built.
        devices: the GPU for which standard ops are built, of every build that measures.
        rests: how often what builds them was told that there are no more of them for now.
    """

    def __init__(self, version: str) -> None:
        self.trt: Any = _Measurable(version, self)
        self.gpu = fake_gpu.Runtime()
        self.built: list[onnx.ModelProto] = []
        self.timed: list[tuple[str, bool, bool]] = []
        self.closed: list[str] = []
        self.devices: list[int] = []
        self.rests = 0
        self.open = 0  # benches that were not closed before their engine was
        self.times: dict[str, Any] = dict(TIMES)
        self.graph: Callable[[bool], bool] = lambda plugin: True
        self.fails: Callable[[onnx.ModelProto], bool] = lambda model: False

    def bench(self, engine: Engine, graph: bool) -> Any:
        made = onnx.load_model_from_string(engine.plan)
        plugin = bool(ops.uses(made))
        is_captured = graph and self.graph(plugin)
        time = self.times[made.graph.name][0 if plugin else 1]
        if isinstance(time, Exception):
            raise time

        def timed(**options: Any) -> Timing:
            self.timed.append((made.graph.name, plugin, is_captured))
            ms = time(made) if callable(time) else time
            return Timing((ms,), {}, is_captured, 4, "a GPU", "an engine")

        self.open += 1

        def close() -> None:
            self.open -= 1

        return contextlib.nullcontext(SimpleNamespace(graph=is_captured, time=timed, close=close))

    @property
    def alone(self) -> list[onnx.ModelProto]:
        """What was built to be measured."""
        return [made for made in self.built if made.graph.name != "g"]

    def build(self, given: onnx.ModelProto | None = None, **options: Any) -> Engine:
        self.built.clear()
        self.timed.clear()
        return tensorrt.build(given or model(), **{"precision": "fp32", **options})


class _Measurable(TensorRT):
    """With networks of their own, which have the inputs and outputs that the parser saw."""

    def __init__(self, version: str, lab: Lab) -> None:
        super().__init__(version)
        self.lab = lab
        self.builders: list[set[int]] = []  # threads that build with each
        self.config.builder_optimization_level = 3

    def Builder(self, logger: Any) -> Any:
        threads: set[int] = set()
        self.builders.append(threads)

        def serialized(network: Any, config: Any) -> bytes | None:
            threads.add(threading.get_ident())
            self.lab.built.append(network.model)
            return None if self.lab.fails(network.model) else bytes(network.model.SerializeToString())

        builder = super().Builder(logger)
        builder.build_serialized_network = serialized
        return builder

    def OnnxParser(self, network: Any, logger: Any) -> Any:
        kinds = {1: self.DataType.FLOAT, 10: self.DataType.HALF, 16: self.DataType.BF16}

        def tensors(values: Any) -> list[Any]:
            return [
                SimpleNamespace(
                    name=value.name,
                    dtype=kinds[value.type.tensor_type.elem_type],
                    shape=tuple(d.dim_value or -1 for d in value.type.tensor_type.shape.dim),
                )
                for value in values
            ]

        def take(data: bytes) -> bool:
            network.model = onnx.load_model_from_string(data)
            network.num_layers = ops.uses(network.model).total()
            network.tensors = tensors(network.model.graph.input), tensors(network.model.graph.output)
            network.num_inputs, network.num_outputs = map(len, network.tensors)
            network.get_input, network.get_output = (each.__getitem__ for each in network.tensors)
            return True

        made = super().OnnxParser(network, logger)
        made.parse = take
        return made


class _Threads:
    """In the place of processes, which would have another TensorRT: what they do, in threads."""

    def __init__(self, lab: Lab, count: int, device: int, setup: dict[str, Any]) -> None:
        self.lab, self.setup, self.of_thread = lab, setup, threading.local()
        self.pool = ThreadPoolExecutor(count)
        lab.devices.append(device)

    def begin(self, made: onnx.ModelProto) -> Future[Engine]:
        return self.pool.submit(self.build, made)

    def build(self, made: onnx.ModelProto) -> Engine:
        if not hasattr(self.of_thread, "build"):
            self.of_thread.build = tensorrt.OpBuilder(self.lab.trt, **self.setup)
        engine: Engine = self.of_thread.build(made, False)
        return engine

    def rest(self) -> None:
        self.lab.rests += 1

    def __enter__(self) -> _Threads:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)


def set_up(version: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Lab:
    """A laboratory in the place of TensorRT and the GPU; its cache lies in the folder."""
    made = Lab(version)
    monkeypatch.setenv("SWINOPT_CACHE", str(folder / "cache"))
    monkeypatch.setattr(cuda, "runtime", lambda: made.gpu)
    monkeypatch.setattr(tensorrt_module, "find", lambda name=None: made.trt)
    monkeypatch.setattr(plugin_library, "find_library", lambda version=None: None)
    monkeypatch.setattr(
        builders, "Processes", lambda count, *, device, tensorrt, **setup: _Threads(made, count, device, setup)
    )
    monkeypatch.setattr(Engine, "bench", lambda engine, graph: made.bench(engine, graph))
    monkeypatch.setattr(Engine, "close", lambda engine: made.closed.append(str(engine)))
    return made


def chosen(engine: Engine) -> dict[str, str]:
    """What each node became."""
    return {name: choice.chosen for choice in engine.choices for name in choice.nodes}


def entries(folder: Path) -> list[Path]:
    """The files of its cache."""
    return sorted((folder / "cache" / "choices").glob("*"))

"""Running engines, as far as that is no business of a GPU: see :mod:`tests.fake_gpu`."""

from __future__ import annotations

import ast
import gc
import json
import pickle
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from swinopt import cuda, dlpack, plugin_library, tensorrt_module
from swinopt.engine import Engine, write_whole
from swinopt.errors import ModelError, OptionError, SwinoptError
from swinopt.interface import Interface, Value
from swinopt.timing import LayerTimes
from tests import fake_gpu


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> fake_gpu.Runtime:
    runtime = fake_gpu.Runtime()
    monkeypatch.setattr(cuda, "runtime", lambda: runtime)
    monkeypatch.setattr(tensorrt_module, "register_what_there_is", lambda trt: None)
    return runtime


@pytest.fixture
def tensorrt() -> fake_gpu.TensorRT:
    return fake_gpu.TensorRT()


@pytest.fixture
def engine(gpu: fake_gpu.Runtime, tensorrt: fake_gpu.TensorRT) -> Engine:
    return Engine(b"plan", tensorrt)


def ones(batch: int) -> Any:
    return np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)


# -------------------------------------------------------------------------------------------------------------- running


@pytest.mark.parametrize("batch", [1, 4, 5, 8])
def test_arrays_of_numpy_come_back_as_such(batch: int, engine: Engine) -> None:
    out = engine.run({"x": ones(batch)})["y"]
    assert isinstance(out, np.ndarray)
    np.testing.assert_array_equal(out, 2 * ones(batch))


def test_each_shape_runs_in_the_profile_that_takes_it(engine: Engine) -> None:
    trt = engine._trt
    for batch in (2, 6, 3, 7):
        engine.run({"x": ones(batch)})
    assert [context.chosen for context in trt.engine.contexts] == [0, 1]


def test_arrays_in_another_order_and_constant_ones_are_taken_for_what_they_say(engine: Engine) -> None:
    turned = np.asfortranarray(ones(4))
    turned.flags.writeable = False
    np.testing.assert_array_equal(engine.run({"x": turned})["y"], 2 * ones(4))


def test_tensors_of_torch_come_back_as_such(engine: Engine) -> None:
    torch = pytest.importorskip("torch")
    out = engine.run({"x": torch.from_numpy(ones(2))})["y"]
    assert isinstance(out, torch.Tensor)
    np.testing.assert_array_equal(out.numpy(), 2 * ones(2))
    with pytest.raises(OptionError, match="not contiguous"):
        engine.run({"x": torch.zeros(3, 2).T})


class OnGpu:
    """A tensor of some library that lies on a GPU."""

    def __init__(self, array: Any, device: int = 0) -> None:
        self.array, self.shape, self.device = array, array.shape, device
        self.stream: Any = None

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self.device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.stream = stream
        lent = dlpack.DeviceArray(self.array.ctypes.data, self.shape, str(self.array.dtype), self.device, self.array)
        return lent.__dlpack__()


def aligned(batch: int, offset: int = 0) -> Any:
    """The same numbers, so many bytes behind a multiple of 256."""
    room = np.zeros(1024, np.uint8)
    start = -room.ctypes.data % 256 + offset
    array = room[start : start + 12 * batch].view(np.float32).reshape(batch, 3)
    array[...] = ones(batch)
    return array


def test_what_lies_on_the_gpu_stays_there(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    given = OnGpu(aligned(2))
    out = engine.run({"x": given})["y"]

    assert given.stream == 77, "the engine's stream has to wait for whoever wrote the input"
    (context,) = engine._trt.engine.contexts
    assert context.addresses["x"] == given.array.ctypes.data, "the input was copied"
    assert dlpack.device_of(out) == (dlpack.CUDA, 0)
    seen = dlpack.view(out)
    assert (seen.shape, seen.dtype) == ((2, 3), "float32")
    assert list((np.ctypeslib.ctypes.c_float * 6).from_address(seen.pointer)) == [0, 2, 4, 6, 8, 10]
    before = len(gpu.memory)
    del out, seen
    gc.collect()
    assert len(gpu.memory) == before - 1, "the output was not given back"


def test_torch_gets_memory_of_its_own_where_its_input_lies(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensor(OnGpu):
        __module__ = "torch"

    made: list[Any] = []

    def empty(shape: tuple[int, ...], *, dtype: str, device: int) -> Tensor:
        assert (shape, dtype, device) == ((2, 3), "single", 0)
        made.append(Tensor(aligned(2)))
        return made[-1]

    torch = SimpleNamespace(__name__="torch", float32="single", empty=empty)
    monkeypatch.setitem(sys.modules, "torch", torch)
    out = engine.run({"x": Tensor(aligned(2))})["y"]
    assert out is made[0]
    assert out.stream == 77, "the engine's stream has to wait for whoever had that memory before"
    np.testing.assert_array_equal(out.array, 2 * ones(2))


def test_torch_takes_bfloat16_out_of_an_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    interface = Interface({"x": Value("float32", (-1, 3))}, {"y": Value("bfloat16", (-1, 3))})
    monkeypatch.setattr(fake_gpu._Context, "execute_async_v3", lambda *_: True)
    assert engine._alive().run(interface, {"x": torch.zeros(2, 3)})["y"].dtype == torch.bfloat16


def test_a_tensor_that_tensorrt_does_not_take_where_it_lies_is_copied(engine: Engine) -> None:
    given = OnGpu(aligned(2, offset=12))
    out = dlpack.view(engine.run({"x": given})["y"])
    (context,) = engine._trt.engine.contexts
    assert context.addresses["x"] != given.array.ctypes.data
    assert list((np.ctypeslib.ctypes.c_float * 6).from_address(out.pointer)) == [0, 2, 4, 6, 8, 10]


def test_the_current_gpu_of_the_caller_stays_the_same(
    engine: Engine, gpu: fake_gpu.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.run({"x": ones(1)})
    ran_on: list[int] = []
    monkeypatch.setattr(fake_gpu._Context, "execute_async_v3", lambda *_: ran_on.append(gpu.current) or True)
    gpu.current = 1
    engine.run({"x": ones(1)})
    with pytest.raises(OptionError):
        engine.run({"x": ones(1).astype(np.float64)})
    assert (ran_on, gpu.current) == ([0], 1)


def test_a_batch_that_memory_does_not_suffice_for_leaves_the_engine_usable(
    engine: Engine, gpu: fake_gpu.Runtime
) -> None:
    engine.run({"x": ones(1)})
    gpu.room = 12
    with pytest.raises(SwinoptError, match="cudaMalloc failed"):
        engine.run({"x": ones(4)})
    engine.run({"x": ones(1)})
    (context,) = engine._trt.engine.contexts
    assert set(context.addresses.values()) <= gpu.memory.keys(), "memory that was given back is used again"


def test_closing_gives_everything_back_and_running_goes_on(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    with engine:
        engine.run({"x": ones(4)})
        assert gpu.memory
    assert not gpu.memory
    np.testing.assert_array_equal(engine.run({"x": ones(4)})["y"], 2 * ones(4))


class Gate:
    """Holds the first inference up, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        execute = fake_gpu._Context.execute_async_v3

        def held_up(context: Any, stream: int) -> bool:
            self.reached.set()
            assert self.opened.wait(10)
            return execute(context, stream)

        monkeypatch.setattr(fake_gpu._Context, "execute_async_v3", held_up)


def until_it_waits(work: Future[Any]) -> None:
    """Gives a thread the time to come to where it waits; it must not be done there."""
    with pytest.raises(FutureTimeoutError):
        work.result(0.2)


def test_closing_waits_for_a_run_of_another_thread(
    engine: Engine, gpu: fake_gpu.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(engine.run, {"x": ones(4)})
        assert gate.reached.wait(10)
        close = pool.submit(engine.close)
        until_it_waits(close)
        gate.opened.set()
        np.testing.assert_array_equal(run.result(10)["y"], 2 * ones(4))
        close.result(10)
    assert not gpu.memory


def test_a_run_that_waits_for_a_profile_to_be_taken_gets_a_context_of_its_own(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    with ThreadPoolExecutor() as pool:
        profile = pool.submit(engine.profile, runs=1)
        assert gate.reached.wait(10)
        run = pool.submit(engine.run, {"x": ones(1)})
        until_it_waits(run)
        gate.opened.set()
        np.testing.assert_array_equal(run.result(10)["y"], 2 * ones(1))
        profile.result(10)
    assert [context.profiler is None for context in engine._trt.engine.contexts] == [False, True]


def test_a_thread_that_comes_too_late_is_told_so(engine: Engine) -> None:
    execution = engine._alive()
    engine.close()
    with pytest.raises(SwinoptError, match="was closed while a thread was about to use it"):
        execution.run(Interface({"x": Value("float32", (-1, 3))}, {}), {"x": ones(1)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "takes x as inputs, and none was given"),
        ({"x": ones(1), "z": ones(1)}, "takes x as inputs, and x, z was given"),
        (ones(1), "takes x as inputs, and ndarray was given"),
        ({"x": ones(1).astype(np.float64)}, "'x' is float64, and the engine takes float32"),
        ({"x": ones(1)[:, :2]}, r"shape \[1, 2\], and the engine takes \[\?, 3\]"),
        ({"x": ones(1)[0]}, r"shape \[3\], and the engine takes \[\?, 3\]"),
        ({"x": ones(9)}, r"no profile of the engine takes x \[9, 3\]: .* x \[1, 3\] to \[4, 3\]; or x \[5, 3\] to \[8"),
        ({"x": OnGpu(ones(1), device=1)}, "lies on GPU 1, and the engine on GPU 0"),
    ],
    ids=["none", "unknown", "no mapping", "dtype", "size", "rank", "profile", "device"],
)
def test_inputs_that_do_not_fit(inputs: Any, message: str, engine: Engine) -> None:
    with pytest.raises(OptionError, match=message):
        engine.run(inputs)


def test_a_plan_of_another_tensorrt(gpu: fake_gpu.Runtime) -> None:
    with pytest.raises(
        ModelError, match=r"TensorRT 8.6.0 cannot load the engine on this Pretended GPU: .*build it again"
    ):
        Engine(b"other", fake_gpu.TensorRT()).run({"x": ones(1)})


def test_a_plan_that_cannot_be_loaded_for_want_of_plugins(
    gpu: fake_gpu.Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cuda, "runtime", lambda: gpu)
    monkeypatch.setenv(plugin_library.VARIABLE, "no_such_library.so")
    trt = fake_gpu.TensorRT()
    trt.get_plugin_registry = lambda: SimpleNamespace(plugin_creator_list=[])
    with pytest.raises(ModelError, match=r"cannot load the engine.*SWINOPT_PLUGINS names no_such_library\.so"):
        Engine(b"other", trt).run({"x": ones(1)})
    assert Engine(b"plan", trt).run({"x": ones(1)}), "an engine without plugins needs none"


def test_no_gpu_is_an_error_of_its_own(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    gpu.devices = 0
    with pytest.raises(SwinoptError, match="no NVIDIA GPU was found: the driver reports none"):
        engine.run({"x": ones(1)})


def test_a_failure_of_the_gpu_says_which_call_and_why(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    gpu.cudaStreamSynchronize = lambda stream: (700,)  # type: ignore[attr-defined]
    with pytest.raises(
        SwinoptError, match=r"cudaStreamSynchronize failed: cudaErrorPretended \(it was only pretended\)"
    ):
        engine.run({"x": ones(1)})


# ------------------------------------------------------------------------------------------------------------ measuring


def test_a_benchmark_reports_what_it_measured(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    timing = engine.benchmark(runs=5, warmup=3, rotate=2)
    assert timing.samples == (1, 2, 3, 4, 5)
    assert (timing.median, timing.percentile(90), timing.spread) == (3, 4.6, pytest.approx(3.2 / 3))
    assert timing.items_per_second == pytest.approx(2 * 1000 / 3)
    assert timing.shapes == {"x": (2, 3)}, "the first profile is tuned for it"
    assert timing.graph and gpu.calls.count("cudaGraphLaunch") == 5 + 3
    assert "median 3.000 ms" in str(timing) and "Pretended GPU" in str(timing)
    assert json.loads(json.dumps(timing.to_dict()))["median_ms"] == 3


def test_a_benchmark_gives_its_memory_back(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    engine.benchmark(runs=2)
    gc.collect()
    assert not gpu.memory


def test_what_is_ready_is_timed_again_and_again(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    with engine.bench(rotate=2) as bench:
        captures, memory = gpu.calls.count("cudaStreamBeginCapture"), set(gpu.memory)
        gc.collect()
        assert bench.graph and [bench.time(runs=n, warmup=1).samples for n in (1, 2)] == [(1,), (2, 3)]
        assert gpu.calls.count("cudaStreamBeginCapture") == captures == 2
        assert set(gpu.memory) == memory and len(memory) == 2 * 2, "graphs read and write what is freed"
        with pytest.raises(OptionError, match="at least 1"):
            bench.time(runs=0)
    with pytest.raises(SwinoptError, match="has been closed"):
        bench.time()


def test_runs_and_benches_share_a_profile_where_tensorrt_lets_them(tensorrt: Any, engine: Engine) -> None:
    tensorrt.engine.shares_profiles = True
    with engine.bench(batch=2) as one, engine.bench(batch=2) as other:
        engine.run({"x": ones(2)})
        assert one.time(runs=1).samples and other.time(runs=1).samples


def test_a_bench_takes_the_place_of_what_runs_left_where_a_profile_has_one_context(
    tensorrt: Any, engine: Engine
) -> None:
    engine.run({"x": ones(2)})
    with engine.bench(batch=2) as bench:
        assert bench.time(runs=1).samples and len(tensorrt.engine.alive) == 1
    engine.run({"x": ones(2)})
    assert engine.benchmark(runs=1, batch=2).samples


def test_a_benchmark_and_the_end_of_an_engine_do_not_meet(tensorrt: Any, engine: Engine) -> None:
    """Closing waits for what has begun; what has not says that it is closed."""
    tensorrt.engine.shares_profiles = True
    failures: list[BaseException] = []

    def measure() -> None:
        try:
            for _ in range(20):
                engine.benchmark(runs=3, warmup=1, rotate=2)
        except SwinoptError as error:
            failures.extend([error] * ("closed" not in str(error)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        engine.close()
    for thread in threads:
        thread.join()
    assert not failures


def test_an_engine_that_is_closed_closes_what_was_ready(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    bench = engine.bench(graph=False)
    engine.close()
    assert not gpu.memory
    with pytest.raises(SwinoptError, match="has been closed"):
        bench.time()
    bench.close()


def test_an_engine_that_cannot_be_captured_is_measured_without_a_graph(engine: Engine, gpu: fake_gpu.Runtime) -> None:
    gpu.capture_status = 900
    assert not engine.benchmark(runs=2).graph
    assert "without a CUDA graph" in str(engine.benchmark(runs=2, graph=False))
    assert "cudaGraphLaunch" not in gpu.calls


def test_what_was_recorded_before_the_work_failed_is_given_back(gpu: fake_gpu.Runtime) -> None:
    def fail() -> None:
        raise SwinoptError("not here")

    with cuda.Stream() as stream, pytest.raises(SwinoptError, match="not here"):
        cuda.Graph(stream, fail)
    assert gpu.calls.count("cudaGraphDestroy") == 1


def test_the_batch_of_a_benchmark(engine: Engine) -> None:
    assert engine.benchmark(runs=1, batch=7).shapes == {"x": (7, 3)}
    assert engine.benchmark({"x": (6, 3)}, runs=1).shapes == {"x": (6, 3)}
    for options, message in (({"batch": 9}, "no profile"), ({"runs": 0}, "at least 1"), ({"rotate": 0}, "at least 1")):
        with pytest.raises(OptionError, match=message):
            engine.benchmark(**options)
    with pytest.raises(OptionError, match="has no input z; it has x"):
        engine.benchmark({"z": (1, 3)})


def test_a_profile_lists_the_longest_layer_first(engine: Engine) -> None:
    layers = engine.profile(runs=4)
    assert dict(layers.layers) == {"large": 0.75, "small": 0.25}
    assert list(layers.layers) == ["large", "small"]
    assert "75.0%  large" in str(layers) and "<td>small</td>" in layers._repr_html_()
    engine.run({"x": ones(1)})
    assert engine._trt.engine.contexts[-1].profiler is None, "profiling must not slow down what comes later"


def test_a_profile_sums_up_by_kind() -> None:
    layers = LayerTimes(
        {
            "{ForeignNode[norm]}": 0.4,
            "WindowAttention_a": 0.3,
            "WindowAttention_b": 0.2,
            "Reformatting CopyNode for Input Tensor 0 to x": 0.1,
        },
        runs=1,
    )
    assert list(layers.kinds) == ["WindowAttention", "other", "reformatting"]
    assert dict(layers.kinds["WindowAttention"]) == {"WindowAttention_a": 0.3, "WindowAttention_b": 0.2}
    assert "0.5000 ms   50.0%  WindowAttention (2)\n" in str(layers)


def test_a_profile_that_fails_leaves_no_profiler(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as failing:
        failing.setattr(fake_gpu._Context, "execute_async_v3", lambda context, stream: context.profiler is None)
        with pytest.raises(SwinoptError, match="did not run the engine"):
            engine.profile(runs=1)
    engine.run({"x": ones(1)})
    assert engine._trt.engine.contexts[-1].profiler is None


# -------------------------------------------------------------------------------------------------------------- looking


def test_an_engine_shows_what_it_is(engine: Engine) -> None:
    assert repr(engine) == "<Engine of TensorRT 8.6.0, 0.0 MB>"
    assert (engine.inputs["x"].dtype, engine.outputs["y"].shape) == ("float32", (-1, 3))
    assert repr(engine) == "<Engine of TensorRT 8.6.0, 0.0 MB: x float32[?, 3] -> y float32[?, 3]>"
    page = engine._repr_html_()
    assert "x float32[?, 3]" in page and "x [5, 3], [8, 3], [8, 3]" in page


def test_a_pickled_engine_takes_memory_of_its_own(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = engine._trt
    monkeypatch.setattr(tensorrt_module, "find", {trt.__name__: trt}.__getitem__)
    engine.run({"x": ones(2)})
    copy = pickle.loads(pickle.dumps(engine))
    assert (copy.plan, copy.interface, copy.choices) == (engine.plan, engine.interface, engine.choices)
    engine.close()
    np.testing.assert_array_equal(copy.run({"x": ones(2)})["y"], 2 * ones(2))


def test_files_that_are_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_module, "find", lambda name=None: fake_gpu.TensorRT())
    (tmp_path / "empty.engine").touch()
    for name, message in (("no.engine", "cannot be read"), ("empty.engine", "is empty"), (".", "cannot be read")):
        with pytest.raises(ModelError, match=message):
            Engine.load(tmp_path / name)
    with pytest.raises(ModelError, match="cannot be written"):
        Engine(b"plan", fake_gpu.TensorRT()).save(tmp_path / "no" / "such.engine")


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_whole(tmp_path / "file", b"old")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ModelError, match="No space left"):
        write_whole(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_threads_may_write_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, both = Path.write_bytes, threading.Barrier(2)

    def at_the_same_time(self: Path, data: bytes) -> int:
        both.wait(10)
        written = write(self, data)
        both.wait(10)
        return written

    monkeypatch.setattr(Path, "write_bytes", at_the_same_time)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda data: write_whole(tmp_path / "file", data), (b"one", b"two")))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() in (b"one", b"two")


def test_a_write_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def interrupted(self: Path, data: bytes) -> int:
        write(self, data[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_importing_it_loads_no_tensorrt_and_no_cuda() -> None:
    program = "import sys, swinopt.tensorrt; print(sorted({n.split('.')[0] for n in sys.modules}))"
    # Isolated and elsewhere: the checkout must not stand in for what is installed.
    command, elsewhere = [sys.executable, "-I", "-c", program], Path(sys.prefix)
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=elsewhere)
    assert not {"tensorrt", "tensorrt_rtx", "cuda", "torch", "onnxruntime"} & set(ast.literal_eval(done.stdout))

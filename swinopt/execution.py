"""An engine on the GPU: deserialized, with a context, stream and lock for each optimization profile and each bench."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from swinopt import arrays, cuda, dlpack, tensorrt_module
from swinopt.bench import Bench, Work
from swinopt.errors import ModelError, OptionError, SwinoptError
from swinopt.interface import Interface, Shape, Value
from swinopt.timing import LayerTimes

#: TensorRT's names for element types, those of them that a version has, and ours.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}

_CLOSED = "the engine was closed while a thread was about to use it: use it again"

#: Bytes to which TensorRT wants the addresses of tensors aligned; a slice of a tensor need not be.
_ALIGNMENT = 256


def dtype_name(trt: Any, dtype: Any) -> str:
    """Our name of a TensorRT element type; its own where we have none."""
    return next((ours for name, ours in _DTYPES.items() if getattr(trt.DataType, name, None) == dtype), str(dtype))


class Execution:
    """A deserialized engine.

    Args:
        plan: the serialized engine.
        trt: the TensorRT module that built it.

    Raises:
        ModelError: the plan is of another TensorRT or GPU, or damaged.
        MissingDependencyError: cuda-bindings is not installed.
        SwinoptError: there is no GPU.
    """

    def __init__(self, plan: bytes, trt: Any) -> None:
        cuda.require_device("An engine")
        self._trt = trt
        self._device = cuda.current_device()
        missing = tensorrt_module.register_what_there_is(trt)
        logger = tensorrt_module.logger(trt)
        logger.errors.clear()
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ModelError(
                f"{tensorrt_module.describe(trt)} cannot load the engine on this {cuda.device_name()}: an engine runs "
                "with the TensorRT, the kind of GPU and the plugins that it was built with, so build it again "
                f"({tensorrt_module.complaints(trt)}{f'; {missing}' if missing else ''})"
            )
        # For runs by the number of the profile, for benches by an object of their own.
        self._contexts: dict[object, Context] = {}
        self._closed = False
        self._lock = threading.Lock()

    def interface(self) -> Interface:
        """What the engine says of its inputs, outputs and profiles."""
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        values = {n: Value(dtype_name(self._trt, engine.get_tensor_dtype(n)), _shape(engine, n)) for n in names}
        inputs = [name for name in names if engine.get_tensor_mode(name) == self._trt.TensorIOMode.INPUT]
        dynamic = [name for name in inputs if -1 in values[name].shape]
        profiles = [
            {name: _range(engine.get_tensor_profile_shape(name, index)) for name in dynamic}
            for index in range(engine.num_optimization_profiles)
        ]
        return Interface(
            inputs={name: values[name] for name in inputs},
            outputs={name: values[name] for name in names if name not in inputs},
            profiles=tuple(profiles) if dynamic else (),
        )

    def close(self) -> None:
        """Gives back all that lies on the GPU, after the runs that other threads have begun."""
        with self._lock:
            self._closed = True
            contexts = list(self._contexts.values())
            self._contexts.clear()
        with cuda.on_device(self._device):
            for context in contexts:
                with context.lock:
                    context.close()
            # Contexts before the engine before the runtime, as TensorRT wants it.
            del self._engine, self._runtime

    @contextmanager
    def _context(self, profile: int) -> Iterator[Context]:
        with cuda.on_device(self._device):
            context = self._locked(profile)
            try:
                yield context
            finally:
                context.lock.release()

    def _locked(self, profile: int) -> Context:
        while True:
            with self._lock:
                if self._closed:
                    raise SwinoptError(_CLOSED)
                if profile not in self._contexts:
                    self._contexts[profile] = Context(self._engine, self._trt, profile)
                context = self._contexts[profile]
            context.lock.acquire()
            if not context.closed:
                return context
            # Whoever had it before closed it; there is a new one by now, or none any more.
            context.lock.release()

    # --------------------------------------------------------------------------------------------------------- running

    def run(self, interface: Interface, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """See :meth:`swinopt.engine.Engine.run`."""
        given = arrays.arrays_for(interface, inputs)
        profile = interface.profile_for({name: tuple(int(s) for s in array.shape) for name, array in given.items()})
        with self._context(profile) as context:
            views = {name: arrays.view(array, context.stream) for name, array in given.items()}
            for name, view in views.items():
                self._check(name, view, interface.inputs[name])
                context.set_input(name, view.shape, self._on_gpu(name, view, context))
            on_gpu = any(view.on_gpu for view in views.values())
            like = next((given[name] for name, view in views.items() if view.on_gpu == on_gpu), None)
            shapes = {name: context.output_shape(name) for name in interface.outputs}
            results = {n: self._empty(interface.outputs[n].dtype, shape, like, on_gpu) for n, shape in shapes.items()}
            targets = {name: arrays.view(result, context.stream) for name, result in results.items()}
            sizes = {name: arrays.size_of(interface.outputs[name].dtype, shape) for name, shape in shapes.items()}
            for name, target in targets.items():
                context.set_output(name, target.pointer if on_gpu else context.buffer(name, sizes[name]).handle)
            context.enqueue()
            if not on_gpu:
                for name, target in targets.items():
                    context.stream.download(target.pointer, context.buffer(name, sizes[name]).handle, sizes[name])
            context.stream.synchronize()
        return {name: arrays.handed_out(result, arrays.library_of(like)) for name, result in results.items()}

    def _empty(self, dtype: str, shape: Shape, like: Any, on_gpu: bool) -> Any:
        if not on_gpu or arrays.is_of_torch(like):
            return arrays.empty(dtype, shape, like)
        memory = cuda.Memory(arrays.size_of(dtype, shape))
        return dlpack.DeviceArray(memory.handle, shape, dtype, self._device, memory)

    def _check(self, name: str, view: dlpack.View, expected: Value) -> None:
        if view.dtype != expected.dtype:
            raise OptionError(f"input {name!r} is {view.dtype}, and the engine takes {expected.dtype}: convert it")
        if not view.dense:
            raise OptionError(f"input {name!r} is not contiguous in memory: make it so, e.g. with x.contiguous()")
        if view.on_gpu and view.device[1] != self._device:
            raise OptionError(f"input {name!r} lies on GPU {view.device[1]}, and the engine on GPU {self._device}")

    def _on_gpu(self, name: str, view: dlpack.View, context: Context) -> int:
        if view.on_gpu and view.pointer % _ALIGNMENT == 0:
            return view.pointer
        size = arrays.size_of(view.dtype, view.shape)
        memory = context.buffer(name, size)
        (context.stream.copy if view.on_gpu else context.stream.upload)(memory.handle, view.pointer, size)
        return int(memory.handle)

    # ------------------------------------------------------------------------------------------------------- measuring

    def bench(self, interface: Interface, shapes: Mapping[str, Shape], rotate: int, graph: bool, what: str) -> Bench:
        """See :meth:`swinopt.engine.Engine.bench`."""
        key, profile = object(), interface.profile_for(shapes)
        with cuda.on_device(self._device):
            # TensorRT 8 lets a profile of an engine from elsewhere have one context.
            self._give_up(profile)
            with self._lock:
                if self._closed:
                    raise SwinoptError(_CLOSED)
                # Of its own: what a bench keeps must not be in the way of runs.
                context = self._contexts[key] = Context(self._engine, self._trt, profile)
                context.lock.acquire()
            try:
                return Bench(context, interface, shapes, rotate, graph, self._device, what, partial(self._give_up, key))
            except BaseException:
                with self._lock:
                    self._contexts.pop(key, None)
                context.close()
                raise
            finally:
                context.lock.release()

    def _give_up(self, key: object) -> None:
        """Closes a context, when what runs in it has ended."""
        with self._lock:
            context = self._contexts.pop(key, None)
        if context is not None:
            with cuda.on_device(self._device), context.lock:
                context.close()

    def profile(self, interface: Interface, shapes: Mapping[str, Shape], runs: int) -> LayerTimes:
        """See :meth:`swinopt.engine.Engine.profile`."""
        profile = interface.profile_for(shapes)
        with self._context(profile) as context:
            work = Work(context, interface, shapes, 0)
            work()
            context.stream.synchronize()
            try:
                times = context.measure_layers(work, runs)
            finally:
                # A profiler cannot be taken off again, and slows every run down.
                with self._lock:
                    self._contexts.pop(profile, None)
                context.close()
        return LayerTimes(dict(sorted(times.items(), key=lambda item: -item[1])), runs)


class Context:
    """A TensorRT execution context with the stream that it runs in and the buffers that it keeps."""

    def __init__(self, engine: Any, trt: Any, profile: int) -> None:
        self.lock = threading.Lock()
        self.closed = False
        self.stream = cuda.Stream()
        self._trt = trt
        self._buffers: dict[str, cuda.Memory] = {}
        self.works: list[Work] = []
        self._context = engine.create_execution_context()
        if self._context is None:
            raise SwinoptError(f"TensorRT cannot make an execution context: {tensorrt_module.complaints(trt)}")
        self._require(self._context.set_optimization_profile_async(profile, self.stream.address), "choose a profile")

    def buffer(self, name: str, size: int) -> cuda.Memory:
        """Memory of at least this size that stays with the context, so that the next run need not ask for it."""
        if name in self._buffers and self._buffers[name].size < size:
            # Forgotten as well as freed, since there may not be enough for the new one.
            self._buffers.pop(name).close()
        if name not in self._buffers:
            self._buffers[name] = cuda.Memory(size)
        return self._buffers[name]

    def set_input(self, name: str, shape: Shape, address: int) -> None:
        """Says where an input lies, and how large it is."""
        self._require(self._context.set_input_shape(name, shape), f"take {name} of shape {list(shape)}")
        self._require(self._context.set_tensor_address(name, address), f"take an address for {name}")

    def set_output(self, name: str, address: int) -> None:
        """Says where an output goes."""
        self._require(self._context.set_tensor_address(name, address), f"take an address for {name}")

    def output_shape(self, name: str) -> Shape:
        """The shape of an output for the inputs that were set."""
        shape = _shape(self._context, name)
        if any(size < 0 for size in shape):
            raise SwinoptError(
                f"the size of output {name!r} depends on values: run such an engine with TensorRT itself"
            )
        return shape

    def enqueue(self) -> None:
        """Puts an inference into the stream."""
        self._require(self._context.execute_async_v3(self.stream.address), "run the engine")

    def measure_layers(self, work: Callable[[], None], runs: int) -> dict[str, float]:
        """Mean milliseconds of each layer."""
        times: dict[str, float] = defaultdict(float)

        class Profiler(self._trt.IProfiler):  # type: ignore[misc, name-defined]  # a module that is chosen at run time
            def __init__(self) -> None:
                super().__init__()

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times[layer_name] += ms

        self._context.profiler = Profiler()
        work()
        self.stream.synchronize()
        times.clear()
        for _ in range(runs):
            work()
            self.stream.synchronize()
        return {name: ms / runs for name, ms in times.items()}

    def close(self) -> None:
        """Gives back all that it has on the GPU."""
        self.closed = True
        self._context = None
        for work in self.works:
            work.close()
        self.works.clear()
        for memory in self._buffers.values():
            memory.close()
        self._buffers.clear()
        self.stream.close()

    def _require(self, done: bool, what: str) -> None:
        if not done:
            raise SwinoptError(f"TensorRT did not {what}: {tensorrt_module.complaints(self._trt)}")


def _shape(source: Any, name: str) -> Shape:
    return tuple(int(size) for size in source.get_tensor_shape(name))


def _range(shapes: Any) -> tuple[Shape, Shape, Shape]:
    low, usual, high = (tuple(int(size) for size in shape) for shape in shapes)
    return low, usual, high

"""Measures one cell of the table of h200.py: one Swin in one runtime. Run by it, a process for each cell.

    python benchmarks/cells.py COLUMN MODEL PRECISION BATCH FOLDER OUTPUT [--prepare]

Correctness comes first: outputs are compared with PyTorch's in fp32 (TF32 off), and those that are NaN are counted.
Then the time, over inputs that take turns. Writes OUTPUT as JSON, whole or not at all; what cannot be built or run is a
result, too, and its error the text of the cell. With ``--prepare`` it only makes what takes long, an engine or a
compiled module, and leaves it for the measurement: in FOLDER, or where PyTorch keeps what it compiled.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import engines
import numpy as np

from swinopt.engine import write_whole

#: By short name: timm's name and the side of its images.
MODELS = {
    "Swin-T 224": ("swin_tiny_patch4_window7_224", 224),
    "Swin-S 224": ("swin_small_patch4_window7_224", 224),
    "Swin-B 224": ("swin_base_patch4_window7_224", 224),
    "Swin-L 224": ("swin_large_patch4_window7_224", 224),
    "Swin-B 384 w12": ("swin_base_patch4_window12_384", 384),
    "SwinV2-B 256 w16": ("swinv2_base_window16_256", 256),
}
PEAKS = "peaks"
_SETS, _ROUNDS = engines.SETS, 30
_PACKAGES = ("swinopt", "torch", "timm", "onnx", "onnxruntime-gpu", "onnxruntime", "tensorrt", "numpy")

Measured = dict[str, Any]


def main() -> int:
    column, model, precision, batch, folder, output, *prepare = sys.argv[1:]
    before = used_memory()
    measure = PREPARE[column] if prepare else COLUMNS[column]
    try:
        found = measure(Cell(model, precision, int(batch), Path(folder), before))
    except Exception as error:  # a runtime that fails is a result of the table
        found = {"error": one_line(error)}
    found |= {"measured": datetime.now(timezone.utc).isoformat(timespec="seconds"), "machine": machine()}
    write_whole(output, json.dumps(found, indent=1).encode())
    return 0


def one_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


class Cell:
    """What a column needs to know: the model, and where its exports, inputs and true outputs lie."""

    def __init__(self, model: str, precision: str, batch: int, folder: Path, memory_before: int) -> None:
        self.model, self.precision, self.batch, self.folder = model, precision, batch, folder
        self.memory_before = memory_before
        self.name, self.side = MODELS.get(model, ("", 0))
        self.stem = f"{self.name}-{batch}"

    def module(self) -> Any:
        """The model in PyTorch, in fp32, with random weights, biases, norms and bias tables."""
        import timm
        import torch

        from swinopt.export import randomize

        torch.manual_seed(0)
        return randomize(timm.create_model(self.name).eval(), seed=0)

    def exported(self, kind: str) -> Path:
        return self.folder / f"{self.stem}-{kind}.onnx"

    def built(self, kind: str, plugins: str | None) -> Measured:
        """As :func:`engines.built` does it for this model, precision and batch."""
        return engines.built(self.exported(kind), self.precision, plugins)

    def plan(self, kind: str, plugins: str | None) -> Path:
        return engines.plan_of(self.exported(kind), self.precision, plugins)

    def truth(self) -> tuple[Any, Any]:
        """Inputs [sets, B, 3, H, W] and PyTorch's outputs in fp32."""
        with np.load(self.folder / f"{self.stem}.npz") as kept:
            return kept["inputs"], kept["outputs"]

    def measured(self, outputs: Any, milliseconds: Sequence[float], **more: Any) -> Measured:
        """A cell: medians of ``milliseconds``, and ``outputs`` beside the true ones."""
        true = self.truth()[1]
        median = statistics.median(milliseconds)
        low, high = np.percentile(milliseconds, [10, 90])
        return {
            "ms": median,
            "spread": float(high - low) / median,
            "images_s": 1000 * self.batch / median,
            "max_abs_diff": float(np.abs(np.nan_to_num(outputs.astype(np.float32)) - true).max()),
            "nan": int(np.isnan(outputs).sum()),
            "memory_mib": used_memory() - self.memory_before,
            **more,
        }


# -------------------------------------------------------------------------------------------------------------- PyTorch


def export(cell: Cell) -> Measured:
    """Not a column: writes what the others read, unless that has been done."""
    told = cell.folder / f"{cell.stem}-exported.json"
    if told.exists():
        found: Measured = json.loads(told.read_text(encoding="utf-8"))
        return found
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    module = cell.module()
    image = torch.randn(cell.batch, 3, cell.side, cell.side)
    for kind in ("torchscript", "torchscript-unfolded"):
        engines.export_missing(module, image, cell.exported(kind), kind)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(image[:1])
    _full_precision()
    module.cuda()
    inputs = torch.randn(_SETS, *image.shape, generator=torch.Generator().manual_seed(cell.batch))
    outputs = engines.keep_truth(module, inputs, cell.folder / f"{cell.stem}.npz")
    found = {"flop_per_image": counter.get_total_flops(), "largest_output": float(outputs.abs().max())}
    write_whole(told, json.dumps(found).encode())
    return found


def _full_precision() -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _torch(cell: Cell, precision: str, mode: str | None = None) -> Measured:
    import torch

    _full_precision()
    if precision == "tf32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    dtype = torch.float16 if precision == "fp16" else torch.float32
    module = cell.module().to("cuda", dtype)
    # Inductor's workers compile with the ptxas of PyTorch's wheel, the process itself with Triton's: in another version
    # no kernel of theirs is the one it looks for, and max-autotune compiles hundreds once more, one after the other.
    ptxas = Path(torch.__file__).parent / "bin" / "ptxas"
    if ptxas.exists():
        os.environ.setdefault("TRITON_PTXAS_PATH", str(ptxas))
    start = time.monotonic()
    run: Callable[[Any], Any] = module if mode is None else torch.compile(module, mode=mode)
    inputs = [torch.from_numpy(images).to("cuda", dtype) for images in cell.truth()[0]]
    with torch.inference_mode():
        outputs = np.stack([run(images).float().cpu().numpy() for images in inputs])
        built = engines.running_since(start)
        for images in inputs * 3:
            run(images)
        torch.cuda.synchronize()
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(_ROUNDS * _SETS)]
        # Waited for once: a host that waits for each run would put its own delay into the next one.
        for index, (first, last) in enumerate(events):
            first.record()
            run(inputs[index % _SETS])
            last.record()
        torch.cuda.synchronize()
        times = [first.elapsed_time(last) for first, last in events]
    if mode is None:
        return cell.measured(outputs, times)
    first = cell.folder / f"{cell.stem}-{precision}-{mode}.json"
    if not first.exists():  # later ones find it compiled
        write_whole(first, json.dumps({"build_s": round(built, 1)}).encode())
    return cell.measured(outputs, times, **json.loads(first.read_text(encoding="utf-8")))


def peaks(_: Cell) -> Measured:
    """Not a column: what the chip gives, TFLOP/s of large matrix products and TB/s of a large copy."""
    import torch
    from kernels import copy_bandwidth, elapsed

    found: Measured = {}
    size = 8192
    for name in ("fp16", "tf32", "fp32"):
        torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
        dtype = torch.float16 if name == "fp16" else torch.float32
        a, b = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
        times = [elapsed(partial(torch.matmul, a, b)) for _ in range(25)][5:]
        found[f"{name}_tflop_s"] = 2 * size**3 / statistics.median(times) / 1e12
    return {**found, "copy_tb_s": copy_bandwidth()}


# --------------------------------------------------------------------------------------------------------- ONNX Runtime


def _onnxruntime(cell: Cell, optimized: bool) -> Measured:
    import onnx
    import onnxruntime

    import swinopt
    from swinopt.precision import convert

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise RuntimeError("this onnxruntime has no CUDA provider")
    start = time.perf_counter()
    model = onnx.load(cell.exported("torchscript"))
    if optimized:
        model = swinopt.optimize(model, target="onnxruntime", verify=False).model
    if cell.precision == "fp16":
        model = convert(model, "fp16").model
    provider = ("CUDAExecutionProvider", {"use_tf32": str(int(cell.precision == "tf32"))})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=[provider])
    built = time.perf_counter() - start
    (image,), (name,) = session.get_inputs(), [output.name for output in session.get_outputs()]
    bindings, outputs, times = [], [], []
    for images in cell.truth()[0]:
        binding = session.io_binding()
        dtype = np.float16 if "float16" in image.type else np.float32
        binding.bind_ortvalue_input(
            image.name, onnxruntime.OrtValue.ortvalue_from_numpy(images.astype(dtype), "cuda", 0)
        )
        binding.bind_output(name, "cuda", 0)
        session.run_with_iobinding(binding)
        outputs.append(binding.copy_outputs_to_cpu()[0].astype(np.float32))
        bindings.append(binding)
    for index in range(_ROUNDS * _SETS + 10):
        begun = time.perf_counter()
        session.run_with_iobinding(bindings[index % _SETS])
        if index >= 10:
            times.append(1e3 * (time.perf_counter() - begun))
    return cell.measured(np.stack(outputs), times, build_s=round(built, 1))


# ------------------------------------------------------------------------------------------------------------- TensorRT


def _tensorrt(cell: Cell, kind: str, plugins: str | None) -> Measured:
    """``plugins``: None is the graph as it was exported, for stock TensorRT."""
    import swinopt
    from swinopt.engine import Engine

    built = cell.built(kind, plugins)
    if "error" in built:
        return built
    stock = cell.plan("torchscript", None)
    with Engine.load(cell.plan(kind, plugins)) as engine:
        (name,), (image,) = engine.outputs, engine.inputs
        outputs = np.stack([engine.run({image: images})[name] for images in cell.truth()[0]])
        timing = engine.benchmark(runs=_ROUNDS * _SETS)
        found = cell.measured(outputs, timing.samples, cuda_graph=timing.graph, **built)
        if plugins is not None and stock.exists():
            try:
                found["of_stock"] = _in_turns(engine, stock)
            except swinopt.SwinoptError as error:  # of another GPU, say
                found["notes"].append(f"not timed in turns with stock TensorRT: {error}")
        return found


def _in_turns(engine: Any, other: Path) -> list[float]:
    """The engine's time as a part of another one's, sorted: rounds in turns, in one process."""
    from swinopt.engine import Engine

    with Engine.load(other) as stock:
        rounds = engines.in_turns(engine, stock, _ROUNDS * _SETS)
    return sorted(ours.median / theirs.median for ours, theirs in rounds)


COLUMNS: dict[str, Callable[[Cell], Measured]] = {
    "export": export,
    PEAKS: peaks,
    "torch": lambda cell: _torch(cell, cell.precision),
    "torch fp32": lambda cell: _torch(cell, "fp32"),
    "compile": lambda cell: _torch(cell, cell.precision, "reduce-overhead"),
    "compile max": lambda cell: _torch(cell, cell.precision, "max-autotune"),
    "ONNX Runtime": lambda cell: _onnxruntime(cell, optimized=False),
    "ONNX Runtime, optimized": lambda cell: _onnxruntime(cell, optimized=True),
    "TensorRT": lambda cell: _tensorrt(cell, "torchscript", None),
    "TensorRT, unfolded": lambda cell: _tensorrt(cell, "torchscript-unfolded", None),
    "swinopt, no plugins": lambda cell: _tensorrt(cell, "torchscript-unfolded", "off"),
    "swinopt": lambda cell: _tensorrt(cell, "torchscript-unfolded", "auto"),
}


#: By column, what takes long and can be made ahead, while others are made on the same GPU.
PREPARE: dict[str, Callable[[Cell], Measured]] = {
    "compile": lambda cell: _torch(cell, cell.precision, "reduce-overhead"),
    "compile max": lambda cell: _torch(cell, cell.precision, "max-autotune"),
    "TensorRT": lambda cell: cell.built("torchscript", None),
    "TensorRT, unfolded": lambda cell: cell.built("torchscript-unfolded", None),
    "swinopt, no plugins": lambda cell: cell.built("torchscript-unfolded", "off"),
    "swinopt": lambda cell: cell.built("torchscript-unfolded", "auto"),
}


def used_memory() -> int:
    """MiB of the first visible GPU that are taken, by whomever."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):  # which nvidia-smi itself does not heed
        query.append(f"--id={visible.split(',')[0]}")
    return int(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0])


def machine() -> dict[str, str]:
    gpu, driver = engines.gpu().split(", ")
    found = {"GPU": gpu, "driver": driver, "Python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())

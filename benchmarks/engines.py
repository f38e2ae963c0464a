"""Builds TensorRT engines of Swins from exports of every kind, with and without plugins: right first, then fast.

    python benchmarks/engines.py export FOLDER    # where PyTorch with CUDA is: models, inputs, their outputs in fp32
    python benchmarks/engines.py build FOLDER     # where TensorRT is; maybe another Python, without PyTorch
    python benchmarks/engines.py time FOLDER

What is done already is not done again, so that a run that was cut off goes on where it stopped. Models have random
weights, biases, norms and bias tables; PyTorch's outputs are those of fp32 without TF32. Pairs of engines are timed in
turns in one process, each with CUDA graphs over rotating inputs. Results lie in FOLDER/results, a file each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

#: By short name: timm's name, the side of its images, and how many window attentions it has.
MODELS = {
    "swin_base": ("swin_base_patch4_window7_224", 224, 24),
    "swin_tiny": ("swin_tiny_patch4_window7_224", 224, 12),
    "swinv2_tiny": ("swinv2_tiny_window8_256", 256, 12),
}
SETS = 3  # of inputs that are compared
HALTS = "SWINOPT_HALTS"  # in the environment: the file of running_since()
_ROUNDS, _RUNS = 7, 60


@dataclass(frozen=True)
class Job:
    """One engine. ``export`` names the kind: exporter, and whether it folded constants."""

    model: str
    export: str
    batch: int
    precision: str
    optimized: bool

    @property
    def name(self) -> str:
        return f"{'swinopt' if self.optimized else 'stock'} {self.model} {self.precision} B={self.batch} {self.export}"

    @property
    def exported(self) -> str:
        return f"{MODELS[self.model][0]}-{self.batch}-{self.export}.onnx"

    @property
    def truth(self) -> str:
        return f"{MODELS[self.model][0]}-{self.batch}.npz"

    @property
    def plugins(self) -> str | None:
        """As :func:`built` takes them."""
        return "on" if self.optimized else None

    @property
    def level(self) -> int | None:
        """The optimization level: of those whose numbers are compared and whose time is not, a low one."""
        return None if self in TIMED else 1


#: The pairs whose times are compared, swinopt's first; then what is there for its numbers alone.
PAIRS = tuple(
    (
        Job("swin_base", "torchscript-unfolded", batch, "fp16", True),
        Job("swin_base", "torchscript", batch, "fp16", False),
    )
    for batch in (32, 1)
)
_KINDS = ("torchscript", "torchscript-unfolded", "dynamo", "dynamo-unfolded")
OTHERS = (
    *(Job("swin_base", kind, 1, precision, True) for kind in _KINDS for precision in ("fp32", "fp16")),
    Job("swin_base", "torchscript-unfolded", 1, "fp16", False),
    *(
        Job(model, "torchscript", 1, precision, True)
        for model in ("swin_tiny", "swinv2_tiny")
        for precision in ("fp32", "fp16")
    ),
)
TIMED = {job for pair in PAIRS for job in pair}
JOBS = tuple(dict.fromkeys([*(job for pair in PAIRS for job in pair), *OTHERS]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("export", "build", "time"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", help="a kind of export, or the start of an engine's name")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th engine from the i-th on")
    arguments = parser.parse_args()
    (arguments.folder / "results").mkdir(parents=True, exist_ok=True)
    if arguments.step == "export":
        export(arguments.folder, arguments.only)
    elif arguments.step == "build":
        part, parts = map(int, arguments.part.split("/"))
        build(arguments.folder, arguments.only, JOBS[part::parts])
    else:
        time_pairs(arguments.folder)
    return 0


def results(folder: Path) -> dict[str, Any]:
    """All that has been measured: ``machine``, ``engines`` and ``pairs`` by name."""
    found: dict[str, Any] = {"engines": {}, "pairs": {}}
    for job in JOBS:
        if _result(job.name, folder).exists():
            found["engines"][job.name] = json.loads(_result(job.name, folder).read_text())
    for pair in PAIRS:
        if _result(_pair_name(pair), folder).exists():
            found["pairs"][_pair_name(pair)] = json.loads(_result(_pair_name(pair), folder).read_text())
    found["machine"] = json.loads(_result("machine", folder).read_text())
    return found


def _result(name: str, folder: Path) -> Path:
    return folder / "results" / f"{_file_name(name)}.json"


def _file_name(name: str) -> str:
    return name.replace(" ", "_").replace("=", "")


def _keep(name: str, found: Any, folder: Path) -> None:
    from swinopt.engine import write_whole

    write_whole(_result(name, folder), json.dumps(found, indent=2).encode())
    print(name, {key: value for key, value in found.items() if key != "layers"}, flush=True)


# ------------------------------------------------------------------------------------------------------------- export


def _folded(module: Any, image: Any, path: Path, exporter: str) -> None:
    import swinopt

    swinopt.export(module, path, inputs=image, exporter=exporter, check=False)


def _torchscript_unfolded(module: Any, image: Any, path: Path) -> None:
    import torch

    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    torch.onnx.export(module, image, str(path), dynamo=False, do_constant_folding=False, opset_version=17, **names)


def _dynamo_unfolded(module: Any, image: Any, path: Path) -> None:
    import torch

    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"]}
    program = torch.onnx.export(module, (image,), dynamo=True, optimize=False, verbose=False, **names)
    program.save(str(path))


EXPORTS: dict[str, Callable[[Any, Any, Path], None]] = {
    "torchscript": lambda module, image, path: _folded(module, image, path, "torchscript"),
    "torchscript-unfolded": _torchscript_unfolded,
    "dynamo": lambda module, image, path: _folded(module, image, path, "dynamo"),
    "dynamo-unfolded": _dynamo_unfolded,
}


def export(folder: Path, only: list[str] | None) -> None:
    """Writes every model that the jobs read, inputs, and what PyTorch makes of them."""
    import timm
    import torch

    from swinopt.export import randomize

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for short, (name, side, _) in MODELS.items():
        torch.manual_seed(0)
        module = randomize(timm.create_model(name).eval(), seed=0)
        jobs = [job for job in JOBS if job.model == short and (only is None or job.export in only)]
        for job in {job.exported: job for job in jobs}.values():
            export_missing(module, torch.randn(job.batch, 3, side, side), folder / job.exported, job.export)
        if only is not None:
            continue
        module.cuda()
        for job in {job.truth: job for job in jobs}.values():
            generator = torch.Generator().manual_seed(job.batch)
            inputs = torch.randn(SETS, job.batch, 3, side, side, generator=generator)
            keep_truth(module, inputs, folder / job.truth)


def export_missing(module: Any, image: Any, path: Path, kind: str) -> None:
    """Exports a module in one of the ways of :data:`EXPORTS`, unless that has been done."""
    if path.exists():
        return
    draft = path.with_suffix(f".{os.getpid()}")
    EXPORTS[kind](module, image, draft)
    draft.rename(path)
    print(f"exported {path.name}", flush=True)


def keep_truth(module: Any, inputs: Any, path: Path) -> Any:
    """Writes sets of inputs, and what a module on the GPU makes of each; returns the latter."""
    import torch

    with torch.no_grad():
        outputs = torch.stack([module(images.cuda()).cpu() for images in inputs])
    np.savez(path, inputs=inputs.numpy(), outputs=outputs.numpy())
    return outputs


# -------------------------------------------------------------------------------------------------------------- build


def build(folder: Path, only: list[str] | None, jobs: Sequence[Job] = JOBS) -> None:
    """Builds engines, all or those whose names start with one of ``only``, and compares them with PyTorch."""
    _keep("machine", _machine(), folder)
    for job in jobs:
        wanted = only is None or job.name.startswith(tuple(only))
        if wanted and not _result(job.name, folder).exists():
            _keep(job.name, {**asdict(job), **_engine(job, folder)}, folder)


def time_pairs(folder: Path) -> None:
    """Times the pairs of engines that are there."""
    for pair in PAIRS:
        if all(_plan(job, folder).exists() for job in pair) and not _result(_pair_name(pair), folder).exists():
            _keep(_pair_name(pair), _in_turns(pair, folder), folder)


def _pair_name(pair: tuple[Job, Job]) -> str:
    return f"{pair[0].precision} B={pair[0].batch}"


def _plan(job: Job, folder: Path) -> Path:
    return plan_of(folder / job.exported, job.precision, job.plugins, job.level)


def _engine(job: Job, folder: Path) -> dict[str, Any]:
    """Builds one engine and compares it with PyTorch; an engine that cannot be built is a result, too."""
    from swinopt.engine import Engine

    told = built(folder / job.exported, job.precision, job.plugins, job.level)
    if "error" in told:
        return told
    truth = np.load(folder / job.truth)
    with Engine.load(_plan(job, folder)) as engine:
        (name,) = engine.outputs
        (image,) = engine.inputs
        outputs = np.stack([engine.run({image: images})[name] for images in truth["inputs"]])
    return {
        **told,
        "plugins_wanted": _plugins_of(job),
        "max_abs_diff": float(np.abs(outputs - truth["outputs"]).max()),
        "nan": int(np.isnan(outputs).sum()),
        "largest_output": float(np.abs(truth["outputs"]).max()),
    }


def running_since(begun: float, halts: Path | None = None) -> float:
    """Seconds since ``begun``, by :func:`time.monotonic`, but for those for which h200.py halted this process.

    ``halts``: a file of when each began and ended; by default the one that the environment names, if any.
    """
    now = time.monotonic()
    path = halts or Path(os.environ.get(HALTS, os.devnull))
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    times = (map(float, line.split()) for line in lines)
    return now - begun - sum(max(0.0, end - max(begun, start)) for start, end in times)


def built(exported: Path, precision: str, plugins: str | None, level: int | None = None) -> dict[str, Any]:
    """Builds an engine beside an exported model, unless it is there: what is told of it, or the error it fails with.

    ``plugins``: None is the graph as it was exported, for stock TensorRT. An engine of swinopt is there if this swinopt
    has made it, and a failure is tried again.
    """
    import swinopt
    from swinopt import tensorrt
    from swinopt.engine import write_whole

    plan = plan_of(exported, precision, plugins, level)
    told = plan.with_suffix(".json")
    if told.exists() and plan.exists():
        found: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
        return found
    model: Any = exported
    start = time.monotonic()
    try:
        if plugins is not None:
            model = swinopt.optimize(model, target=target(), verify=False)
        optimize_s, start = running_since(start), time.monotonic()
        with tensorrt.build(
            model,
            precision=precision,
            timing_cache=exported.parent / f"{precision}.timing.cache",
            optimization_level=level,
            plugins=plugins or "off",
            progress=partial(_tell, plan.stem),
        ) as engine:
            engine.save(plan)
            found = {
                "optimize_s": round(optimize_s, 1),
                "build_s": round(running_since(start), 1),
                "plugin_layers": engine.plugin_layers,
                "choices": [choice.to_dict() for choice in engine.choices],
                "notes": list(engine.notes),
                "TensorRT": tensorrt_version(),
            }
    except swinopt.SwinoptError as error:
        return {"error": " ".join(str(error).split())[:400], "TensorRT": tensorrt_version()}
    write_whole(told, json.dumps(found).encode())
    return found


def _tell(engine: str, phase: str, step: int, steps: int) -> None:
    if step == 0:
        print(f"{engine}: {phase}{f' ({steps} steps)' if steps > 1 else ''}", flush=True)


def plan_of(exported: Path, precision: str, plugins: str | None, level: int | None = None) -> Path:
    """Where :func:`built` puts an engine."""
    from swinopt.choice_cache import kernels_hash, sources_hash

    level_name = "" if level is None else f"-level{level}"
    version = tensorrt_version()
    by = "stock" if plugins is None else f"{plugins}-{sources_hash()[:8]}-{kernels_hash(version)[:8]}"
    name = f"{exported.stem}-{precision}-{version}-{by}{level_name}"
    # Without the dots of the version, of which with_suffix would take the last for the suffix.
    return exported.parent / f"{name.replace('.', '_')}.engine"


def _plugins_of(job: Job) -> int:
    """How many plugin layers an engine must have: every attention and, with a cuBLASLt, what lies between them."""
    if not job.optimized:
        return 0
    attentions = MODELS[job.model][2]
    if not cublaslt_version():
        return attentions
    linears = 4 * attentions + 1 + 3 + 1  # of blocks, embedding, patch mergings and head
    norms = 2 * attentions + 1 + 3 + 1  # likewise, but before the head; those of V1's mergings are PatchMerging
    return attentions + linears + norms


def _in_turns(pair: tuple[Job, Job], folder: Path) -> dict[str, Any]:
    """Medians of two engines that are timed in turns, and the ratio of each round."""
    from swinopt.engine import Engine

    ours, stock = (Engine.load(_plan(job, folder)) for job in pair)
    with ours, stock:
        rounds = in_turns(ours, stock, _RUNS)
        layers = ours.profile(runs=10)
    medians = [sorted(side[i].median for side in rounds)[_ROUNDS // 2] for i in (0, 1)]
    ratios = sorted(a.median / b.median for a, b in rounds)
    return {
        "swinopt_ms": medians[0],
        "stock_ms": medians[1],
        "ratio": ratios[_ROUNDS // 2],
        "ratios": [ratios[0], ratios[-1]],
        "spread": max(side[i].spread for side in rounds for i in (0, 1)),
        "cuda_graph": all(timing.graph for side in rounds for timing in side),
        "kinds": {kind: [len(found), sum(found.values())] for kind, found in layers.kinds.items()},
        "layers": dict(layers.layers),
    }


def in_turns(one: Any, other: Any, runs: int) -> list[tuple[Any, Any]]:
    """Timings of two engines, round by round, so that both have the clocks and the temperature of the other one."""
    for graph in (True, False):  # both or none: launched one by one, one of them would pay for it
        with one.bench(graph=graph) as first, other.bench(graph=graph) as second:
            if first.graph == second.graph:
                return [(first.time(runs=runs), second.time(runs=runs)) for _ in range(_ROUNDS)]
    raise AssertionError("without graphs both are alike")


def target() -> str:
    """The target that graphs for the TensorRT at hand are optimized for."""
    return "tensorrt-8.6" if tensorrt_version().startswith(("8.", "9.")) else "tensorrt"


def tensorrt_version() -> str:
    from swinopt import tensorrt_module

    return str(tensorrt_module.find(None).__version__)


def cublaslt_version() -> int:
    """Of the library that multiplies in linears, e.g. 120103; 0 if there is none."""
    from swinopt import tensorrt_module

    return tensorrt_module.cublaslt_version(tensorrt_module.find(None))


def gpu() -> str:
    """Name and driver of the first GPU."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _machine() -> dict[str, str]:
    return {
        "gpu, driver": gpu(),
        "TensorRT": tensorrt_version(),
        "cuBLASLt": str(cublaslt_version() or "none"),
        "Python": sys.version.split()[0],
    }


if __name__ == "__main__":
    sys.exit(main())

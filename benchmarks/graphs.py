"""The graphs that swinopt makes, measured: nodes, numbers, time and memory, a row for each model and exporter.

    python benchmarks/graphs.py                  # everything; writes benchmarks/results/graphs.md and README's table
    python benchmarks/graphs.py --quick          # swin_tiny alone
    python benchmarks/graphs.py --models swinv2  # the models with this in their names

Models have seeded random weights, with biases, norms and bias tables randomised too; they are exported once and kept in
a folder. Each export, each measurement of numbers and each measurement of time runs in a process of its own. The exit
code is 1 if a bar (of graphs_table.py) is missed, and the misses are listed.

Which nodes belong to a block is read off the graph. A Swin is a chain of tensors that carry everything: cut it behind
each node after which exactly one computed tensor is still needed. A piece that ends in an Add of the tensor it starts
from is a residual branch. Then

    block      a residual branch with a WindowAttention (or Softmax), the next residual branch (the MLP), and
               whatever stands between the two, or between it and the next block;
    merging    what stands between two blocks, if there is a MatMul, Gemm or Conv in it;
    rest       what stands before the first block and after the last one: stem and head.

Every node is counted exactly once.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anatomy import dissect
from graphs_page import as_markdown, write_into_readme
from graphs_table import (
    EXPORTERS,
    FORBIDDEN_IN_BLOCKS,
    MAX_ABS_DIFF,
    MODELS,
    TARGETS,
    Model,
    Row,
    missed,
    missed_between,
)

if TYPE_CHECKING:
    import onnx
    import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "graphs.md"

# ------------------------------------------------------------------------- what is measured, each in its own process


def export(model: Model, exporter: str, folder: Path) -> Path:
    """The model's exported file, from the folder or made now."""
    path = folder / f"{model.name}.{exporter}.onnx"
    if path.exists():
        return path
    import swinopt

    folder.mkdir(parents=True, exist_ok=True)
    opset = EXPORTERS[exporter]
    if model.name != "bert":
        return swinopt.export(model.name, path, exporter=exporter, opset=opset, seed=0)
    module, tokens = _bert()
    return swinopt.export(module, path, exporter=exporter, opset=opset, inputs=tokens)


def _bert() -> tuple[torch.nn.Module, torch.Tensor]:
    import torch
    import transformers

    from swinopt.export import randomize

    config = transformers.BertConfig(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512, vocab_size=1000
    )
    config._attn_implementation = "eager"
    config.return_dict = False
    torch.manual_seed(0)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()

    class LastHiddenState(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.bert(tokens)[0]
            return hidden

    return randomize(LastHiddenState()), torch.randint(0, config.vocab_size, (1, 64))


def measure_graphs(model: Model, exporter: str, path: Path) -> Row:
    """Everything but time and memory."""
    import onnx

    import swinopt
    from swinopt.verify import Reference

    original = onnx.load(path)
    row = Row(model.name, exporter, path.stat().st_size, len(original.graph.node))
    reference = Reference(original)
    for target in TARGETS:
        try:
            result = swinopt.optimize(original, target=target, verify=False)
        except Exception as error:
            row.failures.append(f"target {target}: {type(error).__name__}: {error}")
            continue
        row.nodes[target] = len(result.model.graph.node)
        row.rolled_back += [f"{target}: {p.name} ({p.note})" for p in result.report.passes if p.status == "rolled back"]
        if target.startswith("tensorrt"):
            _measure_parts(row, target, result.model, is_swin=bool(model.blocks))
        try:
            comparison = reference.check(result.model, tolerance=MAX_ABS_DIFF)
        except swinopt.SwinoptError as error:
            row.failures.append(f"target {target}: {error}")
            continue
        row.diff[target] = float("nan") if comparison.nan or comparison.inf else comparison.max_abs
        row.scale = comparison.scale
    return row


def _measure_parts(row: Row, target: str, model: onnx.ModelProto, *, is_swin: bool) -> None:
    if is_swin:
        anatomy = dissect(model)
        left = Counter(op for block in anatomy.blocks for op in block if op in FORBIDDEN_IN_BLOCKS)
        row.forbidden = dict(Counter(row.forbidden) + left)
        row.blocks[target] = max(map(len, anatomy.blocks), default=0)
    if target == "tensorrt":
        counts = Counter(node.op_type for node in model.graph.node)
        row.attentions = counts["WindowAttention"]
        row.fused = {name: counts[name] for name in ("LayerNormalization", "Gelu")}
        if is_swin:
            row.block_count = len(anatomy.blocks)
            row.merging = max(map(len, anatomy.mergings), default=0)
            row.rest = len(anatomy.rest)


def measure_cost(path: Path, repeats: int, with_onnxsim: bool) -> dict[str, Any]:
    """Median seconds of swinopt and onnxsim, which take turns, and the memory that swinopt takes."""
    import swinopt

    seconds: dict[str, list[float]] = {"swinopt": [], "onnxsim": []}
    peak, simplified = 0, None
    for _ in range(repeats):
        start = time.perf_counter()
        swinopt.optimize(path, verify=False)
        seconds["swinopt"].append(time.perf_counter() - start)
        # Only before anything else has run in this process is its peak that of swinopt.
        peak = peak or _peak_memory()
        if with_onnxsim:
            import onnxsim

            _be_silent()
            start = time.perf_counter()
            simplified = onnxsim.simplify(str(path))[0]
            seconds["onnxsim"].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) if values else None for name, values in seconds.items()}
    return {
        "seconds": medians["swinopt"],
        "onnxsim_seconds": medians["onnxsim"],
        "onnxsim": len(simplified.graph.node) if simplified is not None else None,
        "peak_bytes": peak,
    }


def _be_silent() -> None:
    # onnxsim writes lines for single nodes from C++, where Python's redirections do not reach.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns in a fresh process: its memory is gone afterwards, and its peak is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(model: Model, exporter: str, arguments: argparse.Namespace) -> Row:
    """One row; what fails is written down in it."""
    row = Row(model.name, exporter)
    try:
        path = apart(export, model, exporter, arguments.cache)
        row = apart(measure_graphs, model, exporter, path)
        for name, value in apart(measure_cost, path, arguments.repeats, arguments.onnxsim).items():
            setattr(row, name, value)
    except Exception as error:
        row.failures.append(f"{type(error).__name__}: {error}")
    row.misses = list(missed(model, row))
    return row


def setting_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Where, when and with what the rows are measured."""
    packages = (
        "swinopt",
        "onnx",
        "onnx-graphsurgeon",
        "numpy",
        "onnxruntime",
        "onnxsim",
        "torch",
        "timm",
        "transformers",
    )
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()}, no GPU used",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": ", ".join(found),
        "repeats": f"{arguments.repeats} (the median is shown)",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory() -> str:
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"


# -------------------------------------------------------------------------------------------------------------- main


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints, and says with the exit code whether every bar is cleared."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models", help="folder of exported models")
    parser.add_argument("--models", default="", help="only models with one of these, separated by commas, in the name")
    parser.add_argument("--exporters", default="", help="only these exporters, separated by commas")
    parser.add_argument("--quick", action="store_true", help="swin_tiny only")
    parser.add_argument("--repeats", type=int, default=3, help="how often time is taken; default: 3")
    parser.add_argument("--no-onnxsim", dest="onnxsim", action="store_false", help="do not run onnxsim")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of the tables")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"where the tables go; default: {RESULTS.relative_to(ROOT)} if all models are measured, else nowhere",
    )
    arguments = parser.parse_args(argv)
    arguments.onnxsim = arguments.onnxsim and find_spec("onnxsim") is not None
    wanted = "swin_tiny_patch4_window7_224" if arguments.quick else arguments.models
    models = [model for model in MODELS if any(part in model.name for part in wanted.split(","))]
    exporters = [name for name in EXPORTERS if any(part in name for part in arguments.exporters.split(","))]
    if not models or not exporters:
        parser.error(f"there is no such model or exporter; there are: {', '.join(m.name for m in MODELS)}")
    rows, start = [], time.perf_counter()
    for model in models:
        for exporter in exporters:
            print(f"[{time.perf_counter() - start:4.0f} s] {model.name} from {exporter}", file=sys.stderr, flush=True)
            rows.append(measure(model, exporter, arguments))
    misses = [f"{row.model} from {row.exporter}: {miss}" for row in rows for miss in row.misses]
    misses += missed_between(rows)
    setting = setting_of(arguments) | {"took": f"{time.perf_counter() - start:.0f} s"}
    if not arguments.onnxsim:
        setting["not judged"] = "time, as onnxsim was not run"
    text = as_markdown(rows, misses, setting)
    if arguments.json:
        print(json.dumps({"setting": setting, "rows": [asdict(row) for row in rows], "misses": misses}, indent=2))
    else:
        print(text)
    output = arguments.output or (RESULTS if len(rows) == len(MODELS) * len(EXPORTERS) else None)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    if output == RESULTS:
        write_into_readme(rows, setting)
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())

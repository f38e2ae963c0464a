"""The graphs that swinopt makes, measured: nodes, numbers, time and memory, a row for each model and exporter.

    python benchmarks/graphs.py                  # everything; writes benchmarks/results/graphs.md and README's table
    python benchmarks/graphs.py --quick          # swin_tiny alone
    python benchmarks/graphs.py --models swinv2  # the models with this in their names

Models have seeded random weights, with biases, norms and bias tables randomised too; they are exported once and kept in
a folder. Each export, each measurement of numbers and each measurement of time runs in a process of its own. The exit
code is 1 if a bar (the constants below) is missed, and the misses are listed.

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pages import fill_in

if TYPE_CHECKING:
    import onnx
    import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "graphs.md"
README = ROOT / "README.md"

# ---------------------------------------------------------------------------------------------------------- the bars

#: Most nodes of a block, by target. Without Gelu as one node, GELU takes five instead of one; and where tokens lie as
#: rows between two window attentions, two Reshapes lead there and back.
BLOCK_NODES = {"tensorrt": 14, "tensorrt-8.6": 20}
#: Most nodes of a patch merging for TensorRT.
MERGING_NODES = 5
#: Most nodes of stem and head together for TensorRT.
REST_NODES = 15
#: What a fused block has no more: the softmax, and all data movement but views.
FORBIDDEN_IN_BLOCKS = ("Softmax", "Slice", "Concat", "Pad", "Gather", "Split", "Transpose")
#: Most nodes for the portable target, by model; onnxsim 0.8.1 leaves 556 (TorchScript) and 489 (dynamo) of swin_tiny.
PORTABLE_NODES = {"swin_tiny_patch4_window7_224": 400}
#: Largest absolute difference to the original in fp32, where outputs are of order 1 (else times their largest value).
MAX_ABS_DIFF = 2e-5
#: Longest time of optimize(verify=False), as a multiple of onnxsim.simplify on the same file in the same process ...
TIME_TO_ONNXSIM = 1.0
#: ... judged on this one; the others are shown.
TIMED = ("swin_base_patch4_window7_224", "torchscript")
#: Highest resident memory of a process that optimizes a file and does nothing else, as a multiple of the file ...
MEMORY_TO_FILE = 4.0
#: ... judged from this size on, in bytes: the interpreter and its packages alone take what a small file does.
MEMORY_JUDGED_FROM = 300e6

# -------------------------------------------------------------------------------------------------------- the models

TARGETS = ("tensorrt", "tensorrt-8.6", "portable", "onnxruntime")
EXPORTERS = {"torchscript": 17, "dynamo": 20}


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        name: what timm calls it, or ``"bert"``.
        blocks: number of its Swin blocks; 0 if it is no Swin.
        layer_norms: number of its LayerNorms, if it is no Swin.
        gelus: number of its GELUs, if it is no Swin.
    """

    name: str
    blocks: int = 0
    layer_norms: int = 0
    gelus: int = 0


MODELS = (
    Model("swin_tiny_patch4_window7_224", blocks=12),
    Model("swin_small_patch4_window7_224", blocks=24),
    Model("swin_base_patch4_window7_224", blocks=24),
    Model("swin_large_patch4_window7_224", blocks=24),
    Model("swin_base_patch4_window12_384", blocks=24),
    Model("swinv2_tiny_window8_256", blocks=12),
    Model("swinv2_base_window16_256", blocks=24),
    Model("resnet18"),
    Model("vit_tiny_patch16_224", layer_norms=25, gelus=12),
    Model("convnext_atto", layer_norms=17, gelus=12),
    Model("bert", layer_norms=9, gelus=4),
)


@dataclass
class Row:
    """What was measured of one model from one exporter.

    Attributes:
        model: its name.
        exporter: the exporter.
        file_bytes: size of the exported file.
        exported: number of nodes as exported.
        onnxsim: number of nodes that onnxsim leaves; None if it was not run.
        nodes: number of nodes by target.
        diff: largest absolute difference to the original by target.
        scale: largest absolute value of the original's outputs.
        attentions: number of swinopt::WindowAttention for target tensorrt.
        blocks: nodes of the largest block, by target.
        block_count: number of blocks that were found for target tensorrt.
        merging: nodes of the largest patch merging for target tensorrt.
        rest: nodes of stem and head for target tensorrt.
        forbidden: op type to number of nodes left inside blocks, for the TensorRT targets.
        fused: number of LayerNormalization and Gelu nodes for target tensorrt.
        rolled_back: "target: pass" for passes that had to be rolled back.
        seconds: median time of optimize(verify=False).
        onnxsim_seconds: median time of onnxsim.simplify.
        peak_bytes: highest resident memory of a process that only optimizes the file.
        failures: what could not be measured, and why.
        misses: the bars that were missed.
    """

    model: str
    exporter: str
    file_bytes: int = 0
    exported: int = 0
    onnxsim: int | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    diff: dict[str, float] = field(default_factory=dict)
    scale: float = 0.0
    attentions: int = 0
    blocks: dict[str, int] = field(default_factory=dict)
    block_count: int = 0
    merging: int = 0
    rest: int = 0
    forbidden: dict[str, int] = field(default_factory=dict)
    fused: dict[str, int] = field(default_factory=dict)
    rolled_back: list[str] = field(default_factory=list)
    seconds: float | None = None
    onnxsim_seconds: float | None = None
    peak_bytes: int = 0
    failures: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)


# ----------------------------------------------------------------------------------------------------------- anatomy


@dataclass(frozen=True)
class Anatomy:
    """The op types of a Swin graph, sorted into its parts as the module's docstring says."""

    blocks: list[list[str]]
    mergings: list[list[str]]
    rest: list[str]


def dissect(model: onnx.ModelProto) -> Anatomy:
    """Sorts every node of a model into a block, a patch merging or the rest."""
    anatomy = Anatomy([], [], [])
    between: list[str] = []
    needs_mlp = False
    for op_types, is_residual in _pieces(model.graph):
        if is_residual and not needs_mlp and {"WindowAttention", "Softmax"} & set(op_types):
            _place(between, anatomy)
            between, needs_mlp = [], True
            anatomy.blocks.append(list(op_types))
        elif needs_mlp:
            anatomy.blocks[-1] += op_types
            needs_mlp = not is_residual
        else:
            between += op_types
    anatomy.rest.extend(between)
    return anatomy


def _place(between: list[str], anatomy: Anatomy) -> None:
    if not anatomy.blocks:
        anatomy.rest.extend(between)
    elif {"MatMul", "Gemm", "Conv"} & set(between):
        anatomy.mergings.append(between)
    else:
        anatomy.blocks[-1] += between


def _pieces(graph: onnx.GraphProto) -> Iterator[tuple[list[str], bool]]:
    """The op types between one tensor that carries everything and the next, and whether they are a residual branch."""
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    last_use |= {value.name: len(graph.node) for value in graph.output}
    live = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    carrier, piece = next(iter(live), ""), []
    for index, node in enumerate(graph.node):
        piece.append(node.op_type)
        live = {name for name in (*live, *node.output) if last_use.get(name, -1) > index}
        if len(live) == 1:
            yield piece, node.op_type == "Add" and carrier in node.input
            (carrier,), piece = live, []
    yield piece, False


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


# ----------------------------------------------------------------------------------------------------------- judging


def missed(model: Model, row: Row) -> Iterator[str]:
    """The bars that one row misses."""
    yield from row.failures
    yield from (f"rolled back for target {entry}" for entry in row.rolled_back)
    for target, diff in row.diff.items():
        allowed = MAX_ABS_DIFF * max(1.0, row.scale)
        if not diff <= allowed:
            yield f"max abs diff {diff:.1e} for target {target}, and {allowed:.1e} is allowed"
    yield from _missed_by_swin(model, row) if model.blocks else _missed_by_others(model, row)
    if (row.model, row.exporter) == TIMED and row.seconds and row.onnxsim_seconds:
        ratio = row.seconds / row.onnxsim_seconds
        if ratio > TIME_TO_ONNXSIM:
            yield f"optimize takes {ratio:.2f} times as long as onnxsim, and {TIME_TO_ONNXSIM} is allowed"
    if row.file_bytes >= MEMORY_JUDGED_FROM and row.peak_bytes > MEMORY_TO_FILE * row.file_bytes:
        yield f"peak memory is {row.peak_bytes / row.file_bytes:.1f} times the file, and {MEMORY_TO_FILE} is allowed"


def _missed_by_swin(model: Model, row: Row) -> Iterator[str]:
    if not row.attentions == row.block_count == model.blocks:
        yield f"{row.attentions} WindowAttention and {row.block_count} blocks found, and the model has {model.blocks}"
    for target, most in BLOCK_NODES.items():
        if row.blocks.get(target, 0) > most:
            yield f"a block has {row.blocks[target]} nodes for target {target}, and {most} are allowed"
    for part, nodes, most in (("patch merging", row.merging, MERGING_NODES), ("rest", row.rest, REST_NODES)):
        if nodes > most:
            yield f"the {part} has {nodes} nodes, and {most} are allowed"
    if row.forbidden:
        yield f"left inside blocks: {_counted(row.forbidden)}"
    if row.nodes.get("portable", 0) > PORTABLE_NODES.get(row.model, sys.maxsize):
        yield f"{row.nodes['portable']} nodes for target portable, and {PORTABLE_NODES[row.model]} are allowed"


def _missed_by_others(model: Model, row: Row) -> Iterator[str]:
    wanted = {"LayerNormalization": model.layer_norms, "Gelu": model.gelus}
    if row.fused and row.fused != wanted:
        yield f"the model has {_counted(wanted)}, and fused are {_counted(row.fused)}"
    for target, nodes in row.nodes.items():
        if nodes > row.exported and target != "tensorrt-8.6":
            yield f"{nodes} nodes for target {target}, and it was exported with {row.exported}"


def missed_between(rows: Iterable[Row]) -> Iterator[str]:
    """The bar that two rows share: for TensorRT a model has the same number of nodes from both exporters."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        if "tensorrt" in row.nodes and row.attentions:
            counts.setdefault(row.model, {})[row.exporter] = row.nodes["tensorrt"]
    for model, nodes in counts.items():
        if len(set(nodes.values())) > 1:
            yield f"{model}: nodes for target tensorrt differ between exporters: {_counted(nodes)}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"


# ---------------------------------------------------------------------------------------------------------- printing

_GRAPH_COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "exporter": lambda row: row.exporter,
    "as exported": lambda row: _number(row.exported or None),
    "onnxsim": lambda row: _number(row.onnxsim),
    **{target: lambda row, t=target: _number(row.nodes.get(t)) for target in TARGETS},  # type: ignore[misc]
    "WindowAttention": lambda row: f"{row.attentions} of {row.block_count}" if row.block_count else "-",
    "block / merging / rest": lambda row: _parts(row) if row.block_count else "-",
    "block (8.6)": lambda row: _number(row.blocks.get("tensorrt-8.6")),
    "forbidden": lambda row: _counted(row.forbidden) if row.block_count else "-",
}
_COST_COLUMNS: dict[str, Callable[[Row], str]] = {
    "model": lambda row: row.model,
    "exporter": lambda row: row.exporter,
    "max abs output": lambda row: f"{row.scale:.2g}",
    **{f"diff {target}": lambda row, t=target: _difference(row.diff.get(t)) for target in TARGETS},  # type: ignore[misc]
    "optimize": lambda row: _seconds(row.seconds),
    "onnxsim": lambda row: _seconds(row.onnxsim_seconds),
    "file": lambda row: _megabytes(row.file_bytes),
    "peak memory": lambda row: _megabytes(row.peak_bytes),
    "peak / file": lambda row: f"{row.peak_bytes / row.file_bytes:.1f}" if row.peak_bytes else "-",
}


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _parts(row: Row) -> str:
    return f"{_number(row.blocks.get('tensorrt'))} / {row.merging} / {row.rest}"


def _difference(value: float | None) -> str:
    return "-" if value is None else "0" if value == 0 else f"{value:.1e}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"


def _table(columns: dict[str, Callable[[Row], str]], rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    lines += ["| " + " | ".join(column(row) for column in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def as_markdown(rows: Sequence[Row], misses: Sequence[str], setting: dict[str, str]) -> str:
    """The tables with where, when and with what they were measured."""
    verdict = [f"- {miss}" for miss in misses] or ["None is missed."]
    parts = [
        "# The graphs that swinopt makes",
        "Written by `python benchmarks/graphs.py`, whose docstring says what is counted as what.",
        "\n".join(f"- {name}: {value}" for name, value in setting.items()),
        "## Nodes",
        "By target; `block / merging / rest`: nodes of the largest block, of the largest patch merging, and of stem "
        "and head together, for target tensorrt; `block (8.6)`: nodes of the largest block for target tensorrt-8.6; "
        f"`forbidden`: {', '.join(FORBIDDEN_IN_BLOCKS)} left inside blocks for either of the two.",
        _table(_GRAPH_COLUMNS, rows),
        "## Numbers, time and memory",
        "Largest absolute difference to the exported model on two random inputs, fp32, ONNX Runtime without "
        "optimizations, by target; median time of `optimize(path, verify=False)` for target tensorrt and of "
        "`onnxsim.simplify(path)`, taking turns in one process; highest resident memory of a process that does nothing "
        "but one `optimize`, interpreter and packages included.",
        _table(_COST_COLUMNS, rows),
        "## Bars missed",
        "\n".join(verdict),
    ]
    return "\n\n".join(parts) + "\n"


#: The rows and columns that stand in the README.
_README_MODELS = ("swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224", "swinv2_tiny_window8_256")
_README_COLUMNS = {
    **{name: _GRAPH_COLUMNS[name] for name in ("model", "exporter", "as exported", "onnxsim", "tensorrt", "portable")},
    "max abs diff": _COST_COLUMNS["diff tensorrt"],
}


def write_into_readme(rows: Sequence[Row], setting: dict[str, str]) -> None:
    """Puts the README's rows between its two markers."""
    table = _table(_README_COLUMNS, [row for row in rows if row.model in _README_MODELS])
    measured = "\n".join(
        [
            "Measured by `python benchmarks/graphs.py`; [all its results](benchmarks/results/graphs.md).",
            "",
            *(f"- {name}: {setting[name]}" for name in ("date", "machine", "system", "packages")),
        ]
    )
    fill_in(README, "measured", f"{table}\n\n{measured}")


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

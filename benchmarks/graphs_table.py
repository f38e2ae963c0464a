"""The table of graphs.py: its models, what is measured of each, and the bars."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

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
        yield f"left inside blocks: {counted(row.forbidden)}"
    if row.nodes.get("portable", 0) > PORTABLE_NODES.get(row.model, sys.maxsize):
        yield f"{row.nodes['portable']} nodes for target portable, and {PORTABLE_NODES[row.model]} are allowed"


def _missed_by_others(model: Model, row: Row) -> Iterator[str]:
    wanted = {"LayerNormalization": model.layer_norms, "Gelu": model.gelus}
    if row.fused and row.fused != wanted:
        yield f"the model has {counted(wanted)}, and fused are {counted(row.fused)}"
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
            yield f"{model}: nodes for target tensorrt differ between exporters: {counted(nodes)}"


def counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing"

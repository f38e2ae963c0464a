"""Whole models through the whole pipeline: every implementation, both exporters, all targets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import swinopt
from swinopt import Optimized, ops
from swinopt.lowering import for_parser, fuse_between_attentions
from swinopt.passes import FuseLinear
from swinopt.pipeline import Pass
from swinopt.rewrite import Rewriter

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

# Imports torch, and is no reason to fail where that is missing.
from tests.models import EXPORTERS, FEATURES, OPEN, OTHERS, SWINS, Exported, build, exported  # noqa: E402

__all__ = ["exported"]  # the fixture

TARGETS = ("tensorrt", "tensorrt-8.6", "onnxruntime", "portable")
#: For outputs of order 1; what is larger may differ by as much more.
TOLERANCE = 2e-5
#: What a Swin block, or the way between two stages, is made of as long as it is not fused.
UNFUSED = {"Softmax", "Slice", "Concat", "Pad", "Gather", "Split", "Expand", "Shape", "Where", "Erf", "ReduceL2"}
#: The dynamo exporter takes 20 s for the rolls of the video model.
TOO_SLOW = ("torchvision-video", "dynamo")
CASES = [(name, exporter) for name in SWINS for exporter in EXPORTERS if (name, exporter) != TOO_SLOW]

Optimize = Callable[..., Optimized]


@pytest.fixture(scope="module")
def optimized(exported: Exported) -> Optimize:
    """Optimizes a model, once for each target."""
    known: dict[tuple[Any, ...], Optimized] = {}

    def once(name: str, exporter: str, target: str = "tensorrt", **options: Any) -> Optimized:
        key = (name, exporter, target, *sorted(options.items()))
        if key not in known:
            known[key] = swinopt.optimize(exported(name, exporter, **options), target=target)
        return known[key]

    return once


def op_counts(model: onnx.ModelProto) -> Counter[str]:
    return Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph.node)


def attention_attributes(model: onnx.ModelProto) -> list[dict[str, Any]]:
    nodes = [node for node in model.graph.node if node.domain == ops.DOMAIN]
    return [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]


def assert_same_numbers(original: Any, model: Any, **options: Any) -> None:
    # Other inputs than those on which the pipeline verified itself.
    comparison = swinopt.compare(original, model, seed=1234, tolerance=TOLERANCE, **options)
    assert comparison.passed, str(comparison)
    assert comparison.scale > 0.1, "outputs this small would hide a difference"


def assert_nothing_rolled_back(optimized: Optimized) -> None:
    assert [(p.name, p.note) for p in optimized.report.passes if p.status == "rolled back"] == []


# ------------------------------------------------------------------------------------------------------------ Swins


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_every_block_becomes_one_window_attention(
    name: str, exporter: str, exported: Exported, optimized: Optimize
) -> None:
    result = optimized(name, exporter)
    counts = op_counts(result.model)

    assert counts["swinopt::WindowAttention"] == SWINS[name].blocks
    # An odd map is padded for the merging; that one Pad is all that may be left.
    assert {op for op in counts if op in UNFUSED} == ({"Pad"} if name.endswith("padded") else set())
    assert counts["Pad"] == name.endswith("padded")
    assert_nothing_rolled_back(result)
    assert_same_numbers(exported(name, exporter), result.model)


@pytest.mark.parametrize("name", SWINS)
def test_the_number_of_nodes_does_not_depend_on_the_exporter(name: str, optimized: Optimize) -> None:
    found = [len(optimized(name, exporter).model.graph.node) for known, exporter in CASES if known == name]

    assert len(set(found)) == 1
    # 14 a block, 5 for the merging (6 where it pads), 15 for stem and head.
    assert found[0] <= 14 * SWINS[name].blocks + 6 + 15


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm-v1", {"shift_size": [2, 2], "mask_value": -100.0}),
        ("timm-v1-padded", {"shift_size": [2, 2], "mask_value": -100.0, "roll_first": 1}),
        ("torchvision-v1-padded", {"shift_size": [2, 2], "mask_value": -100.0}),
        # Hugging Face adds the mask of Swin V2 twice. exp(-100) is 0 already: numbers alone would not tell.
        ("hugging-face-v2", {"shift_size": [2, 2], "mask_value": -200.0}),
        ("torchvision-video", {"window_size": [2, 4, 4], "shift_size": [1, 2, 2], "mask_value": -100.0}),
    ],
)
def test_the_second_block_says_how_its_windows_are_shifted(
    name: str, expected: dict[str, Any], optimized: Optimize
) -> None:
    first, second, third = attention_attributes(optimized(name, "torchscript").model)

    assert {key: second.get(key) for key in expected} == expected
    assert second.get("roll_first", 0) == expected.get("roll_first", 0)
    assert not any(first["shift_size"]) and not any(third["shift_size"])
    assert [block["num_heads"] for block in (first, second, third)] == [2, 2, 4]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["timm-v1-padded", "hugging-face-v2", "torchvision-video"])
def test_every_target_computes_the_same_in_its_own_ops(
    name: str, target: str, exported: Exported, optimized: Optimize
) -> None:
    result = optimized(name, "torchscript", target)
    counts, opsets = op_counts(result.model), {entry.domain: entry.version for entry in result.model.opset_import}
    functions = {function.domain for function in result.model.functions}

    assert_nothing_rolled_back(result)
    assert_same_numbers(exported(name, "torchscript"), result.model)
    if target.startswith("tensorrt"):
        assert counts["swinopt::WindowAttention"] == SWINS[name].blocks
        assert not [op for op in counts if "::" in op and not op.startswith("swinopt::")]
        assert functions == (set() if target == "tensorrt-8.6" else {"swinopt"})
    else:
        foreign = {op.split("::")[0] for op in counts if "::" in op}
        assert foreign <= ({"com.microsoft"} if target == "onnxruntime" else set())
        assert counts["Softmax"] == SWINS[name].blocks
        assert not functions
    if target == "tensorrt-8.6":
        assert opsets[""] <= 17 and "Gelu" not in counts and counts["Erf"] == SWINS[name].blocks


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", ["timm-v1", "hugging-face-v1"])
def test_a_dynamic_batch_stays_dynamic(name: str, exporter: str, exported: Exported, optimized: Optimize) -> None:
    original, result = exported(name, exporter, dynamic_batch=True), optimized(name, exporter, dynamic_batch=True)

    assert result.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert len(result.model.graph.node) == len(optimized(name, exporter).model.graph.node)
    for batch in (1, 5):
        assert_same_numbers(original, result.model, sizes={"batch": batch})


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-8.6"])
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_a_block_has_four_linears(exporter: str, target: str, exported: Exported) -> None:
    original = exported("timm-v1", exporter, dynamic_batch=True)
    pipeline = swinopt.Pipeline(*swinopt.pipeline(target).steps, FuseLinear())
    result = swinopt.optimize(original, passes=pipeline, target=target)
    linears = [node for node in result.model.graph.node if node.op_type == "Linear"]
    gelus = [node for node in linears if any(a.name == "gelu" and a.i for a in node.attribute)]
    residuals = [node for node in linears if len(node.input) == 4]
    (fusion,) = (p for p in result.report.passes if p.name == "fuse-linear")

    blocks = SWINS["timm-v1"].blocks
    # And one behind the merging.
    assert (len(linears), len(gelus), len(residuals)) == (4 * blocks + 1, blocks, 2 * blocks)
    assert [refusal.reason for refusal in fusion.refusals] == [
        "the linear goes from 32 to 10 features, which are not both multiples of 8"
    ]
    assert_nothing_rolled_back(result)
    for batch in (1, 5):
        assert_same_numbers(original, result.model, sizes={"batch": batch})


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
@pytest.mark.parametrize("name", ["timm-v1-padded", "torchvision-v2"])
def test_optimizing_again_changes_nothing(name: str, target: str, optimized: Optimize) -> None:
    once = optimized(name, "torchscript", target)
    twice = swinopt.optimize(once.model, target=target)

    if target == "tensorrt":  # the portable pipeline fuses attention and spells it out again
        assert [(p.name, p.applied) for p in twice.report.passes if p.applied] == []
    assert op_counts(twice.model) == op_counts(once.model)
    assert_same_numbers(once.model, twice.model)


def test_a_block_whose_mask_is_not_the_shift_mask_is_left_alone(tmp_path: Path) -> None:
    model, image = build("timm-v1"), SWINS["timm-v1"].inputs()
    # One pair of tokens of one window may not see each other any more: nothing that a window and a shift could say.
    model.layers[0].blocks[1].attn_mask[3, 0, 1] = -100.0
    path = swinopt.export(model, tmp_path / "masked.onnx", exporter="torchscript", inputs=image, check=False)
    result = swinopt.optimize(path)
    (fusion,) = (p for p in result.report.passes if p.name == "fuse-window-attention")

    assert op_counts(result.model)["swinopt::WindowAttention"] == SWINS["timm-v1"].blocks - 1
    assert op_counts(result.model)["Softmax"] == 1
    assert [refusal.reason for refusal in fusion.refusals] == [
        "the mask is not the shift mask of window 4x4, shift 2x2"
    ]
    assert_same_numbers(path, result.model)


@pytest.fixture(scope="module")
def open_sized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Optimized]:
    """A model whose inputs may have any height and width."""
    path = tmp_path_factory.mktemp("open") / "open.onnx"
    model, image = build("timm-v1-open"), OPEN["timm-v1-open"].inputs()
    axes = {"input": {0: "batch", 2: "height", 3: "width"}}
    torch.onnx.export(model, (image,), path, dynamo=False, opset_version=17, input_names=["input"], dynamic_axes=axes)
    return path, swinopt.optimize(path)


@pytest.mark.parametrize("size", [(64, 96), (72, 40), (36, 60)], ids="{0[0]}x{0[1]}".format)
def test_a_map_of_open_size_may_have_any_size(size: tuple[int, int], open_sized: tuple[Path, Optimized]) -> None:
    path, result = open_sized

    # 64x96 suits the windows and the merging; 72x40 has to be padded for the windows, 36x60 for both.
    assert op_counts(result.model)["swinopt::WindowAttention"] == OPEN["timm-v1-open"].blocks
    assert_same_numbers(path, result.model, sizes={"height": size[0], "width": size[1]})


@pytest.mark.parametrize("size", [(64, 96), (36, 60)], ids="{0[0]}x{0[1]}".format)
def test_a_map_of_open_size_has_its_tokens_as_rows(size: tuple[int, int], open_sized: tuple[Path, Optimized]) -> None:
    path, _ = open_sized
    result = swinopt.optimize(path, target="tensorrt-8.6", verify=False)
    (flattened,) = (p for p in result.report.passes if p.name == "flatten-tokens")

    assert flattened.applied and not flattened.refusals
    assert_same_numbers(path, result.model, sizes={"height": size[0], "width": size[1]})


def test_a_map_of_open_size_is_portable_in_standard_ops(open_sized: tuple[Path, Optimized]) -> None:
    path, _ = open_sized
    result = swinopt.optimize(path, target="portable", verify=False)

    # No pass can lower what it does not know the size of; the definition of the op can.
    assert {node.domain for node in result.model.graph.node} == {""} and not result.model.functions
    assert "swinopt::WindowAttention" not in result.report.ops_after
    assert_same_numbers(path, result.model, sizes={"height": 36, "width": 60})


# ---------------------------------------------------------------------------------------------------------- rounding


def double_epsilon(node: gs.Node) -> None:
    node.attrs["epsilon"] *= 2


def raise_a_bias(node: gs.Node) -> None:
    bias = node.inputs[1]
    bias.values = np.where(np.arange(bias.values.size).reshape(bias.shape) == 5, bias.values + 1e-2, bias.values)


def move_the_windows(node: gs.Node) -> None:
    node.attrs["shift_size"] = [1, 2]


def lower_a_temperature(node: gs.Node) -> None:
    node.inputs[2].values = node.inputs[2].values * np.float32(0.999)


@dataclass(frozen=True)
class Spoil(Pass):
    """Does something to the first node of an op."""

    name: ClassVar[str] = "spoil"
    op: str = ""
    how: Callable[[gs.Node], None] = double_epsilon

    def run(self, rewriter: Rewriter) -> None:
        self.how(next(node for node in rewriter.graph.nodes if node.op == self.op))
        rewriter.applied += 1


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_model_makes_of_rounding_undoes_no_pass(target: str, optimized: Optimize) -> None:
    result = optimized("timm-v2-features", "torchscript", target, dynamic_batch=True)

    assert_nothing_rolled_back(result)
    if target.startswith("tensorrt"):
        assert op_counts(result.model)["swinopt::WindowAttention"] == FEATURES["timm-v2-features"].blocks


@pytest.mark.parametrize(
    ("op", "how"),
    [
        ("LayerNormalization", double_epsilon),
        ("WindowAttention", raise_a_bias),
        ("WindowAttention", move_the_windows),
        ("WindowAttention", lower_a_temperature),
    ],
)
def test_a_mistake_is_undone_however_much_a_model_makes_of_rounding(
    op: str, how: Callable[[gs.Node], None], exported: Exported
) -> None:
    path = exported("timm-v2-features", "torchscript", dynamic_batch=True)
    report = swinopt.optimize(path, passes=swinopt.pipeline().then(Spoil(op, how))).report

    assert [p.name for p in report.passes if p.status == "rolled back"] == ["spoil"]


# ------------------------------------------------------------------------------------------------------ other models


@pytest.mark.parametrize("target", ["tensorrt", "portable"])
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_is_no_swin_is_tidied_and_not_broken(
    name: str, exporter: str, target: str, exported: Exported, optimized: Optimize
) -> None:
    result = optimized(name, exporter, target)
    counts = op_counts(result.model)

    assert counts["swinopt::WindowAttention"] == 0
    assert counts["LayerNormalization"] == OTHERS[name].norms
    if target == "tensorrt":
        assert counts["Gelu"] == OTHERS[name].gelus and not counts["Erf"]
    assert len(result.model.graph.node) <= len(onnx.load(exported(name, exporter)).graph.node)
    assert_nothing_rolled_back(result)
    assert_same_numbers(exported(name, exporter), result.model)


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_what_tensorrt_is_handed_in_half_precision(
    name: str, exporter: str, exported: Exported, optimized: Optimize
) -> None:
    options: dict[str, Any] = {"precision": "fp16", "by_graph": False, "has_gelu": False}
    fused = fuse_between_attentions(optimized(name, exporter, "tensorrt-8.6").model, **options)
    blocks = SWINS[name].blocks
    # Of the blocks, the embedding and the merging; the head has 10 features.
    assert (ops.uses(fused)["WindowAttention"], ops.uses(fused)["Linear"]) == (blocks, 4 * blocks + 2)
    assert not op_counts(fused).keys() & {"Conv", "LayerNormalization", "Add"}
    # Two a block, and those of the embedding, the merging and the head.
    assert ops.uses(fused)["LayerNorm"] + ops.uses(fused)["PatchMerging"] == 2 * blocks + 3
    residuals = [node for node in ops.nodes(fused) if node.op_type == "LayerNorm" and len(node.input) == 4]
    assert len(residuals) == (2 * blocks if "v2" in name else 0)

    handed, _ = for_parser(fused, plugins=True, **options)
    assert ops.uses(handed) == ops.uses(fused)
    assert_same_numbers(exported(name, exporter), handed)

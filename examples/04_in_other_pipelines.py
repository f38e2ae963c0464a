"""swinopt's passes in other company: alone on a model that is no Swin, among onnx_ir passes, in a Polygraphy chain.

The model is a timm ViT from the TorchScript exporter, opset 17. Writes build/other/vit.onnx.
Needs onnx-ir and polygraphy, which the extra "dev" installs.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
from onnx_ir.passes import FunctionalPass, PassResult, Sequential
from onnx_ir.passes.common import DeduplicateInitializersPass
from polygraphy import func
from polygraphy.backend.onnx import BytesFromOnnx, OnnxFromPath
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

import swinopt
from swinopt.passes import EliminateNoops, FoldConstants

FOLDER = Path(__file__).resolve().parent.parent / "build" / "other"


def single_passes(path: Path) -> None:
    """A pass is a function from model to model; several are a pipeline, written in Python or as text."""
    model = onnx.load(path)
    folded = FoldConstants()(model)
    print(f"  fold-constants alone: {len(model.graph.node)} -> {len(folded.graph.node)} nodes")

    # optimize() adds what a bare pass does not do: it brings the opset up to the target's, and checks the numbers.
    result = swinopt.optimize(model, passes="fold-constants, eliminate-noops, fuse-layer-norm, fuse-gelu")
    fused = Counter(node.op_type for node in result.model.graph.node)
    print(f"  {result.report.summary()}")
    print(f"  {fused['LayerNormalization']} LayerNormalization, {fused['Gelu']} Gelu, {fused['Erf']} Erf")
    assert result.report.ok and not fused["Erf"]


@dataclass(frozen=True)
class FromSwinopt(FunctionalPass):
    """A swinopt pass or pipeline as a pass of onnx_ir."""

    inner: swinopt.Pass

    def call(self, model: onnx_ir.Model) -> PassResult:
        return PassResult(onnx_ir.from_proto(self.inner(model)), modified=True)


def among_onnx_ir_passes(path: Path) -> None:
    """swinopt reads an onnx_ir.Model as it reads everything else; a pass of theirs and two of ours in a row."""
    model = onnx_ir.load(path)
    before = len(model.graph)
    ours = swinopt.Pipeline(FoldConstants(), EliminateNoops())
    outcome = Sequential(FromSwinopt(ours), DeduplicateInitializersPass())(model)
    print(f"  {before} -> {len(outcome.model.graph)} nodes")
    assert swinopt.compare(path, outcome.model).passed


def in_a_polygraphy_chain(path: Path) -> None:
    """Polygraphy's loaders call each other lazily; swinopt is one more link between reading and running."""

    @func.extend(OnnxFromPath(str(path)))
    def optimized(model: onnx.ModelProto) -> onnx.ModelProto:
        return swinopt.optimize(model, target="portable").model

    image = {"input": np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)}
    with (
        OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(optimized))) as ours,
        OnnxrtRunner(SessionFromOnnx(str(path))) as plain,
    ):
        difference = np.abs(ours.infer(image)["output"] - plain.infer(image)["output"]).max()
    print(f"  max abs diff in ONNX Runtime: {difference:.1e}")
    assert difference < 1e-4


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = swinopt.export("vit_tiny_patch16_224", FOLDER / "vit.onnx", exporter="torchscript", seed=0)
    for part in (single_passes, among_onnx_ir_passes, in_a_polygraphy_chain):
        print(f"{part.__name__.replace('_', ' ')}:")
        part(path)


if __name__ == "__main__":
    main()

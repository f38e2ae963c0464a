"""From timm's swin_tiny to a TensorRT engine, with swinopt's CUDA kernels for the attention.

Takes the TensorRT that is installed: TensorRT-RTX (pip install "swinopt[cpu,export,rtx]") builds without a GPU,
TensorRT needs one. Where there is a GPU, the engine runs as well. Writes to build/tensorrt.
"""

from pathlib import Path

import numpy as np
import onnxruntime

import swinopt
from swinopt import ops, tensorrt

FOLDER = Path(__file__).resolve().parent.parent / "build" / "tensorrt"


def run(engine: tensorrt.Engine, exported: Path) -> None:
    """The engine against ONNX Runtime on one image, and how long it takes."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
    found = engine.run({"input": image})["output"]
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["output"], {"input": image})
    difference, largest = np.abs(found - expected).max(), np.abs(expected).max()
    print(f"max abs diff to the exported model in fp32: {difference:.1e}, with outputs up to {largest:.1f}")
    print(engine.benchmark())


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    exported = swinopt.export(
        "swin_tiny_patch4_window7_224", FOLDER / "swin_tiny.onnx", exporter="torchscript", seed=0, check=False
    )
    result = swinopt.optimize(exported, target="tensorrt")
    print(result.report.summary())

    try:
        engine = tensorrt.build(result, precision="fp16")
    except swinopt.MissingDependencyError as error:
        raise SystemExit(f"no engine was built: {error}") from error
    with engine:
        print(engine)
        print("plugins:", ", ".join(f"{count} {op_type}" for op_type, count in ops.uses(result.model).items()))
        for note in engine.notes:
            print(f"note: {note}")
        path = engine.save(FOLDER / "swin_tiny.engine")
        print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB)")
        try:
            run(engine, exported)
        except swinopt.SwinoptError as error:  # no GPU, or one that this TensorRT knows nothing of
            print(f"not run: {error}")


if __name__ == "__main__":
    main()

"""From a timm model to an optimized, verified ONNX file for TensorRT, with a report.

The weights are random but seeded, and biases, norms and bias tables are random too, so that a rewrite that lost one of
them would be caught. Writes build/demo/swin_tiny.onnx, swin_tiny.optimized.onnx and report.html.
"""

from pathlib import Path

import swinopt

FOLDER = Path(__file__).resolve().parent.parent / "build" / "demo"


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)

    print("exporting swin_tiny_patch4_window7_224 from timm and checking the file against PyTorch ...")
    exported = swinopt.export("swin_tiny_patch4_window7_224", FOLDER / "swin_tiny.onnx", seed=0)

    print("optimizing it for TensorRT and checking each pass that changes something ...", flush=True)
    result = swinopt.optimize(exported, target="tensorrt", progress=True)
    print(f"\n{result}\n")

    # Every pass was verified on the way; this runs the two files once more, on inputs that no pass has seen.
    optimized = result.save(FOLDER / "swin_tiny.optimized.onnx")
    comparison = swinopt.compare(exported, optimized, seed=1000)
    print(f"the saved file against the exported one, on fresh inputs:\n{comparison}\n")

    report = FOLDER / "report.html"
    report.write_text(result.report.to_html(), encoding="utf-8")
    print(
        "written:",
        *(f"  {path} ({path.stat().st_size / 1e6:.1f} MB)" for path in (exported, optimized, report)),
        sep="\n",
    )
    if not (result.report.ok and comparison.passed):
        raise SystemExit("a pass was rolled back, or the optimized model does not compute the same")


if __name__ == "__main__":
    main()

"""Engines with the CUDA plugins on the GPU at hand: from exports of every kind, beside PyTorch and stock TensorRT.

    python benchmarks/plugins.py [--tensorrt-python PYTHON] [--folder FOLDER] [--at-a-time N]
                                 [--steps export,engines,report]

Run it where PyTorch with CUDA and timm are. Engines are built by ``--tensorrt-python``, by default the
same Python: TensorRT 8.6 wants Python 3.10 and needs no PyTorch; the plugin library has to be in its place or named by
SWINOPT_PLUGINS. What is done is not repeated. Writes benchmarks/results/plugins.md; exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import engines
from pages import table, tell_missed

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "plugins.md"

FP32_BAR, FP16_BAR = 2e-5, 6e-3
RATIO_BARS = {"fp16 B=32": 0.75, "fp16 B=1": 0.85}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensorrt-python", default=sys.executable, help="the Python that has TensorRT")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "plugins")
    parser.add_argument("--at-a-time", type=int, default=1, help="engines that are built at the same time")
    parser.add_argument("--steps", default="export,engines,report")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    here = ROOT / "benchmarks"
    steps = arguments.steps.split(",")
    if "export" in steps:
        subprocess.run([sys.executable, here / "engines.py", "export", folder], check=True)
    if "engines" in steps:
        command = [arguments.tensorrt_python, here / "engines.py"]
        count = arguments.at_a_time
        builders = [subprocess.Popen([*command, "build", folder, "--part", f"{i}/{count}"]) for i in range(count)]
        if any([builder.wait() for builder in builders]):
            raise SystemExit("a process that builds engines has failed; what it says stands above")
        subprocess.run([*command, "time", folder], check=True)
    if "report" not in steps:
        return 0
    found = engines.results(folder)
    missed = missed_bars(found)
    RESULTS.write_text(page(found, missed), encoding="utf-8")
    return tell_missed(missed)


def missed_bars(found: dict[str, Any]) -> list[str]:
    missed = []
    for job in engines.JOBS:
        if not job.optimized:
            continue
        row = found["engines"].get(job.name)
        bar = FP32_BAR if job.precision == "fp32" else FP16_BAR
        if row is None or "error" in row:
            missed.append(f"{job.name}: {row['error'] if row else 'not built'}")
        elif row["nan"] or not row["max_abs_diff"] < bar or row["plugin_layers"] != row["plugins_wanted"]:
            missed.append(
                f"{job.name}: max abs diff {row['max_abs_diff']:.1e} (bar {bar:.0e}), {row['nan']} NaN, "
                f"{row['plugin_layers']} plugin layers of {row['plugins_wanted']}"
            )
    for name, bar in RATIO_BARS.items():
        pair = found["pairs"].get(name)
        if pair is None or pair["ratio"] > bar:
            missed.append(
                f"{name}: {pair['ratio']:.2f} of stock TensorRT's time, bar {bar}" if pair else f"{name}: not measured"
            )
    return missed


def page(found: dict[str, Any], missed: list[str]) -> str:
    machine = found["machine"]
    lines = [
        "# Engines with the CUDA plugins",
        "",
        "Measured by `python benchmarks/plugins.py`, all in one run; random weights.",
        "",
        f"- date: {date.today()}",
        f"- machine: {machine['gpu, driver']}",
        f"- engines: TensorRT {machine['TensorRT']}, linears in fp16 by cuBLASLt {machine['cuBLASLt']}, "
        f"Python {machine['Python']}",
        f"- packages: {', '.join(f'{name} {version(name)}' for name in ('swinopt', 'torch', 'timm', 'onnx'))}, "
        f"Python {platform.python_version()}",
        f"- bars: {'all met' if not missed else '; '.join('MISSED ' + bar for bar in missed)}",
        "",
        "Largest difference to PyTorch in fp32 (TF32 off), over fresh random images; outputs go up to "
        f"{max(row.get('largest_output', 0) for row in found['engines'].values()):.2f}. "
        "What stock TensorRT cannot build is a result as well. Engines that are in no pair below are built with "
        "optimization level 1.",
        "",
        *table(
            ["engine", "model", "export", "precision", "batch", "plugin layers", "max abs diff", "NaN", "build s"],
            [
                [
                    "swinopt" if row["optimized"] else "stock",
                    row["model"],
                    row["export"],
                    row["precision"],
                    row["batch"],
                    *(
                        [f"failed: {row['error']}", "", "", ""]
                        if "error" in row
                        else [row["plugin_layers"], f"{row['max_abs_diff']:.1e}", row["nan"], row["build_s"]]
                    ),
                ]
                for row in found["engines"].values()
            ],
        ),
        "",
        "Both of a pair are built with the same settings and one timing cache, and timed in turns with CUDA graphs "
        "over rotating inputs: medians of seven rounds.",
        "",
        *table(
            ["pair", "swinopt ms", "stock ms", "ratio", "ratios of the rounds", "bar"],
            [
                [
                    name,
                    f"{pair['swinopt_ms']:.3f}",
                    f"{pair['stock_ms']:.3f}",
                    f"{pair['ratio']:.3f}",
                    f"{pair['ratios'][0]:.3f} to {pair['ratios'][1]:.3f}",
                    RATIO_BARS[name],
                ]
                for name, pair in found["pairs"].items()
            ],
        ),
        "",
        "By kind of layer, as TensorRT measures them one by one, which takes longer than all of them together.",
        "",
        *table(
            ["pair", "kind", "layers", "ms", "share"],
            [
                [name, kind, count, f"{ms:.3f}", f"{ms / sum(ms for _, ms in pair['kinds'].values()):.1%}"]
                for name, pair in found["pairs"].items()
                for kind, (count, ms) in pair.get("kinds", {}).items()
            ],
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

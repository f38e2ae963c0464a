"""Every example runs, from top to bottom, and leaves what it says it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

#: What each example needs beyond the base dependencies.
NEEDS = {
    "01_optimize.py": ("torch", "timm", "onnxscript", "onnxruntime"),
    "02_read_the_report.py": ("torch", "timm", "onnxruntime"),
    "03_write_a_pass.py": ("onnxruntime",),
    "04_in_other_pipelines.py": ("torch", "timm", "onnxruntime", "onnx_ir", "polygraphy"),
    "05_tensorrt.py": ("torch", "timm", "onnxruntime", "tensorrt_rtx", "cuda.bindings.runtime"),
}
WRITES = {
    "01_optimize.py": ("demo/swin_tiny.onnx", "demo/swin_tiny.optimized.onnx", "demo/report.html"),
    "02_read_the_report.py": ("report/report.json", "report/report.html"),
    "03_write_a_pass.py": (),
    "04_in_other_pipelines.py": ("other/vit.onnx",),
    "05_tensorrt.py": ("tensorrt/swin_tiny.onnx", "tensorrt/swin_tiny.engine"),
}
SAYS = {
    "01_optimize.py": "same: max abs",
    "02_read_the_report.py": "fuse-gelu: opset 17 has no Gelu",
    "03_write_a_pass.py": "4 -> 1 nodes",
    "04_in_other_pipelines.py": "25 LayerNormalization, 12 Gelu, 0 Erf",
    "05_tensorrt.py": "12 plugin layers",
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: pytest keeps its own for three runs, and exported models are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_no_example_is_forgotten() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(NEEDS)
    assert [path.name for path in EXAMPLES.glob("*.ipynb")] == ["quickstart.ipynb"]


@pytest.mark.parametrize("name", NEEDS)
def test_it_runs(name: str, folder: Path) -> None:
    for package in NEEDS[name]:
        pytest.importorskip(package, reason=f"{name} needs {package}")
    # A copy in a checkout of its own: what examples write goes below the folder above them, and runs do not meet there.
    (folder / "examples").mkdir()
    script = folder / "examples" / name
    script.write_bytes((EXAMPLES / name).read_bytes())
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAYS[name] in done.stdout
    for file in WRITES[name]:
        assert (folder / "build" / file).stat().st_size
    assert {path.name for path in folder.iterdir()} <= {"examples", "build"}


def test_the_notebook_runs_and_shows_the_report(folder: Path) -> None:
    for package in ("nbclient", "nbformat", "ipykernel", "torch", "timm", "onnxruntime"):
        pytest.importorskip(package, reason=f"the notebook needs {package}")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("text/html" in output.get("data", {}) for output in shown)
    assert (folder / "build" / "notebook" / "swin.optimized.onnx").stat().st_size


def test_the_notebook_is_saved_with_its_outputs_and_small() -> None:
    text = (EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8")
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    assert any("text/html" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert len(text) < 100_000
    assert str(Path.home()) + os.sep not in text and str(ROOT) not in text

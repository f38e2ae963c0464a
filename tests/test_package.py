"""The package as it is installed: light to import, complete, and typed."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import swinopt

HEAVY = ("torch", "tensorrt", "tensorrt_rtx", "onnxruntime", "timm", "transformers", "onnxscript", "onnx_ir", "rich")


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter, outside of the checkout, has loaded after running the code."""
    probe = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-I", "-c", probe]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, cwd=Path(sys.prefix))
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import swinopt", "import swinopt.passes, swinopt.cli", "import swinopt.verify"])
def test_import_loads_nothing_heavy(code: str) -> None:
    loaded = loaded_by(code)
    assert "swinopt" in loaded
    assert not loaded & set(HEAVY)


def test_reading_a_pipeline_loads_nothing_heavy() -> None:
    assert not loaded_by("import swinopt; list(swinopt.pipeline('tensorrt'))") & set(HEAVY)


def test_the_version_is_that_of_the_distribution() -> None:
    assert swinopt.__version__ == importlib.metadata.version("swinopt")


def test_every_public_name_is_there() -> None:
    missing = [name for name in swinopt.__all__ if not hasattr(swinopt, name)]
    assert not missing


def test_functions_are_not_shadowed_by_modules_of_the_same_name() -> None:
    import swinopt.export
    import swinopt.pipeline

    assert callable(swinopt.export) and callable(swinopt.pipeline)


def test_passes_are_importable_under_one_name_only() -> None:
    assert "swinopt.passes" in loaded_by("import swinopt.passes")
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import passes"],
        capture_output=True,
        check=False,
        timeout=60,
        cwd=Path(sys.prefix),
    )
    assert b"ModuleNotFoundError" in done.stderr


def test_type_annotations_are_announced() -> None:
    assert files("swinopt").joinpath("py.typed").is_file()


def test_the_command_is_installed() -> None:
    points = importlib.metadata.entry_points(group="console_scripts", name="swinopt")
    assert [point.value for point in points] == ["swinopt.cli:main"]


def test_extras_are_those_that_messages_name() -> None:
    extras = set(importlib.metadata.metadata("swinopt").get_all("Provides-Extra") or ())
    assert {
        "cpu",
        "gpu",
        "export",
        "kernels",
        "kernels-cu12",
        "notebook",
        "rtx",
        "tensorrt",
        "tensorrt-cu12",
        "dev",
    } == extras

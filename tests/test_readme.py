"""What the README says is so: its code runs, its commands parse, its names exist, its numbers were measured."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import swinopt
from swinopt import cli, passes, targets, tensorrt
from swinopt.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose first column has this heading, without the heading."""
    table = re.search(rf"^\| {heading} \|.*?(?=\n\n|\Z)", text, re.DOTALL | re.MULTILINE)
    assert table, heading
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()[2:]]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone after the test: pytest keeps its own for three runs, and exported models are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_its_python_runs_from_top_to_bottom(folder: Path) -> None:
    for package in ("torch", "timm", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"the quick start needs {package}")
    script = folder / "readme.py"
    script.write_text("\n".join(blocks("python")), encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "swin.optimized.onnx").exists()


def test_its_python_for_a_gpu_calls_what_there_is() -> None:
    shown = [node for block in blocks("py") for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    calls = [(c.func.value.id, c.func.attr, c) for c in shown if isinstance(c.func, ast.Attribute)]  # type: ignore[attr-defined]
    assert {name for name, _, _ in calls} == {"tensorrt", "engine"}
    for name, method, call in calls:
        function = getattr(tensorrt if name == "tensorrt" else Engine, method)
        itself = [] if name == "tensorrt" else [None]
        inspect.signature(function).bind(*itself, *call.args, **{str(k.arg): k.value for k in call.keywords})


def test_the_pass_it_shows_is_the_one_of_the_example() -> None:
    example = (ROOT / "examples" / "03_write_a_pass.py").read_text(encoding="utf-8")
    (shown,) = (block for block in blocks("python") if "class FuseHardSwish" in block)
    assert shown.strip() in example


def commands() -> list[list[str]]:
    inline = re.findall(r"`(swinopt [^`]+)`", README)
    lines = [line for block in blocks("sh") for line in block.splitlines()] + inline
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("swinopt ", "make "))]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_its_commands_exist(command: list[str]) -> None:
    if command[0] == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    else:
        arguments = cli._parser().parse_args(command[1:])
        swinopt.pipeline(getattr(arguments, "target", None) or "tensorrt")
        swinopt.Pipeline.parse(getattr(arguments, "passes", None) or "")


def test_make_comes_first() -> None:
    assert [command[:2] for command in commands()][:2] == [["make", "demo"], ["make", "test"]]


def test_every_option_it_names_exists() -> None:
    shown = re.sub(r"^trtexec .*$", "", README, flags=re.MULTILINE)
    known = {"--help", "--version"}
    for action in cli._parser()._subparsers._group_actions:  # type: ignore[union-attr]
        for command in action.choices.values():  # type: ignore[union-attr]
            known |= {option for option in command._option_string_actions}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown)) <= known


def test_every_pass_is_listed_and_no_other() -> None:
    assert sorted(row[0].strip("`") for row in rows(README, "pass")) == sorted(kind.name for kind in passes.ALL)


def test_every_target_is_listed_with_its_opset() -> None:
    listed = {row[0].strip("`"): row[2] for row in rows(README, "target")}
    assert set(listed) == set(targets.TARGETS)
    for name, opset in listed.items():
        assert int(opset.split()[0]) == targets.TARGETS[name].opset
        assert (" or as exported" in opset) == (targets.TARGETS[name].newest_opset is None)


def test_every_error_and_exit_code_exists() -> None:
    for name in re.findall(r"`(?:swinopt\.)?(\w+Error)`", README):
        assert issubclass(getattr(swinopt, name), swinopt.SwinoptError)
    assert [int(row[0]) for row in rows(README, "exit code")] == [cli.OK, cli.DIFFERENT, cli.BAD_INPUT, cli.INTERNAL]


def test_every_file_it_points_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    for name in links:
        assert (ROOT / name).exists(), name


def test_the_layout_is_that_of_the_tree() -> None:
    block = re.search(r"^## Layout\n+```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert block
    folder, listed = ROOT, set()
    for indent, name in re.findall(r"^(  )?([\w.][\w./]*) ", block[1], re.MULTILINE):
        folder = folder if indent else ROOT / name
        listed.add(folder / name if indent else folder)
    assert {path for path in listed if not path.exists()} == set()
    sources = {path.parent for path in ROOT.glob("[a-z]*/*.py")}
    assert sources <= listed


def test_its_numbers_are_those_of_the_last_measurement() -> None:
    measured = (ROOT / "benchmarks" / "results" / "graphs.md").read_text(encoding="utf-8")
    nodes, numbers = measured.split("## Numbers")
    found = {}
    for graph, cost in zip(rows(nodes, "model"), rows(numbers, "model"), strict=True):
        assert graph[:2] == cost[:2]
        model, exporter, exported, onnxsim, tensorrt, _, portable = graph[:7]
        found[model, exporter] = [exported, onnxsim, tensorrt, portable, cost[3]]
    shown = rows(README, "model")
    assert shown
    for model, exporter, *values in shown:
        assert values == found[model.strip("`"), exporter]
    for line in re.findall(r"^- (?:date|machine): (.*)$", measured, re.MULTILINE):
        assert line in README

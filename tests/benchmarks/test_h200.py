"""The table of speeds: what is measured once is kept, what is missed is said, and the page shows what was found."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def h200(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The command, with a folder of its own for what it writes."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("h200", BENCHMARKS / "h200.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "h200", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


@pytest.fixture(autouse=True)
def page(h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What reports, with a README of its own."""
    module = importlib.import_module("h200_page")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\nold\n<!-- /speed -->\nafter\n", encoding="utf-8")
    monkeypatch.setattr(module, "README", readme)
    return module


@pytest.fixture
def unplotted(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "plot", lambda *_: None)


def cell(ms: float = 4.0, **other: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "ms": ms,
        "spread": 0.01,
        "images_s": 8000 / ms,
        "max_abs_diff": 4e-3,
        "nan": 0,
        "memory_mib": 700,
    }
    machine = {"GPU": "NVIDIA Test", "driver": "1.2", "Python": "3.12.0", "torch": "2.11"}
    return {
        **found,
        "measured": "2026-01-02T03:04:05+00:00",
        "machine": machine,
        "run": "one",
        "of_peak": 0.25,
        **other,
    }


MADE = {"measured": "2026-01-02T03:04:05+00:00", "machine": {}}
PEAKS = {"fp16_tflop_s": 700.0, "tf32_tflop_s": 350.0, "fp32_tflop_s": 50.0, "copy_tb_s": 4.2, "run": "one"}


def found_by(column: str) -> dict[str, Any]:
    """What a cell's process writes."""
    others: dict[str, dict[str, Any]] = {"peaks": PEAKS, "export": {"flop_per_image": 15e9, "largest_output": 2.0}}
    return dict(others.get(column, cell()))


def whole(row: Any, **other: Any) -> dict[str, Any]:
    """A row that meets every bar, but for what is said."""
    cells = {column: cell(20.0) for column in row.columns} | {"TensorRT": cell(8.0), "compile": cell(7.0)}
    return cells | {"swinopt": cell(4.0)} | {name.replace("_", ", "): value for name, value in other.items()}


def bars(page: ModuleType, name: str, **other: Any) -> list[str]:
    (row,) = (row for row in page.ROWS if row.name == name)
    return list(page.missed_bars(row, whole(row, **other)))


def test_a_row_that_meets_its_bars(page: ModuleType) -> None:
    assert bars(page, "Swin-B 224 fp16 B=32") == []


@pytest.mark.parametrize(
    ("name", "other", "reason"),
    [
        ("Swin-B 224 fp16 B=32", {"swinopt": cell(4.5)}, "0.56 of stock TensorRT's time, bar 0.55"),
        ("Swin-T 224 fp16 B=1", {"swinopt": cell(8.1)}, "1.01 of stock TensorRT's time, bar 1.0"),
        ("Swin-B 224 fp16 B=1", {"compile": cell(6.0)}, "0.67 of torch.compile's time, bar 0.6"),
        ("Swin-T 224 fp16 B=1", {"swinopt": cell(max_abs_diff=7e-3)}, "more than 1.5 times stock TensorRT's 4.0e-03"),
        ("Swin-T 224 fp16 B=1", {"torch": cell(nan=3)}, "torch: 3 NaN"),
        ("Swin-T 224 fp16 B=1", {"torch": None}, "not measured: torch"),
        ("Swin-T 224 fp16 B=1", {"swinopt": {"error": "cannot build"}}, "swinopt: cannot build"),
        ("Swin-B 224 fp16 B=1", {"TensorRT": {"error": "no memory"}}, "TensorRT: no memory"),
        ("Swin-B 224 fp16 B=1", {"compile max": {"error": "no compiler"}}, "compile max: no compiler"),
        # Rounds in turns say more than medians of two processes.
        ("Swin-T 224 fp16 B=1", {"swinopt": cell(4.0, of_stock=[1.0, 1.1, 1.2])}, "1.10 of stock TensorRT's time"),
    ],
)
def test_a_bar_that_is_missed_is_said(page: ModuleType, name: str, other: dict[str, Any], reason: str) -> None:
    (missed,) = bars(page, name, **other)
    assert missed.startswith(name) and reason in missed


def test_a_build_that_fails_is_a_result_and_no_missed_bar(page: ModuleType) -> None:
    assert bars(page, "Swin-T 224 fp16 B=1", TensorRT_unfolded={"error": "importSlice", "run": "one"}) == []


def test_rounds_in_turns_count_within_a_run_alone(page: ModuleType) -> None:
    cells = {"swinopt": cell(4.0, of_stock=[0.9], run="two"), "TensorRT": cell(8.0)}
    assert page.ratio(cells, "TensorRT") == 0.5


@pytest.mark.usefixtures("unplotted")
def test_what_is_there_is_not_measured_again(h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def measured(worker: Any, column: str, row: Any) -> dict[str, Any]:
        asked.append(column)
        return {"error": "importSlice", **MADE} if column == "TensorRT, unfolded" else found_by(column)

    monkeypatch.setattr(h200.Worker, "cell", measured)
    command = ["--folder", str(tmp_path), "--rows", "Swin-B 224 fp16 B=32"]
    h200.main([*command, "--columns", "torch"])
    assert asked == ["peaks", "export", "torch"]  # a whole name means no other that contains it
    asked.clear()
    h200.main([*command, "--columns", "torch "])
    assert asked == ["peaks", "export", "torch fp32"]
    asked.clear()
    h200.main(command)
    assert "torch" not in asked and "swinopt" in asked
    asked.clear()
    h200.main(command)
    assert asked == []
    kept = json.loads((tmp_path / "results" / "h200.json").read_text())["Swin-B 224 fp16 B=32"]
    assert kept["torch"]["of_peak"] == pytest.approx(15e9 * 32 / 4e-3 / 1e12 / 700)
    assert kept["torch fp32"]["of_peak"] == pytest.approx(15e9 * 32 / 4e-3 / 1e12 / 50)
    assert "of_peak" not in kept["TensorRT, unfolded"]
    text = (tmp_path / "results" / "h200.md").read_text()
    assert f"{cell()['max_abs_diff']:.1e}*" in text and "failed: importSlice" in text and "NVIDIA Test" in text


@pytest.mark.usefixtures("unplotted")
def test_what_takes_long_is_made_ahead(h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bool]] = []

    def measured(worker: Any, column: str, row: Any, prepare: bool = False) -> dict[str, Any]:
        asked.append((row.name, column, prepare))
        return found_by(column)

    monkeypatch.setattr(h200.Worker, "cell", measured)
    rows = ["Swin-S 224 fp16 B=1", "Swin-T 224 fp16 B=1"]
    h200.main(["--folder", str(tmp_path), "--rows", rows[0], "--rows", rows[1], "--at-a-time", "3"])
    measured_rows = [row for row, column, prepare in asked if not prepare and column not in ("peaks", "export")]
    assert list(dict.fromkeys(measured_rows)) == rows, "in the order in which they were named"
    for row in rows:
        # Without max-autotune, which is Swin-B's.
        ahead = sorted(column for name, column, prepare in asked if name == row and prepare)
        assert ahead == ["TensorRT", "TensorRT, unfolded", "compile", "swinopt", "swinopt, no plugins"]
        first_measured = asked.index((row, "torch fp32", False))
        assert all(asked.index((row, column, True)) < first_measured for column in ahead)
        assert asked.count((row, "swinopt", False)) == 1


#: In place of a Python: what it makes ahead for Swin-S writes a line every now and then, by a process of its own.
LINES = """
import json, os, subprocess, sys, time
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[1]).parent))
import engines

begun = time.monotonic()
column, model, *_, folder, output = sys.argv[2:8]
lines = Path(folder) / "lines"
count = lambda: len(lines.read_bytes()) if lines.exists() else 0
found = json.loads('FOUND')
if "--prepare" not in sys.argv:
    before = count()
    time.sleep(0.3)
    found["lines"] = [before, count()]
elif model == "Swin-S 224":
    subprocess.run(["sh", "-c", "for i in $(seq 50); do echo >>" + str(lines) + "; sleep 0.02; done"])
    Path(folder, "ran").write_text(json.dumps([engines.running_since(begun), time.monotonic() - begun]))
else:
    while not count():
        time.sleep(0.01)
Path(output).write_text(json.dumps(found))
"""


@pytest.mark.usefixtures("unplotted")
def test_what_is_made_ahead_is_halted_while_others_are_measured(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = json.dumps({**cell(), **PEAKS, "flop_per_image": 1e9})
    python = executable(tmp_path / "python", LINES.replace("FOUND", found), interpreter=sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    rows = ["Swin-T 224 fp16 B=1", "Swin-S 224 fp16 B=1"]
    command = ["--folder", str(tmp_path), "--rows", rows[0], "--rows", rows[1], "--columns", "compile"]
    h200.main([*command, "--at-a-time", "2"])
    kept = json.loads((tmp_path / "results" / "h200.json").read_text())
    before, after = kept[rows[0]]["compile"]["lines"]
    assert 0 < before == after < 50
    assert kept[rows[1]]["compile"]["lines"] == [50, 50]
    ran, passed = json.loads((tmp_path / "ran").read_text())
    assert 0.9 < ran < passed - 0.3, "it was halted while the other one slept"


def test_a_cell_has_its_time_without_that_for_which_it_was_halted(h200: ModuleType, tmp_path: Path) -> None:
    measuring = worker(h200, tmp_path, tmp_path / "python")
    begun = time.monotonic() - h200._LONGEST_CELL - 50
    halts = tmp_path / "halts-None.txt"
    for halt, may in (("", False), (f"{begun - 90} {begun - 10}\n", False), (f"{begun - 90} {begun + 60}\n", True)):
        halts.write_text(halt)
        assert measuring._may_run(begun) == may
    assert not worker(h200, tmp_path, tmp_path / "python")._may_run(begun), "halts of an earlier run"


def test_what_is_made_ahead_ends_with_the_run(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = """[ "$8" ] && [ "$3" = "Swin-S 224" ] && exec sleep 60; echo '{"ms": 1.0, "flop_per_image": 1}' >"$7" """
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", slow)))
    add = h200.Store.add

    def full(store: Any, row: str, column: str, found: dict[str, Any]) -> None:
        if column != "peaks":
            raise OSError("no space left")
        add(store, row, column, found)

    monkeypatch.setattr(h200.Store, "add", full)
    begun = time.monotonic()
    with pytest.raises(OSError, match="no space left"):
        rows = ["--rows", "Swin-T 224 fp16 B=1", "--rows", "Swin-S 224 fp16 B=1"]
        h200.main(["--folder", str(tmp_path), *rows, "--columns", "compile", "--at-a-time", "2"])
    assert time.monotonic() < begun + 30


@pytest.mark.parametrize(("option", "name"), [("--rows", "Swin-X"), ("--columns", "swinopt!")])
def test_what_nothing_is_called_is_an_error(
    h200: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, name: str
) -> None:
    with pytest.raises(SystemExit):
        h200.main(["--folder", str(tmp_path), option, name])
    assert f"{option}: '{name}' is no part of any name; there are" in capsys.readouterr().err


def test_nothing_is_begun_after_the_time(h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a cell was measured"))
    assert h200.main(["--folder", str(tmp_path), "--seconds", "-1", "--at-a-time", "2"]) == 1


def test_what_is_not_done_at_the_end_is_left_for_the_next_run(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = executable(tmp_path / "slow", "exec sleep 60")
    monkeypatch.setattr(sys, "executable", str(slow))
    begun = time.monotonic()
    assert h200.main(["--folder", str(tmp_path), "--seconds", "0.2"]) == 1
    assert worker(h200, tmp_path, slow, end=time.monotonic() + 0.2).cell("torch", h200.ROWS[0]) is None
    assert time.monotonic() < begun + 30
    assert not (tmp_path / "results" / "h200.json").exists()
    monkeypatch.setattr(h200, "_LONGEST_CELL", 0.2)
    found = worker(h200, tmp_path, slow).cell("torch", h200.ROWS[0])
    assert found["error"] == "not done after 0.2 s"


def worker(h200: ModuleType, folder: Path, python: Path, end: float = inf) -> Any:
    """One that measures nothing by itself."""
    pythons = dict.fromkeys(("torch", "tensorrt", "onnxruntime"), str(python))
    store = h200.Store(folder / "results" / "h200.json")
    return h200.Worker(h200.Run("one", pythons, folder, 0, store, end), None, {})


def executable(path: Path, lines: str, interpreter: str = "/bin/sh") -> Path:
    path.write_text(f"#!{interpreter}\n{lines}\n")
    path.chmod(0o755)
    return path


def test_a_process_that_dies_is_a_result(h200: ModuleType, page: ModuleType, tmp_path: Path) -> None:
    python = executable(tmp_path / "python", "exit 7")
    found = worker(h200, tmp_path, python).cell("torch", h200.ROWS[0])
    assert found["error"] == "the process ended with 7"
    store = h200.Store(tmp_path / "results" / "h200.json")
    store.add("peaks", "peaks", PEAKS)
    store.add(h200.ROWS[0].name, "torch", {**found, "run": "one"})
    assert "failed: the process ended with 7" in page.page([h200.ROWS[0]], store, [])


@pytest.mark.usefixtures("unplotted")
def test_what_was_measured_is_not_replaced_by_a_failure(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, dict[str, Any]] = {"peaks": PEAKS, "export": {"flop_per_image": 1e9}}
    failure = {"error": "out of memory", **MADE}
    monkeypatch.setattr(h200.Worker, "cell", lambda worker, column, row: dict(found.get(column, failure)))
    store = h200.Store(tmp_path / "results" / "h200.json")
    store.add("Swin-T 224 fp16 B=1", "torch", cell())
    h200.main(["--folder", str(tmp_path), "--rows", "Swin-T 224 fp16 B=1", "--again"])
    kept = json.loads(store.path.read_text())["Swin-T 224 fp16 B=1"]
    assert kept["torch"]["ms"] == 4.0 and kept["compile"]["error"] == "out of memory"


def test_the_page_the_plots_and_the_readme(h200: ModuleType, page: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the plots")
    store = h200.Store(tmp_path / "results" / "h200.json")
    store.add("peaks", "peaks", PEAKS)
    for row in h200.ROWS[:4]:
        for column, found in whole(row).items():
            store.add(row.name, column, found)
    store.add(h200.ROWS[4].name, "torch", cell())
    assert page.report(store) == 1  # most rows are not there
    results = tmp_path / "results"
    assert "MISSED: Swin-T 224 fp16 B=1: not measured" in (results / "h200.md").read_text()
    assert {path.name for path in results.iterdir()} == {
        "h200.json",
        "h200.md",
        "h200-throughput.svg",
        "h200-peak.svg",
    }
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- speed -->\n\n| ms a batch |") and readme.endswith("<!-- /speed -->\nafter\n")
    assert "\nold\n" not in readme and "NVIDIA Test" in readme
    # Nothing is to be seen of swinopt in a row that it has not run yet.
    assert [row.name in readme for row in h200.ROWS[:5]] == [True, True, True, True, False]


@pytest.mark.usefixtures("unplotted")
def test_what_is_from_another_run_than_swinopt_is_marked(h200: ModuleType, page: ModuleType, tmp_path: Path) -> None:
    store = h200.Store(tmp_path / "h200.json")
    store.add("peaks", "peaks", PEAKS)
    (row,) = (row for row in h200.ROWS if row.name == "Swin-B 224 fp32 B=1")
    others = {"torch": cell(5.0, run="two"), "ONNX Runtime": {"error": "no memory", **MADE, "run": "two"}}
    for column, found in (whole(row) | others).items():
        store.add(row.name, column, found)
    page.report(store)
    (line,) = (line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith(f"| {row.name}"))
    assert line.startswith(f"| {row.name} | 5.00 (4.0e-03)* | 7.00 (4.0e-03) | 20.00 (4.0e-03) | fails* | 20.00")
    assert line.count("*") == 2


#: In place of a Python: writes which GPU it was to use, as a result of any column.
ON_ITS_GPU = """
[ "$CUDA_DEVICE_ORDER" = PCI_BUS_ID ] || exit 1
cat >"$7" <<END
{"ms": 1.0, "images_s": 1.0, "spread": 0, "max_abs_diff": 0, "nan": 0, "memory_mib": 0, "flop_per_image": 1e9,
 "measured": "2026-01-02", "machine": {"GPU": "NVIDIA Test"}, "visible": "$CUDA_VISIBLE_DEVICES", "python": "$0",
 "fp16_tflop_s": 1${CUDA_VISIBLE_DEVICES}0, "tf32_tflop_s": 1, "fp32_tflop_s": 1, "copy_tb_s": 1}
END
"""


@pytest.mark.usefixtures("unplotted")
@pytest.mark.parametrize("more", [[], ["--at-a-time", "2"]])
def test_each_row_is_on_one_gpu_and_all_gpus_are_used(
    h200: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    more: list[str],
) -> None:
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", ON_ITS_GPU)))
    tensorrt = executable(tmp_path / "python3.10", ON_ITS_GPU)
    rows = ["--rows", "Swin-T", "--rows", "Swin-S", "--rows", "Swin-L"]
    command = ["--folder", str(tmp_path), "--tensorrt-python", str(tensorrt), *rows]
    h200.main([*command, "--gpus", "0,3,0", *more])
    kept = json.loads((tmp_path / "results" / "h200.json").read_text())
    names = [row.name for row in h200.ROWS if row.name.startswith(("Swin-T", "Swin-S", "Swin-L"))]
    assert set(kept) == {"peaks", *names}
    for index, name in enumerate(names):
        gpu = "0330"[index % 4]
        assert {found["visible"] for found in kept[name].values()} == {gpu}
        # 1 GFLOP an image in 1 ms, by the peak of the same GPU.
        batch = int(name.split("=")[1])
        assert kept[name]["torch"]["of_peak"] == pytest.approx(batch / {"0": 100, "3": 130}[gpu])
        assert {Path(kept[name][column]["python"]).name for column in ("torch", "swinopt")} == {"python", "python3.10"}
    said = capfd.readouterr().out
    assert f"GPU 0: {names[0]}: torch\n" in said and f"GPU 3: {names[1]}: torch\n" in said
    assert ("GPU 0: Swin-S 224 fp16 B=32: TensorRT (to be measured)\n" in said) == bool(more)


def test_without_the_option_the_environment_stays(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = executable(tmp_path / "python", 'echo "{\\"visible\\": \\"$CUDA_VISIBLE_DEVICES\\"}" >"$7"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5")
    assert worker(h200, tmp_path, python).cell("torch", h200.ROWS[0]) == {"visible": "GPU-5"}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert worker(h200, tmp_path, python).cell("torch", h200.ROWS[0]) == {"visible": ""}


@pytest.mark.usefixtures("unplotted")
def test_gpus_measure_at_the_same_time_and_export_one_after_the_other(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)
    exporting = threading.Lock()

    def measured(worker: Any, column: str, row: Any) -> dict[str, Any]:
        if column == "peaks":
            both.wait()
        if column == "export":
            # Both want it now, and read the same files.
            assert exporting.acquire(blocking=False), "two export at the same time"
            time.sleep(0.2)
            exporting.release()
        return found_by(column)

    monkeypatch.setattr(h200.Worker, "cell", measured)
    rows = ["--rows", "Swin-B 224 fp16 B=1", "--rows", "Swin-B 224 fp32 B=1"]
    h200.main(["--folder", str(tmp_path), *rows, "--gpus", "0,1"])
    assert {"Swin-B 224 fp16 B=1", "Swin-B 224 fp32 B=1"} < set(
        json.loads((tmp_path / "results/h200.json").read_text())
    )


def test_a_gpu_that_measures_nothing_ends_the_run(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = """[ "$CUDA_VISIBLE_DEVICES" = 1 ] || exec sleep 60; echo '{"error": "no driver"}' >"$7" """
    monkeypatch.setattr(sys, "executable", str(executable(tmp_path / "python", fails)))
    begun = time.monotonic()
    with pytest.raises(SystemExit, match="GPU 1: nothing can be measured here: no driver"):
        h200.main(["--folder", str(tmp_path), "--gpus", "0,1"])
    assert time.monotonic() < begun + 30
    assert not (tmp_path / "results" / "h200.json").exists()  # nor is what was cut off a result


def test_what_is_added_while_others_add_is_kept(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = importlib.import_module("h200_table")
    write_whole, written = table.write_whole, threading.Event()

    def slow_at_first(path: Path, data: bytes) -> None:
        if len(json.loads(data)) == 1:
            written.wait(0.3)  # for one that overtakes it
        write_whole(path, data)
        written.set()

    monkeypatch.setattr(table, "write_whole", slow_at_first)
    store = h200.Store(tmp_path / "results" / "h200.json")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: store.add(f"row {index}", "torch", {"ms": index}), range(40)))
    all_of_them = {f"row {index}": {"torch": {"ms": index}} for index in range(40)}
    assert json.loads(store.path.read_text()) == store.cells == all_of_them


@pytest.mark.parametrize(("visible", "asked"), [(None, ""), ("", ""), ("1", "--id=1"), ("GPU-5,GPU-7", "--id=GPU-5")])
def test_memory_is_that_of_the_first_visible_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: str
) -> None:
    import cells

    executable(tmp_path / "nvidia-smi", f'echo 700; echo "$*" >{tmp_path}/arguments')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert cells.used_memory() == 700
    arguments = (tmp_path / "arguments").read_text().split()
    assert [argument for argument in arguments if "id" in argument] == [asked] * bool(asked)


def test_every_column_can_be_measured(h200: ModuleType) -> None:
    import cells

    assert {column for row in h200.ROWS for column in row.columns} == set(h200.COLUMNS)
    assert set(cells.COLUMNS) == {*h200.COLUMNS, "export", "peaks"}
    assert {row.model for row in h200.ROWS} == set(cells.MODELS)


def test_an_engine_is_built_once_and_a_failure_tried_again(
    h200: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="building without a GPU needs TensorRT-RTX")
    import engines
    import onnx

    from swinopt import plugin_library, tensorrt
    from swinopt.testing import parse

    monkeypatch.setenv("SWINOPT_TENSORRT", "tensorrt_rtx")
    monkeypatch.setattr(plugin_library, "find_library", lambda version=None: None)
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(parse("g (float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }"), good)
    bad.write_bytes(b"no model")
    for _ in range(2):
        made = engines.built(good, "fp16", None)
        assert made["plugin_layers"] == 0 and made["build_s"] >= 0 and "error" not in made
        assert engines.plan_of(good, "fp16", None).stat().st_size > 1000
        assert "is not an ONNX model" in engines.built(bad, "fp16", "off")["error"]
        assert not engines.plan_of(bad, "fp16", "off").exists()
        monkeypatch.setattr(tensorrt, "build", lambda *_, **__: pytest.fail("it was built again"))

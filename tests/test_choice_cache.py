"""What was measured once is known the next time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import swinopt
from swinopt import choice_cache, plugin_library
from tests.lab import Lab, chosen, entries, floats, model, set_up


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    return set_up("10.9.0", monkeypatch, tmp_path)


def test_what_was_measured_is_known_the_next_time(lab: Lab, tmp_path: Path) -> None:
    first = lab.build()
    assert not any(choice.from_cache for choice in first.choices)
    assert len(entries(tmp_path)) == 4 and all(path.suffix == ".json" for path in entries(tmp_path))
    lab.times = {}
    second = lab.build()
    assert len(lab.built) == 1 and not lab.timed
    assert len(lab.devices) == 1, "starting what builds takes a second, and here is nothing to build"
    assert all(choice.from_cache for choice in second.choices)
    assert chosen(second) == chosen(first)
    assert [(c.plugin_ms, c.standard_ms, c.why) for c in second.choices] == [
        (c.plugin_ms, c.standard_ms, c.why) for c in first.choices
    ]


def test_another_gpu_tensorrt_setting_or_kernel_is_measured_anew(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
        "gpu": (lambda: setattr(lab.gpu, "name", b"Another GPU\0"), {}),
        "capability": (lambda: setattr(lab.gpu, "minor", 3), {}),
        "driver": (lambda: setattr(lab.gpu, "driver", 13010), {}),
        "version": (lambda: setattr(lab.trt, "__version__", "10.10.0"), {}),
        "precision": (lambda: None, {"precision": "fp16"}),
        "level": (lambda: None, {"optimization_level": 5}),
        "workspace": (lambda: None, {"workspace": 64}),
        "sizes": (lambda: None, {"profiles": {"x": [(2, 8, 8, 12)] * 3}}),
        "kernels": (lambda: monkeypatch.setattr(choice_cache, "kernels_hash", lambda version: "another"), {}),
        "standard ops": (lambda: monkeypatch.setattr(choice_cache, "sources_hash", lambda: "another"), {}),
        "swinopt": (lambda: monkeypatch.setattr(swinopt, "__version__", "99"), {}),
    }
    lab.build()
    for name, (change, options) in changes.items():
        change()
        assert not any(choice.from_cache for choice in lab.build(**options).choices), name
        assert all(choice.from_cache for choice in lab.build(**options).choices), name


def test_another_value_of_a_constant_is_the_same_op(lab: Lab) -> None:
    lab.build()
    given = model()
    given.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(floats(2, 16, 16) + 3, "bias"))
    assert all(choice.from_cache for choice in lab.build(given).choices)


def test_the_hash_of_the_kernels_is_that_of_their_sources_or_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, library = tmp_path / "sources", tmp_path / "libswinopt_plugins.so"
    (sources / "op").mkdir(parents=True)
    for name in ("op/kernel.cuh", "op/plan.py", "README"):
        (sources / name).write_text("one")
    monkeypatch.setattr(choice_cache, "SOURCES", sources)
    found: list[Path | None] = [None]
    monkeypatch.setattr(plugin_library, "find_library", lambda version=None: found[0])

    def hashes() -> str:
        return choice_cache.kernels_hash("10.9.0")

    before = hashes()
    (sources / "README").write_text("two")
    assert hashes() == before
    seen = {before}
    for name in ("op/kernel.cuh", "op/plan.py"):
        (sources / name).write_text("two")
        seen.add(hashes())
    found[0] = library
    for content in (b"one", b"two"):
        library.write_bytes(content)
        seen.add(hashes())
    assert len(seen) == 5


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b"null",
        lambda old: old[: len(old) // 2],
        lambda old: old.replace(b'"plugin_ms"', b'"ms"'),
        lambda old: json.dumps({**json.loads(old), "plugin_ms": "fast"}).encode(),
        lambda old: json.dumps({**json.loads(old), "standard_ms": -1}).encode(),
        lambda old: json.dumps({**json.loads(old), "standard_ms": float("nan")}).encode(),
        lambda old: json.dumps({**json.loads(old), "key": {}}).encode(),
        None,
    ],
    ids=[
        "empty",
        "half an object",
        "a list",
        "no text",
        "null",
        "half of it",
        "a time is missing",
        "a time is a word",
        "a time is negative",
        "a time is no number",
        "another key",
        "a folder",
    ],
)
def test_a_file_that_cannot_be_read_is_measured_again(content: Any, lab: Lab, tmp_path: Path) -> None:
    lab.build()
    for path in entries(tmp_path):
        good = path.read_bytes()
        path.unlink()
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content if isinstance(content, bytes) else content(good))
    engine = lab.build()
    assert not any(choice.from_cache for choice in engine.choices)
    assert chosen(engine)["a"] == "plugin"
    if content is not None:
        assert all(choice.from_cache for choice in lab.build().choices), "it was not replaced"


def test_a_folder_that_cannot_be_written_costs_time_alone(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    for _ in range(2):
        assert [choice.from_cache for choice in lab.build().choices] == [False] * 4


def test_an_entry_is_whole_whoever_writes_it(lab: Lab, tmp_path: Path) -> None:
    key = {"op": "WindowAttention", "ballast": "x" * 100_000}
    choice_cache.write(key, (1.0, 1.0))
    wrong: list[Any] = []
    done = threading.Event()

    def write(time: float) -> None:
        for _ in range(50):
            choice_cache.write(key, (time, time))

    def read() -> None:
        while not done.is_set():
            times = choice_cache.read(key)
            if times is None or times[0] != times[1]:
                wrong.append(times)

    writers = [threading.Thread(target=write, args=(float(number),)) for number in (1, 2, 3)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not wrong
    assert len(entries(tmp_path)) == 1, "a draft was left"

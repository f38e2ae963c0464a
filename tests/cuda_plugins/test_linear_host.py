"""The host side of linears without a GPU: what it tells a cuBLASLt that only remembers, and makes of the answers."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from swinopt import cuda_plugins

FAKES = Path(__file__).resolve().parent / "fake_cuda"
Facts = dict[str, int]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Facts]:
    """Runs the probe with cuBLASLts of these versions, by major, and with this environment."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler: neither g++ nor clang++ is on the PATH")
    folder = tmp_path_factory.mktemp("probe")
    common = [compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{FAKES}", f"-I{cuda_plugins.SOURCES}"]
    linear = cuda_plugins.SOURCES / "linear"
    sources = [FAKES / "linear_probe.cpp", *(linear / f"{name}.cpp" for name in ("launch", "tune", "cublaslt"))]
    program, libraries = folder / "probe", ["-pthread", "-ldl"]
    subprocess.run([*common, *map(str, sources), *libraries, "-o", str(program)], check=True)

    def run(*versions: int, **environment: str) -> Facts:
        fakes = folder / "-".join(map(str, versions))
        fakes.mkdir(exist_ok=True)
        for version in versions:
            name = f"libcublasLt.so.{version // 10000}"
            if not (fakes / name).exists():
                made = [*common, f"-DVERSION={version}", "-shared", "-fPIC", f"-Wl,-soname,{name}"]
                subprocess.run([*made, str(FAKES / "cublaslt.cpp"), "-o", str(fakes / name)], check=True)
        done = subprocess.run(
            [str(program)],
            env={**os.environ, **environment, "LD_LIBRARY_PATH": str(fakes)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return {name: int(value) for name, value in (line.split("\t") for line in done.stdout.splitlines())}

    return run


@pytest.fixture(scope="module")
def facts(probe: Callable[..., Facts]) -> Facts:
    return probe(130000)


INVALID, NOT_SUPPORTED, UNKNOWN = 1, 801, 999  # of cudaError_t


@pytest.mark.parametrize(
    ("fact", "expected"),
    [
        ("shapes", 1),
        ("impossible shapes", 0),
        ("shapes that are stuck", 0),
        ("shapes with idle blocks", 0),
        ("accepts what it has not", 0),
        ("one stage for one tile", 1),
        ("version", 130000),
        ("plain", 0),
        ("plain epilogue", 4),  # CUBLASLT_EPILOGUE_BIAS
        ("plain beta", 0),
        ("plain in place", 1),
        ("alpha", 1),
        ("compute", 68),  # CUBLAS_COMPUTE_32F
        ("scale", 0),  # CUDA_R_32F
        ("first algorithm", 0),
        ("bias was known", 1),
        ("workspace", 32),
        ("reductions", 2),  # CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
        ("alignments", 4 * 16),
        ("residual", 0),
        ("residual epilogue", 4),
        ("residual beta", 1),
        ("residual in place", 0),
        ("gelu", 0),
        ("gelu epilogue", 36),  # CUBLASLT_EPILOGUE_GELU_BIAS
        ("both", INVALID),
        ("float32", INVALID),
        ("exact product", 0),
        ("exact compute", 68),
        ("exact type", 0),  # CUDA_R_32F
        ("exact gelus", 0),
        ("tf32 product", 0),
        ("tf32 compute", 77),  # CUBLAS_COMPUTE_32F_FAST_TF32
        ("tf32 type", 0),
        ("tf32 gelus", 0),
        ("tf32 on Turing", 0),
        ("tf32 on Turing compute", 68),
        ("float32 gelu", 0),
        ("float32 gelu epilogue", 4),
        ("gelus", 1),
        ("numbers of gelu", 100 * 32),
        ("matmuls before gelu", 1),
        ("matmuls in all", 1),
        ("gelus after a failure", 1),
        ("float32 tuned", 88),
        ("float32 tuned algorithm", 3),
        ("gelus while tuning", 0),
        ("misaligned", INVALID),
        ("misaligned workspace", INVALID),
        ("odd size", INVALID),
        ("empty", INVALID),
        ("heuristics again", 0),
        ("tuned without memory", 0),
        ("tuned", 88),
        ("memory kept", 0),
        ("graphs kept", 0),
        ("captures open", 0),
        ("tuned the same", 1),
        ("measured again", 0),
        ("tuned algorithm", 3),
        ("tuned tile", 7),
        ("tuned cluster", 3),
        ("tuned option", 2),
        ("own runs", 0),
        ("matmuls beside them", 1),
        ("algorithm of another version", 0),
        ("algorithm that is refused", 0),
        ("algorithm of too few bytes", 0),
        ("failing", UNKNOWN),
        ("after a failure", 0),
        ("no algorithm", NOT_SUPPORTED),
        ("with algorithms again", 0),
        ("confused threads", 0),
    ],
)
def test_what_cublaslt_is_told(facts: Facts, fact: str, expected: int) -> None:
    assert facts[fact] == expected


def test_a_row_major_product_is_asked_for_as_its_transpose(facts: Facts) -> None:
    rows, inputs, outputs = 100, 64, 32
    sizes = [facts[f"size {index}"] for index in range(9)]
    assert sizes == [outputs, inputs, outputs, inputs, rows, inputs, outputs, rows, outputs]


def test_others_on_the_gpu_do_not_change_what_is_fastest(probe: Callable[..., Facts]) -> None:
    found = probe(130000, FAKE_ALONE="4")
    assert [found[f"tuned {what}"] for what in ("algorithm", "tile", "cluster", "option")] == [3, 7, 3, 2]


def test_the_first_proposal_stays_where_it_is_as_fast(probe: Callable[..., Facts]) -> None:
    as_proposed = {"FAKE_TILE": "1", "FAKE_CLUSTER": "0", "FAKE_OPTION": "0"}
    assert probe(130000, FAKE_BEST="0", **as_proposed)["tuned"] == 0
    assert probe(130000, FAKE_BEST="0", FAKE_TILE="7", FAKE_CLUSTER="0", FAKE_OPTION="0")["tuned tile"] == 7


def test_what_cublaslt_refuses_is_not_tuned_for(probe: Callable[..., Facts]) -> None:
    found = probe(130000, FAKE_TILE="9")
    tuned = [found[f"tuned {what}"] for what in ("algorithm", "tile", "cluster", "option")]
    assert tuned[1] in (1, 4, 7) and tuned == [3, tuned[1], 3, 2]
    assert probe(130000, FAKE_PROPOSALS="0")["tuned"] == 0


def test_of_long_products_proposals_alone_are_measured(probe: Callable[..., Facts]) -> None:
    found = probe(130000, FAKE_TIMES_AS_LONG="3")
    assert [found[f"tuned {what}"] for what in ("algorithm", "tile", "cluster", "option")] == [3, 1, 0, 0]


def test_the_faster_own_kernel_is_taken_where_it_runs(probe: Callable[..., Facts]) -> None:
    found = probe(130000, FAKE_OWN="9")
    assert [found[f"own {what}"] for what in ("columns", "split", "stages")] == [64, 1, 1]
    assert (found["own runs"], found["matmuls beside them"]) == (1, 0)
    # On another GPU, or without it, there is what cuBLASLt was tuned to.
    assert (found["own runs on another GPU"], found["algorithm on another GPU"]) == (0, 3)
    assert (found["without own"], found["algorithm without own"]) == (0, 3)
    assert found["own runs beside another cuBLASLt"] == 1


@pytest.mark.parametrize(("library", "own", "runs"), [(10, 10, 0), (4, 4, 1), (4, 6, 0)])
def test_beside_short_products_the_own_kernel_may_take_a_little_longer(
    probe: Callable[..., Facts], library: int, own: int, runs: int
) -> None:
    found = probe(130000, FAKE_BASE=str(library), FAKE_OWN=str(own))
    assert (found["own runs"], found["matmuls beside them"]) == (runs, 1 - runs)


def test_the_own_kernel_has_no_part_in_float32(probe: Callable[..., Facts]) -> None:
    found = probe(130000, FAKE_OWN="1")
    assert (found["own runs"], found["float32 own runs"], found["float32 tuned algorithm"]) == (1, 0, 3)


def test_of_long_products_the_own_kernel_is_not_measured(probe: Callable[..., Facts]) -> None:
    found = probe(130000, FAKE_TIMES_AS_LONG="3", FAKE_OWN="1")
    assert (found["own columns"], found["own runs"]) == (0, 0)


def test_what_fails_while_it_is_captured_is_not_taken(probe: Callable[..., Facts]) -> None:
    found = probe(130000, FAKE_TILE_FAILS_IN_CAPTURE="7")
    assert (found["captures open"], found["graphs kept"], found["memory kept"]) == (0, 0, 0)
    assert found["tuned tile"] in (1, 4) and found["tuned cluster"] == 3


def test_the_newest_that_the_driver_is_new_enough_for_is_taken(probe: Callable[..., Facts]) -> None:
    assert probe(120103, 130000)["version"] == 130000
    found = probe(120103, 130000, FAKE_TOO_NEW="130000")
    assert found["version"] == 120103 and found["plain"] == 0

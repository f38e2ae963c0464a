"""Linears by cuBLASLt on a GPU, through the plugin library's C interface, against float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.cuda_plugins.linears import Call, overlapping_is_the_same, tensors  # noqa: E402 - only where torch is

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("cublaslt")]

TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
INVALID = 1  # cudaErrorInvalidValue
#: (inputs, outputs): Swin's and what is none.
SIZES = [(128, 384), (128, 128), (512, 128), (96, 384), (1024, 4096), (4096, 1024), (8, 8), (24, 1000), (136, 40)]
ROWS = [1, 7, 49, 196, 6273]


def status_of(library: Any, x: Any, weight: Any, bias: Any, residual: Any, output: Any, gelu: int = 0) -> int:
    status = Call(x, weight, bias, residual, output, gelu).launch(library)
    torch.cuda.synchronize()
    return status


def error_of(
    launch: Callable[[Call], int],
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    behind: str,
    float32: int = 0,
) -> float:
    """Of a linear with this behind it, launched so; relative."""
    x, weight, bias, residual = tensors(rows, inputs, outputs, dtype)
    # What is written beside the output would be seen.
    whole = torch.full((rows + 2, outputs), float("nan"), device="cuda", dtype=dtype)
    output = whole[1:-1]
    used = residual if behind == "residual" else None
    assert launch(Call(x, weight, bias, used, output, int(behind == "gelu"), float32=float32)) == 0
    expected = x.double() @ weight.double() + bias.double()
    if behind == "gelu":
        expected = torch.nn.functional.gelu(expected)
    if used is not None:
        expected += used.double()
    assert torch.isnan(whole[0]).all() and torch.isnan(whole[-1]).all()
    error: float = ((output.double() - expected).norm() / expected.norm()).item()
    return error


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("behind", ["nothing", "gelu", "residual"])
def test_linears_are_right(library: Any, behind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    cases = ((rows, *size) for size in SIZES for rows in ROWS)
    errors = {case: error_of(lambda call: call.launch(library), *case, dtype, behind) for case in cases}
    assert {case: error for case, error in errors.items() if not error < TOLERANCES[dtype]} == {}


@pytest.mark.parametrize("behind", ["nothing", "gelu", "residual"])
@pytest.mark.parametrize(("float32", "least", "most"), [(1, 0.0, 2e-6), (2, 2e-5, 1e-3)], ids=["exact", "TF32"])
def test_linears_in_float32_are_as_exact_as_asked_for(
    library: Any, behind: str, float32: int, least: float, most: float
) -> None:
    torch.manual_seed(0)
    found = {
        case: error_of(lambda call: call.launch(library), *case, torch.float32, behind, float32)
        for case in ((rows, *size) for size in SIZES for rows in ROWS)
    }
    assert {case: error for case, error in found.items() if not error < most} == {}
    assert max(found.values()) > least, "tensor cores round factors, and were not used"


@pytest.mark.parametrize("float32", [1, 2], ids=["exact", "TF32"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(196, 512, 2048), (49, 4096, 1024), (3136, 128, 384)])
def test_linears_in_float32_that_were_tuned(library: Any, rows: int, inputs: int, outputs: int, float32: int) -> None:
    torch.manual_seed(0)

    def launch(call: Call) -> int:
        tuned = call.tune(library)
        assert len(tuned) in (0, 88)
        return Call(*call.tensors[:5], 1, tuned, float32).launch(library)

    error = error_of(launch, rows, inputs, outputs, torch.float32, "gelu", float32)
    assert error < (2e-6 if float32 == 1 else 1e-3)


@pytest.mark.parametrize("tuned", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(64, 8192, 64), (49, 4096, 1024), (6272, 4096, 512)])
def test_sums_are_in_float32(library: Any, rows: int, inputs: int, outputs: int, tuned: bool) -> None:
    """However a product is split along K: what is rounded once is off by half a unit in the last place, 2^-11."""
    torch.manual_seed(0)
    x, weight, bias, _ = tensors(rows, inputs, outputs, torch.float16)
    x = x.abs()  # sums grow, and a sum in float16 would lose the more
    output = torch.empty(rows, outputs, device="cuda", dtype=torch.float16)
    call = Call(x, weight.abs(), bias, None, output)
    call = Call(*call.tensors[:5], tuned=call.tune(library) if tuned else b"")
    assert call.launch(library) == 0
    expected = x.double() @ weight.abs().double() + bias.double()
    assert ((output.double() - expected).abs() / expected.abs()).max().item() < 2**-11 * 1.05


@pytest.mark.parametrize("tuned", [b"", b"no algorithm", bytes(88), 88 * b"\xff"], ids=["none", "short", "0", "255"])
def test_what_was_tuned_elsewhere_is_no_harm(library: Any, tuned: bytes) -> None:
    torch.manual_seed(0)
    x, weight, bias, residual = tensors(196, 512, 512, torch.float16)
    output = torch.full((196, 512), float("nan"), device="cuda", dtype=torch.float16)
    assert Call(x, weight, bias, residual, output, tuned=tuned).launch(library) == 0
    expected = x.double() @ weight.double() + bias.double() + residual.double()
    assert (output.double() - expected).norm() / expected.norm() < TOLERANCES[torch.float16]


def test_what_was_tuned_is_taken(library: Any) -> None:
    """Swin-B's stage 1, where cuBLASLt's first proposal is seldom the best; if it is, nothing is told."""
    torch.manual_seed(0)
    x, weight, bias, _ = tensors(100352, 128, 384, torch.float16)
    output = torch.empty(100352, 384, device="cuda", dtype=torch.float16)
    told = Call(x, weight, bias, None, output).tune(library)
    assert len(told) in (0, 88)
    assert Call(x, weight, bias, None, output).tune(library) == told, "measured again"

    def names(call: Call) -> set[str]:
        assert call.launch(library) == 0
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call.launch(library)
            torch.cuda.synchronize()
        return {event.key for event in profile.key_averages()}

    first, tuned = names(Call(x, weight, bias, None, output)), names(Call(x, weight, bias, None, output, tuned=told))
    if not first:
        pytest.skip("the profiler sees no kernels, as under compute-sanitizer: which of them ran is not known")
    assert first != tuned or not told, "another algorithm is another kernel"
    expected = x[:64].double() @ weight.double() + bias.double()
    assert (output[:64].double() - expected).norm() / expected.norm() < TOLERANCES[torch.float16]


def test_a_capture_may_be_the_first_that_a_size_is_seen(library: Any) -> None:
    torch.manual_seed(0)
    warm = tensors(16, 64, 64, torch.float16)
    assert status_of(library, *warm[:3], None, torch.empty(16, 64, device="cuda", dtype=torch.float16)) == 0
    x, weight, bias, residual = tensors(88, 152, 264, torch.float16)
    output = torch.full((88, 264), float("nan"), device="cuda", dtype=torch.float16)
    call, graph = Call(x, weight, bias, residual, output), torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        assert call.launch(library) == 0
    graph.replay()
    torch.cuda.synchronize()
    expected = x.double() @ weight.double() + bias.double() + residual.double()
    assert (output.double() - expected).norm() / expected.norm() < TOLERANCES[torch.float16]


def test_threads_may_launch_the_same_size(library: Any) -> None:
    torch.manual_seed(0)
    calls, expected = [], []
    for _ in range(8):
        x, weight, bias, _ = tensors(300, 128, 128, torch.float16)
        output = torch.empty(300, 128, device="cuda", dtype=torch.float16)
        calls.append(Call(x, weight, bias, None, output))
        expected.append(x.double() @ weight.double() + bias.double())

    def launch(call: Call) -> int:
        with torch.cuda.stream(torch.cuda.Stream()):
            status = sum(call.launch(library) for _ in range(50))
            torch.cuda.current_stream().synchronize()
        return status

    torch.cuda.synchronize()
    with ThreadPoolExecutor(len(calls)) as pool:
        assert list(pool.map(launch, calls)) == [0] * len(calls)
    for call, wanted in zip(calls, expected, strict=True):
        # Each has a bias of its own, which another thread's would spoil.
        assert (call.tensors[4].double() - wanted).norm() / wanted.norm() < TOLERANCES[torch.float16]


def test_what_cannot_be_multiplied_is_an_error(library: Any) -> None:
    x, weight, bias, residual = tensors(16, 64, 32, torch.float16)
    output = torch.empty(16, 32, device="cuda", dtype=torch.float16)
    shifted = torch.empty(16 * 64 + 1, device="cuda", dtype=torch.float16)[1:].view(16, 64)
    assert status_of(library, x, weight, bias, residual, output) == 0
    assert status_of(library, shifted, weight, bias, residual, output) == INVALID
    assert status_of(library, x, weight, bias, residual, output, gelu=1) == INVALID
    assert status_of(library, x, weight[:, :20].contiguous(), bias, None, output) == INVALID
    assert status_of(library, x[:0], weight, bias, None, output) == INVALID
    wide = [t.float() for t in (x, weight, bias)]
    assert status_of(library, *wide, None, output.float()) == INVALID


@pytest.mark.usefixtures("hopper")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("behind", ["nothing", "gelu", "residual"])
def test_the_own_kernel_is_right_in_every_shape(library: Any, behind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    errors = {}
    for columns, split, stages in itertools.product((64, 128), (1, 2, 4, 8), (2, 3, 5, 8)):
        for rows, size in itertools.product((1, 49, 196), SIZES):
            errors[columns, split, stages, rows, size] = error_of(
                lambda call, shape=(columns, split, stages): call.launch_own(library, *shape),
                rows,
                *size,
                dtype,
                behind,
            )
    assert {case: error for case, error in errors.items() if not error < TOLERANCES[dtype]} == {}


@pytest.mark.usefixtures("hopper")
def test_kernels_that_overlap_give_what_they_give_one_by_one(library: Any) -> None:
    """Each reads what the one before writes, and writes what the one before that has read."""
    torch.manual_seed(0)
    x, weight, bias, _ = tensors(196, 512, 512, torch.float16)
    y = torch.empty_like(x)
    there, back = Call(x, weight, bias, None, y), Call(y, weight.flip(0).contiguous(), bias, None, x)

    def run(wait: bool) -> Any:
        for call, shape in 20 * [(there, (64, 1, 5)), (back, (64, 4, 2))]:
            assert call.launch_own(library, *shape) == 0
            if wait:
                torch.cuda.synchronize()
        return x

    assert overlapping_is_the_same(run, x)


@pytest.mark.usefixtures("hopper")
def test_shapes_that_the_own_kernel_does_not_have(library: Any) -> None:
    x, weight, bias, _ = tensors(49, 512, 512, torch.float16)
    call = Call(x, weight, bias, None, torch.empty_like(x))
    for shape in ((96, 1, 4), (64, 3, 4), (64, 1, 1), (64, 1, 17), (128, 1, 16), (0, 0, 0)):
        assert call.launch_own(library, *shape) == INVALID

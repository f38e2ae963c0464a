"""Linears by cuBLASLt on a GPU, through the plugin library's C interface, against float64."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from swinopt import plugin_library

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.gpu

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
INVALID = 1  # cudaErrorInvalidValue
WORKSPACE = 32 << 20
#: (inputs, outputs): Swin's and what is none.
SIZES = [(128, 384), (128, 128), (512, 128), (96, 384), (1024, 4096), (4096, 1024), (8, 8), (24, 1000), (136, 40)]
ROWS = [1, 7, 49, 196, 6273]


class Params(ctypes.Structure):
    """LinearParams of cuda_plugins/linear/params.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "residual", "output", "workspace")),
        ("workspace_bytes", ctypes.c_size_t),
        *((name, ctypes.c_int) for name in ("rows", "inputs", "outputs", "gelu")),
        ("tuned", ctypes.c_void_p),
        ("tuned_bytes", ctypes.c_size_t),
    )


@pytest.fixture(scope="module")
def library() -> Any:
    path = plugin_library.find_library()
    if path is None:
        pytest.skip("the plugin library is not built: swinopt build-plugins")
    if not plugin_library.cublaslt_version(path):
        pytest.skip("no libcublasLt.so.11, .12 or .13 is where the loader looks")
    return ctypes.CDLL(str(path))


def status_of(library: Any, x: Any, weight: Any, bias: Any, residual: Any, output: Any, gelu: int = 0) -> int:
    workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device="cuda")
    pointers = [None if t is None else t.data_ptr() for t in (x, weight, bias, residual, output, workspace)]
    sizes = [x.numel() // x.shape[-1], *weight.shape]
    params = Params(*pointers, WORKSPACE, *sizes, gelu, None, 0)
    stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
    status: int = library.swinopt_linear(ctypes.byref(params), DTYPES[x.dtype], stream)
    torch.cuda.synchronize()
    return status


def tensors(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> list[Any]:
    def random(*shape: int) -> Any:
        return torch.randn(*shape, device="cuda", dtype=torch.float32).to(dtype)

    return [random(rows, inputs), random(inputs, outputs) / inputs**0.5, random(outputs), random(rows, outputs)]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("behind", ["nothing", "gelu", "residual"])
def test_linears_are_right(library: Any, behind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    errors = {}
    for (inputs, outputs), rows in ((size, rows) for size in SIZES for rows in ROWS):
        x, weight, bias, residual = tensors(rows, inputs, outputs, dtype)
        # What is written beside the output would be seen.
        whole = torch.full((rows + 2, outputs), float("nan"), device="cuda", dtype=dtype)
        output = whole[1:-1]
        used = residual if behind == "residual" else None
        assert status_of(library, x, weight, bias, used, output, gelu=int(behind == "gelu")) == 0
        expected = x.double() @ weight.double() + bias.double()
        if behind == "gelu":
            expected = torch.nn.functional.gelu(expected)
        if used is not None:
            expected += used.double()
        assert torch.isnan(whole[0]).all() and torch.isnan(whole[-1]).all()
        errors[rows, inputs, outputs] = ((output.double() - expected).norm() / expected.norm()).item()
    assert {case: error for case, error in errors.items() if not error < TOLERANCES[dtype]} == {}


def test_sums_are_in_float32(library: Any) -> None:
    """4096 products of 1 and 0.5: in float16 a sum above 1024 takes no more halves."""
    x = torch.ones(64, 4096, device="cuda", dtype=torch.float16)
    weight = torch.full((4096, 64), 0.5, device="cuda", dtype=torch.float16)
    weight[::2] += 2.0**-11
    bias = torch.zeros(64, device="cuda", dtype=torch.float16)
    output = torch.empty(64, 64, device="cuda", dtype=torch.float16)
    assert status_of(library, x, weight, bias, None, output) == 0
    expected = torch.full_like(output, 2048 + 2048 * 2.0**-11).double()
    assert (output.double() - expected).abs().max().item() <= 1.0


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

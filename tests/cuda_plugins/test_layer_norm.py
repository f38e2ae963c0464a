"""LayerNorm without a GPU: the reference against torch, the plan, and its twin in C++."""

from __future__ import annotations

import ctypes
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from swinopt import cuda_plugins
from swinopt.cuda_plugins.launch import ITEM_SIZES, Device, Launch, Tensor, Unsupported
from swinopt.cuda_plugins.layer_norm.plan import LayerNormParams
from swinopt.cuda_plugins.layer_norm.reference import layer_norm
from tests.cuda_plugins import host_compiler

H200 = Device(capability=90, multiprocessors=132, shared_bytes=232448)
NAMES = ("x", "gamma", "beta", "residual", "output")
DTYPES = list(ITEM_SIZES)


def plan(
    shape: tuple[int, ...] = (2, 49, 96),
    dtype: str = "float16",
    *,
    device: Device = H200,
    epsilon: float = 1e-5,
    pointers: dict[str, int] | None = None,
    **other: Any,
) -> Launch:
    """With a residual. ``other`` takes the place of a tensor."""
    at = pointers or {}
    tensors: dict[str, Any] = {
        name: Tensor(shape[-1:] if name in ("gamma", "beta") else shape, dtype, at.get(name, 0)) for name in NAMES
    }
    given = [other.get(name, tensor) for name, tensor in tensors.items()]
    return cuda_plugins.plan("LayerNorm", given[:4], given[4:], {"epsilon": epsilon}, device)


# --------------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 8), (4, 1)], ids=str)
def test_the_reference_is_what_torch_computes(shape: tuple[int, ...], residual: bool) -> None:
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x, gamma, beta, added = (random.normal(3, 1, size) for size in (shape, shape[-1:], shape[-1:], shape))
    given = [torch.from_numpy(array) for array in (x, gamma, beta)]
    wanted = torch.nn.functional.layer_norm(given[0], shape[-1:], *given[1:], 1e-3).numpy()
    found = layer_norm(x, gamma, beta, added if residual else None, epsilon=1e-3)
    np.testing.assert_allclose(found, wanted + added if residual else wanted, rtol=1e-12, atol=1e-12)


def test_the_sum_of_norm_and_residual_is_rounded_once() -> None:
    x, gamma = np.float16([[-1, 1]]), np.float16([2**-11, 2**-11])
    beta, residual = np.ones(2, np.float16), np.full((1, 2), -1, np.float16)
    output = layer_norm(x, gamma, beta, residual, epsilon=0.0)
    assert output.dtype == np.float16 and output.tolist() == [[-(2**-11), 2**-11]]


@pytest.mark.parametrize("wrong", [{"residual": (3, 4)}, {"residual": (4,)}, {"gamma": (3,)}, {"beta": (1,)}], ids=str)
def test_the_reference_refuses_shapes_that_do_not_fit(wrong: dict[str, tuple[int, ...]]) -> None:
    shapes = {"x": (2, 4), "gamma": (4,), "beta": (4,), **wrong}
    with pytest.raises(ValueError, match="shapes do not fit"):
        layer_norm(*(np.zeros(shape) for shape in shapes.values()))


# -------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 8, 96, 192, 384, 768, 1024, 1536, 3072, 4095, 4096, 8192, 8200])
def test_every_element_has_a_lane(channels: int, dtype: str, residual: bool) -> None:
    launch = plan((5, 7, channels), dtype, **({} if residual else {"residual": None}))
    flag = str(residual).lower()
    shape = re.fullmatch(rf"swinopt::layer_norm<\w+, (\d+), (\d+), {flag}>", launch.kernel)
    rows = 128 // (int(shape[1]) if shape else 32)
    assert launch.grid[0] * rows >= 35 > (launch.grid[0] - 1) * rows
    assert launch.grid[1:] == (1, 1) and launch.block == 128 and launch.shared_bytes == 0
    width = 16 // ITEM_SIZES[dtype]
    if shape:
        lanes, vectors = int(shape[1]), int(shape[2])
        assert channels % width == 0 and lanes * vectors * width >= channels
        assert vectors * width <= 64, "a lane would have to spill"
    else:
        assert launch.kernel == f"swinopt::layer_norm_any<{cuda_plugins.launch.CUDA_TYPES[dtype]}, {flag}>"
        assert channels % width or channels > 1024 * width


def test_the_parameters_are_those_of_the_tensors() -> None:
    pointers = {name: 4096 * (i + 1) for i, name in enumerate(NAMES)}
    p = plan((2, 3, 8), pointers=pointers, epsilon=0.25).parameters
    assert isinstance(p, LayerNormParams)
    assert [getattr(p, name) for name in NAMES] == list(pointers.values())
    assert (p.rows, p.channels, p.epsilon) == (6, 8, 0.25)


def test_a_residual_may_be_absent() -> None:
    tensors = [Tensor(shape, "float16", 4096) for shape in ((6, 8), (8,), (8,), (6, 8))]
    for inputs in (tensors[:3], [*tensors[:3], None]):
        launch = cuda_plugins.plan("LayerNorm", inputs, tensors[3:], {"epsilon": 0.25}, H200)
        p: Any = launch.parameters
        assert (p.x, p.gamma, p.beta, p.residual, p.output) == (4096, 4096, 4096, None, 4096)
        assert launch.kernel == "swinopt::layer_norm<__half, 4, 1, false>"


@pytest.mark.parametrize("name", NAMES)
def test_one_address_that_is_aligned_to_its_elements_alone_takes_the_kernel_for_any(name: str) -> None:
    assert plan(pointers={name: 4096}).kernel == "swinopt::layer_norm<__half, 16, 1, true>"
    assert plan(pointers={name: 4098}).kernel == "swinopt::layer_norm_any<__half, true>"
    with pytest.raises(Unsupported, match=f"{name} at 0x1001 is not aligned"):
        plan(pointers={name: 4097})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an old GPU": ({"device": Device(70, 80, 98304)}, r"compute capability 7\.5 .* this GPU has 7\.0"),
    "another dtype": ({"dtype": "float64"}, "one dtype, float32, float16, bfloat16; given are x float64"),
    "two dtypes": ({"residual": Tensor((2, 49, 96), "float32")}, "residual float32"),
    "an empty tensor": ({"shape": (0, 96)}, r"x \[0, 96\] is empty"),
    "no channels": ({"shape": (3, 0)}, r"x \[3, 0\] is empty"),
    "a single number": ({"shape": ()}, "x is a single number"),
    "a broadcast": (
        {"residual": Tensor((1, 49, 96), "float16")},
        r"residual has shape \[1, 49, 96\], and \[2, 49, 96\] is needed",
    ),
    "another output": ({"output": Tensor((98, 96), "float16")}, r"output has shape \[98, 96\]"),
    "another gamma": ({"gamma": Tensor((1,), "float16")}, r"gamma has shape \[1\], and \[96\]"),
    "another beta": ({"beta": Tensor((2, 96), "float16")}, r"beta has shape \[2, 96\], and \[96\]"),
    "no beta": ({"beta": None}, "needs x, gamma and beta"),
    "a negative epsilon": ({"epsilon": -1e-5}, "epsilon -1e-05"),
    "an epsilon that is no number": ({"epsilon": float("nan")}, "epsilon nan"),
    "too many rows": ({"shape": (2**16, 2**15, 1)}, "2147483648 rows of 1 channels are too many"),
    "too many channels": ({"shape": (1, 2**30 + 1)}, "1 rows of 1073741825 channels are too many"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_to_plan(name: str) -> None:
    asked, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        plan(**asked)


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 1), (5, 1), (3, 0), (3, 2)])
def test_another_number_of_tensors_is_refused(inputs: int, outputs: int) -> None:
    tensor = Tensor((8,), "float16")
    with pytest.raises(Unsupported, match="needs x, gamma and beta, takes a residual, and makes one output"):
        cuda_plugins.plan("LayerNorm", [tensor] * inputs, [tensor] * outputs, {"epsilon": 1e-5}, H200)


# ------------------------------------------------------------------------------------------------------ twin in C++


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_compiler.load_layer_norm("layer_norm", LayerNormParams, tmp_path_factory.mktemp("layer_norm"))


def test_the_struct_is_laid_out_as_in_cpp(twin: ctypes.CDLL) -> None:
    host_compiler.assert_laid_out_alike(twin, LayerNormParams)


@pytest.mark.parametrize("name", ["x", "residual"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpp_cuts_the_work_alike(twin: ctypes.CDLL, dtype: str, name: str) -> None:
    for rows in (1, 3, 4, 49, 3136, 2**31 - 1):
        for channels in (*range(1, 140), *range(160, 9000, 104), 8192, 8200, 2**30):
            for address in (4096, 4096 + ITEM_SIZES[dtype]):
                launch = plan((rows, channels), dtype, pointers={name: address})
                cut = replace(launch, kernel=launch.kernel.replace(", true>", ">"))
                host_compiler.assert_cut_alike(twin, cut, DTYPES.index(dtype))


@pytest.mark.parametrize(
    ("changed", "capability", "reason"),
    [
        ({}, 70, "Turing"),
        ({"rows": 0}, 90, "empty"),
        ({"channels": 0}, 90, "empty"),
        ({"channels": 2**30 + 1}, 90, "2^30 channels"),
        ({"epsilon": -1.0}, 90, "epsilon"),
        ({"epsilon": float("nan")}, 90, "epsilon"),
    ],
)
def test_cpp_refuses_alike(twin: ctypes.CDLL, changed: dict[str, float], capability: int, reason: str) -> None:
    parameters = plan().parameters
    assert twin.unsupported(parameters, 1, 75) is None
    for name, value in changed.items():
        setattr(parameters, name, value)
    assert reason in twin.unsupported(parameters, 1, capability).decode()

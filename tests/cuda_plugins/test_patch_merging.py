"""PatchMerging without a GPU: the reference against torch, the plan, and its twin in C++."""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
import pytest

from swinopt import cuda_plugins
from swinopt.cuda_plugins.launch import ITEM_SIZES, Device, Launch, Tensor, Unsupported
from swinopt.cuda_plugins.patch_merging.plan import PatchMergingParams
from swinopt.cuda_plugins.patch_merging.reference import patch_merging
from tests.cuda_plugins import host_compiler

H200 = Device(capability=90, multiprocessors=132, shared_bytes=232448)
NAMES = ("x", "gamma", "beta", "output")
DTYPES = list(ITEM_SIZES)


def plan(
    shape: tuple[int, ...] = (2, 56, 56, 96),
    dtype: str = "float16",
    *,
    device: Device = H200,
    epsilon: float = 1e-5,
    pointers: dict[str, int] | None = None,
    **other: Any,
) -> Launch:
    """``other`` takes the place of a tensor."""
    at, features = pointers or {}, 4 * shape[-1]
    b, h, w = (*shape, 1, 1)[:3]
    shapes = {"x": shape, "gamma": (features,), "beta": (features,)}
    shapes["output"] = (b, (h + 1) // 2, (w + 1) // 2, features)
    tensors: dict[str, Any] = {name: Tensor(size, dtype, at.get(name, 0)) for name, size in shapes.items()}
    given = [other.get(name, tensor) for name, tensor in tensors.items()]
    return cuda_plugins.plan("PatchMerging", given[:3], given[3:], {"epsilon": epsilon}, device)


# --------------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 7), (5, 3), (1, 1), (1, 4)], ids=str)
def test_the_reference_is_what_torch_computes(size: tuple[int, int]) -> None:
    """Against unfold, which orders the features (c, dy, dx), and torch's norm."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x, gamma, beta = random.normal(3, 1, (2, *size, 3)), random.standard_normal(12), random.standard_normal(12)
    padded = torch.nn.functional.pad(torch.from_numpy(x), (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    columns = torch.nn.functional.unfold(padded.permute(0, 3, 1, 2), 2, stride=2)  # [B, C * dy * dx, L]
    merged = columns.reshape(2, 3, 4, -1).permute(0, 3, 2, 1).reshape(2, -(-size[0] // 2), -(-size[1] // 2), 12)
    weight, bias = torch.from_numpy(gamma), torch.from_numpy(beta)
    wanted = torch.nn.functional.layer_norm(merged, (12,), weight, bias, 1e-3).numpy()
    np.testing.assert_allclose(patch_merging(x, gamma, beta, epsilon=1e-3), wanted, rtol=1e-12, atol=1e-12)


def test_the_reference_keeps_the_dtype() -> None:
    ones, zeros = np.ones(4, np.float16), np.zeros(4, np.float16)
    merged = patch_merging(np.float16([[[[1], [-1]], [[1], [-1]]]]), ones, zeros, epsilon=0.0)
    assert merged.dtype == np.float16 and merged.tolist() == [[[[1, -1, 1, -1]]]]


@pytest.mark.parametrize("wrong", [{"x": (4, 4, 2)}, {"gamma": (2,)}, {"beta": (1,)}], ids=str)
def test_the_reference_refuses_shapes_that_do_not_fit(wrong: dict[str, tuple[int, ...]]) -> None:
    shapes = {"x": (1, 4, 4, 2), "gamma": (8,), "beta": (8,), **wrong}
    with pytest.raises(ValueError, match="shapes do not fit"):
        patch_merging(*(np.zeros(shape) for shape in shapes.values()))


# -------------------------------------------------------------------------------------------------------------- plan


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 2, 4, 8, 12, 24, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 2056])
def test_every_feature_has_a_lane(dtype: str, channels: int) -> None:
    launch = plan((3, 5, 7, channels), dtype)  # 3 * 3 * 4 tokens
    shape = re.fullmatch(r"swinopt::patch_merging<\w+, (\d+), (\d+)>", launch.kernel)
    rows = 128 // (int(shape[1]) if shape else 32)
    assert launch.grid[0] * rows >= 36 > (launch.grid[0] - 1) * rows
    assert launch.grid[1:] == (1, 1) and launch.block == 128 and launch.shared_bytes == 0
    width = 16 // ITEM_SIZES[dtype]
    if shape:
        lanes, vectors = int(shape[1]), int(shape[2])
        assert channels % width == 0, "a vector would lie in two neighbours"
        assert lanes * vectors * width >= 4 * channels
        assert vectors * width <= 64, "a lane would have to spill"
    else:
        assert launch.kernel == f"swinopt::patch_merging_any<{cuda_plugins.launch.CUDA_TYPES[dtype]}>"
        assert channels % width or 4 * channels > 1024 * width


def test_the_parameters_are_those_of_the_tensors() -> None:
    pointers = {name: 4096 * (i + 1) for i, name in enumerate(NAMES)}
    p = plan((2, 3, 5, 8), pointers=pointers, epsilon=0.25).parameters
    assert isinstance(p, PatchMergingParams)
    assert [getattr(p, name) for name in NAMES] == list(pointers.values())
    assert (p.batch, p.height, p.width, p.channels, p.epsilon) == (2, 3, 5, 8, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_one_address_that_is_aligned_to_its_elements_alone_takes_the_kernel_for_any(name: str) -> None:
    assert plan(pointers={name: 4096}).kernel == "swinopt::patch_merging<__half, 16, 3>"
    assert plan(pointers={name: 4098}).kernel == "swinopt::patch_merging_any<__half>"
    with pytest.raises(Unsupported, match=f"{name} at 0x1001 is not aligned"):
        plan(pointers={name: 4097})


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an old GPU": ({"device": Device(70, 80, 98304)}, r"compute capability 7\.5 .* this GPU has 7\.0"),
    "another dtype": ({"dtype": "int8"}, "one dtype, float32, float16, bfloat16; given are x int8"),
    "two dtypes": ({"beta": Tensor((384,), "float32")}, "beta float32"),
    "an empty batch": ({"shape": (0, 4, 4, 8)}, r"x \[0, 4, 4, 8\] is empty"),
    "an empty map": ({"shape": (1, 4, 0, 8)}, r"x \[1, 4, 0, 8\] is empty"),
    "an axis that no int can count": ({"shape": (1, 2**31, 1, 8)}, r"x \[1, 2147483648, 1, 8\] is too large"),
    "tokens in one axis": ({"shape": (1, 16, 8)}, r"x has shape \[1, 16, 8\], and \[B, H, W, C\]"),
    "another gamma": ({"gamma": Tensor((96,), "float16")}, r"gamma has shape \[96\], and \[384\]"),
    "another beta": ({"beta": Tensor((1, 384), "float16")}, r"beta has shape \[1, 384\], and \[384\]"),
    "tokens in one axis behind": ({"output": Tensor((2, 784, 384), "float16")}, r"output has shape \[2, 784, 384\]"),
    "an odd map cut off": (
        {"shape": (1, 5, 5, 8), "output": Tensor((1, 2, 2, 32), "float16")},
        r"\[1, 3, 3, 32\] is needed",
    ),
    "no gamma": ({"gamma": None}, "needs x, gamma and beta"),
    "a negative epsilon": ({"epsilon": -1e-5}, "epsilon -1e-05"),
    "an infinite epsilon": ({"epsilon": float("inf")}, "epsilon inf"),
    "too many tokens": ({"shape": (1, 2**17, 2**16, 1)}, "2147483648 rows of 4 channels are too many"),
    "too many features": ({"shape": (1, 1, 1, 2**28 + 1)}, "1 rows of 1073741828 channels are too many"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_to_plan(name: str) -> None:
    asked, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=reason):
        plan(**asked)


# ------------------------------------------------------------------------------------------------------ twin in C++


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return host_compiler.load_layer_norm("patch_merging", PatchMergingParams, tmp_path_factory.mktemp("patch_merging"))


def test_the_struct_is_laid_out_as_in_cpp(twin: ctypes.CDLL) -> None:
    host_compiler.assert_laid_out_alike(twin, PatchMergingParams)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cpp_cuts_the_work_alike(twin: ctypes.CDLL, dtype: str) -> None:
    for size in ((1, 1, 1), (2, 7, 9), (32, 56, 56), (1, 2**31 - 1, 1), (2**31 - 1, 2, 1)):
        for channels in (*range(1, 70), *range(72, 2200, 56), 2048, 2056, 2**28):
            for address in (4096, 4096 + ITEM_SIZES[dtype]):
                launch = plan((*size, channels), dtype, pointers={"x": address})
                host_compiler.assert_cut_alike(twin, launch, DTYPES.index(dtype))


@pytest.mark.parametrize(
    ("changed", "capability", "reason"),
    [
        ({}, 70, "Turing"),
        ({"batch": 0}, 90, "empty"),
        ({"height": 0}, 90, "empty"),
        ({"width": -1}, 90, "empty"),
        ({"channels": 0}, 90, "empty"),
        ({"batch": 1, "height": 2**17, "width": 2**16}, 90, "2^31 - 1 merged tokens"),
        ({"channels": 2**28 + 1}, 90, "2^30 features"),
        ({"epsilon": float("inf")}, 90, "epsilon"),
    ],
)
def test_cpp_refuses_alike(twin: ctypes.CDLL, changed: dict[str, float], capability: int, reason: str) -> None:
    parameters = plan().parameters
    assert twin.unsupported(parameters, 1, 75) is None
    for name, value in changed.items():
        setattr(parameters, name, value)
    assert reason in twin.unsupported(parameters, 1, capability).decode()

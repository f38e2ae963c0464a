"""The plans of the ops on common/layer_norm.cuh without a GPU: what they have in common, and their twins in C++."""

from __future__ import annotations

import ctypes
import functools
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from swinopt.cuda_plugins.launch import CUDA_TYPES, ITEM_SIZES, Device, Tensor, Unsupported
from tests.cuda_plugins import host_compiler
from tests.cuda_plugins.norms import ADD_LAYER_NORM, LAYER_NORM, PATCH_MERGING, WITHOUT_RESIDUAL, Norm

OPS = [ADD_LAYER_NORM, LAYER_NORM, PATCH_MERGING]
NORMS = [*OPS, WITHOUT_RESIDUAL]
DTYPES = list(ITEM_SIZES)

Twins = Callable[[Norm], ctypes.CDLL]

each_op = pytest.mark.parametrize("norm", OPS, ids=str)
each_norm = pytest.mark.parametrize("norm", NORMS, ids=str)
each_norm_of_channels = pytest.mark.parametrize("norm", [norm for norm in NORMS if norm.patch == 1], ids=str)
each_tensor = pytest.mark.parametrize(
    ("norm", "name"), [pytest.param(norm, name, id=f"{norm}-{name}") for norm in NORMS for name in norm.names]
)


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """What the launchers in C++ decide, of any op."""

    @functools.cache
    def load(op: str, params: type[ctypes.Structure]) -> ctypes.CDLL:
        return host_compiler.load_layer_norm(op, params, tmp_path_factory.mktemp(op))

    return lambda norm: load(norm.folder, norm.params)


# -------------------------------------------------------------------------------------------------------------- plan


@each_norm
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "channels",
    [1, 2, 4, 8, 12, 24, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 2056, 3072, 4095, 4096, 8192, 8200],
)
def test_every_element_has_a_lane(norm: Norm, dtype: str, channels: int) -> None:
    launch = norm.plan((3, 5, 7, channels), dtype)
    shape = re.fullmatch(rf"swinopt::{norm.folder}<\w+, (\d+), (\d+){norm.more}>", launch.kernel)
    rows = {1: 3 * 5 * 7, 2: 3 * 3 * 4}[norm.patch]
    rows_per_block = 128 // (int(shape[1]) if shape else 32)
    assert launch.grid[0] * rows_per_block >= rows > (launch.grid[0] - 1) * rows_per_block
    assert launch.grid[1:] == (1, 1) and launch.block == 128 and launch.shared_bytes == 0
    width, features = 16 // ITEM_SIZES[dtype], norm.patch**2 * channels
    if shape:
        lanes, vectors = int(shape[1]), int(shape[2])
        assert channels % width == 0, "a vector would lie in two pixels"
        assert lanes * vectors * width >= features
        assert vectors * width <= 64, "a lane would have to spill"
    else:
        assert launch.kernel == f"swinopt::{norm.folder}_any<{CUDA_TYPES[dtype]}{norm.more}>"
        assert channels % width or features > 1024 * width


@each_norm
def test_the_parameters_are_those_of_the_tensors(norm: Norm) -> None:
    pointers = {name: 4096 * (i + 1) for i, name in enumerate(norm.names)}
    p = norm.plan((2, 3, 5, 8), pointers=pointers, epsilon=0.25).parameters
    assert isinstance(p, norm.params)
    assert {name: getattr(p, name) for name in norm.names} == pointers
    wanted: dict[str, float] = {"rows": 2 * 3 * 5} if norm.patch == 1 else {"batch": 2, "height": 3, "width": 5}
    wanted |= {"channels": 8, "epsilon": 0.25}
    assert {name: getattr(p, name) for name in wanted} == wanted


@each_norm_of_channels
@pytest.mark.parametrize(("shape", "rows"), [((8,), 1), ((6, 8), 6), ((2, 3, 8), 6), ((2, 1, 3, 2, 8), 12)])
def test_any_axes_before_the_channels_will_do(norm: Norm, shape: tuple[int, ...], rows: int) -> None:
    p: Any = norm.plan(shape).parameters
    assert (p.rows, p.channels) == (rows, 8)


@each_tensor
def test_one_address_that_is_aligned_to_its_elements_alone_takes_the_kernel_for_any(
    twins: Twins, norm: Norm, name: str
) -> None:
    cut = {1: "16, 1", 2: "16, 3"}[norm.patch]
    assert norm.plan(pointers={name: 4096}).kernel == f"swinopt::{norm.folder}<__half, {cut}{norm.more}>"
    assert norm.plan(pointers={name: 4098}).kernel == f"swinopt::{norm.folder}_any<__half{norm.more}>"
    with pytest.raises(Unsupported, match=f"{name} at 0x1001 is not aligned"):
        norm.plan(pointers={name: 4097})
    for number, dtype in enumerate(DTYPES):
        launch = norm.plan(dtype=dtype, pointers={name: 4096 + ITEM_SIZES[dtype]})
        host_compiler.assert_cut_alike(twins(norm), launch, number, norm.more)


# --------------------------------------------------------------------------------------------- what is refused to plan

# {x} is the first tensor.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an old GPU": ({"device": Device(70, 80, 98304)}, r"compute capability 7\.5 .* this GPU has 7\.0"),
    "another dtype": ({"dtype": "float64"}, "one dtype, float32, float16, bfloat16; given are {x} float64"),
    "an empty batch": ({"shape": (0, 4, 4, 8)}, r"{x} \[0, 4, 4, 8\] is empty"),
    "an empty map": ({"shape": (1, 4, 0, 8)}, r"{x} \[1, 4, 0, 8\] is empty"),
    "no channels": ({"shape": (1, 4, 4, 0)}, r"{x} \[1, 4, 4, 0\] is empty"),
    "an axis that no int can count": ({"shape": (1, 2**31, 1, 8)}, r"{x} \[1, 2147483648, 1, 8\] is too large"),
    "a negative epsilon": ({"epsilon": -1e-5}, "epsilon -1e-05"),
    "an epsilon that is no number": ({"epsilon": float("nan")}, "epsilon nan"),
    "an infinite epsilon": ({"epsilon": float("inf")}, "epsilon inf"),
}


@each_norm
@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_to_plan(norm: Norm, name: str) -> None:
    asked, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=f"{norm.op}.*" + reason.format(x=norm.names[0])):
        norm.plan(**asked)


@each_norm
def test_more_rows_or_channels_than_ints_can_count_are_refused(norm: Norm) -> None:
    pixels = norm.patch**2
    with pytest.raises(Unsupported, match=f"2147483648 rows of {pixels} channels are too many"):
        norm.plan((1, 2**16 * norm.patch, 2**15 * norm.patch, 1))
    with pytest.raises(Unsupported, match=f"1 rows of {2**30 + pixels} channels are too many"):
        norm.plan((1, 1, 1, 2**30 // pixels + 1))


@each_tensor
def test_a_tensor_of_another_dtype_is_refused(norm: Norm, name: str) -> None:
    with pytest.raises(Unsupported, match=f"{name} float32"):
        norm.plan(other={name: Tensor(norm.shapes()[name], "float32")})


@each_tensor
def test_a_tensor_of_another_shape_is_refused(norm: Norm, name: str) -> None:
    right = norm.shapes()[name]
    for wrong in ((1, *right[1:]), (math.prod(right[:-1]), right[-1])):  # would broadcast; has its rows in one axis
        # Where the first tensor has another shape, it is the others that do not fit, or the number of its axes.
        named = "[a-z]+" if name == norm.names[0] else name
        with pytest.raises(Unsupported, match=rf"{norm.op}: {named} has shape \[.*\], and \[.*\] is needed"):
            norm.plan(other={name: Tensor(wrong, "float16")})


@each_norm_of_channels
def test_a_single_number_is_refused(norm: Norm) -> None:
    with pytest.raises(Unsupported, match=f"{norm.names[0]} is a single number"):
        norm.plan(())


@each_op
def test_an_absent_input_is_refused(norm: Norm) -> None:
    needed = [name for name in norm.inputs if name != "residual"]
    for name in needed:
        with pytest.raises(Unsupported, match=f"needs {', '.join(needed[:-1])} and {needed[-1]}"):
            norm.plan(other={name: None})


# ------------------------------------------------------------------------------------------------------ twin in C++


@each_op
def test_the_struct_is_laid_out_as_in_cpp(twins: Twins, norm: Norm) -> None:
    host_compiler.assert_laid_out_alike(twins(norm), norm.params)


@each_norm
@pytest.mark.parametrize("dtype", DTYPES)
def test_cpp_cuts_the_work_alike(twins: Twins, norm: Norm, dtype: str) -> None:
    most = 2**31 - 1
    for size in ((1, 1, 1), (1, 3, 1), (1, 7, 7), (2, 7, 9), (32, 56, 56), (1, most, 1), (most, norm.patch, 1)):
        for channels in (*range(1, 140), *range(144, 9000, 56), 2048, 2056, 8192, 8200, 2**30 // norm.patch**2):
            for address in (4096, 4096 + ITEM_SIZES[dtype]):
                launch = norm.plan((*size, channels), dtype, pointers={norm.names[0]: address})
                host_compiler.assert_cut_alike(twins(norm), launch, DTYPES.index(dtype), norm.more)


@each_op
def test_cpp_refuses_alike(twins: Twins, norm: Norm) -> None:
    def reason(capability: int = 90, **changed: float) -> str:
        parameters = norm.plan().parameters
        for name, value in changed.items():
            setattr(parameters, name, value)
        return (twins(norm).unsupported(parameters, 1, capability) or b"").decode()

    assert reason(75) == "" and "Turing" in reason(74)
    for name in (field[0] for field in norm.params._fields_ if field[1] is ctypes.c_int):
        assert "empty" in reason(**{name: 0}) and "empty" in reason(**{name: -1}), name
    assert "2^30" in reason(channels=2**30 // norm.patch**2 + 1)
    for epsilon in (-1.0, math.nan, math.inf):
        assert "epsilon" in reason(epsilon=epsilon), epsilon

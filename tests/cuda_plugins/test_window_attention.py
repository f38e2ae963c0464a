"""WindowAttention without a GPU: the plan, and its twin in C++."""

from __future__ import annotations

import ctypes
import math
import random
import re
from typing import Any

import pytest

from swinopt import cuda_plugins
from swinopt.cuda_plugins.launch import CUDA_TYPES, ITEM_SIZES, Device, Launch, Tensor, Unsupported
from swinopt.cuda_plugins.window_attention.plan import WindowAttentionParams
from swinopt.errors import SwinoptError
from tests.cuda_plugins import host_compiler

DEVICES = {
    "T4": Device(capability=75, multiprocessors=40, shared_bytes=64 * 1024),
    "A100": Device(capability=80, multiprocessors=108, shared_bytes=163 * 1024),
    "A10": Device(capability=86, multiprocessors=72, shared_bytes=99 * 1024),
    "H200": Device(capability=90, multiprocessors=132, shared_bytes=227 * 1024),
    "RTX 5090": Device(capability=120, multiprocessors=170, shared_bytes=99 * 1024),
}
H200 = DEVICES["H200"]
NAMES = ("qkv", "relative_position_bias", "logit_scale", "pad_qkv", "output")
POINTERS = {name: 4096 * (i + 1) for i, name in enumerate(NAMES)}
DTYPES = list(ITEM_SIZES)
CUT = ("windows", "roll", "windows_per_block", "row_groups", "heads_per_block", "inverse_scale")


def plan(
    size: tuple[int, ...] = (14, 14),
    window: tuple[int, ...] = (7, 7),
    shift: tuple[int, ...] | None = None,
    *,
    batch: int = 2,
    heads: int = 4,
    head_dim: int = 32,
    dtype: str = "float16",
    cosine: bool = False,
    padded: bool = False,
    offset: int = 0,
    device: Device = H200,
    attributes: dict[str, Any] | None = None,
    **other: Any,
) -> Launch:
    """``offset`` is how far off 16 bytes every tensor lies; ``other`` takes the place of a tensor."""
    n, channels = math.prod(window), heads * head_dim
    shapes = ((batch, *size, 3 * channels), (heads, n, n), (heads,), (3 * channels,), (batch, *size, channels))
    tensors: dict[str, Any] = {
        name: Tensor(shape, dtype, POINTERS[name] + offset) for name, shape in zip(NAMES, shapes, strict=True)
    }
    absent = {"logit_scale": not cosine, "pad_qkv": not padded}
    given = [other.get(name, None if absent.get(name) else tensor) for name, tensor in tensors.items()]
    asked = {
        "window_size": window,
        "shift_size": [0] * len(window) if shift is None else shift,
        "num_heads": heads,
        "scale": 0.25,
        **(attributes or {}),
    }
    return cuda_plugins.plan("WindowAttention", given[:4], given[4:], asked, device)


def parameters_of(launch: Launch) -> WindowAttentionParams:
    assert isinstance(launch.parameters, WindowAttentionParams)
    return launch.parameters


def fields_of(p: WindowAttentionParams) -> dict[str, Any]:
    values = {field[0]: getattr(p, field[0]) for field in p._fields_}
    return {name: list(value) if isinstance(value, ctypes.Array) else value for name, value in values.items()}


# -------------------------------------------------------------------------------------------------------------- plan


def test_the_parameters_are_those_of_the_tensors_and_attributes() -> None:
    given = fields_of(
        parameters_of(
            plan(
                *((9, 14), (4, 7), (2, 3)),
                cosine=True,
                padded=True,
                attributes={"scale": 0.5, "mask_value": -8.0, "roll_first": 1},
            )
        )
    )
    wanted = {
        **POINTERS,
        "batch": 2,
        "size": [1, 9, 14],
        "window": [1, 4, 7],
        "shift": [0, 2, 3],
        "num_heads": 4,
        "head_dim": 32,
        "roll_first": 1,
        "scale": 0.5,
        "mask_value": -8.0,
        "windows": [1, 3, 2],
    }
    assert given == {**given, **wanted}


def test_what_is_left_out_has_its_default() -> None:
    p = parameters_of(plan())
    assert (p.logit_scale, p.pad_qkv, p.mask_value, p.roll_first) == (None, None, -100.0, 0)


@pytest.mark.parametrize(("roll_first", "rolled"), [(0, [0, 6, 3]), (1, [0, 1, 3])])
def test_a_map_that_is_smaller_than_the_shift_is_rolled_by_the_rest(roll_first: int, rolled: list[int]) -> None:
    launch = plan((5, 7), (7, 7), (6, 3), padded=True, attributes={"roll_first": roll_first})
    assert list(parameters_of(launch).roll) == rolled


@pytest.mark.parametrize(
    ("asked", "kernel"),
    [
        ({}, "small<__half, 7, 1, false>"),
        ({"size": (4, 4), "window": (4, 4)}, "small<__half, 4, 1, false>"),
        ({"size": (8, 8), "window": (8, 8), "cosine": True}, "small<__half, 8, 1, true>"),
        ({"dtype": "bfloat16"}, "small<__nv_bfloat16, 7, 1, false>"),
        ({"size": (21, 21), "batch": 9}, "small<__half, 7, 2, false>"),
        ({"size": (70, 70), "batch": 9}, "small<__half, 7, 4, false>"),
        ({"size": (40, 60), "window": (4, 6), "batch": 9}, "small<__half, 4, 2, false>"),
        ({"offset": 2}, "tiled<__half, 32, 64, false>"),
        ({"head_dim": 24}, "tiled<__half, 32, 64, false>"),
        ({"head_dim": 33}, "tiled<__half, 64, 64, false>"),
        ({"attributes": {"scale": 0.0}}, "tiled<__half, 32, 64, false>"),
        ({"attributes": {"scale": -1.0}}, "tiled<__half, 32, 64, false>"),
        ({"size": (12, 12), "window": (12, 12)}, "tiled<__half, 32, 48, false>"),
        ({"size": (16, 16), "window": (16, 16), "cosine": True}, "tiled<__half, 32, 64, true>"),
    ],
    ids=str,
)
def test_the_kernel_is_the_one_for_it(asked: dict[str, Any], kernel: str) -> None:
    launch = plan(**asked)
    assert launch.kernel == f"swinopt::window_attention_{kernel}"
    assert launch.source == "window_attention/kernel.cuh"


@pytest.mark.parametrize(
    ("asked", "kernel"),
    [
        ({}, "tiled<float, 32, 56, false>"),
        ({"head_dim": 16, "size": (8, 8), "window": (8, 8)}, "tiled<float, 32, 64, false>"),
        ({"size": (12, 12), "window": (12, 12)}, "tiled<float, 32, 48, false>"),
        ({"head_dim": 65, "cosine": True}, "tiled<float, 96, 64, true>"),
        ({"head_dim": 128, "device": DEVICES["A10"]}, "single<128, false>"),  # too little shared memory
        ({"device": DEVICES["T4"]}, "single<32, false>"),  # whose tensor cores know no TF32
    ],
    ids=str,
)
def test_the_kernel_for_single_precision(asked: dict[str, Any], kernel: str) -> None:
    assert plan(dtype="float32", **asked).kernel == f"swinopt::window_attention_{kernel}"


def test_logit_scale_takes_the_place_of_any_scale() -> None:
    launch = plan(cosine=True, attributes={"scale": -1.0})
    assert "_small<" in launch.kernel and parameters_of(launch).inverse_scale == 1


@pytest.mark.parametrize("batch", [1, 2, 31, 32, 300])
@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize(("side", "heads"), [(56, 3), (56, 4), (28, 6), (14, 12), (7, 24), (7, 5)])
def test_small_blocks_take_every_window_and_no_more_than_there_is(name: str, batch: int, side: int, heads: int) -> None:
    launch = plan((side, side), batch=batch, heads=heads, device=DEVICES[name])
    p = parameters_of(launch)
    windows = batch * (side // 7) ** 2
    chunks, rest = divmod(launch.grid[0], heads // p.heads_per_block * p.row_groups)
    assert "_small<" in launch.kernel and heads % p.heads_per_block == 0 and rest == 0
    assert chunks * p.windows_per_block >= windows > (chunks - 1) * p.windows_per_block
    assert launch.block % (32 * p.heads_per_block) == 0 and launch.block <= 512
    assert launch.shared_bytes <= DEVICES[name].shared_bytes
    # One wave: what is left for a second one would take as long as the first.
    assert launch.grid[0] // p.row_groups * launch.block <= 256 * DEVICES[name].multiprocessors
    assert p.row_groups & (p.row_groups - 1) == 0 and p.row_groups <= 4


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an old GPU": ({"device": Device(70, 80, 98304)}, r"compute capability 7\.5 .* this GPU has 7\.0"),
    "bfloat16 on Turing": (
        {"dtype": "bfloat16", "device": DEVICES["T4"]},
        r"bfloat16 needs compute capability 8\.0 .* this GPU has 7\.5; take float16 or float32",
    ),
    "another dtype": ({"dtype": "int8"}, "one dtype, float32, float16, bfloat16; given are qkv int8"),
    "two dtypes": ({"logit_scale": Tensor((4,), "float32")}, "logit_scale float32"),
    "half an element": ({"offset": 1}, "qkv at 0x1001 is not aligned to its float16 elements"),
    "no images": ({"batch": 0}, r"qkv \[0, 14, 14, 384\] is empty"),
    "no tokens": ({"size": (0, 14)}, r"qkv \[2, 0, 14, 384\] is empty"),
    "no qkv": ({"qkv": None}, "needs qkv and relative_position_bias"),
    "no bias": ({"relative_position_bias": None}, "needs qkv and relative_position_bias"),
    "no spatial axis": ({"size": (), "window": ()}, r"1 to 3 spatial axes, .* qkv is \[2, 384\], window_size \[\]"),
    "four spatial axes": ({"size": (2,) * 4, "window": (2,) * 4}, r"1 to 3 spatial axes.*window_size \[2, 2, 2, 2\]"),
    "a window of another rank": ({"window": (49,), "shift": (0,)}, r"an entry for each; .* window_size \[49\]"),
    "a shift of another rank": ({"shift": (0,)}, r"an entry for each; .* shift_size \[0\]"),
    "no heads": ({"attributes": {"num_heads": 0}}, "384 channels of qkv cannot be split .* of 0 heads"),
    "heads that do not divide": ({"attributes": {"num_heads": 5}}, "384 channels of qkv .* of 5 heads"),
    "a negative window": ({"window": (-7, -7)}, r"window_size \[-7, -7\] must be positive"),
    "a negative shift": ({"shift": (-1, 0)}, r"shift_size \[-1, 0\] in \[0, window_size\)"),
    "a shift of a whole window": ({"shift": (3, 7)}, r"shift_size \[3, 7\] in \[0, window_size\)"),
    "no values for padding": ({"size": (14, 15)}, r"sizes \[14, 15\] are no multiples of .* pad_qkv is needed"),
    "a large window": ({"size": (40, 40), "window": (40, 40)}, "a window of 1600 tokens is too large; up to 1024"),
    "a large head": ({"head_dim": 129}, "a head of 129 channels is too large; up to 128"),
    "a large image": ({"size": (2**14, 2**13), "window": (1, 1)}, "an image may have fewer than 2\\^27 tokens"),
    "a large batch": ({"batch": 2**27, "heads": 16, "size": (7, 7)}, "2\\^31 windows times heads"),
    "many channels": ({"batch": 1, "heads": 2**23, "head_dim": 128, "size": (7, 7)}, "is too large"),
    "another bias": (
        {"relative_position_bias": Tensor((4, 49), "float16")},
        r"relative_position_bias has shape \[4, 49\], and \[4, 49, 49\] is needed",
    ),
    "another logit_scale": ({"logit_scale": Tensor((1,), "float16")}, r"logit_scale has shape \[1\], and \[4\]"),
    "another pad_qkv": ({"pad_qkv": Tensor((128,), "float16")}, r"pad_qkv has shape \[128\], and \[384\]"),
    "another output": ({"output": Tensor((2, 14, 14, 384), "float16")}, r"output .*, and \[2, 14, 14, 128\] is needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_to_plan(name: str) -> None:
    asked, reason = REFUSED[name]
    with pytest.raises(Unsupported, match=rf"WindowAttention.*{reason}") as refused:
        plan(**asked)
    assert isinstance(refused.value, SwinoptError)


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (5, 1), (2, 0), (2, 2)])
def test_inputs_and_outputs_are_counted(inputs: int, outputs: int) -> None:
    one = Tensor((1, 7, 7, 96), "float16")
    with pytest.raises(Unsupported, match=r"needs qkv and relative_position_bias, takes .*, and makes one output"):
        cuda_plugins.plan("WindowAttention", [one] * inputs, [one] * outputs, {}, H200)


# ------------------------------------------------------------------------------------------------------ twin in C++

SOURCE = """
char const* unsupported(WindowAttentionParams const* p, int dtype, Device const* device) {
    return window_attention_unsupported(*p, static_cast<DType>(dtype), *device);
}
WindowAttentionPlan plan(WindowAttentionParams* p, int dtype, Device const* device) {
    return window_attention_plan(*p, static_cast<DType>(dtype), *device);
}
"""


class WindowAttentionPlan(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int) for name in ("kernel", "dim", "keys", "blocks", "threads", "shared_bytes", "row_tiles")
    ]


class CppDevice(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("capability", "multiprocessors", "shared_bytes")]


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("window_attention")
    library = host_compiler.load("window_attention", WindowAttentionParams, SOURCE, folder)
    library.unsupported.restype = ctypes.c_char_p
    library.plan.restype = WindowAttentionPlan
    return library


def ask(function: Any, p: WindowAttentionParams, dtype: str, device: Device) -> Any:
    given = CppDevice(device.capability, device.multiprocessors, device.shared_bytes)
    return function(ctypes.byref(p), DTYPES.index(dtype), ctypes.byref(given))


def kernel_of(there: WindowAttentionPlan, dtype: str, cosine: bool) -> str:
    element, last = CUDA_TYPES[dtype], "true" if cosine else "false"
    arguments = (
        f"small<{element}, {there.keys // 8}, {there.row_tiles}",
        f"tiled<{element}, {there.dim}, {there.keys}",
        f"single<{there.dim}",
    )
    return f"swinopt::window_attention_{arguments[there.kernel]}, {last}>"


def assert_planned_alike(twin: ctypes.CDLL, asked: dict[str, Any]) -> str:
    launch = plan(**asked)
    here = parameters_of(launch)
    p = WindowAttentionParams.from_buffer_copy(here)
    for field in CUT:
        value = getattr(p, field)
        setattr(p, field, type(value)(-7) if not isinstance(value, ctypes.Array) else type(value)(-7, -7, -7))
    dtype, device = asked["dtype"], asked["device"]
    assert ask(twin.unsupported, p, dtype, device) is None, asked
    there = ask(twin.plan, p, dtype, device)
    planned = kernel_of(there, dtype, asked["cosine"]), (there.blocks, 1, 1), there.threads, there.shared_bytes
    assert (launch.kernel, launch.grid, launch.block, launch.shared_bytes) == planned, asked
    assert fields_of(here) == fields_of(p), asked
    assert launch.shared_bytes <= device.shared_bytes and launch.grid[0] > 0, asked
    return str(re.sub(r".*attention_(\w+)<.*", r"\1", launch.kernel))


def anything(source: random.Random, device: Device) -> dict[str, Any]:
    window = source.choice([(7, 7), (7, 7), (8, 8), (4, 4), (5, 9), (6,), (64,), (12, 12), (16, 16), (32, 32)])
    window = source.choice([window, window, (2, 7, 7), (8, 7, 7)])
    padded = source.random() < 0.5
    return {
        "window": window,
        "size": tuple(w * source.randint(1, 9) - padded * source.randrange(w) for w in window),
        "shift": tuple(source.randrange(w) for w in window),
        "batch": source.choice([1, 2, 3, source.randint(1, 300)]),
        "heads": source.choice([1, 2, 3, 4, 5, 6, 7, 12, 16, 24, 32]),
        "head_dim": source.choice([32, 32, 32, 32, 1, 8, 16, 24, 48, 64, 96, 100, 128]),
        "dtype": source.choice(
            [d for d in ("float32", "float16", "bfloat16") if d != "bfloat16" or device.capability >= 80]
        ),
        "cosine": source.random() < 0.4,
        "padded": padded,
        "offset": source.choice([0, 0, 0, 4, 8]),
        "device": device,
        "attributes": {
            "scale": source.choice([1.0, 32**-0.5, 0.1, 5e-6, 1e-6, 0.0, -1.0]),
            "roll_first": source.choice([0, 1]),
        },
    }


def test_the_struct_is_laid_out_as_in_cpp(twin: ctypes.CDLL) -> None:
    host_compiler.assert_laid_out_alike(twin, WindowAttentionParams)


@pytest.mark.parametrize("name", DEVICES)
def test_cpp_cuts_the_work_alike(twin: ctypes.CDLL, name: str) -> None:
    source = random.Random(name)
    taken = {assert_planned_alike(twin, anything(source, DEVICES[name])) for _ in range(3000)}
    # Single precision on the plain units is what is left where there are no tensor cores for it, or little memory.
    assert taken == {"small", "tiled"} | ({"single"} if name in ("T4", "A10", "RTX 5090") else set())


@pytest.mark.parametrize("name", DEVICES)
def test_cpp_cuts_the_swins_alike(twin: ctypes.CDLL, name: str) -> None:
    for side, heads in ((56, 3), (28, 6), (14, 12), (7, 24), (56, 4), (28, 8), (14, 16), (7, 32)):
        for batch in (*range(1, 40), *range(40, 301, 13)):
            asked = {"size": (side, side), "heads": heads, "batch": batch, "dtype": "float16", "device": DEVICES[name]}
            assert assert_planned_alike(twin, {**asked, "cosine": False}) == "small"
            assert assert_planned_alike(twin, {**asked, "cosine": True}) == "small"


def test_cpp_makes_a_flag_of_any_number(twin: ctypes.CDLL) -> None:
    p = parameters_of(plan(attributes={"roll_first": 2}))
    assert p.roll_first == 1
    p.roll_first = 2
    ask(twin.plan, p, "float16", H200)
    assert p.roll_first == 1


@pytest.mark.parametrize(("asked", "given"), [(-math.inf, -1e30), (-3.4e38, -1e30), (-1e4, -1e4), (2.0, 2.0)])
def test_a_mask_of_minus_infinity_becomes_one_that_makes_no_nan(twin: ctypes.CDLL, asked: float, given: float) -> None:
    p = parameters_of(plan(attributes={"mask_value": asked}))
    assert p.mask_value == ctypes.c_float(given).value
    p.mask_value = asked
    ask(twin.plan, p, "float16", H200)
    assert p.mask_value == ctypes.c_float(given).value


@pytest.mark.parametrize(
    ("changed", "capability", "dtype", "reason"),
    [
        ({}, 70, "float16", "Turing"),
        ({}, 75, "bfloat16", "take float16 or float32"),
        ({"batch": 0}, 90, "float16", "empty"),
        ({"size": [1, 0, 7]}, 90, "float16", "empty"),
        ({"window": [1, 0, 7]}, 90, "float16", "window_size must be positive"),
        ({"shift": [0, -1, 0]}, 90, "float16", "shift_size must lie in"),
        ({"shift": [0, 0, 7]}, 90, "float16", "shift_size must lie in"),
        ({"size": [1, 14, 15]}, 90, "float16", "pad_qkv is needed"),
        ({"window": [1, 33, 32], "pad_qkv": 4096}, 90, "float16", "up to 1024 tokens"),
        ({"head_dim": 0}, 90, "float16", "1 to 128 channels"),
        ({"head_dim": 129}, 90, "float16", "1 to 128 channels"),
        ({"num_heads": 0}, 90, "float16", "there must be a head"),
        ({"size": [1, 2**13, 2**14], "window": [1, 1, 1]}, 90, "float16", "too large"),
        ({"size": [7 * 2**28] * 3, "window": [7, 7, 7]}, 90, "float16", "too large"),
        ({"batch": 2**27, "num_heads": 16}, 90, "float16", "too large"),
        ({"batch": 2**31 - 1, "size": [1, 2**13, 2**13], "window": [1] * 3}, 90, "float16", "too large"),
        ({"num_heads": 2**23, "head_dim": 128, "batch": 1}, 90, "float16", "too large"),
    ],
)
def test_cpp_refuses_alike(
    twin: ctypes.CDLL, changed: dict[str, Any], capability: int, dtype: str, reason: str
) -> None:
    p = parameters_of(plan())
    assert ask(twin.unsupported, p, dtype, H200) is None
    for name, value in changed.items():
        setattr(p, name, (ctypes.c_int * 3)(*value) if isinstance(value, list) else value)
    assert reason in ask(twin.unsupported, p, dtype, Device(capability, 132, 232448)).decode()

"""Window attention's kernels for Hopper, run on the CPU as those in test_emulated_kernels.py are."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from swinopt import cuda_plugins  # noqa: E402 - only where torch is
from swinopt.cuda_plugins.launch import Device, Tensor  # noqa: E402 - as above
from tests.cuda_plugins import truth  # noqa: E402 - needs torch itself
from tests.cuda_plugins.emulation import (  # noqa: E402 - as above
    AMPERE,
    HOPPER,
    TURING,
    Poisoned,
    error_of,
    error_on,
    launched,
    numbers,
    run,
)


class WindowPlan(ctypes.Structure):
    """HopperWindowPlan of cuda_plugins/window_attention/hopper.h."""

    made_by = "hopper_window_plan"

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("heads", "abreast", "stages", "chunks", "less", "threads", "shared_bytes")
    )


class TiledPlan(ctypes.Structure):
    """HopperTiledPlan of cuda_plugins/window_attention/hopper_tiled.h."""

    made_by = "hopper_tiled_plan"

    _fields_ = tuple(
        (name, ctypes.c_int) for name in ("tiles", "splits", "abreast", "stages", "chunks", "threads", "shared_bytes")
    )


def planned(
    kind: type[WindowPlan | TiledPlan],
    emulated: ctypes.CDLL,
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    heads: int,
    *,
    batch: int = 1,
    head_dim: int = 32,
    dtype: torch.dtype = torch.float16,
    device: Device = HOPPER,
    pointer: int = 1 << 20,
    **attributes: Any,
) -> Any:
    n, name = math.prod(window), str(dtype).removeprefix("torch.")
    padded = any(s % w for s, w in zip(size, window, strict=True))
    shapes = [(batch, *size, 3 * heads * head_dim), (heads, n, n), None, (3 * heads * head_dim,) if padded else None]
    given = [None if shape is None else Tensor(shape, name, pointer) for shape in shapes]
    attributes = {**truth.attention_attributes(window, shift, heads, head_dim**-0.5), **attributes}
    output = Tensor((batch, *size, heads * head_dim), name, pointer)
    launch = cuda_plugins.plan("WindowAttention", given, [output], attributes, device)
    plan = kind()
    sizes = (device.capability, device.multiprocessors, device.shared_bytes)
    getattr(emulated, kind.made_by)(launch.parameters, truth.DTYPES[dtype], *sizes, ctypes.byref(plan))
    return plan


def values(plan: WindowPlan | TiledPlan) -> list[int]:
    return [getattr(plan, name) for name, *_ in plan._fields_]


#: size, window, shift, heads, batch, multiprocessors: one window alone, seams through rows, columns and both, windows
#: and heads abreast, blocks with fewer windows than others (the last one with a turn less), places that are used again
#: and again, one axis and three.
SMALL = [
    ((7, 7), (7, 7), (0, 0), 1, 1, 1),
    ((7, 7), (7, 7), (3, 3), 3, 2, 3),
    ((14, 14), (7, 7), (3, 3), 2, 1, 1),
    ((14, 14), (7, 7), (3, 3), 2, 1, 3),
    ((14, 7), (7, 7), (3, 0), 2, 3, 1),
    ((7, 14), (7, 7), (0, 3), 4, 2, 1),
    ((14, 21), (7, 7), (5, 1), 1, 2, 5),
    ((14, 21), (7, 7), (5, 1), 1, 7, 1),
    ((14, 21), (7, 7), (5, 1), 1, 5, 3),
    ((16, 8), (8, 8), (4, 4), 3, 3, 1),
    ((8, 16), (8, 8), (2, 6), 2, 2, 3),
    ((12, 6), (6, 6), (2, 4), 5, 1, 1),
    ((10, 16), (5, 8), (2, 4), 2, 2, 1),
    ((6, 22), (3, 11), (1, 5), 3, 2, 1),
    ((100,), (50,), (24,), 1, 1, 1),
    ((1, 14, 14), (1, 7, 7), (0, 3, 3), 2, 1, 3),
]
#: The same of large ones: one window alone, one that several blocks share; seams through rows, columns and both;
#: windows abreast, and places that are used again; keys behind the last one.
LARGE = [
    ((12, 12), (12, 12), (0, 0), 1, 1, 1),
    ((24, 24), (12, 12), (6, 6), 2, 1, 9),
    ((24, 12), (12, 12), (6, 0), 1, 3, 1),
    ((12, 24), (12, 12), (0, 4), 1, 1, 3),
    ((16, 16), (16, 16), (0, 0), 1, 1, 3),
    ((16, 16), (16, 16), (8, 8), 1, 4, 1),
    ((10, 20), (10, 10), (4, 4), 2, 3, 2),
    ((18, 14), (9, 14), (3, 6), 1, 2, 2),
    ((8, 16), (8, 16), (4, 2), 1, 5, 1),
    ((13, 6), (13, 6), (1, 2), 1, 7, 1),
]


@pytest.mark.parametrize("lazy", [True, False], ids=["late copies", "early copies"])
@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    ("plan", "size", "window", "shift", "heads", "batch", "multiprocessors"),
    [(WindowPlan, *case) for case in SMALL] + [(TiledPlan, *case) for case in LARGE],
    ids=lambda value: "" if isinstance(value, type) else str(value),
)
def test_window_attention_on_hopper(
    emulated: ctypes.CDLL,
    plan: type[WindowPlan | TiledPlan],
    size: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    heads: int,
    batch: int,
    multiprocessors: int,
    cosine: bool,
    lazy: bool,
) -> None:
    device = Device(90, multiprocessors, HOPPER.shared_bytes)
    assert any(values(planned(plan, emulated, size, window, shift, heads, batch=batch, device=device)))
    dtype, roll_first = torch.bfloat16 if cosine else torch.float16, cosine
    error = error_of(
        emulated, size, window, shift, 32, heads, dtype,
        batch=batch, cosine=cosine, roll_first=roll_first, device=device, lazy=lazy,
    )  # fmt: skip
    assert error < truth.TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("size", "window", "shift"), [((14, 14), (7, 7), (3, 3)), ((12, 12), (12, 12), (6, 6))], ids=str
)
def test_a_driver_without_tensor_maps(
    emulated: ctypes.CDLL, size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> None:
    """The kernel of other GPUs takes over."""
    emulated.driver_has_tensor_maps(0)
    try:
        error = error_of(emulated, size, window, shift, 32, 2, torch.float16)
    finally:
        emulated.driver_has_tensor_maps(1)
    assert error < truth.TOLERANCES[torch.float16]


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("device", [HOPPER, AMPERE, TURING], ids=["Hopper", "Ampere", "Turing"])
def test_tiles_that_are_hidden_altogether(emulated: ctypes.CDLL, device: Device, dtype: torch.dtype) -> None:
    if device is TURING and dtype is torch.bfloat16:
        pytest.skip("Turing has no bfloat16")
    _, window, shift = truth.HIDDEN_TILES
    device = Device(device.capability, 1, device.shared_bytes)  # as few as there are windows
    inputs = truth.inputs_with_hidden_tiles(partial(numbers, dtype=dtype))
    for mask in truth.HIDING:
        attributes = {**truth.attention_attributes(window, shift, 1, 0.25), "mask_value": mask}
        assert error_on(emulated, inputs, attributes, device=device) < truth.TOLERANCES[dtype], mask


@pytest.mark.parametrize("dtype", truth.DTYPES, ids=str)
@pytest.mark.parametrize("device", [HOPPER, AMPERE], ids=["Hopper", "Ampere"])
def test_the_lowest_bias_hides_nothing_where_all_have_it(
    emulated: ctypes.CDLL, device: Device, dtype: torch.dtype
) -> None:
    device = Device(device.capability, 1, device.shared_bytes)
    qkv, bias, *others = truth.attention_inputs(partial(numbers, dtype=dtype), 1, (12, 12), (12, 12), 32, 1, False)
    assert qkv is not None and bias is not None
    bias[0, -1] = torch.finfo(dtype).min
    output = Poisoned(1, 12, 12, 32, dtype=dtype)
    attributes = truth.attention_attributes((12, 12), (0, 0), 1, 0.25)
    run(emulated, "WindowAttention", [qkv, bias, *others], [output], attributes, device=device)
    # What the last query's scores have beside it is lost in a float, but for some of float16's.
    assert output.tensor[0, -1, -1].abs().max() <= qkv[..., 64:].abs().max()
    expected = truth.window_attention(qkv, bias, *others, **attributes)
    rest = truth.relative_error(output.tensor.flatten(1, 2)[:, :-1], expected.flatten(1, 2)[:, :-1])
    assert rest < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("size", "window", "shift"), [((14, 14), (7, 7), (3, 3)), ((24, 12), (12, 12), (6, 0))], ids=str
)
def test_the_largest_logit_scale(
    emulated: ctypes.CDLL, size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], dtype: torch.dtype
) -> None:
    """Swin V2's section 3.3 has temperatures of at least 0.01: what directions are rounded by counts a hundredfold."""
    qkv, bias, logit_scale, _ = truth.attention_inputs(partial(numbers, dtype=dtype), 1, size, window, 32, 2, True)
    assert logit_scale is not None
    inputs = [qkv, bias, logit_scale.fill_(100), None]
    attributes = truth.attention_attributes(window, shift, 2, 1.0)
    assert error_on(emulated, inputs, attributes) < truth.TOLERANCES[dtype]


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_masks_that_16_bits_do_not_hold(emulated: ctypes.CDLL, dtype: torch.dtype, cosine: bool) -> None:
    size, window, shift = (14, 7), (7, 7), (3, 3)
    inputs = truth.attention_inputs(partial(numbers, dtype=dtype), 1, size, window, 32, 1, cosine)
    for value in (0.0, -0.37, -7.3, -100.0, -1e4, -1e9, -3e38, -math.inf):
        attributes = {**truth.attention_attributes(window, shift, 1, 0.25), "mask_value": value}
        assert planned(WindowPlan, emulated, size, window, shift, 1, dtype=dtype, mask_value=value).heads
        assert error_on(emulated, inputs, attributes) < truth.TOLERANCES[dtype], value


@pytest.mark.parametrize("side", [7, 10])
@pytest.mark.parametrize("device", [HOPPER, AMPERE], ids=["Hopper", "Ampere"])
def test_what_is_not_finite_stays_in_its_window(emulated: ctypes.CDLL, device: Device, side: int) -> None:
    """Each block has several windows one after the other, in the same places."""
    device, n = Device(device.capability, 1, device.shared_bytes), side**2
    qkv, bias = numbers((12, side, side, 96), dtype=torch.float16), numbers((1, n, n), dtype=torch.float16)
    attributes = truth.attention_attributes((side, side), (0, 0), 1, 0.25)
    clean, spoiled = (torch.zeros(12, side, side, 32, dtype=torch.float16) for _ in range(2))
    launched(emulated, "WindowAttention", [qkv, bias, None, None], [clean], attributes, device=device)
    qkv[::2] = math.inf
    launched(emulated, "WindowAttention", [qkv, bias, None, None], [spoiled], attributes, device=device)
    assert torch.equal(spoiled[1::2], clean[1::2])
    assert spoiled[::2].isnan().all()


def test_what_the_kernel_for_small_windows_takes(emulated: ctypes.CDLL) -> None:
    plan = partial(planned, WindowPlan, emulated)
    swin = ((56, 56), (7, 7), (3, 3), 4)
    assert plan(*swin).heads and plan(*swin, dtype=torch.bfloat16).heads
    refused = {
        "another GPU": plan(*swin, device=AMPERE),
        "float32": plan(*swin, dtype=torch.float32),
        "padding": plan((57, 56), *swin[1:]),
        "three axes": plan((8, 14, 14), (2, 7, 7), (1, 3, 3), 4),
        "a large window": plan((24, 24), (12, 12), (6, 6), 4),
        "a small window": plan((20, 20), (5, 5), (2, 2), 4),
        "boxes that begin in the middle of a line": plan((12, 12), (6, 6), (3, 3), 4),
        "another head": plan(*swin, head_dim=64),
        "pointers": plan(*swin, pointer=8),
        "a mask that favours": plan(*swin, mask_value=1.0),
        "a mask that 16 bits do not hold beside this scale": plan(*swin, scale=1e-4, mask_value=-1e4),
        "a mask that 16 bits have no digits for beside this scale": plan(*swin, scale=1e7),
        "no scale": plan(*swin, scale=0.0),
        "a bias of more than 2^31 bytes": plan((8, 8), (8, 8), (0, 0), 1 << 18),
        "offsets of more than 32 bits": plan((448, 448), (7, 7), (3, 3), 4, batch=64),
    }
    assert [why for why, found in refused.items() if found.heads] == []


def test_how_the_kernel_for_small_windows_cuts_its_work(emulated: ctypes.CDLL) -> None:
    """No block is more than a multiprocessor holds, and there are no more of them, unless heads leave no choice.

    Where the last chunk has less to do, nobody takes more turns for that.
    """
    shorter = 0
    for (window, side), heads, batch, multiprocessors in itertools.product(
        (((7, 7), 56), ((7, 7), 7), ((8, 8), 64), ((8, 8), 8), ((5, 7), 35)),
        (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 96),
        (1, 2, 7, 32, 64),
        (1, 78, 114, 132),
    ):
        device = Device(90, multiprocessors, HOPPER.shared_bytes)
        plan = planned(WindowPlan, emulated, (side, side), window, (0, 0), heads, batch=batch, device=device)
        case = (window, side, heads, batch, multiprocessors, values(plan))
        windows, warpgroups = batch * side * side // math.prod(window), plan.heads * plan.abreast
        assert plan.heads and heads % plan.heads == 0, case
        assert 1 <= warpgroups <= 4 and plan.threads == 128 * warpgroups + 64, case
        assert 1 <= plan.stages <= 3 and warpgroups * plan.stages <= 32, case
        assert plan.shared_bytes <= device.shared_bytes, case
        assert 1 <= plan.chunks <= windows and plan.abreast <= -(-windows // plan.chunks), case
        groups = heads // plan.heads
        assert groups * plan.chunks <= max(groups, multiprocessors), case
        each, more = divmod(windows + plan.less, plan.chunks)
        turns = -(-windows // (plan.chunks * plan.abreast))
        assert each + (more > 0) <= turns * plan.abreast and each > plan.less, case
        shorter += plan.less > 0
    assert shorter > 100 and planned(WindowPlan, emulated, (28, 28), (7, 7), (3, 3), 8, batch=32).less == 2


def test_what_the_kernel_for_large_windows_takes(emulated: ctypes.CDLL) -> None:
    plan = partial(planned, TiledPlan, emulated)
    swin = ((96, 96), (12, 12), (6, 6), 4)
    assert plan(*swin).tiles and plan(*swin, dtype=torch.bfloat16).tiles and plan(*swin, mask_value=-math.inf).tiles
    refused = {
        "another GPU": plan(*swin, device=AMPERE),
        "float32": plan(*swin, dtype=torch.float32),
        "padding": plan((97, 96), *swin[1:]),
        "three axes": plan((8, 24, 24), (2, 12, 12), (1, 6, 6), 4),
        "a small window": plan((56, 56), (7, 7), (3, 3), 4),
        "a larger window": plan((34, 34), (17, 17), (8, 8), 4),
        "pairs of keys that do not lie side by side": plan((96, 96), (12, 12), (6, 5), 4),
        "another head": plan(*swin, head_dim=64),
        "pointers": plan(*swin, pointer=8),
        "too little to do": plan((12, 12), (12, 12), (0, 0), 32),
        "a bias of more than 2^31 bytes": plan((16, 16), (16, 16), (0, 0), 1 << 14),
        "offsets of more than 32 bits": plan((768, 768), (12, 12), (6, 6), 4, batch=32),
        "more than a small multiprocessor holds": plan(*swin, device=Device(90, 132, 65536)),
    }
    assert [why for why, found in refused.items() if found.tiles] == []


def test_how_the_kernel_for_large_windows_cuts_its_work(emulated: ctypes.CDLL) -> None:
    """No block is more than a multiprocessor holds, and there are no more of them, unless heads leave no choice."""
    for (window, side), heads, batch, multiprocessors in itertools.product(
        (((12, 12), 96), ((12, 12), 12), ((16, 16), 64), ((16, 16), 16), ((10, 10), 40), ((9, 14), 126)),
        (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 96),
        (1, 2, 7, 32, 64),
        (1, 78, 114, 132),
    ):
        device = Device(90, multiprocessors, HOPPER.shared_bytes)
        plan = planned(TiledPlan, emulated, (side, side), window, (0, 0), heads, batch=batch, device=device)
        case = (window, side, heads, batch, multiprocessors, values(plan))
        windows, tiles = batch * side * side // math.prod(window), -(-math.prod(window) // 64)
        if not plan.tiles:
            few = math.prod(window) <= 144 and windows * heads * tiles < multiprocessors
            assert few or batch * side * side * 96 * heads >= 1 << 32, case
            continue
        assert plan.tiles * plan.splits == tiles, case
        assert plan.threads == 128 * (plan.tiles * plan.abreast + 1) <= (640 if window == (16, 16) else 896), case
        assert 1 <= plan.abreast <= plan.stages and plan.shared_bytes <= device.shared_bytes, case
        assert 1 <= plan.chunks <= windows and plan.stages <= -(-windows // plan.chunks), case
        blocks = heads * plan.splits
        assert blocks * plan.chunks <= max(blocks, multiprocessors), case

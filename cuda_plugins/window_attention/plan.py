"""How ``swinopt::WindowAttention`` is launched; ``plan.h`` is the same in C++."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from swinopt.cuda_plugins.common.require import are_aligned, require_shape, require_tensors
from swinopt.cuda_plugins.launch import CUDA_TYPES, Device, Launch, Tensor, Unsupported

_OP = "WindowAttention"

LARGEST_WINDOW, LARGEST_HEAD = 1024, 128
_LARGEST_SMALL_WINDOW, _SMALL_HEAD = 64, 32
_SMALL_TILES, _TILED_DIMS, _SINGLE_DIMS = (4, 7, 8), (16, 32, 64, 96, 128), (32, 64, 128)
#: Kernels keep a token and three bits more in an int; blocks and channels take all of one.
_TOO_MANY_TOKENS, _TOO_MANY = 1 << 27, 1 << 31
#: Bytes of shared memory that CUDA takes for each block.
_RESERVED = 1024
#: Below it (or negative) the small kernel cannot divide the bias by it.
_SMALLEST_SCALE = float(ctypes.c_float(1e-6).value)
#: Hides a key as minus infinity does. But a tile of keys that are all hidden has a largest score, and what becomes of
#: it times log2(e), or divided by a small scale, is finite.
_LOWEST_MASK_VALUE = -1e30


class WindowAttentionParams(ctypes.Structure):
    """The struct of ``params.h``."""

    _fields_: ClassVar = [
        ("qkv", ctypes.c_void_p),
        ("relative_position_bias", ctypes.c_void_p),
        ("logit_scale", ctypes.c_void_p),
        ("pad_qkv", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("batch", ctypes.c_int),
        ("size", ctypes.c_int * 3),
        ("window", ctypes.c_int * 3),
        ("shift", ctypes.c_int * 3),
        ("num_heads", ctypes.c_int),
        ("head_dim", ctypes.c_int),
        ("roll_first", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("mask_value", ctypes.c_float),
        ("windows", ctypes.c_int * 3),
        ("roll", ctypes.c_int * 3),
        ("windows_per_block", ctypes.c_int),
        ("row_groups", ctypes.c_int),
        ("heads_per_block", ctypes.c_int),
        ("inverse_scale", ctypes.c_float),
    ]


def plan(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], attributes: Mapping[str, Any], device: Device
) -> Launch:
    """How a GPU computes attention inside of shifted windows.

    Args:
        inputs: qkv ``[B, *spatial, 3C]`` with 1 to 3 spatial axes, relative_position_bias ``[num_heads, N, N]`` with
            ``N = prod(window_size)``, and, each of them None or left out where absent, logit_scale ``[num_heads]`` and
            pad_qkv ``[3C]``.
        outputs: ``[B, *spatial, C]``. It may not overlap another tensor.
        attributes: window_size, shift_size, num_heads, scale; mask_value and roll_first, -100 and 0 by default.
        device: the GPU.

    Raises:
        Unsupported: dtypes differ or are none of float32, float16 and bfloat16; shapes or attributes do not fit; a
            tensor is empty, too large, or not aligned to its elements; a size is no multiple of its window and there is
            no pad_qkv; the GPU is older than Turing, or than Ampere for bfloat16.
    """
    names = ("qkv", "relative_position_bias", "logit_scale", "pad_qkv", "output")
    given = [*inputs, *[None] * (4 - len(inputs)), *outputs]
    if len(inputs) > 4 or len(outputs) != 1 or any(given[place] is None for place in (0, 1)):
        raise Unsupported(
            f"{_OP} needs qkv and relative_position_bias, takes logit_scale and pad_qkv, and makes one output"
        )
    tensors = {name: tensor for name, tensor in zip(names, given, strict=True) if tensor is not None}
    require_tensors(_OP, tensors, device)
    qkv = tensors["qkv"]
    window, shift = [int(w) for w in attributes["window_size"]], [int(s) for s in attributes["shift_size"]]
    heads, padded, cosine = int(attributes["num_heads"]), "pad_qkv" in tensors, "logit_scale" in tensors
    _require_problem(qkv, window, shift, heads, padded=padded, device=device)
    batch, *size, channels = qkv.shape
    n = math.prod(window)
    shapes = ((*qkv.shape,), (heads, n, n), (heads,), (channels,), (batch, *size, channels // 3))
    for name, shape in zip(names, shapes, strict=True):
        if name in tensors:
            require_shape(_OP, name, tensors[name], shape)

    missing, three = 3 - len(size), ctypes.c_int * 3
    p = WindowAttentionParams(
        *(tensors[name].pointer if name in tensors else 0 for name in names),
        batch=batch,
        size=three(*[1] * missing, *size),
        window=three(*[1] * missing, *window),
        shift=three(*[0] * missing, *shift),
        num_heads=heads,
        head_dim=channels // 3 // heads,
        roll_first=bool(attributes.get("roll_first", 0)),
        scale=float(attributes["scale"]),
        mask_value=max(float(attributes.get("mask_value", -100.0)), _LOWEST_MASK_VALUE),
    )
    aligned = are_aligned([qkv, tensors.get("pad_qkv"), tensors["output"]], 16)
    name, arguments, blocks, threads, shared = _cut(p, qkv.dtype, cosine=cosine, aligned=aligned, device=device)
    kernel = f"swinopt::window_attention_{name}<{', '.join([*arguments, 'true' if cosine else 'false'])}>"
    return Launch("window_attention/kernel.cuh", kernel, (blocks, 1, 1), threads, shared, p)


def _require_problem(
    qkv: Tensor, window: Sequence[int], shift: Sequence[int], heads: int, *, padded: bool, device: Device
) -> None:
    if qkv.dtype == "bfloat16" and device.capability < 80:
        raise Unsupported(
            f"{_OP} in bfloat16 needs compute capability 8.0 (Ampere) or newer, this GPU has {device.capability / 10}; "
            "take float16 or float32"
        )
    batch, *size, channels = qkv.shape
    if not (1 <= len(size) <= 3 and len(size) == len(window) == len(shift)):
        raise Unsupported(
            f"{_OP}: a map has 1 to 3 spatial axes, and window_size and shift_size an entry for each; "
            f"qkv is {list(qkv.shape)}, window_size {window}, shift_size {shift}"
        )
    if heads < 1 or channels % (3 * heads):
        raise Unsupported(f"{_OP}: {channels} channels of qkv cannot be split into q, k and v of {heads} heads")
    if any(w < 1 or not 0 <= s < w for s, w in zip(shift, window, strict=True)):
        raise Unsupported(f"{_OP}: window_size {window} must be positive and shift_size {shift} in [0, window_size)")
    if any(s % w for s, w in zip(size, window, strict=True)) and not padded:
        raise Unsupported(f"{_OP}: sizes {size} are no multiples of the window {window}, so pad_qkv is needed")
    n, head_dim = math.prod(window), channels // 3 // heads
    if n > LARGEST_WINDOW:
        raise Unsupported(f"{_OP}: a window of {n} tokens is too large; up to {LARGEST_WINDOW} (32 x 32) are possible")
    if head_dim > LARGEST_HEAD:
        raise Unsupported(f"{_OP}: a head of {head_dim} channels is too large; up to {LARGEST_HEAD} are possible")
    windows = batch * math.prod(math.ceil(s / w) for s, w in zip(size, window, strict=True))
    blocks = windows * heads * math.ceil(n / 32)
    if math.prod(size) >= _TOO_MANY_TOKENS or blocks >= _TOO_MANY or channels >= _TOO_MANY:
        raise Unsupported(
            f"{_OP}: qkv {list(qkv.shape)} is too large; an image may have fewer than 2^27 tokens, and all of them "
            "2^31 windows times heads"
        )


def _windows(p: WindowAttentionParams) -> int:
    windows: int = p.batch * math.prod(math.ceil(s / w) for s, w in zip(p.size, p.window, strict=True))
    return windows


def _cut(
    p: WindowAttentionParams, dtype: str, *, cosine: bool, aligned: bool, device: Device
) -> tuple[str, list[str], int, int, int]:
    """Kernel, its template arguments, blocks, threads, shared bytes; fills in how ``p`` is cut."""
    n, windows = math.prod(p.window), _windows(p)
    for axis in range(3):
        p.windows[axis] = math.ceil(p.size[axis] / p.window[axis])
        p.roll[axis] = p.shift[axis] % p.size[axis] if p.roll_first else p.shift[axis]
    p.windows_per_block = p.row_groups = p.heads_per_block = 1
    p.inverse_scale = 1 if cosine or p.scale == 0 else 1 / p.scale
    all_row_tiles = math.ceil(n / 16)
    tiles = _at_least(math.ceil(n / 8), _SMALL_TILES) if n <= _LARGEST_SMALL_WINDOW else 0
    head_bytes = 4 * n * (8 * tiles if tiles % 2 else 8 * tiles + 8)  # of one head's bias in float
    warp_bytes = 3 * tiles * 32 * 16
    is_float = dtype == "float32"
    is_small = (
        not is_float
        and p.head_dim == _SMALL_HEAD
        and n <= _LARGEST_SMALL_WINDOW
        and aligned
        and (cosine or p.scale > _SMALLEST_SCALE)
        and head_bytes + warp_bytes <= device.shared_bytes
        and windows * n * 6 * p.num_heads * _SMALL_HEAD < 1 << 32
        and windows < 1 << 21
    )
    if not is_small:
        dim = _at_least(p.head_dim, _TILED_DIMS[1:] if is_float else _TILED_DIMS)
        keys = 48 if math.ceil(n / 48) * 48 < math.ceil(n / 64) * 64 else 64
        if is_float and dim == 32 and 48 < n <= 56:  # windows of 7
            keys = 56
        row_groups, stages, size = math.ceil(all_row_tiles / 4), 2 if dim <= 64 else 1, 4 if is_float else 2
        warps = math.ceil(all_row_tiles / row_groups)
        slots = max(row_groups * warps * 16, math.ceil(n / keys) * keys)
        shared = size * (64 + 2 * stages * keys) * (dim + 16 // size) + 4 * keys + 4 * slots
        if is_float and (device.capability < 80 or shared > device.shared_bytes):
            plain = _at_least(p.head_dim, _SINGLE_DIMS)
            floats = 3 * 32 * (plain + 4) + 4 * 8 * 32 + 2 * 32
            return "single", [str(plain)], math.ceil(n / 32) * windows * p.num_heads, 128, 4 * floats
        p.row_groups = row_groups
        arguments = [CUDA_TYPES[dtype], str(dim), str(keys)]
        return "tiled", arguments, row_groups * windows * p.num_heads, 32 * warps, shared
    # The most warps that a multiprocessor takes, as one block or as two, and in a block as many heads side by side as
    # divide the heads.
    row_tiles = all_row_tiles if all_row_tiles <= 2 else 4
    blocks = warps = 0
    for b, heads in itertools.product((1, 2), (4, 3, 2, 1)):
        room = (device.shared_bytes + _RESERVED) // b - _RESERVED
        most = _most_warps(tiles, row_tiles) // b
        fit = heads * min((room - heads * head_bytes) // (heads * warp_bytes), most // heads)
        if p.num_heads % heads == 0 and b * fit > blocks * warps:
            blocks, warps, p.heads_per_block = b, fit, heads
    # One wave of blocks, so that the bias is read rarely. No wider than it takes to get done in as many rounds.
    head_groups = p.num_heads // p.heads_per_block
    share = math.ceil(windows / max(1, blocks * device.multiprocessors // head_groups))
    rounds = math.ceil(share / (warps // p.heads_per_block))
    abreast = math.ceil(share / rounds)
    p.windows_per_block = abreast * rounds
    chunks = math.ceil(windows / p.windows_per_block) * head_groups
    shared = p.heads_per_block * (head_bytes + abreast * warp_bytes)
    # A small map leaves multiprocessors idle: then several blocks share the queries of a window.
    by_memory = (device.shared_bytes + _RESERVED) // (shared + _RESERVED)
    while row_tiles > 1:
        by_warps = _most_warps(tiles, row_tiles // 2) // (abreast * p.heads_per_block)
        row_groups = math.ceil(all_row_tiles / (row_tiles // 2))
        if row_groups * chunks > min(by_memory, by_warps) * device.multiprocessors:
            break
        row_tiles, p.row_groups = row_tiles // 2, row_groups
    arguments = [CUDA_TYPES[dtype], str(tiles), str(row_tiles)]
    return "small", arguments, chunks * p.row_groups, 32 * abreast * p.heads_per_block, shared


def _most_warps(tiles: int, row_tiles: int) -> int:
    """As small.cuh says."""
    return 16 if tiles * row_tiles <= 8 else 8


def _at_least(size: int, sizes: Sequence[int]) -> int:
    return min(s for s in sizes if s >= size)

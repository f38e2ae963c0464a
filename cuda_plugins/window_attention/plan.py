"""How window attention is cut into blocks: ``plan.h`` in Python. A test holds the two together."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from swinopt.cuda_plugins.launch import CUDA_TYPES, ITEM_SIZES, Device, Launch, Tensor, Unsupported

LARGEST_WINDOW, LARGEST_HEAD = 1024, 128
_LARGEST_SMALL_WINDOW, _SMALL_HEAD = 64, 32
_SMALL_TILES, _TILED_DIMS, _SINGLE_DIMS = (4, 7, 8), (16, 32, 64, 96, 128), (32, 64, 128)
#: Bytes of shared memory that CUDA takes for each block.
_RESERVED = 1024
#: Below it (or negative) the small kernel cannot divide the bias by it.
_SMALLEST_SCALE = float(ctypes.c_float(1e-6).value)


class Parameters(ctypes.Structure):
    """``WindowAttentionParams`` of ``params.h``."""

    _fields_ = (
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
    )


def plan(
    inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], attributes: Mapping[str, Any], device: Device
) -> Launch:
    """The launch for one WindowAttention (:mod:`swinopt.ops` says what its inputs and attributes are).

    Args:
        inputs: qkv ``[B, *spatial, 3C]`` with 1 to 3 spatial axes, relative_position_bias ``[num_heads, N, N]``, and,
            each of them None or left out where absent, logit_scale ``[num_heads]`` and pad_qkv ``[3C]``; all of one dtype.
        outputs: ``[B, *spatial, C]``.
        attributes: ``window_size``, ``shift_size``, ``num_heads``, ``scale``, ``mask_value``, ``roll_first``.
        device: the GPU.

    Raises:
        Unsupported: there is no kernel for this.
    """
    qkv, bias, logit_scale, pad_qkv = [*inputs, None, None][:4]
    assert qkv is not None and bias is not None
    present = [tensor for tensor in (qkv, bias, logit_scale, pad_qkv, *outputs) if tensor is not None]
    _check_types(present)
    parameters = _parameters(qkv, attributes)
    _check_shapes(present, parameters, logit_scale, pad_qkv)
    _check_problem(parameters, qkv.dtype, pad_qkv is not None, device)
    parameters.qkv, parameters.relative_position_bias, parameters.output = qkv.pointer, bias.pointer, outputs[0].pointer
    parameters.logit_scale = logit_scale.pointer if logit_scale else 0
    parameters.pad_qkv = pad_qkv.pointer if pad_qkv else 0
    cosine, aligned = logit_scale is not None, _is_aligned(qkv, pad_qkv, outputs[0])
    name, arguments, blocks, threads, shared = _cut(
        parameters, qkv.dtype, cosine=cosine, aligned=aligned, device=device
    )
    kernel = f"swinopt::window_attention_{name}<{', '.join([*arguments, 'true' if cosine else 'false'])}>"
    return Launch("window_attention/kernel.cuh", kernel, (blocks, 1, 1), threads, shared, parameters)


def _parameters(qkv: Tensor, attributes: Mapping[str, Any]) -> Parameters:
    batch, *size, channels = qkv.shape
    window, shift = list(attributes["window_size"]), list(attributes["shift_size"])
    if not (1 <= len(size) <= 3 and len(size) == len(window) == len(shift)):
        raise Unsupported(
            f"a feature map has 1 to 3 spatial axes, and window_size and shift_size an entry for each: qkv is {qkv.shape}, "
            f"window_size {window}, shift_size {shift}"
        )
    heads = int(attributes["num_heads"])
    if heads < 1 or channels % (3 * heads):
        raise Unsupported(f"{channels} channels of qkv cannot be split into q, k and v of {heads} heads")
    missing = 3 - len(size)
    three = ctypes.c_int * 3
    return Parameters(
        batch=batch,
        size=three(*[1] * missing, *size),
        window=three(*[1] * missing, *window),
        shift=three(*[0] * missing, *shift),
        num_heads=heads,
        head_dim=channels // 3 // heads,
        roll_first=int(attributes.get("roll_first", 0)),
        scale=float(attributes["scale"]),
        mask_value=float(attributes.get("mask_value", -100.0)),
    )


def _check_types(tensors: Sequence[Tensor]) -> None:
    types = {tensor.dtype for tensor in tensors}
    if len(types) != 1 or not types <= CUDA_TYPES.keys():
        raise Unsupported(
            f"all tensors must be of one type, {', '.join(CUDA_TYPES)}; these are {', '.join(sorted(types))}"
        )
    for tensor in tensors:
        if tensor.pointer % ITEM_SIZES[tensor.dtype]:
            raise Unsupported(
                f"a {tensor.dtype} tensor lies at {tensor.pointer:#x}, which is not aligned to its elements"
            )


def _check_shapes(
    tensors: Sequence[Tensor], parameters: Parameters, logit_scale: Tensor | None, pad_qkv: Tensor | None
) -> None:
    qkv, bias, output = tensors[0], tensors[1], tensors[-1]
    heads, n = parameters.num_heads, math.prod(parameters.window)
    wanted = [
        ("relative_position_bias", bias, (heads, n, n)),
        ("the output", output, (*qkv.shape[:-1], qkv.shape[-1] // 3)),
    ]
    if logit_scale is not None:
        wanted.append(("logit_scale", logit_scale, (heads,)))
    if pad_qkv is not None:
        wanted.append(("pad_qkv", pad_qkv, (qkv.shape[-1],)))
    for name, tensor, shape in wanted:
        if tuple(tensor.shape) != shape:
            raise Unsupported(f"{name} has shape {tuple(tensor.shape)}, but {shape} is needed")


def _check_problem(p: Parameters, dtype: str, has_padding: bool, device: Device) -> None:
    size, window, shift = list(p.size), list(p.window), list(p.shift)
    capability = f"{device.capability // 10}.{device.capability % 10}"
    n = math.prod(window)
    if device.capability < 75:
        raise Unsupported(f"this GPU has compute capability {capability}; 7.5 (Turing) or newer is needed")
    if dtype == "bfloat16" and device.capability < 80:
        raise Unsupported(
            f"bfloat16 needs compute capability 8.0 (Ampere) or newer, this GPU has {capability}; take float16 or float32"
        )
    if any(w < 1 or not 0 <= s < w for s, w in zip(shift, window, strict=True)):
        raise Unsupported(f"window_size {window} must be positive and shift_size {shift} lie in [0, window_size)")
    if p.batch < 1 or min(size) < 1:
        raise Unsupported(f"a batch of {p.batch} feature maps of {size} has no windows; give at least one token")
    if any(s % w for s, w in zip(size, window, strict=True)) and not has_padding:
        raise Unsupported(f"sizes {size} are no multiples of the window {window}, so the input pad_qkv is needed")
    if n > LARGEST_WINDOW:
        raise Unsupported(f"a window of {n} tokens is too large; up to {LARGEST_WINDOW} (32 x 32) are possible")
    if not 1 <= p.head_dim <= LARGEST_HEAD:
        raise Unsupported(f"a head of {p.head_dim} channels is too large; up to {LARGEST_HEAD} are possible")
    blocks = _windows(p) * p.num_heads * math.ceil(n / 32)
    if math.prod(size) >= 1 << 27 or blocks >= 1 << 31:
        raise Unsupported(f"a batch of {p.batch} feature maps of {size} is too large: an image may have 2^27 tokens")


def _windows(p: Parameters) -> int:
    return int(p.batch) * math.prod(math.ceil(s / w) for s, w in zip(p.size, p.window, strict=True))


def _is_aligned(*tensors: Tensor | None) -> bool:
    return all(tensor is None or tensor.pointer % 16 == 0 for tensor in tensors)


def _cut(
    p: Parameters, dtype: str, *, cosine: bool, aligned: bool, device: Device
) -> tuple[str, list[str], int, int, int]:
    """Kernel, its template arguments, blocks, threads, shared bytes; fills in how ``p`` is cut."""
    n, windows = math.prod(p.window), _windows(p)
    for axis in range(3):
        p.windows[axis] = math.ceil(p.size[axis] / p.window[axis])
        p.roll[axis] = p.shift[axis] % p.size[axis] if p.roll_first else p.shift[axis]
    p.windows_per_block = p.row_groups = p.heads_per_block = 1
    p.inverse_scale = 1 if cosine or p.scale == 0 else 1 / p.scale
    if dtype == "float32":
        dim = _at_least(p.head_dim, _SINGLE_DIMS)
        floats = 3 * 32 * (dim + 4) + 4 * 8 * 32 + 2 * 32
        return "single", [str(dim)], math.ceil(n / 32) * windows * p.num_heads, 128, 4 * floats
    row_tiles = math.ceil(n / 16)
    tiles = _at_least(math.ceil(n / 8), _SMALL_TILES) if n <= _LARGEST_SMALL_WINDOW else 0
    most_warps = 16 if tiles <= 7 and not cosine else 12  # as small.cuh says
    head_bytes = 4 * n * (8 * tiles if tiles % 2 else 8 * tiles + 8)  # of one head's bias in float
    warp_bytes = 3 * tiles * 32 * 16
    is_small = (
        p.head_dim == _SMALL_HEAD
        and n <= _LARGEST_SMALL_WINDOW
        and aligned
        and (cosine or p.scale > _SMALLEST_SCALE)
        and head_bytes + warp_bytes <= device.shared_bytes
        and windows * n * 6 * p.num_heads * _SMALL_HEAD < 1 << 32
    )
    if not is_small:
        dim = _at_least(p.head_dim, _TILED_DIMS)
        keys = 48 if math.ceil(n / 48) * 48 < math.ceil(n / 64) * 64 else 64
        p.row_groups = math.ceil(row_tiles / 4)
        warps, stages = math.ceil(row_tiles / p.row_groups), 2 if dim <= 64 else 1
        slots = max(p.row_groups * warps * 16, math.ceil(n / keys) * keys)
        shared = 2 * (64 + 2 * stages * keys) * (dim + 8) + 4 * keys + 4 * slots
        arguments = [CUDA_TYPES[dtype], str(dim), str(keys)]
        return "tiled", arguments, p.row_groups * windows * p.num_heads, 32 * warps, shared
    # The most warps that a multiprocessor takes, as two blocks or as one, and in a block as many heads side by side as
    # divide the heads.
    blocks = warps = 0
    for b, heads in itertools.product((2, 1), (4, 3, 2, 1)):
        room = (device.shared_bytes + _RESERVED) // b - _RESERVED
        fit = heads * min((room - heads * head_bytes) // (heads * warp_bytes), most_warps // 2 // heads)
        if p.num_heads % heads == 0 and b * fit > blocks * warps:
            blocks, warps, p.heads_per_block = b, fit, heads
    # One wave of blocks, so that the bias is read rarely; two where a block still does several rounds, since blocks do
    # not end all at once. No wider than there are windows for.
    head_groups = p.num_heads // p.heads_per_block
    share = math.ceil(windows * head_groups / (blocks * device.multiprocessors))
    abreast = min(share, warps // p.heads_per_block)
    rounds = math.ceil(share / abreast)
    p.windows_per_block = abreast * (math.ceil(rounds / 2) if rounds >= 4 else rounds)
    chunks = math.ceil(windows / p.windows_per_block) * head_groups
    # A small map leaves multiprocessors idle: then several blocks share the queries of a window.
    while 2 * p.row_groups <= row_tiles and 2 * p.row_groups * chunks <= blocks * device.multiprocessors:
        p.row_groups *= 2
    arguments = [CUDA_TYPES[dtype], str(tiles)]
    shared = p.heads_per_block * (head_bytes + abreast * warp_bytes)
    return "small", arguments, chunks * p.row_groups, 32 * abreast * p.heads_per_block, shared


def _at_least(size: int, sizes: Sequence[int]) -> int:
    return min(s for s in sizes if s >= size)

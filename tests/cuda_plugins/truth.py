"""Float64 references in PyTorch: fast enough for sweeps on a GPU, and held against the NumPy truth by test_truth.py."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

Tensor = torch.Tensor
#: As swinopt::DType counts them.
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def window_attention(
    qkv: Tensor,
    relative_position_bias: Tensor,
    logit_scale: Tensor | None,
    pad_qkv: Tensor | None,
    *,
    window_size: Sequence[int],
    shift_size: Sequence[int],
    num_heads: int,
    scale: float,
    mask_value: float = -100.0,
    roll_first: bool = False,
) -> Tensor:
    """``swinopt::WindowAttention`` for any number of spatial axes; all windows at once, unlike the NumPy truth."""
    batch, *size, channels = qkv.shape
    axes = tuple(range(1, 1 + len(size)))
    padded = [math.ceil(s / w) * w for s, w in zip(size, window_size, strict=True)]
    back = tuple(-s for s in shift_size)

    def pad(x: Tensor) -> Tensor:
        fill = torch.zeros(channels, device=x.device) if pad_qkv is None else pad_qkv
        larger = fill.double().expand(batch, *padded, channels).clone()
        larger[(slice(None), *(slice(0, s) for s in size))] = x
        return larger

    x = qkv.double()
    x = pad(torch.roll(x, back, axes)) if roll_first else torch.roll(pad(x), back, axes)
    slots = partition(x, window_size)
    visible = same_region(padded, window_size, shift_size, qkv.device)
    head_dim = channels // 3 // num_heads
    q, k, v = slots.unflatten(-1, (3, num_heads, head_dim)).permute(3, 0, 1, 4, 2, 5)
    if logit_scale is None:
        scores = scale * (q @ k.transpose(-1, -2))
    else:
        q, k = (t / t.norm(dim=-1, keepdim=True).clamp_min(1e-12) for t in (q, k))
        scores = logit_scale.double()[:, None, None] * (q @ k.transpose(-1, -2))
    mask = torch.zeros(visible.shape, dtype=torch.float64, device=visible.device).masked_fill(~visible, mask_value)
    scores = scores + relative_position_bias.double() + mask[None, :, None]
    attended = (scores.softmax(-1) @ v).transpose(2, 3).flatten(3)
    x = reverse(attended, padded, window_size)
    crop = (slice(None), *(slice(0, s) for s in size))
    return torch.roll(x[crop], tuple(shift_size), axes) if roll_first else torch.roll(x, tuple(shift_size), axes)[crop]


def same_region(padded: Sequence[int], window: Sequence[int], shift: Sequence[int], device: Any) -> Tensor:
    """[windows, slots, slots]: whether two slots of a window come from one region of the rolled map."""
    regions = torch.zeros(1, *padded, 1, dtype=torch.long, device=device)
    for axis, (extent, by) in enumerate(zip(padded, shift, strict=True)):
        before = torch.arange(extent, device=device) < extent - by
        regions += before.long().reshape([-1 if a == axis else 1 for a in range(-1, len(padded) + 1)]) << axis
    region = partition(regions, window)[0, :, :, 0]
    return region[:, :, None] == region[:, None, :]


def partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """[B, *padded, C] to [B, windows, slots, C]."""
    for axis, extent in enumerate(window):
        x = x.unflatten(1 + 2 * axis, (-1, extent))
    count = len(window)
    order = [0, *range(1, 2 * count, 2), *range(2, 2 * count + 1, 2), 2 * count + 1]
    return x.permute(order).flatten(1 + count, 2 * count).flatten(1, count)


def reverse(x: Tensor, padded: Sequence[int], window: Sequence[int]) -> Tensor:
    """[B, windows, slots, C] back to [B, *padded, C]."""
    grid = [p // w for p, w in zip(padded, window, strict=True)]
    count = len(window)
    x = x.unflatten(2, tuple(window)).unflatten(1, tuple(grid))
    order = [0, *(axis for a in range(count) for axis in (1 + a, 1 + count + a)), 1 + 2 * count]
    return x.permute(order).reshape(x.shape[0], *padded, x.shape[-1])


def add_layer_norm(a: Tensor, b: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> list[Tensor]:
    """``swinopt::AddLayerNorm``: the sum, and its LayerNorm."""
    total = a.double() + b.double()
    return [total, _layer_norm(total, gamma, beta, epsilon)]


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, residual: Tensor | None = None, *, epsilon: float) -> Tensor:
    """``swinopt::LayerNorm``, and the residual behind it."""
    normed = _layer_norm(x.double(), gamma, beta, epsilon)
    return normed if residual is None else normed + residual.double()


def patch_merging(x: Tensor, gamma: Tensor, beta: Tensor, *, epsilon: float) -> Tensor:
    """``swinopt::PatchMerging``: 2 x 2 neighbours side by side, (dy, dx, c), and their LayerNorm."""
    height, width = x.shape[1:3]
    x = torch.nn.functional.pad(x.double(), (0, 0, 0, width % 2, 0, height % 2))
    neighbours = torch.cat([x[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], -1)
    return _layer_norm(neighbours, gamma, beta, epsilon)


def _layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, epsilon: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], gamma.double(), beta.double(), epsilon)


class Buffer:
    """GPU memory for a tensor, full of NaN and with NaN around it: what a kernel forgets to write, or writes beside it,
    shows. With ``misaligned`` it starts one element behind a multiple of 16 bytes."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, *, misaligned: bool = False) -> None:
        self._before = 65 if misaligned else 64
        count = math.prod(shape)
        self._all = torch.full((self._before + count + 64,), float("nan"), dtype=dtype, device="cuda")
        self.tensor = self._all[self._before : self._before + count].reshape(tuple(shape))

    @property
    def surroundings_are_untouched(self) -> bool:
        count = self.tensor.numel()
        around = torch.cat([self._all[: self._before], self._all[self._before + count :]])
        return bool(around.isnan().all())

    def fill(self, value: Tensor) -> Tensor:
        self.tensor.copy_(value)
        return self.tensor


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖; NaN anywhere gives NaN."""
    return float((actual.double() - expected).norm() / expected.norm())


def too_large(errors: dict[Any, float], dtype: torch.dtype) -> dict[Any, float]:
    """The errors, by case, that are not below what is tolerated of the type; NaN is none that is."""
    return {case: error for case, error in errors.items() if not error < TOLERANCES[dtype]}


def launched(
    op_type: str,
    inputs: Sequence[Tensor | None],
    outputs: Sequence[Tensor],
    attributes: dict[str, Any],
    library: ctypes.CDLL | None = None,
) -> str:
    """Runs an op's kernel on PyTorch's tensors and current stream; returns the kernel's name.

    It is compiled by NVRTC, or with ``library`` the C++ plugin library's own, which may be another one than that named.
    """
    from swinopt.cuda_plugins import FOLDERS, launch, plan, runtime

    def described(tensor: Tensor) -> launch.Tensor:
        return launch.Tensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.data_ptr())

    job = plan(
        op_type,
        [None if tensor is None else described(tensor) for tensor in inputs],
        [described(tensor) for tensor in outputs],
        attributes,
        runtime.device(),
    )
    stream = torch.cuda.current_stream().cuda_stream
    if library is None:
        runtime.launch(job, stream)
    else:
        run = library[f"swinopt_{FOLDERS[op_type]}"]
        status = run(ctypes.byref(job.parameters), DTYPES[outputs[0].dtype], ctypes.c_void_p(stream))
        if status:
            raise RuntimeError(f"the plugin library does not launch {op_type}: CUDA error {status}")
    return job.kernel


# ------------------------------------------------------------------------------------------------------------- sweeps

#: ‖out - ref‖ / ‖ref‖ that a kernel may have.
TOLERANCES = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}

#: size, window, shift: windows of the published Swins and others, whole maps and maps that are no multiple, from one to
#: three axes, maps smaller than a window or than its shift.
MAPS: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    ((14, 14), (7, 7), (3, 3)),
    ((28, 28), (7, 7), (0, 0)),
    ((13, 20), (7, 7), (3, 3)),
    ((2, 3), (7, 7), (3, 3)),
    ((16, 16), (8, 8), (4, 4)),
    ((17, 9), (8, 8), (4, 0)),
    ((24, 24), (12, 12), (6, 6)),
    ((25, 30), (12, 12), (6, 6)),
    ((32, 16), (16, 16), (8, 8)),
    ((48, 24), (24, 24), (12, 12)),
    ((20, 33), (4, 9), (2, 4)),
    ((9, 50), (5, 32), (1, 16)),
    ((32, 32), (32, 32), (0, 0)),
    ((40, 40), (32, 32), (16, 16)),
    ((8, 14, 14), (8, 7, 7), (0, 3, 3)),
    ((4, 9, 9), (2, 7, 7), (1, 3, 3)),
    ((3, 5, 8), (2, 4, 4), (1, 2, 2)),
    ((100,), (9,), (4,)),
    ((1, 1), (1, 1), (0, 0)),
    ((6, 6), (3, 3), (1, 1)),
)
#: head_dim, num_heads.
HEADS = ((32, 4), (32, 3), (32, 1), (32, 5), (32, 6), (16, 2), (24, 2), (20, 3), (64, 2), (96, 1), (128, 2), (40, 1))


def random(shape: Sequence[int], dtype: torch.dtype, *, factor: float = 1.0, misaligned: bool = False) -> Tensor:
    """Normal numbers on the GPU, with NaN before and behind them."""
    return Buffer(shape, dtype, misaligned=misaligned).fill(factor * torch.randn(tuple(shape), device="cuda"))


def attention_attributes(
    window: Sequence[int], shift: Sequence[int], heads: int, scale: float, roll_first: bool = False
) -> dict[str, Any]:
    """All attributes of a WindowAttention."""
    return {
        "window_size": list(window),
        "shift_size": list(shift),
        "num_heads": heads,
        "scale": scale,
        "mask_value": -100.0,
        "roll_first": int(roll_first),
    }


def attention_inputs(
    make: Callable[..., Tensor],
    batch: int,
    size: Sequence[int],
    window: Sequence[int],
    head_dim: int,
    heads: int,
    cosine: bool,
) -> list[Tensor | None]:
    """All inputs of a WindowAttention, from a function that makes normal numbers of a shape."""
    n, channels = math.prod(window), heads * head_dim
    padded = any(s % w for s, w in zip(size, window, strict=True))
    return [
        make((batch, *size, 3 * channels), factor=1.5),
        make((heads, n, n)),
        make((heads,)).tanh_().mul_(5).add_(10) if cosine else None,
        make((3 * channels,)) if padded else None,
    ]


#: A window of several tiles of keys, of which queries behind the seams do not see the first ones.
HIDDEN_TILES = ((18, 12), (18, 12), (9, 6))
#: Masks that hide them, and that sums and products of float32 lose digits of, or do not hold.
HIDING = (-100.0, -1e5, -1e9, -3.4e38, -math.inf)


def inputs_with_hidden_tiles(make: Callable[..., Tensor], batch: int = 1) -> list[Tensor | None]:
    """Inputs of a WindowAttention of HIDDEN_TILES with one head, in which the bias hides tiles as well."""
    size, window, _ = HIDDEN_TILES
    inputs = attention_inputs(make, batch, size, window, 32, 1, False)
    bias = inputs[1]
    assert bias is not None
    places = bias.view(*window, *window)
    places[:, 6::2, :, :6] = -math.inf
    return inputs


def window_attention_error(
    size: Sequence[int],
    window: Sequence[int],
    shift: Sequence[int],
    head_dim: int,
    heads: int,
    dtype: torch.dtype,
    *,
    batch: int = 1,
    cosine: bool = False,
    roll_first: bool = False,
    misaligned: bool = False,
    scale: float | None = None,
    mask_value: float = -100.0,
    inputs: Sequence[Tensor | None] | None = None,
    library: ctypes.CDLL | None = None,
) -> float:
    """The kernel's error, on random inputs by default; NaN where it left an element out or wrote beside its output."""
    if inputs is None:
        make = partial(random, dtype=dtype, misaligned=misaligned)
        inputs = attention_inputs(make, batch, size, window, head_dim, heads, cosine)
    attributes = attention_attributes(window, shift, heads, head_dim**-0.5 if scale is None else scale, roll_first)
    attributes["mask_value"] = mask_value
    output = Buffer((batch, *size, head_dim * heads), dtype, misaligned=misaligned)
    launched("WindowAttention", inputs, [output.tensor], attributes, library)
    expected = window_attention(*inputs, **attributes)
    return relative_error(output.tensor, expected) if output.surroundings_are_untouched else math.nan


def add_layer_norm_error(
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    mean: float = 0.0,
    misaligned: bool = False,
    library: ctypes.CDLL | None = None,
) -> float:
    a, b = (random(shape, dtype, misaligned=misaligned).add_(mean) for _ in range(2))
    gamma, beta = (random(shape[-1:], dtype, misaligned=misaligned) for _ in range(2))
    outputs = [Buffer(shape, dtype, misaligned=misaligned) for _ in range(2)]
    launched("AddLayerNorm", [a, b, gamma, beta], [o.tensor for o in outputs], {"epsilon": 1e-5}, library)
    expected = add_layer_norm(a, b, gamma, beta, epsilon=1e-5)
    errors = [relative_error(o.tensor, e) for o, e in zip(outputs, expected, strict=True)]
    return (
        max(errors)
        if all(o.surroundings_are_untouched for o in outputs) and not any(map(math.isnan, errors))
        else math.nan
    )


def layer_norm_error(
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    residual: bool,
    mean: float = 0.0,
    misaligned: bool = False,
    library: ctypes.CDLL | None = None,
) -> float:
    make = partial(random, dtype=dtype, misaligned=misaligned)
    inputs = [make(shape).add_(mean), make(shape[-1:]), make(shape[-1:]), *([make(shape)] if residual else [])]
    output = Buffer(shape, dtype, misaligned=misaligned)
    launched("LayerNorm", inputs, [output.tensor], {"epsilon": 1e-5}, library)
    expected = layer_norm(*inputs, epsilon=1e-5)
    return relative_error(output.tensor, expected) if output.surroundings_are_untouched else math.nan


def patch_merging_error(
    shape: Sequence[int], dtype: torch.dtype, *, misaligned: bool = False, library: ctypes.CDLL | None = None
) -> float:
    batch, height, width, channels = shape
    x = random(shape, dtype, misaligned=misaligned)
    gamma, beta = (random((4 * channels,), dtype, misaligned=misaligned) for _ in range(2))
    output = Buffer((batch, math.ceil(height / 2), math.ceil(width / 2), 4 * channels), dtype, misaligned=misaligned)
    launched("PatchMerging", [x, gamma, beta], [output.tensor], {"epsilon": 1e-5}, library)
    expected = patch_merging(x, gamma, beta, epsilon=1e-5)
    return relative_error(output.tensor, expected) if output.surroundings_are_untouched else math.nan


#: Rows and channels: those of the Swins, odd ones, one of each, and more than registers hold.
ROWS = ((3, 49, 96), (2, 7, 7, 128), (1, 1024), (5, 1), (7, 33), (2, 3, 770), (4, 1536), (3, 5000), (1000, 192))
PATCHES = (
    (2, 8, 8, 96),
    (1, 7, 7, 128),
    (3, 5, 2, 64),
    (1, 1, 1, 32),
    (2, 3, 4, 33),
    (1, 14, 14, 512),
    (1, 4, 4, 1536),
)

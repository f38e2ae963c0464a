"""Measures the CUDA kernels on the GPU at hand: errors over the sweep of the tests, speed beside a copy and PyTorch.

    python benchmarks/kernels.py [--no-sweep] [--report]

Needs PyTorch with CUDA and cuda-bindings. The kernels are those of the plugin library, or what NVRTC makes of them
where there is none; linears are the library's alone. Errors come first: a kernel that is wrong is not timed. Times are
medians of CUDA-graph replays over rotating inputs, all in one run; the copy beside them is a device-to-device copy of
8 GB. Writes benchmarks/results/kernels.json and, of that, kernels.md; exits with 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import machine
from kernels_page import page, text
from pages import tell_missed

from swinopt import plugin_library
from swinopt.engine import write_whole

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.cuda_plugins import linears, truth

RESULTS = Path(__file__).resolve().parent / "results" / "kernels.json"

#: Share of the copy bandwidth that window attention in fp16 has to reach at these stages, and how much faster than
#: PyTorch it has to be at every one.
BANDWIDTH_BAR, BANDWIDTH_STAGES = 0.80, ("Swin-B stage 1 B=32", "Swin-B stage 2 B=32")
PEER_BAR = 3.0
KERNELS = ("window_attention", "add_layer_norm", "layer_norm", "patch_merging")
_INPUT_BYTES, _REPLAYS = 400e6, 60
_LAUNCHES = 64  # in a graph: what starting it takes is spread over them
_PEERS = 2  # inputs that PyTorch's way is timed with

#: name, batch, side, window, shift, heads, cosine: the stages of Swin-B 224, of one Swin-T, SwinV2-B and Swin-B 384.
STAGES = (
    *(
        (f"Swin-B stage {stage} B={batch}", batch, 56 >> stage - 1, 7, shift, 4 << stage - 1, False)
        for batch in (32, 1)
        for stage, shift in ((1, 3), (2, 3), (3, 3), (4, 0))
    ),
    ("Swin-B stage 1 B=32, no shift", 32, 56, 7, 0, 4, False),
    ("Swin-T stage 1 B=32", 32, 56, 7, 3, 3, False),
    ("SwinV2-T w8 stage 1 B=32", 32, 64, 8, 4, 3, True),
    ("SwinV2-B w16 stage 1 B=32", 32, 64, 16, 8, 4, True),
    ("SwinV2-B w16 stage 3 B=32", 32, 16, 16, 0, 16, True),
    ("Swin-B 384 w12 stage 1 B=32", 32, 96, 12, 6, 4, False),
    ("Swin-B 384 w12 stage 3 B=32", 32, 24, 12, 6, 16, False),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-sweep", action="store_true", help="time without the sweep of errors, and write nothing")
    parser.add_argument("--report", action="store_true", help="make the page alone, of what was measured before")
    arguments = parser.parse_args()
    if not arguments.report:
        result = measured(sweep=not arguments.no_sweep)
        if arguments.no_sweep:
            return tell_missed(missed_bars(result))
        write_whole(RESULTS, json.dumps(result, indent=1).encode() + b"\n")
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    missed = missed_bars(result)
    write_whole(RESULTS.with_suffix(".md"), page(result, missed).encode())
    return tell_missed(missed)


def measured(*, sweep: bool) -> dict[str, Any]:
    """Everything, printed as well."""
    torch.manual_seed(0)
    result: dict[str, Any] = {"date": str(date.today()), "machine": machine()}
    path = plugin_library.find_library()
    library = None if path is None else ctypes.CDLL(str(path))
    result["kernels"] = "NVRTC" if library is None else "the C++ plugin library"
    if sweep:
        result["errors"] = errors(library)
        show([{"type": name, **found} for name, found in result["errors"].items()])
    result["copy_tb_s"] = copy_bandwidth()
    result["stages"] = list(speeds(result["copy_tb_s"], library))
    result["norms"] = list(norm_speeds(result["copy_tb_s"], library))
    has_linears = path is not None and bool(plugin_library.cublaslt_version(path))
    if not has_linears:
        print("linears are not timed: the plugin library or cuBLASLt is missing (swinopt build-plugins)")
    result["linears"] = list(linear_speeds(library)) if library and has_linears else []
    result["chain"] = list(chain_speeds(library)) if library and has_linears else []
    print(f"{result['machine']['GPU']}, kernels by {result['kernels']}: a copy moves {result['copy_tb_s']:.2f} TB/s")
    show(result["stages"])
    show(result["norms"])
    show(result["linears"])
    show(result["chain"])
    return result


def errors(library: ctypes.CDLL | None) -> dict[str, dict[str, Any]]:
    """The largest relative error of each kernel by type; NaN or a write beside the output counts as infinite."""
    found = {}
    for dtype, tolerance in truth.TOLERANCES.items():
        both = (False, True)
        attention = [
            truth.window_attention_error(
                *shape, *heads, dtype, batch=1 + n % 3, cosine=c, roll_first=r, misaligned=m, library=library
            )
            for n, (shape, heads) in enumerate(itertools.product(truth.MAPS, truth.HEADS))
            for c, r in itertools.product(both, repeat=2)
            for m in both[: 1 + (n % 4 == 0)]
        ]
        norms = [truth.add_layer_norm_error(s, dtype, misaligned=m, library=library) for s in truth.ROWS for m in both]
        norms_alone = [
            truth.layer_norm_error(s, dtype, residual=r, misaligned=m, library=library)
            for s, r, m in itertools.product(truth.ROWS, both, both)
        ]
        merging = [
            truth.patch_merging_error(s, dtype, misaligned=m, library=library) for s in truth.PATCHES for m in both
        ]
        found[str(dtype).removeprefix("torch.")] = {
            "cases": len(attention) + len(norms) + len(norms_alone) + len(merging),
            "window_attention": _largest(attention),
            "add_layer_norm": _largest(norms),
            "layer_norm": _largest(norms_alone),
            "patch_merging": _largest(merging),
            "bar": tolerance,
        }
    return found


def _largest(values: Sequence[float]) -> float:
    return max(math.inf if math.isnan(value) else value for value in values)


def copy_bandwidth() -> float:
    """TB/s of a large copy, bytes read and bytes written."""
    source = torch.randn(1 << 30, device="cuda")
    target = torch.empty_like(source)
    times = sorted(elapsed(lambda: target.copy_(source)) for _ in range(15))
    return 2 * source.numel() * source.element_size() / times[len(times) // 2] / 1e12


def elapsed(work: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def graph_time(calls: Sequence[Callable[[], Any]]) -> tuple[float, float]:
    """Median seconds of one call, and the spread: (90th - 10th percentile) / median."""
    stream, rounds = torch.cuda.Stream(), math.ceil(_LAUNCHES / len(calls))
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in rounds * [*calls]:
                call()
        for _ in range(3):
            graph.replay()
        times = sorted(elapsed(graph.replay) / (rounds * len(calls)) for _ in range(_REPLAYS))
    median = times[len(times) // 2]
    return median, (times[len(times) * 9 // 10] - times[len(times) // 10]) / median


def speeds(copy: float, library: ctypes.CDLL | None) -> Iterator[dict[str, Any]]:
    for (name, batch, side, window, shift, heads, cosine), dtype in itertools.product(
        STAGES, (torch.float16, torch.float32)
    ):
        channels, n = 32 * heads, window * window
        size = batch * side * side * 4 * channels * torch.finfo(dtype).bits // 8
        attributes = truth.attention_attributes((window, window), (shift, shift), heads, 32**-0.5)
        calls, peers = [], []
        for index in range(max(2, min(16, math.ceil(_INPUT_BYTES / size)))):
            qkv = torch.randn(batch, side, side, 3 * channels, device="cuda", dtype=dtype)
            bias = torch.randn(heads, n, n, device="cuda", dtype=dtype)
            logit_scale = torch.full((heads,), 10.0, device="cuda", dtype=dtype) if cosine else None
            output = torch.empty(batch, side, side, channels, device="cuda", dtype=dtype)
            inputs = [qkv, bias, logit_scale, None]
            calls.append(partial(truth.launched, "WindowAttention", inputs, [output], attributes, library))
            if dtype == torch.float16 and index < _PEERS:
                mask = bias_and_mask(bias, side, window, shift)
                peers.append(partial(torch_attention, qkv, mask, logit_scale, window, shift, heads))
        row = {"stage": name, "type": str(dtype).removeprefix("torch."), **_speed(calls, size, copy)}
        row["own copy us"] = round(_copy_seconds(size, len(calls)) * 1e6, 2)
        if peers:
            peer, _ = graph_time(peers)
            row["torch SDPA us"] = round(peer * 1e6, 1)
            row["times faster"] = round(peer * 1e6 / row["us"], 1)
        yield row
        del calls, peers
        torch.cuda.empty_cache()


def _speed(calls: Sequence[Callable[[], Any]], size: int, copy: float) -> dict[str, Any]:
    """What one of these calls takes, which moves ``size`` bytes, and how much of the copy's bandwidth that is."""
    median, spread = graph_time(calls)
    return {
        "us": round(median * 1e6, 2),
        "spread": f"{spread:.1%}",
        "TB/s": round(size / median / 1e12, 2),
        "of copy": round(size / median / 1e12 / copy, 4),
    }


def _copy_seconds(size: int, count: int) -> float:
    """What a copy takes that reads half of ``size`` bytes and writes the other half, one of ``count`` in turn.

    A kernel so short cannot come near the bandwidth of a large copy: starting and ending are a good part of it.
    """
    tensors = [torch.randint(255, (size // 2,), dtype=torch.uint8, device="cuda") for _ in range(2 * count)]
    pairs = zip(tensors[::2], tensors[1::2], strict=True)
    seconds, _ = graph_time([partial(target.copy_, source) for source, target in pairs])
    return seconds


def bias_and_mask(bias: torch.Tensor, side: int, window: int, shift: int) -> torch.Tensor:
    """[1 or windows, heads, n, n], as PyTorch's implementations add it."""
    if not shift:
        return bias[None]
    hidden = ~truth.same_region((side, side), (window, window), (shift, shift), "cuda")
    mask = hidden.to(bias.dtype) * -100
    return bias[None] + mask[:, None]


def torch_attention(
    qkv: torch.Tensor, mask: torch.Tensor, logit_scale: torch.Tensor | None, window: int, shift: int, heads: int
) -> torch.Tensor:
    """What PyTorch does between the two linears: roll, partition, scaled_dot_product_attention, reverse, roll back."""
    batch, side = qkv.shape[:2]
    x = torch.roll(qkv, (-shift, -shift), (1, 2)) if shift else qkv
    slots = truth.partition(x, (window, window))
    count = slots.shape[1]
    q, k, v = slots.unflatten(-1, (3, heads, 32)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
    if logit_scale is not None:
        q, k = (
            torch.nn.functional.normalize(q, dim=-1) * logit_scale[:, None, None],
            torch.nn.functional.normalize(k, dim=-1),
        )
    whole = mask.expand(count, -1, -1, -1).repeat(batch, 1, 1, 1) if mask.shape[0] > 1 else mask
    scale = 1.0 if logit_scale is not None else 32**-0.5
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=whole, scale=scale)
    out = out.transpose(1, 2).flatten(2).unflatten(0, (batch, count))
    x = truth.reverse(out, (side, side), (window, window))
    return torch.roll(x, (shift, shift), (1, 2)) if shift else x


def norm_speeds(copy: float, library: ctypes.CDLL | None) -> Iterator[dict[str, Any]]:
    for stage in range(4):
        batch, side, channels = 32, 56 >> stage, 128 << stage
        x = [torch.randn(batch, side, side, channels, device="cuda", dtype=torch.float16) for _ in range(8)]
        affine = torch.randn(channels, device="cuda", dtype=torch.float16)
        outs = [torch.empty_like(x[0]) for _ in range(2)]
        epsilon = {"epsilon": 1e-5}
        pairs = [(x[i], x[i + 1], affine, affine) for i in range(0, 8, 2)]
        add = [partial(truth.launched, "AddLayerNorm", pair, outs, epsilon, library) for pair in pairs]
        yield _norm_row(f"add_layer_norm, stage {stage + 1}", add, 4 * x[0].numel() * 2, copy)
        norm = [partial(truth.launched, "LayerNorm", [a, affine, affine], outs[:1], epsilon, library) for a in x]
        yield _norm_row(f"layer_norm, stage {stage + 1}", norm, 2 * x[0].numel() * 2, copy)
        if stage < 3:
            four = torch.randn(4 * channels, device="cuda", dtype=torch.float16)
            merged = torch.empty(batch, side // 2, side // 2, 4 * channels, device="cuda", dtype=torch.float16)
            merge = [partial(truth.launched, "PatchMerging", [a, four, four], [merged], epsilon, library) for a in x]
            yield _norm_row(f"patch_merging, stage {stage + 1}", merge, 2 * x[0].numel() * 2, copy)


def _norm_row(name: str, calls: Sequence[Callable[[], Any]], size: int, copy: float) -> dict[str, Any]:
    return {"kernel (Swin-B, B=32, fp16)": name, **_speed(calls, size, copy)}


def linear_speeds(library: ctypes.CDLL) -> Iterator[dict[str, Any]]:
    """Swin-B's linears in fp16 by the plugin library, tuned as an engine's are, beside PyTorch's."""
    for batch, stage in itertools.product((32, 1), range(4)):
        rows, c = batch * (56 >> stage) ** 2, 128 << stage
        for name, (inputs, outputs) in {
            "qkv": (c, 3 * c),
            "proj": (c, c),
            "fc1": (c, 4 * c),
            "fc2": (4 * c, c),
        }.items():
            calls, peers = [], []
            size = 2 * (rows * (inputs + 2 * outputs) + inputs * outputs)
            for _ in range(max(2, min(16, math.ceil(_INPUT_BYTES / size)))):
                x, weight, bias, residual = linears.tensors(rows, inputs, outputs, torch.float16)
                given = (x, weight, bias, residual if name in ("proj", "fc2") else None, torch.empty_like(residual))
                calls.append((*given, int(name == "fc1")))
                peers.append(partial(torch_linear, *given[:4], name == "fc1"))
            tuned = linears.Call(*calls[0]).tune(library)
            launches = [partial(_launched, linears.Call(*call, tuned), library) for call in calls]
            (median, spread), (peer, _) = graph_time(launches), graph_time(peers)
            yield {
                "linear (Swin-B, fp16)": f"{name}, stage {stage + 1}, B={batch}",
                "us": round(median * 1e6, 2),
                "spread": f"{spread:.1%}",
                "TFLOP/s": round(2 * rows * inputs * outputs / median / 1e12),
                "torch us": round(peer * 1e6, 2),
                "times faster": round(peer / median, 2),
            }
            del calls, peers, launches
            torch.cuda.empty_cache()


def chain_speeds(library: ctypes.CDLL) -> Iterator[dict[str, Any]]:
    """All blocks of Swin-B in fp16 as one graph: what an engine is made of, without TensorRT around it."""
    for batch in (32, 1):
        chain = [call for stage in range(4) for call in _blocks(batch, stage, library)]
        for name, kinds in {"all": None, "linears": "linear", "norms": "norm", "attention": "attention"}.items():
            calls = [call for kind, call in chain if kinds in (None, kind)]
            median, spread = graph_time([partial(_one_by_one, calls)])
            yield {
                "Swin-B's blocks in fp16, one graph": f"{name}, B={batch}",
                "kernels": len(calls),
                "us": round(median * 1e6, 1),
                "spread": f"{spread:.1%}",
                "us each": round(median * 1e6 / len(calls), 2),
            }
        del chain
        torch.cuda.empty_cache()


def _one_by_one(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def _blocks(batch: int, stage: int, library: ctypes.CDLL) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each kernel of a stage's blocks with its kind, in order; weights are each block's own."""
    side, c, heads = 56 >> stage, 128 << stage, 4 << stage

    def empty(features: int) -> torch.Tensor:
        return torch.zeros(batch, side, side, features, device="cuda", dtype=torch.float16)

    x, y, normed, attended, qkv, hidden = map(empty, (c, c, c, c, 3 * c, 4 * c))
    x.normal_()
    rows = x.numel() // c

    def norm(source: torch.Tensor) -> tuple[str, Callable[[], Any]]:
        affine = [torch.randn(c, device="cuda", dtype=torch.float16) for _ in range(2)]
        inputs = [source, *affine]
        return "norm", partial(truth.launched, "LayerNorm", inputs, [normed], {"epsilon": 1e-5}, library)

    def linear(
        source: torch.Tensor, target: torch.Tensor, residual: torch.Tensor | None = None, gelu: int = 0
    ) -> tuple[str, Callable[[], Any]]:
        inputs, outputs = source.shape[-1], target.shape[-1]
        _, weight, bias, _ = linears.tensors(1, inputs, outputs, torch.float16)
        given = (source.view(rows, -1), 0.1 * weight, 0.1 * bias, residual, target, gelu)  # sums stay finite
        tuned = linears.Call(*given).tune(library)
        return "linear", partial(_launched, linears.Call(*given, tuned), library)

    for block in range((2, 2, 18, 2)[stage]):
        shift = 3 * (block % 2) if stage < 3 else 0
        bias = torch.randn(heads, 49, 49, device="cuda", dtype=torch.float16)
        attributes = truth.attention_attributes((7, 7), (shift, shift), heads, 32**-0.5)
        yield norm(x)
        yield linear(normed, qkv)
        given = ("WindowAttention", [qkv, bias, None, None], [attended], attributes, library)
        yield "attention", partial(truth.launched, *given)
        yield linear(attended, y, x)
        yield norm(y)
        yield linear(normed, hidden, gelu=1)
        yield linear(hidden, x, y)


def _launched(call: linears.Call, library: Any) -> None:
    status = call.launch(library)
    if status:
        raise SystemExit(f"a linear was not launched: CUDA error {status}")


def torch_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor | None, gelu: bool
) -> torch.Tensor:
    """The same in PyTorch: a product with bias, and then what follows it."""
    y = torch.addmm(bias, x, weight)
    if gelu:
        y = torch.nn.functional.gelu(y, approximate="tanh")
    return y if residual is None else y + residual


def missed_bars(result: dict[str, Any]) -> list[str]:
    missed = []
    for dtype, found in result.get("errors", {}).items():
        for kernel in KERNELS:
            if not found[kernel] < found["bar"]:
                missed.append(f"{kernel} in {dtype}: error {found[kernel]:.1e}, bar {found['bar']:.1e}")
    for row in result["stages"]:
        if row["type"] != "float16":
            continue
        if row["stage"] in BANDWIDTH_STAGES and row["of copy"] < BANDWIDTH_BAR:
            missed.append(f"{row['stage']}: {row['of copy']:.1%} of the copy bandwidth, bar {BANDWIDTH_BAR:.0%}")
        if row["times faster"] < PEER_BAR:
            missed.append(f"{row['stage']}: {row['times faster']} times faster than PyTorch, bar {PEER_BAR}")
    return missed


def show(rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        return
    heads = list(rows[0])
    cells = [[text(row.get(head, "")) for head in heads] for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in [heads, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


if __name__ == "__main__":
    sys.exit(main())

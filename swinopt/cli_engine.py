"""The sub-commands of ``swinopt`` that need TensorRT: build, run and bench engines, and build their plugins."""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from swinopt.errors import ModelError, OptionError
from swinopt.export import require_writable
from swinopt.terminal import megabytes, progress, status

_OK = 0
_PROFILE_HELP = (
    "smallest, usual and largest shape of a dynamic input, e.g. input=1x3x224x224,8x3x224x224,32x3x224x224; once for "
    "each input, and again for a further profile; default: batches 1,8,32 where the batch alone is dynamic"
)


# ------------------------------------------------------------------------------------------------------- sub-commands


def _build(arguments: argparse.Namespace) -> int:
    from swinopt import tensorrt

    output = require_writable(arguments.output)
    if output.resolve() == Path(arguments.model).resolve():
        raise OptionError("the model and the engine must be different files")
    with progress(arguments.quiet) as told:
        engine = tensorrt.build(
            arguments.model,
            precision=arguments.precision,
            profiles=parse_profiles(arguments.profile) or None,
            timing_cache=arguments.timing_cache,
            plugins=arguments.plugins,
            workspace=arguments.workspace,
            optimization_level=arguments.optimization_level,
            progress=told,
            tensorrt=arguments.tensorrt,
        )
    saved = engine.save(output)
    if arguments.json:
        found = {
            "path": str(saved),
            "bytes": len(engine.plan),
            "engine": str(engine),
            "plugin_layers": engine.plugin_layers,
            "precision": engine.precision,
            "choices": [choice.to_dict() for choice in engine.choices],
            "notes": list(engine.notes),
        }
        print(json.dumps(found, indent=2))
    elif not arguments.quiet:
        print(f"{saved}: {megabytes(len(engine.plan))}, {engine}")
        if engine.choices:
            print(engine.choices)
        for note in engine.notes:
            print(f"  {note}")
    return _OK


def _run(arguments: argparse.Namespace) -> int:
    from swinopt.engine import Engine

    target = require_writable(arguments.output)
    if target.suffix != ".npz":
        raise OptionError(f"outputs are written as .npz, and {target} is none")
    arrays = _read_arrays(arguments.input)
    with Engine.load(arguments.engine, tensorrt=arguments.tensorrt) as engine:
        if list(arrays) == [""]:
            arrays = {_only_input(engine.inputs): arrays[""]}
        outputs = {name: _storable(array) for name, array in engine.run(arrays).items()}
    _write_arrays(target, outputs)
    described = {name: {"dtype": str(array.dtype), "shape": list(array.shape)} for name, array in outputs.items()}
    if arguments.json:
        print(json.dumps({"path": str(target), "outputs": described}, indent=2))
    elif not arguments.quiet:
        for name, value in described.items():
            print(f"{target}: {name} {value['dtype']}{value['shape']}")
    return _OK


def _bench(arguments: argparse.Namespace) -> int:
    from swinopt.engine import Engine

    with Engine.load(arguments.engine, tensorrt=arguments.tensorrt) as engine:
        shapes = _shapes(arguments.shape)
        with status(arguments.quiet, "measuring"):
            timing = engine.benchmark(shapes, batch=arguments.batch, runs=arguments.runs, graph=not arguments.no_graph)
            layers = engine.profile(shapes, batch=arguments.batch) if arguments.layers else None
    if arguments.json:
        print(json.dumps({**timing.to_dict(), **(layers.to_dict() if layers else {})}, indent=2))
    elif not arguments.quiet:
        print(timing)
        if layers:
            print(layers)
    return _OK


def _build_plugins(arguments: argparse.Namespace) -> int:
    from swinopt import plugin_library

    with status(arguments.quiet, "compiling the plugin library"):
        built = plugin_library.build_plugins(
            arguments.output, tensorrt_root=arguments.tensorrt_root, architectures=arguments.architectures
        )
    if arguments.json:
        print(json.dumps({"path": str(built), "bytes": built.stat().st_size}))
    elif not arguments.quiet:
        print(f"{built}: {megabytes(built.stat().st_size)}")
    return _OK


# ------------------------------------------------------------------------------------------------------------ options


def parse_profiles(settings: Sequence[str]) -> list[dict[str, tuple[tuple[int, ...], ...]]]:
    """Profiles from ``input=1x3x224x224,8x3x224x224,32x3x224x224``; an input that comes again begins the next one.

    Raises:
        OptionError: a setting is not of this form.
    """
    profiles: list[dict[str, tuple[tuple[int, ...], ...]]] = []
    for setting in settings:
        name, _, text = setting.rpartition("=")
        shapes = tuple(_sizes(part) for part in text.split(","))
        if not name or len(shapes) != 3 or not all(shapes):
            raise OptionError(
                f"--profile {setting}: write it as --profile input=1x3x224x224,8x3x224x224,32x3x224x224, "
                "the smallest, the usual and the largest shape"
            )
        if not profiles or name in profiles[-1]:
            profiles.append({})
        profiles[-1][name] = shapes
    return profiles


def _shapes(settings: Sequence[str]) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for setting in settings:
        name, _, text = setting.rpartition("=")
        shapes[name] = _sizes(text)
        if not name or not shapes[name]:
            raise OptionError(f"--shape {setting}: write it as --shape input=8x3x224x224")
    return shapes


def _sizes(text: str) -> tuple[int, ...]:
    """The sizes of 1x3x224x224; none if it is not of that form."""
    return tuple(int(size) for size in text.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text) else ()


def _only_input(inputs: Mapping[str, Any]) -> str:
    if len(inputs) != 1:
        raise OptionError(f"the engine takes {', '.join(inputs)}: say which, --input NAME=x.npy for each, or an .npz")
    return next(iter(inputs))


def _read_arrays(settings: Sequence[str]) -> dict[str, Any]:
    """The arrays by name; the name is empty for the only one, if it was given without."""
    arrays: dict[str, Any] = {}
    for setting in settings:
        name, _, path = setting.rpartition("=")
        found = _load(Path(path))
        given = found if isinstance(found, dict) else {name: found}
        if len(settings) > 1 and "" in given:
            raise OptionError(f"--input {setting}: several inputs need names, as in --input NAME={path}")
        arrays.update(given)
    return arrays


def _load(path: Path) -> Any:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            return found
        with found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is no .npy or .npz file that can be read: {error}") from error


def _storable(array: Any) -> Any:
    """The array as a file can have it: bfloat16 would come back as bytes without a type, and float32 holds it."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _write_arrays(target: Path, arrays: Mapping[str, Any]) -> None:
    import io

    from swinopt.engine import write_whole

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_whole(target, buffer.getvalue())


# ------------------------------------------------------------------------------------------------------------- parser


def _add_build(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="the ONNX file, optimized or not")
    command.add_argument("-o", "--output", required=True, help="where the engine goes")
    command.add_argument("--precision", default="fp16", help="fp16 (default), bf16, tf32 or fp32")
    command.add_argument("--profile", action="append", default=[], metavar="NAME=MIN,OPT,MAX", help=_PROFILE_HELP)
    command.add_argument("--timing-cache", help="a file that remembers measurements, to build faster the next time")
    command.add_argument(
        "--plugins",
        default="auto",
        choices=["auto", "on", "off"],
        help="on: a plugin for each swinopt op; off: spell all of them out in standard ones; auto (default): whichever "
        "is faster on this GPU, measured once for each op and size",
    )
    command.add_argument("--workspace", type=int, metavar="MIB", help="the most scratch memory that a layer may take")
    command.add_argument(
        "--optimization-level", type=int, metavar="0-5", help="0 builds fastest, 5 searches longest; by default 3"
    )
    _add_module(command)


def _add_run(command: argparse.ArgumentParser) -> None:
    command.add_argument("engine", help="the file that build wrote")
    command.add_argument(
        "--input",
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help="an .npy with an input, or an .npz with all of them by name",
    )
    command.add_argument("-o", "--output", required=True, help="the .npz file that the outputs go to")
    _add_module(command)


def _add_bench(command: argparse.ArgumentParser) -> None:
    command.add_argument("engine", help="the file that build wrote")
    command.add_argument("--batch", type=int, help="batch size; default: the one that the engine was tuned for")
    command.add_argument("--shape", action="append", default=[], metavar="NAME=SIZES", help="shape of a dynamic input")
    command.add_argument("--runs", type=int, default=200, help="number of timed inferences; default: 200")
    command.add_argument("--no-graph", action="store_true", help="launch kernel after kernel, not as a CUDA graph")
    command.add_argument("--layers", action="store_true", help="also tell how long each layer takes")
    _add_module(command)


def _add_module(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tensorrt", choices=["tensorrt", "tensorrt_rtx"], help="which of the two, where both are installed"
    )


def _add_build_plugins(command: argparse.ArgumentParser) -> None:
    command.add_argument("-o", "--output", help="where the library goes; default: where swinopt finds it by itself")
    command.add_argument("--tensorrt-root", metavar="DIR", help="the folder with TensorRT's include and lib")
    command.add_argument(
        "--architectures", metavar="LIST", help="of the GPUs, e.g. 80,90 or native; default: all that nvcc knows"
    )


#: Name, function, what it does, and its arguments.
COMMANDS: tuple[
    tuple[str, Callable[[argparse.Namespace], int], str, Callable[[argparse.ArgumentParser], None]], ...
] = (
    ("build", _build, "build a TensorRT engine", _add_build),
    ("run", _run, "run an engine on arrays from files", _add_run),
    ("bench", _bench, "measure how long an engine takes", _add_bench),
    ("build-plugins", _build_plugins, "compile the TensorRT plugin library", _add_build_plugins),
)

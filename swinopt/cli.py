"""The ``swinopt`` command: the library's functions, one sub-command each, for shells and scripts.

Results go to stdout (as JSON with ``--json``), progress and errors to stderr. An error that swinopt raises on purpose
is one line; ``--debug`` shows where it came from.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import swinopt
from swinopt import cli_engine, ops, registry
from swinopt.errors import ModelError, OptionError, SwinoptError, VerificationError
from swinopt.export import DEFAULT_OPSET, require_writable
from swinopt.graph import load_model, op_counts
from swinopt.session import Value, interface_of
from swinopt.terminal import megabytes, progress, size_on_disk, status
from swinopt.verify import TOLERANCE

if TYPE_CHECKING:
    import onnx

OK, DIFFERENT, BAD_INPUT, INTERNAL = 0, 1, 2, 3

_EXIT_CODES = """\
exit codes:
  0  done
  1  something does not compute the same, or could not be shown to: a pass was rolled back, two models differ or
     cannot be compared, an exported file is off
  2  bad input or usage: nothing was written
  3  a fault in swinopt or in a package it uses
"""

# What only carries elements from one place to another: the share that swinopt is there to take away.
_MOVEMENT = (
    *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Pad", "Reshape"),
    *("ScatterElements", "ScatterND", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit code: 0 done, 1 something does not compute the same, 2 bad input or usage, 3 an internal fault.

    Raises:
        SystemExit: from argparse, with code 0 for ``--help`` and ``--version`` and 2 for wrong usage.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader left; whatever Python still wants to flush at exit would only complain about it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except Exception as error:
        if arguments.debug:
            raise
        return _failed(error)


def _failed(error: Exception) -> int:
    # An OSError that nobody turned into an error of swinopt's own is still about a file that the user named.
    if isinstance(error, (SwinoptError, OSError)):
        print(f"swinopt: error: {error}", file=sys.stderr)
        return DIFFERENT if isinstance(error, VerificationError) else BAD_INPUT
    reason = " ".join(str(error).split()) or "no message"
    print(f"swinopt: internal error: {type(error).__name__}: {reason} (--debug shows where)", file=sys.stderr)
    return INTERNAL


# ------------------------------------------------------------------------------------------------------- sub-commands


def _optimize(arguments: argparse.Namespace) -> int:
    outputs = [require_writable(arguments.output)]
    if arguments.report:
        outputs.append(_report_path(arguments.report))
    _refuse_same_file([Path(arguments.model), *outputs])
    with progress(arguments.quiet) as told:
        result = swinopt.optimize(
            arguments.model,
            target=arguments.target,
            passes=arguments.passes,
            verify=not arguments.no_verify,
            progress=told,
        )
    saved = result.save(outputs[0])
    if arguments.report:
        _write_report(result.report, outputs[1])
    if arguments.json:
        print(result.report.to_json())
    elif not arguments.quiet:
        _print(result.report)
        print(f"{saved}: {megabytes(size_on_disk(saved))}")
    return OK if result.report.ok else DIFFERENT


def _export(arguments: argparse.Namespace) -> int:
    with status(arguments.quiet, f"exporting {arguments.name}"):
        saved = swinopt.export(
            arguments.name,
            arguments.output,
            exporter=arguments.exporter,
            dynamic_batch=arguments.dynamic_batch,
            opset=arguments.opset,
            seed=arguments.seed,
            check=not arguments.no_check,
            pretrained=arguments.pretrained,
            **_model_options(arguments.set),
        )
    if arguments.json:
        print(json.dumps({"path": str(saved), "bytes": size_on_disk(saved), "checked": not arguments.no_check}))
    elif not arguments.quiet:
        print(f"{saved}: {megabytes(size_on_disk(saved))}")
    return OK


def _inspect(arguments: argparse.Namespace) -> int:
    found = describe(load_model(arguments.model))
    found["bytes"] = size_on_disk(Path(arguments.model))
    if arguments.json:
        print(json.dumps(found, indent=2))
    elif not arguments.quiet:
        print(_as_text(found))
    return OK


def _compare(arguments: argparse.Namespace) -> int:
    with status(arguments.quiet, "running both models"):
        comparison = swinopt.compare(
            arguments.a,
            arguments.b,
            runs=arguments.runs,
            seed=arguments.seed,
            tolerance=arguments.tolerance,
            locate=not arguments.no_locate,
            sizes=_sizes(arguments.size),
        )
    if arguments.json:
        print(json.dumps(comparison.to_dict(), indent=2, allow_nan=False))
    elif not arguments.quiet:
        print(comparison)
    return OK if comparison.passed else DIFFERENT


def _passes(arguments: argparse.Namespace) -> int:
    if arguments.target is None:
        kinds = registry.available().values()
        rows = [{"name": kind.name, "step": _with_options(kind), "summary": _first_sentence(kind)} for kind in kinds]
    else:
        steps = swinopt.pipeline(arguments.target)
        rows = [{"name": step.name, "step": str(step), "summary": _first_sentence(step)} for step in steps]
    if arguments.json:
        print(json.dumps(rows, indent=2))
    elif not arguments.quiet:
        width = max((len(row["step"]) for row in rows), default=0)
        for row in rows:
            print(f"{row['step']:{width}}  {row['summary']}")
    return OK


def _with_options(kind: type[swinopt.Pass]) -> str:
    """The pass as ``--passes`` takes it, with every option at its default."""
    known: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    options = [f"{field.name}={field.default!r}" for field in known]
    return f"{kind.name}({', '.join(options)})" if options else kind.name


# -------------------------------------------------------------------------------------------------------- description


def describe(model: onnx.ModelProto) -> dict[str, Any]:
    """What a model is made of, in types that JSON knows.

    Args:
        model: the model; not changed.

    Returns:
        ``producer``, ``ir_version``, ``opsets`` (domain to version), ``inputs`` and ``outputs`` (name to dtype and
        shape), ``nodes``, ``ops`` (op type to number of nodes, the most frequent first), ``movement`` (number of nodes
        that only move data), ``window_attention`` (number of swinopt::WindowAttention nodes), ``softmax`` and
        ``parameters`` (number of weights' elements).
    """
    counts = op_counts(model)
    interface = interface_of(model)
    return {
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "ir_version": model.ir_version,
        "opsets": {opset.domain or "ai.onnx": opset.version for opset in model.opset_import},
        "inputs": {name: _declared(value) for name, value in interface.inputs.items()},
        "outputs": {name: _declared(value) for name, value in interface.outputs.items()},
        "nodes": len(model.graph.node),
        "ops": dict(counts.most_common()),
        "movement": sum(counts[op] for op in _MOVEMENT),
        "window_attention": ops.uses(model)["WindowAttention"],
        "softmax": counts["Softmax"],
        "parameters": sum(_elements(tensor) for tensor in model.graph.initializer),
    }


def _declared(value: Value) -> dict[str, Any]:
    import onnx

    dtype = onnx.TensorProto.DataType.Name(value.dtype).lower() if value.dtype else None
    return {"dtype": dtype, "shape": None if value.dims is None else list(value.dims)}


def _elements(tensor: onnx.TensorProto) -> int:
    count = 1
    for size in tensor.dims:
        count *= size
    return count


def _as_text(found: dict[str, Any]) -> str:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
    lines = [
        f"producer          {found['producer'] or 'unknown'}",
        f"opset             {opsets} (IR version {found['ir_version']})",
        f"size              {megabytes(found['bytes'])}, {found['parameters']:,} parameters",
    ]
    for kind in ("inputs", "outputs"):
        for name, value in found[kind].items():
            shape = "?" if value["shape"] is None else ", ".join("?" if d is None else str(d) for d in value["shape"])
            lines.append(f"{kind[:-1]:18}{name} {value['dtype'] or 'unknown'}[{shape}]")
    lines += [
        f"window attention  {found['window_attention']} swinopt::WindowAttention, {found['softmax']} Softmax",
        f"data movement     {found['movement']} of {found['nodes']} nodes",
        f"nodes             {found['nodes']}",
    ]
    return "\n".join([*lines, *(f"  {count:6} {op}" for op, count in found["ops"].items())])


def _first_sentence(documented: Any) -> str:
    text = (documented.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split()).split(". ")[0].rstrip(".")


# -------------------------------------------------------------------------------------------------- files and options


def _report_path(path: str) -> Path:
    if Path(path).suffix.lower() not in (".html", ".htm", ".json"):
        raise OptionError(f"--report writes HTML or JSON: {path} must end in .html or .json")
    return require_writable(path)


def _write_report(report: swinopt.Report, path: Path) -> None:
    text = report.to_json() if path.suffix.lower() == ".json" else report.to_html()
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ModelError(f"{path} cannot be written: {error.strerror or error}") from error


def _refuse_same_file(paths: Sequence[Path]) -> None:
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) != len(resolved):
        raise OptionError("the model, the output and the report must be different files")


def _model_options(settings: Sequence[str]) -> dict[str, Any]:
    options = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise OptionError(f"--set {setting}: write it as --set name=value, e.g. --set img_size=256")
        try:
            options[key] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            options[key] = text
    clash = {"check", "dynamic_batch", "exporter", "inputs", "input_names", "model", "opset", "output_names", "path"}
    if taken := clash & options.keys():
        raise OptionError(f"--set is for options of timm.create_model, and {', '.join(sorted(taken))} is none")
    return options


def _sizes(settings: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for setting in settings:
        name, _, number = setting.rpartition("=")
        if not name or not number.isdecimal() or not int(number):
            raise OptionError(f"--size {setting}: write it as --size name=number, e.g. --size height=256")
        sizes[name] = int(number)
    return sizes


# ----------------------------------------------------------------------------------------------------------- terminal


def _print(report: swinopt.Report) -> None:
    if not sys.stdout.isatty():
        # A file or a pipe gets the report in full width, whatever the width of the terminal it was started from.
        print(report)
        return
    from rich.console import Console

    Console().print(report)


# ------------------------------------------------------------------------------------------------------------- parser


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="swinopt",
        description="Rewrites an exported Swin Transformer for fast inference, and checks that it computes the same.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swinopt {swinopt.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_optimize(_command(commands, "optimize", _optimize, "rewrite a model for a target and verify every pass"))
    _add_export(_command(commands, "export", _export, "export a timm model to ONNX and check it against PyTorch"))
    _add_inspect(_command(commands, "inspect", _inspect, "tell what a model is made of"))
    _add_compare(_command(commands, "compare", _compare, "run two models on the same random inputs"))
    _add_passes(_command(commands, "passes", _passes, "list the passes that there are, or those of a target in order"))
    for name, run, what, add in cli_engine.COMMANDS:
        add(_command(commands, name, run, what))
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=what, epilog=_EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.set_defaults(command=run)
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    command.add_argument(
        "--quiet", action="store_true", help="no progress, and no text on success; --json still prints"
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _add_optimize(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="the ONNX file")
    command.add_argument("-o", "--output", required=True, help="where the optimized model goes")
    command.add_argument(
        "--target", default="tensorrt", help="tensorrt (default), tensorrt-8.6, onnxruntime or portable"
    )
    command.add_argument("--passes", help="passes to run instead, e.g. 'fold-constants, fuse-layer-norm'")
    command.add_argument("--no-verify", action="store_true", help="check the structure only, not the numbers")
    command.add_argument("--report", help="also write the report to this .html or .json file")


def _add_export(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", help="a timm model, e.g. swin_tiny_patch4_window7_224")
    command.add_argument("-o", "--output", required=True, help="where the ONNX file goes")
    command.add_argument("--exporter", default="dynamo", choices=list(DEFAULT_OPSET), help="default: dynamo")
    command.add_argument("--dynamic-batch", action="store_true", help="leave the batch size open")
    command.add_argument("--opset", type=int, help="ONNX opset; default: 20 (dynamo) or 17 (torchscript)")
    command.add_argument("--pretrained", action="store_true", help="let timm download trained weights")
    command.add_argument("--seed", type=int, default=0, help="seed of random weights and inputs; default: 0")
    command.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="option for timm.create_model"
    )
    command.add_argument("--no-check", action="store_true", help="do not compare the file with PyTorch")


def _add_inspect(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", help="the ONNX file")


def _add_compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("a", help="the reference")
    command.add_argument("b", help="the model to hold against it")
    command.add_argument("--runs", type=int, default=2, help="number of random inputs; default: 2")
    command.add_argument("--seed", type=int, default=0, help="seed of the first run; default: 0")
    command.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"for outputs of order 1; default: {TOLERANCE}"
    )
    command.add_argument("--size", action="append", default=[], metavar="NAME=N", help="size of a symbolic dimension")
    command.add_argument("--no-locate", action="store_true", help="do not look for the first tensor that diverges")


def _add_passes(command: argparse.ArgumentParser) -> None:
    command.add_argument("--target", help="the passes of this target, in order; by default all that there are")

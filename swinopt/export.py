"""From a PyTorch module to an ONNX file that was checked against it.

An export fails, or goes wrong silently, for a handful of reasons: weights, buffers and inputs on different devices,
a model in training mode, a batch size frozen by the trace, zero-initialised weights that hide what is missing.
:func:`export` takes care of the first three, :func:`randomize` of the last.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from swinopt.errors import MissingDependencyError, ModelError, OptionError, VerificationError, first_line
from swinopt.graph import load_model, save
from swinopt.opset import version_of
from swinopt.session import Session
from swinopt.verify import measure

if TYPE_CHECKING:
    import onnx
    import torch

Exporter: TypeAlias = Literal["dynamo", "torchscript"]

#: The opset that each exporter writes by default: LayerNormalization needs 17, and the dynamo exporter starts at 18.
DEFAULT_OPSET: Mapping[str, int] = {"dynamo": 20, "torchscript": 17}

# The dynamo exporter takes a batch of 1 for a constant.
_TRACED_BATCH, _CHECKED_BATCH = 2, 3
# Relative to outputs of order 1: convolutions of another library round differently, and half precision much more so.
_TOLERANCE, _HALF_TOLERANCE = 1e-4, 2e-2
# Standard deviations of what randomize() fills in.
_AFFINE_STD, _TABLE_STD = 0.1, 0.5
_TALKATIVE_LOGGERS = ("torch.onnx", "torch.export", "torch._dynamo", "onnxscript", "onnx_ir")


def export(
    model: torch.nn.Module | str,
    path: str | os.PathLike[str],
    *,
    exporter: Exporter = "dynamo",
    dynamic_batch: bool = False,
    opset: int | None = None,
    inputs: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    seed: int | None = None,
    check: bool = True,
    tolerance: float | None = None,
    pretrained: bool = False,
    **model_options: Any,
) -> Path:
    """Exports a PyTorch module or a timm model to an ONNX file that computes the same.

    Weights, buffers, tensors held as plain attributes, and inputs are brought to one device (the model's, or the CPU
    if they lie on several) and the model to eval mode; both are put back afterwards. The file appears whole or not at
    all; above 2 GiB its weights go to ``<name>.data`` beside it.

    Args:
        model: a module, or the name of a timm model.
        path: the file to write.
        exporter: ``"dynamo"`` (torch.export) or ``"torchscript"`` (tracing).
        dynamic_batch: leave axis 0 of every input open, as the symbol ``batch``.
        opset: ONNX opset of the file; by default 20 from the dynamo and 17 from the TorchScript exporter.
        inputs: example tensors, or one, positional arguments of the model. By default one random float32 image
            ``[1, channels, height, width]`` of the size that a timm model declares.
        input_names: names for the inputs; by default ``input``, or ``input_0``, ``input_1``, ...
        output_names: names for the outputs; by default ``output``, or ``output_0``, ``output_1``, ...
        seed: seed of the random inputs and, for the name of a timm model that is not pretrained, of its weights, with
            biases, norms and bias tables filled by :func:`randomize`.
        check: run the file in ONNX Runtime on fresh random inputs (and on another batch size, if that is dynamic) and
            compare it with PyTorch. Integer inputs are checked as they were given.
        tolerance: largest absolute difference that ``check`` lets pass, relative to outputs of order 1; by default
            1e-4, and 2e-2 for models in half precision.
        pretrained: let timm download the weights of the model that is named.
        **model_options: further options for timm.create_model, e.g. ``img_size=256``.

    Returns:
        The path that was written.

    Raises:
        OptionError: the exporter or the timm model is not known, an option does not fit, or inputs are needed.
        ModelError: the exporter fails, or the path cannot be written.
        VerificationError: the file does not compute what the module computes.
        MissingDependencyError: torch, timm, onnxscript or (for ``check``) onnxruntime is not installed.
    """
    if exporter not in DEFAULT_OPSET:
        raise OptionError(f"there is no exporter {exporter!r}; there are: {', '.join(DEFAULT_OPSET)}")
    _require_packages(exporter, timm=isinstance(model, str), onnxruntime=check)
    target = require_writable(path)
    if isinstance(model, str):
        model = _timm_model(model, seed=seed, pretrained=pretrained, options=model_options)
    elif model_options or pretrained:
        given = ", ".join([*model_options, *(["pretrained"] if pretrained else [])])
        raise OptionError(f"options of timm models were given together with a module: {given}")
    elif not isinstance(model, _torch().nn.Module):
        raise OptionError(
            f"a {type(model).__name__} cannot be exported: give a torch.nn.Module or a name that timm knows"
        )
    with _on_one_device(model) as device:
        examples = _examples(model, inputs, device, seed or 0)
        traced = _resized(examples, _TRACED_BATCH) if dynamic_batch else examples
        expected = _answers(model, traced)
        names = _named("input", input_names, len(traced)), _named("output", output_names, len(expected))
        proto = _exported(model, traced, names, exporter, dynamic_batch, opset or DEFAULT_OPSET[exporter])
        if check:
            batches = (_TRACED_BATCH, _CHECKED_BATCH) if dynamic_batch else (None,)
            trials = [_resized(_fresh(examples, 1 + (seed or 0) + n), size) for n, size in enumerate(batches)]
            _check(model, proto, trials, names, tolerance)
    return save(proto, target)


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fills biases, norm weights and relative-position-bias tables with seeded random values, in place.

    A model fresh from its constructor has zeros and ones there, so that a rewrite which drops one of them would go
    unnoticed. ``logit_scale`` is left alone: it goes through an exponential. The values depend on the seed and the
    order of the parameters only, not on device or dtype.

    Args:
        model: any module; its parameters may be of any float dtype and on any device.
        seed: seed of the values.

    Returns:
        The same module.

    Raises:
        MissingDependencyError: torch is not installed.
    """
    torch = _torch()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            table = "table" in name
            if "logit_scale" in name or not (table or name.endswith("bias") or parameter.ndim == 1):
                continue
            mean = 1.0 if parameter.ndim == 1 and name.endswith(("weight", "gamma")) else 0.0
            std = _TABLE_STD if table else _AFFINE_STD
            parameter.copy_(mean + std * torch.randn(parameter.shape, generator=generator))
    return model


def require_writable(path: str | os.PathLike[str]) -> Path:
    """The path, if a file can be written there: told before minutes of work are lost on it.

    Raises:
        ModelError: the path is a folder, its folder is missing, or the permission is.
    """
    target = Path(path)
    folder = target.parent
    try:
        is_folder = target.is_dir()
    except OSError as error:
        raise ModelError(f"{target} cannot be written: {error.strerror}") from error
    if is_folder:
        raise ModelError(f"{target} cannot be written: it is a folder")
    if not folder.is_dir():
        raise ModelError(f"{target} cannot be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
        raise ModelError(f"{target} cannot be written: permission denied")
    return target


# ------------------------------------------------------------------------------------------------------------- model


def _timm_model(name: str, *, seed: int | None, pretrained: bool, options: Mapping[str, Any]) -> torch.nn.Module:
    torch, timm = _torch(), _timm()
    on_hub = ":" in name
    if not on_hub and not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "timm.list_models() lists them"
        raise OptionError(f"timm has no model {name!r}; {hint}")
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            model = timm.create_model(name, pretrained=pretrained, **options)
        except Exception as error:
            raise OptionError(f"timm cannot create {name!r} with these options: {first_line(error)}") from error
    return model if seed is None or pretrained else randomize(model, seed)


@contextmanager
def _on_one_device(model: torch.nn.Module) -> Iterator[torch.device]:
    """The model in eval mode with every tensor on one device; everything is put back as it was.

    The original tensors are set aside and put back, not moved to and fro: an optimizer that holds them goes on
    holding the right ones.
    """
    torch = _torch()
    slots = list(_tensor_slots(model))
    devices = {store[name].device for store, name in slots}
    if any(device.type == "meta" for device in devices):
        raise OptionError("the model has tensors on the meta device, which hold no values: load its weights first")
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    training = {module: module.training for module in model.modules()}
    originals = [(store, name, store[name]) for store, name in slots if store[name].device != device]
    copies: dict[int, Any] = {}
    try:
        for store, name, tensor in originals:
            store[name] = copies.setdefault(id(tensor), _moved(tensor, device))
        model.eval()
        yield device
    finally:
        for store, name, tensor in originals:
            store[name] = tensor
        for module, mode in training.items():
            module.training = mode


def _tensor_slots(model: torch.nn.Module) -> Iterator[tuple[dict[str, Any], str]]:
    torch = _torch()
    for module in model.modules():
        # Plain attributes are what Module.to() forgets: the usual cause of "all tensors on the same device".
        for store in (module._parameters, module._buffers, module.__dict__):
            for name, value in store.items():
                if isinstance(value, torch.Tensor):
                    yield store, name


def _moved(tensor: Any, device: torch.device) -> Any:
    torch = _torch()
    moved = tensor.detach().to(device)
    return torch.nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else moved


# ------------------------------------------------------------------------------------------------------------ inputs


def _examples(model: torch.nn.Module, inputs: Any, device: torch.device, seed: int) -> tuple[Any, ...]:
    torch = _torch()
    if inputs is None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        image = torch.zeros(1, *_image_size(model), dtype=dtype, device=device)
        return _fresh((image,), seed)
    if isinstance(inputs, (str, Mapping)):
        raise OptionError("inputs are positional: give a tensor, or a sequence of tensors")
    given = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    try:
        tensors = tuple(torch.as_tensor(array) for array in given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"inputs must be tensors or arrays: {first_line(error)}") from error
    return tuple(tensor.detach().to(device) for tensor in tensors)


def _image_size(model: torch.nn.Module) -> tuple[int, ...]:
    config = getattr(model, "pretrained_cfg", None)
    declared = config.get("input_size") if isinstance(config, Mapping) else None
    if not declared:
        raise OptionError(
            "the model does not declare the size of its input: give inputs=, e.g. torch.randn(1, 3, 224, 224)"
        )
    embedding = getattr(model, "patch_embed", None)
    sides = getattr(embedding, "img_size", None) or declared[1:]
    channels = getattr(getattr(embedding, "proj", None), "in_channels", declared[0])
    return (channels, *sides)


def _fresh(examples: tuple[Any, ...], seed: int) -> tuple[Any, ...]:
    torch = _torch()
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(tensor.shape, generator=generator).to(tensor) if tensor.is_floating_point() else tensor
        for tensor in examples
    )


def _resized(examples: tuple[Any, ...], batch: int | None) -> tuple[Any, ...]:
    """The examples with another batch size; further rows are the first ones again, rolled and thus different."""
    torch = _torch()
    if batch is None:
        return examples
    if any(tensor.ndim == 0 for tensor in examples):
        raise OptionError("a dynamic batch needs inputs that have an axis 0, and one of them is a scalar")
    return tuple(
        torch.stack([tensor[n % len(tensor)].roll(n, -1) if tensor.ndim > 1 else tensor[0] for n in range(batch)])
        for tensor in examples
    )


def _named(kind: str, names: Sequence[str] | None, count: int) -> list[str]:
    if names is None:
        return [kind] if count == 1 else [f"{kind}_{index}" for index in range(count)]
    if isinstance(names, str) or len(names) != count or len(set(names)) != count:
        raise OptionError(f"the model has {count} {kind}s, and the {kind} names given are {names!r}")
    return list(names)


# ------------------------------------------------------------------------------------------------------------ export


def _exported(
    model: torch.nn.Module,
    examples: tuple[Any, ...],
    names: tuple[list[str], list[str]],
    exporter: str,
    dynamic_batch: bool,
    opset: int,
) -> onnx.ModelProto:
    torch = _torch()
    options: dict[str, Any] = {"input_names": names[0], "output_names": names[1], "opset_version": opset}
    with _silence(), torch.no_grad(), tempfile.TemporaryDirectory(prefix="swinopt-") as folder:
        draft = Path(folder) / "model.onnx"
        try:
            if exporter == "torchscript":
                if dynamic_batch:
                    options["dynamic_axes"] = {name: {0: "batch"} for name in (*names[0], *names[1])}
                torch.onnx.export(model, examples, str(draft), dynamo=False, **options)
            else:
                if dynamic_batch:
                    options["dynamic_shapes"] = _dynamic_shapes(model, examples)
                program = torch.onnx.export(model, examples, dynamo=True, verbose=False, **options)
                program.save(str(draft), external_data=True)
        except Exception as error:
            other = "torchscript" if exporter == "dynamo" else "dynamo"
            raise ModelError(
                f"the {exporter} exporter cannot export {type(model).__name__}: {first_line(error)}; "
                f"exporter={other!r} may"
            ) from error
        exported = load_model(draft)
    if version_of(exported) != opset:
        raise OptionError(
            f"the {exporter} exporter wrote opset {version_of(exported)} instead of {opset}; ask for that"
        )
    return exported


def _dynamic_shapes(model: torch.nn.Module, examples: tuple[Any, ...]) -> tuple[Any, ...]:
    batch = _torch().export.Dim("batch")
    shapes: list[Any] = [{0: batch} for _ in examples]
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    # torch.export wants the inputs that *args swallows as one nested tuple.
    if kinds and kinds[0] is inspect.Parameter.VAR_POSITIONAL:
        return (tuple(shapes),)
    return tuple(shapes)


@contextmanager
def _silence() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _TALKATIVE_LOGGERS]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


# ------------------------------------------------------------------------------------------------------------- check


def _check(
    model: torch.nn.Module,
    proto: onnx.ModelProto,
    trials: Sequence[tuple[Any, ...]],
    names: tuple[list[str], list[str]],
    tolerance: float | None,
) -> None:
    half = any(parameter.itemsize < 4 for parameter in model.parameters() if parameter.is_floating_point())
    allowed = tolerance if tolerance is not None else _HALF_TOLERANCE if half else _TOLERANCE
    session = Session(proto, "the exported model")
    kept = [name for name in names[0] if name in session.inputs]
    expected, actual = [], []
    for trial in trials:
        feeds = {name: _array(tensor) for name, tensor in zip(names[0], trial, strict=True) if name in kept}
        expected.append(dict(zip(names[1], map(_array, _answers(model, trial)), strict=True)))
        actual.append(session.run(feeds))
    comparison = measure(expected, actual, tolerance=allowed)
    if not comparison.passed:
        raise VerificationError(f"the exported model does not compute what the PyTorch model computes\n{comparison}")


def _answers(model: torch.nn.Module, examples: tuple[Any, ...]) -> list[Any]:
    torch = _torch()
    try:
        with torch.no_grad():
            leaves = torch.utils._pytree.tree_leaves(model(*examples))
    except Exception as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in examples)
        raise ModelError(
            f"{type(model).__name__} does not run on inputs of shape {shapes}: {first_line(error)}"
        ) from error
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def _array(tensor: Any) -> Any:
    torch = _torch()
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy())


# ---------------------------------------------------------------------------------------------------------- packages


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise _missing("torch") from error
    return torch


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise _missing("timm") from error
    return timm


def _require_packages(exporter: str, *, timm: bool, onnxruntime: bool) -> None:
    _torch()
    if timm:
        _timm()
    if exporter == "dynamo" and find_spec("onnxscript") is None:
        raise _missing("onnxscript")
    if onnxruntime and find_spec("onnxruntime") is None:
        raise MissingDependencyError(
            'checking the exported file needs onnxruntime: pip install "swinopt[cpu]", or pass check=False'
        )


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f'exporting needs {package}: pip install "swinopt[export]"')

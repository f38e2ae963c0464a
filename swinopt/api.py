"""The front door: ``swinopt.optimize``."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from swinopt import graph as graphs
from swinopt import handover, ops, opset, targets
from swinopt.errors import ModelError, VerificationError
from swinopt.graph import ModelLike, op_counts
from swinopt.pipeline import Pass, Pipeline, Progress, execute, rounding
from swinopt.report import Report
from swinopt.structure import fault, foreign_ops, interface
from swinopt.verify import TOLERANCE, Reference

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True)
class Optimized:
    """What :func:`optimize` returns.

    Attributes:
        model: the optimized model.
        report: what each pass did, and why it refused.
    """

    model: onnx.ModelProto
    report: Report

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the model, whole or not at all; above 2 GiB the weights go to ``<name>.data`` beside it.

        Raises:
            ModelError: the path cannot be written.
        """
        return graphs.save(self.model, path)

    def __repr__(self) -> str:
        return f"<Optimized for {self.report.target}: {self.report.nodes_before} -> {self.report.nodes_after} nodes>"

    def __str__(self) -> str:
        return str(self.report)

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def pipeline(target: str = "tensorrt") -> Pipeline:
    """The pipeline for a target, to be read, cut, extended and run.

    Raises:
        OptionError: the target is not known.
    """
    return targets.find(target).build()


def optimize(
    model: ModelLike,
    *,
    target: str = "tensorrt",
    passes: Pass | Sequence[Pass] | str | None = None,
    verify: bool = True,
    progress: bool | Progress = False,
) -> Optimized:
    """Turns an exported Swin Transformer into a small, fused and verified graph for a runtime.

    Models that are no Swin go through as well: what fits is applied, the rest is left alone.

    Args:
        model: a path, bytes, ``onnx.ModelProto``, ``gs.Graph``, ``onnx_ir.Model`` or ``torch.onnx.ONNXProgram``; it is
            never changed.
        target: ``"tensorrt"`` (10 and newer), ``"tensorrt-8.6"``, ``"onnxruntime"`` or ``"portable"``.
        passes: what to run instead of the target's pipeline: a pass, several, a pipeline, or its text.
        verify: check the outputs on random inputs against the untouched model after every pass that changed something
            (needs onnxruntime). The structure is checked in any case. A pass that fails is rolled back and reported.
        progress: True to print each pass as it starts, or a function of its name, number and the number of passes.

    Returns:
        The optimized model with its report.

    Raises:
        ModelError: the model cannot be read or is not valid, its weights hold NaN, its opset cannot be converted, or
            ONNX Runtime cannot run it, so that nothing could be verified.
        OptionError: the target, a pass or an option is not known.
        VerificationError: bringing the result to the target's opset changed its numbers.
        MissingDependencyError: ``verify`` is asked for and onnxruntime is not installed.
    """
    start = time.perf_counter()
    goal = targets.find(target)
    steps = _as_pipeline(passes) if passes is not None else goal.build()
    source = graphs.load_model(model)
    _refuse_nan(source)
    reference = _reference(source) if verify else None
    graph = _loaded(source, goal, reference)
    broken = fault(graph, interface(graph), foreign_ops(graph))
    if broken:
        raise ModelError(f"the model is not valid: {broken}")
    reports = execute(steps, graph, reference=reference, progress=_progress(progress))
    optimized = _lowered(graph, goal)
    allowed = max([TOLERANCE, *(step.tolerance for step in steps)]) * rounding(graph)
    final = _judged(optimized, reference, allowed) if reference else None
    report = Report(
        target=goal.name,
        passes=tuple(reports),
        ops_before=op_counts(source),
        ops_after=op_counts(optimized),
        seconds=time.perf_counter() - start,
        model=_name_of(model, source),
        versions=_versions(),
        verified=reference is not None,
        max_abs_diff=final,
    )
    return Optimized(optimized, report)


def _reference(model: onnx.ModelProto) -> Reference:
    try:
        return Reference(model)
    except VerificationError as error:
        raise ModelError(
            f"{error}. There is nothing to verify against; verify=False (--no-verify) checks the structure alone"
        ) from error


def _loaded(source: onnx.ModelProto, goal: targets.Target, reference: Reference | None) -> gs.Graph:
    """The model in the target's opset; in its own if the conversion changes its numbers."""
    graph = graphs.load(source, opset=goal.opset)
    if reference is not None and graph.opset != opset.version_of(source):
        failure = reference.judge(graphs.to_model(graph)).failure
        if failure:
            return graphs.load(source, opset=graphs.OLDEST_OPSET)
    return graph


def _judged(model: onnx.ModelProto, reference: Reference, tolerance: float) -> float | None:
    """The largest difference of the finished model to the original.

    Raises:
        VerificationError: it is no longer the same, although every pass was checked.
    """
    outcome = reference.judge(model, tolerance=tolerance)
    if outcome.failure:
        raise VerificationError(f"the finished model is not the original any more: {outcome.failure}")
    return outcome.max_abs


def _as_pipeline(passes: Pass | Sequence[Pass] | str) -> Pipeline:
    if isinstance(passes, str):
        return Pipeline.parse(passes)
    return Pipeline(*passes) if isinstance(passes, Iterable) and not isinstance(passes, Pass) else Pipeline(passes)


def _refuse_nan(model: onnx.ModelProto) -> None:
    nodes = [a.t for n in model.graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"]
    for weight in (*model.graph.initializer, *nodes):
        if weight.data_type not in _FLOATS or weight.name == ops.STAND_IN:
            continue  # the stand-in is for function bodies, and nothing reads it
        try:
            values = onnx.numpy_helper.to_array(weight)
        except ValueError as error:
            raise ModelError(f"the weight {weight.name!r} is damaged: {error}") from error
        # The sum of an array is NaN if any element is, and needs no array of flags as large as the weights.
        with np.errstate(invalid="ignore"):
            total = np.sum(values, dtype=np.float64)
        if np.isnan(total) and np.isnan(values).any():
            raise ModelError(f"the weight {weight.name!r} holds NaN; the model cannot compute anything with it")


def _lowered(graph: gs.Graph, goal: targets.Target) -> onnx.ModelProto:
    model = graphs.to_model(graph, bodies=goal.bodies)
    if goal.plugins:
        ops.name_plugins(model)
    elif ops.uses(model):
        # What no pass could lower, on maps of open size, is lowered by its definition.
        model = ops.inline_bodies(model)
    if goal.newest_opset and graph.opset > goal.newest_opset:
        model = opset.convert(model, goal.newest_opset)
    if not goal.bodies:
        handover.pack(model)
    return model


def _progress(progress: bool | Progress) -> Progress | None:
    if callable(progress):
        return progress
    return (lambda name, number, count: print(f"[{number + 1}/{count}] {name}", flush=True)) if progress else None


def _name_of(model: ModelLike, source: onnx.ModelProto) -> str:
    return os.fspath(model) if isinstance(model, (str, os.PathLike)) else source.graph.name


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("swinopt", "onnx", "onnx-graphsurgeon", "numpy", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found

"""Passes as values: a pass is a name and its options, a pipeline is a tuple of passes and a pass itself.

pipeline = swinopt.pipeline("tensorrt").without("fuse-gelu").before("fuse-window-attention", MyPass())
model = pipeline(model)
"""

from __future__ import annotations

import ast
import dataclasses
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from swinopt import graph as graphs
from swinopt import registry
from swinopt.errors import OptionError, PassError, SwinoptError
from swinopt.facts import Facts
from swinopt.graph import ModelLike, dtype_of, epsilon_of, op_counts
from swinopt.report import PassReport, Status
from swinopt.rewrite import Rewriter
from swinopt.snapshot import Snapshot
from swinopt.structure import fault, foreign_ops, interface
from swinopt.verify import TOLERANCE, Reference

#: Called before each pass with its name, its number from 0, and how many there are.
Progress = Callable[[str, int, int], None]


class Pass(ABC):
    """One idea, applied wherever it fits. Subclass it as a frozen dataclass; its fields are the options.

    Attributes:
        name: the pass's name, a verb phrase in kebab-case.
        tolerance: how much the pass may change the model's outputs, as a fraction of the largest output (or of 1,
            if all outputs are smaller). Rounding differs already where a MatMul is given another shape; a model that
            magnifies rounding is allowed more, see :attr:`swinopt.verify.Reference.noise`.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float] = 1e-5

    @abstractmethod
    def run(self, rewriter: Rewriter) -> None:
        """Applies the pass to ``rewriter.graph``; what is to be changed is changed through the rewriter."""

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes that this one consists of; itself, if it is no pipeline."""
        return (self,)

    def __call__(self, model: ModelLike) -> onnx.ModelProto:
        """The model after this pass; what was given stays untouched.

        Raises:
            ModelError: the model cannot be read.
            PassError: the pass failed, or left the graph broken.
        """
        graph = graphs.load(model, opset=graphs.OLDEST_OPSET)
        for step in self.steps:
            rewriter = Rewriter(graph)
            before, foreign = interface(graph), foreign_ops(graph)
            try:
                step.run(rewriter)
                rewriter.finish()
            except SwinoptError:
                raise
            except Exception as error:
                raise PassError(f"{step.name} failed: {type(error).__name__}: {error}") from error
            broken = fault(graph, before, foreign)
            if broken:
                raise PassError(f"{step.name} left the graph broken: {broken}")
        return graphs.to_model(graph)

    def __str__(self) -> str:
        changed: list[str] = []
        if dataclasses.is_dataclass(self):
            for field in dataclasses.fields(self):
                value = getattr(self, field.name)
                if value != field.default:
                    changed.append(f"{field.name}={value!r}")
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@dataclasses.dataclass(frozen=True, repr=False)
class Pipeline(Pass):
    """Passes in order. It is a pass itself, a sequence, and prints as the text that :meth:`parse` reads."""

    passes: tuple[Pass, ...] = ()
    name: ClassVar[str] = "pipeline"

    def __init__(self, *passes: Pass) -> None:
        for item in passes:
            if not isinstance(item, Pass):
                raise OptionError(f"a pipeline consists of passes, and {item!r} is none: did you mean {item}() ?")
            if not isinstance(getattr(item, "name", None), str):
                raise OptionError(f"the pass {type(item).__name__} has no name")
        object.__setattr__(self, "passes", tuple(step for item in passes for step in item.steps))

    @property
    def steps(self) -> tuple[Pass, ...]:
        """The passes."""
        return self.passes

    def run(self, rewriter: Rewriter) -> None:
        """Applies the passes one after the other."""
        for step in self.passes:
            step.run(rewriter)
            rewriter.finish()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """A pipeline from text: names of passes, separated by commas, each with options in brackets.

        Example: ``fold-constants(budget=0), fuse-layer-norm, simplify-movement``.

        Raises:
            OptionError: a pass or an option is not known, or the text is no such list.
        """
        return cls(*(_parse_step(part) for part in _split_outside_brackets(text)))

    def without(self, *names: str) -> Pipeline:
        """The pipeline less the passes of these names.

        Raises:
            OptionError: the pipeline has no pass of that name.
        """
        for name in names:
            self._position(name)
        return Pipeline(*(step for step in self.passes if step.name not in names))

    def before(self, name: str, *passes: Pass) -> Pipeline:
        """The pipeline with further passes before the first one called ``name``."""
        at = self._position(name)
        return Pipeline(*self.passes[:at], *passes, *self.passes[at:])

    def after(self, name: str, *passes: Pass) -> Pipeline:
        """The pipeline with further passes after the first one called ``name``."""
        at = self._position(name) + 1
        return Pipeline(*self.passes[:at], *passes, *self.passes[at:])

    def then(self, *passes: Pass) -> Pipeline:
        """The pipeline with further passes at its end."""
        return Pipeline(*self.passes, *passes)

    def replace(self, name: str, *passes: Pass) -> Pipeline:
        """The pipeline with the first pass called ``name`` replaced, by one with other options, say."""
        at = self._position(name)
        return Pipeline(*self.passes[:at], *passes, *self.passes[at + 1 :])

    def _position(self, name: str) -> int:
        for index, step in enumerate(self.passes):
            if step.name == name:
                return index
        raise OptionError(f"the pipeline has no pass {name!r}; it has: {', '.join(s.name for s in self.passes)}")

    def __iter__(self) -> Iterator[Pass]:
        return iter(self.passes)

    def __len__(self) -> int:
        return len(self.passes)

    def __contains__(self, name: object) -> bool:
        return any(step.name == name or step is name for step in self.passes)

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            return self.passes[self._position(key)]
        found = self.passes[key]
        return Pipeline(*found) if isinstance(found, tuple) else found

    def __str__(self) -> str:
        return ", ".join(map(str, self.passes))

    def __repr__(self) -> str:
        return f"Pipeline.parse({str(self)!r})"


def execute(
    pipeline: Pass, graph: gs.Graph, *, reference: Reference | None = None, progress: Progress | None = None
) -> list[PassReport]:
    """Runs the passes on a graph, in place, and checks after each; one that breaks something is undone and reported.

    Args:
        pipeline: what to run.
        graph: the graph.
        reference: the untouched model, if numbers are to be checked.
        progress: called before each pass.

    Returns:
        What each pass did.
    """
    reports = []
    facts = Facts(graph)
    complaint = partial(fault, expected=interface(graph), foreign=foreign_ops(graph))
    allowed = 0.0
    for number, step in enumerate(pipeline.steps):
        if progress:
            progress(step.name, number, len(pipeline.steps))
        # The difference is to the untouched model, so what earlier passes were allowed counts for this one as well.
        allowance = max(allowed, step.tolerance)
        facts, report = _execute_step(step, graph, facts, complaint, reference, allowance)
        allowed = allowance if report.status == "applied" else allowed
        reports.append(report)
    facts.annotate()
    return reports


def _execute_step(
    step: Pass,
    graph: gs.Graph,
    facts: Facts,
    complaint: Callable[[gs.Graph], str | None],
    reference: Reference | None,
    tolerance: float,
) -> tuple[Facts, PassReport]:
    snapshot, nodes_before = Snapshot(graph), len(graph.nodes)
    rewriter = Rewriter(graph, facts)
    start = time.perf_counter()
    verify_seconds, difference, note, diverging, remark = 0.0, None, None, None, None
    try:
        step.run(rewriter)
        rewriter.finish()
        note = complaint(graph)
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - start
    if note is None and reference is not None and rewriter.applied:
        start = time.perf_counter()
        model = graphs.to_model(graph)
        coarseness = rounding(graph)
        # With more than the ceiling the finished model would not pass.
        outcome = reference.judge(model, tolerance=tolerance * coarseness, ceiling=TOLERANCE * coarseness)
        difference, note, diverging = outcome.max_abs, outcome.failure, outcome.first_divergence
        remark = outcome.remark
        verify_seconds = time.perf_counter() - start
    status: Status = "rolled back" if note else "applied" if rewriter.applied else "unchanged"
    if note:
        snapshot.restore()
        facts = Facts(graph)
    report = PassReport(
        name=step.name,
        status=status,
        applied=0 if note else rewriter.applied,
        nodes_before=nodes_before,
        nodes_after=len(graph.nodes),
        seconds=seconds,
        verify_seconds=verify_seconds,
        max_abs_diff=difference,
        refusals=tuple(rewriter.refusals),
        note=note,
        first_divergence=diverging,
        remark=remark,
        ops_after=op_counts(graph),
    )
    return facts, report


def rounding(graph: gs.Graph) -> float:
    """How much coarser than fp32 the model's weights are: what a pass may change grows by as much."""
    dtypes = {dtype_of(t) for node in graph.nodes for t in node.inputs if isinstance(t, gs.Constant)}
    coarsest = max((epsilon_of(d) for d in dtypes if d.name in ("float16", "bfloat16")), default=0.0)
    # A sixteenth, since the errors of many roundings cancel.
    return max(1.0, coarsest / epsilon_of(np.float32) / 16)


# ------------------------------------------------------------------------------------------------------------ text

_STEP = re.compile(r"^\s*(?P<name>[\w-]+)\s*(?:\((?P<options>.*)\))?\s*$", re.DOTALL)


# A quoted string is one piece, whatever is in it.
_PIECE = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|.""", re.DOTALL)


def _split_outside_brackets(text: str) -> list[str]:
    parts, depth = [""], 0
    for character in _PIECE.findall(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in parts if part.strip()]


def _check_types(kind: type[Pass], options: dict[str, Any]) -> None:
    known: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
    for field in known:
        default: Any = field.default
        value = options.get(field.name)
        same = isinstance(value, type(default)) or (isinstance(default, float) and isinstance(value, int))
        if field.name in options and default not in (dataclasses.MISSING, None) and not same:
            raise TypeError(f"{field.name} is {value!r}, and not a {type(default).__name__}")


def _parse_step(text: str) -> Pass:
    match = _STEP.match(text)
    if not match:
        raise OptionError(f"{text.strip()!r} is no pass: write name or name(option=value)")
    kind = registry.find(match["name"])
    try:
        call = ast.parse(f"f({match['options'] or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("options are written as name=value")
        options = {(k.arg or "").replace("-", "_"): ast.literal_eval(k.value) for k in call.keywords}
        _check_types(kind, options)
        return kind(**options)
    except (SyntaxError, ValueError, TypeError) as error:
        known: list[str] = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        raise OptionError(f"{text.strip()}: {error}; options of {kind.name}: {', '.join(known) or 'none'}") from error

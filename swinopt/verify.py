"""Numbers: do two models compute the same, and if not, where do they part?

:func:`compare` answers once, for any two models. :class:`Reference` is for a pipeline: it runs the untouched model
once and then checks as many candidates as there are passes. What runs the models is :mod:`swinopt.session`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import onnx

from swinopt import ops
from swinopt.errors import ModelError, OptionError, VerificationError
from swinopt.evaluate import RANDOM
from swinopt.graph import Array, load_model
from swinopt.session import (
    Feeds,
    Session,
    given_inputs,
    interface_of,
    neighbours,
    onnxruntime,
    random_inputs,
    require_same_interface,
    sizes_fixed_by,
)

#: What two fp32 models may differ by, relative to outputs of order 1, unless the caller says otherwise.
TOLERANCE = 1e-4

# An element smaller than this share of its output's largest one is measured against that share in max_rel.
_RELATIVE_FLOOR = 1e-3
# How many roundings may lie between two models that compute the same: the reference's own and the candidate's.
# Of what correct passes change in published Swins a factor of 2 covers 99 %; with 3, mistakes in a bias begin to pass.
# Noise is one number an output, the largest: by element or token, one perturbed run misjudges it by factors of 8 and
# more. By channel or image, a factor that no correct pass exceeds would find a fourth of the mistakes that are missed.
_ROUNDINGS = 2
# Tensors fetched in one run while locating a divergence: bounds the memory that both models' intermediates take.
_LOCATE_CHUNK = 64


# ----------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class OutputComparison:
    """How one output of model b differs from the output of the same name of model a, over all runs.

    Differences are taken where both are finite; ``shape`` is that of the first run. ``new_nonfinite`` counts the
    elements that are NaN or Inf in b and not the same in a.
    """

    shape: tuple[int, ...]
    dtype_a: str
    dtype_b: str
    max_abs: float
    max_rel: float
    cosine: float
    scale: float
    nan_a: int
    inf_a: int
    nan_b: int
    inf_b: int
    new_nonfinite: int
    compared: int

    def within(self, tolerance: float) -> bool:
        """Whether nothing became NaN or Inf and ``max_abs <= tolerance * max(1, scale)``, scale being max |a|."""
        if self.new_nonfinite or (not self.compared and (self.nan_a or self.inf_a)):
            return False
        return self.max_abs <= tolerance * max(1.0, self.scale)


@dataclass(frozen=True)
class Comparison:
    """How model b differs from model a: per output, and the worst of all outputs.

    Attributes:
        outputs: the figures of each output, by name.
        max_abs: largest absolute difference.
        max_rel: largest ``|a - b| / |a|``; elements below a thousandth of their output's largest count as that.
        cosine: smallest cosine similarity of an output.
        nan: number of NaN in b's outputs.
        inf: number of Inf in b's outputs.
        scale: largest ``|a|``.
        runs: number of different random inputs.
        seeds: the seed of each run; empty where the caller gave the inputs.
        tolerance: what ``passed`` was judged by.
        first_divergence: first tensor, in the order in which b computes, that differs from the tensor of the same
            name in a; None where none was looked for or found.
        first_divergence_diff: that tensor's largest absolute difference.
    """

    outputs: Mapping[str, OutputComparison]
    max_abs: float
    max_rel: float
    cosine: float
    nan: int
    inf: int
    scale: float
    runs: int
    seeds: tuple[int, ...]
    tolerance: float
    first_divergence: str | None = None
    first_divergence_diff: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every output is within the tolerance and none has a new NaN or Inf."""
        return all(output.within(self.tolerance) for output in self.outputs.values())

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain values that strict JSON knows; an infinite difference is the string ``"inf"``."""
        outputs = {name: {**asdict(output), "shape": list(output.shape)} for name, output in self.outputs.items()}
        where = self.first_divergence_diff
        plain = {"outputs": outputs, "seeds": list(self.seeds), "passed": self.passed}
        return {**vars(self), **plain, "first_divergence_diff": str(where) if where == float("inf") else where}

    def __str__(self) -> str:
        verdict = "same" if self.passed else "DIFFERENT"
        lines = [
            f"{verdict}: max abs {self.max_abs:.3g}, max rel {self.max_rel:.3g}, cosine {self.cosine:.9g}, "
            f"NaN {self.nan}, Inf {self.inf} "
            f"({_count(self.runs, 'run')}, outputs up to {self.scale:.3g}, tolerance {self.tolerance:.3g})"
        ]
        lines += [_describe_output(name, output, self.tolerance) for name, output in self.outputs.items()]
        if self.first_divergence is not None:
            lines.append(f"  first tensor that diverges: {self.first_divergence} (by {self.first_divergence_diff:.3g})")
        return "\n".join(lines)


def _what_differs(name: str, output: OutputComparison, tolerance: float, noise: float) -> str:
    if output.new_nonfinite:
        return f"{_count(output.new_nonfinite, 'element')} of output {name!r} became NaN or Inf"
    allowed = tolerance * max(1.0, output.scale)
    reason = f"; one rounding of the inputs moves it by {noise:.3g}" if noise else ""
    return f"output {name!r} differs by {output.max_abs:.3g}, and {allowed:.3g} is allowed{reason}"


def _describe_output(name: str, output: OutputComparison, tolerance: float) -> str:
    dtype = output.dtype_a if output.dtype_a == output.dtype_b else f"{output.dtype_a} -> {output.dtype_b}"
    line = f"  {name} {dtype}{list(output.shape)}: max abs {output.max_abs:.3g}, max rel {output.max_rel:.3g}"
    if output.new_nonfinite:
        line += f", {output.new_nonfinite} elements became NaN or Inf"
    elif not output.within(tolerance) and not output.compared:
        line += ", nothing finite to compare"
    return line


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@dataclass(frozen=True)
class Judgement:
    """What :meth:`Reference.judge` says of a candidate.

    Attributes:
        max_abs: largest absolute difference of any output; None if the candidate does not run.
        failure: why the candidate does not compute the same, in one line; None if it does.
        first_divergence: first tensor that differs from the reference's, if the candidate runs and fails.
        remark: which differences are above the tolerance and pass for rounding, in one line; None if there are none.
    """

    max_abs: float | None
    failure: str | None = None
    first_divergence: str | None = None
    remark: str | None = None


# ------------------------------------------------------------------------------------------------------ entry points


def compare(
    a: Any,
    b: Any,
    inputs: Feeds | Sequence[Feeds] | None = None,
    *,
    runs: int = 2,
    seed: int = 0,
    tolerance: float = TOLERANCE,
    locate: bool = True,
    sizes: Mapping[str, int] | None = None,
) -> Comparison:
    """Runs two models on the same inputs and measures how far apart their outputs are.

    Args:
        a: the reference; a path, bytes, ``onnx.ModelProto``, ``gs.Graph``, ``onnx_ir.Model`` or
            ``torch.onnx.ONNXProgram``.
        b: the candidate, likewise. Its inputs and outputs must have the names and static shapes of a's; only float
            types may differ (an fp16 model compares with the fp32 model it was made from).
        inputs: one mapping from input name to array, or one such mapping a run. By default fresh random inputs:
            standard normal floats, integers below 100 and within the tables they index, ones for ``*mask*``.
        runs: number of random inputs; where they are dynamic, the batch alternates between 1 and 4, the size of images
            between 224 x 224 and 207 x 242, and the number of tokens, of a video's frames, and of all else between 16
            and 19 or 23. The second sizes suit no windows, and are left out if a does not take them (``sizes`` sets
            others).
        seed: seed of the first run; run i takes ``seed + i``.
        tolerance: ``passed`` holds iff ``max_abs <= tolerance * max(1, max|a|)`` for each output and b has no NaN or
            Inf that a has not.
        locate: if the models differ, run both again with their intermediates exposed, and name the first that differs.
        sizes: sizes of symbolic dimensions by name, e.g. ``{"height": 256}``.

    Raises:
        ModelError: a model cannot be read.
        OptionError: ``runs`` is below 1 or ``seed`` below 0.
        VerificationError: inputs or outputs do not agree, or a model cannot be run on the inputs.
        MissingDependencyError: onnxruntime is not installed.
    """
    first, second = load_model(a), load_model(b)
    require_same_interface(interface_of(first), interface_of(second))
    known = {**sizes_fixed_by(interface_of(second), interface_of(first)), **(sizes or {})}
    reference = Reference(first, inputs, runs=runs, seed=seed, sizes=known)
    return reference.check(second, tolerance=tolerance, locate=locate)


class Reference:
    """The untouched model with its random inputs and what it answers, run once and then held against candidates.

    Args:
        model: anything that :func:`compare` takes; kept, not copied, and never changed.
        inputs: as for :func:`compare`.
        runs: number of random inputs, at least 1.
        seed: seed of the first run.
        sizes: sizes of symbolic dimensions by name.

    Raises:
        ModelError: the model cannot be read.
        OptionError: there is not a single run, or the seed is negative.
        VerificationError: the model cannot be run, or answers with nothing but NaN and Inf, or with something else
            each time, so that no candidate could be told from it.
        MissingDependencyError: onnxruntime is not installed.
    """

    def __init__(
        self,
        model: Any,
        inputs: Feeds | Sequence[Feeds] | None = None,
        *,
        runs: int = 2,
        seed: int = 0,
        sizes: Mapping[str, int] | None = None,
    ) -> None:
        onnxruntime()
        if seed < 0:
            raise OptionError(f"seeds are numbers from 0, and {seed} was given")
        self.model = load_model(model)
        self.seeds: tuple[int, ...] = () if inputs is not None else tuple(range(seed, seed + runs))
        self._interface = interface_of(self.model)
        self.inputs: list[dict[str, Array]] = (
            random_inputs(self.model, self.seeds, sizes or {}, odd=True)
            if inputs is None
            else given_inputs(self.model, inputs)
        )
        if not self.inputs:
            raise OptionError("there is nothing to compare without inputs: at least one run is needed")
        session = Session(self.model, "the reference model")
        try:
            self.outputs: list[dict[str, Array]] = [session.run(feeds) for feeds in self.inputs]
        except VerificationError:
            if inputs is not None:
                raise
            # Many models take certain sizes only.
            self.inputs = random_inputs(self.model, self.seeds, sizes or {})
            self.outputs = [session.run(feeds) for feeds in self.inputs]
        self._require_finite_outputs()
        self._require_same_answers(session)

    def check(self, model: Any, *, tolerance: float = TOLERANCE, locate: bool = False) -> Comparison:
        """Compares a candidate with the reference on the inputs of the reference, which is not run again.

        Args:
            model: anything that :func:`compare` takes.
            tolerance: as for :func:`compare`.
            locate: look for the first tensor that diverges if the candidate does not pass.

        Raises:
            ModelError: the candidate cannot be read.
            VerificationError: its inputs or outputs differ in name, type or shape, or it cannot be run.
        """
        candidate = load_model(model)
        require_same_interface(self._interface, interface_of(candidate))
        session = Session(candidate, "the candidate model")
        outputs = [session.run(feeds) for feeds in self.inputs]
        comparison = measure(self.outputs, outputs, tolerance=tolerance, seeds=self.seeds)
        if comparison.passed or not locate:
            return comparison
        del session, outputs
        name, difference = self._place(candidate, tolerance)
        return replace(comparison, first_divergence=name, first_divergence_diff=difference)

    def judge(self, model: Any, *, tolerance: float = TOLERANCE, ceiling: float = 0.0) -> Judgement:
        """:meth:`check` for a pipeline, which wants a reason and no exception if the candidate does not even run.

        Args:
            model: anything that :func:`compare` takes.
            tolerance: as for :func:`compare`.
            ceiling: what the tolerance of an output may rise to, as far as twice its :attr:`noise` demands it.

        Raises:
            MissingDependencyError: onnxruntime is not installed.
        """
        try:
            candidate = load_model(model)
            comparison = self.check(candidate, tolerance=tolerance)
        except (ModelError, VerificationError) as error:
            return Judgement(None, str(error))
        failure, remark = self._verdict(comparison, ceiling)
        place = self._place(candidate, tolerance)[0] if failure else None
        return Judgement(comparison.max_abs, failure, place, remark)

    @cached_property
    def noise(self) -> Mapping[str, float]:
        """How far each output moves, at most, if each float of the inputs is one rounding away; empty if not known.

        What is rounded in another way inside the model moves the outputs by about as much. Runs the reference once
        more, when it is first asked for.
        """
        # A model that does not stand other inputs (its shapes depend on them, say) is judged by its tolerance alone.
        with suppress(VerificationError):
            session = Session(self.model, "the reference model")
            moved = [session.run(feeds) for feeds in neighbours(self.model, self.inputs)]
            return {name: output.max_abs for name, output in measure(self.outputs, moved).outputs.items()}
        return {}

    def _verdict(self, comparison: Comparison, ceiling: float) -> tuple[str | None, str | None]:
        """The first difference that is too large, and if there is none, all that pass for rounding."""
        remarks = []
        for name, output in comparison.outputs.items():
            tolerance, noise = comparison.tolerance, 0.0
            if output.within(tolerance):
                continue
            if ceiling > tolerance and not output.new_nonfinite:
                raised = min(ceiling, _ROUNDINGS * self.noise.get(name, 0.0) / max(1.0, output.scale))
                if raised > tolerance:
                    tolerance, noise = raised, self.noise[name]
            text = _what_differs(name, output, tolerance, noise)
            if not output.within(tolerance):
                return text, None
            remarks.append(text)
        return None, "; ".join(remarks) or None

    def _place(self, candidate: onnx.ModelProto, tolerance: float) -> tuple[str | None, float | None]:
        # That the outputs differ is known and worth more than the reason why the place could not be found.
        with suppress(VerificationError):
            return self.locate(candidate, tolerance=tolerance) or (None, None)
        return None, None

    def locate(self, model: Any, *, tolerance: float = TOLERANCE) -> tuple[str, float] | None:
        """The first tensor that differs from the reference's tensor of the same name, and by how much at most.

        Tensors are visited in the order in which the candidate computes them, on the inputs of each run until one
        differs. A tensor whose shape differs is one that a rewrite gave another meaning, and is passed over.

        Raises:
            ModelError: the candidate cannot be read.
            VerificationError: a model does not run with its intermediates exposed.
        """
        candidate = load_model(model)
        shared = _shared_tensors(self.model, candidate)
        left = Session(self.model, "the reference model", expose=shared)
        right = Session(candidate, "the candidate model", expose=shared)
        for feeds, start in product(self.inputs, range(0, len(shared), _LOCATE_CHUNK)):
            names = shared[start : start + _LOCATE_CHUNK]
            expected, actual = left.run(feeds, names), right.run(feeds, names)
            for name in names:
                found = _difference(expected.get(name), actual.get(name), tolerance)
                if found is not None:
                    return name, found
        return None

    def _require_finite_outputs(self) -> None:
        for name in self.outputs[0]:
            arrays = [outputs[name] for outputs in self.outputs]
            if any(array.size for array in arrays) and not any(np.isfinite(_widened(array)).any() for array in arrays):
                raise VerificationError(
                    f"output {name!r} of the reference model is nothing but NaN or Inf, so that nothing can be "
                    "compared with it: look for NaN in its weights, or give inputs of the kind it was trained on"
                )

    def _require_same_answers(self, session: Session) -> None:
        levels = [self.model.graph.node, *(function.node for function in self.model.functions)]
        # With a seed they are the same in every session.
        drawing = [
            node
            for level in levels
            for node in ops.walk(level)
            if node.op_type in {*RANDOM, "Dropout"} and not any(a.name == "seed" for a in node.attribute)
        ]
        if drawing and not measure([self.outputs[0]], [session.run(self.inputs[0])]).passed:
            raise VerificationError(
                f"the reference model does not answer the same twice: {drawing[0].op_type} "
                f"{drawing[0].name or drawing[0].output[0]!r} draws random numbers, as it may in training mode"
            )


def measure(
    a: Sequence[Feeds], b: Sequence[Feeds], *, tolerance: float = TOLERANCE, seeds: tuple[int, ...] = ()
) -> Comparison:
    """Compares outputs that are already there: one mapping from output name to array a run, of any numeric dtype.

    Raises:
        VerificationError: an output is missing in b, or has another shape there.
    """
    outputs = {name: _measure_output(name, [run[name] for run in a], [run.get(name) for run in b]) for name in a[0]}
    every = list(outputs.values())
    return Comparison(
        outputs=outputs,
        max_abs=max((o.max_abs for o in every), default=0.0),
        max_rel=max((o.max_rel for o in every), default=0.0),
        cosine=min((o.cosine for o in every), default=1.0),
        nan=sum(o.nan_b for o in every),
        inf=sum(o.inf_b for o in every),
        scale=max((o.scale for o in every), default=0.0),
        runs=len(a),
        seeds=seeds,
        tolerance=tolerance,
    )


# --------------------------------------------------------------------------------------------------------- measuring


def _measure_output(name: str, a: Sequence[Array], b: Sequence[Array | None]) -> OutputComparison:
    max_abs = max_rel = scale = dot = norm_a = norm_b = 0.0
    nan_a = inf_a = nan_b = inf_b = new_nonfinite = compared = 0
    for expected, actual in zip(a, b, strict=True):
        if actual is None or actual.shape != expected.shape:
            shape = "no value" if actual is None else f"shape {list(actual.shape)}"
            raise VerificationError(f"output {name!r} has shape {list(expected.shape)} in a and {shape} in b")
        x, y = _widened(expected), _widened(actual)
        nan_a, inf_a = nan_a + int(np.isnan(x).sum()), inf_a + int(np.isinf(x).sum())
        nan_b, inf_b = nan_b + int(np.isnan(y).sum()), inf_b + int(np.isinf(y).sum())
        new_nonfinite += _new_nonfinite(x, y)
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        if not x.size:
            continue
        difference, magnitude = np.abs(x - y), np.abs(x)
        largest = float(magnitude.max())
        floor = max(_RELATIVE_FLOOR * largest, np.finfo(np.float64).tiny)
        max_abs, scale = max(max_abs, float(difference.max())), max(scale, largest)
        max_rel = max(max_rel, float((difference / np.maximum(magnitude, floor)).max())) if largest else max_rel
        dot, norm_a, norm_b = dot + float(x @ y), norm_a + float(x @ x), norm_b + float(y @ y)
        compared += x.size
    return OutputComparison(
        shape=a[0].shape,
        dtype_a=str(a[0].dtype),
        dtype_b=str(b[0].dtype if b[0] is not None else None),
        max_abs=max_abs,
        max_rel=max_rel,
        cosine=_cosine(dot, norm_a, norm_b),
        scale=scale,
        nan_a=nan_a,
        inf_a=inf_a,
        nan_b=nan_b,
        inf_b=inf_b,
        new_nonfinite=new_nonfinite,
        compared=compared,
    )


def _cosine(dot: float, norm_a: float, norm_b: float) -> float:
    if not norm_a or not norm_b:
        return 1.0 if norm_a == norm_b else 0.0
    return min(1.0, dot / (math.sqrt(norm_a) * math.sqrt(norm_b)))


def _new_nonfinite(x: Array, y: Array) -> int:
    lost = ~np.isfinite(y)
    return int((lost & ~((x == y) | (np.isnan(x) & np.isnan(y)))).sum())


def _widened(array: Array) -> Array:
    return np.asarray(array).astype(np.float64)


def _difference(expected: Array | None, actual: Array | None, tolerance: float) -> float | None:
    if expected is None or actual is None or expected.shape != actual.shape:
        return None
    figures = _measure_output("", [expected], [actual])
    if figures.new_nonfinite:
        return float("inf")
    return None if figures.max_abs <= tolerance * max(1.0, figures.scale) else figures.max_abs


def _shared_tensors(a: onnx.ModelProto, b: onnx.ModelProto) -> list[str]:
    known = {name for node in a.graph.node for name in node.output if name}
    return [name for node in b.graph.node for name in node.output if name in known]

"""Tools for testing passes: one call says what a pass must do to a small model, or where it must keep its hands off.

    from swinopt.passes import EliminateNoops
    from swinopt.testing import leaves_alone, rewrites

    def test_a_double_negation_stays_and_an_identity_goes():
        leaves_alone("g (float[N, 3] x) => (float[N, 3] y) { z = Neg(x)  y = Neg(z) }", EliminateNoops())
        rewrites("g (float[N, 3] x) => (float[N, 3] y) { z = Identity(x)  y = Neg(z) }", EliminateNoops(),
                 applied=1, expect={"Neg": 1})

Models are whatever :func:`swinopt.optimize` takes, or text in ONNX's own syntax (:func:`parse`). Every tool raises
``AssertionError`` with a message that says what happened, so they work in any test framework. Numbers are checked with
ONNX Runtime, the extra ``cpu``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx

from swinopt import graph as graphs
from swinopt.errors import ModelError, VerificationError
from swinopt.graph import ModelLike, op_counts
from swinopt.pipeline import Pass, rounding
from swinopt.report import Refusal
from swinopt.rewrite import Rewriter
from swinopt.structure import fault, interface

_IR_VERSION = 10


def parse(text: str, /, *, opset: int = 20, **weights: npt.NDArray[Any]) -> onnx.ModelProto:
    """A model from text in ONNX's textual syntax.

    Example::

        parse("g (float[N, 4] x) => (float[N, 4] y) { y = Mul(x, scale) }", scale=np.ones(4, np.float32))

    Args:
        text: a whole model, which begins with ``<ir_version: ..., opset_import: [...]>``, or just its graph.
        opset: version of the standard opset, where the text is just a graph.
        weights: values for names that the text reads and does not define.

    Raises:
        ModelError: the text is no model.
    """
    try:
        if text.lstrip().startswith("<"):
            model = onnx.parser.parse_model(text)
        else:
            imports = [onnx.helper.make_opsetid("", opset)]
            graph = onnx.parser.parse_graph(text)
            domains = {node.domain for node in graph.node} - {"", "ai.onnx"}
            imports += [onnx.helper.make_opsetid(domain, 1) for domain in sorted(domains)]
            model = onnx.helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION)
    except onnx.parser.ParseError as error:
        raise ModelError(f"the text is no ONNX model: {error}") from error
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    return model


def rewrites(
    before: ModelLike,
    pass_: Pass,
    *,
    applied: int | None = None,
    expect: Mapping[str, int] | None = None,
    tolerance: float | None = None,
) -> onnx.ModelProto:
    """Asserts that a pass applies, and that the model is sound and computes the same afterwards.

    Exceptions of the pass itself come through as they are.

    Args:
        before: the model, or its text; it is also asserted that the pass leaves it untouched.
        pass_: the pass, or a pipeline.
        applied: how often the pass has to apply; at least once by default.
        expect: all op types of the result with their number, e.g. ``{"LayerNormalization": 1}``.
        tolerance: what the outputs may differ by, as a fraction of the largest one; by default what the pass claims.

    Returns:
        The model after the pass, for whatever else there is to assert.

    Raises:
        AssertionError: one of these does not hold.
        ModelError: the model cannot be read.
        MissingDependencyError: onnxruntime is not installed.
    """
    outcome = _apply(before, pass_)
    refusals = "".join(f"\n  refused at {refusal.node}: {refusal.reason}" for refusal in outcome.refusals)
    found = f"{pass_.name} applied {_times(outcome.applied)}"
    if applied is None:
        _require(outcome.applied > 0, f"{found}, and at least once was expected{refusals}")
    else:
        _require(outcome.applied == applied, f"{found}, and {_times(applied)} was expected{refusals}")
    if expect is not None:
        wanted = dict(expect)
        _require(outcome.ops == wanted, f"{pass_.name} left {outcome.ops}, and {wanted} was expected{refusals}")
    allowed = outcome.tolerance if tolerance is None else tolerance
    assert_equivalent(outcome.source, outcome.model, tolerance=allowed)
    return outcome.model


def refuses(before: ModelLike, pass_: Pass, reason: str) -> None:
    """Asserts that a pass applies nowhere, changes nothing, and gives a reason.

    Example::

        refuses(parse(TEXT, opset=19), FuseGelu(), "opset 19 has no Gelu")

    Args:
        before: the model, or its text.
        pass_: the pass.
        reason: a regular expression that the reason of one of its refusals must contain.

    Raises:
        AssertionError: the pass applied, changed something, or gave no such reason.
        ModelError: the model cannot be read.
    """
    outcome = _untouched(before, pass_)
    reasons = [refusal.reason for refusal in outcome.refusals]
    if not any(re.search(reason, given) for given in reasons):
        raise AssertionError(f"{pass_.name} gave no reason like {reason!r}; it gave: {reasons or 'none at all'}")


def leaves_alone(before: ModelLike, pass_: Pass) -> None:
    """Asserts that a pass applies nowhere and changes nothing; whether it says why is its own affair.

    Example::

        leaves_alone("g (float[2] x) => (float[2] y) { y = Relu(x) }", FuseGelu())

    Args:
        before: the model, or its text.
        pass_: the pass.

    Raises:
        AssertionError: the pass applied or changed something.
        ModelError: the model cannot be read.
    """
    _untouched(before, pass_)


def assert_equivalent(a: ModelLike, b: ModelLike, *, tolerance: float = 1e-5, seed: int = 0) -> None:
    """Asserts that two models have the same interface and compute the same from the same fresh random inputs.

    Example::

        assert_equivalent("swin.onnx", swinopt.optimize("swin.onnx").model, tolerance=2e-5)

    Args:
        a: the reference, or its text.
        b: the candidate, or its text.
        tolerance: what an output may differ by, as a fraction of its largest element, or of 1 if that is smaller.
        seed: makes other random inputs.

    Raises:
        AssertionError: they differ, or one of them does not run.
        ModelError: a model cannot be read.
        MissingDependencyError: onnxruntime is not installed.
    """
    from swinopt.verify import compare

    try:
        comparison = compare(_model(a), _model(b), tolerance=tolerance, seed=seed)
    except VerificationError as error:
        raise AssertionError(f"the models cannot be compared: {error}") from error
    _require(comparison.passed, f"the models do not compute the same\n{comparison}")


# ------------------------------------------------------------------------------------------------------------ inside


@dataclass(frozen=True)
class _Outcome:
    source: onnx.ModelProto
    model: onnx.ModelProto
    applied: int
    refusals: list[Refusal]
    ops: dict[str, int]
    tolerance: float


def _apply(before: ModelLike, pass_: Pass) -> _Outcome:
    before = _model(before)
    source = graphs.load_model(before)
    snapshot = _bytes(source)
    graph = graphs.load(source)
    applied, refusals, tolerance = 0, [], 0.0
    for step in pass_.steps:
        rewriter, expected = Rewriter(graph), interface(graph)
        step.run(rewriter)
        rewriter.finish()
        broken = fault(graph, expected)
        _require(broken is None, f"{step.name} left the graph broken: {broken}")
        applied += rewriter.applied
        refusals += rewriter.refusals
        tolerance = max(tolerance, step.tolerance * rounding(graph))
    model = graphs.to_model(graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise AssertionError(f"{pass_.name} left a model that the ONNX checker rejects: {error}") from error
    _require(_bytes(graphs.load_model(before)) == snapshot, f"{pass_.name} changed the model that it was given")
    return _Outcome(source, model, applied, refusals, dict(op_counts(graph)), tolerance)


def _untouched(before: ModelLike, pass_: Pass) -> _Outcome:
    before = _model(before)
    untouched = graphs.load(before)
    Rewriter(untouched).finish()
    outcome = _apply(before, pass_)
    _require(outcome.applied == 0, f"{pass_.name} applied {_times(outcome.applied)}, and not at all was expected")
    expected = graphs.to_model(untouched).graph
    for part in ("node", "initializer", "input", "output"):
        same = list(getattr(expected, part)) == list(getattr(outcome.model.graph, part))
        _require(same, f"{pass_.name} does not count as applied, and yet changed the {part}s of the model")
    return outcome


def _model(model: ModelLike) -> ModelLike:
    is_text = isinstance(model, str) and "=>" in model
    return parse(model) if is_text else model


def _bytes(model: onnx.ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


def _times(count: int) -> str:
    return "not at all" if count == 0 else "once" if count == 1 else f"{count} times"


def _require(holds: bool, message: str) -> None:
    # Not the assert statement: that one is gone under python -O.
    if not holds:
        raise AssertionError(message)

"""The residual addition behind what an op computes: swinopt/residual.py, in both passes that use it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import Pass
from swinopt.passes import FuseLinear, FuseNorm
from swinopt.testing import leaves_alone, parse, rewrites
from tests.graphs import Builder

C = 8

Step = Callable[[Builder, str], str]
Shape = tuple[int | str, ...]

#: What makes the tensor that something is added to: the pass that makes an op of it, and how it is written.
GIVERS: dict[str, tuple[Pass, Step]] = {
    "norm": (FuseNorm(), lambda b, x: b.layer_norm(x, C)),
    "linear": (FuseLinear(), lambda b, x: b.linear(x, C, C)),
}
each_giver = pytest.mark.parametrize("giver", GIVERS)


def residual(b: Builder, x: str, shape: Shape = (2, 5, C)) -> str:
    return b.op("Add", x, b.op("Sigmoid", b.input(shape, "z")))


def model(giver: str, behind: Step, shape: Shape = (2, 5, C), *, read: Step | None = None) -> onnx.ModelProto:
    """``read`` stands beside the addition."""
    b = Builder()
    result = GIVERS[giver][1](b, b.op("Tanh", b.input(shape)))
    end = b.op("Neg", behind(b, result))
    return b.model(end, *([read(b, result)] if read else []))


def outcome(giver: str, before: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """What each op has, in order, and why an addition is refused."""
    result = swinopt.optimize(before, passes=GIVERS[giver][0], verify=False)
    found = ["residual" if len(n.input) == 4 else "plain" for n in result.model.graph.node if n.domain == "swinopt"]
    return found, [refusal.reason for p in result.report.passes for refusal in p.refusals]


def fused(giver: str, before: onnx.ModelProto, *wanted: str, others: dict[str, int]) -> onnx.ModelProto:
    """Asserts that the model becomes these ops and, beside what :func:`model` writes, ``others``."""
    after = rewrites(before, GIVERS[giver][0], applied=len(wanted))
    assert outcome(giver, before)[0] == list(wanted)
    found = Counter(node.op_type for node in after.graph.node if node.domain != "swinopt")
    assert {op: found[op] for op in found if op not in ("Tanh", "Neg", "Sigmoid")} == others
    leaves_alone(after, GIVERS[giver][0])
    return after


@each_giver
def test_of_two_that_are_added_the_first_takes_the_other_one(giver: str) -> None:
    b, give = Builder(), GIVERS[giver][1]
    x = b.input((2, 5, C))
    first, second = give(b, x), give(b, b.op("Exp", x))
    after = fused(giver, b.model(b.op("Neg", b.op("Add", second, first))), "plain", "residual", others={"Exp": 1})
    plain, total = [node for node in after.graph.node if node.domain == "swinopt"]
    assert [total.input[0], total.input[3]] == ["x", plain.output[0]]


@each_giver
def test_a_result_may_be_the_residual_of_what_is_made_of_it(giver: str) -> None:
    def block(b: Builder, y: str) -> str:
        return b.op("Add", y, GIVERS[giver][1](b, b.op("Relu", y)))

    fused(giver, model(giver, block), "plain", "residual", others={"Relu": 1})


@each_giver
def test_a_residual_stays_apart_where_the_result_without_it_is_read(giver: str) -> None:
    fused(giver, model(giver, residual, read=lambda b, x: b.op("Exp", x)), "plain", others={"Add": 1, "Exp": 1})


@each_giver
def test_a_residual_stays_apart_where_the_result_without_it_is_an_output(giver: str) -> None:
    fused(giver, model(giver, residual, read=lambda b, x: x), "plain", others={"Add": 1})


#: The axes before the channels, of the result and of what is added to it.
BROADCAST: dict[str, tuple[Shape, Shape]] = {
    "the residual": ((2, 5), (1, 5)),
    "the residual, to more axes": ((2, 5), (5,)),
    "the result": ((1, 5), (2, 5)),
    "the result, to more axes": ((5,), (2, 5)),
    "both": ((1, 5), (2, 1)),
    "perhaps one of two sizes with other names": (("b", 5), ("a", 5)),
}


@each_giver
@pytest.mark.parametrize("name", BROADCAST)
def test_an_addition_is_refused_that_broadcasts(giver: str, name: str) -> None:
    rows, added = BROADCAST[name]
    before = model(giver, lambda b, x: residual(b, x, (*added, C)), (*rows, C))
    if not name.startswith("perhaps"):
        fused(giver, before, "plain", others={"Add": 1})
    reason = f"the residual is not known to have the shape of what the {giver} gives"
    assert outcome(giver, before) == (["plain"], [reason])


STAYS: dict[str, tuple[Step, dict[str, int]]] = {
    "a constant of the same shape": (lambda b, x: b.op("Add", b.weights(2, 5, C), x), {"Add": 1}),
    "another bias": (lambda b, x: b.op("Add", b.weights(C), x), {"Add": 1}),
    "a difference": (lambda b, x: b.op("Sub", x, b.op("Sigmoid", b.input((2, 5, C), "z"))), {"Sub": 1}),
    "itself": (lambda b, x: b.op("Add", x, x), {"Add": 1}),
    "a residual behind something": (lambda b, x: residual(b, b.op("Relu", x)), {"Relu": 1, "Add": 1}),
}


@each_giver
@pytest.mark.parametrize("name", STAYS)
def test_stays_behind_a_plain_op(giver: str, name: str) -> None:
    behind, others = STAYS[name]
    before = model(giver, behind)
    fused(giver, before, "plain", others=others)
    assert outcome(giver, before) == (["plain"], [])


@pytest.mark.parametrize(
    ("giver", "line", "weight"),
    [("norm", "r = LayerNormalization(x, w)", (C,)), ("linear", "r = MatMul(x, w)", (C, C))],
    ids=GIVERS,
)
def test_what_is_added_in_the_body_of_an_if_stays_there(giver: str, line: str, weight: tuple[int, ...]) -> None:
    before = parse(
        f"""g (float[5, 8] x, float[5, 8] z, bool c) => (float[5, 8] y) {{
            {line}
            y = If(c) <then_branch = a () => (float[5, 8] t) {{ t = Add(r, z) }},
                       else_branch = e () => (float[5, 8] f) {{ f = Neg(z) }}>
        }}""",
        w=np.ones(weight, np.float32),
    )
    fused(giver, before, "plain", others={"If": 1})

"""A pass of one's own: the formula, the preconditions, the replacement, its tests, and how to use it.

HardSwish, as exporters spell it out, becomes the one node that ONNX has for it since opset 14:

    x * clip(x + 3, 0, 6) / 6   ->   HardSwish(x)

A pass consists of rules. A rule's ``pattern`` is the formula; ``where`` lists the preconditions, each of which returns
None or the reason for the refusal that the report then shows; ``rewrite`` returns the tensor that stands in.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import swinopt
from swinopt import testing
from swinopt.pattern import Match, number, op, product, var
from swinopt.rewrite import Rewriter, Rule, apply_rules

_x = var("x")
_gate = op("Clip", _x + 3.0, number(name="low"), number(name="high"))
_hard_swish = product(_x, _gate, constant=1 / 6)  # in whatever order the factors and the 1/6 are multiplied


def _opset_has_it(match: Match, rewriter: Rewriter) -> str | None:
    opset = rewriter.graph.opset
    return None if opset >= 14 else f"opset {opset} has no HardSwish; opset 14 has"


def _clips_from_0_to_6(match: Match, rewriter: Rewriter) -> str | None:
    low, high = match.number("low"), match.number("high")
    return None if (low, high) == (0, 6) else f"the clip runs from {low:g} to {high:g}, and not from 0 to 6"


def _one_node(match: Match, rewriter: Rewriter) -> Any:
    return rewriter.op("HardSwish", match["x"])


@dataclass(frozen=True)
class FuseHardSwish(swinopt.Pass):
    """Makes one HardSwish of its formula."""

    name: ClassVar[str] = "fuse-hard-swish"

    def run(self, rewriter: Rewriter) -> None:
        apply_rules([Rule(_hard_swish, _one_node, where=(_opset_has_it, _clips_from_0_to_6))], rewriter)


# --------------------------------------------------------------------------------------------------------- its tests

SPELLED_OUT = """
    hard_swish (float[N, 8] x) => (float[N, 8] y)
    <float three = {3}, float low = {0}, float high = {6}, float six = {6}>
    {
        shifted = Add(x, three)
        gate = Clip(shifted, low, high)
        product = Mul(x, gate)
        y = Div(product, six)
    }
"""


def test_every_spelling_becomes_one_node() -> None:
    # rewrites() also checks the structure, and runs the model before and after on the same random inputs.
    testing.rewrites(SPELLED_OUT, FuseHardSwish(), applied=1, expect={"HardSwish": 1})
    other_order = SPELLED_OUT.replace("Mul(x, gate)", "Mul(gate, x)").replace("Add(x, three)", "Add(three, x)")
    testing.rewrites(other_order, FuseHardSwish(), applied=1, expect={"HardSwish": 1})


def test_near_misses_are_refused_with_a_reason() -> None:
    testing.refuses(SPELLED_OUT.replace("high = {6}", "high = {5}"), FuseHardSwish(), "from 0 to 5")
    testing.refuses(testing.parse(SPELLED_OUT, opset=13), FuseHardSwish(), "opset 13 has no HardSwish")
    testing.leaves_alone(SPELLED_OUT.replace("Mul(x, gate)", "Mul(shifted, gate)"), FuseHardSwish())


# ----------------------------------------------------------------------------------------------------------- its use


def main() -> None:
    test_every_spelling_becomes_one_node()
    test_near_misses_are_refused_with_a_reason()
    print("the tests of fuse-hard-swish pass")

    # In a pipeline, where a pass that changes numbers is rolled back and reported like any other.
    pipeline = swinopt.pipeline("tensorrt").after("fuse-gelu", FuseHardSwish())
    print(f"\nthe pipeline: {pipeline}")
    result = swinopt.optimize(testing.parse(SPELLED_OUT), passes=pipeline)
    print(f"\n{result}")

    # A package that lists the class under the entry-point group "swinopt.passes" makes its name known to
    # Pipeline.parse() and to `swinopt optimize --passes`; see README.md.


if __name__ == "__main__":
    main()

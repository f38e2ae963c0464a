from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from swinopt.passes import FuseNorm, SpellOutNorm
from swinopt.pipeline import Pipeline
from swinopt.testing import leaves_alone, parse, rewrites


def floats(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def norms(dtype: str = "float", opset: int = 17) -> onnx.ModelProto:
    numbers = {"float": np.float32, "float16": np.float16}[dtype]
    return parse(
        f"""g ({dtype}[N, 3, 16] x) => ({dtype}[N, 3, 16] y) {{
            n = swinopt.LayerNorm(x, gamma, beta)  r = swinopt.LayerNorm<epsilon=0.5>(n, gamma, beta, x)
            y = swinopt.LayerNorm(r, gamma, zeros) }}""",
        gamma=floats(16, dtype=numbers),
        beta=1 + floats(16, dtype=numbers),
        zeros=np.zeros(16, numbers),
        opset=opset,
    )


@pytest.mark.parametrize("dtype", ["float", "float16"])
@pytest.mark.parametrize("opset", [17, 20])
def test_they_become_what_they_stand_for(opset: int, dtype: str) -> None:
    tolerance = 1e-5 if dtype == "float" else 5e-3
    after = rewrites(
        norms(dtype, opset),
        SpellOutNorm(),
        applied=3,
        expect={"LayerNormalization": 3, "Add": 1},
        tolerance=tolerance,
    )
    nodes = [node for node in after.graph.node if node.op_type == "LayerNormalization"]
    told = [{a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in nodes]
    assert [t["epsilon"] for t in told] == pytest.approx([1e-5, 0.5, 1e-5])
    assert [t["axis"] for t in told] == [-1] * 3
    assert [len(node.input) for node in nodes] == [3, 3, 2], "a bias of zeros is none"


def test_those_that_are_kept_stay() -> None:
    after = rewrites(norms(), SpellOutNorm(kept=("n", "y")), applied=1)
    assert [node.op_type for node in after.graph.node] == ["LayerNorm", "LayerNormalization", "Add", "LayerNorm"]
    leaves_alone(norms(), SpellOutNorm(kept=("n", "r", "y")))


def test_it_undoes_fuse_norm() -> None:
    plain = Pipeline(SpellOutNorm())(norms())
    fused = Pipeline(FuseNorm())(plain)
    assert [node.op_type for node in fused.graph.node] == 3 * ["LayerNorm"]
    again = Pipeline(SpellOutNorm())(fused)
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in plain.graph.node]

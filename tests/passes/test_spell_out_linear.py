from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from swinopt.passes import FuseLinear, SpellOutLinear
from swinopt.pipeline import Pipeline
from swinopt.testing import leaves_alone, parse, rewrites


def floats(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def linears(opset: int = 17, dtype: str = "float") -> onnx.ModelProto:
    numbers = {"float": np.float32, "float16": np.float16}[dtype]
    return parse(
        f"""g ({dtype}[N, 3, 16] x) => ({dtype}[N, 3, 16] y) {{
            p = swinopt.Linear(x, w, b)  g = swinopt.Linear<gelu=1>(p, w, b)  y = swinopt.Linear(g, w, zeros, x) }}""",
        w=0.25 * floats(16, 16, dtype=numbers),
        b=floats(16, dtype=numbers),
        zeros=np.zeros(16, numbers),
        opset=opset,
    )


@pytest.mark.parametrize("dtype", ["float", "float16"])
def test_they_become_what_they_stand_for(dtype: str) -> None:
    erf = {"Erf": 1, "Div": 1, "Mul": 2, "Add": 1}
    expect = {"MatMul": 3, "Add": 2 + 1 + erf.pop("Add"), **erf}
    after = rewrites(linears(dtype=dtype), SpellOutLinear(), applied=3, expect=expect)
    assert len({weight.data_type for weight in after.graph.initializer}) == 1


def test_where_the_opset_has_gelu_it_is_one_node() -> None:
    rewrites(linears(opset=20), SpellOutLinear(), applied=3, expect={"MatMul": 3, "Add": 3, "Gelu": 1})


def test_those_that_are_kept_stay() -> None:
    after = rewrites(linears(20), SpellOutLinear(kept=("p", "y")), applied=1)
    assert [node.op_type for node in after.graph.node] == ["Linear", "MatMul", "Add", "Gelu", "Linear"]
    leaves_alone(linears(), SpellOutLinear(kept=("p", "g", "y")))


def test_it_undoes_fuse_linear() -> None:
    plain = Pipeline(SpellOutLinear())(linears(20))
    fused = Pipeline(FuseLinear())(plain)
    assert [node.op_type for node in fused.graph.node] == 3 * ["Linear"]
    again = Pipeline(SpellOutLinear())(fused)
    assert [node.op_type for node in again.graph.node] == [node.op_type for node in plain.graph.node]

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

import swinopt
from swinopt.passes import FoldConstants
from swinopt.report import Refusal
from swinopt.testing import assert_equivalent, leaves_alone, parse, refuses, rewrites
from tests.graphs import run


def floats(*shape: int) -> npt.NDArray[Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> npt.NDArray[Any]:
    return np.array(values, np.int64)


def weights(model: onnx.ModelProto) -> dict[str, npt.NDArray[Any]]:
    return {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}


def refusals(model: onnx.ModelProto, pass_: FoldConstants) -> tuple[Refusal, ...]:
    (report,) = swinopt.optimize(model, passes=pass_).report.passes
    return report.refusals


# --------------------------------------------------------------------------------------------------- what is folded


def test_arithmetic_on_weights() -> None:
    before = parse(
        "g (float[2, 4] x) => (float[2, 3] y) { t = Transpose<perm = [1, 0]>(w)  s = Mul(t, two)  y = MatMul(x, s) }",
        w=floats(3, 4),
        two=np.array(2, np.float32),
    )
    after = rewrites(before, FoldConstants(), applied=2, expect={"MatMul": 1})
    np.testing.assert_array_equal(weights(after)["s"], 2 * floats(3, 4).T)


def test_all_of_the_shape_arithmetic_of_a_static_model() -> None:
    before = parse(
        """g (float[2, 3, 4, 4] x) => (float[2, 48] y) {
            shape = Shape(x)  batch = Gather(shape, zero)  b = Unsqueeze(batch, axis)
            tail = Slice(shape, one, four)  size = ReduceProd(tail)  target = Concat<axis = 0>(b, size)
            y = Reshape(x, target)
        }""",
        zero=np.array(0),
        axis=ints(0),
        one=ints(1),
        four=ints(4),
    )
    after = rewrites(before, FoldConstants(), expect={"Reshape": 1})
    assert weights(after)["target"].tolist() == [2, 48]


SIZES = """shape = Shape(x)
    n = Gather(shape, i0)  c = Gather(shape, i1)  h = Gather(shape, i2)  w = Gather(shape, i3)
    ch = Mul(c, h)  n1 = Unsqueeze(n, axis)  ch1 = Unsqueeze(ch, axis)  w1 = Unsqueeze(w, axis)
    target = Concat<axis = 0>(n1, ch1, w1)"""
INDICES = {**{f"i{i}": np.array(i) for i in range(4)}, "axis": ints(0)}


def test_of_a_dynamic_batch_all_but_the_batch() -> None:
    text = f"g (float[N, 3, 4, 4] x) => (int64[3] y) {{ {SIZES}  y = Neg(target) }}"
    rest = {"Shape": 1, "Gather": 1, "Unsqueeze": 1, "Concat": 1, "Neg": 1}
    after = rewrites(parse(text, **INDICES), FoldConstants(), expect=rest)
    known = {name: value.tolist() for name, value in weights(after).items() if name in ("ch1", "w1")}
    assert known == {"ch1": [12], "w1": [4]}


def test_a_reshape_that_needs_no_arithmetic_of_a_dynamic_batch_loses_it() -> None:
    text = f"g (float[N, 3, 4, 4] x) => (float[N, 12, 4] y) {{ {SIZES}  y = Reshape(x, target) }}"
    after = rewrites(parse(text, **INDICES), FoldConstants(), expect={"Reshape": 1})
    assert weights(after)[after.graph.node[0].input[1]].tolist() == [0, 12, 4]


def test_a_reshape_that_moves_the_dynamic_batch_infers_it() -> None:
    text = """g (float[N, 3, 4] x) => (float[M, 4] y) {
        shape = Shape(x)  n = Gather(shape, i0)  c = Gather(shape, i1)  nc = Mul(n, c)  nc1 = Unsqueeze(nc, axis)
        target = Concat<axis = 0>(nc1, i4)  y = Reshape(x, target)
    }"""
    before = parse(text, i0=np.array(0), i1=np.array(1), i4=ints(4), axis=ints(0))
    after = rewrites(before, FoldConstants(), expect={"Reshape": 1})
    assert weights(after)[after.graph.node[0].input[1]].tolist() == [-1, 4]


def test_a_reshape_with_two_sizes_to_infer_keeps_its_arithmetic() -> None:
    text = """g (float[N, M, 4] x) => (float[M, N, 4] y) {
        shape = Shape(x)  order = Gather(shape, swapped)  y = Reshape(x, order)
    }"""
    leaves_alone(parse(text, swapped=ints(1, 0, 2)), FoldConstants())


def test_a_reshape_that_is_another_one_for_a_single_image_keeps_its_arithmetic() -> None:
    text = """g (float[N, 6] x) => (float[N, A, B] y) {
        shape = Shape(x)  n = Slice(shape, i0, i1)  single = Equal(n, i1)  tail = Where(single, flipped, usual)
        target = Concat<axis = 0>(n, tail)  y = Reshape(x, target)
    }"""
    before = parse(text, i0=ints(0), i1=ints(1), usual=ints(2, 3), flipped=ints(3, 2))
    assert_equivalent(before, FoldConstants()(before), tolerance=0)
    leaves_alone(before, FoldConstants())


def test_a_reshape_whose_target_is_an_input_is_left_alone() -> None:
    leaves_alone("g (float[2, 6] x, int64[3] target) => (float[A, B, C] y) { y = Reshape(x, target) }", FoldConstants())


def test_a_slice_of_a_shape_that_leaves_the_batch_out() -> None:
    before = parse(
        """g (float[N, 3, 4] x) => (float[N, 3, 4] y) {
            s = Shape(x)  t = Slice(s, one, three)  r = Expand(zero, t)  y = Add(x, r)
        }""",
        one=ints(1),
        three=ints(3),
        zero=np.array(0, np.float32),
    )
    after = rewrites(before, FoldConstants(), applied=2, expect={"Add": 1})
    assert weights(after)["r"].shape == (3, 4)


def test_start_and_end_of_a_shape_that_leave_the_batch_out() -> None:
    before = parse("g (float[N, 3, 4] x) => (int64[2] y) { s = Shape<start = 1>(x)  y = Neg(s) }")
    after = rewrites(before, FoldConstants(), applied=1, expect={"Neg": 1})
    assert weights(after)["s"].tolist() == [3, 4]


def test_the_size_of_a_tensor() -> None:
    before = parse("g (float[2, 3] x) => (float[2, 3] y) { n = Size(x)  f = Cast<to = 1>(n)  y = Div(x, f) }")
    rewrites(before, FoldConstants(), expect={"Div": 1})


def test_branches_that_share_a_constant() -> None:
    before = parse(
        "g (float[3] x) => (float[3] y, float[3] z) { a = Neg(w)  b = Exp(a)  y = Add(x, a)  z = Add(x, b) }",
        w=floats(3),
    )
    rewrites(before, FoldConstants(), applied=2, expect={"Add": 2})


def test_several_outputs_of_one_node() -> None:
    before = parse(
        "g (float[2] x) => (float[2] y) { a, b = Split<axis = 0>(w, sizes)  s = Add(x, a)  y = Mul(s, b) }",
        w=floats(4),
        sizes=ints(2, 2),
    )
    after = rewrites(before, FoldConstants(), expect={"Add": 1, "Mul": 1})
    np.testing.assert_array_equal(weights(after)["b"], floats(4)[2:])


def test_constants_that_the_model_writes_as_nodes() -> None:
    before = parse(
        "g (float[2] x) => (float[2] y) "
        "{ a = Constant<value = float[2] {1.0, 2.0}>()  b = Constant<value_float = 3.0>()"
        "  c = Mul(a, b)  y = Add(x, c) }"
    )
    after = rewrites(before, FoldConstants(), applied=1, expect={"Add": 1})
    assert weights(after)["c"].tolist() == [3, 6]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int8, np.int32, np.uint8, np.int64], ids=str)
def test_dtypes_are_kept(kind: type[np.generic]) -> None:
    name = onnx.TensorProto.DataType.Name(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))).lower()
    before = parse(
        f"g ({name}[3] x) => ({name}[1, 3] y) {{ t = Reshape(w, s)  c = Concat<axis = 1>(t, t)"
        f"  h = Slice(c, zero, three, one)  u = Unsqueeze(x, zero)  l = Concat<axis = 0>(u, h)  y = Gather(l, zero) }}",
        w=np.arange(3).astype(kind),
        s=ints(1, 3),
        zero=ints(0),
        three=ints(3),
        one=ints(1),
    )
    after = rewrites(before, FoldConstants(), expect={"Unsqueeze": 1, "Concat": 1, "Gather": 1})
    assert weights(after)["h"].dtype == kind


def test_a_cast_to_half_is_half() -> None:
    before = parse(
        "g (float16[3] x) => (float16[3] y) { h = Cast<to = 10>(w)  e = Exp(h)  y = Mul(x, e) }", w=floats(3)
    )
    after = rewrites(before, FoldConstants(), applied=2, expect={"Mul": 1})
    assert weights(after)["e"].dtype == np.float16


def test_comparisons_and_where() -> None:
    before = parse(
        "g (float[3] x) => (float[3] y) { p = Greater(w, zero)  n = Not(p)  s = Where(n, w, zero)  y = Add(x, s) }",
        w=floats(3),
        zero=np.array(0, np.float32),
    )
    rewrites(before, FoldConstants(), expect={"Add": 1})


def test_infinity_that_was_there_before_is_no_objection() -> None:
    before = parse(
        "g (float[3] x) => (float[3] y) { m = Neg(w)  y = Max(x, m) }", w=np.array([0, np.inf, 1], np.float32)
    )
    rewrites(before, FoldConstants(), applied=1, expect={"Max": 1})


def test_a_second_run_finds_nothing() -> None:
    before = parse("g (float[2, 3] x) => (float[3, 2] y) { s = Shape(x)  r = Slice(s, e, b, a, e)  y = Reshape(x, r) }",
                   e=ints(-1), b=ints(-3), a=ints(0))  # fmt: skip
    leaves_alone(rewrites(before, FoldConstants()), FoldConstants())


# ------------------------------------------------------------------------------------------- what hangs on the input


@pytest.mark.parametrize("op", ["Equal", "Less", "Greater"])
@pytest.mark.parametrize("number", [0, 1, 2, 3, 7, 1000])
def test_a_comparison_with_a_dynamic_batch_is_never_a_constant(op: str, number: int) -> None:
    before = parse(
        f"""g (float[N, 3] x) => (float[N, 3] y) {{
            shape = Shape(x)  batch = Gather(shape, zero)  same = {op}(batch, number)
            f = Cast<to = 1>(same)  y = Add(x, f)
        }}""",
        zero=np.array(0),
        number=np.array(number),
    )
    leaves_alone(before, FoldConstants())


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(batch, hundred)",
        "z = Mul(batch, zero)  d = Abs(z)",
        "d = Mod(batch, one)",
        "d = Min(batch, one)",
        "c = Greater(batch, zero)  d = Cast<to = 7>(c)",
        "c = Equal(batch, one)  d = Where(c, hundred, one)",
        "e = Expand(batch, shape)  d = ReduceMin<keepdims = 0>(e)",
    ],
)
def test_what_comes_out_alike_for_some_batches_is_never_a_constant(body: str) -> None:
    text = f"""g (float[N, 3] x) => (float[N, 3] y) {{
        shape = Shape(x)  batch = Gather(shape, zero)  {body}  f = Cast<to = 1>(d)  y = Add(x, f)
    }}"""
    before = parse(
        text,
        **{
            key: np.array(value)
            for key, value in (("zero", 0), ("one", 1), ("hundred", 100))
            if key in body or not value
        },
    )
    leaves_alone(before, FoldConstants())


def test_a_tensor_without_elements_has_the_sizes_of_the_input() -> None:
    before = parse(
        """g (float[N, 3] x) => (float[M] y) {
            shape = Shape(x)  batch = Slice(shape, zero, one)  target = Concat<axis = 0>(zero, batch)
            nothing = Expand(half, target)  turned = Transpose(nothing)  y = ReduceSum<keepdims = 0>(turned, one)
        }""",
        zero=ints(0),
        one=ints(1),
        half=np.full((1, 1), 0.5, np.float32),
    )
    after = FoldConstants()(before)
    assert_equivalent(before, after)
    assert run(after, np.zeros((7, 3), np.float32))[0].shape == (7,)


def test_half_a_dynamic_batch_is_no_constant() -> None:
    before = parse(
        """g (float[N, 3] x) => (float[M, 3] y) {
            shape = Shape(x)  batch = Slice(shape, zero, one)  half = Div(batch, two)  h = Slice(x, zero, half)
            hs = Shape(h)  n = Slice(hs, zero, one)  f = Cast<to = 1>(n)  y = Mul(h, f)
        }""",
        zero=ints(0),
        one=ints(1),
        two=ints(2),
    )
    after = FoldConstants()(before)
    assert_equivalent(before, after)
    assert "Shape" in [node.op_type for node in after.graph.node]


def test_two_inputs_of_dynamic_sizes_are_not_taken_for_alike() -> None:
    before = parse(
        "g (float[A, 3] a, float[B, 3] b) => (int64[2] y) { p = Shape(a)  q = Shape(b)  d = Sub(p, q)  y = Abs(d) }"
    )
    leaves_alone(before, FoldConstants())


# ---------------------------------------------------------------------------------------------- what is left alone


@pytest.mark.parametrize(
    "body",
    [
        "r = RandomNormal<shape = [3]>()  y = Add(x, r)",
        "r = RandomNormalLike(w)  y = Add(x, r)",
        "r = RandomUniform<shape = [3]>()  y = Add(x, r)",
        "r = RandomUniformLike(w)  y = Add(x, r)",
        "b = Bernoulli(half)  y = Add(x, b)",
        "d = Dropout(w, ratio, train)  y = Add(x, d)",
        "r = acme.Secret(w)  y = Add(x, r)",
        "q = QuantizeLinear(w, scale)  d = DequantizeLinear(q, scale)  y = Add(x, d)",
        "q, s, z = DynamicQuantizeLinear(w)  f = Cast<to = 1>(q)  y = Add(x, f)",
    ],
)
def test_ops_that_must_not_be_folded(body: str) -> None:
    known = {
        "w": floats(3),
        "half": np.full(3, 0.5, np.float32),
        "ratio": np.array(0.5, np.float32),
        "train": np.array(True),
        "scale": np.array(0.1, np.float32),
    }
    used = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    leaves_alone(
        parse(f"g (float[3] x) => (float[3] y) {{ {body} }}", **{k: v for k, v in known.items() if k in used}),
        FoldConstants(),
    )


def test_quantised_weights_stay_quantised_and_their_scales_are_folded() -> None:
    before = parse(
        "g (float[2, 4] x) => (float[2, 4] y) { s = Mul(t, t)  w = DequantizeLinear(q, s)  y = MatMul(x, w) }",
        q=np.arange(16, dtype=np.int8).reshape(4, 4),
        t=np.array(0.5, np.float32),
    )
    after = rewrites(before, FoldConstants(), applied=1, expect={"DequantizeLinear": 1, "MatMul": 1})
    assert weights(after)["q"].dtype == np.int8


@pytest.mark.parametrize(
    ("body", "op"),
    [
        ("r = Div(w, z)", "Div"),
        ("r = Log(z)", "Log"),
        ("m = Neg(w)  r = Sqrt(m)", "Sqrt"),
        ("b = Mul(w, big)  r = Exp(b)", "Exp"),
    ],
)
def test_what_becomes_nan_or_infinite_stays(body: str, op: str) -> None:
    known = {"w": np.ones(3, np.float32), "z": np.zeros(3, np.float32), "big": np.full(3, 1e3, np.float32)}
    before = parse(
        f"g (float[3] x) => (float[3] y) {{ {body}  p = Mul(x, r)  i = IsInf(p)  f = Cast<to = 1>(i)  y = Add(x, f) }}",
        **{key: value for key, value in known.items() if f"{key})" in body or f"({key}" in body},
    )
    after = FoldConstants()(before)
    assert op in [node.op_type for node in after.graph.node]
    assert_equivalent(before, after)
    assert any(f"{op} makes NaN or infinity" in refusal.reason for refusal in refusals(before, FoldConstants()))


def test_graph_outputs_that_are_constants_stay_nodes() -> None:
    before = parse("g (float[3] x) => (float[3] y, float[3] k) { y = Relu(x)  t = Neg(w)  k = Exp(t) }", w=floats(3))
    rewrites(before, FoldConstants(), applied=1, expect={"Relu": 1, "Exp": 1})


def test_a_graph_output_that_others_read_too() -> None:
    before = parse("g (float[3] x) => (float[3] y, float[3] k) { k = Neg(w)  e = Exp(k)  y = Add(x, e) }", w=floats(3))
    after = FoldConstants()(before)
    assert_equivalent(before, after)
    assert [o.name for o in after.graph.output] == ["y", "k"]


# -------------------------------------------------------------------------------------------------------- the budget

BLOW_UPS = {
    "Expand": "e = Expand(w, shape)",
    "Tile": "e = Tile(w, repeats)",
    "ConstantOfShape": "e = ConstantOfShape<value = float[1] {0.5}>(shape)",
    "Gather": "e = Gather<axis = 0>(w, index)",
}


def blow_up(body: str) -> onnx.ModelProto:
    known = {
        "w": floats(1, 64),
        "shape": ints(64, 64),
        "repeats": ints(64, 1),
        "index": np.zeros(64, np.int64),
    }
    used = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return parse(f"g (float[64, 64] x) => (float[64, 64] y) {{ {body}  y = Add(x, e) }}",
                 **{k: v for k, v in known.items() if k in used})  # fmt: skip


@pytest.mark.parametrize("op", BLOW_UPS)
def test_nothing_grows_beyond_the_budget(op: str) -> None:
    refuses(blow_up(BLOW_UPS[op]), FoldConstants(budget=8000), r"would grow the model by \d+ bytes, and 8000")


@pytest.mark.parametrize("op", BLOW_UPS)
def test_within_the_budget_it_is_folded(op: str) -> None:
    rewrites(blow_up(BLOW_UPS[op]), FoldConstants(budget=1 << 14), applied=1, expect={"Add": 1})


def test_the_budget_counts_all_together() -> None:
    before = parse(
        "g (float[64, 64] x) => (float[64, 64] y) { a = Expand(v, s)  b = Expand(w, r)  t = Add(x, a)  y = Mul(t, b) }",
        v=floats(64),
        w=floats(1, 64),
        s=ints(64, 64),
        r=ints(64, 64),
    )
    growth = 64 * 64 * 4 - 64 * 4 - 16
    for budget, folded in ((growth - 1, 0), (growth, 1), (2 * growth - 1, 1), (2 * growth, 2)):
        if folded:
            rewrites(before, FoldConstants(budget=budget), applied=folded)
        else:
            refuses(before, FoldConstants(budget=budget), "would grow the model")


def test_small_tensors_come_before_large_ones() -> None:
    """A table that is blown up behind them does not use up their budget."""
    before = parse(
        """g (float[2, 4000] x, float[2, 300] z) => (float[2, 4000] y, float[2, 300] v) {
            a = Expand(one, many)  y = Add(x, a)  b = Expand(one, few)  v = Add(z, b) }""",
        one=np.ones(1, np.float32),
        many=ints(2, 4000),
        few=ints(2, 300),
    )
    swapped = parse(
        """g (float[2, 4000] x, float[2, 300] z) => (float[2, 300] v, float[2, 4000] y) {
            b = Expand(one, few)  v = Add(z, b)  a = Expand(one, many)  y = Add(x, a) }""",
        one=np.ones(1, np.float32),
        many=ints(2, 4000),
        few=ints(2, 300),
    )
    for model in (before, swapped):
        after = rewrites(model, FoldConstants(budget=33000), applied=1, expect={"Add": 2, "Expand": 1})
        assert [node.output[0] for node in after.graph.node if node.op_type == "Expand"] == ["a"]


def test_a_constant_that_stays_for_another_node_pays_for_nothing() -> None:
    """Neg is as large as c, and c stays after all, since Tile is refused: together they would be twice as large."""
    before = parse(
        """g (float[1000] x, float[8000] z) => (float[1000] y, float[8000] v) {
            s = Neg(c)  y = Add(x, s)  t = Tile(c, eight)  v = Add(z, t) }""",
        c=floats(1000),
        eight=ints(8),
    )
    refuses(before, FoldConstants(budget=1000), "would grow the model by 4000 bytes")
    # c goes, since Tile is folded as well.
    rewrites(before, FoldConstants(budget=32000), applied=2, expect={"Add": 2})


@pytest.mark.parametrize("readers", [1, 3])
def test_equal_weights_that_are_there_once_are_one_constant(readers: int) -> None:
    """As the TorchScript exporter leaves them; no budget is asked for."""
    steps = "".join(
        f"i{k} = Identity(w)  c{k} = Identity(i{k})  x{k + 1} = MatMul(x{k}, c{k})  " for k in range(readers)
    )
    before = parse(
        f"g (float[2, 64] x0) => (float[2, 64] y) {{ {steps} y = MatMul(x{readers}, w) }}", w=0.1 * floats(64, 64)
    )
    after = rewrites(before, FoldConstants(budget=0), applied=2 * readers, expect={"MatMul": readers + 1})
    assert len(weights(after)) == 1


def test_without_a_budget_what_does_not_grow_is_folded_all_the_same() -> None:
    before = parse(
        "g (float[2, 64] x) => (float[2, 64] y) { t = Transpose(w)  s = Neg(t)  y = MatMul(x, s) }", w=floats(64, 64)
    )
    rewrites(before, FoldConstants(budget=0), applied=2, expect={"MatMul": 1})


def test_without_a_budget_shapes_and_scalars_are_folded_all_the_same() -> None:
    before = parse(
        "g (float[2, 3] x) => (float[3, 2] y) { s = Shape(x)  r = Gather(s, i)  y = Reshape(x, r) }", i=ints(1, 0)
    )
    rewrites(before, FoldConstants(budget=0), applied=2, expect={"Reshape": 1})


def test_a_constant_that_others_read_is_not_saved() -> None:
    """The table of a tied embedding stays, whatever becomes of its transpose."""
    before = parse(
        "g (int64[2] i, float[2, 64] x) => (float[2, 64] y, float[2, 64] z) "
        "{ z = Gather(w, i)  t = Transpose(w)  y = MatMul(x, t) }",
        w=floats(64, 64),
    )
    refuses(before, FoldConstants(budget=1 << 13), "would grow the model by 16384 bytes")
    rewrites(before, FoldConstants(budget=1 << 14), applied=1, expect={"Gather": 1, "MatMul": 1})


def test_what_a_refused_tensor_feeds_is_judged_by_itself() -> None:
    """The sum of a blown-up constant is small again."""
    before = parse(
        "g (float[3] x) => (float[3] y) { e = Expand(w, s)  m = ReduceSum<keepdims = 0>(e)  y = Add(x, m) }",
        w=floats(1, 64),
        s=ints(64, 64),
    )
    after = FoldConstants(budget=0)(before)
    assert_equivalent(before, after)


def test_a_value_too_large_to_be_computed_at_all() -> None:
    before = parse(
        "g (float[3] x) => (float[3] y) { e = Expand(one, s)  f = Slice(e, a, b)  r = Reshape(f, m)  y = Add(x, r) }",
        one=np.ones(1, np.float32), s=ints(1 << 40), a=ints(0), b=ints(3), m=ints(3),
    )  # fmt: skip
    assert len(FoldConstants()(before).graph.node) >= 3


# ------------------------------------------------------------------------------------------------------------ bodies


def test_a_branch_may_read_a_tensor_that_is_folded_outside() -> None:
    before = parse(
        """g (float[3] x, bool[1] c) => (float[3] y) {
            k = Neg(w)
            y = If(c) <then_branch = a () => (float[3] t) { t = Add(x, k) },
                       else_branch = b () => (float[3] e) { e = Mul(x, k) }>
        }""",
        w=floats(3),
    )
    after = FoldConstants()(before)
    assert_equivalent(before, after)


def test_a_branch_may_read_a_shape_that_is_folded_outside() -> None:
    before = parse(
        """g (float[2, 3] x, bool[1] c) => (float[6] y) {
            s = Shape(x)  n = ReduceProd(s)
            y = If(c) <then_branch = a () => (float[6] t) { t = Reshape(x, n) },
                       else_branch = b () => (float[6] e) { r = Neg(x)  e = Reshape(r, n) }>
        }""",
    )
    after = FoldConstants()(before)
    assert_equivalent(before, after)


def test_a_condition_that_is_known_keeps_its_branches() -> None:
    before = parse(
        """g (float[3] x) => (float[3] y) {
            c = Greater(w, z)
            y = If(c) <then_branch = a () => (float[3] t) { t = Neg(x) },
                       else_branch = b () => (float[3] e) { e = Abs(x) }>
        }""",
        w=np.array(1, np.float32),
        z=np.array(0, np.float32),
    )
    rewrites(before, FoldConstants(), applied=1, expect={"If": 1})


def test_the_body_of_a_loop_is_left_alone() -> None:
    before = parse(
        """g (float[3] x) => (float[3] y) {
            k = Exp(w)
            y = Loop(count, keep, x) <body = b (int64 i, bool c, float[3] v) => (bool co, float[3] vo) {
                co = Identity(c)  two = Constant<value_float = 2.0>()  four = Mul(two, two)
                t = Mul(v, four)  vo = Add(t, k)
            }>
        }""",
        w=floats(3),
        count=np.array(3),
        keep=np.array(True),
    )
    after = FoldConstants()(before)
    assert_equivalent(before, after)
    assert [node.op_type for node in after.graph.node] == ["Loop"]

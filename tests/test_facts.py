"""Shapes, dtypes and values of tensors, static and at samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper

from swinopt import graph as graphs
from swinopt import ops
from swinopt.errors import ModelError
from swinopt.facts import Facts
from swinopt.graph import Tensor
from swinopt.sizes import default_sizes
from swinopt.testing import parse
from tests.graphs import Builder, constants_of, known, swin_attention


def described(
    body: str, shape: str = "B, 3, 4", *, sizes: Any = None, **weights: Any
) -> tuple[Facts, dict[str, Tensor]]:
    """Facts of a graph from text with one float input x; B is 2 and 5 unless said otherwise."""
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    return known(parse(f"g (float[{shape}] x) => (y) {{ {body} }}", opset=17, **arrays), **(sizes or {"B": [2, 5]}))


# ------------------------------------------------------------------------------------------------- samples and shapes


def test_a_static_model_has_one_sample() -> None:
    facts, tensors = known(parse("g (float[2, 3] x) => (float[3, 2] y) { y = Transpose(x) }"))
    assert list(facts.samples) == [0] and facts.sizes == [{}]
    y = tensors["y"]
    assert facts.shape(y) == (3, 2) and facts.shapes(y) == [(3, 2)]
    assert facts.dims(y) == facts.static_shape(y) == (3, 2)


def test_a_dynamic_model_is_looked_at_twice() -> None:
    facts, tensors = described("y = Transpose <perm = [0, 2, 1]> (x)")
    y = tensors["y"]
    assert facts.shapes(y) == [(2, 4, 3), (5, 4, 3)] and facts.shape(y, 1) == (5, 4, 3)
    assert facts.dims(y) == (None, 4, 3) and facts.static_shape(y) is None


def test_where_the_rank_depends_on_the_input_there_are_no_dims() -> None:
    facts, tensors = described(
        "s = Shape(x)  n = Gather(s, zero)  o = Sub(n, two)  r = Expand(one, o)  y = Reshape(x, r)",
        zero=[0],
        two=[2],
        one=[1],
    )
    assert facts.dims(tensors["r"]) == (None,)
    assert facts.dims(tensors["y"]) is None


def test_sizes_that_the_model_cannot_take_are_not_looked_at() -> None:
    """An image that is no multiple of 32 does not fit the strides of this one."""
    b = Builder()
    x = b.op("Tanh", b.input((1, 3, "height", "width")))
    sizes = [b.op("Div", b.op("Shape", x, start=axis, end=axis + 1), b.ints(32)) for axis in (2, 3)]
    tiled = b.op("Reshape", x, b.op("Concat", b.ints(1, 3), sizes[0], b.ints(32), sizes[1], b.ints(32), axis=0))
    facts, tensors = known(b.model(b.transpose(tiled, 0, 1, 2, 4, 3, 5), shapes={"y": (1, 3, "h", "w", 32, 32)}))
    for sample in facts.samples:
        shape = facts.shape(tensors["y"], sample)
        assert shape is not None and math.prod(shape) == math.prod(facts.shape(tensors["x"], sample) or ())


def linear_with_a_cropped_residual(height: int | str, multiple: int = 32) -> onnx.ModelProto:
    """The residual is the map less what its height has beyond a multiple."""
    b = Builder()
    x = b.op("Tanh", b.input((1, 4, height, 8)))
    whole = b.op("Mul", b.op("Div", b.op("Shape", x, start=2, end=3), b.ints(multiple)), b.ints(multiple))
    residual = b.op("Slice", x, b.ints(0), whole, b.ints(2))
    y = b.op("Linear", x, b.weights(8, 8), b.weights(8), residual, domain=ops.DOMAIN)
    return b.model(y, shapes={"y": (1, 4, height, 8)})


def test_sizes_that_a_swinopt_op_cannot_take_are_not_looked_at() -> None:
    facts, tensors = known(linear_with_a_cropped_residual("height"))
    assert facts.shapes(tensors["y"]) == facts.shapes(tensors["x"])
    assert all(sizes["height"] % 32 == 0 for sizes in facts.sizes)


def test_where_the_model_takes_no_small_sizes_the_samples_have_the_last_word() -> None:
    model = linear_with_a_cropped_residual("height", 100)
    facts, tensors = known(model, height=[200, 300])
    (residual,) = (node.inputs[3] for node in facts.graph.nodes if node.op == "Linear")
    assert facts.shapes(residual) == facts.shapes(tensors["y"]) == [(1, 4, 200, 8), (1, 4, 300, 8)]


def test_a_swinopt_op_that_fits_for_no_size_is_an_error() -> None:
    with pytest.raises(ModelError, match="residual has shape"):
        known(linear_with_a_cropped_residual(33))
    b = Builder()
    x, residual = b.input(("batch", 4, 8)), b.input((3, 8), "residual")
    y = b.op("Linear", x, b.weights(8, 8), b.weights(8), residual, domain=ops.DOMAIN)
    with pytest.raises(ModelError, match="residual has shape"):
        known(b.model(y, shapes={"y": ("batch", 4, 8)}))


def test_a_reshape_that_does_not_fit_has_no_shape() -> None:
    b = Builder()
    x = b.op("Tanh", b.input((1, 4, "height", "width")))
    sizes = [b.op("Div", b.op("Shape", x, start=axis, end=axis + 1), b.ints(101)) for axis in (2, 3)]
    tiled = b.op("Reshape", x, b.op("Concat", b.ints(1, 4), sizes[0], b.ints(101), sizes[1], b.ints(101), axis=0))
    facts, tensors = known(b.model(tiled, shapes={"y": (1, 4, "h", 101, "w", 101)}))
    assert facts.shapes(tensors["y"]) is None


def test_where_no_samples_are_better_than_others_they_suit_most_models() -> None:
    facts, _ = known(parse("g (float[1, 2, H, W] x) => (y) { y = elsewhere.Strange(x) }"))
    assert facts.sizes == default_sizes(facts.graph.inputs)[-1]


def test_a_table_is_as_long_as_the_inputs_it_is_cut_for() -> None:
    facts, tensors = described(
        "s = Shape(x)  n = Gather(s, zero)  y = Slice(table, zero, n)", zero=[0], table=np.zeros((7, 4), np.float32)
    )
    assert facts.shapes(tensors["y"]) == [(2, 4), (5, 4)]


def test_symbols_of_one_name_are_one_size() -> None:
    model = parse("g (float[N, M] a, float[M, N] b) => (float[N, N] y) { y = MatMul(a, b) }")
    facts, tensors = known(model)
    assert facts.shapes(tensors["y"]) == [(sizes["N"], sizes["N"]) for sizes in facts.sizes]


def test_shapes_come_from_constants_of_shape_arithmetic_as_well() -> None:
    facts, tensors = described(
        "s = Shape(x)  n = Gather(s, zero)  t = Concat <axis = 0> (n, minus)  y = Reshape(x, t)", zero=[0], minus=[-1]
    )
    assert facts.shapes(tensors["y"]) == [(2, 12), (5, 12)]


def test_an_unknown_op_leaves_what_follows_unknown() -> None:
    facts, tensors = described("z = elsewhere.Strange(x)  w = Relu(z)  y = Add(w, x)")
    for name in "zwy":
        assert facts.shape(tensors[name]) is facts.shapes(tensors[name]) is facts.dims(tensors[name]) is None
        assert facts.static_shape(tensors[name]) is facts.dtype(tensors[name]) is None


def test_what_the_model_declares_is_taken_where_an_op_says_nothing() -> None:
    b = Builder()
    strange = b.op("Strange", b.input(("B", 4)), domain="elsewhere")
    model = b.model(b.op("Relu", strange))
    model.graph.value_info.append(helper.make_tensor_value_info(strange, onnx.TensorProto.FLOAT16, (3, 4)))
    facts, tensors = known(model)
    assert facts.shapes(tensors["y"]) == [(3, 4)] * 2 and facts.dtype(tensors["y"]) == np.float16


def test_a_declared_shape_with_a_symbol_is_not_believed() -> None:
    b = Builder()
    strange = b.op("Strange", b.input(("B", 4)), domain="elsewhere")
    model = b.model(b.op("Relu", strange))
    model.graph.value_info.append(helper.make_tensor_value_info(strange, onnx.TensorProto.FLOAT, ("K", 4)))
    facts, tensors = known(model)
    assert facts.shape(tensors["y"]) is None


def test_a_wrong_declaration_does_not_override_an_op() -> None:
    model = parse("g (float[2, 3] x) => (float[3, 2] y) <float[7, 7] z> { z = Transpose(x)  y = Relu(z) }")
    facts, tensors = known(model)
    assert facts.shape(tensors["z"]) == facts.shape(tensors["y"]) == (3, 2)


def test_a_swinopt_op_says_its_shape_itself() -> None:
    from swinopt.passes import FuseWindowAttention

    facts, _ = known(FuseWindowAttention()(swin_attention("B", (4, 6), (2, 3))))
    (node,) = [node for node in facts.graph.nodes if node.domain == ops.DOMAIN]
    assert facts.dims(node.outputs[0]) == (None, 4, 6, 8) and facts.dtype(node.outputs[0]) == np.float32


def test_the_branches_of_an_if_are_left_alone() -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["x"], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", 1, None)],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    b = Builder()
    b.input((2, 3))
    chosen = b.op("If", b.input((), "flag", bool), **branches)
    facts, tensors = known(b.model(b.op("Sigmoid", chosen), shapes={"y": (2, 3)}))
    assert facts.shape(tensors[chosen]) in (None, (2, 3))
    inner = next(graphs.subgraph_nodes(facts.graph))
    assert facts.shape(inner.outputs[0]) == (2, 3), "on demand, what is inside is known as well"


def test_dtypes_follow_the_ops() -> None:
    facts, tensors = described("h = Cast <to = 10> (x)  i = Shape(x)  b = Equal(i, i)  y = Where(b, h, h)")
    dtypes = {"x": np.float32, "h": np.float16, "i": np.int64, "b": np.bool_}
    assert {name: facts.dtype(tensors[name]) for name in dtypes} == dtypes
    assert facts.onnx_dtype(tensors["h"]) == onnx.TensorProto.FLOAT16


def test_a_dtype_that_numpy_lacks_is_known_by_its_number() -> None:
    facts, tensors = described("y = Cast <to = 16> (x)")
    assert facts.onnx_dtype(tensors["y"]) == onnx.TensorProto.BFLOAT16


def test_all_outputs_of_a_node_are_known() -> None:
    facts, tensors = described("a, b = Split <axis = 2> (x, parts)  y = Add(b, b)", parts=[1, 3])
    assert facts.dims(tensors["a"]) == (None, 3, 1) and facts.dims(tensors["b"]) == (None, 3, 3)


# ------------------------------------------------------------------------------------------------------------ values


def depends(facts: Facts, tensor: Tensor) -> bool:
    return facts.constant(tensor) is None


def test_a_shape_is_a_value_at_each_sample() -> None:
    facts, tensors = described("y = Shape(x)")
    assert [facts.value(tensors["y"], sample).tolist() for sample in facts.samples] == [[2, 3, 4], [5, 3, 4]]
    assert depends(facts, tensors["y"])


def test_a_part_of_a_shape_that_is_static_is_constant() -> None:
    facts, tensors = described("s = Shape(x)  y = Slice(s, one, three)", one=[1], three=[3])
    assert facts.constant(tensors["y"]).tolist() == [3, 4]
    facts, tensors = described("y = Shape <start = 1> (x)")
    assert facts.constant(tensors["y"]).tolist() == [3, 4]
    facts, tensors = described("y = Shape <start = -2, end = -1> (x)")
    assert facts.constant(tensors["y"]).tolist() == [3]


def test_a_size_is_constant_where_the_shape_is() -> None:
    facts, tensors = described("y = Size(x)")
    assert [facts.value(tensors["y"], sample).item() for sample in facts.samples] == [24, 60]
    facts, tensors = described("y = Size(x)", "2, 3", sizes={"B": [1]})
    assert facts.constant(tensors["y"]).item() == 6


def test_what_is_put_together_of_static_and_dynamic_sizes_is_partly_known() -> None:
    facts, tensors = described(
        """s = Shape(x)  n = Gather(s, zero)  k = Gather(s, two)  all = Concat <axis = 0> (k, n, k)
           static = Gather(all, ends)  dynamic = Gather(all, one)  y = Add(static, static)""",
        zero=[0],
        one=[1],
        two=[2],
        ends=[0, 2],
    )
    assert depends(facts, tensors["all"]) and depends(facts, tensors["dynamic"])
    assert facts.constant(tensors["static"]).tolist() == [4, 4]
    assert facts.constant(tensors["y"]).tolist() == [8, 8]


@pytest.mark.parametrize(
    "arithmetic",
    [
        "y = Equal(n, one)",
        "y = Less(one, n)",
        "y = Min(n, one)",
        "y = Max(n, many)",
        "y = Mod(n, one)",
        "y = Sub(n, n)",
        "e = Equal(n, one)  y = Where(e, one, many)",
        "e = Equal(n, one)  f = Not(e)  y = Cast <to = 7> (f)",
        "e = Equal(n, one)  y = And(e, e)",
        "e = Equal(n, one)  r = Reshape(e, one)  y = Cast <to = 7> (r)",
        "m = Mod(n, one)  start = Squeeze(m)  end = Squeeze(many)  step = Squeeze(few)  y = Range(start, end, step)",
    ],
)
def test_what_comes_out_alike_in_both_samples_is_not_constant_for_that(arithmetic: str) -> None:
    body = f"s = Shape(x)  n = Gather(s, zero)  {arithmetic}"
    facts, tensors = described(body, zero=[0], one=[1], few=[4], many=[100])
    first, second = (facts.value(tensors["y"], sample) for sample in facts.samples)
    assert first is second is None or np.array_equal(first, second), "the point of this test is that the samples agree"
    assert depends(facts, tensors["y"])
    assert not facts.is_shown_by_samples(tensors["y"])


def test_arithmetic_keeps_the_elements_apart() -> None:
    facts, tensors = described(
        "s = Shape(x)  d = Mul(s, two)  e = Equal(d, d)  t = Slice(e, one, three)  y = Not(t)",
        one=[1],
        two=[2],
        three=[3],
    )
    assert depends(facts, tensors["e"]) and facts.constant(tensors["y"]).tolist() == [False, False]


def test_a_value_that_differs_between_the_samples_is_shown_by_them() -> None:
    facts, tensors = described("s = Shape(x)  n = Gather(s, zero)  y = Sub(n, one)", zero=[0], one=[1])
    assert facts.is_shown_by_samples(tensors["y"]) and facts.is_shown_by_samples(tensors["one"])


def test_padding_that_happens_to_be_nothing_is_not_shown_by_the_samples() -> None:
    facts, tensors = described(
        "s = Shape(x)  n = Gather(s, zero)  o = Sub(n, one)  m = Mod(o, two)  y = Sub(two, m)",
        sizes={"B": [5, 9]},
        zero=[0],
        one=[1],
        two=[2],
    )
    assert facts.value(tensors["y"], 0).tolist() == facts.value(tensors["y"], 1).tolist()
    assert not facts.is_shown_by_samples(tensors["y"])


#: y depends on how many elements e has: one for even batches, and none for odd ones, as are the samples and extremes.
OF_ANY_LENGTH = {
    "moved": "y = Transpose(e)",
    "with others": "y = Concat<axis = 0>(three, n, e)",
    "with another axis for a while": "w = Unsqueeze(e, zero)  y = Squeeze(w, zero)",
    "behind others": "c = Concat<axis = 0>(e, list)  y = Slice(c, two, three)",
    "its shape": "y = Shape(e)",
    "added to a part of a shape": "k = Add(three, m)  l = Expand(one, k)  a = Add(l, n)  y = Slice(a, three, ten)",
    "a remainder": "r = Mod(one, e)  y = ReduceSum<keepdims = 0>(r)",
}


@pytest.mark.parametrize("body", OF_ANY_LENGTH.values(), ids=OF_ANY_LENGTH)
def test_a_tensor_may_have_more_elements_for_other_sizes(body: str) -> None:
    constants = {"zero": [0], "one": [1], "two": [2], "three": [3], "ten": [10], "list": [7, 8, 9]}
    text = f"s = Shape(x)  n = Gather(s, zero)  o = Sub(n, one)  m = Mod(o, two)  e = Expand(three, m)  {body}"
    facts, tensors = described(text, sizes={"B": [5, 9]}, **constants_of(text, constants))
    for name in ("e", "y"):
        assert facts.constant(tensors[name]) is None and not facts.is_shown_by_samples(tensors[name])


def test_what_is_reduced_to_one_element_is_one() -> None:
    facts, tensors = described(
        "s = Shape(x)  p = ReduceProd<axes = [0]>(s)  c = Concat<axis = 0>(p, two)  y = Slice(c, one, two)",
        one=[1],
        two=[2],
    )
    value = facts.constant(tensors["y"])
    assert value is not None and value.tolist() == [2]


def test_a_part_of_a_shape_without_sizes_is_constant() -> None:
    facts, tensors = described("s = Shape(x)  y = Slice(s, one, one)", one=[1])
    empty = facts.constant(tensors["y"])
    assert empty is not None and empty.shape == (0,) and facts.is_shown_by_samples(tensors["y"])


@pytest.mark.parametrize(
    ("body", "is_shift"),
    [
        ("y = Mod(three, n)  a = Slice(x, y, n, zero)  b = Slice(x, zero, y, zero)  c = Concat<axis = 0>(a, b)", True),
        ("y = Mod(three, n)  a = Slice(x, y, n, zero)  b = Slice(x, zero, y, zero)", False),
        ("y = Mod(three, n)  a = Slice(x, y, n, zero)  b = Relu(x)  c = Concat<axis = 0>(a, b)", False),
        ("y = Mod(three, n)  a = Slice(x, y, n, zero)  f = Cast<to = 1>(y)", False),
        ("y = Mod(three, n)  a = Expand(x, y)", False),
    ],
    ids=["of a roll", "of slices that nothing joins", "of one slice alone", "of more than that", "of a shape"],
)
def test_a_remainder_by_a_size_is_the_number_itself_for_a_roll_alone(body: str, is_shift: bool) -> None:
    facts, tensors = described(f"s = Shape(x)  n = Gather(s, zero)  {body}", sizes={"B": [5, 8]}, zero=[0], three=[3])
    assert (facts.constant(tensors["y"]) is not None) == is_shift


@pytest.mark.parametrize(
    ("start", "end", "length"),
    [
        (-4, 0, 0),
        (4, 2, 0),
        (-2, -4, 0),
        (-4, -2, 2),
        (-2, 2**31 - 1, 2),
        (-2, 2**63 - 1, 2),
        (1, 3, 2),
        (0, -32, None),
        (32, 48, None),
        (-4, 6, None),
        (-2, 40, None),
        (-12, -9, None),
    ],
)
def test_a_slice_of_a_range_is_as_long_for_all_sizes_or_for_those_that_were_looked_at(
    start: int, end: int, length: int | None
) -> None:
    """The range is a multiple of 8, as the sides of a map are that is padded to whole windows."""
    facts, tensors = described(
        """s = Shape(x)  b = Gather(s, i)  side = Mul(b, eight)  r = Range(i, side, one)  t = Slice(r, start, end)
           y = Shape(t)""",
        sizes={"B": [2, 3]},
        i=0,
        one=1,
        eight=8,
        start=[start],
        end=[end],
    )
    found = facts.constant(tensors["y"])
    assert (None if found is None else found.tolist()) == (None if length is None else [length])


def test_values_are_not_kept_beyond_small_sizes() -> None:
    facts, tensors = described("s = Shape(x)  big = Expand(one, n)  y = Add(big, big)", one=[1], n=[2000])
    assert facts.value(tensors["y"]) is None and facts.shape(tensors["y"]) == (2000,)


# ------------------------------------------------------------------------------------------------- constants on demand


def test_a_constant_is_computed_on_demand_however_large() -> None:
    facts, tensors = described(
        "big = Expand(one, n)  twice = Add(big, big)  y = Add(twice, x)", one=np.float32([1]), n=[2000, 1, 1]
    )
    assert facts.constant(tensors["twice"]).shape == (2000, 1, 1) and (facts.constant(tensors["twice"]) == 2).all()
    assert facts.constant(tensors["one"]).tolist() == [1]
    assert facts.constant(tensors["y"]) is None and facts.constant(tensors["x"]) is None


def test_no_step_of_a_constant_may_be_larger_than_the_limit() -> None:
    body = "big = Expand(one, n)  sum = ReduceSum <keepdims = 0> (big)  y = Add(sum, x)"
    facts, tensors = described(body, one=np.float32([1]), n=[2000])
    assert facts.constant(tensors["sum"], limit=1999) is None
    assert facts.constant(tensors["sum"], limit=2000).item() == 2000


def test_a_random_tensor_is_no_constant() -> None:
    facts, tensors = described(
        "noise = RandomNormalLike(one)  twice = Add(noise, noise)  y = Add(twice, x)", one=np.float32([1])
    )
    assert facts.constant(tensors["noise"]) is None and facts.constant(tensors["twice"]) is None
    assert facts.value(tensors["twice"]) is None and facts.shape(tensors["twice"]) == (1,)


def test_quantised_weights_stay_quantised() -> None:
    facts, tensors = described("w = DequantizeLinear(q, s)  y = Add(w, x)", q=np.int8([1, 2, 3, 4]), s=np.float32(0.5))
    assert facts.constant(tensors["w"]) is None and facts.shape(tensors["w"]) == (4,)


def test_the_shape_of_a_static_tensor_is_a_constant_though_the_tensor_is_none() -> None:
    facts, tensors = described("s = Shape(x)  y = Mul(s, s)", "2, 3", sizes={"B": [1]})
    assert facts.constant(tensors["y"]).tolist() == [4, 9]


# ------------------------------------------------------------------------------------------------------------- learn


def test_what_is_learnt_of_a_new_tensor_is_known() -> None:
    facts, tensors = described("y = Relu(x)")
    new = gs.Variable("new")
    facts.learn(new, like=tensors["y"])
    assert facts.shapes(new) == [(2, 3, 4), (5, 3, 4)] and facts.dtype(new) == np.float32
    other = gs.Variable("other")
    facts.learn(other, like=tensors["y"], shapes=[(2, 12), (5, 12)])
    assert facts.dims(other) == (None, 12) and facts.dtype(other) == np.float32


def test_a_node_that_was_just_made_is_looked_at_on_demand() -> None:
    facts, tensors = described("y = Relu(x)")
    out = gs.Variable("out")
    facts.graph.nodes.append(gs.Node("Transpose", inputs=[tensors["y"]], outputs=[out], attrs={"perm": [2, 1, 0]}))
    end = gs.Variable("end")
    facts.graph.nodes.append(gs.Node("Neg", inputs=[out], outputs=[end]))
    assert facts.dims(end) == (4, 3, None) and facts.dtype(out) == np.float32


def test_a_long_chain_of_new_nodes_is_no_matter_of_recursion() -> None:
    facts, tensors = described("y = Relu(x)")
    tensor = tensors["y"]
    for number in range(3000):
        out = gs.Variable(f"new{number}")
        facts.graph.nodes.append(gs.Node("Dropout" if number % 2 else "Neg", inputs=[tensor], outputs=[out]))
        tensor = out
    assert facts.dims(tensor) == (None, 3, 4)


def test_annotations_say_what_is_known() -> None:
    facts, tensors = described("z = Transpose <perm = [2, 1, 0]> (x)  y = Relu(z)")
    facts.annotate()
    assert tensors["z"].shape == [4, 3, None] and tensors["z"].dtype in (np.float32, onnx.TensorProto.FLOAT)

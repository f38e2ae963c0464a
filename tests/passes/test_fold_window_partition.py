from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinopt import Pipeline, ops
from swinopt.passes import FoldWindowPartition, FuseWindowAttention
from swinopt.testing import assert_equivalent, leaves_alone, refuses, rewrites
from tests.graphs import Builder, run, swin_attention

FOLD = FoldWindowPartition()
HEADS, D = 2, 4
C = HEADS * D

#: What the docstring promises: roll and partition are one movement, joined with the split into heads.
ATTENTION = {"Split": 1, "MatMul": 2, "Mul": 1, "Add": 1, "Softmax": 1}
PLAIN = {**ATTENTION, "Reshape": 4, "Transpose": 3}
SHIFTED = {**ATTENTION, "Add": 2, "Reshape": 3, "Transpose": 3, "Gather": 2}
COSINE = {"ReduceL2": 2, "Max": 2, "Div": 2}


def window_attention(
    size: tuple[int | str, ...] = (4, 6),
    window: tuple[int, ...] = (2, 3),
    shift: tuple[int, ...] | None = None,
    *,
    batch: int | str = 2,
    cosine: bool = False,
    pad: str | None = None,
    roll_first: bool = False,
    mask_value: float | None = None,
    logit_scale: str = "constant",
    loudness: float = 1.0,
    opset: int = 17,
    dtype: Any = np.float32,
) -> onnx.ModelProto:
    """One WindowAttention between two functions, with its function body.

    ``pad``: "linear" takes the bias of the linear in front, "other" another constant, "input" an input, "read" the
    bias of a linear whose result is read elsewhere, too.
    """
    b = Builder(opset=opset, dtype=dtype)
    x = b.input((batch, *size, C))
    bias_of_linear = b.weights(3 * C, scale=loudness)
    qkv = b.op("MatMul", x, b.weights(C, 3 * C, scale=loudness * C**-0.5))
    if pad != "no linear":
        qkv = b.op("Add", qkv, bias_of_linear)
    n = int(np.prod(window))
    inputs = [qkv, b.weights(HEADS, n, n)]
    if cosine or pad:
        scale = b.constant(b.random.uniform(1, 20, HEADS))
        scale = b.op("Exp", b.input((HEADS,), "scale")) if logit_scale == "input" else scale
        inputs.append(scale if cosine else "")
    if pad:
        pads = {"linear": bias_of_linear, "read": bias_of_linear}
        inputs.append(pads.get(pad) or (b.op("Neg", b.input((3 * C,), "pad")) if pad == "input" else b.weights(3 * C)))
    attrs = {} if mask_value is None else {"mask_value": mask_value}
    result = b.op(
        "WindowAttention",
        *inputs,
        domain=ops.DOMAIN,
        window_size=window,
        shift_size=shift or (0,) * len(window),
        num_heads=HEADS,
        scale=D**-0.5,
        **attrs,
        **({"roll_first": 1} if roll_first else {}),
    )
    outputs = [b.op("Neg", result), *([b.op("Neg", qkv)] if pad == "read" else [])]
    shapes = {"y" if len(outputs) == 1 else "y0": (batch, *size, C), "y1": (batch, *size, 3 * C)}
    model = b.model(*outputs, shapes=shapes)
    for output in model.graph.output:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        output.CopyFrom(onnx.helper.make_tensor_value_info(output.name, kind, shapes[output.name]))
    ops.attach_bodies(model)
    return model


def counts(model: onnx.ModelProto) -> dict[str, int]:
    found = [node.op_type for node in model.graph.node]
    return {op: found.count(op) for op in found}


def folded(before: onnx.ModelProto, *, applied: int = 1, tolerance: float | None = None) -> dict[str, int]:
    """Writes it in standard ops, compares with the op's body, and counts the nodes that stand in for the op."""
    after = rewrites(before, FOLD, applied=applied, tolerance=tolerance)
    assert {node.domain for node in after.graph.node} == {""} and not after.functions
    found = counts(after)
    assert not {"Slice", "Concat"} & set(found)
    return found


def instead(before: onnx.ModelProto, found: dict[str, int]) -> dict[str, int]:
    """The nodes that are not in ``before``."""
    there = counts(before)
    difference = {op: found.get(op, 0) - there.get(op, 0) for op in {*found, *there} - {"WindowAttention"}}
    return {op: number for op, number in difference.items() if number}


# ------------------------------------------------------------------------------------------------------ the op alone


@pytest.mark.parametrize("batch", [1, 3, "batch"])
@pytest.mark.parametrize("cosine", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("shift", [(0, 0), (1, 1), (0, 2), (1, 0)], ids=str)
def test_partition_and_head_split_are_as_few_nodes_as_promised(
    shift: tuple[int, int], cosine: bool, batch: int | str
) -> None:
    before = window_attention(shift=shift, cosine=cosine, batch=batch)
    expected = SHIFTED if any(shift) else PLAIN
    assert instead(before, folded(before)) == {**expected, **(COSINE if cosine else {})}


def test_without_shift_partition_and_head_split_are_one_transpose() -> None:
    after = FOLD(window_attention())
    made = {name: node for node in after.graph.node for name in node.output}
    (split,) = [node for node in after.graph.node if node.op_type == "Split"]
    line, node = [], made[split.input[0]]
    while node.op_type != "Add":
        line.append(node.op_type)
        node = made[node.input[0]]
    assert line == ["Reshape", "Transpose", "Reshape"]


def test_with_shift_roll_and_partition_are_one_gather() -> None:
    after = FOLD(window_attention(shift=(1, 2)))
    made = {name: node for node in after.graph.node for name in node.output}
    (split,) = [node for node in after.graph.node if node.op_type == "Split"]
    line, node = [], made[split.input[0]]
    while node.op_type != "Add":
        line.append(node.op_type)
        node = made[node.input[0]]
    assert line == ["Transpose", "Reshape", "Gather", "Reshape"]


@pytest.mark.parametrize("opset", [17, 18, 20])
@pytest.mark.parametrize("cosine", [False, True], ids=["V1", "V2"])
def test_every_opset(opset: int, cosine: bool) -> None:
    folded(window_attention(shift=(1, 1), cosine=cosine, opset=opset))


@pytest.mark.parametrize("mask_value", [-100.0, -5.0, 0.0, -30000.0])
def test_the_mask_has_the_value_that_the_op_says(mask_value: float) -> None:
    folded(window_attention(shift=(1, 1), mask_value=mask_value))


def test_a_factor_per_head_that_is_no_constant() -> None:
    before = window_attention(cosine=True, logit_scale="input")
    assert instead(before, folded(before)) == {**PLAIN, **COSINE, "Unsqueeze": 1}


def test_short_vectors_are_normalised_like_long_ones() -> None:
    """v is as short as q and k, so that the result is compared as a fraction of it."""
    before = window_attention(cosine=True, loudness=1e-6)
    x = np.random.default_rng(0).standard_normal((2, 4, 6, C)).astype(np.float32)
    (expected,), (found,) = run(before, x), run(FOLD(before), x)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)


def test_half_precision() -> None:
    for cosine in (False, True):
        after = FOLD(window_attention(shift=(1, 1), cosine=cosine, dtype=np.float16))
        kinds = {w.data_type for w in after.graph.initializer}
        assert kinds == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
        folded(window_attention(shift=(1, 1), cosine=cosine, dtype=np.float16), tolerance=2e-2)


GEOMETRIES = [
    ((4, 4), (4, 4), (0, 0)),
    ((4, 6), (2, 2), (1, 1)),
    ((6, 4), (3, 2), (2, 1)),
    ((2, 8), (2, 4), (0, 2)),
    ((4, 4, 6), (2, 2, 3), (0, 0, 0)),
    ((4, 4, 6), (2, 2, 3), (1, 0, 2)),
    ((12,), (4,), (0,)),
    ((12,), (4,), (1,)),
]


@pytest.mark.parametrize(("size", "window", "shift"), GEOMETRIES, ids=str)
@pytest.mark.parametrize("batch", [2, "batch"])
def test_maps_of_any_number_of_axes(size: Any, window: Any, shift: Any, batch: int | str) -> None:
    folded(window_attention(size, window, shift, batch=batch))


PADDED = [
    ((5, 7), (3, 4), (0, 0)),
    ((5, 7), (3, 4), (1, 2)),
    ((3, 4, 5), (2, 2, 3), (1, 0, 1)),
    ((3, 3), (4, 4), (0, 0)),
]


@pytest.mark.parametrize("roll_first", [False, True], ids=["pad first", "roll first"])
@pytest.mark.parametrize("cosine", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize(("size", "window", "shift"), PADDED, ids=str)
def test_a_map_that_is_no_multiple_of_the_window(
    size: Any, window: Any, shift: Any, cosine: bool, roll_first: bool
) -> None:
    for batch in (2, "batch"):
        folded(window_attention(size, window, shift, cosine=cosine, pad="linear", roll_first=roll_first, batch=batch))


@pytest.mark.parametrize(
    ("pad", "more"),
    [
        ("linear", {}),
        ("other", {"Sub": 1, "Add": 1}),
        ("read", {"Sub": 1, "Add": 1}),
        ("input", {"Sub": 1, "Add": 1}),
        ("no linear", {"Sub": 1, "Add": 1}),
    ],
)
def test_what_a_padded_token_is_may_come_from_anywhere(pad: str, more: dict[str, int]) -> None:
    """Where it is the bias of the linear, the bias is added behind the Gather, and costs nothing."""
    before = window_attention((5, 7), (3, 4), (1, 2), pad=pad)
    expected = {**SHIFTED, "Pad": 1, **more, "Add": SHIFTED["Add"] + more.get("Add", 0)}
    assert instead(before, folded(before)) == expected


def test_what_a_padded_token_is_does_not_matter_where_nothing_is_padded() -> None:
    before = window_attention(shift=(1, 1), pad="other")
    assert instead(before, folded(before)) == SHIFTED


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    window = [draw(st.integers(1, 4)) for _ in range(axes)]
    size = [draw(st.integers(1, 6)) for _ in range(axes)]
    shift = [draw(st.integers(0, w - 1)) for w in window]
    return {"size": tuple(size), "window": tuple(window), "shift": tuple(shift), "roll_first": draw(st.booleans())}


@settings(deadline=None, max_examples=20)
@given(geometries(), st.sampled_from(["linear", "other"]), st.sampled_from([1, "batch"]), st.booleans())
def test_whatever_map_window_and_shift_the_result_is_the_same(
    geometry: dict[str, Any], pad: str, batch: int | str, cosine: bool
) -> None:
    folded(window_attention(**geometry, pad=pad, batch=batch, cosine=cosine))


# --------------------------------------------------------------------------------------------------- as exporters do


@pytest.mark.parametrize("cosine", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("shift", [(0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("options", [{}, {"separate": True}, {"gemm": True}, {"batch": "batch"}], ids=str)
def test_an_exported_attention_is_fused_first(options: dict[str, Any], shift: tuple[int, int], cosine: bool) -> None:
    found = folded(swin_attention(**{"batch": 2, **options}, shift=shift, cosine=cosine), applied=2)
    expected = {**(SHIFTED if any(shift) else PLAIN), **(COSINE if cosine else {}), "Tanh": 1}
    # The linears of qkv and projection, and the residual.
    assert found == {**expected, "MatMul": 4, "Add": expected["Add"] + 3}


def test_an_exported_attention_over_a_padded_map() -> None:
    for roll_first in (False, True):
        found = folded(swin_attention("batch", (3, 5), (2, 2), (1, 1), roll_first=roll_first), applied=2)
        assert found["Pad"] == 1 and found["Gather"] == 2 and found["Add"] == 2 + 3 and "Sub" not in found


def test_it_is_the_same_as_fused_before() -> None:
    before = swin_attention(2, shift=(1, 1))
    assert counts(FOLD(before)) == counts(FOLD(FuseWindowAttention()(before)))


def test_what_cannot_be_fused_is_refused_and_stays_as_it_is() -> None:
    refuses(swin_attention(2, spoil={"q": lambda b, x: b.op("Relu", x)}), FOLD, "there is a Relu between the linear")


# -------------------------------------------------------------------------------------------------------- near misses


@pytest.mark.parametrize("size", [("h", 6), (4, "w"), ("h", "w")], ids=str)
def test_a_map_whose_size_depends_on_the_input_is_refused(size: tuple[int | str, ...]) -> None:
    before = window_attention(size, shift=(1, 1), pad="linear")
    assert_equivalent(before, before)
    refuses(before, FOLD, "the size of the map depends on the input")


def test_an_op_of_that_name_in_another_domain_is_left_alone() -> None:
    model = window_attention()
    ops.strip_bodies(model)
    (node,) = [node for node in model.graph.node if node.domain == ops.DOMAIN]
    node.domain = "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    assert counts(FOLD(model)) == counts(model)


def test_what_is_to_be_kept_is_kept() -> None:
    before = window_attention()
    (attention,) = ops.nodes(before)
    fold = FoldWindowPartition(kept=(attention.output[0],))
    leaves_alone(before, fold)
    assert str(Pipeline.parse(str(Pipeline(fold)))) == str(Pipeline(fold))
    rewrites(before, FoldWindowPartition(kept=("another",)), applied=1)

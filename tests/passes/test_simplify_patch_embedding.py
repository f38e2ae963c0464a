from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from swinopt.graph import op_counts
from swinopt.passes import SimplifyMovement, SimplifyPatchEmbedding
from swinopt.testing import leaves_alone, parse, refuses, rewrites

SIMPLIFY = SimplifyPatchEmbedding()


def floats(*shape: int) -> Any:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def embedding(
    size: tuple[int | str, ...] = (8, 12),
    kernel: tuple[int, ...] = (4, 4),
    strides: tuple[int, ...] | None = None,
    batch: int | str = 2,
    bias: bool = True,
    more: str = "",
    weight: tuple[int, ...] | None = None,
) -> onnx.ModelProto:
    axes = ", ".join(map(str, (batch, 3, *size)))
    steps = list(strides or kernel)
    last = [0, *range(2, 2 + len(size)), 1]
    return parse(
        f"""g (float[{axes}] x) => (float y) {{
            c = Conv<strides={steps} {more}>(x, w{", b" if bias else ""})  y = Transpose<perm={last}>(c) }}""",
        w=floats(*(weight or (6, 3, *kernel))),
        **({"b": floats(6)} if bias else {}),
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [1, 3, "N"])
@pytest.mark.parametrize(
    ("size", "kernel"),
    [((8, 12), (4, 4)), ((8, 12), (2, 3)), ((9,), (3,)), ((4, 8, 8), (2, 4, 4)), (("H", 8), (1, 4))],
    ids=str,
)
def test_a_convolution_on_patches_is_a_linear(
    size: tuple[int | str, ...], kernel: tuple[int, ...], batch: int | str, bias: bool
) -> None:
    after = rewrites(embedding(size, kernel, batch=batch, bias=bias), SIMPLIFY, applied=1)
    assert op_counts(after) == {"Reshape": 2, "Transpose": 3, "MatMul": 1, **({"Add": 1} if bias else {})}
    simple = op_counts(SimplifyMovement()(after))
    assert simple["Transpose"] == 1, "the way back and the model's own cancel each other"


def test_attributes_that_say_the_defaults() -> None:
    plain = ", kernel_shape=[4,4], dilations=[1,1], group=1, pads=[0,0,0,0]"
    for more in (plain, ', auto_pad="VALID"', ', auto_pad="NOTSET"'):
        rewrites(embedding(more=more), SIMPLIFY, applied=1)


def test_half_precision_stays_half() -> None:
    before = parse(
        """g (float16[2, 3, 8, 8] x) => (float16[2, 2, 2, 6] y) {
            c = Conv<strides=[4,4]>(x, w, b)  y = Transpose<perm=[0,2,3,1]>(c) }""",
        w=(0.1 * floats(6, 3, 4, 4)).astype(np.float16),
        b=floats(6).astype(np.float16),
    )
    after = rewrites(before, SIMPLIFY, applied=1)
    assert {w.data_type for w in after.graph.initializer} == {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}


@pytest.mark.parametrize(
    "other",
    [
        embedding(strides=(2, 2)),
        embedding(strides=(4, 2)),
        embedding(kernel=(1, 1)),
        embedding(more=", pads=[1,1,1,1]"),
        embedding(size=(14, 14), strides=(4, 4), kernel=(4, 4), more=", dilations=[2,2]"),
        embedding(more=', auto_pad="SAME_UPPER"'),
        embedding(more=", group=3", weight=(6, 1, 4, 4)),
    ],
    ids=["overlap", "overlap along one axis", "pixels", "padded", "dilated", "padded by itself", "grouped"],
)
def test_other_convolutions_are_left_alone(other: onnx.ModelProto) -> None:
    leaves_alone(other, SIMPLIFY)


def test_a_computed_weight_is_left_alone() -> None:
    leaves_alone(
        """g (float[1, 3, 8, 8] x, float[6, 3, 4, 4] w) => (float[1, 2, 2, 6] y) {
            v = Tanh(w)  c = Conv<strides=[4,4]>(x, v)  y = Transpose<perm=[0,2,3,1]>(c) }""",
        SIMPLIFY,
    )


def test_what_is_refused() -> None:
    refuses(embedding(size=(9, 12)), SIMPLIFY, "no multiple of its patches of 4x4")
    for size in (("H", 12), (8, "W"), ("H", "W")):
        refuses(embedding(size=size), SIMPLIFY, "depends on the input, and may be no multiple of the patch")
    computed = parse(
        """g (float[1, 3, 8, 8] x, float[6] b) => (float[1, 2, 2, 6] y) {
            c = Tanh(b)  m = Conv<strides=[4,4]>(x, w, c)  y = Transpose<perm=[0,2,3,1]>(m) }""",
        w=floats(6, 3, 4, 4),
    )
    refuses(computed, SIMPLIFY, "the bias is computed")
    for multiple, asked in ((8, "48 to 6"), (5, "48 to 6")):
        refuses(embedding(), SimplifyPatchEmbedding(multiple=multiple), f"from {asked} features, which are not both")
    rewrites(embedding(), SimplifyPatchEmbedding(multiple=6), applied=1)


@pytest.mark.parametrize(
    ("reader", "there"),
    [
        ("y = Reshape(c, tokens)", False),
        ("r = Reshape(c, tokens)  y = Transpose<perm=[0,2,1]>(r)", True),
        ("r = Reshape(c, tokens)  y = Transpose<perm=[2,0,1]>(r)", True),
        ("r = Reshape(c, tokens)  y = Transpose<perm=[1,0,2]>(r)", False),
        ("r = Reshape(c, mixed)  y = Transpose<perm=[0,2,1]>(r)", False),
        ("r = Relu(c)  y = Transpose<perm=[0,2,3,1]>(r)", False),
        ("y = Transpose(c)", False),
        ("r = Transpose<perm=[0,2,3,1]>(c)  s = Relu(c)  t = Transpose<perm=[0,2,3,1]>(s)  y = Add(r, t)", False),
    ],
    ids=str,
)
def test_channels_have_to_go_last(reader: str, there: bool) -> None:
    """Else two transpositions would take the place of a convolution."""
    before = parse(
        f"g (float[2, 3, 8, 12] x) => (float y) {{ c = Conv<strides=[4,4]>(x, w)  {reader} }}",
        w=floats(6, 3, 4, 4),
        tokens=np.array([2, 6, 6]),
        mixed=np.array([2, 2, 18]),
    )
    if there:
        rewrites(before, SIMPLIFY, applied=1)
    else:
        refuses(before, SIMPLIFY, "not transposed to the end")

from __future__ import annotations

import numpy as np
import onnx
import pytest

import swinopt
from swinopt import opset
from swinopt.errors import ModelError
from swinopt.testing import assert_equivalent, parse

LARGE = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)


def model(version: int, body: str = "m = MatMul(x, w)  y = Relu(m)") -> onnx.ModelProto:
    return parse(f"g (float[2, 32] x) => (float[2, 32] y) {{ {body} }}", opset=version, w=LARGE)


@pytest.mark.parametrize("version", [1, 5, 6])
def test_what_is_older_than_opset_7_is_refused_with_advice(version: int) -> None:
    old = model(version)
    with pytest.raises(ModelError, match=f"opset {version}; export it again with opset 7 or newer"):
        opset.convert(old, 17)
    with pytest.raises(ModelError, match=f"opset {version}; export it again"):
        swinopt.optimize(old, verify=False, passes=())


@pytest.mark.parametrize(("old", "new"), [(7, 17), (11, 17), (12, 20), (13, 17), (17, 20), (20, 17), (22, 17)])
def test_a_model_means_the_same_in_another_opset(old: int, new: int) -> None:
    before = model(old)
    source = before.SerializeToString()
    after = opset.convert(before, new)
    assert opset.version_of(after) == new
    assert before.SerializeToString() == source
    onnx.checker.check_model(after)
    assert_equivalent(before, after, tolerance=1e-6)


def test_attributes_that_became_inputs() -> None:
    before = parse(
        "g (float[2, 4] x) => (float[1, 2] y) "
        "{ s = Slice<starts = [0], ends = [2], axes = [1]>(x)  m = ReduceMean<axes = [0]>(s)  y = Clip<max = 0.5>(m) }",
        opset=9,
    )
    after = opset.convert(before, 18)
    assert [len(node.input) for node in after.graph.node if node.op_type == "Slice"] != [1]
    assert_equivalent(before, after, tolerance=1e-6)


def test_the_model_itself_if_it_has_the_opset() -> None:
    before = model(17)
    assert opset.convert(before, 17) is before


def test_what_the_older_opset_cannot_say_is_refused() -> None:
    with pytest.raises(ModelError, match="opset 20 cannot be converted to 17: "):
        opset.convert(parse("g (float[2] x) => (float[2] y) { y = Gelu(x) }"), 17)


def test_attributes_that_say_nothing_new_are_no_obstacle_on_the_way_back() -> None:
    before = parse("g (float[2, 3] x) => (int64[2, 3] y) { y = Cast<to = 7, saturate = 1>(x) }", opset=19)
    after = opset.convert(before, 17)
    assert [a.name for a in after.graph.node[0].attribute] == ["to"]
    onnx.checker.check_model(after)
    assert_equivalent(before, after, tolerance=0)


def test_attributes_that_say_something_new_are_refused_on_the_way_back() -> None:
    before = parse("g (float[2, 3] x) => (int64[1] y) { y = Shape<end = 1>(x) }", opset=19)
    with pytest.raises(ModelError, match="opset 19 cannot be converted to 13"):
        opset.convert(before, 13)


@pytest.mark.parametrize(
    "body",
    [
        "y = Pad(x, pads)",
        'y = Pad<mode = "reflect">(x, ones)',
        "y, z = Split<axis = 1>(x, sizes)",
        "y, z = Split<axis = -1, num_outputs = 2>(x)",
        "s = Shape(x)  y = ConstantOfShape(s)",
        "y = GlobalMaxPool(x)",
    ],
    ids=str,
)
def test_ops_that_the_converter_knows_no_way_back_for(body: str) -> None:
    before = parse(
        f"g (float[2, 3, 4] x) => (float y) {{ {body} }}",
        opset=22,
        pads=np.array([0, 0, 1, 2, 0, 0]),
        ones=np.array([0, 0, 1, 0, 0, 1]),
        sizes=np.array([1, 2]),
    )
    after = opset.convert(before, 17)
    assert opset.version_of(after) == 17 and [o.domain for o in after.opset_import] == [""]
    onnx.checker.check_model(after)
    assert_equivalent(before, after, tolerance=0)


@pytest.mark.parametrize(
    "body",
    ['y = Pad<mode = "wrap">(x, pads)', "y = Pad(x, two, , axes)", "y, z = Split<axis = 1, num_outputs = 2>(x)"],
    ids=["wrap", "axes", "uneven"],
)
def test_what_such_an_op_says_anew_is_refused(body: str) -> None:
    before = parse(
        f"g (float[2, 3, 4] x) => (float y) {{ {body} }}",
        opset=20,
        pads=np.array([0, 0, 1, 0, 0, 1]),
        two=np.array([1, 1]),
        axes=np.array([2]),
    )
    with pytest.raises(ModelError, match="opset 20 cannot be converted to 17"):
        opset.convert(before, 17)


def test_a_model_without_a_standard_opset() -> None:
    proto = model(17)
    proto.opset_import[0].domain = "acme"
    with pytest.raises(ModelError, match="does not say which version of the standard opset"):
        opset.version_of(proto)


def test_the_standard_domain_may_be_written_out() -> None:
    proto = model(17)
    proto.opset_import[0].domain = "ai.onnx"
    proto.opset_import.append(onnx.helper.make_opsetid("acme", 3))
    assert opset.version_of(proto) == 17


def test_what_is_beside_the_nodes_is_kept() -> None:
    before = model(13)
    before.producer_name = "somebody"
    before.graph.doc_string = "what it is"
    before.metadata_props.add(key="author", value="somebody")
    before.opset_import.append(onnx.helper.make_opsetid("acme", 3))
    after = opset.convert(before, 17)
    assert after.producer_name == "somebody"
    assert [(p.key, p.value) for p in after.metadata_props] == [("author", "somebody")]
    assert {o.domain: o.version for o in after.opset_import} == {"": 17, "acme": 3}
    assert [i.name for i in after.graph.input] == ["x"]
    assert [w.name for w in after.graph.initializer] == ["w"]


def test_a_large_weight_that_is_an_input_too() -> None:
    before = model(13)
    before.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, LARGE.shape))
    assert_equivalent(before, opset.convert(before, 17), tolerance=0)


def test_weights_of_branches() -> None:
    before = parse(
        """g (float[32, 32] x, bool[1] c) => (float[32, 32] y) {
            y = If(c) <then_branch = a () => (float[32, 32] t) { t = Add(x, w) },
                       else_branch = b () => (float[32, 32] e) { e = Mul(x, w) }>
        }""",
        opset=13,
        w=LARGE,
    )
    assert_equivalent(before, opset.convert(before, 17), tolerance=0)


@pytest.mark.parametrize("version", [11, 12])
def test_optimizing_an_old_model_converts_it(version: int) -> None:
    result = swinopt.optimize(model(version), passes="fold-constants")
    assert opset.version_of(result.model) >= 17
    assert_equivalent(model(version), result.model, tolerance=1e-6)

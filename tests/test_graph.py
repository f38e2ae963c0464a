from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import swinopt
from swinopt import graph as graphs
from swinopt.errors import ModelError, SwinoptError
from swinopt.testing import assert_equivalent, parse

TEXT = "g (float[N, 3] x) => (float[N, 4] y) { m = MatMul(x, w)  t = Identity(m)  y = Add(t, b) }"


def small() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((3, 4)).astype(np.float32), "b": rng.standard_normal(4).astype(np.float32)}
    return parse(TEXT, **weights)


def with_function() -> onnx.ModelProto:
    return parse(
        """<ir_version: 10, opset_import: ["": 20, "local": 1]>
        g (float[2] x) => (float[2] y) { t = local.twice(x)  y = Neg(t) }
        <domain: "local", opset_import: ["": 20]>
        twice (a) => (b) { b = Add(a, a) }"""
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save_model(small(), path)
    return path


# ---------------------------------------------------------------------------------------------------------- loading


@pytest.mark.parametrize("kind", ["path", "text path", "bytes", "bytearray", "proto", "graph", "onnx_ir", "program"])
def test_a_model_is_read_from_all_that_holds_one_and_never_changed(kind: str, file: Path) -> None:
    proto = small()
    if kind == "onnx_ir":
        ir = pytest.importorskip("onnx_ir")
        model: Any = ir.from_proto(proto)
    else:
        model = {
            "path": file,
            "text path": str(file),
            "bytes": proto.SerializeToString(),
            "bytearray": bytearray(proto.SerializeToString()),
            "proto": proto,
            "graph": gs.import_onnx(proto),
            "program": SimpleNamespace(model_proto=proto),
        }[kind]
    before = graphs.load_model(model).SerializeToString(deterministic=True)
    on_disk = file.read_bytes()
    graph = graphs.load(model)
    assert [node.op for node in graph.nodes] == ["MatMul", "Identity", "Add"]
    # Everything that can be changed in a graph is changed.
    graph.nodes[0].op = "Gemm"
    graph.nodes[0].attrs["alpha"] = 2.0
    graph.inputs[0].shape = [1, 3]
    graph.nodes[2].inputs[1].values = np.zeros(4, np.float32)
    graph.nodes.pop()
    graph.outputs[0].name = "changed"
    assert graphs.load_model(model).SerializeToString(deterministic=True) == before
    assert file.read_bytes() == on_disk
    assert_equivalent(model, proto, tolerance=0)


def test_a_real_exported_program_is_read() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(torch.nn.Linear(3, 4).eval(), (torch.zeros(2, 3),), dynamo=True, verbose=False)
    assert [node.op for node in graphs.load(program).nodes] == ["Gemm"]


def test_a_proto_is_handed_through_without_a_copy() -> None:
    proto = small()
    assert graphs.load_model(proto) is proto


@pytest.mark.parametrize("thing", [None, 7, object(), {"model": 1}, [b"x"]], ids=lambda thing: type(thing).__name__)
def test_what_is_no_model_is_refused(thing: object) -> None:
    with pytest.raises(ModelError, match=f"cannot read a model from a {type(thing).__name__}: give a path"):
        graphs.load(thing)


def test_nodes_that_are_out_of_order_are_put_in_order() -> None:
    """As onnxconverter-common leaves them: it appends the casts of inputs. ONNX Runtime takes such a model."""
    ordered = parse("g (float[2] x) => (float[2] y) { a = Neg(x)  b = Abs(a)  c = Exp(x)  y = Add(b, c) }")
    model = parse("g (float[2] x) => (float[2] y) { a = Neg(x)  b = Abs(a)  c = Exp(x)  y = Add(b, c) }")
    del model.graph.node[:]
    model.graph.node.extend(ordered.graph.node[i] for i in (1, 3, 2, 0))
    assert [node.op for node in graphs.load(model).nodes] == ["Neg", "Abs", "Exp", "Add"]
    assert [node.op for node in graphs.load(ordered).nodes] == ["Neg", "Abs", "Exp", "Add"]
    result = swinopt.optimize(model, target="portable")
    assert_equivalent(ordered, result.model, tolerance=0)
    model.graph.node[3].input[0] = "b"
    with pytest.raises(ModelError, match="which nothing before it makes"):
        swinopt.optimize(model, verify=False)


def test_constants_written_as_nodes_become_constants() -> None:
    graph = graphs.load(
        parse(
            """g (float[2] x) => (float[2] y) {
                a = Constant<value_floats = [1.0, 2.0]>()  b = Constant<value_float = 3.0>()
                i = Constant<value_ints = [0, 1]>()  j = Constant<value_int = 1>()
                t = Constant<value = float[1] {5.0}>()
                c = Add(a, b)  d = Gather(c, i)  f = Gather(d, j)  e = Add(f, t)  y = Add(x, e)
            }"""
        )
    )
    assert [node.op for node in graph.nodes] == ["Add", "Gather", "Gather", "Add", "Add"]
    first = graphs.literal(graph.nodes[0].inputs[0])
    assert first is not None and first.tolist() == [1, 2] and first.dtype == np.float32
    index = graphs.literal(graph.nodes[2].inputs[1])
    assert index is not None and index.shape == () and index.dtype == np.int64


def test_a_constant_that_is_an_output_stays_a_node() -> None:
    model = parse("g (float[1] x) => (float[1] y, float[1] k) { k = Constant<value_floats = [1.0]>()  y = Add(x, k) }")
    after = graphs.to_model(graphs.load(model))
    assert [node.op_type for node in after.graph.node] == ["Constant", "Add"]
    assert_equivalent(model, after, tolerance=0)


def test_functions_of_the_model_are_inlined() -> None:
    model = with_function()
    graph = graphs.load(model)
    assert sorted(node.op for node in graph.nodes) == ["Add", "Neg"]
    assert len(model.functions) == 1
    assert_equivalent(model, graphs.to_model(graph), tolerance=0)


# -------------------------------------------------------------------------------------------------------- bad input


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.onnx: no such file"):
        graphs.load(tmp_path / "nowhere.onnx")


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a folder"):
        graphs.load(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelError, match=r"empty\.onnx is empty"):
        graphs.load(tmp_path / "empty.onnx")


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: max(1, int(len(data) * share))])
    with pytest.raises(ModelError, match="is not an ONNX model"):
        graphs.load(file)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 64,
        b"hello, world\n",
        b"PK\x03\x04" + bytes(60),
        b'{"a": 1}',
        bytes(range(256)),
        b"\x89PNG\r\n\x1a\n",
        b"",
    ],
    ids=["zeros", "text", "zip", "json", "bytes", "png", "nothing"],
)
def test_a_foreign_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "foreign.onnx"
    path.write_bytes(data)
    for model in (path, data):
        with pytest.raises(ModelError):
            graphs.load(model)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(file: Path) -> None:
    file.chmod(0)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        graphs.load(file)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    path = tmp_path / "big.onnx"
    onnx.save_model(small(), path, save_as_external_data=True, location="big.data", size_threshold=0)
    return path


def test_external_data_beside_the_file_is_read(external: Path) -> None:
    assert_equivalent(small(), external, tolerance=0)
    assert_equivalent(small(), graphs.to_model(graphs.load(external)), tolerance=0)


def test_missing_external_data(external: Path) -> None:
    (external.parent / "big.data").unlink()
    with pytest.raises(ModelError, match=r"external data of the model cannot be read"):
        graphs.load(external)


def test_truncated_external_data(external: Path) -> None:
    data = external.parent / "big.data"
    data.write_bytes(data.read_bytes()[:10])
    with pytest.raises(SwinoptError):
        swinopt.optimize(external, passes=(), verify=False)


def test_a_proto_whose_weights_lie_elsewhere(external: Path) -> None:
    for model in (onnx.load(external, load_external_data=False), external.read_bytes()):
        with pytest.raises(ModelError, match=r"the weights of 2 tensors lie in another file; give the path"):
            graphs.load(model)


def test_external_data_inside_a_constant_node(tmp_path: Path) -> None:
    value = onnx.numpy_helper.from_array(np.arange(3, dtype=np.float32), "v")
    node = onnx.helper.make_node("Constant", [], ["k"], value=value)
    model = parse("g (float[3] x) => (float[3] y) { y = Add(x, k) }")
    model.graph.node.insert(0, node)
    wanted = parse("g (float[3] x) => (float[3] y) { y = Add(x, k) }", k=np.arange(3, dtype=np.float32))
    path = tmp_path / "constant.onnx"
    onnx.save_model(model, path, save_as_external_data=True, size_threshold=0, convert_attribute=True)
    assert_equivalent(wanted, graphs.to_model(graphs.load(path)), tolerance=0)


# ---------------------------------------------------------------------------------------------------------- writing


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    path = graphs.save(small(), str(tmp_path / "out.onnx"))
    assert path == tmp_path / "out.onnx"
    assert onnx.load(path) == small()
    assert [p.name for p in tmp_path.iterdir()] == ["out.onnx"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")
    graphs.save(small(), path)
    assert onnx.load(path) == small()


def test_a_saved_file_may_be_read_by_others_as_usual(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    path = graphs.save(small(), tmp_path / "out.onnx")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


@pytest.mark.parametrize("where", ["no/such/folder/out.onnx", "folder"])
def test_a_path_that_cannot_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelError, match="cannot be written"):
        graphs.save(small(), tmp_path / where)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot be written"):
        graphs.save(small(), tmp_path / "file" / "out.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ModelError, match="Permission denied"):
            graphs.save(small(), tmp_path / "out.onnx")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("step", ["write", "replace"])
def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "out.onnx"
    path.write_bytes(b"old")

    def full(*args: object) -> None:
        if step == "write":
            with Path(str(args[0])).open("wb") as file:
                file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full) if step == "write" else monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelError, match=r"out\.onnx cannot be written: No space left on device"):
        graphs.save(small(), path)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_above_the_limit_of_protobuf_the_weights_go_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = parse("g (float[2, 64] x) => (float[2, 64] y) { y = MatMul(x, w) }", w=np.eye(64, dtype=np.float32) * 3)
    before = big.SerializeToString()
    monkeypatch.setattr(graphs, "PROTOBUF_LIMIT", 1000)
    path = graphs.save(big, tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert path.stat().st_size < 1000
    assert big.SerializeToString() == before
    assert_equivalent(big, path, tolerance=0)
    graphs.save(big, path)  # over its own files
    assert_equivalent(big, path, tolerance=0)


def test_a_failure_above_the_limit_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(factor: float) -> onnx.ModelProto:
        weight = np.eye(64, dtype=np.float32) * np.float32(factor)
        return parse("g (float[2, 64] x) => (float[2, 64] y) { y = MatMul(x, w) }", w=weight)

    monkeypatch.setattr(graphs, "PROTOBUF_LIMIT", 1000)
    path = graphs.save(make(2), tmp_path / "out.onnx")

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(ModelError, match="No space left"):
        graphs.save(make(3), path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert_equivalent(make(2), path, tolerance=0)


def test_custom_ops_are_written_with_their_bodies_unless_told_otherwise() -> None:
    model = small()
    node = onnx.helper.make_node("FusedThing", ["x"], ["z"], domain="acme")
    model.graph.node.append(node)
    model.opset_import.append(onnx.helper.make_opsetid("acme", 1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, None))
    after = graphs.to_model(graphs.load(model))
    assert after.graph.node[-1].domain == "acme" and not after.functions
    assert {o.domain for o in after.opset_import} >= {"", "acme"}


# ------------------------------------------------------------------------------------------------- there and back


LARGE = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
SMALL = np.array([1, -2, 3], np.float32)


def round_trip(model: onnx.ModelProto) -> onnx.ModelProto:
    before = model.SerializeToString(deterministic=True)
    after = graphs.to_model(graphs.load(model))
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(after)
    assert_equivalent(model, after, tolerance=0)
    return after


def test_large_weights_come_through() -> None:
    after = round_trip(parse("g (float[N, 32] x) => (float[N, 32] y) { y = MatMul(x, w) }", w=LARGE))
    assert [(w.name, list(w.dims)) for w in after.graph.initializer] == [("w", [32, 32])]


@pytest.mark.parametrize("weight", [LARGE, SMALL], ids=["large", "small"])
def test_weights_that_are_declared_as_inputs_too(weight: np.ndarray[Any, Any]) -> None:
    model = parse(
        "g (float[3] x) => (float y) { r = ReduceSum<keepdims = 0>(w)  m = ReduceMax<keepdims = 0>(x)  y = Add(r, m) }",
        w=weight,
    )
    model.graph.input.append(onnx.helper.make_tensor_value_info("w", 1, weight.shape))
    after = graphs.to_model(graphs.load(model))
    assert [w.name for w in after.graph.initializer] == ["w"]
    assert_equivalent(model, after, tolerance=0)


@pytest.mark.parametrize("weight", [LARGE, np.ones((1, 32), np.float32)], ids=["large", "small"])
def test_weights_that_only_a_branch_reads(weight: np.ndarray[Any, Any]) -> None:
    model = parse(
        """g (float[32, 32] x, bool[1] c) => (float[32, 32] y) {
            y = If(c) <then_branch = a () => (float[32, 32] t) { t = Add(x, w) },
                       else_branch = b () => (float[32, 32] e) { e = Mul(x, w) }>
        }""",
        w=weight,
    )
    round_trip(model)


@pytest.mark.parametrize("weight", [LARGE, np.ones((1, 32), np.float32)], ids=["large", "small"])
def test_weights_inside_a_branch(weight: np.ndarray[Any, Any]) -> None:
    model = parse(
        """g (float[32, 32] x, bool[1] c) => (float[32, 32] y) {
            n = Neg(x)
            y = If(c) <then_branch = a () => (float[32, 32] t) { t = Add(n, w) },
                       else_branch = b () => (float[32, 32] e) { e = Abs(n) }>
        }"""
    )
    branch = model.graph.node[1].attribute[0].g
    branch.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    round_trip(model)


@pytest.mark.parametrize("weight", [LARGE, np.ones((1, 32), np.float32)], ids=["large", "small"])
def test_a_weight_that_is_an_output(weight: np.ndarray[Any, Any]) -> None:
    model = parse("g (float[32] x) => (float[32] y) { y = Neg(x) }", k=weight)
    model.graph.output.append(onnx.helper.make_tensor_value_info("k", 1, weight.shape))
    round_trip(model)


def test_a_weight_that_nothing_reads_does_no_harm() -> None:
    round_trip(parse("g (float[3] x) => (float[3] y) { y = Neg(x) }", w=LARGE))


def test_an_input_that_nothing_reads_stays() -> None:
    after = round_trip(parse("g (float[3] x, float[2] unused) => (float[3] y) { y = Neg(x) }"))
    assert [i.name for i in after.graph.input] == ["x", "unused"]


def test_a_large_constant_node() -> None:
    model = parse("g (float[N, 32] x) => (float[N, 32] y) { y = MatMul(x, w) }")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(LARGE)))
    after = round_trip(model)
    assert [node.op_type for node in after.graph.node] == ["MatMul"]


def test_a_sparse_weight() -> None:
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [2], [5.0, 7.0])
    indices = onnx.helper.make_tensor("w_indices", onnx.TensorProto.INT64, [2], [1, 2])
    model = parse("g (float[3] x) => (float[3] y) { y = Add(x, w) }")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [3]))
    round_trip(model)


def test_what_the_model_says_of_itself_comes_through() -> None:
    model = small()
    model.graph.doc_string = "what it is"
    model.metadata_props.add(key="author", value="somebody")
    after = round_trip(model)
    assert after.graph.name == "g" and after.graph.doc_string == "what it is"
    assert [(p.key, p.value) for p in after.metadata_props] == [("author", "somebody")]


def test_two_tensors_of_which_one_is_changed() -> None:
    model = parse("g (float[N, 32] x) => (float[N, 32] y) { t = MatMul(x, v)  y = MatMul(t, w) }", v=LARGE, w=LARGE)
    before = model.SerializeToString()
    graph = graphs.load(model)
    graph.nodes[0].inputs[1].values = graph.nodes[0].inputs[1].values * 2
    after = graphs.to_model(graph)
    assert model.SerializeToString() == before
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(after.graph.initializer[0]), LARGE * 2)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(after.graph.initializer[1]), LARGE)


def test_loading_into_a_newer_opset() -> None:
    model = parse("g (float[2, 3] x) => (float[2, 1] y) { y = ReduceMean<axes = [-1]>(x) }", opset=13)
    graph = graphs.load(model, opset=18)
    assert graph.opset == 18 and len(graph.nodes[0].inputs) == 2
    assert model.opset_import[0].version == 13
    assert_equivalent(model, graphs.to_model(graph), tolerance=1e-6)
    assert graphs.load(model, opset=11).opset == 13


# ----------------------------------------------------------------------------------------------------------- asking


def test_questions_about_nodes_and_tensors() -> None:
    graph = graphs.load(
        parse(
            """g (float[2, 3] x) => (float[2, 3] y) {
                m = ReduceMean(x, a)  c = Clip(x, , hi)  d = acme.Relu(c)  y = Sub(d, m)
            }""",
            a=np.array([-1]),
            hi=np.array([[2]], np.float32),
        )
    )
    mean, clip, foreign, sub = graph.nodes
    assert graphs.attr(mean, "keepdims", 20) == 1
    assert graphs.attr(mean, "no_such_attribute", 20) is None
    assert graphs.attr(foreign, "anything", 20) is None
    assert graphs.argument(clip, 1) is None and graphs.argument(clip, 7) is None
    assert graphs.scalar(graphs.argument(clip, 2)) == 2
    assert graphs.scalar(graph.inputs[0]) is None and graphs.scalar(None) is None
    assert graphs.literal(graph.inputs[0]) is None
    assert graphs.producer(graph.inputs[0]) is None and graphs.producer(sub.outputs[0]) is sub
    assert graphs.made_by(sub.inputs[1], "ReduceMean") is mean
    assert graphs.made_by(sub.inputs[0], "Relu") is None
    assert not graphs.is_standard(foreign)
    assert graphs.op_counts(graph) == {"ReduceMean": 1, "Clip": 1, "acme::Relu": 1, "Sub": 1}
    assert graphs.label(sub) == "y"


def test_bfloat16_weights_have_no_numpy_value_and_are_kept_as_they_are() -> None:
    model = parse("g (bfloat16[2] x) => (bfloat16[2] y) { y = Add(x, w) }")
    raw = np.array([0x3F80, 0x4000], np.uint16).tobytes()
    model.graph.initializer.append(
        onnx.TensorProto(name="w", data_type=onnx.TensorProto.BFLOAT16, dims=[2], raw_data=raw)
    )
    after = graphs.to_model(graphs.load(model))
    (weight,) = after.graph.initializer
    assert (weight.data_type, weight.raw_data) == (onnx.TensorProto.BFLOAT16, raw)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        (["n", 3, "h", "w"], (2, 3)),
        (["n", 3, 224, 224], (2, 3)),
        (["n", "h", "w", 3], (1, 2)),
        (["n", None, None, 1], (1, 2)),
        (["n", "h", "w", 13], (1, 2)),
        (["n", "h", 224, 3], (1, 2)),
        (["n", "c", 8, 8], (2, 3)),
        (["n", "c", "h", "w"], (2, 3)),
        (["n", 3, "h", 3], (2, 3)),
        (["n", 3, "t", "h", "w"], (2, 3, 4)),
        (["n", "t", "h", "w", 3], (1, 2, 3)),
        (["n", "t", "h", "w", 6], (1, 2, 3)),
        (["n", "t", 3, "h", "w"], (1, 3, 4)),
        (["n", "t", 3, 8, 8], (1, 3, 4)),
        (["n", "tokens", 3], ()),
        ([], ()),
    ],
    ids=str,
)
def test_where_the_sides_of_an_image_are(shape: list[Any], axes: tuple[int, ...]) -> None:
    assert graphs.spatial_axes(shape) == axes

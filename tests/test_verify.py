"""Comparisons: equal models pass, every kind of difference is found, and what cannot be compared says why."""

from __future__ import annotations

import builtins
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper

import swinopt
from swinopt import graph, session, verify
from swinopt.errors import MissingDependencyError, ModelError, OptionError, VerificationError
from swinopt.session import interface_of, random_inputs
from swinopt.testing import parse
from swinopt.verify import Reference, compare, measure
from tests.ort import begun_sessions

RNG = np.random.default_rng(7)
WEIGHT = RNG.standard_normal((8, 8)).astype(np.float32)
BIAS = RNG.standard_normal(8).astype(np.float32)


def model(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    *,
    shape: Sequence[int | str | None] = (2, 8),
    dtype: int = TensorProto.FLOAT,
    out: int = TensorProto.FLOAT,
    out_shape: Sequence[int | str | None] | None = None,
    inputs: Sequence[onnx.ValueInfoProto] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "test",
        list(inputs) if inputs is not None else [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", out, out_shape if out_shape is not None else shape)],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def chain(weight: Any = WEIGHT, bias: Any = BIAS, **options: Any) -> onnx.ModelProto:
    """x -> MatMul -> hidden -> Relu -> active -> Add -> y"""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Add", ["active", "b"], ["y"]),
    ]
    return model(nodes, {"w": weight, "b": bias}, **options)


# ---------------------------------------------------------------------------------------------------------- equality


def test_a_model_equals_itself() -> None:
    comparison = compare(chain(), chain())
    assert comparison.passed
    assert (comparison.max_abs, comparison.max_rel, comparison.cosine) == (0, 0, 1)
    assert (comparison.nan, comparison.inf, comparison.first_divergence) == (0, 0, None)
    assert comparison.runs == 2 and comparison.seeds == (0, 1)


def test_figures_are_those_of_numpy() -> None:
    a, b = chain(), chain(bias=BIAS + 0.5)
    comparison = compare(a, b, tolerance=1e-6, locate=False)
    inputs = random_inputs(a, comparison.seeds, {})
    x = np.concatenate([np.maximum(feeds["x"] @ WEIGHT, 0) + BIAS for feeds in inputs]).astype(np.float64).ravel()
    y = x + 0.5
    assert comparison.max_abs == pytest.approx(0.5, rel=1e-5)
    assert comparison.scale == pytest.approx(np.abs(x).max(), rel=1e-5)
    assert comparison.cosine == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-5)
    assert not comparison.passed


def test_tolerance_is_relative_to_outputs_larger_than_one() -> None:
    def shifted(by: float) -> verify.Comparison:
        return measure([{"y": np.array([100.0])}], [{"y": np.array([100.0 + by])}], tolerance=1e-3)

    assert shifted(0.09).passed
    assert not shifted(0.11).passed


def test_tolerance_is_absolute_for_outputs_smaller_than_one() -> None:
    def shifted(by: float) -> verify.Comparison:
        return measure([{"y": np.array([1e-3])}], [{"y": np.array([1e-3 + by])}], tolerance=1e-3)

    assert shifted(0.9e-3).passed
    assert not shifted(1.1e-3).passed


def test_max_rel_is_not_ruled_by_the_smallest_element() -> None:
    comparison = measure([{"y": np.array([1.0, 1e-9])}], [{"y": np.array([1.1, 2e-9])}])
    assert comparison.max_rel == pytest.approx(0.1)


def test_each_output_is_held_against_its_own_scale() -> None:
    a = {"large": np.array([1e6]), "small": np.array([1.0])}
    assert not measure([a], [{**a, "small": np.array([2.0])}], tolerance=1e-3).passed


# ------------------------------------------------------------------------------------------------------- NaN and Inf


def test_nan_in_b_only_fails_however_small_the_rest_differs() -> None:
    a, b = np.zeros(4), np.array([0.0, np.nan, np.inf, -np.inf])
    comparison = measure([{"y": a}], [{"y": b}])
    assert (comparison.nan, comparison.inf) == (1, 2)
    assert comparison.outputs["y"].new_nonfinite == 3
    assert comparison.max_abs == 0 and not comparison.passed
    assert "3 elements became NaN or Inf" in str(comparison)


def test_nan_and_inf_that_a_has_too_are_no_difference() -> None:
    values = np.array([1.0, np.nan, np.inf])
    assert measure([{"y": values}], [{"y": values.copy()}]).passed


def test_inf_of_the_other_sign_is_new() -> None:
    assert not measure([{"y": np.array([1.0, np.inf])}], [{"y": np.array([1.0, -np.inf])}]).passed


def test_two_outputs_of_nan_alone_do_not_count_as_equal() -> None:
    nothing = np.full(3, np.nan)
    assert not measure([{"y": nothing}], [{"y": nothing}]).passed


@pytest.mark.parametrize(
    ("made", "refused"),
    [
        ("r = RandomUniformLike(x)", True),
        ("r = RandomUniformLike<seed = 3.0>(x)", False),
        ("t = Constant<value = bool {1}>()  h = Constant<value = float {0.5}>()  r = Dropout(x, h, t)", True),
        ("t = Constant<value = bool {0}>()  h = Constant<value = float {0.5}>()  r = Dropout(x, h, t)", False),
    ],
    ids=["random", "with a seed", "dropout in training", "dropout"],
)
def test_a_reference_that_draws_random_numbers_is_refused(made: str, refused: bool) -> None:
    drawing = parse(f"g (float[2, 500] x) => (float[2, 500] y) {{ {made}  y = Add(x, r) }}")
    if not refused:
        assert compare(drawing, drawing).passed
        return
    with pytest.raises(VerificationError, match=r"not answer the same twice: .* draws random numbers"):
        Reference(drawing)
    with pytest.raises(ModelError, match=r"not answer the same twice.*verify=False"):
        swinopt.optimize(drawing)
    assert swinopt.optimize(drawing, verify=False).model.graph.node


def test_a_reference_that_answers_with_nan_alone_is_refused() -> None:
    with pytest.raises(VerificationError, match="nothing but NaN or Inf"):
        Reference(chain(weight=np.full_like(WEIGHT, np.nan), bias=np.full_like(BIAS, np.nan)))


def test_inf_that_a_rewrite_makes_is_found() -> None:
    b = chain(bias=np.where(np.arange(8) == 3, np.inf, BIAS).astype(np.float32))
    judgement = Reference(chain()).judge(b)
    assert judgement.failure is not None and "became NaN or Inf" in judgement.failure


# --------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("changed", ["hidden", "y"])
def test_the_first_tensor_that_diverges_is_named(changed: str) -> None:
    b = chain(weight=WEIGHT * 1.5) if changed == "hidden" else chain(bias=BIAS + 1)
    comparison = compare(chain(), b)
    assert comparison.first_divergence == changed
    assert comparison.first_divergence_diff is not None and comparison.first_divergence_diff > 0.1
    assert f"first tensor that diverges: {changed}" in str(comparison)


def test_divergence_is_found_beyond_the_first_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_LOCATE_CHUNK", 1)
    assert compare(chain(), chain(bias=BIAS + 1)).first_divergence == "y"


def test_a_tensor_that_got_another_shape_is_passed_over() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Transpose", ["product"], ["hidden"], perm=[1, 0]),
        helper.make_node("Transpose", ["hidden"], ["back"], perm=[1, 0]),
        helper.make_node("Relu", ["back"], ["active"]),
        helper.make_node("Add", ["active", "b"], ["y"]),
    ]
    b = model(nodes, {"w": WEIGHT, "b": BIAS + 1})
    assert compare(chain(), b).first_divergence == "y"


def test_locate_can_be_switched_off() -> None:
    assert compare(chain(), chain(bias=BIAS + 1), locate=False).first_divergence is None


def test_locating_leaves_both_models_as_they_were() -> None:
    a, b = chain(), chain(bias=BIAS + 1)
    before = a.SerializeToString(), b.SerializeToString()
    compare(a, b)
    assert (a.SerializeToString(), b.SerializeToString()) == before


# ---------------------------------------------------------------------------------------------------------- reference


def test_a_reference_is_run_once_and_judges_many(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(chain())
    sessions = begun_sessions(monkeypatch)
    assert reference.judge(chain()).failure is None
    assert reference.check(chain(bias=BIAS + 1e-6)).passed
    assert sessions == ["the candidate model"] * 2


def test_judgement_of_a_difference_has_figures_and_place() -> None:
    judgement = Reference(chain()).judge(chain(bias=BIAS + 1), tolerance=1e-5)
    assert judgement.max_abs == pytest.approx(1, rel=1e-5)
    assert judgement.failure is not None and "output 'y' differs by 1" in judgement.failure
    assert judgement.first_divergence == "y"


def test_judgement_of_what_does_not_run_is_a_reason() -> None:
    broken = chain()
    broken.graph.node[0].op_type = "NoSuchOp"
    judgement = Reference(chain()).judge(broken)
    assert judgement.max_abs is None
    assert judgement.failure is not None and "NoSuchOp" in judgement.failure


# ------------------------------------------------------------------------------------------------- running the models


def test_optimizations_of_onnxruntime_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    levels = []
    create = onnxruntime.InferenceSession

    def spied(source: Any, options: Any, **rest: Any) -> Any:
        levels.append(options.graph_optimization_level)
        return create(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spied)
    compare(chain(), chain())
    assert levels == [onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL] * 2


# ------------------------------------------------------------------------------------------------------------- inputs


def test_a_batch_that_was_frozen_is_found() -> None:
    def reshaped(first: int) -> onnx.ModelProto:
        nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
        return model(nodes, {"s": np.array([first, 8])}, shape=["batch", 8])

    assert compare(reshaped(-1), reshaped(-1)).passed
    with pytest.raises(VerificationError, match="the candidate model cannot be run"):
        compare(reshaped(-1), reshaped(1))


def test_dynamic_batch_alternates_and_other_sizes_can_be_set() -> None:
    image = model([helper.make_node("Relu", ["x"], ["y"])], shape=["n", 3, "height", "width"])
    shapes = [feeds["x"].shape for feeds in random_inputs(image, [0, 1], {"height": 32, "width": 64})]
    assert shapes == [(1, 3, 32, 64), (4, 3, 32, 64)]


def of_the_height(*nodes: onnx.NodeProto, **constants: Any) -> onnx.ModelProto:
    """y of an image x whose height is h, by these nodes."""
    height = helper.make_node("Shape", ["x"], ["h"], start=2, end=3)
    arrays = {name: np.array(value) for name, value in constants.items()}
    return model([height, *nodes], arrays, shape=["n", 3, "height", "width"])


def test_a_difference_in_images_that_need_padding_is_seen() -> None:
    rest = helper.make_node("Mod", ["h", "four"], ["r"])
    cast = helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT)
    plus_what_is_beyond_four = of_the_height(rest, cast, helper.make_node("Add", ["x", "f"], ["y"]), four=[4])
    plain = of_the_height(helper.make_node("Identity", ["x"], ["y"]))
    assert not compare(plus_what_is_beyond_four, plain).passed
    assert compare(plus_what_is_beyond_four, plain, runs=1).passed  # the first image fits
    assert compare(plus_what_is_beyond_four, plain, sizes={"height": 32}).passed


def test_a_difference_in_such_images_alone_is_located() -> None:
    def shifted_by(remainder: str) -> onnx.ModelProto:
        rest = helper.make_node("Mod", ["h", remainder], ["r"])
        cast = helper.make_node("Cast", ["r"], ["f"], to=TensorProto.FLOAT)
        more = [helper.make_node("Add", ["x", "f"], ["shifted"]), helper.make_node("Neg", ["shifted"], ["y"])]
        return of_the_height(rest, cast, *more, **{remainder: [int(remainder[1:])]})

    assert compare(shifted_by("m1"), shifted_by("m16")).first_divergence == "r"


def test_what_the_candidate_cannot_run_on_is_told() -> None:
    tiles = of_the_height(helper.make_node("Reshape", ["x", "s"], ["y"]), s=[0, 3, 16, -1])
    plain = of_the_height(helper.make_node("Reshape", ["x", "s"], ["y"]), s=[0, 3, -1, 1])
    with pytest.raises(VerificationError, match=r"cannot be run by ONNX Runtime on x \[4, 3, 207, 242\]"):
        compare(plain, tiles)


def test_a_model_that_takes_no_image_of_odd_size_is_given_others() -> None:
    rows = helper.make_node("Div", ["h", "sixteen"], ["r"])
    shape = helper.make_node("Concat", ["images", "r", "sixteen", "rest"], ["s"], axis=0)
    tiles = of_the_height(
        rows, shape, helper.make_node("Reshape", ["x", "s"], ["y"]), images=[0], sixteen=[16], rest=[-1]
    )
    assert compare(tiles, tiles).passed
    assert [feeds["x"].shape for feeds in Reference(tiles).inputs] == [(1, 3, 224, 224), (4, 3, 224, 224)]


def test_images_with_their_channels_last_are_images() -> None:
    image = model([helper.make_node("Relu", ["x"], ["y"])], shape=["n", "height", "width", 3])
    assert [feeds["x"].shape for feeds in Reference(image).inputs] == [(1, 224, 224, 3), (4, 207, 242, 3)]


@pytest.mark.parametrize(
    ("shape", "first", "second"),
    [
        (["n", 3, "t", "h", "w"], (1, 3, 16, 112, 112), (4, 3, 19, 103, 121)),
        (["n", "t", "h", "w", 3], (1, 16, 112, 112, 3), (4, 23, 103, 121, 3)),
        (["n", "t", 3, "h", "w"], (1, 16, 3, 112, 112), (4, 23, 3, 103, 121)),
        (["n", "h", "w", 13], (1, 224, 224, 13), (4, 207, 242, 13)),
        (["n", "queries", "keys"], (1, 16, 16), (4, 23, 19)),
        (["n", "tokens", 8], (1, 16, 8), (4, 23, 8)),
        (["n", 8], (1, 8), (4, 8)),
        ([2, 8], (2, 8), (2, 8)),
    ],
    ids=str,
)
def test_all_that_is_open_takes_two_sizes(
    shape: list[str | int], first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    made = model([helper.make_node("Relu", ["x"], ["y"])], shape=shape)
    assert [feeds["x"].shape for feeds in Reference(made).inputs] == [first, second]


def test_a_model_that_takes_no_odd_number_of_tokens_is_given_others() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    windows = model(nodes, {"s": np.array([-1, 8, 8])}, shape=["n", "tokens", 8], out_shape=["m", 8, 8])
    assert compare(windows, windows).passed
    assert [feeds["x"].shape for feeds in Reference(windows).inputs] == [(1, 16, 8), (4, 16, 8)]


def test_a_size_that_only_b_knows_is_used_for_both() -> None:
    a = model([helper.make_node("Relu", ["x"], ["y"])], shape=["n", "m"])
    b = model([helper.make_node("Relu", ["x"], ["y"])], shape=[3, 5])
    assert compare(a, b).outputs["y"].shape == (3, 5)


def test_an_unnamed_axis_is_open_too() -> None:
    a = model([helper.make_node("Relu", ["x"], ["y"])], shape=[None, 8])
    assert [feeds["x"].shape[0] for feeds in random_inputs(a, [0, 1], {})] == [1, 4]


def test_integer_inputs_index_what_they_index_and_masks_are_ones() -> None:
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["n", 64]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["n", 64]),
    ]
    nodes = [
        helper.make_node("Cast", ["ids"], ["index"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "index"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rows", "mask"], ["y"]),
    ]
    table = np.arange(3, dtype=np.float32)
    tokens = model(nodes, {"table": table}, inputs=inputs, shape=["n", 64])
    feeds = random_inputs(tokens, [0], {})[0]
    assert set(feeds["ids"].ravel()) == {0, 1, 2}
    assert (feeds["attention_mask"] == 1).all() and feeds["attention_mask"].dtype == np.int64
    assert compare(tokens, tokens).passed


def test_seeds_decide_the_inputs() -> None:
    first, again, other = (random_inputs(chain(), [seed], {})[0]["x"] for seed in (3, 3, 4))
    assert (first == again).all() and not (first == other).all()


def test_given_inputs_are_used() -> None:
    x = np.full((2, 8), -1e3, np.float32)
    inputs = [{"x": x}, {"x": -x}, {"x": 0 * x}]
    comparison = compare(chain(), chain(), inputs)
    assert comparison.runs == 3 and comparison.seeds == ()
    assert comparison.scale == pytest.approx(1e3 * np.abs(WEIGHT.sum(0)).max(), rel=1e-2)


def test_given_inputs_of_other_names_are_refused() -> None:
    with pytest.raises(VerificationError, match="takes x as inputs, and image was given"):
        compare(chain(), chain(), {"image": np.zeros((2, 8), np.float32)})


def test_no_run_at_all_is_refused() -> None:
    with pytest.raises(OptionError, match="at least one run"):
        compare(chain(), chain(), runs=0)


def test_half_precision_compares_with_single() -> None:
    weights = {"w": WEIGHT.astype(np.float16), "b": BIAS.astype(np.float16)}
    half = model(list(chain().graph.node), weights, dtype=TensorProto.FLOAT16, out=TensorProto.FLOAT16)
    comparison = compare(chain(), half, tolerance=1e-2)
    assert comparison.passed and comparison.max_abs > 0
    assert (comparison.outputs["y"].dtype_a, comparison.outputs["y"].dtype_b) == ("float32", "float16")


# -------------------------------------------------------------------------------------------------------- interfaces


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: model([helper.make_node("Relu", ["x"], ["y"])], shape=[2, 9]), r"input 'x' has shape \[2, 8\] in a"),
        (lambda: model([helper.make_node("Relu", ["x"], ["y"])], shape=[2, 8, 1]), "input 'x' has shape"),
        (lambda: renamed("x", "image"), "the inputs of the two models differ: x in a, image in b"),
        (lambda: renamed("y", "logits"), "the outputs of the two models differ: y in a, logits in b"),
        (
            lambda: model([helper.make_node("Cast", ["x"], ["y"], to=1)], dtype=TensorProto.INT64),
            "input 'x' is float in a and int64 in b",
        ),
    ],
)
def test_models_of_different_interfaces_are_refused(other: Any, message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        compare(chain(), other())


def renamed(old: str, new: str) -> onnx.ModelProto:
    graph = gs.import_onnx(chain())
    graph.tensors()[old].name = new
    return gs.export_onnx(graph)


def test_outputs_whose_real_shapes_differ_are_refused() -> None:
    a = model([helper.make_node("Relu", ["x"], ["y"])], out_shape=["n", "m"])
    b = model([helper.make_node("Transpose", ["x"], ["y"])], out_shape=["n", "m"])
    with pytest.raises(VerificationError, match=r"output 'y' has shape \[2, 8\] in a and shape \[8, 2\] in b"):
        compare(a, b)


def test_weights_that_are_inputs_too_are_no_inputs() -> None:
    old_style = chain()
    old_style.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 8]))
    assert list(interface_of(old_style).inputs) == ["x"]
    assert compare(chain(), old_style).passed


# ---------------------------------------------------------------------------------------------------- kinds of models


def test_paths_bytes_graphs_and_protos_are_all_models(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(chain(), path)
    for same in (path, str(path), path.read_bytes(), gs.import_onnx(chain()), chain()):
        assert compare(chain(), same).passed


def test_what_is_no_model_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    for wrong in (tmp_path / "missing.onnx", tmp_path / "empty.onnx", b"GIF89a", 7):
        with pytest.raises(ModelError):
            compare(chain(), wrong)


def test_swinopt_ops_run_without_their_bodies() -> None:
    node = helper.make_node(
        *("WindowAttention", ["x", "bias"], ["y"]),
        domain="swinopt", window_size=[2, 2], shift_size=[1, 1], num_heads=2, scale=0.5,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "attention",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 4, 24])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 4, 8])],
        [numpy_helper.from_array(RNG.standard_normal((2, 4, 4)).astype(np.float32), "bias")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("swinopt", 1)]
    bare = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    before = bare.SerializeToString()
    assert compare(bare, bare).passed
    assert bare.SerializeToString() == before


def test_a_model_beyond_the_limit_of_protobuf_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    sources = []
    create = onnxruntime.InferenceSession

    def spied(source: Any, options: Any, **rest: Any) -> Any:
        sources.append(source)
        return create(source, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spied)
    monkeypatch.setattr(session, "PROTOBUF_LIMIT", 100)
    monkeypatch.setattr(graph, "PROTOBUF_LIMIT", 100)
    weight, bias = np.eye(64, dtype=np.float32), np.zeros(64, np.float32)
    wide, shifted = (chain(weight, by, shape=(2, 64)) for by in (bias, bias + 1))
    assert compare(wide, shifted).first_divergence == "y"
    assert len(sources) == 4 and all(isinstance(source, str) for source in sources)
    assert not any(Path(source).exists() for source in sources)


# ------------------------------------------------------------------------------------------------------------ results


def test_a_comparison_goes_to_json() -> None:
    for comparison in (compare(chain(), chain()), compare(chain(), chain(bias=np.full_like(BIAS, np.inf)))):
        data = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
        assert data["passed"] == comparison.passed
        assert data["outputs"]["y"]["shape"] == [2, 8]
        assert data["first_divergence"] == comparison.first_divergence


def test_onnxruntime_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "onnxruntime":
            raise ImportError(name)
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r'pip install "swinopt\[cpu\]"'):
        compare(chain(), chain())

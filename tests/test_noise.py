"""What rounding does to a model, and what a pass may change for its sake: its noise is no excuse for a mistake."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from swinopt.session import neighbours
from swinopt.testing import parse
from swinopt.verify import Reference
from tests.ort import begun_sessions

WEIGHT = np.random.default_rng(7).standard_normal((8, 8)).astype(np.float32)


def magnifier(before: float = 1.0, behind: float = 1000.0) -> onnx.ModelProto:
    """What makes much of a rounding of x if the factors are large."""
    text = """g (float[2, 8] x) => (float[2, 8] y) {
        scaled = Mul(x, before)  hidden = MatMul(scaled, w)  angle = Mul(hidden, behind)  y = Sin(angle)
    }"""
    return parse(text, w=WEIGHT, before=np.array(before, np.float32), behind=np.array(behind, np.float32))


def test_noise_is_what_a_rounding_of_the_inputs_does_to_each_output() -> None:
    magnified = Reference(magnifier()).noise["y"]
    assert 1e-5 < magnified < 2e-3
    assert Reference(magnifier(behind=1.0)).noise["y"] == pytest.approx(magnified / 1000, rel=0.9)


def test_a_difference_within_the_noise_passes_and_is_remarked() -> None:
    reference, same = Reference(magnifier()), magnifier(before=1000 / 3, behind=3.0)
    strict = reference.judge(same, tolerance=1e-5)
    assert strict.failure is not None and "is allowed" in strict.failure and strict.remark is None
    judgement = reference.judge(same, tolerance=1e-5, ceiling=1e-2)
    assert judgement.failure is None and judgement.max_abs == strict.max_abs
    assert judgement.remark == (
        f"output 'y' differs by {judgement.max_abs:.3g}, and {2 * reference.noise['y']:.3g} is allowed; "
        f"one rounding of the inputs moves it by {reference.noise['y']:.3g}"
    )


def test_a_difference_above_the_noise_fails_and_says_what_the_noise_is() -> None:
    judgement = Reference(magnifier()).judge(magnifier(behind=1000.1), tolerance=1e-5, ceiling=1e-2)
    assert judgement.remark is None and judgement.first_divergence == "angle"
    assert judgement.failure is not None and "; one rounding of the inputs moves it by" in judgement.failure


def test_noise_never_allows_more_than_the_ceiling() -> None:
    reference, same = Reference(magnifier()), magnifier(before=1000 / 3, behind=3.0)
    failure = reference.judge(same, tolerance=1e-7, ceiling=1e-6).failure
    assert failure is not None and "and 1e-06 is allowed; one rounding" in failure


def test_a_model_without_noise_is_judged_by_its_tolerance() -> None:
    reference = Reference(magnifier(behind=1.0))
    judgement = reference.judge(magnifier(behind=1.0001), tolerance=1e-5, ceiling=1e-2)
    assert judgement.failure is not None and judgement.failure.endswith("and 1e-05 is allowed")


def test_noise_of_one_output_is_no_excuse_for_another() -> None:
    def two(by: float) -> onnx.ModelProto:
        made = magnifier()
        made.graph.node.append(helper.make_node("Mul", ["x", "by"], ["z"]))
        made.graph.initializer.append(numpy_helper.from_array(np.array(np.float32(by)), "by"))
        made.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (2, 8)))
        return made

    failure = Reference(two(1.0)).judge(two(1.0001), tolerance=1e-5, ceiling=1e-2).failure
    assert failure is not None and failure.startswith("output 'z' differs by")


def test_nan_is_never_noise() -> None:
    judgement = Reference(magnifier()).judge(magnifier(behind=float("nan")), tolerance=1e-5, ceiling=1e-2)
    assert judgement.failure is not None and "became NaN" in judgement.failure


def test_noise_is_measured_once_and_only_if_the_tolerance_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = Reference(magnifier())
    sessions = begun_sessions(monkeypatch)
    assert reference.judge(magnifier(), tolerance=1e-5, ceiling=1e-2).failure is None
    assert sessions == ["the candidate model"]
    for _ in range(2):
        reference.judge(magnifier(before=1000 / 3, behind=3.0), tolerance=1e-5, ceiling=1e-2)
    assert sorted(sessions) == ["the candidate model"] * 3 + ["the reference model"]


def test_a_model_that_does_not_stand_other_inputs_has_no_known_noise() -> None:
    text = "g (float[1] x) => (float[n] y) { size = Cast <to = 7> (x)  y = Expand(one, size) }"
    made = parse(text, one=np.ones(1, np.float32))
    assert Reference(made, [{"x": np.array([2.0])}] * 8).noise == {}


@pytest.mark.parametrize("dtype", ["float16", "float", "double", "bfloat16"])
def test_neighbours_are_one_rounding_away_in_the_type_of_the_model(dtype: str) -> None:
    made = parse(f"g ({dtype}[n] x) => ({dtype}[n] y) {{ y = Identity(x) }}")
    narrow = helper.tensor_dtype_to_np_dtype(made.graph.input[0].type.tensor_type.elem_type)
    x = np.random.default_rng(0).standard_normal(1000)
    (moved,) = (feeds["x"] for feeds in neighbours(made, [{"x": x}]))
    assert moved.dtype == narrow
    above, below = (np.nextafter(x.astype(narrow), narrow.type(end)) for end in (np.inf, -np.inf))
    assert ((moved == above) | (moved == below)).all()
    assert 0.4 < (moved == above).mean() < 0.6


@pytest.mark.parametrize(
    ("dtype", "weights", "expected"),
    [
        ("float", {"float16": 8, "float": 2}, np.float16),
        ("float", {"float16": 2, "float": 8}, np.float32),
        ("float16", {"float": 8}, np.float16),
        ("double", {"float": 8, "int64": 99}, np.float32),
    ],
    ids=str,
)
def test_neighbours_are_one_rounding_away_in_the_type_of_most_weights_if_that_is_narrower(
    dtype: str, weights: dict[str, int], expected: type[np.floating[Any]]
) -> None:
    made = parse(f"g ({dtype}[n] x) => ({dtype}[n] y) {{ y = Identity(x) }}")
    sizes = {getattr(TensorProto, name.upper()): size for name, size in weights.items()}
    made.graph.initializer.extend(helper.make_tensor(str(t), t, [size], [0] * size) for t, size in sizes.items())
    x = np.array([1.001, -3.0, 6e4])
    (moved,) = (feeds["x"] for feeds in neighbours(made, [{"x": x}]))
    assert moved.dtype == helper.tensor_dtype_to_np_dtype(getattr(TensorProto, dtype.upper()))
    np.testing.assert_array_equal(np.abs(moved - x.astype(expected)), np.spacing(np.abs(x).astype(expected)))


def test_what_the_type_of_the_weights_cannot_hold_has_no_neighbours() -> None:
    made = parse("g (float[n] x) => (float[n] y) { y = Identity(x) }", w=np.ones(8, np.float16))
    (moved,) = neighbours(made, [{"x": np.full(20, 1e6)}])
    assert (moved["x"] == 1e6).all()


def test_a_model_in_half_precision_has_the_noise_of_half_precision() -> None:
    text = """g ({0}[2, 8] x) => ({0}[2, 8] y) {{
        h = Cast <to = 10> (x)  p = MatMul(h, w)  s = Sin(p)  y = Cast <to = {1}> (s)
    }}"""
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 8)).astype(np.float16)}
    weight = WEIGHT.astype(np.float16)
    half, single = (parse(text.format(*dtype), w=weight) for dtype in (("float16", 10), ("float", 1)))
    assert Reference(single, inputs).noise["y"] == pytest.approx(Reference(half, inputs).noise["y"], rel=0.1)


def test_weights_that_are_only_stored_in_half_precision_make_no_noise() -> None:
    made = parse("g (float[n, 8] x) => (y) { s = Cast <to = 1> (w)  y = MatMul(x, s) }", w=np.ones((8, 8), np.float16))
    x = np.full((2, 8), 1.001, np.float32)
    (moved,) = neighbours(made, [{"x": x}])
    np.testing.assert_array_equal(np.abs(moved["x"] - x), np.spacing(x))


def test_integers_masks_and_what_is_not_finite_have_no_neighbours() -> None:
    made = parse("g (float[n] x, float[n] attention_mask, int64[n] ids) => (float[n] y) { y = Identity(x) }")
    extremes = np.array([np.inf, -np.inf, np.nan], np.float32)
    largest = np.full(100, np.finfo(np.float32).max)
    feeds = {"x": np.r_[extremes, largest], "attention_mask": np.ones(2, np.float32), "ids": np.arange(2)}
    (moved,) = neighbours(made, [feeds])
    np.testing.assert_array_equal(moved["x"][:3], extremes)
    assert np.isfinite(moved["x"][3:]).all()
    assert (moved["attention_mask"] == 1).all() and (moved["ids"] == feeds["ids"]).all()

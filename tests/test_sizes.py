"""Which sizes a model is looked at with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs
import pytest

from swinopt.sizes import SMALLEST_IMAGE, default_sizes, extreme_sizes


def test_every_symbol_has_numbers_of_its_own() -> None:
    inputs = [
        gs.Variable("image", np.float32, ["batch", 3, "height", "width"]),
        gs.Variable("tokens", np.int64, ["batch", "sequence"]),
        gs.Variable("anonymous", np.float32, [None, "", -1]),
    ]
    for first, second in default_sizes(inputs):
        assert set(first) == {"batch", "height", "width", "sequence", *(f"anonymous[{axis}]" for axis in range(3))}
        for sample in (first, second):
            assert len(set(sample.values())) == len(sample)
        assert not set(first.items()) & set(second.items())
        assert first["height"] / first["width"] != second["height"] / second["width"]


@pytest.mark.parametrize("window", [7, 8, 12, 16])
@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_sizes_of_an_image_are_told_apart_at_every_stage_by_every_window(window: int, stride: int) -> None:
    choices = default_sizes([gs.Variable("image", np.float32, ["batch", 3, "height", "width"])])
    for first, second in choices[:3]:  # any further one is for models that take multiples of their window only
        for side in ("height", "width"):
            windows = [math.ceil(sample[side] / stride / window) for sample in (first, second)]
            assert windows[0] != windows[1], f"{side} {first[side]} and {second[side]} are padded to the same size"


@pytest.mark.parametrize(
    ("stride", "windows"), [(1, range(2, 17)), (2, (4, 7, 8, 12, 16)), (4, (4, 7, 8, 12, 16))], ids=["1", "2", "4"]
)
def test_padding_shows_in_one_of_the_first_two_samples(stride: int, windows: Sequence[int]) -> None:
    images = [gs.Variable(name, np.float32, ["batch", 3, f"{name} height", f"{name} width"]) for name in "ab"]
    samples = default_sizes(images)[0]
    for side in ("a height", "a width", "b height"):
        for rounded in (math.floor, math.ceil):
            sizes = [rounded(sample[side] / stride) for sample in samples]
            assert all(any(size % window for size in sizes) for window in windows), f"{sizes} take no padding"


def test_samples_are_a_prime_number_apart_and_leave_different_remainders() -> None:
    shapes = [["batch", 3, "height", "width"], ["n", "tokens", 8], ["batch", 3, "frames", "height", "width"]]
    inputs = [gs.Variable(f"x{i}", np.float32, shape) for i, shape in enumerate(shapes)]
    first, second = default_sizes(inputs)[0]
    for symbol in ("height", "width", "tokens", "batch"):
        apart = abs(second[symbol] - first[symbol])
        assert apart > 1 and all(apart % divisor for divisor in range(2, apart)), symbol


def test_of_two_symbols_each_is_the_larger_one_in_a_sample() -> None:
    shapes = [["b", 3, "t1", "h1", "w1"], ["b", 3, "t2", "h2", "w2"], ["n1", "n2"], ["n3", "n4"]]
    inputs = [gs.Variable(f"x{i}", np.float32, shape) for i, shape in enumerate(shapes)]
    for first, second in default_sizes(inputs)[:1]:
        for kind in ("bn", "t", "hw"):
            symbols = sorted((symbol for symbol in first if symbol[0] in kind), key=first.__getitem__)
            assert len({first[symbol] for symbol in symbols}) == len(symbols) > 1
            assert symbols == sorted(symbols, key=second.__getitem__, reverse=True)
    for first, second in default_sizes(inputs[:1])[1:]:
        assert (first["h1"] < first["w1"]) != (second["h1"] < second["w1"])


def test_an_image_has_the_same_sizes_wherever_its_channels_are() -> None:
    first, last = (
        default_sizes([gs.Variable("image", np.float32, shape)])
        for shape in (["batch", 3, "height", "width"], ["batch", "height", "width", 3])
    )
    assert first == last


def test_without_symbols_there_is_nothing_to_choose() -> None:
    assert default_sizes([gs.Variable("x", np.float32, [2, 3])]) == [[{}]]


def test_the_extremes_are_a_batch_of_one_and_a_small_image_and_many_of_large_ones() -> None:
    (first, *others) = extreme_sizes(
        [gs.Variable("a", np.float32, ["batch", 3, "frames", "h", "w"]), gs.Variable("b", np.int64, ["batch", "n"])]
    )
    assert first == [
        {"batch": 1, "frames": 8, "h": SMALLEST_IMAGE, "w": SMALLEST_IMAGE, "n": 1},
        {"batch": 1023, "frames": 1016, "h": 4093, "w": 4093, "n": 1023},
    ]
    assert [[sizes["h"] for sizes in choice] for choice in others] == [[224, 3584], [256, 4096]]
    assert extreme_sizes([gs.Variable("x", np.float32, [2, 3])])[0] == [{}]

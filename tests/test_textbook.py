"""The index arrays against the definitions spelled out token by token, and against the NumPy truth of the op."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinopt import textbook
from swinopt.cuda_plugins.window_attention.reference import window_attention

Geometry = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """(size, window, shift), with one to three axes, padding or not, windows larger than the map included."""
    axes = draw(st.integers(1, 3))
    window = tuple(draw(st.integers(1, 4)) for _ in range(axes))
    size = tuple(draw(st.integers(1, 9 if axes < 3 else 5)) for _ in range(axes))
    shift = tuple(draw(st.integers(0, w - 1)) for w in window)
    return size, window, shift


def slots_of(size: tuple[int, ...], window: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """The positions of all slots in the rolled and padded map, window by window."""
    corners = itertools.product(*(range(0, -(-s // w) * w, w) for s, w in zip(size, window, strict=True)))
    inside = list(itertools.product(*(range(w) for w in window)))
    return [[tuple(c + i for c, i in zip(corner, slot, strict=True)) for slot in inside] for corner in corners]


def token_at(position: tuple[int, ...], geometry: Geometry, roll_first: bool) -> int:
    """Follows one slot of the rolled map back to its token."""
    token = 0
    for p, s, w, shift in zip(position, *geometry, strict=True):
        padded = -(-s // w) * w
        stays = roll_first and p >= s
        origin = p if stays else (p + shift) % (s if roll_first else padded)
        if origin >= s:
            return -1
        token = token * s + origin
    return token


@settings(deadline=None)
@given(geometries(), st.booleans())
def test_every_slot_holds_the_token_it_is_rolled_from(geometry: Geometry, roll_first: bool) -> None:
    size, window, shift = geometry
    expected = [[token_at(slot, geometry, roll_first) for slot in slots] for slots in slots_of(size, window)]
    found = textbook.window_tokens(size, window, shift, roll_first=roll_first)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(geometries(), st.booleans())
def test_every_token_has_exactly_one_slot(geometry: Geometry, roll_first: bool) -> None:
    size, window, shift = geometry
    tokens = textbook.window_tokens(size, window, shift, roll_first=roll_first)
    assert sorted(tokens[tokens >= 0]) == list(range(int(np.prod(size))))
    assert tokens.size == np.prod(textbook.padded_size(size, window))


@settings(deadline=None)
@given(geometries())
def test_the_order_of_roll_and_pad_is_told_apart_by_padding_only(geometry: Geometry) -> None:
    size, window, shift = geometry
    size = textbook.padded_size(size, window)
    pad_first, roll_first = (textbook.window_tokens(size, window, shift, roll_first=order) for order in (False, True))
    np.testing.assert_array_equal(pad_first, roll_first)


def test_the_order_of_roll_and_pad_matters_where_something_is_padded() -> None:
    assert textbook.window_tokens((3,), (2,), (1,)).tolist() == [[1, 2], [-1, 0]]
    assert textbook.window_tokens((3,), (2,), (1,), roll_first=True).tolist() == [[1, 2], [0, -1]]


def labels(size: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> Any:
    """The two nested loops of the Swin code, for any number of axes, on the padded map."""
    padded = [-(-s // w) * w for s, w in zip(size, window, strict=True)]
    image = np.zeros(padded, np.int64)
    borders = ([(0, -w), (-w, -s), (-s, None)] for w, s in zip(window, shift, strict=True))
    for count, region in enumerate(itertools.product(*borders)):
        image[tuple(slice(*border) for border in region)] = count
    return image


@settings(deadline=None)
@given(geometries())
def test_regions_are_labelled_as_in_the_swin_code(geometry: Geometry) -> None:
    size, window, _ = geometry
    image = labels(*geometry)
    expected = [[image[slot] for slot in slots] for slots in slots_of(size, window)]
    found = textbook.shift_regions(*geometry)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


@settings(deadline=None)
@given(geometries())
def test_slots_of_different_labels_are_masked(geometry: Geometry) -> None:
    size, window, _ = geometry
    image = labels(*geometry)
    expected = [[[image[i] != image[j] for j in slots] for i in slots] for slots in slots_of(size, window)]
    found = textbook.shift_mask(*geometry)
    assert found.dtype == np.bool_
    np.testing.assert_array_equal(found, expected)


def test_a_shift_masks_and_no_shift_does_not() -> None:
    assert not textbook.shift_mask((6, 6), (3, 3), (0, 0)).any()
    assert textbook.shift_mask((6, 6), (3, 3), (0, 1)).any(axis=(1, 2)).tolist() == [False, True, False, True]
    assert textbook.shift_mask((6, 6), (3, 3), (1, 1)).any(axis=(1, 2)).tolist() == [False, True, True, True]


@settings(deadline=None, max_examples=50)
@given(geometries(), st.booleans())
def test_the_truth_attends_within_windows_and_regions(geometry: Geometry, roll_first: bool) -> None:
    """With equal scores and a mask of minus infinity, every token gets the mean of what the index arrays let it see."""
    size, window, shift = geometry
    n = int(np.prod(window))
    random = np.random.default_rng(n)
    values, pad_value = random.standard_normal((int(np.prod(size)), 1)), random.standard_normal(1)
    qkv = np.concatenate([np.zeros((len(values), 2)), values], axis=1).reshape(1, *size, 3)
    output = window_attention(
        qkv,
        np.zeros((1, n, n)),
        pad_qkv=np.concatenate([np.zeros(2), pad_value]),
        window_size=window,
        shift_size=shift,
        num_heads=1,
        scale=1.0,
        mask_value=-np.inf,
        roll_first=roll_first,
    )
    tokens = textbook.window_tokens(size, window, shift, roll_first=roll_first)
    visible = ~textbook.shift_mask(size, window, shift)
    in_slots = np.append(values, pad_value)[tokens]
    means = (visible * in_slots[:, None, :]).sum(-1) / visible.sum(-1)
    expected = np.empty(len(values))
    expected[tokens[tokens >= 0]] = means[tokens >= 0]
    np.testing.assert_allclose(output.reshape(-1), expected, atol=1e-12)


def test_relative_position_index_of_the_paper() -> None:
    """Two axes, as the Swin code computes it: offsets made positive, rows times the width of the table, and added."""
    height, width = 2, 3
    index = textbook.relative_position_index((height, width))
    cells = [(y, x) for y in range(height) for x in range(width)]
    for (i, (yi, xi)), (j, (yj, xj)) in itertools.product(enumerate(cells), repeat=2):
        assert index[i, j] == (yi - yj + height - 1) * (2 * width - 1) + (xi - xj + width - 1)
    assert index.dtype == np.int64


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_relative_position_index_tells_relative_positions_apart(window: list[int]) -> None:
    index = textbook.relative_position_index(window)
    position = np.indices(window).reshape(len(window), -1).T
    relative: dict[int, set[tuple[int, ...]]] = {}
    for i, j in np.ndindex(index.shape):
        relative.setdefault(int(index[i, j]), set()).add(tuple(position[i] - position[j]))
    assert all(len(offsets) == 1 for offsets in relative.values())
    assert sorted(relative) == list(range(int(np.prod([2 * w - 1 for w in window]))))


@pytest.mark.parametrize(
    ("size", "window", "shift"),
    [((6, 6), (3,), (0, 0)), ((6, 6), (3, 3), (0,)), ((6, 0), (3, 3), (0, 0)), ((6,), (3,), (3,)), ((6,), (3,), (-1,))],
)
def test_senseless_geometries_are_refused(size: Any, window: Any, shift: Any) -> None:
    with pytest.raises(ValueError, match=r"must be positive|must have one entry|must lie in"):
        textbook.window_tokens(size, window, shift)
    with pytest.raises(ValueError, match=r"must be positive|must have one entry|must lie in"):
        textbook.shift_regions(size, window, shift)


def test_truth_needs_pad_qkv_where_something_is_padded() -> None:
    with pytest.raises(ValueError, match="pad_qkv"):
        window_attention(
            np.zeros((1, 5, 3)), np.zeros((1, 2, 2)), window_size=(2,), shift_size=(0,), num_heads=1, scale=1.0
        )

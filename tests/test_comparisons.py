"""Numbers are given in two samples, and last for the smallest sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from swinopt.comparisons import Cut, is_settled

END = 2**63 - 1


@pytest.mark.parametrize(
    ("a", "b", "settled"),
    [
        ([196, 569, 32], [3, 3, 3], True),
        ([196, 569, 32], [128, 128, 128], False),
        ([196, 569, 32], [512, 512, 512], True),
        ([196, 569, 32], [700, 700, 700], False),
        ([-504, -131, -668], [0, 0, 0], False),
        ([196, 569, 32], [196, 569, 32], True),
        ([196, 569, 32], [193, 566, 29], True),
        ([49, 147, 14], [49, 143, 8], True),
        ([2, 5, 1], [3, 10, 1], True),
        ([2, 5, 1], [2, 2, 2], False),
        ([3, 3, 3], [5, 5, 5], True),
    ],
    ids=[
        "a small constant",
        "the smallest size is on the other side",
        "one sample is on either side",
        "comes closer",
        "comes closer from below",
        "always equal",
        "as far apart for all sizes",
        "both open",
        "equal for the smallest size",
        "equal in a sample, and less for the smallest size",
        "constants",
    ],
)
def test_a_comparison_is_settled_if_other_sizes_do_not_change_it(a: list[int], b: list[int], settled: bool) -> None:
    assert is_settled(a, b) == is_settled(b, a) == settled


@pytest.mark.parametrize(("tie", "settled"), [(None, True), (-1, False), (0, False), (1, True)])
def test_equal_numbers_count_as_the_op_has_it(tie: int | None, settled: bool) -> None:
    assert is_settled([2, 5, 1], [1, 1, 1], tie) == settled


def test_all_elements_have_to_be_settled() -> None:
    sizes = [np.array([size, 7]) for size in (196, 569, 32)]
    assert is_settled(sizes, [np.array([3, 700])] * 3)
    assert not is_settled(sizes, [np.array([700, 3])] * 3)


@pytest.mark.parametrize(("limit", "settled"), [(700, False), (300, True), (0, True), (-1, True)])
def test_of_a_range_both_ends_are_compared(limit: int, settled: bool) -> None:
    ranges = [np.arange(size) for size in (196, 569, 32)]
    assert is_settled(ranges, [limit] * 3) == settled


def test_of_an_empty_range_nothing_is_settled() -> None:
    assert not is_settled([np.arange(size) for size in (196, 569, 0)], [3] * 3)


def cut(start: Any, end: Any, step: int = 1) -> Cut:
    """A cut of an axis of 196, 569 and, for the smallest size, 32; a bound may be the same everywhere."""
    start, end = ([bound] * 3 if isinstance(bound, int) else bound for bound in (start, end))
    return Cut([196, 569, 32], start, end, step)


@pytest.mark.parametrize(
    ("start", "end", "step", "settled"),
    [
        (0, END, 1, True),
        (-END, END, 1, True),
        (0, [196, 569, 32], 1, True),
        ([98, 284, 16], END, 1, True),
        ([96, 469, -68], END, 1, False),
        ([193, 566, 29], END, 1, True),
        (3, -3, 1, True),
        (40, -40, 1, False),
        (0, END, 600, False),
        (1, END, 2, True),
        (END, -END, -1, True),
        (31, -END, -1, True),
        (32, -END, -1, False),
        (20, 10, 1, True),
        (0, [512, 512, 512], 1, True),
    ],
)
def test_a_cut_is_settled_if_both_bounds_are_inside(start: Any, end: Any, step: int, settled: bool) -> None:
    assert cut(start, end, step).is_settled() == settled


def test_a_roll_shares_an_axis_among_two_cuts() -> None:
    assert cut(40, END).is_rest_of(cut(0, 40)) and cut(0, 40).is_rest_of(cut(40, END))
    assert cut(-40, END).is_rest_of(cut(0, -40))
    for start, end, step in ((0, 39, 1), (0, 41, 1), (1, 40, 1), (0, 40, 2), (0, END, 1)):
        assert not cut(40, END).is_rest_of(cut(start, end, step))
    assert not cut(700, END).is_rest_of(cut(0, 700)), "one of them gets nothing"
    assert not cut(40, END).is_rest_of(Cut([196, 569, 16], [0] * 3, [40] * 3, 1))

"""Numbers are given in two samples, and then for the smallest and for the largest sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from swinopt.comparisons import Cut, is_settled

END = 2**63 - 1


SIDES = [196, 569, 32, 4093]


@pytest.mark.parametrize(
    ("a", "b", "settled"),
    [
        (SIDES, [3] * 4, True),
        (SIDES, [128] * 4, False),
        (SIDES, [512] * 4, True),
        (SIDES, [700] * 4, False),
        ([-504, -131, -668, 3393], [0] * 4, False),
        (SIDES, SIDES, True),
        (SIDES, [193, 566, 29, 4090], True),
        ([49, 147, 14, 1029], [49, 143, 8, 1024], True),
        ([2, 13, 1, 1023], [3, 10, 1, 1023], True),
        ([2, 5, 1, 1023], [3, 10, 1, 1023], True),
        ([2, 5, 1, 1023], [2] * 4, False),
        ([3] * 4, [5] * 4, True),
    ],
    ids=[
        "a small constant",
        "the smallest size is on the other side",
        "one sample is on either side",
        "the largest size is on the other side",
        "the largest size is on the other side of zero",
        "always equal",
        "as far apart for all sizes",
        "both open",
        "both ways in the samples",
        "never more",
        "equal in a sample, and less for the smallest size",
        "constants",
    ],
)
def test_a_comparison_is_settled_if_other_sizes_do_not_change_it(a: list[int], b: list[int], settled: bool) -> None:
    assert is_settled(a, b) == is_settled(b, a) == settled


@pytest.mark.parametrize(("tie", "settled"), [(None, True), (0, False), (1, True)])
def test_equal_numbers_count_as_the_op_has_it(tie: int | None, settled: bool) -> None:
    assert is_settled([2, 5, 1, 1023], [1] * 4, tie) == settled


def test_all_elements_have_to_be_settled() -> None:
    sizes = [np.array([size, 7]) for size in SIDES]
    assert is_settled(sizes, [np.array([3, 700])] * 4)
    assert not is_settled(sizes, [np.array([700, 3])] * 4)


@pytest.mark.parametrize(("limit", "settled"), [(700, False), (300, True), (0, True), (-1, True)])
def test_of_a_range_both_ends_are_compared(limit: int, settled: bool) -> None:
    ranges = [np.arange(size) for size in SIDES]
    assert is_settled(ranges, [limit] * 4) == settled


def test_of_an_empty_range_nothing_is_settled() -> None:
    assert not is_settled([np.arange(size) for size in (196, 569, 0, 4093)], [3] * 4)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (
            [np.arange(2), np.arange(13), np.arange(1), np.arange(4)],
            [np.arange(3), np.arange(10), np.arange(1), np.arange(4)],
        ),
        ([np.array(["a", "b"])] * 4, [np.array(["a", "c"])] * 4),
    ],
    ids=["of lengths that do not broadcast", "of texts"],
)
def test_what_cannot_be_told_apart_by_numbers_is_not_settled(a: Any, b: Any) -> None:
    assert not is_settled(a, b)


def cut(start: Any, end: Any, step: int = 1) -> Cut:
    """A cut of a side; a bound may be the same everywhere."""
    start, end = ([bound] * 4 if isinstance(bound, int) else bound for bound in (start, end))
    return Cut(SIDES, start, end, step)


@pytest.mark.parametrize(
    ("start", "end", "step", "settled"),
    [
        (0, END, 1, True),
        (-END, END, 1, True),
        (0, SIDES, 1, True),
        ([98, 284, 16, 2046], END, 1, True),
        ([96, 469, -68, 3993], END, 1, False),
        (0, [156, 529, -8, 4053], 1, False),
        ([20] * 4, [49, 142, 8, 1023], 1, False),
        ([193, 566, 29, 4090], END, 1, True),
        (3, -3, 1, True),
        (40, -40, 1, False),
        (1, END, 2, True),
        (END, -END, -1, True),
        (31, -END, -1, True),
        (32, -END, -1, False),
        (20, 10, 1, True),
        (0, 512, 1, True),
        (0, 700, 1, False),
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
    assert not cut(40, END).is_rest_of(Cut([196, 569, 16, 4093], [0] * 4, [40] * 4, 1))

"""Arrays of indices: runs and elements, tokens, and what order they have."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swinopt.indices import PAD, affine, elements, is_identity, whole_tokens

Array = npt.NDArray[Any]
fast = settings(deadline=None, max_examples=60)


# ------------------------------------------------------------------------------------------------- affine and identity


def check_affine(indices: Array) -> None:
    """Whatever form is given, it gives the indices back; a transposition in particular."""
    form = affine(indices)
    if form is None:
        return
    places = sum((stride * i for stride, i in zip(form.strides, np.indices(form.sizes), strict=True)), np.array(0))
    np.testing.assert_array_equal(places.reshape(-1), indices.reshape(-1))
    transposed = form.as_transpose()
    if transposed is None:
        assert sorted(indices.reshape(-1)) != list(range(indices.size))
        return
    source, permutation = transposed
    rebuilt = np.arange(indices.size).reshape(source).transpose(permutation)
    assert rebuilt.shape == form.sizes
    np.testing.assert_array_equal(rebuilt.reshape(-1), indices.reshape(-1))


@fast
@given(st.data())
def test_every_transposition_is_reconstructed(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    permutation = data.draw(st.permutations(range(len(shape))))
    indices = np.arange(math.prod(shape), dtype=np.int32).reshape(shape).transpose(permutation)
    form = affine(indices)
    assert form is not None and form.as_transpose() is not None
    check_affine(indices)


@fast
@given(st.integers(1, 8).flatmap(lambda n: st.permutations(range(n))))
def test_a_permutation_has_a_transposition_only_if_it_is_one(order: list[int]) -> None:
    indices = np.array(order, np.int32)
    check_affine(indices)
    n = indices.size
    transpositions = [np.arange(n).reshape(d, n // d).T.reshape(-1) for d in range(1, n + 1) if n % d == 0]
    if n == 8:
        cube = np.arange(8).reshape(2, 2, 2)
        transpositions += [cube.transpose(p).reshape(-1) for p in [(0, 2, 1), (1, 0, 2), (2, 1, 0)]]
    assert (affine(indices) is not None) == any(np.array_equal(indices, t) for t in transpositions)


@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        ([1, 2, 3], "does not start at 0"),
        ([], "is empty"),
        ([0, 1, PAD], "has a pad"),
        ([0, 2, 1, 3, 5, 4], "has its second row in another order"),
        ([0, 1, 2, 4, 5], "has rows of different lengths"),
        ([0, 0, 1, 1], "has elements twice"),
        ([0, -1, -2], "goes backwards"),
        ([0, 1, 4, 5, 9, 10], "has rows at unequal distances"),
    ],
)
def test_there_is_no_affine_form_of_what(indices: list[int], reason: str) -> None:
    assert affine(np.array(indices, np.int32)) is None, reason


@pytest.mark.parametrize(
    ("indices", "transposition"),
    [
        ([0, 2, 4, 1, 3, 5], ((3, 2), (1, 0))),
        ([0, 1, 2, 3], ((4,), (0,))),
        ([0], ((), ())),
        ([0, 2, 4, 6], None),
        ([0, 1, 4, 5], None),
        ([0, 3, 1, 4], None),
    ],
)
def test_as_transpose_knows_a_permutation_from_a_selection(indices: list[int], transposition: Any) -> None:
    form = affine(np.array(indices, np.int32))
    assert form is not None and form.as_transpose() == transposition


def test_the_axes_of_an_affine_form_cannot_be_merged_any_further() -> None:
    indices = np.arange(120, dtype=np.int32).reshape(2, 3, 4, 5).transpose(2, 0, 1, 3)
    form = affine(indices)
    assert form is not None and form.sizes == (4, 6, 5) and form.strides == (5, 20, 1)


@pytest.mark.parametrize(
    ("indices", "same"),
    [
        ([[0, 1], [2, 3]], True),
        ([0], True),
        ([], False),
        ([1, 2], False),
        ([0, 2, 1, 3], False),
        ([0, PAD], False),
        ([0, 0, 2], False),
    ],
)
def test_identity_keeps_every_element_in_order(indices: list[Any], same: bool) -> None:
    assert is_identity(np.array(indices, np.int32)) == same


# ---------------------------------------------------------------------------------------------------- runs and tokens


@pytest.mark.parametrize(
    ("axis", "indices"),
    [
        (-1, [[2, 3, PAD, PAD], [0, 1, 4, 5]]),
        (-2, [[2, PAD], [3, PAD], [0, 4], [1, 5]]),
    ],
)
def test_elements_of_runs_lie_side_by_side_along_the_axis(axis: int, indices: list[list[int]]) -> None:
    runs = np.array([[1, PAD], [0, 2]], np.int32)
    found = elements(runs, 2, axis)
    assert found.tolist() == indices and found.dtype == np.int32 and not found.flags.writeable
    assert elements(runs, 1, axis) is runs


@fast
@given(st.lists(st.integers(-1, 9), min_size=1, max_size=6), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]))
def test_tokens_are_known_by_their_elements_and_by_their_runs(tokens: list[int], parts: int, length: int) -> None:
    wanted = np.array(tokens, np.int32)
    runs = elements(wanted[:, None], parts)
    for indices in (runs, elements(runs, length)):
        found = whole_tokens(indices)
        assert found is not None and found.tolist() == tokens


@pytest.mark.parametrize(
    "indices",
    [[[0, 1], [3, 2]], [[0, 2]], [[1, 2]], [[0, PAD]], [[PAD, 1]], [[0, 1], [2, 4]]],
    ids=str,
)
def test_what_are_no_whole_tokens(indices: list[list[int]]) -> None:
    assert whole_tokens(np.array(indices, np.int32)) is None

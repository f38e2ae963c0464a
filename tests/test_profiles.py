"""Optimization profiles: what is taken, what is made up, and what is refused with an example."""

from __future__ import annotations

from typing import Any

import pytest

from swinopt import profiles
from swinopt.cli_engine import parse_profiles
from swinopt.errors import OptionError

IMAGE = {"x": (-1, 3, 224, 224)}
OPEN = {"x": (-1, 3, -1, -1), "scale": (1,)}


def sizes(*batches: int) -> Any:
    return tuple((batch, 3, 224, 224) for batch in batches)


def test_a_static_model_needs_none() -> None:
    assert profiles.resolve(None, {"x": (1, 3)}) == ()


def test_a_dynamic_batch_alone_has_a_default() -> None:
    assert profiles.resolve(None, IMAGE) == ({"x": sizes(1, 8, 32)},)


def test_one_and_several_are_taken_in_order() -> None:
    assert profiles.resolve({"x": sizes(1, 4, 8)}, IMAGE) == ({"x": sizes(1, 4, 8)},)
    several = [{"x": sizes(1, 1, 1)}, {"x": sizes(2, 4, 8)}]
    assert profiles.resolve(several, IMAGE) == tuple(several)


def test_other_dynamic_sizes_need_one_and_an_example_shows_how() -> None:
    with pytest.raises(OptionError) as caught:
        profiles.resolve(None, OPEN)
    example = str(caught.value).partition("profiles=")[2]
    assert profiles.resolve(eval(example), OPEN), "the example must be one that works"


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({}, "lacks x"),
        ([], "needs a profile"),
        ({"x": sizes(1, 4, 8), "y": sizes(1, 4, 8)}, "names y, which is no input"),
        ({"x": sizes(1, 4)}, "three shapes"),
        ({"x": 4}, "three shapes"),
        ([("x", sizes(1, 4, 8))], "maps names of inputs"),
        ({"x": sizes(1, 8, 4)}, "must not shrink"),
        ({"x": sizes(0, 4, 8)}, r"shape \[0, 3, 224, 224\]"),
        ({"x": [(1, 3, 256, 224)] * 3}, r"shape \[1, 3, 256, 224\] for 'x', and the model takes \[\?, 3, 224, 224\]"),
        ({"x": [(1, 3)] * 3}, r"shape \[1, 3\]"),
    ],
)
def test_profiles_that_do_not_fit(profile: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        profiles.resolve(profile, IMAGE)


def test_profiles_of_the_command_line() -> None:
    image, other = "x=1x3x224x224,4x3x224x224,8x3x224x224", "scale=1,1,2"
    assert parse_profiles([image, other]) == [{"x": sizes(1, 4, 8), "scale": ((1,), (1,), (2,))}]
    assert parse_profiles([image, image]) == [{"x": sizes(1, 4, 8)}] * 2
    assert parse_profiles([]) == []


@pytest.mark.parametrize("text", ["x", "x=1x3", "x=1,2", "x=1,2,3,4", "x=1xa,1x2,1x3", "x=0,1,2", "=1,2,3", "x=1,,2"])
def test_text_that_is_no_profile(text: str) -> None:
    with pytest.raises(OptionError, match="write it as --profile input="):
        parse_profiles([text])

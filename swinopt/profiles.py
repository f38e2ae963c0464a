"""Optimization profiles: between which shapes an engine works, and for which it is tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from swinopt.errors import OptionError
from swinopt.interface import Range, Shape

#: For each dynamic input its smallest, usual and largest shape.
Profile: TypeAlias = Mapping[str, Sequence[Sequence[int]]]

#: What a model gets whose batch alone is dynamic.
DEFAULT_BATCHES = (1, 8, 32)


def resolve(
    profiles: Profile | Sequence[Profile] | None, inputs: Mapping[str, Shape]
) -> tuple[Mapping[str, Range], ...]:
    """The profiles of an engine, checked against the model's inputs.

    Args:
        profiles: one, several, or None: then a model whose batch alone is dynamic gets batches 1 to 32, tuned for 8.
        inputs: the shape of each input, -1 where it is dynamic.

    Returns:
        Them; none for a model without dynamic inputs.

    Raises:
        OptionError: a profile is missing, or does not fit the model; the message shows how to write one.
    """
    dynamic = {name: shape for name, shape in inputs.items() if -1 in shape}
    if profiles is None:
        return (_default(dynamic),) if dynamic else ()
    every = [profiles] if isinstance(profiles, Mapping) else list(profiles)
    if not dynamic and every:
        raise OptionError("the model has no dynamic input: leave profiles out")
    if not every:
        raise OptionError(f"a model with dynamic inputs needs a profile: {_example(dynamic)}")
    return tuple(_checked(profile, inputs, dynamic) for profile in every)


def _default(dynamic: Mapping[str, Shape]) -> Mapping[str, Range]:
    if any(shape.count(-1) > 1 or shape[0] != -1 for shape in dynamic.values()):
        raise OptionError(f"the model has dynamic sizes besides the batch: say which, {_example(dynamic)}")
    low, usual, high = DEFAULT_BATCHES
    return {name: ((low, *shape[1:]), (usual, *shape[1:]), (high, *shape[1:])) for name, shape in dynamic.items()}


def _checked(profile: Any, inputs: Mapping[str, Shape], dynamic: Mapping[str, Shape]) -> Mapping[str, Range]:
    if not isinstance(profile, Mapping):
        raise OptionError(f"a profile maps names of inputs to three shapes: {_example(dynamic)}")
    missing, unknown = sorted(dynamic.keys() - profile.keys()), sorted(profile.keys() - inputs.keys())
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"names {', '.join(unknown)}, which is no input"
        raise OptionError(f"the profile {what}; the model has {', '.join(inputs)}: {_example(dynamic)}")
    ranges = {name: _range(name, shapes, inputs[name]) for name, shapes in profile.items()}
    return {name: ranges[name] for name in dynamic}


def _range(name: str, shapes: Sequence[Sequence[int]], declared: Shape) -> Range:
    try:
        low, usual, high = (tuple(int(size) for size in shape) for shape in shapes)
    except (TypeError, ValueError):
        raise OptionError(f"{name!r} needs three shapes, the smallest, the usual and the largest: {shapes}") from None
    for shape in (low, usual, high):
        if len(shape) != len(declared) or any(d not in (-1, s) or s < 1 for d, s in zip(declared, shape, strict=True)):
            expected = ", ".join("?" if size == -1 else str(size) for size in declared)
            raise OptionError(f"the profile has shape {list(shape)} for {name!r}, and the model takes [{expected}]")
    if any(not a <= b <= c for a, b, c in zip(low, usual, high, strict=True)):
        raise OptionError(f"the shapes of {name!r} must not shrink from the smallest to the largest: {list(shapes)}")
    return low, usual, high


def _example(dynamic: Mapping[str, Shape]) -> str:
    rows = []
    for name, shape in dynamic.items():
        sizes = [tuple(_usual(axis, size, batch) for axis, size in enumerate(shape)) for batch in DEFAULT_BATCHES]
        rows.append(f"{name!r}: ({', '.join(map(str, sizes))})")
    return f"profiles={{{', '.join(rows)}}}"


def _usual(axis: int, size: int, batch: int) -> int:
    if size != -1:
        return size
    return batch if axis == 0 else 224

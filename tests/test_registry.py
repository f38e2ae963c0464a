from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

from swinopt import passes, registry
from swinopt.errors import OptionError
from swinopt.pipeline import Pass, Pipeline

MODULES = sorted(module.name for module in pkgutil.iter_modules(passes.__path__))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"swinopt.passes.{name}")


def passes_of(name: str) -> list[type[Pass]]:
    kinds = inspect.getmembers(module(name), inspect.isclass)
    return [kind for _, kind in kinds if issubclass(kind, Pass) and kind.__module__ == module(name).__name__]


@pytest.mark.parametrize("name", MODULES)
def test_a_file_is_a_pass_of_its_name(name: str) -> None:
    (kind,) = passes_of(name)
    assert kind.name == name.replace("_", "-")
    assert kind.__name__ == name.replace("_", " ").title().replace(" ", "")
    assert registry.find(kind.name) is kind and kind in passes.ALL
    assert getattr(passes, kind.__name__) is kind and kind.__name__ in passes.__all__


@pytest.mark.parametrize("kind", passes.ALL, ids=lambda kind: kind.name)
def test_a_pass_is_a_frozen_value_that_says_what_it_does(kind: type[Pass]) -> None:
    assert dataclasses.is_dataclass(kind) and kind() == kind() and hash(kind()) == hash(kind())
    assert inspect.getdoc(kind) and not inspect.getdoc(kind).startswith(kind.__name__ + "(")  # type: ignore[union-attr]
    assert inspect.getdoc(module(kind.name.replace("-", "_")))
    assert Pipeline.parse(kind.name) == Pipeline(kind())


def test_the_passes_are_all_there_is_in_the_order_of_their_names() -> None:
    assert [kind.name for kind in passes.ALL] == sorted(name.replace("_", "-") for name in MODULES)
    assert list(registry.available())[: len(passes.ALL)] == [kind.name for kind in passes.ALL]


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("fuse-layernorm", "did you mean fuse-layer-norm"), ("", "there are: eliminate-noops, "), ("GELU", "there are: ")],
)
def test_a_name_that_is_not_known_gets_a_hint(wrong: str, hint: str) -> None:
    with pytest.raises(OptionError, match=hint):
        registry.find(wrong)

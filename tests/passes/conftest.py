"""What tests of several passes use."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests import graphs
from tests.graphs import Builder


@pytest.fixture
def spell_norm(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Builder, str], str]], None]:
    """Normalises q and k of cosine attention in another way from now on."""
    return lambda write: monkeypatch.setattr(graphs, "_normalised", write)

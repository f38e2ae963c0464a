"""DLPack in both directions. Memory that we lend is on the host here, so that others can read it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from swinopt import dlpack
from swinopt.errors import OptionError


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dlpack, "CUDA", dlpack.CPU)
    assert not dlpack._lent
    yield
    gc.collect()
    assert not dlpack._lent, "something that was lent did not come back"


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64"])
def test_an_array_is_seen_where_it_lies(dtype: str) -> None:
    array = np.zeros((2, 1, 3), dtype)
    seen = dlpack.view(array)
    assert (seen.pointer, seen.shape, seen.dtype, seen.device) == (array.ctypes.data, (2, 1, 3), dtype, (1, 0))
    assert seen.dense and not seen.on_gpu


def test_views_of_arrays_start_where_they_start_and_say_whether_they_have_gaps() -> None:
    array = np.zeros((4, 6), np.float32)
    assert dlpack.view(array[1:]).pointer == array.ctypes.data + 24
    assert dlpack.view(array[1:]).dense
    for gappy in (array[:, 1:], array.T, array[::2]):
        assert not dlpack.view(gappy).dense
    for trivial in (array[:1].T, array[:, :0], array[0, 0:1]):
        assert dlpack.view(trivial).dense


def test_a_view_keeps_its_array_alive() -> None:
    seen = dlpack.view(np.full(3, 7, np.float32))
    gc.collect()
    assert list((np.ctypeslib.ctypes.c_float * 3).from_address(seen.pointer)) == [7, 7, 7]


def test_bfloat16_of_torch() -> None:
    torch = pytest.importorskip("torch")
    assert dlpack.view(torch.zeros(2, dtype=torch.bfloat16)).dtype == "bfloat16"
    with pytest.raises(OptionError, match=r"a Tensor cannot be used: .*detach"):
        dlpack.view(torch.zeros(2, requires_grad=True))


def test_types_that_no_engine_takes() -> None:
    with pytest.raises(OptionError, match="elements of a type that no engine takes"):
        dlpack.view(np.zeros(2, np.complex64))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3), (1,)])
def test_others_take_what_is_lent_and_give_it_back(library: str, shape: tuple[int, ...], on_host: None) -> None:
    module = pytest.importorskip(library)
    array = np.arange(6, dtype=np.float32)[: int(np.prod(shape))].reshape(shape)
    taken: Any = module.from_dlpack(dlpack.DeviceArray(array.ctypes.data, shape, "float32", 0, array))
    np.testing.assert_array_equal(np.asarray(taken), array)
    assert len(dlpack._lent) == 1
    array[...] = 5
    assert (np.asarray(taken) == 5).all(), "it was copied"


def test_a_capsule_that_nobody_took_gives_it_back(on_host: None) -> None:
    array = np.zeros(2, np.float32)
    capsule = dlpack.DeviceArray(array.ctypes.data, (2,), "float32", 0, array).__dlpack__()
    assert len(dlpack._lent) == 1
    del capsule


@pytest.mark.parametrize("taken", [False, True])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_is_dropped_while_an_exception_is_on_its_way_is_given_back(taken: bool, on_host: None) -> None:
    torch = pytest.importorskip("torch")
    array = np.zeros(2, np.float32)
    lent = dlpack.DeviceArray(array.ctypes.data, (2,), "float32", 0, array)
    for _ in range(2):  # ctypes looks functions up at their first call
        # The arguments of what failed are dropped before anybody catches the exception.
        with pytest.raises((RuntimeError, TypeError, SystemError)):
            torch.from_dlpack(lent) + torch.zeros(7) if taken else len(lent.__dlpack__())
    assert not dlpack._lent

"""What tests of kernels share: an emulation for the CPU, and on a GPU the C++ plugin library and what that needs."""

from __future__ import annotations

import ctypes

import pytest

from swinopt import plugin_library


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    from tests.cuda_plugins import emulation  # needs torch, which not all of those tests do

    return emulation.build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(scope="session")
def library() -> ctypes.CDLL:
    path = plugin_library.find_library()
    if path is None:
        pytest.skip("the plugin library is not built: swinopt build-plugins")
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="session")
def cublaslt() -> None:
    path = plugin_library.find_library()
    if path is not None and not plugin_library.cublaslt_version(path):
        pytest.skip("no libcublasLt.so.11, .12 or .13 is where the loader looks")


@pytest.fixture(scope="session")
def hopper() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the library's own kernels are for Hopper (compute capability 9.0)")

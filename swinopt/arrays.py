"""Arrays on their way into an engine and out of it, of whatever library they are."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from swinopt import cuda, dlpack
from swinopt.errors import OptionError
from swinopt.interface import Interface, Shape

_ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "int32": 4, "int64": 8, "bool": 1, "uint8": 1}


def arrays_for(interface: Interface, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller gave, in the order of the engine; what is no array of some library is made one of NumPy.

    Raises:
        OptionError: the names are not those of the engine's inputs.
    """
    if not isinstance(inputs, Mapping) or inputs.keys() != interface.inputs.keys():
        given = ", ".join(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
        raise OptionError(f"the engine takes {', '.join(interface.inputs)} as inputs, and {given or 'none'} was given")
    return {name: _as_array(inputs[name]) for name in interface.inputs}


def _as_array(value: Any) -> Any:
    if hasattr(value, "__dlpack_device__") and not isinstance(value, np.ndarray):
        return value
    return np.asarray(value, order="C")


def view(array: Any, stream: cuda.Stream) -> dlpack.View:
    """The array where it lies; if that is a GPU, ``stream`` waits for whoever still writes it."""
    if isinstance(array, np.ndarray):
        # Not through DLPack, which NumPy refuses for arrays that may not be written to.
        return dlpack.View(array.ctypes.data, array.shape, str(array.dtype), (dlpack.CPU, 0), True, array)
    on_gpu = dlpack.device_of(array)[0] in (dlpack.CUDA, dlpack.CUDA_MANAGED)
    return dlpack.view(array, stream.address if on_gpu else None)


def library_of(array: Any) -> Any:
    """The module that the array is of."""
    return sys.modules.get(type(array).__module__.partition(".")[0])


def handed_out(array: Any, library: Any) -> Any:
    """An array as one of the given library, without a copy; as it is, if that library takes none."""
    if library_of(array) is library:
        return array
    convert = getattr(library, "from_dlpack", None)
    return convert(array) if convert else array


def empty(dtype: str, shape: Shape, like: Any) -> Any:
    """An array on the host, of NumPy; if ``like`` is a tensor of torch, such a tensor, and where that lies.

    What torch is lent would be given back in Python, which loses an exception that is on its way: that of
    ``engine.run(...)["y"] + other``, say, where sizes differ. NumPy, for its part, lends torch no bfloat16.
    """
    library = library_of(like)
    if is_of_torch(like):
        return library.empty(shape, dtype=getattr(library, dtype), device=like.device)
    return np.empty(shape, _numpy_dtype(dtype))


def is_of_torch(array: Any) -> bool:
    """Whether it is a tensor of torch, which need not be installed."""
    return getattr(library_of(array), "__name__", None) == "torch"


def random(rng: np.random.Generator, dtype: str, shape: Shape) -> Any:
    """An array of normally distributed floats, or of zeros, which every integer input takes."""
    if dtype in ("float32", "float16", "bfloat16"):
        return rng.standard_normal(shape, np.float32).astype(_numpy_dtype(dtype))
    return np.zeros(shape, _numpy_dtype(dtype))


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    if dtype != "bfloat16":
        return np.dtype(dtype)
    import ml_dtypes  # comes with onnx where NumPy has need of it

    found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return found


def size_of(dtype: str, shape: Shape) -> int:
    """The bytes of an array."""
    return math.prod(shape) * _ITEM_SIZES[dtype]

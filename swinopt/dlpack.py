"""Tensors of other libraries without a copy, in both directions: the DLPack protocol, in ctypes.

NumPy, torch, CuPy, JAX and TensorFlow speak it, so that none of them has to be known here.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import Any

from swinopt.errors import OptionError

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13

# kDLInt 0, kDLUInt 1, kDLFloat 2, kDLBfloat 4, kDLBool 6, with the number of bits.
_TYPES = {
    "bool": (6, 8),
    "uint8": (1, 8),
    "int8": (0, 8),
    "int32": (0, 32),
    "int64": (0, 64),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "float32": (2, 32),
    "float64": (2, 64),
}
_NAMES = {code: name for name, code in _TYPES.items()}
_UNUSED = b"dltensor"


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


# An address, since ctypes calls into Python to make a pointer: see _lent.
_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))

_api = ctypes.pythonapi
_api.PyCapsule_GetPointer.restype = ctypes.c_void_p
_api.PyCapsule_GetPointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
_api.PyCapsule_New.restype = ctypes.py_object
_api.PyCapsule_New.argtypes = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


@dataclass(frozen=True)
class View:
    """What there is to know of somebody's tensor.

    Attributes:
        pointer: the address of its first element.
        shape: its sizes.
        dtype: its type, e.g. "float32".
        device: where it lies: (kind, number), with the numbers of DLPack for kinds.
        dense: whether its elements lie in order and without gaps.
        owner: to be held as long as the address is used.
    """

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    device: tuple[int, int]
    dense: bool
    owner: object

    @property
    def on_gpu(self) -> bool:
        """Whether a kernel can read it where it is."""
        return self.device[0] in (CUDA, CUDA_MANAGED)


def device_of(tensor: Any) -> tuple[int, int]:
    """Where a tensor lies."""
    kind, number = tensor.__dlpack_device__()
    return int(kind), int(number)


def view(tensor: Any, stream: int | None = None) -> View:
    """A tensor of any library that speaks DLPack; nothing is copied.

    Args:
        tensor: the tensor.
        stream: for a tensor on a GPU, the stream that may use it once this returns.

    Raises:
        OptionError: the library does not hand the tensor out, or it is of a type that no engine takes.
    """
    try:
        capsule = tensor.__dlpack__() if stream is None else tensor.__dlpack__(stream=stream)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(f"a {type(tensor).__name__} cannot be used: {error}") from error
    address = _api.PyCapsule_GetPointer(capsule, _UNUSED)
    found = ctypes.cast(address, ctypes.POINTER(_Managed)).contents.tensor
    shape = tuple(found.shape[axis] for axis in range(found.ndim))
    strides = tuple(found.strides[axis] for axis in range(found.ndim)) if found.strides else None
    name = _NAMES.get((found.dtype.code, found.dtype.bits))
    if name is None or found.dtype.lanes != 1:
        raise OptionError(f"a {type(tensor).__name__} holds elements of a type that no engine takes")
    return View(
        pointer=(found.data or 0) + found.byte_offset,
        shape=shape,
        dtype=name,
        device=(found.device.type, found.device.id),
        dense=strides is None or _is_dense(shape, strides),
        owner=(capsule, tensor),
    )


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != step:
            return 0 in shape
        step *= size
    return True


class DeviceArray:
    """Memory of ours as a tensor that other libraries take: ``torch.from_dlpack(array)``.

    Attributes:
        pointer: its address.
        shape: its sizes.
        dtype: its type, e.g. "float32".
        device: the number of the GPU.
    """

    def __init__(self, pointer: int, shape: tuple[int, ...], dtype: str, device: int, owner: object) -> None:
        self.pointer, self.shape, self.dtype, self.device = pointer, shape, dtype, device
        self._owner = owner

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        # Whoever asks finds finished work: an engine is waited for before its outputs are handed out.
        return _capsule(self, self._owner)

    def __repr__(self) -> str:
        return f"<DeviceArray {self.dtype}{list(self.shape)} on GPU {self.device}>"


#: What was handed out, by the address of its header, until the taker calls the deleter.
#:
#: A taker may drop a tensor or a capsule while an exception is on its way. A call in Python then does what it should,
#: and raises all the same, so that one call has to do. ctypes prints that exception then, and its caller has none.
_lent: dict[int, tuple[Any, ...]] = {}


def _take_back(address: int) -> None:
    _lent.pop(address, None)


def _capsule(array: DeviceArray, owner: object) -> Any:
    sizes = (ctypes.c_int64 * max(1, len(array.shape)))(*array.shape)
    steps = [math.prod(array.shape[axis + 1 :]) for axis in range(len(array.shape))]
    strides = (ctypes.c_int64 * max(1, len(steps)))(*steps)
    code, bits = _TYPES[array.dtype]
    tensor = _Tensor(array.pointer, _Device(CUDA, array.device), len(array.shape), _Type(code, bits, 1))
    tensor.shape = ctypes.cast(sizes, ctypes.POINTER(ctypes.c_int64))
    tensor.strides = ctypes.cast(strides, ctypes.POINTER(ctypes.c_int64))
    managed = _Managed(tensor, None, _returned)
    address = ctypes.addressof(managed)
    _lent[address] = (managed, sizes, strides, owner)
    return _api.PyCapsule_New(address, _UNUSED, ctypes.cast(_unused_capsule, ctypes.c_void_p))


def _drop(capsule: int) -> None:
    """A capsule that nobody took takes its tensor along; a taker renames it and calls the deleter itself."""
    try:
        unused = _is_valid(capsule, _UNUSED)
    except Exception:  # whatever was on its way when the capsule was dropped; it is not any more, so that calls work
        if _is_valid(capsule, _UNUSED):
            _take_back(_pointer_of(capsule, _UNUSED))
        raise
    if unused:
        _take_back(_pointer_of(capsule, _UNUSED))


_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))


# C keeps their addresses, so that they have to live as long as the module.
_returned = _Deleter(_take_back)
_unused_capsule = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_drop)

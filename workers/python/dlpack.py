"""DLPack capsules, given and taken without a copy.

numpy gives capsules of its own arrays but for BF16, which it does not know, and takes none that is not wrapped in an
object: the one is told to a capsule of numpy's, the other is done by hand here.
Layout and rules: https://dmlc.github.io/dlpack (version 0.x, the unversioned struct).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...shm.datatypes import DATATYPES
from .errors import TritonModelException

Array = np.ndarray[Any, np.dtype[Any]]

CPU_DEVICE = (1, 0)
"""kDLCPU."""
CUDA_KIND = 2
"""kDLCUDA."""
# kDLCPU and the kinds of memory that are a CPU's as well: kDLCUDAHost, kDLROCMHost
_READABLE = (1, 3, 11)
# kDLCUDA and kDLCUDAManaged, which a CPU could read, but not while kernels are under way that write to it
_ON_DEVICE = (CUDA_KIND, 13)

# type codes: kDLInt, kDLUInt, kDLFloat, kDLBfloat, kDLBool
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4
_DATATYPES = {(_CODES[d.dtype.kind], 8 * d.byte_size): d.name for d in DATATYPES.values() if d.name not in ("BYTES", "BF16")}
_DATATYPES[_BFLOAT, 16] = "BF16"
_TYPES = {name: pair for pair, name in _DATATYPES.items()}


class _Device(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int32), ("number", ctypes.c_int32)]


class _Type(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("content", ctypes.c_void_p),
        ("device", _Device),
        ("rank", ctypes.c_int32),
        ("type", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


_NAME = ctypes.create_string_buffer(b"dltensor")
_USED = ctypes.create_string_buffer(b"used_dltensor")
# a capsule keeps the name's address, also while the interpreter ends
ctypes.pythonapi["Py_IncRef"](ctypes.py_object(_USED))

# Function objects of our own: those that are attributes of ctypes.pythonapi get their types from whoever wants them.
_is_valid = ctypes.pythonapi["PyCapsule_IsValid"]
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.py_object, ctypes.c_void_p]
_pointer = ctypes.pythonapi["PyCapsule_GetPointer"]
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_void_p]
_rename = ctypes.pythonapi["PyCapsule_SetName"]
_rename.restype = ctypes.c_int
_rename.argtypes = [ctypes.py_object, ctypes.c_void_p]

# deleters may want the interpreter's lock, or hold it already: calls that keep it suit both
_Deleter = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)

_DISGUISES: dict[str, np.dtype[Any]] = {"BF16": np.dtype(np.uint16), "BOOL": np.dtype(np.uint8)}
"""Datatypes that numpy, or numpy before 1.25, gives no capsules of: what their elements are meanwhile."""


def given(array: Array, datatype: str) -> object:
    """A capsule of a C-ordered array; BF16 is one of uint16. What may not be written to is copied, as a capsule cannot say so."""
    if not array.flags.writeable:
        array = array.copy()
    disguise = _DISGUISES.get(datatype)
    if disguise is None:
        return array.__dlpack__()
    # The capsule is numpy's in any case: one that is destroyed while an exception is on its way must not run Python code.
    capsule: object = array.view(disguise).__dlpack__()
    told = _Managed.from_address(_pointer(capsule, _NAME)).tensor.type
    told.code, told.bits = _TYPES[datatype]
    return capsule


@dataclass(frozen=True, slots=True)
class OnDevice:
    """Elements in C order in the memory of a GPU, by its ordinal; they stay there as long as anybody has ``owner``."""

    ordinal: int
    address: int
    shape: tuple[int, ...]
    datatype: str
    owner: object


def given_on_device(tensor: OnDevice) -> object:
    """A capsule of them, which keeps their owner."""
    dtype = _DISGUISES.get(tensor.datatype, DATATYPES[tensor.datatype].dtype)
    # An array that nobody must look into: its capsule tells shape and strides, and is destroyed as numpy's are.
    array: Array = np.asarray(_Seen(tensor.shape, dtype, tensor.address, tensor.owner))
    capsule: object = array.__dlpack__()
    told = _Managed.from_address(_pointer(capsule, _NAME)).tensor
    told.content, told.byte_offset = tensor.address, 0
    told.device.kind, told.device.number = CUDA_KIND, tensor.ordinal
    told.type.code, told.type.bits = _TYPES[tensor.datatype]
    return capsule


class _Seen:
    """What numpy takes for an array; it keeps ``owner``."""

    __slots__ = ("__array_interface__", "_owner")

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], content: int, owner: object) -> None:
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str, "data": (content, False)}
        self._owner = owner


class _Loan:
    """Somebody else's tensor; given back when the last that was made of it is gone."""

    __slots__ = ("_address", "_deleter")

    def __init__(self, address: int, deleter: int | None) -> None:
        self._address = address
        self._deleter = _Deleter(deleter) if deleter else None

    def __del__(self) -> None:
        if self._deleter is not None:
            self._deleter(self._address)


def taken(source: Any) -> tuple[Array, str] | OnDevice:
    """The array of a capsule, or of anything that gives one, over the same memory, and its datatype; BF16 as uint16.

    Raises TritonModelException for what is neither, lies in the memory of a device other than a GPU, or is not stored in C order.
    """
    # an array says itself what is to be known, and its own capsules cannot be had where it may not be written to
    if isinstance(source, np.ndarray):
        return _array(source)
    capsule: object = source
    if hasattr(source, "__dlpack__") and hasattr(source, "__dlpack_device__"):
        kind, _ = source.__dlpack_device__()
        if kind not in _READABLE and kind not in _ON_DEVICE:
            raise _elsewhere()
        # Without a stream of ours: whoever copies from a GPU waits for all of its streams first.
        capsule = source.__dlpack__()
    if type(capsule).__name__ != "PyCapsule" or not _is_valid(capsule, _NAME):
        # the odd spaces are part of the original's sentence
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule         "
            "or have `__dlpack__` and `__dlpack_device__` attributes"
        )
    return _borrowed(capsule)


def _array(array: Array) -> tuple[Array, str]:
    datatype = _DATATYPES.get((_CODES.get(array.dtype.kind, -1), 8 * array.itemsize))
    if datatype is None or not array.dtype.isnative:
        raise _unsupported()
    if not array.flags.c_contiguous:
        raise _not_contiguous()
    return array, datatype


def _borrowed(capsule: object) -> tuple[Array, str] | OnDevice:
    address = _pointer(capsule, _NAME)
    managed = _Managed.from_address(address)
    tensor = managed.tensor
    shape = tuple(tensor.shape[: tensor.rank]) if tensor.rank else ()
    datatype = _DATATYPES.get((tensor.type.code, tensor.type.bits))
    # whatever is refused stays the capsule's
    kind = tensor.device.kind
    if kind not in _READABLE and kind not in _ON_DEVICE:
        raise _elsewhere()
    if datatype is None or tensor.type.lanes != 1:
        raise _unsupported()
    if tensor.strides and not _in_order(shape, tensor.strides[: tensor.rank]):
        raise _not_contiguous()
    _rename(capsule, _USED)
    content = (tensor.content or 0) + tensor.byte_offset
    loan = _Loan(address, managed.deleter)
    if kind in _ON_DEVICE:
        return OnDevice(tensor.device.number, content, shape, datatype, loan)
    dtype = DATATYPES[datatype].dtype
    if 0 in shape:
        return np.empty(shape, dtype), datatype
    return np.asarray(_Seen(shape, dtype, content, loan)), datatype


def _in_order(shape: tuple[int, ...], strides: list[int]) -> bool:
    if 0 in shape:
        return True
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        # of a single element the stride means nothing
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _not_contiguous() -> TritonModelException:
    return TritonModelException("DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported.")


def _unsupported() -> TritonModelException:
    return TritonModelException("DLPack tensor type is not supported.")


def _elsewhere() -> TritonModelException:
    return TritonModelException("DLPack tensors in a device's memory are not supported.")

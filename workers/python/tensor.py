"""A tensor as a model sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from ...shm.datatypes import DATATYPES
from ...shm.placement import Placement
from ..contract import messages
from . import dlpack
from .errors import TritonModelException, incompatible
from .host import InputMemory
from .strings import decoded, encoded

Array = np.ndarray[Any, np.dtype[Any]]

# BF16 has no dtype of its own, and BYTES are objects or strings of bytes
_NUMERIC = {name: datatype.dtype for name, datatype in DATATYPES.items() if name not in ("BYTES", "BF16")}
_DATATYPES = {dtype: name for name, dtype in _NUMERIC.items()} | {np.dtype(np.object_): "BYTES"}

_ndarray = np.ndarray
# callers may be wrong about what they give, whatever the annotations say
_is_a: Callable[[object, type], bool] = isinstance


class Tensor:
    """A name, a datatype, a shape, and the elements: a numpy array given by the model, or bytes that it has been sent.

    Of an array that is C-ordered no copy is made, then or later: what is written to it before it is sent, is sent.
    Raises TritonModelException for an empty name or an unknown dtype, TypeError for other types.
    """

    __slots__ = ("__weakref__", "_array", "_memory", "_name", "_shape", "datatype", "place")

    datatype: str
    """The wire name: ``FP32``."""

    place: Placement | None
    """Where a received tensor lies as long as nobody could have written to it; None for all others."""

    _memory: InputMemory

    def __init__(self, name: str, numpy_array: Array) -> None:
        if not _is_a(numpy_array, _ndarray) or not _is_a(name, str):
            raise incompatible("Tensor(name: str, numpy_array: numpy.ndarray)", name, numpy_array)
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        datatype = _DATATYPES.get(numpy_array.dtype)
        self.datatype = _odd_datatype(numpy_array) if datatype is None else datatype
        self._array: Array | None = numpy_array if numpy_array.flags.c_contiguous else np.ascontiguousarray(numpy_array)
        self._name = name
        self._shape: tuple[int, ...] | None = None
        self.place = None

    @staticmethod
    def received(wire: messages.Tensor, memory: InputMemory) -> Tensor:
        """A tensor of a message; ``memory`` gives its bytes when they are asked for."""
        self = _new(Tensor)
        self._array = None
        self._name = wire.name
        self.datatype = wire.datatype
        self._shape = wire.shape
        self.place = wire.place
        self._memory = memory
        return self

    @staticmethod
    def holding(name: str, datatype: str, array: Array) -> Tensor:
        """A tensor over an array that is the model's from now on: uint16 for BF16, objects for BYTES."""
        self = _new(Tensor)
        self._array = array
        self._name = name
        self.datatype = datatype
        self._shape = None
        self.place = None
        return self

    @staticmethod
    def from_dlpack(name: str, tensor: object) -> Tensor:
        """A tensor over the memory of a DLPack capsule, or of an object with ``__dlpack__``; no copy is made.

        Raises TritonModelException for an empty name and for what cannot be taken.
        """
        if not _is_a(name, str):
            raise incompatible("from_dlpack(name: str, tensor: object)", name, tensor)
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        array, datatype = (tensor._dlpack_array(), tensor.datatype) if isinstance(tensor, Tensor) else dlpack.taken(tensor)
        return Tensor.holding(name, datatype, array)

    def name(self) -> str:
        """The name."""
        return self._name

    def triton_dtype(self) -> int:
        """The datatype's number in the protocol: 11 for FP32."""
        return DATATYPES[self.datatype].number

    def shape(self) -> list[int]:
        """The lengths of the dims, the batch dim among them."""
        return list(self.dims())

    def dims(self) -> tuple[int, ...]:
        """The shape as messages carry it."""
        shape = self._shape
        if shape is not None:
            return shape
        array = self._array
        return () if array is None else array.shape

    def is_cpu(self) -> bool:
        """Do the elements lie in the machine's own memory? They always do."""
        return True

    def as_numpy(self) -> Array:
        """The elements as an array that may be written to; always the same one. BYTES are an object array of ``bytes``.

        Raises TritonModelException for BF16, StatusError where a client's region is not what it was.
        """
        array = self._array
        if array is None or self.datatype == "BF16":
            return self._first_array()
        return array

    def _first_array(self) -> Array:
        datatype = self.datatype
        if datatype == "BF16":
            raise TritonModelException("Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead.")
        place = self.place
        if place is None:
            # another thread has made it in between
            return cast(Array, self._array)
        dtype = _NUMERIC.get(datatype)
        content = self._memory.bytes_of(place)
        if dtype is None:
            array: Array = decoded(content.data).reshape(self.dims())
        else:
            array = _ndarray(self.dims(), dtype, content)
        self._array = array
        # only now: another thread that finds no place must find the array
        self.place = None
        return array

    @property
    def memory(self) -> InputMemory:
        """Where a received tensor lies."""
        return self._memory

    def read(self) -> None:
        """Have the bytes at hand from now on. Raises StatusError where they cannot be had any more."""
        if self.place is not None:
            if self.datatype == "BYTES":
                self._first_array()
            else:
                self._dlpack_array()

    def content(self) -> Array | bytes:
        """What is sent: a C-ordered array (BF16 as uint16), or serialised BYTES."""
        if self.datatype != "BYTES":
            return self._dlpack_array()
        place = self.place
        return encoded(cast(Array, self._array)) if place is None else self._memory.bytes_of(place).tobytes()

    def _dlpack_array(self) -> Array:
        array = self._array
        if array is not None and self.datatype != "BYTES":
            return array
        if self.datatype == "BYTES":
            raise TritonModelException("DLPack does not have support for string tensors.")
        if self.datatype != "BF16":
            return self._first_array()
        place = self.place
        if place is None:
            return cast(Array, self._array)
        array = self._array = _ndarray(self.dims(), np.uint16, self._memory.bytes_of(place))
        self.place = None
        return array

    def to_dlpack(self) -> object:
        """A DLPack capsule over the same memory. Raises TritonModelException for BYTES."""
        return dlpack.given(self._dlpack_array(), self.datatype)

    def __dlpack__(self, stream: object = None) -> object:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU_DEVICE


def _odd_datatype(array: Array) -> str:
    if array.dtype.kind == "S":
        return "BYTES"
    raise TritonModelException("NumPy dtype is not supported.")


_new = Tensor.__new__

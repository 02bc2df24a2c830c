"""A tensor as a model sees it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, cast

import numpy as np

from ...shm.datatypes import DATATYPES
from ...shm.placement import Placement
from ..contract import messages
from . import dlpack, host
from .device_block import DeviceBlock
from .errors import TritonModelException, incompatible
from .host import InputMemory
from .strings import decoded, encoded

Array = np.ndarray[Any, np.dtype[Any]]

# BF16 has no dtype of its own, and BYTES are objects or strings of bytes
_NUMERIC = {name: datatype.dtype for name, datatype in DATATYPES.items() if name not in ("BYTES", "BF16")}
_DATATYPES = {dtype: name for name, dtype in _NUMERIC.items()} | {np.dtype(np.object_): "BYTES"}

_ndarray = np.ndarray
# of a stream that a consumer gives: it waits itself
_NO_WAITING = -1
# callers may be wrong about what they give, whatever the annotations say
_is_a: Callable[[object, type], bool] = isinstance


class Tensor:
    """A name, a datatype, a shape, and the elements: a numpy array of the model, bytes that it has been sent, or memory of a GPU.

    Of an array that is C-ordered no copy is made, then or later: what is written to it before it is sent, is sent.
    Raises TritonModelException for an empty name or an unknown dtype, TypeError for other types.
    """

    __slots__ = ("__weakref__", "_array", "_block", "_memory", "_name", "_shape", "datatype", "place")

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
        self._block: DeviceBlock | None = None
        self._name = name
        self._shape: tuple[int, ...] | None = None
        self.place = None

    @staticmethod
    def received(wire: messages.Tensor, memory: InputMemory) -> Tensor:
        """A tensor of a message; ``memory`` gives its bytes when they are asked for."""
        self = _new(Tensor)
        self._array = None
        self._block = None
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
        self._block = None
        self._name = name
        self.datatype = datatype
        self._shape = None
        self.place = None
        return self

    @staticmethod
    def on_device(name: str, datatype: str, shape: tuple[int, ...], block: DeviceBlock) -> Tensor:
        """A tensor over a part of a GPU's memory."""
        self = _new(Tensor)
        self._array = None
        self._block = block
        self._name = name
        self.datatype = datatype
        self._shape = shape
        self.place = None
        return self

    @staticmethod
    def from_dlpack(name: str, tensor: object) -> Tensor:
        """A tensor over the memory of a DLPack capsule, or of an object with ``__dlpack__``; no copy is made, nor is it waited for.

        Raises TritonModelException for an empty name, for what cannot be taken, and for a GPU that this process cannot use.
        """
        if not _is_a(name, str):
            raise incompatible("from_dlpack(name: str, tensor: object)", name, tensor)
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        if isinstance(tensor, Tensor):
            block = tensor._shared_block()
            if block is not None:
                return Tensor.on_device(name, tensor.datatype, tensor.dims(), block)
            return Tensor.holding(name, tensor.datatype, tensor._dlpack_array())
        found = dlpack.taken(tensor)
        if not isinstance(found, dlpack.OnDevice):
            array, datatype = found
            return Tensor.holding(name, datatype, array)
        byte_size = prod(found.shape) * DATATYPES[found.datatype].byte_size
        block = DeviceBlock(host.required().device(found.ordinal), found.address, byte_size, found.owner, exposed=True)
        return Tensor.on_device(name, found.datatype, found.shape, block)

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
        """Do the elements lie in the machine's own memory, and not in a GPU's?"""
        return self.device_block() is None

    def device_block(self) -> DeviceBlock | None:
        """The part of a GPU's memory that the elements lie in; None where they lie elsewhere. Raises StatusError for a broken region."""
        block = self._block
        if block is None and self.datatype != "BYTES":
            place = self.place
            if place is not None:
                block = self._block = self._memory.device_block(place)
        return block

    def _shared_block(self) -> DeviceBlock | None:
        """The same, for somebody who may write to it: from then on nobody takes the elements from their place."""
        block = self.device_block()
        if block is not None:
            self.place = None
        return block

    def as_numpy(self) -> Array:
        """The elements as an array that may be written to; always the same one. BYTES are an object array of ``bytes``.

        Raises TritonModelException for BF16 and on a GPU, StatusError where a client's region is not what it was.
        """
        array = self._array
        if array is None or self.datatype == "BF16":
            return self._first_array()
        return array

    def _first_array(self) -> Array:
        datatype = self.datatype
        if self.device_block() is not None:
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
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
            elif self._shared_block() is None:
                self._dlpack_array()

    def content(self) -> Array | bytes:
        """What is sent: a C-ordered array (BF16 as uint16), or serialised BYTES. A copy, where the elements lie on a GPU."""
        if self.datatype != "BYTES":
            block = self.device_block()
            if block is None:
                return self._dlpack_array()
            return _ndarray(self.dims(), DATATYPES[self.datatype].dtype, block.read())
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
        """A DLPack capsule over the same memory, not waited for. Raises TritonModelException for BYTES.

        On a GPU the memory of a request's tensor is its client's, or nobody's, once the request has its last response.
        """
        block = self._shared_block()
        if block is None:
            return dlpack.given(self._dlpack_array(), self.datatype)
        return block.given(self.dims(), self.datatype)

    def __dlpack__(self, stream: object = None) -> object:
        block = self.device_block()
        if block is not None and stream != _NO_WAITING:
            block.settle()
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        block = self.device_block()
        return dlpack.CPU_DEVICE if block is None else (dlpack.CUDA_KIND, block.device.ordinal)


def _odd_datatype(array: Array) -> str:
    if array.dtype.kind == "S":
        return "BYTES"
    raise TritonModelException("NumPy dtype is not supported.")


_new = Tensor.__new__

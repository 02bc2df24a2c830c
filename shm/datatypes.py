"""Tensor datatypes and shapes: wire names, sizes, numpy equivalents, BYTES serialisation.

Source: KServe v2 "Tensor Data Types" and Triton's binary tensor data extension.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .arrays import np

MAX_COUNT = 2**63 - 1
"""Largest element count or byte size a tensor may have (int64, as the protocol's messages say)."""


@dataclass(frozen=True, slots=True)
class Datatype:
    """One tensor datatype.

    ``name`` is the wire name (``FP32``), ``config_name`` the one in ``config.pbtxt``
    (``TYPE_FP32``), ``number`` its enum value there. ``byte_size`` is the size of an element in
    bytes, 0 for BYTES. ``dtype`` is the numpy type of the stored bytes, and ``numpy_name`` what numpy calls it; BF16
    is carried as uint16 because numpy has no such type, and BYTES as uint8. Asking for a ``dtype`` imports numpy.
    """

    name: str
    config_name: str
    number: int
    byte_size: int
    numpy_name: str
    dtype: np.dtype = field(init=False, repr=False, compare=False)


class _Unasked(Datatype):
    """A datatype while nobody has asked for the ``dtype`` of any; all are plain ones, no slower to ask, from then on."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name != "dtype":
            raise AttributeError(name)
        for datatype in DATATYPES.values():
            # In this order, because other threads may ask meanwhile.
            object.__setattr__(datatype, "dtype", np.dtype(datatype.numpy_name))
            object.__setattr__(datatype, "__class__", Datatype)
        return self.dtype


def _datatype(name: str, number: int, byte_size: int, numpy_name: str, config_name: str = "") -> Datatype:
    return _Unasked(name, config_name or f"TYPE_{name}", number, byte_size, numpy_name)


DATATYPES: dict[str, Datatype] = {
    datatype.name: datatype
    for datatype in (
        _datatype("BOOL", 1, 1, "bool"),
        _datatype("UINT8", 2, 1, "uint8"),
        _datatype("UINT16", 3, 2, "uint16"),
        _datatype("UINT32", 4, 4, "uint32"),
        _datatype("UINT64", 5, 8, "uint64"),
        _datatype("INT8", 6, 1, "int8"),
        _datatype("INT16", 7, 2, "int16"),
        _datatype("INT32", 8, 4, "int32"),
        _datatype("INT64", 9, 8, "int64"),
        _datatype("FP16", 10, 2, "float16"),
        _datatype("FP32", 11, 4, "float32"),
        _datatype("FP64", 12, 8, "float64"),
        _datatype("BYTES", 13, 0, "uint8", "TYPE_STRING"),
        _datatype("BF16", 14, 2, "uint16"),
    )
}
"""Every datatype by wire name."""

BY_NUMBER: dict[int, Datatype] = {datatype.number: datatype for datatype in DATATYPES.values()}
"""Every datatype by its ``DataType`` enum value in ``model_config.proto``."""


def shape_text(shape: Iterable[int]) -> str:
    """Render a shape as error messages print it: ``[1,16]``, ``[]`` when empty."""
    return "[" + ",".join(map(str, shape)) + "]"


def element_count(shape: Sequence[int]) -> int:
    """Number of elements in a fully specified shape; 0 for the empty shape, as in the protocol."""
    if not shape:
        return 0
    count = 1
    for dim in shape:
        count *= dim
    return count


_LENGTH = struct.Struct("<I")
_LENGTHS = [_LENGTH.pack(length) for length in range(256)]


def serialize_bytes(elements: Iterable[bytes]) -> bytes:
    """Serialise BYTES elements: each a 4-byte little-endian length, then that many bytes."""
    contents = list(elements)
    parts = [b""] * (2 * len(contents))
    parts[0::2] = [_LENGTHS[len(content)] if len(content) < len(_LENGTHS) else _LENGTH.pack(len(content)) for content in contents]
    parts[1::2] = contents
    return b"".join(parts)


def iter_bytes(buffer: bytes | memoryview) -> Iterator[bytes]:
    """Yield the elements of a serialised BYTES tensor.

    Raises ValueError where the buffer ends inside a length or an element.
    """
    content = bytes(buffer)
    end = len(content)
    length_at = _LENGTH.unpack_from
    at = 0
    while at < end:
        if end - at < 4:
            raise ValueError("a BYTES tensor ends inside an element's length")
        (length,) = length_at(content, at)
        at += 4
        stop = at + length
        if stop > end:
            raise ValueError("a BYTES tensor ends inside an element")
        yield content[at:stop]
        at = stop

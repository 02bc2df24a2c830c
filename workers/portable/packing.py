"""Encoding to msgpack in plain Python: byte for byte what msgspec makes of the same objects."""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from typing import Any

from .structs import StructType

Write = Callable[[Any], None]

_FIXED = [bytes([number]) for number in range(256)]
_U8 = struct.Struct(">BB").pack
_U16 = struct.Struct(">BH").pack
_U32 = struct.Struct(">BI").pack
_U64 = struct.Struct(">BQ").pack
_I8 = struct.Struct(">Bb").pack
_I16 = struct.Struct(">Bh").pack
_I32 = struct.Struct(">Bi").pack
_I64 = struct.Struct(">Bq").pack
_F64 = struct.Struct(">Bd").pack


class Encoder:
    """Encodes None, bool, int, float, str, bytes and their like, lists, tuples, dicts, enum members and structs.

    Subclasses of these are refused, as the original refuses them.
    """

    def encode(self, value: Any) -> bytes:
        """The msgpack of a value. Raises TypeError or OverflowError for what has none."""
        parts: list[Any] = []
        _pack(value, parts.append)
        return b"".join(parts)


def _pack(value: Any, write: Write) -> None:
    pack = _PACK.get(type(value))
    if pack is None:
        pack = _PACK[type(value)] = _packer(type(value))
    pack(value, write)


def _packer(kind: type) -> Callable[[Any, Write], None]:
    """How objects of a type that has not been seen before are packed."""
    if isinstance(kind, StructType):
        return _struct_packer(kind)
    if issubclass(kind, enum.Enum):
        return lambda member, write: _pack(member.value, write)
    raise TypeError(f"Encoding objects of type {kind.__name__} is unsupported")


def _struct_packer(kind: StructType) -> Callable[[Any, Write], None]:
    parts: list[bytes] = []
    tagged = kind.struct_tag is not None
    _length(len(kind.__struct_fields__) + tagged, 0x90, 0xDC, parts.append)
    if tagged:
        _int(kind.struct_tag, parts.append)
    head = b"".join(parts)
    values = kind.struct_values
    known = _PACK

    def pack(value: Any, write: Write) -> None:
        write(head)
        for field in values(value):
            packer = known.get(type(field))
            if packer is None:
                _pack(field, write)
            else:
                packer(field, write)

    return pack


def _none(value: None, write: Write) -> None:
    write(b"\xc0")


def _bool(value: bool, write: Write) -> None:
    write(b"\xc3" if value else b"\xc2")


def _int(value: Any, write: Write) -> None:
    if value >= 0:
        if value < 0x80:
            write(_FIXED[value])
        elif value <= 0xFF:
            write(_U8(0xCC, value))
        elif value <= 0xFFFF:
            write(_U16(0xCD, value))
        elif value <= 0xFFFFFFFF:
            write(_U32(0xCE, value))
        elif value <= 0xFFFFFFFFFFFFFFFF:
            write(_U64(0xCF, value))
        else:
            raise OverflowError("can't serialize ints < -2**63 or > 2**64 - 1")
    elif value >= -0x20:
        write(_FIXED[value & 0xFF])
    elif value >= -0x80:
        write(_I8(0xD0, value))
    elif value >= -0x8000:
        write(_I16(0xD1, value))
    elif value >= -0x80000000:
        write(_I32(0xD2, value))
    elif value >= -0x8000000000000000:
        write(_I64(0xD3, value))
    else:
        raise OverflowError("can't serialize ints < -2**63 or > 2**64 - 1")


def _float(value: float, write: Write) -> None:
    write(_F64(0xCB, value))


def _str(value: str, write: Write) -> None:
    content = value.encode()
    size = len(content)
    if size < 0x20:
        write(_FIXED[0xA0 | size] + content)
    else:
        _sized(size, 0xD9, write)
        write(content)


def _bytes(value: bytes | bytearray, write: Write) -> None:
    _sized(len(value), 0xC4, write)
    write(value)


def _memoryview(value: memoryview, write: Write) -> None:
    if not value.c_contiguous:
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    _sized(value.nbytes, 0xC4, write)
    write(value)


def _sized(size: int, code: int, write: Write) -> None:
    """The head of a string or bytes: ``code`` is the one for a size of 8 bits, those for 16 and 32 follow it."""
    if size <= 0xFF:
        write(_U8(code, size))
    elif size <= 0xFFFF:
        write(_U16(code + 1, size))
    elif size <= 0xFFFFFFFF:
        write(_U32(code + 2, size))
    else:
        raise ValueError("Can't encode bytes-like objects longer than 2**32 - 1")


def _length(count: int, few: int, code: int, write: Write) -> None:
    """The head of an array or map: ``few`` is the code for up to 15 elements, ``code`` that for a count of 16 bits."""
    if count < 0x10:
        write(_FIXED[few | count])
    elif count <= 0xFFFF:
        write(_U16(code, count))
    else:
        write(_U32(code + 1, count))


def _list(value: list[Any] | tuple[Any, ...], write: Write) -> None:
    _length(len(value), 0x90, 0xDC, write)
    for element in value:
        _pack(element, write)


def _dict(value: dict[Any, Any], write: Write) -> None:
    _length(len(value), 0x80, 0xDE, write)
    for key, element in value.items():
        _pack(key, write)
        _pack(element, write)


_PACK: dict[type, Callable[[Any, Write], None]] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    bytes: _bytes,
    bytearray: _bytes,
    memoryview: _memoryview,
    list: _list,
    tuple: _list,
    dict: _dict,
}

"""The little of protobuf's wire format that inference handles itself, so that tensors are never copied into message objects.

Source: "Encoding", Protocol Buffers documentation.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from functools import lru_cache

LENGTH_DELIMITED = 2
_FIXED_SIZES = {1: 8, 5: 4}
_MAX_VARINT_SIZE = 10
_LOOKED_AT_BYTE_SIZE = 4096


class Unreadable(ValueError):
    """The bytes are no fields, or so many that they are not worth reading one by one."""


@lru_cache(maxsize=4096)
def varint(value: int) -> bytes:
    """A number as the format writes it; a negative one as its 64 bits."""
    value &= (1 << 64) - 1
    pieces = bytearray()
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


@lru_cache(maxsize=256)
def field_head(number: int, byte_size: int) -> bytes:
    """What stands before the bytes of a field of type string, bytes or message."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(byte_size)


def field(number: int, content: bytes) -> bytes:
    """A field of type string, bytes or message."""
    return field_head(number, len(content)) + content


def packed_varints(number: int, values: Iterable[int]) -> bytes:
    """A repeated field of integers; nothing where there are none."""
    content = b"".join(map(varint, values))
    return field(number, content) if content else b""


def first_content_at(view: memoryview, number: int = 7, most: int = 256) -> int:
    """Where in a message, of which this is the beginning, the first field of this number has its content; 0 where that is not seen."""
    content = bytes(view[:_LOOKED_AT_BYTE_SIZE])
    at = 0
    try:
        for _ in range(most):
            tag, at = _read_varint(content, at)
            if tag & 7 == LENGTH_DELIMITED:
                size, at = _read_varint(content, at)
                if tag >> 3 == number:
                    return at
                at += size
            elif tag & 7 in _FIXED_SIZES:
                at += _FIXED_SIZES[tag & 7]
            else:
                _, at = _read_varint(content, at)
    except Unreadable:
        return 0
    return 0


def cut_out(view: memoryview, numbers: Container[int], most: int) -> tuple[bytes, list[tuple[int, int, int]]]:
    """A message without the fields of these numbers; and which of them there were, and where in ``view`` each has its content.

    Raises Unreadable where it is no message, where such a field is not of a type with a length, and where there are more than
    ``most`` fields.
    """
    end = len(view)
    kept: list[memoryview] = []
    cut: list[tuple[int, int, int]] = []
    at = start = 0
    count = 0
    while at < end:
        count += 1
        if count > most:
            raise Unreadable
        begin = at
        tag, at = _read_varint(view, at)
        kind = tag & 7
        if kind == LENGTH_DELIMITED:
            size, at = _read_varint(view, at)
            stop = at + size
            if tag >> 3 in numbers and stop <= end:
                kept.append(view[start:begin])
                cut.append((tag >> 3, at, stop))
                start = stop
        elif tag >> 3 in numbers:
            raise Unreadable
        elif kind in _FIXED_SIZES:
            stop = at + _FIXED_SIZES[kind]
        elif kind == 0:
            _, stop = _read_varint(view, at)
        else:
            raise Unreadable
        if stop > end:
            raise Unreadable
        at = stop
    kept.append(view[start:end])
    return b"".join(kept), cut


def _read_varint(content: bytes | memoryview, at: int) -> tuple[int, int]:
    """A number, and where it ends."""
    try:
        value = content[at]
        if value < 0x80:
            return value, at + 1
    except IndexError:
        raise Unreadable from None
    value &= 0x7F
    shift = 7
    for byte in content[at + 1 : at + _MAX_VARINT_SIZE]:
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
    raise Unreadable

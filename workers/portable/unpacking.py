"""Decoding msgpack into given types in plain Python: what msgspec accepts is accepted, what it refuses is refused.

Each type becomes a reader once, a function from a buffer and a position to a value and the position behind it.
"""

from __future__ import annotations

import struct
import types
import typing
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .errors import DecodeError, ValidationError
from .structs import REQUIRED, StructType, field_types, fresh

T = TypeVar("T")

Read = Callable[[memoryview, int], tuple[Any, int]]

_U16 = struct.Struct(">H").unpack_from
_U32 = struct.Struct(">I").unpack_from

_INTS: dict[int, tuple[Callable[[memoryview, int], tuple[Any, ...]], int]] = {
    code: (struct.Struct(">" + form).unpack_from, struct.calcsize(">" + form))
    for code, form in zip((0xCC, 0xCD, 0xCE, 0xCF, 0xD0, 0xD1, 0xD2, 0xD3), "BHIQbhiq", strict=True)
}
_FLOATS = {0xCA: (struct.Struct(">f").unpack_from, 4), 0xCB: (struct.Struct(">d").unpack_from, 8)}

_KINDS = (
    ("int", (*range(0x80), *range(0xE0, 0x100), *_INTS)),
    ("object", (*range(0x80, 0x90), 0xDE, 0xDF)),
    ("array", (*range(0x90, 0xA0), 0xDC, 0xDD)),
    ("str", (*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB)),
    ("null", (0xC0,)),
    ("bool", (0xC2, 0xC3)),
    ("bytes", (0xC4, 0xC5, 0xC6)),
    ("ext", (0xC7, 0xC8, 0xC9, *range(0xD4, 0xD9))),
    ("float", tuple(_FLOATS)),
)
_KIND = {code: kind for kind, codes in _KINDS for code in codes}
"""What a first byte announces, by the names that errors have; 0xC1 is no msgpack."""

_EXT_SIZES = {0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17}


class Decoder(Generic[T]):
    """Decodes one type. Memoryviews in the result are parts of what was decoded, nothing is copied for them."""

    def __init__(self, type: Any) -> None:
        self._read = _reader(type)

    def decode(self, message: Any) -> Any:
        """A value of the type. Raises DecodeError; ValidationError where it is another type's msgpack."""
        content = memoryview(message)
        if content.format != "B" or content.ndim != 1:
            content = content.cast("B")
        try:
            value, end = self._read(content, 0)
        except (IndexError, struct.error):
            raise DecodeError("Input data was truncated") from None
        if end != len(content):
            raise DecodeError(f"MessagePack data is malformed: trailing characters (byte {end})")
        return value


def _reader(kind: Any) -> Read:
    reader = _READERS.get(kind)
    if reader is None:
        reader = _READERS[kind] = _made_reader(kind)
    return reader


def _made_reader(kind: Any) -> Read:
    if isinstance(kind, StructType):
        return _struct_reader([kind])
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return _list_reader(_reader(arguments[0]), list)
    if origin is tuple and arguments[1:] == (...,):
        return _list_reader(_reader(arguments[0]), tuple)
    if origin is dict:
        return _dict_reader(_reader(arguments[0]), _reader(arguments[1]))
    if origin in (types.UnionType, typing.Union):
        return _union_reader(arguments)
    raise TypeError(f"Type '{kind}' is not supported")


def _wrong(expected: str, code: int) -> DecodeError:
    found = _KIND.get(code)
    if found is None:
        return DecodeError(f"MessagePack data is malformed: invalid opcode '\\x{code:02x}'")
    return ValidationError(f"Expected `{expected}`, got `{found}`")


# scalars


def _none(content: memoryview, at: int) -> tuple[None, int]:
    if content[at] != 0xC0:
        raise _wrong("null", content[at])
    return None, at + 1


def _bool(content: memoryview, at: int) -> tuple[bool, int]:
    code = content[at]
    if code == 0xC3:
        return True, at + 1
    if code == 0xC2:
        return False, at + 1
    raise _wrong("bool", code)


def _int(content: memoryview, at: int) -> tuple[int, int]:
    code = content[at]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 0x100, at
    form = _INTS.get(code)
    if form is None:
        raise _wrong("int", code)
    return form[0](content, at)[0], at + form[1]


def _float(content: memoryview, at: int) -> tuple[float, int]:
    form = _FLOATS.get(content[at])
    if form is not None:
        return form[0](content, at + 1)[0], at + 1 + form[1]
    if _KIND.get(content[at]) != "int":
        raise _wrong("float", content[at])
    value, at = _int(content, at)
    return float(value), at


def _str(content: memoryview, at: int) -> tuple[str, int]:
    code = content[at]
    if 0xA0 <= code < 0xC0:
        at += 1
        end = at + code - 0xA0
    else:
        at, end = _extent(content, at, 0xD9, "str")
    if end > len(content):
        raise IndexError
    return str(content[at:end], "utf-8"), end


def _bytes(content: memoryview, at: int) -> tuple[bytes, int]:
    view, at = _memoryview(content, at)
    return view.tobytes(), at


def _memoryview(content: memoryview, at: int) -> tuple[memoryview, int]:
    at, end = _extent(content, at, 0xC4, "bytes")
    if end > len(content):
        raise IndexError
    return content[at:end], end


def _extent(content: memoryview, at: int, code: int, expected: str) -> tuple[int, int]:
    """Where a string or bytes begins and ends: ``code`` is the one for a size of 8 bits."""
    found = content[at] - code
    if found == 0:
        return at + 2, at + 2 + content[at + 1]
    if found == 1:
        return at + 3, at + 3 + _U16(content, at + 1)[0]
    if found == 2:
        return at + 5, at + 5 + _U32(content, at + 1)[0]
    raise _wrong(expected, content[at])


# containers


def _array(content: memoryview, at: int) -> tuple[int, int]:
    """The length of an array, and where its elements begin."""
    code = content[at]
    if 0x90 <= code < 0xA0:
        return code - 0x90, at + 1
    if code == 0xDC:
        return _U16(content, at + 1)[0], at + 3
    if code == 0xDD:
        return _U32(content, at + 1)[0], at + 5
    raise _wrong("array", code)


def _map(content: memoryview, at: int) -> tuple[int, int]:
    """The length of a map, and where its first key begins."""
    code = content[at]
    if 0x80 <= code < 0x90:
        return code - 0x80, at + 1
    if code == 0xDE:
        return _U16(content, at + 1)[0], at + 3
    if code == 0xDF:
        return _U32(content, at + 1)[0], at + 5
    raise _wrong("object", code)


def _list_reader(read_element: Read, kind: type[list[Any]] | type[tuple[Any, ...]]) -> Read:
    def read(content: memoryview, at: int) -> tuple[Any, int]:
        count, at = _array(content, at)
        values = []
        for _ in range(count):
            value, at = read_element(content, at)
            values.append(value)
        return values if kind is list else tuple(values), at

    return read


def _dict_reader(read_key: Read, read_value: Read) -> Read:
    def read(content: memoryview, at: int) -> tuple[dict[Any, Any], int]:
        count, at = _map(content, at)
        values = {}
        for _ in range(count):
            key, at = read_key(content, at)
            values[key], at = read_value(content, at)
        return values, at

    return read


def _union_reader(members: tuple[Any, ...]) -> Read:
    """A reader that chooses by the first byte; structs, by the tag that comes next."""
    structs = [member for member in members if isinstance(member, StructType)]
    readers: dict[str, Read] = {}
    for member in members:
        if member not in structs:
            readers[_kind_of(member)] = _reader(member)
    if "float" in readers:
        readers.setdefault("int", readers["float"])
    if structs:
        readers["array"] = _struct_reader(structs)
    by_code = {code: readers[kind] for kind, codes in _KINDS if kind in readers for code in codes}
    expected = " | ".join(readers)

    def read(content: memoryview, at: int) -> tuple[Any, int]:
        chosen = by_code.get(content[at])
        if chosen is None:
            raise _wrong(expected, content[at])
        return chosen(content, at)

    return read


def _kind_of(member: Any) -> str:
    scalar = _SCALARS.get(member)
    if scalar is not None:
        return scalar
    return "object" if typing.get_origin(member) is dict else "array"


Fill = Callable[[memoryview, int, int], tuple[Any, int]]


def _struct_reader(kinds: list[StructType]) -> Read:
    """A reader of one struct, or of several that have tags."""
    if len(kinds) == 1 and kinds[0].struct_tag is None:
        fill_one = _filler(kinds[0])

        def read(content: memoryview, at: int) -> tuple[Any, int]:
            count, at = _array(content, at)
            return fill_one(content, at, count)

        return read
    fillers = {kind.struct_tag: _filler(kind) for kind in kinds}
    if None in fillers or len(fillers) < len(kinds):
        raise TypeError("a union of structs needs a tag for each")

    def read_tagged(content: memoryview, at: int) -> tuple[Any, int]:
        count, at = _array(content, at)
        if not count:
            raise ValidationError("Expected `array` of at least length 1, got 0")
        tag, at = _int(content, at)
        fill = fillers.get(tag)
        if fill is None:
            raise ValidationError(f"Invalid value {tag}")
        return fill(content, at, count - 1)

    return read_tagged


def _filler(kind: StructType) -> Fill:
    """Makes a struct of the elements that follow its tag."""
    steps = tuple(zip(kind.struct_setters, map(_reader, field_types(kind)), strict=True))
    defaults = kind.struct_defaults
    required = sum(default is REQUIRED for default in defaults)
    new: Callable[[type], Any] = object.__new__

    def fill(content: memoryview, at: int, count: int) -> tuple[Any, int]:
        if count < required:
            tagged = kind.struct_tag is not None
            raise ValidationError(f"Expected `array` of at least length {required + tagged}, got {count + tagged}")
        made: Any = new(kind)
        for set_field, read in steps if count >= len(steps) else steps[:count]:
            value, at = read(content, at)
            set_field(made, value)
        if count != len(steps):
            for setter, default in zip(kind.struct_setters[count:], defaults[count:], strict=True):
                setter(made, fresh(default))
            at = _skipped(content, at, max(0, count - len(steps)))
        return made, at

    return fill


def _skipped(content: memoryview, at: int, count: int) -> int:
    """The position behind ``count`` values of any type."""
    while count:
        count -= 1
        code = content[at]
        kind = _KIND.get(code)
        if kind == "int":
            _, at = _int(content, at)
        elif kind == "float":
            _, at = _float(content, at)
        elif kind == "str":
            # not _str: what is passed over need not be UTF-8
            at = at + 1 + code - 0xA0 if code < 0xC0 else _extent(content, at, 0xD9, "str")[1]
        elif kind == "bytes":
            at = _extent(content, at, 0xC4, "bytes")[1]
        elif kind == "array":
            more, at = _array(content, at)
            count += more
        elif kind == "object":
            more, at = _map(content, at)
            count += 2 * more
        elif kind == "ext":
            at = at + 1 + _EXT_SIZES[code] if code in _EXT_SIZES else _extent(content, at, 0xC7, "ext")[1] + 1
        elif kind is None:
            raise _wrong("", code)
        else:
            at += 1
        if at > len(content):
            raise IndexError
    return at


_SCALARS = {type(None): "null", bool: "bool", int: "int", float: "float", str: "str", bytes: "bytes", memoryview: "bytes"}
_READERS: dict[Any, Read] = {
    type(None): _none,
    bool: _bool,
    int: _int,
    float: _float,
    str: _str,
    bytes: _bytes,
    memoryview: _memoryview,
}

"""Tensor data in JSON: nested arrays to stored bytes, and stored bytes to a flat array."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import msgspec

from ...shm.arrays import np
from ...shm.datatypes import DATATYPES, serialize_bytes
from ...workers.contract.json_writing import quote
from ...workers.contract.status import StatusError, internal, invalid
from .json_text import DEPTH_MESSAGE, MAX_DEPTH, doubles, wrong_type

if TYPE_CHECKING:
    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

MISFIT = "Unable to parse 'data': Shape does not match true shape of 'data' field"
_LENGTH = struct.Struct("<I")
_STRING = frozenset((str,))
_SIGNED = (frozenset((int,)), "signed-integer", -(2**63), 2**63)
_UNSIGNED = (frozenset((int,)), "unsigned-integer", 0, 2**64)
_DOUBLE = (frozenset((int, float)), "number", None, None)
_RULES: dict[str, tuple[frozenset[type], str, int | None, int | None]] = {
    "BOOL": (frozenset((bool,)), "boolean", None, None),
    **{f"INT{width}": _SIGNED for width in (8, 16, 32, 64)},
    **{f"UINT{width}": _UNSIGNED for width in (8, 16, 32, 64)},
    "FP32": _DOUBLE,
    "FP64": _DOUBLE,
}
NUMBERS = frozenset(_RULES)
"""Datatypes whose elements are JSON numbers or booleans."""

_WIDE = {"i": DATATYPES["INT64"], "u": DATATYPES["UINT64"], "f": DATATYPES["FP64"], "b": DATATYPES["BOOL"]}
_CHECK = msgspec.json.Decoder(msgspec.Raw)
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    "i": msgspec.json.Decoder(list[int]),
    "u": msgspec.json.Decoder(list[int]),
    "f": msgspec.json.Decoder(list[float]),
    "b": msgspec.json.Decoder(list[bool]),
}
_LIMITS = {"i": (-(2**63), 2**63 - 1), "u": (-1, 2**64 - 1)}
_NO_INTEGER = (b".", b"e", b"E", b"u", b'"')
"""What the elements of another kind have in them, be they numbers, strings or words."""

_FEW = 32
_LONG_ELEMENT = 128
"""Strings of this length, on average, are taken one by one: below, all bytes together cost less than each string."""
_OUTSIDE = b'", \t\n\r'
_AROUND = b'"",'
REFUSED = (msgspec.MsgspecError, UnicodeDecodeError, OverflowError)
"""What ``flat_numbers`` and ``flat_strings`` raise for anything but a flat array of fitting elements."""


def flat_numbers(array: bytes, datatype: str) -> np.ndarray[Any, Any]:
    """The elements of a flat JSON array, each as wide as can be: int64, uint64, float64 or bool. Raises one of ``REFUSED``."""
    kind = DATATYPES[datatype].dtype.kind
    wide = _WIDE[kind].dtype
    if kind in "iu" and not any([array.find(mark) >= 0 for mark in _NO_INTEGER]) and (kind == "i" or array.find(b"-") < 0):
        # numpy reads digits in half the time; once it is known to be JSON, all it gets wrong are those that do not fit
        _CHECK.decode(array)
        text = array[1:-1]
        if array.find(b"[", 1) < 0 and text and not text.isspace():
            values = np.fromstring(text, wide, sep=",")
            least, most = _LIMITS[kind]
            if int(values.min()) > least and int(values.max()) < most:
                return values
    elements = _DECODERS[kind].decode(array)
    return np.fromiter(elements, wide, len(elements))


def flat_strings(text: bytes) -> Bytes | None:
    """The stored form of strings, given in JSON with commas between them; None where an escape or anything else is among them.

    Raises one of ``REFUSED`` where that is no JSON.
    """
    if text.find(b"\\") >= 0:
        return None
    _CHECK.decode(b"[" + text + b"]")
    bytes_ = np.frombuffer(text, np.uint8)
    quotes = np.flatnonzero(bytes_ == ord('"'))
    count = len(quotes) // 2
    if not count:
        return None
    if len(text) > _LONG_ELEMENT * count:
        opens, closes = quotes[0::2].tolist(), quotes[1::2].tolist()
        between = [text[stop + 1 : start] for stop, start in zip([-1, *closes], [*opens, len(text)], strict=True)]
        if b"".join(between).translate(None, _OUTSIDE):
            return None
        return np.frombuffer(serialize_bytes([text[start + 1 : stop] for start, stop in zip(opens, closes, strict=True)]), np.uint8)
    lengths = quotes[1::2] - quotes[0::2] - 1
    runs = np.empty(2 * count + 1, np.intp)
    runs[0] = quotes[0] + 1
    runs[1::2] = lengths
    runs[2:-1:2] = quotes[2::2] - quotes[1:-1:2] + 1
    runs[-1] = len(text) - quotes[-1]
    within = np.zeros(2 * count + 1, np.bool_)
    within[1::2] = True
    inside = np.repeat(within, runs)
    if bytes_[~inside].tobytes().translate(None, _OUTSIDE):
        return None
    runs = np.full(2 * count, 4, np.intp)
    runs[1::2] = lengths
    behind = np.repeat(within[:-1], runs)
    content: Bytes = np.empty(len(behind), np.uint8)
    content[behind] = bytes_[inside]
    content[~behind] = lengths.astype("<u4").view(np.uint8)
    return content


def wide_array(values: list[Any], datatype: str) -> np.ndarray[Any, Any]:
    """Elements that fit, as an array of int64, uint64, float64 or bool."""
    return np.array(values, _WIDE[DATATYPES[datatype].dtype.kind].dtype)


def misfit_of(values: list[Any], datatype: str) -> StatusError | None:
    """The error of the first element that has not the type or the size to be one of a ``datatype``, which is not BYTES."""
    types, kind, least, beyond = _RULES[datatype]
    unfit = not types.issuperset(map(type, values))
    if not unfit and least is not None and beyond is not None and values:
        unfit = min(values) < least or max(values) >= beyond
    if unfit:
        for value in values:
            if type(value) not in types or (least is not None and beyond is not None and not least <= value < beyond):
                return internal(f"Unable to parse 'data': {wrong_type(kind)}")
    return None


def tensor_bytes(values: list[Any], datatype: str, count: int) -> bytes:
    """The stored form of a JSON array of ``count`` elements, nested in any way; ``datatype`` is neither BYTES nor 16-bit float.

    Integers wrap to the width of the datatype. Raises StatusError: INTERNAL for elements of a wrong
    type or number, INVALID_ARG for too deep a nesting.
    """
    flat = flat_elements(values, "Unable to parse 'data': ")
    error = misfit_of(flat if len(flat) <= count else flat[:count], datatype)
    if error is not None:
        raise error
    if len(flat) != count:
        raise internal(MISFIT)
    with np.errstate(over="ignore"):
        return wide_array(flat, datatype).astype(DATATYPES[datatype].dtype, copy=False).tobytes()


def string_tensor_bytes(values: list[Any]) -> bytes:
    """The stored form of a JSON array of strings, nested in any way: a BYTES tensor of as many elements as there are.

    Raises StatusError: INTERNAL for elements that are no strings, INVALID_ARG for too deep a nesting.
    """
    return string_content(flat_elements(values, ""))


def string_content(values: list[Any]) -> bytes:
    """The stored form of strings. Raises StatusError INTERNAL where others are among them."""
    if not _STRING.issuperset(map(type, values)):
        raise internal(f"Unable to parse JSON bytes array: {wrong_type('string')}")
    try:
        elements = [value.encode("utf-8", "surrogateescape") for value in values]
    except UnicodeEncodeError:
        # a lone second half of a surrogate pair
        elements = [value.encode("utf-8", "surrogatepass") for value in values]
    return serialize_bytes(elements)


def flat_elements(values: list[Any], prefix: str) -> list[Any]:
    """The elements of nested arrays, in order. Raises StatusError INVALID_ARG, ``prefix`` first, where these are too deep."""
    depth = 1
    while True:
        kinds = set(map(type, values))
        if list not in kinds:
            return values
        if len(kinds) > 1:
            return list(_uneven(values, depth, prefix))
        depth += 1
        if depth > MAX_DEPTH:
            raise invalid(prefix + DEPTH_MESSAGE)
        values = list(chain.from_iterable(values))


def _uneven(values: list[Any], depth: int, prefix: str) -> Iterator[Any]:
    stack = [iter(values)]
    while stack:
        for value in stack[-1]:
            if type(value) is list:
                if depth + len(stack) > MAX_DEPTH:
                    raise invalid(prefix + DEPTH_MESSAGE)
                stack.append(iter(value))
                break
            yield value
        else:
            stack.pop()


def json_array(content: memoryview, datatype: str) -> tuple[bytes, int]:
    """A tensor as one flat JSON array, and its element count. Raises ValueError where the bytes are no whole elements."""
    if datatype == "BYTES":
        lengths, end = lengths_of(content, 0, len(content), len(content))
        return b"[" + strings_text(bytes(content[:end]), lengths) + b"]", len(lengths)
    array = stored_numbers(content, datatype)
    return numbers_text(array), len(array)


def lengths_of(content: memoryview, start: int, count: int, byte_size: int) -> tuple[list[int], int]:
    """The lengths of a BYTES tensor's elements from ``start`` on, and where they end: ``count`` of them, or those in ``byte_size``.

    Raises ValueError where the bytes are no whole elements.
    """
    end = len(content)
    stop = min(start + byte_size, end)
    length_at = _LENGTH.unpack_from
    lengths: list[int] = []
    at = start
    try:
        while at < stop and len(lengths) < count:
            (length,) = length_at(content, at)
            lengths.append(length)
            at += 4 + length
    except struct.error:
        raise ValueError("a BYTES tensor ends inside an element's length") from None
    if at > end:
        raise ValueError("a BYTES tensor ends inside an element")
    return lengths, at


def stored_numbers(content: memoryview, datatype: str) -> np.ndarray[Any, Any]:
    """The elements of a stored tensor. Raises ValueError where the bytes are no whole elements."""
    array = np.frombuffer(content, DATATYPES[datatype].dtype)
    # any byte but zero is true
    return array.view(np.uint8) != 0 if datatype == "BOOL" else array


def numbers_text(array: np.ndarray[Any, Any]) -> bytes:
    """Numbers as a JSON array."""
    values = array.tolist()
    return doubles(values) if array.dtype.kind == "f" else msgspec.json.encode(values)


def strings_text(elements: bytes, lengths: list[int]) -> bytes:
    """Stored strings as JSON, with commas between them."""
    count = len(lengths)
    if count < _FEW or len(elements) > _LONG_ELEMENT * count:
        return b",".join(_quoted(elements, lengths))
    bytes_ = np.frombuffer(elements, np.uint8)
    within = np.zeros(2 * count, np.bool_)
    within[1::2] = True
    runs = np.full(2 * count, 4, np.intp)
    runs[1::2] = lengths
    content = bytes_[np.repeat(within, runs)]
    if ((content < 0x20) | (content == ord('"')) | (content == ord("\\"))).any():
        return b",".join(_quoted(elements, lengths))
    # a quotation mark, the content, a quotation mark and a comma; then those of the next one
    runs = np.full(2 * count + 1, 3, np.intp)
    runs[0] = 1
    runs[-1] = 2
    runs[1::2] = lengths
    inside = np.repeat(np.append(within, False), runs)
    text = np.empty(len(inside), np.uint8)
    text[inside] = content
    text[~inside] = np.tile(np.frombuffer(_AROUND, np.uint8), count)
    return text[:-1].tobytes()


def _quoted(elements: bytes, lengths: list[int]) -> Iterator[bytes]:
    at = 0
    for length in lengths:
        start = at + 4
        at = start + length
        yield quote(elements[start:at])

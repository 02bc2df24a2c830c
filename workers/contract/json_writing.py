"""JSON as the protocol's own server writes it (RapidJSON): numbers and escapes byte for byte."""

from __future__ import annotations

import re
from typing import Any

from ...shm.arrays import np

_QUOTE = ord('"')

_ESCAPED = re.compile(rb'["\\\x00-\x1f]')
_ESCAPES = {
    **{bytes((code,)): b"\\u%04X" % code for code in range(0x20)},
    b"\b": b"\\b",
    b"\t": b"\\t",
    b"\n": b"\\n",
    b"\f": b"\\f",
    b"\r": b"\\r",
    b'"': b'\\"',
    b"\\": b"\\\\",
}


_LONG_STRING = 512


def _has_escaped(raw: bytes) -> bool:
    codes = np.frombuffer(raw, np.uint8)
    return bool(((codes < 0x20) | (codes == _QUOTE) | (codes == ord("\\"))).any())


def quote(text: str | bytes | memoryview) -> bytes:
    """A string as JSON: quotation marks, backslashes and control characters escaped, everything else as it is.

    Bytes need not be UTF-8; surrogate escapes of a str become the bytes they stand for.
    """
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    if _has_escaped(raw) if len(raw) > _LONG_STRING else _ESCAPED.search(raw) is not None:
        raw = _ESCAPED.sub(lambda match: _ESCAPES[match.group()], raw)
    return b'"' + raw + b'"'


def double(value: float) -> bytes:
    """A double: the fewest digits that read back as it, in RapidJSON's notation (``1.0``, ``1e21``, ``1.5e-7``, ``NaN``)."""
    text = repr(value)
    if "n" in text:
        return b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity"
    if "e" not in text:
        return text.encode()
    mantissa, _, exponent = text.partition("e")
    sign = "-" if mantissa.startswith("-") else ""
    digits = mantissa.lstrip("-").replace(".", "")
    point = int(exponent) + 1
    if len(digits) <= point <= 21:
        text = f"{digits}{'0' * (point - len(digits))}.0"
    elif 0 < point <= 21:
        text = f"{digits[:point]}.{digits[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{digits}"
    else:
        text = f"{digits[0]}{'.' if digits[1:] else ''}{digits[1:]}e{point - 1}"
    return f"{sign}{text}".encode()


def write(value: Any) -> bytes:
    """A JSON document of dicts, lists, str, int, float, bool and None, members in order, without blanks."""
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, bool) or value is None:
        return b"null" if value is None else b"true" if value else b"false"
    if isinstance(value, int):
        return b"%d" % value
    if isinstance(value, float):
        return double(value)
    if isinstance(value, dict):
        return b"{" + b",".join(quote(name) + b":" + write(member) for name, member in value.items()) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(write, value)) + b"]"
    raise TypeError(f"a {type(value).__name__} has no JSON form")

"""JSON as the protocol's own server reads and writes it: its leniencies, its error texts, its number format.

The reader accepts what RapidJSON accepts with its NaN and Inf flag (NaN, Inf, Infinity, with a minus
too; a byte order mark; strings that are not UTF-8; anything after a zero byte that ends the document)
and reports syntax errors by its reasons and byte offsets. Source: RapidJSON's documented grammar, and
release 24.10 of the server, asked case by case (tests/parity).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import msgspec

from ...shm.arrays import np
from ...workers.contract.json_writing import double
from ...workers.contract.status import Code, StatusError, internal, invalid

MAX_DEPTH = 100
"""Arrays and objects within each other, at most: more is refused before anything is built of it."""

DECODED_DEPTH = 500
"""What nests deeper is not blamed on the tensor that it may be the data of. Far within what a decoder's stack allows, which differs
from one Python to the next."""

DEPTH_MESSAGE = f"JSON nesting depth exceeds maximum allowed limit ({MAX_DEPTH})"

STEPWISE_BYTE_SIZE = 64 * 1024
"""Longer documents are read in one go: value by value, a megabyte would hold everybody up for a second."""

MAX_CONTAINERS = 4_000_000
"""Arrays and objects in a document, at most: an empty one is two bytes long, and takes seventy once it is built."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# linear whatever comes: a string ends with its quotation mark or with the text
_NO_BRACKETS = re.compile(rb'(?:"(?:[^"\\]++|\\.)*+"?+|[^][{}"]++)++', re.DOTALL)
_EXTREME_NUMBER = re.compile(rb"[0-9]{19}|[eE][+-]?[0-9]{3}")
_NO_LONE_SURROGATE = re.compile(rb"(?:[^\\]++|\\[^u]|\\u(?![dD][89a-fA-F])|\\u[dD][89abAB]..\\u[dD][c-fC-F])*+", re.DOTALL)
_BLANK = re.compile(rb"[ \t\n\r]*")
_STRING = re.compile(rb'"([^"\\\x00-\x1f]*)"')
_PLAIN_TEXT = re.compile(rb'[^"\\\x00-\x1f]*')
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?P<double>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
_NUMBER_TEXT = rb"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,17}+)?(?:[eE][+-]?[0-9]{1,2}+)?"
# runs of plain elements are read at once; possessive, so that a long one needs no stack
_NUMBER_RUN = re.compile(rb"(?:[ \t\n\r]*" + _NUMBER_TEXT + rb"[ \t\n\r]*,)++")
_STRING_RUN = re.compile(rb'(?:[ \t\n\r]*"[^"\\\x00-\x1f\x80-\xff]*"[ \t\n\r]*,)++')
_HEX = re.compile(rb"[0-9a-fA-F]{4}")
_SHORT_ESCAPES = {
    ord('"'): b'"',
    ord("\\"): b"\\",
    ord("/"): b"/",
    ord("b"): b"\b",
    ord("f"): b"\f",
    ord("n"): b"\n",
    ord("r"): b"\r",
    ord("t"): b"\t",
}
_WORDS: dict[int, tuple[bytes, bool | None]] = {ord("t"): (b"true", True), ord("f"): (b"false", False), ord("n"): (b"null", None)}

INVALID_VALUE = "Invalid value."
NO_NAME = "Missing a name for object member."
NO_COLON = "Missing a colon after a name of object member."
NO_COMMA_IN_OBJECT = "Missing a comma or '}' after an object member."
NO_COMMA_IN_ARRAY = "Missing a comma or ']' after an array element."
NOT_ALONE = "The document root must not be followed by other values."
EMPTY = "The document is empty."
BAD_ESCAPE = "Invalid escape character in string."
BAD_SURROGATE = "The surrogate pair in string is invalid."
NO_QUOTE = "Missing a closing quotation mark in string."
TOO_BIG = "Number too big to be stored in double."

_END = ord("\0")
_QUOTE = ord('"')
_COMMA = ord(",")
_COLON = ord(":")
_OPEN_ARRAY, _CLOSE_ARRAY = ord("["), ord("]")
_OPEN_OBJECT, _CLOSE_OBJECT = ord("{"), ord("}")


class NotJson(StatusError):
    """A body is not JSON: ``why``, and from where on; ``offset`` counts bytes."""

    def __init__(self, why: str, offset: int) -> None:
        super().__init__(Code.INTERNAL, f"failed to parse the request JSON buffer: {why} at {offset}")
        self.why = why
        self.offset = offset


def wrong_type(kind: str) -> str:
    """The text about a value that is not of the ``kind`` wanted, such as ``string``."""
    return f"attempt to access JSON non-{kind} as {'double' if kind == 'number' else kind}"


def no_member(name: str) -> str:
    """The text about a member that is not there."""
    return f"attempt to access non-existing object member '{name}'"


def parse(text: bytes | memoryview, max_depth: int = MAX_DEPTH) -> Any:
    """Read a JSON document into dicts, lists, str, int, float, bool and None.

    Of members with one name the first counts. Bytes of strings that are not UTF-8 are kept as
    surrogate escapes (``encode("utf-8", "surrogateescape")`` gives them back). Integers that fit
    neither int64 nor uint64 are floats. Raises StatusError: INTERNAL with reason and offset where
    the text is not JSON, INVALID_ARG where it nests deeper than ``max_depth``. Of documents longer than
    ``STEPWISE_BYTE_SIZE`` the syntax errors are told less exactly, and ``Inf`` is one.
    """
    whole = bytes(text)
    if len(whole) > STEPWISE_BYTE_SIZE:
        return parse_long(whole.partition(b"\0")[0], max_depth)
    return _Reader(whole + b"\0", max_depth).document()


def depth_error(text: bytes, error: StatusError) -> StatusError:
    """What to say of a document that was refused with ``error``: the plain text about depth where it is very deep, else ``error``."""
    if error.message.endswith(DEPTH_MESSAGE) and _depth(text) > DECODED_DEPTH:
        return invalid(DEPTH_MESSAGE)
    return error


def _depth(text: bytes) -> int:
    return int(np.cumsum(_brackets(text), dtype=np.int32).max(initial=0))


def check_containers(text: bytes, brackets: int = 0) -> None:
    """Refuse what would take far more memory than it is long, before it is built. Raises StatusError INVALID_ARG.

    ``brackets`` counts those that open and close what was cut out of the text.
    """
    if text.count(b"[") + text.count(b"{") + brackets > MAX_CONTAINERS:
        _brackets(text, brackets)


def _brackets(text: bytes, more: int = 0) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Where a document's arrays and objects open (1) and close (-1). Raises StatusError INVALID_ARG for too many."""
    brackets = np.frombuffer(_NO_BRACKETS.sub(b"", text), np.uint8)
    if len(brackets) + more > 2 * MAX_CONTAINERS:
        raise invalid(f"JSON holds more than {MAX_CONTAINERS} arrays and objects")
    return np.where(brackets & 0x5F == _OPEN_ARRAY, np.int8(1), np.int8(-1))


def parse_long(text: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """What ``parse`` does for long documents, by the standard library's scanner; no zero byte ends the document."""
    if text.count(b"[") + text.count(b"{") > max_depth and _depth(text) > max_depth:
        raise invalid(DEPTH_MESSAGE)
    mark = len(_BYTE_ORDER_MARK) if text.startswith(_BYTE_ORDER_MARK) else 0
    if _BLANK.fullmatch(text, mark):
        raise NotJson(EMPTY, len(text))
    source = text[mark:].decode("utf-8", "surrogateescape")
    exact = _EXTREME_NUMBER.search(text) is not None
    try:
        document = json.loads(
            source,
            object_pairs_hook=_first_members,
            parse_int=_whole_number if exact else None,
            parse_float=_finite_double if exact else None,
        )
    except json.JSONDecodeError as error:
        offset = mark + len(source[: error.pos].encode("utf-8", "surrogateescape"))
        raise NotJson(_REASONS.get(error.msg, INVALID_VALUE), offset) from None
    lone = _NO_LONE_SURROGATE.match(text)
    if lone is not None and lone.end() < len(text):
        raise NotJson(BAD_SURROGATE, lone.end())
    return document


def _first_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        members |= dict(reversed(pairs))
    return members


def _whole_number(digits: str) -> int | float:
    if len(digits) <= 20:
        value = int(digits)
        if -(2**63) <= value < 2**64:
            return value
    return _finite_double(digits)


def _finite_double(digits: str) -> float:
    value = float(digits)
    if value in (_INFINITY, -_INFINITY):
        raise internal(f"failed to parse the request JSON buffer: {TOO_BIG}")
    return value


class _Reader:
    """One pass over a text that ends with a zero byte; no recursion, whatever the nesting."""

    __slots__ = ("_at", "_max_depth", "_text")

    def __init__(self, text: bytes, max_depth: int) -> None:
        self._text = text
        self._max_depth = max_depth
        self._at = 0
        for mark in b"\xef\xbb\xbf":
            if text[self._at] != mark:
                break
            self._at += 1

    def document(self) -> Any:
        if self._next() == _END:
            raise NotJson(EMPTY, self._at)
        root = self._value()
        if self._next() != _END:
            raise NotJson(NOT_ALONE, self._at)
        return root

    def _next(self) -> int:
        """Skip blanks; the byte after them."""
        match = _BLANK.match(self._text, self._at)
        assert match is not None
        self._at = match.end()
        return self._text[self._at]

    def _value(self) -> Any:
        """The value at this point, with all it holds."""
        stack: list[tuple[Any, str]] = []
        value = self._open(stack)
        while stack:
            container, name = stack[-1]
            if value is not _PENDING:
                if type(container) is list:
                    container.append(value)
                else:
                    container.setdefault(name, value)
            value = self._continue(stack, value is not _PENDING)
        return value

    def _open(self, stack: list[tuple[Any, str]]) -> Any:
        """Begin a value: a container goes on the stack (and is pending), anything else is returned."""
        first = self._text[self._at]
        if first == _OPEN_ARRAY or first == _OPEN_OBJECT:
            if len(stack) >= self._max_depth:
                raise invalid(DEPTH_MESSAGE)
            self._at += 1
            stack.append(([] if first == _OPEN_ARRAY else {}, ""))
            return _PENDING
        if first == _QUOTE:
            return self._string()
        word = _WORDS.get(first)
        if word is not None:
            return self._word(*word)
        return self._number()

    def _continue(self, stack: list[tuple[Any, str]], after_value: bool) -> Any:
        """What follows in the innermost container: its next value, or the container itself once closed."""
        container = stack[-1][0]
        here = self._next()
        if type(container) is list:
            if here == _CLOSE_ARRAY and (after_value or not container):
                return self._close(stack)
            if after_value:
                if here != _COMMA:
                    raise NotJson(NO_COMMA_IN_ARRAY, self._at)
                self._at += 1
                self._next()
            self._take_runs(container)
            return self._open(stack)
        if here == _CLOSE_OBJECT and (after_value or not container):
            return self._close(stack)
        if after_value:
            if here != _COMMA:
                raise NotJson(NO_COMMA_IN_OBJECT, self._at)
            self._at += 1
            here = self._next()
        if here != _QUOTE:
            raise NotJson(NO_NAME, self._at)
        name = self._string()
        if self._next() != _COLON:
            raise NotJson(NO_COLON, self._at)
        self._at += 1
        self._next()
        stack[-1] = (container, name)
        return self._open(stack)

    def _close(self, stack: list[tuple[Any, str]]) -> Any:
        self._at += 1
        return stack.pop()[0]

    def _take_runs(self, elements: list[Any]) -> None:
        """Take plain numbers and strings that are each followed by a comma, many at once."""
        for pattern in (_NUMBER_RUN, _STRING_RUN):
            run = pattern.match(self._text, self._at)
            if run is not None:
                elements.extend(msgspec.json.decode(b"[" + run.group()[:-1] + b"]"))
                self._at = run.end()
                self._next()

    def _word(self, word: bytes, value: bool | None) -> bool | None:
        for letter in word:
            if self._text[self._at] != letter:
                raise NotJson(INVALID_VALUE, self._at)
            self._at += 1
        return value

    def _number(self) -> int | float:
        text = self._text
        start = self._at
        match = _NUMBER.match(text, start)
        if match is None:
            return self._odd_number()
        end = match.end()
        # the pattern stops before a point or an exponent that nothing follows
        if text[end] == ord(".") and not match["double"]:
            raise NotJson("Miss fraction part in number.", end + 1)
        if text[end] in b"eE" and not re.search(rb"[eE]", match["double"]):
            end += 1 + (text[end + 1] in b"+-")
            raise NotJson("Miss exponent in number.", end)
        self._at = end
        digits = match.group()
        if not match["double"] and len(digits) <= 20:
            value = int(digits)
            if -(2**63) <= value < 2**64:
                return value
        double = float(digits)
        if double in (_INFINITY, -_INFINITY):
            raise NotJson(TOO_BIG, start)
        return double

    def _odd_number(self) -> float:
        """NaN, Inf and Infinity, or nothing at all."""
        sign = -1.0 if self._take(b"-") else 1.0
        if self._take(b"N"):
            if self._take(b"a") and self._take(b"N"):
                return _NAN
        elif self._take(b"I") and self._take(b"n") and self._take(b"f"):
            if self._text[self._at] != ord("i") or all(self._take(letter) for letter in (b"i", b"n", b"i", b"t", b"y")):
                return sign * _INFINITY
        raise NotJson(INVALID_VALUE, self._at)

    def _take(self, letter: bytes) -> bool:
        if self._text[self._at] != letter[0]:
            return False
        self._at += 1
        return True

    def _string(self) -> str:
        match = _STRING.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
            return match[1].decode("utf-8", "surrogateescape")
        self._at += 1
        return b"".join(self._string_parts()).decode("utf-8", "surrogateescape")

    def _string_parts(self) -> Iterable[bytes]:
        text = self._text
        while True:
            match = _PLAIN_TEXT.match(text, self._at)
            assert match is not None
            yield match.group()
            self._at = match.end()
            here = text[self._at]
            if here == _QUOTE:
                self._at += 1
                return
            if here == _END:
                raise NotJson(NO_QUOTE, self._at)
            if here != ord("\\"):
                raise NotJson(BAD_ESCAPE, self._at)
            yield self._escape()

    def _escape(self) -> bytes:
        start = self._at
        letter = self._text[start + 1]
        if letter != ord("u"):
            plain = _SHORT_ESCAPES.get(letter)
            if plain is None:
                raise NotJson(BAD_ESCAPE, start)
            self._at += 2
            return plain
        code = self._hex(start, start + 2)
        self._at = start + 6
        if 0xD800 <= code <= 0xDBFF:
            if self._text[start + 6 : start + 8] != b"\\u":
                raise NotJson(BAD_SURROGATE, start)
            low = self._hex(start, start + 8)
            if not 0xDC00 <= low <= 0xDFFF:
                raise NotJson(BAD_SURROGATE, start)
            self._at = start + 12
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)
        return chr(code).encode("utf-8", "surrogatepass")

    def _hex(self, escape: int, start: int) -> int:
        match = _HEX.match(self._text, start)
        if match is None:
            raise NotJson("Incorrect hex digit after \\u escape in string.", escape)
        return int(match.group(), 16)


_REASONS = {
    "Extra data": NOT_ALONE,
    "Expecting ':' delimiter": NO_COLON,
    "Expecting ',' delimiter": "Missing a comma, or the end of an array or object.",
    "Expecting property name enclosed in double quotes": NO_NAME,
    "Invalid \\escape": BAD_ESCAPE,
    "Invalid control character at": BAD_ESCAPE,
    "Unterminated string starting at": NO_QUOTE,
}
_PENDING: Any = object()
_INFINITY = float("inf")
_NAN = float("nan")

_OTHER_NOTATION = re.compile(rb"e(?:-6|1[6-9]|20)(?![0-9])")


def doubles(values: list[float]) -> bytes:
    """An array of doubles."""
    text = msgspec.json.encode(values)
    if b"n" in text:
        # null stands for what is not finite
        tokens = text[1:-1].split(b",")
        for at, token in enumerate(tokens):
            if token == b"null":
                tokens[at] = double(values[at])
        text = b"[" + b",".join(tokens) + b"]"
    if b"e" in text:
        parts: list[bytes] = []
        done = 0
        for match in _OTHER_NOTATION.finditer(text):
            start = max(text.rfind(b",", done, match.start()) + 1, done, 1)
            parts += (text[done:start], double(float(text[start : match.end()])))
            done = match.end()
        text = b"".join((*parts, text[done:]))
    return text

"""Cuts the large tensors out of a long JSON document, window by window: what is left is short, and the tensors can be read in pieces."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ...shm.arrays import np
from .json_text import MAX_DEPTH
from .turns import Steps

PIECE_BYTE_SIZE = 64 * 1024
"""About how much JSON one piece of work reads."""

KEPT_BYTE_SIZE = 4 * 1024
"""Arrays up to this size stay in the document."""

_ARRAYS = 4096
_OVERLAP = 64
_FIRST_WINDOW = 1024
_NAME = b'"data"'
_MEMBER = re.compile(rb'"data"[ \t\n\r]*+:[ \t\n\r]*+\[')
_TOKEN = secrets.token_hex(16).encode()
_COMMA, _QUOTE, _BACKSLASH, _CLOSE = b',"\\]'
_BRACE = 0x20
"""The bit in which braces differ from brackets."""

if TYPE_CHECKING:
    Positions = np.ndarray[Any, np.dtype[np.intp]]


class Piece(NamedTuple):
    """A part of an array's elements, ``start`` to ``stop`` in the document, without the commas before and behind it.

    ``before`` and ``after`` are how many arrays are open there, ``after`` 0 where the piece is the last of an array that is none,
    because it does not end or something else is closed in its place; in a ``flat`` piece none opens or closes.
    """

    start: int
    stop: int
    before: int
    after: int
    flat: bool


@dataclass(slots=True)
class CutArray:
    """An array that was cut out: ``mark`` stands in its place, ``at`` in the rest of the document."""

    start: int
    stop: int
    pieces: list[Piece]
    brackets: int
    mark: bytes = b""
    at: int = 0


@dataclass(slots=True)
class CutDocument:
    """A document without its large arrays."""

    rest: bytes
    arrays: list[CutArray]

    def offset(self, at: int) -> int:
        """Where something ``at`` in the rest is in the whole document."""
        for array in reversed(self.arrays):
            if at >= array.at + len(array.mark):
                return at - (array.at + len(array.mark)) + array.stop
        return at


def cut_document(view: memoryview, size: int) -> Steps[CutDocument | None]:
    """Find the large arrays that are members ``data`` in the JSON of ``view[:size]``, in steps; None where it has to be read as it is.

    Sound for what is JSON: if the rest is and each array is, so is the whole.
    """
    arrays: list[CutArray] = []
    parts: list[bytes] = []
    length = 0
    taken = 0
    at = 0
    for _ in range(_ARRAYS):
        start = yield from _next_array(view, size, at)
        if start < 0:
            break
        array = yield from measured(view, size, start)
        if array is None:
            return None
        at = array.stop
        if array.stop - array.start > KEPT_BYTE_SIZE:
            array.mark = b'["%b %d"]' % (_TOKEN, len(arrays))
            parts += (bytes(view[taken:start]), array.mark)
            array.at = length + start - taken
            length = array.at + len(array.mark)
            taken = array.stop
            arrays.append(array)
    if not arrays:
        return None
    parts.append(bytes(view[taken:size]))
    return CutDocument(b"".join(parts), arrays)


def _next_array(view: memoryview, size: int, at: int) -> Steps[int]:
    """Where the next member ``data`` that is an array begins, -1 where there is none."""
    begin = at
    while True:
        stop = min(begin + PIECE_BYTE_SIZE, size)
        window = bytes(view[begin:stop])
        found = window.find(_NAME, begin > at)
        while found >= 0:
            match = _MEMBER.match(window, found)
            # behind a backslash it is the end of a string
            if match is not None and not (found and window[found - 1] == _BACKSLASH):
                return begin + match.end() - 1
            found = window.find(_NAME, found + 1)
        if stop == size:
            return -1
        begin = stop - _OVERLAP
        yield


def measured(view: memoryview, size: int, start: int) -> Steps[CutArray | None]:
    """The array that begins at ``start``, in pieces; None where it nests too deep."""
    pieces: list[Piece] = []
    brackets = 1
    depth = 1
    at = start + 1
    width = _FIRST_WINDOW
    while True:
        stop = min(at + width, size)
        window = bytes(view[at:stop])
        bytes_ = np.frombuffer(window, np.uint8)
        quotes = quotes_of(window)
        marks = brackets_of(bytes_, quotes)
        kinds = bytes_[marks]
        steps = (kinds & 2).astype(np.intp) - 1
        levels = depth + np.cumsum(steps)
        ends = np.flatnonzero(levels == 0)
        if len(ends):
            end = int(marks[ends[0]])
            if levels[: ends[0]].max(initial=0) > MAX_DEPTH:
                return None
            if window[end] != _CLOSE:
                pieces.append(Piece(at, at + end + 1, depth, 0, False))
                return CutArray(start, at + end + 1, pieces, brackets)
            pieces.append(Piece(at, at + end, depth, 1, not ends[0]))
            return CutArray(start, at + end + 1, pieces, brackets + int(ends[0]) + 1)
        if levels.max(initial=0) > MAX_DEPTH:
            return None
        cut = _last_comma(window, bytes_, quotes, marks, kinds, steps)
        if cut < 0:
            if stop == size:
                pieces.append(Piece(at, stop, depth, 0, False))
                return CutArray(start, stop, pieces, brackets)
            width *= 4
        else:
            inside = int(np.searchsorted(marks, cut))
            after = int(levels[inside - 1]) if inside else depth
            pieces.append(Piece(at, at + cut, depth, after, not inside))
            brackets += inside
            depth = after
            at += cut + 1
            width = min(4 * width, PIECE_BYTE_SIZE)
        yield


def quotes_of(text: bytes) -> Positions | None:
    """Where strings begin and end in a text that begins outside of them; None where there are none."""
    if text.find(b'"') < 0:
        return None
    if text.find(b"\\") >= 0:
        text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return np.flatnonzero(np.frombuffer(text, np.uint8) == _QUOTE)


def brackets_of(bytes_: np.ndarray[Any, np.dtype[np.uint8]], quotes: Positions | None) -> Positions:
    """Where arrays and objects open and close, outside of strings."""
    folded = bytes_ | np.uint8(_BRACE)
    found = np.flatnonzero((folded == ord("{")) | (folded == ord("}")))
    if quotes is not None and len(found):
        found = found[np.searchsorted(quotes, found) & 1 == 0]
    return found


def _last_comma(
    window: bytes,
    bytes_: np.ndarray[Any, np.dtype[np.uint8]],
    quotes: Positions | None,
    marks: Positions,
    kinds: np.ndarray[Any, np.dtype[np.uint8]],
    steps: Positions,
) -> int:
    """The last comma outside of strings and objects, -1 where there is none."""
    braces = kinds & _BRACE != 0
    if not braces.any():
        end = len(window)
        while True:
            comma = window.rfind(b",", 0, end)
            if comma < 0 or quotes is None:
                return comma
            before = int(np.searchsorted(quotes, comma))
            if not before & 1:
                return comma
            end = int(quotes[before - 1])
    commas = np.flatnonzero(bytes_ == _COMMA)
    if quotes is not None:
        commas = commas[np.searchsorted(quotes, commas) & 1 == 0]
    open_objects = np.concatenate(([0], np.cumsum(steps[braces])))
    commas = commas[open_objects[np.searchsorted(marks[braces], commas)] == 0]
    return int(commas[-1]) if len(commas) else -1

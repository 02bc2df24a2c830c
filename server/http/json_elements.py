"""Reads the elements of a large JSON tensor, piece by piece, into the memory where the tensor is to lie.

Each piece is read in the quickest way that takes no more than is right; what that refuses is read as a short document of its own,
by the reader that knows every leniency and every error.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import msgspec

from ...shm.arrays import np
from ...shm.datatypes import DATATYPES
from ...workers.contract.status import StatusError, internal
from .json_cutting import CutArray, Piece, brackets_of, quotes_of
from .json_tensor import MISFIT, REFUSED, flat_elements, flat_numbers, flat_strings, misfit_of, string_content, wide_array
from .json_text import BAD_SURROGATE, NotJson, parse_long
from .turns import Steps

if TYPE_CHECKING:
    Bytes = np.ndarray[Any, np.dtype[np.uint8]]

_ANY = msgspec.json.Decoder()
_CHECK = msgspec.json.Decoder(msgspec.Raw)
_BLANKS = bytes(byte in b" \t\n\r" for byte in range(256))
_BLANK, _COMMA, _OPEN, _CLOSE = b" ,[]"
_LONGEST_BLANK = 64


class Elements:
    """What the elements of an array make; of this kind nothing but whether they are JSON, and no number too big.

    ``fault`` is the first error that is not of the syntax: those count before any other, wherever they are.
    """

    def __init__(self) -> None:
        self.fault: StatusError | None = None

    def quick(self, text: bytes) -> bool:
        """Take the elements of a flat piece; False where they have to be read in another way. May raise one of ``REFUSED``."""
        return bool(_ANY.decode(b"[" + text + b"]"))

    def take(self, values: list[Any]) -> None:
        """Take elements that were read."""

    def end(self) -> None:
        """All elements have been taken."""


class Unread(Elements):
    """The elements of an array that nobody looks at."""

    def quick(self, text: bytes) -> bool:
        _CHECK.decode(b"[" + text + b"]")
        return bool(text) and not text.isspace()


class Numbers(Elements):
    """Numbers or booleans, into ``memory``: bytes for ``count`` elements, or None where there cannot be as many."""

    def __init__(self, datatype: str, count: int, memory: memoryview | None) -> None:
        super().__init__()
        self._datatype = datatype
        self._count = count
        self._taken = 0
        self._out = None if memory is None else np.frombuffer(memory, DATATYPES[datatype].dtype, count)

    def quick(self, text: bytes) -> bool:
        values = flat_numbers(b"[" + text + b"]", self._datatype)
        if not len(values):
            return False
        self._store(values)
        return True

    def take(self, values: list[Any]) -> None:
        left = self._count - self._taken
        error = misfit_of(values[: max(left, 0)], self._datatype)
        if error is None and values:
            if left >= len(values):
                self._store(wide_array(values, self._datatype))
            else:
                self._taken += len(values)
            return
        self._taken += len(values)
        if self.fault is None:
            self.fault = error

    def _store(self, values: np.ndarray[Any, Any]) -> None:
        start = self._taken
        self._taken = stop = start + len(values)
        if self._out is not None and stop <= self._count:
            with np.errstate(over="ignore"):
                self._out[start:stop] = values

    def end(self) -> None:
        if self.fault is None and self._taken != self._count:
            self.fault = internal(MISFIT)


class Strings(Elements):
    """Strings as a BYTES tensor, at the beginning of ``memory``; ``byte_size`` counts on where that is full."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__()
        self._out = np.frombuffer(memory, np.uint8)
        self.byte_size = 0

    def quick(self, text: bytes) -> bool:
        content = flat_strings(text)
        if content is None:
            return False
        self._store(content)
        return True

    def take(self, values: list[Any]) -> None:
        if self.fault is None:
            try:
                self._store(np.frombuffer(string_content(values), np.uint8))
            except StatusError as error:
                self.fault = error

    def _store(self, content: Bytes) -> None:
        start = self.byte_size
        self.byte_size = stop = start + len(content)
        if stop <= len(self._out):
            self._out[start:stop] = content


def read_elements(view: memoryview, array: CutArray, elements: Elements) -> Steps[None]:
    """Read an array of the document ``view`` into ``elements``, in steps.

    Raises what the reader of whole documents raises for the first error of syntax, except that a surrogate
    without its other half is only kept as the elements' ``fault``.
    """
    last = len(array.pieces) - 1
    for index, piece in enumerate(array.pieces):
        text = bytes(view[piece.start : piece.stop])
        try:
            flat = text if piece.flat else _flattened(text) if piece.after else None
            done = flat is not None and elements.quick(flat)
        except REFUSED:
            done = False
        if not done:
            _read_slowly(text, piece, index > 0, index < last, elements)
        yield
    elements.end()


def _flattened(text: bytes) -> bytes | None:
    """A piece with blanks for the brackets of nested arrays; None where these do not stand as they usually do."""
    padded = b"," + text + b","
    bytes_ = np.frombuffer(padded, np.uint8).copy()
    marks = brackets_of(bytes_, quotes_of(padded))
    kinds = bytes_[marks]
    opens = kinds == _OPEN
    if not (opens | (kinds == _CLOSE)).all():
        return None
    before = _next_to(bytes_, marks[opens], -1)
    behind = _next_to(bytes_, marks[~opens], 1)
    if before is None or behind is None:
        return None
    if not (((before == _OPEN) | (before == _COMMA)).all() and ((behind == _CLOSE) | (behind == _COMMA)).all()):
        return None
    bytes_[marks] = _BLANK
    return bytes_[1:-1].tobytes()


def _next_to(bytes_: Bytes, marks: np.ndarray[Any, Any], step: int) -> Bytes | None:
    """The bytes next to some, without blanks; None where there are too many of these."""
    at = marks + step
    for _ in range(_LONGEST_BLANK):
        found: Bytes = bytes_[at]
        blank = np.frombuffer(_BLANKS, np.bool_)[found]
        if not blank.any():
            return found
        at = at + step * blank
    return None


def _read_slowly(text: bytes, piece: Piece, more_before: bool, more_behind: bool, elements: Elements) -> None:
    """Read a piece as a document: with as many arrays around it as are open, and elements in place of those left out."""
    lead = b"[" * piece.before + (b"0," if more_before else b"")
    end = text.find(b"\0")
    if end < 0:
        document = lead + text + (b",0" if more_behind else b"") + b"]" * piece.after
    else:
        document = lead + text[:end]
    try:
        elements.take(_between(_ANY.decode(document), more_before, more_behind))
        return
    except REFUSED:
        pass
    try:
        values = parse_long(document, sys.maxsize)
    except NotJson as error:
        at = piece.start + error.offset - len(lead)
        if error.why != BAD_SURROGATE:
            raise NotJson(error.why, at) from None
        if elements.fault is None or type(elements.fault) is not NotJson:
            elements.fault = NotJson(error.why, at)
        return
    elements.take(_between(values, more_before, more_behind))


def _between(values: list[Any], more_before: bool, more_behind: bool) -> list[Any]:
    flat = flat_elements(values, "")
    return flat[more_before : len(flat) - more_behind]

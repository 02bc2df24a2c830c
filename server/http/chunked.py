"""Chunked request bodies, taken apart as they arrive."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ..admission import UNLIMITED, Admission
from ..door.body import Body, Growing
from ..door.malformed import Malformed
from .limits import Limits

if TYPE_CHECKING:
    from ...shm.arena import Arena

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[\t\x20-\x7e\x80-\xff]*")
_SIZE_AND_END = 16 + 2
_NO_TRAILERS = frozenset(
    (b"content-length", b"transfer-encoding", b"host", b"authorization", b"connection", b"content-encoding", b"expect")
)


class Chunked:
    """A chunked body. Chunk lines end in CRLF, extensions are read over, trailers are dropped."""

    __slots__ = ("_chunk", "_chunks", "_content", "_limits", "_line", "_trailers", "complete")

    # what _chunk says where it is not the number of bytes left in the chunk
    _SIZE, _DATA_END, _TRAILER = -1, -2, -3

    def __init__(self, arena: Arena | None, limits: Limits, admission: Admission = UNLIMITED) -> None:
        self._content = Growing(arena, limits, admission)
        self._limits = limits
        self._line = b""
        self._chunk = self._SIZE
        self._chunks = 0
        self._trailers = 0
        self.complete = False

    def feed(self, data: bytes | bytearray, view: memoryview, start: int, end: int) -> int:
        """Take the body's bytes from ``data[start:end]`` (``view`` is the same memory); returns where they stop.

        Raises Malformed.
        """
        while start < end and not self.complete:
            if self._chunk > 0:
                stop = min(end, start + self._chunk)
                self._content.append(view[start:stop])
                self._chunk -= stop - start
                start = stop
                if self._chunk == 0:
                    self._chunk = self._DATA_END
            else:
                start = self._feed_line(data, start, end)
        return start

    def _feed_line(self, data: bytes | bytearray, start: int, end: int) -> int:
        newline = data.find(b"\n", start, end)
        stop = end if newline < 0 else newline + 1
        limits = self._limits
        limit = limits.trailer_byte_size if self._chunk == self._TRAILER else _SIZE_AND_END + limits.chunk_extension_byte_size
        if len(self._line) + stop - start > limit:
            raise Malformed(400, "malformed HTTP request: chunk line is too long")
        self._line += data[start:stop]
        if newline < 0:
            if self._chunk == self._DATA_END and not b"\r\n".startswith(self._line):
                raise Malformed(400, "malformed HTTP request: chunk does not end where it says")
            return stop
        line, self._line = self._line, b""
        if not line.endswith(b"\r\n"):
            raise Malformed(400, "malformed HTTP request: chunk line does not end in CRLF")
        self._end_line(line[:-2])
        return stop

    def _end_line(self, line: bytes) -> None:
        if self._chunk == self._DATA_END:
            if line:
                raise Malformed(400, "malformed HTTP request: chunk does not end where it says")
            self._chunk = self._SIZE
        elif self._chunk == self._SIZE:
            match = _CHUNK_LINE.fullmatch(line)
            if match is None:
                raise Malformed(400, "malformed HTTP request: chunk size")
            if len(line) - match.end(1) > self._limits.chunk_extension_byte_size:
                raise Malformed(400, "malformed HTTP request: chunk line is too long")
            self._begin_chunk(int(match[1], 16))
        elif not line:
            self.complete = True
        else:
            match = _TRAILER_LINE.fullmatch(line)
            self._trailers += len(line) + 2
            if match is None or match[1].lower() in _NO_TRAILERS or self._trailers > self._limits.trailer_byte_size:
                raise Malformed(400, "malformed HTTP request: trailer")

    def _begin_chunk(self, byte_size: int) -> None:
        if byte_size == 0:
            self._chunk = self._TRAILER
            return
        self._chunks += 1
        if self._chunks > self._limits.chunk_count:
            raise Malformed(
                400,
                f"Chunked request body exceeds maximum of {self._limits.chunk_count} non-empty chunks. Send fewer or larger HTTP chunks.",
                as_json=True,
            )
        self._content.expect(byte_size)
        self._chunk = byte_size

    @property
    def received_byte_size(self) -> int:
        """Bytes of content that have come so far."""
        return self._content.byte_size

    @property
    def unfilled_byte_size(self) -> int:
        """Bytes of the arena that wait for what has not come."""
        return self._content.unfilled_byte_size

    def take(self) -> Body:
        """The complete body; the caller owns it now."""
        return self._content.take()

    def abandon(self) -> None:
        """Give the memory of an incomplete body back."""
        self._content.abandon()

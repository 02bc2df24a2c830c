"""The head of an HTTP/1.1 request: request line and headers, read by llhttp and then checked once more.

llhttp gets heads only, one at a time; bodies are cut out of the stream by ``body``. What it lets
through and we do not: request lines that are not spelled exactly (blanks, RTSP, HTTP/0.9 and 2.0), a bare CR
or LF before them, ``Transfer-Encoding`` other than exactly ``chunked``, a Host that is missing, repeated or none,
another authority in an absolute target, and heads beyond the limits.
"""

from __future__ import annotations

import re
import time

import httptools

from ..door.malformed import Malformed
from .exchange import Head
from .limits import Limits

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"[A-Z-]+ [\x21-\x7e]+ HTTP/1\.[01]\r\n")
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[A-Za-z0-9._~:%-]+\])(?::[0-9]*)?")
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))
_METHODS = {name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")}


KEPT_BYTE_SIZE = 2048
"""Larger heads than this are not remembered."""

KEPT_COUNT = 256
"""How many heads are remembered; one more, and all are forgotten."""


class HeadReader:
    """Reads one head after the other: ``head`` is the one just read, None before it is complete.

    ``known`` has the heads that were read lately, by their bytes: a client's next one is often the same, byte for byte,
    and is not parsed again. Call ``next()`` before feeding the next head.
    """

    __slots__ = (
        "_chunked",
        "_complete",
        "_connection_named",
        "_content_length",
        "_expects_continue",
        "_headers",
        "_hosts",
        "_keep_alive",
        "_http_1_0",
        "_known",
        "_length_named",
        "_limits",
        "_line",
        "_line_read",
        "_method",
        "_original_names",
        "_parser",
        "_spent",
        "_tail",
        "_url",
        "head",
        "start_ns",
    )

    def __init__(self, limits: Limits, known: dict[bytes, Head]) -> None:
        self._limits = limits
        self._known = known
        self._parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self.head: Head | None = None
        self.start_ns = 0
        self._tail = b""
        self._clear()

    def _clear(self) -> None:
        self._complete = False
        self._connection_named = False
        self._hosts: list[bytes] = []
        self._length_named = False
        self._line = b""
        self._line_read = False
        self._spent = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._original_names: list[bytes] = []
        self._method = ""
        self._content_length = 0
        self._chunked = False
        self._keep_alive = True
        self._http_1_0 = False
        self._expects_continue = False

    @property
    def begun(self) -> bool:
        """Some of a head has arrived, but not all of it."""
        return self._spent > 0 and self.head is None

    def next(self) -> None:
        """Forget the head just read."""
        self.head = None
        if self._spent:
            self._clear()

    def feed(self, data: bytes | bytearray, view: memoryview, start: int, end: int) -> int:
        """Read from ``data[start:end]`` (``view`` is the same memory) up to the head's end; returns where it stopped.

        Raises Malformed.
        """
        stop = self._end_of_head(data, start, end)
        if not self._spent and stop - start <= KEPT_BYTE_SIZE:
            known = self._known.get(bytes(view[start:stop]))
            if known is not None:
                self.start_ns = time.monotonic_ns()
                self.head = known
                return stop
        self._spent += stop - start
        if self._spent > self._limits.head_byte_size:
            raise Malformed(431, "request header block is too large")
        piece = view[start:stop]
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._parser = httptools.HttpRequestParser(self)
        except httptools.HttpParserCallbackError as failure:
            cause = failure.__context__
            raise cause if isinstance(cause, Malformed) else failure from None
        except httptools.HttpParserError as failure:
            raise Malformed(400, f"malformed HTTP request: {failure}") from None
        if not self._line_read:
            self._read_line(data, start, stop)
        if self._complete:
            head = self.head = self._checked()
            if self._spent == stop - start <= KEPT_BYTE_SIZE:
                if len(self._known) >= KEPT_COUNT:
                    self._known.clear()
                self._known[bytes(piece)] = head
            if head.chunked or head.content_length:
                self._parser = httptools.HttpRequestParser(self)
        return stop

    def _read_line(self, data: bytes | bytearray, start: int, stop: int) -> None:
        """Check the request line's own bytes, which llhttp reads leniently; empty lines may come before it. Raises Malformed."""
        while start < stop and not self._line_read:
            newline = data.find(b"\n", start, stop)
            end = stop if newline < 0 else newline + 1
            line = self._line + data[start:end] if self._line else bytes(data[start:end])
            if len(line) > self._limits.request_line_byte_size + 2:
                raise Malformed(400, "request line is too long")
            start = end
            if newline < 0:
                self._line = line
            elif line == b"\r\n":
                self._line = b""
            elif _REQUEST_LINE.fullmatch(line):
                self._line_read = True
            else:
                raise Malformed(400, "malformed HTTP request: request line")

    def _end_of_head(self, data: bytes | bytearray, start: int, end: int) -> int:
        """Where the blank line after a head ends in ``data``, or ``end``; the blank line may straddle two reads."""
        if self._tail:
            seam = self._tail + data[start : min(end, start + 3)]
            found = seam.find(_END)
            if found >= 0:
                stop = start + found + 4 - len(self._tail)
                self._tail = b""
                return stop
        found = data.find(_END, start, end)
        if found >= 0:
            self._tail = b""
            return found + 4
        self._tail = bytes((self._tail + data[max(start, end - 3) : end])[-3:])
        return end

    # llhttp's callbacks

    def on_url(self, piece: bytes) -> None:
        if not self._url:
            self.start_ns = time.monotonic_ns()
            self._url = piece
        else:
            self._url += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        value = value.rstrip(b" \t")
        self._headers.append((key, value))
        self._original_names.append(name)
        if key in _FRAMING:
            self._framing(key, value)

    def _framing(self, key: bytes, value: bytes) -> None:
        if key == b"host":
            if not _HOST.fullmatch(value):
                raise Malformed(400, "malformed HTTP request: Host")
            self._hosts.append(value)
        elif key == b"content-length":
            if not value.isdigit() or len(value) > 19 or self._length_named:
                raise Malformed(400, "malformed HTTP request: Content-Length")
            self._length_named = True
            self._content_length = int(value)
        elif key == b"transfer-encoding":
            if value.lower() != b"chunked" or self._chunked:
                raise Malformed(400, "malformed HTTP request: Transfer-Encoding")
            self._chunked = True
        elif key == b"connection":
            self._connection_named = True
        else:
            self._expects_continue = True

    def on_headers_complete(self) -> None:
        parser = self._parser
        method = parser.get_method()
        self._method = _METHODS.get(method) or method.decode("latin-1")
        keep_alive = parser.should_keep_alive()
        version = parser.get_http_version()
        if version == "1.0":
            if keep_alive:
                # llhttp lets one of two contradicting wishes win, and not the safe one; and it listens to Proxy-Connection
                keep_alive = self._connection_named and not any(name == b"connection" and _closes(value) for name, value in self._headers)
            self._http_1_0 = True
            # RFC 9110, 10.1.1: who speaks HTTP/1.0 does not know interim replies
            self._expects_continue = False
            if self._chunked:
                raise Malformed(400, "malformed HTTP request: Transfer-Encoding in HTTP/1.0")
            if not self._hosts:
                self._hosts.append(b"")
        elif version != "1.1":
            raise Malformed(400, "malformed HTTP request: version")
        self._keep_alive = keep_alive
        self._complete = True

    def _checked(self) -> Head:
        """The head, once what only the whole of it can tell has been checked. Raises Malformed."""
        limits = self._limits
        if len(self._headers) > limits.header_count:
            raise Malformed(431, "request has too many headers")
        most = limits.header_line_byte_size
        if self._spent > most and any(len(name) + len(value) > most for name, value in self._headers):
            raise Malformed(431, "a request header is too long")
        if len(self._hosts) != 1:
            raise Malformed(400, "malformed HTTP request: exactly one Host is needed")
        if self._chunked and self._length_named:
            raise Malformed(400, "malformed HTTP request: Content-Length beside Transfer-Encoding")
        if self._method == "CONNECT":
            raise Malformed(400, "malformed HTTP request: CONNECT")
        target = self._url.decode("latin-1")
        if target[0] != "/":
            target = self._origin_form(target)
        path, _, query = target.partition("?")
        return Head(
            *(self._method, path, self._headers, self._original_names, query, self._content_length),
            *(self._chunked, self._keep_alive, self._http_1_0, self._expects_continue),
        )

    def _origin_form(self, target: str) -> str:
        """An absolute target without its authority, which must be the Host's."""
        if target == "*" and self._method == "OPTIONS":
            return target
        scheme, separator, rest = target.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise Malformed(400, "malformed HTTP request: target")
        cut = min((at for at in (rest.find("/"), rest.find("?")) if at >= 0), default=len(rest))
        authority, target = rest[:cut], rest[cut:]
        host = self._hosts[0].decode("latin-1")
        if not authority or (host and authority.lower() != host.lower()):
            raise Malformed(400, "malformed HTTP request: target of another authority")
        return target if target.startswith("/") else "/" + target


def announced_json_byte_size(head: Head) -> int:
    """How much of an inference request's body comes before its tensors; 0 where no header says so."""
    value = head.header(b"inference-header-content-length")
    return int(value) if value is not None and value.isdigit() and len(value) <= 10 else 0


def _closes(connection: bytes) -> bool:
    return b"close" in [option.strip() for option in connection.lower().split(b",")]

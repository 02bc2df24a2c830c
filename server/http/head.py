"""The head of an HTTP/1.1 request: request line and headers, read by llhttp and then checked once more.

llhttp gets heads only, one at a time; bodies are cut out of the stream by ``body``. What it lets
through and we do not: ``Transfer-Encoding`` other than exactly ``chunked``, HTTP/0.9 and 2.0,
a missing or repeated Host, another authority in an absolute target, and heads beyond the limits.
"""

from __future__ import annotations

import time
from typing import Any

import httptools

from .limits import Limits

_END = b"\r\n\r\n"
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))
_METHODS = {name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")}


KEPT_BYTE_SIZE = 2048
"""Larger heads than this are not remembered."""


class Malformed(Exception):
    """A request that cannot be trusted to end where it says: answered once, then the connection closes.

    ``as_json`` marks the replies that the reference sends as application/json.
    """

    def __init__(self, status: int, message: str, as_json: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.as_json = as_json


class HeadReader:
    """Reads one head after the other; after ``complete`` its fields describe the head just read.

    ``content_length`` is 0 where there is none. Call ``next()`` before feeding the next head.
    """

    __slots__ = (
        "_connection_named",
        "_hosts",
        "_kept",
        "_kept_head",
        "_length_named",
        "_limits",
        "_parser",
        "_spent",
        "_tail",
        "_url",
        "chunked",
        "complete",
        "content_length",
        "expects_continue",
        "headers",
        "keep_alive",
        "keep_alive_1_0",
        "method",
        "original_names",
        "path",
        "query",
        "start_ns",
    )

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parser: httptools.HttpRequestParser = httptools.HttpRequestParser(self)
        self._kept_head = b""
        self._kept: tuple[Any, ...] = ()
        self.complete = False
        self._clear()

    def _clear(self) -> None:
        self._connection_named = False
        self._hosts: list[bytes] = []
        self._length_named = False
        self._spent = 0
        self._tail = b""
        self._url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.original_names: list[bytes] = []
        self.method = ""
        self.path = ""
        self.query = ""
        self.content_length = 0
        self.chunked = False
        self.keep_alive = True
        self.keep_alive_1_0 = False
        self.expects_continue = False
        self.start_ns = 0

    @property
    def begun(self) -> bool:
        """Some of a head has arrived, but not all of it."""
        return self._spent > 0 and not self.complete

    @property
    def json_byte_size(self) -> int:
        """How much of an inference request's body comes before its tensors; 0 where no header says so."""
        for name, value in self.headers:
            if name == b"inference-header-content-length" and value.isdigit() and len(value) <= 10:
                return int(value)
        return 0

    def next(self) -> None:
        """Forget the head just read."""
        self.complete = False
        self._clear()

    def feed(self, data: bytes | bytearray, view: memoryview, start: int, end: int) -> int:
        """Read from ``data[start:end]`` (``view`` is the same memory) up to the head's end; returns where it stopped.

        Raises Malformed.
        """
        stop = self._end_of_head(data, start, end)
        if not self._spent and data[start:stop] == self._kept_head:
            self._repeat()
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
        if self.complete:
            self._check()
            if self._spent == stop - start <= KEPT_BYTE_SIZE:
                self._keep(bytes(piece))
            if self.chunked or self.content_length:
                self._parser = httptools.HttpRequestParser(self)
        return stop

    def _keep(self, head: bytes) -> None:
        """Remember what a head says: on a kept-alive connection the next one is often the same, byte for byte."""
        self._kept_head = head
        self._kept = (
            *(self.method, self.path, self.query, self.headers, self.original_names),
            *(self.content_length, self.chunked, self.keep_alive, self.keep_alive_1_0, self.expects_continue),
        )

    def _repeat(self) -> None:
        """Read the remembered head once more."""
        self.start_ns = time.monotonic_ns()
        self._spent = len(self._kept_head)
        self.method, self.path, self.query, self.headers, self.original_names, *rest = self._kept
        self.content_length, self.chunked, self.keep_alive, self.keep_alive_1_0, self.expects_continue = rest
        self.complete = True

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
        if len(self._url) > self._limits.request_line_byte_size - 16:
            raise Malformed(400, "request line is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.lower()
        value = value.rstrip(b" \t")
        self.headers.append((key, value))
        self.original_names.append(name)
        if key in _FRAMING:
            self._framing(key, value)

    def _framing(self, key: bytes, value: bytes) -> None:
        if key == b"host":
            self._hosts.append(value)
        elif key == b"content-length":
            if not value.isdigit() or len(value) > 19 or self._length_named:
                raise Malformed(400, "malformed HTTP request: Content-Length")
            self._length_named = True
            self.content_length = int(value)
        elif key == b"transfer-encoding":
            if value.lower() != b"chunked" or self.chunked:
                raise Malformed(400, "malformed HTTP request: Transfer-Encoding")
            self.chunked = True
        elif key == b"connection":
            self._connection_named = True
        else:
            self.expects_continue = True

    def on_headers_complete(self) -> None:
        parser = self._parser
        method = parser.get_method()
        self.method = _METHODS.get(method) or method.decode("latin-1")
        keep_alive = parser.should_keep_alive()
        if not keep_alive or self._connection_named:
            version = parser.get_http_version()
            if version == "1.0":
                self.keep_alive_1_0 = keep_alive
                if self.chunked:
                    raise Malformed(400, "malformed HTTP request: Transfer-Encoding in HTTP/1.0")
                if not self._hosts:
                    self._hosts.append(b"")
            elif version != "1.1":
                raise Malformed(400, "malformed HTTP request: version")
        self.keep_alive = keep_alive
        self.complete = True

    def _check(self) -> None:
        """What only the whole head can tell. Raises Malformed."""
        if len(self.headers) > self._limits.header_count:
            raise Malformed(431, "request has too many headers")
        if len(self._hosts) != 1:
            raise Malformed(400, "malformed HTTP request: exactly one Host is needed")
        if self.chunked and self._length_named:
            raise Malformed(400, "malformed HTTP request: Content-Length beside Transfer-Encoding")
        if self.method == "CONNECT":
            raise Malformed(400, "malformed HTTP request: CONNECT")
        target = self._url.decode("latin-1")
        if target[0] != "/":
            target = self._origin_form(target)
        self.path, _, self.query = target.partition("?")

    def _origin_form(self, target: str) -> str:
        """An absolute target without its authority, which must be the Host's."""
        if target == "*":
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

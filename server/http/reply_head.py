"""How replies of HTTP/1.1 begin: status line and headers."""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus

from .exchange import Headers

CLOSE = b"Connection: close\r\n"
KEEP_ALIVE = b"Connection: keep-alive\r\n"

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CHUNKED = b"Transfer-Encoding: chunked\r\n"


def reply_head(status: int, headers: Headers, byte_size: int, connection_line: bytes) -> bytes:
    """The head of a reply with a body of ``byte_size`` bytes. Raises ValueError for a header that would be more than one line."""
    return _head(status, headers, connection_line, b"Content-Length: %d\r\n" % byte_size)


kept_reply_head = lru_cache(maxsize=1024)(reply_head)
"""The same for headers in a tuple: most replies begin like one that was sent lately."""


def stream_head(status: int, headers: Headers, chunked: bool, connection_line: bytes) -> bytes:
    """The head of a reply whose size is not known: in chunks, or up to the connection's end. Raises ValueError as ``reply_head`` does."""
    return _head(status, headers, connection_line, _CHUNKED if chunked else b"")


def _head(status: int, headers: Headers, connection_line: bytes, framing_line: bytes) -> bytes:
    pieces: list[bytes] = [_STATUS_LINES[status]]
    typed = False
    lines = 2
    for name, value in headers:
        pieces += (name, b": ", value, b"\r\n")
        lines += 1
        typed = typed or name.lower() == b"content-type"
    if not typed:
        pieces.append(b"Content-Type: text/plain\r\n")
        lines += 1
    for line in (connection_line, framing_line):
        if line:
            pieces.append(line)
            lines += 1
    pieces.append(b"\r\n")
    head = b"".join(pieces)
    if head.count(b"\n") != lines or head.count(b"\r") != lines:
        raise ValueError("a reply's header holds a line break")
    return head

"""A reply of HTTP/1.1 that is written piece by piece: chunks, or bytes up to the connection's end for who speaks HTTP/1.0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Connection
    from .exchange import HttpRequest

_LAST_CHUNK = b"0\r\n\r\n"


class ReplyStream:
    """The reply to ``exchange`` on a connection; ``head`` goes out with the first piece. ``silent``: there is no body by rule."""

    __slots__ = ("_chunked", "_connection", "_exchange", "_head", "_silent")

    def __init__(self, connection: Connection, exchange: HttpRequest, head: bytes, chunked: bool, silent: bool) -> None:
        self._connection = connection
        self._exchange = exchange
        self._head = head
        self._chunked = chunked
        self._silent = silent

    def write(self, parts: Sequence[bytes]) -> None:
        """Send more of the body, in one chunk; without parts, only the head where that has not left."""
        self._send(parts, b"")

    def end(self, parts: Sequence[bytes] = ()) -> None:
        """Send the last of the body, and that it is the last."""
        self._send(parts, _LAST_CHUNK)
        self._connection.end_parts(self._exchange)

    def abort(self) -> None:
        """Break the reply off, so that the client sees that it is not complete."""
        self._connection.break_off(self._exchange)

    def _send(self, parts: Sequence[bytes], end: bytes) -> None:
        sent: list[bytes] = []
        head, self._head = self._head, b""
        if head:
            sent.append(head)
        byte_size = 0 if self._silent else sum([len(part) for part in parts])
        # A chunk without content would be the last one.
        if byte_size:
            if self._chunked:
                lead = b"%x\r\n" % byte_size
                sent.append(lead)
                sent += parts
                sent.append(b"\r\n")
                byte_size += len(lead) + 2
            else:
                sent += parts
        if end and self._chunked and not self._silent:
            sent.append(end)
        if sent:
            self._connection.send_part(self._exchange, sent, byte_size + len(head))

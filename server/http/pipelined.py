"""A request on an HTTP/1.1 connection: others may have come before it that are not answered yet, and others wait behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..door.body import Body
from .exchange import Cancel, Head, Headers, Reply, StreamingRequest
from .reply_stream import ReplyStream

if TYPE_CHECKING:
    from .connection import Connection


class PipelinedRequest(StreamingRequest):
    """A request on a connection, and who is to hear of its reply. ``cancel`` is what its handler wants to be called if the client goes."""

    __slots__ = ("cancel", "connection", "keep_alive")

    def __init__(self, connection: Connection, head: Head, body: Body, start_ns: int, peer_is_local: bool) -> None:
        self.connection = connection
        self.head = head
        self.body = body
        self.start_ns = start_ns
        self.peer_is_local = peer_is_local
        self.keep_alive = head.keep_alive
        self.cancel: Cancel | None = None

    def answer(self, reply: Reply) -> None:
        """The handler's reply; the second one, or one that comes after the client has gone, is dropped."""
        self.connection.answer(self, reply)

    def begin(self, status: int, headers: Headers) -> ReplyStream:
        """Begin a reply in pieces; after an answer, or once the client has gone, they are dropped."""
        return self.connection.begin(self, status, headers)

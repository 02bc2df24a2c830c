"""One HTTP request and its reply, as plain values: what the connection hands to a handler and gets back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ..door.body import Body


@dataclass(slots=True, eq=False)
class Head:
    """What the head of a request says; never changed, because all requests with the same head share one.

    ``path`` is the raw path, never percent-decoded, without the query. Header names are lower-case and in order of
    arrival; ``original_names`` keeps their spelling, index for index. ``content_length`` is 0 where there is none.
    ``seen`` is for whoever handles such requests: what it has found out about this head.
    """

    method: str
    path: str
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    original_names: list[bytes] = field(default_factory=list)
    query: str = ""
    content_length: int = 0
    chunked: bool = False
    keep_alive: bool = True
    http_1_0: bool = False
    expects_continue: bool = False
    seen: object = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, or None. ``name`` is lower-case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class HttpRequest:
    """A complete request.

    Whoever handles the request owns ``body`` and releases it exactly once. ``start_ns`` is CLOCK_MONOTONIC.
    """

    __slots__ = ("body", "head", "peer_is_local", "start_ns")

    def __init__(self, head: Head, body: Body, start_ns: int, peer_is_local: bool = False) -> None:
        self.head = head
        self.body = body
        self.start_ns = start_ns
        self.peer_is_local = peer_is_local


Headers = Sequence[tuple[bytes, bytes]]
"""Header names and values of a reply, in the order they are sent in."""


@dataclass(slots=True)
class Reply:
    """A complete reply. ``on_sent`` is called once its body's memory is no longer needed.

    Content-Length is added by the connection, from the parts' sizes.
    """

    status: int
    headers: Headers = ()
    body: Sequence[bytes | memoryview] = ()
    on_sent: Callable[[], None] | None = None


Answer = Callable[[Reply], None]
"""Called exactly once with the reply, on the loop, possibly before the handler returns; not at all where a ``Stream`` was begun instead."""

Cancel = Callable[[], None]
"""Called when the client has gone before its reply was ready."""


class Stream(Protocol):
    """A reply that is written piece by piece, on the loop. The head goes out with the first piece.

    What is written waits for the client to take it. Once it has gone, or has left too much lying and was cut off,
    what is written is dropped, and the request's Cancel is called.
    """

    def write(self, parts: Sequence[bytes]) -> None:
        """Send more of the body; without parts, only the head where that has not left."""
        ...

    def end(self, parts: Sequence[bytes] = ()) -> None:
        """Send the last of the body, and that it is the last."""
        ...

    def abort(self) -> None:
        """Break the reply off, so that the client sees that it is not complete."""
        ...


class StreamingRequest(HttpRequest, ABC):
    """A request that may be replied to piece by piece."""

    __slots__ = ()

    @abstractmethod
    def begin(self, status: int, headers: Headers) -> Stream:
        """Begin the reply, instead of answering. Content-Length is not among ``headers``."""

"""One stream of an HTTP/2 connection: what its call has to send, and how much the client may. Sans-IO. Source: RFC 9113, section 5."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from . import frames
from .frames import ErrorCode, frame_head

if TYPE_CHECKING:
    from .http2 import Http2

Octets = bytes | bytearray | memoryview


class Call(Protocol):
    """What a stream belongs to."""

    def data(self, view: memoryview, start: int, stop: int) -> None:
        """Bytes of the body, ``view[start:stop]``; good until this returns."""

    def end(self) -> None:
        """The client has ended its side."""

    def gone(self) -> None:
        """The stream is no more, by the client's reset or with the connection: nothing can be sent."""

    def sent(self) -> None:
        """What was waiting to be sent is on its way."""

    def sweep(self, now: float) -> None:
        """Enforce time limits."""

    @property
    def idle(self) -> bool:
        """Is nothing under way, and nothing to be sent? It may be ended at any time."""


class Stream:
    """One stream. What its call has to send waits here for the client's windows."""

    __slots__ = (
        "_http2",
        "_taken",
        "allowed",
        "call",
        "holds",
        "number",
        "on_left",
        "remote_ended",
        "stalled_at",
        "stalled_since",
        "trailers",
        "unsent",
        "unsent_byte_size",
        "waiting",
        "window",
    )

    def __init__(self, http2: Http2[Any], number: int) -> None:
        self._http2 = http2
        self.number = number
        self.call: Call
        self.window = http2.initial_window
        self.allowed = http2.limits.window_byte_size
        self.unsent: deque[memoryview] = deque()
        self.trailers: bytes | None = None
        self.remote_ended = False
        self.unsent_byte_size = 0
        self.waiting = False
        self.stalled_at = (0, 0)
        self.stalled_since = 0.0
        self.holds = 0
        self.on_left: Callable[[], None] | None = None
        self._taken = 0

    def send_headers(self, block: bytes) -> None:
        """Begin the reply; ``block`` is a whole header block."""
        self._http2.write_headers(0, self.number, block)

    def send(self, contents: list[Octets], trailers: bytes | None = None) -> None:
        """Send bytes as the client's windows allow, and end the reply with ``trailers`` where they are given.

        The bytes must not change until ``on_left`` is called, which is in ``Http2.left`` once the stream is no more.
        """
        http2 = self._http2
        self.trailers = trailers
        byte_size = sum(map(len, contents))
        if not self.unsent and not http2.paused:
            if byte_size <= self.window and byte_size <= http2.window and byte_size <= http2.max_frame:
                self.window -= byte_size
                http2.window -= byte_size
                if byte_size:
                    http2.sent_data(byte_size)
                    http2.out += (frame_head(byte_size, frames.DATA, 0, self.number), *contents)
                if trailers is not None:
                    http2.finish(self)
                return
        self.unsent += [memoryview(content) for content in contents if len(content)]
        self.unsent_byte_size += byte_size
        if http2.pump(self):
            http2.pump_all()

    def received(self, byte_size: int) -> None:
        """So many bytes of the body have come, and were dealt with: as many may come again, unless the stream is held."""
        self.allowed -= byte_size
        self._taken += byte_size
        if self._taken * 2 >= self._http2.limits.window_byte_size and not self.holds:
            self.give_window()

    def give_window(self) -> None:
        """Let as much come as has been dealt with."""
        if self._taken and not self.remote_ended and self.number in self._http2.streams:
            self._http2.out.append(frames.window_update(self.number, self._taken))
            self.allowed += self._taken
            self._taken = 0

    def reset(self, code: ErrorCode) -> None:
        """End the stream at once."""
        self._http2.out.append(frames.reset(self.number, code))
        self._http2.forget(self)
        self.call.gone()

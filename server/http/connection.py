"""One HTTP/1.1 connection: bytes in, requests to the door's handler, replies out in the requests' order.

The transport reads into one buffer that all connections of a door share (it is used up before the
callback returns), or, for the rest of a body, straight into that body's final place. There is no
task, timer or lock per connection; the door's sweep looks at the times.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, cast

from .body import Chunked, KnownLength
from .errors import JSON_TYPE, PLAIN_TYPE, error_body
from .exchange import Body, Cancel, HttpRequest, InlineBody, Reply
from .head import HeadReader, Malformed
from .peer import peer_is_local

if TYPE_CHECKING:
    from .listener import HttpDoor

_logger = logging.getLogger(__name__)

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
_CLOSE = b"Connection: close\r\n"
_KEEP_ALIVE = b"Connection: keep-alive\r\n"
_JOIN_BYTE_SIZE = 64 * 1024


class _Exchange:
    """A request on this connection and what its reply needs to know of it."""

    __slots__ = ("cancel", "connection", "head_only", "keep_alive", "keep_alive_1_0", "request")

    def __init__(self, connection: Connection, request: HttpRequest, head: HeadReader) -> None:
        self.connection = connection
        self.request = request
        self.head_only = head.method == "HEAD"
        self.keep_alive = head.keep_alive
        self.keep_alive_1_0 = head.keep_alive_1_0
        self.cancel: Cancel | None = None

    def answer(self, reply: Reply) -> None:
        """The handler's reply; the second one, or one that comes after the client has gone, is dropped."""
        self.connection._answer(self, reply)


class Connection(asyncio.BufferedProtocol):
    """The protocol object of one client's connection. ``door`` owns it."""

    def __init__(self, door: HttpDoor) -> None:
        self._door = door
        self._transport: asyncio.Transport
        self._head = HeadReader(door.limits)
        self._body: KnownLength | Chunked | None = None
        self._room: memoryview | None = None
        self._stash = b""
        self._fresh = True
        self._local = False
        self._active: _Exchange | None = None
        self._waiting: deque[_Exchange] = deque()
        self._starting = False
        self._owes_continue = False
        self._failure: Malformed | None = None
        self._last = False
        self._lingering = False
        self._gone = False
        self._reading = True
        self._write_paused = False
        self._on_sent: Callable[[], None] | None = None
        self._heard = door.now
        self._head_since = 0.0
        self._unsent = 0

    # what the door asks

    @property
    def idle(self) -> bool:
        """No request is being received, answered or sent."""
        return self._active is None and not self._waiting and not self._receiving and not self._write_paused and self._failure is None

    @property
    def _receiving(self) -> bool:
        return self._body is not None or self._head.begun or bool(self._stash)

    def close_if_idle(self) -> None:
        """Close the connection unless a request is under way."""
        if self.idle or self._lingering:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now, whatever is under way."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Enforce the time limits; called by the door every now and then."""
        limits = self._door.limits
        if self._lingering:
            if now - self._heard > limits.linger_s:
                self._transport.abort()
        elif self._write_paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent = unsent
                self._heard = now
            elif limits.stalled_reply_s and now - self._heard > limits.stalled_reply_s:
                self._transport.abort()
        elif self._failure is not None or self._active is not None or self._waiting:
            self._heard = now
        elif self._body is not None:
            if limits.body_idle_s and now - self._heard > limits.body_idle_s:
                self._fail(Malformed(408, "request body did not arrive in time"))
        elif self._receiving:
            if limits.head_s and now - self._head_since > limits.head_s:
                self._fail(Malformed(408, "request header did not arrive in time"))
        elif limits.keep_alive_idle_s and now - self._heard > limits.keep_alive_idle_s:
            self._transport.close()

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        if not self._door.admit(self):
            self._transport.abort()
            return
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        self._local = isinstance(peer, tuple) and isinstance(own, tuple) and peer_is_local(str(peer[0]), str(own[0]))
        if self._door.crowded:
            self._fail(Malformed(503, "too many connections"))

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._room
        return self._door.read_view if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        door = self._door
        self._heard = door.now
        if self._lingering or self._last or self._failure is not None:
            return
        body = self._body
        if self._room is not None:
            assert isinstance(body, KnownLength)
            try:
                body.received(nbytes)
            except Malformed as failure:
                self._fail(failure)
                return
            self._room = body.room
            if body.complete:
                self._end_body(body)
                self._run()
        elif self._stash:
            self._feed(self._stash + door.read_buffer[:nbytes])
        else:
            self._consume(door.read_buffer, door.read_view, nbytes)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._door.forget(self)
        self._abandon_body()
        self._stash = b""
        for exchange in self._waiting:
            exchange.request.body.release()
        self._waiting.clear()
        active, self._active = self._active, None
        if active is not None and active.cancel is not None:
            active.cancel()
        self._sent()

    def pause_writing(self) -> None:
        self._write_paused = True
        self._unsent = -1

    def resume_writing(self) -> None:
        self._write_paused = False
        self._sent()
        if not self._gone and not self._transport.is_closing():
            self._run()

    # requests

    def _feed(self, content: bytes) -> None:
        """Consume bytes that are not in the shared buffer."""
        self._stash = b""
        self._consume(content, memoryview(content), len(content))

    def _consume(self, data: bytes | bytearray, view: memoryview, end: int) -> None:
        if self._fresh and self._begins_http2(data, end):
            return
        try:
            self._cut(data, view, end)
        except Malformed as failure:
            self._fail(failure)
            return
        self._run()

    def _begins_http2(self, data: bytes | bytearray, end: int) -> bool:
        """True where the connection's first bytes are, or may become, HTTP/2's."""
        begin = data[: min(end, len(HTTP2_PREFACE))]
        if self._door.http2 is None or not HTTP2_PREFACE.startswith(begin):
            self._fresh = False
            return False
        if len(begin) < len(HTTP2_PREFACE):
            self._keep(bytes(begin))
            return True
        self._fresh = False
        self._gone = True
        self._door.forget(self)
        self._door.http2.take_over(self._transport, bytes(data[:end]))
        return True

    def _keep(self, content: bytes) -> None:
        if not self._head_since:
            self._head_since = self._door.now
        self._stash = content

    def _cut(self, data: bytes | bytearray, view: memoryview, end: int) -> None:
        """Cut ``data[:end]`` into requests. Raises Malformed."""
        start = 0
        head = self._head
        waiting = self._waiting
        while start < end and not self._last:
            body = self._body
            if body is None:
                if len(waiting) >= self._door.limits.waiting:
                    self._stash = bytes(view[start:end])
                    self._set_reading(False)
                    return
                start = head.feed(data, view, start, end)
                if not head.complete:
                    if not self._head_since:
                        self._head_since = self._door.now
                    continue
                self._head_since = 0.0
                size = head.content_length
                if size and size <= end - start and size <= self._door.limits.inline_byte_size:
                    if head.expects_continue:
                        self._continue()
                    self._enqueue(InlineBody(bytes(view[start : start + size])))
                    start += size
                elif size or head.chunked:
                    self._begin_body()
                else:
                    if head.expects_continue:
                        self._continue()
                    self._enqueue(InlineBody())
            elif type(body) is KnownLength:
                start = body.feed(view, start, end)
                self._room = body.room
                if body.complete:
                    self._end_body(body)
            else:
                assert isinstance(body, Chunked)
                start = body.feed(data, view, start, end)
                if body.complete:
                    self._end_body(body)

    def _begin_body(self) -> None:
        door, head = self._door, self._head
        if head.chunked:
            self._body = Chunked(door.arena, door.limits)
        else:
            self._body = KnownLength(door.arena, head.content_length, door.limits, head.json_byte_size)
            self._room = self._body.room
        if head.expects_continue:
            self._continue()

    def _end_body(self, body: KnownLength | Chunked) -> None:
        self._body = None
        self._room = None
        self._enqueue(body.take())

    def _enqueue(self, body: Body) -> None:
        head = self._head
        request = HttpRequest(head.method, head.path, head.headers, body, head.start_ns, head.original_names, head.query, self._local)
        self._waiting.append(_Exchange(self, request, head))
        self._owes_continue = False
        if not head.keep_alive:
            self._last = True
        head.next()

    def _continue(self) -> None:
        """Ask for the body, once the replies before it are out."""
        if self._active is None and not self._waiting and not self._write_paused:
            self._owes_continue = False
            self._transport.write(_CONTINUE)
        else:
            self._owes_continue = True

    def _run(self) -> None:
        """Handle what waits, as far as that is possible now, then read on or hold back."""
        if self._starting:
            return
        self._starting = True
        try:
            self._start_waiting()
            while self._stash and not self._fresh and len(self._waiting) < self._door.limits.waiting and not self._lingering:
                if self._active is not None or self._write_paused or self._last or self._failure is not None:
                    break
                content, self._stash = self._stash, b""
                try:
                    self._cut(content, memoryview(content), len(content))
                except Malformed as failure:
                    self._starting = False
                    self._fail(failure)
                    return
                self._start_waiting()
        finally:
            self._starting = False
        if not self._gone:
            full = bool(self._stash) and not self._fresh
            self._set_reading(self._lingering or not (self._write_paused or full))

    def _start_waiting(self) -> None:
        waiting = self._waiting
        while self._active is None and not self._write_paused and not self._lingering and not self._gone:
            if waiting:
                exchange = waiting.popleft()
                self._active = exchange
                self._start(exchange)
            elif self._failure is not None:
                self._send_failure(self._failure)
            else:
                if self._owes_continue:
                    self._continue()
                return

    def _start(self, exchange: _Exchange) -> None:
        try:
            cancel = self._door.handle(exchange.request, exchange.answer)
        except Exception:
            _logger.exception("an HTTP handler failed")
            if self._active is exchange:
                exchange.answer(Reply(500, (JSON_TYPE,), (error_body("internal error"),)))
            return
        if self._active is exchange:
            exchange.cancel = cancel
        elif cancel is not None and self._gone:
            cancel()

    # replies

    def _answer(self, exchange: _Exchange, reply: Reply) -> None:
        if self._active is not exchange or self._gone:
            if reply.on_sent is not None:
                reply.on_sent()
            return
        self._active = None
        # The cancel function knows the request, which knows this exchange: left alone, a cycle for the collector.
        exchange.cancel = None
        close = not exchange.keep_alive or self._door.exiting
        self._write(reply, close, exchange.head_only, exchange.keep_alive_1_0)
        if close:
            more = not self._last and (self._receiving or bool(self._waiting))
            self._drop_rest()
            if more:
                self._linger()
            else:
                self._last = True
                self._transport.close()
            return
        if not self._starting:
            self._run()

    def _drop_rest(self) -> None:
        """No further request of this connection is answered."""
        self._abandon_body()
        self._stash = b""
        for exchange in self._waiting:
            exchange.request.body.release()
        self._waiting.clear()

    def _write(self, reply: Reply, close: bool, head_only: bool, say_keep_alive: bool) -> None:
        """Send a reply in one write; large bodies are not copied."""
        size = 0
        for part in reply.body:
            size += part.nbytes if isinstance(part, memoryview) else len(part)
        pieces: list[bytes | memoryview] = [_STATUS_LINES[reply.status]]
        typed = False
        lines = 3
        for name, value in reply.headers:
            pieces += (name, b": ", value, b"\r\n")
            lines += 1
            typed = typed or name == b"Content-Type" or name.lower() == b"content-type"
        if not typed:
            pieces.append(b"Content-Type: text/plain\r\n")
            lines += 1
        if close:
            pieces.append(_CLOSE)
            lines += 1
        elif say_keep_alive:
            pieces.append(_KEEP_ALIVE)
            lines += 1
        pieces.append(b"Content-Length: %d\r\n\r\n" % size)
        head = b"".join(pieces)
        if head.count(b"\n") != lines or head.count(b"\r") != lines:
            raise ValueError("a reply's header holds a line break")
        transport = self._transport
        on_sent = reply.on_sent
        if head_only or size <= _JOIN_BYTE_SIZE:
            transport.write(head if head_only or not size else b"".join((head, *reply.body)))
        else:
            transport.writelines([head, *reply.body])
            if on_sent is not None and transport.get_write_buffer_size():
                self._on_sent = on_sent
                return
        if on_sent is not None:
            on_sent()

    def _sent(self) -> None:
        on_sent, self._on_sent = self._on_sent, None
        if on_sent is not None:
            on_sent()

    def _fail(self, failure: Malformed) -> None:
        """Answer ``failure`` once the replies before it are out, then close."""
        self._failure = failure
        self._abandon_body()
        self._stash = b""
        self._run()

    def _send_failure(self, failure: Malformed) -> None:
        headers = (JSON_TYPE if failure.as_json else PLAIN_TYPE,)
        self._write(Reply(failure.status, headers, (error_body(failure.message),)), True, False, False)
        self._linger()

    def _linger(self) -> None:
        """Say that nothing more comes, then read over what the client still sends, so that it sees the reply."""
        self._lingering = True
        self._room = None
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()

    def _abandon_body(self) -> None:
        body, self._body = self._body, None
        self._room = None
        if body is not None:
            body.abandon()

    def _set_reading(self, reading: bool) -> None:
        if reading == self._reading or self._gone:
            return
        self._reading = reading
        if reading:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

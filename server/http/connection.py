"""One HTTP/1.1 connection: bytes in, requests to the door's handler, replies out in the requests' order.

The transport reads into one buffer that all connections of a door share (it is used up before the
callback returns), or, for the rest of a body, straight into that body's final place. There is no
task, timer or lock per connection; the door's sweep looks at the times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

from ..door.body import SMALL_BYTE_SIZE, Body, HeldBody, InlineBody, KnownLength
from ..door.malformed import Malformed
from ..door.peer import transport_peer_is_local
from .chunked import Chunked
from .crowded import CROWDED, answer_probe, crowded_reply
from .errors import JSON_TYPE, PLAIN_TYPE, error_body, retry_after
from .exchange import Answer, Cancel, Head, Headers, HttpRequest, Reply
from .head import HeadReader, announced_json_byte_size
from .pipelined import PipelinedRequest
from .reply_head import CLOSE, KEEP_ALIVE, kept_reply_head, reply_head, stream_head
from .reply_stream import ReplyStream
from .unsent import Unsent

if TYPE_CHECKING:
    from .listener import HttpDoor

_logger = logging.getLogger(__name__)

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_JOIN_BYTE_SIZE = 64 * 1024


class Connection(asyncio.BufferedProtocol):
    """The protocol object of one client's connection. ``door`` owns it."""

    def __init__(self, door: HttpDoor) -> None:
        # 29 attributes, the transport among them: with 30, CPython 3.11 stops sharing their names, and a request takes 0.4 us longer.
        self._door = door
        self._transport: asyncio.Transport
        self._head = HeadReader(door.limits, door.known_heads)
        self._body: KnownLength | Chunked | None = None
        self._room: memoryview | None = None
        self._stash = b""
        self._fresh = True
        self._local = False
        self._active: PipelinedRequest | None = None
        self._waiting: deque[PipelinedRequest] = deque()
        self._starting = False
        self._owes_continue = False
        self._failure: Malformed | None = None
        self._last = False
        self._linger_since: float | None = None
        self._gone = False
        self._reading = True
        self._write_paused = False
        self._on_sent: Callable[[], None] | None = None
        self._heard = door.now
        self._head_since = 0.0
        self._unsent = Unsent(door.admission)
        self._handle: Callable[[PipelinedRequest, Answer], Cancel | None] = door.handle
        self._spare = False
        self._ended = False
        self._begun = False
        self._body_mark = 0
        self._body_since = 0.0
        self._audible_since = 0.0

    # what the door asks

    @property
    def idle(self) -> bool:
        """No request is being received, answered or sent. One that lingers is done too, once its last reply has left."""
        if self._linger_since is not None:
            return not self._write_paused
        return self._active is None and not self._waiting and not self._receiving and not self._write_paused and self._failure is None

    @property
    def _receiving(self) -> bool:
        return self._body is not None or self._head.begun or bool(self._stash)

    @property
    def heard(self) -> float:
        """When bytes that matter came last, by the door's clock."""
        return self._heard if self._linger_since is None else self._linger_since

    def close_if_idle(self) -> None:
        """Close the connection unless a request is under way."""
        if self.idle:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now, whatever is under way."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Enforce the time limits; called by the door every now and then."""
        limits = self._door.limits
        body = self._body
        busy = self._failure is not None or self._active is not None or bool(self._waiting)
        if self._write_paused:
            self._hold_clocks(now)
            if self._unsent.moves(self._transport.get_write_buffer_size(), limits.progress_byte_size):
                self._heard = now
            elif limits.stalled_reply_s and now - self._heard > limits.stalled_reply_s:
                self._transport.abort()
        elif self._linger_since is not None:
            if now - self._heard > limits.linger_s or now - self._linger_since > limits.linger_total_s:
                self._transport.abort()
        elif busy and (body is None or self._owes_continue or not self._reading):
            # Nothing is asked of the client now, or it is us who keep it from sending.
            self._heard = now
            self._hold_clocks(now)
        elif body is not None:
            received = body.received_byte_size
            if received - self._body_mark >= max(limits.progress_byte_size, body.unfilled_byte_size // limits.progress_share):
                self._body_mark = received
                self._body_since = now
            elif limits.body_idle_s and now - self._body_since > limits.body_idle_s:
                self._fail(Malformed(408, "request body did not arrive in time"))
        elif self._receiving:
            if limits.head_s and now - self._head_since > limits.head_s:
                self._fail(Malformed(408, "request header did not arrive in time"))
        elif limits.keep_alive_idle_s and now - self._heard > limits.keep_alive_idle_s:
            self._transport.close()

    def _hold_clocks(self, now: float) -> None:
        if self._head_since:
            self._head_since = now
        self._body_since = now

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        if not self._door.admit(self):
            self._transport.abort()
            return
        self._local = transport_peer_is_local(transport)
        door = self._door
        if door.crowded:
            if door.full:
                # No lingering: that would let those who are refused pile up.
                self._last = True
                self._write(crowded_reply(), True, None)
                self._transport.close()
                return
            self._spare = True
            self._handle = partial(answer_probe, door.handle)

    def get_buffer(self, sizehint: int) -> memoryview:
        room = self._room
        return self._door.read_view if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        door = self._door
        if self._linger_since is not None or self._last or self._failure is not None:
            if not self._write_paused:
                # While a reply leaves, the time is that of its progress.
                self._heard = door.now
            return
        self._heard = door.now
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
            else:
                door.moving()
        elif self._stash:
            content, self._stash = self._stash + door.read_buffer[:nbytes], b""
            self._consume(content, memoryview(content), len(content))
        else:
            self._consume(door.read_buffer, door.read_view, nbytes)

    def eof_received(self) -> bool:
        """The client sends nothing more. It may still wait for its replies, or have gone: the two look the same.

        Whoever ends its side right behind its request wants the reply (RFC 9112, 9.3); whoever does so later, while it waits,
        has given up, and what it waited for is cancelled. While it was not read from, its end could not be seen.
        """
        unanswered = self._active is not None or self._waiting or self._failure is not None or (self._stash and not self._fresh)
        if self._linger_since is not None or not unanswered:
            return False
        if self._ended:
            return True
        last = self._waiting[-1] if self._waiting else self._active
        if last is not None:
            complete = max(last.start_ns / 1e9, self._audible_since)
            if time.monotonic() - complete > self._door.limits.half_close_s:
                return False
        self._ended = True
        # The transport has stopped to read by itself.
        self._reading = False
        self._door.watch_for_end(self)
        return True

    def nudge(self) -> bool:
        """Send what means nothing to a client that has ended its side and waits; False where it waits no more.

        One that has closed its connection answers with a reset, on which the next write ends the connection here too.
        """
        active = self._active
        if active is None or self._transport.is_closing():
            return False
        if not (self._begun or self._write_paused or active.head.http_1_0):
            self._transport.write(_CONTINUE)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._unsent.end()
        self._door.forget(self)
        self._drop_rest()
        self._handle = self._door.handle
        active, self._active = self._active, None
        if active is not None and active.cancel is not None:
            # As in `_answer`: no cycle is left for the collector.
            cancel, active.cancel = active.cancel, None
            cancel()
        self._sent()

    def pause_writing(self) -> None:
        self._write_paused = True
        self._unsent.begin(self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._write_paused = False
        self._unsent.end()
        if self._linger_since is not None:
            self._heard = self._linger_since = self._door.now
        self._sent()
        if not self._gone and not self._transport.is_closing():
            self._run()

    # requests

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
        if self._door.http2 is None or self._spare or not HTTP2_PREFACE.startswith(begin):
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
        reader = self._head
        waiting = self._waiting
        while start < end and not self._last:
            body = self._body
            if body is None:
                if (waiting or self._active is not None) and self._far_ahead():
                    self._stash = bytes(view[start:end])
                    self._set_reading(False)
                    return
                start = reader.feed(data, view, start, end)
                head = reader.head
                if head is None:
                    if not self._head_since:
                        self._head_since = self._door.now
                    continue
                self._head_since = 0.0
                size = head.content_length
                if size and size <= end - start and size <= self._door.limits.inline_byte_size:
                    if head.expects_continue:
                        self._continue()
                    content = bytes(view[start : start + size])
                    self._enqueue(head, InlineBody(content) if size <= SMALL_BYTE_SIZE else HeldBody(content, self._door.admission))
                    start += size
                elif size or head.chunked:
                    self._begin_body(head)
                else:
                    if head.expects_continue:
                        self._continue()
                    self._enqueue(head, InlineBody())
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

    def _far_ahead(self) -> bool:
        """Enough complete requests wait behind the one that is being answered."""
        door, waiting = self._door, self._waiting
        if len(waiting) >= door.limits.waiting:
            return True
        held = sum([len(exchange.body.view) for exchange in waiting])
        return held + door.limits.inline_byte_size > door.waiting_byte_size

    def _begin_body(self, head: Head) -> None:
        door = self._door
        if self._spare:
            raise Malformed(503, CROWDED)
        if head.content_length > door.limits.inline_byte_size:
            door.before_body(head)
        self._body_mark = 0
        self._body_since = door.now
        if head.chunked:
            self._body = Chunked(door.arena, door.limits, door.admission)
        else:
            self._body = KnownLength(door.arena, head.content_length, door.limits, announced_json_byte_size(head), door.admission)
            self._room = self._body.room
        if head.expects_continue:
            self._continue()

    def _end_body(self, body: KnownLength | Chunked) -> None:
        self._body = None
        self._room = None
        self._audible_since = time.monotonic()
        head = self._head.head
        assert head is not None
        self._enqueue(head, body.take())

    def _enqueue(self, head: Head, body: Body) -> None:
        reader = self._head
        self._waiting.append(PipelinedRequest(self, head, body, reader.start_ns, self._local))
        self._owes_continue = False
        if not head.keep_alive:
            self._last = True
        reader.next()

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
            while self._stash and not self._fresh and len(self._waiting) < self._door.limits.waiting and self._linger_since is None:
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
            self._set_reading(self._linger_since is not None or not (self._write_paused or full))

    def _start_waiting(self) -> None:
        waiting = self._waiting
        while self._active is None and not self._write_paused and self._linger_since is None and not self._gone:
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

    def _start(self, exchange: PipelinedRequest) -> None:
        try:
            cancel = self._handle(exchange, exchange.answer)
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

    def answer(self, exchange: PipelinedRequest, reply: Reply) -> None:
        """Send the reply to ``exchange``, where that is still wanted."""
        if self._active is not exchange or self._gone:
            if reply.on_sent is not None:
                reply.on_sent()
            return
        self._active = None
        # The cancel function knows the request, which knows this exchange: left alone, a cycle for the collector.
        exchange.cancel = None
        close = not exchange.keep_alive or self._door.exiting
        self._write(reply, close, exchange.head)
        if close:
            self._end()
        elif not self._starting:
            self._run()

    def begin(self, exchange: PipelinedRequest, status: int, headers: Headers) -> ReplyStream:
        """Begin a reply to ``exchange`` in pieces."""
        head = exchange.head
        self._begun = self._begun or self._active is exchange
        # Who speaks HTTP/1.0 knows no chunks: the connection's end is that of the reply.
        if head.http_1_0 or self._door.exiting:
            exchange.keep_alive = False
        lead = stream_head(status, headers, not head.http_1_0, b"" if exchange.keep_alive else CLOSE)
        return ReplyStream(self, exchange, lead, chunked=not head.http_1_0, silent=head.method == "HEAD")

    def send_part(self, exchange: HttpRequest, parts: list[bytes], byte_size: int) -> None:
        """Send more of the reply to ``exchange``. A client that leaves too much of it lying is cut off."""
        transport = self._transport
        if self._active is not exchange or self._gone or transport.is_closing():
            return
        if self._write_paused:
            if byte_size and transport.get_write_buffer_size() > self._door.limits.stream_unsent_byte_size:
                transport.abort()
                return
            # What has left since the door last looked is told by what is unsent, which has just grown.
            self._unsent.add(byte_size)
        if byte_size <= _JOIN_BYTE_SIZE:
            transport.write(b"".join(parts))
        else:
            transport.writelines(parts)

    def end_parts(self, exchange: HttpRequest) -> None:
        """The reply to ``exchange`` is complete."""
        active = self._active
        if active is None or active is not exchange or self._gone:
            return
        self._active = None
        self._begun = False
        active.cancel = None
        if not active.keep_alive or self._door.exiting:
            self._end()
        elif not self._starting:
            self._run()

    def break_off(self, exchange: HttpRequest) -> None:
        """The reply to ``exchange`` cannot be completed: the client is to see that."""
        if self._active is exchange and not self._gone:
            self._transport.abort()

    def _end(self) -> None:
        """The last reply was written."""
        more = not self._last and (self._receiving or bool(self._waiting))
        self._drop_rest()
        if more:
            self._linger()
        else:
            self._last = True
            self._transport.close()

    def _drop_rest(self) -> None:
        """No further request of this connection is answered."""
        self._abandon_body()
        self._stash = b""
        for exchange in self._waiting:
            exchange.body.release()
        self._waiting.clear()

    def _write(self, reply: Reply, close: bool, request: Head | None) -> None:
        """Send a reply in one write; large bodies are not copied. ``request``: the head of what is answered, where it could be read."""
        size = 0
        for part in reply.body:
            size += part.nbytes if type(part) is memoryview else len(part)
        line = CLOSE if close else KEEP_ALIVE if request is not None and request.http_1_0 else b""
        headers = reply.headers
        make_head = kept_reply_head if type(headers) is tuple else reply_head
        head = make_head(reply.status, headers, size, line)
        head_only = request is not None and request.method == "HEAD"
        transport = self._transport
        on_sent = reply.on_sent
        if head_only or size <= _JOIN_BYTE_SIZE:
            transport.write(head if head_only or not size else b"".join((head, *reply.body)))
        else:
            transport.writelines([head, *reply.body])
            if transport.get_write_buffer_size():
                self._door.moving()
                if on_sent is not None:
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
        kind = JSON_TYPE if failure.as_json else PLAIN_TYPE
        headers = (kind, retry_after(failure.retry_after_s)) if failure.retry_after_s else (kind,)
        self._write(Reply(failure.status, headers, (error_body(failure.message),)), True, None)
        self._linger()

    def _linger(self) -> None:
        """Say that nothing more comes, then read over what the client still sends, so that it sees the reply."""
        self._heard = self._linger_since = self._door.now
        self._room = None
        if not self._ended and self._transport.can_write_eof():
            self._transport.write_eof()
            self._set_reading(True)
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
        if self._ended:
            if self._active is None and not self._waiting and not self._write_paused and self._failure is None:
                self._transport.close()
            return
        self._reading = reading
        if reading:
            self._audible_since = time.monotonic()
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

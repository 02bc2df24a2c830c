"""One call: messages in, a reply out, over a stream of HTTP/2.

Source: gRPC over HTTP/2 (github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), gRPC's compression.md and statuscodes.md.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from struct import Struct
from typing import TYPE_CHECKING, Protocol

from ...workers.contract.status import StatusError, internal, unsupported
from ..admission import Admission, Overloaded
from ..door.body import SMALL_BYTE_SIZE, Body, HeldBody, InlineBody, KnownLength
from ..door.content_encoding import SHORT_BYTE_SIZE, SHORT_PACKED_BYTE_SIZE, Beside, compress, decompress
from ..door.malformed import Malformed
from .rpc_head import OK_TRAILERS, REPLY_HEAD, RpcHead, reply_head, trailers, trailers_only
from .status import DEADLINE_EXCEEDED, OK, RESOURCE_EXHAUSTED, status_number
from .wire import first_content_at

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .connection import Connection
    from .http2_stream import Octets, Stream

_PREFIX = Struct(">BL")
_PREFIX_BYTE_SIZE = 5
_JOINED_BYTE_SIZE = 64 * 1024
_ENCODINGS = ("gzip", "deflate")
_TOO_LARGE = 413
_MOST_WAITING = 1024
"""Messages that may wait for one to be unpacked."""


class Receiver(Protocol):
    """Takes what a client sends in one call."""

    def message(self, body: Body) -> None:
        """One message; whoever gets it releases it."""

    def ended(self) -> None:
        """There are no more messages."""

    def gone(self) -> None:
        """The client has gone, or its deadline has passed: nobody waits for a reply."""

    @property
    def idle(self) -> bool:
        """Is nothing under way? The call may be ended at any time."""


class _Done:
    """Stands for a receiver that needs nothing more."""

    def message(self, body: Body) -> None:
        """It came too late."""
        body.release()

    def ended(self) -> None:
        """It makes no difference."""

    def gone(self) -> None:
        """Nobody is left to be told."""

    idle = True


_DONE = _Done()


class Rpc:
    """A call as its handler sees it: ``head`` is what the client said first, ``start_ns`` when that came.

    A ``Call`` of a stream on the other side.
    """

    __slots__ = (
        "_begun",
        "_body",
        "_body_mark",
        "_body_since",
        "_connection",
        "_deadline",
        "_encoding",
        "_ended",
        "_ends",
        "_messages",
        "_packed",
        "_prefix",
        "_stream",
        "_unpacking",
        "_unsent",
        "_written",
        "head",
        "on_room",
        "receiver",
        "start_ns",
    )

    def __init__(self, connection: Connection, stream: Stream, head: RpcHead, start_ns: int) -> None:
        self.head = head
        self.start_ns = start_ns
        self.receiver: Receiver
        self.on_room: Callable[[], None] | None = None
        self._connection = connection
        self._stream: Stream | None = stream
        self._prefix = b""
        self._body: KnownLength | None = None
        self._body_mark = 0
        self._body_since = 0.0
        self._packed = False
        self._ended = False
        self._begun = False
        self._encoding = ""
        self._unsent = 0
        self._written = 0
        self._ends: deque[int] = deque()
        self._messages: deque[tuple[Body, bool]] = deque()
        self._unpacking: Beside[bytes] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        if head.timeout_s is not None:
            self._deadline = asyncio.get_running_loop().call_later(head.timeout_s, self._expired)

    @property
    def peer_is_local(self) -> bool:
        """Is the client on this host?"""
        return self._connection.peer_is_local

    @property
    def idle(self) -> bool:
        """As ``http2.Call`` says."""
        return self._stream is not None and not self._unsent and self._body is None and self.receiver.idle

    @property
    def open(self) -> bool:
        """Does the client wait for something?"""
        return self._stream is not None

    # what comes: http2.Call

    def data(self, view: memoryview, start: int, stop: int) -> None:
        """As ``http2.Call`` says."""
        while start < stop and self._stream is not None:
            body = self._body
            if body is None:
                if not self._prefix and stop - start >= _PREFIX_BYTE_SIZE:
                    flag, size = _PREFIX.unpack_from(view, start)
                    start += _PREFIX_BYTE_SIZE
                    if size <= SMALL_BYTE_SIZE and size <= stop - start and not flag and not self._messages:
                        # Nearly all that small models are sent.
                        self.receiver.message(InlineBody(bytes(view[start : start + size])))
                        start += size
                        continue
                else:
                    missing = _PREFIX_BYTE_SIZE - len(self._prefix)
                    self._prefix += view[start : min(start + missing, stop)]
                    start = min(start + missing, stop)
                    if len(self._prefix) < _PREFIX_BYTE_SIZE:
                        return
                    flag, size = _PREFIX.unpack(self._prefix)
                    self._prefix = b""
                self._begin_message(flag, size, view[start:stop])
                continue
            try:
                start = body.feed(view, start, stop)
            except Malformed as failure:
                self._refuse(failure)
                return
            if body.complete:
                self._end_message(body)

    def end(self) -> None:
        """As ``http2.Call`` says."""
        if self._stream is None:
            return
        if self._body is not None or self._prefix:
            self.give_up(internal("a message ends before its length"))
            return
        self._ended = True
        if not self._messages:
            self.receiver.ended()

    def gone(self) -> None:
        """As ``http2.Call`` says."""
        self._stream = None
        self._gone()

    def sent(self) -> None:
        """As ``http2.Call`` says."""
        if self._unsent and self._stream is not None:
            self._count_unsent(self._stream)
        if self.on_room is not None:
            self.on_room()

    def sweep(self, now: float) -> None:
        """End the call where a message of it comes too slowly; asked every now and then."""
        body, stream = self._body, self._stream
        if body is None or stream is None or stream.holds:
            self._body_since = now
            return
        limits = self._connection.limits
        received = body.received_byte_size
        if received - self._body_mark >= max(limits.progress_byte_size, body.unfilled_byte_size // limits.progress_share):
            self._body_mark = received
            self._body_since = now
        elif limits.body_idle_s and now - self._body_since > limits.body_idle_s:
            self._break_off(DEADLINE_EXCEEDED, "a message did not arrive in time")

    def _gone(self) -> None:
        """Nobody waits for a reply any more."""
        self._stop_clock()
        self._drop_body()
        self._connection.admission.let_go(self._unsent)
        self._unsent = 0
        self._drop_messages()
        self.on_room = None
        receiver, self.receiver = self.receiver, _DONE
        receiver.gone()

    def _drop_body(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.abandon()

    def _drop_messages(self) -> None:
        """Let go of the messages that wait."""
        unpacking, self._unpacking = self._unpacking, None
        messages, self._messages = self._messages, deque()
        for index, (body, _) in enumerate(messages):
            # What a thread reads is given back when that has ended.
            if index or unpacking is None or unpacking.cancel():
                body.release()

    def _stop_clock(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expired(self) -> None:
        self._deadline = None
        if self._stream is not None:
            self._break_off(DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _begin_message(self, flag: int, size: int, seen: memoryview) -> None:
        """A message of ``size`` bytes begins, and ``seen`` is what has come of it; or it is refused."""
        connection = self._connection
        if flag > 1 or (flag and self.head.encoding == "identity"):
            self.give_up(internal("a compressed message in a call that names no compression"))
        elif flag and self.head.encoding not in _ENCODINGS:
            self.give_up(unsupported(f"Compression algorithm '{self.head.encoding}' is not understood"))
        else:
            self._packed = bool(flag)
            try:
                # The first tensor is laid on a boundary: models read only aligned ones in place.
                lead = 0 if flag or size <= connection.limits.inline_byte_size else first_content_at(seen)
                self._body = body = KnownLength(connection.arena, size, connection.limits, lead, connection.admission)
            except Malformed as failure:
                self._refuse(failure)
                return
            self._body_mark = 0
            self._body_since = self._connection.now
            if body.complete:
                self._end_message(body)

    def _refuse(self, failure: Malformed) -> None:
        """There is no room for a message: the client is told, and the rest of it is not read."""
        if failure.status == _TOO_LARGE:
            self._break_off(RESOURCE_EXHAUSTED, failure.message)
        else:
            self.give_up(Overloaded(failure.message, failure.retry_after_s))

    def _end_message(self, received: KnownLength) -> None:
        self._body = None
        body = received.take()
        if self._packed or self._messages:
            self._messages.append((body, self._packed))
            if len(self._messages) == 1:
                self._deliver()
            elif len(self._messages) > _MOST_WAITING:
                self._break_off(RESOURCE_EXHAUSTED, "too many messages behind a compressed one")
        else:
            self.receiver.message(body)

    def _deliver(self) -> None:
        """Hand on the messages that wait, up to one that takes long to unpack."""
        messages = self._messages
        while messages and self._stream is not None:
            body, packed = messages[0]
            if packed:
                try:
                    content = self._unpacked_at_once(body)
                    if content is None:
                        self._unpacking = Beside(
                            partial(decompress, body.view, self._room_to_unpack(), advice="", whole=True), partial(self._unpacked, body)
                        )
                        # The client need not go on meanwhile.
                        self.hold(True)
                        return
                    self._connection.admission.check_bytes(len(content))
                except StatusError as error:
                    self.give_up(error)
                    return
                body.release()
                body = HeldBody(content, self._connection.admission)
            messages.popleft()
            self.receiver.message(body)
        if self._ended and self._stream is not None:
            self.receiver.ended()

    def _unpacked_at_once(self, body: Body) -> bytes | None:
        """A short message that stays short; None for any other."""
        if len(body.view) > SHORT_PACKED_BYTE_SIZE:
            return None
        try:
            return decompress(body.view, _JOINED_BYTE_SIZE, whole=True)
        except StatusError:
            return None

    def _room_to_unpack(self) -> int:
        """How large a message may become now. Raises StatusError UNAVAILABLE where there is no room for any."""
        connection = self._connection
        admission = connection.admission
        admission.check_bytes(1)
        return min(connection.most_unpacked_byte_size, admission.most_bytes - admission.byte_size)

    def _unpacked(self, body: Body, outcome: Future[bytes]) -> None:
        body.release()
        if self._unpacking is None:
            return
        self._unpacking = None
        self.hold(False)
        error = outcome.exception()
        try:
            if error is None:
                self._connection.admission.check_bytes(len(outcome.result()))
        except StatusError as refusal:
            error = refusal
        if error is None:
            self._messages[0] = (HeldBody(outcome.result(), self._connection.admission), False)
            self._deliver()
            self._connection.touch()
            return
        self._messages.popleft()
        self.give_up(error if isinstance(error, StatusError) else internal("internal error"))

    # what goes

    @property
    def unsent_byte_size(self) -> int:
        """Bytes of messages that wait for the client."""
        return self._unsent

    @property
    def unsent_count(self) -> int:
        """Messages that wait for the client, the one included that it has part of."""
        return len(self._ends)

    def hold(self, held: bool) -> None:
        """Let no more messages come for now, or let them come again, once for each time they were held."""
        stream = self._stream
        if stream is not None:
            stream.holds += 1 if held else -1
            if not stream.holds:
                stream.give_window()
                self._connection.touch()

    def reply(self, parts: Sequence[bytes | memoryview], release: Callable[[], None]) -> None:
        """Answer with one message, and that all is well. ``release`` is called once its bytes have left, or never will."""
        byte_size = sum(map(len, parts))
        if self._stream is None:
            release()
            return
        encoding = self._connection.encoding_for(self.head)
        if not encoding:
            self._reply(parts, byte_size, release)
        elif byte_size <= SHORT_BYTE_SIZE:
            content = compress(parts, encoding)
            release()
            self._reply_packed(content, encoding)
        else:
            try:
                Beside(partial(compress, parts, encoding), partial(self._packed_reply, release, encoding))
            except StatusError:
                # Too many wait. The inference is done, and every client understands a reply as it is.
                self._reply(parts, byte_size, release)

    def _packed_reply(self, release: Callable[[], None], encoding: str, outcome: Future[bytes]) -> None:
        release()
        if self._stream is not None:
            if outcome.exception() is None:
                self._reply_packed(outcome.result(), encoding)
            else:
                self.fail(internal("internal error"))

    def _reply_packed(self, content: bytes, encoding: str) -> None:
        stream = self._leave()
        stream.send_headers(reply_head(encoding))
        self._send_reply(stream, [_PREFIX.pack(1, len(content)) + content], nothing)

    def _reply(self, parts: Sequence[bytes | memoryview], byte_size: int, release: Callable[[], None]) -> None:
        stream = self._leave()
        stream.send_headers(REPLY_HEAD)
        if byte_size <= _JOINED_BYTE_SIZE:
            content = b"".join((_PREFIX.pack(0, byte_size), *parts))
            release()
            self._send_reply(stream, [content], nothing)
        else:
            self._send_reply(stream, [_PREFIX.pack(0, byte_size), *parts], release)

    def _send_reply(self, stream: Stream, contents: list[Octets], release: Callable[[], None]) -> None:
        """Send the one message of a reply, and the end; what cannot leave at once is counted until it has."""
        stream.on_left = None if release is nothing else release
        stream.send(contents, OK_TRAILERS)
        byte_size = stream.unsent_byte_size
        if byte_size:
            admission = self._connection.admission
            admission.hold(byte_size)
            stream.on_left = partial(_left, release, admission, byte_size)

    def write(self, message: bytes) -> None:
        """Send one of several messages."""
        stream = self._stream
        if stream is None:
            return
        if not self._begun:
            self._begun = True
            encoding = self._connection.encoding_for(self.head)
            self._encoding = encoding
            stream.send_headers(reply_head(encoding) if encoding else REPLY_HEAD)
        packed = bool(self._encoding) and len(message) <= SHORT_BYTE_SIZE
        if packed:
            message = compress((message,), self._encoding)
        prefix = _PREFIX.pack(packed, len(message))
        stream.send([prefix + message] if len(message) <= _JOINED_BYTE_SIZE else [prefix, message])
        self._written += _PREFIX_BYTE_SIZE + len(message)
        if stream.unsent:
            self._ends.append(self._written)
            self._count_unsent(stream)
        self._connection.touch()

    def _count_unsent(self, stream: Stream) -> None:
        """Have admission know what waits for the client."""
        byte_size = stream.unsent_byte_size
        self._connection.admission.hold(byte_size - self._unsent)
        self._unsent = byte_size
        ends = self._ends
        while ends and ends[0] <= self._written - byte_size:
            ends.popleft()

    def finish(self) -> None:
        """All messages have been sent, and all is well."""
        self._end(OK, "")

    def fail(self, error: StatusError) -> None:
        """End the call with an error."""
        more = (("grpc-retry-pushback-ms", str(error.retry_after_s * 1000)),) if isinstance(error, Overloaded) else ()
        self._end(status_number(error.code), error.message, more)

    def give_up(self, error: StatusError) -> None:
        """End the call with an error that its receiver does not know of."""
        receiver = self.receiver
        self.fail(error)
        self.receiver = receiver
        self._gone()

    def _break_off(self, number: int, message: str) -> None:
        """As ``give_up``, with a status that is no error's of ours."""
        receiver = self.receiver
        self._end(number, message)
        self.receiver = receiver
        self._gone()

    def _end(self, number: int, message: str, more: tuple[tuple[str, str], ...] = ()) -> None:
        if self._stream is None:
            return
        stream = self._leave()
        if self._begun:
            stream.send([], OK_TRAILERS if number == OK else trailers(number, message, more))
        else:
            stream.send([], trailers_only(number, message, more))

    def _leave(self) -> Stream:
        """Nothing is sent behind what follows."""
        stream, self._stream = self._stream, None
        assert stream is not None
        if self._unsent:
            stream.on_left = partial(self._connection.admission.let_go, self._unsent)
            self._unsent = 0
        self._stop_clock()
        # What has come and was not handed on is not wanted any more.
        self._drop_body()
        if self._messages:
            self._drop_messages()
        # They know this object: left alone, a cycle for the collector.
        self.receiver = _DONE
        self.on_room = None
        self._connection.touch()
        return stream


def _left(release: Callable[[], None], admission: Admission, byte_size: int) -> None:
    admission.let_go(byte_size)
    release()


def nothing() -> None:
    """What has nothing to give back."""

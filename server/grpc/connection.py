"""One client's connection: the socket's bytes into HTTP/2, and what comes out of that back to the socket, once in each turn of the loop."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, cast

from ...workers.contract.status import StatusError, internal, unsupported
from ..door.peer import transport_peer_is_local
from . import frames
from .frames import ErrorCode
from .http2 import ConnectionFailure, Http2
from .http2_stream import Octets, Stream
from .keep_alive import KeepAlive, Step
from .rpc import Rpc
from .rpc_head import RpcHead, understand

if TYPE_CHECKING:
    from ...shm.arena import Arena
    from ..admission import Admission
    from .limits import Limits
    from .listener import GrpcDoor

_logger = logging.getLogger(__name__)

_JOINED_BYTE_SIZE = 64 * 1024
_UNTAKEN_BYTE_SIZE = 1024 * 1024
"""A client that has so much to take is not read from before it does: it makes us answer."""

_OUR_PING = b"are you?"


class _Nobody:
    """The call of a stream that was answered before it began."""

    def data(self, view: memoryview, start: int, stop: int) -> None:
        """Nobody wants it."""

    def end(self) -> None:
        """Nobody waits for it."""

    def gone(self) -> None:
        """It was gone already."""

    def sent(self) -> None:
        """There was nothing to send."""

    def sweep(self, now: float) -> None:
        """Nothing of it is under way."""

    idle = False


_NOBODY = _Nobody()


class Connection(asyncio.BufferedProtocol):
    """The protocol object of one connection. ``door`` owns it."""

    def __init__(self, door: GrpcDoor) -> None:
        self._door = door
        self._transport: asyncio.Transport
        self.peer_is_local = False
        self._http2: Http2[RpcHead] = Http2(understand, self._begin, door.http2_limits, self._pinged)
        self._keep_alive = KeepAlive(door.keep_alive_settings, door.clock())
        self._touched = False
        self._write_paused = False
        self._since = door.now
        self._stalled_since = 0.0
        self._unsent_byte_size = 0

    # what calls ask

    @property
    def arena(self) -> Arena | None:
        """What takes large messages."""
        return self._door.arena

    @property
    def admission(self) -> Admission:
        """What counts the bytes that are held."""
        return self._door.admission

    @property
    def limits(self) -> Limits:
        """What bounds messages."""
        return self._door.limits

    @property
    def now(self) -> float:
        """The door's clock, as it was when it last looked at the times."""
        return self._door.now

    @property
    def most_unpacked_byte_size(self) -> int:
        """How large a compressed message may become."""
        return self._door.most_unpacked_byte_size

    def encoding_for(self, head: RpcHead) -> str:
        """How messages to this client are compressed, "" for not at all."""
        return self._door.encoding_for(head)

    def touch(self) -> None:
        """There is something to send: at the end of this turn, with what else there is by then."""
        if not self._touched:
            self._touched = True
            self._door.call_soon(self._flush)

    # what the door asks

    @property
    def busy(self) -> bool:
        """Is a call open?"""
        return bool(self._http2.streams)

    @property
    def answering(self) -> bool:
        """Is there something under way that the client waits for?"""
        return self._write_paused or not all([stream.call.idle for stream in self._http2.streams.values()])

    def end(self, error: StatusError) -> None:
        """End every call with this error, and the connection once the client has been told."""
        for stream in list(self._http2.streams.values()):
            if isinstance(stream.call, Rpc):
                stream.call.give_up(error)
        self.leave()

    def leave(self) -> None:
        """Have the client take its next calls elsewhere; those that it has begun are answered."""
        if self._transport.is_closing():
            return
        self._http2.go_away()
        self._flush()
        self._close_if_done()

    def abort(self) -> None:
        """Close the connection now, whatever is under way."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Enforce the time limits; called by the door every now and then."""
        limits = self._door.limits
        if not self._http2.prefaced:
            if limits.head_s and now - self._since > limits.head_s:
                self._transport.abort()
            return
        for stream in list(self._http2.streams.values()):
            stream.call.sweep(now)
            if stream.unsent:
                self._look_at_unsent(stream, now)
        if self._http2.out:
            self._flush()
        if self._write_paused:
            left = self._transport.get_write_buffer_size()
            if left != self._unsent_byte_size:
                self._unsent_byte_size = left
                self._stalled_since = now
            elif limits.stalled_reply_s and now - self._stalled_since > limits.stalled_reply_s:
                self._transport.abort()
            return
        self._note_sent()
        step = self._keep_alive.step(now, self.busy)
        if step is Step.PING:
            self._http2.ping(_OUR_PING)
            self._flush()
        elif step is Step.LEAVE:
            self.leave()
        elif step is Step.CLOSE:
            self._transport.abort()

    def _look_at_unsent(self, stream: Stream, now: float) -> None:
        """End a stream whose client takes nothing: its reply is complete, or others need the memory."""
        limit_s = self._door.limits.stalled_reply_s
        # One that the connection's window holds waits for its turn as long as others get theirs.
        mark = (stream.unsent_byte_size, self._http2.sent_byte_size if stream.window > 0 else 0)
        if mark != stream.stalled_at:
            stream.stalled_at = mark
            stream.stalled_since = now
        elif limit_s and now - stream.stalled_since > limit_s and (stream.trailers is not None or self.admission.full):
            stream.reset(ErrorCode.CANCEL)

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio says."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        if not self._door.admit(self):
            self._transport.abort()
            return
        self.peer_is_local = transport_peer_is_local(transport)
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        """As asyncio says."""
        return self._door.read_view

    def buffer_updated(self, nbytes: int) -> None:
        """As asyncio says."""
        if self._transport.is_closing():
            return
        self._keep_alive.heard(self._door.now)
        try:
            self._http2.receive(self._door.read_view[:nbytes])
        except ConnectionFailure as failure:
            self._fail(failure)
            return
        except Exception:
            # What is left of the connection's state cannot be trusted.
            _logger.exception("a gRPC connection failed")
            self._fail(ConnectionFailure(ErrorCode.INTERNAL_ERROR, "internal error"))
            return
        self._flush()

    def eof_received(self) -> bool:
        """As asyncio says: a client that ends its side has gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio says."""
        self._door.forget(self)
        self._write_paused = False
        try:
            self._http2.lost()
        finally:
            self._release_left()

    def pause_writing(self) -> None:
        """As asyncio says."""
        self._write_paused = self._http2.paused = True
        self._stalled_since = self._door.now

    def resume_writing(self) -> None:
        """As asyncio says."""
        self._write_paused = self._http2.paused = False
        self._http2.pump_all()
        self._flush()
        if not self._transport.is_closing():
            self._transport.resume_reading()

    # calls

    def _begin(self, stream: Stream, head: RpcHead) -> Rpc | _Nobody:
        """A call has begun."""
        if head.refusal is not None:
            stream.send([], head.refusal)
            return _NOBODY
        rpc = Rpc(self, stream, head, time.monotonic_ns())
        handler = self._door.handlers.get(head.path)
        try:
            if handler is None:
                raise unsupported("")
            rpc.receiver = handler(rpc)
        except StatusError as error:
            rpc.fail(error)
            return _NOBODY
        except Exception:
            # The connection carries the calls of others, too.
            _logger.exception("a gRPC call could not be begun")
            rpc.fail(internal("internal error"))
            return _NOBODY
        return rpc

    def _pinged(self, answer: bool, content: bytes) -> None:
        if answer:
            return
        self._note_sent()
        if not self._keep_alive.pinged(self._door.clock(), self.busy):
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")

    def _note_sent(self) -> None:
        if self._http2.talked:
            self._http2.talked = False
            self._keep_alive.sent()

    # the socket

    def _flush(self) -> None:
        """Give the socket what there is to send."""
        self._touched = False
        http2 = self._http2
        out = http2.out
        if out:
            http2.out = []
            if not self._transport.is_closing():
                self._write(out)
        if http2.left and not self._write_paused:
            self._release_left()
        if http2.leaving:
            self._close_if_done()

    def _write(self, out: list[Octets]) -> None:
        if len(out) == 1:
            self._transport.write(out[0])
        elif sum(map(len, out)) <= _JOINED_BYTE_SIZE:
            self._transport.write(b"".join(out))
        else:
            self._transport.writelines(out)
        if self._write_paused and self._transport.get_write_buffer_size() > _UNTAKEN_BYTE_SIZE:
            self._transport.pause_reading()

    def _release_left(self) -> None:
        """Give back what the socket has no use for any more."""
        left, self._http2.left = self._http2.left, []
        for on_left in left:
            on_left()

    def _close_if_done(self) -> None:
        if not self.busy and not self._transport.is_closing():
            self._transport.close()

    def _fail(self, failure: ConnectionFailure) -> None:
        """Tell the client what it did, and end the connection."""
        self._http2.out.append(frames.go_away(self._http2.last_stream, failure.code, failure.text.encode()))
        out, self._http2.out = self._http2.out, []
        self._write(out)
        self._transport.close()
        self._door.failed(failure)

"""TLS over one accepted connection: a protocol to the socket's transport, a transport to the connection inside.

Done here and not by the loop's own ``ssl=``, because a door must count and time out handshakes like connections, see what a
slow client has not taken yet, end its side and read on (so that a client that is still sending sees why it was refused), and
take another certificate without a restart.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from .tls import Tls


class TlsLimits(Protocol):
    """How long hands may be shaken, and a refused client may linger, in seconds; 0: for ever."""

    @property
    def head_s(self) -> float: ...
    @property
    def linger_s(self) -> float: ...


class TlsDoor(Protocol):
    """The door that connections belong to, as far as they ask it while hands are shaken; and its buffers."""

    read_view: memoryview
    sealed_view: memoryview
    now: float

    @property
    def limits(self) -> TlsLimits: ...
    @property
    def full(self) -> bool: ...
    def admit(self, connection: Any) -> bool: ...
    def forget(self, connection: Any) -> None: ...


# OpenSSL never gives back what a memory BIO has grown to: no more goes through one at a time than this, two records' worth.
_SLICE_BYTE_SIZE = 32 * 1024
_PIECE_BYTE_SIZE = 256 * 1024
# Far more than one piece and what TLS itself has to say: whoever gets there makes us answer and reads nothing.
_UNSENT_BYTE_SIZE = 1024 * 1024

_NOTHING = memoryview(b"")

_ADVICE = b'{"error":"this port speaks TLS: use https"}'
_PLAIN_REPLY = b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_ADVICE),
    _ADVICE,
)


class TlsStream(asyncio.Transport, asyncio.BufferedProtocol):
    """The server's side of TLS between a socket's transport and ``connection``, whose transport it is once hands are shaken.

    Until then, and where the handshake fails, it is itself one of the door's connections. Writing goes in pieces, each
    encrypted only when the one before has left, so that the connection's own rules for slow clients hold. `write_eof` ends
    our side (close_notify, then the socket's end); what the client still sends after that is read over. What a connection
    keeps while it is idle does not depend on what it has sent or received: OpenSSL gets and gives two records at a time.
    """

    def __init__(self, door: TlsDoor, connection: asyncio.BaseProtocol, tls: Tls) -> None:
        super().__init__()
        self._door = door
        self._settings = tls
        self._protocol: asyncio.BaseProtocol = connection
        self._socket: asyncio.Transport
        self._tls: ssl.SSLObject
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._sealed = _NOTHING  # what has come and OpenSSL has not got yet
        self._shaking = True
        self._refused = False
        self._since = door.now
        self._backlog: deque[memoryview] = deque()
        self._backlog_byte_size = 0
        self._flushing = False
        self._socket_full = False
        self._write_paused = False
        self._reading = True
        self._over = False
        self._delivering = False
        self._ending = False
        self._ended = False
        self._closing = False

    # what the door asks while hands are being shaken

    def sweep(self, now: float) -> None:
        """End a handshake that takes too long, and a refused client that does not go."""
        limits = self._door.limits
        limit = limits.linger_s if self._refused else limits.head_s
        if limit and now - self._since > limit:
            self.abort()

    def close_if_idle(self) -> None:
        """End a handshake: nothing was asked yet."""
        self._closing = True
        self._socket.close()

    # asyncio.BufferedProtocol, to the socket's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)
        door = self._door
        # A handshake costs a hundred times what a refusal in plain HTTP does, so where that is all there would be, there is none.
        if not door.admit(self) or door.full:
            self.abort()
            return
        self._tls = self._settings.context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._door.sealed_view

    def buffer_updated(self, nbytes: int) -> None:
        if self._refused or self._closing:
            return
        if self._ending:
            protocol = self._protocol
            if isinstance(protocol, asyncio.BufferedProtocol):
                # It only times how long the client goes on.
                protocol.buffer_updated(0)
            return
        sealed = self._door.sealed_view[:nbytes]
        self._sealed = memoryview(b"".join((self._sealed, sealed))) if self._sealed else sealed
        if self._shaking:
            self._shake()
        else:
            self._deliver()
        self._end_turn(nbytes == len(self._door.sealed_view))

    def _end_turn(self, more: bool) -> None:
        """Keep what is left, since the door's buffer is everybody's; where more is likely to have come, let everybody else go first.

        libuv reads up to 32 times on end while it gets all that it has asked for.
        """
        if self._closing or self._ending or self._refused:
            self._sealed = _NOTHING
            return
        if self._sealed:
            self._sealed = memoryview(bytes(self._sealed))
        if more and self._reading and not self._large:
            self._socket.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)

    def eof_received(self) -> bool:
        if self._shaking or self._ended:
            return False
        if self._ending:
            self._closing = True
        else:
            self._deliver()
            self._end_of_client()
        return True

    def pause_writing(self) -> None:
        self._socket_full = True

    def resume_writing(self) -> None:
        self._socket_full = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._clear_backlog()
        self._sealed = _NOTHING
        if self._shaking:
            self._door.forget(self)
        else:
            self._protocol.connection_lost(exc)
        # The connection knows this object: left alone, a cycle for the collector.
        del self._protocol

    # handshake

    def _shake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                if not self._feed():
                    self._send_records()
                    return
            except ssl.SSLError as failure:
                self._refuse(failure)
                return
        self._send_records()
        self._shaking = False
        self._door.forget(self)
        self._protocol.connection_made(self)
        self._deliver()

    def _refuse(self, failure: ssl.SSLError) -> None:
        """Say why (an alert, or advice in plain HTTP), end our side and read over what the client still sends."""
        self._refused = True
        self._since = self._door.now
        self._settings.refused(self._socket.get_extra_info("peername"), failure)
        if failure.reason == "HTTP_REQUEST":
            self._socket.write(_PLAIN_REPLY)
        else:
            self._send_records()
        self._socket.write_eof()

    # what comes in

    def _feed(self) -> bool:
        """Give OpenSSL the next of what has come; False where there is nothing."""
        sealed = self._sealed
        if not sealed:
            return False
        self._incoming.write(sealed[:_SLICE_BYTE_SIZE])
        self._sealed = sealed[_SLICE_BYTE_SIZE:]
        return True

    def _deliver(self) -> None:
        """Decrypt what has come and hand it on, as far as it is wanted."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._reading and not (self._closing or self._ending) and self._unread:
                if not self._deliver_some():
                    break
        except ssl.SSLError:
            self.abort()
        finally:
            self._delivering = False
        if self._outgoing.pending and not self._closing:
            self._send_records()
            if self._socket.get_write_buffer_size() > _UNSENT_BYTE_SIZE:
                self.abort()

    @property
    def _unread(self) -> bool:
        return self._incoming.pending > 0 or self._tls.pending() > 0 or len(self._sealed) > 0

    def _deliver_some(self) -> bool:
        """Hand on one buffer's worth; False where no whole record is left. Raises SSLError."""
        protocol = self._protocol
        view = memoryview(protocol.get_buffer(-1)) if isinstance(protocol, asyncio.BufferedProtocol) else self._door.read_view
        room = len(view)
        filled = 0
        more = True
        over = False
        while filled < room and self._unread:
            try:
                count = self._tls.read(room - filled, view[filled:] if filled else view)
            except ssl.SSLWantReadError:
                if self._feed():
                    continue
                more = False
                break
            if not count:
                over = True
                break
            filled += cast(int, count)
        if filled:
            if isinstance(protocol, asyncio.BufferedProtocol):
                protocol.buffer_updated(filled)
            else:
                cast(asyncio.Protocol, protocol).data_received(bytes(view[:filled]))
        if over:
            self._end_of_client()
        return more and not over

    def _end_of_client(self) -> None:
        """The client has ended its side, by close_notify or without: the connection knows whether it still waits for a reply."""
        if self._closing or self._over:
            return
        self._over = True
        if cast(asyncio.Protocol, self._protocol).eof_received():
            self.pause_reading()
        else:
            self.close()

    @property
    def _large(self) -> bool:
        """What comes is part of a large body: it only has to be decrypted."""
        protocol = self._protocol
        return isinstance(protocol, asyncio.BufferedProtocol) and protocol.get_buffer(-1) is not self._door.read_view

    def _read_on(self) -> None:
        if self._reading and not self._closing:
            self._socket.resume_reading()

    def _deliver_later(self) -> None:
        if not self._closing and not self._ended:
            self._deliver()

    # what goes out

    def _send_records(self) -> None:
        if self._outgoing.pending:
            self._socket.write(self._outgoing.read())

    def _flush(self) -> None:
        """Encrypt and send as much as the socket takes, then end our side if that was asked for."""
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._backlog and not self._socket_full:
                self._send_piece()
        except ssl.SSLError:
            self.abort()
        finally:
            self._flushing = False
        if self._ending and not (self._ended or self._backlog or self._socket_full or self._socket.is_closing()):
            self._end()
        paused = bool(self._backlog) or self._socket_full
        if paused != self._write_paused:
            self._write_paused = paused
            if paused:
                self._protocol.pause_writing()
            else:
                self._protocol.resume_writing()

    def _send_piece(self) -> None:
        """Encrypt a piece, slice by slice, and send it. Raises SSLError."""
        backlog = self._backlog
        records: list[bytes] = []
        byte_size = 0
        while backlog and byte_size < _PIECE_BYTE_SIZE:
            view = backlog[0]
            # OpenSSL would take all of it at once.
            count = self._tls.write(view[:_SLICE_BYTE_SIZE])
            byte_size += count
            if self._outgoing.pending >= _SLICE_BYTE_SIZE:
                records.append(self._outgoing.read())
            if count < len(view):
                backlog[0] = view[count:]
            else:
                backlog.popleft()
        self._backlog_byte_size -= byte_size
        if records:
            self._socket.writelines(records)
        self._send_records()

    def _clear_backlog(self) -> None:
        self._backlog.clear()
        self._backlog_byte_size = 0

    def _end(self) -> None:
        """Send close_notify and end the socket's sending side, or the whole of it where the transport was closed."""
        self._ended = True
        # It wants the client's close_notify, and may find what the client sent before instead.
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self._send_records()
        if self._closing:
            self._socket.close()
        else:
            self._socket.write_eof()

    # asyncio.Transport, to the connection

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        if name == "sslcontext":
            return self._tls.context
        return self._socket.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        self._reading = False
        if not self._closing:
            self._socket.pause_reading()

    def resume_reading(self) -> None:
        self._reading = True
        if not self._closing:
            self._socket.resume_reading()
            if not self._ended and self._unread:
                asyncio.get_running_loop().call_soon(self._deliver_later)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._socket.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        """Bytes that have not left: some plain, some encrypted."""
        return self._backlog_byte_size + self._outgoing.pending + self._socket.get_write_buffer_size()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        if self._closing or self._ending:
            return
        for data in list_of_data:
            if data:
                view = memoryview(data).cast("B")
                self._backlog.append(view)
                self._backlog_byte_size += len(view)
        self._flush()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End our side once all is sent; from now on nothing that comes is handed on."""
        if not self._closing and not self._ending:
            self._ending = True
            self._flush()

    def close(self) -> None:
        """Close the connection once all is sent, without waiting for the client's close_notify."""
        if self._closing:
            return
        self._closing = True
        if self._ended:
            self._socket.close()
            return
        self._ending = True
        self._socket.pause_reading()
        self._flush()

    def abort(self) -> None:
        """Close the connection now."""
        self._closing = True
        self._clear_backlog()
        self._socket.abort()

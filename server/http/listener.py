"""The listening side of an HTTP port: accepts connections, counts them, times them out, lets them finish."""

from __future__ import annotations

import asyncio
import heapq
import logging
import socket
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING

from .. import descriptors
from ..admission import UNLIMITED, Admission
from ..door.acceptor import Acceptor
from ..door.listening import bound_socket
from ..door.tls_stream import TlsStream
from .connection import Connection
from .exchange import Answer, Cancel, Head, StreamingRequest
from .limits import Limits

if TYPE_CHECKING:
    from ...shm.arena import Arena
    from ..door.tls import Tls
    from .http2 import Http2
    from .http2_connection import Http2Connection

_logger = logging.getLogger(__name__)

_READ_BYTE_SIZE = 64 * 1024
_SEALED_BYTE_SIZE = 64 * 1024
_LEAVE_AT_ONCE = 32
_FEW_CONNECTIONS = 8


Handle = Callable[[StreamingRequest, Answer], Cancel | None]
"""Answers every request of a door."""


class HttpDoor:
    """One HTTP port and its connections.

    ``handle`` answers the requests; ``arena`` takes bodies above ``limits.inline_byte_size`` (None:
    they are refused); ``http2`` serves connections that begin with HTTP/2's preface (None: they are
    refused as malformed). ``on_close`` ends what ``handle`` has left running; ``stay_awake`` is told that more is about to come.
    ``admission`` counts the memory that bodies and unsent replies take; ``before_body`` gets the heads of requests whose large body
    has not been read, and raises Malformed for those that it need not be read of.
    """

    def __init__(
        self,
        handle: Handle,
        arena: Arena | None = None,
        http2: Http2 | None = None,
        limits: Limits | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
        stay_awake: Callable[[], None] = lambda: None,
        admission: Admission = UNLIMITED,
        before_body: Callable[[Head], None] = lambda head: None,
    ) -> None:
        self._stay_awake = stay_awake
        self.admission = admission
        self.before_body = before_body
        self.handle = handle
        self.arena = arena
        self.http2 = http2
        self.limits = limits or Limits()
        self._on_close = on_close
        self.exiting = False
        self.now = 0.0
        self.read_buffer = bytearray(_READ_BYTE_SIZE)
        self.read_view = memoryview(self.read_buffer)
        self.sealed_view = memoryview(b"")
        self.known_heads: dict[bytes, Head] = {}
        self._watch: asyncio.Task[None] | None = None
        self._connections: dict[Connection | TlsStream, None] = {}  # in the order they came
        self._leaving: set[Connection | Http2Connection] = set()
        if http2 is not None:
            http2.on_end = self._leaving.discard
        self._nobody_idle = False
        self._most = self.limits.connections
        self._spare = self.limits.spare_connections
        self._acceptor: Acceptor | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    async def start(self, address: str, port: int, reuse_port: bool, tls: Tls | None = None) -> None:
        """Listen on ``address:port`` (0: a free port), over TLS where that is given.

        Raises UNAVAILABLE where the port cannot be had.
        """
        await self.serve(bound_socket(address, port, reuse_port), tls)

    async def serve(self, listening: socket.socket, tls: Tls | None = None) -> None:
        """Listen on a socket that is bound to its port, over TLS where that is given."""
        loop = asyncio.get_running_loop()
        accept = (lambda: Connection(self)) if tls is None else (lambda: TlsStream(self, Connection(self), tls))
        self._acceptor = Acceptor(listening, accept, self._make_room)
        if tls is not None:
            self.sealed_view = memoryview(bytearray(_SEALED_BYTE_SIZE))
            self._watch = loop.create_task(tls.watch())
        # The rest is for the other door, regions, workers and models.
        share = descriptors.limit() // 2
        self._most = min(self.limits.connections, share)
        self._spare = min(self.limits.spare_connections, share // 8)
        self.now = loop.time()
        self._sweep = loop.call_later(self.limits.sweep_s, self._sweep_connections)

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._acceptor is not None
        return self._acceptor.port

    @property
    def connection_count(self) -> int:
        """Connections open now."""
        return len(self._connections) + (self.http2.connection_count if self.http2 is not None else 0)

    @property
    def crowded(self) -> bool:
        """More connections are open than the limits allow, those that were told to leave not counted."""
        return self._staying > self._most

    @property
    def full(self) -> bool:
        """So many more connections are open than the limits allow that new ones are not even asked what they want."""
        return self._staying > self._most + self._spare

    @property
    def _staying(self) -> int:
        return self.connection_count - len(self._leaving)

    @property
    def waiting_byte_size(self) -> int:
        """Bytes of request bodies that may wait on each connection behind the request that is being answered."""
        return self.limits.waiting_byte_size // (self.connection_count + 1)

    async def stop_accepting(self) -> None:
        """Refuse new connections, close idle ones, and let each of the others answer what it is at, then close it.

        A connection that the kernel had accepted already is reset.
        """
        self.exiting = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        if self.http2 is not None:
            await self.http2.stop()

    async def close(self) -> None:
        """Close every connection now, whatever it is at."""
        await self.stop_accepting()
        if self._sweep is not None:
            self._sweep.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for connection in list(self._connections):
            connection.abort()
        if self.http2 is not None:
            await self.http2.close()
        if self._on_close is not None:
            await self._on_close()
        while self._connections:
            self._emptied.clear()
            await self._emptied.wait()

    # what connections ask

    def moving(self) -> None:
        """Part of a large body has come or gone, and the rest is on its way: with few clients, the loop is not to sleep meanwhile."""
        if len(self._connections) <= _FEW_CONNECTIONS:
            self._stay_awake()

    def watch_for_end(self, connection: Connection) -> None:
        """Find out whether a client that has ended its side is still there, for as long as it waits, ever less often."""
        if self._sweep is not None:
            self._look_in(connection, self.limits.half_close_s)

    def _look_in(self, connection: Connection, after_s: float, times: int = 1) -> None:
        def look() -> None:
            if connection.nudge():
                self._look_in(connection, after_s * times, times + 1)

        asyncio.get_running_loop().call_later(after_s, look)

    def admit(self, connection: Connection | TlsStream) -> bool:
        """Count a new connection in; False where the door is closing."""
        if self._staying >= self._most:
            self._make_room()
        self._connections[connection] = None
        return not self.exiting

    def forget(self, connection: Connection | TlsStream) -> None:
        """A connection has ended, or was handed over."""
        self._connections.pop(connection, None)
        if type(connection) is Connection:
            self._leaving.discard(connection)
        if not self._connections:
            self._emptied.set()

    def _make_room(self) -> None:
        """Close the connections that have been idle for longest: whoever comes now wants something, a health probe perhaps."""
        if self._nobody_idle:
            return
        before = self.now - self.limits.reclaim_idle_s
        idle = (
            one
            for one in self._every_connection()
            if not isinstance(one, TlsStream) and one.heard <= before and one.idle and one not in self._leaving
        )
        leaving = heapq.nsmallest(_LEAVE_AT_ONCE, idle, key=lambda one: one.heard)
        # Looking through all of them again for each that comes would cost more than it is worth.
        self._nobody_idle = not leaving
        for connection in leaving:
            self._leaving.add(connection)
            connection.close_if_idle()

    def _every_connection(self) -> Iterator[Connection | TlsStream | Http2Connection]:
        """Those of HTTP/1.1, those that shake hands, then those of HTTP/2."""
        yield from self._connections
        if self.http2 is not None:
            yield from self.http2.connections

    def _sweep_connections(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self.limits.sweep_s, self._sweep_connections)
        self.now = loop.time()
        self._nobody_idle = False
        for connection in list(self._every_connection()):
            try:
                connection.sweep(self.now)
                if self.exiting:
                    connection.close_if_idle()
            except Exception:
                # The others' time limits do not depend on this one.
                _logger.exception("a connection's time limits cannot be told, it is ended")
                connection.abort()

"""The listening side of an HTTP port: accepts connections, counts them, times them out, lets them finish."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from ...workers.contract.status import unavailable
from .connection import Connection
from .exchange import Answer, Cancel, HttpRequest
from .limits import Limits

if TYPE_CHECKING:
    from ...shm.arena import Arena
    from .http2 import Http2

_READ_BYTE_SIZE = 64 * 1024
_BACKLOG = 1024


Handle = Callable[[HttpRequest, Answer], Cancel | None]
"""Answers every request of a door."""


class HttpDoor:
    """One HTTP port and its connections.

    ``handle`` answers the requests; ``arena`` takes bodies above ``limits.inline_byte_size`` (None:
    they are refused); ``http2`` serves connections that begin with HTTP/2's preface (None: they are
    refused as malformed). ``on_close`` ends what ``handle`` has left running.
    """

    def __init__(
        self,
        handle: Handle,
        arena: Arena | None = None,
        http2: Http2 | None = None,
        limits: Limits | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.handle = handle
        self.arena = arena
        self.http2 = http2
        self.limits = limits or Limits()
        self._on_close = on_close
        self.exiting = False
        self.now = 0.0
        self.read_buffer = bytearray(_READ_BYTE_SIZE)
        self.read_view = memoryview(self.read_buffer)
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._emptied = asyncio.Event()

    async def start(self, address: str, port: int, reuse_port: bool, tls: ssl.SSLContext | None = None) -> None:
        """Listen on ``address:port`` (0: a free port). Raises UNAVAILABLE where the port cannot be had."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listening.bind((address, port))
            listening.listen(_BACKLOG)
            listening.setblocking(False)
            self._server = await loop.create_server(lambda: Connection(self), sock=listening, backlog=_BACKLOG, ssl=tls)
        except (OSError, OverflowError) as failure:
            listening.close()
            if isinstance(failure, OSError) and failure.errno == errno.EMFILE:
                raise
            raise unavailable(f"Socket '{address}:{port}' already in use ") from failure
        self.now = loop.time()
        self._sweep = loop.call_later(self.limits.sweep_s, self._sweep_connections)

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._server is not None
        name = self._server.sockets[0].getsockname()
        return int(name[1])

    @property
    def connection_count(self) -> int:
        """Connections open now."""
        return len(self._connections) + (self.http2.connection_count if self.http2 is not None else 0)

    @property
    def crowded(self) -> bool:
        """More connections are open than the limits allow."""
        return self.connection_count > self.limits.connections

    async def stop_accepting(self) -> None:
        """Refuse new connections, close idle ones, and let each of the others answer what it is at, then close it.

        A connection that the kernel had accepted already is reset.
        """
        self.exiting = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close_if_idle()
        if self.http2 is not None:
            await self.http2.stop()

    async def close(self) -> None:
        """Close every connection now, whatever it is at."""
        await self.stop_accepting()
        if self._sweep is not None:
            self._sweep.cancel()
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

    def admit(self, connection: Connection) -> bool:
        """Count a new connection in; False where the door is closing."""
        self._connections.add(connection)
        return not self.exiting

    def forget(self, connection: Connection) -> None:
        """A connection has ended, or was handed over."""
        self._connections.discard(connection)
        if not self._connections:
            self._emptied.set()

    def _sweep_connections(self) -> None:
        loop = asyncio.get_running_loop()
        self.now = loop.time()
        for connection in list(self._connections):
            connection.sweep(self.now)
            if self.exiting:
                connection.close_if_idle()
        self._sweep = loop.call_later(self.limits.sweep_s, self._sweep_connections)

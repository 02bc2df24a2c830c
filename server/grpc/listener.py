"""The listening side of the gRPC port: accepts connections, counts them, times them out, lets their calls finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...workers.contract.status import unavailable
from .. import descriptors
from ..door.acceptor import Acceptor
from ..door.body import most_byte_size
from ..door.listening import bound_socket
from ..door.tls_stream import TlsStream
from .connection import Connection
from .handlers import handlers, unary_replies
from .http2 import ConnectionFailure, Http2Limits
from .keep_alive import KeepAliveSettings
from .limits import Limits
from .rpc_head import RpcHead

if TYPE_CHECKING:
    from ..door.tls import Tls
    from ..inference_service import InferenceService
    from ..options import Options
    from ..service import Service
    from .handlers import Begin

_logger = logging.getLogger(__name__)

_READ_BYTE_SIZE = 256 * 1024
_SEALED_BYTE_SIZE = 64 * 1024
_MOST_UNPACKED_BYTE_SIZE = 2**31 - 1

LAST_WORDS_S = 0.25
"""How long clients have at the end to be told that there is no more."""


def keep_alive_settings(options: Options) -> KeepAliveSettings:
    """What the flags say of pings and ages, which they give in milliseconds."""
    return KeepAliveSettings(
        options.grpc_keepalive_time / 1000,
        options.grpc_keepalive_timeout / 1000,
        options.grpc_keepalive_permit_without_calls,
        options.grpc_http2_max_pings_without_data,
        options.grpc_http2_min_recv_ping_interval_without_data / 1000,
        options.grpc_http2_max_ping_strikes,
        options.grpc_max_connection_age / 1000,
        options.grpc_max_connection_age_grace / 1000,
    )


class GrpcDoor:
    """The port and its connections. ``begins`` has what begins a call, by its method's path."""

    def __init__(
        self, service: InferenceService, begins: Mapping[str, Begin], limits: Limits | None = None, http2_limits: Http2Limits | None = None
    ) -> None:
        options = service.options
        loop = asyncio.get_running_loop()
        self.handlers = begins
        self.arena = service.arena
        self.admission = service.admission
        self.limits = limits or Limits()
        self.http2_limits = http2_limits or Http2Limits()
        self.keep_alive_settings = keep_alive_settings(options)
        self.most_unpacked_byte_size = min(_MOST_UNPACKED_BYTE_SIZE, most_byte_size(self.arena, self.admission))
        self.call_soon = loop.call_soon
        self.clock = loop.time
        self.now = loop.time()
        self.read_view = memoryview(bytearray(_READ_BYTE_SIZE))
        self.sealed_view = memoryview(b"")
        self._compresses = options.grpc_infer_response_compression_level != "none"
        self._connections: dict[Connection | TlsStream, None] = {}
        self._most = self.limits.connections
        self._exiting = False
        self._acceptor: Acceptor | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None
        self._emptied = asyncio.Event()

    async def start(self, address: str, port: int, reuse_port: bool, tls: Tls | None = None) -> None:
        """Listen on ``address:port`` (0: a free port), over TLS where that is given. Raises UNAVAILABLE where the port cannot be had."""
        await self.serve(bound_socket(address, port, reuse_port), tls)

    async def serve(self, listening: socket.socket, tls: Tls | None = None) -> None:
        """Listen on a socket that is bound to its port, over TLS where that is given."""
        accept = (lambda: Connection(self)) if tls is None else (lambda: TlsStream(self, Connection(self), tls))
        self._acceptor = Acceptor(listening, accept, lambda: None)
        if tls is not None:
            self.sealed_view = memoryview(bytearray(_SEALED_BYTE_SIZE))
            self._watch = asyncio.get_running_loop().create_task(tls.watch())
        self._most = min(self.limits.connections, descriptors.limit() // 4)
        self._sweep_connections()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._acceptor is not None
        return self._acceptor.port

    @property
    def answering_count(self) -> int:
        """Connections whose clients wait for an answer."""
        return sum(1 for connection in self._connections if isinstance(connection, Connection) and connection.answering)

    def stop_accepting(self) -> None:
        """Refuse new connections and calls; those under way are answered, then their connections close."""
        self._exiting = True
        if self._acceptor is not None:
            self._acceptor.close()
        for connection in list(self._connections):
            if isinstance(connection, Connection):
                connection.leave()
            else:
                connection.abort()

    async def close(self) -> None:
        """End every call that is still open, and close every connection."""
        self.stop_accepting()
        for connection in list(self._connections):
            if isinstance(connection, Connection):
                connection.end(unavailable("Server exiting"))
        if self._connections:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), LAST_WORDS_S)
        if self._sweep is not None:
            self._sweep.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for connection in list(self._connections):
            connection.abort()
        while self._connections:
            self._emptied.clear()
            await self._emptied.wait()

    # what connections ask

    @property
    def full(self) -> bool:
        """Are there as many connections as there may be?"""
        return len(self._connections) > self._most

    def admit(self, connection: Connection | TlsStream) -> bool:
        """Count a new connection in; False where there is no room for it, or the door is closing."""
        self._connections[connection] = None
        return not self._exiting and not self.full

    def forget(self, connection: Connection | TlsStream) -> None:
        """A connection has ended, or another object stands for it."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._emptied.set()

    def encoding_for(self, head: RpcHead) -> str:
        """How messages to a client are compressed, "" for not at all."""
        if not self._compresses:
            return ""
        return "gzip" if "gzip" in head.accepts else "deflate" if "deflate" in head.accepts else ""

    def failed(self, failure: ConnectionFailure) -> None:
        """A client broke the protocol."""
        _logger.debug("a gRPC connection was ended: %s", failure.text)

    def _sweep_connections(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweep = loop.call_later(self.limits.sweep_s, self._sweep_connections)
        self.now = loop.time()
        for connection in list(self._connections):
            try:
                connection.sweep(self.now)
            except Exception:
                # The others' time limits do not depend on this one.
                _logger.exception("a connection's time limits cannot be told, it is ended")
                connection.abort()


def own_door(service: Service, limits: Limits | None = None, http2_limits: Http2Limits | None = None) -> GrpcDoor:
    """A door that the service itself answers."""
    return GrpcDoor(service, handlers(service, service.options.grpc_restricted_protocol, unary_replies(service)), limits, http2_limits)

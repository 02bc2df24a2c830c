"""HTTP/2, by prior knowledge (and by ALPN where the door speaks TLS): hypercorn's, on a transport that a door accepted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from .limits import Limits

if TYPE_CHECKING:
    from .http2_connection import Http2Connection, Http2Serving

_logger = logging.getLogger(__name__)


class Http2:
    """Serves an ASGI app over HTTP/2 on transports that are handed over."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._serving: Http2Serving | None = None
        self._connections: dict[asyncio.Task[None], Http2Connection] = {}
        self.on_end: Callable[[Http2Connection], None] = lambda connection: None

    @property
    def connection_count(self) -> int:
        """Connections open now."""
        return len(self._connections)

    @property
    def connections(self) -> Iterable[Http2Connection]:
        """Connections open now. ``on_end`` is called with each when it has ended."""
        return self._connections.values()

    def take_over(self, transport: asyncio.Transport, received: bytes) -> None:
        """Serve the connection from now on; ``received`` is what was read of it, from its first byte."""
        if self._serving is None:
            # Imported once the server is ready (server/ahead.py); a client that is faster than that waits for it.
            from .http2_connection import Http2Serving

            self._serving = Http2Serving(self._app, self._limits)
        connection = self._serving.connect(transport, received)
        self._connections[connection.task] = connection
        connection.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.on_end(self._connections.pop(task))
        if not task.cancelled() and task.exception() is not None:
            _logger.error("an HTTP/2 connection failed", exc_info=task.exception())

    async def stop(self) -> None:
        """Close idle connections, and the others once they are idle."""
        if self._serving is not None:
            await self._serving.stop()
        for connection in list(self._connections.values()):
            connection.close_if_idle()

    async def close(self) -> None:
        """Close every connection now."""
        tasks = list(self._connections.items())
        for task, connection in tasks:
            connection.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)

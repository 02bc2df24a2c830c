"""HTTP/2, by prior knowledge (and by ALPN where the door speaks TLS): hypercorn's, on a transport that a door accepted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

from .limits import Limits

_logger = logging.getLogger(__name__)


class Http2:
    """Serves an ASGI app over HTTP/2 on transports that are handed over."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        config = Config()
        config.include_server_header = False
        config.include_date_header = False
        config.errorlog = _logger
        config.keep_alive_timeout = limits.keep_alive_idle_s or float("inf")
        config.keep_alive_max_requests = 2**31
        config.h2_max_header_list_size = limits.head_byte_size
        self._config = config
        self._app = wrap_app(cast(ASGIFramework, app), config.wsgi_max_body_size, None)
        self._context = WorkerContext(None)
        self._tasks: dict[asyncio.Task[Any], asyncio.Transport] = {}

    @property
    def connection_count(self) -> int:
        """Connections open now."""
        return len(self._tasks)

    def take_over(self, transport: asyncio.Transport, received: bytes) -> None:
        """Serve the connection from now on; ``received`` is what was read of it, from its first byte."""
        loop = asyncio.get_running_loop()
        transport.pause_reading()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_write_buffer_limits()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        reader.feed_data(received)
        transport.resume_reading()
        server = TCPServer(self._app, loop, self._config, self._context, {}, reader, writer)
        task = loop.create_task(server.run())
        self._tasks[task] = transport
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        del self._tasks[task]
        if not task.cancelled() and task.exception() is not None:
            _logger.error("an HTTP/2 connection failed", exc_info=task.exception())

    async def stop(self) -> None:
        """Close idle connections, and the others once they are idle."""
        await self._context.terminated.set()

    async def close(self) -> None:
        """Close every connection now."""
        tasks = list(self._tasks.items())
        for task, transport in tasks:
            transport.abort()
            task.cancel()
        await asyncio.gather(*(task for task, _ in tasks), return_exceptions=True)

"""HTTP/2, by prior knowledge (and by ALPN where the door speaks TLS): hypercorn's, on a transport that a door accepted."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, Updated
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.typing import ASGIFramework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits

_logger = logging.getLogger(__name__)


class _Server(TCPServer):
    """Ends when its client does: hypercorn's own would first wait for the time that an idle connection has."""

    _over = False

    async def _read_data(self) -> None:
        await super()._read_data()
        self._over = True
        await self.idle_task.stop()
        # What is still to be sent goes nowhere, and hypercorn's own would let its sender wait.
        for buffer in list(cast(H2Protocol, self.protocol.protocol).stream_buffers.values()):
            await buffer.close()

    async def protocol_send(self, event: Event) -> None:
        if not (self._over and isinstance(event, Updated)):
            await super().protocol_send(event)


class _Stalled(Exception):
    """The client does not take its reply."""


class _Stream:
    """One request's messages, with the time limits that connections of our own have.

    A reply ends only after its request: hypercorn drops a connection that sends on to a request that was answered.
    """

    def __init__(self, receive: Receive, send: Send, limits: Limits) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._received = False

    async def receive(self) -> Message:
        """The next message; a body that stays away is a client that has gone."""
        if self._received:
            return await self._receive()
        try:
            async with asyncio.timeout(self._limits.body_idle_s or None):
                message = await self._receive()
        except TimeoutError:
            message = {"type": "http.disconnect"}
        self._received = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send a message. Raises _Stalled."""
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._read_rest()
        try:
            async with asyncio.timeout(self._limits.stalled_reply_s or None):
                await self._send(message)
        except TimeoutError:
            raise _Stalled from None

    async def _read_rest(self) -> None:
        try:
            async with asyncio.timeout(self._limits.linger_s):
                while not self._received:
                    await self.receive()
        except TimeoutError:
            self._received = True


class _Bounded:
    """An app whose clients cannot keep it waiting."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stream = _Stream(receive, send, self._limits)
        try:
            await self._app(scope, stream.receive, stream.send)
        except _Stalled:
            return


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
        self._app = wrap_app(cast(ASGIFramework, _Bounded(app, limits)), config.wsgi_max_body_size, None)
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
        server = _Server(self._app, loop, self._config, self._context, {}, reader, writer)
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

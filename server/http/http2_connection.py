"""A client's HTTP/2 connection: hypercorn's inside, held to a door's limits. Importing this takes as long as all the rest of the door."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import cast

from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h2 import BUFFER_HIGH_WATER, H2Protocol, StreamBuffer
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import AppWrapper, ASGIFramework
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits

_logger = logging.getLogger(__name__)


class Http2Connection(TCPServer):
    """One client's connection: hypercorn's, with the time limits of a door, which asks it what it asks its own.

    ``heard`` is when a request last came or was being answered, by the door's clock; pings and settings are no reason to keep a
    connection.
    """

    def __init__(
        self,
        app: AppWrapper,
        config: Config,
        context: WorkerContext,
        limits: Limits,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        loop = asyncio.get_running_loop()
        super().__init__(app, loop, config, context, {}, reader, writer)
        self.heard = loop.time()
        self._limits = limits
        self._transport = cast(asyncio.Transport, writer.transport)
        self._over = False
        self._written_byte_size = 0
        self._left_byte_size = 0
        self._left_since = self.heard
        self._gone_since = 0.0
        self._task = loop.create_task(self.run())

    @property
    def task(self) -> asyncio.Task[None]:
        """Done when the connection is."""
        return self._task

    @property
    def idle(self) -> bool:
        """No request is being received, answered or sent."""
        state = self._state
        at_work = state is not None and (state.streams or state.stream_buffers)
        return not at_work and not self._transport.get_write_buffer_size()

    def close_if_idle(self) -> None:
        """Close the connection unless a request is under way."""
        if self.idle:
            self._leave()

    def abort(self) -> None:
        """Close the connection now, whatever is under way."""
        self._transport.abort()

    def sweep(self, now: float) -> None:
        """Enforce the time limits; called by the door every now and then."""
        limits = self._limits
        unsent = self._transport.get_write_buffer_size()
        left = self._written_byte_size - unsent
        if not unsent or left - self._left_byte_size >= limits.progress_byte_size:
            self._left_byte_size = left
            self._left_since = now
        elif limits.stalled_reply_s and now - self._left_since > limits.stalled_reply_s:
            self._transport.abort()
        if self._transport.is_closing():
            self._sweep_gone(now)
            return
        state = self._state
        if state is not None and state.streams:
            self.heard = now
            return
        limit = limits.head_s if state is None or not state.keep_alive_requests else limits.keep_alive_idle_s
        if limit and now - self.heard > limit:
            self._leave()

    def _sweep_gone(self, now: float) -> None:
        """Let go of a client whose bytes wait for an app that will not ask for them again: hypercorn would wait with them."""
        if self._over or self._transport.get_write_buffer_size():
            return
        self._gone_since = self._gone_since or now
        if now - self._gone_since > self._limits.linger_s:
            self._task.cancel()

    @property
    def _state(self) -> H2Protocol | None:
        """What hypercorn knows of the connection, once that has begun."""
        wrapper: ProtocolWrapper | None = getattr(self, "protocol", None)
        state = None if wrapper is None else wrapper.protocol
        return state if isinstance(state, H2Protocol) else None

    def _leave(self) -> None:
        """Say that no more requests are taken, then close."""
        state = self._state
        if state is not None and not self._transport.is_closing():
            state.connection.close_connection()
            farewell = state.connection.data_to_send()
            self._written_byte_size += len(farewell)
            self._transport.write(farewell)
        self._transport.close()

    async def _read_data(self) -> None:
        try:
            await super()._read_data()
        finally:
            self._over = True
            state = self._state
            if state is not None:
                # What is still to be sent goes nowhere, and hypercorn's own would let its sender wait.
                for buffer in list(state.stream_buffers.values()):
                    await buffer.close()

    async def _idle_timeout(self) -> None:
        """Nothing: the door looks after the times."""

    async def protocol_send(self, event: Event) -> None:
        if not isinstance(event, Updated):
            if isinstance(event, RawData):
                self._written_byte_size += len(event.data)
            await super().protocol_send(event)
        elif not self._over:
            self.heard = self.loop.time()
            await self._drop_given_up()
            if self.context.terminated.is_set():
                self.close_if_idle()

    async def _drop_given_up(self) -> None:
        """A reply that was given up is not to lie here for as long as its connection does, and its client is to hear of it."""
        state = self._state
        if state is None:
            return
        for stream, buffer in list(state.stream_buffers.items()):
            if stream not in state.streams and not buffer.complete:
                with contextlib.suppress(ProtocolError):
                    state.connection.reset_stream(stream, ErrorCodes.CANCEL)
                await buffer.close()
                await state._window_updated(stream)
                await state._flush()


class _Received(asyncio.StreamReaderProtocol):
    """Feeds the reader, and closes when the client ends its side, which over HTTP/2 nobody does who waits for something."""

    def eof_received(self) -> bool:
        super().eof_received()
        return False


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
        await self._drained()

    async def _drained(self) -> None:
        """Wait until little of the reply lies with hypercorn, which takes ever more as soon as the client's window is shut."""
        buffer = self._buffer()
        if buffer is None:
            return
        limits = self._limits
        while len(buffer.buffer) >= BUFFER_HIGH_WATER:
            before = len(buffer.buffer)
            try:
                async with asyncio.timeout(limits.stalled_reply_s or None):
                    while len(buffer.buffer) >= BUFFER_HIGH_WATER:
                        await buffer._paused.wait()
                        await buffer._paused.clear()
            except TimeoutError:
                if before - len(buffer.buffer) < limits.progress_byte_size:
                    raise _Stalled from None

    def _buffer(self) -> StreamBuffer | None:
        """Where hypercorn keeps what the client has not taken."""
        stream = getattr(self._send, "__self__", None)
        state = getattr(stream.send, "__self__", None) if isinstance(stream, HTTPStream) else None
        return state.stream_buffers.get(stream.stream_id) if stream is not None and isinstance(state, H2Protocol) else None

    def discard(self) -> None:
        """Forget messages that nobody will ask for: hypercorn has one more to leave, and would wait for room for it."""
        queue = getattr(self._receive, "__self__", None)
        if isinstance(queue, asyncio.Queue):
            while not queue.empty():
                queue.get_nowait()

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
        finally:
            stream.discard()


class Http2Serving:
    """What the HTTP/2 connections of a door share."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        config = Config()
        config.include_server_header = False
        config.include_date_header = False
        config.errorlog = _logger
        config.keep_alive_max_requests = 2**31
        config.h2_max_header_list_size = limits.head_byte_size
        self._config = config
        self._app = wrap_app(cast(ASGIFramework, _Bounded(app, limits)), config.wsgi_max_body_size, None)
        self._context = WorkerContext(None)
        self._limits = limits

    def connect(self, transport: asyncio.Transport, received: bytes) -> Http2Connection:
        """Serve a connection from now on; ``received`` is what was read of it, from its first byte."""
        loop = asyncio.get_running_loop()
        transport.pause_reading()
        reader = asyncio.StreamReader(loop=loop)
        protocol = _Received(reader, loop=loop)
        transport.set_write_buffer_limits()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        reader.feed_data(received)
        transport.resume_reading()
        return Http2Connection(self._app, self._config, self._context, self._limits, reader, writer)

    async def stop(self) -> None:
        """Have every connection know that the end is near."""
        await self._context.terminated.set()

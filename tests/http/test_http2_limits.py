"""What a client may cost over HTTP/2: idle connections make room, and nobody is waited for without end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event, StreamEnded, StreamReset
from h2.settings import SettingCodes
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import RawData
from starlette.types import Receive, Scope, Send

from tensorfarm.server.door.tls import Tls
from tensorfarm.server.http.http2 import Http2
from tensorfarm.server.http.http2_connection import Http2Connection
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tests.certificates import Authority
from tests.http import doors
from tests.http.doors import BRISK, PATIENCE_S, QuietTransport, Recorder, a_client, run, until

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
BIG = bytes(1 << 20)
KEPT = Limits(sweep_s=0.02, head_s=0.2, linger_s=0.2)
"""Brisk, but whoever is idle may stay."""


class App:
    """Answers at once, "/big" with more than anybody takes at a time, "/held" when told, and "/deaf" never, whatever comes."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.asked: list[str] = []
        self.cancelled = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        if scope["path"] == "/held":
            await self.held.wait()
        if scope["path"] == "/deaf":
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": BIG if scope["path"] == "/big" else b"ok"})


class Talk:
    """An HTTP/2 client that sends and reads only when told."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.state = H2Connection(H2Configuration(client_side=True))
        self.state.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.writer.write(self.state.data_to_send())

    def ask(self, path: str, ended: bool = True) -> int:
        stream = self.state.get_next_available_stream_id()
        fields = [(":method", "GET" if ended else "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
        self.state.send_headers(stream, fields, end_stream=ended)
        self.flush()
        return stream

    async def until(self, kind: type[Event]) -> Event:
        """The next event of this kind."""
        while True:
            received = await asyncio.wait_for(self.reader.read(65_536), PATIENCE_S)
            assert received, f"closed without {kind.__name__}"
            for event in self.state.receive_data(received):
                if isinstance(event, kind):
                    return event

    async def ended(self) -> bool:
        """Whether the server closes the connection, and says so before."""
        await self.until(ConnectionTerminated)
        return await asyncio.wait_for(self.reader.read(), PATIENCE_S) == b""


@asynccontextmanager
async def a_door(app: App, limits: Limits, tls: Tls | None = None) -> AsyncIterator[HttpDoor]:
    async with doors.a_door(Recorder(), None, limits, Http2(app, limits), tls) as door:
        yield door


async def talk(door: HttpDoor, stack: AsyncExitStack) -> Talk:
    made = Talk(*await asyncio.open_connection("127.0.0.1", door.port))
    stack.callback(made.writer.transport.abort)
    return made


async def served(door: HttpDoor) -> bool:
    """Whether an everyday client is."""
    async with a_client(door) as client:
        await client.send(GET)
        return (await client.reply())[0] == 200


def test_idle_connections_make_room() -> None:
    """At the limit those idle for longest go, and are told; the one at work stays."""

    async def scenario() -> None:
        app = App()
        limits = Limits(connections=4, spare_connections=0, sweep_s=0.02, reclaim_idle_s=0.1)
        async with a_door(app, limits) as door, AsyncExitStack() as stack:
            busy, *idle = [await talk(door, stack) for _ in range(4)]
            for one in idle:
                one.ask("/")
                await one.until(StreamEnded)
            busy.ask("/held")
            await until(lambda: "/held" in app.asked)
            before = door.now
            await until(lambda: door.now > before + 0.2)
            assert await served(door)
            for one in idle:
                assert await one.ended()
            await until(lambda: door.connection_count == 1)
            assert not door._leaving
            app.held.set()
            await busy.until(StreamEnded)

    run(scenario)


def test_who_asks_nothing_goes() -> None:
    """A first request has to come in the time for a head, whatever else does; after that the time for idle connections counts."""

    async def scenario() -> None:
        app = App()
        async with a_door(app, KEPT) as door, AsyncExitStack() as stack:
            asked, silent = await talk(door, stack), await talk(door, stack)
            asked.ask("/")
            await asked.until(StreamEnded)
            with suppress(ConnectionError):  # the end may come while it writes
                while not silent.reader.at_eof() and not silent.writer.is_closing():
                    silent.state.ping(b"8 octets")
                    silent.flush()
                    await asyncio.wait_for(silent.reader.read(65_536), PATIENCE_S)
            await until(lambda: door.connection_count == 1)
            asked.ask("/")
            await asked.until(StreamEnded)
        async with a_door(app, BRISK) as door, AsyncExitStack() as stack:
            asked = await talk(door, stack)
            asked.ask("/")
            await asked.until(StreamEnded)
            assert await asked.ended()

    run(scenario)


@pytest.mark.parametrize("sealed", [False, True])
def test_who_takes_nothing_goes(sealed: bool, authority: Authority, tls: Tls) -> None:
    """Windows wide open, and not a byte read: the connection ends, whatever waits to be sent."""

    async def scenario() -> None:
        limits = Limits(sweep_s=0.02, stalled_reply_s=0.3)
        async with a_door(App(), limits, tls if sealed else None) as door:
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.settimeout(PATIENCE_S)
            await asyncio.to_thread(raw.connect, ("127.0.0.1", door.port))
            client: socket.socket | ssl.SSLSocket = raw
            if sealed:
                context = authority.client(alpn=("h2",))
                client = await asyncio.to_thread(lambda: context.wrap_socket(raw, server_hostname="localhost"))
            state = H2Connection(H2Configuration(client_side=True))
            state.initiate_connection()
            state.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 30})
            state.increment_flow_control_window(1 << 30)
            for stream in range(1, 41, 2):
                fields = [(":method", "GET"), (":path", "/big"), (":scheme", "http"), (":authority", "x")]
                state.send_headers(stream, fields, end_stream=True)
            await asyncio.to_thread(client.sendall, state.data_to_send())
            await until(lambda: door.connection_count == 1 and door.http2 is not None and door.http2.connection_count == 1)
            await until(lambda: door.connection_count == 0)
            client.close()

    run(scenario)


def test_what_leaves_counts_not_what_waits() -> None:
    """A reader is slow only where less than 4 KiB leave in the time, however much is written meanwhile."""

    class Unasked(Http2Connection):
        async def run(self) -> None:
            await asyncio.Event().wait()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        transport, reader = QuietTransport(), asyncio.StreamReader()
        writer = asyncio.StreamWriter(transport, asyncio.StreamReaderProtocol(reader), reader, loop)
        nothing: Any = None
        limits = Limits(head_s=0, stalled_reply_s=60)
        connection = Unasked(nothing, Config(), WorkerContext(None), limits, reader, writer)
        transport.unsent = 100_000
        await connection.protocol_send(RawData(bytes(100_000)))
        now = connection.heard
        for _ in range(5):
            now += 50
            await connection.protocol_send(RawData(bytes(limits.progress_byte_size)))
            connection.sweep(now)
            assert not transport.aborted
        now += 50
        transport.unsent += limits.progress_byte_size - 1
        await connection.protocol_send(RawData(bytes(2 * limits.progress_byte_size - 2)))
        connection.sweep(now)
        assert not transport.aborted
        connection.sweep(now + 11)
        assert transport.aborted
        connection.task.cancel()

    run(scenario)


def test_a_reply_that_was_given_up_is_dropped() -> None:
    """A window that stays shut costs the reply, not the connection, and not the memory until that ends."""

    async def scenario() -> None:
        limits = Limits(sweep_s=0.02, stalled_reply_s=0.1)
        async with a_door(App(), limits) as door, AsyncExitStack() as stack:
            client = await talk(door, stack)
            stream = client.ask("/big")
            reset = await client.until(StreamReset)
            assert isinstance(reset, StreamReset) and reset.stream_id == stream
            assert door.http2 is not None
            (connection,) = door.http2.connections
            await until(lambda: connection.idle)
            client.state.increment_flow_control_window(1 << 20)
            client.ask("/")
            await client.until(StreamEnded)

    run(scenario)


def test_a_client_that_has_gone_is_not_waited_for() -> None:
    """Its bytes wait for an app that does not ask for them; the app is ended."""

    async def scenario() -> None:
        app = App()
        async with a_door(app, KEPT) as door, AsyncExitStack() as stack:
            client = await talk(door, stack)
            stream = client.ask("/deaf", ended=False)
            for _ in range(30):
                client.state.send_data(stream, b"x")
            client.flush()
            await until(lambda: app.asked == ["/deaf"])
            client.writer.transport.abort()
            await until(lambda: door.connection_count == 0)
            assert app.cancelled == 1

    run(scenario)


def test_a_door_that_closes_tells_idle_clients() -> None:
    """At once, and those at work when they have their reply."""

    async def scenario() -> None:
        app = App()
        # nothing is left to the door's look
        async with a_door(app, Limits(sweep_s=1000)) as door, AsyncExitStack() as stack:
            idle, busy = await talk(door, stack), await talk(door, stack)
            idle.ask("/")
            await idle.until(StreamEnded)
            busy.ask("/held")
            await until(lambda: "/held" in app.asked)
            await door.stop_accepting()
            assert await idle.ended()
            app.held.set()
            await busy.until(StreamEnded)

    run(scenario)

"""HTTP/2 by prior knowledge on the HTTP port: the same app, on hypercorn's protocol."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import cast

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, ResponseReceived, StreamEnded

from tensorfarm.server.door.body import ArenaBody
from tensorfarm.server.http import front, inference
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest, Reply
from tensorfarm.server.http.front import own_front
from tensorfarm.server.http.infer_head import InferHead
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tensorfarm.server.service import Service
from tensorfarm.shm.arena import Arena
from tests.http.doors import BRISK, PATIENCE_S, a_client, an_arena, run, until
from tests.http.small_service import SmallService

CANCELLED: list[str] = []


def infer(service: object, head: InferHead, request: HttpRequest, answer: Answer) -> Cancel | None:
    """A stand-in for inference: answers what it was asked; the model "slow" never ends."""
    kind = "arena" if isinstance(request.body, ArenaBody) else "inline"
    total = sum(request.body.view)
    request.body.release()
    if head.model == "slow":
        return lambda: CANCELLED.append(head.model)
    length = (request.head.header(b"inference-header-content-length") or b"").decode()
    body = json.dumps([head.model, head.version, kind, total, length, request.peer_is_local]).encode()
    headers = ((b"Content-Type", b"application/json"), (b"Inference-Header-Content-Length", b"5"))
    answer(Reply(200, headers, (body[:5], memoryview(body)[5:])))
    return None


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inference, front):
        monkeypatch.setattr(module, "infer", infer)
    CANCELLED.clear()


class Http2Client:
    """A minimal HTTP/2 client, without TLS and without an upgrade."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._state = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._early: list[Event] = []
        self._state.initiate_connection()
        self._flush()

    def _flush(self) -> None:
        self._writer.write(self._state.data_to_send())

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, ended: bool = True) -> int:
        """Send a request's headers; the stream's number."""
        stream = self._state.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "x"), *(headers or {}).items()]
        self._state.send_headers(stream, fields, end_stream=ended)
        self._flush()
        return stream

    async def send_body(self, stream: int, content: bytes, ended: bool = True) -> None:
        while content:
            room = min(self._state.local_flow_control_window(stream), self._state.max_outbound_frame_size, len(content))
            if room == 0:
                self._early += await self._events()
                continue
            self._state.send_data(stream, content[:room], end_stream=ended and room == len(content))
            content = content[room:]
            self._flush()

    async def _events(self) -> list[Event]:
        received = await asyncio.wait_for(self._reader.read(65_536), PATIENCE_S)
        assert received, "the server closed the connection"
        events = self._state.receive_data(received)
        for event in events:
            if isinstance(event, DataReceived):
                self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        self._flush()
        return events

    async def reply(self, stream: int) -> tuple[int, dict[str, str], bytes]:
        """The complete reply on a stream."""
        headers: dict[str, str] = {}
        body = b""
        while True:
            events, self._early = self._early or await self._events(), []
            for event in events:
                if isinstance(event, ResponseReceived):
                    headers = {str(name): str(value) for name, value in event.headers}
                elif isinstance(event, DataReceived):
                    body += event.data
                elif isinstance(event, StreamEnded) and event.stream_id == stream:
                    return int(headers[":status"]), headers, body

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        self._writer.transport.abort()


async def connected(door: HttpDoor) -> Http2Client:
    return Http2Client(*await asyncio.open_connection("127.0.0.1", door.port))


def test_requests_over_http2() -> None:
    """Routes, restricted APIs, raw paths and inference with small and big bodies."""

    async def scenario() -> None:
        with an_arena() as arena:
            door = own_front(cast(Service, SmallService(arena)), {"logging": ("x-key", "secret")}).door()
            await door.start("127.0.0.1", 0, False)
            client = await connected(door)
            assert (await client.reply(client.ask("GET", "/v2/health/live")))[::2] == (200, b"")
            assert (await client.reply(client.ask("GET", "/%76%32")))[::2] == (404, b'{"error":"Not Found"}')
            assert (await client.reply(client.ask("GET", "/v2/models/a%64d")))[0] == 404
            assert (await client.reply(client.ask("GET", "/v2/logging")))[0] == 403
            assert (await client.reply(client.ask("GET", "/v2/logging", {"x-key": "secret"})))[0] == 200
            assert (await client.reply(client.ask("GET", "/v2/models/add/infer")))[0] == 405
            for size, kind in [(100, "inline"), (300_000, "arena")]:
                stream = client.ask("POST", "/v2/models/add/versions/1/infer", {"inference-header-content-length": "7"}, ended=False)
                await client.send_body(stream, b"\1" * size)
                status, headers, body = await client.reply(stream)
                assert (status, json.loads(body)) == (200, ["add", "1", kind, size, "7", True])
                assert headers["inference-header-content-length"] == "5"
            assert door.connection_count == 1
            await door.stop_accepting()
            await until(lambda: door.connection_count == 0)
            client.abort()
            await door.close()

    run(scenario)


def test_disconnect_cancels_over_http2() -> None:
    """A client that goes while its inference runs cancels it."""

    async def scenario() -> None:
        with an_arena() as arena:
            door = own_front(cast(Service, SmallService(arena)), {}).door()
            await door.start("127.0.0.1", 0, False)
            client = await connected(door)
            stream = client.ask("POST", "/v2/models/slow/infer", ended=False)
            await client.send_body(stream, b"{}")
            assert (await client.reply(client.ask("GET", "/v2/health/live")))[0] == 200
            assert CANCELLED == []
            client.abort()
            await until(lambda: CANCELLED == ["slow"])
            await door.close()

    run(scenario)


def test_preface_in_pieces_and_look_alikes() -> None:
    """The preface may come in pieces; what only begins like it is HTTP/1.1."""

    async def scenario() -> None:
        with an_arena() as arena:
            door = own_front(cast(Service, SmallService(arena)), {}).door()
            await door.start("127.0.0.1", 0, False)
            async with a_client(door) as client:
                for piece in (b"P", b"OST /v2/health/live HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"):
                    await client.send(piece)
                    await asyncio.sleep(0)
                assert (await client.reply())[0] == 405
            async with a_client(door) as client:
                for piece in (b"PRI * HT", b"TP/2.0\r\n\r\n", b"SM\r\n\r\n", b"\0\0\0\4\0\0\0\0\0"):
                    await client.send(piece)
                    await asyncio.sleep(0.01)
                frame = await asyncio.wait_for(client.reader.readexactly(9), PATIENCE_S)
                assert frame[3] == 4, "not a SETTINGS frame"
            await door.close()

    run(scenario)


def test_httpx_over_http1_beside_it() -> None:
    """An everyday client meets the same app over HTTP/1.1."""

    async def scenario() -> None:
        with an_arena() as arena:
            door = own_front(cast(Service, SmallService(arena)), {}).door()
            await door.start("127.0.0.1", 0, False)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.port}", timeout=PATIENCE_S) as client:
                assert (await client.get("/v2")).json()["name"] == "small"
                reply = await client.post("/v2/models/add/infer", content=b"\1" * 200_000)
                assert reply.json()[2:4] == ["arena", 200_000]
            await door.close()

    run(scenario)


async def _served(scenario: Callable[[HttpDoor, Arena], Awaitable[None]], limits: Limits | None = None) -> None:
    with an_arena() as arena:
        door = own_front(cast(Service, SmallService(arena)), {"logging": ("x-key", "secret")}, limits).door()
        await door.start("127.0.0.1", 0, False)
        try:
            await scenario(door, arena)
        finally:
            await door.close()


def test_connections_end_with_their_client() -> None:
    """A client that closes after its reply, or within its request, leaves no connection behind, nor its descriptor."""

    async def scenario(door: HttpDoor, arena: Arena) -> None:
        (await connected(door)).abort()  # the loop keeps a descriptor from its first connection on
        await until(lambda: door.connection_count == 0)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            client = await connected(door)
            assert (await client.reply(client.ask("GET", "/v2/health/live")))[0] == 200
            client.close()
            client = await connected(door)
            await client.send_body(client.ask("POST", "/nothing", ended=False), bytes(1 << 20), ended=False)
            client.abort()
        await until(lambda: door.connection_count == 0 and len(os.listdir("/proc/self/fd")) <= before)

    run(lambda: _served(scenario))


def test_refused_uploads_keep_the_connection() -> None:
    """A big body to a route that does not read it is read over; the connection goes on."""

    async def scenario(door: HttpDoor, arena: Arena) -> None:
        client = await connected(door)
        for path, status in (("/nothing", 404), ("/v2/logging", 403), ("/v2/systemsharedmemory/region/r/register", 400)):
            stream = client.ask("POST", path, ended=False)
            await client.send_body(stream, bytes(5 << 20))
            assert (await client.reply(stream))[0] == status
        client.abort()

    run(lambda: _served(scenario))


def test_bodies_grow_in_the_arena() -> None:
    """An unfinished body lies in the arena, keeps to the time limit, and goes with its connection."""

    async def scenario(door: HttpDoor, arena: Arena) -> None:
        client = await connected(door)
        stream = client.ask("POST", "/v2/models/add/infer", ended=False)
        await client.send_body(stream, bytes(300_000), ended=False)
        await until(lambda: arena.used_byte_size >= 300_000)
        assert (await client.reply(stream))[0] == 500
        await until(lambda: arena.used_byte_size == 0)
        stream = client.ask("POST", "/v2/models/add/infer", ended=False)
        await client.send_body(stream, bytes(300_000), ended=False)
        client.abort()
        await until(lambda: arena.used_byte_size == 0 and door.connection_count == 0)

    run(lambda: _served(scenario, BRISK))


def test_body_without_room_is_refused() -> None:
    async def scenario(door: HttpDoor, arena: Arena) -> None:
        client = await connected(door)
        stream = client.ask("POST", "/v2/models/add/infer", ended=False)
        await client.send_body(stream, bytes(arena.capacity_byte_size + 1))
        assert (await client.reply(stream))[0] == 413
        assert arena.used_byte_size == 0
        client.abort()

    run(lambda: _served(scenario))


def test_reply_that_nobody_takes_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose window stays shut cannot hold a reply for longer than over HTTP/1.1."""
    sent = asyncio.Event()

    def big(service: object, head: InferHead, request: HttpRequest, answer: Answer) -> None:
        request.body.release()
        answer(Reply(200, (), (bytes(1 << 20),), sent.set))

    for module in (inference, front):
        monkeypatch.setattr(module, "infer", big)

    async def scenario(door: HttpDoor, arena: Arena) -> None:
        client = await connected(door)
        client.ask("POST", "/v2/models/add/infer")
        await asyncio.wait_for(sent.wait(), PATIENCE_S)
        client.abort()

    run(lambda: _served(scenario, BRISK))

"""Connections: what is answered without a call, what ends them, and that they leave nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tensorfarm.server.admission import Admission
from tensorfarm.server.grpc import frames
from tensorfarm.server.grpc.connection import Connection
from tensorfarm.server.grpc.frames import ErrorCode
from tensorfarm.server.grpc.header_block import written
from tensorfarm.server.grpc.http2 import Http2Limits
from tensorfarm.server.grpc.limits import Limits
from tensorfarm.server.grpc.listener import GrpcDoor, own_door
from tests.http.doors import Client, QuietTransport, an_arena, run, until

from .doors import BRISK, Methods, Silent, a_grpc_client, a_grpc_door, message, messages_in, options
from .sans_io import cancel, data, frames_in, headers

RANDOM = random.Random(9).randbytes(8_000_000)


def call_head(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The header block of a call."""
    return written(((b":method", b"POST"), (b":path", path), (b"content-type", b"application/grpc"), *more))


@contextlib.asynccontextmanager
async def a_raw_client(door: GrpcDoor, *settings: tuple[int, int]) -> AsyncIterator[Client]:
    """A connection that sends what a test wants it to, after the preface."""
    client = Client(*await asyncio.open_connection("127.0.0.1", door.port))
    try:
        await client.send(frames.PREFACE + frames.settings(dict(settings)))
        yield client
    finally:
        client.abort()


async def goodbye(client: Client) -> tuple[ErrorCode, bytes]:
    """Why the server ended the connection."""
    last = frames_in(await client.rest())[-1]
    assert last.kind == frames.GOAWAY
    return ErrorCode(int.from_bytes(last.content[4:8], "big")), last.content[8:]


def test_what_no_call_is_made_of() -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods()) as door, a_grpc_client(door) as client:
            for path in ("/none", "/", "echo", "/echo/"):
                reply = await client.call(path, message(b"x"))
                assert reply.status == (12, "")
            number = client.state.get_next_available_stream_id()
            for fields, status in (([(":method", "GET"), ("content-type", "application/grpc")], "405"), ([(":method", "POST")], "415")):
                number = client.state.get_next_available_stream_id()
                client.replies[number] = type(reply)()
                client.state.send_headers(
                    number, [*fields[:1], (":path", "/echo"), (":scheme", "http"), (":authority", "x"), *fields[1:]], end_stream=True
                )
                await client.flush()
                found = await client.reply(number)
                assert dict(found.headers)[":status"] == status and found.ended

    run(scenario)


def test_calls_are_answered_side_by_side() -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            async with a_grpc_door(Methods(), arena) as door, a_grpc_client(door) as client:
                numbers = [client.open("/echo") for _ in range(50)]
                sizes = {number: random.Random(number).choice([0, 10, 5000, 70_000]) for number in numbers}
                for number in random.Random(1).sample(numbers, 50):
                    await client.send(number, message(RANDOM[number:][: sizes[number]]))
                for number in numbers:
                    found = await client.reply(number)
                    assert messages_in(found.content) == [(0, RANDOM[number:][: sizes[number]])] and found.status == (0, "")

    run(scenario)


def test_bytes_that_drip() -> None:
    """Each in a segment of its own."""
    content = headers(1, call_head(b"/echo")) + data(1, message(b"abc"), frames.END_STREAM)

    async def scenario() -> None:
        methods = Methods()
        async with a_grpc_door(methods) as door, a_raw_client(door) as client:
            for at in range(len(content)):
                await client.send(content[at : at + 1])
                await asyncio.sleep(0)
            await until(lambda: bool(methods.begun) and methods.begun[0].has_ended)
            assert methods.begun[0].messages == [b"abc"]

    run(scenario)


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (data(5, b"x"), ErrorCode.PROTOCOL_ERROR),
        (headers(3, b"\xff\xff"), ErrorCode.COMPRESSION_ERROR),
        (frames.frame(frames.PING, 0, 0, bytes(8)) * 2000, ErrorCode.ENHANCE_YOUR_CALM),
        (frames.frame(frames.SETTINGS, 0, 0) * 2000, ErrorCode.ENHANCE_YOUR_CALM),
        (frames.window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
def test_a_broken_rule_ends_the_connection_and_all_that_it_held(broken: bytes, code: ErrorCode) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_raw_client(door) as client:
                await client.send(headers(1, call_head(b"/silent")) + data(1, message(RANDOM[:200_000])[:50_000]))
                await until(lambda: arena.used_byte_size > 0)
                await client.send(broken)
                assert (await goodbye(client))[0] is code
                await until(lambda: methods.begun[0].has_gone and arena.used_byte_size == 0)

    run(scenario)


def test_pings_without_calls_are_too_many_soon() -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods()) as door, a_raw_client(door) as client:
            await client.send(frames.frame(frames.PING, 0, 0, bytes(8)) * 4)
            assert await goodbye(client) == (ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
        async with a_grpc_door(Methods(), grpc_http2_max_ping_strikes=0) as door, a_grpc_client(door) as second:
            for _ in range(100):
                second.state.ping(bytes(8))
            assert (await second.call("/echo", message(b"x"))).status == (0, "")

    run(scenario)


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00"])
def test_who_speaks_something_else_is_told(content: bytes) -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods()) as door:
            client = Client(*await asyncio.open_connection("127.0.0.1", door.port))
            await client.send(content)
            assert (await goodbye(client))[0] is ErrorCode.PROTOCOL_ERROR
            client.abort()

    run(scenario)


@pytest.mark.parametrize("content", [b"", frames.PREFACE[:-1]])
def test_who_says_nothing_is_left(content: bytes) -> None:
    async def scenario() -> None:
        async with a_grpc_door(Methods(), limits=BRISK) as door:
            client = Client(*await asyncio.open_connection("127.0.0.1", door.port))
            await client.send(content)
            await client.rest()
            client.abort()

    run(scenario)


def test_streams_beyond_the_limit_are_refused() -> None:
    async def scenario() -> None:
        methods = Methods()
        async with a_grpc_door(methods, http2_limits=Http2Limits(streams=3)) as door, a_raw_client(door) as client:
            await client.send(b"".join(headers(number, call_head(b"/silent")) for number in (1, 3, 5, 7)))
            await client.send(cancel(1) + headers(9, call_head(b"/silent")))
            await until(lambda: len(methods.begun) == 4)
            door.stop_accepting()
            await client.send(cancel(3) + cancel(5) + cancel(9))
            found = frames_in(await client.rest())
            assert [(one.number, one.content) for one in found if one.kind == frames.RST_STREAM] == [(7, b"\0\0\0\7")]

    run(scenario)


def test_opening_and_resetting_in_a_loop() -> None:
    """Also with a message: nothing is left of it, and others are served."""

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods()
            async with a_grpc_door(methods, arena) as door, a_raw_client(door) as client, a_grpc_client(door) as other:
                for begin in range(1, 6001, 2000):
                    part = message(RANDOM[:100_000])[:10]
                    content = [
                        headers(number, call_head(b"/silent")) + data(number, part) + cancel(number)
                        for number in range(begin, begin + 2000, 2)
                    ]
                    await client.send(b"".join(content))
                    assert (await other.call("/echo", message(b"x"))).status == (0, "")
                await until(lambda: sum(begun.has_gone for begun in methods.begun) == 3000)
                assert arena.used_byte_size == 0

    run(scenario)


class Large(Silent):
    """Answers with many bytes."""

    def ended(self) -> None:
        super().ended()
        self.rpc.reply((memoryview(RANDOM),), self._release)


def test_a_client_that_tells_of_every_frame_is_no_flood() -> None:
    """All has been handed to the socket when the first of its thousand updates comes."""

    async def scenario() -> None:
        methods = Methods(large=Large)
        async with a_grpc_door(methods) as door, a_raw_client(door, (frames.INITIAL_WINDOW_SIZE, 2**30)) as client:
            await client.send(frames.window_update(0, 2**30) + headers(1, call_head(b"/large")) + data(1, message(b""), frames.END_STREAM))
            stream = bytearray()
            while len(stream) < len(RANDOM):
                piece = await client.reader.read(4096)
                assert piece, "the connection was ended"
                stream += piece
                await client.send(frames.window_update(0, len(piece)) + frames.window_update(1, len(piece)))
            assert (await goodbye_or_nothing(client)) is None

    run(scenario)


async def goodbye_or_nothing(client: Client) -> bytes | None:
    """What comes next but for a reply's end, if it is the connection's."""
    await client.send(headers(3, call_head(b"/echo")) + data(3, message(b"x"), frames.END_STREAM))
    seen = b""
    while message(b"x") not in seen:
        piece = await asyncio.wait_for(client.reader.read(65_536), 5)
        if not piece:
            return seen
        seen += piece
    return None


def test_a_client_that_reads_nothing_is_left() -> None:
    async def scenario() -> None:
        methods = Methods(large=Large)
        async with a_grpc_door(methods, limits=BRISK) as door, a_raw_client(door, (frames.INITIAL_WINDOW_SIZE, 2**30)) as client:
            cast(Any, client.writer.transport).pause_reading()
            calls = [headers(number, call_head(b"/large")) + data(number, message(b""), frames.END_STREAM) for number in (1, 3, 5)]
            await client.send(frames.window_update(0, 2**30) + b"".join(calls))
            await until(lambda: len(methods.begun) == 3 and all(begun.released for begun in methods.begun))
            assert door.admission.held_byte_size == 0

    run(scenario)


def test_a_client_that_must_read_first_is_not_read_from() -> None:
    """It makes the server answer and takes nothing."""

    async def scenario() -> None:
        service = SimpleNamespace(options=options(), arena=None, admission=Admission())
        door = own_door(cast(Any, service))
        connection = Connection(door)
        transport = QuietTransport()
        connection.connection_made(transport)
        content = frames.PREFACE + frames.settings({}) + headers(1, call_head(b"/none"))
        view = connection.get_buffer(-1)
        view[: len(content)] = content
        connection.buffer_updated(len(content))
        transport.unsent = 2 << 20
        connection.pause_writing()
        view[: len(content)] = headers(3, call_head(b"/none")).ljust(len(content), b"\0")
        connection.buffer_updated(len(headers(3, call_head(b"/none"))))
        stopped = not transport.reading
        transport.unsent = 0
        connection.resume_writing()
        assert stopped and transport.reading
        connection.connection_lost(None)

    run(scenario)


def test_the_server_asks_whether_a_client_is_there() -> None:
    async def scenario() -> None:
        flags: dict[str, Any] = {"grpc_keepalive_time": 20, "grpc_keepalive_timeout": 100, "grpc_keepalive_permit_without_calls": True}
        async with a_grpc_door(Methods(), limits=BRISK, **flags) as door:
            async with a_grpc_client(door) as client, a_raw_client(door) as silent:
                await client.until(lambda: client.pings > 0)
                kinds = [one.kind for one in frames_in(await silent.rest())]
                assert frames.PING in kinds

    run(scenario)


def test_an_old_connection_is_left() -> None:
    async def scenario() -> None:
        methods = Methods()
        async with a_grpc_door(methods, limits=BRISK, grpc_max_connection_age=50) as door, a_grpc_client(door) as client:
            number = client.open("/silent")
            await client.send(number, message(b"x"))
            await client.until(lambda: client.terminated is not None)
            methods.begun[0].rpc.reply((b"still",), lambda: None)
            assert messages_in((await client.reply(number)).content) == [(0, b"still")]
            await client.end_of_server()
        async with (
            a_grpc_door(methods, limits=BRISK, grpc_max_connection_age=50, grpc_max_connection_age_grace=50) as door,
            a_grpc_client(door) as client,
        ):
            client.open("/silent")
            await client.flush()
            await client.end_of_server()
            await until(lambda: bool(methods.begun[-1].has_gone))

    run(scenario)


def test_a_call_that_cannot_begin_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    def cannot_begin(rpc: Any) -> Silent:
        raise ZeroDivisionError

    async def scenario() -> None:
        async with a_grpc_door(Methods(hopeless=cannot_begin)) as door, a_grpc_client(door) as client:
            assert (await client.call("/hopeless", message(b"x"))).status == (13, "internal error")
            assert (await client.call("/echo", message(b"x"))).status == (0, "")

    run(scenario)
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_connection_that_fails_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Its other calls are told, and what they held is given back."""

    class Broken(Silent):
        def ended(self) -> None:
            raise ZeroDivisionError

    async def scenario() -> None:
        with an_arena() as arena:
            methods = Methods(broken=Broken)
            async with a_grpc_door(methods, arena) as door, a_grpc_client(door) as good, a_raw_client(door) as bad:
                await bad.send(headers(1, call_head(b"/silent")) + data(1, message(RANDOM[:100_000])[:5000]))
                await bad.send(headers(3, call_head(b"/broken")) + data(3, message(b"x"), frames.END_STREAM))
                assert (await goodbye(bad))[0] is ErrorCode.INTERNAL_ERROR
                await until(lambda: arena.used_byte_size == 0 and methods.begun[0].has_gone)
                assert (await good.call("/echo", message(b"x"))).status == (0, "")

    run(scenario)
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_half_closed_client_has_gone() -> None:
    async def scenario() -> None:
        methods = Methods()
        async with a_grpc_door(methods, limits=Limits()) as door, a_raw_client(door) as client:
            await client.send(headers(1, call_head(b"/silent")))
            await until(lambda: len(methods.begun) == 1)
            assert door.answering_count == 1
            client.writer.write_eof()
            await until(lambda: bool(methods.begun[0].has_gone))

    run(scenario)

"""Clients that end their side: some still wait for their replies, some have gone."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tensorfarm.server.http import connection as module
from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.exchange import Answer, Cancel, Stream, StreamingRequest
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tests.http.doors import QuietTransport, Recorder, a_client, a_door, an_arena, replies_in, run, until

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
PATIENT = Limits(half_close_s=60.0)
IMPATIENT = Limits(half_close_s=-1.0)
CURIOUS = Limits(half_close_s=0.1)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def the_end_is_known(door: HttpDoor) -> None:
    """Wait until the server has seen the client's end, while requests of it are unanswered."""
    (connection,) = door._connections
    assert isinstance(connection, Connection)
    await until(lambda: connection._ended)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_replies_come_to_a_client_that_says_no_more(count: int, at_once: bool) -> None:
    """Whatever was sent before the end is answered, in order, however much waits; then the connection closes."""
    recorder = Recorder(at_once=at_once)

    async def scenario() -> None:
        async with a_door(recorder, None, PATIENT) as door, a_client(door) as client:
            await client.send(b"".join(GET % number for number in range(count)))
            client.writer.write_eof()
            if not at_once and count < 10:
                # with more that wait the server has stopped to read, and sees the end later
                await the_end_is_known(door)
            ended = asyncio.ensure_future(client.rest())
            while not ended.done() and len(recorder.seen) < count:
                await until(lambda: ended.done() or bool(recorder.held))
                if recorder.held:
                    recorder.answer_next()
            while recorder.held:
                recorder.answer_next()
            assert [status for status, _ in replies_in(await ended)] == [200] * count
            await until(lambda: door.connection_count == 0)

    run(scenario)
    assert [path for _, path, _, _ in recorder.seen] == [f"/{number}" for number in range(count)]
    assert recorder.cancelled == []


def test_default_gives_a_client_time_to_say_that_it_is_done() -> None:
    """A quarter of a second is the rule."""
    assert Limits().half_close_s == 0.25


def test_a_client_that_ends_later_has_gone() -> None:
    """What it waited for is cancelled, and what waits behind is not begun."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, IMPATIENT) as door, a_client(door) as client:
            await client.send(GET % 1 + GET % 2)
            await until(lambda: len(recorder.held) == 1)
            client.writer.write_eof()
            await until(lambda: recorder.cancelled == ["/1"])
            assert await client.rest() == b""

    run(scenario)
    assert len(recorder.seen) == 1


def test_a_body_that_took_its_time_ends_now() -> None:
    """The time counts from the request's last byte, not from its first."""
    recorder = Recorder(at_once=False)
    limits = Limits(half_close_s=0.2)

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_door(recorder, arena, limits) as door, a_client(door) as client:
                await client.send(POST % 100_000 + bytes(50_000))
                await asyncio.sleep(0.3)
                await client.send(bytes(50_000))
                client.writer.write_eof()
                await until(lambda: len(recorder.held) == 1)
                await the_end_is_known(door)
                recorder.answer_next()
                assert [(status, len(body)) for status, body in replies_in(await client.rest())] == [(200, 100_000)]

    run(scenario)


@pytest.mark.parametrize(("seconds", "waits"), [(0.0, True), (1.0, False)])
def test_an_end_that_could_not_be_seen_ends_now(monkeypatch: pytest.MonkeyPatch, seconds: float, waits: bool) -> None:
    """While a reply has not left nothing is read, the client's end neither: the time counts from when it could be seen."""
    ahead = 0.0
    real = time.monotonic
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: real() + ahead))
    recorder = Recorder(at_once=False)
    transport = QuietTransport()
    connection = Connection(HttpDoor(recorder))
    connection.connection_made(transport)
    content = GET % 1 + GET % 2
    connection.get_buffer(-1)[: len(content)] = content
    connection.buffer_updated(len(content))
    connection.pause_writing()
    recorder.answer_next()
    assert not transport.reading
    ahead = 10.0
    connection.resume_writing()
    assert transport.reading
    assert len(recorder.held) == 1
    ahead += seconds
    assert connection.eof_received() is waits
    connection.connection_lost(None)


@pytest.mark.parametrize("rest", [b"GET /2 HTTP/1.1\r\nHo", POST % 10 + b"12345", POST % 90_000 + bytes(70_000)])
def test_half_a_request_is_never_answered(rest: bytes) -> None:
    """What was whole before it is; the other half cannot come any more."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_door(recorder, arena, PATIENT) as door, a_client(door) as client:
                await client.send(GET % 1 + rest)
                client.writer.write_eof()
                await until(lambda: len(recorder.held) == 1)
                await the_end_is_known(door)
                recorder.answer_next()
                assert [status for status, _ in replies_in(await client.rest())] == [200]
                await until(lambda: door.connection_count == 0)
                assert arena.used_byte_size == 0

    run(scenario)
    assert len(recorder.seen) == 1


def test_a_refusal_comes_too() -> None:
    """A malformed request behind a good one, then the end: both are answered, without waiting for a client that is done."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, PATIENT) as door, a_client(door) as client:
            await client.send(GET % 1 + b"nonsense\r\n\r\n")
            client.writer.write_eof()
            await until(lambda: len(recorder.held) == 1)
            await the_end_is_known(door)
            recorder.answer_next()
            assert [status for status, _ in replies_in(await client.rest())] == [200, 400]
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_a_large_reply_comes_whole() -> None:
    """The end of the client's side does not cut short what it has yet to read, nor the replies behind."""
    recorder = Recorder()
    content = bytes(range(256)) * 8192

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_door(recorder, arena, PATIENT) as door, a_client(door) as client:
                client.writer.write((POST % len(content) + content) * 3)
                await client.writer.drain()
                client.writer.write_eof()
                assert replies_in(await client.rest()) == [(200, content)] * 3

    run(scenario)


def test_a_reset_counts_as_gone_whenever_it_comes() -> None:
    """Nobody waits any more."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, PATIENT) as door, a_client(door) as client:
            await client.send(GET % 1)
            await until(lambda: len(recorder.held) == 1)
            client.reset()
            await until(lambda: recorder.cancelled == ["/1"])

    run(scenario)


def test_an_answer_to_a_client_that_has_gone_harms_nobody() -> None:
    """A client that closed right behind its request is taken to wait: its reply goes nowhere, and the connection ends."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, PATIENT) as door:
            async with a_client(door) as client:
                await client.send(GET % 1)
                await until(lambda: len(recorder.held) == 1)
            await the_end_is_known(door)
            recorder.answer_next()
            await until(lambda: door.connection_count == 0)

    run(scenario)


# those that have closed their connection right behind their request look the same as those that wait


@pytest.fixture
def nudges(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What connections have said when they were to find out whether their clients are there."""
    said: list[bool] = []
    nudge = Connection.nudge

    def heard(connection: Connection) -> bool:
        said.append(nudge(connection))
        return said[-1]

    monkeypatch.setattr(Connection, "nudge", heard)
    return said


@pytest.mark.parametrize("count", [1, 3])
def test_a_client_that_has_closed_is_found_out(count: int) -> None:
    """By what means nothing to those that wait; what it waited for is cancelled, and what waits behind is not begun."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, CURIOUS) as door:
            async with a_client(door) as client:
                await client.send(b"".join(GET % number for number in range(count)))
                await until(lambda: len(recorder.held) == 1)
                client.writer.close()
                await until(lambda: recorder.cancelled == ["/0"] and door.connection_count == 0)
            recorder.answer_next()

    run(scenario)
    assert len(recorder.seen) == 1


def test_a_client_that_waits_is_asked_ever_less_often_and_gets_its_reply() -> None:
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, CURIOUS) as door, a_client(door) as client:
            await client.send(GET % 1 + GET % 2)
            client.writer.write_eof()
            began = time.monotonic()
            for _ in range(2):
                for _ in range(2):
                    assert await client.reader.readexactly(len(CONTINUE)) == CONTINUE
                recorder.answer_next()
                assert (await client.reply())[0] == 200
            assert time.monotonic() - began >= 0.1 + 0.1 + 0.2 + 0.4 - 0.05
            assert await client.rest() == b""

    run(scenario)
    assert recorder.cancelled == []


def test_those_who_speak_an_old_http_know_no_interim_replies(nudges: list[bool]) -> None:
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, Limits(half_close_s=0.02)) as door, a_client(door) as client:
            await client.send(b"GET /old HTTP/1.0\r\n\r\n")
            client.writer.write_eof()
            await until(lambda: len(nudges) >= 3)
            recorder.answer_next()
            assert [status for status, _ in replies_in(await client.rest())] == [200]

    run(scenario)


def test_nothing_comes_in_the_midst_of_a_stream(nudges: list[bool]) -> None:
    streams: list[Stream] = []

    def handle(request: StreamingRequest, answer: Answer) -> Cancel:
        request.body.release()
        stream = request.begin(200, ())
        stream.write([b"one"])
        streams.append(stream)
        return lambda: None

    async def scenario() -> None:
        async with a_door(cast(Any, handle), None, Limits(half_close_s=0.02)) as door, a_client(door) as client:
            await client.send(GET % 1 + GET % 2)
            client.writer.write_eof()
            for number in range(2):
                await client.head()
                assert await client.chunk() == b"one"
                await until(lambda number=number: len(nudges) >= 2 * number + 2)  # type: ignore[misc]
                streams[number].end([b"two"])
                assert await client.chunks() == [b"two"]
            assert await client.rest() == b""

    run(scenario)

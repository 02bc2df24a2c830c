"""Replies that are written piece by piece: framing, order, slow clients and clients that go, HTTP/2, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import httpx
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamReset
from h2.settings import SettingCodes
from hypercorn.protocol.h2 import StreamBuffer

from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.door.tls import Tls
from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.exchange import Answer, Cancel, Reply, Stream, StreamingRequest
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tests.certificates import Authority
from tests.http.doors import BRISK, PATIENCE_S, Client, QuietTransport, a_client, a_door, run, until
from tests.http.generating_service import GeneratingService, a_front, event, generating, post
from tests.http.tls_doors import a_tls_client

GET = b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n"
PLAIN = b"GET /plain HTTP/1.1\r\nHost: x\r\n\r\n"
HEADERS = ((b"Content-Type", b"text/event-stream"),)
KIB, MIB = 1 << 10, 1 << 20


class Streams:
    """A handler that begins a stream for each request to /stream, and answers others at once."""

    def __init__(self, begin: bool = True) -> None:
        self.begun: list[Stream] = []
        self.requests: list[StreamingRequest] = []
        self.cancelled = 0
        self.begin_at_once = begin

    def __call__(self, request: StreamingRequest, answer: Answer) -> Cancel | None:
        request.body.release()
        if request.head.path != "/stream":
            answer(Reply(200, (), (request.head.path.encode(),)))
            return None
        self.requests.append(request)
        if self.begin_at_once:
            self.begun.append(request.begin(200, HEADERS))
        return self.cancel

    def cancel(self) -> None:
        self.cancelled += 1


@contextlib.asynccontextmanager
async def streaming(streams: Streams, request: bytes = GET, limits: Limits | None = None) -> AsyncIterator[tuple[HttpDoor, Client]]:
    """A door and a client that has asked for a stream."""
    async with a_door(streams, limits=limits) as door, a_client(door) as client:
        await client.send(request)
        await until(lambda: len(streams.requests) == 1)
        yield door, client


def fill(stream: Stream, more: int = 0) -> Iterator[bytes]:
    """Write until the client's and the kernel's buffers are surely full, then ``more`` bytes; yields what was written."""
    for number in range((8 * MIB + more) // (64 * KIB)):
        piece = b"%06d" % number + b"x" * (64 * KIB - 6)
        stream.write([piece])
        yield piece


def test_pieces_are_chunks() -> None:
    """Each as it is written; the head with the first one. Empty pieces send nothing."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams) as (_, client):
            (stream,) = streams.begun
            stream.write([b"one"])
            assert await client.head() == (200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"})
            assert await client.chunk() == b"one"
            stream.write([])
            stream.write([b"", b""])
            stream.write([b"t", b"", b"wo"])
            assert await client.chunk() == b"two"
            stream.end([b"three"])
            assert await client.chunks() == [b"three"]
            assert streams.cancelled == 0

    run(scenario)


def test_the_head_may_come_first() -> None:
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams) as (_, client):
            streams.begun[0].write(())
            assert (await client.head())[0] == 200
            streams.begun[0].end()
            assert await client.chunks() == []

    run(scenario)


def test_what_follows_a_stream() -> None:
    """Requests that were sent behind it wait for its end, and the connection goes on after it."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, GET + PLAIN + GET) as (_, client):
            streams.begun[0].write([b"a"])
            await client.head()
            assert await client.chunk() == b"a"
            assert len(streams.requests) == 1
            streams.begun[0].end()
            assert await client.chunks() == []
            assert (await client.reply())[::2] == (200, b"/plain")
            await until(lambda: len(streams.begun) == 2)
            streams.begun[1].end([b"b"])
            await client.head()
            assert await client.chunks() == [b"b"]
            await client.send(PLAIN)
            assert (await client.reply())[2] == b"/plain"

    run(scenario)


def test_a_stream_that_is_over_at_once() -> None:
    """Begun and ended before the handler returns, many in a row."""

    def handle(request: StreamingRequest, answer: Answer) -> None:
        request.body.release()
        stream = request.begin(200, HEADERS)
        stream.write([b"a"])
        stream.end([b"b"])
        stream.write([b"c"])
        stream.end([b"d"])

    async def scenario() -> None:
        async with a_door(handle) as door, a_client(door) as client:
            await client.send(GET * 20)
            for _ in range(20):
                assert (await client.head())[0] == 200
                assert await client.chunks() == [b"a", b"b"]

    run(scenario)


@pytest.mark.parametrize("wish", ["", "Connection: keep-alive\r\n"])
def test_http_1_0(wish: str) -> None:
    """It knows no chunks: the end of the connection is that of the reply."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, f"GET /stream HTTP/1.0\r\n{wish}\r\n".encode()) as (_, client):
            streams.begun[0].write([b"one"])
            assert await client.head() == (200, {"content-type": "text/event-stream", "connection": "close"})
            streams.begun[0].end([b"two"])
            assert await client.rest() == b"onetwo"

    run(scenario)


def test_connection_close() -> None:
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, GET[:-2] + b"Connection: close\r\n\r\n") as (_, client):
            streams.begun[0].end([b"one"])
            assert (await client.head())[1]["connection"] == "close"
            assert await client.rest() == b"3\r\none\r\n0\r\n\r\n"

    run(scenario)


def test_head_has_no_body() -> None:
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, GET.replace(b"GET", b"HEAD") + PLAIN) as (_, client):
            streams.begun[0].write([b"one"])
            streams.begun[0].end([b"two"])
            assert (await client.head())[1]["transfer-encoding"] == "chunked"
            assert (await client.reply())[2] == b"/plain"

    run(scenario)


def test_a_door_that_closes_lets_a_stream_end() -> None:
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, GET + PLAIN) as (door, client):
            streams.begun[0].write([b"one"])
            assert "connection" not in (await client.head())[1]
            await door.stop_accepting()
            streams.begun[0].write([b"two"])
            assert [await client.chunk() for _ in range(2)] == [b"one", b"two"]
            streams.begun[0].end()
            assert await client.chunks() == []
            assert await client.rest() == b""

    run(scenario)


def test_a_slow_client_gets_everything() -> None:
    """What it has not taken waits, and so does what comes behind the stream."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, GET + PLAIN) as (_, client):
            written = list(fill(streams.begun[0]))
            streams.begun[0].end()
            assert streams.cancelled == 0
            await client.head()
            assert await client.chunks() == written
            assert (await client.reply())[2] == b"/plain"

    run(scenario)


def test_a_client_that_leaves_too_much_is_cut_off() -> None:
    """At the bound, at once; the request is called off and what is still written is dropped."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, limits=Limits(stream_unsent_byte_size=MIB)) as (door, client):
            for _ in fill(streams.begun[0], 4 * MIB):
                pass
            await until(lambda: streams.cancelled == 1 and door.connection_count == 0)
            streams.begun[0].end([b"more"])
            assert not (await client.rest()).endswith(b"0\r\n\r\n")
        assert streams.cancelled == 1

    run(scenario)


def test_one_piece_may_be_larger_than_the_bound() -> None:
    """It only counts for the next one."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, limits=Limits(stream_unsent_byte_size=KIB)) as (_, client):
            streams.begun[0].write([b"x" * (16 * MIB)])
            streams.begun[0].end()
            await client.head()
            assert [len(piece) for piece in await client.chunks()] == [16 * MIB]

    run(scenario)


def test_a_quiet_stream_is_not_timed_out() -> None:
    """However long nothing is to be sent."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, limits=BRISK) as (door, client):
            for _ in range(2):
                begin = door.now
                await until(lambda begin=begin: door.now > begin + 2 * BRISK.stalled_reply_s)  # type: ignore[misc]
                streams.begun[0].write([b"a"])
            await client.head()
            assert await client.chunk() == b"a"
            assert streams.cancelled == 0

    run(scenario)


def test_a_stalled_client_is_given_up() -> None:
    """It takes nothing of what waits for it."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, limits=BRISK) as (door, client):
            for _ in fill(streams.begun[0]):
                pass
            await until(lambda: streams.cancelled == 1 and door.connection_count == 0)

    run(scenario)


def test_a_slow_client_of_a_fast_stream_makes_progress() -> None:
    """What is unsent grows all the time, and yet the client takes its part."""
    streams = Streams()

    async def scenario() -> None:
        async with a_door(streams, limits=replace(BRISK, stream_unsent_byte_size=64 * MIB)) as door:
            with socket.create_connection(("127.0.0.1", door.port)) as slow:
                slow.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(slow, GET)
                await until(lambda: len(streams.begun) == 1)
                stream = streams.begun[0]
                stream.write([b"x" * (16 * MIB)])
                begin = last = door.now
                while door.now < begin + 3 * BRISK.stalled_reply_s:
                    stream.write([b"x" * MIB])
                    for _ in range(8):
                        assert await asyncio.wait_for(loop.sock_recv(slow, 64 * KIB), PATIENCE_S)
                    await until(lambda last=last: door.now > last)  # type: ignore[misc]
                    last = door.now
                assert streams.cancelled == 0
        assert streams.cancelled == 1

    run(scenario)


def test_chunks_of_one_byte_do_not_hide_progress() -> None:
    """What frames them is unsent like they are: the client takes 8 KiB of all that in each second, which is enough."""
    streams = Streams()

    async def scenario() -> None:
        door = HttpDoor(streams, None, None, Limits(stalled_reply_s=3.0))
        door.now = 1000.0
        connection, transport = Connection(door), QuietTransport()
        connection.connection_made(transport)
        room = connection.get_buffer(-1)
        room[: len(GET)] = GET
        connection.buffer_updated(len(GET))
        connection.pause_writing()
        for _ in range(6):
            transport.written = b""
            for _ in range(8 * KIB):
                streams.begun[0].write([b"x"])
            transport.unsent += len(transport.written) - 8 * KIB
            door.now += 1.0
            connection.sweep(door.now)
        assert not transport.aborted

    run(scenario)


def test_a_client_that_resets() -> None:
    """The request is called off once; writing on does no harm."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams) as (door, client):
            streams.begun[0].write([b"one"])
            await client.head()
            client.reset()
            await until(lambda: streams.cancelled == 1 and door.connection_count == 0)
            streams.begun[0].write([b"two"])
            streams.begun[0].end()
            streams.begun[0].abort()
            assert streams.cancelled == 1

    run(scenario)


def test_a_client_that_hangs_up() -> None:
    """It ends its side in the midst of its stream: it has given up."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams, limits=Limits(half_close_s=0.01)) as (door, client):
            streams.begun[0].write([b"one"])
            await client.head()
            begin = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() > begin + 0.02)
            client.writer.write_eof()
            await until(lambda: streams.cancelled == 1 and door.connection_count == 0)

    run(scenario)


def test_a_client_that_has_said_all() -> None:
    """It ends its side right behind its request, and wants the reply."""
    streams = Streams()

    async def scenario() -> None:
        async with a_door(streams, limits=Limits(half_close_s=PATIENCE_S)) as door, a_client(door) as client:
            await client.send(GET)
            client.writer.write_eof()
            await until(lambda: len(streams.begun) == 1)
            streams.begun[0].write([b"one"])
            await client.head()
            streams.begun[0].end([b"two"])
            assert await client.chunks() == [b"one", b"two"]
            assert await client.rest() == b""

    run(scenario)


def test_a_stream_that_begins_too_late() -> None:
    """The client has gone: what is written goes nowhere."""
    streams = Streams(begin=False)

    async def scenario() -> None:
        async with streaming(streams) as (door, client):
            client.reset()
            await until(lambda: streams.cancelled == 1 and door.connection_count == 0)
            stream = streams.requests[0].begin(200, HEADERS)
            stream.write([b"one"])
            stream.end()

    run(scenario)


def test_breaking_off() -> None:
    """The client sees that the reply is not complete."""
    streams = Streams()

    async def scenario() -> None:
        async with streaming(streams) as (_, client):
            streams.begun[0].write([b"one"])
            await client.head()
            assert await client.chunk() == b"one"
            streams.begun[0].abort()
            assert await client.rest() == b""
            await until(lambda: streams.cancelled == 1)

    run(scenario)


def test_no_header_of_two_lines() -> None:
    streams = Streams(begin=False)

    async def scenario() -> None:
        async with streaming(streams):
            with pytest.raises(ValueError, match="line break"):
                streams.requests[0].begin(200, ((b"X", b"a\r\nY: b"),))

    run(scenario)


def test_over_tls(tls: Tls, authority: Authority) -> None:
    streams = Streams()

    async def scenario() -> None:
        async with a_door(streams, tls=tls) as door, a_tls_client(door, authority.client()) as client:
            await client.send(GET + PLAIN)
            await until(lambda: len(streams.begun) == 1)
            streams.begun[0].write([b"one"])
            assert (await client.head())[0] == 200
            assert await client.chunk() == b"one"
            written = list(fill(streams.begun[0]))
            streams.begun[0].end()
            assert await client.chunks() == written
            assert (await client.reply())[2] == b"/plain"
            await client.send(GET)
            await until(lambda: len(streams.begun) == 2)
            client.reset()
            await until(lambda: streams.cancelled == 1 and door.connection_count == 0)

    run(scenario)


@contextlib.asynccontextmanager
async def over_http2(service: GeneratingService, limits: Limits | None = None) -> AsyncIterator[tuple[HttpDoor, httpx.AsyncClient]]:
    """A front before a service, and a client that speaks HTTP/2 by prior knowledge."""
    async with a_front(service, limits) as door:
        address = f"http://127.0.0.1:{door.port}"
        async with httpx.AsyncClient(http1=False, http2=True, base_url=address, timeout=PATIENCE_S) as client:
            yield door, client


STREAM, ONE = "/v2/models/m/generate_stream", "/v2/models/m/generate"


def test_http2_streams() -> None:
    """Events arrive as they are sent, beside other streams of the connection."""
    service = generating()

    async def scenario() -> None:
        async with over_http2(service) as (_, client):
            asking = asyncio.ensure_future(client.send(client.build_request("POST", STREAM, json={"IT": "a"}), stream=True))
            await until(lambda: len(service.submitted) == 1)
            request = service.submitted[0]
            service.text(request, "a")
            reply = await asking
            assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            events = reply.aiter_raw()
            assert await anext(events) == event("a")
            service.text(request, "b")
            assert await anext(events) == event("b")
            service.text(request, "c", final=True)
            assert [part async for part in events] == [event("c")]
            await reply.aclose()
            service.on_submit = lambda request: service.text(request, "x", final=True)
            one = await client.post(ONE, json={"IT": "a"})
            assert (one.status_code, one.content) == (200, event("x")[6:-2])
            refused = await client.post(STREAM, json={"IT": 5})
            assert (refused.status_code, refused.json()["error"][:14]) == (500, "Unable to pars")
            assert (await client.get(ONE)).status_code == 405
        assert service.nothing_held()

    run(scenario)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_http2_client_that_goes(begun: bool, whole: bool) -> None:
    """It resets the stream, or the whole connection: the request is called off, once."""
    service = generating()

    async def scenario() -> None:
        async with a_front(service) as door, a_client(door) as client:
            state = H2Connection(H2Configuration(client_side=True))
            state.initiate_connection()
            request = post({"IT": "a"}).partition(b"\r\n\r\n")[2]
            state.send_headers(1, [(":method", "POST"), (":path", STREAM), (":scheme", "http"), (":authority", "x")])
            state.send_data(1, request, end_stream=True)
            await client.send(state.data_to_send())
            await until(lambda: len(service.submitted) == 1)
            if begun:
                service.text(service.submitted[0], "a")
                received = b""
                while event("a") not in received:
                    received += await asyncio.wait_for(client.reader.read(KIB), PATIENCE_S)
            if whole:
                client.reset()
            else:
                state.reset_stream(1)
                await client.send(state.data_to_send())
            await until(lambda: service.called_off == service.submitted)
            service.text(service.submitted[0], "b")
            service.end(service.submitted[0])
        assert service.nothing_held() and len(service.called_off) == 1

    run(scenario)


@contextlib.asynccontextmanager
async def with_a_shut_window(service: GeneratingService, limits: Limits) -> AsyncIterator[tuple[H2Connection, Client]]:
    """A client of a stream over HTTP/2 that allows no byte of its events."""
    async with a_front(service, limits) as door, a_client(door) as client:
        state = H2Connection(H2Configuration(client_side=True))
        state.initiate_connection()
        state.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        state.send_headers(1, [(":method", "POST"), (":path", STREAM), (":scheme", "http"), (":authority", "x")])
        state.send_data(1, post({"IT": "a"}).partition(b"\r\n\r\n")[2], end_stream=True)
        await client.send(state.data_to_send())
        await until(lambda: len(service.submitted) == 1)
        yield state, client
    assert service.nothing_held()


def test_http2_window_that_stays_shut_is_no_way_around_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does hypercorn keep what was taken from us."""
    service = generating()
    most = 0
    push = StreamBuffer.push

    async def watched(buffer: StreamBuffer, content: bytes) -> None:
        nonlocal most
        most = max(most, len(buffer.buffer) + len(content))
        await push(buffer, content)

    monkeypatch.setattr(StreamBuffer, "push", watched)

    async def scenario() -> None:
        async with with_a_shut_window(service, Limits(stream_unsent_byte_size=MIB)):
            for _ in range(200):
                service.text(service.submitted[0], "x" * (16 * KIB))
                # Long enough for the sender to take it.
                for _ in range(20):
                    await asyncio.sleep(0)
                if service.called_off:
                    break
            assert service.called_off == service.submitted
            assert 0 < most <= 512 * KIB

    run(scenario)


def test_http2_window_that_stays_shut_is_given_up() -> None:
    """After the time that a reply over HTTP/1.1 may stall."""
    service = generating()

    async def scenario() -> None:
        async with with_a_shut_window(service, BRISK):
            service.text(service.submitted[0], "x" * MIB)
            await until(lambda: service.called_off == service.submitted)

    run(scenario)


def test_http2_window_that_opens_bit_by_bit() -> None:
    """Whoever takes its part in each time limit gets everything, however long that lasts."""
    service = generating()
    sent = "x" * (160 * KIB)

    async def scenario() -> None:
        async with with_a_shut_window(service, BRISK) as (state, client):
            service.text(service.submitted[0], sent, final=True)
            begin, received = asyncio.get_running_loop().time(), 0
            state.increment_flow_control_window(8 * MIB)
            while received < len(event(sent)):
                state.increment_flow_control_window(8 * KIB, 1)
                await client.send(state.data_to_send())
                wanted = min(received + 8 * KIB, len(event(sent)))
                while received < wanted:
                    for told in state.receive_data(await asyncio.wait_for(client.reader.read(64 * KIB), PATIENCE_S)):
                        assert not isinstance(told, StreamReset)
                        received += len(told.data) if isinstance(told, DataReceived) else 0
                # The time limit goes by three times.
                due = begin + 3 * BRISK.stalled_reply_s * received / len(event(sent))
                await until(lambda due=due: asyncio.get_running_loop().time() > due)  # type: ignore[misc]
            assert not service.called_off

    run(scenario)


def test_http2_client_that_leaves_too_much() -> None:
    """The stream is reset, and only that."""
    service = generating()

    async def scenario() -> None:
        async with over_http2(service, Limits(stream_unsent_byte_size=MIB)) as (_, client):
            asking = asyncio.ensure_future(client.send(client.build_request("POST", STREAM, json={"IT": "a"}), stream=True))
            await until(lambda: len(service.submitted) == 1)
            service.text(service.submitted[0], "a")
            reply = await asking
            while not service.called_off:
                service.text(service.submitted[0], "x" * (256 * KIB))
                await asyncio.sleep(0)
            with pytest.raises(httpx.RemoteProtocolError):
                await reply.aread()
            service.end(service.submitted[0])
            service.on_submit = lambda request: service.text(request, "x", final=True)
            assert (await client.post(ONE, json={"IT": "a"})).status_code == 200
        assert service.nothing_held()

    run(scenario)


def test_a_client_that_goes_while_its_long_request_is_read() -> None:
    """It is never submitted."""
    service = generating()

    async def scenario() -> None:
        async with a_front(service) as door, a_client(door) as client:
            await client.send(post({"IT": ["é" * 10] * 200_000}))
            client.reset()
            await until(lambda: door.connection_count == 0)
        assert service.called_off == service.submitted

    run(scenario)


def test_a_client_that_goes_while_a_long_response_is_written() -> None:
    service = generating()

    async def scenario() -> None:
        async with a_front(service) as door, a_client(door) as client:
            await client.send(post({"IT": "a"}))
            await until(lambda: len(service.submitted) == 1)
            request = service.submitted[0]
            client.reset()
            service.text(request, *["é" * 10] * 100_000)
            service.text(request, "b")
            await until(lambda: door.connection_count == 0 and service.called_off == [request])
            assert service.nothing_held()
            service.end(request)

    run(scenario)


def test_http2_client_that_has_no_time_to_take_anything() -> None:
    """All responses come at once, before any of them could be sent: too much is too much."""
    service = generating()

    def answer(request: Request) -> None:
        for _ in range(4):
            service.text(request, "x" * MIB)
        service.end(request)

    service.on_submit = answer

    async def scenario() -> None:
        async with over_http2(service, Limits(stream_unsent_byte_size=2 * MIB)) as (_, client):
            assert (await client.post(STREAM, json={"IT": "a"})).status_code == 500
        async with over_http2(service, Limits(stream_unsent_byte_size=4 * MIB)) as (_, client):
            assert (await client.post(STREAM, json={"IT": "a"})).content == event("x" * MIB) * 4

    run(scenario)
    assert service.nothing_held()

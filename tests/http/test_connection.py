"""A connection's life: order, back-pressure both ways, big bodies, clients that stall or go, time limits, exit."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from tensorfarm.server.door.body import ArenaBody
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest, Reply
from tensorfarm.server.http.limits import Limits
from tensorfarm.workers.contract.status import Code, StatusError
from tests.http.doors import BRISK, PATIENCE_S, Recorder, a_client, a_door, an_arena, replies_in, run, until

GET = b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n"


def post(size: int, path: str = "/p", headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {size}\r\n\r\n".encode()


def test_pipelined_replies_keep_the_order() -> None:
    """Requests are handled one after the other, however many are there."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder) as door, a_client(door) as client:
            await client.send(b"".join(GET % number for number in range(50)))
            for number in range(50):
                await until(lambda: len(recorder.held) == 1)
                assert recorder.held[0][0].head.path == f"/{number}"
                recorder.answer_next()
                assert (await client.reply())[0] == 200

    run(scenario)


def test_a_last_reply_is_followed_by_reading_over_what_still_comes() -> None:
    """The door is closing and holds a client back: with its reply it must be read again, else it is reset before it sees it."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        limits = Limits(linger_s=2 * PATIENCE_S)
        async with a_door(recorder, limits=limits) as door, a_client(door) as client:
            client.writer.transport.set_write_buffer_limits(high=0)
            with pytest.raises(TimeoutError):
                while True:
                    client.writer.write(post(60_000) + b"x" * 60_000)
                    await asyncio.wait_for(client.writer.drain(), 0.3)
            door.exiting = True
            recorder.answer_next()
            await asyncio.wait_for(client.writer.drain(), PATIENCE_S)
            status, headers, _ = await client.reply()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""
            client.abort()
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_reading_stops_while_too_much_waits() -> None:
    """A client that pipelines without end is held back by TCP, not by our memory."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder) as door, a_client(door) as client:
            client.writer.transport.set_write_buffer_limits(high=0)
            with pytest.raises(TimeoutError):
                while True:
                    client.writer.write(post(60_000) + b"x" * 60_000)
                    await asyncio.wait_for(client.writer.drain(), 0.3)
            assert len(recorder.seen) == 1
            recorder.at_once = True
            recorder.answer_next()
            for _ in range(20):
                assert len((await client.reply())[2]) == 60_000

    run(scenario)


def test_continue_comes_before_the_body() -> None:
    """Any Expect is answered with 100 as soon as the headers are there, after the replies before it."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder) as door, a_client(door) as client:
            await client.send(post(2, headers="Expect: whatever\r\n"))
            assert (await client.reply())[0] == 100
            await client.send(b"{}")
            await until(lambda: len(recorder.held) == 1)
            await client.send(post(2, headers="Expect: 100-continue\r\n"))
            recorder.answer_next()
            assert [(await client.reply())[0] for _ in range(2)] == [200, 100]
            await client.send(b"{}")
            await until(lambda: len(recorder.held) == 1)
            recorder.answer_next()
            assert (await client.reply())[::2] == (200, b"{}")

    run(scenario)


def test_http_1_0_knows_no_continue() -> None:
    """Its Expect is read over (RFC 9110, 10.1.1), also where the connection goes on."""

    async def scenario() -> None:
        async with a_door(Recorder()) as door, a_client(door) as client:
            for connection in (b"keep-alive", b"close"):
                await client.send(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nConnection: %b\r\nContent-Length: 3\r\n\r\n" % connection)
                await client.send(b"abc")
                assert (await client.reply())[::2] == (200, b"abc")
            assert await client.rest() == b""

    run(scenario)


def test_head_and_http_1_0() -> None:
    """HEAD gets the headers of the reply alone; HTTP/1.0 is closed unless it asks to go on."""

    def handle(request: HttpRequest, answer: Answer) -> None:
        request.body.release()
        answer(Reply(200, ((b"Content-Type", b"x/y"),), (b"hello",)))

    async def scenario() -> None:
        async with a_door(handle) as door, a_client(door) as client:
            await client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await client.reply(head_only=True) == (200, {"content-type": "x/y", "content-length": "5"}, b"")
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            status, headers, body = await client.reply()
            assert (status, headers["connection"], body) == (200, "keep-alive", b"hello")
            await client.send(b"GET / HTTP/1.0\r\n\r\n" + GET % 1)
            stream = await client.rest()
            assert replies_in(stream) == [(200, b"hello")]
            assert b"Connection: close" in stream

    run(scenario)


def test_close_is_honoured() -> None:
    """After Connection: close nothing more is answered."""
    recorder = Recorder()

    async def scenario() -> bytes:
        async with a_door(recorder) as door, a_client(door) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET % 2)
            return await client.rest()

    assert len(replies_in(run(scenario))) == 1
    assert len(recorder.seen) == 1


def test_big_body_is_received_into_the_arena() -> None:
    """A body beyond the inline size lies in the arena, and its parts become leases there."""
    content = bytes(range(256)) * 8192
    places = []

    def handle(request: HttpRequest, answer: Answer) -> None:
        assert isinstance(request.body, ArenaBody)
        same = bytes(request.body.view) == content
        places.append(request.body.place(16, 48))
        request.body.release()
        answer(Reply(200, (), (b"same" if same else b"different",)))

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_door(handle, arena) as door, a_client(door) as client:
                for _ in range(3):
                    await client.send(post(len(content)) + content)
                    assert (await client.reply())[2] == b"same"
                # chunked bodies end there too, and requests behind them are found
                chunk = content[:50_000]
                framed = (b"%x\r\n%s\r\n" % (len(chunk), chunk)) * 4 + b"0\r\n\r\n"
                await client.send(b"POST /p HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + framed)
                assert (await client.reply())[2] == b"different"

    run(scenario)
    assert [place.byte_size for place in places] == [32] * 4


def test_full_arena_is_told_at_once() -> None:
    """No room for a body: 503 before it is read, then close; the client that still sends sees the reply."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        with an_arena(1 << 20) as arena:
            held = arena.reserve(900_000)
            async with a_door(recorder, arena) as door, a_client(door) as client:
                await client.send(post(500_000) + bytes(500_000))
                ((status, body),) = replies_in(await client.rest())
                assert status == 503
                assert b"arena" in body
            held.release()

    run(scenario)
    assert recorder.seen == []


def test_client_that_goes_cancels() -> None:
    """A client that disconnects cancels what it waits for; what waits behind is dropped; later answers too."""
    recorder = Recorder(at_once=False)
    sent = []

    async def scenario() -> None:
        async with a_door(recorder) as door:
            async with a_client(door) as client:
                await client.send(GET % 1 + GET % 2)
                await until(lambda: len(recorder.held) == 1)
                client.reset()
            await until(lambda: bool(recorder.cancelled))
            _, answer, _ = recorder.held[0]
            answer(Reply(200, (), (b"late",), on_sent=lambda: sent.append(1)))

    run(scenario)
    assert recorder.cancelled == ["/1"]
    assert [path for _, path, _, _ in recorder.seen] == ["/1"]
    assert sent == [1]


def test_client_that_goes_within_its_body() -> None:
    """The arena gets the block of an unfinished body back."""

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_door(Recorder(), arena) as door:
                async with a_client(door) as client:
                    await client.send(post(1_000_000) + bytes(300_000))
                    await until(lambda: arena.used_byte_size > 0)
                await until(lambda: door.connection_count == 0)
                assert arena.used_byte_size == 0

    run(scenario)


def test_slow_reader_holds_the_memory_until_it_has_read() -> None:
    """on_sent comes when the kernel has taken the whole reply, not before; nothing else starts meanwhile."""
    content = memoryview(bytes(8 << 20))
    sent: list[int] = []
    handled = []

    def handle(request: HttpRequest, answer: Answer) -> None:
        request.body.release()
        handled.append(request.head.path)
        answer(Reply(200, (), (content[: 4 << 20], content[4 << 20 :]), on_sent=lambda: sent.append(1)))

    async def scenario() -> None:
        async with a_door(handle) as door:
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", door.port))
                await loop.sock_sendall(client, GET % 1 + GET % 2)
                await until(lambda: handled == ["/1"])
                assert sent == []
                count = 0
                while count < 2 * len(content):
                    piece = await asyncio.wait_for(loop.sock_recv(client, 1 << 20), PATIENCE_S)
                    if count == 0:
                        assert sent == []
                        assert handled == ["/1"]
                    count += len(piece)
                await until(lambda: sent == [1, 1])

    run(scenario)
    assert handled == ["/1", "/2"]


def test_reader_that_stalls_is_dropped() -> None:
    """A reply that nobody reads does not hold its memory for ever."""
    sent: list[int] = []

    def handle(request: HttpRequest, answer: Answer) -> None:
        request.body.release()
        answer(Reply(200, (), (memoryview(bytes(8 << 20)),), on_sent=lambda: sent.append(1)))

    async def scenario() -> None:
        async with a_door(handle, None, BRISK) as door:
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setblocking(False)
                await loop.sock_connect(client, ("127.0.0.1", door.port))
                await loop.sock_sendall(client, GET % 1)
                await until(lambda: sent == [1])
                await until(lambda: door.connection_count == 0)

    run(scenario)


def test_answer_in_time_is_not_limited() -> None:
    """The handler may take longer than any of the times."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder, None, BRISK) as door, a_client(door) as client:
            await client.send(GET % 1)
            await until(lambda: len(recorder.held) == 1)
            start = door.now
            await until(lambda: door.now > start + 3 * BRISK.keep_alive_idle_s)
            recorder.answer_next()
            assert (await client.reply())[0] == 200

    run(scenario)


def test_handler_that_raises() -> None:
    """The client gets a 500 that tells nothing, and the connection goes on."""

    def handle(request: HttpRequest, answer: Answer) -> Cancel | None:
        request.body.release()
        raise RuntimeError("secret")

    async def scenario() -> None:
        async with a_door(handle) as door, a_client(door) as client:
            for _ in range(2):
                await client.send(GET % 1)
                assert (await client.reply())[::2] == (500, b'{"error":"internal error"}')

    run(scenario)


def test_exit_lets_busy_connections_finish() -> None:
    """Idle connections close, busy ones answer with Connection: close, new ones are refused."""
    recorder = Recorder(at_once=False)

    async def scenario() -> None:
        async with a_door(recorder) as door, a_client(door) as busy, a_client(door) as idle:
            port = door.port
            await busy.send(GET % 1)
            await until(lambda: len(recorder.held) == 1 and door.connection_count == 2)
            await door.stop_accepting()
            assert await idle.rest() == b""
            await until(lambda: door.connection_count == 1)
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            recorder.answer_next()
            status, headers, _ = await busy.reply()
            assert (status, headers["connection"]) == (200, "close")
            assert await busy.rest() == b""
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_port_in_use() -> None:
    """Start-up says which socket, in the reference's words."""

    async def scenario() -> None:
        async with a_door(Recorder()) as door, a_door(Recorder()) as other:
            with pytest.raises(StatusError) as caught:
                await type(other)(Recorder()).start("127.0.0.1", door.port, False)
            assert caught.value.code is Code.UNAVAILABLE
            assert caught.value.message == f"Socket '127.0.0.1:{door.port}' already in use "

    run(scenario)


def test_tensors_of_a_big_body_are_aligned() -> None:
    """Wherever the JSON before them ends, the tensors begin on a boundary of 64 bytes."""
    content = bytes(100_000)
    places = []

    def handle(request: HttpRequest, answer: Answer) -> None:
        json_byte_size = int(request.head.header(b"inference-header-content-length") or b"0")
        assert bytes(request.body.view) == content
        places.append(request.body.place(json_byte_size, len(content)))
        request.body.release()
        answer(Reply(200))

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_door(handle, arena) as door, a_client(door) as client:
                for json_byte_size in (1, 63, 64, 65, 300):
                    head = f"POST /p HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {json_byte_size}\r\n"
                    await client.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)
                    assert (await client.reply())[0] == 200

    run(scenario)
    assert [place.offset % 64 for place in places] == [0] * 5
    assert [place.byte_size for place in places] == [len(content) - size for size in (1, 63, 64, 65, 300)]


def test_announced_bodies_do_not_take_the_arena() -> None:
    """Clients that only say how much they will send leave room for one that sends, however many they are."""

    async def scenario() -> None:
        with an_arena(1 << 24) as arena:
            async with a_door(Recorder(), arena) as door, contextlib.AsyncExitStack() as stack:
                for _ in range(60):
                    await (await stack.enter_async_context(a_client(door))).send(post(1 << 23))
                await until(lambda: arena.used_byte_size >= (4 << 20) + 56 * (64 << 10))
                async with a_client(door) as honest:
                    content = bytes(range(256)) * (2 << 12)
                    await honest.send(post(len(content)) + content)
                    assert (await honest.reply())[::2] == (200, content)

    run(scenario)


def test_body_that_outgrows_the_arena() -> None:
    """Room that was there at its beginning and is not in its middle: 503, and the connection ends."""
    recorder = Recorder()

    async def scenario() -> None:
        with an_arena(1 << 23) as arena:
            async with a_door(recorder, arena) as door, a_client(door) as client:
                await client.send(post(6 << 20) + bytes(500_000))
                await until(lambda: arena.used_byte_size > 0)
                held = arena.reserve(6 << 20)
                with contextlib.suppress(ConnectionError):
                    await client.send(bytes(2 << 20))
                ((status, body),) = replies_in(await client.rest())
                assert status == 503
                assert b"arena" in body
                held.release()
            assert arena.used_byte_size == 0

    run(scenario)
    assert recorder.seen == []

"""Connections over TLS: slow readers, and every way to end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import threading
import weakref

import pytest

from tensorfarm.server.door.tls import Tls
from tensorfarm.server.door.tls_stream import TlsStream
from tensorfarm.server.http.exchange import Answer, HttpRequest, Reply
from tensorfarm.server.http.limits import Limits
from tests.certificates import Authority
from tests.http.doors import BRISK, PATIENCE_S, Recorder, replies_in, run, until
from tests.http.tls_doors import MIB, a_plain_client, a_tls_client, a_tls_door, blocking, post, receive_all, shaken

# slow readers


class BigReplies:
    """Answers every request with the same large memory, and counts how often it has been released."""

    def __init__(self, byte_size: int) -> None:
        self.content = memoryview(bytes(range(256)) * (byte_size // 256))
        self.started = 0
        self.sent = 0

    def __call__(self, request: HttpRequest, answer: Answer) -> None:
        request.body.release()
        self.started += 1
        answer(Reply(200, (), (self.content,), self._count))

    def _count(self) -> None:
        self.sent += 1


def test_memory_of_a_reply_is_held_until_it_has_left(authority: Authority, tls: Tls) -> None:
    """A slow reader gets every byte; nothing is released, and the next request not begun, before it has taken the reply."""

    async def scenario() -> None:
        replies = BigReplies(48 * MIB)
        async with a_tls_door(replies, tls) as door:
            client = await asyncio.to_thread(blocking, door, authority.client(), 16_384)
            with client:
                await asyncio.to_thread(client.sendall, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
                await until(lambda: replies.started == 1)
                first = await asyncio.to_thread(client.recv, 1000)
                await asyncio.sleep(0.05)
                assert (replies.started, replies.sent) == (1, 0)
                (connection,) = door._connections
                assert connection._transport._socket.get_write_buffer_size() < MIB, "it was encrypted long before it can leave"  # type: ignore[union-attr]

                def take(wanted: int) -> bytes:
                    content = bytearray(first)
                    while len(content) < wanted:
                        content += client.recv(MIB)
                    return bytes(content)

                head_size = len(first.partition(b"\r\n\r\n")[0]) + 4
                content = await asyncio.to_thread(take, 2 * (head_size + len(replies.content)))
                assert replies_in(content) == [(200, bytes(replies.content))] * 2
                await until(lambda: replies.sent == 2)

    run(scenario)


def test_stalled_reader_is_cut(authority: Authority, tls: Tls) -> None:
    """Who stops reading holds a reply only for the time limit; even small replies that pile up."""

    async def scenario() -> None:
        for size, count in ((48 * MIB, 1), (32_768, 8)):
            replies = BigReplies(size)
            async with a_tls_door(replies, tls, limits=BRISK) as door:
                with await asyncio.to_thread(blocking, door, authority.client(), 4096) as client:
                    client.setblocking(False)
                    with contextlib.suppress(ssl.SSLWantWriteError, ConnectionError):
                        while door.connection_count:
                            client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * count)
                            await asyncio.sleep(0.001)
                            if count == 1:
                                break
                    await until(lambda: door.connection_count == 0)
            assert replies.sent == replies.started >= 1

    run(scenario)


def test_sender_is_held_back(authority: Authority, tls: Tls) -> None:
    """Who sends request after request and waits for no reply is stopped soon, and served once there is room."""

    async def scenario() -> None:
        recorder = Recorder(at_once=False)
        requests = post(b"r" * 1000) * 64
        async with a_tls_door(recorder, tls) as door:
            client = await asyncio.to_thread(blocking, door, authority.client(), 65_536)
            with client:
                client.setblocking(False)
                sent = refused = 0
                while refused < 20:
                    try:
                        sent += client.send(requests[sent % len(requests) :])
                        refused = 0
                    except ssl.SSLWantWriteError:
                        refused += 1
                        await asyncio.sleep(0.005)
                    assert sent < 64 * MIB, "nothing holds it back"
                client.settimeout(PATIENCE_S)
                assert sent > len(requests)

                def take() -> int:
                    # OpenSSL wants what it could not send offered again
                    client.sendall(requests[sent % len(requests) :])
                    client.sendall(post(b"", "Connection: close"))
                    return receive_all(client).count(b"HTTP/1.1 200")

                taking = asyncio.create_task(asyncio.to_thread(take))
                while not taking.done():
                    if recorder.held:
                        recorder.answer_next()
                    await asyncio.sleep(0)
                assert taking.result() == len(recorder.seen) == 64 * (sent // len(requests) + 1) + 1

    run(scenario)


# ends


def test_orderly_end(authority: Authority, tls: Tls) -> None:
    """Each end of ours comes with a close_notify: after "Connection: close", when idle for too long, and at exit."""

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls, limits=BRISK) as door:

            def ask(request: bytes) -> bytes:
                with blocking(door, authority.client()) as client:
                    client.sendall(request)
                    return receive_all(client)

            assert replies_in(await asyncio.to_thread(ask, post(b"a", "Connection: close"))) == [(200, b"a")]
            assert replies_in(await asyncio.to_thread(ask, post(b"b"))) == [(200, b"b")]
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_exit_with_open_connections(authority: Authority, tls: Tls) -> None:
    """At exit idle connections end with a close_notify, handshakes end, requests in flight are answered first."""

    async def scenario() -> None:
        recorder = Recorder(at_once=False)
        async with (
            a_tls_door(recorder, tls) as door,
            a_plain_client(door) as shaking,
            a_tls_client(door, authority.client()) as busy,
        ):
            idle = await asyncio.to_thread(blocking, door, authority.client())
            with idle:
                await busy.send(post(b"late"))
                await until(lambda: len(recorder.held) == 1 and door.connection_count == 3)
                await door.stop_accepting()
                assert await asyncio.to_thread(receive_all, idle) == b""
                assert await shaking.rest() == b""
                await until(lambda: door.connection_count == 1)
                recorder.answer_next()
                assert replies_in(await busy.rest()) == [(200, b"late")]
                await until(lambda: door.connection_count == 0)

    run(scenario)


def test_close_ends_everything_at_once(authority: Authority, tls: Tls) -> None:
    """Half-open handshakes, stuck readers and held requests do not hold the door up."""

    async def scenario() -> None:
        replies = BigReplies(48 * MIB)
        async with a_tls_door(replies, tls) as door:
            async with a_plain_client(door), a_tls_client(door, authority.client(), 1024) as stuck:
                stuck.writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                await until(lambda: replies.started == 1 and door.connection_count == 2)
                await asyncio.wait_for(door.close(), PATIENCE_S)
                assert (door.connection_count, replies.sent) == (0, 1)

    run(scenario)


@pytest.mark.parametrize("polite", [True, False])
def test_client_that_goes_cancels(polite: bool, authority: Authority, tls: Tls) -> None:
    """By close_notify or without: what it asked is cancelled and its connection is gone."""

    async def scenario() -> None:
        recorder = Recorder(at_once=False)
        gone_at_once = Limits(half_close_s=1e-6)
        async with a_tls_door(recorder, tls, limits=gone_at_once) as door, a_tls_client(door, authority.client()) as client:
            await client.send(post(b"x", path="/gone"))
            await until(lambda: len(recorder.held) == 1)
            if polite:
                client.writer.close()
            else:
                client.abort()
            await until(lambda: recorder.cancelled == ["/gone"] and door.connection_count == 0)
            recorder.answer_next()

    run(scenario)


def test_client_that_closes_right_behind_its_request_is_found_out(authority: Authority, tls: Tls) -> None:
    """Its close_notify looks like that of one that waits."""

    async def scenario() -> None:
        recorder = Recorder(at_once=False)
        async with a_tls_door(recorder, tls, limits=Limits(half_close_s=0.1)) as door:
            client = await asyncio.to_thread(blocking, door, authority.client())
            with client:
                client.sendall(post(b"x", path="/gone"))
                await until(lambda: len(recorder.held) == 1)
            await until(lambda: recorder.cancelled == ["/gone"] and door.connection_count == 0)
            recorder.answer_next()

    run(scenario)


@pytest.mark.parametrize("polite", [True, False])
def test_client_that_ends_its_side_gets_its_reply(polite: bool, authority: Authority, tls: Tls) -> None:
    """By close_notify or by the end of its socket's sending side, right behind the request."""

    async def scenario() -> None:
        recorder = Recorder(at_once=False)
        async with a_tls_door(recorder, tls, limits=Limits(half_close_s=PATIENCE_S)) as door:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")

            def ask() -> bytes:
                with socket.create_connection(("127.0.0.1", door.port), PATIENCE_S) as client:
                    while not shaken(session):
                        client.sendall(outgoing.read())
                        incoming.write(client.recv(65_536))
                    session.write(post(b"last words" * 5_000))
                    if polite:
                        with pytest.raises(ssl.SSLWantReadError):
                            session.unwrap()
                    client.sendall(outgoing.read())
                    if not polite:
                        client.shutdown(socket.SHUT_WR)
                    while piece := client.recv(65_536):
                        incoming.write(piece)
                content = b""
                # what read says of a close_notify depends on whether we have sent ours
                with contextlib.suppress(ssl.SSLZeroReturnError):
                    while piece := session.read(65_536):
                        content += piece
                return content

            asking = asyncio.create_task(asyncio.to_thread(ask))
            await until(lambda: len(recorder.held) == 1)
            recorder.answer_next()
            assert replies_in(await asking) == [(200, b"last words" * 5_000)]
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_broken_record_ends_the_connection(authority: Authority, tls: Tls) -> None:
    """Bytes that do not decrypt are never handed on."""

    async def scenario() -> None:
        recorder = Recorder()
        async with a_tls_door(recorder, tls) as door:

            def attack() -> None:
                with blocking(door, authority.client()) as client:
                    client.sendall(post(b"good"))
                    assert client.recv(65_536).startswith(b"HTTP/1.1 200")
                    socket.socket.sendall(client, b"\x17\x03\x03\x00\x30" + bytes(48))
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        receive_all(client)
                    ended.wait(PATIENCE_S)

            ended = threading.Event()
            attacking = asyncio.create_task(asyncio.to_thread(attack))
            await until(lambda: len(recorder.seen) == 1)
            await until(lambda: door.connection_count == 0)
            ended.set()
            await attacking
        assert len(recorder.seen) == 1

    run(scenario)


def test_no_cycles_are_left_behind(authority: Authority, tls: Tls) -> None:
    """A connection that has ended is gone without the help of the cycle collector."""

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls) as door:
            gc.collect()
            gc.disable()
            try:
                async with a_tls_client(door, authority.client()) as client:
                    await client.send(post(b"x"))
                    await client.reply()
                    (connection,) = door._connections
                    streams = [weakref.ref(connection), weakref.ref(connection._transport)]  # type: ignore[union-attr]
                    assert isinstance(streams[1](), TlsStream)
                    del connection
                await until(lambda: door.connection_count == 0)
                await until(lambda: not any(stream() for stream in streams))
            finally:
                gc.enable()

    run(scenario)

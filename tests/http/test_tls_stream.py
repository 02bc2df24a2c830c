"""Connections over TLS, on real sockets: handshakes, and what goes in and out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from tensorfarm.server.door.tls import Tls
from tensorfarm.server.door.tls_stream import TlsStream
from tensorfarm.server.http import front, inference
from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest, Reply
from tensorfarm.server.http.front import own_front
from tensorfarm.server.http.infer_head import InferHead
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.service import Service
from tests.certificates import Authority, Pair
from tests.http.doors import BRISK, PATIENCE_S, Recorder, an_arena, replies_in, run, until
from tests.http.small_service import SmallService
from tests.http.tls_doors import MIB, a_plain_client, a_tls_client, a_tls_door, blocking, post, receive_all, shaken, tls_of_pair

VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


# requests and replies


@pytest.mark.parametrize("version", VERSIONS)
def test_requests_small_and_large(version: ssl.TLSVersion, authority: Authority, tls: Tls) -> None:
    """Bodies of all sizes come and go unharmed, in memory and in the arena, on one connection."""

    async def scenario() -> None:
        recorder = Recorder()
        context = authority.client()
        context.minimum_version = context.maximum_version = version
        with an_arena(64 * MIB) as arena:
            async with a_tls_door(recorder, tls, arena) as door, a_tls_client(door, context) as client:
                assert client.writer.get_extra_info("ssl_object").version() == version.name.replace("_", ".")
                for size in (0, 1, 16_384, 65_536, 65_537, 262_144, 3 * MIB + 7, 16 * MIB):
                    body = (b"0123456789abcde" * (size // 15 + 1))[:size]
                    await client.send(post(body))
                    assert (await client.reply())[::2] == (200, body), size

    run(scenario)


def test_protocol_details_are_those_without_tls(authority: Authority, tls: Tls) -> None:
    """HEAD, 100-continue, chunks, pipelining and the peer's address."""

    async def scenario() -> None:
        seen: list[bool] = []
        recorder = Recorder()

        def handle(request: HttpRequest, answer: Answer) -> Cancel | None:
            seen.append(request.peer_is_local)
            return recorder(request, answer)

        with an_arena() as arena:
            async with a_tls_door(handle, tls, arena) as door, a_tls_client(door, authority.client()) as client:
                await client.send(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await client.reply(head_only=True))[0] == 200
                for size in (5, 200_000):
                    await client.send(f"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {size}\r\n\r\n".encode())
                    assert (await client.reply())[0] == 100
                    await client.send(b"x" * size)
                    assert (await client.reply())[::2] == (200, b"x" * size)
                await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n3\r\nfgh\r\n0\r\n\r\n")
                assert (await client.reply())[2] == b"abcdefgh"
                bodies = [b"%d" % number * (number * 700) for number in range(60)]
                await client.send(b"".join(post(body) for body in bodies))
                assert [(await client.reply())[2] for _ in bodies] == bodies
        assert seen and all(seen)

    run(scenario)


def test_records_in_pieces(authority: Authority, tls: Tls) -> None:
    """The bytes of TLS may be cut anywhere: handshake, head and body come a few bytes at a time."""

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_tls_door(Recorder(), tls, arena) as door, a_plain_client(door) as client:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                session = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")

                async def until_done(step: Callable[[], object], size: int) -> object:
                    while True:
                        try:
                            return step()
                        except ssl.SSLWantReadError:
                            await trickle(size)
                            incoming.write(await asyncio.wait_for(client.reader.read(7), PATIENCE_S))

                async def trickle(size: int) -> None:
                    content = outgoing.read()
                    for start in range(0, len(content), size):
                        await client.send(content[start : start + size])
                        await asyncio.sleep(0)

                await until_done(session.do_handshake, 3)
                session.write(post(b"y" * 300) + post(b"z" * 70_000))
                session.write(b"")
                await trickle(997)
                content = b""
                while content.count(b"HTTP/1.1 200") < 2 or not content.endswith(b"z" * 70_000):
                    content += cast(bytes, await until_done(lambda: session.read(65_536), 100))
                assert replies_in(content) == [(200, b"y" * 300), (200, b"z" * 70_000)]

    run(scenario)


class Watched:
    """A stream's TLS; knows how much has waited in its memory, which OpenSSL never gives back."""

    def __init__(self, stream: TlsStream) -> None:
        self._stream = stream
        self._tls = stream._tls
        self.most_incoming = self.most_outgoing = 0

    def read(self, *arguments: Any) -> object:
        self.most_incoming = max(self.most_incoming, self._stream._incoming.pending)
        return self._tls.read(*arguments)

    def write(self, *arguments: Any) -> object:
        count = self._tls.write(*arguments)
        self.most_outgoing = max(self.most_outgoing, self._stream._outgoing.pending)
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tls, name)


def test_large_bodies_leave_no_large_buffers_behind(authority: Authority, tls: Tls) -> None:
    """Idle connections would keep them."""

    async def scenario() -> None:
        recorder = Recorder(at_once=False)
        body = bytes(range(256)) * (16 * 1024)
        with an_arena(64 * MIB) as arena:
            async with a_tls_door(recorder, tls, arena) as door, a_tls_client(door, authority.client(), 8 * MIB) as client:
                await until(lambda: any(type(one) is Connection for one in door._connections))
                (connection,) = door._connections
                stream = cast(TlsStream, cast(Connection, connection)._transport)
                watched = Watched(stream)
                stream._tls = cast(ssl.SSLObject, watched)
                # What comes behind the first request has to be kept for a while.
                await client.send(post(body) + post(b"x" * 60_000) * 20)
                for wanted in (body, *([b"x" * 60_000] * 20)):
                    await until(lambda: bool(recorder.held))
                    recorder.answer_next()
                    assert (await client.reply())[2] == wanted
                assert 0 < watched.most_incoming <= 64 * 1024
                assert 0 < watched.most_outgoing <= 64 * 1024

    run(scenario)


def test_a_turn_of_the_loop_takes_no_more_than_without_tls(authority: Authority, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much has come: what has to be parsed is taken 64 KiB at a time, and then everybody else has a turn."""
    taken = [0]
    real = Connection.buffer_updated

    def counted(self: Connection, nbytes: int) -> None:
        taken[-1] += nbytes
        real(self, nbytes)

    monkeypatch.setattr(Connection, "buffer_updated", counted)
    request = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 60_000 + b"0\r\n\r\n"

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def turn() -> None:
            if taken[-1]:
                taken.append(0)
            loop.call_soon(turn)

        recorder = Recorder()
        async with a_tls_door(recorder, tls) as door:
            with await asyncio.to_thread(blocking, door, authority.client()) as client:
                await until(lambda: any(type(one) is Connection for one in door._connections))
                turn()
                # The loop waits here until all of it, or all that the sockets hold, has come.
                sending = threading.Thread(target=client.sendall, args=(request,))
                sending.start()
                sending.join(2)
                await until(lambda: bool(recorder.seen))
                sending.join()
        assert len(recorder.seen[0][3]) == 60_000
        assert sum(taken) == len(request)
        assert max(taken) <= 96 * 1024

    run(scenario)


def test_reply_before_the_body_is_readable(authority: Authority, tls: Tls) -> None:
    """A client that is refused while it sends, and goes on sending, reads the whole reply and an orderly end."""

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls) as door:

            def refused() -> bytes:
                with blocking(door, authority.client()) as client:
                    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
                    for _ in range(60):
                        client.sendall(bytes(65_536))
                    return receive_all(client)

            ((status, body),) = replies_in(await asyncio.to_thread(refused))
            assert status == 413
            assert json.loads(body) == {"error": "request body is too large"}
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_nothing_follows_our_end(authority: Authority, tls: Tls) -> None:
    """What came behind a refused request does not make OpenSSL complain after the close_notify."""

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls) as door:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            session = authority.client().wrap_bio(incoming, outgoing, server_hostname="localhost")

            def ask() -> None:
                with socket.create_connection(("127.0.0.1", door.port), PATIENCE_S) as client:
                    while not shaken(session):
                        client.sendall(outgoing.read())
                        incoming.write(client.recv(65_536))
                    for _ in range(5):
                        session.write(b"GARBAGE\r\n\r\n" + bytes(16_000))
                    client.sendall(outgoing.read())
                    while piece := client.recv(65_536):
                        incoming.write(piece)

            await asyncio.to_thread(ask)
            ((status, _),) = replies_in(session.read(65_536))
            assert (status, session.read(65_536), incoming.pending) == (400, b"", 0)

    run(scenario)


def test_refused_client_is_heard_out_then_cut(authority: Authority, tls: Tls) -> None:
    """As long as it sends it may not have read its reply; one that only stays is cut."""

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls, limits=BRISK) as door:

            def talk(client: ssl.SSLSocket) -> None:
                client.sendall(b"GARBAGE\r\n\r\n")
                end = time.monotonic() + 3 * BRISK.linger_s
                while time.monotonic() < end:
                    client.sendall(b"still talking")
                    time.sleep(0.02)
                ((status, _),) = replies_in(receive_all(client))
                assert status == 400

            with await asyncio.to_thread(blocking, door, authority.client()) as client:
                await asyncio.to_thread(talk, client)
                await until(lambda: door.connection_count == 0)

    run(scenario)


# HTTP/2


def test_http2_by_alpn(authority: Authority, tls: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that offers h2 gets it, and the same app; one that does not stays with HTTP/1.1."""

    def infer(service: object, head: InferHead, request: HttpRequest, answer: Answer) -> None:
        content = bytes(request.body.view)
        request.body.release()
        answer(Reply(200, (), (content, str(request.peer_is_local).encode())))

    for module in (inference, front):
        monkeypatch.setattr(module, "infer", infer)

    async def scenario() -> None:
        with an_arena() as arena:
            door = own_front(cast(Service, SmallService(arena)), {}).door()
            await door.start("127.0.0.1", 0, False, tls)
            url = f"https://localhost:{door.port}"
            for wanted, version in ((True, "HTTP/2"), (False, "HTTP/1.1")):
                async with httpx.AsyncClient(base_url=url, verify=authority.client(), http2=wanted, timeout=PATIENCE_S) as client:
                    reply = await client.get("/v2")
                    assert (reply.http_version, reply.json()["name"]) == (version, "small")
                    for size in (10, 1_000_000, 3 * MIB):
                        reply = await client.post("/v2/models/add/infer", content=b"\1" * size)
                        assert (reply.status_code, reply.content) == (200, b"\1" * size + b"True")
                    many = await asyncio.gather(*(client.get("/v2/health/live") for _ in range(30)))
                    assert {one.status_code for one in many} == {200}
                    assert door.connection_count > 0
                await until(lambda: door.connection_count == 0)
            await door.close()

    run(scenario)


def test_http2_connections_end_at_exit(authority: Authority, tls: Tls) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            door = own_front(cast(Service, SmallService(arena)), {}).door()
            await door.start("127.0.0.1", 0, False, tls)
            async with httpx.AsyncClient(verify=authority.client(), http2=True, timeout=PATIENCE_S) as client:
                assert (await client.get(f"https://localhost:{door.port}/v2")).status_code == 200
                assert door.connection_count == 1
                await door.stop_accepting()
                await until(lambda: door.connection_count == 0)
            await door.close()

    run(scenario)


# handshakes


def test_plain_client_is_told(tls: Tls) -> None:
    """Who speaks plain HTTP to the port reads what is wrong; who speaks anything else is closed."""

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls) as door:
            for first, advice in (
                (b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n", True),
                (post(b"x" * 300_000), True),
                (b"\0" * 400, False),
                (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", False),
            ):
                async with a_plain_client(door) as client:
                    await client.send(first)
                    told = await client.rest()
                    client.writer.close()
                    if advice:
                        assert replies_in(told) == [(400, b'{"error":"this port speaks TLS: use https"}')]
                    else:
                        assert b"HTTP" not in told
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_mutual_tls(authority: Authority, server_pair: Pair, tmp_path: Path) -> None:
    """Clients need a certificate of the right authority; the others read an alert that says so."""
    stranger = Authority(tmp_path, "stranger").pair("client")
    expired = authority.pair("late", days=-1)
    own = authority.pair("client")
    tls = tls_of_pair(server_pair, authority.root)

    async def scenario() -> None:
        recorder = Recorder()
        async with a_tls_door(recorder, tls) as door:
            for _ in range(2):
                async with a_tls_client(door, authority.client(own)) as client:
                    await client.send(post(b"hello"))
                    assert (await client.reply())[2] == b"hello"

            def refusal(pair: Pair | None, version: ssl.TLSVersion) -> str:
                context = authority.client(pair)
                context.maximum_version = version
                try:
                    with blocking(door, context) as client:
                        client.sendall(post(b"x" * 60_000))
                        client.recv(1)
                except ssl.SSLError as failure:
                    return str(failure.reason)
                raise AssertionError("was let in")

            for version in VERSIONS:
                none = "TLSV13_ALERT_CERTIFICATE_REQUIRED" if version == VERSIONS[1] else "SSLV3_ALERT_HANDSHAKE_FAILURE"
                assert none in await asyncio.to_thread(refusal, None, version)
                assert "UNKNOWN_CA" in await asyncio.to_thread(refusal, stranger, version)
                assert "CERTIFICATE_EXPIRED" in await asyncio.to_thread(refusal, expired, version)
            await until(lambda: door.connection_count == 0)
        assert len(recorder.seen) == 2

    run(scenario)


def test_resumed_sessions_still_show_their_certificate(authority: Authority, server_pair: Pair) -> None:
    """A client that resumes its session is served, mutual TLS included."""
    tls = tls_of_pair(server_pair, authority.root)
    context = authority.client(authority.pair("resuming"))

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls) as door:

            def ask(session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool | None]:
                with context.wrap_socket(
                    socket.create_connection(("127.0.0.1", door.port), PATIENCE_S), server_hostname="localhost", session=session
                ) as client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert client.recv(65_536).startswith(b"HTTP/1.1 200")
                    return client.session, client.session_reused

            session, reused = await asyncio.to_thread(ask, None)
            assert not reused
            assert (await asyncio.to_thread(ask, session))[1]

    run(scenario)


def test_old_versions_are_refused(authority: Authority, tls: Tls) -> None:
    async def scenario() -> None:
        context = authority.client()
        with pytest.warns(DeprecationWarning):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        async with a_tls_door(Recorder(), tls) as door:

            def ask() -> None:
                with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"), blocking(door, context):
                    pass

            await asyncio.to_thread(ask)

    run(scenario)


def test_handshakes_are_counted_and_timed(tls: Tls) -> None:
    """A client that says nothing, or dribbles its hello, is a connection like any other and goes after the head's time."""

    async def scenario() -> None:
        async with a_tls_door(Recorder(), tls, limits=BRISK) as door, a_plain_client(door) as silent, a_plain_client(door) as dribbling:
            await until(lambda: door.connection_count == 2)
            assert await silent.rest() == b""
            with contextlib.suppress(ConnectionError):
                for byte in b"\x16\x03\x01\x02\x00\x01" * 100:
                    await dribbling.send(bytes((byte,)))
                    await asyncio.sleep(0.01)
                    if not door.connection_count:
                        break
            await until(lambda: door.connection_count == 0)

    run(scenario)


def test_no_handshake_beyond_the_cap(authority: Authority, tls: Tls) -> None:
    """Handshakes count; beyond the cap nobody gets as far as one."""

    async def scenario() -> None:
        recorder = Recorder(at_once=False)
        async with a_tls_door(recorder, tls, limits=Limits(connections=2, spare_connections=0)) as door:
            async with a_plain_client(door), a_tls_client(door, authority.client()) as busy:
                await busy.send(post(b"held"))
                await until(lambda: len(recorder.held) == 1 and door.connection_count == 2)
                with pytest.raises(ConnectionError):
                    async with a_tls_client(door, authority.client()):
                        pass
                recorder.answer_next()
                assert (await busy.reply())[2] == b"held"
            await until(lambda: door.connection_count == 0)
            async with a_tls_client(door, authority.client()) as client:
                await client.send(post(b"again"))
                await until(lambda: len(recorder.held) == 1)
                recorder.answer_next()
                assert (await client.reply())[2] == b"again"

    run(scenario)

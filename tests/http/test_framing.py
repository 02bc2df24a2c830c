"""Bytes on the wire and what becomes of them: strictness, limits, and that nothing is answered after an error."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tests.http.doors import QuietTransport, Recorder, a_client, a_door, an_arena, replies_in, run

FOLLOW_UP = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


def get(headers: bytes = b"Host: x\r\n", line: bytes = b"GET /v2 HTTP/1.1") -> bytes:
    return line + b"\r\n" + headers + b"\r\n"


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked\r\n", body)


REFUSED: dict[str, tuple[bytes, int]] = {
    "length and chunked": (post(b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "zero length and chunked": (post(b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "chunked and length": (post(b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", b"0\r\n\r\n"), 400),
    "chunked twice": (post(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"), 400),
    "chunked chunked": (post(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"), 400),
    "xchunked": (post(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n"), 400),
    "chunked gzip": (post(b"Transfer-Encoding: chunked, gzip\r\n", b"0\r\n\r\n"), 400),
    "gzip chunked": (post(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"), 400),
    "identity": (post(b"Transfer-Encoding: identity\r\n"), 400),
    "folded chunked": (post(b"Transfer-Encoding:\r\n chunked\r\n", b"0\r\n\r\n"), 400),
    "space before the colon": (post(b"Transfer-Encoding : chunked\r\n", b"0\r\n\r\n"), 400),
    "vertical tab chunked": (post(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"), 400),
    "chunked on 1.0": (b"POST /p HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "two equal lengths": (post(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"{}"), 400),
    "two lengths": (post(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"{}"), 400),
    "length +2": (post(b"Content-Length: +2\r\n", b"{}"), 400),
    "length 2,2": (post(b"Content-Length: 2,2\r\n", b"{}"), 400),
    "length 0x2": (post(b"Content-Length: 0x2\r\n", b"{}"), 400),
    "length 5 5": (post(b"Content-Length: 5 5\r\n", b"{}"), 400),
    "length -1": (post(b"Content-Length: -1\r\n", b"{}"), 400),
    "length empty": (post(b"Content-Length:\r\n", b"{}"), 400),
    "length in other digits": (post("Content-Length: ٣\r\n".encode(), b"{}"), 400),
    "length of 23 digits": (post(b"Content-Length: 99999999999999999999999\r\n", b"{}"), 400),
    "length beyond the arena": (post(b"Content-Length: 1000000000000000000\r\n", b"{}"), 413),
    "chunk size 0x2": (chunked(b"0x2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size -1": (chunked(b"-1\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size empty": (chunked(b"\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size of 17 digits": (chunked(b"00000000000000002\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk size ends in LF": (chunked(b"2\n{}\r\n0\r\n\r\n"), 400),
    "LF in an extension": (chunked(b"2;a\nb\r\n{}\r\n0\r\n\r\n"), 400),
    "CR in an extension": (chunked(b"2;a\rb\r\n{}\r\n0\r\n\r\n"), 400),
    "long extension": (chunked(b"2;" + b"a" * 300 + b"\r\n{}\r\n0\r\n\r\n"), 400),
    "chunk too long": (chunked(b"5\r\nhelloXX0\r\n\r\n"), 400),
    "chunk too long, no line end": (chunked(b"5\r\nhelloX"), 400),
    "chunk ends in LF": (chunked(b"5\r\nhello\n0\r\n\r\n"), 400),
    "trailer with a length": (chunked(b"0\r\nContent-Length: 5\r\n\r\n"), 400),
    "trailer with an encoding": (chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400),
    "trailer with a host": (chunked(b"0\r\nHost: y\r\n\r\n"), 400),
    "trailer with a credential": (chunked(b"0\r\nAuthorization: y\r\n\r\n"), 400),
    "trailer that is none": (chunked(b"0\r\nnonsense\r\n\r\n"), 400),
    "CR in a header": (get(b"Host: x\r\nA: b\rc\r\n"), 400),
    "LF in a header": (get(b"Host: x\r\nA: b\nB: c\r\n"), 400),
    "NUL in a header": (get(b"Host: x\r\nA: b\0c\r\n"), 400),
    "space before a colon": (get(b"Host: x\r\nA : b\r\n"), 400),
    "folded header": (get(b"Host: x\r\nA: b\r\n c\r\n"), 400),
    "header without a name": (get(b"Host: x\r\n: b\r\n"), 400),
    "header without a colon": (get(b"Host: x\r\nnonsense\r\n"), 400),
    "no host": (get(b""), 400),
    "two hosts": (get(b"Host: x\r\nHost: x\r\n"), 400),
    "another authority": (get(line=b"GET http://y/v2 HTTP/1.1"), 400),
    "user in the authority": (get(line=b"GET http://x@y/v2 HTTP/1.1"), 400),
    "relative target": (get(line=b"GET v2 HTTP/1.1"), 400),
    "no target": (get(line=b"GET HTTP/1.1"), 400),
    "tunnel": (get(line=b"CONNECT x:1 HTTP/1.1"), 400),
    "HTTP/0.9": (get(line=b"GET /v2 HTTP/0.9"), 400),
    "HTTP/0.9, bare": (b"GET /v2\r\n\r\n", 400),
    "HTTP/2.0": (get(line=b"GET /v2 HTTP/2.0"), 400),
    "HTTP/1.2": (get(line=b"GET /v2 HTTP/1.2"), 400),
    "unknown method": (get(line=b"NONSENSE /v2 HTTP/1.1"), 400),
    "line ends in LF": (b"GET /v2 HTTP/1.1\nHost: x\n\n", 400),
    "garbage": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "long request line": (get(line=b"GET /" + b"a" * 9000 + b" HTTP/1.1"), 400),
    "101 headers": (get(b"Host: x\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(100))), 431),
    "large head": (get(b"Host: x\r\nA: " + b"b" * 70_000 + b"\r\n"), 431),
    "endless head": (b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"A: bbbbbbbbbbbbbbbbbbbbbbbbbb\r\n" * 3000, 431),
    "HTTP/2 where it is off": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """One reply with the status, then the connection closes, and what follows is not answered."""
    raw, status = REFUSED[name]
    recorder = Recorder()

    async def scenario() -> bytes:
        with an_arena() as arena:
            async with a_door(recorder, arena) as door, a_client(door) as client:
                await client.send(raw + FOLLOW_UP)
                return await client.rest()

    stream = run(scenario)
    assert [status for status, _ in replies_in(stream)] == [status]
    assert b"connection: close" in stream.lower()
    assert b'{"error":"' in stream
    assert recorder.seen == []


ACCEPTED: dict[str, tuple[bytes, tuple[str, str, str, bytes]]] = {
    "get": (get(), ("GET", "/v2", "", b"")),
    "query": (get(line=b"GET /v2?x=1&y HTTP/1.1"), ("GET", "/v2", "x=1&y", b"")),
    "empty query": (get(line=b"GET /v2? HTTP/1.1"), ("GET", "/v2", "", b"")),
    "percent": (get(line=b"GET /%76%32 HTTP/1.1"), ("GET", "/%76%32", "", b"")),
    "own authority": (get(line=b"GET http://X/v2?q HTTP/1.1"), ("GET", "/v2", "q", b"")),
    "own authority, no path": (get(line=b"GET http://x HTTP/1.1"), ("GET", "/", "", b"")),
    "asterisk": (get(line=b"OPTIONS * HTTP/1.1"), ("OPTIONS", "*", "", b"")),
    "empty lines first": (b"\r\n\r\n" + get(), ("GET", "/v2", "", b"")),
    "body": (post(b"Content-Length: 2\r\n", b"{}"), ("POST", "/p", "", b"{}")),
    "length with blanks": (post(b"Content-Length:  2 \r\n", b"{}"), ("POST", "/p", "", b"{}")),
    "no length": (post(b""), ("POST", "/p", "", b"")),
    "chunked": (chunked(b"2\r\n{}\r\n0\r\n\r\n"), ("POST", "/p", "", b"{}")),
    "chunked in capitals": (post(b"Transfer-Encoding: Chunked\r\n", b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n"), ("POST", "/p", "", b"{}")),
    "chunk extension": (chunked(b"2;a=b\r\n{}\r\n0;c\r\n\r\n"), ("POST", "/p", "", b"{}")),
    "trailer": (chunked(b"2\r\n{}\r\n0\r\nX: y\r\n\r\n"), ("POST", "/p", "", b"{}")),
    "upgrade not taken": (get(b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"), ("GET", "/v2", "", b"")),
    "upgrade with a body": (post(b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n", b"{}"), ("POST", "/p", "", b"{}")),
    "100 headers": (get(b"Host: x\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(99))), ("GET", "/v2", "", b"")),
    "empty header": (get(b"Host: x\r\nA:\r\n"), ("GET", "/v2", "", b"")),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    """One reply, and the connection goes on."""
    raw, request = ACCEPTED[name]
    recorder = Recorder()

    async def scenario() -> None:
        with an_arena() as arena:
            async with a_door(recorder, arena) as door, a_client(door) as client:
                await client.send(raw)
                assert await client.reply() == (
                    200,
                    {"content-type": "text/plain", "content-length": str(len(request[3]))},
                    request[3],
                )
                await client.send(FOLLOW_UP)
                assert (await client.reply())[0] == 200

    run(scenario)
    assert recorder.seen == [request, ("GET", "/v2/health/live", "", b"")]


def test_headers_keep_their_spelling() -> None:
    """Names are lower-case for us, the client's spelling is kept beside; values lose the blanks around them."""
    seen = []

    def handle(request, answer):  # type: ignore[no-untyped-def]
        seen.append((request.headers, request.original_names, request.header(b"x-a"), request.peer_is_local))
        Recorder()(request, answer)

    async def scenario() -> None:
        async with a_door(handle) as door, a_client(door) as client:
            await client.send(get(b"Host: x\r\nX-a:  1 \t\r\nX-A: 2\r\n"))
            await client.reply()

    run(scenario)
    assert seen == [([(b"host", b"x"), (b"x-a", b"1"), (b"x-a", b"2")], [b"Host", b"X-a", b"X-A"], b"1", True)]


@pytest.mark.parametrize("count", [65_536, 65_537])
def test_chunk_count(count: int) -> None:
    """As many chunks as the reference takes, and its words for one more."""
    recorder = Recorder()

    async def scenario() -> bytes:
        with an_arena() as arena:
            async with a_door(recorder, arena) as door, a_client(door) as client:
                headers = b"Connection: close\r\nTransfer-Encoding: chunked\r\n"
                await client.send(post(headers, b"1\r\nA\r\n" * count + b"0\r\n\r\n"))
                return await client.rest()

    stream = run(scenario)
    if count == 65_536:
        assert recorder.seen == [("POST", "/p", "", b"A" * count)]
        assert stream.startswith(b"HTTP/1.1 200 ")
    else:
        assert recorder.seen == []
        assert b"\r\nContent-Type: application/json\r\n" in stream
        assert replies_in(stream) == [
            (
                400,
                b'{"error":"Chunked request body exceeds maximum of 65536 non-empty chunks. Send fewer or larger HTTP chunks."}',
            )
        ]


BODIES = st.one_of(st.binary(max_size=40), st.integers(0, 400).map(lambda size: bytes(size)))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[str, str, str, bytes]]:
    """A valid request as bytes, and what it is."""
    body = draw(BODIES)
    path = draw(st.sampled_from(["/a", "/v2/models/m/infer"]))
    head = f"POST {path}?q HTTP/1.1\r\nHost: x\r\n".encode()
    if draw(st.booleans()):
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=3)))
        pieces = [body[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + framed, ("POST", path, "q", body)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body, ("POST", path, "q", body)


@settings(max_examples=300, deadline=None)
@given(st.lists(requests(), min_size=1, max_size=12), st.data())
def test_any_split_gives_the_same_requests(wanted: list[tuple[bytes, tuple[str, str, str, bytes]]], data: st.DataObject) -> None:
    """However the bytes arrive, the requests are the same and every one is answered, in order."""
    stream = b"".join(raw for raw, _ in wanted)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    late = data.draw(st.booleans())
    recorder = Recorder(at_once=not late)
    with an_arena(1 << 20) as arena:
        door = HttpDoor(recorder, arena, None, Limits(inline_byte_size=64, waiting=3))
        connection, transport = Connection(door), QuietTransport()
        connection.connection_made(transport)
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            while start < stop:
                while not transport.reading:
                    recorder.answer_next()
                room = connection.get_buffer(-1)
                count = min(len(room), stop - start)
                room[:count] = stream[start : start + count]
                connection.buffer_updated(count)
                start += count
        while recorder.held:
            recorder.answer_next()
        connection.connection_lost(None)
    assert recorder.seen == [request for _, request in wanted]
    assert replies_in(transport.written) == [(200, request[3]) for _, request in wanted]
    assert not transport.closed

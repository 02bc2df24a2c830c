"""Requests are cut out of the stream alike however it arrives; test_strictness.py holds what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.http.connection import Connection
from tensorfarm.server.http.limits import Limits
from tensorfarm.server.http.listener import HttpDoor
from tests.http.doors import QuietTransport, Recorder, a_client, a_door, an_arena, replies_in, run


def post(headers: bytes, body: bytes = b"") -> bytes:
    return b"POST /p HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n" + body


def test_headers_keep_their_spelling() -> None:
    """Names are lower-case for us, the client's spelling is kept beside; values lose the blanks around them."""
    seen = []

    def handle(request, answer):  # type: ignore[no-untyped-def]
        seen.append((request.head.headers, request.head.original_names, request.head.header(b"x-a"), request.peer_is_local))
        Recorder()(request, answer)

    async def scenario() -> None:
        async with a_door(handle) as door, a_client(door) as client:
            await client.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-a:  1 \t\r\nX-A: 2\r\n\r\n")
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

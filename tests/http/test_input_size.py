"""``--http-max-input-size`` counts what a body becomes, however it is sent, and before it has become that."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest

from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest
from tensorfarm.server.http.inference import infer_guarded

from .doors import a_client, a_door, an_arena, run
from .echo_service import EchoService, echo_signature, spec

LIMIT = 1 << 20
MIB = 1 << 20


def document(byte_size: int) -> bytes:
    """A request of so many bytes, blanks at its end included."""
    content = b'{"inputs":[{"name":"IN","datatype":"INT8","shape":[2],"data":[1,2]}]}'
    return content + b" " * (byte_size - len(content))


def plain(content: bytes, *headers: bytes) -> bytes:
    """A request with a length."""
    lines = [b"POST /v2/models/m/infer HTTP/1.1", b"Host: x", *headers, b"Content-Length: %d" % len(content)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


def chunked(content: bytes, *headers: bytes) -> bytes:
    """The same in chunks of 10,000 bytes."""
    lines = [b"POST /v2/models/m/infer HTTP/1.1", b"Host: x", *headers, b"Transfer-Encoding: chunked"]
    pieces = [content[at : at + 10_000] for at in range(0, len(content), 10_000)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def answered(*messages: bytes) -> list[tuple[int, bytes]]:
    """Status and body of the replies to messages on one connection."""
    service = EchoService({"m": echo_signature("m", [spec("IN", "INT8", -1)])}, max_input_size=LIMIT)

    def handle(request: HttpRequest, answer: Answer) -> Cancel | None:
        return infer_guarded(service, "m", "", request, answer)  # type: ignore[arg-type]

    async def scenario() -> list[tuple[int, bytes]]:
        found = []
        with an_arena(8 * MIB) as arena:
            service.arena = arena
            async with a_door(handle, arena) as door, a_client(door) as client:
                for message in messages:
                    await client.send(message)
                    found.append((await client.reply())[::2])
        return found

    return run(scenario)


@pytest.mark.parametrize("send", [plain, chunked])
@pytest.mark.parametrize("pack", [None, gzip.compress, zlib.compress])
def test_the_limit_is_exact(send: type[bytes], pack: type[bytes] | None) -> None:
    """Of what the body is once it is undone; the connection goes on."""
    headers = {None: [], gzip.compress: [b"Content-Encoding: gzip"], zlib.compress: [b"Content-Encoding: deflate"]}[pack]
    just, beyond = (send(pack(content) if pack else content, *headers) for content in (document(LIMIT), document(LIMIT + 1)))
    found = answered(just, beyond, just)
    assert [status for status, _ in found] == [200, 400, 200]
    assert b"Use --http-max-input-size to increase the limit." in found[1][1]


@pytest.mark.parametrize("send", [plain, chunked])
def test_a_bomb_goes_off_in_nobodys_memory(send: type[bytes]) -> None:
    """256 MiB that come as 256 KiB: refused when the limit is reached."""
    packed = gzip.compress(bytes(256 * MIB), 1)
    message = send(packed, b"Content-Encoding: gzip")
    del packed
    tracemalloc.start()
    try:
        ((status, body),) = answered(message)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert status == 400
    assert body.startswith(b'{"error":"Decompressed data size exceeds the maximum allowed value of 1048576 bytes.')
    assert most < 8 * LIMIT

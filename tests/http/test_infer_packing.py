"""Long compressed bodies: they are packed and unpacked beside the loop, which goes on with everybody else's requests."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tensorfarm.server.http import infer as infer_module
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest, Reply
from tensorfarm.server.http.inference import infer_guarded

from .doors import a_client, a_door, an_arena, run, until
from .echo_service import EchoService, echo_signature, spec

COUNT = 40_000
LONG = b'{"inputs":[{"name":"IN","datatype":"INT8","shape":[%d],"data":[%b]}]}' % (COUNT, b",".join([b"7"] * COUNT))
SHORT = b'{"inputs":[{"name":"IN","datatype":"INT8","shape":[1],"data":[7]}]}'


def post(content: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v2/models/m/infer HTTP/1.1", b"Host: x", *headers, b"Content-Length: %d" % len(content)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + content


def served(service: EchoService) -> Callable[[HttpRequest, Answer], Cancel | None]:
    def handle(request: HttpRequest, answer: Answer) -> Cancel | None:
        if request.head.method == "GET":
            request.body.release()
            answer(Reply(200))
            return None
        return infer_guarded(service, "m", "", request, answer)  # type: ignore[arg-type]

    return handle


def echo_service(**more: Any) -> EchoService:
    return EchoService({"m": echo_signature("m", [spec("IN", "INT8", -1)])}, **more)


def held(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """Make packing or unpacking wait for the event."""
    go_on = threading.Event()
    real = getattr(infer_module, name)

    def slow(*arguments: Any) -> Any:
        assert threading.current_thread() is not threading.main_thread()
        assert go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(infer_module, name, slow)
    return go_on


@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_others_are_served_meanwhile(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    service = echo_service()
    go_on = held(monkeypatch, name)
    packed = gzip.compress(LONG, 0)
    request = post(packed, b"Content-Encoding: gzip") if name == "decompress" else post(LONG, b"Accept-Encoding: gzip")

    async def scenario() -> None:
        with an_arena() as arena:
            service.arena = arena
            async with a_door(served(service), arena) as door, a_client(door) as first, a_client(door) as second:
                await first.send(request)
                for _ in range(3):
                    await second.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert (await second.reply())[0] == 200
                go_on.set()
                status, headers, content = await first.reply()
                assert status == 200
                assert headers.get("content-encoding") == ("gzip" if name == "compress" else None)
                text = gzip.decompress(content) if name == "compress" else content
                assert text.count(b"7") >= COUNT

    run(scenario)
    assert service.released == 1


def test_a_client_that_goes_while_its_body_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    service = echo_service()
    go_on = held(monkeypatch, "decompress")

    async def scenario() -> None:
        with an_arena() as arena:
            service.arena = arena
            async with a_door(served(service), arena) as door, a_client(door) as client:
                await client.send(post(gzip.compress(LONG, 0), b"Content-Encoding: gzip"))
                await until(lambda: arena.used_byte_size > 0)
                client.reset()
                await until(lambda: not door.connection_count)
                go_on.set()
                await until(lambda: arena.used_byte_size == 0)

    run(scenario)
    assert service.submitted == []


@pytest.mark.parametrize(
    ("content", "limit", "text"),
    [
        (b"x" * 5000, 1 << 20, b"unable to decompress the request body"),
        (gzip.compress(bytes(3000), 0), 1000, b"Decompressed data size exceeds the maximum allowed value of 1000 bytes."),
    ],
)
def test_long_bodies_that_cannot_be_undone(content: bytes, limit: int, text: bytes) -> None:
    service = echo_service(max_input_size=limit)

    async def scenario() -> None:
        async with a_door(served(service)) as door, a_client(door) as client:
            await client.send(post(content, b"Content-Encoding: gzip"))
            status, headers, body = await client.reply()
            assert (status, headers["content-type"]) == (400, "text/plain")
            assert text in body
            await client.send(post(SHORT))
            assert (await client.reply())[0] == 200

    run(scenario)


def test_a_reply_that_cannot_be_packed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    service = echo_service()

    def fail(*arguments: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(infer_module, "compress", fail)

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with an_arena() as arena:
            async with a_door(served(service), arena) as door, a_client(door) as client:
                await client.send(post(LONG, b"Accept-Encoding: gzip"))
                assert (await client.reply())[0] == 500

    run(scenario)
    assert service.released == 1

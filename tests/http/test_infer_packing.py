"""Long compressed bodies: they are packed and unpacked beside the loop, which goes on with everybody else's requests."""

from __future__ import annotations

import asyncio
import gzip
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tensorfarm.server.door import content_encoding
from tensorfarm.server.door.content_encoding import Beside, Unwanted
from tensorfarm.server.http import infer as infer_module
from tensorfarm.server.http.exchange import Answer, Cancel, HttpRequest, Reply
from tensorfarm.server.http.inference import infer_guarded

from .doors import a_client, a_door, an_arena, run, until
from .echo_service import HEADER_LENGTH, CountedBody, EchoService, echo_signature, http_request, spec

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


@contextmanager
def busy_threads() -> Iterator[threading.Event]:
    """Both threads are at work on somebody's long body until the event is set."""
    free = threading.Event()
    jobs = [content_encoding._POOL.submit(free.wait, 20) for _ in range(2)]
    try:
        yield free
    finally:
        free.set()
        for job in jobs:
            job.result()


BINARY_LEAD = (
    b'{"inputs":[{"name":"IN","datatype":"INT8","shape":[%d],"parameters":{"binary_data_size":%d}}],"parameters":{"binary_data_output":true}}'
    % (COUNT, COUNT)
)


class Asked:
    """A request whose body is long and compressed, or whose reply will be; by hand, without a connection."""

    def __init__(self, service: EchoService, name: str) -> None:
        self.service = service
        self.name = name
        self.replies: list[Reply] = []
        if name == "decompress":
            self.body = CountedBody(gzip.compress(LONG, 0))
            headers = {"Content-Encoding": "gzip"}
        else:
            self.body = CountedBody(BINARY_LEAD + bytes(COUNT))
            headers = {HEADER_LENGTH.decode(): str(len(BINARY_LEAD)), "Accept-Encoding": "gzip"}
        self.cancel = infer_guarded(service, "m", "", http_request(self.body, headers), self.replies.append)  # type: ignore[arg-type]

    @property
    def job(self) -> Beside[bytes]:
        """Its packing or unpacking, which is under way."""
        owner = getattr(self.cancel, "func", self.cancel).__self__  # type: ignore[union-attr]
        assert isinstance(owner._job, Beside)
        return owner._job

    @property
    def releases(self) -> int:
        """How often what is packed or unpacked was given back."""
        return self.body.releases if self.name == "decompress" else self.service.released


@pytest.mark.parametrize("state", ["waiting", "running", "done"])
@pytest.mark.parametrize("name", ["compress", "decompress"])
def test_what_clients_that_have_gone_held_is_given_back_once(monkeypatch: pytest.MonkeyPatch, name: str, state: str) -> None:
    service = echo_service()
    begun, go_on = threading.Event(), threading.Event()
    real = getattr(infer_module, name)

    def watched(*arguments: Any) -> Any:
        begun.set()
        assert go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(infer_module, name, watched)

    async def scenario() -> None:
        asked = Asked(service, name)
        outcome = asked.job._outcome
        if state == "running":
            await until(begun.is_set)
        else:
            go_on.set()
        if state == "done":
            # the loop does not hear of it before this goes on
            assert outcome.result(10)
        assert asked.cancel is not None
        asked.cancel()
        assert asked.releases == (state == "waiting"), "too early, or not at once"
        go_on.set()
        if state == "running":
            assert isinstance(outcome.exception(10), Unwanted)
        free.set()
        await until(lambda: asked.releases == 1)
        await asyncio.gather(*[asyncio.sleep(0.01)])
        assert (asked.releases, asked.body.releases, asked.replies) == (1, 1, [])
        assert begun.is_set() == (state != "waiting")
        assert len(service.submitted) == (name == "compress")

    if state == "waiting":
        with busy_threads() as free:
            run(scenario)
    else:
        free = threading.Event()
        run(scenario)


def test_a_client_that_goes_before_its_body_is_undone_leaves_nothing_in_the_arena() -> None:
    service = echo_service()

    async def scenario() -> None:
        with an_arena() as arena:
            service.arena = arena
            async with a_door(served(service), arena) as door:
                for _ in range(3):
                    async with a_client(door) as client:
                        await client.send(post(gzip.compress(LONG, 0), b"Content-Encoding: gzip"))
                        await until(lambda: arena.used_byte_size > 0)
                        client.reset()
                        await until(lambda: arena.used_byte_size == 0)

    with busy_threads():
        run(scenario)
    assert service.submitted == []


def test_no_more_wait_than_there_are_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond that, bodies are refused, and replies go out as they are."""
    service = echo_service()
    monkeypatch.setattr(Beside, "_places", threading.BoundedSemaphore(1))

    async def scenario() -> None:
        first = Asked(service, "decompress")
        refused = Asked(service, "decompress")
        ((status, text),) = [(reply.status, b"".join(reply.body)) for reply in refused.replies]
        assert (status, text) == (503, b'{"error":"too many compressed bodies wait for a thread; try again later"}')
        assert refused.body.releases == 1
        (plain,) = Asked(service, "compress").replies
        assert (plain.status, b"Content-Encoding" in dict(plain.headers)) == (200, False)
        assert b"".join(plain.body).endswith(bytes(COUNT))
        assert plain.on_sent is not None
        plain.on_sent()
        assert first.cancel is not None
        first.cancel()
        packed = Asked(service, "compress")
        assert packed.replies == []
        free.set()
        await until(lambda: bool(packed.replies))
        assert dict(packed.replies[0].headers)[b"Content-Encoding"] == b"gzip"
        again = Asked(service, "decompress")
        await until(lambda: bool(again.replies))
        assert again.replies[0].status == 200

    with busy_threads() as free:
        run(scenario)
    assert service.released == 3

"""What doors count as held for requests, and what they refuse before they have read it, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from tensorfarm.server.admission import Admission, AdmissionLimits
from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.http.limits import Limits
from tests.http.doors import BRISK, Client, a_client, an_arena, run, until
from tests.http.echo_service import echo_signature, spec
from tests.http.generating_service import MODEL, GeneratingService, a_front, generating, post, tensor
from tests.http.test_streaming import with_a_shut_window

KIB, MIB = 1 << 10, 1 << 20
KINDS = ("infer", "generate", "generate_stream")


def bounded(byte_size: int, **options: object) -> GeneratingService:
    """A service that may hold so many bytes."""
    service = generating(**options)
    service.admission = Admission(AdmissionLimits(byte_size=byte_size), memory=service.arena)
    return service


def head(byte_size: int, kind: str, headers: str = "") -> bytes:
    return f"POST /v2/models/m/{kind} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {byte_size}\r\n\r\n".encode()


async def refused(client: Client, reason: bytes = b"too many bytes") -> dict[str, str]:
    """Read a refusal; its headers."""
    status, headers, body = await client.reply()
    assert status == 503 and reason in body, body
    assert 1 <= int(headers["retry-after"]) <= 30
    return headers


@contextlib.asynccontextmanager
async def http2_client(port: int) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", http1=False, http2=True) as client:
        yield client


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_body_is_refused_by_its_head(kind: str) -> None:
    """None of it has been sent; nobody is asked for it, and the connection ends."""

    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            service.admission.hold(MIB // 2)
            async with a_front(service) as door, a_client(door) as client:
                await client.send(head(MIB * 3 // 4, kind, "Expect: 100-continue\r\n"))
                headers = await refused(client)
                assert headers["connection"] == "close"
                assert await client.rest() == b""
                service.admission.let_go(MIB // 2)
            assert not service.submitted
            assert service.admission.refused == {("m", "BYTES"): 1}

    run(scenario)


def test_a_client_that_sends_on_sees_why() -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            service.admission.hold(MIB // 2)
            async with a_front(service) as door, a_client(door) as client:
                await client.send(head(MIB * 3 // 4, "infer") + bytes(MIB * 3 // 4))
                await refused(client)
                service.admission.let_go(MIB // 2)

    run(scenario)


@pytest.mark.parametrize("kind", ["nothing", *KINDS])
def test_what_can_never_be_held_is_too_large(kind: str) -> None:
    """To come again would not help."""

    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            async with a_front(service) as door, a_client(door) as client:
                await client.send(head(MIB + 1, kind))
                status, headers, _ = await client.reply()
                assert status == 413 and "retry-after" not in headers

    run(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_never_be_held_is_too_large_over_http2_too(kind: str) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            async with a_front(service) as door, http2_client(door.port) as client:
                reply = await client.post(f"/v2/models/m/{kind}", content=bytes(MIB + 1))
                assert reply.status_code == 413 and "retry-after" not in reply.headers
            await until(lambda: service.admission.byte_size == 0)

    run(scenario)


@pytest.mark.parametrize("ends", ["whole", "gone"])
def test_half_a_body_in_ordinary_memory_counts(ends: str) -> None:
    """Many clients that never send the other half are not to take memory that nobody knows of."""

    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            async with a_front(service) as door:
                async with a_client(door) as client:
                    await client.send(head(60 * KIB, "nothing") + bytes(30 * KIB))
                    await until(lambda: service.admission.held_byte_size == 30 * KIB)
                    if ends == "whole":
                        await client.send(bytes(30 * KIB))
                        assert (await client.reply())[0] == 404
                await until(lambda: service.admission.held_byte_size == 0)

    run(scenario)


def test_those_who_may_not_ask_are_told_that_first() -> None:
    """However much there is to do: it says something of the models that they are not to know."""

    class Flow:
        in_flight = 5

    async def scenario() -> None:
        with an_arena() as arena:
            service = generating(arena=arena)
            service.admission = Admission(AdmissionLimits(requests=5), Flow())
            async with a_front(service, inference=("key", "word")) as door, a_client(door) as client:
                await client.send(head(100 * KIB, "infer") + bytes(100 * KIB))
                assert (await client.reply())[0] == 403
            assert service.admission.refused == {}

    run(scenario)


def test_requests_count_before_a_large_body_is_read() -> None:
    """A small one is read whatever happens, and its connection stays."""

    class Flow:
        in_flight = 5

    async def scenario() -> None:
        with an_arena() as arena:
            service = generating(arena=arena)
            service.admission = Admission(AdmissionLimits(requests=5), Flow())
            async with a_front(service) as door, a_client(door) as client:
                await client.send(head(100 * KIB, "infer"))
                await refused(client, b"too many requests in flight (limit 5)")
            service.on_submit = lambda request: service.text(request, "a", final=True)
            async with a_front(service) as door, a_client(door) as client:
                # The service of this test takes everything; the real one asks there.
                for _ in range(2):
                    await client.send(post({"IT": "a"}, "generate"))
                    assert (await client.head())[0] == 200
                    await client.chunks()

    run(scenario)


@pytest.mark.parametrize("kind", KINDS)
def test_over_http2_the_stream_alone_ends(kind: str) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            service.on_submit = lambda request: service.text(request, "a", final=True)
            async with a_front(service) as door, http2_client(door.port) as client:
                service.admission.hold(MIB // 2)
                reply = await client.post(f"/v2/models/m/{kind}", content=bytes(MIB * 3 // 4))
                assert reply.status_code == 503 and 1 <= int(reply.headers["retry-after"]) <= 30
                assert reply.headers["content-type"] == ("text/plain" if kind == "infer" else "application/json")
                service.admission.let_go(MIB // 2)
                assert (await client.post("/v2/models/m/generate", json={"IT": "a"})).status_code == 200
                assert door.connection_count == 1, "it was the same one"

    run(scenario)


@pytest.mark.parametrize("inline", [True, False])
def test_a_body_of_unknown_length_grows_up_to_the_bound(inline: bool) -> None:
    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            async with a_front(service) as door, a_client(door) as client:
                service.admission.hold(MIB - (16 * KIB if inline else 160 * KIB))
                await client.send(b"POST /v2/models/m/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
                for _ in range(3 if inline else 13):
                    await client.send(b"4000\r\n" + bytes(16 * KIB) + b"\r\n")
                await refused(client)
                service.admission.let_go(service.admission.held_byte_size)
                assert not arena.used_byte_size

    run(scenario)


@pytest.mark.parametrize("ends", ["answered", "gone"])
@pytest.mark.parametrize(("size", "counted"), [(2 * KIB, False), (40 * KIB, True)])
def test_bodies_in_ordinary_memory_count_while_they_wait(ends: str, size: int, counted: bool) -> None:
    """Behind the request that is being answered, too. Small ones, of which a connection has only few, do not."""
    service = generating()
    body = {"IT": "x" * size}

    async def scenario() -> None:
        async with a_front(service, BRISK) as door, a_client(door) as client:
            # A generation gives its body back when it has read it: it is the second request's that waits.
            await client.send(post({"IT": "a"}) + post(body))
            await until(lambda: len(service.submitted) == 1)
            assert (service.admission.held_byte_size > size) == counted
            if ends == "gone":
                client.abort()
                await until(lambda: door.connection_count == 0)
            else:
                service.end(service.submitted[0])
                await until(lambda: len(service.submitted) == 2)
            assert service.admission.held_byte_size == 0

    run(scenario)


def _silent(client: Client) -> None:
    """Read nothing more."""
    client.writer.transport.pause_reading()  # type: ignore[attr-defined]


@pytest.mark.parametrize("ends", ["read", "gone"])
@pytest.mark.parametrize("kind", KINDS)
def test_replies_count_until_the_client_has_taken_them(kind: str, ends: str) -> None:
    service = generating()
    text = "x" * (16 * MIB)

    def answer(request: Request) -> None:
        service.send(request, tensor("OT", "BYTES", [text]), final=True)

    async def scenario() -> None:
        async with a_front(service) as door, a_client(door) as client:
            service.on_submit = answer
            _silent(client)
            inputs = {"inputs": [{"name": "IT", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}
            await client.send(post(inputs if kind == "infer" else {"IT": "a"}, kind))
            await until(lambda: service.admission.held_byte_size > 4 * MIB)
            if ends == "read":
                client.writer.transport.resume_reading()  # type: ignore[attr-defined]
                await (client.reply() if kind == "infer" else client.head())
                while service.admission.held_byte_size:
                    assert await client.reader.read(MIB)
            else:
                client.abort()
            await until(lambda: service.admission.held_byte_size == 0)

    if kind == "infer":
        service.signatures = {"m": echo_signature("m", [spec("IT", "BYTES", -1)])}
    run(scenario)


@pytest.mark.parametrize("times", [1, 3])
def test_a_stream_over_http2_counts_what_waits(times: int) -> None:
    service = generating(MODEL)

    async def scenario() -> None:
        async with with_a_shut_window(service, Limits()) as (_, client):
            by_itself = service.admission.held_byte_size
            assert by_itself > 0, "its own objects"
            for _ in range(times):
                service.text(service.submitted[0], "x" * MIB)
            await until(lambda: service.admission.held_byte_size >= by_itself + times * MIB)
            client.abort()
            await until(lambda: service.admission.held_byte_size == 0)

    run(scenario)


def test_bodies_of_other_requests_are_let_in_once() -> None:
    """What a connection has read may be handled, though it is there twice for a moment."""

    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            async with a_front(service) as door, a_client(door) as client:
                path = b"/v2/repository/r/models/m/load"
                await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path, MIB * 3 // 4) + bytes(MIB * 3 // 4))
                assert (await client.reply())[0] == 501, "a repository is named"
                assert service.admission.byte_size == 0
                service.admission.hold(2 * MIB)
                await client.send(b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n?" % path)
                assert (await client.reply())[0] == 501
                service.admission.let_go(2 * MIB)

    run(scenario)


def test_bodies_of_other_requests_over_http2() -> None:
    """They are read into ordinary memory, so they are bounded too; what has no body is answered however much there is."""

    async def scenario() -> None:
        with an_arena() as arena:
            service = bounded(MIB, arena=arena)
            service.admission.hold(MIB // 2)
            async with a_front(service) as door, http2_client(door.port) as client:
                reply = await client.post("/v2/repository/models/m/load", content=bytes(MIB))
                assert reply.status_code == 503 and "retry-after" in reply.headers
                assert service.admission.held_byte_size == MIB // 2
                service.admission.hold(MIB)
                assert (await client.get("/v2/nothing")).status_code == 404
                service.admission.let_go(MIB * 3 // 2)

    run(scenario)

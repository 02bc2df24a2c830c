"""generate and generate_stream over a real socket: statuses, the one-response rule, events, refusals, what is given back."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import pytest

from tensorfarm.server.dispatch.request import Request
from tensorfarm.server.http import generate
from tensorfarm.server.http.generate import generate_target
from tensorfarm.server.http.generate_response import EXPECTS_ONE
from tensorfarm.server.http.load_metrics import FAMILY
from tensorfarm.server.prometheus_text import Family
from tensorfarm.workers.contract.status import internal, not_found, unavailable
from tests.http.doors import Client, a_client, an_arena, run, until
from tests.http.echo_service import echo_signature, spec
from tests.http.generating_service import GeneratingService, a_front, event, generating, post, tensor

JSON, EVENTS = "application/json", "text/event-stream; charset=utf-8"
ASK = {"IT": "a"}


async def reply_to(client: Client, request: bytes) -> tuple[int, str, bytes | list[bytes]]:
    """Status, content type and body of the reply; the chunks where it comes in chunks."""
    await client.send(request)
    status, headers = await client.head()
    if "transfer-encoding" in headers:
        assert headers["transfer-encoding"] == "chunked" and "content-length" not in headers
        return status, headers["content-type"], await client.chunks()
    return status, headers["content-type"], await client.reader.readexactly(int(headers["content-length"]))


def exchanged(service: GeneratingService, *requests: bytes, **rules: tuple[str, str]) -> list[tuple[int, str, bytes | list[bytes]]]:
    """The replies to requests on one connection; fails unless everything was given back."""
    replies: list[tuple[int, str, bytes | list[bytes]]] = []

    async def scenario() -> None:
        with an_arena() as arena:
            service.arena = arena
            async with a_front(service, **rules) as door, a_client(door) as client:
                for request in requests:
                    replies.append(await reply_to(client, request))
        assert service.nothing_held()
        assert service.finished == len(service.submitted)

    run(scenario)
    return replies


def text(value: Any) -> bytes:
    return json.dumps({"OT": value, "model_name": "m", "model_version": "1"}, separators=(",", ":")).encode()


ONE = json.dumps({"error": EXPECTS_ONE}, separators=(",", ":")).encode()
Step = tuple[str, Any, bool]
"""A response: what it is (text, error, none, end), what it says, and whether it is the last."""


def script(service: GeneratingService, *steps: Step) -> None:
    """Have every request answered with these responses, at once."""

    def answer(request: Request) -> None:
        for verb, value, final in steps:
            if verb == "end":
                service.end(request)
            elif verb == "error":
                service.send(request, error=value, final=final)
            else:
                service.send(request, *([] if verb == "none" else [tensor("OT", "BYTES", value)]), final=final)

    service.on_submit = answer


END: Step = ("end", None, True)
A, B = ("text", ["a"], False), ("text", ["b", "c"], False)


@pytest.mark.parametrize(
    ("steps", "status", "one", "events"),
    [
        ((A, END), 200, text("a"), [text("a")]),
        ((("text", ["a"], True),), 200, text("a"), [text("a")]),
        ((A, B, END), 200, ONE, [text("a"), text(["b", "c"])]),
        ((A, ("text", ["b"], True)), 200, ONE, [text("a"), text("b")]),
        ((END,), 200, ONE, []),
        ((("none", None, True),), 200, text(None).replace(b'"OT":null,', b""), [text(None).replace(b'"OT":null,', b"")]),
        ((A, ("none", None, True)), 200, ONE, [text("a"), text(None).replace(b'"OT":null,', b"")]),
        ((("error", internal("oh"), False), END), 400, b'{"error":"oh"}', [b'{"error":"oh"}']),
        ((("error", not_found("oh"), True),), 400, b'{"error":"oh"}', [b'{"error":"oh"}']),
        ((("error", unavailable("oh"), False), A, END), 400, ONE, [b'{"error":"oh"}', text("a")]),
        ((A, ("error", internal('"'), False), A, END), 200, ONE, [text("a"), b'{"error":"\\""}', text("a")]),
    ],
    ids=str,
)
def test_responses(steps: tuple[Step, ...], status: int, one: bytes, events: list[bytes]) -> None:
    """One response is expected by generate; generate_stream sends each; the first one decides the status."""
    service = generating()
    script(service, *steps)
    replies = exchanged(service, post(ASK, "generate"), post(ASK), post(ASK, "generate"))
    chunks = [b"data: %b\n\n" % each for each in events]
    assert replies == [(status, JSON, [one]), (status, EVENTS, chunks), (status, JSON, [one])]


def test_the_head_comes_with_the_first_response() -> None:
    """Also where the body is only known in the end, and in one chunk."""
    service = generating()

    async def scenario() -> None:
        async with a_front(service) as door, a_client(door) as client:
            await client.send(post(ASK, "generate"))
            await until(lambda: len(service.submitted) == 1)
            service.text(service.submitted[0], "a")
            assert (await client.head())[0] == 200
            service.end(service.submitted[0])
            assert await client.chunks() == [text("a")]

    run(scenario)
    assert service.nothing_held()


def test_the_id_is_told() -> None:
    service = generating()
    script(service, A, END)
    (reply,) = exchanged(service, post({"IT": "a", "id": "q-1"}))
    assert reply[2] == [b'data: {"OT":"a","id":"q-1","model_name":"m","model_version":"1"}\n\n']
    assert service.submitted[0].body.id == "q-1"


def test_what_has_no_json_form() -> None:
    """It is an error like the model's own, and the stream goes on."""
    service = generating()
    half = tensor("OT", "FP16", [1])
    message = "sending FP16 data via JSON is not supported. Please use the binary data format for output"
    said = b'{"error":"%b"}' % message.encode()

    def answer(request: Request) -> None:
        service.send(request, half)
        if len(service.submitted) == 2:
            service.text(request, "a")
        service.end(request)

    service.on_submit = answer
    replies = exchanged(service, post(ASK, "generate"), post(ASK))
    assert replies == [(400, JSON, [said]), (400, EVENTS, [b"data: %b\n\n" % said, event("a")])]


def test_long_responses_keep_the_order() -> None:
    """They are written in turns with the loop, and those behind them wait."""
    service = generating()
    long = ["é" * 9] * 20_000

    def answer(request: Request) -> None:
        service.text(request, "before")
        service.text(request, *long)
        service.text(request, "behind")
        service.text(request, *long, final=True)

    service.on_submit = answer
    ((status, _, chunks),) = exchanged(service, post(ASK))
    assert status == 200 and isinstance(chunks, list)
    assert [json.loads(chunk[6:])["OT"] for chunk in chunks] == ["before", long, "behind", long]


def test_a_long_response_may_fail() -> None:
    """Its last element is cut off."""
    service = generating()
    whole = tensor("OT", "BYTES", ["x" * 20] * 5000)

    def answer(request: Request) -> None:
        place = whole.place
        cut = type(place)(place.content[:-1])  # type: ignore[call-arg, union-attr]
        service.send(request, type(whole)("OT", "BYTES", whole.shape, cut))
        service.end(request)

    service.on_submit = answer
    said = b'{"error":"output tensor shape does not match size of output for \'OT\'"}'
    assert exchanged(service, post(ASK)) == [(400, EVENTS, [b"data: %b\n\n" % said])]


def test_large_inputs() -> None:
    """They lie in the arena until the request has ended; a body is given back once it is read."""
    service = generating(echo_signature("m", [spec("IT", "BYTES", -1), spec("IN", "FP64", -1, optional=True)]))
    script(service, ("text", ["a"], True))
    numbers = [0.5] * 20_000
    replies = exchanged(service, post({"IT": "x" * 200_000, "IN": numbers}, "generate"), post({"IT": ["é"] * 3, "IN": 1}, "generate"))
    assert [reply[0] for reply in replies] == [200, 200]
    assert [tensor.shape for tensor in service.submitted[0].body.inputs] == [(1,), (20_000,)]


@pytest.mark.parametrize("kind", ["generate", "generate_stream"])
def test_refusals(kind: str) -> None:
    """Before there is a response, an error has the status of its code and is ordinary JSON."""
    service = generating()
    unknown = b'{"error":"Request for unknown model: \'none\' is not found"}'
    missing = (
        b'{"error":"[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model \'m\'. Got input(s) [], '
        b"but missing required input(s) ['IT']. Please provide all required input(s).\"}"
    )
    encoded = b'{"error":"Unsupported content-encoding, only \'identity\' is supported."}'
    number = b"99999999999999999999"
    huge = (
        b'{"error":"failed to get model version from specified version string \'%b\' (details: stol), '
        b'version should be an integral value > 0"}' % number
    )
    replies = exchanged(
        service,
        post(ASK, kind, "none"),
        post(ASK, kind, "none", "Content-Encoding: gzip\r\n"),
        post(b"{", kind, headers="Content-Encoding: gzip\r\n"),
        post({"x": 1}, kind),
        post(b"{", kind),
        post({"IT": 5}, kind),
        post(ASK, kind, "m/versions/2"),
        post(ASK, kind, f"m/versions/{number.decode()}"),
        post(ASK, kind, "m/versions/one"),
        post(ASK, kind).replace(b"POST", b"PUT"),
    )
    assert [(status, content) for status, _, content in replies] == [
        (404, unknown),
        (404, unknown),
        (400, encoded),
        (400, missing),
        (500, b'{"error":"failed to parse the request JSON buffer: Missing a name for object member. at 1"}'),
        (500, b'{"error":"Unable to parse JSON bytes array: attempt to access JSON non-string as string"}'),
        (404, b'{"error":"Request for unknown model: \'m\' version 2 is not found"}'),
        (400, huge),
        (404, b'{"error":"Not Found"}'),
        (405, b'{"error":"Method Not Allowed"}'),
    ]
    assert [kind for _, kind, _ in replies] == [*[JSON] * 8, "text/plain", JSON]
    assert not service.submitted


def test_versions_and_identity() -> None:
    service = generating()
    script(service, A, END)
    replies = exchanged(service, post(ASK, "generate", "m/versions/1"), post(ASK, "generate?x=1", headers="Content-Encoding: identity\r\n"))
    assert [reply[0] for reply in replies] == [200, 200]


def test_a_full_queue() -> None:
    """What submit refuses is no response."""
    service = generating(refuse=unavailable("Exceeds maximum queue size"))
    assert exchanged(service, post({"IT": "x" * 100_000})) == [(503, JSON, b'{"error":"Exceeds maximum queue size"}')]


def test_the_restricted_category() -> None:
    service = generating()
    script(service, A, END)
    replies = exchanged(service, post(ASK), post(ASK, headers="key: v\r\n"), inference=("key", "v"))
    assert replies[0] == (403, "text/plain", b'{"error":"This API is restricted, expecting header \'key\'"}')
    assert replies[1][0] == 200


def test_no_headers_are_forwarded() -> None:
    service = generating(forward_pattern=".*")
    script(service, A, END)
    exchanged(service, post(ASK, headers="X-One: 1\r\n"))
    assert service.submitted[0].body.parameters == {}


def _fail(*arguments: object) -> Any:
    raise RuntimeError("a mistake")


def _fail_later(*arguments: object) -> Any:
    yield
    raise RuntimeError("a mistake")


@pytest.mark.parametrize(("name", "broken", "size"), [("read_generate", _fail, 1), ("read_long_generate", _fail_later, 100_000)])
def test_a_failure_of_our_own_before_the_reply(monkeypatch: pytest.MonkeyPatch, name: str, broken: Any, size: int) -> None:
    """The client hears of it, and everything is given back."""
    monkeypatch.setattr(generate, name, broken)
    assert exchanged(generating(), post({"IT": "x" * size})) == [(500, JSON, b'{"error":"internal error"}')]


def test_a_failure_of_our_own_in_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was begun is broken off; the request is called off, and what still comes of it is given back."""
    service = generating()

    async def scenario() -> None:
        async with a_front(service) as door, a_client(door) as client:
            await client.send(post(ASK))
            await until(lambda: len(service.submitted) == 1)
            (request,) = service.submitted
            service.text(request, "a")
            assert (await client.head())[0] == 200
            assert await client.chunk() == event("a")
            monkeypatch.setattr(generate, "response_steps", _fail)
            with pytest.raises(RuntimeError, match="a mistake"):
                service.text(request, "b")
            assert await client.rest() == b""
            assert service.called_off == [request]
            service.end(request)

    run(scenario)
    assert service.nothing_held()


def test_no_cycle_is_left_behind() -> None:
    """A request that has ended knows nobody who knows it."""
    service = generating()
    script(service, A, END)
    exchanged(service, post(ASK))
    generation = service.submitted[0].on_response.__self__  # type: ignore[attr-defined]
    assert generation._queued is None and not generation._responses


def blocks(used: float = 25.0, most: float = 100.0) -> Family:
    """The figures of a model."""
    family = Family(FAMILY, "gauge", "")
    for kind, value in (("used", used), ("max", most), ("tokens_per", 64.0), ("free", 75.0)):
        family.add({"kv_cache_block_type": kind, "model": "m"}, value)
    return family


@pytest.mark.parametrize(
    ("form", "families", "told"),
    [
        ("text", [blocks()], "TEXT named_metrics.kv_cache_utilization=0.25, named_metrics.max_token_capacity=6400"),
        ("json", [blocks()], 'JSON {"named_metrics":{"kv_cache_utilization":0.25,"max_token_capacity":6400}}'),
        ("xml", [blocks()], None),
        ("json", [blocks(used=math.nan)], None),
        ("text", [blocks(most=math.inf)], None),
        ("text", [blocks(most=math.nan)], None),
        ("text", [], None),
        ("text", [Family(FAMILY, "gauge", "")], None),
    ],
)
def test_load_metrics(caplog: pytest.LogCaptureFixture, form: str, families: list[Family], told: str | None) -> None:
    """They are in the head of a reply to who asks; where they cannot be told, the log says so."""
    service = generating(families=families)
    script(service, A, END)

    async def scenario() -> None:
        async with a_front(service) as door, a_client(door) as client:
            await client.send(post(ASK, headers=f"Endpoint-Load-Metrics-Format: {form}\r\n"))
            _, headers = await client.head()
            assert headers.get("endpoint-load-metrics") == told
            await client.chunks()
            await client.send(post(ASK))
            assert "endpoint-load-metrics" not in (await client.head())[1]

    with caplog.at_level(logging.ERROR):
        run(scenario)
    assert len(caplog.records) == (told is None)


def test_targets() -> None:
    assert generate_target("/v2/models/m/generate") == ("m", "", False)
    assert generate_target("/v2/models/m/versions/07/generate_stream") == ("m", "07", True)
    for path in (
        "/v2/models//generate",
        "/v2/models/generate",
        "/v2/models/m/versions/x/generate",
        "/v2/models/m/versions//generate",
        "/v2/models/m/generate/",
        "/v2/models/m/x/generate",
        "/v2/models/m/generate_streams",
        "/v3/models/m/generate",
    ):
        assert generate_target(path) is None

"""Requests to models that are loaded first: at every door, in the middle of long bodies, and of clients that go away."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from tensorfarm.server.door.bringing import Bringing
from tensorfarm.server.http import turns
from tensorfarm.server.http.endpoint import Call, Endpoint, ServiceEndpoint, json_reply
from tensorfarm.server.http.exchange import Cancel, Head, Reply, StreamingRequest
from tensorfarm.server.http.generate import generate
from tensorfarm.server.http.inference import infer_guarded
from tensorfarm.server.http.restriction import Restrictions
from tensorfarm.server.repository.demand import NotResident
from tensorfarm.shm.arena import Arena
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.messages import RequestBody, Result, Tensor
from tensorfarm.workers.contract.status import StatusError, unavailable

from .doors import an_arena, run, until
from .echo_service import CountedBody, EchoService, echo, echo_signature, http_request, spec

SIGNATURE = echo_signature("m", [spec("IN", "INT32", -1)])
COUNT = 40_000


@dataclass(eq=False)
class Awaited:
    """A wait for a model, which a test ends."""

    on_ready: Callable[[StatusError | None], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class AbsentService(EchoService):
    """Its models are not in memory while ``absent``. ``leaves``: they leave while a body is being read."""

    absent: bool = True
    leaves: bool = False
    found: int = 0
    waiting: list[Awaited] = field(default_factory=list)
    refusal: StatusError | None = None

    def find(self, name: str, version: str = "") -> Any:
        if self.absent:
            raise NotResident(name)
        self.found += 1
        return super().find(name, version)

    def current(self, version: Any, asked: str) -> Any:
        if self.leaves:
            self.absent, self.leaves = True, False
        return self.find(version.name, asked) if self.absent else version

    def bring(self, absent: NotResident, on_ready: Callable[[StatusError | None], None], caller: str = "") -> Any:
        awaited = Awaited(on_ready)
        if self.refusal is not None:
            on_ready(self.refusal)
        else:
            self.waiting.append(awaited)
        return awaited

    def bring_back(self, error: StatusError | None = None) -> None:
        """The load has ended."""
        self.absent = error is not None
        self.waiting.pop(0).on_ready(error)

    def custom_family(self, name: str) -> None:
        return None


def in_arena(arena: Arena) -> AbsentService:
    """A service that is there, and leaves while a body is read; its requests' tensors lie in the arena."""

    def run(body: RequestBody) -> Result:
        outputs = echo(body).outputs
        return Result([replace_place(tensor, arena) for tensor in outputs])

    return AbsentService({"m": SIGNATURE}, arena=arena, run=run, absent=False, leaves=True)


def replace_place(tensor: Tensor, arena: Arena) -> Tensor:
    place = tensor.place
    if type(place) is not Lease:
        return tensor
    return Tensor(tensor.name, tensor.datatype, tensor.shape, Inline(memoryview(bytes(arena.view(place)))))


def document(count: int) -> bytes:
    return json.dumps({"inputs": [{"name": "IN", "datatype": "INT32", "shape": [count], "data": list(range(count))}]}).encode()


def asked(service: AbsentService, content: bytes, replies: list[Reply], **headers: str) -> tuple[CountedBody, Cancel]:
    """An inference whose model is not there, or leaves."""
    request = http_request(content, headers)
    body = request.body
    cancel = infer_guarded(cast(Any, service), "m", "", request, replies.append)
    assert cancel is not None and isinstance(body, CountedBody)
    return body, cancel


def data(reply: Reply) -> list[int]:
    return list(json.loads(b"".join(bytes(part) for part in reply.body))["outputs"][0]["data"])


def error(reply: Reply) -> tuple[int, str]:
    return reply.status, json.loads(b"".join(bytes(part) for part in reply.body))["error"]


def test_an_inference_waits_for_its_model() -> None:
    service = AbsentService({"m": SIGNATURE})
    replies: list[Reply] = []
    body, _ = asked(service, document(3), replies)
    assert not replies and not body.releases and len(service.waiting) == 1
    service.bring_back()
    assert [data(reply) for reply in replies] == [[0, 1, 2]] and body.releases == 1


def test_a_model_that_cannot_be_loaded() -> None:
    service = AbsentService({"m": SIGNATURE})
    replies: list[Reply] = []
    body, cancel = asked(service, document(3), replies)
    service.bring_back(unavailable("model 'm' could not be loaded: it is broken"))
    assert [error(reply) for reply in replies] == [(503, "model 'm' could not be loaded: it is broken")] and body.releases == 1
    cancel()
    assert body.releases == 1
    service.refusal = unavailable("no room")
    body, _ = asked(service, document(3), replies)
    assert error(replies[-1]) == (503, "no room") and body.releases == 1, "told at once"


def test_a_client_that_goes_while_its_model_loads() -> None:
    service = AbsentService({"m": SIGNATURE})
    replies: list[Reply] = []
    body, cancel = asked(service, document(3), replies)
    cancel()
    assert service.waiting[0].cancelled and body.releases == 1
    service.bring_back()
    assert not replies and not service.submitted, "nobody asks any more"


def test_a_client_that_goes_after_its_model_was_loaded() -> None:
    service = AbsentService({"m": SIGNATURE})
    _, cancel = asked(service, document(3), [])
    awaited = service.waiting[0]
    service.bring_back()
    cancel()
    assert service.cancelled == 1 and not awaited.cancelled


def test_a_failure_of_the_door_itself_is_told() -> None:
    service = AbsentService({"m": SIGNATURE})
    replies: list[Reply] = []
    body, _ = asked(service, document(3), replies)
    service.refuse = RuntimeError("a bug")
    with pytest.raises(RuntimeError):
        service.bring_back()
    assert error(replies[0]) == (500, "internal error") and body.releases == 1


def test_a_short_compressed_body_is_unpacked_once() -> None:
    service = AbsentService({"m": SIGNATURE})
    replies: list[Reply] = []
    asked(service, gzip.compress(document(3)), replies, **{"Content-Encoding": "gzip", "Accept-Encoding": "gzip"})
    service.bring_back()
    assert json.loads(gzip.decompress(b"".join(replies[0].body)))["outputs"][0]["data"] == [0, 1, 2]


@pytest.mark.parametrize("outcome", ["back", "broken", "gone"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_model_that_leaves_while_a_long_body_is_read(monkeypatch: pytest.MonkeyPatch, packed: bool, outcome: str) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)

    async def script() -> None:
        with an_arena() as arena:
            service = in_arena(arena)
            replies: list[Reply] = []
            # The compressed one is long as it comes, and its JSON need not be: that it is undone takes long already.
            content = document(COUNT)
            if packed:
                content = gzip.compress(content, 0)
                request = http_request(content, {"Content-Encoding": "gzip"})
            else:
                request = http_request(content)
            cancel = infer_guarded(cast(Any, service), "m", "", request, replies.append)
            assert cancel is not None
            await until(lambda: service.waiting)
            assert not replies and not service.submitted
            if outcome == "gone":
                awaited = service.waiting[0]
                cancel()
                assert awaited.cancelled
                service.bring_back()
                await asyncio.sleep(0)
                assert not replies and not service.submitted
            elif outcome == "broken":
                service.bring_back(unavailable("no more"))
                assert error(replies[0]) == (503, "no more")
            else:
                service.bring_back()
                await until(lambda: service.submitted)
                assert service.submitted[0].body.inputs[0].shape == (COUNT,)
                await until(lambda: replies)
                assert replies[0].status == 200

    run(script)


class Generating(StreamingRequest):
    """A request for text."""

    def begin(self, status: int, headers: Any) -> Any:
        self.stream = Collected(status)
        return self.stream


@dataclass
class Collected:
    """What a reply has been."""

    status: int
    parts: list[bytes] = field(default_factory=list)
    complete: bool = False

    def write(self, parts: Any) -> None:
        self.parts += parts

    def end(self, parts: Any = ()) -> None:
        self.write(parts)
        self.complete = True


def text_request(count: int) -> Generating:
    content = json.dumps({"IN": list(range(count))}).encode()
    return Generating(Head("POST", "/v2/models/m/generate", [], []), CountedBody(content), 0)


def generated(service: AbsentService, request: Generating, replies: list[Reply]) -> Cancel:
    cancel = generate(cast(Any, service), "m", "", request, replies.append)
    assert cancel is not None
    return cancel


def test_a_generation_waits_for_its_model() -> None:
    service = AbsentService({"m": SIGNATURE})
    request = text_request(2)
    replies: list[Reply] = []
    generated(service, request, replies)
    body = cast(CountedBody, request.body)
    assert not body.releases
    service.bring_back()
    assert request.stream.complete and json.loads(b"".join(request.stream.parts))["ON"] == [0, 1] and body.releases == 1
    request = text_request(2)
    service.absent = True
    generated(service, request, replies)
    service.bring_back(unavailable("broken"))
    assert error(replies[0]) == (503, "broken") and cast(CountedBody, request.body).releases == 1
    request = text_request(2)
    cancel = generated(service, request, replies)
    awaited = service.waiting[0]
    cancel()
    assert awaited.cancelled and cast(CountedBody, request.body).releases == 1 and len(replies) == 1


@pytest.mark.parametrize("outcome", ["back", "broken", "refused", "gone"])
def test_a_model_that_leaves_while_a_long_text_is_read(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)

    async def script() -> None:
        with an_arena() as arena:
            service = in_arena(arena)
            service.refusal = unavailable("refused") if outcome == "refused" else None
            request = text_request(COUNT)
            replies: list[Reply] = []
            cancel = generated(service, request, replies)
            await until(lambda: service.waiting or replies)
            if outcome == "refused":
                assert error(replies[0]) == (503, "refused")
                cancel()
            elif outcome == "gone":
                awaited = service.waiting[0]
                cancel()
                assert awaited.cancelled and not service.submitted
            elif outcome == "broken":
                service.bring_back(unavailable("broken"))
                assert error(replies[0]) == (503, "broken")
                cancel()
            else:
                service.bring_back()
                assert len(service.submitted) == 1
                cancel()

    run(script)


def endpoint(service: AbsentService, handler: Callable[[Any, Call], Any]) -> Endpoint:
    return ServiceEndpoint(cast(Any, service), Restrictions({}), "metadata", {"GET": handler})


async def call(app: Endpoint, gone: asyncio.Event) -> list[dict[str, Any]]:
    """One GET; the client goes when ``gone`` is set."""
    sent: list[dict[str, Any]] = []
    begun = False

    async def receive() -> dict[str, Any]:
        nonlocal begun
        if not begun:
            begun = True
            return {"type": "http.request", "body": b""}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/v2/models/m", "headers": [], "state": {}}
    scope["path_params"] = {"model": "m"}
    await app(scope, receive, send)
    return sent


def test_metadata_waits_for_its_model() -> None:
    async def script() -> None:
        service = AbsentService({"m": SIGNATURE})
        inside: list[bool] = []

        def handler(found: Any, call: Call) -> Reply:
            version = found.find(call.model, call.version)
            inside.append(True)
            return json_reply({"name": version.name})

        app = endpoint(service, handler)
        task = asyncio.ensure_future(call(app, asyncio.Event()))
        await until(lambda: service.waiting)
        service.bring_back()
        assert inside == [True], "it has run while the model could not leave"
        start, *_ = await task
        assert start["status"] == 200
        service.absent = True
        task = asyncio.ensure_future(call(app, asyncio.Event()))
        await until(lambda: service.waiting)
        service.bring_back(unavailable("broken"))
        start, body, *_ = await task
        assert start["status"] == 503 and b"broken" in body["body"]

    run(script)


def test_whoever_asked_for_metadata_may_go() -> None:
    async def script() -> None:
        service = AbsentService({"m": SIGNATURE})
        gone = asyncio.Event()
        task = asyncio.ensure_future(call(endpoint(service, lambda found, call: found.find(call.model)), gone))
        await until(lambda: service.waiting)
        awaited = service.waiting[0]
        gone.set()
        assert await task == [] and awaited.cancelled

    run(script)


def test_an_endpoint_that_fails_once_its_model_is_there() -> None:
    async def script() -> None:
        service = AbsentService({"m": SIGNATURE})

        def handler(found: Any, call: Call) -> Reply:
            found.find(call.model)
            raise RuntimeError("a bug")

        task = asyncio.ensure_future(call(endpoint(service, handler), asyncio.Event()))
        await until(lambda: service.waiting)
        service.bring_back()
        start, *_ = await task
        assert start["status"] == 500

    run(script)


def test_nothing_is_told_twice() -> None:
    service = AbsentService({"m": SIGNATURE})
    runs: list[StatusError | None] = []
    drops: list[str] = []

    def begin(error: StatusError | None) -> None:
        runs.append(error)

    bringing = Bringing(cast(Any, service), NotResident("m"), begin, lambda: drops.append("dropped"))
    assert bringing.waits
    bringing.cancel()
    bringing.cancel()
    service.waiting[0].on_ready(None)
    assert not bringing.waits and runs == [] and drops == ["dropped"]

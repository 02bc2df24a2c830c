"""A front end's service and its session in the server process, linked without processes: every message goes over the wire's form."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from tensorfarm.server.admission import Admission
from tensorfarm.server.command_line import parse
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.front_end.messages import FromFrontEnd, FrontEndFrame, Said, ToFrontEnd, Told
from tensorfarm.server.front_end.remote_service import RemoteService
from tensorfarm.server.front_end.session import Session
from tensorfarm.server.http.exchange import Answer, HttpRequest, Reply
from tensorfarm.server.inference_service import InferenceService
from tensorfarm.server.prometheus_text import Family
from tensorfarm.server.regions import RegionRegistry
from tensorfarm.server.repository.demand import NotResident, OnReady
from tensorfarm.shm.arena import Arena
from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import RequestBody, Tensor, WantedOutput
from tensorfarm.workers.contract.signature import signature_of
from tensorfarm.workers.contract.status import StatusError, not_found
from tests.http.echo_service import private_arena

OPTIONS = parse(["--model-repository=models"])
CONFIG = """
name: "m" backend: "python" max_batch_size: 0
input [ { name: "IN" data_type: TYPE_INT32 dims: [ -1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ -1 ] } ]
"""

# For all tests: what a failure that was logged keeps alive would look like something left behind.
_MAIN_ARENA, _FRONT_ARENA = private_arena(), private_arena()

_encoder = msgspec.msgpack.Encoder()
_said = msgspec.msgpack.Decoder(FrontEndFrame)
_told = msgspec.msgpack.Decoder(Told)


class Version:
    """A version whose requests a test answers."""

    def __init__(self, number: int = 1, config: str = CONFIG) -> None:
        self.number = number
        self.name = "m"
        self.version = 1
        self.config = parse_text(config, "the test")
        self.signature = signature_of(self.config)
        self.labels = {"OUT": ["one", "caf\udce9"]}
        self.ensemble = None
        self.in_flight = 0
        self.stopping = False
        self.entered: list[Request] = []
        self.withdrawn: list[Request] = []
        self.held: list[tuple[Request, bool]] = []
        self.refusal: StatusError | None = None

    def enter(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.entered.append(request)

    def withdraw(self, request: Request) -> None:
        self.withdrawn.append(request)

    def hold(self, request: Request, held: bool) -> None:
        self.held.append((request, held))


@dataclass(eq=False)
class Waiting:
    """Somebody who waits for a model that is being loaded."""

    on_ready: OnReady
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


class MainService(InferenceService):
    """The server process's side: one model, which may be absent."""

    def __init__(self) -> None:
        super().__init__(OPTIONS, _MAIN_ARENA, Admission())
        self.serving = Version()
        self.absent = False
        self.waiting: list[Waiting] = []
        self.family: Family | None = None
        self.regions = RegionRegistry(0)
        self.used: list[tuple[int, ...]] = []
        self.free: list[tuple[int, ...]] = []

    def find(self, name: str, version: str = "") -> Any:
        if name != "m":
            raise not_found(f"Request for unknown model: '{name}' is not found")
        if self.absent:
            raise NotResident(name)
        return self.serving

    def bring(self, absent: NotResident, on_ready: OnReady, caller: str = "") -> Waiting:
        waiting = Waiting(on_ready)
        self.waiting.append(waiting)
        return waiting

    def view(self, lease: Lease) -> memoryview:
        return self.arena.view(lease)

    def custom_family(self, name: str) -> Family | None:
        return self.family

    def regions_for(self, peer_is_local: bool) -> RegionRegistry:
        return self.regions

    def _hold(self, request: Request, regions: tuple[int, ...]) -> None:
        self.used.append(regions)
        request.regions = regions

    def _let_go(self, regions: tuple[int, ...]) -> None:
        self.free.append(regions)


class HttpCalls:
    """What answers HTTP requests in the server process."""

    def __init__(self) -> None:
        self.asked: list[tuple[HttpRequest, Answer]] = []
        self.gone = 0

    def begin(self, request: HttpRequest, answer: Answer) -> Callable[[], None]:
        self.asked.append((request, answer))
        return self._cancel

    def _cancel(self) -> None:
        self.gone += 1


@dataclass(eq=False)
class Linked:
    """Both sides. What one says reaches the other with ``pump``; ``to_main`` and ``to_front`` keep all that was said."""

    main: MainService = field(default_factory=MainService)
    http: HttpCalls = field(default_factory=HttpCalls)
    rpc: dict[str, Any] = field(default_factory=dict)
    shared: list[int] = field(default_factory=list)
    to_main: list[FromFrontEnd] = field(default_factory=list)
    to_front: list[ToFrontEnd] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arena: Arena = _FRONT_ARENA
        self._at_main = self._at_front = 0
        self.front = RemoteService(OPTIONS, self.arena, Admission(), self.arena.view, self.to_main.append)
        self.session = Session(
            cast(Any, self.main), self.to_front.append, self.shared.append, self.arena.number, cast(Any, self.http), self.rpc
        )

    def pump(self) -> None:
        """Deliver what was said, until nobody has anything to say."""
        while self._at_main < len(self.to_main) or self._at_front < len(self.to_front):
            said, self._at_main = self.to_main[self._at_main :], len(self.to_main)
            frame = _said.decode(_encoder.encode(Said(said)))
            assert isinstance(frame, Said) and frame.messages == said
            for message in frame.messages:
                self.session.receive(message)
            told, self._at_front = self.to_front[self._at_front :], len(self.to_front)
            for heard in _told.decode(_encoder.encode(Told(told))).messages:
                self.front.receive(cast(Any, heard))

    def start_over(self) -> None:
        """What was said has been forgotten."""
        self._at_main = self._at_front = 0

    async def settle(self) -> None:
        """As ``pump``, with what waits for the loop."""
        for _ in range(4):
            self.pump()
            await asyncio.sleep(0)
        self.pump()


@dataclass(eq=False)
class Asked:
    """A request of a front end, and what became of it."""

    responses: list[Response] = field(default_factory=list)
    finished: int = 0

    def request(self, *values: int, place: Lease | Span | None = None, outputs: list[WantedOutput] | None = None) -> Request:
        content = memoryview(b"".join(value.to_bytes(4, "little") for value in values))
        count = len(values) if place is None else place.byte_size // 4
        tensor = Tensor("IN", "INT32", (count,), place or Inline(content))
        return Request(RequestBody("id", 1, [tensor], outputs or [], {}), 5, self.responses.append, self._finish)

    def _finish(self) -> None:
        self.finished += 1

    @property
    def errors(self) -> list[str]:
        return [response.error.message for response in self.responses if response.error is not None]


def known(linked: Linked) -> Any:
    """The model's version as the front end sees it, asked for where it does not know it."""
    try:
        return linked.front.find("m")
    except NotResident as absent:
        answers: list[StatusError | None] = []
        linked.front.bring(absent, answers.append)
        linked.pump()
        assert answers == [None]
    return linked.front.find("m")


def answered(status: int, body: bytes) -> Reply:
    """A reply of the server process."""
    return Reply(status, ((b"Content-Type", b"text/plain"),), (body,))

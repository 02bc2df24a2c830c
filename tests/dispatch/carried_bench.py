"""A version in front of which requests are carried, with copies that are made when the test says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tensorfarm.server.dispatch.carried import Carried, Copies, Fetched, Location, Settled
from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.shm.placement import Inline, Lease, Placement, Span, on_device
from tensorfarm.workers.contract.messages import RequestBody, RequestContext, Tensor, WantedOutput
from tensorfarm.workers.contract.status import StatusError, unavailable

SYSTEM, NEAR, FAR, OTHER = 1, 10, 20, 30
"""Regions: in ordinary memory, on the GPU that the version runs on if it runs on one, and on two more GPUs."""
DEVICES = {NEAR: 0, FAR: 1, OTHER: 2}
OWNERS = {5: Location(0, "gpu0"), 6: Location(0, "m:1@gpu0"), 7: Location(1, "gpu1")}
"""Workers with a GPU, by their arenas; that of arena 9 has gone."""


@dataclass
class Flow:
    in_flight: int = 0


@dataclass(eq=False)
class Memory:
    """Some worker's arena: what is lent of it is given back once."""

    arena: int
    lent: list[Lease] = field(default_factory=list)
    content: bytes = bytes(64)
    count: int = 0

    @property
    def arena_number(self) -> int:
        return self.arena

    def lend(self, byte_size: int) -> Lease:
        self.count += 1
        lease = Lease(self.arena, self.count * 4096, byte_size)
        self.lent.append(lease)
        return lease

    def give_back(self, leases: list[Lease]) -> None:
        for lease in leases:
            self.lent.remove(lease)

    def view(self, lease: Lease) -> memoryview:
        assert lease in self.lent
        return memoryview(self.content)[: lease.byte_size]


@dataclass(eq=False)
class Lent:
    leases: list[Lease]
    memory: Memory

    def view(self, lease: Lease) -> memoryview:
        return self.memory.view(lease)

    def give_back(self) -> None:
        self.memory.give_back(self.leases)


@dataclass(eq=False)
class Fetch:
    location: Location
    places: list[Placement]
    done: Fetched
    memory: Memory

    def finish(self, error: StatusError | None = None) -> None:
        copies: Copies = Lent([], self.memory)
        if error is None:
            copies = Lent([self.memory.lend(place.byte_size) for place in self.places], self.memory)
        self.done(copies if error is None else error)


@dataclass(eq=False)
class Put:
    device: int
    places: list[Placement]
    spans: list[Span]
    done: Settled

    def finish(self, error: StatusError | None = None) -> None:
        self.done(error)


class LateMover:
    """Copies when it is told to."""

    def __init__(self) -> None:
        self.memory = Memory(100)
        self.fetches: list[Fetch] = []
        self.puts: list[Put] = []

    def where(self, place: Placement) -> Location | None:
        if isinstance(place, Span):
            return Location(DEVICES[place.region]) if place.region in DEVICES else None
        if not isinstance(place, Lease) or not on_device(place):
            return None
        if place.arena not in OWNERS:
            raise unavailable("gone")
        return OWNERS[place.arena]

    def fetch(self, location: Location, places: list[Placement], done: Fetched) -> None:
        self.fetches.append(Fetch(location, places, done, self.memory))

    def put(self, device: int, places: list[Placement], spans: list[Span], done: Settled) -> None:
        self.puts.append(Put(device, places, spans, done))

    def finish_fetch(self, error: StatusError | None = None) -> None:
        self.fetches.pop(0).finish(error)

    def finish_put(self, error: StatusError | None = None) -> None:
        self.puts.pop(0).finish(error)


class Bench:
    """A version in front of which requests are carried, and what lies behind it as lists."""

    def __init__(self, worker: str = "", **fields: Any) -> None:
        """``worker`` is the one of GPU 0 that the version runs in; "" for one of the CPU."""
        self.now_ns = 1_000
        self.mover = LateMover()
        self.memory = Memory(2)
        self.statistics = VersionStatistics()
        self.flow = Flow()
        self.behind: list[Request] = []
        self.withdrawn: list[Request] = []
        self.refusal: StatusError | None = None
        self.heard: list[Response | Request] = []
        self.tied: set[Location] = set()
        self.carried = Carried(
            self.mover,
            lambda location: bool(worker) and location.device == 0 and location.worker in ("", worker),
            self.ties,
            self._enter,
            self.withdrawn.append,
            self.statistics,
            self.flow,
            model="m",
            clock_ns=lambda: self.now_ns,
            **fields,
        )

    def ties(self, location: Location) -> bool:
        """Are there instances on that GPU? None here but in tests that set it otherwise."""
        return location in self.tied

    def _enter(self, request: Request) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.behind.append(request)

    @property
    def responses(self) -> list[Response]:
        return [one for one in self.heard if isinstance(one, Response)]

    @property
    def finished(self) -> list[Request]:
        return [one for one in self.heard if isinstance(one, Request)]

    def request(self, *inputs: Placement, outputs: tuple[WantedOutput, ...] = (), sequence: int = 0, **fields: Any) -> Request:
        tensors = [Tensor(f"X{index}", "UINT8", (place.byte_size,), place) for index, place in enumerate(inputs)]
        context = RequestContext(sequence) if sequence else None
        body = RequestBody("", 1, fields.pop("tensors", tensors), list(outputs), {}, context)
        request = Request(body, self.now_ns, self.heard.append, **fields)
        regions = [place.region for place in inputs if isinstance(place, Span)]
        regions += [output.span.region for output in outputs if output.span is not None]
        request.regions = tuple(regions)
        request.arenas = tuple(place.arena for place in inputs if isinstance(place, Lease) and place.arena)
        request.on_finish = lambda: self.heard.append(request)
        return request

    def submit(self, *inputs: Placement, **fields: Any) -> Request:
        request = self.request(*inputs, **fields)
        self.carried.submit(request)
        return request

    def answer(self, *outputs: Tensor, end: bool = False, error: StatusError | None = None, final: bool = True) -> Request:
        """What lies behind answers the first request that it has, as the dispatcher does."""
        request = self.behind.pop(0) if final else self.behind[0]
        if final and request.on_finish is not None:
            on_finish, request.on_finish = request.on_finish, None
            on_finish()
        if end:
            request.on_response(EndMark(request, []))
        else:
            request.on_response(Response(request, list(outputs), {"p": 1}, error, final, self.memory.view, self.memory.give_back))
        return request

    def output(self, name: str = "Y", byte_size: int = 8) -> Tensor:
        return Tensor(name, "UINT8", (byte_size,), self.memory.lend(byte_size))

    def release(self) -> None:
        for response in self.responses:
            response.release()

    def check_empty(self) -> None:
        """Nothing is left of anything."""
        self.release()
        assert self.memory.lent == self.mover.memory.lent == []
        assert (self.carried.in_flight, self.flow.in_flight, self.statistics.pending_count) == (0, 0, 0)
        assert self.carried.idle
        assert len(self.finished) == len(set(self.finished))


def small(content: bytes = bytes(4)) -> Inline:
    return Inline(memoryview(content))


def wanted(region: int, name: str = "Y", byte_size: int = 8) -> WantedOutput:
    return WantedOutput(name, Span(region, 0, byte_size))


def places(request: Request) -> list[Placement]:
    return [tensor.place for tensor in request.body.inputs]

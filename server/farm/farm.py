"""The farm: worker processes by name, started when needed, started again when they die."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import zmq

from ...workers.contract.messages import (
    Close,
    Done,
    Execute,
    Failed,
    FromWorker,
    Hello,
    Inspect,
    Inspected,
    InstanceReady,
    Load,
    Loaded,
    Stop,
    Unload,
    Unloaded,
)
from ...workers.contract.status import Code, StatusError, unavailable
from ..dispatch.instance import PlannedBatch
from ..regions import RegionRegistry
from .backoff import Backoff
from .channel import Channel, new_context
from .runtime_directory import RuntimeDirectory
from .worker_process import WorkerProcess

OUTAGE_SECS = 1.0
"""A restart further away than this is an outage: requests are refused instead of kept waiting."""

Answered = Inspected | Loaded | Unloaded


class FarmEvents(Protocol):
    """What the farm tells the rest of the server."""

    def instance_ready(self, instance: int) -> None:
        """An instance can take batches: after its first load, and again after each restart of its worker."""

    def instance_lost(self, instance: int, error: StatusError) -> None:
        """An instance went down with its worker; ``error`` is for the requests it was running."""

    def model_lost(self, model: int, error: StatusError) -> None:
        """A model will not be back soon (crash loop), or could not be loaded again after its worker's restart."""

    def batch_done(self, done: Done, process: WorkerProcess) -> None:
        """A batch has been answered."""

    def worker_says(self, worker: str, line: str) -> None:
        """A worker printed a line."""

    def worker_event(self, severity: str, text: str) -> None:
        """Something about a worker that belongs in the log. ``severity``: I, W or E."""


@dataclass(slots=True, eq=False)
class _Holding:
    """A model version that a seat's worker shall hold."""

    load: Load
    ready: set[int] = field(default_factory=set)
    loaded: bool = False


@dataclass(slots=True, eq=False)
class Seat:
    """A worker's place in the farm; it outlives the processes that fill it."""

    name: str
    process: WorkerProcess | None = None
    up: bool = False
    closing: bool = False
    restarts: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    holdings: dict[int, _Holding] = field(default_factory=dict)
    tasks: dict[int, asyncio.Future[Answered]] = field(default_factory=dict)
    arrivals: list[asyncio.Future[None]] = field(default_factory=list)
    restart: asyncio.TimerHandle | None = None


class Farm:
    """All seats. ``arena_byte_sizes`` are the capacity and the resident part of each worker's own arena."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        events: FarmEvents,
        regions: RegionRegistry,
        request_arena_fd: int,
        arena_byte_sizes: tuple[int, int],
    ) -> None:
        self.seats: dict[str, Seat] = {}
        self._loop = loop
        self._events = events
        self._regions = regions
        self._request_arena_fd = request_arena_fd
        self._arena_byte_sizes = arena_byte_sizes
        self._context: zmq.Context[zmq.Socket[bytes]] = new_context()
        self._runtime = RuntimeDirectory()
        self._numbers = itertools.count(1)
        self._seat_of_instance: dict[int, Seat] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._used: dict[WorkerProcess, None] = {}
        regions.on_drop = self._region_dropped

    # tasks

    async def inspect(self, worker: str, backend: str, directory: str, version: int, config: bytes, settings: dict[str, str]) -> Inspected:
        """Have a worker complete a configuration. Raises StatusError."""
        seat = self._seat(worker)
        await self._arrival(seat)
        answer = await self._ask(seat, lambda task: Inspect(task, backend, directory, version, config, settings, True))
        assert isinstance(answer, Inspected)
        return answer

    async def load(self, worker: str, load: Load) -> None:
        """Have a worker create a model's instances, now and after each of its restarts. Raises StatusError.

        ``load.task`` is filled in here. Returns when all instances have said they are ready.
        """
        seat = self._seat(worker)
        await self._arrival(seat)
        holding = seat.holdings[load.model] = _Holding(load)
        for spec in load.instances:
            self._seat_of_instance[spec.number] = seat
        try:
            await self._fill(seat, holding)
        except BaseException:
            self._forget(seat, load.model)
            raise

    async def unload(self, worker: str, model: int) -> None:
        """Have a worker drop a model whose requests have ended; a worker that holds nothing any more ends, and its memory with it."""
        seat = self.seats.get(worker)
        if seat is None or model not in seat.holdings:
            return
        holding = self._forget(seat, model)
        if seat.up and seat.process is not None:
            for instance in sorted(holding.ready):
                seat.process.send_to(instance, Close())
            try:
                await self._ask(seat, lambda task: Unload(task, model))
            except StatusError as error:
                # A worker that died has dropped the model as well.
                self._events.worker_event("W", f"worker '{seat.name}' while unloading: {error.message}")
        if not seat.holdings and not seat.tasks and not seat.arrivals:
            self._close(seat)

    async def _fill(self, seat: Seat, holding: _Holding) -> None:
        load = holding.load
        await self._ask(
            seat,
            lambda task: Load(
                task, load.model, load.backend, load.directory, load.version, load.config, load.settings, load.instances
            ),
        )
        holding.loaded = True

    async def _ask(self, seat: Seat, message: Callable[[int], Inspect | Load | Unload]) -> Answered:
        if seat.process is None or not seat.up:
            raise unavailable(f"worker '{seat.name}' is not running")
        task = next(self._numbers)
        future: asyncio.Future[Answered] = self._loop.create_future()
        seat.tasks[task] = future
        seat.process.send(message(task))
        seat.process.drain()
        return await future

    # batches

    def send(self, batch: PlannedBatch) -> None:
        """Pass a batch to its instance's worker. ``flushed`` must follow in the same turn."""
        seat = self._seat_of_instance[batch.instance.number]
        process = seat.process
        assert process is not None
        for request in batch.requests:
            for region in request.regions:
                if not process.attached(region):
                    process.attach(region, *self._regions.mapping(region))
        process.send_to(batch.instance.number, Execute(batch.number, [request.body for request in batch.requests]))
        if process not in self._used:
            if not self._used:
                self._loop.call_soon(self._drain_used)
            self._used[process] = None

    def _drain_used(self) -> None:
        used, self._used = self._used, {}
        for process in used:
            process.drain()

    # seats

    def _seat(self, name: str) -> Seat:
        seat = self.seats.get(name)
        if seat is None:
            seat = self.seats[name] = Seat(name)
            self._start(seat)
        return seat

    def start(self, name: str) -> None:
        """Start a worker ahead of its first use."""
        self._seat(name)

    def _start(self, seat: Seat) -> None:
        seat.restart = None
        number = next(self._numbers)

        def make_channel(receive: Callable[[bytes, FromWorker], None]) -> tuple[Channel, str]:
            endpoint = self._runtime.endpoint(f"worker-{number}")
            return Channel(self._context, endpoint, self._loop, receive, say), endpoint

        def say(line: str) -> None:
            self._events.worker_says(seat.name, line)

        def receive(process: WorkerProcess, message: FromWorker) -> None:
            if type(message) is Done:
                self._events.batch_done(message, process)
            else:
                self._received(seat, message)

        seat.process = WorkerProcess(
            seat.name,
            number,
            self._arena_byte_sizes,
            self._request_arena_fd,
            make_channel,
            self._loop,
            receive,
            say,
            lambda process: self._ended(seat, process),
        )

    async def _arrival(self, seat: Seat) -> None:
        if not seat.up:
            future: asyncio.Future[None] = self._loop.create_future()
            seat.arrivals.append(future)
            await future

    def _received(self, seat: Seat, message: FromWorker) -> None:
        if isinstance(message, Hello):
            seat.up = True
            arrivals, seat.arrivals = seat.arrivals, []
            for arrival in arrivals:
                if not arrival.done():
                    arrival.set_result(None)
            for holding in seat.holdings.values():
                self._spawn(self._refill(seat, holding))
        elif isinstance(message, InstanceReady):
            for holding in seat.holdings.values():
                if any(spec.number == message.instance for spec in holding.load.instances):
                    holding.ready.add(message.instance)
                    self._events.instance_ready(message.instance)
        elif isinstance(message, Failed):
            future = seat.tasks.pop(message.task, None)
            if future is not None and not future.done():
                future.set_exception(StatusError(Code(message.fault.code), message.fault.message))
        elif isinstance(message, Inspected | Loaded | Unloaded):
            future = seat.tasks.pop(message.task, None)
            if future is not None and not future.done():
                future.set_result(message)

    async def _refill(self, seat: Seat, holding: _Holding) -> None:
        try:
            await self._fill(seat, holding)
        except StatusError as error:
            if seat.up:
                self._events.model_lost(holding.load.model, error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _forget(self, seat: Seat, model: int) -> _Holding:
        holding = seat.holdings.pop(model)
        for spec in holding.load.instances:
            self._seat_of_instance.pop(spec.number, None)
        return holding

    def _ended(self, seat: Seat, process: WorkerProcess) -> None:
        if seat.process is not process:
            return
        seat.process = None
        seat.up = False
        if seat.closing:
            return
        seat.restarts += 1
        delay_secs = seat.backoff.delay_secs(time.monotonic_ns() - process.started_ns)
        when = "at once" if not delay_secs else f"in {delay_secs:g} s"
        self._events.worker_event("E", f"worker '{seat.name}' (pid {process.pid}) {process.exit_text}; it is started again {when}")
        error = unavailable(f"worker '{seat.name}' {process.exit_text} while it ran this request")
        loading = unavailable(f"worker '{seat.name}' {process.exit_text} while it loaded this model{_last_words(process)}")
        # A load that was under way may be what killed it: its caller hears of it, and it is not tried again by itself.
        tasks, seat.tasks = seat.tasks, {}
        outage = unavailable(f"worker '{seat.name}' {process.exit_text} and is started again {when}")
        for holding in list(seat.holdings.values()):
            lost, holding.ready = holding.ready, set()
            for instance in sorted(lost):
                self._events.instance_lost(instance, error)
            if delay_secs > OUTAGE_SECS and holding.loaded:
                self._events.model_lost(holding.load.model, outage)
        for future in tasks.values():
            if not future.done():
                future.set_exception(loading)
        seat.restart = self._loop.call_later(delay_secs, self._start, seat)
        if seat.backoff.deaths > 3:
            arrivals, seat.arrivals = seat.arrivals, []
            for arrival in arrivals:
                if not arrival.done():
                    arrival.set_exception(unavailable(f"worker '{seat.name}' {process.exit_text} at its start{_last_words(process)}"))

    def _region_dropped(self, region: int) -> None:
        for seat in self.seats.values():
            if seat.process is not None:
                seat.process.detach(region)

    # end

    def _close(self, seat: Seat) -> None:
        seat.closing = True
        del self.seats[seat.name]
        if seat.restart is not None:
            seat.restart.cancel()
        if seat.process is not None:
            if seat.up:
                seat.process.send(Stop())
            else:
                seat.process.kill()

    async def close(self, timeout_secs: float = 2.0) -> None:
        """Stop all workers: asked first, killed when they do not go."""
        seats = list(self.seats.values())
        for seat in seats:
            self._close(seat)
        deadline = self._loop.time() + timeout_secs
        while any(seat.process is not None for seat in seats):
            if self._loop.time() > deadline:
                _kill(seats)
            await asyncio.sleep(0.005)
        for task in list(self._background):
            task.cancel()
        self._context.destroy(linger=0)
        self._runtime.close()

    def end_now(self) -> None:
        """Kill all workers and remove the sockets' directory; the process exits right after."""
        _kill(self.seats.values())
        self._runtime.close()


def _kill(seats: Iterable[Seat]) -> None:
    for seat in seats:
        if seat.process is not None:
            seat.process.kill()


def _last_words(process: WorkerProcess) -> str:
    return f"; it last said: {process.tail[-1]}" if process.tail else ""

"""The farm: worker processes by name, started when needed, started again when they die."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from ...shm.placement import Lease
from ...workers.contract.messages import (
    Cancel,
    Check,
    Checked,
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
    Respond,
    Spoken,
    Stop,
    Unload,
    Unloaded,
)
from ...workers.contract.status import Code, StatusError, unavailable
from ..dispatch.instance import PlannedBatch
from ..regions import RegionRegistry
from .backoff import Backoff
from .channel import Channel, Context, new_context
from .interpreter import OWN, Interpreter
from .runtime_directory import RuntimeDirectory
from .worker_process import WorkerProcess

OUTAGE_SECS = 1.0
"""A restart further away than this is an outage: requests are refused instead of kept waiting."""

PATIENT_DEATHS = 3
"""After more deaths than this in a row, those who wait for a worker are told why it does not come."""

LINGER_SECS = 5.0
"""How long a worker that came to hold nothing by a failure is kept, so that a run of failing loads does not start one each."""

STOP_TIMEOUT_SECS = 10.0
"""How long an empty worker may take to end before it is killed."""

KILL_TIMEOUT_SECS = 2.0
"""How long the server's own end waits for killed workers: one that hangs in the kernel cannot be waited for."""

Answered = Inspected | Loaded | Unloaded | Checked


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

    def responded(self, message: Respond, process: WorkerProcess) -> None:
        """A model has answered a request by its sender."""

    def spoken(self, message: Spoken, process: WorkerProcess) -> None:
        """A model asks or tells the server something else."""

    def worker_gone(self, process: WorkerProcess) -> None:
        """A worker process has ended: what it was lent, and what it asked, is nobody's any more."""

    def worker_says(self, worker: str, line: str) -> None:
        """A worker printed a line."""

    def worker_event(self, severity: str, text: str) -> None:
        """Something about a worker that belongs in the log. ``severity``: I, W or E."""


@dataclass(slots=True, eq=False)
class _Holding:
    """A model version that a seat's worker shall hold. ``gathering``: the task that waits for its instances."""

    load: Load
    ready: set[int] = field(default_factory=set)
    loaded: bool = False
    checks: bool = False
    gathering: int = 0

    @property
    def complete(self) -> bool:
        """Have all instances said that they are ready?"""
        return len(self.ready) == len(self.load.instances)


@dataclass(slots=True, eq=False)
class Seat:
    """A worker's place in the farm; it outlives the processes that fill it."""

    name: str
    interpreter: Interpreter = OWN
    process: WorkerProcess | None = None
    up: bool = False
    closing: bool = False
    restarts: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    holdings: dict[int, _Holding] = field(default_factory=dict)
    tasks: dict[int, asyncio.Future[Answered | None]] = field(default_factory=dict)
    arrivals: list[asyncio.Future[None]] = field(default_factory=list)
    restart: asyncio.TimerHandle | None = None

    @property
    def empty(self) -> bool:
        """Does nobody need it?"""
        return not self.holdings and not self.tasks and not self.arrivals


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
        self._context: Context = new_context()
        self._runtime = RuntimeDirectory()
        self._numbers = itertools.count(1)
        self._seat_of_instance: dict[int, Seat] = {}
        self._arenas: dict[int, WorkerProcess] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._leaving: set[Seat] = set()
        self._closing = False
        regions.on_drop = self._region_dropped

    # tasks

    async def inspect(self, worker: str, inspect: Inspect, interpreter: Interpreter = OWN) -> Inspected:
        """Have a worker complete a configuration; ``inspect.task`` is filled in here. Raises StatusError.

        A worker of its own in which a model's code has run ends, so that the model finds a fresh one when it is loaded.
        """
        seat = self._seat(worker, interpreter)
        try:
            await self._arrival(seat)
            answer = await self._ask(seat, lambda task: msgspec.structs.replace(inspect, task=task))
        except BaseException:
            self._close_later(seat)
            raise
        assert isinstance(answer, Inspected)
        if answer.spent and seat.empty:
            self._close(seat)
        return answer

    async def check(self, worker: str, model: int) -> bool:
        """What a model's own readiness check says. Raises StatusError where it fails, or nobody is there to ask."""
        seat = self.seats.get(worker)
        if seat is None:
            raise unavailable(f"worker '{worker}' is not running")
        answer = await self._ask(seat, lambda task: Check(task, model))
        return isinstance(answer, Checked) and answer.ready

    async def load(self, worker: str, load: Load, interpreter: Interpreter = OWN) -> bool:
        """Have a worker create a model's instances, now and after each of its restarts. Raises StatusError.

        ``load.task`` is filled in here. Returns when all instances have said they are ready, with whether the model has a
        readiness check of its own.
        """
        seat = self._seat(worker, interpreter)
        try:
            await self._arrival(seat)
        except BaseException:
            self._close_later(seat)
            raise
        holding = seat.holdings[load.model] = _Holding(load)
        for spec in load.instances:
            self._seat_of_instance[spec.number] = seat
        try:
            await self._fill(seat, holding)
        except BaseException as error:
            self._forget(seat, load.model)
            if not isinstance(error, StatusError):
                # Given up, not failed: the worker goes on loading and would keep the model.
                self._spawn(self._drop(seat, load.model))
            self._close_later(seat)
            raise
        return holding.checks

    async def unload(self, worker: str, model: int) -> None:
        """Have a worker drop a model whose requests have ended; a worker that holds nothing any more ends, and its memory with it."""
        seat = self.seats.get(worker)
        if seat is None or model not in seat.holdings:
            return
        holding = self._forget(seat, model)
        if seat.up and seat.process is not None:
            for instance in sorted(holding.ready):
                seat.process.close_instance(instance)
            await self._drop(seat, model)
        if seat.empty:
            self._close(seat)

    async def _drop(self, seat: Seat, model: int) -> None:
        try:
            await self._ask(seat, lambda task: Unload(task, model))
        except StatusError as error:
            # A worker that died has dropped the model as well.
            self._events.worker_event("W", f"worker '{seat.name}' while unloading: {error.message}")

    async def _fill(self, seat: Seat, holding: _Holding) -> None:
        load = holding.load
        answer = await self._ask(seat, lambda task: msgspec.structs.replace(load, task=task))
        holding.loaded = True
        holding.checks = isinstance(answer, Loaded) and answer.checks
        if not holding.complete:
            # Each instance speaks over a socket of its own, so the answer may overtake them.
            holding.gathering, future = self._open_task(seat)
            try:
                await future
            finally:
                seat.tasks.pop(holding.gathering, None)

    def _open_task(self, seat: Seat) -> tuple[int, asyncio.Future[Answered | None]]:
        """A number, and the future that is resolved under it, or fails with the worker."""
        task = next(self._numbers)
        future: asyncio.Future[Answered | None] = self._loop.create_future()
        seat.tasks[task] = future
        return task, future

    async def _ask(self, seat: Seat, message: Callable[[int], Inspect | Load | Unload | Check]) -> Answered | None:
        if seat.process is None or not seat.up:
            raise unavailable(f"worker '{seat.name}' is not running")
        task, future = self._open_task(seat)
        seat.process.send(message(task))
        try:
            return await future
        finally:
            seat.tasks.pop(task, None)

    # batches

    def send(self, batch: PlannedBatch) -> None:
        """Pass a batch to its instance's worker, behind the client regions and other workers' arenas it uses."""
        seat = self._seat_of_instance[batch.instance.number]
        process = seat.process
        assert process is not None
        for request in batch.requests:
            for region in request.regions:
                if not process.attached(region):
                    process.attach(region, *self._regions.mapping(region))
            for arena in request.arenas:
                self.share(arena, process)
        process.execute(batch.instance.number, Execute(batch.number, [request.body for request in batch.requests]))

    def recall(self, batch: PlannedBatch, index: int) -> None:
        """Tell a batch's worker that nobody waits for one of its requests any more."""
        seat = self._seat_of_instance[batch.instance.number]
        process = seat.process
        if seat.up and process is not None and process.returncode is None:
            process.send(Cancel(batch.number, index))

    def share(self, arena: int, process: WorkerProcess) -> None:
        """Let a worker read the arena of another, before it gets leases of it."""
        owner = self._arenas.get(arena)
        if arena:
            process.adopt(arena, None if owner is None else owner.arena_fd)

    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease of any worker's arena. Raises StatusError where that worker has gone."""
        owner = self._arenas.get(lease.arena)
        if owner is None:
            raise unavailable("the worker that made a tensor has gone, and the tensor with it")
        return owner.view(lease)

    # seats

    def _seat(self, name: str, interpreter: Interpreter = OWN) -> Seat:
        seat = self.seats.get(name)
        if seat is None:
            if self._closing:
                raise unavailable("Server is stopping")
            seat = self.seats[name] = Seat(name, interpreter)
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
            elif type(message) is Respond:
                self._events.responded(message, process)
            elif isinstance(message, Spoken):
                self._events.spoken(message, process)
            else:
                self._received(seat, message)

        try:
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
                seat.interpreter,
            )
            self._arenas[number] = seat.process
        except OSError as error:
            delay_secs = seat.backoff.delay_secs(0)
            text = f"could not be started: {error.strerror}"
            self._events.worker_event("E", f"worker '{seat.name}' {text}; it is tried again {_when(delay_secs)}")
            self._start_later(seat, delay_secs, unavailable(f"worker '{seat.name}' {text}"))

    def _start_later(self, seat: Seat, delay_secs: float, error: StatusError) -> None:
        """Start a seat's worker again; those who wait for it hear ``error`` where it has failed too often."""
        seat.restart = self._loop.call_later(delay_secs, self._start, seat)
        if seat.backoff.deaths > PATIENT_DEATHS:
            _fail(seat.arrivals, error)
            seat.arrivals = []

    async def _arrival(self, seat: Seat) -> None:
        while not seat.up:
            if seat.closing:
                raise unavailable(f"worker '{seat.name}' is being stopped")
            future: asyncio.Future[None] = self._loop.create_future()
            seat.arrivals.append(future)
            try:
                await future
            finally:
                if future in seat.arrivals:
                    seat.arrivals.remove(future)

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
            self._instance_ready(seat, message.instance)
        elif isinstance(message, Failed):
            future = seat.tasks.pop(message.task, None)
            if future is not None and not future.done():
                future.set_exception(StatusError(Code(message.fault.code), message.fault.message))
        elif isinstance(message, Inspected | Loaded | Unloaded | Checked):
            future = seat.tasks.pop(message.task, None)
            if future is not None and not future.done():
                future.set_result(message)

    def _instance_ready(self, seat: Seat, instance: int) -> None:
        for holding in seat.holdings.values():
            if any(spec.number == instance for spec in holding.load.instances):
                holding.ready.add(instance)
                self._events.instance_ready(instance)
                waiting = seat.tasks.pop(holding.gathering, None) if holding.complete else None
                if waiting is not None and not waiting.done():
                    waiting.set_result(None)
                return
        # Its model was given up while it was loaded.
        if seat.process is not None:
            seat.process.close_instance(instance)

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
        del self._arenas[process.arena.number]
        for other in self._arenas.values():
            other.disown(process.arena.number)
        self._events.worker_gone(process)
        if seat.process is not process:
            return
        seat.process = None
        seat.up = False
        if seat.closing:
            self._leaving.discard(seat)
            return
        seat.restarts += 1
        delay_secs = seat.backoff.delay_secs(time.monotonic_ns() - process.started_ns)
        when = _when(delay_secs)
        self._events.worker_event("E", f"worker '{seat.name}' (pid {process.pid}) {process.exit_text}; it is started again {when}")
        error = unavailable(f"worker '{seat.name}' {process.exit_text} while it ran this request")
        loading = unavailable(f"worker '{seat.name}' {process.exit_text} while it loaded this model; the log has its last words")
        # A load that was under way may be what killed it: its caller hears of it, and it is not tried again by itself.
        tasks, seat.tasks = seat.tasks, {}
        outage = unavailable(f"worker '{seat.name}' {process.exit_text} and is started again {when}")
        for holding in list(seat.holdings.values()):
            lost, holding.ready = holding.ready, set()
            for instance in sorted(lost):
                self._events.instance_lost(instance, error)
            if delay_secs > OUTAGE_SECS and holding.loaded:
                self._events.model_lost(holding.load.model, outage)
        _fail(tasks.values(), loading)
        self._start_later(
            seat, delay_secs, unavailable(f"worker '{seat.name}' {process.exit_text} at its start; the log has its last words")
        )

    def _region_dropped(self, region: int) -> None:
        for seat in self.seats.values():
            if seat.process is not None:
                seat.process.detach(region)

    # end

    def _close_later(self, seat: Seat) -> None:
        """A worker was of no use to a failed task: it ends too, unless another task comes soon."""
        if not seat.closing and seat.empty:
            self._loop.call_later(LINGER_SECS, self._close_empty, seat)

    def _close_empty(self, seat: Seat) -> None:
        if seat.empty:
            self._close(seat)

    def _close(self, seat: Seat) -> None:
        if seat.closing:
            return
        seat.closing = True
        del self.seats[seat.name]
        if seat.restart is not None:
            seat.restart.cancel()
        stopping = unavailable(f"worker '{seat.name}' is being stopped")
        _fail(seat.arrivals, stopping)
        _fail(seat.tasks.values(), stopping)
        if seat.process is not None:
            self._leaving.add(seat)
            if seat.up:
                seat.up = False
                seat.process.send(Stop())
                self._loop.call_later(STOP_TIMEOUT_SECS, _kill, (seat,))
            else:
                seat.process.kill()

    async def close(self, timeout_secs: float = 2.0) -> None:
        """Stop all workers: asked first, killed when they do not go."""
        self._closing = True
        for seat in list(self.seats.values()):
            self._close(seat)
        await self._leave(timeout_secs)
        _kill(self._leaving)
        await self._leave(KILL_TIMEOUT_SECS)
        for task in list(self._background):
            task.cancel()
        self._context.destroy(linger=0)
        self._runtime.close()

    async def _leave(self, timeout_secs: float) -> None:
        deadline = self._loop.time() + timeout_secs
        while self._leaving and self._loop.time() < deadline:
            await asyncio.sleep(0.005)

    def end_now(self) -> None:
        """Kill all workers and remove the sockets' directory; the process exits right after."""
        _kill([*self.seats.values(), *self._leaving])
        self._runtime.close()


def _kill(seats: Iterable[Seat]) -> None:
    for seat in seats:
        if seat.process is not None:
            seat.process.kill()


def _fail(futures: Iterable[asyncio.Future[Any]], error: StatusError) -> None:
    for future in list(futures):
        if not future.done():
            future.set_exception(error)


def _when(delay_secs: float) -> str:
    return f"in {delay_secs:g} s" if delay_secs else "at once"

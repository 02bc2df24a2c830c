"""The farm: worker processes by name, started when needed, started again when they die."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import msgspec

from ...workers.contract.backends import PYTHON
from ...workers.contract.messages import (
    Cancel,
    Check,
    Checked,
    Done,
    Execute,
    Extend,
    Failed,
    ForDevice,
    FromWorker,
    Hello,
    Hold,
    Inspect,
    Inspected,
    InstanceReady,
    Load,
    Loaded,
    Respond,
    Shrink,
    Spoken,
    Stop,
    Unload,
)
from ...workers.contract.status import Code, StatusError, unavailable
from ..dispatch.instance import PlannedBatch
from .backoff import Backoff, when_text
from .child_process import ChildProcess
from .events import FarmEvents
from .grants import Grant, Grants
from .interpreter import OWN, Interpreter
from .launch import Launched, launch, worker_words
from .process_memory import resident_byte_size
from .processes import Processes
from .seat import Answered, Holding, Seat, fail, kill, left

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


class Farm:
    """All seats, and the ``processes`` that fill them.

    ``spare`` is a worker in our own Python that has been started already: the first that needs one gets it, if it needs no GPU.
    ``grants`` are the GPUs that workers may be given. ``leaving`` are seats that were given up, whose processes are still there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        events: FarmEvents,
        processes: Processes,
        spare: Launched | None = None,
        grants: Grants | None = None,
    ) -> None:
        self.seats: dict[str, Seat] = {}
        self.processes = processes
        self._loop = loop
        self._events = events
        self._spare = spare
        self._grants = grants or Grants()
        self._numbers = itertools.count(1)
        self._seat_of_instance: dict[int, Seat] = {}
        self._background: set[asyncio.Task[None]] = set()
        self.leaving: set[Seat] = set()
        self._closing = False

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
            self._unused(seat, inspect.backend)
            raise
        assert isinstance(answer, Inspected)
        if answer.spent and seat.empty:
            self._close(seat)
        else:
            # What it has completed may never be loaded.
            self._close_later(seat)
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
        seat = self._seat(worker, interpreter, self._grant(load))
        try:
            await self._arrival(seat)
        except BaseException:
            self._unused(seat, load.backend)
            raise
        holding = seat.holdings[load.model] = Holding(load)
        for spec in load.instances:
            self._seat_of_instance[spec.number] = seat
        try:
            await self._fill(seat, holding)
        except BaseException as error:
            if seat.holdings.get(load.model) is holding:
                self._forget(seat, load.model)
            if not isinstance(error, StatusError):
                # Given up, not failed: the worker goes on loading and would keep the model.
                self._spawn(self._drop(seat, lambda task: Unload(task, load.model)))
            self._unused(seat, load.backend)
            raise
        return holding.checks

    async def extend(self, worker: str, load: Load, interpreter: Interpreter = OWN) -> bool:
        """Add instances to a model that serves, now and after each restart of its worker; a worker that does not hold it loads it.

        ``load.instances`` are the new ones alone; the rest of ``load`` is what the model is to be loaded with from now on.
        Returns as ``load`` does. Raises StatusError; the model then is as it was.
        """
        seat = self.seats.get(worker)
        holding = None if seat is None else seat.holdings.get(load.model)
        if seat is None or holding is None:
            return await self.load(worker, load, interpreter)
        async with holding.extension:
            await self._arrival(seat)
            if holding.refill is not None:
                await asyncio.wait((holding.refill,))
            if seat.holdings.get(load.model) is not holding:
                raise _leaving(holding)
            numbers = {spec.number for spec in load.instances}
            if numbers:
                await self._add_instances(seat, holding, load, numbers)
            holding.load = msgspec.structs.replace(load, instances=[*holding.load.instances, *load.instances])
        # Only now, because they are there all together or not at all.
        for instance in sorted(numbers):
            self._events.instance_ready(instance)
        return holding.checks

    async def _add_instances(self, seat: Seat, holding: Holding, load: Load, numbers: set[int]) -> None:
        holding.arriving = numbers
        self._seat_of_instance.update(dict.fromkeys(numbers, seat))
        process = seat.process
        try:
            await self._ask(seat, lambda task: Extend(task, load.model, load.config, load.instances))
            await self._gather(seat, holding, process)
            if not holding.ready >= numbers:
                raise unavailable(f"worker '{seat.name}' ended while it was given more instances of model '{load.name}'")
        except BaseException as error:
            given = holding.ready & numbers
            holding.ready -= numbers
            for instance in numbers:
                del self._seat_of_instance[instance]
            if not isinstance(error, StatusError):
                # Given up, not failed: the worker goes on creating them.
                self._spawn(self._end_instances(seat, load.model, numbers, given))
            raise
        finally:
            holding.arriving = set()

    async def shrink(self, worker: str, model: int, instances: Collection[int], config: bytes = b"") -> None:
        """Free instances that run nothing any more; where none is left, the model is unloaded.

        ``config`` is what the model is to be loaded with from now on; empty: as it was.
        """
        seat = self.seats.get(worker)
        holding = None if seat is None else seat.holdings.get(model)
        if seat is None or holding is None:
            return
        numbers = holding.numbers.intersection(instances)
        left = [spec for spec in holding.load.instances if spec.number not in numbers]
        if not left:
            return await self.unload(worker, model)
        holding.load = msgspec.structs.replace(holding.load, instances=left, config=config or holding.load.config)
        given = holding.ready & numbers
        holding.ready -= numbers
        for instance in numbers:
            del self._seat_of_instance[instance]
        self._gathered(seat, holding)
        if numbers:
            await self._end_instances(seat, model, numbers, given)

    async def _end_instances(self, seat: Seat, model: int, instances: set[int], ready: set[int]) -> None:
        """Have a worker free instances; those that are not ``ready`` are told to end once they are."""
        if seat.up and seat.process is not None:
            for instance in sorted(ready):
                seat.process.close_instance(instance)
            await self._drop(seat, lambda task: Shrink(task, model, sorted(instances)))

    async def unload(self, worker: str, model: int) -> None:
        """Have a worker drop a model whose requests have ended; a worker that holds nothing any more ends, and its memory with it."""
        seat = self.seats.get(worker)
        if seat is None or model not in seat.holdings:
            return
        holding = self._forget(seat, model)
        if seat.up and seat.process is not None:
            for instance in sorted(holding.ready):
                seat.process.close_instance(instance)
            await self._drop(seat, lambda task: Unload(task, model))
        if seat.empty:
            self._close(seat)

    async def _drop(self, seat: Seat, message: Callable[[int], Unload | Shrink]) -> None:
        # Behind the outputs that are being given back in this turn.
        await asyncio.sleep(0)
        try:
            await self._ask(seat, message)
        except StatusError as error:
            # A worker that died has dropped what it was to drop as well.
            self._events.worker_event("W", f"worker '{seat.name}' while unloading: {error.message}")

    async def _fill(self, seat: Seat, holding: Holding) -> None:
        load = holding.load
        process = seat.process
        answer = await self._ask(seat, lambda task: msgspec.structs.replace(load, task=task))
        holding.loaded = True
        holding.checks = isinstance(answer, Loaded) and answer.checks
        await self._gather(seat, holding, process)

    async def _gather(self, seat: Seat, holding: Holding, process: ChildProcess | None) -> None:
        """Wait for the instances of ``process``: each speaks over a socket of its own, so a task's answer may overtake them."""
        if seat.holdings.get(holding.load.model) is not holding:
            raise _leaving(holding)
        if seat.process is not process:
            # Its answer was the last that was heard of it, in the turn in which it ended.
            raise unavailable(f"worker '{seat.name}' ended while it loaded model '{holding.load.name}'")
        if not holding.complete:
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

    def _gathered(self, seat: Seat, holding: Holding) -> None:
        """End the wait for the instances where there is none left to wait for."""
        waiting = seat.tasks.pop(holding.gathering, None) if holding.complete else None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def _ask(
        self, seat: Seat, message: Callable[[int], Inspect | Load | Extend | Shrink | Unload | Check | ForDevice]
    ) -> Answered | None:
        if seat.process is None or not seat.up:
            raise unavailable(f"worker '{seat.name}' is not running")
        task, future = self._open_task(seat)
        seat.process.send(message(task))
        try:
            return await future
        finally:
            seat.tasks.pop(task, None)

    def resident_byte_size(self) -> int:
        """The memory that all workers use together (RSS), as of now. Those that are about to end do not count."""
        return sum(resident_byte_size(seat.process.pid) for seat in self.seats.values() if seat.process is not None)

    # GPUs

    def _grant(self, load: Load) -> Grant | None:
        """The GPU that a worker needs to hold a model's instances."""
        gpus = [spec.device for spec in load.instances if spec.kind == "KIND_GPU"]
        return self._grants.grant(gpus[0], alone=load.backend != PYTHON) if gpus else None

    async def keep(self, worker: str, device: int, region: int) -> ChildProcess:
        """The worker of a GPU, which stays for as long as ``region`` is not let go of. Raises StatusError where it does not come."""
        seat = self._seat(worker, OWN, self._grants.grant(device, alone=True))
        seat.regions.add(region)
        return await self._process(seat)

    def let_go(self, region: int) -> None:
        """No worker needs to stay because of this region."""
        for seat in self.seats.values():
            if region in seat.regions:
                seat.regions.discard(region)
                self._close_later(seat)

    async def arrived(self, worker: str, device: int) -> ChildProcess:
        """The worker of a GPU, once it is there. Raises StatusError."""
        return await self._process(self._seat(worker, OWN, self._grants.grant(device, alone=True)))

    async def _process(self, seat: Seat) -> ChildProcess:
        await self._arrival(seat)
        assert seat.process is not None
        return seat.process

    async def ask(self, worker: str, message: Callable[[int], ForDevice]) -> Answered | None:
        """What a worker that is there answers to the message for a task's number. Raises StatusError."""
        seat = self.seats.get(worker)
        if seat is None:
            raise unavailable(f"worker '{worker}' is not running")
        process = seat.process
        try:
            return await self._ask(seat, message)
        except StatusError:
            if process is not None and process.returncode is not None:
                raise unavailable(f"worker '{worker}' {process.exit_text}") from None
            raise

    # batches

    def send(self, batch: PlannedBatch) -> None:
        """Pass a batch to its instance's worker, behind the client regions and other workers' arenas it uses."""
        seat = self._seat_of_instance[batch.instance.number]
        process = seat.process
        assert process is not None
        for request in batch.requests:
            self.processes.lend(request, process)
        process.execute(batch.instance.number, Execute(batch.number, batch.bodies or [request.body for request in batch.requests]))

    def tell(self, batch: PlannedBatch, message: Cancel | Hold) -> None:
        """Tell a batch's worker something of one of its requests: that nobody waits for it any more, that its client takes nothing."""
        seat = self._seat_of_instance[batch.instance.number]
        process = seat.process
        if seat.up and process is not None and process.returncode is None:
            process.send(message)

    # seats

    def _seat(self, name: str, interpreter: Interpreter = OWN, grant: Grant | None = None) -> Seat:
        seat = self.seats.get(name)
        if seat is not None and (seat.interpreter, seat.grant) != (interpreter, grant) and seat.empty:
            self._close(seat)
            seat = None
        if seat is None:
            if self._closing:
                raise unavailable("Server is stopping")
            seat = self.seats[name] = Seat(name, interpreter, grant=grant)
            self._start(seat)
        return seat

    def start(self, name: str) -> None:
        """Start a worker ahead of its first use."""
        self._seat(name)

    def _start(self, seat: Seat) -> None:
        seat.restart = None

        def say(line: str) -> None:
            self._events.worker_says(seat.name, line)

        def receive(process: ChildProcess, message: FromWorker) -> None:
            if type(message) is Done:
                self._events.batch_done(message, process)
            elif type(message) is Respond:
                self._events.responded(message, process)
            elif isinstance(message, Spoken):
                self._events.spoken(message, process)
            else:
                self._received(seat, message)

        try:
            seat.process = self.processes.start(
                *(seat.name, receive, say, lambda process: self._ended(seat, process), lambda: self._launch(seat)),
                device=None if seat.grant is None else seat.grant.device,
            )
        except OSError as error:
            delay_secs = seat.backoff.delay_secs(0)
            text = f"could not be started: {error.strerror}"
            self._events.worker_event("E", f"worker '{seat.name}' {text}; it is tried again {when_text(delay_secs)}")
            self._start_later(seat, delay_secs, unavailable(f"worker '{seat.name}' {text}"))

    def _launch(self, seat: Seat) -> Launched:
        spare = self._spare
        if spare is not None and seat.interpreter is OWN and seat.grant is None:
            self._spare = None
            return spare
        environment = seat.interpreter.environment()
        if seat.grant is not None:
            environment = {**(os.environ if environment is None else environment), **seat.grant.variables}
        return launch(worker_words(seat.interpreter.program), environment)

    def _start_later(self, seat: Seat, delay_secs: float, error: StatusError) -> None:
        """Start a seat's worker again; those who wait for it hear ``error`` where it has failed too often."""
        seat.restart = self._loop.call_later(delay_secs, self._start, seat)
        if seat.backoff.deaths > PATIENT_DEATHS:
            fail(seat.arrivals, error)
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
                holding.refill = self._spawn(self._refill(seat, holding))
        elif isinstance(message, InstanceReady):
            self._instance_ready(seat, message)
        elif isinstance(message, Failed):
            future = seat.tasks.pop(message.task, None)
            if future is not None and not future.done():
                future.set_exception(StatusError(Code(message.fault.code), message.fault.message))
        elif isinstance(message, Answered):
            future = seat.tasks.pop(message.task, None)
            if future is not None and not future.done():
                future.set_result(message)

    def _instance_ready(self, seat: Seat, message: InstanceReady) -> None:
        instance = message.instance
        for holding in seat.holdings.values():
            arriving = instance in holding.arriving
            if arriving or any(spec.number == instance for spec in holding.load.instances):
                holding.ready.add(instance)
                if message.warmed:
                    self._events.instance_warmed(instance, message.warmed)
                if not arriving:
                    self._events.instance_ready(instance)
                return self._gathered(seat, holding)
        # It, or its model, was given up while it was loaded.
        if seat.process is not None:
            seat.process.close_instance(instance)

    async def _refill(self, seat: Seat, holding: Holding) -> None:
        process, again = seat.process, seat.grant is not None
        try:
            if await self._events.outdated(holding.load.model):
                again = False
                raise unavailable("its files have changed since it was loaded")
            await self._fill(seat, holding)
            holding.backoff = Backoff()
        except StatusError as error:
            if seat.up:
                self._events.model_lost(holding.load.model, error)
                if again:
                    # The process before may still have held the GPU's memory, or somebody else may have.
                    delay_secs = max(1.0, holding.backoff.delay_secs(0))
                    self._loop.call_later(delay_secs, self._refill_again, seat, holding, process)

    def _refill_again(self, seat: Seat, holding: Holding, process: ChildProcess | None) -> None:
        if seat.up and seat.process is process and seat.holdings.get(holding.load.model) is holding:
            holding.refill = self._spawn(self._refill(seat, holding))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _forget(self, seat: Seat, model: int) -> Holding:
        holding = seat.holdings.pop(model)
        for spec in holding.load.instances:
            self._seat_of_instance.pop(spec.number, None)
        waiting = seat.tasks.pop(holding.gathering, None)
        if waiting is not None:
            fail((waiting,), _leaving(holding))
        return holding

    def _ended(self, seat: Seat, process: ChildProcess) -> None:
        self._events.worker_gone(process)
        if seat.process is not process:
            return
        seat.process = None
        seat.up = False
        if seat.closing:
            self.leaving.discard(seat)
            if seat.gone is not None:
                seat.gone.set_result(None)
            return
        seat.restarts += 1
        delay_secs = seat.backoff.delay_secs(time.monotonic_ns() - process.started_ns)
        when = when_text(delay_secs)
        self._events.worker_event("E", f"worker '{seat.name}' (pid {process.pid}) {process.exit_text}; it is started again {when}")
        error = unavailable(f"worker '{seat.name}' {process.exit_text} while it ran this request")
        loading = unavailable(f"worker '{seat.name}' {process.exit_text} while it loaded this model; the log has its last words")
        # A load that was under way may be what killed it: its caller hears of it, and it is not tried again by itself.
        tasks, seat.tasks = seat.tasks, {}
        outage = unavailable(f"worker '{seat.name}' {process.exit_text} and is started again {when}")
        for holding in list(seat.holdings.values()):
            lost, holding.ready = holding.ready, set()
            for instance in sorted(lost - holding.arriving):
                self._events.instance_lost(instance, error)
            if delay_secs > OUTAGE_SECS and holding.loaded:
                self._events.model_lost(holding.load.model, outage)
        fail(tasks.values(), loading)
        self._start_later(
            seat, delay_secs, unavailable(f"worker '{seat.name}' {process.exit_text} at its start; the log has its last words")
        )

    # end

    def _unused(self, seat: Seat, backend: str) -> None:
        """A worker was of no use to a failed task. One in which a model's own code may have run is of no use to any other either."""
        if backend == PYTHON and seat.empty:
            self._close(seat)
        else:
            self._close_later(seat)

    def _close_later(self, seat: Seat) -> None:
        """A worker that holds nothing ends, unless a task comes soon."""
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
        fail(seat.arrivals, stopping)
        fail(seat.tasks.values(), stopping)
        if seat.process is not None:
            self.leaving.add(seat)
            seat.gone = self._loop.create_future()
            if seat.up:
                seat.up = False
                seat.process.send(Stop())
                self._loop.call_later(STOP_TIMEOUT_SECS, kill, (seat,))
            else:
                seat.process.kill()

    async def close(self, timeout_secs: float = 2.0) -> None:
        """Stop all workers: asked first, killed when they do not go."""
        self._closing = True
        if self._spare is not None:
            self._spare.end()
        for seat in list(self.seats.values()):
            self._close(seat)
        await left(self.leaving, timeout_secs)
        kill(self.leaving)
        await left(self.leaving, KILL_TIMEOUT_SECS)
        for task in list(self._background):
            task.cancel()

    def end_now(self) -> None:
        """Kill all workers; the process exits right after."""
        kill([*self.seats.values(), *self.leaving])


def _leaving(holding: Holding) -> StatusError:
    return unavailable(f"model '{holding.load.name}' is being unloaded")

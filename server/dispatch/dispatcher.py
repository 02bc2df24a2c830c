"""All schedulers together: takes requests in, sends batches out, delivers responses, counts.

Still sans-IO: the world outside is a few callables. ``submit`` only queues; the decision is made
once for all that arrived in the same turn of the loop, so that they can share a batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Protocol

from ...shm.placement import Lease, within
from ...workers.contract.messages import Done, Respond, Result
from ...workers.contract.status import Code, StatusError, internal
from ..statistics import FailureReason
from .deadlines import Deadlines
from .instance import TINY_NS, Instance, PlannedBatch
from .request import EndMark, Request, Response
from .scheduler import Scheduler
from .waiting import WaitGraph

_CIRCLE = (
    "this call would wait for ever: every instance that could run it waits, itself or through others, for the instance that makes it; "
    "raise the instance count of the models that call each other"
)

FEW_REQUESTS = 8
"""With no more in flight, what comes next finds the server asleep unless it is kept awake."""


class OutputMemory(Protocol):
    """The arena of the worker that answered."""

    @property
    def arena_number(self) -> int:
        """What leases of it call it by."""

    def view(self, lease: Lease) -> memoryview:
        """The bytes of an output."""

    def give_back(self, leases: list[Lease]) -> None:
        """The outputs' bytes are no longer needed."""


class Limiter(Protocol):
    """Says which of the instances that could run a batch may: they share resources."""

    def choose(self, candidates: Iterable[Instance], waits: Callable[[Instance], bool]) -> Instance | None:
        """The next one that may run, None where none may; ``waits`` says whether what an instance runs waits for a request."""

    def stuck(self, instance: Instance, waits: Callable[[Instance], bool]) -> bool:
        """Would it be short of something even if all gave back what they hold but those that ``waits`` is true of?"""

    def take(self, instance: Instance) -> None:
        """It begins to run."""

    def give_back(self, instance: Instance) -> None:
        """It has stopped, if it ran."""


class Dispatcher:
    """Glue between doors, schedulers and links.

    ``send`` passes a batch to its instance's worker, ``call_soon`` asks for ``flush`` at the end of the
    loop's turn, ``set_alarm`` for a call of ``alarm`` at a CLOCK_MONOTONIC time in nanoseconds (None: no
    more). ``stay_awake`` says that something will happen within a moment: few requests are in flight, to or from a
    tiny model. ``recall`` tells a batch's worker that nobody waits for the request at an index any more, ``hold`` that its client takes no
    more responses for now.
    ``view`` gives the bytes of a lease of any arena. ``limiter`` says when instances of limited schedulers may run.
    ``in_flight`` counts the requests that wait or run.
    """

    def __init__(
        self,
        send: Callable[[PlannedBatch], None],
        call_soon: Callable[[Callable[[], None]], object],
        set_alarm: Callable[[int | None], None],
        clock_ns: Callable[[], int] = time.monotonic_ns,
        stay_awake: Callable[[], None] = lambda: None,
        recall: Callable[[PlannedBatch, int], None] = lambda batch, index: None,
        hold: Callable[[PlannedBatch, int, bool], None] = lambda batch, index, held: None,
        view: Callable[[Lease], memoryview] | None = None,
        limiter: Limiter | None = None,
    ) -> None:
        self._view = view
        self._limiter = limiter
        self._wanting: dict[Scheduler, None] = {}
        self._recall = recall
        self._hold = hold
        self._waits = WaitGraph(None if limiter is None else limiter.stuck)
        self.in_flight = 0
        self._stay_awake = stay_awake
        self._send = send
        self._call_soon = call_soon
        self._set_alarm = set_alarm
        self._clock_ns = clock_ns
        self._batches: dict[int, PlannedBatch] = {}
        self._touched: dict[Scheduler, None] = {}
        self._wakes: dict[Scheduler, int] = {}
        self._deadlines: Deadlines[Scheduler] = Deadlines(lambda at_ns, scheduler: self._wakes.get(scheduler) == at_ns)
        self._flushing = False
        self._watchers: dict[Scheduler, list[tuple[Callable[[], bool], Callable[[], None]]]] = {}

    def submit(self, scheduler: Scheduler, request: Request) -> None:
        """Queue a validated request. Raises StatusError, and then the request is neither taken nor counted."""
        scheduler.submit(request, self._clock_ns())
        if scheduler.order is not None:
            scheduler.order.arrived(request)
        scheduler.statistics.pending_count += 1
        scheduler.in_flight += 1
        self.in_flight += 1
        self.touch(scheduler)
        if request.caller:
            self._await(scheduler, request)

    def _await(self, scheduler: Scheduler, request: Request) -> None:
        """An instance waits for a request, which fails where its answer would wait for that instance."""
        caller = self._batches.get(request.caller)
        if caller is not None:
            # What is staged behind an instance that waits could not go to one that does not.
            caller.scheduler.staging = False
        self._waits.add(scheduler, request)
        inner = request.on_finish

        def on_finish() -> None:
            self._waits.remove(request)
            if inner is not None:
                inner()

        request.on_finish = on_finish
        # Behind the decision that was asked for just now.
        self._call_soon(partial(self._break_circle, scheduler, request))

    def touch(self, scheduler: Scheduler) -> None:
        """Have a scheduler decide at the end of this turn."""
        self._touched[scheduler] = None
        if not self._flushing:
            self._flushing = True
            self._call_soon(self.flush)

    def flush(self) -> None:
        """Let every touched scheduler decide, and carry out what it says."""
        self._flushing = False
        touched, self._touched = self._touched, {}
        now_ns = self._clock_ns()
        rewound = False
        for scheduler in touched:
            decision = scheduler.decide(now_ns)
            for batch in decision.batches:
                self._start(batch)
            for request, error, reason in decision.refused:
                scheduler.statistics.pending_count -= 1
                self._fail(scheduler, request, error, reason)
            if decision.wake_ns != self._wakes.get(scheduler):
                rewound = True
                if decision.wake_ns is None:
                    del self._wakes[scheduler]
                else:
                    self._wakes[scheduler] = decision.wake_ns
                    self._deadlines.add(decision.wake_ns, scheduler)
            if self._watchers:
                self._watch(scheduler)
        if rewound:
            self._set_alarm(self._deadlines.next_ns())
        if self._limiter is not None:
            self._start_limited(self._limiter, touched, now_ns)

    def _start(self, batch: PlannedBatch) -> None:
        """Send a batch to its instance."""
        self._batches[batch.number] = batch
        batch.scheduler.statistics.pending_count -= len(batch.requests) - len(batch.answered)
        self._send(batch)
        self._expect(batch)

    def _start_limited(self, limiter: Limiter, touched: Iterable[Scheduler], now_ns: int) -> None:
        """Let the limiter say which of the instances that could run something does, until there is none that may."""
        for scheduler in touched:
            if scheduler.limited:
                self._wanting[scheduler] = None
        wanting: dict[Instance, Scheduler] = {}
        for scheduler in list(self._wanting):
            candidates = scheduler.candidates(now_ns)
            wanting.update(dict.fromkeys(candidates, scheduler))
            if not candidates:
                # Whatever changes that touches it.
                del self._wanting[scheduler]
        while (instance := limiter.choose(wanting, self._waits.blocked)) is not None:
            scheduler = wanting[instance]
            limiter.take(instance)
            self._start(scheduler.bind(instance, now_ns))
            candidates = scheduler.candidates(now_ns)
            wanting = {one: its for one, its in wanting.items() if its is not scheduler} | dict.fromkeys(candidates, scheduler)
            if not candidates:
                del self._wanting[scheduler]

    def _expect(self, batch: PlannedBatch) -> None:
        """A batch was sent or has come back: its answer, or the client's next request, is near."""
        if self.in_flight <= FEW_REQUESTS and batch.instance.execution_ns < TINY_NS:
            self._stay_awake()

    def when_idle(self, scheduler: Scheduler, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once, when nothing waits or runs in a scheduler any more."""
        self._when(scheduler, lambda: scheduler.idle, watcher)

    def when_free(self, scheduler: Scheduler, instance: Instance, watcher: Callable[[], None]) -> None:
        """Give an instance no more work, and call ``watcher`` once, when it has finished what it has."""
        scheduler.instance_leaves(instance)
        self._when(scheduler, lambda: scheduler.free(instance), watcher)

    def _when(self, scheduler: Scheduler, condition: Callable[[], bool], watcher: Callable[[], None]) -> None:
        self._watchers.setdefault(scheduler, []).append((condition, watcher))
        self.touch(scheduler)

    def _watch(self, scheduler: Scheduler) -> None:
        """Tell those who wait for something of a scheduler."""
        watchers = self._watchers.pop(scheduler, [])
        waiting = []
        for condition, watcher in watchers:
            if condition():
                watcher()
            else:
                waiting.append((condition, watcher))
        if waiting:
            self._watchers[scheduler] = [*waiting, *self._watchers.get(scheduler, ())]

    def alarm(self) -> None:
        """The time that was asked for has come."""
        now_ns = self._clock_ns()
        due = self._deadlines.due(now_ns)
        for scheduler in due:
            self._wakes.pop(scheduler, None)
            self._touched[scheduler] = None
        if due:
            self.flush()
        self._set_alarm(self._deadlines.next_ns())

    def batch_done(self, done: Done, memory: OutputMemory) -> None:
        """A worker has answered a batch: count it, deliver its responses. Unknown batches are ignored."""
        batch = self._batches.pop(done.batch, None)
        if batch is None:
            for result in done.results:
                _give_back(result, memory)
            return
        scheduler = batch.scheduler
        end_ns = self._clock_ns()
        rounds = scheduler.done(batch, done.compute_end_ns - done.compute_start_ns, end_ns, done.again)
        if self._limiter is not None:
            self._give_back_resources(self._limiter, batch.instance)
        if done.failed is not None or batch.answered:
            self._model_batch_done(batch, done, rounds, memory)
            return
        self._expect(batch)
        count = len(batch.requests)
        scheduler.in_flight -= count
        self.in_flight -= count
        batch_size = inference_count = 0
        succeeded = []
        responses = []
        view, give_back = memory.view, memory.give_back
        for request, result in zip(batch.requests, done.results, strict=True):
            assert result is not None
            batch_size += request.body.batch_size
            if result.fault is None:
                succeeded.append(request)
                inference_count += request.body.batch_size
                error = None
            else:
                error = StatusError(Code(result.fault.code), result.fault.message)
                scheduler.statistics.request_failed(FailureReason.BACKEND, request.start_ns, end_ns)
            if request.on_execution is not None:
                request.on_execution(done)
            responses.append(Response(request, result.outputs, result.parameters, error, True, view, give_back))
        scheduler.statistics.batch_done(done, batch_size, succeeded, inference_count, end_ns, time.time_ns() // 1_000_000)
        self.touch(scheduler)
        self._deliver(scheduler, responses)

    def _give_back_resources(self, limiter: Limiter, instance: Instance) -> None:
        """An instance has stopped to run; others may have waited for that."""
        limiter.give_back(instance)
        for scheduler in self._wanting:
            self.touch(scheduler)

    def _leave(self, scheduler: Scheduler, count: int) -> None:
        """Requests have had their last answer."""
        scheduler.in_flight -= count
        self.in_flight -= count

    def _model_batch_done(self, batch: PlannedBatch, done: Done, rounds: Collection[int], memory: OutputMemory) -> None:
        """A batch of a model that may answer its requests by senders of its own, and says itself which count as failed.

        Or one with places that stand for no request, whose results nobody gets. ``rounds`` are the indices of requests that come again.
        """
        scheduler = batch.scheduler
        failed = done.failed
        if failed is None:
            failed = [index for index, result in enumerate(done.results) if result is not None and result.fault is not None]
        scheduler.statistics.pending_count += len(rounds)
        self._expect(batch)
        end_ns = self._clock_ns()
        batch_size = inference_count = 0
        succeeded = []
        responses = []
        for index, (request, result) in enumerate(zip(batch.requests, done.results, strict=True)):
            batch_size += request.body.batch_size
            if index in batch.fillers:
                _give_back(result, memory)
                continue
            if index in rounds:
                # The original counts every round of a request.
                batch.answered.add(index)
                succeeded.append(request)
                inference_count += request.body.batch_size
                continue
            if index in failed:
                scheduler.statistics.request_failed(FailureReason.BACKEND, request.start_ns, end_ns)
            else:
                succeeded.append(request)
                inference_count += request.body.batch_size
            if request.on_execution is not None:
                request.on_execution(done)
            if index in batch.answered:
                _give_back(result, memory)
            elif result is None:
                batch.open_count += 1
            else:
                batch.answered.add(index)
                responses.append(self._model_response(request, result, memory))
        self._leave(scheduler, len(responses))
        if batch.open_count:
            self._batches[batch.number] = scheduler.streaming[batch.number] = batch
        scheduler.statistics.batch_done(done, batch_size, succeeded, inference_count, end_ns, time.time_ns() // 1_000_000)
        for index in rounds:
            batch.requests[index].queued_ns = end_ns
        self.touch(scheduler)
        self._deliver(scheduler, responses)

    def _model_response(self, request: Request, result: Result, memory: OutputMemory) -> Response:
        """The response of a model that may have passed inputs on as outputs where they lie: its request keeps them till it is released."""
        response = _response(request, result, True, memory)
        own = memory.arena_number
        passed = [tensor.place for tensor in result.outputs if type(tensor.place) is Lease and tensor.place.arena != own]
        if not passed:
            return response
        context = request.body.context
        inputs = [tensor.place for tensor in request.body.inputs if type(tensor.place) is Lease]
        if context is None or not context.lends or not all(any(within(place, whole) for whole in inputs) for place in passed):
            _give_back(result, memory)
            return Response(request, [], error=internal("an output lies in memory that was not lent for it"))
        on_finish, request.on_finish = request.on_finish, None

        def release(leases: list[Lease]) -> None:
            memory.give_back([lease for lease in leases if lease.arena == own])
            if on_finish is not None:
                on_finish()

        response.arena_view = self._view
        response.on_release = release
        return response

    def respond(self, message: Respond, memory: OutputMemory) -> None:
        """A model has answered one request by its sender; what comes for a request that has ended is dropped."""
        batch = self._batches.get(message.batch)
        if batch is None or not 0 <= message.index < len(batch.requests) or message.index in batch.answered:
            _give_back(message.result, memory)
            return
        scheduler = batch.scheduler
        request = batch.requests[message.index]
        if not request.begun:
            request.begun = True
            scheduler.statistics.first_response_sent(request.start_ns, self._clock_ns())
        if message.final:
            batch.answered.add(message.index)
            self._leave(scheduler, 1)
            if batch.number in scheduler.streaming:
                batch.open_count -= 1
                if not batch.open_count:
                    del scheduler.streaming[batch.number], self._batches[batch.number]
                    self.touch(scheduler)
        result = message.result
        response = EndMark(request, []) if result is None else _response(request, result, message.final, memory)
        self._deliver(scheduler, [response])

    def instance_up(self, scheduler: Scheduler, instance: Instance) -> None:
        """An instance can take batches."""
        scheduler.instance_up(instance)
        self.touch(scheduler)

    def instance_down(self, scheduler: Scheduler, instance: Instance, error: StatusError) -> None:
        """An instance died: its running batch fails with ``error``, the rest waits for another."""
        for batch in (*instance.batches, *scheduler.streaming.values()):
            if batch.instance is instance:
                self._batches.pop(batch.number, None)
        bound = sum(len(batch.requests) - len(batch.answered) for batch in instance.batches)
        lost = scheduler.instance_down(instance)
        if self._limiter is not None:
            self._give_back_resources(self._limiter, instance)
        scheduler.statistics.pending_count += bound - len(lost)
        streams = scheduler.streams_down(instance)
        for request in lost:
            self._fail(scheduler, request, error, FailureReason.BACKEND)
        # Those have been counted already, when their batch had run.
        self._leave(scheduler, len(streams))
        self._deliver(scheduler, [Response(request, [], error=error) for request in streams])
        self.touch(scheduler)

    def refuse_stranded(self, scheduler: Scheduler, error: StatusError) -> None:
        """Some instances will not be back soon: what waits for them alone fails with ``error``, though others are there."""
        for request in scheduler.stranded():
            scheduler.cancel(request)
            scheduler.statistics.pending_count -= 1
            self._fail(scheduler, request, StatusError(error.code, f"{request.label}{error.message}"), FailureReason.REJECTED)
        self.touch(scheduler)

    def _break_circle(self, scheduler: Scheduler, request: Request) -> None:
        """Fail a request if it, and the instance that waits for it, would wait for ever."""
        if not self._waits.circle(request):
            return
        if scheduler.cancel(request):
            scheduler.statistics.pending_count -= 1
            self.touch(scheduler)
        else:
            # It is staged behind a batch of the circle: what its worker says of it one day finds it answered.
            batch, index = scheduler.find(request) or (None, 0)
            if batch is None:
                return
            batch.answered.add(index)
        self._fail(scheduler, request, internal(f"{request.label}{_CIRCLE}"), FailureReason.OTHER)

    def cancel(self, scheduler: Scheduler, request: Request) -> None:
        """The client has gone: a waiting request leaves the queue, the worker of a running one is told."""
        request.cancelled = True
        if scheduler.cancel(request):
            scheduler.statistics.pending_count -= 1
            # Whoever waits for it to be idle is told by its decision.
            self.touch(scheduler)
            self._fail(scheduler, request, StatusError(Code.CANCELLED, ""), FailureReason.CANCELED)
            return
        found = scheduler.find(request)
        if found is not None:
            self._recall(*found)

    def hold(self, scheduler: Scheduler, request: Request, held: bool) -> None:
        """The client of a running request takes no more responses for now, or takes them again: its worker is told."""
        found = scheduler.find(request)
        if found is not None:
            self._hold(*found, held)

    def abandon(self, schedulers: Iterable[Scheduler], error: StatusError) -> None:
        """Fail everything that is still waiting or running: the server ends."""
        for scheduler in schedulers:
            # Those that leave are not among its instances any more.
            running = (batch.instance for batch in (*scheduler.outstanding.values(), *scheduler.streaming.values()))
            for instance in dict.fromkeys((*scheduler.instances, *running)):
                self.instance_down(scheduler, instance, error)
            for request in scheduler.refuse_waiting():
                scheduler.statistics.pending_count -= 1
                self._fail(scheduler, request, error, FailureReason.OTHER)

    def _fail(self, scheduler: Scheduler, request: Request, error: StatusError, reason: FailureReason) -> None:
        self._leave(scheduler, 1)
        scheduler.statistics.request_failed(reason, request.start_ns, self._clock_ns())
        self._deliver(scheduler, [Response(request, [], error=error)])

    def _deliver(self, scheduler: Scheduler, responses: list[Response]) -> None:
        order = scheduler.order
        if order is not None:
            responses = [ready for response in responses for ready in order.respond(response)]
        for response in responses:
            try:
                _hand_over(response)
            except Exception as error:  # noqa: BLE001
                # The loop tells of it. Neither those behind it nor whoever is in the middle of something here are to suffer.
                self._call_soon(partial(_raise, error))


def _response(request: Request, result: Result, final: bool, memory: OutputMemory) -> Response:
    fault = result.fault
    error = None if fault is None else StatusError(Code(fault.code), fault.message)
    return Response(request, result.outputs, result.parameters, error, final, memory.view, memory.give_back)


def _give_back(result: Result | None, memory: OutputMemory) -> None:
    """Return the outputs that nobody gets."""
    if result is not None:
        own = memory.arena_number
        memory.give_back([tensor.place for tensor in result.outputs if type(tensor.place) is Lease and tensor.place.arena == own])


def _hand_over(response: Response) -> None:
    request = response.request
    try:
        if response.final and request.on_finish is not None:
            on_finish, request.on_finish = request.on_finish, None
            on_finish()
    finally:
        request.on_response(response)


def _raise(error: Exception) -> None:
    raise error

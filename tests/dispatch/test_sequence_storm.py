"""Sequences in the midst of everything else: what must hold whatever comes, against a second account of the sequences.

``SEQUENCE_STORM_STEPS=100000 pytest tests/dispatch/test_sequence_storm.py`` makes a longer one.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tensorfarm.server.dispatch.delay_hooks import DelayHooks
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.rate_limiter import Pool, RateLimiter
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.dispatch.scheduler import MAX_ATTEMPTS
from tensorfarm.workers.contract.messages import Done, Fault, RequestContext, Respond, Result
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

from .sequence_bench import END, MS, START, SequenceBench, controls
from .test_cancel_storm import reachable

STEPS = int(os.environ.get("SEQUENCE_STORM_STEPS", "2400"))
IDLE_NS = 1000 * MS
DIED = unavailable("the worker died")
OUTAGE = unavailable("the worker does not come back")
LOST = "was lost when its worker ended"
NO_START = "must specify the START flag"
LATE = "timeout of the corresponding sequence has been expired"


@dataclass(frozen=True)
class Case:
    """A model; where ``limited``, a rate limiter lets one of its instances run at a time."""

    direct: bool
    instances: int
    max_batch_size: int
    delay_us: int = 0
    iterative: bool = False
    hooks: DelayHooks = DelayHooks()
    candidates: int = 2
    limited: bool = False

    @property
    def batching(self) -> str:
        """Of its configuration."""
        delay = f"max_queue_delay_microseconds: {self.delay_us}"
        direct = f"direct {{ {delay} minimum_slot_utilization: 0.6 }}"
        preferred = f"preferred_batch_size: [ {self.max_batch_size} ]" if self.max_batch_size > 1 else ""
        oldest = f"oldest {{ max_candidate_sequences: {self.candidates} {preferred} {delay} }}"
        return f"{direct if self.direct else oldest} {'iterative_sequence: true' if self.iterative else ''}"


@dataclass(eq=False)
class Account:
    """A sequence as the storm knows it. ``place``: where it has been run; ``over``: it takes no more requests."""

    id: int | str
    last_ns: int
    waiting: list[Request] = field(default_factory=list)
    running: Request | None = None
    place: tuple[Instance, int] | None = None
    begun: bool = False
    over: bool = False


class Storm(SequenceBench):
    """A model with sequences, its world, and the account of both."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.limiter = RateLimiter() if case.limited else None
        self.dispatcher = Dispatcher(self.take, self.soon.append, self._set_alarm, lambda: self.now_ns, limiter=self.limiter)
        self.live: dict[int | str, Account] = {}
        self.of: dict[Request, Account] = {}
        self.open: dict[Request, None] = {}
        self.fallen: set[int | str] = set()
        self.rounds: set[Request] = set()
        self.streams: dict[PlannedBatch, set[int]] = {}
        self.finished: dict[Request, int] = {}
        self.heard: dict[Request, StatusError | None] = {}
        self.stopped = 0
        self.late: set[Account] = set()
        self.gone: list[Instance] = []
        self.idled = 0
        self.accepted = 0
        self.outage = False
        batching, hooks = case.batching, case.hooks
        self.scheduler_ = self.model(batching, case.max_batch_size, case.instances, dims="-1", hooks=hooks)
        self.scheduler_.limited = case.limited
        for instance in self.instances:
            self._register(instance)

    def _register(self, instance: Instance) -> None:
        if self.limiter is not None:
            self.limiter.register(instance, {Pool(0, "one"): 1})

    # what comes from the core

    def take(self, batch: PlannedBatch) -> None:
        """A batch is sent: it is what it may be."""
        self.sent.append(batch)
        instance = batch.instance
        assert instance.live and batch.bodies is not None and len(batch.bodies) == len(batch.requests)
        assert len(batch.requests) <= max(1, self.case.max_batch_size)
        assert batch.fillers == batch.answered
        shapes = {body.inputs[0].shape for body in batch.bodies}
        assert len(shapes) == 1, "rows of different shapes"
        places = []
        for index, (request, body) in enumerate(zip(batch.requests, batch.bodies, strict=True)):
            context = body.context
            assert context is not None
            told = controls(body)
            if index in batch.fillers:
                assert self.case.direct and request not in self.of
                assert (context.slot, context.flags, body.id) == (-1, 0, "") and told == {"START": 0, "END": 0, "READY": False, "CORRID": 0}
                self._check_filled(instance, index, shapes)
                continue
            account = self.of[request]
            places.append(context.slot)
            assert 0 <= context.slot < self.scheduler_.policy.slot_count
            assert not self.case.direct or context.slot == index, "a row is a place"
            assert account.running is None, "two requests of a sequence at once"
            assert account.waiting and account.waiting[0] is request, "out of order"
            if account.begun:
                assert account.place == (instance, context.slot), "a sequence that has begun was moved"
            account.place = (instance, context.slot)
            account.running = account.waiting.pop(0)
            flags = (request.body.context or RequestContext()).flags
            wanted = flags & ~START if request in self.rounds else flags
            assert context.flags == wanted and context.correlation_id == account.id
            assert told == {"START": wanted & START, "END": (wanted & END) // END, "READY": True, "CORRID": account.id}
            assert body.inputs[0] is request.body.inputs[0] and len(body.inputs) == 5
        assert places and places == sorted(set(places)) or not self.case.direct
        assert len(set(places)) == len(places), "two sequences in a place"
        if self.case.direct:
            slots = self.scheduler_._lanes[instance].slots
            pending = [slot.index for slot in slots if slot.sequence is not None and slot.sequence.ready]
            assert len(batch.requests) == 1 + max([*places, *pending]), "rows reach up to the last that has a request, of whatever shape"

    def _check_filled(self, instance: Instance, row: int, shapes: set[tuple[int, ...]]) -> None:
        """A filler stands for no request, or for one of another shape."""
        for account in set(self.of.values()):
            sequence = next((self.scheduler_._of[one] for one in account.waiting if one in self.scheduler_._of), None)
            slot = None if sequence is None else sequence.slot
            if slot is not None and slot.lane.instance is instance and slot.index == row and account.running is None:
                assert account.waiting[0].body.inputs[0].shape not in shapes, "a filler in the place of a request"

    def hear(self, response: Response) -> None:
        """A response."""
        request = response.request
        assert request in self.open, "a response to what has ended"
        assert response.final == self.finished[request], "what it holds is given back before its last response"
        if response.final:
            del self.open[request]
            self.heard[request] = response.error
            account = self.of[request]
            if request in account.waiting:
                assert response.error is not None
                account.waiting.remove(request)
                if response.error.message == LATE:
                    self.late.add(account)
        response.release()

    def finish_one(self, request: Request) -> None:
        """What a request holds is given back."""
        self.finished[request] += 1
        assert self.finished[request] == 1

    # what may happen

    def ask(
        self, correlation_id: int | str, flags: int = 0, name: str = "", width: int = 1, timeout_us: int = 0, batch_size: int = 1
    ) -> Request:
        """Queue a request, or see it refused."""
        request = self.sequence_request(correlation_id, flags, name, width, timeout_us)
        request.body = msgspec.structs.replace(request.body, batch_size=batch_size)
        self._submit(request)
        return request

    def _submit(self, request: Request) -> None:
        context = request.body.context
        assert context is not None
        request.on_response = self.hear
        request.on_finish = lambda: self.finish_one(request)
        self.finished[request] = 0
        self.open[request] = None
        expected = self._refusal(context.correlation_id, context.flags, request.body.batch_size)
        before = self.dispatcher.in_flight, self.scheduler_.statistics.pending_count
        try:
            self.dispatcher.submit(self.scheduler_, request)
        except StatusError as error:
            assert expected and expected in error.message, f"{error.message!r}, and it was to be {expected!r}"
            assert not self.finished[request] and before == (self.dispatcher.in_flight, self.scheduler_.statistics.pending_count)
            del self.open[request], self.finished[request]
            return
        assert not expected, f"taken, and it was to be refused: {expected}"
        self.accepted += 1
        context = request.body.context
        assert context is not None
        correlation_id = context.correlation_id
        account = self.live.get(correlation_id)
        if account is None:
            account = self.live[correlation_id] = Account(correlation_id, self.now_ns)
            self.fallen.discard(correlation_id)
        account.last_ns = self.now_ns
        account.waiting.append(request)
        self.of[request] = account
        if context.flags & END:
            self.end(account)
        self.look()

    def _refusal(self, correlation_id: int | str, flags: int, batch_size: int) -> str:
        if self.outage:
            return OUTAGE.message
        if batch_size > 1:
            return "must specify batch-size 1"
        if not correlation_id and not self.case.iterative:
            return "must specify a non-zero or non-empty correlation ID"
        if isinstance(correlation_id, str) and correlation_id:
            return "data-type is 'BYTES'"
        if correlation_id in self.live:
            return ""
        if correlation_id and not flags & START:
            return LOST if correlation_id in self.fallen else NO_START
        return "Server is stopping" if self.scheduler_.stopping or self.scheduler_.draining else ""

    def end(self, account: Account) -> None:
        account.over = True
        if self.live.get(account.id) is account:
            del self.live[account.id]

    def look(self) -> None:
        """The end of a turn."""
        if self.scheduler_.stopping:
            for account in list(self.live.values()):
                if not account.waiting and account.running is None:
                    self.end(account)
        self.turn()
        for account in self.late:
            assert not account.waiting, "one that has waited for too long takes its sequence with it"
            self.end(account)
        self.late.clear()

    def answer(self, pick: int, kinds: random.Random) -> None:
        """An instance has run its first batch."""
        firsts = [instance.batches[0] for instance in self.instances if instance.batches]
        if not firsts:
            return
        batch = firsts[pick % len(firsts)]
        self.sent.remove(batch)
        batch.instance.execution_ns = kinds.choice([1000, 5 * MS, 10**9])
        native = kinds.random() < 0.5 and batch.answered == batch.fillers
        results: list[Result | None] = []
        failed, again = [], []
        for index, request in enumerate(batch.requests):
            fault = Fault(Code.INTERNAL, "no") if kinds.random() < 0.15 else None
            result: Result | None = Result([], fault=fault)
            if not native and index not in batch.fillers:
                if index in batch.answered:
                    result = None
                elif fault is None and kinds.random() < 0.5:
                    result = None
                    if self.case.iterative and kinds.random() < 0.7:
                        again.append(index)
                elif fault is not None:
                    failed.append(index)
            results.append(result)
            if index not in batch.fillers:
                account = self.of[request]
                assert account.running is request
                account.running = None
                account.begun = True
                account.last_ns = self.now_ns
        left = {index for index, result in enumerate(results) if result is None and index not in batch.answered and index not in again}
        if left:
            self.streams[batch] = left
        for index in again:
            request = batch.requests[index]
            self.rounds.add(request)
            self.of[request].waiting.insert(0, request)
        asked = [batch.requests[index] for index in again]
        now = self.now_ns
        self.dispatcher.batch_done(Done(batch.number, results, now, now, now, now + 1000, None if native else failed, again), self)
        for request in batch.requests:
            account = self.of.get(request)
            if (
                account is not None
                and self.case.iterative
                and account.running is None
                and (not account.waiting or (request in asked and request.cancelled))
            ):
                self.end(account)
        self.look()
        for request in asked:
            if request.cancelled:
                assert self.answered_with(request) == "CANCELLED ", "nobody waits for it any more, and it was to come again"
                assert not self.of[request].waiting

    def respond(self, pick: int, final: bool) -> None:
        """A sender is given a response, in the run or after it."""
        opened = [(batch, index) for batch, left in self.streams.items() for index in sorted(left)]
        for instance in self.instances:
            if instance.batches:
                batch = instance.batches[0]
                opened += [(batch, index) for index in range(len(batch.requests)) if index not in batch.answered]
        if not opened:
            return
        batch, index = opened[pick % len(opened)]
        if final and batch in self.streams:
            self.streams[batch].discard(index)
            if not self.streams[batch]:
                del self.streams[batch]
        self.dispatcher.respond(Respond(batch.number, index, Result([]), final), self)
        self.look()

    def cancel(self, pick: int) -> None:
        """A client goes away: what waits behind its request goes with it, what waits before does not."""
        requests = [*self.open][-40:]
        if not requests:
            return
        request = requests[pick % len(requests)]
        account = self.of[request]
        self.dispatcher.cancel(self.scheduler_, request)
        if request in account.waiting or self.heard.get(request) is not None:
            position = account.waiting.index(request) if request in account.waiting else None
            assert position is None, "a waiting request was cancelled, and waits"
            behind = [one for one in account.waiting if one.order > request.order]
            before = [one for one in account.waiting if one.order < request.order]
            self.end(account)
            self.look()
            assert self.answered_with(request) == "CANCELLED "
            assert all(self.answered_with(one) == "CANCELLED " for one in behind)
            assert all(one in self.open for one in before), "what was asked before is not to suffer"
        else:
            self.look()

    def answered_with(self, request: Request) -> str:
        error = self.heard[request]
        return "" if error is None else f"{error.code.name} {error.message}"

    def wait(self, ms: int) -> None:
        """Time passes."""
        end_ns = self.now_ns + ms * MS
        while self.alarm_ns is not None and self.alarm_ns <= end_ns:
            assert self.alarm_ns > self.now_ns - 1, "the alarm was late"
            self.now_ns = max(self.now_ns, self.alarm_ns)
            self._fall_asleep()
            self.dispatcher.alarm()
            self.look()
        self.now_ns = end_ns
        self._fall_asleep()

    def _fall_asleep(self) -> None:
        for account in list(self.live.values()):
            if not account.waiting and account.running is None and account.last_ns + IDLE_NS <= self.now_ns:
                self.end(account)
                self.idled += 1

    def die(self, pick: int) -> None:
        """A worker ends: what it ran is lost, and the sequences of which it held state."""
        instances = [instance for instance in self.instances if instance.live]
        if not instances:
            return
        instance = instances[pick % len(instances)]
        there = {account for account in self.of.values() if (account.waiting or account.running) and self._host(account) is instance}
        there |= {account for account in self.live.values() if self._host(account) is instance}
        for position, batch in enumerate(instance.batches):
            self.sent.remove(batch)
            for index, request in enumerate(batch.requests):
                if index in batch.fillers:
                    continue
                account = self.of[request]
                account.running = None
                if index in batch.answered or position == 0 or request.attempts >= MAX_ATTEMPTS or request.cancelled:
                    account.begun = True
                else:
                    account.waiting.insert(0, request)
        streaming = {batch for batch in self.streams if batch.instance is instance}
        self.streams = {batch: left for batch, left in self.streams.items() if batch not in streaming}
        expected = {request for account in there if account.begun for request in account.waiting}
        for account in there:
            if account.begun:
                if self.live.get(account.id) is account:
                    self.fallen.add(account.id)
                self.end(account)
            else:
                account.place = None
        self.dispatcher.instance_down(self.scheduler_, instance, DIED)
        self.look()
        assert all(LOST in self.answered_with(request) for request in expected)
        if not any(instance.live for instance in self.instances) and pick % 3 == 0:
            self.scheduler_.suspend(OUTAGE)
            self.outage = True
            self.dispatcher.touch(self.scheduler_)
            self.look()
            assert not self.scheduler_._backlog
            for account in list(self.live.values()):
                self.end(account)

    def _host(self, account: Account) -> Instance | None:
        """The instance at which a sequence has its place."""
        for sequence in (*self.scheduler_._sequences.values(), *self.scheduler_._of.values()):
            requests = {*sequence.waiting, sequence.running}
            if sequence.slot is not None and (requests & {*account.waiting, account.running} - {None} or self._same(sequence, account)):
                return sequence.slot.lane.instance
        return None

    def _same(self, sequence: object, account: Account) -> bool:
        return self.live.get(account.id) is account and self.scheduler_._sequences.get(account.id) is sequence

    def revive(self) -> None:
        """The workers are back."""
        for instance in self.instances:
            if not instance.live:
                if self.outage:
                    self.outage = False
                    self.scheduler_.suspend(None)
                self.dispatcher.instance_up(self.scheduler_, instance)
        self.look()

    def leave(self, pick: int) -> None:
        """An instance goes when its sequences have ended; another comes."""
        instances = [instance for instance in self.instances if not instance.leaving]
        instance = instances[pick % len(instances)]
        if self.outage or self.scheduler_.stopping:
            return
        added = Instance(next(self._instance_numbers), "m")
        self.instances.append(added)
        self._register(added)
        self.dispatcher.instance_up(self.scheduler_, added)

        def free() -> None:
            self.gone.append(instance)
            self.instances.remove(instance)
            if self.limiter is not None:
                self.limiter.forget(instance)

        self.dispatcher.when_free(self.scheduler_, instance, free)
        self.look()

    def stop(self) -> None:
        """The version is unloaded."""
        self.scheduler_.stopping = True

        def idle() -> None:
            assert not self.scheduler_.outstanding
            self.stopped += 1

        self.dispatcher.when_idle(self.scheduler_, idle)
        self.look()

    def drain(self, draining: bool) -> None:
        """The server is about to end."""
        self.scheduler_.draining = draining
        self.dispatcher.touch(self.scheduler_)
        self.look()

    # what must hold

    def check(self) -> None:
        """Both accounts are the same, and everything is where it belongs."""
        scheduler, case = self.scheduler_, self.case
        open_count = len(self.open)
        waiting = {request for request in self.open if request in self.of[request].waiting}
        assert scheduler.in_flight == open_count == self.dispatcher.in_flight
        assert scheduler.statistics.pending_count == len(waiting), (scheduler.statistics.pending_count, len(waiting))
        assert set(scheduler.waiting()) == waiting and all(scheduler.holds(request) for request in waiting)
        assert set(scheduler._sequences) == set(self.live)
        for correlation_id, account in self.live.items():
            sequence = scheduler._sequences[correlation_id]
            assert list(sequence.waiting) == account.waiting and sequence.running is account.running
            assert sequence.begun == account.begun and not sequence.ended
        for request, sequence in scheduler._of.items():
            account = self.of[request]
            assert list(sequence.waiting) == account.waiting and sequence.running is account.running
            assert request in sequence.waiting or sequence.running is request
        assert not any(instance.batches for instance in self.gone)
        assert not any(account.place is not None and account.place[0] in self.gone for account in self.live.values() if account.begun)
        assert not self.stopped or not self.live and not self.open
        assert set(scheduler._lanes) <= set(self.instances) and not any(entry[-1].lane.instance.leaving for entry in scheduler._free)
        assert len(scheduler._free) == sum(
            slot.sequence is None for lane in scheduler._lanes.values() if not lane.instance.leaving for slot in lane.slots
        )
        hosts = {}
        for instance, lane in scheduler._lanes.items():
            taken = [slot.sequence for slot in lane.slots if slot.sequence is not None]
            assert all(slot.sequence is None or slot.sequence.slot is slot for slot in lane.slots)
            assert set(lane.ready) == {sequence for sequence in taken if sequence.ready}
            assert (lane in scheduler._busy) == bool(lane.ready)
            assert not scheduler._backlog or instance.leaving or len(taken) == len(lane.slots), "a sequence waits beside a free place"
            hosts |= dict.fromkeys(taken, instance)
            if instance in self.instances:
                self._check_busy(instance, [sequence.waiting[0] for sequence in taken if sequence.ready], lane.held)
        assert all(sequence.slot is None and sequence.waiting and not sequence.begun for sequence in scheduler._backlog)
        assert all(
            (sequence in hosts) != (sequence in scheduler._backlog)
            for sequence in (*scheduler._sequences.values(), *scheduler._of.values())
        )
        begun = [sequence.waiting[0].order for sequence in scheduler._backlog]
        assert begun == sorted(begun), "who came first is placed first"
        for sequence in scheduler._backlog:
            for request in sequence.waiting:
                assert not request.timeout_us or self.now_ns < request.queued_ns + request.timeout_us * 1000, "it has waited for too long"
        for instance in self.instances:
            assert len(instance.batches) <= (1 if case.direct or case.limited else 3)
        assert not case.limited or sum(len(instance.batches) for instance in self.instances) <= 1
        assert len(scheduler._idle_deadlines) <= max(64, 2 * len(hosts) + 64)

    def _check_busy(self, instance: Instance, ready: list[Request], held: bool) -> None:
        busy = self.instances if self.case.limited else (instance,)
        if not ready or held or not instance.live or any(one.batches for one in busy):
            return
        delay_ns = self.case.delay_us * 1000
        oldest_ns = min(self.scheduler_._of[request].ready_ns if not self.case.direct else request.queued_ns for request in ready)
        assert self.now_ns < oldest_ns + delay_ns, "an instance is idle beside requests that could run"
        assert self.alarm_ns is not None and self.alarm_ns <= oldest_ns + delay_ns

    def settle(self) -> None:
        """Answer everything, let all sequences fall asleep; nothing is left."""
        calm = random.Random(0)
        calm.random = lambda: 1.0  # type: ignore[method-assign]
        for _ in range(3000):
            self.revive()
            while any(instance.batches for instance in self.instances):
                self.answer(0, calm)
            while self.streams:
                self.respond(0, True)
            self.wait(200)
            if self.case.hooks.queued_count and self.open and not self.sent:
                self.cancel(0)  # what waits for others to come
            if not self.open:
                break
        assert not self.open, f"{len(self.open)} requests have had no last response"
        self.wait(2 * IDLE_NS // MS)
        self.check()
        scheduler = self.scheduler_
        assert len(self.heard) == self.accepted and all(count == 1 for request, count in self.finished.items() if request in self.heard)
        assert scheduler.idle and self.alarm_ns is None
        for rest in (scheduler._sequences, scheduler._of, scheduler._busy, scheduler._backlog, scheduler._resumed, scheduler._leaving):
            assert not rest
        assert all(slot.sequence is None for lane in scheduler._lanes.values() for slot in lane.slots)
        assert not len(scheduler._idle_deadlines) and not len(scheduler._backlog_deadlines)
        assert reachable(self.dispatcher, scheduler) == []
        statistics = scheduler.statistics
        assert sum(statistics.failures) == statistics.fail_count
        assert set(scheduler._fallen) == self.fallen


def blow(storm: Storm, seed: int, steps: int) -> None:
    """So many random things; at the end the version is unloaded."""
    pick = random.Random(seed)
    often = {"ask": 50, "answer": 22, "respond": 5, "wait": 4, "cancel": 2, "revive": 2, "die": 0.5, "leave": 0.2, "drain": 0.6}
    for number, thing in enumerate(pick.choices(list(often), list(often.values()), k=steps)):
        if thing == "ask" and len(storm.open) < 30:
            correlation_id = pick.choice([*range(8), *range(1, 7), *range(1, 7), 2**64 - 1, "text"])
            flags = pick.choice([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 3])
            batch_size = 2 if pick.random() < 0.02 and storm.case.max_batch_size else 1
            storm.ask(
                correlation_id, flags, width=pick.choice([1, 1, 1, 2]), timeout_us=pick.choice([0, 0, 0, 300_000]), batch_size=batch_size
            )
        elif thing == "answer":
            storm.answer(pick.randrange(100), pick)
        elif thing == "respond":
            storm.respond(pick.randrange(100), pick.random() < 0.6)
        elif thing == "wait":
            storm.wait(pick.choice([1, 30, 120, 600]))
        elif thing in ("cancel", "die", "leave"):
            getattr(storm, thing)(pick.randrange(100))
        elif thing == "revive":
            storm.revive()
        elif thing == "drain":
            storm.drain(not storm.scheduler_.draining and pick.random() < 0.3)
        if number == steps - 50:
            storm.stop()
        storm.check()


CASES = [
    Case(direct, *more)
    for direct in (True, False)
    for more in (
        (1, 1),
        (1, 0),
        (2, 3),
        (3, 2, 100_000),
        (2, 4, 50_000, True),
        (1, 2, 0, True),
        (2, 2, 0, False, DelayHooks(2, 1)),
    )
]


@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        Case(False, 2, 2, candidates=5),
        Case(False, 1, 4, 20_000, candidates=3),
        Case(True, 3, 2, limited=True),
        Case(False, 2, 2, 30_000, True, limited=True),
    ],
    ids=str,
)
def test_a_storm(case: Case) -> None:
    for seed in range(2):
        storm = Storm(case)
        blow(storm, seed, STEPS // 2)
        storm.settle()
        assert storm.stopped == 1


class Machine(RuleBasedStateMachine):
    """The same, for what shrinks to a few steps."""

    @initialize(
        direct=st.booleans(),
        instances=st.integers(1, 3),
        max_batch_size=st.integers(1, 4),
        delay_us=st.sampled_from([0, 0, 100_000]),
        iterative=st.booleans(),
        hooks=st.sampled_from([DelayHooks(), DelayHooks(), DelayHooks(2), DelayHooks(2, 1)]),
        candidates=st.integers(1, 3),
        limited=st.sampled_from([False, False, True]),
    )
    def begin(
        self,
        direct: bool,
        instances: int,
        max_batch_size: int,
        delay_us: int,
        iterative: bool,
        hooks: DelayHooks,
        candidates: int,
        limited: bool,
    ) -> None:
        self.storm = Storm(Case(direct, instances, max_batch_size, delay_us, iterative, hooks, candidates, limited))

    @rule(correlation_id=st.integers(0, 4), flags=st.integers(0, 3), width=st.sampled_from([1, 1, 2]), hasty=st.booleans())
    def ask(self, correlation_id: int, flags: int, width: int, hasty: bool) -> None:
        self.storm.ask(correlation_id, flags, width=width, timeout_us=300_000 * hasty)

    @rule(correlation_id=st.integers(1, 4))
    def begin_sequence(self, correlation_id: int) -> None:
        self.storm.ask(correlation_id, START)

    @rule(pick=st.integers(0, 3), kinds=st.randoms(use_true_random=False))
    def answer(self, pick: int, kinds: random.Random) -> None:
        self.storm.answer(pick, kinds)

    @rule(pick=st.integers(0, 9), final=st.booleans())
    def respond(self, pick: int, final: bool) -> None:
        self.storm.respond(pick, final)

    @rule(pick=st.integers(0, 9))
    def cancel(self, pick: int) -> None:
        self.storm.cancel(pick)

    @rule(ms=st.sampled_from([1, 120, 400, 1000]))
    def wait(self, ms: int) -> None:
        self.storm.wait(ms)

    @rule(pick=st.integers(0, 5))
    def die(self, pick: int) -> None:
        self.storm.die(pick)

    @rule()
    def revive(self) -> None:
        self.storm.revive()

    @rule(pick=st.integers(0, 2))
    def leave(self, pick: int) -> None:
        self.storm.leave(pick)

    @rule(draining=st.booleans())
    def drain(self, draining: bool) -> None:
        self.storm.drain(draining)

    @rule(chance=st.integers(0, 5))
    def stop(self, chance: int) -> None:
        if not chance and not self.storm.scheduler_.stopping:
            self.storm.stop()

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "storm"):
            self.storm.check()

    def teardown(self) -> None:
        if hasattr(self, "storm"):
            self.storm.settle()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase


# what was found on the way


OLDEST = "oldest { max_candidate_sequences: 4 }"


@pytest.mark.parametrize("strategy", ["direct { }", OLDEST])
def test_places_of_instances_that_have_gone_are_forgotten(strategy: str) -> None:
    bench = SequenceBench()
    scheduler = bench.model(strategy, instances=2)
    gone: list[Instance] = []
    for _ in range(50):
        instance = scheduler.instances[0]
        bench.dispatcher.instance_up(scheduler, Instance(next(bench._instance_numbers), "m"))
        bench.dispatcher.when_free(scheduler, instance, lambda instance=instance: gone.append(instance))  # type: ignore[misc]
        bench.turn()
    assert len(gone) == 50
    assert len(scheduler._lanes) <= 3, "each instance that has left keeps its places"
    assert len(scheduler._free) <= 12


@pytest.mark.parametrize("strategy", ["direct { }", OLDEST])
def test_places_of_workers_that_have_died_are_forgotten(strategy: str) -> None:
    bench = SequenceBench()
    scheduler = bench.model(strategy)
    for _ in range(50):
        bench.dispatcher.instance_down(scheduler, bench.instances[0], DIED)
        bench.dispatcher.instance_up(scheduler, bench.instances[0])
        bench.turn()
    assert len(scheduler._free) <= 8


def test_an_instance_that_leaves_gets_no_sequences_when_its_worker_is_back() -> None:
    bench = SequenceBench()
    scheduler = bench.model(max_batch_size=1, instances=2)
    bench.ask(1, START)
    leaving, other = bench.instances
    assert [batch.instance for batch in bench.sent] == [leaving]
    bench.run()
    gone: list[bool] = []
    bench.dispatcher.when_free(scheduler, leaving, lambda: gone.append(True))
    bench.turn()
    assert not gone
    bench.dispatcher.instance_down(scheduler, leaving, DIED)
    bench.dispatcher.instance_up(scheduler, leaving)
    bench.turn()
    assert gone, "its sequence has ended with its worker"
    bench.ask(2, START)
    assert [batch.instance for batch in bench.sent] == [other]
    bench.ask(3, START)
    assert len(bench.sent) == 1
    assert list(scheduler._lanes) == [other]


def test_what_has_had_its_last_response_does_not_come_again() -> None:
    """A call that was broken off because it waited in a circle, say: its worker does not know."""
    bench = SequenceBench()
    scheduler = bench.model("iterative_sequence: true", max_batch_size=1)
    bench.ask(0)
    bench.ask(0)
    (batch,) = bench.sent
    bench.dispatcher.respond(Respond(batch.number, 0, Result([]), True), bench)
    bench.finish_again(batch, [0])
    assert len(bench.responses) == 1 == scheduler.in_flight
    bench.run()
    assert bench.errors() == ["", ""]
    assert scheduler.in_flight == 0 == scheduler.statistics.pending_count


def test_sequences_of_several_dead_workers_wait_in_the_order_in_which_they_came() -> None:
    bench = SequenceBench()
    scheduler = bench.model(OLDEST.replace("4", "1"), max_batch_size=1, instances=3, hooks=DelayHooks(2))
    for number in (1, 2, 3):
        bench.ask(number, START, str(number))
    bench.ask(4, START, "4")
    for instance in bench.instances:
        bench.dispatcher.instance_down(scheduler, instance, DIED)
        bench.turn()
    assert [sequence.correlation_id for sequence in scheduler._backlog] == [1, 2, 3, 4]


def test_a_time_limit_counts_again_where_a_sequence_is_back_in_the_backlog() -> None:
    bench = SequenceBench()
    scheduler = bench.model("direct { max_queue_delay_microseconds: 1000000 minimum_slot_utilization: 1 }")
    bench.ask(1, START, timeout_us=300_000)
    bench.dispatcher.instance_down(scheduler, bench.instances[0], DIED)
    bench.turn()
    assert not bench.responses
    bench.advance(300 * MS)
    assert bench.errors() == [f"UNAVAILABLE {LATE}"]


def test_hooks_hold_the_first_batch_of_a_load_and_not_of_each_worker() -> None:
    bench = SequenceBench()
    scheduler = bench.model(max_batch_size=1, hooks=DelayHooks(2))
    bench.ask(1, START, "a")
    bench.ask(1, END, "b")
    bench.run()
    bench.dispatcher.instance_down(scheduler, bench.instances[0], DIED)
    bench.dispatcher.instance_up(scheduler, bench.instances[0])
    bench.turn()
    bench.ask(2, START, "c")
    assert bench.run() == [["c"]]


def test_cancelling_behind_a_request_does_not_cost_it_its_turn() -> None:
    bench = SequenceBench()
    scheduler = bench.model(OLDEST, max_batch_size=1)
    bench.instances[0].execution_ns = 10**9
    bench.ask(9, START | END, "first")
    bench.ask(1, START, "a1")
    given_up = bench.ask(1, 0, "a2")
    bench.ask(2, START, "b1")
    bench.dispatcher.cancel(scheduler, given_up)
    assert bench.run() == [["first"], ["a1"], ["b1"]]


def test_a_round_waits_from_the_end_of_the_round_before() -> None:
    """What the rounds before it took is no time in the queue."""
    bench = SequenceBench()
    scheduler = bench.model("iterative_sequence: true", max_batch_size=1)
    bench.ask(0)
    for again in ([0], [0], []):
        start_ns = bench.now_ns
        bench.advance(100 * MS)
        (batch,) = bench.sent
        bench.sent.remove(batch)
        times = (start_ns, start_ns, bench.now_ns, bench.now_ns)
        results: list[Result | None] = [None if again else Result([])]
        bench.dispatcher.batch_done(Done(batch.number, results, *times, [], again), bench)
        bench.turn()
    assert scheduler.statistics.queue_ns == 0

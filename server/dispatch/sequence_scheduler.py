"""Sequence batching: requests that belong together go to one instance, one after the other.

Source: Triton's sequence batcher (``ModelSequenceBatching``). A sequence gets a place at an instance with its first request and keeps
it until its last one has run, or nothing has been heard of it for too long; where no place is free it waits in the backlog. The two
strategies, ``sequence_strategies``, say which sequences of an instance run next.
"""

from __future__ import annotations

import heapq
import itertools
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import msgspec

from ...workers.contract.messages import RequestBody, RequestContext
from ...workers.contract.status import Code, StatusError, invalid, unavailable
from ..statistics import FailureReason, VersionStatistics
from .batching import Cut
from .deadlines import Deadlines
from .delay_hooks import NO_HOOKS, DelayHooks
from .instance import Instance, PlannedBatch
from .request import Request
from .scheduler import Decision, Refused, Scheduler, stopping_error
from .sequence import Lane, Sequence, Slot
from .sequence_controls import END, START, Controls

FALLEN_COUNT = 4096
"""How many sequences that died with their worker are remembered, so that their clients hear why."""

_NO_CONTEXT = RequestContext()


@dataclass(frozen=True, slots=True)
class SequencePolicy:
    """What both strategies know: ``slot_count`` places at each instance, ``idle_ns`` after which a sequence that is silent ends.

    ``iterative``: each request is a sequence of its own, which the model asks for again and again until it has finished.
    """

    model: str
    slot_count: int
    idle_ns: int
    controls: Controls
    iterative: bool = False


class SequenceScheduler(Scheduler):
    """Sequences, their places and the backlog; ``_form`` is the strategy's.

    ``warn`` takes a line for the log.
    """

    def __init__(
        self,
        policy: SequencePolicy,
        numbers: Iterator[int],
        statistics: VersionStatistics,
        warn: Callable[[str], None],
        hooks: DelayHooks = NO_HOOKS,
    ) -> None:
        super().__init__(numbers, statistics)
        self.policy = policy
        self._warn = warn
        self._sequences: dict[int | str, Sequence] = {}
        self._of: dict[Request, Sequence] = {}
        self._lanes: dict[Instance, Lane] = {}
        self._busy: dict[Lane, None] = {}
        self._free: list[tuple[int, int, int, Slot]] = []
        self._backlog: dict[Sequence, None] = {}
        self._idle_deadlines: Deadlines[Sequence] = Deadlines(lambda at_ns, sequence: not sequence.ended)
        self._backlog_deadlines: Deadlines[Request] = Deadlines(lambda at_ns, request: self._of.get(request) in self._backlog)
        self._orders = itertools.count(1)
        self._own_ids = itertools.count(1)
        self._resumed: set[Request] = set()
        self._leaving: list[Refused] = []
        self._fallen: dict[int | str, None] = {}
        self._hooks = hooks
        self._begun: set[Instance] = set()

    # requests

    def _take_in(self, request: Request, now_ns: int) -> None:
        context = request.body.context or _NO_CONTEXT
        correlation_id, flags = context.correlation_id, context.flags
        model = self.policy.model
        if request.body.batch_size > 1:
            raise invalid(f"inference request to model '{model}' must specify batch-size 1 due to requirements of sequence batcher")
        nameless = not correlation_id
        if nameless:
            if not self.policy.iterative:
                raise invalid(f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID")
            correlation_id = self._own_id()
            flags = START
        control = self.policy.controls.correlation
        mismatch = None if control is None else control.mismatch(correlation_id, model)
        if mismatch is not None:
            raise mismatch
        sequence = self._sequences.get(correlation_id)
        if sequence is None:
            if not flags & START:
                raise self._unknown(correlation_id)
            if self.stopping or self.draining:
                raise stopping_error()
            sequence = self._begin(correlation_id, now_ns)
        elif flags & START:
            self._warn(
                f"sequence {correlation_id} of model '{model}' was begun again before its end had come; its state is as at a beginning"
            )
        if nameless:
            context = msgspec.structs.replace(context, correlation_id=correlation_id, flags=flags)
            request.body = msgspec.structs.replace(request.body, context=context)
        self._add(sequence, request, now_ns)
        if flags & END:
            # From here on the id is free for a new sequence, even before this one has run.
            self._close(sequence)

    def _own_id(self) -> int | str:
        """An id for a request that is a sequence of its own, of the kind that the model is told."""
        control = self.policy.controls.correlation
        kind = str if control is not None and control.datatype == "BYTES" else int
        return next(name for number in self._own_ids if (name := kind(number)) not in self._sequences)

    def _unknown(self, correlation_id: int | str) -> StatusError:
        if correlation_id in self._fallen:
            lost = self._state_lost(correlation_id)
            return StatusError(lost.code, f"{lost.message} with the START flag")
        return invalid(
            f"inference request for sequence {correlation_id} to model '{self.policy.model}' must specify the START flag on "
            "the first request of the sequence"
        )

    def _state_lost(self, correlation_id: int | str) -> StatusError:
        """What everything of a sequence is told whose worker has ended."""
        return unavailable(
            f"the state of sequence {correlation_id} of model '{self.policy.model}' was lost when its worker ended; "
            "begin the sequence again"
        )

    def _begin(self, correlation_id: int | str, now_ns: int) -> Sequence:
        sequence = self._sequences[correlation_id] = Sequence(correlation_id, now_ns)
        self._fallen.pop(correlation_id, None)
        self._backlog[sequence] = None
        self._assign()
        self._idle_deadlines.add(now_ns + self.policy.idle_ns, sequence)
        return sequence

    def _add(self, sequence: Sequence, request: Request, now_ns: int) -> None:
        request.order = next(self._orders)
        request.queued_ns = sequence.touched_ns = now_ns
        sequence.waiting.append(request)
        self._of[request] = sequence
        if len(sequence.waiting) == 1:
            sequence.ready_ns = now_ns
        self._offer(sequence)
        if sequence.slot is None:
            self._limit(request)

    def _limit(self, request: Request) -> None:
        """A request's time limit counts while its sequence is in the backlog."""
        if request.timeout_us:
            request.deadline_ns = request.queued_ns + request.timeout_us * 1000
            self._backlog_deadlines.add(request.deadline_ns, request)

    def _offer(self, sequence: Sequence) -> None:
        """Have a sequence that could go on stand among those that could."""
        if sequence.slot is not None and sequence.ready:
            lane = sequence.slot.lane
            lane.ready.setdefault(sequence)
            self._busy[lane] = None

    def _withdraw(self, sequence: Sequence) -> None:
        """Take a sequence that cannot go on from among those that could."""
        if sequence.slot is not None:
            lane = sequence.slot.lane
            lane.ready.pop(sequence, None)
            if not lane.ready:
                self._busy.pop(lane, None)

    def holds(self, request: Request) -> bool:
        """As ``Scheduler`` says."""
        sequence = self._of.get(request)
        return sequence is not None and sequence.running is not request

    def waiting(self) -> Iterable[Request]:
        """As ``Scheduler`` says."""
        return [request for request, sequence in self._of.items() if sequence.running is not request]

    def hosts(self, request: Request) -> Collection[Instance]:
        """As ``Scheduler`` says."""
        slot = self._of[request].slot
        return self.instances if slot is None else (slot.lane.instance,)

    def cancel(self, request: Request) -> bool:
        """As ``Scheduler`` says. What waits behind it in its sequence leaves as well, and the sequence ends with what is before it."""
        if not self.holds(request):
            return False
        sequence = self._of[request]
        while (last := sequence.waiting.pop()) is not request:
            self._leaving.append((last, StatusError(Code.CANCELLED, ""), FailureReason.CANCELED))
            self._drop(last)
        self._drop(request)
        self._finish(sequence)
        return True

    def refuse_waiting(self) -> list[Request]:
        """As ``Scheduler`` says."""
        refused = [request for request, _, _ in self._leaving]
        self._leaving = []
        for sequence in [*self._backlog, *[slot.sequence for lane in self._lanes.values() for slot in lane.slots]]:
            if sequence is None:
                continue
            refused += sequence.waiting
            self._forget(sequence)
            self._finish(sequence)
        return refused

    def _refuse_rest(self, sequence: Sequence, error: StatusError, reason: FailureReason) -> None:
        """Let everything of a sequence that waits leave; whoever carries out the next decision tells it so."""
        for request in sequence.waiting:
            self._leaving.append((request, error, reason))
        self._forget(sequence)

    def _forget(self, sequence: Sequence) -> None:
        for request in sequence.waiting:
            self._drop(request)
        sequence.waiting.clear()
        self._withdraw(sequence)

    def _drop(self, request: Request) -> None:
        del self._of[request]
        self._resumed.discard(request)

    # places

    def _assign(self) -> None:
        """Give free places to the sequences of the backlog: the lowest place first, of all instances."""
        free = self._free
        while self._backlog and free:
            *_, slot = heapq.heappop(free)
            sequence = next(iter(self._backlog))
            del self._backlog[sequence]
            slot.sequence = sequence
            sequence.slot = slot
            self._offer(sequence)

    def _close(self, sequence: Sequence) -> None:
        """No request of a sequence follows; it keeps its place while one runs."""
        sequence.ended = True
        if self._sequences.get(sequence.correlation_id) is sequence:
            del self._sequences[sequence.correlation_id]

    def _finish(self, sequence: Sequence) -> None:
        """End a sequence once what is left of it has run."""
        if sequence.running is None and not sequence.waiting:
            self._end(sequence)
        else:
            self._close(sequence)

    def _end(self, sequence: Sequence) -> None:
        """A sequence is over: its place is free for the next."""
        self._close(sequence)
        self._backlog.pop(sequence, None)
        self._withdraw(sequence)
        slot, sequence.slot = sequence.slot, None
        if slot is not None:
            slot.sequence = None
            if slot.lane.instance.leaving:
                self._retire(slot.lane)
            else:
                self._release(slot)
        self._assign()

    def _release(self, slot: Slot) -> None:
        heapq.heappush(self._free, (slot.index, slot.lane.instance.number, next(self._orders), slot))

    def instance_up(self, instance: Instance) -> None:
        """As ``Scheduler`` says."""
        super().instance_up(instance)
        if instance not in self._lanes and not instance.leaving:
            lane = self._lanes[instance] = Lane(instance, held=self._hooks.queued_count > 0 and instance not in self._begun)
            lane.slots = [Slot(lane, index) for index in range(self.policy.slot_count)]
            for slot in lane.slots:
                self._release(slot)
            self._assign()

    def instance_leaves(self, instance: Instance) -> None:
        """As ``Scheduler`` says."""
        super().instance_leaves(instance)
        self._begun.discard(instance)
        lane = self._lanes.get(instance)
        if lane is not None:
            self._withdraw_places(lane)
            self._retire(lane)

    def _withdraw_places(self, lane: Lane) -> None:
        """Give none of an instance's places to anybody any more."""
        self._free = [entry for entry in self._free if entry[-1].lane is not lane]
        heapq.heapify(self._free)

    def _retire(self, lane: Lane) -> None:
        """Forget an instance that leaves once it has no sequences."""
        if lane.empty:
            self._lanes.pop(lane.instance, None)

    def free(self, instance: Instance) -> bool:
        """As ``Scheduler`` says. An instance that has sequences is not free of them before they end."""
        lane = self._lanes.get(instance)
        return super().free(instance) and (lane is None or lane.empty)

    def instance_down(self, instance: Instance) -> list[Request]:
        """As ``Scheduler`` says. Sequences of which it held state are over; the others get a place elsewhere."""
        answered = [batch.requests[index] for batch in instance.batches for index in batch.answered - batch.fillers]
        lost = super().instance_down(instance)
        for request in (*lost, *answered):
            held = self._of[request]
            self._drop(request)
            held.running = None
            held.begun = True
        lane = self._lanes.pop(instance, None)
        if lane is None:
            return lost
        self._busy.pop(lane, None)
        self._withdraw_places(lane)
        moved: list[Sequence] = []
        for slot in lane.slots:
            sequence_there = slot.sequence
            if sequence_there is None:
                continue
            sequence_there.slot = None
            if sequence_there.begun or not sequence_there.waiting:
                self._fall(sequence_there)
            else:
                moved.append(sequence_there)
        for sequence in moved:
            for request in sequence.waiting:
                self._limit(request)
        # None of them has begun: who came first is placed first.
        self._backlog = dict.fromkeys(sorted([*moved, *self._backlog], key=lambda sequence: sequence.waiting[0].order))
        self._assign()
        return lost

    def _fall(self, sequence: Sequence) -> None:
        """A sequence's state is lost: everything of it fails, and whoever goes on with it hears why."""
        if not sequence.ended:
            self._fallen[sequence.correlation_id] = None
            if len(self._fallen) > FALLEN_COUNT:
                del self._fallen[next(iter(self._fallen))]
        self._refuse_rest(sequence, self._state_lost(sequence.correlation_id), FailureReason.BACKEND)
        self._close(sequence)

    def _put_back(self, requests: list[Request]) -> None:
        for request in reversed(requests):
            sequence = self._of[request]
            sequence.running = None
            sequence.waiting.appendleft(request)

    # decisions

    def decide(self, now_ns: int) -> Decision:
        """As ``Scheduler`` says."""
        if self._suspended is not None:
            # Without an instance no sequence can go on.
            for sequence in [*self._backlog]:
                self._refuse_rest(sequence, self._suspended, FailureReason.REJECTED)
                self._end(sequence)
        if self.stopping:
            # Nobody can go on with a sequence any more, and others may wait for its place.
            for sequence in [sequence for sequence in self._sequences.values() if not sequence.waiting and sequence.running is None]:
                self._end(sequence)
        self._expire_idle(now_ns)
        self._expire_backlog(now_ns)
        decision = Decision(refused=self._leaving)
        self._leaving = []
        wake_ns = None
        for lane in list(self._busy):
            if not self._held(lane):
                while lane.ready and lane.instance.credits(self.staging and not self.limited) > 0:
                    formed = self._form(lane, now_ns)
                    if isinstance(formed, int):
                        wake_ns = formed if wake_ns is None else min(wake_ns, formed)
                        break
                    if self.limited:
                        break
                    decision.batches.append(self._bound(lane, formed))
        for at_ns in (self._idle_deadlines.next_ns(), self._backlog_deadlines.next_ns()):
            if at_ns is not None and (wake_ns is None or at_ns < wake_ns):
                wake_ns = at_ns
        decision.wake_ns = wake_ns
        return decision

    def candidates(self, now_ns: int) -> list[Instance]:
        """As ``Scheduler`` says."""
        lanes = [lane for lane in self._busy if not lane.instance.batches and not self._held(lane)]
        return [lane.instance for lane in lanes if not isinstance(self._form(lane, now_ns), int)]

    def bind(self, instance: Instance, now_ns: int) -> PlannedBatch:
        """As ``Scheduler`` says."""
        lane = self._lanes[instance]
        formed = self._form(lane, now_ns)
        assert not isinstance(formed, int)
        return self._bound(lane, formed)

    @abstractmethod
    def _form(self, lane: Lane, now_ns: int) -> tuple[list[Slot], Cut] | int:
        """The places whose sequences make the next batch of an instance that has some ready, or when to ask again."""

    def _bound(self, lane: Lane, formed: tuple[list[Slot], Cut]) -> PlannedBatch:
        slots, cut = formed
        self.statistics.cuts[cut] += 1
        requests = []
        bodies = []
        for slot in slots:
            sequence = slot.sequence
            assert sequence is not None
            request = sequence.running = sequence.waiting.popleft()
            self._withdraw(sequence)
            requests.append(request)
            bodies.append(self._body(request, slot.index))
        batch = self._planned(lane.instance, requests)
        batch.bodies = bodies
        return batch

    def _body(self, request: Request, slot: int) -> RequestBody:
        """What the instance gets of a request: its tensors and the controls."""
        body = request.body
        context = body.context or _NO_CONTEXT
        flags = context.flags & ~START if request in self._resumed else context.flags
        controls = self.policy.controls.tensors(flags, True, context.correlation_id)
        context = msgspec.structs.replace(context, flags=flags, slot=slot)
        return RequestBody(body.id, body.batch_size, [*body.inputs, *controls], body.outputs, body.parameters, context)

    def done(self, batch: PlannedBatch, execution_ns: int, now_ns: int, again: Collection[int] = ()) -> Collection[int]:
        """As ``Scheduler`` says."""
        super().done(batch, execution_ns, now_ns)
        rounds = []
        for index, request in enumerate(batch.requests):
            if index in batch.fillers:
                continue
            sequence = self._of.pop(request)
            sequence.running = None
            sequence.begun = True
            sequence.touched_ns = now_ns
            sequence.ready_ns = now_ns
            if index in again and index not in batch.answered and self.policy.iterative:
                rounds.append(index)
                self._of[request] = sequence
                self._resumed.add(request)
                sequence.waiting.appendleft(request)
                if request.cancelled:
                    self._refuse_rest(sequence, StatusError(Code.CANCELLED, ""), FailureReason.CANCELED)
                    self._end(sequence)
                else:
                    self._offer(sequence)
                continue
            self._resumed.discard(request)
            if (self.policy.iterative or sequence.ended) and not sequence.waiting:
                self._end(sequence)
            else:
                self._offer(sequence)
        return rounds

    def _expire_idle(self, now_ns: int) -> None:
        """End the sequences of which nothing has been heard for too long."""
        idle_ns = self.policy.idle_ns
        for sequence in self._idle_deadlines.due(now_ns):
            if sequence.waiting or sequence.running is not None:
                self._idle_deadlines.add(now_ns + idle_ns, sequence)
            elif sequence.touched_ns + idle_ns > now_ns:
                self._idle_deadlines.add(sequence.touched_ns + idle_ns, sequence)
            else:
                self._end(sequence)

    def _expire_backlog(self, now_ns: int) -> None:
        """Refuse the sequences of the backlog of which a request has waited for longer than it may."""
        for request in self._backlog_deadlines.due(now_ns):
            sequence = self._of.get(request)
            if sequence is not None and sequence in self._backlog:
                error = unavailable("timeout of the corresponding sequence has been expired")
                self._refuse_rest(sequence, error, FailureReason.REJECTED)
                self._end(sequence)

    def _held(self, lane: Lane) -> bool:
        """Is it too early for an instance's first batch?"""
        if lane.held and (self.stopping or self._enough(lane)):
            lane.held = False
            self._begun.add(lane.instance)
        return lane.held

    @abstractmethod
    def _enough(self, lane: Lane) -> bool:
        """Do so many requests wait as the hooks ask for?"""

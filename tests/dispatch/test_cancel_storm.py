"""Cancellations in the midst of everything else, over the dispatcher with all kinds of schedulers: each request ends once, and nothing stays.

``CANCEL_STORM_STEPS=100000 pytest tests/dispatch/test_cancel_storm.py`` makes a longer one.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
from collections import deque
from collections.abc import Callable

import pytest
from google.protobuf import text_format

from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.request import EndMark, Request, Response
from tensorfarm.server.dispatch.scheduler import Scheduler
from tensorfarm.server.dispatch.schedulers import scheduler_of
from tensorfarm.server.statistics import FailureReason, VersionStatistics
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.configuration import ModelConfig
from tensorfarm.workers.contract.messages import Done, Fault, RequestBody, RequestContext, Respond, Result, Tensor
from tensorfarm.workers.contract.signature import signature_of
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

STEPS = int(os.environ.get("CANCEL_STORM_STEPS", "8000"))
CROWD = 60
"""Requests in flight beyond which no more are sent."""

SEQUENCES = "max_sequence_idle_microseconds: 3000"
MODELS = {
    "plain": "",
    "batched": "max_batch_size: 4 dynamic_batching { preferred_batch_size: 2 max_queue_delay_microseconds: 500 }",
    "ordered": "max_batch_size: 4 dynamic_batching { preserve_ordering: true }",
    "impatient": "max_batch_size: 3 dynamic_batching { priority_levels: 2 default_priority_level: 1 default_queue_policy {"
    " max_queue_size: 9 default_timeout_microseconds: 800 allow_timeout_override: true } }",
    "postponing": "max_batch_size: 2 dynamic_batching { default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 600 } }",
    "direct": f"max_batch_size: 3 sequence_batching {{ {SEQUENCES} direct {{ }} }}",
    "oldest": f"max_batch_size: 3 sequence_batching {{ {SEQUENCES} oldest {{ max_candidate_sequences: 2 }} }}",
    "iterative": f"max_batch_size: 2 sequence_batching {{ {SEQUENCES} iterative_sequence: true }}",
}
DIED = unavailable("the worker died")
OUTAGE = unavailable("the worker does not come back")


class Boom(Exception):
    """A receiver that fails."""


class Watched:
    """A request, and what has been heard of it."""

    def __init__(self, storm: Storm, scheduler: Scheduler, request: Request) -> None:
        self.storm = storm
        self.scheduler = scheduler
        self.request = request
        self.finishes = 0
        self.final = False
        self.held: list[Response] = []
        request.on_finish = self.on_finish
        request.on_response = self.on_response

    def on_finish(self) -> None:
        assert not self.final and not self.finishes
        self.finishes += 1

    def on_response(self, response: Response) -> None:
        assert not self.final, "a response after the last one"
        assert self.finishes == response.final, "what a request holds is given back before its last response, and not earlier"
        assert response.request is self.request
        self.held.append(response)
        if response.final:
            self.final = True
            self.storm.ended(self)
        self.storm.heard(self)


class Model:
    """A model that is loaded again whenever it has been unloaded."""

    def __init__(self, storm: Storm, name: str, number: int) -> None:
        self.storm = storm
        self.name = name
        self.number = number
        self.loads = 0
        self.config = text_format.Parse(
            f'name: "{name}" {MODELS[name]} input {{ name: "X" data_type: TYPE_INT8 dims: -1 }} '
            'output { name: "OUT" data_type: TYPE_INT8 dims: -1 }',
            ModelConfig(),
        )
        self.scheduler: Scheduler
        self.instances: list[Instance] = []
        self.load()

    @property
    def has_sequences(self) -> bool:
        return "sequence_batching" in MODELS[self.name]

    def load(self) -> None:
        self.loads += 1
        self.scheduler = scheduler_of(self.config, signature_of(self.config), self.storm.numbers, VersionStatistics(), lambda line: None)
        self.instances = []
        for _ in range(2):
            self.add_instance()

    def add_instance(self) -> None:
        instance = Instance(next(self.storm.numbers), self.name)
        self.instances.append(instance)
        self.storm.batches[instance] = deque()
        self.storm.dispatcher.instance_up(self.scheduler, instance)

    def unload(self) -> None:
        if self.scheduler.stopping:
            return
        scheduler = self.scheduler
        scheduler.stopping = True

        def idle() -> None:
            assert scheduler is self.scheduler and scheduler.idle and not scheduler.in_flight
            assert not any(self.storm.batches.pop(instance) for instance in self.instances)
            self.storm.unloaded.append(scheduler)
            self.load()

        self.storm.dispatcher.when_idle(scheduler, idle)

    def shrink(self, instance: Instance) -> None:
        """Let an instance go, and have another in its place."""

        def free() -> None:
            assert not instance.batches and not self.storm.batches.pop(instance)
            self.instances.remove(instance)

        if not instance.leaving and not self.scheduler.stopping:
            self.add_instance()
            self.storm.dispatcher.when_free(self.scheduler, instance, free)


class Storm:
    """A dispatcher, its world, and one random thing after the other. ``batches`` are what each instance has, ``streams`` what went on."""

    arena_number = 3

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_ns = 10**9
        self.alarm_ns: int | None = None
        self.soon: list[Callable[[], None]] = []
        self.numbers = itertools.count(1)
        self.batches: dict[Instance, deque[PlannedBatch]] = {}
        self.streams: dict[PlannedBatch, set[int]] = {}
        self.gone: deque[tuple[int, int]] = deque(maxlen=50)
        self.lent: set[int] = set()
        self.open: dict[Request, Watched] = {}
        self.recent: deque[Watched] = deque(maxlen=100)
        self.unreleased: list[Response] = []
        self.unloaded: list[Scheduler] = []
        self.counts: dict[str, int] = {}
        self.recalled = 0
        self.nested = False
        self.calm = False
        self.dispatcher = Dispatcher(self.take, self.soon.append, self.set_alarm, lambda: self.now_ns, recall=self.recall)
        self.models = [Model(self, name, number) for number, name in enumerate(MODELS)]

    # the dispatcher's world

    def take(self, batch: PlannedBatch) -> None:
        assert batch.instance.live and batch.requests
        assert batch.bodies is None or len(batch.bodies) == len(batch.requests)
        self.batches[batch.instance].append(batch)

    def set_alarm(self, at_ns: int | None) -> None:
        self.alarm_ns = at_ns

    def recall(self, batch: PlannedBatch, index: int) -> None:
        assert batch in self.batches[batch.instance] or index in self.streams[batch], "its worker does not know it"
        self.recalled += 1

    def view(self, lease: Lease) -> memoryview:
        raise AssertionError("nobody reads outputs here")

    def give_back(self, leases: list[Lease]) -> None:
        for lease in leases:
            self.lent.remove(lease.offset)

    # what happens when something is heard

    def ended(self, watched: Watched) -> None:
        del self.open[watched.request]
        error = watched.held[-1].error
        kind = "end" if type(watched.held[-1]) is EndMark else "answer" if error is None else f"error {error.code.name}"
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def heard(self, watched: Watched) -> None:
        """A door does more in that moment: it releases, begins the next request, cancels, or fails."""
        self.unreleased += watched.held
        watched.held = []
        chance = self.random.random()
        if self.calm or self.nested or chance > 0.2:
            return
        self.nested = True
        if chance < 0.1:
            self.submit()
        elif chance < 0.15:
            self.cancel()
        elif chance < 0.19:
            self.release()
        self.nested = False
        if chance > 0.19:
            raise Boom

    # what may happen

    def submit(self) -> None:
        if len(self.open) > CROWD:
            return
        pick = self.random
        model = pick.choice(self.models)
        batching = model.config.max_batch_size > 0
        size = pick.randint(1, 2) if batching and not model.has_sequences else 1
        shape = (size, pick.randint(1, 2)) if batching else (pick.randint(1, 2),)
        tensor = Tensor("X", "INT8", shape, Inline(memoryview(bytes(shape[0] * shape[-1]))))
        context = None
        if model.name == "iterative" and pick.random() < 0.7:
            context = RequestContext(0, 0)
        elif model.has_sequences:
            context = RequestContext(pick.randint(1, 6), pick.choice([0, 0, 0, 1, 1, 2, 3]))
        body = RequestBody("", size, [tensor], [], {}, context)
        request = Request(body, self.now_ns, lambda response: None, priority=pick.randint(0, 3), timeout_us=pick.choice([0, 0, 300, 5000]))
        running = [batches[0].number for batches in self.batches.values() if batches]
        if running and pick.random() < 0.05:
            request.caller = pick.choice(running)
        watched = Watched(self, model.scheduler, request)
        self.open[request] = watched
        try:
            self.dispatcher.submit(model.scheduler, request)
        except StatusError:
            del self.open[request]
            assert not watched.finishes and not watched.final
        else:
            self.recent.append(watched)

    def cancel(self) -> None:
        """Of those that are there most often; of those that have ended too."""
        if self.random.random() < 0.9 and self.open:
            watched = self.random.choice(list(self.open.values()))
        elif self.recent:
            watched = self.random.choice(self.recent)
        else:
            return
        final, recalled = watched.final, self.recalled
        self.dispatcher.cancel(watched.scheduler, watched.request)
        assert not final or self.recalled == recalled

    def turn(self) -> None:
        """The end of the loop's turn."""
        soon, self.soon[:] = list(self.soon), []
        for call in soon:
            try:
                call()
            except Boom:
                pass

    def result(self, fault: bool = False) -> Result:
        if fault:
            return Result([], {}, Fault(Code.INTERNAL, "no"))
        lease = Lease(3, next(self.numbers), 1)
        self.lent.add(lease.offset)
        return Result([Tensor("OUT", "INT8", (1,), lease)])

    def done(self) -> None:
        """An instance has run its first batch: as a native one, or as a Python model's, with responses yet to come."""
        busy = [batches for batches in self.batches.values() if batches]
        if not busy:
            return
        batch = self.random.choice(busy).popleft()
        count = len(batch.requests)
        pick = self.random
        results: list[Result | None] = [self.result(pick.random() < 0.1) for _ in range(count)]
        failed = None
        again = []
        if pick.random() < 0.5 and not self.calm:
            failed = [index for index in range(count) if pick.random() < 0.1]
            iterative = self._iterative(batch)
            for index in range(count):
                if pick.random() < 0.4:
                    result = results[index]
                    assert result is not None
                    self.give_back([tensor.place for tensor in result.outputs if type(tensor.place) is Lease])
                    results[index] = None
                    if iterative and index not in failed and index not in batch.answered and pick.random() < 0.5:
                        again.append(index)
        left = {index for index, result in enumerate(results) if result is None and index not in batch.answered and index not in again}
        if left:
            self.streams[batch] = left
        self.gone.append((batch.number, count))
        batch.instance.execution_ns = pick.choice([0, 5_000_000, 10**9])
        now = self.now_ns
        self.dispatcher.batch_done(Done(batch.number, results, now, now, now, now + 1000, failed, again), self)

    def _iterative(self, batch: PlannedBatch) -> bool:
        return any(model.name == "iterative" and model.scheduler is batch.scheduler for model in self.models)

    def respond(self) -> None:
        """A sender is given a response, while its batch runs or after it has left."""
        opened = [(batch, index) for batch, left in self.streams.items() for index in left]
        for batches in self.batches.values():
            if batches and not self.calm:
                opened += [(batches[0], index) for index in range(len(batches[0].requests)) if index not in batches[0].answered]
        if not opened:
            return
        batch, index = self.random.choice(opened)
        kind = "end" if self.calm else self.random.choice(["part", "part", "final", "end", "fault"])
        if kind != "part" and batch in self.streams:
            self.streams[batch].discard(index)
            if not self.streams[batch]:
                del self.streams[batch]
        result = None if kind == "end" else self.result(kind == "fault")
        self.dispatcher.respond(Respond(batch.number, index, result, kind != "part"), self)

    def late(self) -> None:
        """A worker speaks of a batch that has ended."""
        if self.gone:
            number, count = self.random.choice(self.gone)
            if not any(batch.number == number for batch in self.streams):
                self.dispatcher.respond(Respond(number, self.random.randrange(count), self.result(), True), self)
                self.dispatcher.batch_done(Done(number, [self.result()], 0, 0, 0, 0), self)

    def die(self) -> None:
        """A worker dies with its instance; another comes in its place."""
        model = self.random.choice(self.models)
        instance = self.random.choice(model.instances)
        if not instance.live:
            return
        self.gone.extend((batch.number, len(batch.requests)) for batch in self.batches[instance])
        self.batches[instance].clear()
        self.streams = {batch: left for batch, left in self.streams.items() if batch.instance is not instance}
        self.dispatcher.instance_down(model.scheduler, instance, DIED)
        if self.random.random() < 0.3:
            model.scheduler.suspend(OUTAGE)
            self.dispatcher.touch(model.scheduler)

    def revive(self) -> None:
        for model in self.models:
            for instance in model.instances:
                if not instance.live and not instance.leaving:
                    model.scheduler.suspend(None)
                    self.dispatcher.instance_up(model.scheduler, instance)

    def unload(self) -> None:
        self.random.choice(self.models).unload()

    def shrink(self) -> None:
        model = self.random.choice(self.models)
        model.shrink(self.random.choice(model.instances))

    def release(self) -> None:
        self.random.shuffle(self.unreleased)
        for _ in range(min(len(self.unreleased), self.random.randint(0, 40))):
            self.unreleased.pop().release()

    def advance(self) -> None:
        self.pass_time(self.random.choice([10_000, 200_000, 700_000, 2_000_000]))

    def pass_time(self, ns: int) -> None:
        end_ns = self.now_ns + ns
        while self.alarm_ns is not None and self.alarm_ns <= end_ns:
            self.now_ns = max(self.now_ns, self.alarm_ns)
            try:
                self.dispatcher.alarm()
            except Boom:
                pass
            self.turn()
        self.now_ns = end_ns

    # the whole

    def blow(self, steps: int) -> None:
        """So many random things, checked as they come."""
        weights = {
            **{self.submit: 34, self.cancel: 16, self.turn: 14, self.done: 18, self.respond: 10, self.release: 3, self.advance: 4},
            **{self.late: 1, self.die: 1, self.revive: 2, self.unload: 0.3, self.shrink: 0.4},
        }
        things, chances = list(weights), list(weights.values())
        for number, thing in enumerate(self.random.choices(things, chances, k=steps)):
            thing()
            if number % 16 == 0:
                self.check()

    def check(self) -> None:
        """What is counted is what is there."""
        held = sum(response.final for model in self.models for response in _held(model.scheduler))
        assert self.dispatcher.in_flight == sum(model.scheduler.in_flight for model in self.models) == len(self.open) - held
        waiting = sum(model.scheduler.statistics.pending_count for model in self.models)
        bound = sum(len(batch.requests) - len(batch.answered) for batches in self.batches.values() for batch in batches)
        assert waiting + bound + sum(map(len, self.streams.values())) == self.dispatcher.in_flight

    def settle(self) -> None:
        """Answer everything, and let all sequences fall asleep."""
        self.calm = True
        for _ in range(2000):
            self.revive()
            for batches in list(self.batches.values()):
                for _ in range(len(batches)):
                    self.done()
            while self.streams:
                self.respond()
            self.turn()
            self.pass_time(1_000_000)
            if not self.open and all(model.scheduler.idle for model in self.models) and not self.soon:
                break
        self.pass_time(10**9)
        for response in self.unreleased:
            response.release()
        self.unreleased.clear()


def _held(scheduler: Scheduler) -> list[Response]:
    return [] if scheduler.order is None else [one for held in scheduler.order._held.values() for one in held]


def reachable(*roots: object) -> list[object]:
    """The requests and batches that anything in ``roots`` knows, however it does."""
    found = []
    seen = {id(root) for root in roots}
    queue = list(roots)
    while queue:
        one = queue.pop()
        if isinstance(one, Request | PlannedBatch | Response):
            found.append(one)
        if isinstance(one, type) or type(one).__name__ in ("module", "Storm", "Model", "Watched"):
            continue
        for referent in gc.get_referents(one):
            if id(referent) not in seen and not (type(referent) is dict and "__builtins__" in referent):
                seen.add(id(referent))
                queue.append(referent)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_storm(seed: int) -> None:
    storm = Storm(seed)
    storm.blow(STEPS)
    storm.settle()
    assert not storm.open, f"{len(storm.open)} requests have had no last response"
    dispatcher, schedulers = storm.dispatcher, [*storm.unloaded, *(model.scheduler for model in storm.models)]
    assert dispatcher.in_flight == 0
    for scheduler in schedulers:
        assert scheduler.idle and scheduler.in_flight == 0 and scheduler.statistics.pending_count == 0
    assert all(watched.finishes == 1 for watched in storm.recent)
    assert not storm.lent, "outputs were not given back"
    assert reachable(dispatcher, *schedulers) == []
    assert storm.alarm_ns is None
    statistics = [scheduler.statistics for scheduler in schedulers]
    cancelled = sum(one.failures[FailureReason.CANCELED] for one in statistics)
    assert storm.counts["error CANCELLED"] == cancelled > 0
    assert storm.recalled > 0 and len(storm.unloaded) > 0


# what storms have found


def calm_storm(name: str) -> tuple[Storm, Model]:
    storm = Storm(0)
    storm.calm = True
    return storm, next(model for model in storm.models if model.name == name)


def ask(storm: Storm, model: Model, correlation_id: int = 0, flags: int = 0) -> Watched:
    tensor = Tensor("X", "INT8", (1, 1) if model.config.max_batch_size else (1,), Inline(memoryview(b"x")))
    context = RequestContext(correlation_id, flags) if model.has_sequences else None
    request = Request(RequestBody("", 1, [tensor], [], {}, context), storm.now_ns, lambda response: None)
    watched = storm.open[request] = Watched(storm, model.scheduler, request)
    storm.dispatcher.submit(model.scheduler, request)
    storm.turn()
    return watched


def over(storm: Storm, model: Model) -> None:
    """All that was asked has been answered, and nothing of it is left."""
    storm.settle()
    assert not storm.open and model.scheduler.idle
    assert reachable(storm.dispatcher, model.scheduler) == []


@pytest.mark.parametrize("name", ["direct", "oldest"])
def test_a_sequence_whose_answered_request_is_running_when_its_worker_dies(name: str) -> None:
    storm, model = calm_storm(name)
    first = ask(storm, model, 7, 1)
    [batch] = [batch for batches in storm.batches.values() for batch in batches]
    storm.dispatcher.respond(Respond(batch.number, 0, Result([]), True), storm)
    assert first.final
    second = ask(storm, model, 7, 2)
    storm.batches[batch.instance].clear()
    storm.dispatcher.instance_down(model.scheduler, batch.instance, DIED)
    storm.turn()
    assert second.final, "its state was lost with the worker"
    over(storm, model)


def test_an_iterative_model_whose_sequence_has_another_request() -> None:
    storm, model = calm_storm("iterative")
    first, second = ask(storm, model, 7, 1), ask(storm, model, 7, 0)
    storm.done()
    storm.turn()
    assert first.final and not second.final
    over(storm, model)


@pytest.mark.parametrize("name", MODELS)
def test_what_was_cancelled_behind_a_patient_request_goes(name: str) -> None:
    """It holds its body, and the patient one may wait for long."""
    storm, model = calm_storm(name)
    for instance in model.instances:
        instance.execution_ns = 10**9
    for number in range(10):
        ask(storm, model, 1 + number, 1)
    waiting = model.scheduler.statistics.pending_count
    assert waiting > 0
    for number in range(500):
        given_up = ask(storm, model, 100 + number, 1)
        storm.dispatcher.cancel(model.scheduler, given_up.request)
        storm.turn()
        storm.unreleased.clear()
        storm.recent.clear()
    known = [one for one in reachable(storm.dispatcher, model.scheduler) if isinstance(one, Request)]
    assert len(known) < 100 and model.scheduler.statistics.pending_count == waiting
    over(storm, model)

"""A day of requests to many models, run against the scheduling core in virtual time.

No process, no socket, no sleep: the core is told of arrivals, finished batches and alarms, and what it decides is checked. Every request
has one answer; no batch is larger than its model allows; of equal priority, what came first runs first; nothing waits while an instance
that could run it stands idle, but for the delay that its model asks for; at the end nothing is left. Exit code 1 where that does not hold.

Three days are run: the day that was asked for, one with half the requests, and one with ten times as many models that nobody asks.
The time for an event is to be the same in all three.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tensorfarm.server.dispatch.batching import BatchScheduler, Cut
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import Instance, PlannedBatch
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.dispatch.scheduler import Scheduler
from tensorfarm.server.dispatch.schedulers import scheduler_of
from tensorfarm.server.dispatch.sequence_scheduler import SequenceScheduler
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.shm.placement import Inline, Lease
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import Done, RequestBody, RequestContext, Result, Tensor
from tensorfarm.workers.contract.signature import signature_of
from tensorfarm.workers.contract.status import StatusError, unavailable

DAY_NS = 86_400 * 10**9
MS = 10**6
BURST = 200
BURST_SECS = 0.05
REFUSALS = ("Exceeds maximum queue size", "must specify the START flag", "was lost when its worker ended")
SHAPES = ((1, 8), (1, 16))
CANCELLED = 0.01
DEATHS = 50
SEQUENCE_LENGTH = 20
OPEN_SEQUENCES = 48

KINDS = {
    "one at a time": "max_batch_size: 8",
    "dynamic": "max_batch_size: 8 dynamic_batching { }",
    "delayed": "max_batch_size: 16 dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 5000 }",
    "shapes": "max_batch_size: 8 dynamic_batching { }",
    "priorities": (
        "max_batch_size: 8 dynamic_batching { priority_levels: 3 default_priority_level: 2 default_queue_policy { max_queue_size: 64 } }"
    ),
    "deadlines": (
        "max_batch_size: 4 dynamic_batching { default_queue_policy { default_timeout_microseconds: 200000 allow_timeout_override: true } }"
    ),
    "ordered": "max_batch_size: 4 dynamic_batching { preserve_ordering: true }",
    "direct": "max_batch_size: 4 sequence_batching { max_sequence_idle_microseconds: 600000000 direct { } }",
    "oldest": (
        "max_batch_size: 4 sequence_batching { max_sequence_idle_microseconds: 600000000"
        " oldest { max_candidate_sequences: 16 preferred_batch_size: [ 4 ] } }"
    ),
}


class Broken(Exception):
    """An invariant that did not hold."""


def expect(holds: bool, *words: object) -> None:
    """Raise ``Broken`` with these words unless something holds."""
    if not holds:
        raise Broken(" ".join(str(word) for word in words))


class NoMemory:
    """Outputs are empty here."""

    arena_number = 0

    def view(self, lease: Lease) -> memoryview:
        """There are none."""
        raise KeyError(lease)

    def give_back(self, leases: list[Lease]) -> None:
        """There are none."""


MEMORY = NoMemory()


@dataclass(slots=True, eq=False)
class Model:
    """A model: what it takes for a batch (``base_ns`` and ``item_ns``), and what has been seen of it.

    ``open_sequences`` has how many requests of each have been sent.
    """

    name: str
    kind: str
    scheduler: Scheduler
    max_batch_size: int
    delay_ns: int
    base_ns: int
    item_ns: int
    instances: list[Instance] = field(default_factory=list)
    last_order: dict[int, int] = field(default_factory=dict)
    open_sequences: dict[int | str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Totals:
    """What a day came to."""

    events: int = 0
    arrivals: int = 0
    batches: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    cuts: Counter[str] = field(default_factory=Counter)
    longest_wait_ns: int = 0
    wall_secs: float = 0.0


class Day:
    """The world around a dispatcher: its clock, its workers, its clients."""

    def __init__(self, model_count: int, instance_count: int, idle_model_count: int, arrival_count: int, seed: int) -> None:
        self._random = random.Random(seed)
        self._generator = np.random.default_rng(seed)
        self.now_ns = 0
        self.totals = Totals()
        self._events: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._numbers = itertools.count()
        self._soon: list[Callable[[], object]] = []
        self._alarm_ns: int | None = None
        self._busy_until: dict[Instance, int] = {}
        self._open: dict[Request, Model] = {}
        self._dispatcher = Dispatcher(self._send, self._soon.append, self._set_alarm, lambda: self.now_ns)
        self._batch_numbers = itertools.count(1)
        self._instance_numbers = itertools.count(1)
        self._sequence_numbers = itertools.count(1)
        self._of: dict[Scheduler, Model] = {}
        self.models = [self._model(number, instance_count) for number in range(model_count)]
        self.idle_models = [self._model(number, instance_count) for number in range(model_count, model_count + idle_model_count)]
        self._arrival_count = arrival_count
        self._inputs = [[Tensor("X", "FP32", shape, Inline(memoryview(b"")))] for shape in SHAPES]

    def _model(self, number: int, instance_count: int) -> Model:
        kind = list(KINDS)[number % len(KINDS)]
        dims = "-1" if kind == "shapes" else "8"
        text = f'name: "m{number}" input {{ name: "X" data_type: TYPE_FP32 dims: [ {dims} ] }} {KINDS[kind]}'
        config = parse_text(text, "config.pbtxt")
        scheduler = scheduler_of(config, signature_of(config), self._batch_numbers, VersionStatistics(), lambda line: None)
        largest = 1 if kind == "one at a time" else config.max_batch_size
        delay_ns = config.dynamic_batching.max_queue_delay_microseconds * 1000
        base_ns = int(self._random.uniform(0.5, 20) * MS)
        model = Model(f"m{number}", kind, scheduler, largest, delay_ns, base_ns, base_ns // 4)
        self._of[scheduler] = model
        for _ in range(instance_count):
            instance = Instance(next(self._instance_numbers), model.name)
            model.instances.append(instance)
            self._dispatcher.instance_up(scheduler, instance)
        return model

    # the world

    def _at(self, at_ns: int, what: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self._events, (at_ns, next(self._numbers), what, arguments))

    def _set_alarm(self, at_ns: int | None) -> None:
        if at_ns != self._alarm_ns:
            self._alarm_ns = at_ns
            if at_ns is not None:
                self._at(at_ns, self._ring, at_ns)

    def _ring(self, at_ns: int) -> None:
        if at_ns == self._alarm_ns:
            self._alarm_ns = None
            self._dispatcher.alarm()

    def run(self, progress: Callable[[int], None]) -> Totals:
        """Live the day to its end; returns what it came to. Raises Broken."""
        fatal = set(self._generator.integers(self._arrival_count, size=DEATHS).tolist())
        began = time.perf_counter()
        events, soon = self._events, self._soon
        for number, (at_ns, model, dice) in enumerate(self._arrivals(progress)):
            if number in fatal:
                # While it works on this request, or has it waiting.
                self._at(at_ns + model.base_ns // 2, self._kill, model)
            while events and events[0][0] <= at_ns:
                self._step()
            self.now_ns = at_ns
            self._arrive(model, dice)
            self.totals.events += 1
            while soon:
                soon.pop(0)()
        while events:
            self._step()
        self.totals.wall_secs = time.perf_counter() - began
        self._check_end()
        return self.totals

    def _step(self) -> None:
        self.now_ns, _, what, arguments = heapq.heappop(self._events)
        what(*arguments)
        self.totals.events += 1
        soon = self._soon
        while soon:
            soon.pop(0)()

    def _arrivals(self, progress: Callable[[int], None]) -> Iterable[tuple[int, Model, float]]:
        """Times over the day, busiest in its middle, models, of which few get most, and a throw for each."""
        count = self._arrival_count
        hours = np.linspace(0, 1, 1441)
        share = np.cumsum(1.2 - np.cos(2 * np.pi * hours))
        # They come in bursts, each for one model: what comes alone never waits.
        burst_count = count // BURST + 1
        begins = np.interp(self._generator.uniform(0, share[-1], burst_count), share, hours) * DAY_NS
        weights = 1 / np.arange(1, len(self.models) + 1)
        asked = self._generator.choice(len(self.models), size=burst_count, p=weights / weights.sum())
        burst = self._generator.integers(burst_count, size=count)
        times = begins[burst] + self._generator.exponential(BURST_SECS * 1e9, count)
        order = np.argsort(times)
        times, chosen = times[order], asked[burst][order]
        dice = self._generator.uniform(size=count)
        for begin in range(0, count, 10_000):
            part = slice(begin, begin + 10_000)
            yield from zip(
                times[part].astype(int).tolist(), map(self.models.__getitem__, chosen[part].tolist()), dice[part].tolist(), strict=True
            )
            progress(min(begin + 10_000, count))

    # clients

    def _arrive(self, model: Model, dice: float) -> None:
        self.totals.arrivals += 1
        context = None
        batch_size, priority, timeout_us = 1, 0, 0
        inputs = self._inputs[0]
        if model.kind == "shapes":
            inputs = self._inputs[dice > 0.5]
        elif model.kind == "priorities":
            priority = int(dice * 4)
        elif model.kind == "deadlines":
            timeout_us = int(dice * 300_000)
        elif isinstance(model.scheduler, SequenceScheduler):
            context = self._next_of_sequence(model, dice)
        else:
            batch_size = 1 + int(dice * 3)
        request = Request(RequestBody("", batch_size, inputs, [], {}, context), self.now_ns, self._answered)
        request.priority, request.timeout_us = priority, timeout_us
        self._open[request] = model
        try:
            self._dispatcher.submit(model.scheduler, request)
        except StatusError as error:
            del self._open[request]
            self.totals.answers[f"refused at once: {next(reason for reason in REFUSALS if reason in error.message)}"] += 1
            if context is not None:
                model.open_sequences.pop(context.correlation_id, None)
            return
        if dice < CANCELLED:
            self._at(self.now_ns + model.base_ns // 2, self._give_up, request)

    def _next_of_sequence(self, model: Model, dice: float) -> RequestContext:
        """The next request of one of the open sequences, or the first of another."""
        sequences = model.open_sequences
        if len(sequences) < OPEN_SEQUENCES:
            sequence: int | str = next(self._sequence_numbers)
            sequences[sequence] = 1
            return RequestContext(sequence, 1)
        sequence = list(sequences)[int(dice * OPEN_SEQUENCES)]
        sequences[sequence] += 1
        if sequences[sequence] < SEQUENCE_LENGTH:
            return RequestContext(sequence, 0)
        del sequences[sequence]
        return RequestContext(sequence, 2)

    def _give_up(self, request: Request) -> None:
        model = self._open.get(request)
        if model is not None:
            self._dispatcher.cancel(model.scheduler, request)

    def _answered(self, response: Response) -> None:
        request = response.request
        model = self._open.pop(request, None)
        expect(model is not None, "a request was answered twice")
        assert model is not None
        error = response.error
        self.totals.answers["ok" if error is None else re.sub(r"'m\d+'|\d+", "…", error.message) or "cancelled"] += 1
        if error is not None and error.message == "Request timeout expired":
            expect(self.now_ns <= request.deadline_ns, model.name, model.kind, "refuses behind the deadline")
        if error is not None and request.body.context is not None:
            # Its client begins anew.
            model.open_sequences.pop(request.body.context.correlation_id, None)

    # workers

    def _send(self, batch: PlannedBatch) -> None:
        model = self._of[batch.scheduler]
        totals = self.totals
        totals.batches += 1
        size = 0
        for request in batch.requests:
            if request not in self._open:
                continue
            size += request.body.batch_size
            totals.longest_wait_ns = max(totals.longest_wait_ns, self.now_ns - request.queued_ns)
            if not request.attempts and not isinstance(batch.scheduler, SequenceScheduler):
                last = model.last_order.get(request.priority, 0)
                expect(request.order > last, model.name, model.kind, "overtakes")
                model.last_order[request.priority] = request.order
        size = max(size, len(batch.requests)) if batch.fillers else size
        single = len(batch.requests) == 1
        expect(
            single or size <= model.max_batch_size, model.name, model.kind, "batch of", size, "where", model.max_batch_size, "is allowed"
        )
        begin_ns = max(self.now_ns, self._busy_until.get(batch.instance, 0))
        end_ns = begin_ns + model.base_ns + size * model.item_ns
        self._busy_until[batch.instance] = end_ns
        self._at(end_ns, self._finish, batch, begin_ns)

    def _finish(self, batch: PlannedBatch, begin_ns: int) -> None:
        if batch.number not in batch.scheduler.outstanding:
            return
        results: list[Result | None] = [Result([]) for _ in batch.requests]
        self._dispatcher.batch_done(Done(batch.number, results, begin_ns, begin_ns, self.now_ns, self.now_ns), MEMORY)
        self._soon.append(lambda: self._check_busy(batch.scheduler))

    def _kill(self, model: Model) -> None:
        """A worker dies with all instances of a model, and is back two seconds later."""
        for instance in model.instances:
            if instance.live:
                self._busy_until.pop(instance, None)
                self._dispatcher.instance_down(model.scheduler, instance, unavailable("a worker died"))
                self._at(self.now_ns + 2 * 10**9, self._rise, model, instance)

    def _rise(self, model: Model, instance: Instance) -> None:
        self._dispatcher.instance_up(model.scheduler, instance)

    # what must hold

    def _check_busy(self, scheduler: Scheduler) -> None:
        """Nothing waits beside an idle instance, but for the delay that is asked for."""
        if isinstance(scheduler, BatchScheduler) and len(scheduler.queue) and any(not instance.batches for instance in scheduler.instances):
            model = self._of[scheduler]
            oldest_ns = min(request.queued_ns for request in scheduler.queue.scan())
            expect(self.now_ns - oldest_ns < model.delay_ns, model.name, model.kind, "waits beside an idle instance")

    def _check_end(self) -> None:
        expect(not self._open, len(self._open), "requests were never answered")
        expect(self._dispatcher.in_flight == 0, "the dispatcher counts", self._dispatcher.in_flight, "in flight")
        for model in self.models:
            scheduler = model.scheduler
            expect(scheduler.idle or isinstance(scheduler, SequenceScheduler), model.name, "is not idle")
            expect(scheduler.in_flight == 0 == scheduler.statistics.pending_count, model.name, "counts requests that are not there")
            for cut, count in zip(Cut, scheduler.statistics.cuts, strict=True):
                self.totals.cuts[cut.name.lower()] += count
        answered = sum(self.totals.answers.values())
        expect(answered == self.totals.arrivals, answered, "answers to", self.totals.arrivals, "requests")


def main(arguments: Sequence[str]) -> int:
    """Run the days and print what they came to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arrivals", type=int, default=1_000_000, help="requests of the day (default: %(default)s)")
    parser.add_argument("--models", type=int, default=1_000, help="models that are asked (default: %(default)s)")
    parser.add_argument("--instances", type=int, default=8, help="instances of each model (default: %(default)s)")
    parser.add_argument("--idle-models", type=int, default=0, help="further models that nobody asks (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--once", action="store_true", help="only the day that was asked for")
    options = parser.parse_args(arguments)
    days = [("the day", options.arrivals, options.idle_models)]
    if not options.once:
        days.append(("half the requests", options.arrivals // 2, options.idle_models))
        days.append(("ten times the models, idle", options.arrivals, options.idle_models + 9 * options.models))
    console = Console()
    rows = []
    with Progress(console=console, transient=True) as progress:
        for name, arrival_count, idle_count in days:
            task = progress.add_task(name, total=arrival_count)
            day = Day(options.models, options.instances, idle_count, arrival_count, options.seed)
            try:
                totals = day.run(lambda done, task=task: progress.update(task, completed=done))  # type: ignore[misc]
            except Broken as broken:
                console.print(f"[bold red]{name}, at {day.now_ns / 3.6e12:.3f} h:[/] {broken}")
                return 1
            rows.append((name, options.models + idle_count, totals))
    _print(console, rows)
    return 0


def _print(console: Console, days: list[tuple[str, int, Totals]]) -> None:
    table = Table(title="Events through the scheduling core: one core, virtual time")
    table.add_column("")
    for name, _, _ in days:
        table.add_column(name, justify="right")
    rows: list[tuple[str, Callable[[int, Totals], str]]] = [
        ("models", lambda models, totals: f"{models:,}"),
        ("requests", lambda models, totals: f"{totals.arrivals:,}"),
        ("batches", lambda models, totals: f"{totals.batches:,}"),
        ("events", lambda models, totals: f"{totals.events:,}"),
        ("seconds", lambda models, totals: f"{totals.wall_secs:.1f}"),
        ("events a second", lambda models, totals: f"{totals.events / totals.wall_secs:,.0f}"),
        ("us an event", lambda models, totals: f"{totals.wall_secs / totals.events * 1e6:.1f}"),
        ("longest wait, s", lambda models, totals: f"{totals.longest_wait_ns / 1e9:.2f}"),
    ]
    for title, cell in rows:
        table.add_row(title, *[cell(models, totals) for _, models, totals in days])
    console.print(table)
    for title, counts in (("answers", days[0][2].answers), ("why batches end where they do", days[0][2].cuts)):
        table = Table(title=title)
        table.add_column("")
        table.add_column("count", justify="right")
        for what, count in counts.most_common():
            table.add_row(what, f"{count:,}")
        console.print(table)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

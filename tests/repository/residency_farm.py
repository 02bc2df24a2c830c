"""The world around the core of lazy loading: memory, requests and loads, all of them by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tensorfarm.server.repository.demand import Demand, Need
from tensorfarm.server.repository.residency import Budget, Residency
from tensorfarm.workers.contract.status import StatusError, internal

SECOND_NS = 1_000_000_000
SIZES = {"a": 30, "b": 20, "c": 10, "d": 40, "e": 10, "f": 20, "pair": 1, "whole": 1}
ASKED = {"pair": ("c", "d"), "whole": ("pair", "e")}
# Models ask only those behind them: circles of calls are for the dispatcher to break, circles of waiting for room are ours.
RANKS = ["a", "b", "whole", "pair", "c", "d", "e", "f"]


def need_of(name: str) -> Need:
    """A model of the tests' repository, with what it asks."""
    return Need(name, SIZES[name], tuple(need_of(member) for member in ASKED.get(name, ())))


@dataclass(eq=False)
class Call:
    """A request in flight. ``parent`` waits for it; ``child`` is a request, or a demand, that it waits for."""

    name: str
    parent: Call | None = None
    child: Call | Demand | None = None


@dataclass(eq=False)
class Client:
    """Somebody who asked for a model, and what was said."""

    demand: Demand | None = None
    cancelled: bool = False
    answers: list[StatusError | None] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        return not self.answers and not self.cancelled


class Farm:
    """The world around the core: memory, requests, loads. It checks each thing that it is told to do."""

    def __init__(
        self, count: int | None, byte_size: int | None, hears_all: bool = True, at_once: bool = False, parallel: bool = False
    ) -> None:
        self.now_ns = 0
        self.parallel = parallel
        self.hears_all = hears_all
        self.at_once = at_once
        self.calls: dict[str, list[Call]] = {name: [] for name in SIZES}
        self.loading: list[str] = []
        self.loaded: set[str] = set()
        self.unloading: list[str] = []
        self.failing: set[str] = set()
        self.watched: set[str] = set()
        self.clients: list[Client] = []
        self.loads = 0
        self.oversize: list[str] = []
        self.core = Residency(
            Budget(count, byte_size),
            memory=self.memory,
            busy=lambda name: bool(self.calls[name]),
            callers=self.callers,
            load=self.load,
            unload=self.unload,
            watch=self.watch,
            oversize=lambda name, byte_size: self.oversize.append(name),
            clock_ns=lambda: self.now_ns,
        )

    # what the core asks and orders

    def memory(self) -> int:
        """What is loaded takes all, what is loading half."""
        return sum(SIZES[name] for name in (*self.loaded, *self.unloading)) + sum(SIZES[name] // 2 for name in self.loading)

    def callers(self, name: str) -> Iterable[str]:
        return {call.parent.name for call in self.calls[name] if call.parent is not None}

    def load(self, name: str) -> None:
        assert name not in self.loading and name not in self.loaded and name not in self.unloading
        assert self.loaded.issuperset(ASKED.get(name, ())), "members first"
        self.loads += 1
        self.loading.append(name)
        assert {*self.loading, *self.loaded, *self.unloading} <= set(self.core.names)
        if self.at_once:
            self.end_load(name)

    def unload(self, name: str) -> None:
        assert name in self.loaded, "only what is loaded can leave"
        assert not self.calls[name], "a busy model must not leave"
        for whole in (*self.loaded, *self.loading):
            assert name not in ASKED.get(whole, ()), f"{name} must not leave before {whole}"
        self.loaded.remove(name)
        self.unloading.append(name)
        if self.at_once:
            self.end_unload(name)

    def watch(self, name: str) -> None:
        assert name not in self.watched
        self.watched.add(name)

    # what happens

    def end_load(self, name: str) -> None:
        self.loading.remove(name)
        if name in self.failing:
            self.core.failed(name, internal(f"{name} is broken"))
        else:
            self.loaded.add(name)
            self.core.loaded(name)

    def end_unload(self, name: str) -> None:
        self.unloading.remove(name)
        self.core.unloaded(name)

    def ask(self, name: str, parent: Call | None = None, on_answer: Callable[[], None] = lambda: None) -> Client | None:
        """A client's request, or one of a request in flight. Returns who waits, where it has to."""
        if self.core.used(name, nested=parent is not None):
            self.begin(name, parent)
            return None
        client = Client()
        self.clients.append(client)

        def on_ready(error: StatusError | None) -> None:
            assert client.waits, "answered once, and not after it was cancelled"
            client.answers.append(error)
            if error is not None:
                parts = ["is broken", "--lazy-model-count allows"] + ([] if parent is None else ["would wait for models that wait for it"])
                assert any(part in error.message for part in parts), error.message
            if parent is not None:
                parent.child = None
            if error is None:
                assert self.core.used(name, nested=parent is not None)
                self.begin(name, parent)
            on_answer()

        demand = self.core.demand(need_of(name), on_ready, "" if parent is None else parent.name)
        client.demand = demand
        if parent is not None and client.waits:
            parent.child = demand
        return client

    def ask_core(self, name: str) -> list[StatusError | None]:
        """Only have a model loaded; the list gets the answer."""
        answers: list[StatusError | None] = []
        self.core.demand(need_of(name), answers.append)
        return answers

    def begin(self, name: str, parent: Call | None) -> None:
        assert name in self.loaded and all(self.loaded.issuperset(ASKED.get(each, ())) for each in (name, *ASKED.get(name, ())))
        call = Call(name, parent)
        self.calls[name].append(call)
        if parent is not None:
            parent.child = call
            if self.core.callers_wait:
                self.core.reconsider()

    def able(self) -> list[Call]:
        """Requests that run and wait for nothing: a model has one instance unless ``parallel``, an ensemble runs all of its requests."""
        running = [call for name in RANKS for call in self.calls[name][: None if self.parallel or name in ASKED else 1]]
        return [call for call in running if call.child is None]

    def finish(self, call: Call) -> None:
        assert call.child is None
        self.calls[call.name].remove(call)
        if call.parent is not None:
            call.parent.child = None
        if not self.calls[call.name]:
            if self.hears_all or call.name in self.watched:
                self.watched.discard(call.name)
                self.core.idle(call.name)

    def cancel(self, client: Client) -> None:
        assert client.demand is not None
        client.cancelled = True
        client.demand.cancel()
        for calls in self.calls.values():
            for call in calls:
                if call.child is client.demand:
                    call.child = None

    def settle(self) -> None:
        """Let everything end that can. Whoever still waits then would wait for ever."""
        while self.step():
            pass
        assert not any(self.calls.values()), "requests wait for ever"
        for client in self.clients:
            assert len(client.answers) == (0 if client.cancelled else 1), "each demand is answered once"
        self.clients.clear()
        assert self.core.waiting == 0 and not self.core.closed
        assert not self.core._wishes and not self.core._answers and not self.core._orders

    def step(self) -> bool:
        """One thing that can end does; False where there is none."""
        if self.loading:
            self.end_load(self.loading[0])
        elif self.unloading:
            self.end_unload(self.unloading[0])
        elif calls := self.able():
            self.finish(calls[0])
        else:
            return False
        return True

    def check(self) -> None:
        """What holds at every moment."""
        present = {*self.loading, *self.loaded, *self.unloading}
        assert present <= set(self.core.names)
        budget = self.core.budget
        if budget.count is not None:
            assert len(self.core.names) <= budget.count
        assert self.core.waiting == sum(client.waits for client in self.clients), "nothing is kept of those who went"
        assert all(wish.demands for wish in self.core._wishes.values())
        assert len(self.core._failures) <= len(SIZES)

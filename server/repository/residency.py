"""Which models are in memory when not all of them fit: they load when first asked, and the least recently used leave.

Sans-IO: facts in, decisions out through callables, the clock is one of them.

**Contracts.** ``load`` and ``unload`` only start something; ``loaded``, ``failed`` or ``unloaded`` tell of its end, later or before they
return. ``on_ready(None)`` is called while its model cannot leave: whoever gets it submits its request before it returns, and from then on
``busy`` must say so until that request has ended. Requests to models that are in memory need no demand: ``used`` lets them in, and they
are submitted in the same turn; what takes longer (a body that is still being read) asks again when it is done.

**Order.** Demands that need room get it in order; those whose model is on its way need none. Requests in flight that ask further models
hold up what would have to leave, so their demands (those with a ``caller``) go first.

**Nobody starves.** While the oldest demand finds nothing idle that could leave for it, the core is ``closed``: ``used`` lets no client's
request in, and they queue up as demands behind it. What is in flight ends, and what it asks for in turn is let in, so something gets idle
after finitely many steps, and leaves. That may be a hot model; the wait is that for the shortest queue in flight. While something is
on its way out all others are open again, unless demands of models have been let past the oldest already: then it stays closed, so
that only what is in flight, which ends, can still be let past it.

**Nobody waits for ever.** A model cannot leave while a request in it waits, itself or through others, for a demand that waits for room.
Demands of models that could only be met by such models leaving are refused at once (UNAVAILABLE); as in ``dispatch/waiting.py``, those
that others' end will make possible are not. A client's demand holds nothing while it waits: an ensemble and its members get their
places together or not at all.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from ...workers.contract.status import StatusError, unavailable
from .demand import Demand, Need, OnReady, Wish
from .load_failures import LoadFailures


@dataclass(frozen=True, slots=True)
class Budget:
    """How many models may be in memory, and how many bytes they may take together; None is no limit."""

    count: int | None = None
    byte_size: int | None = None


class _Phase(enum.Enum):
    LOADING = enum.auto()
    RESIDENT = enum.auto()
    LEAVING = enum.auto()


class _Outlook(enum.Enum):
    """What becomes of a wish: it has what it needs; room is on its way; or something busy would have to leave."""

    MET = enum.auto()
    COMING = enum.auto()
    BLOCKED = enum.auto()


@dataclass(slots=True, eq=False)
class _Place:
    """A model that counts. ``members`` cannot leave before it; its load starts once none of ``awaited`` is left."""

    byte_size: int
    members: tuple[str, ...]
    awaited: set[str]
    phase: _Phase = _Phase.LOADING
    watched: bool = False


class Residency:
    """Decides what loads and what leaves.

    ``memory()``: bytes that all workers use now. ``busy(name)``: has it requests that wait or run? ``callers(name)``: the models and
    ensembles that wait for requests of this one. ``watch(name)``: call ``idle(name)`` once, when it is not busy any more.
    ``oversize(name, byte_size)``: it is loaded with nothing beside it, and about this much will be used, more than the budget.
    Those that answer questions must not call back.
    """

    def __init__(
        self,
        budget: Budget,
        *,
        memory: Callable[[], int],
        busy: Callable[[str], bool],
        callers: Callable[[str], Iterable[str]],
        load: Callable[[str], None],
        unload: Callable[[str], None],
        watch: Callable[[str], None],
        oversize: Callable[[str, int], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self.budget = budget
        self.closed = False
        self._memory = memory
        self._busy = busy
        self._callers = callers
        self._load = load
        self._unload = unload
        self._watch = watch
        self._oversize = oversize
        self._failures = LoadFailures(clock_ns)
        self._places: OrderedDict[str, _Place] = OrderedDict()
        self._wishes: dict[str, Wish] = {}
        self._answers: deque[tuple[Demand, dict[str, Need], StatusError | None]] = deque()
        self._orders: deque[Callable[[], None]] = deque()
        self._entering: dict[str, Need] = {}
        self._running = self._again = False
        self._end: StatusError | None = None

    # questions

    @property
    def names(self) -> list[str]:
        """The models that count: in memory, on their way there, or on their way out; the least recently used first."""
        return list(self._places)

    def resident(self, name: str) -> bool:
        """Is it in memory, and not about to leave?"""
        place = self._places.get(name)
        return place is not None and place.phase is _Phase.RESIDENT

    @property
    def waiting(self) -> int:
        """Demands without an answer."""
        return sum(len(wish.demands) for wish in self._wishes.values())

    def failure(self, need: Need) -> StatusError | None:
        """Why a demand for it would be refused at once because of a load that has failed, or None."""
        return self._failures.of(need.closure())

    @property
    def callers_wait(self) -> bool:
        """Does a request in flight wait for room? Then ``reconsider`` must hear of each request that asks another model."""
        return any(not wish.placed and wish.callers for wish in self._wishes.values())

    # requests

    def used(self, name: str, nested: bool = False) -> bool:
        """May a request go to this model now? Marks it, and an ensemble's members, as the most recently used.

        ``nested``: a request in flight asks it. Where this is False, ``demand`` it. Constant time but for the members.
        """
        places = self._places
        place = places.get(name)
        if place is None or place.phase is not _Phase.RESIDENT:
            return False
        if self.closed and not nested and name not in self._entering:
            return False
        places.move_to_end(name)
        for member in place.members:
            if member in places:
                places.move_to_end(member)
        return True

    def demand(self, need: Need, on_ready: OnReady, caller: str = "") -> Demand:
        """Have a model loaded with all that it needs, and be told; the answer may come before this returns.

        Errors told: UNAVAILABLE where it can never fit, or where its caller would wait for ever; that of a load which failed.
        """
        demand = Demand(caller, on_ready, self._withdraw)
        needs = need.closure()
        count = self.budget.count
        if self._end is not None:
            self._answers.append((demand, needs, self._end))
        elif count is not None and len(needs) > count:
            self._answers.append((demand, needs, _never_fits(need.name, len(needs), count)))
        elif (caller or not self.closed) and self._complete(needs):
            self._touch(need.name)
            self._answers.append((demand, needs, None))
        elif (error := self._failures.of(self._missing(needs))) is not None:
            self._answers.append((demand, needs, error))
        else:
            wish = self._wishes.get(need.name)
            if wish is None:
                wish = self._wishes[need.name] = Wish(needs)
            elif not wish.placed:
                wish.needs = needs
            wish.add(demand)
            self._attach(wish)
        self._run()
        return demand

    def _withdraw(self, demand: Demand) -> None:
        wish, demand.wish = demand.wish, None
        if wish is None:
            return
        del wish.demands[demand]
        if not wish.demands:
            del self._wishes[wish.name]
        self._run()

    # facts

    def loaded(self, name: str) -> None:
        """A load has succeeded."""
        place = self._places.get(name)
        if place is None or place.phase is not _Phase.LOADING:
            return
        place.phase = _Phase.RESIDENT
        self._failures.forget(name)
        self._touch(name)
        for other, waiting in self._places.items():
            if name in waiting.awaited:
                waiting.awaited.remove(name)
                if not waiting.awaited:
                    self._orders.append(partial(self._start, other, waiting))
        for wish in list(self._wishes.values()):
            if wish.placed and name in wish.needs and self._complete(wish.needs):
                self._finish(wish, None)
        self._run()

    def failed(self, name: str, error: StatusError) -> None:
        """A load has failed, and nothing is left of it."""
        place = self._places.get(name)
        if place is None or place.phase is not _Phase.LOADING:
            return
        self._failures.note(name, error)
        lost = self._lose(name)
        for wish in list(self._wishes.values()):
            if wish.placed and not lost.isdisjoint(wish.needs):
                self._finish(wish, error)
        self._run()

    def unloaded(self, name: str) -> None:
        """A model has left memory, as decided here or for another reason."""
        if name not in self._places:
            return
        lost = self._lose(name)
        for wish in self._wishes.values():
            if not lost.isdisjoint(wish.needs):
                wish.placed = False
        self._run()

    def idle(self, name: str) -> None:
        """The last request of a model has ended."""
        place = self._places.get(name)
        if place is not None:
            place.watched = False
        self._run()

    def reconsider(self) -> None:
        """A request in flight waits for another model's now; or memory was given back for another reason."""
        self._run()

    def forget_failure(self, name: str) -> None:
        """The model's files have changed or gone: the next demand tries again."""
        self._failures.forget(name)

    def abandon(self, error: StatusError) -> None:
        """Nothing loads or leaves any more: who waits, now or later, is told ``error``."""
        self._end = error
        self._orders.clear()
        for wish in list(self._wishes.values()):
            self._finish(wish, error)
        self._run()

    # carrying out

    def _run(self) -> None:
        """Answer, start what was decided, decide: until there is nothing more of any."""
        self._again = True
        if self._running:
            return
        self._running = True
        try:
            while True:
                if self._answers:
                    self._tell(*self._answers.popleft())
                elif self._orders:
                    self._orders.popleft()()
                elif self._again:
                    self._again = False
                    self._decide()
                else:
                    return
        except Exception:
            # One callback's failure must not hold up the others.
            self._running = False
            self._run()
            raise
        finally:
            self._running = False

    def _tell(self, demand: Demand, needs: dict[str, Need], error: StatusError | None) -> None:
        if error is None and not self._complete(needs):
            # It was lost in between for a reason of others.
            error = unavailable(f"model '{next(reversed(needs))}' was unloaded before its request began")
        self._entering = needs if error is None else {}
        try:
            demand.answer(error)
        finally:
            self._entering = {}
            # Whoever did not use it leaves it idle.
            self._again = True

    def _finish(self, wish: Wish, error: StatusError | None) -> None:
        del self._wishes[wish.name]
        if error is None:
            self._touch(wish.name)
        self._answers.extend((demand, wish.needs, error) for demand in wish.take())

    def _lose(self, name: str) -> set[str]:
        """Free a place, and those of ensembles that have not begun to load and needed it; returns their names."""
        lost = {name}
        del self._places[name]
        for other, place in list(self._places.items()):
            if name in place.awaited or (place.awaited and name in place.members):
                lost.add(other)
                del self._places[other]
        return lost

    def _touch(self, name: str) -> None:
        self.used(name, nested=True)

    def _start(self, name: str, place: _Place) -> None:
        if self._places.get(name) is place:
            self._load(name)

    def _stop(self, name: str, place: _Place) -> None:
        if self._places.get(name) is place:
            self._unload(name)

    # deciding

    def _missing(self, needs: dict[str, Need]) -> list[str]:
        """Those without a place, or about to lose it; members before those that ask them."""
        places = self._places
        return [name for name in needs if (place := places.get(name)) is None or place.phase is _Phase.LEAVING]

    def _complete(self, needs: dict[str, Need]) -> bool:
        return all(self.resident(name) for name in needs)

    def _attach(self, wish: Wish) -> None:
        """Let a wish wait for loads alone where everything that it needs is there or on its way."""
        wish.placed = wish.placed or (not self._missing(wish.needs) and not self._complete(wish.needs))

    def _decide(self) -> None:
        """Give room in order as far as there is some; where there is none, have something leave.

        Ends where there is an answer to be given: what its request will use must be busy before more is decided.
        """
        while not self._answers:
            waiting = [wish for wish in self._wishes.values() if not wish.placed]
            if not waiting:
                self.closed = False
                return
            nested = [wish for wish in waiting if wish.callers]
            first = waiting[0]
            if nested:
                hopeful = self._hopeful(nested)
                if hopeful is None:
                    continue
                first = hopeful
            outlook = self._make_room(first)
            clients = [wish for wish in waiting if not wish.callers]
            if outlook is _Outlook.MET:
                if nested and clients:
                    clients[0].overtaken = True
                continue
            self.closed = outlook is _Outlook.BLOCKED or (bool(clients) and clients[0].overtaken)
            if not self.closed:
                for wish in waiting:
                    if self._complete(wish.needs):
                        self._finish(wish, None)
            return

    def _make_room(self, wish: Wish) -> _Outlook:
        """Place what a wish needs, or have as much leave as is needed and idle."""
        needs, places, budget = wish.needs, self._places, self.budget
        for name in needs.keys() & places.keys():
            # What an ensemble asks may have changed since it was loaded.
            places[name].members = _members(needs[name])
        missing = self._missing(needs)
        error = self._failures.of(missing)
        if error is not None or self._complete(needs):
            self._finish(wish, error)
            return _Outlook.MET
        leaving = sum(place.phase is _Phase.LEAVING for place in places.values())
        if budget.count is not None:
            excess = len(places) - leaving + len(missing) - budget.count
            if excess > 0:
                leavers = self._leavers(needs)[:excess]
                for name in leavers:
                    self._expel(name)
                return self._stall(needs, bool(leaving or leavers))
        if leaving and (
            any(name in places for name in missing) or (budget.count is not None and len(places) + len(missing) > budget.count)
        ):
            return _Outlook.COMING
        if budget.byte_size is not None:
            used = self._memory() + sum(needs[name].byte_size for name in missing)
            loading = sum(place.byte_size for place in places.values() if place.phase is _Phase.LOADING)
            if used + loading > budget.byte_size:
                others = places.keys() - needs.keys()
                if others and used > budget.byte_size:
                    # How much the next to leave gives back is only seen once it has left.
                    leavers = [] if leaving else self._leavers(needs)[:1]
                    for name in leavers:
                        self._expel(name)
                    return self._stall(needs, bool(leaving or leavers))
                if others:
                    # They may have taken already what they were said to need.
                    return _Outlook.COMING
                self._orders.append(partial(self._oversize, wish.name, used + loading))
        self._place(wish, missing)
        return _Outlook.MET

    def _stall(self, needs: dict[str, Need], coming: bool) -> _Outlook:
        """Nothing more can leave now: hear of those that will be able to."""
        if coming:
            return _Outlook.COMING
        for name, place in self._places.items():
            if place.phase is _Phase.RESIDENT and not place.watched and name not in needs and self._busy(name):
                place.watched = True
                self._orders.append(partial(self._watch, name))
        return _Outlook.BLOCKED

    def _place(self, wish: Wish, missing: Sequence[str]) -> None:
        """Give every model that a wish misses its place, and start the loads that wait for no other."""
        for name in missing:
            need = wish.needs[name]
            members = _members(need)
            awaited = {member for member in members if not self.resident(member)}
            place = self._places[name] = _Place(need.byte_size, members, awaited)
            if not awaited:
                self._orders.append(partial(self._start, name, place))
        wish.placed = True
        for other in self._wishes.values():
            self._attach(other)

    def _leavers(self, needs: dict[str, Need]) -> list[str]:
        """What may leave for these, the least recently used first: idle, and nobody in memory or on the way there needs it."""
        kept = set(needs)
        for place in self._places.values():
            kept.update(place.members)
        for wish in self._wishes.values():
            if wish.placed:
                kept.update(wish.needs)
        return [
            name for name, place in self._places.items() if name not in kept and place.phase is _Phase.RESIDENT and not self._busy(name)
        ]

    def _expel(self, name: str) -> None:
        place = self._places[name]
        place.phase = _Phase.LEAVING
        self._orders.append(partial(self._stop, name, place))

    # circles

    def _hopeful(self, nested: list[Wish]) -> Wish | None:
        """The first demand of a model that can be met before those behind it; None where one had to be refused."""
        pending = nested
        hopeful: Wish | None = None
        while pending:
            stuck = self._stuck(pending)
            met = [wish for wish in pending if self._attainable(wish, stuck)]
            if not met:
                refused = pending[-1]
                error = _waits_for_ever(refused.name, self.budget)
                self._answers.extend((demand, refused.needs, error) for demand in refused.take(callers_only=True))
                if not refused.demands:
                    del self._wishes[refused.name]
                return None
            hopeful = hopeful or met[0]
            pending = [wish for wish in pending if wish not in met]
        return hopeful

    def _stuck(self, pending: list[Wish]) -> set[str]:
        """The places that cannot become free before one of these demands of models is answered."""
        stuck: set[str] = set()
        found = [caller for wish in pending for caller in wish.callers]
        while found:
            name = found.pop()
            if name in stuck:
                continue
            place = self._places.get(name)
            if place is None or (place.phase is _Phase.RESIDENT and not self._busy(name)):
                continue
            stuck.add(name)
            found += self._callers(name)
        for name in list(stuck):
            stuck.update(member for member in self._places[name].members if member in self._places)
        return stuck

    def _attainable(self, wish: Wish, stuck: set[str]) -> bool:
        """Can there be room for a wish while these stay?"""
        missing = self._missing(wish.needs)
        budget = self.budget
        if not missing:
            return True
        if budget.count is not None and len(stuck | wish.needs.keys()) > budget.count:
            return False
        others = self._places.keys() - wish.needs.keys()
        if budget.byte_size is None or not others or others - stuck:
            return True
        return self._memory() + sum(wish.needs[name].byte_size for name in missing) <= budget.byte_size


def _members(need: Need) -> tuple[str, ...]:
    return tuple(name for name in need.closure() if name != need.name)


def _never_fits(name: str, needed: int, count: int) -> StatusError:
    return unavailable(
        f"model '{name}' cannot be loaded: with the models that it asks it is {needed} models, and --lazy-model-count allows {count}; "
        f"raise it to {needed} at least"
    )


def _waits_for_ever(name: str, budget: Budget) -> StatusError:
    options = [
        *(["--lazy-model-count"] if budget.count is not None else []),
        *(["--lazy-memory-byte-size"] if budget.byte_size is not None else []),
    ]
    return unavailable(
        f"model '{name}' cannot be loaded for the model that asks it: it would wait for models that wait for it to leave; "
        f"raise {' or '.join(options)}"
    )

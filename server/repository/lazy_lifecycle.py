"""Models that load at their first request: carries out what ``Residency`` decides, and tells it of what happens.

A failure to load is told as UNAVAILABLE, and remembered for a while. Files are looked at anew by each load.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from ...workers.contract.status import StatusError, internal, unavailable
from ..dispatch.dispatcher import Dispatcher
from ..log import Log
from ..options import Options
from ..statistics import VersionStatistics
from .catalogue import AT_FIRST_REQUEST, UNLOADED, Catalogue
from .creation import Creation
from .demand import Awaited, Changed, Need, OnReady
from .ensemble_members import member_names
from .generations import Generations
from .lifecycle import Lifecycle
from .residency import Budget, Residency
from .sighting import DUPLICATE, Sighting
from .version import ModelVersion


class LazyLifecycle(Lifecycle):
    """A ``Lifecycle`` that loads models one by one, as they are asked, and has them leave within the options' budget.

    ``memory()``: the bytes that all workers use. ``calling(name)``: the workers in which a request waits for one of this model.
    """

    def __init__(
        self,
        options: Options,
        creation: Creation,
        generations: Generations,
        log: Log,
        catalogue: Catalogue,
        dispatcher: Dispatcher,
        *,
        memory: Callable[[], int],
        calling: Callable[[str], Iterable[str]],
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        super().__init__(options, creation, generations, log, catalogue)
        self._load_count = self._eviction_count = 0
        self._dispatcher = dispatcher
        self._memory = memory
        self._calling = calling
        self._byte_sizes: dict[str, int] = {}
        self._past: dict[str, dict[int, VersionStatistics]] = {}
        self._moves = self._under_way = 0
        self._budget = Budget(options.lazy_model_count or None, options.lazy_memory_byte_size or None)
        self.residency = Residency(
            self._budget,
            memory=memory,
            busy=self._busy,
            callers=self._callers,
            load=lambda name: self._begin(self._enter(name)),
            unload=lambda name: self._begin(self._go(name)),
            watch=self._watch,
            oversize=self._oversize,
            clock_ns=clock_ns,
        )

    def figures(self) -> tuple[int, int, int]:
        """How many models are in memory or on their way, how many have been loaded, how many have left."""
        return len(self.residency.names), self._load_count, self._eviction_count

    # start and end

    async def start(self) -> StatusError | None:
        """Read all configurations; returns what is to be said where something is wrong with one. Raises StatusError."""
        places = await self.places()
        doubtful = [name for name, count in places.items() if count > 1]
        for name in doubtful:
            self._log.error(f"failed to poll model '{name}': {DUPLICATE}")
        failed = await self.note([name for name, count in places.items() if count == 1])
        return internal("failed to load all models") if failed or doubtful else None

    async def note(self, names: Collection[str]) -> dict[str, StatusError]:
        """Read what these models are, and load nothing. Returns why some of them cannot be loaded."""
        async with self._claims.hold(names):
            seen = await self._look((), names, {})
            if self._budget.byte_size is not None:
                await asyncio.to_thread(self._measure, [sighting for sighting in seen.values() if isinstance(sighting, Sighting)])
            renewal = self._renewal()
            renewal.note(seen)
            return renewal.failed

    def _measure(self, seen: Collection[Sighting]) -> None:
        """Note about how many bytes models will take: as many as their files."""
        for sighting in seen:
            self._byte_sizes[sighting.name] = sum(_files_byte_size(sighting.copy.directory / str(one)) for one in sighting.versions)

    def abandon(self, error: StatusError) -> None:
        """The server ends: who waits for a model is told ``error``, and nothing loads or leaves any more."""
        self.residency.abandon(error)

    async def end_operations(self) -> None:
        """As in the base class."""
        self.abandon(unavailable("Server is stopping; no model is loaded any more"))
        await super().end_operations()

    # what doors ask

    def knows(self, name: str) -> bool:
        """Is there such a model, in memory or not, working or not?"""
        return name in self._catalogue.models

    def loadable(self, name: str, version: str) -> bool:
        """Would a request have this version of a model loaded, as far as is known?"""
        model = self._catalogue.models.get(name)
        if model is None or not model.known or (version and int(version) not in model.slots):
            return False
        return self.residency.failure(self._need(name)) is None

    def demand(self, name: str, on_ready: OnReady, caller: str = "") -> Awaited:
        """Have a model loaded with what it runs; ``caller`` is the model whose request waits for it, "" where a client does."""
        for served in self._serving(caller):
            # What is staged behind an instance that waits could not go to one that does not.
            served.scheduler.staging = False
        if not self._busy(caller):
            caller = ""
        return Awaited(lambda told: self.residency.demand(self._need(name), told, caller), self._forget, on_ready)

    def _forget(self, changed: Changed) -> None:
        self.residency.forget_failure(changed.name)

    def _need(self, name: str, above: tuple[str, ...] = ()) -> Need:
        model = self._catalogue.models.get(name)
        members = frozenset() if model is None else model.members.difference((*above, name))
        return Need(name, self._byte_sizes.get(name, 0), tuple(self._need(member, (*above, name)) for member in sorted(members)))

    # what the core asks

    def _serving(self, name: str) -> list[ModelVersion]:
        model = self._catalogue.models.get(name)
        return [] if model is None else model.serving()

    def _busy(self, name: str) -> bool:
        return not all(served.idle for served in self._serving(name))

    def _callers(self, name: str) -> set[str]:
        found = {
            served.name
            for served in self._generations.all()
            if served.members and not served.idle and any(member.name == name for member in served.members.values())
        }
        return found.union(*[self._generations.models_in(worker) for worker in self._calling(name)])

    def _watch(self, name: str) -> None:
        """Tell the core once nothing of a model is busy."""
        busy = next((served for served in self._serving(name) if not served.idle), None)
        if busy is None:
            self.residency.idle(name)
        elif busy.cached is not None and not busy.cached.idle:
            busy.cached.when_idle(partial(self._watch, name))
        elif busy.carried is not None and not busy.carried.idle:
            busy.carried.when_idle(partial(self._watch, name))
        elif busy.ensemble is None:
            self._dispatcher.when_idle(busy.scheduler, partial(self._watch, name))
        else:
            busy.ensemble.when_idle(partial(self._watch, name))

    def _oversize(self, name: str, byte_size: int) -> None:
        self._log.warning(
            f"model '{name}' is loaded with no other beside it: with it the workers use about {byte_size} bytes, more than "
            f"--lazy-memory-byte-size={self._budget.byte_size}"
        )

    # what the core orders

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._moves += 1
        self._under_way += 1
        self.spawn(work)

    async def _enter(self, name: str) -> None:
        failure: StatusError | None = _not_loaded(name, "internal error")
        before, alone = self._memory_used(), self._under_way == 1
        moves = self._moves
        self._explain(name, AT_FIRST_REQUEST)
        try:
            failure = await self.bring_alone(name)
            if failure is not None and not isinstance(failure, Changed):
                self._explain(name, failure.message)
                failure = _not_loaded(name, failure.message)
        finally:
            self._under_way -= 1
            if failure is None:
                self._load_count += 1
                self._go_on_counting(name)
                if alone and moves == self._moves:
                    # Nothing else has changed the memory meanwhile, but for requests.
                    self._byte_sizes[name] = max(0, self._memory_used() - before)
                self.residency.loaded(name)
            else:
                self.residency.failed(name, failure)
                if isinstance(failure, Changed):
                    self._forget(failure)

    async def bring_alone(self, name: str) -> StatusError | None:
        """As ``bring``, but nothing else changes: the models that it runs must be there.

        Returns why it did not load, Changed where it runs others; nothing is left of it then.
        """
        async with self._claims.hold([name]):
            seen = await self._look((), [name], {})
            sighting = seen[name]
            if isinstance(sighting, Sighting) and self._runs_others(sighting):
                self._release(sighting.copy)
                return Changed(name)
            renewal = self._renewal()
            await renewal.run(seen, [name])
            failure = renewal.failed.get(name)
            model = self._catalogue.models.get(name)
            if failure is not None and model is not None:
                # The load of another model is not to try it again.
                model.wanted = False
            await self._remove(renewal.leaving)
            return failure

    def _runs_others(self, sighting: Sighting) -> bool:
        """Has an ensemble members that it did not have when it was last looked at?"""
        model = self._catalogue.models.get(sighting.name)
        members = frozenset(member_names(sighting.config))
        if model is None or members <= model.members:
            return False
        model.members = members
        return True

    def _go_on_counting(self, name: str) -> None:
        past = self._past.pop(name, {})
        for served in self._serving(name):
            if served.version in past:
                served.statistics.follow(past[served.version])

    async def _go(self, name: str) -> None:
        past = {served.version: served.statistics for served in self._serving(name)}
        try:
            async with self._claims.hold([name]):
                leaving = self._take_out(name, dependents=False)
            await self._remove(leaving)
        finally:
            self._under_way -= 1
            self._eviction_count += 1
            self._past[name] = past
            self._explain(name, AT_FIRST_REQUEST)
            self.residency.unloaded(name)

    def _explain(self, name: str, reason: str) -> None:
        """Have the index say why nothing of a model serves; what it says of a version's own failure stays until the next attempt."""
        model = self._catalogue.models.get(name)
        for slot in () if model is None else model.slots.values():
            if slot.served is None and (reason == AT_FIRST_REQUEST or slot.reason in (UNLOADED, AT_FIRST_REQUEST)):
                slot.reason = reason

    def _memory_used(self) -> int:
        return 0 if self._budget.byte_size is None else self._memory()


def _not_loaded(name: str, reason: str) -> StatusError:
    return unavailable(f"model '{name}' could not be loaded: {reason}")


def _files_byte_size(folder: Path) -> int:
    byte_size = 0
    with contextlib.suppress(OSError):
        for path in folder.rglob("*"):
            byte_size += path.stat().st_size
    return byte_size

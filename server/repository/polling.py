"""Following the repositories: what changes there is taken over without anybody asking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from ...workers.contract.status import Code, StatusError
from ..log import Log
from .catalogue import Catalogue
from .lifecycle import Lifecycle
from .settling import Settling
from .source import Source, Stamps
from .version import Model


class Polling:
    """Looks through the repositories every ``interval_secs``, and again after ``settle_secs`` where something is under way."""

    def __init__(
        self, sources: Sequence[Source], catalogue: Catalogue, lifecycle: Lifecycle, log: Log, interval_secs: float, settle_secs: float
    ) -> None:
        self._sources = sources
        self._catalogue = catalogue
        self._lifecycle = lifecycle
        self._log = log
        self._interval_secs = interval_secs
        self._settle_secs = settle_secs
        self._settling = Settling(round(settle_secs * 1e9))
        self._under_way: set[str] = set()
        self._unreadable: dict[str, str] = {}

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            # A whole change is due when it has been seen twice, which is to take no second interval.
            await asyncio.sleep(min(self._interval_secs, self._settle_secs) if self._settling.waiting else self._interval_secs)
            try:
                await self.poll()
            except Exception as error:  # noqa: BLE001
                # Whatever one look runs into, the next one is made all the same.
                self._log.error(f"failed to poll the repositories: {type(error).__name__}: {error}")

    async def poll(self) -> None:
        """Look once, and begin what it takes. What cannot be read stays as it is; what is still under way is left alone."""
        found: dict[str, Stamps] = {}
        twice: set[str] = set()
        unreadable: dict[str, str] = {}
        for source in self._sources:
            try:
                stamps = await asyncio.to_thread(_all_stamps, source, unreadable)
            except StatusError as error:
                # A store that cannot be reached has not been emptied.
                self._log.error(f"failed to poll repository '{source.name}': {error.message}; its models stay as they are")
                return
            twice.update(found.keys() & stamps.keys())
            found |= stamps
        for name, why in unreadable.items():
            if self._unreadable.get(name) != why:
                self._log.error(f"failed to poll model '{name}': {why}; it stays as it is")
        self._unreadable = unreadable
        models = self._catalogue.models
        left_alone = self._under_way | unreadable.keys()
        free = {name: stamps for name, stamps in found.items() if name not in twice and name not in left_alone}
        changed: dict[str, Stamps | None] = {
            name: stamps for name, stamps in free.items() if name not in models or models[name].stamps != stamps
        }
        gone = {
            name: None for name, model in models.items() if model.wanted and name not in left_alone and (name not in found or name in twice)
        }
        ready = self._settling.ready(changed | gone, time.monotonic_ns())
        for name in ready:
            if name in gone:
                self._log.info(f"'{name}' is not in the repositories any more, or in two of them")
                self._begin({name}, partial(self._lifecycle.drop, name))
        again = [name for name in free if name not in changed and name in models and models[name].wanted and models[name].failed]
        for group in _groups([name for name in ready if name not in gone] + again, models):
            self._begin(group, partial(self._lifecycle.bring, group))

    def _begin(self, group: set[str], work: Callable[[], Awaitable[object]]) -> None:
        """Change a group of models. One that takes for ever to load keeps nobody from being polled but those that go with it."""
        self._under_way |= group
        self._lifecycle.spawn(self._carry_out(group, work))

    async def _carry_out(self, group: set[str], work: Callable[[], Awaitable[object]]) -> None:
        try:
            await work()
        finally:
            self._under_way -= group


def _groups(names: Sequence[str], models: Mapping[str, Model]) -> list[set[str]]:
    """The names, ensembles together with the members that they run: these are to be replaced together."""
    groups: list[set[str]] = []
    for name in names:
        joined = {name}
        apart = []
        for group in groups:
            if any(one in models and models[one].runs(other) for one, other in [(name, group), *((member, {name}) for member in group)]):
                joined |= group
            else:
                apart.append(group)
        groups = [*apart, joined]
    return groups


def _all_stamps(source: Source, unreadable: dict[str, str]) -> dict[str, Stamps]:
    """The files of all models but those that cannot be looked at, whose reasons are added to ``unreadable``. Raises StatusError."""
    found: dict[str, Stamps] = {}
    for name in source.model_names():
        try:
            stamps = source.stamps(name)
        except StatusError as error:
            if error.code is Code.UNAVAILABLE:
                raise  # it is not the model's fault
            unreadable[name] = error.message
        else:
            if stamps is not None:
                found[name] = stamps
    return found

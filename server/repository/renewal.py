"""One operation on some models: from what was seen of them to what serves.

Versions are made beside those that serve, all that a model should have or none; then one turn of the loop puts them in their
place. Ensembles follow their members: one that asks a model which was replaced is made anew, and asks the new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from typing import Any

from ...workers.contract.status import StatusError, internal, invalid
from ..log import Log
from ..options import Options
from .catalogue import AT_FIRST_REQUEST, UNLOADED, Catalogue
from .change import Change, Edition, change_of
from .creation import Creation
from .ensemble_members import is_ensemble, member_names
from .ensembles import check_ensemble, ensembles_of, refused_at_once, users_of
from .shared_copy import SharedCopy
from .sighting import NotFound, NoVersions, Sighting, Unreadable
from .source import Copy
from .version import Model, ModelVersion, State, VersionSlot


class Renewal:
    """``failed`` says why models did not load; ``leaving`` is what was replaced, ensembles first, and waits to be removed.

    ``loading`` bounds how many load at once, ``fill`` makes the files of an edition complete, ``release`` takes copies that nobody uses
    any more, ``spawn`` runs what is to go on by itself.
    """

    def __init__(
        self,
        options: Options,
        catalogue: Catalogue,
        creation: Creation,
        log: Log,
        loading: asyncio.Semaphore,
        fill: Callable[[Edition], Awaitable[None]],
        release: Callable[[Copy], None],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.failed: dict[str, StatusError] = {}
        self.leaving: list[ModelVersion] = []
        self._options = options
        self._catalogue = catalogue
        self._creation = creation
        self._log = log
        self._loading = loading
        self._fill = fill
        self._release = release
        self._spawn = spawn
        self._renewed: set[str] = set()

    async def run(self, seen: Mapping[str, Sighting | StatusError], asked: Collection[str]) -> None:
        """Carry it out. ``asked`` are the models that were named; others of ``seen`` are there because an ensemble runs them."""
        editions = {name: edition for name, sighting in seen.items() if (edition := self._taken(name, sighting, asked)) is not None}
        for name in editions:
            model = self._catalogue.models[name]
            model.implicit = model.implicit if model.wanted else name not in asked
            model.wanted = True
        await asyncio.gather(*[self._renew(name, edition) for name, edition in editions.items() if not is_ensemble(edition.config)])
        await self._renew_ensembles({name: edition for name, edition in editions.items() if is_ensemble(edition.config)})

    def note(self, seen: Mapping[str, Sighting | StatusError]) -> None:
        """Note what was seen, and load nothing: that is for the first who asks."""
        editions = {name: edition for name, sighting in seen.items() if (edition := self._taken(name, sighting, ())) is not None}
        models = self._catalogue.models
        refused = refused_at_once(ensembles_of({name: edition.config for name, edition in editions.items()}), models)
        for name, edition in editions.items():
            edition.copy.drop()
            if name in refused:
                self._refuse_ensemble(name, refused[name])
            else:
                models[name].slots = {version: VersionSlot(version, State.UNAVAILABLE, AT_FIRST_REQUEST) for version in edition.versions}

    def _taken(self, name: str, sighting: Sighting | StatusError, asked: Collection[str]) -> Edition | None:
        """What was seen of a model, noted; None where it cannot be loaded."""
        if isinstance(sighting, NotFound):
            self._refuse(name, sighting, sighting.log)
            return None
        model = self._catalogue.models.setdefault(name, Model(name))
        if isinstance(sighting, Sighting | Unreadable | NoVersions):
            model.stamps = sighting.stamps
        if isinstance(sighting, Sighting):
            model.members = frozenset(member_names(sighting.config))
        elif name in asked:
            model.wanted = True
        if isinstance(sighting, StatusError):
            if isinstance(sighting, NoVersions):
                model.known = True
                for note in sighting.errors:
                    self._log.error(note)
            line = sighting.log if isinstance(sighting, Unreadable) else f"failed to load model '{name}': {sighting.message}"
            self._refuse(name, sighting, line)
            return None
        model.known = True
        if model.edition is not None and model.edition.overridden and not sighting.overridden and model.edition.stamps == sighting.stamps:
            # What a request has overridden stays so until the files change.
            model.fault, model.failed = "", False
            self._release(sighting.copy)
            return None
        for note in sighting.warnings:
            self._log.warning(note)
        for note in sighting.errors:
            self._log.error(note)
        copy = SharedCopy(sighting.copy, self._release)
        return Edition(name, sighting.config, sighting.versions, sighting.stamps, copy, sighting.overridden, sighting.namespace)

    def _refuse(self, name: str, error: StatusError, line: str) -> None:
        self.failed[name] = error
        self._log.error(line)
        model = self._catalogue.models.get(name)
        if model is not None:
            model.fault, model.failed = error.message, True

    # models

    async def _renew(self, name: str, edition: Edition, again: bool = False) -> None:
        """Make what an edition asks for, and put it in its place. ``again``: also versions that have not changed."""
        model = self._catalogue.models[name]
        model.fault = ""
        down = [served.version for served in model.serving() if not served.healthy]
        change = change_of(None if again else model.edition, model.ready_versions, edition, down)
        for version in change.load:
            slot = model.slots.setdefault(version, VersionSlot(version))
            if slot.state is not State.READY:
                slot.state, slot.reason = State.LOADING, ""
        resized = [served for served in model.serving() if served.version in change.resize]
        made, grown = await asyncio.gather(
            asyncio.gather(*[self._make(model.slots[version], edition) for version in change.load]),
            asyncio.gather(*[self._grow(served, edition) for served in resized]),
        )
        failures = [one for one in (*made, *grown) if isinstance(one, str)]
        if failures:
            self._give_up(model, [one for one in made if isinstance(one, ModelVersion)])
            for served in resized:
                self._spawn(self._creation.trim(served, served.config))
            edition.copy.drop()
            self.failed[name] = invalid("".join(failures))
            model.failed = True
            self._log.info(f"failed to load '{name}'")
            return
        self._switch(model, edition, change, [one for one in made if isinstance(one, ModelVersion)], resized)
        if change.load:
            self._log.info(f"successfully loaded '{name}'")

    def _switch(self, model: Model, edition: Edition, change: Change, made: list[ModelVersion], resized: list[ModelVersion]) -> None:
        """The new takes over, all of it in this turn of the loop."""
        for served in made:
            slot = model.slots[served.version]
            if slot.served is not None:
                served.statistics.follow(slot.served.statistics)
                self.leaving.append(slot.served)
            slot.served, slot.state, slot.leaving = served, State.READY, None
        for served in resized:
            self._spawn(self._creation.trim(served, edition.config))
        self.leaving += model.leave(change.retire)
        for version in edition.versions:
            model.slots[version].reason = ""
        model.take_over(edition)
        model.failed = False
        for version in [version for version, slot in model.slots.items() if slot.state is State.UNAVAILABLE and slot.reason != UNLOADED]:
            # It failed once, and is not to be there any more.
            del model.slots[version]
        if made or change.retire:
            self._renewed.add(model.name)
            self._catalogue.on_change()

    def _give_up(self, model: Model, made: list[ModelVersion]) -> None:
        """A version did not load, so what loaded beside it goes again."""
        for served in made:
            slot = model.slots[served.version]
            if slot.served is None:
                slot.state, slot.leaving = State.UNLOADING, served
            self.leaving.append(served)

    async def _make(self, slot: VersionSlot, edition: Edition) -> ModelVersion | str:
        """A version, or what is to be told of its failure."""
        name = edition.name
        reason = ""
        async with self._loading:
            for attempt in range(max(0, self._options.model_load_retry_count) + 1):
                self._log.info(f"loading: {name}:{slot.version}")
                try:
                    await self._fill(edition)
                    served = await self._creation.create(edition, slot.version, self._catalogue.find_number)
                except Exception as error:  # noqa: BLE001
                    # Whatever it runs into, nothing stays half loaded, neither this nor what loads beside it.
                    reason = _reason(error)
                    self._log.error(f"failed to load '{name}' version {slot.version}: {_in_full(error)}")
                else:
                    if attempt:
                        self._log.info(f"'{name}' version {slot.version} was loaded at attempt {attempt + 1}")
                    return served
        slot.reason = reason
        if slot.served is None:
            slot.state = State.UNAVAILABLE
        return f"version {slot.version} is at UNAVAILABLE state: {reason};"

    async def _grow(self, served: ModelVersion, edition: Edition) -> str | None:
        """Add the instances that an edition wants and a version lacks, or say what is to be told of the failure."""
        try:
            async with self._loading:
                await self._creation.grow(served, edition.config)
        except Exception as error:  # noqa: BLE001
            # As with versions.
            reason = self._catalogue.models[served.name].slots[served.version].reason = _reason(error)
            self._log.error(f"failed to change the instances of '{served.name}' version {served.version}: {_in_full(error)}")
            return f"version {served.version} is at READY state: {reason};"
        return None

    # ensembles

    async def _renew_ensembles(self, editions: dict[str, Edition]) -> None:
        """Those that were seen, and those that run what has been renewed; members before those that run them."""
        models = self._catalogue.models
        above = {name: edition for name in users_of(self._renewed | set(editions), models) if (edition := models[name].edition) is not None}
        # In this order, so that each finds its members as they will be.
        configs = ensembles_of({name: edition.config for name, edition in (above | editions).items()})
        refused = refused_at_once({name: config for name, config in configs.items() if name in editions}, models)
        for name, config in configs.items():
            again = not self._renewed.isdisjoint(member_names(config)) or self._outdated(name)
            if name in refused:
                editions[name].copy.drop()
                self._refuse_ensemble(name, refused[name])
            elif name in editions or again:
                await self._renew_ensemble(name, editions.get(name), again)

    def _outdated(self, name: str) -> bool:
        """Does an ensemble still ask what has been replaced, because it could not be made anew then?"""
        models = self._catalogue.models
        members = [member for served in models[name].serving() for member in served.members.values()]
        return any((slot := models[member.name].slots.get(member.version)) is None or slot.served is not member for member in members)

    def _refuse_ensemble(self, name: str, error: StatusError) -> None:
        """It does not fit its members: it is as little known as a model without a configuration."""
        model = self._catalogue.models[name]
        model.known = bool(model.slots)
        self._refuse(name, error, error.reason)
        if model.edition is not None and not self._renewed.isdisjoint(member_names(model.edition.config)):
            # What its members were is going; it comes back once it fits what they are now.
            self.leaving[:0] = model.leave(model.ready_versions)
            model.take_over(None)
            self._renewed.add(name)

    async def _renew_ensemble(self, name: str, edition: Edition | None, again: bool) -> None:
        """Make an ensemble of ``edition``, or, where only its members have changed, of the one it has."""
        model = self._catalogue.models[name]
        if edition is None:
            assert model.edition is not None
            edition = replace(model.edition, copy=model.edition.copy.take())
        try:
            check_ensemble(edition.config, self._catalogue.models, self._catalogue.find_number)
        except StatusError as error:
            self._refuse_ensemble(name, error)
            edition.copy.drop()
        else:
            await self._renew(name, edition, again)


def _reason(error: Exception) -> str:
    """What clients are told of a failure; what no StatusError says may be anything."""
    return error.reason if isinstance(error, StatusError) else internal(f"unexpected {type(error).__name__}").reason


def _in_full(error: Exception) -> str:
    """What the log has of it."""
    return error.reason if isinstance(error, StatusError) else f"{_reason(error)}: {error}"

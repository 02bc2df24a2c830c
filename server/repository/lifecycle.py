"""Model control: what is loaded, replaced and unloaded, and when.

A load is made beside what serves, and takes over in one turn of the loop once all of it is ready: requests go to the one or the
other as a whole. What it replaces finishes its requests and goes. One that fails changes nothing but what the index says.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ...workers.contract.status import StatusError, internal, invalid, unavailable
from ..log import Log
from ..options import Options
from .catalogue import UNLOADED, Catalogue, IndexEntry
from .change import Edition
from .claims import Claims
from .creation import Creation
from .ensemble_members import member_names
from .ensembles import users_of
from .generations import Generations
from .override import Override, OverrideFiles, override_of
from .renewal import Renewal
from .sighting import DUPLICATE, NOT_FOUND, NotFound, Sighting, Unreadable, check_name, look
from .source import Copy, Source
from .version import ModelVersion, State

T = TypeVar("T")

ALL = "*"
"""As a name of --load-model: every model of the repositories."""

EXPLICIT_ONLY = "explicit model load / unload is not allowed if polling is enabled"


class Lifecycle:
    """Loads and unloads the models of the repositories. Loop thread only; files are read in threads.

    ``namespace`` is the name space that they are in, "" where there are none; ``elsewhere`` are the repositories of others, in which
    ensembles find members that their own does not have.
    """

    def __init__(
        self,
        options: Options,
        creation: Creation,
        generations: Generations,
        log: Log,
        catalogue: Catalogue,
        namespace: str = "",
        elsewhere: Sequence[Source] = (),
    ) -> None:
        self._options = options
        self._sources: Sequence[Source] = ()
        self._namespace = namespace
        self._elsewhere = elsewhere
        self._catalogue = catalogue
        self._creation = creation
        self._generations = generations
        self._log = log
        self._claims = Claims()
        self._override_files = OverrideFiles()
        self._loading = asyncio.Semaphore(options.model_load_thread_count)
        # Downloads take minutes: in threads of their own they keep nobody else from reading a file.
        self._downloads = ThreadPoolExecutor(options.model_load_thread_count, "download")
        self._background: set[asyncio.Task[Any]] = set()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def open(self, sources: Sequence[Source]) -> None:
        """These are the repositories."""
        self._sources = sources

    # what there is

    async def places(self) -> Counter[str]:
        """In how many repositories each model name is found. Raises StatusError where one cannot be read."""
        found = await asyncio.gather(*[asyncio.to_thread(source.model_names) for source in self._sources])
        return Counter(name for names in found for name in names)

    async def index(self, ready_only: bool) -> list[IndexEntry]:
        """What the repositories hold, and how it fares. Raises StatusError."""
        return self._catalogue.index(await self.places(), ready_only)

    # operations

    async def start(self) -> StatusError | None:
        """Load what is to be there from the start. Returns what is to be said where not all of it did."""
        wanted: Collection[str] = self._options.load_model
        if self._namespace:
            places = await self.places()
            wanted = [name for name in wanted if name in places or name == ALL]
        named = True
        doubtful = False
        if self._options.model_control_mode != "explicit" or ALL in wanted:
            places = await self.places()
            for name, count in places.items():
                if count > 1:
                    doubtful = True
                    self._log.error(f"failed to poll model '{name}': {DUPLICATE}")
            wanted = [name for name, count in places.items() if count == 1]
            named = False
        failed = await self.bring(wanted)
        if not failed and not doubtful:
            return None
        if named and not any(isinstance(error, Unreadable) for error in failed.values()):
            name, error = next(iter(failed.items()))
            return _not_loaded(name, error)
        return internal("failed to load all models")

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Load a model, or take over how it has changed; returns once it serves. Raises StatusError."""
        check_explicit(self._options)
        check_name(name)
        # Whoever asks may go away meanwhile; what was begun is finished.
        work = self.spawn(self._load(name, parameters))
        await asyncio.wait((work, self._end), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            raise unavailable("Server is stopping; the load was given up")
        failure = work.result()
        if failure is not None:
            raise failure

    async def _load(self, name: str, parameters: Mapping[str, object]) -> StatusError | None:
        try:
            override = override_of(parameters, self._override_files)
        except StatusError as error:
            self._log.error(f"Poll failed for model directory '{name}': {error.message}")
            return _not_polled(name, error)
        failure = (await self.bring([name], {} if override is None else {name: override})).get(name)
        if failure is None:
            return None
        return _not_polled(name, failure) if isinstance(failure, Unreadable) else _not_loaded(name, failure)

    async def unload(self, name: str, dependents: bool) -> None:
        """Take a model out of service at once; what it holds is freed once its requests have ended. Raises StatusError.

        ``dependents``: the models that an ensemble runs leave too, where nothing but ensembles asked for them.
        """
        check_explicit(self._options)
        await asyncio.shield(self.spawn(self._unload(name, dependents)))

    async def drop(self, name: str) -> None:
        """Take a model out of service that the repositories do not have any more."""
        await self._unload(name, dependents=False)
        # If it comes back as it was, it is new all the same.
        self._catalogue.models[name].stamps = None

    async def _unload(self, name: str, dependents: bool) -> None:
        family = {name}
        while True:
            async with self._claims.hold(family):
                wider = {name, *(self._members_below(name) if dependents else ())}
                wider |= users_of(wider, self._catalogue.models)
                if wider <= family:
                    self._retire(self._take_out(name, dependents))
                    return
            family |= wider

    def _members_below(self, name: str) -> set[str]:
        found: set[str] = set()
        queue = [name]
        while queue:
            model = self._catalogue.models.get(queue.pop())
            members = frozenset[str]() if model is None else model.all_members
            queue += members - found
            found |= members
        return found

    def _take_out(self, name: str, dependents: bool) -> list[ModelVersion]:
        """Nothing of a model can be asked any more, nor can the ensembles that run it; returns what served them."""
        models = self._catalogue.models
        model = models.get(name)
        if model is None:
            return []
        members = sorted(model.all_members) if dependents else []
        users = [models[user] for user in users_of({name}, models)]
        leaving = [served for one in (*users, model) for served in one.leave(one.ready_versions)]
        for one in (*users, model):
            one.take_over(None)
        for user in users:
            self._log.error(f"ensemble '{user.name}' is unloaded until '{name}', which it depends on, is loaded again")
        model.wanted, model.implicit, model.fault = False, False, ""
        for member in members:
            found = models.get(member)
            if found is not None and found.implicit and found.wanted and not users_of({member}, models):
                leaving += self._take_out(member, dependents)
        self._catalogue.on_change()
        return leaving

    async def bring(self, names: Collection[str], overrides: Mapping[str, Override] | None = None) -> dict[str, StatusError]:
        """Take over what the repositories, or ``overrides``, have of these models and of those that they run.

        Returns why models that were asked for, or that they run, did not load.
        """
        models = self._catalogue.models
        family = set(names)
        while True:
            async with self._claims.hold(family):
                # Those that failed for want of a member may do now.
                waiting = {user for user in users_of(names, models) if user in family and self._waits(user, names)}
                seen = await self._look(family, {*names, *waiting}, overrides or {})
                members = _members_of(seen.values())
                wider = {*names, *members} | users_of({*names, *members}, models)
                if wider <= family:
                    renewal = self._renewal()
                    await renewal.run(seen, names)
                    self._retire(renewal.leaving)
                    return renewal.failed
                for sighting in seen.values():
                    if isinstance(sighting, Sighting):
                        self._release(sighting.copy)
            family |= wider

    def _waits(self, name: str, names: Collection[str], above: Collection[str] = ()) -> bool:
        """Is an ensemble not there for want of these models alone? What was unloaded is not to come back because another is loaded."""
        models = self._catalogue.models
        model = models[name]
        others = model.all_members.difference(names)
        if model.ready_versions or name in above or not all(member in models and models[member].wanted for member in others):
            return False
        absent = [member for member in others if models[member].all_members and not models[member].ready_versions]
        return all(self._waits(member, names, (*above, name)) for member in absent)

    def _renewal(self) -> Renewal:
        return Renewal(self._options, self._catalogue, self._creation, self._log, self._loading, self._fill, self._release, self.spawn)

    async def _look(
        self, family: Collection[str], names: Collection[str], overrides: Mapping[str, Override]
    ) -> dict[str, Sighting | StatusError]:
        """What these models, and those of ``family`` that they run, are like now."""
        seen: dict[str, Sighting | StatusError] = {}
        queue = list(names)
        while queue:
            looks = [asyncio.to_thread(self._seen, name, overrides.get(name)) for name in queue]
            found = dict(zip(queue, await asyncio.gather(*looks), strict=True))
            seen |= found
            queue = sorted(member for member in _members_of(found.values()) if member in family and member not in seen)
        return seen

    def _seen(self, name: str, override: Override | None) -> Sighting | StatusError:
        """One model, looked at in a thread."""
        try:
            return look(name, self._sources, self._options, override, self._namespace)
        except NotFound as error:
            try:
                return look(name, self._elsewhere, self._options, None, self._namespace)
            except StatusError:
                return error
        except StatusError as error:
            return error
        except Exception as error:  # noqa: BLE001
            # Whatever one model's files hold, those that are looked at beside it are not to suffer.
            why = f"unexpected {type(error).__name__}"
            return Unreadable(why, f"Poll failed for model directory '{name}': {why}: {error}")

    # the end of versions

    def _retire(self, leaving: Sequence[ModelVersion]) -> None:
        """Remove versions once they have finished their requests, and nothing is left that asks them."""
        if leaving:
            self.spawn(self._remove(leaving))

    async def _remove(self, leaving: Sequence[ModelVersion]) -> None:
        await asyncio.gather(*[self._remove_one(served) for served in leaving])

    async def _remove_one(self, served: ModelVersion) -> None:
        while users := [other for other in self._generations.all() if served in other.members.values()]:
            await asyncio.gather(*[user.gone.wait() for user in users])
        await self._creation.remove(served)
        served.statistics.closed = True
        slot = self._catalogue.models[served.name].slots.get(served.version)
        if slot is not None and slot.leaving is served:
            slot.leaving = None
            if slot.state is State.UNLOADING:
                slot.state, slot.reason = State.UNAVAILABLE, UNLOADED
        self._log.info(f"successfully unloaded '{served.name}' version {served.version}")

    def renew(self, served: ModelVersion) -> None:
        """Load a model anew whose files are others than those that it serves from."""
        self.spawn(self.bring([served.name]))

    def give_up_loads(self) -> None:
        """What load requests wait for is of no use any more: the server ends."""
        if not self._end.done():
            self._end.set_result(None)

    async def end_operations(self) -> None:
        """Give up what is under way: the server ends."""
        for source in self._sources:
            source.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)

    async def unload_all(self, timeout_secs: float) -> None:
        """Unload everything once nothing is in flight, so that models can clean up; what takes longer is cut short by the farm's end."""
        await self.end_operations()
        unloading = [asyncio.ensure_future(self._creation.remove(served)) for served in self._generations.all()]
        if unloading:
            _, late = await asyncio.wait(unloading, timeout=timeout_secs)
            for task in late:
                task.cancel()
            if late:
                self._log.warning(f"{len(late)} model versions were not unloaded within {timeout_secs:g} s")
        await asyncio.to_thread(self._override_files.close)
        self._downloads.shutdown(wait=False, cancel_futures=True)

    async def _fill(self, edition: Edition) -> None:
        """Make the files of an edition's versions complete. Raises StatusError."""
        await asyncio.get_running_loop().run_in_executor(self._downloads, edition.copy.files.fill, edition.versions)

    def _release(self, copy: Copy) -> None:
        self.spawn(asyncio.to_thread(copy.release))

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something beside everything else, until the server ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _members_of(seen: Iterable[Sighting | StatusError]) -> set[str]:
    return {member for sighting in seen if isinstance(sighting, Sighting) for member in member_names(sighting.config)}


def check_explicit(options: Options) -> None:
    """Refuse load and unload requests where the repositories decide what is loaded. Raises StatusError UNAVAILABLE."""
    if options.model_control_mode != "explicit":
        raise unavailable(EXPLICIT_ONLY)


def missing(name: str) -> StatusError:
    """What a load request for a model that no repository has is told."""
    return _not_polled(name, NotFound(NOT_FOUND, ""))


def _not_loaded(name: str, why: StatusError) -> StatusError:
    return invalid(f"load failed for model '{name}': {why.message}\n")


def _not_polled(name: str, why: StatusError) -> StatusError:
    """What a client is told: the protocol's words, and the reason, which the original keeps to its log."""
    return internal(f"failed to load '{name}', failed to poll from model repository: {why.message}")

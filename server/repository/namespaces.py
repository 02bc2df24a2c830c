"""Models of the same name side by side (``--model-namespacing``): each repository is a name space with models of its own.

A request can name no name space, so a name means the one model that can be asked by it. Ensembles find their members in their own
repository, else in the only other one that has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from ...workers.contract.status import StatusError, internal, invalid, not_found
from ..options import Options
from .catalogue import Catalogue, IndexEntry
from .lifecycle import ALL, Lifecycle, check_explicit, missing
from .sighting import check_name
from .source import Source
from .version import ModelVersion


class Namespaces:
    """What a ``Catalogue`` and a ``Lifecycle`` are to the server, over one pair of them for each repository.

    ``make(catalogue, namespace, elsewhere)`` makes the lifecycle of a repository; ``elsewhere`` are the other ones.
    """

    def __init__(self, options: Options, make: Callable[[Catalogue, str, Sequence[Source]], Lifecycle]) -> None:
        self._options = options
        self._make = make
        self._pairs: list[tuple[Source, Catalogue, Lifecycle]] = []
        self.on_change: Callable[[], None] = lambda: None

    def open(self, sources: Sequence[Source]) -> None:
        """These are the repositories."""
        for source in sources:
            catalogue = Catalogue()
            catalogue.on_change = self._changed
            lifecycle = self._make(catalogue, source.name, [other for other in sources if other is not source])
            lifecycle.open([source])
            self._pairs.append((source, catalogue, lifecycle))

    def _changed(self) -> None:
        self.on_change()

    @property
    def pairs(self) -> list[tuple[Source, Catalogue, Lifecycle]]:
        """Each repository with its models and their control."""
        return self._pairs

    # what there is

    def find(self, name: str, version: str) -> ModelVersion:
        """The version a request means. Raises StatusError with the protocol's lookup texts."""
        having = [catalogue for _, catalogue, _ in self._pairs if catalogue.ready_versions(name)]
        if len(having) > 1:
            several = f"There are {len(having)} identifiers of model '{name}' in global map"
            raise invalid(f"{several}, model namespace must be provided to resolve ambiguity.")
        if not having:
            raise not_found(f"Identifier of model '{name}' is not found in global map")
        return having[0].find(name, version)

    def find_number(self, name: str, version: int) -> ModelVersion:
        """As ``find``, for those inside the server, who name versions by number: -1 is the newest."""
        return self.find(name, "" if version < 0 else str(version))

    def ready_versions(self, name: str) -> list[int]:
        """The versions of a model that can be asked, ascending."""
        return sorted({version for _, catalogue, _ in self._pairs for version in catalogue.ready_versions(name)})

    def versions(self) -> list[ModelVersion]:
        """Every ready version, by repository, then name, then version."""
        return [version for _, catalogue, _ in self._pairs for version in catalogue.versions()]

    def counted(self) -> list[ModelVersion]:
        """As ``versions``, with those that are on their way out."""
        return [version for _, catalogue, _ in self._pairs for version in catalogue.counted()]

    def all_ready(self) -> bool:
        """Is every model that is wanted fully there?"""
        return all(catalogue.all_ready() for _, catalogue, _ in self._pairs)

    def status_rows(self) -> list[tuple[str, str, str]]:
        """Model, version and state of every known model, for people."""
        return [row for _, catalogue, _ in self._pairs for row in catalogue.status_rows()]

    async def index(self, ready_only: bool) -> list[IndexEntry]:
        """What the repositories hold, one after the other. Raises StatusError."""
        found = await asyncio.gather(*[lifecycle.index(ready_only) for _, _, lifecycle in self._pairs])
        return [entry for entries in found for entry in entries]

    # operations

    async def start(self) -> StatusError | None:
        """Load what is to be there from the start. Returns what is to be said where not all of it did."""
        for name in self._options.load_model:
            if name != ALL and not await self._having(name):
                return internal("failed to load all models")
        failures = await asyncio.gather(*[lifecycle.start() for _, _, lifecycle in self._pairs])
        return next((failure for failure in failures if failure is not None), None)

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Load every model of this name. Raises StatusError."""
        check_explicit(self._options)
        check_name(name)
        having = await self._having(name)
        if not having:
            raise missing(name)
        failures = await asyncio.gather(*[lifecycle.load(name, parameters) for lifecycle in having], return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure

    async def unload(self, name: str, dependents: bool) -> None:
        """Unload every model of this name. Raises StatusError."""
        await asyncio.gather(*[lifecycle.unload(name, dependents) for _, _, lifecycle in self._pairs])

    async def _having(self, name: str) -> list[Lifecycle]:
        names = await asyncio.gather(*[asyncio.to_thread(source.model_names) for source, _, _ in self._pairs])
        return [lifecycle for (_, _, lifecycle), found in zip(self._pairs, names, strict=True) if name in found]

    def renew(self, served: ModelVersion) -> None:
        """Load a model anew whose files are others than those that it serves from."""
        for _, catalogue, lifecycle in self._pairs:
            if served in catalogue.versions():
                lifecycle.renew(served)

    def give_up_loads(self) -> None:
        """What load requests wait for is of no use any more: the server ends."""
        for _, _, lifecycle in self._pairs:
            lifecycle.give_up_loads()

    async def unload_all(self, timeout_secs: float) -> None:
        """Unload everything once nothing is in flight; what takes longer is cut short by the farm's end."""
        for _, _, lifecycle in self._pairs:
            await lifecycle.end_operations()
        for _, _, lifecycle in self._pairs:
            await lifecycle.unload_all(timeout_secs)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside everything else, until the server ends."""
        return self._pairs[0][2].spawn(work)

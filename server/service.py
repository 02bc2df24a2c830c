"""The one object behind every door: models, requests, regions, state."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from ..shm.arena import Arena
from ..shm.placement import Lease
from ..workers.contract.status import invalid, unavailable, unsupported
from .admission import Admission
from .cuda_regions import CudaRegions
from .dispatch.request import Request
from .gpus import Gpus
from .inference_service import InferenceService
from .log import LogSettings
from .options import Options
from .prometheus_text import Family
from .regions import NO_REGIONS, RegionRegistry
from .release import EXTENSIONS, PROTOCOL_VERSION
from .repository.catalogue import Catalogue, IndexEntry
from .repository.demand import Awaited, NotResident, OnReady
from .repository.lifecycle import Lifecycle
from .repository.namespaces import Namespaces
from .repository.readiness import ReadinessChecks
from .repository.version import ModelVersion


def _no_worker(lease: Lease) -> memoryview:
    raise unavailable("there is no worker")


async def _nobody_asks() -> None:
    """Nobody else keeps what models are like."""


class Service(InferenceService):
    """What doors may ask of the server. Loop thread only; every refusal is a StatusError.

    ``on_change`` is awaited before anybody hears that a model has been loaded or unloaded. ``family_of`` gives metrics of models.
    """

    def __init__(
        self,
        options: Options,
        catalogue: Catalogue | Namespaces,
        lifecycle: Lifecycle | Namespaces,
        readiness: ReadinessChecks,
        regions: RegionRegistry,
        arena: Arena,
        log_settings: LogSettings,
        worker_view: Callable[[Lease], memoryview] = _no_worker,
        admission: Admission | None = None,
        cuda_regions: CudaRegions | None = None,
    ) -> None:
        super().__init__(options, arena, admission or Admission())
        self.server_id = options.id
        self.version = PROTOCOL_VERSION
        self.extensions: tuple[str, ...] = EXTENSIONS
        self.regions = regions
        self.cuda_regions = cuda_regions or CudaRegions(regions, Gpus())
        self.log_settings = log_settings
        self._worker_view = worker_view
        self.started = False
        self.exiting = False
        self.on_change: Callable[[], Awaitable[None]] = _nobody_asks
        self.family_of: Callable[[str], Family | None] = lambda name: None
        self._catalogue = catalogue
        self._lifecycle = lifecycle
        self._readiness = readiness

    @property
    def live(self) -> bool:
        """Has the server started, and is it not about to end?"""
        return self.started and not self.exiting

    def ready(self) -> bool:
        """Can the server be sent requests? With strict readiness: to every model of the repository."""
        return self.live and (not self.options.strict_readiness or self._catalogue.all_ready())

    def find(self, name: str, version: str = "") -> ModelVersion:
        """The version of a model that a request means; the newest ready one where it says none.

        Raises StatusError: NOT_FOUND, or UNAVAILABLE for a version that is not ready.
        """
        return self._catalogue.find(name, version)

    def find_number(self, name: str, version: int) -> ModelVersion:
        """As ``find``, for those inside the server, who name versions by number: -1 is the newest."""
        return self._catalogue.find_number(name, version)

    def bring(self, absent: NotResident, on_ready: OnReady, caller: str = "") -> Awaited:
        """Have a model loaded that ``find`` has not found in memory: only lazy loading knows of such."""
        raise absent

    def ready_versions(self, name: str) -> list[int]:
        """The versions of a model that can be asked, ascending."""
        return self._catalogue.ready_versions(name)

    def version_ready(self, name: str, version: str = "") -> bool:
        """Is there a live instance of it? Raises what ``find`` raises."""
        return self.find(name, version).healthy

    @property
    def checks(self) -> bool:
        """Has any model a readiness check of its own?"""
        return any(version.checks for version in self._catalogue.versions())

    async def asked_version_ready(self, name: str, version: str = "") -> bool:
        """As ``version_ready``, with the model's own check. Raises what ``find`` raises."""
        return await self._readiness.ready(self.find(name, version))

    async def asked_ready(self) -> bool:
        """As ``ready``, with the models' own checks."""
        if not self.ready() or not self.options.strict_readiness:
            return self.ready()
        return all(await asyncio.gather(*[self._readiness.ready(version) for version in self.versions()]))

    def versions(self) -> list[ModelVersion]:
        """Every ready version, by name, then version."""
        return self._catalogue.versions()

    def reported(self, name: str = "", version: str = "") -> list[ModelVersion]:
        """The ready versions that statistics are asked of: all, those of a model, or one. Raises StatusError INVALID_ARG."""
        versions = self.versions()
        if not name:
            return versions
        versions = [one for one in versions if one.name == name]
        if not versions:
            raise invalid(f"requested model '{name}' is not available")
        if version:
            versions = [one for one in versions if one.version == int(version)]
            if not versions:
                raise invalid(f"requested model version is not available for model '{name}'")
        return versions

    def counted(self) -> list[ModelVersion]:
        """As ``versions``, with those that are on their way out."""
        return self._catalogue.counted()

    async def index(self, ready_only: bool) -> list[IndexEntry]:
        """What the repositories hold and how it fares. Raises StatusError where one cannot be read."""
        return await self._lifecycle.index(ready_only)

    async def load(self, name: str, parameters: Mapping[str, object]) -> None:
        """Load or reload a model; ``parameters`` are those of the repository extension, files as bytes. Raises StatusError."""
        try:
            await self._lifecycle.load(name, parameters)
        finally:
            await self.on_change()

    async def unload(self, name: str, dependents: bool) -> None:
        """Unload a model, with ``dependents`` also what only it needs. Raises StatusError."""
        try:
            await self._lifecycle.unload(name, dependents)
        finally:
            await self.on_change()

    def check_shm_allowed(self, peer_is_local: bool) -> None:
        """Raises StatusError UNSUPPORTED where a client may not register shared memory."""
        if not self.client_shm_allowed(peer_is_local):
            raise unsupported("Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.")

    def regions_for(self, peer_is_local: bool) -> RegionRegistry:
        """As the base class says."""
        return self.regions if self.client_shm_allowed(peer_is_local) else NO_REGIONS

    def custom_family(self, name: str) -> Family | None:
        """As the base class says."""
        return self.family_of(name)

    def view(self, lease: Lease) -> memoryview:
        """The bytes of a lease, in the server's arena or a worker's. Raises StatusError where that worker has gone."""
        return self._worker_view(lease) if lease.arena else self.arena.view(lease)

    def ask(self, model: str, version: int, request: Request) -> Callable[[], None]:
        """Submit a request that comes from inside the server; returns what cancels it. ``version`` -1 is the newest. Raises StatusError."""
        return self._submitted(self.find_number(model, version), request)

    def ask_member(self, members: Mapping[tuple[str, int], ModelVersion], model: str, version: int, request: Request) -> Callable[[], None]:
        """As ``ask``, for an ensemble, whose requests go to the very versions that it was made for as long as these take any."""
        member = members[model, version]
        return self._submitted(self.find_number(model, version) if member.stopping else member, request)

    def _submitted(self, version: ModelVersion, request: Request) -> Callable[[], None]:
        self._submit(version, request)
        return partial(self.cancel, version, request)

    def _hold(self, request: Request, regions: tuple[int, ...]) -> None:
        self.regions.hold(regions)
        request.regions = regions
        inner = request.on_finish

        def on_finish() -> None:
            self.regions.release(regions)
            if inner is not None:
                inner()

        request.on_finish = on_finish

    def _let_go(self, regions: tuple[int, ...]) -> None:
        self.regions.release(regions)

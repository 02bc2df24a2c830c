"""One version of a model, from its loading to its end."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ...workers.contract.backends import CPU_ONLY, PYTHON, keeps_to_cpu
from ...workers.contract.messages import InstanceSpec, Load
from ...workers.contract.signature import Signature
from ..dispatch.cached import Cached
from ..dispatch.carried import Carried, Location
from ..dispatch.ensemble import Ensemble
from ..dispatch.instance import Instance
from ..dispatch.request import Request
from ..dispatch.scheduler import Scheduler
from ..farm.interpreter import OWN, Interpreter
from ..statistics import VersionStatistics
from .change import Edition
from .ensemble_members import member_names
from .shared_copy import SharedCopy
from .source import Stamps


class State(enum.StrEnum):
    """Where a version is in its life; the values are the protocol's."""

    UNKNOWN = "UNKNOWN"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


@dataclass(slots=True, eq=False)
class Home:
    """Where an instance lives: the worker by its name in the farm, and what it was told to create.

    ``limits`` is the ``ModelRateLimiter`` that it was made with, serialised.
    """

    worker: str
    spec: InstanceSpec
    limits: bytes = b""


def _keeps_to_cpu(config: Any, load: Load | None) -> bool:
    """Does it take its inputs in ordinary memory, wherever it runs? Python models do that do not say otherwise."""
    python = load is not None and load.backend == PYTHON
    return python and keeps_to_cpu(config.parameters[CPU_ONLY].string_value if CPU_ONLY in config.parameters else None)


def _device_of(homes: Mapping[Instance, Home]) -> int | None:
    """The one GPU that all instances of a version are on."""
    places = {(home.spec.kind, home.spec.device) for home in homes.values()}
    kind, device = places.pop() if len(places) == 1 else ("", 0)
    return device if kind == "KIND_GPU" else None


def _reaches(homes: Mapping[Instance, Home], location: Location) -> bool:
    """Do the workers of all instances reach what lies there?"""
    if _device_of(homes) != location.device:
        return False
    return not location.worker or all(home.worker == location.worker for home in homes.values())


def _has(homes: Mapping[Instance, Home], location: Location) -> bool:
    """Are there instances on that GPU that can run what comes, and do all of them reach what lies there?"""
    there = [
        home.worker for instance, home in homes.items() if instance.device == location.device and instance.live and not instance.leaving
    ]
    return bool(there) and (not location.worker or all(worker == location.worker for worker in there))


def _none(location: Location) -> bool:
    return False


@dataclass(slots=True, eq=False)
class ModelVersion:
    """A loaded version: what doors and dispatch need to know of it.

    ``number`` names this load of it in messages to workers; a reload has another. ``enter`` takes a validated request, or raises
    StatusError and calls nothing back; ``withdraw`` says that nobody waits for one any more, ``hold`` that its client takes no
    more responses for now. ``labels`` has, for each output with a label file, the label of each class index. ``homes`` has the
    home of each instance. ``checks``: it has a readiness
    check of its own. ``generation`` tells loads of the same version apart that are there at the same time. ``load`` is what its
    workers were sent, without instances. ``ensemble`` runs the requests of one, ``members`` are the versions that it asks, by
    name and version as its steps have them; its ``scheduler`` is never used. ``cached`` stands in front of either where answers are
    kept, ``carried`` in front of its scheduler where there are GPUs. ``fingerprint`` is what its files and configuration come to, once
    somebody has asked. ``freeing`` is held while instances of it are taken down, ``removal`` is the end of all of it, and ``gone`` is set
    after that.
    """

    name: str
    version: int
    number: int
    files: SharedCopy
    config: Any
    signature: Signature
    statistics: VersionStatistics
    scheduler: Scheduler
    enter: Callable[[Request], None]
    withdraw: Callable[[Request], None]
    hold: Callable[[Request, bool], None] = lambda request, held: None
    labels: dict[str, list[str]] = field(default_factory=dict)
    homes: dict[Instance, Home] = field(default_factory=dict)
    generation: int = 1
    load: Load | None = None
    interpreter: Interpreter = OWN
    checks: bool = False
    ensemble: Ensemble | None = None
    members: dict[tuple[str, int], ModelVersion] = field(default_factory=dict)
    cached: Cached | None = None
    carried: Carried | None = None
    fingerprint: bytes = b""
    freeing: asyncio.Lock = field(default_factory=asyncio.Lock)
    removal: asyncio.Task[None] | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def workers(self) -> list[str]:
        """The workers that hold instances of it, each once."""
        return list(dict.fromkeys(home.worker for home in self.homes.values()))

    @property
    def platform(self) -> str:
        """What metadata calls the platform."""
        return str(self.config.platform or self.config.backend)

    @property
    def healthy(self) -> bool:
        """Can any instance of it take batches at this moment? Of an ensemble: can all of its members be asked?"""
        if self.ensemble is not None:
            return all(member.healthy for member in self.members.values())
        return any(instance.live for instance in self.homes)

    @property
    def instance_count(self) -> int:
        """Instances that can take batches at this moment."""
        return sum([instance.live for instance in self.homes])

    @property
    def takes(self) -> Callable[[Location], bool]:
        """Says of a location whether all its instances' workers reach it, now and later; it does not hold on to this version."""
        return _none if _keeps_to_cpu(self.config, self.load) else partial(_reaches, self.homes)

    @property
    def ties(self) -> Callable[[Location], bool]:
        """As ``takes``, for locations that a request can be tied to: it then runs on that GPU, whatever other instances there are."""
        return partial(_has, self.homes) if self.scheduler.ties and not _keeps_to_cpu(self.config, self.load) else _none

    @property
    def device_workers(self) -> frozenset[str]:
        """The workers that hold its instances, where all of them leave tensors on their GPU for others in the same worker; else none."""
        python = self.load is None or self.load.backend == PYTHON
        if python or self.cached is not None or not all(home.spec.kind == "KIND_GPU" for home in self.homes.values()):
            return frozenset()
        return frozenset(home.worker for home in self.homes.values())

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        before = 0 if self.cached is None else self.cached.in_flight
        before += 0 if self.carried is None else self.carried.in_flight
        return before + (self.scheduler.in_flight if self.ensemble is None else self.ensemble.in_flight)

    @property
    def idle(self) -> bool:
        """Does it do nothing, not even for requests that have been answered?"""
        if self.cached is not None and not self.cached.idle:
            return False
        if self.carried is not None and not self.carried.idle:
            return False
        return self.scheduler.idle if self.ensemble is None else self.ensemble.idle

    @property
    def stopping(self) -> bool:
        """Does it take no more requests?"""
        if self.carried is not None and self.carried.stopping:
            return True
        return self.scheduler.stopping or (self.cached is not None and self.cached.stopping)

    def stop(self) -> None:
        """Take no more requests."""
        if self.cached is not None:
            self.cached.stop(self._stop)
        else:
            self._stop()

    def _stop(self) -> None:
        if self.carried is not None:
            self.carried.stop(self._stop_scheduler)
        else:
            self._stop_scheduler()

    def _stop_scheduler(self) -> None:
        self.scheduler.stopping = True
        if self.ensemble is not None:
            self.ensemble.stopping = True


@dataclass(slots=True, eq=False)
class VersionSlot:
    """A version number of a model, and what serves it now, or is ``leaving`` because of an unload.

    ``reason`` is why nothing serves, or why what serves could not be replaced.
    """

    version: int
    state: State = State.UNKNOWN
    reason: str = ""
    served: ModelVersion | None = None
    leaving: ModelVersion | None = None


@dataclass(slots=True, eq=False)
class Model:
    """A model of the repositories, or one that came with a load request.

    ``edition`` is what its ready versions are of, ``stamps`` are its files as they were last looked at, and ``members`` what it ran
    then. ``known`` once its configuration has been read: before that the index has its name, and nothing else knows of it.
    ``wanted``: it was asked for and not unloaded since, ``implicit``: only because an ensemble runs it. ``fault`` is why nothing of
    it was loaded, or why its last change was not taken over, where no version can tell. ``failed``: the last attempt at it did.
    """

    name: str
    slots: dict[int, VersionSlot] = field(default_factory=dict)
    edition: Edition | None = None
    stamps: Stamps | None = None
    members: frozenset[str] = frozenset()
    known: bool = False
    wanted: bool = False
    implicit: bool = False
    failed: bool = False
    fault: str = ""

    @property
    def ready_versions(self) -> list[int]:
        """The versions that can be asked, ascending."""
        return sorted(slot.version for slot in self.slots.values() if slot.state is State.READY)

    @property
    def newest(self) -> ModelVersion | None:
        """What serves requests that name no version."""
        best = None
        for slot in self.slots.values():
            if slot.state is State.READY and (best is None or slot.version > best.version):
                best = slot
        return None if best is None else best.served

    @property
    def all_members(self) -> frozenset[str]:
        """The models that it runs, and those that it would run by what was seen of it last."""
        return self.members if self.edition is None else self.members.union(member_names(self.edition.config))

    def runs(self, names: Collection[str]) -> bool:
        """Is it an ensemble that runs one of these models?"""
        return not self.all_members.isdisjoint(names)

    def serving(self) -> list[ModelVersion]:
        """What serves its ready versions, ascending."""
        return [served for version in self.ready_versions if (served := self.slots[version].served) is not None]

    def leave(self, versions: Collection[int]) -> list[ModelVersion]:
        """Take versions out of service; returns what served them."""
        leaving = []
        for version in versions:
            slot = self.slots[version]
            if slot.served is not None:
                slot.state, slot.reason = State.UNLOADING, ""
                slot.leaving, slot.served = slot.served, None
                leaving.append(slot.leaving)
        return leaving

    def take_over(self, edition: Edition | None) -> None:
        """What serves is of this edition now."""
        old, self.edition = self.edition, edition
        if old is not None:
            old.copy.drop()

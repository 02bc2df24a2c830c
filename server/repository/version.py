"""One version of a model, from its loading to its end."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

from ...workers.contract.signature import Signature
from ..dispatch.ensemble import Ensemble
from ..dispatch.instance import Instance
from ..dispatch.scheduler import Scheduler
from ..statistics import VersionStatistics


class State(enum.StrEnum):
    """Where a version is in its life; the values are the protocol's."""

    UNKNOWN = "UNKNOWN"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    UNLOADING = "UNLOADING"


@dataclass(slots=True, eq=False)
class ModelVersion:
    """A loaded version: what doors and dispatch need to know of it.

    ``number`` names this load of it in messages to workers; a reload has another. ``labels`` has, for each
    output with a label file, the label of each class index. ``checks``: it has a readiness check of its own. ``ensemble`` runs the
    requests of one, ``members`` are the versions that it asks; its ``scheduler`` is never used.
    """

    name: str
    version: int
    number: int
    directory: str
    config: Any
    signature: Signature
    statistics: VersionStatistics
    scheduler: Scheduler
    labels: dict[str, list[str]] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    checks: bool = False
    ensemble: Ensemble | None = None
    members: list[ModelVersion] = field(default_factory=list)

    @property
    def platform(self) -> str:
        """What metadata calls the platform."""
        return str(self.config.platform or self.config.backend)

    @property
    def healthy(self) -> bool:
        """Can any instance of it take batches at this moment? Of an ensemble: can all of its members be asked?"""
        if self.ensemble is not None:
            return all(member.healthy for member in self.members)
        return any(instance.live for instance in self.instances)

    @property
    def in_flight(self) -> int:
        """Requests that wait or run."""
        return self.scheduler.in_flight if self.ensemble is None else self.ensemble.in_flight

    def stop(self) -> None:
        """Take no more requests."""
        self.scheduler.stopping = True
        if self.ensemble is not None:
            self.ensemble.stopping = True


@dataclass(slots=True, eq=False)
class VersionSlot:
    """A version number of a model in the repository, and what serves it now."""

    version: int
    state: State = State.UNKNOWN
    reason: str = ""
    served: ModelVersion | None = None


@dataclass(slots=True, eq=False)
class Model:
    """A model of the repository.

    ``known`` once its configuration has been read: before that the index has its name, and nothing else knows of it.
    ``ambiguous`` where two repositories have it. ``fault`` is why nothing of it was loaded, where no version can tell.
    """

    name: str
    directories: list[str] = field(default_factory=list)
    slots: dict[int, VersionSlot] = field(default_factory=dict)
    known: bool = False
    fault: str = ""

    @property
    def ambiguous(self) -> bool:
        """Do several repositories have it?"""
        return len(self.directories) > 1

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

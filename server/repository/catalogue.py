"""Every model there is, and the questions that doors ask about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ...workers.contract.status import not_found, unavailable
from .sighting import DUPLICATE
from .version import Model, ModelVersion, State

UNLOADED = "unloaded"

AT_FIRST_REQUEST = "loads at its first request"
"""Why a version is not there that nobody has asked for yet, or lately."""


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """A line of the repository index; empty members are left out of it."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class Catalogue:
    """Models by name: those of the repositories, and those that came with a load request.

    ``on_change`` is called when other versions than before have begun to serve, or some have ceased to.
    """

    def __init__(self) -> None:
        self.models: dict[str, Model] = {}
        self.on_change: Callable[[], None] = lambda: None

    def find(self, name: str, version: str) -> ModelVersion:
        """The version a request means. Raises StatusError with the protocol's lookup texts."""
        model = self.models.get(name)
        if model is None or not model.known:
            raise not_found(f"Request for unknown model: '{name}' is not found")
        if version:
            number = int(version)
            slot = model.slots.get(number)
            if slot is None or slot.state is State.UNKNOWN:
                raise not_found(f"Request for unknown model: '{name}' version {number} is not found")
            if slot.state is not State.READY or slot.served is None:
                raise unavailable(f"Request for unknown model: '{name}' version {number} is not at ready state")
            return slot.served
        newest = model.newest
        if newest is None:
            raise not_found(f"Request for unknown model: '{name}' has no available versions")
        return newest

    def find_number(self, name: str, version: int) -> ModelVersion:
        """As ``find``, for those inside the server, who name versions by number: -1 is the newest."""
        return self.find(name, "" if version < 0 else str(version))

    def ready_versions(self, name: str) -> list[int]:
        """The versions of a model that can be asked, ascending."""
        model = self.models.get(name)
        return [] if model is None else model.ready_versions

    def versions(self) -> list[ModelVersion]:
        """Every ready version, by name, then version."""
        return [served for _, model in sorted(self.models.items()) for served in model.serving()]

    def counted(self) -> list[ModelVersion]:
        """As ``versions``, with those that are on their way out: what they do still counts."""
        return [
            served
            for _, model in sorted(self.models.items())
            for _, slot in sorted(model.slots.items())
            if (served := slot.served or slot.leaving) is not None
        ]

    def known(self) -> Iterator[Model]:
        """The models whose configuration could be read, by name."""
        return (model for _, model in sorted(self.models.items()) if model.known)

    def all_ready(self) -> bool:
        """Is every known model that is wanted fully there? A version that was unloaded on purpose does not count against it."""
        return all(
            model.slots
            and all(
                (slot.state is State.READY and slot.served is not None and slot.served.healthy)
                or (slot.state is State.UNAVAILABLE and slot.reason == UNLOADED)
                for slot in model.slots.values()
            )
            for model in self.models.values()
            if model.known and model.wanted
        )

    def index(self, places: Mapping[str, int], ready_only: bool) -> list[IndexEntry]:
        """What the repositories hold, by name, then version. ``places``: in how many repositories each name is found."""
        entries = []
        for name, count in sorted(places.items()):
            model = self.models.get(name)
            if count > 1:
                entries.append(IndexEntry(name, "", State.UNAVAILABLE, DUPLICATE))
            elif model is None or not model.slots:
                if not ready_only:
                    fault = "" if model is None else model.fault
                    entries.append(IndexEntry(name, "", State.UNAVAILABLE if fault else "", fault))
            if model is not None:
                entries += [
                    IndexEntry(name, str(version), slot.state, slot.reason or (model.fault if slot.state is State.READY else ""))
                    for version, slot in sorted(model.slots.items())
                    if slot.state is State.READY or not ready_only
                ]
        return entries

    def status_rows(self) -> list[tuple[str, str, str]]:
        """Model, version and state of every known model, for people."""
        rows = []
        for model in self.known():
            for version, slot in sorted(model.slots.items()):
                rows.append((model.name, str(version), f"{slot.state}: {slot.reason}" if slot.reason else str(slot.state)))
            if not model.slots:
                rows.append((model.name, "", ""))
        return rows

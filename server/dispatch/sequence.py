"""A sequence, the place that it has at an instance, and the places of an instance."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .instance import Instance
from .request import Request


@dataclass(slots=True, eq=False)
class Sequence:
    """Requests that one instance runs one after the other.

    ``waiting`` are those that have not been bound, ``running`` is the one that has. ``begun``: one has been run, so that an instance
    holds state of it. ``ended``: its last request has come. ``touched_ns`` is when something was last heard of it,
    ``ready_ns`` when the first of ``waiting`` could first have run.
    """

    correlation_id: int | str
    touched_ns: int
    slot: Slot | None = None
    waiting: deque[Request] = field(default_factory=deque)
    running: Request | None = None
    ready_ns: int = 0
    begun: bool = False
    ended: bool = False

    @property
    def ready(self) -> bool:
        """Could its next request be bound?"""
        return self.running is None and bool(self.waiting)


@dataclass(slots=True, eq=False)
class Slot:
    """A place for a sequence at an instance; for models that keep state by place it is the row of the batch."""

    lane: Lane
    index: int
    sequence: Sequence | None = None


@dataclass(slots=True, eq=False)
class Lane:
    """An instance's places. ``ready`` are its sequences whose next request could be bound, in the order in which they became so.

    ``held``: its first batch waits until there is more of it.
    """

    instance: Instance
    slots: list[Slot] = field(default_factory=list)
    ready: dict[Sequence, None] = field(default_factory=dict)
    held: bool = False

    @property
    def empty(self) -> bool:
        """Has it no sequence?"""
        return not any(slot.sequence for slot in self.slots)

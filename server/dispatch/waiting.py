"""Who waits for whom among models that call each other: circles in which nobody can go on.

Sans-IO. A running batch that has made a call waits for it, and its instance with it. The call waits for the batch that its own
instance runs, or, in a queue, for those that all instances of its model run. Where all of those wait in turn, nothing will ever
end: the call is failed instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .instance import Instance
from .request import Request
from .scheduler import Scheduler

Short = Callable[[Instance, Callable[[Instance], bool]], bool]
"""Would an instance still be short of a resource if all but those gave back theirs that a condition is true of?"""


@dataclass(slots=True, eq=False)
class _Wait:
    scheduler: Scheduler
    request: Request

    def stuck(self, waiting: set[int], short: Short | None) -> bool:
        """Can it not go on before batches of ``waiting`` do?"""
        scheduler = self.scheduler

        def held(instance: Instance) -> bool:
            return _held(instance, waiting)

        if scheduler.holds(self.request):
            hosts = scheduler.hosts(self.request)
            return bool(hosts) and all(held(instance) or (short is not None and short(instance, held)) for instance in hosts)
        found = scheduler.find(self.request)
        return found is not None and found[0].number not in scheduler.streaming and _held(found[0].instance, waiting)


def _held(instance: Instance, waiting: set[int]) -> bool:
    """Does an instance run one of these batches?"""
    return bool(instance.batches) and instance.batches[0].number in waiting


class WaitGraph:
    """The requests that running batches wait for: ``request.caller`` is the batch's number.

    ``short`` is there where instances share resources: one that lacks what waiting instances hold cannot go on either.
    """

    def __init__(self, short: Short | None = None) -> None:
        self._short = short
        self._waits: dict[int, dict[Request, _Wait]] = {}

    def add(self, scheduler: Scheduler, request: Request) -> None:
        """A batch waits for a request from now on."""
        self._waits.setdefault(request.caller, {})[request] = _Wait(scheduler, request)

    def remove(self, request: Request) -> None:
        """The request has ended."""
        waits = self._waits[request.caller]
        del waits[request]
        if not waits:
            del self._waits[request.caller]

    def blocked(self, instance: Instance) -> bool:
        """Does what an instance runs wait for a request?"""
        return bool(instance.batches) and instance.batches[0].number in self._waits

    def circle(self, request: Request) -> bool:
        """Does a request wait, in the end, for the very batch that made it wait, or for others that wait in a circle?"""
        wait = self._waits.get(request.caller, {}).get(request)
        if wait is None:
            return False
        waiting = set(self._waits)
        while wait.stuck(waiting, self._short):
            free = {number for number in waiting if not any(other.stuck(waiting, self._short) for other in self._waits[number].values())}
            if not free:
                return True
            waiting -= free
        return False

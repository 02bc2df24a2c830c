"""Who waits for whom among the instances of models that call each other: circles in which nobody can go on.

Sans-IO. An instance that has made a call waits for it. The call waits for the instance that it is bound to, or, in a queue,
for any instance of its model. Where all of those wait in turn, nothing will ever end: the call is failed instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from .request import Request
from .scheduler import Scheduler


@dataclass(slots=True, eq=False)
class _Wait:
    scheduler: Scheduler
    request: Request

    def stuck(self, waiting: set[int]) -> bool:
        """Can it not go on before instances of ``waiting`` do?"""
        scheduler = self.scheduler
        if scheduler.queue.holds(self.request):
            return bool(scheduler.instances) and all(instance.number in waiting for instance in scheduler.instances)
        found = scheduler.find(self.request)
        return found is not None and found[0].instance.number in waiting


class WaitGraph:
    """The requests that instances wait for: ``request.caller`` is the instance's number."""

    def __init__(self) -> None:
        self._waits: dict[int, dict[Request, _Wait]] = {}

    def add(self, scheduler: Scheduler, request: Request) -> None:
        """An instance waits for a request from now on."""
        self._waits.setdefault(request.caller, {})[request] = _Wait(scheduler, request)

    def remove(self, request: Request) -> None:
        """The request has ended."""
        waits = self._waits.get(request.caller, {})
        if waits.pop(request, None) is not None and not waits:
            del self._waits[request.caller]

    def forget(self, instance: int) -> None:
        """An instance has gone, and nobody waits for what it has asked: once it is back, it waits for nothing."""
        self._waits.pop(instance, None)

    def circle(self, request: Request) -> bool:
        """Does a request wait, in the end, for the very instance that made it wait, or for others that wait in a circle?"""
        wait = self._waits.get(request.caller, {}).get(request)
        if wait is None:
            return False
        waiting = set(self._waits)
        while wait.stuck(waiting):
            free = {number for number in waiting if not any(other.stuck(waiting) for other in self._waits[number].values())}
            if not free:
                return True
            waiting -= free
        return False

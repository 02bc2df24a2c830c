"""What whoever stands in front of a scheduler has to do: count who waits, keep responses in order, and end after the last one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..statistics import VersionStatistics
from .ordering import ResponseOrder
from .request import Request, Response


class Counting(Protocol):
    """Whoever counts all requests in flight, so that doors know how many there are."""

    in_flight: int


@dataclass(slots=True)
class Flow:
    """Counts requests that wait or run."""

    in_flight: int = 0


class Visit(Protocol):
    """A request on its way. ``deliver`` is what its sender gave as ``on_response``, ``waiting``: it has not been passed on yet."""

    request: Request
    deliver: Callable[[Response], None]
    waiting: bool


V = TypeVar("V", bound=Visit)


class Forwarding(ABC, Generic[V]):
    """Takes requests, passes them on, and hands their responses on: in the order of the requests where they are ``ordered``."""

    def __init__(self, statistics: VersionStatistics, flow: Counting, *, ordered: bool) -> None:
        self.stopping = False
        self._statistics = statistics
        self._flow = flow
        self._order = ResponseOrder() if ordered else None
        # Those that wait at least; where responses are ordered, all.
        self._open: dict[Request, V] = {}
        self._waiting = 0
        self._stop_behind: Callable[[], None] | None = None
        self._idle_watchers: list[Callable[[], None]] = []

    @property
    @abstractmethod
    def idle(self) -> bool:
        """Is no request here?"""

    def _arrive(self, visit: V) -> None:
        """From here on, those that come later are answered later."""
        if self._order is not None:
            self._open[visit.request] = visit
            self._order.arrived(visit.request)

    def _begin_waiting(self, visit: V) -> None:
        self._open[visit.request] = visit
        visit.waiting = True
        self._waiting += 1
        self._flow.in_flight += 1
        self._statistics.pending_count += 1

    def _end_waiting(self, visit: V) -> None:
        visit.waiting = False
        self._waiting -= 1
        self._flow.in_flight -= 1
        self._statistics.pending_count -= 1

    def _hand_on(self, visit: V, response: Response) -> None:
        """Let the sender have a response, with those that have waited for it; or, in its turn, later."""
        if self._order is None:
            visit.deliver(response)
            return
        ready = [(self._open[one.request], one) for one in self._order.respond(response)]
        for its, one in ready:
            if one.final:
                del self._open[its.request]
        with ExitStack() as stack:  # calls all of them, whichever fails
            for its, one in reversed(ready):
                stack.callback(its.deliver, one)

    def stop(self, stop_behind: Callable[[], None]) -> None:
        """Take no more requests, and call ``stop_behind`` once those that wait have been passed on."""
        self.stopping = True
        if self._waiting:
            self._stop_behind = stop_behind
        else:
            stop_behind()

    def when_idle(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once, when it is idle; at once where it is."""
        if self.idle:
            watcher()
        else:
            self._idle_watchers.append(watcher)

    def _rest(self) -> None:
        """Fewer requests are here than before."""
        if not self._waiting and self._stop_behind is not None:
            stop_behind, self._stop_behind = self._stop_behind, None
            stop_behind()
        if self.idle:
            watchers, self._idle_watchers = self._idle_watchers, []
            for watcher in watchers:
                watcher()

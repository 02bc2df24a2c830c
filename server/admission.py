"""Who may enter by a door: how many requests, and how many bytes of theirs, the server takes on before it refuses more.

What is refused is refused at once, with the time after which it is worth while to come again. Requests that come from
inside, a model's calls and an ensemble's steps, are let in always: what they belong to has entered already.

Sans-IO, loop thread only. A request in flight costs nothing here: the counts are kept by whoever has the requests, and a
door compares one of them with ``most``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from ..workers.contract.status import Code, StatusError
from .pace import Pace

NO_LIMIT = sys.maxsize

REQUESTS, MODEL_REQUESTS, BYTES = "REQUESTS", "MODEL_REQUESTS", "BYTES"
"""What there was too much of: as the ``reason`` label of the metric names it."""


class Overloaded(StatusError):
    """A request that came while there was too much to do: refused at once, to be sent again in ``retry_after_s`` seconds."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(Code.UNAVAILABLE, message)
        self.retry_after_s = retry_after_s


class Flow(Protocol):
    """Whoever has all requests: ``in_flight`` counts those that wait or run."""

    @property
    def in_flight(self) -> int: ...


class Memory(Protocol):
    """The arena that request bodies lie in."""

    @property
    def used_byte_size(self) -> int: ...


class Counters(Protocol):
    """A version's statistics, as far as they are of interest here."""

    @property
    def success_count(self) -> int: ...
    @property
    def fail_count(self) -> int: ...


class Entered(Protocol):
    """A model version that requests enter."""

    @property
    def name(self) -> str: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def statistics(self) -> Counters: ...


class _Nothing:
    in_flight = 0
    used_byte_size = 0


_NOTHING = _Nothing()


@dataclass(frozen=True, slots=True)
class AdmissionLimits:
    """What may be in flight at once; 0: any number.

    ``requests`` counts those of all models together, the calls and steps of what runs included. ``model_requests`` counts those of
    one version of a model; the name "" stands for every model that is not named. ``byte_size`` is the memory that the server process
    holds for requests: bodies, and replies that clients have not taken yet.
    """

    requests: int = 0
    byte_size: int = 0
    model_requests: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))


class Admission:
    """Lets requests in or refuses them.

    ``most`` is the count of requests in flight at which doors ask ``check``; it is 0 while there are too many bytes. ``per_model`` says
    that they must ask for every request. ``held_byte_size`` are bytes in ordinary memory, those of ``memory`` come on top, and no more
    than ``most_bytes`` are to be there. ``versions`` gives every version that requests enter. ``refused`` counts by model ("" where
    it is not known) and reason.
    """

    def __init__(
        self,
        limits: AdmissionLimits | None = None,
        flow: Flow = _NOTHING,
        memory: Memory = _NOTHING,
        versions: Callable[[], Sequence[Entered]] = tuple,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        limits = limits or AdmissionLimits()
        self.flow = flow
        self.memory = memory
        self.limits = limits
        self.most = self._usual = limits.requests or NO_LIMIT
        self.per_model = any(limits.model_requests.values())
        self.most_bytes = limits.byte_size or NO_LIMIT
        self.held_byte_size = 0
        self.refused: dict[tuple[str, str], int] = {}
        self._each = limits.model_requests.get("", 0)
        self._versions = versions
        self._clock_ns = clock_ns
        self._pace = Pace()
        self._model_paces: dict[str, Pace] = {}

    # requests

    def check(self, version: Entered) -> None:
        """Raises Overloaded where no request to a version may enter now."""
        if self.per_model:
            name = version.name
            limit = self.limits.model_requests.get(name, self._each)
            if limit and version.in_flight >= limit:
                raise self._model_full(version, limit)
        if self.flow.in_flight >= self.most:
            self._check_all(version.name)

    def check_body(self, version: Entered, byte_size: int) -> None:
        """As ``check``, for a request whose body is to be read: ``byte_size`` is what it was announced with. Raises Overloaded.

        A body that could never be held is none to come again with: that is told by whoever reads it.
        """
        self.check(version)
        if self.byte_size + byte_size > self.most_bytes >= byte_size:
            raise self._too_many_bytes(version.name)

    def _check_all(self, model: str) -> None:
        requests = self.limits.requests
        if requests and self.flow.in_flight >= requests:
            raise self._refusal(model, REQUESTS, "too many requests in flight", requests, self.retry_after_s())
        if self.full:
            raise self._too_many_bytes(model)
        # Memory came free where nobody says so.
        self.most = self._usual

    def _model_full(self, version: Entered, limit: int) -> Overloaded:
        name = version.name
        pace = self._model_paces.get(name)
        if pace is None:
            pace = self._model_paces[name] = Pace()
        statistics = version.statistics
        seconds = pace.retry_after_s(version.in_flight, statistics.success_count + statistics.fail_count, self._clock_ns())
        return self._refusal(name, MODEL_REQUESTS, f"too many requests in flight for model '{name}'", limit, seconds)

    def _too_many_bytes(self, model: str) -> Overloaded:
        return self._refusal(model, BYTES, "too many bytes of requests and replies in flight", self.most_bytes, self.retry_after_s())

    def _refusal(self, model: str, reason: str, what: str, limit: int, seconds: int) -> Overloaded:
        self.count_refused(model, reason, 1)
        return Overloaded(f"{what} (limit {limit}); retry after {seconds} s", seconds)

    def count_refused(self, model: str, reason: str, count: int) -> None:
        """So many more requests have been refused."""
        self.refused[model, reason] = self.refused.get((model, reason), 0) + count

    def retry_after_s(self) -> int:
        """When what is in flight now will have been answered, in whole seconds."""
        now_ns = self._clock_ns()
        pace = self._pace
        if pace.fresh(now_ns):
            return pace.answer_s
        finished = 0
        for version in self._versions():
            finished += version.statistics.success_count + version.statistics.fail_count
        return pace.retry_after_s(self.flow.in_flight, finished, now_ns)

    # bytes

    @property
    def byte_size(self) -> int:
        """Bytes that requests and their replies take up now."""
        return self.held_byte_size + self.memory.used_byte_size

    @property
    def full(self) -> bool:
        """Are there more bytes than there may be?"""
        return self.byte_size > self.most_bytes

    def check_bytes(self, byte_size: int) -> None:
        """Raises Overloaded where so many bytes more would be too many."""
        if self.byte_size + byte_size > self.most_bytes:
            raise self._too_many_bytes("")

    def hold(self, byte_size: int) -> None:
        """So many bytes are held from now on, however many there are: where they are too many, nothing more enters."""
        self.held_byte_size += byte_size
        if self.full:
            self.most = 0

    def let_go(self, byte_size: int) -> None:
        """So many bytes that were held are free again."""
        self.held_byte_size -= byte_size
        if not self.most and not self.full:
            self.most = self._usual


class _Unlimited(Admission):
    """Where nothing is counted."""

    def hold(self, byte_size: int) -> None:
        pass

    def let_go(self, byte_size: int) -> None:
        pass


UNLIMITED = _Unlimited()
"""Lets everything in, for doors that need no bounds of their own."""

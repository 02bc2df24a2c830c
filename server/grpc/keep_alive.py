"""When a connection is asked whether it is there, and how often it may ask that itself: sans-IO.

Source: gRPC's keepalive.md and proposal A8, and what its core does with pings.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

_INTERVAL_WITHOUT_CALLS_S = 7200.0


@dataclass(frozen=True, slots=True)
class KeepAliveSettings:
    """What the flags say. ``most_pings_without_data`` and ``most_strikes`` of 0 mean any number, an age of 0 none."""

    interval_s: float = 7200.0
    timeout_s: float = 20.0
    without_calls: bool = False
    most_pings_without_data: int = 2
    least_interval_s: float = 300.0
    most_strikes: int = 2
    most_age_s: float = 0.0
    grace_s: float = 0.0


class Step(enum.Enum):
    """What is to be done with a connection now."""

    NOTHING = enum.auto()
    PING = enum.auto()
    LEAVE = enum.auto()
    CLOSE = enum.auto()


class KeepAlive:
    """The state of one connection; ``now`` is in seconds, of any clock that does not go back."""

    __slots__ = ("_asked", "_begun", "_heard", "_leaving", "_ping_came", "_pings", "_settings", "_strikes")

    def __init__(self, settings: KeepAliveSettings, now: float) -> None:
        self._settings = settings
        self._begun = self._heard = now
        self._asked: float | None = None
        self._leaving: float | None = None
        self._pings = 0
        self._ping_came = -math.inf
        self._strikes = 0

    def heard(self, now: float) -> None:
        """Something came."""
        self._heard = now
        self._asked = None

    def sent(self) -> None:
        """A call was answered: what the client asks because of that is welcome."""
        self._pings = 0
        self._strikes = 0
        self._ping_came = -math.inf

    def pinged(self, now: float, busy: bool) -> bool:
        """The client asks whether we are there; ``busy``: it has calls. False where it does so too often."""
        settings = self._settings
        least = settings.least_interval_s if busy or settings.without_calls else _INTERVAL_WITHOUT_CALLS_S
        if now < self._ping_came + least:
            self._strikes += 1
        self._ping_came = now
        return not settings.most_strikes or self._strikes <= settings.most_strikes

    def step(self, now: float, busy: bool) -> Step:
        """What is to be done now; asked every now and then."""
        settings = self._settings
        if self._leaving is not None:
            return Step.CLOSE if settings.grace_s and now >= self._leaving + settings.grace_s else Step.NOTHING
        if settings.most_age_s and now >= self._begun + settings.most_age_s:
            self._leaving = now
            return Step.LEAVE
        if self._asked is not None:
            return Step.CLOSE if now >= self._asked + settings.timeout_s else Step.NOTHING
        if now < self._heard + settings.interval_s or not (busy or settings.without_calls):
            return Step.NOTHING
        if settings.most_pings_without_data and self._pings >= settings.most_pings_without_data:
            return Step.NOTHING
        self._pings += 1
        self._asked = now
        return Step.PING

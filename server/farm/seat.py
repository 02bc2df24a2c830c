"""A worker's place in the farm, and what it shall hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...workers.contract.messages import Checked, Fetched, Inspected, Load, Loaded, Settled, Unloaded
from ...workers.contract.status import StatusError
from .backoff import Backoff
from .child_process import ChildProcess
from .grants import Grant
from .interpreter import OWN, Interpreter

Answered = Inspected | Loaded | Unloaded | Checked | Settled | Fetched
"""What a task may be answered, if not by Failed."""


@dataclass(slots=True, eq=False)
class Holding:
    """A model version that a seat's worker shall hold.

    ``load`` is what its worker is sent, now and after each of its restarts. ``gathering``: the task that waits for its
    instances. ``refill``: the load after a restart, ``backoff``: when it is tried again. ``arriving``: the numbers of instances that
    are being added to it, one ``extension`` after the other.
    """

    load: Load
    ready: set[int] = field(default_factory=set)
    arriving: set[int] = field(default_factory=set)
    loaded: bool = False
    checks: bool = False
    gathering: int = 0
    refill: asyncio.Task[None] | None = None
    extension: asyncio.Lock = field(default_factory=asyncio.Lock)
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def numbers(self) -> set[int]:
        """Its instances, without those that are being added."""
        return {spec.number for spec in self.load.instances}

    @property
    def complete(self) -> bool:
        """Have all instances said that they are ready?"""
        return self.ready >= self.arriving | self.numbers


@dataclass(slots=True, eq=False)
class Seat:
    """A worker's place in the farm; it outlives the processes that fill it.

    ``grant`` is the GPU that its worker may use, ``regions`` are clients' CUDA regions that keep it there. ``gone`` is resolved once
    its last process has ended, after it was given up.
    """

    name: str
    interpreter: Interpreter = OWN
    process: ChildProcess | None = None
    up: bool = False
    closing: bool = False
    restarts: int = 0
    backoff: Backoff = field(default_factory=Backoff)
    holdings: dict[int, Holding] = field(default_factory=dict)
    tasks: dict[int, asyncio.Future[Answered | None]] = field(default_factory=dict)
    arrivals: list[asyncio.Future[None]] = field(default_factory=list)
    restart: asyncio.TimerHandle | None = None
    grant: Grant | None = None
    regions: set[int] = field(default_factory=set)
    gone: asyncio.Future[None] | None = None

    @property
    def empty(self) -> bool:
        """Does nobody need it?"""
        return not self.holdings and not self.tasks and not self.arrivals and not self.regions


def kill(seats: Iterable[Seat]) -> None:
    """Kill the processes that fill them."""
    for seat in seats:
        if seat.process is not None:
            seat.process.kill()


async def left(seats: Iterable[Seat], timeout_secs: float | None = None) -> None:
    """Wait until those that were given up have no process any more."""
    futures = [seat.gone for seat in seats if seat.gone is not None]
    if futures:
        await asyncio.wait(futures, timeout=timeout_secs)


def fail(futures: Iterable[asyncio.Future[Any]], error: StatusError) -> None:
    """Tell those who wait for something that it does not come."""
    for future in list(futures):
        if not future.done():
            future.set_exception(error)

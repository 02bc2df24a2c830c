"""Copies between GPUs and ordinary memory for requests that are carried: the workers of the GPUs, asked by callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TypeVar

from ...shm.placement import Lease, Placement, Span
from ...workers.contract.status import StatusError, internal
from ..dispatch.carried import Fetched, Location, Settled
from .devices import Devices

T = TypeVar("T")


class DeviceMover:
    """Implements ``dispatch.carried.Mover``; ``log_error`` is told what no client may hear."""

    def __init__(self, loop: asyncio.AbstractEventLoop, devices: Devices, log_error: Callable[[str], None]) -> None:
        self._loop = loop
        self._devices = devices
        self._log_error = log_error
        # The loop itself does not keep them alive.
        self._tasks: set[asyncio.Task[object]] = set()

    def where(self, place: Placement) -> Location | None:
        """The GPU that something lies on; None for ordinary memory. Raises StatusError where its worker has gone."""
        return self._devices.where(place)

    def fetch(self, location: Location, places: list[Placement], done: Fetched) -> None:
        """Copy what lies in one location to ordinary memory, and call ``done`` with the copies, or with what went wrong."""
        if location.worker:
            work = self._devices.fetch_own([place for place in places if isinstance(place, Lease)])
        else:
            regions = {place.region for place in places if isinstance(place, Span)}
            work = self._devices.fetch(location.device, places, regions)
        self._begin(work, done)

    def put(self, device: int, places: list[Placement], spans: list[Span], done: Settled) -> None:
        """Copy each place to the beginning of its region part, and call ``done`` with what went wrong, None for nothing."""
        self._begin(self._devices.put(device, places, spans), done)

    def _begin(self, work: Coroutine[object, object, T], done: Callable[[T | StatusError], None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, done))

    def _ended(self, done: Callable[[T | StatusError], None], task: asyncio.Task[T]) -> None:
        self._tasks.discard(task)
        done(self._outcome(task))

    def _outcome(self, task: asyncio.Task[T]) -> T | StatusError:
        if task.cancelled():
            return internal("a tensor was not copied: it was given up")
        error = task.exception()
        if error is None:
            return task.result()
        if isinstance(error, StatusError):
            return error
        self._log_error(f"copying from or to a GPU failed with {type(error).__name__}: {error}")
        return internal("a tensor could not be copied from or to a GPU")

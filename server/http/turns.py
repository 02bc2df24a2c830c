"""Long work in turns with everything else on the loop: a piece of it, then all others, then the next piece.

What holds the interpreter's lock gains nothing from a thread: it would make the loop wait for the lock several times in every
turn. Cut into pieces, the same work delays each turn by ``TURN_S`` and no more, however much of it there is.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from ...workers.contract.status import StatusError

TURN_S = 0.0005
"""How long one turn lasts, and then until the end of the piece that has begun."""

T = TypeVar("T")
Steps = Generator[None, None, T]
"""Work that yields between its pieces, each a fraction of a millisecond long, and returns what it has made."""


class _Job:
    __slots__ = ("done", "dropped", "outcome", "steps")

    def __init__(self, steps: Steps[Any], outcome: asyncio.Future[Any], done: Callable[[asyncio.Future[Any]], None]) -> None:
        self.steps = steps
        self.outcome = outcome
        self.done = done
        self.dropped = False

    def go_on(self) -> bool:
        """Run pieces until the turn is over; False once there are none left."""
        end = time.perf_counter() + TURN_S
        try:
            while True:
                next(self.steps)
                if time.perf_counter() >= end:
                    return True
        except StopIteration as made:
            self.outcome.set_result(made.value)
        except StatusError as error:
            # Its frames know all that was read, and this one knows it: a cycle for the collector.
            self.outcome.set_exception(error.with_traceback(None))
        except Exception as error:  # noqa: BLE001
            self.outcome.set_exception(error)
        return False


class _Turns:
    """The jobs of one loop: one of them goes on in each turn."""

    __slots__ = ("_jobs",)

    def __init__(self) -> None:
        self._jobs: deque[_Job] = deque()

    def add(self, job: _Job, loop: asyncio.AbstractEventLoop) -> None:
        self._jobs.append(job)
        if len(self._jobs) == 1:
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        # It stays in the queue meanwhile: a job that comes now must not ask for a turn of its own.
        job = self._jobs[0]
        goes_on = not job.dropped and job.go_on()
        self._jobs.popleft()
        if goes_on:
            self._jobs.append(job)
        if self._jobs:
            loop.call_soon(self._turn, loop)
        if not goes_on and not job.dropped:
            # In the turn of the last piece: what it has looked up still holds.
            job.done(job.outcome)
            error = job.outcome.exception()
            if isinstance(error, StatusError):
                # It was raised there, in a frame that knows the outcome.
                error.__traceback__ = None


_TURNS: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


def in_turns(steps: Steps[T], done: Callable[[asyncio.Future[T]], None]) -> Callable[[], None]:
    """Do ``steps`` in turns with the running loop, then call ``done`` with the outcome; returns what cancels it.

    Cancelled work is closed at once, and ``done`` is not called.
    """
    loop = asyncio.get_running_loop()
    turns = _TURNS.get(loop)
    if turns is None:
        turns = _TURNS[loop] = _Turns()
    job = _Job(steps, loop.create_future(), done)

    def cancel() -> None:
        job.dropped = True
        steps.close()

    turns.add(job, loop)
    return cancel

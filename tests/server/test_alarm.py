"""The timer of the scheduling core: on time, set anew, and not at all."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from tensorfarm.server.alarm import Alarm

MS = 1_000_000
PATIENCE_S = 5.0

# libuv makes a pipe with its first loop and keeps it: that is to be before the leak check looks
uvloop.new_event_loop().close()


class Bell:
    """Counts rings; ``rung`` waits for the next."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self._next = asyncio.Event()

    def ring(self) -> None:
        self.times_ns.append(time.monotonic_ns())
        self._next.set()

    async def rung(self) -> int:
        await asyncio.wait_for(self._next.wait(), PATIENCE_S)
        self._next.clear()
        return self.times_ns[-1]


Work = Callable[[Alarm, Bell], Coroutine[Any, Any, None]]


@pytest.fixture(params=["uvloop", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Work], None]:
    """Run a coroutine with an alarm and its bell on a loop of each kind."""

    def run(work: Work) -> None:
        async def main() -> None:
            bell = Bell()
            alarm = Alarm(asyncio.get_running_loop(), bell.ring)
            try:
                await work(alarm, bell)
            finally:
                alarm.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop if request.param == "uvloop" else None) as runner:
            runner.run(main())

    return run


def test_it_rings_once_and_not_too_early(run: Callable[[Work], None]) -> None:
    async def work(alarm: Alarm, bell: Bell) -> None:
        for ahead_ns in (300_000, 2 * MS, 0):
            at_ns = time.monotonic_ns() + ahead_ns
            alarm.set(at_ns)
            assert await bell.rung() >= at_ns
        assert len(bell.times_ns) == 3

    run(work)


def test_it_aims_at_less_than_a_millisecond(run: Callable[[Work], None]) -> None:
    """Of several tries on a busy machine at least one must come well before a timer of milliseconds could."""

    async def work(alarm: Alarm, bell: Bell) -> None:
        late_ns = []
        for _ in range(50):
            at_ns = time.monotonic_ns() + 100_000
            alarm.set(at_ns)
            late_ns.append(await bell.rung() - at_ns)
            if min(late_ns) < 500_000:
                return
        raise AssertionError(late_ns)

    run(work)


@pytest.mark.parametrize("at_ns", [-5, 0, 1])
def test_a_time_that_is_over_rings_at_once(run: Callable[[Work], None], at_ns: int) -> None:
    async def work(alarm: Alarm, bell: Bell) -> None:
        alarm.set(at_ns)
        await bell.rung()

    run(work)


def test_only_the_time_last_set_counts(run: Callable[[Work], None]) -> None:
    async def work(alarm: Alarm, bell: Bell) -> None:
        far_ns = time.monotonic_ns() + 3600 * 1000 * MS
        alarm.set(time.monotonic_ns() + MS)
        alarm.set(far_ns)
        alarm.set(at_ns := time.monotonic_ns() + 3 * MS)
        assert await bell.rung() >= at_ns
        assert len(bell.times_ns) == 1

    run(work)


def test_it_is_silent_once_set_to_none(run: Callable[[Work], None]) -> None:
    async def work(alarm: Alarm, bell: Bell) -> None:
        alarm.set(time.monotonic_ns() + MS)
        alarm.set(None)
        other = Bell()
        second = Alarm(asyncio.get_running_loop(), other.ring)
        second.set(time.monotonic_ns() + 4 * MS)
        await other.rung()
        second.close()
        assert bell.times_ns == []

    run(work)


def test_a_ring_that_is_overtaken_by_a_new_time_does_not_count(run: Callable[[Work], None]) -> None:
    async def work(alarm: Alarm, bell: Bell) -> None:
        at_ns = time.monotonic_ns()
        alarm.set(at_ns)
        alarm.set(at_ns + 3600 * 1000 * MS)
        for _ in range(5):
            await asyncio.sleep(0)
        assert bell.times_ns == []

    run(work)


def test_the_ring_may_set_the_next_time() -> None:
    async def main() -> None:
        rings: list[int] = []
        enough = asyncio.Event()

        def ring() -> None:
            rings.append(time.monotonic_ns())
            if len(rings) < 5:
                alarm.set(rings[-1] + 200_000)
            else:
                enough.set()

        alarm = Alarm(asyncio.get_running_loop(), ring)
        alarm.set(1)
        await asyncio.wait_for(enough.wait(), PATIENCE_S)
        alarm.close()
        assert rings == sorted(rings)

    asyncio.run(main())


def test_a_closed_alarm_is_silent_and_leaves_no_descriptor() -> None:
    async def main() -> None:
        before = len(os.listdir("/proc/self/fd"))
        bell = Bell()
        alarm = Alarm(asyncio.get_running_loop(), bell.ring)
        alarm.set(1)
        alarm.close()
        alarm.close()
        alarm.set(1)
        assert len(os.listdir("/proc/self/fd")) == before
        await asyncio.sleep(0)
        assert bell.times_ns == []

    asyncio.run(main())

"""Models' own readiness checks: shared by those who ask at once, and never waited for without end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from tensorfarm.server.repository.readiness import ReadinessChecks
from tensorfarm.workers.contract.status import unavailable


def version(*workers: str, healthy: bool = True, checks: bool = True) -> Any:
    return _Version(name="m", version=1, number=7, workers=list(workers), healthy=healthy, checks=checks, ensemble=None)


def ensemble(*members: Any) -> Any:
    return _Version(ensemble=object(), members=dict(enumerate(members)))


class _Version(SimpleNamespace):
    __hash__ = object.__hash__  # type: ignore[assignment]


class Workers:
    """Workers that answer when the test says; ``asked`` are the questions."""

    def __init__(self, timeout_secs: float = 30.0) -> None:
        self.asked: list[tuple[str, int]] = []
        self.answers: dict[str, asyncio.Future[bool]] = {}
        self.warnings: list[str] = []
        self.checks = ReadinessChecks(self._ask, self.warnings.append, timeout_secs)

    async def _ask(self, worker: str, model: int) -> bool:
        self.asked.append((worker, model))
        self.answers[worker] = asyncio.get_running_loop().create_future()
        return await self.answers[worker]

    def answer(self, worker: str, said: bool | Exception) -> None:
        future = self.answers.pop(worker)
        if isinstance(said, Exception):
            future.set_exception(said)
        else:
            future.set_result(said)


async def _asked(workers: Workers, count: int) -> None:
    while len(workers.asked) < count:
        await asyncio.sleep(0)


def test_what_has_no_check_is_not_asked() -> None:
    async def run() -> None:
        workers = Workers()
        assert await workers.checks.ready(version("a", checks=False))
        assert not await workers.checks.ready(version("a", checks=False, healthy=False))
        assert not await workers.checks.ready(version("a", healthy=False))
        assert workers.asked == []

    asyncio.run(run())


def test_those_who_ask_at_once_share_the_outcome() -> None:
    """Also where the first of them gives up."""

    async def run() -> None:
        workers = Workers()
        served = version("a", "b")
        asking = [asyncio.ensure_future(workers.checks.ready(served)) for _ in range(3)]
        await _asked(workers, 2)
        asking[0].cancel()
        await asyncio.sleep(0)
        workers.answer("a", True)
        workers.answer("b", True)
        assert await asyncio.gather(*asking[1:]) == [True, True]
        assert workers.asked == [("a", 7), ("b", 7)]
        again = asyncio.ensure_future(workers.checks.ready(served))
        await _asked(workers, 4)
        workers.answer("a", True)
        workers.answer("b", False)
        assert not await again and workers.warnings == []

    asyncio.run(run())


@pytest.mark.parametrize("member", [0, 1])
def test_an_ensemble_is_as_ready_as_its_members(member: int) -> None:
    async def run() -> None:
        workers = Workers()
        asking = asyncio.ensure_future(workers.checks.ready(ensemble(version("a"), ensemble(version("b")))))
        await _asked(workers, 2)
        for at, worker in enumerate("ab"):
            workers.answer(worker, at != member)
        assert not await asking

    asyncio.run(run())


def test_a_check_that_fails() -> None:
    async def run() -> None:
        workers = Workers()
        asking = asyncio.ensure_future(workers.checks.ready(version("a")))
        await _asked(workers, 1)
        workers.answer("a", unavailable("it has gone"))
        assert not await asking
        assert workers.warnings == ["the readiness check of 'm' version 1 failed: it has gone"]

    asyncio.run(run())


def test_a_worker_that_does_not_answer() -> None:
    """It has stopped as a whole, its own time limit with it. The next who asks asks anew."""

    async def run() -> None:
        workers = Workers(timeout_secs=0.01)
        served = version("a")
        assert not await workers.checks.ready(served)
        assert workers.warnings == ["the readiness check of 'm' version 1 failed: no answer within 0.01 s"]
        assert not await workers.checks.ready(served)
        assert len(workers.asked) == 2

    asyncio.run(run())

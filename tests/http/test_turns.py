"""Long work in turns with the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any

import pytest

from tensorfarm.server.http import turns
from tensorfarm.server.http.turns import in_turns

from .doors import run


@pytest.fixture(autouse=True)
def one_piece_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)


def pieces(log: list[str], name: str, count: int, ended: Callable[[], None] = lambda: None) -> Generator[None, None, str]:
    try:
        for index in range(count):
            log.append(f"{name}{index}")
            yield
        return name
    finally:
        ended()


async def outcome_of(steps: Generator[None, None, Any]) -> Any:
    done: asyncio.Future[asyncio.Future[Any]] = asyncio.get_running_loop().create_future()
    in_turns(steps, done.set_result)
    return (await done).result()


def test_everything_else_goes_on_between_pieces() -> None:
    log: list[str] = []

    async def ticks() -> None:
        while log.count("tick") < 5:
            log.append("tick")
            await asyncio.sleep(0)

    async def scenario() -> None:
        other = asyncio.ensure_future(ticks())
        assert await outcome_of(pieces(log, "a", 5)) == "a"
        await other

    run(scenario)
    at = [index for index, entry in enumerate(log) if entry.startswith("a")]
    assert all(log[first + 1] == "tick" for first in at[:4]), log


def test_several_take_turns_one_piece_at_a_time() -> None:
    log: list[str] = []

    async def scenario() -> None:
        assert await asyncio.gather(outcome_of(pieces(log, "a", 3)), outcome_of(pieces(log, "b", 3))) == ["a", "b"]
        assert await outcome_of(pieces(log, "c", 1)) == "c"

    run(scenario)
    assert log == ["a0", "b0", "a1", "b1", "a2", "b2", "c0"]


def test_failures_are_outcomes() -> None:
    def failing() -> Generator[None, None, None]:
        yield
        raise ValueError("no")

    async def scenario() -> None:
        with pytest.raises(ValueError, match="no"):
            await outcome_of(failing())

    run(scenario)


def test_cancelled_work_ends_at_once_and_is_not_heard_of_again() -> None:
    log: list[str] = []
    ended: list[bool] = []

    async def scenario() -> None:
        cancel = in_turns(pieces(log, "a", 5, lambda: ended.append(True)), lambda outcome: log.append("done"))
        never_begun = in_turns(pieces(log, "b", 5), lambda outcome: log.append("done"))
        while not log:
            await asyncio.sleep(0)
        cancel()
        assert ended == [True]
        never_begun()
        cancel()
        assert await outcome_of(pieces(log, "c", 2)) == "c"

    run(scenario)
    assert log[0] == "a0" and "done" not in log and log[-2:] == ["c0", "c1"]
    assert len(log) <= 4


def test_cancelling_what_has_ended_does_nothing() -> None:
    heard: list[str] = []

    async def scenario() -> None:
        cancel = in_turns(pieces([], "a", 1), lambda outcome: heard.append(outcome.result()))
        while not heard:
            await asyncio.sleep(0)
        cancel()

    run(scenario)
    assert heard == ["a"]


@pytest.mark.parametrize("fails", [False, True])
def test_an_outcome_is_heard_of_in_the_turn_of_the_last_piece(fails: bool) -> None:
    """Nothing else may come between: what the last piece has looked up, a region perhaps, still holds."""
    log: list[str] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()

        def last() -> Generator[None, None, None]:
            yield
            loop.call_soon(log.append, "else")
            if fails:
                raise ValueError("no")

        in_turns(last(), lambda outcome: log.append(str(outcome.exception())))
        while len(log) < 2:
            await asyncio.sleep(0)

    run(scenario)
    assert log == ["no" if fails else "None", "else"]


def test_a_listener_that_fails_costs_nobody_else_a_turn() -> None:
    reported: list[object] = []

    def failing(outcome: asyncio.Future[str]) -> None:
        raise RuntimeError(outcome.result())

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(str(context.get("exception"))))
        in_turns(pieces([], "a", 1), failing)
        assert await outcome_of(pieces([], "b", 3)) == "b"

    run(scenario)
    assert reported == ["a"]

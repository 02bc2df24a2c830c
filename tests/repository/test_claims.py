"""Operations on the same models come one after the other, in the order in which they came; others are not held up."""

from __future__ import annotations

import asyncio

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensorfarm.server.repository.claims import Claims

NAMES = ("a", "b", "c", "d")


class _Operation:
    def __init__(self, claims: Claims, names: frozenset[str], loop: asyncio.AbstractEventLoop) -> None:
        self.names = names
        self.begun = False
        self.cancelled = False
        self.end = loop.create_future()
        self.task = loop.create_task(self._run(claims))

    async def _run(self, claims: Claims) -> None:
        async with claims.hold(self.names):
            self.begun = True
            await self.end

    @property
    def over(self) -> bool:
        return self.task.done()


class _Machine(RuleBasedStateMachine):
    """Operations come, end, fail and are cancelled, several of these in one turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.claims = Claims()
        self.operations: list[_Operation] = []

    def _turn(self, count: int = 1) -> None:
        for _ in range(count):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    @rule(names=st.frozensets(st.sampled_from(NAMES), min_size=0), turns=st.integers(0, 2))
    def begin(self, names: frozenset[str], turns: int) -> None:
        self.operations.append(_Operation(self.claims, names, self.loop))
        # Each takes its place in the queue in its first turn.
        self._turn(1 + turns)

    @rule(data=st.data(), fails=st.booleans(), turns=st.integers(0, 3))
    def end(self, data: st.DataObject, fails: bool, turns: int) -> None:
        running = [one for one in self.operations if one.begun and not one.over and not one.end.done()]
        if running:
            one = data.draw(st.sampled_from(running))
            if fails:
                one.end.set_exception(ValueError("failed"))
            else:
                one.end.set_result(None)
        self._turn(turns)

    @rule(data=st.data(), turns=st.integers(0, 3))
    def cancel(self, data: st.DataObject, turns: int) -> None:
        alive = [one for one in self.operations if not one.over]
        if alive:
            one = data.draw(st.sampled_from(alive))
            one.cancelled = True
            one.task.cancel()
        self._turn(turns)

    @invariant()
    def nothing_is_held_twice(self) -> None:
        running = [one.names for one in self.operations if one.begun and not one.over and not one.end.done() and not one.cancelled]
        assert sum(map(len, running)) == len(frozenset[str]().union(*running))

    @rule()
    def come_to_rest(self) -> None:
        """Everybody runs who is not behind one that overlaps."""
        self._turn(20)
        alive = [one for one in self.operations if not one.over]
        ahead: set[str] = set()
        for one in alive:
            assert one.begun == ahead.isdisjoint(one.names)
            ahead |= one.names
        for one in self.operations:
            if one.over:
                error = None if one.task.cancelled() else one.task.exception()
                assert error is None or isinstance(error, ValueError)
        assert self.claims._held == {name for one in alive if one.begun for name in one.names}

    def teardown(self) -> None:
        self.come_to_rest()
        while running := [one for one in self.operations if one.begun and not one.over]:
            for one in running:
                one.end.set_result(None)
            self._turn(20)
        assert all(one.over for one in self.operations), "somebody waits for ever"
        assert not self.claims._held and not self.claims._waiting
        self.loop.close()


_Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestClaims = _Machine.TestCase


def test_one_who_waits_is_cancelled_in_the_turn_in_which_it_would_have_been_its() -> None:
    async def run() -> None:
        claims = Claims()
        release = asyncio.Event()
        order: list[str] = []

        async def hold(name: str) -> None:
            async with claims.hold({"m"}):
                order.append(name)
                await release.wait()

        first, second, third = (asyncio.create_task(hold(name)) for name in ("first", "second", "third"))
        await asyncio.sleep(0)
        second.cancel()
        release.set()
        await asyncio.wait([first, second, third], timeout=10)
        assert order == ["first", "third"]
        assert first.exception() is None and second.cancelled()
        assert not claims._held and not claims._waiting

    asyncio.run(run())


def test_who_came_first_is_first_also_where_some_of_its_names_are_free() -> None:
    async def run() -> None:
        claims = Claims()
        order: list[str] = []
        done = {name: asyncio.Event() for name in ("a", "ab", "b", "c")}

        async def hold(name: str) -> None:
            async with claims.hold(set(name)):
                order.append(name)
                await done[name].wait()

        tasks = [asyncio.create_task(hold(name)) for name in done]
        await asyncio.sleep(0)
        assert order == ["a", "c"], "b is behind ab, c is behind nobody"
        for name in ("a", "ab", "b", "c"):
            done[name].set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert order == ["a", "c", "ab", "b"]

    asyncio.run(run())

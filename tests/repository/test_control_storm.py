"""Everything that may happen to models, in any order and at the same time: nothing is lost, leaked or left half done."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tensorfarm.server.repository.polling import Polling
from tensorfarm.workers.contract.status import StatusError, internal

from .control import House, ensemble, plain

NAMES = ("a", "b", "e", "f", "ee")
ALL = "version_policy { all { } }"
CONFIGS = {
    "a": (plain(ALL), plain(ALL + "instance_group { count: 2 }"), plain(ALL, "INT64"), "{{{", ensemble("b")),
    "b": (plain(), plain("metric_tags { key: 'x' value: 'y' }"), "{{{"),
    "e": (ensemble("a", "b"), ensemble("a"), ensemble("b"), plain(), "{{{"),
    "f": (ensemble("b"), ensemble("nobody"), ensemble("ee")),
    "ee": (ensemble("e"), ensemble("e", "a")),
}


async def _at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """A thread that is done in the next turn."""
    await asyncio.sleep(0)
    return function(*arguments)


class _Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.threads = patch("asyncio.to_thread", _at_once)
        self.threads.start()
        self.loop = asyncio.new_event_loop()
        self.loop.run_in_executor = lambda pool, function, *arguments: _at_once(function, *arguments)  # type: ignore[assignment,method-assign]
        self.loop.set_exception_handler(self._failed)
        self.failures: list[dict[str, Any]] = []
        self.house = self.loop.run_until_complete(self._made())
        self.tasks: list[asyncio.Task[Any]] = []
        self.taken: dict[str, dict[str, tuple[str, int]]] = {}
        house = self.house
        self.polling = Polling(house.sources, house.catalogue, house.lifecycle, house.log, 1.0, 0.0)  # type: ignore[arg-type]
        for name in NAMES:
            house.source.write(name, CONFIGS[name][0], (1, 2) if name == "a" else (1,))

    async def _made(self) -> House:
        return House(Path(self.folder.name))

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(context)

    def _turn(self, count: int) -> None:
        for _ in range(count):
            self.loop.call_soon(self.loop.stop)
            self.loop.run_forever()

    def _begin(self, work: Any, turns: int) -> None:
        self.tasks.append(self.loop.create_task(work))
        self._turn(turns)

    turns = st.integers(0, 12)
    name = st.sampled_from(NAMES)

    @rule(name=name, turns=turns)
    def load(self, name: str, turns: int) -> None:
        self._begin(self.house.load(name), turns)

    @rule(name=name, dependents=st.booleans(), turns=turns)
    def unload(self, name: str, dependents: bool, turns: int) -> None:
        self._begin(self.house.unload(name, dependents), turns)

    @rule(turns=turns)
    def poll(self, turns: int) -> None:
        self._begin(self.polling.poll(), turns)

    @rule(name=name, which=st.integers(0, 4))
    def configure(self, name: str, which: int) -> None:
        if name not in self.taken:
            self.house.source.configure(name, CONFIGS[name][which % len(CONFIGS[name])])

    @rule(name=name, version=st.integers(1, 2))
    def touch(self, name: str, version: int) -> None:
        if name not in self.taken:
            self.house.source.touch(name, f"{version}/model.py")

    @rule(name=name)
    def take_away(self, name: str) -> None:
        if name in self.taken:
            self.house.source.put_back(name, self.taken.pop(name))
        else:
            self.taken[name] = self.house.source.remove(name)

    @rule(name=name, version=st.integers(1, 2), fault=st.sampled_from([internal("bad"), OSError("worse")]))
    def break_or_mend(self, name: str, version: int, fault: Exception) -> None:
        if not self.house.loads.faults.pop((name, version), None):
            self.house.loads.faults[name, version] = [fault]

    @rule(name=name, version=st.integers(1, 2))
    def hold(self, name: str, version: int) -> None:
        held = self.house.loads.held
        if (name, version) in held:
            self._let_go(name, version)
        else:
            held[name, version] = self.loop.create_future()

    def _let_go(self, name: str, version: int) -> None:
        gate = self.house.loads.held.pop((name, version))
        if not gate.done():
            gate.set_result(None)

    @rule(data=st.data())
    def occupy(self, data: st.DataObject) -> None:
        serving = self.house.catalogue.versions()
        if serving:
            served = serving[data.draw(st.integers(0, len(serving) - 1))]
            self.house.loads.busy.setdefault(served, asyncio.Event())

    @rule(turns=turns)
    def finish(self, turns: int) -> None:
        for event in self.house.loads.busy.values():
            event.set()
        self._turn(turns)

    @rule(count=st.integers(1, 60))
    def turn(self, count: int) -> None:
        self._turn(count)

    @rule(data=st.data())
    def somebody_goes_away(self, data: st.DataObject) -> None:
        if self.tasks:
            self.tasks[data.draw(st.integers(0, len(self.tasks) - 1))].cancel()

    @invariant()
    def what_can_be_asked_takes_requests(self) -> None:
        for model in self.house.catalogue.models.values():
            for slot in model.slots.values():
                assert (slot.state == "READY") == (slot.served is not None)
            for served in model.serving():
                assert not served.stopping
                assert not served.files.files.released
                assert not any(member.stopping for member in served.members.values())
        for served in self.house.loads.there:
            assert not served.files.files.released

    @rule()
    def come_to_rest(self) -> None:
        for name, version in list(self.house.loads.held):
            self._let_go(name, version)
        self.finish(0)
        for _ in range(2000):
            if not self.house.lifecycle._background and all(task.done() for task in self.tasks):
                break
            for event in self.house.loads.busy.values():
                event.set()
            self._turn(1)
        else:
            raise AssertionError("somebody waits for ever")
        for task in self.tasks:
            if not task.cancelled():
                assert task.exception() is None
                assert task.result() is None or isinstance(task.result(), StatusError)
        self.tasks.clear()
        self._check_quiet()
        assert self.failures == []
        assert not self.polling._under_way

    def _check_quiet(self) -> None:
        house = self.house
        # One that could not be made anew asks what it asked, which stays for it.
        outdated = any(
            house.catalogue.models[member.name].slots[member.version].served is not member
            for served in house.catalogue.versions()
            for member in served.members.values()
        )
        if not outdated:
            house.check_quiet()

    @rule()
    def all_is_mended(self) -> None:
        """However bad it was: once nothing is wrong any more, everything that is asked for is there, in its newest form."""
        for name in list(self.taken):
            self.house.source.put_back(name, self.taken.pop(name))
        for name in NAMES:
            self.house.source.write(name, CONFIGS[name][0], (1, 2) if name == "a" else (1,))
        self.house.loads.faults.clear()
        self.come_to_rest()
        for name in NAMES:
            self._begin(self.house.load(name), 0)
        self.come_to_rest()
        assert self.house.ready == ["a:1", "a:2", "b:1", "e:1", "ee:1", "f:1"]
        self.house.check_quiet()
        assert self.house.catalogue.all_ready()
        assert not any(model.fault or model.failed for model in self.house.catalogue.models.values())

    def teardown(self) -> None:
        self.all_is_mended()
        for name in NAMES:
            self._begin(self.house.unload(name), 0)
        self.come_to_rest()
        assert self.house.loads.there == [] and self.house.source.used == []
        self.loop.run_until_complete(self.house.lifecycle.unload_all(1.0))
        self.loop.close()
        self.threads.stop()
        self.folder.cleanup()


_Machine.TestCase.settings = settings(max_examples=12, stateful_step_count=30, deadline=None, phases=(Phase.explicit, Phase.generate))
TestStorm = _Machine.TestCase

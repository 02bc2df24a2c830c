"""Loads by number, and what the farm says of their instances."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.repository.generations import Generations
from tensorfarm.workers.contract.messages import Warmed
from tensorfarm.workers.contract.status import unavailable

from .control import Log
from .test_creation import House, in_house


def generations() -> Generations:
    return Generations(Dispatcher(lambda batch: None, lambda call: None, lambda at_ns: None), Log())  # type: ignore[arg-type]


def load(number: int, name: str, version: int, generation: int) -> Any:
    return SimpleNamespace(number=number, name=name, version=version, generation=generation, homes={})


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=40))
def test_loads_of_a_version_that_are_there_at_once_have_different_numbers(steps: list[tuple[str, bool]]) -> None:
    them = generations()
    there: dict[str, list[Any]] = {"a": [], "b": [], "c": []}
    for number, (name, comes) in enumerate(steps):
        if comes:
            generation = them.reserve(name, 1)
            taken = {one.generation for one in there[name]}
            assert generation == min(set(range(1, len(taken) + 2)) - taken)
            assert them.reserve(name, 1) not in {generation, *taken}, "it is taken from the moment on in which it is given out"
            them.give_up(name, 1, generation)
            them._reserved.clear()
            there[name].append(load(number, name, 1, generation))
            them.add(there[name][-1])
        elif there[name]:
            them.remove(there[name].pop(0))
    assert len(them) == sum(map(len, there.values()))


def test_a_number_that_was_not_used_is_free_again() -> None:
    them = generations()
    assert [them.reserve("m", 1), them.reserve("m", 1), them.reserve("m", 2), them.reserve("n", 1)] == [1, 2, 1, 1]
    them.give_up("m", 1, 1)
    them.give_up("m", 1, 1)
    assert them.reserve("m", 1) == 1


def test_instances_come_and_go_with_their_workers(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(2))
        them = house.generations
        numbers = [instance.number for instance in served.homes]
        house.ask(served, 1)
        await house.until(lambda: house.sent)
        victim = house.sent[0].instance.number
        house.sent.clear()
        them.instance_lost(victim, unavailable("it died"))
        assert [response.error.message for response in house.responses if response.error] == ["it died"] and served.healthy
        them.model_lost(served.number, unavailable("not soon"))
        house.ask(served, 1)
        assert served.in_flight == 1, "another instance lives, so requests are taken"
        for number in numbers:
            them.instance_lost(number, unavailable("it died"))
        them.model_lost(served.number, unavailable("not soon"))
        await house.until(lambda: len(house.responses) == 2)
        assert not served.healthy
        them.model_lost(12345, unavailable("nobody"))
        them.instance_ready(numbers[0])
        house.ask(served, 1)
        await house.until(lambda: house.sent)
        house.finish()
        them.instance_warmed(numbers[0], [Warmed(2, 3, 10, 20, 30)])
        assert served.statistics.execution_count == 3 + 1
        assert them.in_flight() == []
        them.stop_accepting()
        assert served.stopping
        await house.creation.remove(served)

    in_house(tmp_path, play)


def test_what_is_in_flight_at_the_end(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(2))
        house.ask(served, 8)
        await house.until(lambda: house.sent)
        down = await house.resize(served, 1)
        assert house.generations.in_flight() == [("m", 1, 8)]
        house.generations.abandon(unavailable("the end"))
        assert len(house.responses) == 8
        await down
        await house.creation.remove(served)

    in_house(tmp_path, play)

"""Following the repositories: looks one after the other, without waiting."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from tensorfarm.server.repository.polling import Polling
from tensorfarm.workers.contract.status import internal, unavailable

from .control import House, ensemble, in_house, plain

BAD = internal("bad")


def in_polled_house(folder: Path, play: Callable[[House, Callable[[], Coroutine[Any, Any, None]]], Coroutine[Any, Any, None]]) -> None:
    """A house that loads everything at its start; ``look`` polls once, and waits for what that has begun."""

    async def run(house: House) -> None:
        polling = Polling(house.sources, house.catalogue, house.lifecycle, house.log, 1.0, 0.0)  # type: ignore[arg-type]

        async def look() -> None:
            await polling.poll()
            await house.until(lambda: not polling._under_way)

        assert await house.lifecycle.start() is None
        await play(house, look)

    in_house(folder, run, mode="poll", sources=2)


def test_models_come_change_and_go(tmp_path: Path) -> None:
    async def play(house: House, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        house.source.write("m", plain())
        await look()
        assert house.ready == ["m:1"]
        served = house.served("m")
        await look()
        assert house.served("m") is served
        house.source.touch("m", "2/model.py")
        await look()
        assert house.ready == ["m:2"]
        taken = house.source.remove("m")
        await look()
        assert house.ready == [] and await house.lifecycle.index(False) == []
        house.source.put_back("m", taken)
        await look()
        assert house.ready == ["m:2"], "it is as it was, and new all the same"

    in_polled_house(tmp_path, play)


def test_a_model_that_another_repository_has_as_well_leaves_until_it_has_not(tmp_path: Path) -> None:
    async def play(house: House, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        house.source.write("m", plain())
        await look()
        house.sources[1].write("m", plain())
        await look()
        assert house.ready == []
        house.sources[1].remove("m")
        await look()
        assert house.ready == ["m:1"]

    in_polled_house(tmp_path, play)


def test_a_repository_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async def play(house: House, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        house.source.write("m", plain())
        house.sources[1].write("n", plain())
        await look()
        house.source.remove("m")
        house.sources[1].unreadable = unavailable("no network")
        await look()
        assert house.ready == ["m:1", "n:1"]
        assert house.log.errors() == ["failed to poll repository 'memory1': no network; its models stay as they are"]
        house.sources[1].unreadable = None
        await look()
        assert house.ready == ["n:1"]

    in_polled_house(tmp_path, play)


def test_what_failed_is_tried_again_at_each_look(tmp_path: Path) -> None:
    async def play(house: House, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        house.source.write("m", plain())
        house.loads.faults["m", 1] = [BAD]
        for count in range(1, 4):
            await look()
            assert house.loads.events == ["load m:1"] * count
        assert not house.catalogue.all_ready()
        house.loads.faults.clear()
        await look()
        assert house.ready == ["m:1"] and house.catalogue.all_ready()

    in_polled_house(tmp_path, play)


def test_a_failed_model_that_is_taken_away_is_not_tried_any_more(tmp_path: Path) -> None:
    async def play(house: House, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        house.source.write("m", plain())
        house.loads.faults["m", 1] = [BAD]
        await look()
        house.source.remove("m")
        for _ in range(3):
            await look()
        assert house.loads.events == ["load m:1"] and house.catalogue.all_ready()

    in_polled_house(tmp_path, play)


def test_an_ensemble_goes_and_comes_with_its_member(tmp_path: Path) -> None:
    async def play(house: House, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        house.source.write("m", plain())
        house.source.write("e", ensemble("m"))
        await look()
        assert house.ready == ["e:1", "m:1"]
        taken = house.source.remove("m")
        await look()
        assert house.ready == []
        house.source.put_back("m", taken)
        await look()
        assert house.ready == ["e:1", "m:1"]
        before = house.served("e")
        house.source.touch("m")
        await look()
        assert house.served("e") is not before

    in_polled_house(tmp_path, play)


def test_what_takes_long_holds_up_nobody_else(tmp_path: Path) -> None:
    async def run(house: House) -> None:
        polling = Polling(house.sources, house.catalogue, house.lifecycle, house.log, 1.0, 0.0)  # type: ignore[arg-type]
        house.source.write("slow", plain())
        gate = house.loads.hold("slow")
        await polling.poll()
        await house.until(lambda: house.loads.making)
        house.source.write("m", plain())
        house.source.touch("slow")
        await polling.poll()
        await house.until(lambda: house.ready == ["m:1"])
        await polling.poll()
        house.source.remove("m")
        await polling.poll()
        await house.until(lambda: house.ready == [])
        assert house.loads.events.count("load slow:1") == 1
        gate.set_result(None)
        await house.until(lambda: not polling._under_way)
        await polling.poll()
        await house.until(lambda: not polling._under_way)
        assert house.loads.events.count("load slow:1") == 2, "it changed while it was loaded"

    in_house(tmp_path, run, mode="poll")


def test_a_model_that_cannot_be_looked_at_keeps_no_other_from_being_polled(tmp_path: Path) -> None:
    async def play(house: House, look: Callable[[], Coroutine[Any, Any, None]]) -> None:
        house.source.write("m", plain())
        house.source.write("n", plain())
        await look()
        house.source.refused["m"] = internal("the name 'a//b' cannot be given to a file")
        house.source.touch("n", "2/model.py")
        await look()
        await look()
        assert house.ready == ["m:1", "n:2"]
        assert house.log.errors() == ["failed to poll model 'm': the name 'a//b' cannot be given to a file; it stays as it is"]
        house.source.refused.clear()
        house.source.touch("m", "2/model.py")
        await look()
        assert house.ready == ["m:2", "n:2"]
        # the repository's fault, not the model's
        house.source.refused["m"] = unavailable("no network")
        house.source.remove("n")
        await look()
        assert house.ready == ["m:2", "n:2"]

    in_polled_house(tmp_path, play)

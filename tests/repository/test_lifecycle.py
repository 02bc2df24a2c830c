"""Loads, replacements and unloads, step by step."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tensorfarm.workers.contract.status import Code, internal, unavailable

from .control import House, ensemble, in_house, plain

ALL = "version_policy { all { } }"
BAD = internal("bad")


def test_a_model_is_loaded_asked_and_unloaded(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        gate = house.loads.hold("m")
        loading = asyncio.create_task(house.load("m"))
        await house.until(lambda: house.states("m") == {1: "LOADING"})
        assert house.ready == []
        gate.set_result(None)
        assert await loading is None
        assert house.states("m") == {1: "READY"} and house.ready == ["m:1"]
        served = house.served("m")
        finished = house.loads.occupy(served)
        await house.unload("m")
        assert house.states("m") == {1: "UNLOADING"} and house.ready == []
        await house.until(lambda: served.stopping)
        assert len(house.source.used) == 1
        finished.set()
        await house.quiet()
        assert house.states("m") == {1: "UNAVAILABLE: unloaded"}
        assert house.source.used == [] and served.statistics.closed

    in_house(tmp_path, play)


def test_what_has_not_changed_is_not_loaded_again(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        gate = house.loads.hold("m")
        loads = [asyncio.create_task(house.load("m")) for _ in range(3)]
        await house.until(lambda: house.loads.making)
        gate.set_result(None)
        assert await asyncio.gather(*loads) == [None] * 3
        assert house.loads.events == ["load m:1", "loaded m:1"]
        house.source.touch("m", "config.pbtxt")
        served = house.served("m")
        assert await house.load("m") is None
        assert house.served("m") is served

    in_house(tmp_path, play)


def test_all_versions_or_none(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain(ALL), (1, 2, 3))
        house.loads.faults["m", 2] = [BAD]
        gates = [house.loads.hold("m", version) for version in (1, 2, 3)]
        loading = asyncio.create_task(house.load("m"))
        await house.until(lambda: house.loads.making == 3)
        assert house.states("m") == {1: "LOADING", 2: "LOADING", 3: "LOADING"}
        gates[0].set_result(None)
        gates[1].set_result(None)
        await house.until(lambda: house.states("m")[2] == "UNAVAILABLE: Internal: bad")
        assert house.states("m")[1] == "LOADING"
        gates[2].set_result(None)
        error = await loading
        assert error is not None and error.code is Code.INVALID_ARG
        assert error.message == "load failed for model 'm': version 2 is at UNAVAILABLE state: Internal: bad;\n"
        await house.quiet()
        assert house.states("m") == {1: "UNAVAILABLE: unloaded", 2: "UNAVAILABLE: Internal: bad", 3: "UNAVAILABLE: unloaded"}
        assert house.source.used == []
        house.loads.faults.clear()
        assert await house.load("m") is None
        assert house.states("m") == {1: "READY", 2: "READY", 3: "READY"}

    in_house(tmp_path, play)


def test_all_versions_switch_in_one_turn(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain(ALL), (1, 2))
        assert await house.load("m") is None
        old = {house.served("m", version) for version in (1, 2)}
        for version in (1, 2):
            house.source.touch("m", f"{version}/model.py")
        gates = [house.loads.hold("m", version) for version in (1, 2)]
        loading = asyncio.create_task(house.load("m"))
        await house.until(lambda: house.loads.making == 2)
        gates[1].set_result(None)
        await house.until(lambda: house.loads.making == 1)
        gates[0].set_result(None)
        while not loading.done():
            serving = {house.served("m", version) for version in (1, 2)}
            assert serving == old or serving.isdisjoint(old)
            assert house.states("m") == {1: "READY", 2: "READY"}
            await asyncio.sleep(0)
        assert {house.served("m", version) for version in (1, 2)}.isdisjoint(old)
        await house.quiet()
        assert len(house.source.used) == 1

    in_house(tmp_path, play)


def test_only_the_version_that_changed_is_replaced(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain(ALL), (1, 2))
        assert await house.load("m") is None
        kept, replaced = house.served("m", 1), house.served("m", 2)
        house.source.touch("m", "2/model.py")
        assert await house.load("m") is None
        assert house.served("m", 1) is kept and house.served("m", 2) is not replaced
        assert house.served("m", 2).statistics.earlier is replaced.statistics
        await house.quiet()
        assert len(house.source.used) == 2, "the version that was kept has its own files still"

    in_house(tmp_path, play)


def test_a_reload_that_fails_leaves_the_old_with_the_reason(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        assert await house.load("m") is None
        old = house.served("m")
        house.source.touch("m")
        house.loads.faults["m", 1] = [BAD]
        for _ in range(2):
            assert (await house.load("m")) is not None
            assert house.served("m") is old and house.states("m") == {1: "READY: Internal: bad"}
            assert house.catalogue.all_ready()
        house.loads.faults.clear()
        assert await house.load("m") is None
        assert house.served("m") is not old and house.states("m") == {1: "READY"}

    in_house(tmp_path, play)


def test_a_configuration_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        assert await house.load("m") is None
        old = house.served("m")
        house.source.configure("m", "{{{")
        error = await house.load("m")
        assert error is not None and error.code is Code.INTERNAL
        assert error.message.startswith(
            "failed to load 'm', failed to poll from model repository: failed to read text proto from m/config.pbtxt"
        )
        assert house.served("m") is old
        [entry] = await house.lifecycle.index(False)
        assert (entry.state, entry.reason.partition(" from")[0]) == ("READY", "failed to read text proto")
        house.source.configure("m", plain())
        assert await house.load("m") is None
        assert house.served("m") is old
        assert [entry.reason for entry in await house.lifecycle.index(False)] == [""]

    in_house(tmp_path, play)


def test_a_new_version_that_fails_is_forgotten_when_it_is_taken_away(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        assert await house.load("m") is None
        house.source.touch("m", "2/model.py")
        house.loads.faults["m", 2] = [BAD]
        assert await house.load("m") is not None
        assert house.states("m") == {1: "READY", 2: "UNAVAILABLE: Internal: bad"}
        assert not house.catalogue.all_ready()
        house.source.remove("m", "2/")
        assert await house.load("m") is None
        assert house.states("m") == {1: "READY"} and house.catalogue.all_ready()

    in_house(tmp_path, play)


def test_a_load_beside_what_is_on_its_way_out(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        assert await house.load("m") is None
        first = house.served("m")
        finished = house.loads.occupy(first)
        await house.unload("m")
        assert await house.load("m") is None
        assert house.states("m") == {1: "READY"} and house.served("m") is not first
        assert len(house.loads.there) == 2
        finished.set()
        await house.quiet()
        assert house.states("m") == {1: "READY"}

    in_house(tmp_path, play)


def test_why_a_load_failed_is_not_forgotten_when_the_one_before_has_drained(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        assert await house.load("m") is None
        finished = house.loads.occupy(house.served("m"))
        await house.unload("m")
        gate = house.loads.hold("m")
        loading = asyncio.create_task(house.load("m"))
        await house.until(lambda: house.states("m") == {1: "LOADING"})
        finished.set()
        await house.until(lambda: not house.loads.there)
        assert house.states("m") == {1: "LOADING"}, "the end of the old is nothing to the new"
        gate.set_exception(BAD)
        assert await loading is not None
        assert house.states("m") == {1: "UNAVAILABLE: Internal: bad"}

    in_house(tmp_path, play)


def test_the_drain_ends_after_the_load_has_failed(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        assert await house.load("m") is None
        finished = house.loads.occupy(house.served("m"))
        await house.unload("m")
        house.loads.faults["m", 1] = [BAD]
        assert await house.load("m") is not None
        finished.set()
        await house.quiet()
        assert house.states("m") == {1: "UNAVAILABLE: Internal: bad"}

    in_house(tmp_path, play)


@pytest.mark.parametrize("fault", [AssertionError("x"), OSError(5, "disk"), ValueError("y"), MemoryError()])
def test_whatever_a_load_runs_into_nothing_is_left_half_done(tmp_path: Path, fault: Exception) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain(ALL), (1, 2))
        house.source.write("other", plain())
        house.source.write("e", ensemble("m", "other"))
        house.loads.faults["m", 1] = [fault]
        gate = house.loads.hold("other")
        loading = asyncio.create_task(house.load("e"))
        await house.until(lambda: house.states("m").get(1, "").startswith("UNAVAILABLE"))
        gate.set_result(None)
        assert await loading is not None
        await house.quiet()
        kind = type(fault).__name__
        assert house.states("m") == {1: f"UNAVAILABLE: Internal: unexpected {kind}", 2: "UNAVAILABLE: unloaded"}
        assert house.ready == ["other:1"]
        house.loads.faults.clear()
        assert await house.load("e") is None
        assert house.ready == ["e:1", "m:1", "m:2", "other:1"]

    in_house(tmp_path, play)


def test_whatever_a_look_runs_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        house.source.write("e", ensemble("m"))
        with monkeypatch.context() as patch:
            patch.setattr(house.source, "copy", lambda model, stamps: 1 // 0)
            error = await house.load("e")
        assert error is not None and error.message.endswith("unexpected ZeroDivisionError")
        assert await house.load("e") is None

    in_house(tmp_path, play)


def test_files_that_cannot_be_had(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        house.source.unfilled = unavailable("no way")
        error = await house.load("m")
        assert error is not None and "Unavailable: no way" in error.message
        await house.quiet()
        assert house.source.used == []
        house.source.unfilled = None
        assert await house.load("m") is None

    in_house(tmp_path, play)


def test_a_load_is_tried_again(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        house.loads.faults["m", 1] = [internal("one"), internal("two"), internal("three")]
        error = await house.load("m")
        assert error is not None and error.message.endswith("Internal: three;\n")
        assert house.loads.events == ["load m:1"] * 3
        house.loads.faults["m", 1] = [internal("one"), internal("two")]
        house.loads.hold("m").set_result(None)
        retried = asyncio.create_task(house.load("m"))
        await house.until(lambda: len(house.loads.events) == 5)
        house.loads.faults.clear()
        assert await retried is None

    in_house(tmp_path, play, "--model-load-retry-count=2")


def test_no_more_load_at_once_than_may(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        for number in range(6):
            house.source.write(f"m{number}", plain(ALL), (1, 2))
        assert [await one for one in [asyncio.create_task(house.load(f"m{number}")) for number in range(6)]] == [None] * 6
        assert house.loads.most_making <= 2

    in_house(tmp_path, play, "--model-load-thread-count=2")


def test_instances_change_in_place(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain(ALL), (1, 2))
        assert await house.load("m") is None
        before = house.loads.all()
        house.source.configure("m", plain(ALL + " instance_group { count: 3 }"))
        assert await house.load("m") is None
        assert house.loads.all() == before
        assert house.loads.growths == [("m", 1, 3), ("m", 2, 3)] == house.loads.trims
        house.source.configure("m", plain(ALL + " instance_group { count: 4 }"))
        house.loads.grow_fault = BAD
        error = await house.load("m")
        assert error is not None
        assert (
            error.message
            == "load failed for model 'm': " + "".join(f"version {v} is at READY state: Internal: bad;" for v in (1, 2)) + "\n"
        )
        assert house.states("m") == {1: "READY: Internal: bad", 2: "READY: Internal: bad"}
        assert house.loads.trims[2:] == [("m", 1, 3), ("m", 2, 3)], "what was added goes again"
        house.loads.grow_fault = None
        house.source.configure("m", plain(ALL + " instance_group { count: 3 }"))
        assert await house.load("m") is None
        assert house.states("m") == {1: "READY", 2: "READY"} and house.loads.all() == before

    in_house(tmp_path, play)


def test_a_version_that_is_down_is_loaded_anew_or_leaves(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain(ALL), (1, 2))
        assert await house.load("m") is None
        down = [house.served("m", 1), house.served("m", 2)]
        for served in down:
            for instance in served.homes:
                instance.live = False
        house.source.remove("m", "1/")
        assert await house.load("m") is None
        await house.quiet()
        assert house.states("m") == {1: "UNAVAILABLE: unloaded", 2: "READY"}
        assert house.served("m") not in down

    in_house(tmp_path, play)


def test_names_that_clients_invent_leave_nothing(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        for number in range(200):
            name = f"invented{number}"
            error = await house.load(name)
            assert error is not None and error.code is Code.INTERNAL
            assert await house.load(name, {"config": plain()}) is not None
            await house.unload(name, dependents=number % 2 == 0)
        assert house.catalogue.models == {} and house.loads.events == [] and house.source.copies == []

    in_house(tmp_path, play)


def test_a_load_goes_on_when_nobody_waits_for_it(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        gate = house.loads.hold("m")
        loading = asyncio.create_task(house.load("m"))
        await house.until(lambda: house.loads.making)
        loading.cancel()
        await asyncio.wait([loading])
        gate.set_result(None)
        await house.until(lambda: house.ready == ["m:1"])

    in_house(tmp_path, play)


def test_the_server_ends_in_the_middle_of_everything(tmp_path: Path) -> None:
    async def run() -> None:
        house = House(tmp_path)
        for name in ("a", "b", "c"):
            house.source.write(name, plain())
        assert await house.load("a") is None and await house.load("b") is None
        finished = house.loads.occupy(house.served("b"))
        await house.unload("b")
        house.source.touch("a")
        house.loads.hold("a")
        house.loads.hold("c")
        loads = [asyncio.create_task(house.load(name)) for name in ("a", "c", "a", "c", "b")]
        await house.until(lambda: house.loads.making == 2 and house.ready == ["a:1", "b:1"])
        finished.set()
        await house.lifecycle.unload_all(20.0)
        assert house.loads.there == []
        assert all(isinstance(one, asyncio.CancelledError) or one is None for one in await asyncio.gather(*loads, return_exceptions=True))
        assert sorted(event for event in house.loads.events if event.startswith("gone")) == ["gone a:1", "gone b:1", "gone b:1"]

    asyncio.run(run())


def test_the_end_waits_for_what_is_on_its_way_out_already_but_not_for_ever(tmp_path: Path) -> None:
    async def run() -> None:
        house = House(tmp_path)
        house.source.write("m", plain())
        assert await house.load("m") is None
        served = house.served("m")
        house.loads.occupy(served)
        await house.unload("m")
        await house.until(lambda: served.stopping)
        await house.lifecycle.unload_all(0.01)
        assert house.loads.there == [served]
        assert house.log.lines[-1] == ("W", "1 model versions were not unloaded within 0.01 s")

    asyncio.run(run())


def test_the_start(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        for name in ("a", "b"):
            house.source.write(name, plain())
        house.source.write("e", ensemble("a"))
        assert await house.lifecycle.start() is None
        assert house.ready == ["a:1", "e:1"]
        await house.unload("e", dependents=True)
        await house.quiet()
        assert house.ready == []

    in_house(tmp_path, play, "--load-model=e")


def test_the_start_with_a_model_in_two_repositories(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        for source in house.sources:
            source.write("m", plain())
        house.source.write("n", plain())
        error = await house.lifecycle.start()
        assert error is not None and error.message == "failed to load all models"
        assert house.ready == ["n:1"]

    in_house(tmp_path, play, mode="none", sources=2)


OVERRIDE = (
    '{"backend":"python","input":[{"name":"X","data_type":"TYPE_INT32","dims":[1]}],'
    '"output":[{"name":"Y","data_type":"TYPE_INT32","dims":[1]}]}'
)
"""A configuration that loads the latest version alone."""


def test_a_configuration_that_came_with_a_request_stays_until_the_files_change(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain(ALL), (1, 2))
        assert await house.load("m", {"config": OVERRIDE}) is None
        assert house.ready == ["m:2"]
        assert await house.load("m") is None
        assert house.ready == ["m:2"]
        house.source.touch("m", "1/model.py")
        assert await house.load("m") is None
        assert house.ready == ["m:1", "m:2"]

    in_house(tmp_path, play)


def test_files_that_came_with_a_request_are_there_as_long_as_their_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def kept() -> list[str]:
        return sorted(str(path.relative_to(path.parents[2])) for path in tmp_path.glob("tensorfarm-*/*/model/*/model.py"))

    async def play(house: House) -> None:
        files = {"config": OVERRIDE, "file:7/model.py": b"x = 1"}
        assert await house.load("ghost", files) is None
        assert house.ready == ["ghost:7"] and kept() == ["model/7/model.py"]
        assert await house.lifecycle.index(False) == []
        house.loads.faults["ghost", 8] = [BAD]
        assert await house.load("ghost", {"config": OVERRIDE, "file:8/model.py": b"x = 2"}) is not None
        await house.quiet()
        assert kept() == ["model/7/model.py"] and house.ready == ["ghost:7"]
        assert await house.load("ghost") is not None
        assert await house.load("ghost", {"config": "{", "file:8/model.py": b""}) is not None
        assert await house.load("ghost", {"config": OVERRIDE, "file:x": b""}) is not None
        await house.quiet()
        assert kept() == ["model/7/model.py"] and house.ready == ["ghost:7"]
        await house.unload("ghost")
        await house.quiet()
        assert kept() == []

    async def run() -> None:
        house = House(tmp_path)
        await play(house)
        await house.lifecycle.unload_all(20.0)

    asyncio.run(run())
    assert list(tmp_path.glob("*tensorfarm*")) == []


def test_the_end_stops_the_repositories(tmp_path: Path) -> None:
    """Else threads that wait for a store would be waited for."""

    async def play(house: House) -> None:
        await house.lifecycle.end_operations()
        assert all(source.stopped for source in house.sources)

    in_house(tmp_path, play, sources=2)

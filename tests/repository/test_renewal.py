"""Ensembles and what they run: loaded, replaced and unloaded together. The rules are those of the real server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tensorfarm.workers.contract.status import Code, internal

from .control import House, ensemble, in_house, plain

BAD = internal("bad")
GONE = "UNAVAILABLE: unloaded"


def write(house: House) -> None:
    """e runs m1 and m2, ee runs e, e2 runs m1."""
    house.source.write("m1", plain())
    house.source.write("m2", plain())
    house.source.write("e", ensemble("m1", "m2"))
    house.source.write("ee", ensemble("e"))
    house.source.write("e2", ensemble("m1"))


def test_members_come_first_and_ensembles_go_first(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("ee") is None
        assert house.ready == ["e:1", "ee:1", "m1:1", "m2:1"]
        order = [event for event in house.loads.events if event.startswith("loaded")]
        assert order[2:] == ["loaded e:1", "loaded ee:1"]
        assert [house.catalogue.models[name].implicit for name in ("ee", "e", "m1", "m2")] == [False, True, True, True]
        await house.unload("m1")
        assert house.ready == ["m2:1"]
        await house.quiet()
        assert house.loads.events[-3:] == ["gone ee:1", "gone e:1", "gone m1:1"]
        assert house.states("e") == {1: GONE}
        assert house.catalogue.all_ready()

    in_house(tmp_path, play)


def test_ensembles_come_back_with_the_member_that_they_lost(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("ee") is None
        await house.unload("m1")
        assert await house.load("m1") is None
        assert house.ready == ["e:1", "ee:1", "m1:1", "m2:1"]
        assert not house.catalogue.models["m1"].implicit, "it was asked for by itself"

    in_house(tmp_path, play)


def test_an_ensemble_comes_up_once_what_it_lacked_is_there(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("e", ensemble("later", "broken"))
        house.source.write("broken", plain())
        house.loads.faults["broken", 1] = [BAD]
        error = await house.load("e")
        assert error is not None
        assert error.message == "load failed for model 'e': ensemble e contains models that are not available or ambiguous: later\n"
        assert house.states("e") == {} and house.catalogue.models["e"].wanted and not house.catalogue.models["e"].known
        house.source.write("later", plain())
        error = await house.load("e")
        assert error is not None and error.message == (
            "load failed for model 'e': ensemble 'e' depends on 'broken' which has no loaded version. Model 'broken' loading failed with "
            "error: version 1 is at UNAVAILABLE state: Internal: bad;\n"
        )
        assert house.ready == ["later:1"]
        house.loads.faults.clear()
        assert await house.load("broken") is None
        assert house.ready == ["broken:1", "e:1", "later:1"]

    in_house(tmp_path, play)


def test_a_member_that_is_replaced_takes_its_ensembles_with_it(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("ee") is None and await house.load("e2") is None
        before = {name: house.served(name) for name in ("m1", "m2", "e", "ee", "e2")}
        finished = house.loads.occupy(before["ee"])
        house.source.touch("m1")
        assert await house.load("m1") is None
        after = {name: house.served(name) for name in before}
        assert [name for name in before if before[name] is after[name]] == ["m2"]
        assert before["ee"].members["e", -1] is before["e"] and after["ee"].members["e", -1] is after["e"]
        assert not before["e"].stopping and not before["m1"].stopping, "a request is in flight above them"
        finished.set()
        await house.quiet()

    in_house(tmp_path, play)


def test_an_ensemble_that_changes_leaves_its_members_alone(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("ee") is None
        before = {name: house.served(name) for name in ("m1", "m2", "e", "ee")}
        house.source.configure("e", ensemble("m1", more="metric_tags { key: 'a' value: 'b' }"))
        assert await house.load("e") is None
        after = {name: house.served(name) for name in before}
        assert [name for name in before if before[name] is after[name]] == ["m1", "m2"]
        assert await house.load("ee") is None
        assert {name: house.served(name) for name in before} == after, "nothing has changed"

    in_house(tmp_path, play)


@pytest.mark.parametrize("dependents", [False, True])
def test_members_that_nobody_asked_for_go_with_the_last_ensemble(tmp_path: Path, dependents: bool) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("ee") is None and await house.load("e2") is None
        assert await house.load("m1") is None
        await house.unload("ee", dependents)
        assert house.ready == (["e2:1", "m1:1"] if dependents else ["e:1", "e2:1", "m1:1", "m2:1"])
        await house.unload("e2", dependents)
        assert house.ready == ([] if dependents else ["e:1", "m1:1", "m2:1"])

    in_house(tmp_path, play)


def test_a_member_that_was_asked_for_first_stays(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("m1") is None and await house.load("e") is None
        await house.unload("e", dependents=True)
        assert house.ready == ["m1:1"]

    in_house(tmp_path, play)


def test_dependents_are_those_that_it_runs_not_those_it_failed_to_take(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("e2") is None
        house.source.configure("e2", ensemble("m2"))
        house.loads.faults["m2", 1] = [BAD]
        assert await house.load("e2") is not None
        assert house.ready == ["e2:1", "m1:1"]
        await house.unload("e2", dependents=True)
        await house.quiet()
        assert house.ready == []

    in_house(tmp_path, play)


def test_dependents_of_one_that_never_came_up(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m1", plain())
        house.source.write("bad", plain())
        house.source.write("e", ensemble("m1", "bad"))
        house.loads.faults["bad", 1] = [BAD]
        assert await house.load("e") is not None
        assert house.ready == ["m1:1"]
        house.source.touch("m1")
        gate = house.loads.hold("m1")
        loading = asyncio.create_task(house.load("m1"))
        await house.until(lambda: house.loads.making)
        unloading = asyncio.create_task(house.unload("e", dependents=True))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not unloading.done(), "m1 is being worked on"
        gate.set_result(None)
        assert await loading is None
        await unloading
        await house.quiet()
        assert house.ready == []

    in_house(tmp_path, play)


def test_a_member_that_does_not_fit_any_more(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("ee") is None
        house.source.configure("m1", plain(datatype="INT64"))
        assert await house.load("m1") is None
        assert house.ready == ["m1:1", "m2:1"]
        await house.quiet()
        assert house.states("e") == house.states("ee") == {1: GONE} and house.catalogue.all_ready()
        error = await house.load("e")
        assert error is not None and error.code is Code.INVALID_ARG and "inconsistent data type" in error.message
        house.source.configure("m1", plain())
        assert await house.load("m1") is None
        assert house.ready == ["e:1", "ee:1", "m1:1", "m2:1"]

    in_house(tmp_path, play)


def test_a_change_that_does_not_fit_leaves_what_serves_alone(tmp_path: Path) -> None:
    """Also where its new members have just been loaded for it."""

    async def play(house: House) -> None:
        write(house)
        house.source.write("wide", plain(datatype="INT64"))
        assert await house.load("e2") is None and await house.load("m2") is None
        before = house.served("e2"), house.served("m2")
        for name in ("e2", "m2"):
            house.source.configure(name, ensemble("wide"))
            error = await house.load(name)
            assert error is not None and "inconsistent data type" in error.message
        assert (house.served("e2"), house.served("m2")) == before
        assert house.states("e2") == {1: "READY"}
        house.source.configure("e2", ensemble("m1"))
        assert await house.load("e2") is None
        assert house.served("e2") is before[0]
        house.source.configure("m2", plain())

    in_house(tmp_path, play)


def test_an_ensemble_whose_file_is_broken_still_follows_its_members(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("e2") is None
        before = house.served("e2")
        house.source.configure("e2", "{{{")
        assert await house.load("e2") is not None
        assert house.served("e2") is before
        house.source.touch("m1")
        assert await house.load("m1") is None
        assert house.served("e2") is not before
        assert house.served("e2").members["m1", -1] is house.served("m1")

    in_house(tmp_path, play)


def test_a_member_that_fails_leaves_its_ensembles_with_the_old(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("e2") is None
        before = house.loads.all()
        house.source.touch("m1")
        house.loads.faults["m1", 1] = [BAD]
        assert await house.load("m1") is not None
        assert house.loads.all() == before and house.ready == ["e2:1", "m1:1"]

    in_house(tmp_path, play)


def test_circles_are_refused_and_cured(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("c1", ensemble("c2"))
        house.source.write("c2", ensemble("c1"))
        error = await house.load("c1")
        assert error is not None
        assert error.message == "load failed for model 'c1': circular dependency between ensembles: c1 -> ... -> c2 -> c1\n"
        house.source.write("c2", plain())
        assert await house.load("c1") is None
        house.source.write("c2", ensemble("c1"))
        assert await house.load("c2") is not None
        assert house.ready == ["c1:1", "c2:1"]
        house.source.write("c2", plain())

    in_house(tmp_path, play)


def test_operations_on_one_family_wait_for_each_other_others_do_not(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        house.source.write("free", plain())
        gate = house.loads.hold("m2")
        loading = asyncio.create_task(house.load("e"))
        await house.until(lambda: "load m2:1" in house.loads.events)
        behind = [asyncio.create_task(one) for one in (house.load("m1"), house.load("e2"), house.unload("m2"))]
        assert await house.load("free") is None
        assert not any(one.done() for one in behind) and not loading.done()
        gate.set_result(None)
        assert await loading is None
        await asyncio.gather(*behind)
        await house.quiet()
        assert house.ready == ["e2:1", "free:1", "m1:1"]
        assert house.loads.events.count("load m1:1") == house.loads.events.count("load m2:1") == 1

    in_house(tmp_path, play)


def test_statistics_go_on_over_reloads(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        house.source.write("m", plain())
        assert await house.load("m") is None
        total = 0
        for count in range(1, 40):
            served = house.served("m")
            served.statistics.success_count += count
            total += count
            finished = house.loads.occupy(served)
            house.source.touch("m")
            assert await house.load("m") is None
            # Each is busy until the next but one has come.
            house.loads.busy.setdefault(served, finished)
            older = [one for one in house.loads.all() if one is not served and one is not house.served("m")]
            for one in older:
                house.loads.busy[one].set()
            await house.until(lambda older=older: not any(one in house.loads.all() for one in older))
            assert house.served("m").statistics.total().success_count == total
            chain, at = 0, house.served("m").statistics
            while at.earlier is not None:
                chain, at = chain + 1, at.earlier
            assert chain <= 4
        for event in house.loads.busy.values():
            event.set()

    in_house(tmp_path, play)


def test_what_was_unloaded_does_not_come_back_because_another_is_loaded(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        write(house)
        assert await house.load("ee") is None
        await house.unload("m2")
        for _ in range(2):
            assert await house.load("m1") is None
            assert house.ready == ["m1:1"]
            house.source.touch("m1")
        assert await house.load("m2") is None
        assert house.ready == ["e:1", "ee:1", "m1:1", "m2:1"]

    in_house(tmp_path, play)

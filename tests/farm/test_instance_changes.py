"""Instances that come and go while their model serves: added, taken away, and what is left after a restart."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tensorfarm.server.dispatch.instance import Instance
from tensorfarm.server.farm.seat import Seat
from tensorfarm.workers.contract.configuration import document, parse_document
from tensorfarm.workers.contract.messages import FromWorker, InstanceSpec, Load, Loaded
from tensorfarm.workers.contract.status import Code, StatusError

from .harness import CONFIG, PATIENCE_S, House, Served, run
from .test_python_workers import ADDING, LATE, SEAT, python_model
from .test_warmup import SAMPLE


def more(house: House, served: Served, *numbers: int, kind: str = "KIND_CPU", config: bytes = b"") -> Load:
    """What adds instances to a model; the harness knows of them from now on."""
    served.instances += [Instance(number, f"m_{number}") for number in numbers]
    specs = [InstanceSpec(number, f"m_{number}", kind, 0) for number in numbers]
    return msgspec.structs.replace(served.load, instances=specs, config=config or served.load.config)


def forget(served: Served, *numbers: int) -> None:
    """What the server does before it takes instances away: they get no more work."""
    for instance in [instance for instance in served.instances if instance.number in numbers]:
        served.scheduler.instance_down(instance)
        served.instances.remove(instance)


def threads(house: House) -> list[str]:
    return [path.read_text().strip() for path in Path(f"/proc/{house.process().pid}/task").glob("*/comm")]


async def extend(house: House, load: Load, worker: str = "cpu") -> bool:
    return await asyncio.wait_for(house.farm.extend(worker, load), PATIENCE_S)


async def check_all(house: House, served: Served) -> None:
    """Every instance answers."""
    kept = served.instances
    for instance in kept:
        others = [other for other in kept if other is not instance]
        for other in others:
            served.scheduler.instance_down(other)
        await house.check(served)
        for other in others:
            house.dispatcher.instance_up(served.scheduler, other)


def held(house: House, served: Served, worker: str = "cpu") -> list[int]:
    return [spec.number for spec in house.farm.seats[worker].holdings[served.load.model].load.instances]


def test_instances_are_added_and_taken_away(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        process = house.process()
        descriptors = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
        assert await extend(house, more(house, served, 101, 102)) is False
        assert house.ready == [100, 101, 102] and held(house, served) == house.ready
        await check_all(house, served)
        forget(served, 100, 102)
        await asyncio.wait_for(house.farm.shrink("cpu", served.load.model, [100, 102]), PATIENCE_S)
        assert held(house, served) == [101] and house.farm._seat_of_instance.keys() == {101}
        await check_all(house, served)
        await house.until(lambda: len(list(Path(f"/proc/{process.pid}/fd").iterdir())) <= descriptors, "their sockets to be closed")
        assert house.process() is process and house.lost == []
        assert [text for severity, text in house.log if severity != "I"] == []
        # The last one takes the model with it, and the worker that holds nothing any more.
        await asyncio.wait_for(house.farm.shrink("cpu", served.load.model, [101]), PATIENCE_S)
        assert house.farm.seats == {} and house.farm._seat_of_instance == {}
        await house.farm.shrink("cpu", served.load.model, [101])

    run(tmp_path, work)


def test_they_are_as_many_after_a_restart(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load(instances=2)
        config = parse_document(served.load.config)
        config.metric_tags["changed"] = "twice"
        await extend(house, more(house, served, 102, config=document(config)))
        config.metric_tags["changed"] = "thrice"
        forget(served, 100)
        await asyncio.wait_for(house.farm.shrink("cpu", served.load.model, [100], document(config)), PATIENCE_S)
        load = house.farm.seats["cpu"].holdings[served.load.model].load
        assert parse_document(load.config).metric_tags["changed"] == "thrice"
        house.ready.clear()
        house.process().kill()
        await house.until(lambda: len(house.ready) == 2, "the instances to be back")
        assert sorted(house.ready) == [101, 102] and sorted(number for number, _ in house.lost) == [101, 102]
        await check_all(house, served)

    run(tmp_path, work)


def test_a_busy_model_goes_on_serving(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        wrong: list[object] = []
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                response = await asyncio.wait_for(house.ask(served, 3), PATIENCE_S)
                if response.error is not None or np.frombuffer(response.read(response.outputs[0]), np.int32)[0] != 6:
                    wrong.append(response.error)
                response.release()

        clients = [asyncio.ensure_future(client()) for _ in range(4)]
        for number in range(101, 106):
            await extend(house, more(house, served, number))
            leaving = served.instances[0]
            # As the server does: no more work, and gone once it has done what it had.
            served.scheduler.instances.remove(leaving)
            await house.until(lambda leaving=leaving: not leaving.batches, "it to be idle")  # type: ignore[misc]
            served.instances.remove(leaving)
            await asyncio.wait_for(house.farm.shrink("cpu", served.load.model, [leaving.number]), PATIENCE_S)
        stop.set()
        await asyncio.gather(*clients)
        assert wrong == [] and house.lost == [] and held(house, served) == [105]

    run(tmp_path, work)


@pytest.mark.parametrize("why", ["kind", "warm-up"])
def test_instances_that_cannot_be_made_leave_the_model_as_it_was(tmp_path: Path, why: str) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        if why == "kind":
            load, said = more(house, served, 101, 102, kind="KIND_GPU"), "is to run on a GPU"
        else:
            # What a reload would not change in place, but what comes of it is the same.
            cold = house.model(CONFIG + SAMPLE % 1).load.config
            load, said = more(house, served, 101, 102, config=cold), "^failed to run warmup sample 's': "
        with pytest.raises(StatusError, match=said):
            await extend(house, load)
        assert held(house, served) == [100] == house.ready and house.farm._seat_of_instance.keys() == {100}
        forget(served, 101, 102)
        await check_all(house, served)
        await extend(house, more(house, served, 103))
        await check_all(house, served)

    run(tmp_path, work)


def test_a_worker_that_dies_while_it_is_given_more(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        os.kill(house.process().pid, signal.SIGSTOP)  # else it might be done before it dies
        extending = asyncio.ensure_future(extend(house, more(house, served, 101)))
        await asyncio.sleep(0)
        house.process().kill()
        with pytest.raises(StatusError) as raised:
            await extending
        assert raised.value.code is Code.UNAVAILABLE
        forget(served, 101)
        # Asked while the next worker is on its way: it is waited for, and for what it is to hold.
        await extend(house, more(house, served, 102))
        assert held(house, served) == [100, 102] and house.ready == [100, 100, 102]
        assert [number for number, _ in house.lost] == [100]
        await check_all(house, served)

    run(tmp_path, work)


@pytest.mark.parametrize("adding", [False, True])
def test_a_worker_whose_last_word_is_that_it_has_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adding: bool) -> None:
    async def work(house: House) -> None:
        served = await house.load() if adding else house.model()
        receive = house.farm._received

        def received(seat: Seat, message: FromWorker) -> None:
            receive(seat, message)
            if isinstance(message, Loaded) and seat.process is not None:
                # As when its end and what it had sent are seen in one turn: before those who wait have heard the answer.
                monkeypatch.setattr(house.farm, "_received", receive)
                seat.process.kill()
                os.waitid(os.P_PID, seat.process.pid, os.WEXITED | os.WNOWAIT)
                seat.process._exited()

        monkeypatch.setattr(house.farm, "_received", received)
        loading = extend(house, more(house, served, 101)) if adding else house.farm.load("cpu", served.load)
        with pytest.raises(StatusError, match="^worker 'cpu' ended while it loaded model 'm'$"):
            await asyncio.wait_for(loading, PATIENCE_S)
        if adding:
            forget(served, 101)
            await house.until(lambda: house.ready.count(100) == 2, "what it held before to be back")
        else:
            await asyncio.wait_for(house.farm.load("cpu", served.load), PATIENCE_S)
        assert held(house, served) == [100]
        await check_all(house, served)

    run(tmp_path, work)


def test_more_instances_that_nobody_waits_for_any_more(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = await house.load()
        extending = asyncio.ensure_future(house.farm.extend("cpu", more(house, served, 101)))
        await asyncio.sleep(0)
        extending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await extending
        forget(served, 101)
        await house.until(lambda: not house.farm._background, "the worker to have dropped them")
        assert held(house, served) == [100] == house.ready
        await extend(house, more(house, served, 102))
        await check_all(house, served)
        assert [text for severity, text in house.log if severity != "I"] == []

    run(tmp_path, work)


def test_a_model_that_is_unloaded_while_it_is_given_more(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        keeper = await house.load()
        served = await house.load()
        extending = asyncio.ensure_future(extend(house, more(house, served, 201)))
        await asyncio.sleep(0)
        await asyncio.wait_for(house.farm.unload("cpu", served.load.model), PATIENCE_S)
        with pytest.raises(StatusError, match="is being unloaded"):
            await extending
        assert house.farm._seat_of_instance.keys() == {100} and 201 not in house.ready
        await house.check(keeper)

    run(tmp_path, work)


def test_a_python_models_instances_have_workers_of_their_own(tmp_path: Path) -> None:
    async def work(house: House) -> None:
        served = python_model(house, ADDING.replace("{more}", "x = 1"), LATE)
        await asyncio.wait_for(house.farm.load(SEAT, served.load), PATIENCE_S)
        await extend(house, more(house, served, 101), "m:1#1")
        assert house.farm.seats.keys() == {SEAT, "m:1#1"} and sorted(house.ready) == [100, 101]
        await check_all(house, served)
        forget(served, 100)
        await asyncio.wait_for(house.farm.shrink(SEAT, served.load.model, [100]), PATIENCE_S)
        assert house.farm.seats.keys() == {"m:1#1"}
        await house.check(served)

    run(tmp_path, work)

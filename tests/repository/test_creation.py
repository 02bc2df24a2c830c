"""Versions with their instances, over a farm that only notes what it is asked: made, changed in place, taken down."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tensorfarm.server.command_line import parse
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import PlannedBatch
from tensorfarm.server.dispatch.rate_limiter import RateLimiter
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.farm.interpreter import OWN, Interpreter
from tensorfarm.server.gpus import Gpus
from tensorfarm.server.option_values import EVERY_DEVICE, Resource
from tensorfarm.server.repository.change import Edition
from tensorfarm.server.repository.creation import Creation
from tensorfarm.server.repository.folder import Folder
from tensorfarm.server.repository.generations import Generations
from tensorfarm.server.repository.preparation import prepare_config
from tensorfarm.server.repository.shared_copy import SharedCopy
from tensorfarm.server.repository.source import Copy
from tensorfarm.server.repository.version import ModelVersion
from tensorfarm.server.statistics import StatisticsBook
from tensorfarm.workers.contract.configuration import parse_text
from tensorfarm.workers.contract.messages import Done, Load, RequestBody, Result
from tensorfarm.workers.contract.status import StatusError, internal

from .control import Log, plain

PATIENCE_S = 20.0


class Farm:
    """Workers by name, each with the instances of each model. A process holds one Python instance; ``slow`` names unload when told."""

    def __init__(self, events: Generations) -> None:
        self.workers: dict[str, dict[int, set[int]]] = {}
        self.faults: dict[str, Exception] = {}
        self.slow: dict[str, asyncio.Event] = {}
        self._events = events

    async def extend(self, worker: str, load: Load, interpreter: Interpreter = OWN) -> bool:
        await asyncio.sleep(0)
        models = self.workers.setdefault(worker, {})
        assert "#" not in worker or not models, f"{worker} holds {models}"
        if worker in self.faults:
            if not models:
                del self.workers[worker]
            raise self.faults[worker]
        numbers = {spec.number for spec in load.instances}
        models.setdefault(load.model, set()).update(numbers)
        for number in sorted(numbers):
            self._events.instance_ready(number)
        return False

    async def shrink(self, worker: str, model: int, instances: Collection[int], config: bytes = b"") -> None:
        await self._take(worker, model, set(instances))

    async def unload(self, worker: str, model: int) -> None:
        await self._take(worker, model, None)

    async def _take(self, worker: str, model: int, instances: set[int] | None) -> None:
        held = self.workers.get(worker, {}).get(model)
        if held is None or (instances is not None and not held & instances):
            return
        held -= held if instances is None else instances
        if worker in self.slow:
            await self.slow[worker].wait()
        await asyncio.sleep(0)
        if not held:
            self.workers[worker].pop(model, None)
        if not self.workers[worker]:
            del self.workers[worker]


class House:
    def __init__(
        self, directory: Path, backend: str, limiter: RateLimiter | None = None, gpus: Gpus | None = None, flags: Sequence[str] = ()
    ) -> None:
        loop = asyncio.get_running_loop()
        self.directory = directory
        self.backend = backend
        self.sent: list[PlannedBatch] = []
        self.released: list[Copy] = []
        self.responses: list[Response] = []
        self.dispatcher = Dispatcher(self.sent.append, loop.call_soon, lambda at_ns: None, limiter=limiter)
        self.generations = Generations(self.dispatcher, Log())  # type: ignore[arg-type]
        self.farm = Farm(self.generations)
        log = SimpleNamespace(**{name: getattr(Log(), name) for name in ("info", "warning", "error")})
        log.settings = SimpleNamespace(log_verbose_level=0)
        options = parse([f"--model-repository={directory}", "--disable-auto-complete-config", *flags])
        self.creation = Creation(
            options,
            self.farm,  # type: ignore[arg-type]
            self.dispatcher,
            StatisticsBook(),
            log,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            self.generations,
            None,  # type: ignore[arg-type]
            limiter=limiter,
            gpus=gpus,
        )
        (directory / "m" / "1").mkdir(parents=True, exist_ok=True)
        (directory / "m" / "1" / "model.py").write_text("")
        self._numbers = itertools.count()

    def config(self, count: int, more: str = "", kind: str = "KIND_CPU") -> Any:
        config = parse_text(plain(f"instance_group {{ count: {count} kind: {kind} {more} }}").replace("python", self.backend), "x")
        prepare_config(config, self.directory / "m", "m", auto_complete=False)
        return config

    def edition(self, count: int = 1, more: str = "", kind: str = "KIND_CPU") -> Edition:
        return Edition(
            "m", self.config(count, more, kind), (1,), {}, SharedCopy(Folder(str(self.directory)).copy("m", {}), self.released.append)
        )

    async def create(self, edition: Edition) -> ModelVersion:
        return await self.creation.create(edition, 1, lambda name, version: pytest.fail("no ensemble"))

    async def resize(self, served: ModelVersion, count: int, more: str = "", kind: str = "KIND_CPU") -> asyncio.Task[None]:
        config = self.config(count, more, kind)
        await self.creation.grow(served, config)
        return asyncio.get_running_loop().create_task(self.creation.trim(served, config))

    def ask(self, served: ModelVersion, count: int = 1) -> None:
        for _ in range(count):
            self.dispatcher.submit(served.scheduler, Request(RequestBody("", 1, [], [], {}), 0, self.responses.append))

    def finish(self) -> None:
        """Each instance answers what it has been sent."""
        sent, self.sent[:] = list(self.sent), []
        for batch in sent:
            self.dispatcher.batch_done(
                Done(batch.number, [Result([]) for _ in batch.requests], 0, 0, 0, 0), SimpleNamespace(view=None, give_back=None)
            )  # type: ignore[arg-type]

    def instances(self) -> dict[str, int]:
        """How many instances each worker has."""
        return {worker: sum(map(len, models.values())) for worker, models in sorted(self.farm.workers.items())}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0)


def in_house(
    tmp_path: Path,
    play: Callable[[House], Coroutine[Any, Any, None]],
    backend: str = "python",
    limiter: RateLimiter | None = None,
    gpus: Gpus | None = None,
    flags: Sequence[str] = (),
) -> None:
    async def run() -> None:
        house = House(tmp_path, backend, limiter, gpus, flags)
        await play(house)
        assert limiter is None or not (limiter._shares or limiter._available or limiter._in_use)
        assert len(house.generations) == 0 and not house.generations._instances and not house.generations._reserved
        assert house.farm.workers == {}

    asyncio.run(run())


@pytest.mark.parametrize(("backend", "workers"), [("python", {"m:1#0": 1, "m:1#1": 1}), ("onnxruntime", {"cpu": 2})])
def test_a_version_and_its_end(tmp_path: Path, backend: str, workers: dict[str, int]) -> None:
    async def play(house: House) -> None:
        edition = house.edition(2)
        served = await house.create(edition)
        assert house.instances() == workers and served.healthy and served.workers == list(workers)
        house.ask(served, 3)
        await house.until(lambda: house.sent)
        removals = [asyncio.create_task(house.creation.remove(served)) for _ in range(3)]
        await house.until(lambda: served.stopping)
        removals[0].cancel()
        while house.sent:
            assert not served.gone.is_set()
            house.finish()
            await asyncio.sleep(0)
        await asyncio.gather(*removals[1:])
        assert len(house.responses) == 3 and served.gone.is_set() and not served.healthy
        assert house.released == []
        edition.copy.drop()
        assert len(house.released) == 1

    in_house(tmp_path, play, backend)


@pytest.mark.parametrize("fault", [internal("bad"), ValueError("worse")])
def test_one_instance_that_fails_takes_the_others_with_it(tmp_path: Path, fault: Exception) -> None:
    async def play(house: House) -> None:
        edition = house.edition(3)
        house.farm.faults["m:1#1"] = fault
        with pytest.raises(type(fault)):
            await house.create(edition)
        assert house.instances() == {}
        edition.copy.drop()
        assert len(house.released) == 1

    in_house(tmp_path, play)


def test_generations_that_are_there_at_once_have_workers_of_their_own(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = [await house.create(house.edition()) for _ in range(3)]
        assert list(house.instances()) == ["m:1#0", "m:1.2#0", "m:1.3#0"]
        await house.creation.remove(served[1])
        served[1] = await house.create(house.edition())
        assert list(house.instances()) == ["m:1#0", "m:1.2#0", "m:1.3#0"]
        for one in served:
            await house.creation.remove(one)

    in_house(tmp_path, play)


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_more_and_fewer_instances(tmp_path: Path, backend: str) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(1))
        for count in (3, 2, 5, 1, 4):
            await (await house.resize(served, count))
            assert sum(house.instances().values()) == count == len(served.homes)
            assert served.config.instance_group[0].count == count
            assert sorted(home.spec.name for home in served.homes.values()) == [f"m_0_{index}" for index in range(count)]
        await house.creation.remove(served)

    in_house(tmp_path, play, backend)


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_up_again_while_one_that_leaves_is_still_busy(tmp_path: Path, backend: str) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(2))
        for instance in served.scheduler.instances:
            instance.learn(1000)
        house.ask(served, 6)
        await house.until(lambda: len(house.sent) == 6)
        down = await house.resize(served, 1)
        up = await house.resize(served, 2)
        assert sum(house.instances().values()) == 3, "the one that leaves does not count any more"
        while house.sent:
            house.finish()
            await asyncio.sleep(0)
        await asyncio.gather(down, up)
        assert sum(house.instances().values()) == 2 == len(served.homes) and len(served.scheduler.instances) == 2
        assert len(house.responses) == 6
        await house.creation.remove(served)

    in_house(tmp_path, play, backend)


def test_a_worker_that_is_still_ending_is_no_place_for_another(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(2))
        ended = house.farm.slow["m:1#1"] = asyncio.Event()
        down = await house.resize(served, 1)
        for _ in range(10):
            await asyncio.sleep(0)
        up = await house.resize(served, 2)
        assert list(house.instances()) == ["m:1#0", "m:1#1", "m:1#2"]
        ended.set()
        await asyncio.gather(down, up)
        assert list(house.instances()) == ["m:1#0", "m:1#2"]
        await house.creation.remove(served)

    in_house(tmp_path, play)


def test_the_end_waits_for_an_instance_that_is_on_its_way_out(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        edition = house.edition(2)
        served = await house.create(edition)
        edition.copy.drop()
        ended = house.farm.slow["m:1#1"] = asyncio.Event()
        down = await house.resize(served, 1)
        for _ in range(10):
            await asyncio.sleep(0)
        removal = asyncio.create_task(house.creation.remove(served))
        await house.until(lambda: served.stopping)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not served.gone.is_set() and house.released == []
        other = await house.create(house.edition())
        assert list(house.instances()) == ["m:1#0", "m:1#1", "m:1.2#0"]
        ended.set()
        await asyncio.gather(down, removal)
        assert len(house.released) == 1 and list(house.instances()) == ["m:1.2#0"]
        await house.creation.remove(other)

    in_house(tmp_path, play)


@pytest.mark.parametrize("fault", [internal("bad"), ValueError("worse")])
def test_growth_that_fails_changes_nothing(tmp_path: Path, fault: Exception) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(1))
        house.farm.faults["m:1#2"] = fault
        with pytest.raises(type(fault)):
            await house.creation.grow(served, house.config(4))
        assert house.instances() == {"m:1#0": 1} and len(served.homes) == 1 == len(served.scheduler.instances)
        house.farm.faults.clear()
        await (await house.resize(served, 3))
        assert list(house.instances()) == ["m:1#0", "m:1#1", "m:1#2"]
        await house.creation.remove(served)

    in_house(tmp_path, play)


def test_a_configuration_that_makes_no_sense_changes_nothing(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(1))
        with pytest.raises(StatusError):
            await house.creation.grow(served, house.config(2, "gpus: [0]"))
        assert house.instances() == {"m:1#0": 1}
        await house.creation.remove(served)

    in_house(tmp_path, play)


def needing(count: int, priority: int = 0) -> str:
    return f'rate_limiter {{ resources {{ name: "R" count: {count} }} priority: {priority} }}'


def test_instances_run_as_far_as_their_resources_go(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        one, other = await house.create(house.edition(2, needing(1))), await house.create(house.edition(1, needing(2)))
        house.ask(one, 4)
        house.ask(other, 1)
        together = []
        while len(house.responses) < 5:
            await house.until(lambda: house.sent)
            together.append("".join("a" if batch.scheduler is one.scheduler else "B" for batch in house.sent))
            house.finish()
        assert together == ["aa", "B", "aa"]
        await house.creation.remove(one)
        await house.creation.remove(other)

    in_house(tmp_path, play, limiter=RateLimiter())


def test_a_version_whose_resources_there_never_are(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(1, needing(2)))
        with pytest.raises(StatusError, match='Resource count for "R" is limited to 2 .* the minimum required count is 3'):
            await house.create(house.edition(2, needing(3)))
        with pytest.raises(StatusError, match="minimum required count is 4"):
            await house.creation.grow(served, house.config(3, needing(4)))
        assert house.instances() == {"m:1#0": 1} and len(served.homes) == 1
        await house.creation.remove(served)

    in_house(tmp_path, play, limiter=RateLimiter([Resource("R", 2, EVERY_DEVICE)]))


def test_other_limits_are_other_instances(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(2, needing(2)))
        before = list(served.homes)
        await (await house.resize(served, 2, needing(2, priority=1)))
        assert len(served.homes) == 2 and not set(before) & set(served.homes)
        kept = list(served.homes)
        await (await house.resize(served, 3, needing(2, priority=1)))
        assert list(served.homes)[:2] == kept
        await house.creation.remove(served)

    in_house(tmp_path, play, limiter=RateLimiter())


def test_limits_change_while_a_request_runs(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(1, needing(1)))
        house.ask(served, 2)
        await house.until(lambda: house.sent)
        trimmed = await house.resize(served, 1, needing(2))
        # There are two of it now, and one is held: who needs both waits for the instance that leaves.
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(house.sent) == 1 and len(served.homes) == 2
        house.finish()
        await house.until(lambda: house.sent)
        house.finish()
        await trimmed
        assert len(house.responses) == 2 and len(served.homes) == 1
        await house.creation.remove(served)

    in_house(tmp_path, play, limiter=RateLimiter())

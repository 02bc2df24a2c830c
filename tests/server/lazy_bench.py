"""A lazy service over a real repository, whose workers are simulated: loads end, and batches are answered, when a test says so."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from tensorfarm.server.command_line import parse
from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.ensemble import Ensemble
from tensorfarm.server.dispatch.instance import PlannedBatch
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.lazy_service import LazyService
from tensorfarm.server.log import Log, LogSettings
from tensorfarm.server.regions import RegionRegistry
from tensorfarm.server.repository.catalogue import Catalogue
from tensorfarm.server.repository.creation import Creation
from tensorfarm.server.repository.demand import Awaited, NotResident
from tensorfarm.server.repository.folder import Folder
from tensorfarm.server.repository.generations import Generations
from tensorfarm.server.repository.lazy_lifecycle import LazyLifecycle
from tensorfarm.server.repository.readiness import ReadinessChecks
from tensorfarm.server.statistics import StatisticsBook
from tensorfarm.shm.arena import Arena, create_memory
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.messages import Done, Load, RequestBody, Result, Tensor
from tensorfarm.workers.contract.status import StatusError

from ..ensembles import Step, TestEnsemble, write_ensembles
from ..model_repository import PLAIN, Flavour, write_model

SECOND_NS = 1_000_000_000
PATIENCE_SECS = 10.0
DATA = bytes(64)


def write_models(root: Path, *names: str) -> Path:
    """Models by these names: two INT32[16] in, two out."""
    for name in names:
        write_model(root, replace(PLAIN, name=name), Flavour.ONNX)
    return root


def write_chain(root: Path, name: str, *members: str) -> None:
    """An ensemble that runs models one after the other."""
    steps = []
    before = ("INPUT0", "INPUT1")
    for number, member in enumerate(members):
        last = number == len(members) - 1
        after = ("OUTPUT0", "OUTPUT1") if last else (f"sum{number}", f"difference{number}")
        steps.append(
            Step(member, dict(zip(("INPUT0", "INPUT1"), before, strict=True)), dict(zip(("OUTPUT0", "OUTPUT1"), after, strict=True)))
        )
        before = after
    write_ensembles(root, [TestEnsemble(name, tuple(steps), PLAIN.inputs, PLAIN.outputs)])


class FakeFarm:
    """Workers that hold what they are told to once the test ends the load."""

    def __init__(self) -> None:
        self.generations: Generations
        self.loading: dict[str, asyncio.Future[None]] = {}
        self.loads: dict[str, Load] = {}
        self.held: dict[int, str] = {}
        self.byte_sizes: dict[str, int] = {}
        self.most = 0

    async def extend(self, worker: str, load: Load, interpreter: object) -> bool:
        self.loading[load.name] = asyncio.get_running_loop().create_future()
        self.loads[load.name] = load
        self._count()
        try:
            await self.loading[load.name]
        finally:
            del self.loading[load.name]
        self.held[load.model] = load.name
        for spec in load.instances:
            self.generations.instance_ready(spec.number)
        return False

    def _count(self) -> None:
        self.most = max(self.most, len(self.loading) + len(self.held))

    async def unload(self, worker: str, model: int) -> None:
        await asyncio.sleep(0)
        self.held.pop(model, None)

    def memory(self) -> int:
        return sum(self.byte_sizes.get(name, 0) for name in self.held.values())


class Client:
    """A request, or the wait for its model."""

    def __init__(self, bench: Bench, name: str, caller: str = "") -> None:
        self.error: StatusError | None = None
        self.responses: list[Response] = []
        self.awaited: Awaited | None = None
        self.told = 0
        self._bench = bench
        self._name = name
        self._nested = bool(caller)
        try:
            self._submit()
        except NotResident as absent:
            self.awaited = bench.service.bring(absent, self._ready, caller)

    def _ready(self, error: StatusError | None) -> None:
        self.told += 1
        self.error = error
        if error is None:
            self._submit()

    def _submit(self) -> None:
        service = self._bench.service
        version = service.find_number(self._name, -1) if self._nested else service.find(self._name)
        inputs = [Tensor(name, "INT32", (16,), Inline(memoryview(DATA))) for name in ("INPUT0", "INPUT1")]
        service.submit(version, Request(RequestBody("", 1, inputs, [], {}), 0, self.responses.append))

    @property
    def answered(self) -> bool:
        """Has it been told of an error, or answered?"""
        return self.error is not None or bool(self.responses)


class Bench:
    """The service and its world. ``calling`` has the workers that are said to call a model."""

    def __init__(self, repository: Path, *flags: str) -> None:
        self.now_ns = SECOND_NS
        self.sent: list[PlannedBatch] = []
        self.calling: dict[str, set[str]] = {}
        options = parse([f"--model-repository={repository}", "--model-control-mode=lazy", "--disable-auto-complete-config", *flags], {})
        loop = asyncio.get_running_loop()
        log = Log(LogSettings(log_info=False, log_warning=False, log_error=False))
        self.log = log
        self.dispatcher = Dispatcher(self.sent.append, loop.call_soon, lambda at_ns: None)
        self.farm = FakeFarm()
        self.generations = self.farm.generations = Generations(self.dispatcher, log)
        self.catalogue = Catalogue()

        def ensemble(plan: Any, statistics: Any, members: Any) -> Ensemble:
            def ask(model: str, version: int, request: Request) -> Callable[[], None]:
                return self.service.ask_member(members, model, version, request)

            return Ensemble(plan, statistics, ask, view=self.service.view, warn=log.warning, call_soon=loop.call_soon)

        farm = cast(Any, self.farm)
        creation = Creation(options, farm, self.dispatcher, StatisticsBook(), log, cast(Any, None), self.generations, ensemble)
        self.models = LazyLifecycle(
            *(options, creation, self.generations, log, self.catalogue, self.dispatcher),
            memory=self.farm.memory,
            calling=lambda name: self.calling.get(name, set()),
            clock_ns=lambda: self.now_ns,
        )
        self.models.open([Folder(str(repository))])
        descriptor = create_memory(1 << 16)
        arena = Arena(0, descriptor, 1 << 16)
        os.close(descriptor)
        readiness = ReadinessChecks(farm, log.warning)
        parts = (self.catalogue, self.models, readiness, RegionRegistry(), arena, log.settings)
        self.service = LazyService(self.models, options, *parts)
        self.service.started = True

    # what a test does

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Let the loop run until something has come about."""
        deadline = asyncio.get_running_loop().time() + PATIENCE_SECS
        for turn in itertools.count():
            if condition():
                return
            assert asyncio.get_running_loop().time() < deadline, f"waited in vain: {what}"
            # Files are read in threads.
            await asyncio.sleep(0 if turn < 50 else 0.001)

    async def turns(self, count: int = 20) -> None:
        """Let happen what can happen at once."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def end_load(self, name: str, error: StatusError | None = None) -> None:
        """A worker has loaded a model, or failed to."""
        await self.until(lambda: name in self.farm.loading, f"{name} to be loaded")
        gate = self.farm.loading[name]
        if error is None:
            gate.set_result(None)
        else:
            gate.set_exception(error)
        await self.until(lambda: name not in self.farm.loading, f"{name} to have loaded")
        await self.turns()

    async def load(self, *names: str) -> None:
        """Have models loaded by a request each, which is answered."""
        for name in names:
            client = Client(self, name)
            if client.awaited is not None:
                await self.end_load(name)
            await self.answer()
            assert client.responses and client.error is None

    async def answer(self) -> None:
        """Workers answer all that they have, until there is no more."""
        await self.turns()
        while self.sent:
            self.answer_one(self.sent[0])
            await self.turns()

    def answer_one(self, batch: PlannedBatch) -> None:
        """A worker answers one batch."""
        self.sent.remove(batch)
        outputs = [Tensor(name, "INT32", (16,), Inline(memoryview(DATA))) for name in ("OUTPUT0", "OUTPUT1")]
        results: list[Result | None] = [Result(outputs) for _ in batch.requests]
        self.dispatcher.batch_done(Done(batch.number, results, 1, 2, 3, 4), cast(Any, self))

    arena_number = 1

    def view(self, lease: object) -> memoryview:
        raise AssertionError("no output lies in an arena")

    def give_back(self, leases: Iterable[object]) -> None:
        assert not list(leases)

    @property
    def resident(self) -> list[str]:
        """The models that count, the least recently used first."""
        return self.models.residency.names

    async def reasons(self) -> dict[str, str]:
        """State and reason of each model in the index."""
        return {entry.name: f"{entry.state} {entry.reason}".strip() for entry in await self.service.index(False)}

    async def close(self) -> None:
        await self.models.end_operations()
        self.log.close()


def run(repository: Path, script: Callable[[Bench], Any], *flags: str) -> None:
    """Run a test's script against a bench whose models have been looked at."""

    async def whole() -> None:
        bench = Bench(repository, *flags)
        try:
            await bench.models.start()
            await asyncio.wait_for(script(bench), 3 * PATIENCE_SECS)
        finally:
            await bench.close()

    asyncio.run(whole())

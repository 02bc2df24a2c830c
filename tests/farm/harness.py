"""A farm with real worker processes, and the little of a server that its batches need."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from tensorfarm.server.dispatch.dispatcher import Dispatcher
from tensorfarm.server.dispatch.instance import Instance
from tensorfarm.server.dispatch.request import Request, Response
from tensorfarm.server.dispatch.scheduler import Scheduler
from tensorfarm.server.dispatch.schedulers import scheduler_of
from tensorfarm.server.farm.child_process import ChildProcess
from tensorfarm.server.farm.farm import Farm
from tensorfarm.server.farm.processes import Processes
from tensorfarm.server.regions import RegionRegistry
from tensorfarm.server.statistics import VersionStatistics
from tensorfarm.shm.arena import create_memory
from tensorfarm.shm.placement import Inline, Lease, Placement
from tensorfarm.workers.contract.configuration import ModelConfig, document
from tensorfarm.workers.contract.messages import Done, InstanceSpec, Load, RequestBody, Respond, Spoken, Tensor, WantedOutput, Warmed
from tensorfarm.workers.contract.signature import signature_of
from tensorfarm.workers.contract.status import StatusError

from ..workers.onnx_source import add_sub, source

# libuv makes a pipe with its first loop and keeps it: that is to be before the leak check looks
uvloop.new_event_loop().close()

PATIENCE_S = 15.0
ARENA_BYTE_SIZES = (64 << 20, 16 << 20)
WIDTH = 20_000
"""Elements of a row of the test model: a response of it does not fit into a message."""

CONFIG = """
max_batch_size: 8
dynamic_batching { }
input [ { name: "IN0" data_type: TYPE_INT32 dims: [-1] }, { name: "IN1" data_type: TYPE_INT32 dims: [-1] } ]
output [ { name: "SUM" data_type: TYPE_INT32 dims: [-1] }, { name: "DIFFERENCE" data_type: TYPE_INT32 dims: [-1] } ]
"""


class Served:
    """A loaded add_sub: its scheduler, and the load that made it."""

    def __init__(self, load: Load, scheduler: Scheduler, instances: list[Instance]) -> None:
        self.load = load
        self.scheduler = scheduler
        self.instances = instances


class House:
    """The farm's events, a dispatcher in front of it, and waiting for either. Implements ``FarmEvents``."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self.folder = folder
        self.lines: list[tuple[str, str]] = []
        self.log: list[tuple[str, str]] = []
        self.ready: list[int] = []
        self.warmed: list[tuple[int, list[Warmed]]] = []
        self.lost: list[tuple[int, StatusError]] = []
        self.lost_models: list[tuple[int, StatusError]] = []
        self.done: list[Done] = []
        self.responses: list[Respond] = []
        self.said: list[Spoken] = []
        self.gone: list[int] = []
        self.regions = RegionRegistry()
        self.arena_fd = create_memory(1 << 20)
        self.processes = Processes(self.loop, self.regions, self.arena_fd, ARENA_BYTE_SIZES)
        self.farm = Farm(self.loop, self, self.processes)
        self.dispatcher = Dispatcher(self.farm.send, self.loop.call_soon, lambda at_ns: None)
        self.served: dict[int, Served] = {}
        self._numbers = itertools.count(1)
        self._batch_numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Response]] = {}
        self._changed = asyncio.Event()

    # what the farm says

    def instance_ready(self, instance: int) -> None:
        self.ready.append(instance)
        for served in self.served.values():
            for one in served.instances:
                if one.number == instance:
                    served.scheduler.suspend(None)
                    self.dispatcher.instance_up(served.scheduler, one)
        self.changed()

    def instance_warmed(self, instance: int, warmed: list[Warmed]) -> None:
        self.warmed.append((instance, warmed))

    async def outdated(self, model: int) -> bool:
        return False

    def instance_lost(self, instance: int, error: StatusError) -> None:
        self.lost.append((instance, error))
        for served in self.served.values():
            for one in served.instances:
                if one.number == instance:
                    self.dispatcher.instance_down(served.scheduler, one, error)
        self.changed()

    def model_lost(self, model: int, error: StatusError) -> None:
        self.lost_models.append((model, error))
        self.changed()

    def batch_done(self, done: Done, process: ChildProcess) -> None:
        self.done.append(done)
        self.dispatcher.batch_done(done, process)
        self.changed()

    def responded(self, message: Respond, process: ChildProcess) -> None:
        self.responses.append(message)
        self.changed()

    def spoken(self, message: Spoken, process: ChildProcess) -> None:
        self.said.append(message)
        self.changed()

    def worker_gone(self, process: ChildProcess) -> None:
        self.gone.append(process.arena.number)
        self.changed()

    def worker_says(self, worker: str, line: str) -> None:
        self.lines.append((worker, line))
        self.changed()

    def worker_event(self, severity: str, text: str) -> None:
        self.log.append((severity, text))
        self.changed()

    # waiting

    def changed(self) -> None:
        """Have those who wait look again."""
        self._changed.set()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition that the farm's events, or the end of a turn, make true."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for: {what}\n{self.log}\n{self.lines}"
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.01)

    # models

    def model(self, config: str = CONFIG, instances: int = 1, backend: str = "onnxruntime") -> Served:
        """Write an add_sub model to disk; what a load of it needs."""
        number = next(self._numbers)
        made = source(self.folder / str(number), add_sub(("batch", "width")), config)
        message: Any = ModelConfig()
        message.CopyFrom(made.config)
        specs = [InstanceSpec(100 * number + index, f"m_{index}", "KIND_CPU", 0) for index in range(instances)]
        load = Load(0, number, "m", backend, made.directory, 1, document(message), {}, specs)
        scheduler = scheduler_of(message, signature_of(message), self._batch_numbers, VersionStatistics(), lambda line: None)
        served = Served(load, scheduler, [Instance(spec.number, spec.name, execution_ns=1000) for spec in specs])
        self.served[number] = served
        return served

    async def load(self, worker: str = "cpu", config: str = CONFIG, instances: int = 1) -> Served:
        served = self.model(config, instances)
        await self.farm.load(worker, served.load)
        return served

    def process(self, worker: str = "cpu") -> ChildProcess:
        process = self.farm.seats[worker].process
        assert process is not None
        return process

    # requests

    def ask(
        self, served: Served, value: int = 1, width: int = WIDTH, places: Sequence[Placement] = (), outputs: Sequence[WantedOutput] = ()
    ) -> asyncio.Future[Response]:
        """Submit one row of ``value`` for both inputs; the response comes as the future's result."""
        row = np.full((1, width), value, np.int32)
        placed = list(places) or [Inline(memoryview(row.tobytes()))] * 2
        tensors = [Tensor(name, "INT32", (1, width), place) for name, place in zip(("IN0", "IN1"), placed, strict=True)]
        future: asyncio.Future[Response] = self.loop.create_future()
        number = next(self._numbers)
        self._asked[number] = future
        regions = tuple(place.region for place in [*placed, *[output.span for output in outputs]] if place and hasattr(place, "region"))
        request = Request(
            RequestBody("", 1, tensors, list(outputs), {}), time.monotonic_ns(), partial(self._answered, number), regions=regions
        )
        if regions:
            self.regions.hold(regions)
            request.on_finish = lambda: self.regions.release(regions)
        self.dispatcher.submit(served.scheduler, request)
        return future

    def _answered(self, number: int, response: Response) -> None:
        # The request does not know its future, which knows the response, which knows the request: memory goes at once.
        future = self._asked.pop(number)
        if not future.done():
            future.set_result(response)

    async def check(self, served: Served, value: int = 1) -> None:
        """One request that must be answered rightly."""
        response = await asyncio.wait_for(self.ask(served, value), PATIENCE_S)
        assert response.error is None, response.error
        total, difference = (np.frombuffer(response.read(output), np.int32) for output in response.outputs)
        assert isinstance(response.outputs[0].place, Lease)
        assert (total == 2 * value).all() and (difference == 0).all() and len(total) == WIDTH
        del total, difference
        response.release()


def run(folder: Path, work: Callable[[House], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine with a house; at its end all workers must go within the farm's time."""

    async def main() -> None:
        async with house(folder) as made:
            await work(made)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


@contextlib.asynccontextmanager
async def house(folder: Path) -> AsyncIterator[House]:
    made = House(folder)
    try:
        yield made
    finally:
        await made.farm.close()
        made.processes.close()
        made.regions.close()
        os.close(made.arena_fd)
        made.__dict__.clear()

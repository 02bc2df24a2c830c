"""Every load of a version that has instances: those that serve, those that are being made, those on their way out.

This is what the farm talks to: it knows instances by number, and models by the number of their load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ...workers.contract.messages import Done, Respond, Spoken, Warmed
from ...workers.contract.status import StatusError
from ..dispatch.dispatcher import Dispatcher
from ..dispatch.instance import Instance
from ..farm.child_process import ChildProcess
from ..log import Log
from .version import ModelVersion


class Generations:
    """All of them, and the ``FarmEvents`` of their instances.

    ``heard`` gets what models say beside their answers, ``worker_left`` each worker process that has ended, ``renew`` each version that
    has lost its worker, and has other files than it was loaded from.
    """

    def __init__(self, dispatcher: Dispatcher, log: Log) -> None:
        self.heard: Callable[[Spoken, ChildProcess], None]
        self.worker_left: Callable[[ChildProcess], None]
        self.renew: Callable[[ModelVersion], None]
        self._dispatcher = dispatcher
        self._log = log
        self._loads: dict[int, ModelVersion] = {}
        self._instances: dict[int, tuple[Instance, ModelVersion]] = {}
        self._reserved: set[tuple[str, int, int]] = set()

    def __len__(self) -> int:
        return len(self._loads)

    def all(self) -> list[ModelVersion]:
        """Every one, in the order in which they came."""
        return list(self._loads.values())

    def reserve(self, name: str, version: int) -> int:
        """The least number that no other load of this version has; it is kept for the caller until ``give_up``."""
        taken = {served.generation for served in self._loads.values() if served.name == name and served.version == version}
        taken |= {number for *one, number in self._reserved if one == [name, version]}
        generation = next(number for number in range(1, len(taken) + 2) if number not in taken)
        self._reserved.add((name, version, generation))
        return generation

    def give_up(self, name: str, version: int, generation: int) -> None:
        """The load that has the number is there now, or will not be."""
        self._reserved.discard((name, version, generation))

    def models_in(self, worker: str) -> set[str]:
        """The models that have instances in a worker."""
        return {served.name for served in self._loads.values() if worker in served.workers}

    def add(self, served: ModelVersion) -> None:
        """It begins."""
        self._loads[served.number] = served

    def add_instance(self, served: ModelVersion, instance: Instance) -> None:
        """It gets an instance."""
        self._instances[instance.number] = (instance, served)

    def remove_instance(self, instance: Instance) -> None:
        """An instance is gone."""
        self._instances.pop(instance.number, None)

    def remove(self, served: ModelVersion) -> None:
        """It is gone."""
        for instance in served.homes:
            served.scheduler.instance_down(instance)
            self.remove_instance(instance)
        del self._loads[served.number]

    def in_flight(self) -> list[tuple[str, int, int]]:
        """Name, version and number of requests of every one that has some."""
        return [(load.name, load.version, count) for load in self._loads.values() if (count := load.in_flight)]

    def drain(self) -> None:
        """The server is about to end: let nothing begin that needs further requests."""
        for served in self._loads.values():
            served.scheduler.draining = True

    def stop_accepting(self) -> None:
        """Refuse new requests; those already taken are finished."""
        for served in self._loads.values():
            served.stop()

    def abandon(self, error: StatusError) -> None:
        """Answer everything that is still in flight with ``error``."""
        for served in self._loads.values():
            if served.cached is not None:
                served.cached.abandon(error)
            if served.carried is not None:
                served.carried.abandon(error)
        self._dispatcher.abandon([served.scheduler for served in self._loads.values()], error)

    # what the farm says

    def instance_ready(self, instance: int) -> None:
        """An instance can take batches."""
        found, served = self._instances[instance]
        served.scheduler.suspend(None)
        self._dispatcher.instance_up(served.scheduler, found)

    def instance_warmed(self, instance: int, warmed: list[Warmed]) -> None:
        """An instance has been warmed up, which counts as inference."""
        _, served = self._instances[instance]
        for sample in warmed:
            served.statistics.warmed_up(sample, time.time_ns() // 1_000_000)

    async def outdated(self, model: int) -> bool:
        """A worker has been started again: may it load what it had? Half of a version as it was and half as it is now would be a mix."""
        served = self._loads.get(model)
        if served is None or not await asyncio.to_thread(served.files.files.changed, served.version):
            return False
        self._log.warning(f"the files of '{served.name}' version {served.version} have changed since it was loaded; it is loaded anew")
        self.renew(served)
        return True

    def instance_lost(self, instance: int, error: StatusError) -> None:
        """An instance went down with its worker."""
        found, served = self._instances[instance]
        self._dispatcher.instance_down(served.scheduler, found, error)

    def model_lost(self, model: int, error: StatusError) -> None:
        """A model will not be back soon."""
        served = self._loads.get(model)
        if served is None:
            return
        if served.healthy:
            self._log.error(f"'{served.name}' version {served.version} has lost some of its instances: {error.message}")
            self._dispatcher.refuse_stranded(served.scheduler, error)
            return
        self._log.error(f"'{served.name}' version {served.version} cannot be asked: {error.message}")
        served.scheduler.suspend(error)
        self._dispatcher.touch(served.scheduler)

    def batch_done(self, done: Done, process: ChildProcess) -> None:
        """A batch has been answered."""
        self._dispatcher.batch_done(done, process)

    def responded(self, message: Respond, process: ChildProcess) -> None:
        """A model has answered a request by its sender."""
        self._dispatcher.respond(message, process)

    def spoken(self, message: Spoken, process: ChildProcess) -> None:
        """A model says something else."""
        self.heard(message, process)

    def worker_gone(self, process: ChildProcess) -> None:
        """A worker process has ended."""
        self.worker_left(process)

    def worker_says(self, worker: str, line: str) -> None:
        """A worker printed a line."""
        self._log.info(f"[worker {worker}] {line}")

    def worker_event(self, severity: str, text: str) -> None:
        """Something of a worker, or about one, that belongs in the log."""
        {"I": self._log.info, "W": self._log.warning, "E": self._log.error}[severity](text)

"""Worker processes that open model files for a check: a file that crashes its reader costs one of them, and no other check."""

from __future__ import annotations

import asyncio
import os
import re
from collections import deque

from ...shm.arena import create_memory
from ...workers.contract.cores import usable_core_count
from ...workers.contract.messages import Done, Inspect, Inspected, Respond, Spoken, Warmed
from ...workers.contract.status import StatusError
from ..farm.child_process import ChildProcess
from ..farm.farm import Farm
from ..farm.processes import Processes
from ..regions import RegionRegistry

MAX_LANES = 4
"""Workers at once. Each holds one model in memory."""

_ARENA_BYTE_SIZES = (1 << 20, 1 << 16)
_LAST_LINES = 5
_DEATH = re.compile(r"^worker '.*' (.*) (?:while it loaded this model|at its start); the log has its last words$", re.DOTALL)


class WorkerDied(StatusError):
    """Opening a model ended its process; ``last_words`` is what that printed at last."""

    def __init__(self, error: StatusError, how: str, last_words: str) -> None:
        super().__init__(error.code, f"the process that opened the model {how}")
        self.last_words = last_words


class CheckWorkers:
    """The farm of a check, started with the first model that needs it. Implements ``FarmEvents``."""

    def __init__(self) -> None:
        self._farm: Farm | None = None
        self._arena_fd = -1
        lanes = min(MAX_LANES, max(1, usable_core_count()))
        self._free: asyncio.Queue[str] = asyncio.Queue()
        for number in range(lanes):
            self._free.put_nowait(f"check-{number}")
        self._started = lanes
        self._gone: set[str] = set()
        self._said: dict[str, deque[str]] = {}

    async def inspect(self, inspect: Inspect) -> Inspected:
        """Have a worker open a model, which it has for itself meanwhile. Raises StatusError; WorkerDied where that ended it."""
        worker = await self._free.get()
        try:
            return await self._running_farm().inspect(worker, inspect)
        except StatusError as error:
            death = _DEATH.match(error.message)
            if death is None:
                raise
            raise WorkerDied(error, death[1], "\n".join(self._said.get(worker, ()))) from error
        finally:
            if worker in self._gone:
                # Its successor would be started later and later; a new one is not.
                worker = f"check-{self._started}"
                self._started += 1
            self._free.put_nowait(worker)

    def _running_farm(self) -> Farm:
        if self._farm is None:
            self._arena_fd = create_memory(_ARENA_BYTE_SIZES[0])
            loop = asyncio.get_running_loop()
            self._processes = Processes(loop, RegionRegistry(), self._arena_fd, _ARENA_BYTE_SIZES)
            self._farm = Farm(loop, self, self._processes)
        return self._farm

    async def close(self) -> None:
        """End all workers."""
        if self._farm is not None:
            farm, self._farm = self._farm, None
            await farm.close()
            self._processes.close()
            os.close(self._arena_fd)

    # what the farm says

    def instance_ready(self, instance: int) -> None:
        """A check makes no instances."""

    def instance_warmed(self, instance: int, warmed: list[Warmed]) -> None:
        """A check makes no instances."""

    async def outdated(self, model: int) -> bool:
        """A check loads nothing that could be."""
        return False

    def instance_lost(self, instance: int, error: StatusError) -> None:
        """A check makes no instances."""

    def model_lost(self, model: int, error: StatusError) -> None:
        """A check loads no models."""

    def batch_done(self, done: Done, process: ChildProcess) -> None:
        """A check runs nothing."""

    def responded(self, message: Respond, process: ChildProcess) -> None:
        """A check runs nothing."""

    def spoken(self, message: Spoken, process: ChildProcess) -> None:
        """A check runs nothing."""

    def worker_gone(self, process: ChildProcess) -> None:
        """A worker process has ended."""
        self._gone.add(process.name)

    def worker_says(self, worker: str, line: str) -> None:
        """A worker printed a line."""
        self._said.setdefault(worker, deque(maxlen=_LAST_LINES)).append(line)

    def worker_event(self, severity: str, text: str) -> None:
        """What belongs in a server's log: the findings say what of it matters."""

"""What the server wants done with a GPU's memory, one thing after the other."""

from __future__ import annotations

import queue
import traceback
from collections.abc import Callable

from ..shm.placement import Lease, Placement, Span
from .contract.messages import CloseRegion, Failed, Fault, Fetch, Fetched, ForDevice, FromWorker, OpenRegion, Put, Settled
from .contract.status import Code, StatusError, internal
from .memory import WorkerMemory
from .output import store
from .thread import WorkerThread


class DeviceTasks:
    """Carries them out in a thread of its own, in order: a region is closed after it was opened, whatever that takes."""

    def __init__(self, memory: WorkerMemory, speak: Callable[[FromWorker], None]) -> None:
        self._memory = memory
        self._speak = speak
        self._waiting: queue.SimpleQueue[ForDevice] = queue.SimpleQueue()
        self._started = False

    def take(self, message: ForDevice) -> None:
        """Carry a message out, behind those that came before. Always called by the same thread."""
        if not self._started:
            self._started = True
            WorkerThread(self._run, "device").start()
        if isinstance(message, OpenRegion):
            self._memory.expect_region(message.region)
        self._waiting.put(message)

    def _run(self) -> None:
        while True:
            message = self._waiting.get()
            answer: FromWorker
            try:
                answer = self._done(message)
            except StatusError as error:
                answer = Failed(message.task, Fault(error.code, error.message))
            except Exception as error:  # noqa: BLE001
                # Whatever CUDA raises, the tasks behind this one are to be answered.
                traceback.print_exc()
                answer = Failed(message.task, Fault(Code.INTERNAL, f"the GPU's worker failed with {type(error).__name__}"))
            if message.task:
                self._speak(answer)

    def _done(self, message: ForDevice) -> FromWorker:
        if isinstance(message, OpenRegion):
            self._memory.open_region(message.region, message.handle, message.byte_size)
        elif isinstance(message, CloseRegion):
            self._memory.detach(message.region)
        elif isinstance(message, Fetch):
            return Fetched(message.task, self._fetched(message.places))
        elif isinstance(message, Put):
            for place, span in zip(message.places, message.spans, strict=True):
                self._put(place, span)
        return Settled(message.task)

    def _fetched(self, places: list[Placement]) -> list[Lease]:
        """Copies in the worker's own arena: all of them, or none."""
        leases: list[Lease] = []
        memory = self._memory
        try:
            for place in places:
                address = memory.device_address(place)
                if address is None or not isinstance(place, Lease | Span):
                    raise internal("what is to be fetched does not lie in the GPU's memory")
                lease = memory.reserve(place.byte_size)
                leases.append(lease)
                memory.devices_own().read_into(memory.view(lease), address)
        except BaseException:
            for lease in leases:
                memory.free(lease)
            raise
        return leases

    def _put(self, place: Placement, span: Span) -> None:
        store(self._memory, "", self._memory.view(place), span)

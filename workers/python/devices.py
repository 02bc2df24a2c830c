"""The GPUs that a model's tensors lie on, by the ordinals that its process sees them by."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from ..contract.messages import DeviceGrant
from ..contract.status import StatusError
from ..memory import WorkerMemory
from .errors import TritonModelException

if TYPE_CHECKING:
    from ..device_memory import DeviceMemory

NO_CUPY = (
    "a tensor in a GPU's memory cannot be taken: the package cupy-cuda13x is not installed in the Python that the model runs in. "
    "Install it there, or copy the tensor first, with .cpu()"
)


class Devices:
    """Opens a GPU when a model hands over a tensor on it, so that nothing is opened of which the model knows nothing. For any thread."""

    def __init__(self, memory: WorkerMemory) -> None:
        self._memory = memory
        self._lock = threading.Lock()
        self._others: dict[int, DeviceMemory] = {}

    def opened(self, ordinal: int) -> DeviceMemory:
        """The one that the worker was given, or another. Raises TritonModelException where it cannot be used from here."""
        device = self._memory.device
        if device is None or device.ordinal != ordinal:
            with self._lock:
                device = self._others.get(ordinal)
                if device is None:
                    device = self._others[ordinal] = self._other(ordinal)
        try:
            _ = device.device
        except StatusError as error:
            raise TritonModelException(NO_CUPY if isinstance(error.__cause__, ImportError) else error.message) from error
        return device

    def _other(self, ordinal: int) -> DeviceMemory:
        # Not at hand in all the interpreters that models bring.
        from ..device_memory import DeviceMemory

        return DeviceMemory(DeviceGrant(ordinal, ordinal, 0), self._memory.arena_number, (), foreign=True)

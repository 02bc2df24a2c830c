"""Where a model would have the outputs of the models it calls."""

from __future__ import annotations

import enum

from .errors import are, incompatible


class MemoryType(enum.IntEnum):
    """Kinds of memory."""

    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


class PreferredMemory:
    """A kind of memory and a device in it. Raises TypeError for other types."""

    __slots__ = ("device_id", "memory_type")

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        if not are(MemoryType, preferred_memory_type) or not are(int, preferred_device_id):
            signature = "PreferredMemory(preferred_memory_type: MemoryType, preferred_device_id: int = 0)"
            raise incompatible(signature, preferred_memory_type, preferred_device_id)
        self.memory_type = preferred_memory_type
        self.device_id = preferred_device_id

from __future__ import annotations

from typing import Any

import pytest

from tensorfarm.workers.python.preferred_memory import MemoryType, PreferredMemory


def test_kinds_and_devices() -> None:
    memory = PreferredMemory(MemoryType.TRITONSERVER_MEMORY_CPU)
    assert (memory.memory_type, memory.device_id) == (1, 0)
    assert PreferredMemory(MemoryType.TRITONSERVER_MEMORY_GPU, 2).device_id == 2


@pytest.mark.parametrize("arguments", [(0,), (MemoryType.TRITONSERVER_MEMORY_CPU, "0")])
def test_other_types(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="incompatible"):
        PreferredMemory(*arguments)

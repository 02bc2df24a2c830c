"""What NVML says of the GPUs: memory in use, and which processes have a CUDA context."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

MIB = 1 << 20


@functools.cache
def handles() -> list[Any]:
    """The GPUs, by NVML's numbers; the library stays open until this process ends."""
    import pynvml

    pynvml.nvmlInit()
    return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]


def used_bytes(index: int = 0) -> int:
    """Bytes of a GPU's memory that anybody uses."""
    import pynvml

    return int(pynvml.nvmlDeviceGetMemoryInfo(handles()[index]).used)


def compute_pids(index: int = 0) -> set[int]:
    """The processes that have a context on a GPU, by their numbers in the namespace that the driver knows."""
    import pynvml

    return {int(process.pid) for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handles()[index])}


def has_context(pid: int) -> bool:
    """Has a process of ours initialised CUDA? That opens the device of unified memory, which NVML alone does not."""
    return any(_target(path).startswith("/dev/nvidia-uvm") for path in Path(f"/proc/{pid}/fd").iterdir())


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""

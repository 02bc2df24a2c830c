"""As much of NVML as tensorfarm uses, of GPUs that are not there. It makes no CUDA context."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from gpu_ledger import read_ledger
from gpu_standin import settings

_TOTAL_BYTE_SIZE = 80 << 30
_opened: list[bool] = []

NVML_ERROR_UNINITIALIZED = 1
NVML_ERROR_INVALID_ARGUMENT = 2
NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NOT_FOUND = 6
_TEXTS = {1: "Uninitialized", 2: "Invalid Argument", 3: "Not Supported", 6: "Not Found"}


class NVMLError(Exception):
    """A call that does not succeed."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return _TEXTS[self.value]


@dataclass(frozen=True)
class Utilization:
    """Percentages."""

    gpu: int
    memory: int


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    total: int
    free: int
    used: int


@dataclass(frozen=True)
class ProcessInfo:
    """A process with a context."""

    pid: int
    usedGpuMemory: int


def nvmlInit() -> None:
    _opened.append(True)


def nvmlShutdown() -> None:
    if not _opened:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    _opened.pop()


def _uuids() -> list[str]:
    if not _opened:
        raise NVMLError(NVML_ERROR_UNINITIALIZED)
    return settings.host_uuids()


def _uuid(handle: int) -> str:
    uuids = _uuids()
    if not 0 <= handle < len(uuids):
        raise NVMLError(NVML_ERROR_INVALID_ARGUMENT)
    return uuids[handle]


def nvmlDeviceGetCount() -> int:
    return len(_uuids())


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    _uuid(index)
    return index


def nvmlDeviceGetHandleByUUID(uuid: str | bytes) -> int:
    text = uuid.decode() if isinstance(uuid, bytes) else uuid
    if text not in _uuids():
        raise NVMLError(NVML_ERROR_NOT_FOUND)
    return _uuids().index(text)


def nvmlDeviceGetUUID(handle: int) -> str:
    return _uuid(handle)


def nvmlDeviceGetName(handle: int) -> str:
    _uuid(handle)
    return "NVIDIA stand-in"


def nvmlDeviceGetCudaComputeCapability(handle: int) -> tuple[int, int]:
    _uuid(handle)
    return (9, 0)


def nvmlDeviceGetUtilizationRates(handle: int) -> Utilization:
    _uuid(handle)
    return Utilization(gpu=0, memory=0)


def nvmlDeviceGetMemoryInfo(handle: int) -> Memory:
    _uuid(handle)
    used = int(float(os.environ.get(settings.USED, "0.1")) * _TOTAL_BYTE_SIZE)
    return Memory(total=_TOTAL_BYTE_SIZE, free=_TOTAL_BYTE_SIZE - used, used=used)


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    _uuid(handle)
    return 100_000


def nvmlDeviceGetPowerManagementLimit(handle: int) -> int:
    _uuid(handle)
    return 700_000


def nvmlDeviceGetTotalEnergyConsumption(handle: int) -> int:
    _uuid(handle)
    return 5_000_000


def nvmlDeviceGetMigMode(handle: int) -> list[int]:
    _uuid(handle)
    raise NVMLError(NVML_ERROR_NOT_SUPPORTED)


def nvmlDeviceGetComputeRunningProcesses(handle: int) -> list[ProcessInfo]:
    """Those that live and have a ledger that says so."""
    uuid = _uuid(handle)
    folder = os.environ.get(settings.LEDGER)
    found = []
    for file in Path(folder).glob("*.ledger") if folder else ():
        content = read_ledger(file) or {}
        if uuid in content.get("uuids", ()) and Path(f"/proc/{file.stem}").exists():
            found.append(ProcessInfo(int(file.stem), content["device_bytes"]))
    return found

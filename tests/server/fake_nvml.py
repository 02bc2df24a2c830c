"""An NVML that is not there: three GPUs or those that a test wants, some of them in MIG mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


class NvmlError(Exception):
    """As the library's."""


class Nvml(ModuleType):
    """The library. ``silent`` names what the last GPU does not tell; ``lacking`` the functions that the library does not have.

    ``parts`` are the UUIDs of the MIG devices of the GPUs in MIG mode, by index; None is an index without one. A MIG device's handle is
    its UUID, a GPU's its index. ``capabilities`` and ``used`` (GiB of 80) go by handle.
    """

    NVMLError = NvmlError

    def __init__(
        self,
        uuids: list[str] | None = None,
        silent: tuple[str, ...] = (),
        parts: Mapping[int, Sequence[str | None]] | None = None,
        capabilities: Mapping[int, tuple[int, int]] | None = None,
        lacking: Sequence[str] = (),
    ) -> None:
        super().__init__("fake_nvml")
        self.uuids = UUIDS if uuids is None else uuids
        self.silent = silent
        self.parts = parts or {}
        self.capabilities = capabilities or {}
        self.lacking = lacking
        self.used: dict[Any, float] = {}
        self.names: dict[int, str] = {}
        self.opened = 0
        self.energy_mj = 5_000_000
        self.failure: NvmlError | None = None

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self.lacking:
            raise AttributeError(name)
        return super().__getattribute__(name)

    def nvmlInit(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.uuids)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int | str:
        if uuid in self.uuids:
            return self.uuids.index(uuid)
        if any(uuid in parts for parts in self.parts.values()):
            return uuid
        raise NvmlError("Not Found")

    def nvmlDeviceGetUUID(self, handle: int | str) -> str | bytes:
        if isinstance(handle, str):
            return handle
        uuid = self.uuids[handle]
        return uuid.encode() if handle % 2 else uuid

    def nvmlDeviceGetName(self, handle: int) -> str:
        return self.names.get(handle, "NVIDIA H100")

    def nvmlDeviceGetMigMode(self, handle: int | str) -> list[int]:
        if isinstance(handle, str):
            raise NvmlError("Invalid Argument")
        return [int(handle in self.parts), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: int) -> int:
        return len(self.parts[handle])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: int, index: int) -> str:
        part = self.parts[handle][index]
        if part is None:
            raise NvmlError("Not Found")
        return part

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle: int | str) -> int:
        for gpu, parts in self.parts.items():
            if handle in parts:
                return gpu
        raise NvmlError("Invalid Argument")

    def nvmlDeviceGetCudaComputeCapability(self, handle: int | str) -> tuple[int, int]:
        if isinstance(handle, str):
            raise NvmlError("Invalid Argument")
        return self._told("capability", handle, self.capabilities.get(handle, (8, 6)))

    def _told(self, what: str, handle: int | str, value: Any) -> Any:
        if what in self.silent and handle == len(self.uuids) - 1:
            raise NvmlError("Not Supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._told("utilization", handle, SimpleNamespace(gpu=25 * (handle + 1), memory=0))

    def nvmlDeviceGetMemoryInfo(self, handle: int | str) -> Any:
        used = self.used.get(handle, 1 if isinstance(handle, str) else handle + 1)
        return self._told("memory", handle, SimpleNamespace(total=80 << 30, used=int(used * (1 << 30)), free=0))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self._told("power", handle, 123_456)

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> Any:
        return self._told("limit", handle, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> Any:
        return self._told("energy", handle, self.energy_mj)

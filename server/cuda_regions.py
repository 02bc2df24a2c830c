"""CUDA regions: registered once the worker of their GPU has opened them, unregistered once it has closed them."""

from __future__ import annotations

from ..workers.contract.status import StatusError, invalid
from .farm.devices import Devices
from .gpus import Gpus
from .regions import CudaRegion, RegionRegistry


class CudaRegions:
    """Registers and unregisters, in the one name space of all ``regions``. ``devices`` are those of ``gpus``."""

    def __init__(self, regions: RegionRegistry, gpus: Gpus, devices: Devices | None = None) -> None:
        self._regions = regions
        self._devices = devices
        self._gpus = gpus

    async def register(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """Register the first ``byte_size`` bytes of a CUDA allocation by its IPC handle. Raises StatusError with what speaks against it."""
        if self._devices is None or not self._gpus.usable:
            raise invalid(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")
        failed = f"failed to register CUDA shared memory region '{name}': "
        gpu = self._gpus.find(device)
        if gpu is None:
            raise invalid(f"{failed}there is no GPU {device} here, but: {self._gpus.names()}")
        if byte_size <= 0:
            raise invalid(f"{failed}invalid args")
        number = self._regions.reserve_cuda(CudaRegion(name, device, byte_size, handle))
        try:
            await self._devices.open_region(device, number, handle, byte_size)
        except StatusError as error:
            self._regions.abandon(number)
            partial = "; CUDA may not share the memory of MIG devices between processes" if gpu.partial else ""
            raise StatusError(error.code, f"{failed}{error.message}{partial}") from error
        except BaseException:
            self._regions.abandon(number)
            raise
        self._regions.confirm(number)

    async def unregister(self, name: str | None) -> None:
        """Forget a region, or all of them; unknown names are fine. Its owner may free the memory when this returns.

        Not if requests still use it: then the last of them closes it. Raises StatusError where a worker does not answer.
        """
        numbers = self._regions.unregister_cuda(name)
        if self._devices is not None:
            await self._devices.closed(numbers)

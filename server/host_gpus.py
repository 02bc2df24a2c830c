"""The machine's GPUs, which of them models may have, and how busy they are, through NVML: no CUDA context is made for it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .prometheus_text import Family

MIG_MARK = "MIG-"
"""How the UUIDs of MIG devices begin."""

_DRIVER = Path("/proc/driver/nvidia/version")
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_ORDER, _BY_BUS = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
_MIG_ENABLED = 1
_WITHOUT = "models get no GPU, and there are no metrics of them"

_GAUGES = (
    ("nv_gpu_utilization", "GPU utilization rate [0.0 - 1.0)", "utilization"),
    ("nv_gpu_memory_total_bytes", "GPU total memory, in bytes", "total_byte_size"),
    ("nv_gpu_memory_used_bytes", "GPU used memory, in bytes", "used_byte_size"),
    ("nv_gpu_power_usage", "GPU power usage in watts", "power_watts"),
    ("nv_gpu_power_limit", "GPU power management limit in watts", "power_limit_watts"),
)
_ENERGY = ("nv_energy_consumption", "GPU energy consumption in joules since the server started", "energy_joules")


@dataclass(slots=True)
class GpuSample:
    """What one GPU said when it was last asked; None where it does not tell, as a MIG device does not of most."""

    uuid: str
    utilization: float | None = None
    total_byte_size: float | None = None
    used_byte_size: float | None = None
    power_watts: float | None = None
    power_limit_watts: float | None = None
    energy_joules: float | None = None


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """A GPU or a MIG device that a process may be given by its UUID; ``capability`` is for computing, None where it does not tell."""

    uuid: str
    capability: tuple[int, int] | None


def visible(uuids: Sequence[str], wanted: str | None, parts: Sequence[str] = ()) -> list[int]:
    """Which of the GPUs, by their places in ``uuids``, CUDA shows a process with ``CUDA_VISIBLE_DEVICES`` set to ``wanted`` (None: unset).

    Ordinals and UUIDs, which may be cut short; what comes behind one that is not there is not seen either. Ordinals count as NVML does,
    by PCI bus id. ``parts`` are the names of MIG devices, which have no ordinals; their places follow.
    Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if wanted is None:
        return list(range(len(uuids)))
    seen: list[int] = []
    for word in wanted.split(","):
        name = word.strip()
        if name.isascii() and name.isdigit():
            found = [int(name)] if int(name) < len(uuids) else []
        else:
            found = [place for place, uuid in enumerate((*uuids, *parts)) if name and uuid.startswith(name)]
        # One that could be several, or comes a second time, is none.
        if len(found) != 1 or found[0] in seen:
            break
        seen += found
    return seen


class HostGpus:
    """The GPUs that this process may see. ``sample`` asks them, which may take a while; ``families`` says what they said last.

    ``seen`` are those that models may have, by their ordinals. A GPU in MIG mode is none of them, its first MIG device is; other MIG
    devices are where ``CUDA_VISIBLE_DEVICES`` names them: CUDA shows a process one MIG device at most, but each worker is a process.
    Where it is not set, that one is all that CUDA shows, and ``unseen`` are the UUIDs of the others. ``mixed``: not all are of one kind.
    Source: NVIDIA Multi-Instance GPU User Guide, "CUDA Device Enumeration".
    """

    def __init__(self, nvml: Any, environment: Mapping[str, str]) -> None:
        self._nvml = nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        self.mixed = len({self._asked("nvmlDeviceGetName", handle) for handle in handles}) > 1
        wanted = environment.get(_VISIBLE)
        parts = self._named_parts(wanted or "")
        places = visible(uuids, wanted, list(parts))
        handles += parts.values()
        uuids += [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in parts.values()]
        self._devices = [(uuids[place], handles[place]) for place in places]
        self._energy_before = {uuid: self._energy_joules(handle) for uuid, handle in self._devices}
        self._samples: list[GpuSample] = []
        shown = dict(self._shown())
        self.unseen: tuple[str, ...] = ()
        if wanted is None:
            shown = self._as_cuda_shows(shown)
        self._for_models = list(shown.values())
        self.seen = tuple(SeenGpu(uuid, self._capability(uuid, handle)) for uuid, handle in shown.items())

    def _named_parts(self, wanted: str) -> dict[str, Any]:
        """The MIG devices that are there of those that ``CUDA_VISIBLE_DEVICES`` names."""
        names = [word.strip() for word in wanted.split(",")]
        found = {name: self._asked("nvmlDeviceGetHandleByUUID", name) for name in names if name.startswith(MIG_MARK) and name.isascii()}
        return {name: handle for name, handle in found.items() if handle is not None}

    def _shown(self) -> Iterator[tuple[str, Any]]:
        for uuid, handle in self._devices:
            if self._is_divided(handle):
                yield from list(self._parts(handle))[:1]
            else:
                yield uuid, handle

    def _as_cuda_shows(self, shown: dict[str, Any]) -> dict[str, Any]:
        """Of several, one of which at least is a MIG device, the first MIG device."""
        parts = {uuid: part for _, handle in self._devices if self._is_divided(handle) for uuid, part in self._parts(handle)}
        if not parts:
            return shown
        first, *others = parts
        self.unseen = (*others, *(uuid for uuid in shown if uuid not in parts))
        return {first: parts[first]}

    def _is_divided(self, handle: Any) -> bool:
        """Is it in MIG mode?"""
        mode = self._asked("nvmlDeviceGetMigMode", handle)
        return mode is not None and mode[0] == _MIG_ENABLED

    def _parts(self, gpu: Any) -> Iterator[tuple[str, Any]]:
        """UUIDs and handles of a GPU's MIG devices; not every index has one."""
        for index in range(self._asked("nvmlDeviceGetMaxMigDeviceCount", gpu) or 0):
            part = self._asked("nvmlDeviceGetMigDeviceHandleByIndex", gpu, index)
            uuid = None if part is None else self._asked("nvmlDeviceGetUUID", part)
            if uuid is not None:
                yield _text(uuid), part

    def _capability(self, uuid: str, handle: Any) -> tuple[int, int] | None:
        if uuid.startswith(MIG_MARK):
            handle = self._asked("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", handle)
        capability = None if handle is None else self._asked("nvmlDeviceGetCudaComputeCapability", handle)
        return None if capability is None else (int(capability[0]), int(capability[1]))

    def used_fraction(self, ordinal: int) -> float | None:
        """How much of the memory of one of ``seen`` is used now, 0.0 to 1.0; None where it does not tell. For any thread."""
        memory = self._asked("nvmlDeviceGetMemoryInfo", self._for_models[ordinal])
        return memory.used / memory.total if memory is not None and memory.total else None

    @property
    def count(self) -> int:
        """How many there are to ask."""
        return len(self._devices)

    def sample(self) -> None:
        """Ask all of them. For any thread, one at a time."""
        self._samples = [self._sampled(uuid, handle) for uuid, handle in self._devices]

    def _sampled(self, uuid: str, handle: Any) -> GpuSample:
        rates = self._asked("nvmlDeviceGetUtilizationRates", handle)
        memory = self._asked("nvmlDeviceGetMemoryInfo", handle)
        power_mw = self._asked("nvmlDeviceGetPowerUsage", handle)
        limit_mw = self._asked("nvmlDeviceGetPowerManagementLimit", handle)
        energy_joules, before = self._energy_joules(handle), self._energy_before[uuid]
        return GpuSample(
            uuid,
            None if rates is None else rates.gpu / 100,
            None if memory is None else float(memory.total),
            None if memory is None else float(memory.used),
            None if power_mw is None else power_mw / 1000,
            None if limit_mw is None else limit_mw / 1000,
            None if energy_joules is None or before is None else max(0.0, energy_joules - before),
        )

    def _energy_joules(self, handle: Any) -> float | None:
        """Since the driver was loaded."""
        energy_mj = self._asked("nvmlDeviceGetTotalEnergyConsumption", handle)
        return None if energy_mj is None else energy_mj / 1000

    def _asked(self, question: str, *about: Any) -> Any:
        """The answer to a question; None where the library does not have it, or a GPU does not know it or is not there any more."""
        function = getattr(self._nvml, question, None)
        if function is None:
            return None
        try:
            return function(*about)
        except self._nvml.NVMLError:
            return None

    def families(self) -> list[Family]:
        """What all of them said last: a source of the metrics page."""
        kinds = [(*gauge, "gauge") for gauge in _GAUGES] + [(*_ENERGY, "counter")]
        page = []
        for name, help_text, member, kind in kinds:
            family = Family(name, kind, help_text)
            for sample in self._samples:
                value = getattr(sample, member)
                if value is not None:
                    family.add({"gpu_uuid": sample.uuid}, value)
            if family.samples:
                page.append(family)
        return page

    def close(self) -> None:
        """Let go of the library."""
        self._nvml.nvmlShutdown()


def open_gpus(
    warn: Callable[[str], None], environment: Mapping[str, str] = os.environ, driver: Path = _DRIVER, module: str = "pynvml"
) -> HostGpus | None:
    """The machine's GPUs; None where it has none, or they cannot be asked, which is warned about."""
    try:
        nvml = importlib.import_module(module)
    except ImportError:
        if driver.exists():
            warn(f"{_WITHOUT}: the package nvidia-ml-py, which the extra 'gpu' brings, is not installed")
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if driver.exists():
            warn(f"{_WITHOUT}: {error}")
        return None
    try:
        gpus = HostGpus(nvml, environment)
    except nvml.NVMLError as error:
        warn(f"{_WITHOUT}: {error}")
        nvml.nvmlShutdown()
        return None
    if not gpus.count:
        gpus.close()
        return None
    if gpus.unseen:
        warn(
            f"CUDA shows one MIG device only where {_VISIBLE} is not set: models get {gpus.seen[0].uuid}, and could have "
            f"{', '.join(gpus.unseen)} were they named there"
        )
    if gpus.mixed and environment.get(_ORDER) != _BY_BUS:
        # Source: CUDA C++ Programming Guide, "CUDA Environment Variables": the default is FASTEST_FIRST.
        warn(
            f"the GPUs here are of several kinds. Their numbers, in configurations, registrations and {_VISIBLE}, count by PCI bus; "
            f"CUDA's own count the fastest first, unless {_ORDER}={_BY_BUS} is set: set it for clients too, or they mean others by them"
        )
    return gpus


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

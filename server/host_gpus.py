"""How busy the machine's GPUs are, through NVML: no CUDA context is made for it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .prometheus_text import Family

_DRIVER = Path("/proc/driver/nvidia/version")

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


def visible(uuids: list[str], wanted: str | None) -> list[int]:
    """Which of the GPUs, by their places in ``uuids``, CUDA shows a process with ``CUDA_VISIBLE_DEVICES`` set to ``wanted`` (None: unset).

    Ordinals and UUIDs, which may be cut short; what comes behind one that is not there is not seen either. Ordinals count as NVML does,
    by PCI bus id. Source: CUDA C++ Programming Guide, "CUDA Environment Variables".
    """
    if wanted is None:
        return list(range(len(uuids)))
    seen: list[int] = []
    for word in wanted.split(","):
        name = word.strip()
        if name.isascii() and name.isdigit():
            found = [int(name)] if int(name) < len(uuids) else []
        else:
            found = [place for place, uuid in enumerate(uuids) if name and uuid.startswith(name)]
        # One that could be several, or comes a second time, is none.
        if len(found) != 1 or found[0] in seen:
            break
        seen += found
    return seen


class HostGpus:
    """The GPUs that this process may see. ``sample`` asks them, which may take a while; ``families`` says what they said last."""

    def __init__(self, nvml: Any, environment: Mapping[str, str]) -> None:
        self._nvml = nvml
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
        self._devices = [(uuids[place], handles[place]) for place in visible(uuids, environment.get("CUDA_VISIBLE_DEVICES"))]
        self._energy_before = {uuid: self._energy_joules(handle) for uuid, handle in self._devices}
        self._samples: list[GpuSample] = []

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._devices)

    def sample(self) -> None:
        """Ask all of them. For any thread, one at a time."""
        self._samples = [self._sampled(uuid, handle) for uuid, handle in self._devices]

    def _sampled(self, uuid: str, handle: Any) -> GpuSample:
        nvml = self._nvml
        rates = self._asked(nvml.nvmlDeviceGetUtilizationRates, handle)
        memory = self._asked(nvml.nvmlDeviceGetMemoryInfo, handle)
        power_mw = self._asked(nvml.nvmlDeviceGetPowerUsage, handle)
        limit_mw = self._asked(nvml.nvmlDeviceGetPowerManagementLimit, handle)
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
        energy_mj = self._asked(self._nvml.nvmlDeviceGetTotalEnergyConsumption, handle)
        return None if energy_mj is None else energy_mj / 1000

    def _asked(self, question: Callable[[Any], Any], handle: Any) -> Any:
        """The answer to a question, None where a GPU does not know it, or is not there any more."""
        try:
            return question(handle)
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
            warn("there are no metrics of the GPUs: the package nvidia-ml-py, which the extra 'gpu' brings, is not installed")
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if driver.exists():
            warn(f"there are no metrics of the GPUs: {error}")
        return None
    try:
        gpus = HostGpus(nvml, environment)
    except nvml.NVMLError as error:
        warn(f"there are no metrics of the GPUs: {error}")
        nvml.nvmlShutdown()
        return None
    if not gpus.count:
        gpus.close()
        return None
    return gpus


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

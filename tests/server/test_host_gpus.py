"""Metrics of GPUs, of an NVML that is not there: what they say, what they do not tell, and which of them are ours."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tensorfarm.server.host_gpus import HostGpus, open_gpus, visible
from tensorfarm.server.prometheus_text import exposition

UUIDS = ["GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"]


class NvmlError(Exception):
    """As the library's."""


class Nvml(ModuleType):
    """A library with three GPUs; ``silent`` names what the last of them does not tell."""

    NVMLError = NvmlError

    def __init__(self, uuids: list[str] | None = None, silent: tuple[str, ...] = ()) -> None:
        super().__init__("fake_nvml")
        self.uuids = UUIDS if uuids is None else uuids
        self.silent = silent
        self.opened = 0
        self.energy_mj = 5_000_000
        self.failure: NvmlError | None = None

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

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        uuid = self.uuids[handle]
        return uuid.encode() if handle % 2 else uuid

    def _told(self, what: str, handle: int, value: Any) -> Any:
        if what in self.silent and handle == len(self.uuids) - 1:
            raise NvmlError("Not Supported")
        return value

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return self._told("utilization", handle, SimpleNamespace(gpu=25 * (handle + 1), memory=0))

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return self._told("memory", handle, SimpleNamespace(total=80 << 30, used=(handle + 1) << 30, free=0))

    def nvmlDeviceGetPowerUsage(self, handle: int) -> Any:
        return self._told("power", handle, 123_456)

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> Any:
        return self._told("limit", handle, 700_000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> Any:
        return self._told("energy", handle, self.energy_mj)


def lines(gpus: HostGpus) -> dict[str, float]:
    page = exposition(gpus.families()).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in page if not line.startswith("#"))}


def test_what_they_say() -> None:
    nvml = Nvml()
    gpus = HostGpus(nvml, {})
    assert gpus.count == 3 and gpus.families() == []
    nvml.energy_mj += 2_500
    gpus.sample()
    said = lines(gpus)
    assert len(said) == 18
    label = '{gpu_uuid="GPU-aabb-2"}'
    assert said["nv_gpu_utilization" + label] == 0.5
    assert said["nv_gpu_memory_total_bytes" + label] == 80 << 30 and said["nv_gpu_memory_used_bytes" + label] == 2 << 30
    assert said["nv_gpu_power_usage" + label] == 123.456 and said["nv_gpu_power_limit" + label] == 700
    assert said["nv_energy_consumption" + label] == 2.5
    kinds = {family.name: family.kind for family in gpus.families()}
    assert kinds.pop("nv_energy_consumption") == "counter" and set(kinds.values()) == {"gauge"}


def test_what_one_does_not_tell_is_left_out() -> None:
    gpus = HostGpus(Nvml(silent=("utilization", "power", "energy")), {})
    gpus.sample()
    said = lines(gpus)
    assert len(said) == 15
    assert "nv_gpu_power_limit" + '{gpu_uuid="GPU-cccc-3"}' in said
    assert not any("GPU-cccc-3" in name for name in said if "utilization" in name or "usage" in name or "energy" in name)
    alone = HostGpus(Nvml(["MIG-1"], ("utilization", "memory", "power", "limit", "energy")), {})
    alone.sample()
    assert alone.families() == []


@pytest.mark.parametrize(
    ("wanted", "seen"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("1", [1]),
        ("2,0", [2, 0]),
        (" 2 , 1 ", [2, 1]),
        ("0,7,1", [0]),
        ("-1", []),
        ("1,1,0", [1]),
        ("GPU-cccc-3", [2]),
        ("GPU-c,0", [2, 0]),
        ("GPU-aa", []),
        ("GPU-aab", [1]),
        ("0,NoDevFiles", [0]),
        ("²", []),
        ("0,,1", [0]),
    ],
)
def test_which_of_them_are_ours(wanted: str | None, seen: list[int]) -> None:
    assert visible(UUIDS, wanted) == seen
    gpus = HostGpus(Nvml(), {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted})
    gpus.sample()
    assert gpus.count == len(seen)
    assert {name.split('"')[1] for name in lines(gpus)} == {UUIDS[place] for place in seen}


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    library = Nvml()
    monkeypatch.setitem(sys.modules, "fake_nvml", library)
    return library


def opened(folder: Path, warnings: list[str], driver: bool = True, module: str = "fake_nvml", **environment: str) -> HostGpus | None:
    file = folder / "version"
    if driver:
        file.touch()
    return open_gpus(warnings.append, environment, file, module)


def test_opening_and_closing(nvml: Nvml, tmp_path: Path) -> None:
    warnings: list[str] = []
    gpus = opened(tmp_path, warnings)
    assert gpus is not None and nvml.opened == 1 and warnings == []
    gpus.close()
    assert nvml.opened == 0


@pytest.mark.parametrize("driver", [True, False])
def test_a_machine_without_the_package(tmp_path: Path, driver: bool) -> None:
    warnings: list[str] = []
    assert opened(tmp_path, warnings, driver, "no_such_nvml") is None
    assert len(warnings) == driver and all("the package nvidia-ml-py" in line for line in warnings)


@pytest.mark.parametrize("driver", [True, False])
def test_a_machine_whose_driver_cannot_be_asked(nvml: Nvml, tmp_path: Path, driver: bool) -> None:
    nvml.failure = NvmlError("Driver/library version mismatch")
    warnings: list[str] = []
    assert opened(tmp_path, warnings, driver) is None
    assert warnings == ["there are no metrics of the GPUs: Driver/library version mismatch"] * driver and nvml.opened == 0


def test_a_process_that_may_see_none(nvml: Nvml, tmp_path: Path) -> None:
    warnings: list[str] = []
    assert opened(tmp_path, warnings, CUDA_VISIBLE_DEVICES="") is None
    assert warnings == [] and nvml.opened == 0


def test_gpus_that_are_lost_while_they_are_counted(nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(handle: int) -> str:
        raise NvmlError("GPU is lost")

    monkeypatch.setattr(nvml, "nvmlDeviceGetUUID", lost)
    warnings: list[str] = []
    assert opened(tmp_path, warnings) is None
    assert warnings == ["there are no metrics of the GPUs: GPU is lost"] and nvml.opened == 0

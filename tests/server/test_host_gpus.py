"""GPUs of an NVML that is not there: what they say, what they do not tell, which of them are ours, and which are for models."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tensorfarm.server.host_gpus import HostGpus, SeenGpu, open_gpus, visible
from tensorfarm.server.prometheus_text import exposition

from .fake_nvml import UUIDS, Nvml, NvmlError


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


A, B, C, D = "MIG-a", "MIG-b", "MIG-c", "MIG-d"


@pytest.mark.parametrize(
    ("parts", "wanted", "seen", "unseen"),
    [
        ({}, None, UUIDS, []),
        ({}, "2,0", [UUIDS[2], UUIDS[0]], []),
        ({}, A, [], []),
        # as CUDA does, one MIG device and nothing else
        ({1: [A, B]}, None, [A], [B, UUIDS[0], UUIDS[2]]),
        ({1: [None, B, None, A]}, None, [B], [A, UUIDS[0], UUIDS[2]]),
        ({0: [], 2: [C]}, None, [C], [UUIDS[1]]),
        ({0: [A], 1: [B], 2: [C]}, None, [A], [B, C]),
        # a GPU in MIG mode is none without a MIG device
        ({1: []}, None, [UUIDS[0], UUIDS[2]], []),
        ({0: [], 1: [None], 2: []}, None, [], []),
        # whoever names several gets them
        ({1: [A, B], 2: [C]}, f"{B}, {C},{A}", [B, C, A], []),
        ({1: [A, B]}, f"{B},0", [B, UUIDS[0]], []),
        ({1: [A, B]}, f"0,{D},{A}", [UUIDS[0]], []),
        ({1: [A, B]}, f"{A},{A},{B}", [A], []),
        ({1: [A, B]}, "MIG-\udcff,0", [], []),
        # the first of a GPU that is named
        ({1: [None, A, B]}, "1", [A], []),
        ({1: [A, B]}, f"{UUIDS[1]},0", [A, UUIDS[0]], []),
        ({1: [A, B]}, f"1,{A},{B}", [A, B], []),
    ],
)
def test_which_of_them_models_may_have(
    parts: Mapping[int, Sequence[str | None]], wanted: str | None, seen: list[str], unseen: list[str]
) -> None:
    gpus = HostGpus(Nvml(parts=parts), {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted})
    assert [gpu.uuid for gpu in gpus.seen] == seen
    assert list(gpus.unseen) == unseen


def test_a_mig_device_is_as_capable_as_its_gpu_and_has_memory_of_its_own() -> None:
    nvml = Nvml(parts={1: [A, B]}, capabilities={0: (7, 5), 1: (9, 0)})
    nvml.used = {0: 20, 1: 80, B: 60}
    gpus = HostGpus(nvml, {"CUDA_VISIBLE_DEVICES": f"{B},0"})
    assert gpus.seen == (SeenGpu(B, (9, 0)), SeenGpu(UUIDS[0], (7, 5)))
    assert (gpus.used_fraction(0), gpus.used_fraction(1)) == (0.75, 0.25)


MIG_FUNCTIONS = [f"nvmlDeviceGet{name}" for name in ("MigMode", "MaxMigDeviceCount", "MigDeviceHandleByIndex", "HandleByUUID")]


@pytest.mark.parametrize("lacking", [MIG_FUNCTIONS, MIG_FUNCTIONS[:1]])
def test_a_library_that_knows_nothing_of_mig(lacking: list[str]) -> None:
    assert [gpu.uuid for gpu in HostGpus(Nvml(lacking=lacking), {}).seen] == UUIDS
    assert HostGpus(Nvml(lacking=MIG_FUNCTIONS), {"CUDA_VISIBLE_DEVICES": A}).seen == ()


def test_what_one_does_not_tell_of_what_models_need() -> None:
    silent = HostGpus(Nvml(silent=("capability", "memory")), {})
    assert [gpu.capability for gpu in silent.seen] == [(8, 6), (8, 6), None]
    assert [silent.used_fraction(ordinal) for ordinal in range(3)] == [1 / 80, 2 / 80, None]
    lacking = HostGpus(
        Nvml(parts={0: [A]}, lacking=["nvmlDeviceGetCudaComputeCapability", "nvmlDeviceGetDeviceHandleFromMigDeviceHandle"]), {}
    )
    assert lacking.seen == (SeenGpu(A, None),)


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


def test_mig_devices_that_nothing_would_run_on_are_named(nvml: Nvml, tmp_path: Path) -> None:
    nvml.parts = {1: [A, B]}
    warnings: list[str] = []
    gpus = opened(tmp_path, warnings)
    assert gpus is not None and gpus.count == 3
    [line] = warnings
    assert line.endswith(f"models get {A}, and could have {B}, {UUIDS[0]}, {UUIDS[2]} were they named there")
    assert opened(tmp_path, warnings, CUDA_VISIBLE_DEVICES=B) is not None and len(warnings) == 1


def test_gpus_that_clients_may_count_in_another_order(nvml: Nvml, tmp_path: Path) -> None:
    warnings: list[str] = []
    nvml.names = {2: "NVIDIA L4"}
    assert opened(tmp_path, warnings, CUDA_DEVICE_ORDER="PCI_BUS_ID") is not None and not warnings
    assert opened(tmp_path, warnings) is not None
    [line] = warnings
    assert line.startswith("the GPUs here are of several kinds.") and "unless CUDA_DEVICE_ORDER=PCI_BUS_ID is set" in line


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
    assert (
        warnings == ["models get no GPU, and there are no metrics of them: Driver/library version mismatch"] * driver and nvml.opened == 0
    )


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
    assert warnings == ["models get no GPU, and there are no metrics of them: GPU is lost"] and nvml.opened == 0

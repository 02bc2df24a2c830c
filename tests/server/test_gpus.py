"""The GPUs that models may run on: which, as what a worker sees them, and whether there is room on them."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tensorfarm.server.gpus import Gpu, Gpus
from tensorfarm.server.host_gpus import HostGpus
from tensorfarm.workers.contract.status import Code, StatusError

from .fake_nvml import UUIDS, Nvml


def looked(nvml: Nvml, least: float = 6.0, wanted: str | None = None) -> tuple[Gpus, list[str]]:
    gpus, said = Gpus(), list[str]()
    gpus.look(HostGpus(nvml, {} if wanted is None else {"CUDA_VISIBLE_DEVICES": wanted}), least, said.append)
    return gpus, said


def test_none_before_they_were_looked_for_and_where_there_are_none() -> None:
    gpus = Gpus()
    for _ in range(2):
        assert gpus.usable == () and gpus.ordinals == () and gpus.find(0) is None and gpus.names() == "none"
        gpus.check_room(0, {0: 0.0}, "m_0")
        gpus.look(None, 6.0, pytest.fail)


@pytest.mark.parametrize(
    ("capabilities", "least", "ordinals"),
    [
        ({}, 6.0, (0, 1, 2)),
        ({0: (5, 2)}, 6.0, (1, 2)),
        ({1: (5, 2)}, 6.0, (0, 2)),
        ({2: (5, 2)}, 6.0, (0, 1)),
        ({0: (6, 0), 1: (5, 9), 2: (6, 1)}, 6.0, (0, 2)),
        ({0: (8, 9), 1: (8, 6), 2: (12, 1)}, 8.9, (0, 2)),
        ({0: (6, 1), 1: (7, 0), 2: (10, 0)}, 6.1, (0, 1, 2)),
        ({}, 99.0, ()),
        ({0: (3, 5)}, 0.0, (0, 1, 2)),
    ],
)
def test_those_that_are_capable_enough(capabilities: Mapping[int, tuple[int, int]], least: float, ordinals: tuple[int, ...]) -> None:
    gpus, said = looked(Nvml(capabilities=capabilities), least)
    assert gpus.ordinals == ordinals
    assert gpus.usable == tuple(Gpu(ordinal, UUIDS[ordinal], capabilities.get(ordinal, (8, 6))) for ordinal in ordinals)
    assert [gpus.find(ordinal) is not None for ordinal in range(4)] == [ordinal in ordinals for ordinal in range(4)]
    assert len(said) == 3 - len(ordinals) and all(f" is below {least:g}" in line for line in said)


def test_one_that_does_not_tell_is_left_alone() -> None:
    gpus, said = looked(Nvml(silent=("capability",)))
    assert gpus.ordinals == (0, 1)
    assert said == ["no model runs on GPU 2 (GPU-cccc-3), which does not tell its compute capability"]


def test_what_a_worker_sees() -> None:
    """Alone it is the first; beside the others all ordinals are the server's, of those too that are too old."""
    gpus, _ = looked(Nvml(capabilities={0: (5, 2)}), wanted="2,0,1")
    assert gpus.ordinals == (0, 2) and gpus.names() == "0 (GPU-cccc-3), 2 (GPU-aabb-2)"
    assert gpus.environment(2, alone=True) == {"CUDA_VISIBLE_DEVICES": "GPU-aabb-2"}
    assert gpus.environment(2, alone=False) == {"CUDA_VISIBLE_DEVICES": "GPU-cccc-3,GPU-aaaa-1,GPU-aabb-2"}
    assert (gpus.device_ordinal(2, alone=True), gpus.device_ordinal(2, alone=False)) == (0, 2)


@pytest.mark.parametrize("alone", [True, False])
def test_beside_a_mig_device_a_worker_sees_nothing(alone: bool) -> None:
    gpus, _ = looked(Nvml(parts={1: ["MIG-a", "MIG-b"]}), wanted="MIG-b,0")
    assert gpus.ordinals == (0, 1) and [gpu.partial for gpu in gpus.usable] == [True, False]
    for ordinal, uuid in enumerate(("MIG-b", "GPU-aaaa-1")):
        assert gpus.environment(ordinal, alone) == {"CUDA_VISIBLE_DEVICES": uuid}
        assert gpus.device_ordinal(ordinal, alone) == 0


@pytest.mark.parametrize(
    ("ordinal", "used_gib", "limit", "refused"),
    [
        (0, 80, {}, False),
        (0, 40, {0: 0.5}, False),
        (0, 41, {0: 0.5}, True),
        (0, 41, {1: 0.5}, False),
        (1, 41, {0: 0.5}, False),
        (1, 41, {0: 0.9, 1: 0.5}, True),
        (0, 80, {0: 1.0}, False),
        (0, 80, {0: 0.99}, True),
        (1, 1, {1: 0.0}, True),
        (0, 0, {0: 0.0}, False),
        (2, 80, {2: 0.1}, False),  # does not tell
        (7, 80, {7: 0.0}, False),  # is not there
    ],
)
def test_whether_there_is_room(ordinal: int, used_gib: int, limit: Mapping[int, float], refused: bool) -> None:
    nvml = Nvml(silent=("memory",))
    gpus, _ = looked(nvml)
    nvml.used[ordinal] = used_gib
    if not refused:
        gpus.check_room(ordinal, limit, "m_0")
        return
    with pytest.raises(StatusError) as caught:
        gpus.check_room(ordinal, limit, "m_0")
    assert caught.value.code is Code.UNAVAILABLE
    assert (
        caught.value.message == f"can not create model 'm_0': memory limit set for GPU {ordinal} has exceeded, model loading is rejected."
    )


def test_room_is_that_of_the_gpu_that_has_the_ordinal() -> None:
    nvml = Nvml()
    gpus, _ = looked(nvml, wanted="2,0")
    nvml.used = {0: 8, 2: 72}
    gpus.check_room(1, {0: 0.5, 1: 0.5}, "m_0")
    with pytest.raises(StatusError, match="GPU 0 has exceeded"):
        gpus.check_room(0, {0: 0.5, 1: 0.5}, "m_0")

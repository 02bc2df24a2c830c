"""Versions with instances on GPUs, of an NVML and a farm that only note what they are asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tensorfarm.server.gpus import Gpus
from tensorfarm.server.host_gpus import HostGpus
from tensorfarm.workers.contract.configuration import parse_document
from tensorfarm.workers.contract.messages import Load
from tensorfarm.workers.contract.status import Code, StatusError

from ..server.fake_nvml import Nvml
from .test_creation import House, in_house


def two(nvml: Nvml) -> Gpus:
    """GPUs 0 and 2 of three."""
    nvml.capabilities = {1: (5, 2)}
    gpus = Gpus()
    gpus.look(HostGpus(nvml, {}), 6.0, lambda line: None)
    return gpus


KINDS: list[tuple[str, str, int, str, dict[str, int]]] = [
    ("onnxruntime", "KIND_GPU", 1, "", {"gpu0": 1, "gpu2": 1}),
    ("onnxruntime", "KIND_AUTO", 2, "", {"gpu0": 2, "gpu2": 2}),
    ("onnxruntime", "KIND_GPU", 2, "gpus: 2", {"gpu2": 2}),
    ("onnxruntime", "KIND_CPU", 2, "", {"cpu": 2}),
    ("onnxruntime", "KIND_MODEL", 2, "", {"cpu": 2}),
    ("onnxruntime", "KIND_AUTO", 0, "", {"gpu0": 1, "gpu2": 1}),
    ("python", "KIND_AUTO", 0, "", {"m:1#0": 1, "m:1#1": 1}),
    ("python", "KIND_GPU", 2, "gpus: 0", {"m:1#0": 1, "m:1#1": 1}),
]


@pytest.mark.parametrize(("backend", "kind", "count", "more", "workers"), KINDS)
def test_instances_go_to_the_workers_of_their_gpus(
    tmp_path: Path, backend: str, kind: str, count: int, more: str, workers: dict[str, int]
) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(count, more, kind))
        assert house.instances() == workers
        await house.creation.remove(served)

    in_house(tmp_path, play, backend, gpus=two(Nvml()))


def test_without_gpus_auto_is_the_cpu_and_a_gpu_is_refused(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(2, kind="KIND_AUTO"))
        assert house.instances() == {"cpu": 2}
        with pytest.raises(StatusError, match="has kind KIND_GPU but no GPUs are available$"):
            await house.create(house.edition(1, kind="KIND_GPU"))
        await house.creation.remove(served)

    in_house(tmp_path, play, "onnxruntime")


def test_what_is_loaded_and_reported_names_the_gpus(tmp_path: Path) -> None:
    """Two instances of one group have one name, on GPUs of their own."""

    async def play(house: House) -> None:
        loads: list[Load] = []
        extend = house.farm.extend

        async def noting(worker: str, load: Load, *more: object) -> bool:
            loads.append(load)
            return await extend(worker, load)

        house.farm.extend = noting  # type: ignore[method-assign]
        served = await house.create(house.edition(1, kind="KIND_AUTO"))
        specs = [spec for load in loads for spec in load.instances]
        assert [(spec.name, spec.kind, spec.device) for spec in specs] == [("m_0_0", "KIND_GPU", 0), ("m_0_0", "KIND_GPU", 2)]
        for config in (served.config, *(parse_document(load.config) for load in loads)):
            [group] = config.instance_group
            assert (group.kind, list(group.gpus)) == (group.KIND_GPU, [0, 2])
        await house.creation.remove(served)

    in_house(tmp_path, play, "onnxruntime", gpus=two(Nvml()))


def test_the_flag_is_what_a_gpu_that_is_too_old_is_told_by(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        with pytest.raises(StatusError, match=r"gpu id 1\. .* compatibility of 7\.500000 are: 0, 2$"):
            await house.create(house.edition(1, "gpus: 1", "KIND_GPU"))
        served = await house.create(house.edition(1, kind="KIND_GPU"))
        with pytest.raises(StatusError, match=r"compatibility of 7\.500000 are: 0, 2$"):
            await house.creation.grow(served, house.config(1, "gpus: 1", "KIND_GPU"))
        assert house.instances() == {"gpu0": 1, "gpu2": 1}
        await house.creation.remove(served)

    in_house(tmp_path, play, "onnxruntime", gpus=two(Nvml()), flags=["--min-supported-compute-capability=7.5"])


def test_instances_move_between_gpus_and_the_cpu(tmp_path: Path) -> None:
    async def play(house: House) -> None:
        served = await house.create(house.edition(1, kind="KIND_GPU"))
        for count, more, kind, workers in (
            (2, "", "KIND_GPU", {"gpu0": 2, "gpu2": 2}),
            (2, "gpus: 2", "KIND_GPU", {"gpu2": 2}),
            (1, "", "KIND_CPU", {"cpu": 1}),
            (1, "", "KIND_AUTO", {"gpu0": 1, "gpu2": 1}),
        ):
            await (await house.resize(served, count, more, kind))
            assert house.instances() == workers
        await house.creation.remove(served)

    in_house(tmp_path, play, "onnxruntime", gpus=two(Nvml()))


@pytest.mark.parametrize("backend", ["onnxruntime", "python"])
def test_no_model_is_loaded_on_a_gpu_that_is_too_full(tmp_path: Path, backend: str) -> None:
    nvml = Nvml()
    nvml.used = {0: 10, 2: 41}

    async def play(house: House) -> None:
        edition = house.edition(1, kind="KIND_GPU")
        with pytest.raises(StatusError) as caught:
            await house.create(edition)
        assert caught.value.code is Code.UNAVAILABLE
        assert caught.value.message == ("can not create model 'm_0_0': memory limit set for GPU 2 has exceeded, model loading is rejected.")
        assert house.instances() == {} and not house.sent
        edition.copy.drop()
        assert len(house.released) == 1
        on_zero = await house.create(house.edition(1, "gpus: 0", "KIND_GPU"))
        on_cpu = await house.create(house.edition(2))
        before = house.instances()
        with pytest.raises(StatusError, match="'m_0_0': memory limit set for GPU 2 "):
            await house.creation.grow(on_zero, house.config(1, "gpus: [0, 2]", "KIND_GPU"))
        assert house.instances() == before, "one that may not grow is as it was"
        # A GPU without a limit may be full.
        nvml.used[0] = 80
        await (await house.resize(on_zero, 2, "gpus: 0", "KIND_GPU"))
        nvml.used[2] = 40
        assert sum(house.instances().values()) == sum(before.values()) + 1
        await (await house.resize(on_zero, 1, "gpus: 2", "KIND_GPU"))
        await asyncio.gather(house.creation.remove(on_zero), house.creation.remove(on_cpu))

    in_house(tmp_path, play, backend, gpus=two(nvml), flags=["--model-load-gpu-limit=2:0.5"])

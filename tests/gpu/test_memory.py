"""What is taken is given back: of the device and of both processes, by regions, models and whole servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ..model_repository import SIMPLE, Flavour, write_repository
from ..servers import Server, tensorfarm, wait_until
from . import nvml
from .doors import Door, Given, open_door
from .models import on_gpu, write_dense
from .presence import on_standin
from .processes import held, with_gpus
from .regions import CudaRegion, Part

pytestmark = pytest.mark.gpu

MIB = 1 << 20
SLACK = 64 * MIB
CYCLES = 200 if on_standin() else 10_000
WARM_CYCLES = CYCLES // 20
PAIR = {name: np.arange(16, dtype=np.int32).reshape(1, 16) * factor for name, factor in (("INPUT0", 3), ("INPUT1", 5))}

WIDTH, LAYERS = (256, 2) if on_standin() else (4096, 6)
"""Of a model with 320 MiB of weights, where these are looked for."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of which models are loaded and unloaded."""
    root = tmp_path_factory.mktemp("memory")
    repository = write_repository(root / "models", (on_gpu(SIMPLE),), Flavour.ONNX)
    write_dense(repository, "heavy", width=WIDTH, layers=LAYERS)
    flags = ("--model-control-mode=explicit", "--load-model=simple")
    with tensorfarm(repository, *flags, folder=root / "run", grpc=True) as running:
        yield running


def _cycle(door: Door, region: CudaRegion, turn: int) -> None:
    """Register, ask, look at the answer, unregister."""
    region.register(door.client)
    inputs = {name: Given(array + turn, Part(region, at * 64)) for at, (name, array) in enumerate(PAIR.items())}
    got = door.ask("simple", inputs, {"OUTPUT0": Part(region, 1024, 64)})
    assert got["OUTPUT0"][0, 1] == 8 + 2 * turn
    region.unregister(door.client)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_register_infer_unregister(protocol: str, server: Server) -> None:
    """Ten thousand times, half of them by each protocol, every hundredth time with a new allocation: nobody's memory grows."""
    (worker,) = with_gpus(server)[:1]
    region = CudaRegion("r", 4 * MIB)
    try:
        with open_door(protocol, server) as door:
            for turn in range(WARM_CYCLES):
                _cycle(door, region, turn)
            device, before = nvml.used_bytes(), {pid: held(pid) for pid in (server.pid, worker)}
            for turn in range(CYCLES // 2):
                if not turn % 100:
                    region.close()
                    region = CudaRegion("r", 4 * MIB)
                _cycle(door, region, turn)
            assert door.cuda_regions() == {}
            assert abs(nvml.used_bytes() - device) <= SLACK
            for pid, then in before.items():
                now = held(pid)
                assert now.own_byte_size - then.own_byte_size <= 16 * MIB, (then, now)
                assert now.descriptors - then.descriptors <= 2, (then, now)
    finally:
        region.close()


def test_many_regions_at_once(server: Server) -> None:
    """Several hundred allocations are open at a time, and all are closed again."""
    with open_door("grpc", server) as door:
        regions = [CudaRegion(f"r{number}", 1 << 16) for number in range(300)]
        with door.registered(*regions):
            assert len(door.cuda_regions()) == 300
            for turn, region in enumerate(regions[::50]):
                inputs = {name: Given(array + turn, Part(region, at * 64)) for at, (name, array) in enumerate(PAIR.items())}
                assert door.ask("simple", inputs, {"OUTPUT0": Part(region, 1024, 64)})["OUTPUT0"][0, 1] == 8 + 2 * turn
        assert door.cuda_regions() == {}


@pytest.mark.usefixtures("real_gpu")
def test_unloading_gives_the_device_s_memory_back(server: Server) -> None:
    """A model's weights come and go; libraries that it was the first to need stay, so one load comes before the count."""
    x = np.ones((4, WIDTH), np.float32)

    def load_and_ask(door: Door) -> None:
        door.client.load_model("heavy")
        door.ask("heavy", {"X": x})

    with open_door("http", server) as door:
        load_and_ask(door)
        door.client.unload_model("heavy")
        wait_until(lambda: not server.model_ready("heavy"), "the model to be gone")
        wait_until(lambda: "heavy" not in _loaded(door), "the model to be unloaded")
        before = nvml.used_bytes()
        for _ in range(3):
            load_and_ask(door)
            assert nvml.used_bytes() - before >= 256 * MIB
            door.client.unload_model("heavy")
            wait_until(lambda: nvml.used_bytes() - before <= SLACK, "the device's memory to be given back")


def _loaded(door: Door) -> set[str]:
    return {model["name"] for model in door.client.get_model_repository_index() if model.get("state") not in ("UNAVAILABLE", None)}


@pytest.mark.usefixtures("real_gpu")
def test_the_end_of_a_server_gives_all_back(tmp_path: Path) -> None:
    """Twice: what was used before is used after, though a client still has its region, and though the second server is killed."""
    repository = write_repository(tmp_path / "models", (on_gpu(SIMPLE),), Flavour.ONNX)
    with CudaRegion("kept", 4 * MIB) as region:
        before = nvml.used_bytes()
        for way in ("stopped", "killed"):
            with tensorfarm(repository, folder=tmp_path / way) as server:
                with open_door("http", server) as door:
                    region.register(door.client)
                    door.ask("simple", PAIR)
                assert nvml.used_bytes() - before >= 64 * MIB
                if way == "killed":
                    server.kill()
            wait_until(lambda: nvml.used_bytes() - before <= SLACK, "the device's memory to be given back")
        region.write(b"still mine")
        assert region.read(10) == b"still mine"

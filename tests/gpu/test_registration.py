"""CUDA regions that are registered, listed, refused, and unregistered at the wrong moment."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from ..servers import Server, tensorfarm, wait_until
from ..system.test_python_models import MODELS as HOST_MODELS
from . import nvml
from .doors import Array, Door, Given, open_door
from .models import parameter, put_python
from .regions import CudaRegion, Part, SystemRegion, garbage_handle

pytestmark = pytest.mark.gpu

MIB = 1 << 20

_EXPORTER = """
import sys
import tritonclient.utils.cuda_shared_memory as cuda
region = cuda.create_shared_memory_region("exported", 4 << 20, 0)
print(cuda.get_raw_handle(region).decode(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def region() -> Iterator[CudaRegion]:
    """A region that no server knows."""
    with CudaRegion("r", 4 * MIB) as made:
        yield made


def _refused(door: Door, handle: bytes, byte_size: int = 64, device: int = 0, name: str = "bad") -> str:
    """What is said against a registration; nothing of it stays."""
    before = door.cuda_regions()
    with pytest.raises(InferenceServerException) as caught:
        door.client.register_cuda_shared_memory(name, handle, device, byte_size)
    assert door.cuda_regions() == before
    message: str = caught.value.message()
    return message


def test_status(door: Door, region: CudaRegion) -> None:
    """Regions are listed with their device and size, both kinds apart, and not any more once they are unregistered."""
    with SystemRegion("s", 4096) as other, door.registered(other):
        region.register(door.client, 4 * MIB - 7)
        assert door.cuda_regions() == {"r": (0, 4 * MIB - 7)}
        assert "s" not in door.cuda_regions()
        with pytest.raises(InferenceServerException, match="registered as CUDA shared memory"):
            door.client.get_system_shared_memory_status("r")
        region.unregister(door.client)
        assert door.cuda_regions() == {}
    with pytest.raises(InferenceServerException, match="Unable to find cuda shared memory region: 'r'"):
        door.client.get_cuda_shared_memory_status("r")


def test_unregister_all(door: Door, region: CudaRegion) -> None:
    with CudaRegion("second", MIB) as second, SystemRegion("s", 4096) as other, door.registered(other):
        region.register(door.client)
        second.register(door.client)
        door.client.unregister_cuda_shared_memory()
        assert door.cuda_regions() == {}
        assert door.client.get_system_shared_memory_status("s")


def test_one_allocation_under_two_names(door: Door, region: CudaRegion) -> None:
    """It is opened once, and stays open for the one name when the other has gone."""
    region.register(door.client)
    door.client.register_cuda_shared_memory("twin", region.raw_handle, 0, 4096)
    region.unregister(door.client)
    array = np.arange(100, dtype=np.int32)
    region.write(array.tobytes())
    region.name = "twin"
    got = door.ask("identity_int32", {"INPUT0": Given(array, Part(region))}, {"OUTPUT0": Part(region, 1024, 400)})
    np.testing.assert_array_equal(got["OUTPUT0"], array)
    region.unregister(door.client)
    assert door.cuda_regions() == {}


def test_garbage(door: Door) -> None:
    assert _refused(door, garbage_handle()).startswith("failed to register CUDA shared memory region 'bad': ")
    with CudaRegion("good", MIB) as region, door.registered(region):
        assert door.cuda_regions() == {"good": (0, MIB)}


@pytest.mark.parametrize("byte_size", [0, 63, 65])
def test_handle_of_another_length(byte_size: int, door: Door) -> None:
    message = _refused(door, base64.b64encode(bytes(byte_size)))
    assert "a cudaIpcMemHandle_t has 64 bytes" in message or "'raw_handle' must be a valid base64" in message


def test_size_beyond_the_allocation(door: Door, region: CudaRegion) -> None:
    message = _refused(door, region.raw_handle, 64 * MIB)
    assert message.startswith("failed to register CUDA shared memory region 'bad': the allocation has ")
    assert message.endswith(f" bytes, {64 * MIB} were registered")
    region.register(door.client)
    region.unregister(door.client)


def test_unknown_device(door: Door, region: CudaRegion) -> None:
    assert "there is no GPU 99 here, but: 0 (" in _refused(door, region.raw_handle, device=99)


def test_wrong_device(door: Door, region: CudaRegion) -> None:
    """A handle opens on the device that it is of, whichever the request names: the reply says so."""
    if len(nvml.handles()) < 2:
        pytest.skip("needs two GPUs")
    assert "the allocation lies on another GPU" in _refused(door, region.raw_handle, device=1)


def test_duplicate_name(door: Door, region: CudaRegion) -> None:
    region.register(door.client)
    try:
        assert "shared memory region 'r' already in manager" in _refused(door, region.raw_handle, name="r")
        with SystemRegion("r", 4096) as other, pytest.raises(InferenceServerException, match="already in manager"):
            other.register(door.client)
    finally:
        region.unregister(door.client)


def test_handle_of_a_process_that_has_ended(door: Door) -> None:
    """It is good while that process lives, and refused afterwards."""
    with subprocess.Popen([sys.executable, "-c", _EXPORTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as exporter:
        assert exporter.stdout is not None
        handle = exporter.stdout.readline().strip()
        assert handle, "the exporting process failed"
        door.client.register_cuda_shared_memory("exported", handle, 0, 4 * MIB)
        door.client.unregister_cuda_shared_memory("exported")
    assert _refused(door, handle, 4 * MIB).startswith("failed to register CUDA shared memory region 'bad': ")


def test_unregistered_region_is_unknown(door: Door, region: CudaRegion) -> None:
    region.register(door.client)
    region.unregister(door.client)
    with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'r'"):
        door.ask("identity_int32", {"INPUT0": Given(np.arange(9, dtype=np.int32), Part(region))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the waiting models and the tests leave files for each other."""
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="module")
def gates(folder: Path) -> Iterator[Server]:
    """A server with models that wait until they are told to go on, one on the CPU and one on the GPU."""
    repository = folder / "models"
    for name, kind in (("gate_cpu", "KIND_CPU"), ("gate_gpu", "KIND_GPU")):
        put_python(repository, name, kind, HOST_MODELS, "system_gate", [parameter("FOLDER", str(folder))])
    with tensorfarm(repository, folder=folder / "run", grpc=True) as server:
        yield server


@pytest.mark.parametrize("model", ["gate_cpu", "gate_gpu"])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_unregister_while_in_flight(protocol: str, model: str, gates: Server, folder: Path, region: CudaRegion) -> None:
    """The request that uses the region finishes into it; the region stays listed until then."""
    array = np.arange(1000, dtype=np.float32)
    held = f"held-{protocol}-{model}"
    notes = folder / f"{model}.notes"

    def ask() -> Array:
        with open_door(protocol, gates) as door:
            return door.ask(model, {"X": Given(array, Part(region, 128))}, {"Y": Part(region, MIB, array.nbytes)}, request_id=held)["Y"]

    with open_door(protocol, gates) as door, ThreadPoolExecutor(1) as pool:
        region.register(door.client)
        asked = pool.submit(ask)
        wait_until(lambda: notes.exists() and f"{held} begun" in notes.read_text(), "the request to begin")
        region.unregister(door.client)
        assert region.name in door.cuda_regions()
        assert not asked.done()
        (folder / held).touch()
        np.testing.assert_array_equal(asked.result(60), array)
        wait_until(lambda: region.name not in door.cuda_regions(), "the region to go")


def test_no_regions_without_the_flag(folder: Path, region: CudaRegion) -> None:
    """Clients' memory is not for a server that was told so."""
    empty = folder / "none"
    empty.mkdir()
    with tensorfarm(empty, "--allow-client-shm=false", folder=folder / "without") as server, open_door("http", server) as door:
        with pytest.raises(InferenceServerException, match="Client shared memory is disabled"):
            region.register(door.client)

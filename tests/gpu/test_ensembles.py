"""Ensembles with steps on the GPU: tensors between them stay there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ..ensembles import write_ensembles
from ..model_repository import Flavour, write_repository
from ..servers import Server, tensorfarm
from .doors import Door, Given, open_door
from .models import CHAIN, LARGE, on_gpu
from .processes import forget_peak, peak_byte_size, with_gpus
from .regions import CudaRegion, Part

pytestmark = pytest.mark.gpu

MIB = 1 << 20
INTERMEDIATE = 256 * MIB


@pytest.mark.parametrize("ensemble", ["chain", "mixed_chain"])
@pytest.mark.parametrize("where", ["regions", "message", "in a region, out in the message"])
def test_right_answers(where: str, ensemble: str, door: Door) -> None:
    array = np.random.default_rng(5).standard_normal(100_003).astype(np.float32)
    with CudaRegion("in", MIB) as source, CudaRegion("out", MIB) as target, door.registered(source, target):
        given = array if where == "message" else Given(array, Part(source, 4))
        got = door.ask(ensemble, {"IN": given}, {"OUT": Part(target) if where == "regions" else None})
    np.testing.assert_array_equal(got["OUT"], array)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with room on the GPU for a large tensor between two steps."""
    root = tmp_path_factory.mktemp("ensembles")
    repository: Path = write_repository(root / "models", (on_gpu(LARGE),), Flavour.ONNX)
    write_ensembles(repository, (CHAIN,))
    flag = f"--cuda-memory-pool-byte-size=0:{2 * INTERMEDIATE}"
    with tensorfarm(repository, flag, folder=root / "run") as running:
        yield running


@pytest.mark.usefixtures("real_gpu")
def test_the_tensor_between_stays_on_the_device(server: Server) -> None:
    """No process ever has that much memory resident: on its way through the host it would have to lie somewhere."""
    (worker,) = with_gpus(server)[:1]
    array = np.random.default_rng(6).integers(0, 1 << 20, INTERMEDIATE // 4, np.int32).view(np.float32)
    with open_door("http", server) as door, CudaRegion("in", INTERMEDIATE) as source, CudaRegion("out", INTERMEDIATE) as target:
        with door.registered(source, target):
            _ask(door, source, target, array[:1000])
            source.write(array.tobytes())
            pids = (server.pid, worker)
            for pid in pids:
                forget_peak(pid)
            before = {pid: peak_byte_size(pid) for pid in pids}
            output = door.module.InferRequestedOutput("OUT")
            output.set_shared_memory("out", INTERMEDIATE)
            tensor = door.module.InferInput("IN", [array.size], "FP32")
            tensor.set_shared_memory("in", INTERMEDIATE)
            door.client.infer("chain", [tensor], outputs=[output])
            for pid in pids:
                assert peak_byte_size(pid) - before[pid] < INTERMEDIATE // 4
            assert target.read(INTERMEDIATE) == array.tobytes()


def _ask(door: Door, source: CudaRegion, target: CudaRegion, array: np.ndarray) -> None:
    got = door.ask("chain", {"IN": Given(array, Part(source))}, {"OUT": Part(target, 0, array.nbytes)})
    assert got["OUT"].tobytes() == array.tobytes()

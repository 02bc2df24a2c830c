"""Models on the CPU whose tensors lie in CUDA regions: the GPU's worker carries them there and back."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ..servers import Server, tensorfarm
from ..system.test_python_models import MODELS as HOST_MODELS
from .doors import Door, Given, open_door
from .models import put_python
from .regions import CudaRegion, Part, SystemRegion
from .test_regions import PAIR, TEXTS, assert_alike

pytestmark = pytest.mark.gpu

MIB = 1 << 20


@pytest.mark.parametrize("offset", [0, 4099])
@pytest.mark.parametrize("output", ["cuda", "system", "message"])
def test_onnx(output: str, offset: int, door: Door) -> None:
    with CudaRegion("in", 1 << 14) as source, (SystemRegion if output == "system" else CudaRegion)("out", 1 << 14) as target:
        with door.registered(source, target):
            inputs = {"INPUT0": Given(PAIR["INPUT0"], Part(source, offset)), "INPUT1": Given(PAIR["INPUT1"])}
            places = {
                name: None if output == "message" else Part(target, offset + at * 1024, 192)
                for at, name in enumerate(("OUTPUT0", "OUTPUT1"))
            }
            got = door.ask("simple_cpu", inputs, places)
    assert_alike(got, door.ask("simple_cpu", PAIR))


def test_bytes(door: Door) -> None:
    with CudaRegion("texts", 1 << 14) as region, door.registered(region):
        got = door.ask("identity_bytes_cpu", {"INPUT0": Given(TEXTS, Part(region, 3))}, {"OUTPUT0": Part(region, 8192)})
    assert_alike(got, {"OUTPUT0": TEXTS})


def test_large(door: Door) -> None:
    """More than the arenas have at first."""
    array = np.random.default_rng(4).standard_normal(24 * MIB // 4).astype(np.float32)
    with CudaRegion("in", 24 * MIB) as source, CudaRegion("out", 24 * MIB) as target, door.registered(source, target):
        got = door.ask("large_cpu", {"INPUT0": Given(array, Part(source))}, {"OUTPUT0": Part(target)})
    np.testing.assert_array_equal(got["OUTPUT0"], array)


def test_many_at_once(farm: Server) -> None:
    """Requests that are carried, of several clients."""

    def client(number: int) -> None:
        with open_door("http" if number % 2 else "grpc", farm) as door, CudaRegion(f"carried{number}", 1 << 13) as region:
            with door.registered(region):
                for turn in range(20):
                    array = np.full(256, number * 1000 + turn, np.int32)
                    got = door.ask("identity_int32_cpu", {"INPUT0": Given(array, Part(region))}, {"OUTPUT0": Part(region, 4096)})
                    np.testing.assert_array_equal(got["OUTPUT0"], array)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(client, range(6)))


@pytest.fixture(scope="module")
def python_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with nothing but a Python model on the CPU."""
    root = tmp_path_factory.mktemp("host-python")
    put_python(root / "models", "adder", "KIND_CPU", HOST_MODELS)
    with tensorfarm(root / "models", folder=root / "run", grpc=True) as running:
        yield running


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_python(protocol: str, python_server: Server) -> None:
    array = np.arange(500, dtype=np.int32)
    with open_door(protocol, python_server) as door, CudaRegion("r", 1 << 14) as region, door.registered(region):
        got = door.ask("adder", {"X": Given(array, Part(region, 40))}, {"SUM": Part(region, 4097, 2000), "SAID": Part(region, 8192)})
    np.testing.assert_array_equal(got["SUM"], array + 1)
    assert got["SAID"][0].startswith(b"[")

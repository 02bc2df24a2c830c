"""Python models on a GPU: where their inputs lie, and outputs that they leave there."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

from ..servers import Server, tensorfarm
from ..system.test_python_models import MODELS as HOST_MODELS
from .doors import Door, Given, open_door
from .models import PYTHON_MODELS, parameter, put_python
from .presence import on_standin
from .regions import CudaRegion, Part, SystemRegion

pytestmark = pytest.mark.gpu

LIBRARIES = ("torch", "cupy")
X = np.arange(1000, dtype=np.float32)


def _there(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the same model for each library, once with inputs on the device and once without, and one that uses neither."""
    root = tmp_path_factory.mktemp("python")
    repository = root / "models"
    for library in () if on_standin() else filter(_there, LIBRARIES):
        for cpu_only in ("no", "yes"):
            lines = [parameter("LIBRARY", library), parameter("FORCE_CPU_ONLY_INPUT_TENSORS", cpu_only)]
            put_python(repository, f"{library}_{cpu_only}", "KIND_GPU", PYTHON_MODELS, "on_device", lines)
    put_python(repository, "adder", "KIND_GPU", HOST_MODELS)
    with tensorfarm(repository, folder=root / "run", grpc=True) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def door(request: pytest.FixtureRequest, server: Server) -> Iterator[Door]:
    """Either client of that server."""
    with open_door(request.param, server) as opened:
        yield opened


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> str:
    """A library with arrays on the GPU."""
    name = str(request.param)
    if not _there(name):
        pytest.skip(f"{name} is not installed")
    if on_standin():
        pytest.skip("libraries of arrays do not know the stand-in")
    return name


@pytest.mark.parametrize("output", ["cuda", "system", "message"])
@pytest.mark.parametrize("cpu_only", ["no", "yes"])
def test_input_in_a_region(library: str, cpu_only: str, output: str, door: Door) -> None:
    """It is on the device where the model says that it may be, and the output gets to wherever it is wanted."""
    with CudaRegion("in", 8192) as source, (SystemRegion if output == "system" else CudaRegion)("out", 8192) as target:
        with door.registered(source, target):
            place = None if output == "message" else Part(target, 512, 4096)
            got = door.ask(f"{library}_{cpu_only}", {"X": Given(X, Part(source, 256))}, {"Y": place, "ON_GPU": None, "DEVICE": None})
    np.testing.assert_array_equal(got["Y"], X + 1)
    assert got["ON_GPU"][0] == (cpu_only == "no")
    assert got["DEVICE"][0] == (0 if cpu_only == "no" else -1)


def test_input_in_the_message(library: str, door: Door) -> None:
    """The answer is right wherever such an input lies."""
    np.testing.assert_array_equal(door.ask(f"{library}_no", {"X": X})["Y"], X + 1)


def test_a_model_that_knows_nothing_of_gpus(door: Door) -> None:
    """Its instance is on a GPU, its tensors are numpy's all the same."""
    array = np.arange(100, dtype=np.int32)
    with CudaRegion("r", 4096) as region, door.registered(region):
        got = door.ask("adder", {"X": Given(array, Part(region, 12))}, {"SUM": Part(region, 1024, 400), "SAID": None})
    np.testing.assert_array_equal(got["SUM"], array + 1)
    assert got["SAID"].shape == (1,)


def test_memory_that_a_model_keeps_is_not_the_client_s(library: str, door: Door) -> None:
    """A second request through the same region is answered from what lies there then."""
    with CudaRegion("r", 16384) as region, door.registered(region):
        for factor in (1, 2, 3):
            got = door.ask(f"{library}_no", {"X": Given(X * factor, Part(region))}, {"Y": Part(region, 8192)})
            np.testing.assert_array_equal(got["Y"], X * factor + 1)

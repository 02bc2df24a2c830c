"""CUDA regions end to end, by the stock clients: every answer is the one that the model's twin on the CPU gives."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from ..model_repository import DATATYPES
from ..servers import Server
from .doors import DTYPES, Array, Door, Given, content_of, open_door
from .models import ADD_SUBS
from .regions import CudaRegion, Part, Region, SystemRegion

pytestmark = pytest.mark.gpu

RANDOM = np.random.default_rng(8)
PAIR = {name: RANDOM.integers(-1000, 1000, (3, 16), np.int32) for name in ("INPUT0", "INPUT1")}
TOLERANCE = {"FP16": 1e-3, "FP32": 1e-6, "FP64": 1e-12}
"""Relative; integers are exact."""

TEXTS = np.array([b"a", b"", "née".encode(), b"x" * 1000], np.object_)


def values(datatype: str, count: int = 33) -> Array:
    """An array of a datatype, with its edges in it."""
    dtype = np.dtype(DTYPES[datatype])
    if datatype == "BYTES":
        return TEXTS
    if datatype == "BOOL":
        return RANDOM.integers(0, 2, count).astype(np.bool_)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        array = RANDOM.integers(limits.min, limits.max, count, dtype, endpoint=True)
        array[:2] = limits.min, limits.max
        return array
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    array = RANDOM.standard_normal(count).astype(dtype)
    array[:5] = np.array([info.max, info.min, np.inf, -np.inf, 0], dtype)
    return array


def assert_alike(got: dict[str, Array], expected: dict[str, Array], tolerance: float = 0.0) -> None:
    """The same outputs of the same shapes and datatypes, with elements that differ by no more than that."""
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        if tolerance:
            np.testing.assert_allclose(got[name], array, rtol=tolerance)
        else:
            assert content_of(got[name]) == content_of(array)


def test_add_sub(door: Door) -> None:
    """Both inputs and both outputs in one region."""
    with CudaRegion("all", 1 << 16) as region, door.registered(region):
        inputs = {name: Given(array, Part(region, at * 4096)) for at, (name, array) in enumerate(PAIR.items())}
        got = door.ask("simple", inputs, {"OUTPUT0": Part(region, 3 * 4096, 256), "OUTPUT1": Part(region, 5 * 4096, 256)})
    assert_alike(got, door.ask("simple_cpu", PAIR))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_datatype(datatype: str, door: Door) -> None:
    array = values(datatype)
    name = f"identity_{datatype.lower()}"
    with CudaRegion("in", 1 << 14) as source, CudaRegion("out", 1 << 14) as target, door.registered(source, target):
        got = door.ask(name, {"INPUT0": Given(array, Part(source))}, {"OUTPUT0": Part(target)})
    assert_alike(got, {"OUTPUT0": array})
    assert_alike(got, door.ask(f"{name}_cpu", {"INPUT0": array}))


@pytest.mark.parametrize("model", ADD_SUBS, ids=lambda model: model.name)
def test_arithmetic(model: Any, door: Door) -> None:
    datatype = model.inputs[0].datatype
    dtype = DTYPES[datatype]
    inputs = {name: (RANDOM.standard_normal((2, 1001)) * 100).astype(dtype) for name in ("INPUT0", "INPUT1")}
    with CudaRegion("in", 1 << 16) as source, CudaRegion("out", 1 << 16) as target, door.registered(source, target):
        given = {name: Given(array, Part(source, at << 15)) for at, (name, array) in enumerate(inputs.items())}
        got = door.ask(model.name, given, {"OUTPUT0": Part(target, 0, 1 << 15), "OUTPUT1": Part(target, 1 << 15)})
    assert_alike(got, door.ask(f"{model.name}_cpu", inputs), TOLERANCE.get(datatype, 0.0))


def test_batches_of_bytes(door: Door) -> None:
    array = np.array([[b"one", b""], ["zwei ß".encode(), b"\0" * 300], [b"3", b"drei"]], np.object_)
    with CudaRegion("texts", 1 << 14) as region, door.registered(region):
        got = door.ask("batched_bytes", {"INPUT0": Given(array, Part(region, 8))}, {"OUTPUT0": Part(region, 8192)})
    assert_alike(got, {"OUTPUT0": array})


def _place(kind: str, name: str) -> Region | None:
    match kind:
        case "cuda":
            return CudaRegion(name, 8192)
        case "system":
            return SystemRegion(name, 8192)
        case _:
            return None


@pytest.mark.parametrize("output", ["cuda", "system", "message"])
@pytest.mark.parametrize(("first", "second"), [("cuda", "message"), ("message", "cuda"), ("system", "cuda"), ("message", "message")])
def test_mixed(first: str, second: str, output: str, door: Door) -> None:
    """Each input and the outputs come from elsewhere, and go elsewhere."""
    places = [_place(kind, f"place{at}") for at, kind in enumerate((first, second, output))]
    with door.registered(*(place for place in places if place is not None)):
        inputs = {
            name: Given(array, None if place is None else Part(place, 64))
            for (name, array), place in zip(PAIR.items(), places[:2], strict=True)
        }
        place = places[2]
        wanted = {name: None if place is None else Part(place, at * 4096, 192) for at, name in enumerate(("OUTPUT0", "OUTPUT1"))}
        got = door.ask("simple", inputs, wanted)
    assert_alike(got, door.ask("simple_cpu", PAIR))


def test_outputs_to_different_places(door: Door) -> None:
    with CudaRegion("one", 4096) as region, door.registered(region):
        inputs = {name: Given(array, Part(region, at * 512)) for at, (name, array) in enumerate(PAIR.items())}
        got = door.ask("simple", inputs, {"OUTPUT0": Part(region, 2048, 192), "OUTPUT1": None})
    assert_alike(got, door.ask("simple_cpu", PAIR))


@pytest.mark.parametrize("model", ["simple", "identity_int32"])
@pytest.mark.parametrize("offset", [0, 4, 256, 1, 4099, 65_537])
def test_any_byte_offset(offset: int, model: str, door: Door) -> None:
    """Aligned for CUDA, for the datatype, or not at all; the bytes around an output stay as they are."""
    inputs = PAIR if model == "simple" else {"INPUT0": PAIR["INPUT0"].reshape(-1)}
    with CudaRegion("in", 1 << 18) as source, CudaRegion("out", 1 << 18) as target, door.registered(source, target):
        target.write(b"\xaa" * target.byte_size)
        given = {name: Given(array, Part(source, offset + at * 1000)) for at, (name, array) in enumerate(inputs.items())}
        wanted = {f"OUTPUT{at}": Part(target, offset + at * 1000, 192) for at in range(len(inputs))}
        got = door.ask(model, given, wanted)
        around = bytearray(target.read(target.byte_size))
    assert_alike(got, door.ask(f"{model}_cpu", inputs))
    for part in wanted.values():
        around[part.offset : part.offset + 192] = b"\xaa" * 192
    assert around == b"\xaa" * len(around)


def test_output_over_its_input(door: Door) -> None:
    """An output may go where an input lies."""
    with CudaRegion("same", 4096) as region, door.registered(region):
        got = door.ask("identity_int32", {"INPUT0": Given(np.arange(99, dtype=np.int32), Part(region))}, {"OUTPUT0": Part(region)})
    assert_alike(got, {"OUTPUT0": np.arange(99, dtype=np.int32)})


def test_output_over_its_input_again(door: Door) -> None:
    """Also where its shape varies, and is known from the request before."""
    array = np.arange(300, dtype=np.float32)
    with CudaRegion("same", 4096) as region, door.registered(region):
        for part in (Part(region), Part(region), Part(region, 256)):
            assert_alike(door.ask("large", {"INPUT0": Given(array, Part(region))}, {"OUTPUT0": part}), {"OUTPUT0": array})


def test_output_whose_shape_follows_from_the_content(door: Door) -> None:
    """What a request with inputs of the same shapes made before says nothing then."""
    with CudaRegion("in", 4096) as source, CudaRegion("out", 4096) as target, door.registered(source, target):
        for content in ((1, 1, 2), (1, 1, 2), (5, 4, 3), (7, 7, 7), (3, 1, 2), (1, 2), (2, 2)):
            array = np.array(content, np.float32)
            target.write(b"\xaa" * 4096)
            got = door.ask("distinct", {"X": Given(array, Part(source))}, {"Y": Part(target, 512)})["Y"]
            np.testing.assert_array_equal(got, np.unique(array))
            assert target.read(512) + target.read(64, 512 + got.nbytes) == b"\xaa" * 576


def test_output_larger_than_its_place(door: Door) -> None:
    """It is refused, nothing is written beyond, and the next request is answered."""
    with CudaRegion("small", 4096) as region, door.registered(region):
        region.write(bytes(4096))
        with pytest.raises(InferenceServerException, match="OUTPUT0"):
            door.ask("simple", PAIR, {"OUTPUT0": Part(region, 1024, 100)})
        assert region.read(4096 - 1124, 1124) == bytes(4096 - 1124)
        assert_alike(door.ask("simple", PAIR), door.ask("simple_cpu", PAIR))


def test_input_beyond_its_region(door: Door) -> None:
    with CudaRegion("short", 4096) as region, door.registered(region):
        with pytest.raises(InferenceServerException, match="Invalid offset"):
            door.ask("simple", {**PAIR, "INPUT0": Given(PAIR["INPUT0"], Part(region, 0, 4097))})


def test_several_clients_in_one_batch(farm: Server) -> None:
    """Requests of eight clients, half of them with regions, are gathered on the device and cut up again, each its own."""
    start = threading.Barrier(8)

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        with open_door("grpc" if number % 2 else "http", farm) as door, CudaRegion(f"client{number}", 1 << 14) as region:
            with door.registered(region):
                start.wait(60)
                for turn in range(25):
                    rows = 1 + (number + turn) % 3
                    inputs = {name: random.integers(-1000, 1000, (rows, 16), np.int32) for name in PAIR}
                    given = {name: Given(array, Part(region, at * 1024)) for at, (name, array) in enumerate(inputs.items())}
                    if number % 4 >= 2:
                        given["INPUT1"] = Given(inputs["INPUT1"])
                    places = {"OUTPUT0": Part(region, 4096, 1024), "OUTPUT1": None if number < 4 else Part(region, 8192, 1024)}
                    expected = {"OUTPUT0": inputs["INPUT0"] + inputs["INPUT1"], "OUTPUT1": inputs["INPUT0"] - inputs["INPUT1"]}
                    assert_alike(door.ask("gathered", given, places), expected)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(client, number) for number in range(8)]:
            done.result(120)
    (statistics,) = farm.ask("GET", "/v2/models/gathered/stats").json["model_stats"]
    assert statistics["inference_stats"]["success"]["count"] == 8 * 25
    assert statistics["execution_count"] < 8 * 25 // 2

"""The stock clients, unmodified, against a running server; answers against ONNX Runtime in this process."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
import tritonclient.http as client_module
import tritonclient.http.aio as aio_module
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from ..servers import Server
from .grpc_farm import GrpcFarm, grpc_farm

RANDOM = np.random.default_rng(11)
VALUES: dict[str, np.ndarray] = {
    "BOOL": np.array([True, False, True, True]),
    **{f"UINT{bits}": np.array([0, 1, 2**bits - 1], f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.array([-(2 ** (bits - 1)), -1, 2 ** (bits - 1) - 1], f"int{bits}") for bits in (8, 16, 32, 64)},
    "FP16": np.array([0.5, -2.0, 65504.0], np.float16),
    "FP32": np.array([0.1, -np.inf, 3e38, 1e-45], np.float32),
    "FP64": np.array([0.1, np.inf, -1e308], np.float64),
    "BYTES": np.array([b"a", b"", "née".encode(), b"x" * 1000], np.object_),
}
"""An array of every datatype that numpy has, with edges in it."""


@pytest.fixture
def client(farm: Server) -> Iterator[client_module.InferenceServerClient]:
    """The stock synchronous client."""
    with client_module.InferenceServerClient(f"127.0.0.1:{farm.http_port}", concurrency=4) as made:
        yield made


def _input(name: str, array: np.ndarray, datatype: str, binary: bool = True) -> Any:
    made = client_module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def _wanted(name: str, **options: Any) -> Any:
    return client_module.InferRequestedOutput(name, **options)


def _session(models: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(models / name / "1" / "model.onnx", providers=["CPUExecutionProvider"])


def test_calls_that_only_read(client: client_module.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert not client.is_model_ready("nosuch")
    assert client.get_server_metadata()["name"] == "triton"
    metadata = client.get_model_metadata("simple")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["INPUT0", "INPUT1"]
    assert client.get_model_config("simple")["max_batch_size"] == 8
    assert {entry["name"] for entry in client.get_model_repository_index()} >= {"simple", "spin"}
    assert client.get_inference_statistics("simple")["model_stats"][0]["name"] == "simple"
    assert client.get_system_shared_memory_status() == []
    assert client.get_cuda_shared_memory_status() == []


def test_errors_are_the_client_s_own(client: client_module.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nosuch' is not found"):
        client.get_model_metadata("nosuch")
    with pytest.raises(InferenceServerException, match="explicit model load / unload is not allowed"):
        client.load_model("simple")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype(datatype: str, binary: bool, client: client_module.InferenceServerClient) -> None:
    array = VALUES[datatype]
    if datatype == "FP16" and not binary:
        with pytest.raises(InferenceServerException, match="FP16"):
            client.infer("identity_fp16", [_input("INPUT0", array, "FP16")], outputs=[_wanted("OUTPUT0", binary_data=False)])
        return
    result = client.infer(
        f"identity_{datatype.lower()}",
        [_input("INPUT0", array, datatype, binary)],
        outputs=[_wanted("OUTPUT0", binary_data=binary)],
        request_id="seven",
    )
    got = result.as_numpy("OUTPUT0")
    assert result.get_response()["id"] == "seven"
    if datatype == "BYTES" and not binary:
        got = np.array([text.encode() if isinstance(text, str) else text for text in got], np.object_)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_bf16(client: client_module.InferenceServerClient) -> None:
    array = np.array([1.0, -2.0, 0.5, np.inf], ml_dtypes.bfloat16)
    result = client.infer("identity_bf16", [_input("INPUT0", array, "BF16")])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_add_sub_equals_onnxruntime(batch: int, compression: str | None, client: client_module.InferenceServerClient, models: Path) -> None:
    first, second = RANDOM.integers(-1000, 1000, (2, batch, 16), np.int32)
    inputs = [_input("INPUT0", first, "INT32"), _input("INPUT1", second, "INT32", binary=False)]
    result = client.infer("simple", inputs, request_compression_algorithm=compression, response_compression_algorithm=compression)
    for name, expected in zip(
        ("OUTPUT0", "OUTPUT1"), _session(models, "simple").run(None, {"INPUT0": first, "INPUT1": second}), strict=True
    ):
        np.testing.assert_array_equal(result.as_numpy(name), expected)


def test_classes(client: client_module.InferenceServerClient) -> None:
    scores = np.array([[0.1, 0.7, 0.15, 0.05]], np.float32)
    result = client.infer("classes", [_input("SCORES", scores, "FP32")], outputs=[_wanted("LABELLED", class_count=2)])
    assert result.as_numpy("LABELLED").tolist() == [[b"0.700000:1:dog", b"0.150000:2"]]


def test_many_requests_at_once(client: client_module.InferenceServerClient) -> None:
    """async_infer of the synchronous client, each answer for its own request."""
    asked = []
    for value in range(64):
        array = np.full((1, 16), value, np.int32)
        asked.append(client.async_infer("simple", [_input("INPUT0", array, "INT32"), _input("INPUT1", array, "INT32")]))
    for value, one in enumerate(asked):
        assert one.get_result(timeout=20).as_numpy("OUTPUT0").tolist() == [[2 * value] * 16]


def test_asyncio_client(farm: Server) -> None:
    async def talk() -> None:
        async with aio_module.InferenceServerClient(f"127.0.0.1:{farm.http_port}", conn_limit=16) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_metadata("plain"))["name"] == "plain"

            async def one(value: int) -> None:
                array = np.full(16, value, np.int32)
                inputs = [_input("INPUT0", array, "INT32"), _input("INPUT1", array, "INT32", binary=bool(value % 2))]
                result = await client.infer("plain", inputs)
                assert result.as_numpy("OUTPUT0").tolist() == [2 * value] * 16

            await asyncio.gather(*(one(value) for value in range(64)))
            with pytest.raises(InferenceServerException, match="unexpected shape"):
                await client.infer("plain", [_input(f"INPUT{at}", np.zeros(8, np.int32), "INT32") for at in (0, 1)])

    asyncio.run(talk())


def test_system_shared_memory(client: client_module.InferenceServerClient) -> None:
    """The client's own shared-memory functions: both inputs and both outputs in one region each."""
    key = f"/tensorfarm-test-{os.getpid()}"
    first, second = RANDOM.integers(-1000, 1000, (2, 1, 16), np.int32)
    sent = shm.create_shared_memory_region("sent", f"{key}-in", 128)
    got = shm.create_shared_memory_region("got", f"{key}-out", 128)
    try:
        shm.set_shared_memory_region(sent, [first, second])
        client.register_system_shared_memory("sent", f"{key}-in", 128)
        client.register_system_shared_memory("got", f"{key}-out", 128)
        inputs, outputs = [], []
        for at in (0, 1):
            tensor = client_module.InferInput(f"INPUT{at}", [1, 16], "INT32")
            tensor.set_shared_memory("sent", 64, offset=64 * at)
            inputs.append(tensor)
            wanted = _wanted(f"OUTPUT{at}")
            wanted.set_shared_memory("got", 64, offset=64 * at)
            outputs.append(wanted)
        result = client.infer("simple", inputs, outputs=outputs)
        assert result.get_output("OUTPUT0")["shape"] == [1, 16]
        np.testing.assert_array_equal(shm.get_contents_as_numpy(got, np.int32, [1, 16]), first + second)
        np.testing.assert_array_equal(shm.get_contents_as_numpy(got, np.int32, [1, 16], 64), first - second)
        assert {entry["name"] for entry in client.get_system_shared_memory_status()} == {"sent", "got"}
        client.unregister_system_shared_memory("sent")
        client.unregister_system_shared_memory()
        assert client.get_system_shared_memory_status() == []
    finally:
        shm.destroy_shared_memory_region(sent)
        shm.destroy_shared_memory_region(got)


def test_bytes_in_shared_memory(client: client_module.InferenceServerClient) -> None:
    key = f"/tensorfarm-test-{os.getpid()}-bytes"
    array = VALUES["BYTES"]
    byte_size = sum(4 + len(element) for element in array)
    region = shm.create_shared_memory_region("bytes", key, 2 * byte_size)
    try:
        shm.set_shared_memory_region(region, [serialize_byte_tensor(array)])
        client.register_system_shared_memory("bytes", key, 2 * byte_size)
        tensor = client_module.InferInput("INPUT0", list(array.shape), "BYTES")
        tensor.set_shared_memory("bytes", byte_size)
        wanted = _wanted("OUTPUT0")
        wanted.set_shared_memory("bytes", byte_size, offset=byte_size)
        client.infer("identity_bytes", [tensor], outputs=[wanted])
        got = shm.get_contents_as_numpy(region, np.object_, list(array.shape), byte_size)
        np.testing.assert_array_equal(got, array)
        client.unregister_system_shared_memory("bytes")
    finally:
        shm.destroy_shared_memory_region(region)


@pytest.fixture(scope="module")
def analysed(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GrpcFarm]:
    """A server with all ports that NVIDIA's load generator can ask."""
    with grpc_farm(models, folder=tmp_path_factory.mktemp("analysed") / "run") as running:
        yield running


@pytest.mark.skipif(not (os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")), reason="no perf_analyzer here")
@pytest.mark.parametrize("memory", ["none", "system"])
@pytest.mark.parametrize("protocol", ["http", "grpc", "grpc --streaming"])
def test_perf_analyzer(protocol: str, memory: str, analysed: GrpcFarm) -> None:
    """NVIDIA's load generator, unmodified, for one short measurement."""
    program = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    assert program is not None
    port = analysed.server.http_port if protocol == "http" else analysed.port
    command = [program, "-m", "simple", "-i", *protocol.split(), "-u", f"127.0.0.1:{port}", "--concurrency-range", "2"]
    command += ["--measurement-mode", "count_windows", "--measurement-request-count", "50", "--shared-memory", memory, "-s", "99"]
    command += ["--max-trials", "10"]
    # With --streaming it asks no other way than asynchronously.
    command += ["--async"] * ("--streaming" in protocol)
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603  # the program is the tester's
    assert "Throughput" in finished.stdout, finished.stdout + finished.stderr
    assert "Errors: 0" in finished.stdout or "Failed" not in finished.stdout

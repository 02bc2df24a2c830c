"""A server with front ends: what clients of different ones are answered, see of each other, and leave behind."""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.aio as aio_module
import tritonclient.http
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import serialize_byte_tensor

from ..generations import Askers, write_generation
from ..model_repository import (
    CLASSES,
    IDENTITIES,
    PLAIN,
    SIMPLE,
    VERSIONS_ALL,
    Flavour,
    TestModel,
    TestTensor,
    write_model,
    write_repository,
)
from ..servers import wait_until
from ..wire import Connection, compact, request_bytes
from .front_end_refusals import CALLS, GRPC_STREAMS, REQUESTS, Seen, called, sent, streamed
from .front_ends import CHANNEL, COUNT, FrontEndFarm, binary_infer, front_end_farm, http_tensor, refused, say
from .grpc_farm import PATIENCE_S, Answers, GrpcFarm, grpc_farm, is_final, tensor, wanted
from .test_clients import VALUES
from .test_python_models import put
from .test_regions import Object
from .test_sequences import CONFIGS, MODEL

MIB = 1 << 20
RANDOM = np.random.default_rng(21)
USED = ("identity_fp32", "identity_int32", "identity_uint8", "identity_bytes")
FLAGS = (
    *("--model-control-mode=explicit", "--load-model=*"),
    *("--http-restricted-api=trace:admin=let-me-in", "--grpc-restricted-protocol=trace:admin=let-me-in"),
)
ABORTED = 200
LARGE = 50_000
"""Elements of a tensor of 200 kB: its body lies in an arena."""

_numbers = itertools.count()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models lie, and what they and the tests leave for each other."""
    return tmp_path_factory.mktemp("front-ends")


@pytest.fixture(scope="module")
def repository(root: Path) -> Path:
    models = (SIMPLE, PLAIN, CLASSES, VERSIONS_ALL, *(model for model in IDENTITIES if model.name in USED))
    repository = write_repository(root / "models", models, Flavour.ONNX)
    for name in ("adder", "repeater", "streams"):
        put(repository, name, name)
    put(repository, "gate", "system_gate", FOLDER=str(root))
    config = put(repository, "direct", MODEL.name) / "config.pbtxt"
    config.write_text(config.read_text() + CONFIGS["direct"])
    return repository


@pytest.fixture(scope="module")
def farm(repository: Path, root: Path) -> Iterator[FrontEndFarm]:
    """A server with front ends that no test may break."""
    with front_end_farm(repository, *FLAGS, folder=root / "run") as running:
        yield running


@pytest.fixture(scope="module")
def ordinary(repository: Path, root: Path) -> Iterator[GrpcFarm]:
    """The same without front ends."""
    with grpc_farm(repository, *FLAGS, folder=root / "ordinary") as running:
        yield running


@pytest.fixture(scope="module")
def http(farm: FrontEndFarm) -> Iterator[tuple[Any, ...]]:
    """A stock HTTP client of each front end."""
    with farm.http_clients() as clients:
        yield clients


@pytest.fixture(scope="module")
def rpc(farm: FrontEndFarm) -> Iterator[tuple[Any, ...]]:
    """A stock gRPC client of each front end."""
    with farm.grpc_clients() as clients:
        yield clients


@pytest.fixture
def raw(farm: FrontEndFarm) -> Iterator[tuple[Connection, ...]]:
    """A raw HTTP connection to each front end."""
    with farm.connections() as connections:
        yield connections


def _sum_inputs(of: Callable[..., Any], value: int, shape: tuple[int, ...] = (1, 16)) -> list[Any]:
    return [of(f"INPUT{at}", np.full(shape, value, np.int32), "INT32") for at in (0, 1)]


def _plain_body(value: int) -> dict[str, Any]:
    return {"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": [value] * 16} for at in (0, 1)]}


def _wait_noted(root: Path, line: str) -> None:
    path = root / "gate.notes"
    wait_until(lambda: path.exists() and line in path.read_text().splitlines(), f"the model to note: {line}")


def _wait_nothing_left(farm: FrontEndFarm) -> None:
    wait_until(lambda: not farm.under_way(), "nothing to be under way")
    wait_until(lambda: all(line.endswith(" 0") for line in farm.arenas()), "all shared memory to come back")


# inference


def test_who_serves(farm: FrontEndFarm) -> None:
    """As many front ends as asked for; none of the server's connections is its own."""
    assert len(farm.front_ends()) == COUNT
    with farm.connections() as connections, farm.channels():
        assert len(farm.serving(farm.server.http_port)) >= COUNT <= len(farm.serving(farm.port))
        for connection in connections:
            assert say(connection, "GET", "/v2/health/ready").status == 200


def test_stock_http_client(http: tuple[Any, ...]) -> None:
    for value, client in enumerate(http):
        for binary in (True, False):
            for compression in (None, "gzip", "deflate"):
                inputs = [http_tensor(f"INPUT{at}", np.full((1, 16), value, np.int32), "INT32", binary) for at in (0, 1)]
                outputs = [tritonclient.http.InferRequestedOutput("OUTPUT0", binary_data=binary)]
                how = {"request_compression_algorithm": compression, "response_compression_algorithm": compression}
                result = client.infer("simple", inputs, outputs=outputs, request_id="seven", **how)
                assert result.as_numpy("OUTPUT0").tolist() == [[2 * value] * 16] and result.get_response()["id"] == "seven"
        texts = VALUES["BYTES"]
        assert client.infer("identity_bytes", [http_tensor("INPUT0", texts, "BYTES")]).as_numpy("OUTPUT0").tolist() == texts.tolist()
        scores = http_tensor("SCORES", np.array([[0.1, 0.7, 0.15, 0.05]], np.float32), "FP32")
        result = client.infer("classes", [scores], outputs=[tritonclient.http.InferRequestedOutput("LABELLED", class_count=2)])
        assert result.as_numpy("LABELLED").tolist() == [[b"0.700000:1:dog", b"0.150000:2"]]


@pytest.mark.parametrize("byte_size", [MIB, 8 * MIB])
def test_large_bodies(byte_size: int, farm: FrontEndFarm, http: tuple[Any, ...], rpc: tuple[Any, ...]) -> None:
    array = RANDOM.integers(0, 256, byte_size, np.uint8)
    for client, of in (*((client, http_tensor) for client in http), *((client, tensor) for client in rpc)):
        result = client.infer("identity_uint8", [of("INPUT0", array, "UINT8")])
        assert np.array_equal(result.as_numpy("OUTPUT0"), array)
    del result
    _wait_nothing_left(farm)


def test_chunked_and_compressed_bodies(raw: tuple[Connection, ...]) -> None:
    """Of 1 MiB and of a few bytes."""
    for connection in raw:
        for count in (4, MIB // 4):
            array = RANDOM.random(count, np.float32)
            body, headers = binary_infer(array, "FP32")
            for coding in ("chunked", "gzip"):
                if coding == "gzip":
                    packed = gzip.compress(body, 1)
                    connection.send(
                        request_bytes("POST", "/v2/models/identity_fp32/infer", packed, {**headers, "Content-Encoding": "gzip"})
                    )
                else:
                    framing = {**headers, "Transfer-Encoding": "chunked"}
                    connection.send(request_bytes("POST", "/v2/models/identity_fp32/infer", b"", framing, length=False))
                    for at in range(0, len(body), 100_000):
                        part = body[at : at + 100_000]
                        connection.send(b"%x\r\n%b\r\n" % (len(part), part))
                    connection.send(b"0\r\n\r\n")
                reply = connection.receive()
                assert reply.status == 200, reply.body[:300]
                assert reply.body[int(reply.header("inference-header-content-length") or 0) :] == array.tobytes()


def test_pipelined_requests(raw: tuple[Connection, ...]) -> None:
    """Inferences and questions that the server process answers, in one write: the answers come in order."""
    infer = request_bytes("POST", "/v2/models/plain/infer", compact(_plain_body(2)))
    config = request_bytes("GET", "/v2/models/plain/config")
    for connection in raw:
        connection.send((infer + config) * 10)
        for _ in range(10):
            assert connection.receive().json["outputs"][0]["data"] == [4] * 16
            assert connection.receive().json["name"] == "plain"


def test_http2(farm: FrontEndFarm) -> None:
    array = RANDOM.integers(0, 256, MIB, np.uint8)
    body, headers = binary_infer(array, "UINT8")
    with farm.http2_clients() as clients:
        for client in clients:
            for value in range(3):
                answer = client.post("/v2/models/plain/infer", json=_plain_body(value))
                assert (answer.http_version, answer.json()["outputs"][0]["data"]) == ("HTTP/2", [2 * value] * 16)
            answer = client.post("/v2/models/identity_uint8/infer", content=body, headers=headers)
            assert answer.content[int(answer.headers["inference-header-content-length"]) :] == array.tobytes()
            assert client.get("/v2/models/plain").json()["name"] == "plain"
            assert client.post("/v2/models/nosuch/infer", json={}).status_code == 404


def test_stock_grpc_client(rpc: tuple[Any, ...]) -> None:
    for client in rpc:
        asked = [Answers() for _ in range(64)]
        for value, answers in enumerate(asked):
            client.async_infer("simple", _sum_inputs(tensor, value), answers, request_id=str(value))
        for value, answers in enumerate(asked):
            result = answers.result()
            assert result.get_response().id == str(value) and result.as_numpy("OUTPUT0").tolist() == [[2 * value] * 16]
        compressed = client.infer("simple", _sum_inputs(tensor, 4), compression_algorithm="gzip")
        assert compressed.as_numpy("OUTPUT0").tolist() == [[8] * 16]
        texts = VALUES["BYTES"]
        assert client.infer("identity_bytes", [tensor("INPUT0", texts, "BYTES")]).as_numpy("OUTPUT0").tolist() == texts.tolist()
        scores = tensor("SCORES", np.array([[0.1, 0.7, 0.15, 0.05]], np.float32), "FP32")
        result = client.infer("classes", [scores], outputs=[wanted("LABELLED", class_count=2)])
        assert result.as_numpy("LABELLED").tolist() == [[b"0.700000:1:dog", b"0.150000:2"]]
        assert client.get_model_config("repeater").config.model_transaction_policy.decoupled


def test_streams(rpc: tuple[Any, ...]) -> None:
    """Of both front ends at the same time: many responses of a decoupled model, plain ones, and an error between them."""
    answers = [Answers() for _ in rpc]
    for client, one in zip(rpc, answers, strict=True):
        client.start_stream(one)
        inputs = [tensor("TIMES", np.array([300], np.int32), "INT32"), tensor("FINAL_APART", np.array([False]), "BOOL")]
        client.async_stream_infer("repeater", inputs, request_id="many")
    for one in answers:
        got = [one.result() for _ in range(300)]
        assert [int(result.as_numpy("NUMBER")[0]) for result in got] == list(range(300))
        assert [is_final(result) for result in got] == [False] * 299 + [True]
    for client, one in zip(rpc, answers, strict=True):
        client.async_stream_infer("plain", _sum_inputs(tensor, 3, (16,)), request_id="first")
        client.async_stream_infer("nosuch", _sum_inputs(tensor, 3))
        client.async_stream_infer("plain", _sum_inputs(tensor, 4, (16,)), request_id="last")
        assert one.result().as_numpy("OUTPUT0").tolist() == [6] * 16
        assert one.error().message() == "Request for unknown model: 'nosuch' is not found"
        assert one.result().get_response().id == "last"
        client.async_stream_infer("repeater", inputs[:1], request_id="marked", enable_empty_final_response=True)
    for one in answers:
        got = [one.result() for _ in range(301)]
        assert is_final(got[-1]) and not got[-1].get_response().outputs
    for client, one in zip(rpc, answers, strict=True):
        client.stop_stream()
        assert one.empty


def test_asyncio_client(farm: FrontEndFarm) -> None:
    async def talk() -> None:
        clients = [aio_module.InferenceServerClient(farm.address, channel_args=CHANNEL) for _ in range(8)]

        async def one(value: int) -> None:
            result = await clients[value % 8].infer("plain", _sum_inputs(tensor, value, (16,)))
            assert result.as_numpy("OUTPUT0").tolist() == [2 * value] * 16

        await asyncio.gather(*(one(value) for value in range(64)))
        for client in clients:
            await client.close()

    asyncio.run(talk())


def test_generation(raw: tuple[Connection, ...]) -> None:
    for connection in raw:
        reply = say(connection, "POST", "/v2/models/adder/generate", {"X": [1, 2], "id": "g"})
        assert (reply.status, reply.json["SUM"]) == (200, [2, 3])
        reply = say(connection, "POST", "/v2/models/repeater/generate_stream", {"TIMES": 40})
        assert (reply.status, reply.header("content-type")) == (200, "text/event-stream; charset=utf-8")
        events = [json.loads(event.removeprefix("data: ")) for event in reply.body.decode().split("\n\n") if event]
        assert [event["NUMBER"] for event in events] == list(range(40))


def test_sequences_through_both(http: tuple[Any, ...], rpc: tuple[Any, ...]) -> None:
    """Each request of a sequence comes through another door; two sequences beside each other."""
    doors = [*((client, http_tensor) for client in http), *((client, tensor) for client in rpc)]
    sums: dict[int, list[int]] = {501: [], 502: []}
    for turn in range(9):
        for number, sequence in enumerate(sums):
            client, of = doors[(turn + number) % len(doors)]
            source = of("X", np.full((1, 1), turn * sequence, np.int32), "INT32")
            result = client.infer("direct", [source], sequence_id=sequence, sequence_start=turn == 0, sequence_end=turn == 8)
            sums[sequence].append(int(result.as_numpy("Y").flat[0]))
    for sequence, found in sums.items():
        assert found == list(itertools.accumulate(turn * sequence for turn in range(9)))
    for client, of in doors:
        source = of("X", np.ones((1, 1), np.int32), "INT32")
        assert "must specify the START flag" in refused(lambda c=client, s=source: c.infer("direct", [s], sequence_id=501))[1]  # type: ignore[misc]


# shared memory


def test_regions(http: tuple[Any, ...], rpc: tuple[Any, ...]) -> None:
    for registering, using in ((http[0], http[1]), (http[1], rpc[0]), (rpc[0], rpc[1]), (rpc[1], http[0])):
        module = tritonclient.http if using in http else tritonclient.grpc
        values = RANDOM.integers(-1000, 1000, 16, np.int32)
        texts = serialize_byte_tensor(VALUES["BYTES"]).item()
        with Object("front-ends", 8192) as memory:
            memory.write(0, values)
            memory.map[4096 : 4096 + len(texts)] = texts
            registering.register_system_shared_memory("both", memory.key, 8192)
            for model, datatype, shape, offset, byte_size in (
                ("identity_int32", "INT32", [16], 0, 64),
                ("identity_bytes", "BYTES", [4], 4096, len(texts)),
            ):
                source = module.InferInput("INPUT0", shape, datatype)
                source.set_shared_memory("both", byte_size, offset=offset)
                target = module.InferRequestedOutput("OUTPUT0")
                target.set_shared_memory("both", byte_size, offset=offset + 2000)
                using.infer(model, [source], outputs=[target])
                assert memory.map[offset + 2000 : offset + 2000 + byte_size] == memory.map[offset : offset + byte_size]
            for client in http:
                assert [(one["name"], one["key"]) for one in client.get_system_shared_memory_status()] == [("both", memory.key)]
            for client in rpc:
                assert set(client.get_system_shared_memory_status().regions) == {"both"}
            assert "already in manager" in refused(lambda u=using, k=memory.key: u.register_system_shared_memory("both", k, 64))[1]  # type: ignore[misc]
            using.unregister_system_shared_memory("both")
            source = module.InferInput("INPUT0", [16], "INT32")
            source.set_shared_memory("both", 64)
            assert "'both'" in refused(lambda u=using, s=source: u.infer("identity_int32", [s]))[1]  # type: ignore[misc]
            for client in http:
                assert client.get_system_shared_memory_status() == []
            for client in rpc:
                assert not client.get_system_shared_memory_status().regions


# models that come, change and go


def test_reloads_are_seen_at_once(farm: FrontEndFarm, repository: Path, raw: tuple[Connection, ...], http: Any, rpc: Any) -> None:
    """What one has loaded, the others have when it is told so: inputs by other names, of other shapes, other labels, other versions."""
    loaders = [*http, *rpc]
    for turn in range(20):
        source, count, labels = f"IN{turn}", 2 + turn % 3, f"label{turn}\n" * 5
        made = TestModel(
            *("changing", "identity"),
            (TestTensor(source, "FP32", (count,)),),
            (TestTensor("OUT", "FP32", (count,), label_filename="labels.txt"),),
            versions=(turn + 1,),
            files={"labels.txt": labels},
        )
        shutil.rmtree(repository / "changing", ignore_errors=True)
        write_model(repository, made, Flavour.ONNX)
        loaders[turn % len(loaders)].load_model("changing")
        data = [0.5] * count
        for connection in raw:
            body = {
                "inputs": [{"name": source, "shape": [count], "datatype": "FP32", "data": data}],
                "outputs": [{"name": "OUT", "parameters": {"classification": 1}}],
            }
            reply = say(connection, "POST", "/v2/models/changing/infer", body)
            assert reply.status == 200, (turn, reply.body)
            assert reply.json["model_version"] == str(turn + 1) and reply.json["outputs"][0]["data"] == [f"0.500000:0:label{turn}"]
            if turn:
                body["inputs"] = [{"name": f"IN{turn - 1}", "shape": [count], "datatype": "FP32", "data": data}]
                reply = say(connection, "POST", "/v2/models/changing/infer", body)
                assert reply.status == 400 and f"IN{turn - 1}" in reply.error, (turn, reply.body)
                reply = say(connection, "POST", f"/v2/models/changing/versions/{turn}/infer", body)
                assert (reply.status, reply.error) == (503, f"Request for unknown model: 'changing' version {turn} is not at ready state")
        for client in rpc:
            result = client.infer("changing", [tensor(source, np.full(count, 0.5, np.float32), "FP32")])
            assert result.as_numpy("OUT").tolist() == data and result.get_response().model_version == str(turn + 1)
    for turn in range(4):
        loaders[turn].unload_model("changing")
        unknown = "Request for unknown model: 'changing' has no available versions"
        for connection in raw:
            reply = say(connection, "POST", "/v2/models/changing/infer", body)
            assert (reply.status, reply.error) == (404, unknown)
        for client in rpc:
            assert refused(lambda c=client: c.infer("changing", []))[1] == unknown  # type: ignore[misc]
        loaders[3 - turn].load_model("changing")
    loaders[0].unload_model("changing")


def test_reloads_under_load(farm: FrontEndFarm, repository: Path, raw: tuple[Connection, ...]) -> None:
    """Clients of both ask without a pause: each answer is wholly of one load, and of none before the last that was over."""
    write_generation(repository, "reloaded", 1, "onnxruntime")
    assert say(raw[0], "POST", "/v2/repository/models/reloaded/load").status == 200
    askers = Askers(farm.server.http_port, "reloaded", count=8)
    try:
        for number in range(2, 22):
            write_generation(repository, "reloaded", number, "onnxruntime")
            askers.most = number
            assert say(raw[number % COUNT], "POST", "/v2/repository/models/reloaded/load").status == 200
            askers.least = number
            wait_until(lambda number=number: askers.answered[number] > 8 or askers.problems, f"answers of load {number}")  # type: ignore[misc]
    finally:
        askers.stop()
    assert say(raw[0], "POST", "/v2/repository/models/reloaded/unload").status == 200


# what the server says of itself


def test_statistics_are_sums(farm: FrontEndFarm, raw: tuple[Connection, ...], rpc: tuple[Any, ...]) -> None:
    def shown() -> list[Any]:
        found = [say(connection, "GET", "/v2/models/versions_all/stats").json["model_stats"] for connection in raw]
        assert all(one == found[0] for one in found)
        by_rpc = [client.get_inference_statistics("versions_all", as_json=True) for client in rpc]
        assert all(one == by_rpc[0] for one in by_rpc)
        return list(found[0])

    def succeeded(stats: list[Any]) -> dict[str, int]:
        return {one["version"]: one["inference_stats"]["success"]["count"] for one in stats}

    def measured() -> float:
        return farm.metric("nv_inference_request_success", model="versions_all", version="5")

    before, metric_before = succeeded(shown()), measured()
    body = {"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "INT32", "data": [1]}]}
    for count, connection in enumerate(raw, 2):
        for _ in range(count):
            assert say(connection, "POST", "/v2/models/versions_all/infer", body).status == 200
    for client in rpc:
        client.infer("versions_all", [tensor("INPUT0", np.array([1], np.int32), "INT32")])
        client.infer("versions_all", [tensor("INPUT0", np.array([1], np.int32), "INT32")], "2")
        client.infer("versions_all", [tensor("INPUT0", np.array([1], np.int32), "INT32")], "2")
    after = succeeded(shown())
    assert (after["5"] - before["5"], after["2"] - before["2"]) == (2 + 3 + 2, 4)
    assert measured() - metric_before == 2 + 3 + 2
    unary = say(raw[0], "POST", "/v2/models/versions_all/infer", {"inputs": []})
    assert unary.status == 400 and succeeded(shown()) == after


def test_log_settings(farm: FrontEndFarm, raw: tuple[Connection, ...], rpc: tuple[Any, ...]) -> None:
    kept = say(raw[0], "GET", "/v2/logging").json
    try:
        assert say(raw[0], "POST", "/v2/logging", {"log_verbose_level": 3}).status == 200
        assert say(raw[1], "GET", "/v2/logging").json == {**kept, "log_verbose_level": 3}
        rpc[1].update_log_settings({"log_warning": False})
        assert not rpc[0].get_log_settings().settings["log_warning"].bool_param
        assert say(raw[0], "GET", "/v2/logging").json == {**kept, "log_verbose_level": 3, "log_warning": False}
    finally:
        say(raw[1], "POST", "/v2/logging", {"log_verbose_level": 0, "log_warning": True})
    assert say(raw[0], "GET", "/v2/logging").json == kept


# refusals


@pytest.fixture(scope="module")
def regions(farm: FrontEndFarm, ordinary: GrpcFarm) -> Iterator[None]:
    """A small region that both servers know."""
    with Object("front-end-refusals", 64) as memory:
        for one in (farm, ordinary):
            with one.client() as client:
                client.register_system_shared_memory("small", memory.key, 64)
        yield
        for one in (farm, ordinary):
            with one.client() as client:
                client.unregister_system_shared_memory("small")


@pytest.mark.usefixtures("regions")
def test_http_is_answered_alike(farm: FrontEndFarm, ordinary: GrpcFarm) -> None:
    """To the byte, but for the date."""
    wrong = []
    for name, content in REQUESTS.items():
        expected = sent(ordinary.server.http_port, content)
        # Both front ends come to see it: which of them does a connection's hash says.
        for _ in range(3):
            got = sent(farm.server.http_port, content)
            if got != expected:
                wrong.append(f"{name}\n  ordinary:  {expected}\n  front end: {got}")
                break
    assert not wrong, f"{len(wrong)} of {len(REQUESTS)}:\n" + "\n".join(wrong)


@pytest.mark.usefixtures("regions")
def test_grpc_is_answered_alike(farm: FrontEndFarm, ordinary: GrpcFarm) -> None:
    wrong = []
    with grpc.insecure_channel(ordinary.address, options=CHANNEL) as channel, farm.channels() as channels:
        for name, (method, message, metadata) in CALLS.items():
            expected: Seen | list[Seen] = called(channel, method, message, metadata)
            for one in channels:
                if (got := called(one, method, message, metadata)) != expected:
                    wrong.append(f"{name}\n  ordinary:  {expected}\n  front end: {got}")
        for name, (messages, metadata) in GRPC_STREAMS.items():
            expected = streamed(channel, messages, metadata)
            for one in channels:
                if (all_got := streamed(one, messages, metadata)) != expected:
                    wrong.append(f"stream {name}\n  ordinary:  {expected}\n  front end: {all_got}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)


# clients that go


def test_clients_that_go_away(farm: FrontEndFarm, root: Path) -> None:
    """Over HTTP and over gRPC: the model that runs hears of it, what waits leaves the queue."""
    with farm.connections() as connections, farm.grpc_clients() as clients:
        deaf = f"deaf-{next(_numbers)}"
        answers, cancelled = Answers(), [Answers() for _ in clients]
        inputs = [tensor("X", np.full(4, 1.5, np.float32), "FP32")]
        clients[0].async_infer("gate", inputs, answers, request_id=deaf)
        _wait_noted(root, f"{deaf} begun")
        body, headers = binary_infer(np.full(4, 1.5, np.float32), "FP32", "held-gone", "X")
        for connection in connections:
            connection.send(request_bytes("POST", "/v2/models/gate/infer", body, headers))
        contexts = [client.async_infer("gate", inputs, one, request_id="held-gone") for client, one in zip(clients, cancelled, strict=True)]
        flight = 1 + 2 * COUNT
        wait_until(lambda: farm.metric("tensorfarm_requests_in_flight", model="gate") == flight, "all to be in flight")
        connections[0].abort()
        connections[1].close()
        for context in contexts:
            context.cancel()
        wait_until(lambda: farm.metric("tensorfarm_requests_in_flight", model="gate") == 1, "only what runs to be left")
        assert farm.metric("nv_inference_pending_request_count", model="gate") == 0
        (root / deaf).touch()
        assert answers.result().get_response().id == deaf
        assert [one.error().status() for one in cancelled] == ["StatusCode.CANCELLED"] * COUNT
    with farm.connections() as connections:
        for connection, go in zip(connections, (Connection.abort, Connection.close), strict=True):
            name = f"held-{next(_numbers)}"
            body, headers = binary_infer(np.full(4, 1.5, np.float32), "FP32", name, "X")
            connection.send(request_bytes("POST", "/v2/models/gate/infer", body, headers))
            _wait_noted(root, f"{name} begun")
            go(connection)
            _wait_noted(root, f"{name} ended, given up")
    _wait_nothing_left(farm)


def test_aborted_posts(farm: FrontEndFarm, root: Path) -> None:
    """Small and large, whole and in part: nothing of them stays anywhere."""
    before = farm.settled_descriptors()
    deaf = f"deaf-{next(_numbers)}"
    body, headers = binary_infer(np.full(4, 1.5, np.float32), "FP32", deaf, "X")
    with Connection(farm.server.http_port) as running:
        running.send(request_bytes("POST", "/v2/models/gate/infer", body, headers))
        _wait_noted(root, f"{deaf} begun")
        open_ones = []
        for number in range(ABORTED):
            body, headers = binary_infer(np.zeros((4, LARGE)[number % 2], np.float32), "FP32", "never", "X")
            content = request_bytes("POST", "/v2/models/gate/infer", body, headers)
            connection = Connection(farm.server.http_port)
            connection.send(content if number % 5 else content[: len(content) // 2])
            open_ones.append(connection)
            if len(open_ones) == 20:
                for one in open_ones:
                    one.abort()
                open_ones.clear()
        wait_until(lambda: farm.metric("tensorfarm_requests_in_flight", model="gate") == 1, "only what runs to be left")
        (root / deaf).touch()
        assert running.receive().status == 200
    _wait_nothing_left(farm)
    assert farm.metric("nv_inference_pending_request_count", model="gate") == 0
    wait_until(lambda: farm.all_descriptors() == before, "the descriptors to be as many as before")
    assert "never begun" not in (root / "gate.notes").read_text()


def test_a_client_that_does_not_read(farm: FrontEndFarm) -> None:
    """Its replies wait in the front end and harm nobody; they go with it."""
    array = np.zeros(8 * MIB, np.uint8)
    body, headers = binary_infer(array, "UINT8")
    answered = {"model": "identity_uint8", "version": "1"}
    before = farm.metric("nv_inference_request_success", **answered)
    with farm.connections() as connections:
        for connection in connections:
            connection.send(request_bytes("POST", "/v2/models/identity_uint8/infer", body, headers))
        wait_until(lambda: farm.metric("nv_inference_request_success", **answered) == before + COUNT, "the model to have answered")
        with farm.connections() as others:
            for other in others:
                assert say(other, "POST", "/v2/models/plain/infer", _plain_body(1)).status == 200
        connections[0].abort()
        reply = connections[1].receive()
        assert reply.body[int(reply.header("inference-header-content-length") or 0) :] == array.tobytes()
    _wait_nothing_left(farm)


def test_a_channel_that_goes(farm: FrontEndFarm, root: Path) -> None:
    """With a stream, and a model that runs for it."""
    with farm.channels() as channels:
        for channel in channels:
            name = f"held-{next(_numbers)}"
            source = {"name": "X", "datatype": "FP32", "shape": [4]}
            message = service_pb2.ModelInferRequest(model_name="gate", id=name, inputs=[source], raw_input_contents=[bytes(16)])
            replies = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([message]), timeout=PATIENCE_S)
            _wait_noted(root, f"{name} begun")
            channel.close()
            assert replies.code() is grpc.StatusCode.CANCELLED
            _wait_noted(root, f"{name} ended, given up")
    _wait_nothing_left(farm)

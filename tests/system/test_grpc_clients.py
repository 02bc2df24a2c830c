"""The stock gRPC clients, unmodified, against a running server; answers against ONNX Runtime in this process."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as client_module
import tritonclient.grpc.aio as aio_module
import tritonclient.http
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.grpc.auth import BasicAuth
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from ..model_repository import CLASSES, IDENTITIES, PLAIN, SIMPLE, VERSIONS_ALL, Flavour, write_repository
from ..servers import wait_until
from .grpc_farm import PATIENCE_S, Answers, GrpcFarm, grpc_farm, is_final, tensor, text_tensor, wanted
from .test_clients import VALUES, _session
from .test_python_models import put
from .test_regions import Object
from .test_sequences import CONFIGS, MODEL

RANDOM = np.random.default_rng(12)
SERVICE = "inference.GRPCInferenceService"
SEQUENCES = ("direct", "streaming")

_numbers = itertools.count()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models lie, and what they and the tests leave for each other."""
    return tmp_path_factory.mktemp("grpc-clients")


@pytest.fixture(scope="module")
def farm(root: Path) -> Iterator[GrpcFarm]:
    """A server with models of all kinds, which forwards some metadata to them."""
    repository = write_repository(root / "models", (SIMPLE, PLAIN, *IDENTITIES, CLASSES, VERSIONS_ALL), Flavour.ONNX)
    for name in ("adder", "repeater", "streams"):
        put(repository, name, name)
    for name, model in (("gate", "system_gate"), ("streamer", "system_gate")):
        config = put(repository, name, model, FOLDER=str(root)) / "config.pbtxt"
        if name == "streamer":
            config.write_text(config.read_text() + "model_transaction_policy { decoupled: true }\n")
    for name in SEQUENCES:
        config = put(repository, name, MODEL.name) / "config.pbtxt"
        config.write_text(config.read_text() + CONFIGS[name])
    flags = ("--model-control-mode=explicit", "--load-model=*", "--grpc-header-forward-pattern=(x-.*|authorization)")
    with grpc_farm(repository, *flags, folder=root / "run") as running:
        yield running


@pytest.fixture
def client(farm: GrpcFarm) -> Iterator[Any]:
    """The stock synchronous client."""
    with farm.client() as made:
        yield made


@pytest.fixture
def stub(farm: GrpcFarm) -> Iterator[Any]:
    """The stubs that the client is made of."""
    with grpc.insecure_channel(farm.address) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def _sum_inputs(value: int, shape: tuple[int, ...] = (1, 16)) -> list[Any]:
    array = np.full(shape, value, np.int32)
    return [tensor("INPUT0", array, "INT32"), tensor("INPUT1", array, "INT32")]


def _number(name: str, value: int) -> Any:
    return tensor(name, np.array([value], np.int32), "INT32")


def _gate_inputs() -> list[Any]:
    return [tensor("X", np.full(4, 1.5, np.float32), "FP32")]


def _repeat(client: Any, times: int, request_id: str = "", apart: bool = True, empty_final: bool = False) -> None:
    inputs = [_number("TIMES", times), tensor("FINAL_APART", np.array([apart]), "BOOL")]
    client.async_stream_infer("repeater", inputs, request_id=request_id, enable_empty_final_response=empty_final)


def _refused(call: Callable[[], object]) -> tuple[str, str]:
    """The status and text of the error that a call ends with."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def _notes(root: Path, model: str) -> list[str]:
    path = root / f"{model}.notes"
    return path.read_text().splitlines() if path.exists() else []


def _wait_noted(root: Path, model: str, line: str) -> None:
    wait_until(lambda: line in _notes(root, model), f"{model} to note: {line}")


# calls without tensors


def test_calls_that_only_read(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("simple") and client.is_model_ready("simple", "1")
    assert not client.is_model_ready("nosuch") and not client.is_model_ready("simple", "7")
    assert client.get_server_metadata().name == "triton"
    assert client.get_server_metadata(as_json=True)["name"] == "triton"
    metadata = client.get_model_metadata("simple")
    assert [one.name for one in metadata.inputs] == ["INPUT0", "INPUT1"] and list(metadata.outputs[0].shape) == [-1, 16]
    assert list(client.get_model_metadata("versions_all").versions) == ["2", "5"]
    config = client.get_model_config("repeater").config
    assert config.backend == "python" and config.model_transaction_policy.decoupled
    assert client.get_model_config("simple", as_json=True)["config"]["max_batch_size"] == 8
    index = {(entry.name, entry.version): entry.state for entry in client.get_model_repository_index().models}
    assert index["simple", "1"] == index["versions_all", "5"] == "READY"
    assert client.get_cuda_shared_memory_status(as_json=True) == client.get_system_shared_memory_status(as_json=True) == {}


def test_statistics_count_what_came_by_grpc(client: Any) -> None:
    def counted() -> int:
        (entry,) = client.get_inference_statistics("plain").model_stats
        return int(entry.inference_stats.success.count)

    before = counted()
    for _ in range(3):
        client.infer("plain", _sum_inputs(1, (16,)))
    assert counted() - before == 3
    assert {entry.name for entry in client.get_inference_statistics().model_stats} >= {"simple", "plain", "repeater"}


def test_log_settings(client: Any) -> None:
    kept = client.get_log_settings(as_json=True)["settings"]
    assert set(kept) == {"log_file", "log_info", "log_warning", "log_error", "log_verbose_level", "log_format"}
    try:
        changed = client.update_log_settings({"log_info": False, "log_verbose_level": 2}, as_json=True)["settings"]
        assert changed["log_verbose_level"] == {"uint32_param": 2}
        assert not client.get_log_settings().settings["log_info"].bool_param
    finally:
        client.update_log_settings({"log_info": True, "log_verbose_level": 0})
    assert client.get_log_settings(as_json=True)["settings"] == kept
    assert _refused(lambda: client.update_log_settings({"log_file": "x"}))[0] == "UNIMPLEMENTED"


def test_model_control(client: Any) -> None:
    client.unload_model("versions_all")
    wait_until(lambda: not client.is_model_ready("versions_all"), "the model to be gone")
    # as the original: who names a version is told more
    unloaded = "Request for unknown model: 'versions_all' has no available versions"
    assert _refused(lambda: client.get_model_metadata("versions_all")) == ("NOT_FOUND", unloaded)
    assert _refused(lambda: client.get_model_metadata("versions_all", "5"))[0] == "UNAVAILABLE"
    config = client.get_model_config("identity_int32", as_json=True)["config"]
    config |= {"name": "versions_all", "version_policy": {"specific": {"versions": [2]}}}
    client.load_model("versions_all", config=json.dumps(config))
    assert list(client.get_model_metadata("versions_all").versions) == ["2"]
    client.unload_model("versions_all")
    wait_until(lambda: not client.is_model_ready("versions_all"), "the model to be gone")
    client.load_model("versions_all")
    assert list(client.get_model_metadata("versions_all").versions) == ["2", "5"]


def test_a_model_from_the_client_s_files(client: Any, root: Path) -> None:
    """Its file comes in the request that loads it."""
    folder = root / "models" / "plain"
    config = client.get_model_config("plain", as_json=True)["config"] | {"name": "sent"}
    content = (folder / "1" / "model.onnx").read_bytes()
    client.load_model("sent", config=json.dumps(config), files={"file:1/model.onnx": content})
    assert client.infer("sent", _sum_inputs(4, (16,))).as_numpy("OUTPUT0").tolist() == [8] * 16
    client.unload_model("sent", unload_dependents=True)
    wait_until(lambda: not client.is_model_ready("sent"), "the model to be gone")


def test_refusals(client: Any) -> None:
    unknown = ("NOT_FOUND", "Request for unknown model: 'nosuch' is not found")
    assert _refused(lambda: client.get_model_metadata("nosuch")) == unknown
    assert _refused(lambda: client.get_model_config("nosuch")) == unknown
    assert _refused(lambda: client.infer("nosuch", _sum_inputs(1))) == unknown
    assert _refused(lambda: client.is_model_ready("simple", "x"))[0] == "INVALID_ARGUMENT"
    assert _refused(lambda: client.get_inference_statistics("nosuch")) == ("INVALID_ARGUMENT", "requested model 'nosuch' is not available")
    status, text = _refused(lambda: client.load_model("nosuch"))
    assert status == "INTERNAL" and text.startswith("failed to load 'nosuch', failed to poll from model repository")
    assert _refused(lambda: client.get_trace_settings())[0] == "UNAVAILABLE"
    assert _refused(lambda: client.update_trace_settings(settings={"trace_level": ["OFF"]}))[0] == "UNAVAILABLE"
    gone = ("NOT_FOUND", "Unable to find system shared memory region: 'nosuch'")
    assert _refused(lambda: client.get_system_shared_memory_status("nosuch")) == gone
    assert _refused(lambda: client.register_system_shared_memory("nosuch", "/tensorfarm-nosuch", 64))[0] == "INTERNAL"
    assert _refused(lambda: client.register_cuda_shared_memory("nosuch", b"AAAA", 0, 64))[0] == "INVALID_ARGUMENT"
    client.unregister_system_shared_memory("nosuch")
    client.unregister_cuda_shared_memory("nosuch")


# unary inference


@pytest.mark.parametrize("datatype", VALUES)
def test_every_datatype(datatype: str, client: Any) -> None:
    array = VALUES[datatype]
    result = client.infer(f"identity_{datatype.lower()}", [tensor("INPUT0", array, datatype)], request_id="seven")
    got = result.as_numpy("OUTPUT0")
    assert (result.get_response().id, result.get_response().model_version) == ("seven", "1")
    assert result.get_output("OUTPUT0").datatype == datatype
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got, array)


def test_bf16(client: Any) -> None:
    array = np.array([1.0, -2.0, 0.5, np.inf], ml_dtypes.bfloat16)
    result = client.infer("identity_bf16", [tensor("INPUT0", array, "BF16")])
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), array)


def test_an_empty_tensor(client: Any) -> None:
    for datatype, array in (("FP32", np.zeros(0, np.float32)), ("BYTES", np.zeros(0, np.object_))):
        result = client.infer(f"identity_{datatype.lower()}", [tensor("INPUT0", array, datatype)])
        assert result.as_numpy("OUTPUT0").shape == (0,)


def test_typed_contents(stub: Any) -> None:
    """The one form of tensors that the stock client does not send."""
    cases: tuple[tuple[str, dict[str, list[Any]], bytes], ...] = (
        ("INT8", {"int_contents": [1, -1]}, b"\x01\xff"),
        ("FP32", {"fp32_contents": [1.0]}, b"\0\0\x80?"),
        ("BYTES", {"bytes_contents": [b"ab", b""]}, b"\2\0\0\0ab\0\0\0\0"),
        ("BOOL", {"bool_contents": [True, False]}, b"\1\0"),
    )
    for datatype, given, expected in cases:
        source = {"name": "INPUT0", "datatype": datatype, "shape": [len(next(iter(given.values())))], "contents": given}
        reply = stub.ModelInfer(service_pb2.ModelInferRequest(model_name=f"identity_{datatype.lower()}", inputs=[source]))
        assert list(reply.raw_output_contents) == [expected]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_add_sub_equals_onnxruntime(batch: int, compression: str | None, client: Any, root: Path) -> None:
    first, second = RANDOM.integers(-1000, 1000, (2, batch, 16), np.int32)
    inputs = [tensor("INPUT0", first, "INT32"), tensor("INPUT1", second, "INT32")]
    result = client.infer("simple", inputs, compression_algorithm=compression)
    expected = _session(root / "models", "simple").run(None, {"INPUT0": first, "INPUT1": second})
    for name, array in zip(("OUTPUT0", "OUTPUT1"), expected, strict=True):
        np.testing.assert_array_equal(result.as_numpy(name), array)
    only = client.infer("simple", inputs, outputs=[wanted("OUTPUT1")], compression_algorithm=compression)
    assert only.as_numpy("OUTPUT0") is None
    np.testing.assert_array_equal(only.as_numpy("OUTPUT1"), expected[1])


def test_classes(client: Any) -> None:
    scores = np.array([[0.1, 0.7, 0.15, 0.05]], np.float32)
    outputs = [wanted("LABELLED", class_count=2), wanted("BARE", class_count=1)]
    result = client.infer("classes", [tensor("SCORES", scores, "FP32")], outputs=outputs)
    assert result.as_numpy("LABELLED").tolist() == [[b"0.700000:1:dog", b"0.150000:2"]]
    assert result.as_numpy("BARE").tolist() == [[b"0.700000:1"]]


def test_a_version_by_number(client: Any) -> None:
    for version, added in (("", 5), ("5", 5), ("2", 2)):
        result = client.infer("versions_all", [_number("INPUT0", 10)], version)
        assert result.as_numpy("OUTPUT0").tolist() == [10 + added]
        assert result.get_response().model_version == version or "5"
    refused = ("NOT_FOUND", "Request for unknown model: 'versions_all' version 3 is not found")
    assert _refused(lambda: client.infer("versions_all", [_number("INPUT0", 10)], "3")) == refused


def _said(result: Any) -> list[Any]:
    return list(json.loads(result.as_numpy("SAID")[0]))


def test_what_a_model_is_told(client: Any) -> None:
    """Id, time limit, parameters of every type, and the metadata that the server forwards."""
    parameters = {"text": "é", "whole": 7, "half": 0.5, "so": True}
    headers = {"x-tenant": "red", "y-tenant": "blue"}
    result = client.infer(
        *("adder", [_number("X", 1)]),
        outputs=[wanted("SAID")],
        request_id="r1",
        timeout=9_000_000,
        priority=1,
        parameters=parameters,
        headers=headers,
    )
    request_id, _, flags, timeout, shown, names = _said(result)
    assert (request_id, flags, timeout, names) == ("r1", 0, 9_000_000, ["SAID"])
    assert json.loads(shown) == parameters | {"x-tenant": "red"}


def test_the_client_s_plugin(client: Any) -> None:
    """What it puts into the metadata of each call comes to the model."""
    client.register_plugin(BasicAuth("user", "secret"))
    assert json.loads(_said(client.infer("adder", [_number("X", 1)]))[4]) == {"authorization": "Basic dXNlcjpzZWNyZXQ="}


def test_errors_of_requests_and_models(client: Any) -> None:
    assert _refused(lambda: client.infer("adder", [_number("X", 404)])) == ("INTERNAL", "nothing here")
    status, text = _refused(lambda: client.infer("adder", [_number("X", 500)]))
    assert status == "INTERNAL" and "ValueError: as asked" in text
    refused = ("INVALID_ARGUMENT", "unexpected inference output 'NOSUCH' for model 'adder'")
    assert _refused(lambda: client.infer("adder", [_number("X", 1)], outputs=[wanted("NOSUCH")])) == refused
    assert _refused(lambda: client.infer("simple", _sum_inputs(1, (1, 8)), request_id="q"))[1].startswith("[request id: q] ")
    decoupled = ("UNIMPLEMENTED", "ModelInfer RPC doesn't support models with decoupled transaction policy")
    assert _refused(lambda: client.infer("repeater", [_number("TIMES", 1)])) == decoupled
    assert client.infer("adder", [_number("X", 1)]).as_numpy("SUM").tolist() == [2]


def test_many_requests_at_once(client: Any) -> None:
    """async_infer, each answer for its own request, exactly one."""
    asked = [Answers() for _ in range(64)]
    for value, answers in enumerate(asked):
        client.async_infer("simple", _sum_inputs(value), answers, request_id=str(value))
    for value, answers in enumerate(asked):
        result = answers.result()
        assert result.get_response().id == str(value) and result.as_numpy("OUTPUT0").tolist() == [[2 * value] * 16]
    refused = Answers()
    client.async_infer("nosuch", _sum_inputs(1), refused)
    assert refused.error().message() == "Request for unknown model: 'nosuch' is not found"
    assert all(answers.empty for answers in asked)


def test_one_client_in_many_threads(client: Any) -> None:
    wrong: list[object] = []

    def talk(number: int) -> None:
        for turn in range(20):
            got = client.infer("simple", _sum_inputs(100 * number + turn)).as_numpy("OUTPUT0")
            if got.tolist() != [[2 * (100 * number + turn)] * 16]:
                wrong.append(got)

    threads = [threading.Thread(target=talk, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not wrong


def test_cancel_and_client_timeout(client: Any, root: Path) -> None:
    """The client is told at once, and the model while it runs."""
    cancelled, answers = f"held-{next(_numbers)}", Answers()
    context = client.async_infer("gate", _gate_inputs(), answers, request_id=cancelled)
    _wait_noted(root, "gate", f"{cancelled} begun")
    context.cancel()
    assert answers.error().status() == "StatusCode.CANCELLED"
    _wait_noted(root, "gate", f"{cancelled} ended, given up")
    late = f"held-{next(_numbers)}"
    refused = _refused(lambda: client.infer("gate", _gate_inputs(), request_id=late, client_timeout=0.2))
    assert refused == ("DEADLINE_EXCEEDED", "Deadline Exceeded")
    _wait_noted(root, "gate", f"{late} ended, given up")
    assert client.infer("gate", _gate_inputs(), client_timeout=PATIENCE_S).as_numpy("Y").tolist() == [1.5] * 4
    assert client.is_server_live(client_timeout=PATIENCE_S) and answers.empty


# streams


def test_a_stream_of_a_decoupled_model(client: Any) -> None:
    """Any number of responses, the last one marked; a mark of its own where it is asked for."""
    answers = Answers()
    client.start_stream(answers)
    _repeat(client, 3, "apart")
    got = [answers.result() for _ in range(3)]
    assert [int(one.as_numpy("NUMBER")[0]) for one in got] == [0, 1, 2] and not any(map(is_final, got))
    _repeat(client, 2, "together", apart=False)
    assert [is_final(answers.result()) for _ in range(2)] == [False, True]
    _repeat(client, 0, "none")
    _repeat(client, 1, "empty final", empty_final=True)
    response = answers.result()
    assert response.get_response().id == "empty final" and not is_final(response)
    last = answers.result()
    assert is_final(last) and last.get_response().id == "empty final" and not last.get_response().outputs
    _repeat(client, 0, "only that", empty_final=True)
    only = answers.result()
    assert is_final(only) and only.get_response().id == "only that"
    client.stop_stream()
    assert answers.empty


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_many_responses_arrive_in_order(client: Any, compression: str | None) -> None:
    answers = Answers()
    client.start_stream(answers, compression_algorithm=compression)
    _repeat(client, 500, "many", apart=False)
    got = [answers.result() for _ in range(500)]
    assert [int(one.as_numpy("NUMBER")[0]) for one in got] == list(range(500))
    assert [is_final(one) for one in got] == [False] * 499 + [True]
    client.stop_stream()


def test_a_stream_with_models_of_all_kinds(client: Any, root: Path) -> None:
    """Answers of plain models come in the order of their requests, errors among them; a slow one holds those behind it, not a decoupled one."""
    answers, slow = Answers(), f"held-{next(_numbers)}"
    client.start_stream(answers)
    client.async_stream_infer("gate", _gate_inputs(), request_id=slow)
    client.async_stream_infer("simple", _sum_inputs(3), request_id="behind")
    client.async_stream_infer("nosuch", _sum_inputs(3), request_id="error")
    _repeat(client, 1, "beside", apart=False)
    assert answers.result().get_response().id == "beside"
    assert answers.empty
    (root / slow).touch()
    first, second = answers.result(), answers.result()
    assert [one.get_response().id for one in (first, second)] == [slow, "behind"] and is_final(first) and is_final(second)
    assert second.as_numpy("OUTPUT0").tolist() == [[6] * 16]
    assert answers.error().message() == "Request for unknown model: 'nosuch' is not found"
    client.async_stream_infer("adder", [_number("X", 404)], request_id="model's error")
    assert answers.error().message() == "nothing here"
    client.async_stream_infer("adder", [_number("X", 1)], request_id="after it")
    assert answers.result().as_numpy("SUM").tolist() == [2]
    client.stop_stream()
    assert answers.empty


def test_errors_between_responses(client: Any) -> None:
    answers = Answers()
    client.start_stream(answers)
    client.async_stream_infer("streams", [text_tensor("VERB", "error_later")])
    assert answers.result().as_numpy("SAID").tolist() == [b"good"]
    assert answers.error().message() == "later"
    assert answers.result().as_numpy("SAID").tolist() == [b"good again"]
    assert answers.error().message() == "last"
    client.stop_stream()
    assert answers.empty


def test_streams_that_end_by_an_error(client: Any) -> None:
    """As the client's metadata asks: what the model says ends it, by its status; what is wrong with a request does not."""
    answers = Answers()
    client.start_stream(answers, headers={"triton_grpc_error": "true"})
    client.async_stream_infer("nosuch", _sum_inputs(3))
    assert answers.error().message() == "Request for unknown model: 'nosuch' is not found"
    client.async_stream_infer("streams", [text_tensor("VERB", "error_later")])
    assert answers.result().as_numpy("SAID").tolist() == [b"good"]
    error = answers.error()
    assert (error.status(), error.message()) == ("StatusCode.NOT_FOUND", "later")
    client.stop_stream()
    assert answers.empty


def test_one_stream_at_a_time(client: Any) -> None:
    answers = Answers()
    client.start_stream(answers)
    with pytest.raises(InferenceServerException, match="cannot start another stream"):
        client.start_stream(answers)
    client.stop_stream()
    client.start_stream(answers)
    _repeat(client, 1, apart=False)
    client.stop_stream()
    assert is_final(answers.result()) and answers.empty


def test_the_end_of_the_client_s_half_waits_for_answers(client: Any, root: Path) -> None:
    answers, name = Answers(), f"held-{next(_numbers)}"
    client.start_stream(answers)
    client.async_stream_infer("gate", _gate_inputs(), request_id=name)
    _repeat(client, 20, apart=False)
    stopping = threading.Thread(target=client.stop_stream, daemon=True)
    stopping.start()
    assert [is_final(answers.result()) for _ in range(20)] == [False] * 19 + [True]
    assert stopping.is_alive()
    (root / name).touch()
    stopping.join(PATIENCE_S)
    assert not stopping.is_alive() and answers.result().get_response().id == name and answers.empty


@pytest.mark.parametrize("model", ["gate", "streamer"])
@pytest.mark.parametrize("by", ["cancel", "deadline"])
def test_streams_that_are_given_up(client: Any, root: Path, by: str, model: str) -> None:
    """The model hears of it, and the client has one error, its last."""
    answers, name = Answers(), f"{'talks' if model == 'streamer' else 'held'}-{next(_numbers)}"
    client.start_stream(answers, stream_timeout=0.5 if by == "deadline" else None)
    client.async_stream_infer(model, _gate_inputs(), request_id=name)
    _wait_noted(root, model, f"{name} begun")
    if by == "cancel":
        client.stop_stream(cancel_requests=True)
    _wait_noted(root, model, f"{name} ended, given up")
    while (answer := answers.next())[1] is None:
        pass
    assert answer[1].status() == f"StatusCode.{'CANCELLED' if by == 'cancel' else 'DEADLINE_EXCEEDED'}"
    client.stop_stream()
    assert answers.empty


def test_sequences(client: Any) -> None:
    """Unary, by number and by text; on one stream interleaved, with an error between them that harms neither."""
    correlation = next(_numbers) + 1
    for sequence in (1000 + correlation, f"text-{correlation}"):
        if isinstance(sequence, str):
            # its model asks for a number
            status, _ = _refused(lambda: _step(client.infer, "direct", 1, "text", True))
            assert status == "INVALID_ARGUMENT"
            continue
        sums = [_sum_of(_step(client.infer, "direct", value, sequence, value == 1, value == 3)) for value in (1, 2, 3)]
        assert sums == [1, 3, 6]
    answers = Answers()
    client.start_stream(answers)
    for value in (1, 2, 3):
        for sequence in (2000, 3000):
            _step(client.async_stream_infer, "direct", value * sequence, sequence, value == 1, value == 3)
        if value == 2:
            _step(client.async_stream_infer, "direct", 1, 4000)
    got = [answers.next() for _ in range(7)]
    (error,) = [error for _, error in got if error is not None]
    assert "sequence 4000 to model 'direct' must specify the START flag" in error.message()
    assert got.index((None, error)) == 4
    assert [_sum_of(result) for result, _ in got if result is not None] == [2000, 3000, 6000, 9000, 12000, 18000]
    client.stop_stream()


def _step(ask: Callable[..., Any], model: str, value: int, sequence: int | str, start: bool = False, end: bool = False) -> Any:
    shape = (1,) if model == "streaming" else (1, 1)
    source = tensor("X", np.full(shape, value, np.int32), "INT32")
    return ask(model, [source], sequence_id=sequence, sequence_start=start, sequence_end=end)


def _sum_of(result: Any) -> int:
    return int(result.as_numpy("Y").flat[0])


def test_a_sequence_that_comes_again(client: Any) -> None:
    """A decoupled model that answers in every round, with a correlation id of text."""
    answers = Answers()
    client.start_stream(answers)
    _step(client.async_stream_infer, "streaming", 4, "text", True, True)
    got = [answers.result() for _ in range(4)]
    assert [_sum_of(one) for one in got] == [1, 2, 3, 4] and [is_final(one) for one in got] == [False] * 3 + [True]
    client.stop_stream()


# shared memory


@pytest.mark.parametrize("registered_by", ["grpc", "http"])
def test_system_shared_memory(client: Any, farm: GrpcFarm, registered_by: str) -> None:
    """Both inputs and both outputs in one region each; what one port has registered, the other may use, see and unregister."""
    first, second = RANDOM.integers(-1000, 1000, (2, 1, 16), np.int32)
    with (
        Object("grpc-in", 128) as sent,
        Object("grpc-out", 128) as got,
        tritonclient.http.InferenceServerClient(f"127.0.0.1:{farm.server.http_port}") as http_client,
    ):
        sent.write(0, first)
        sent.write(64, second)
        registering: Any = client if registered_by == "grpc" else http_client
        registering.register_system_shared_memory("sent", sent.key, 128)
        registering.register_system_shared_memory("got", got.key, 128)
        for module, asking in ((client_module, client), (tritonclient.http, http_client)):
            got.write(0, np.zeros(32, np.int32))
            inputs, outputs = [], []
            for at in (0, 1):
                source = module.InferInput(f"INPUT{at}", [1, 16], "INT32")
                source.set_shared_memory("sent", 64, offset=64 * at)
                inputs.append(source)
                target = module.InferRequestedOutput(f"OUTPUT{at}")
                target.set_shared_memory("got", 64, offset=64 * at)
                outputs.append(target)
            asking.infer("simple", inputs, outputs=outputs)
            np.testing.assert_array_equal(got.read(0, 16), (first + second)[0])
            np.testing.assert_array_equal(got.read(64, 16), (first - second)[0])
        regions = client.get_system_shared_memory_status(as_json=True)["regions"]
        assert {name: region["key"] for name, region in regions.items()} == {"sent": sent.key, "got": got.key}
        assert {entry["name"] for entry in http_client.get_system_shared_memory_status()} == {"sent", "got"}
        assert set(client.get_system_shared_memory_status("sent").regions) == {"sent"}
        taken = ("ALREADY_EXISTS", "shared memory region 'sent' already in manager")
        assert _refused(lambda: client.register_system_shared_memory("sent", sent.key, 128)) == taken
        unregistering: Any = http_client if registered_by == "grpc" else client
        unregistering.unregister_system_shared_memory("sent")
        client.unregister_system_shared_memory()
        assert not client.get_system_shared_memory_status().regions


def test_shared_memory_on_a_stream(client: Any) -> None:
    """BYTES in, BYTES out, and only what is small in the messages."""
    array = VALUES["BYTES"]
    content = serialize_byte_tensor(array)
    byte_size = len(content.item())
    answers = Answers()
    with Object("grpc-stream", 2 * byte_size) as memory:
        memory.map[:byte_size] = content.item()
        client.register_system_shared_memory("streamed", memory.key, 2 * byte_size)
        source = client_module.InferInput("INPUT0", list(array.shape), "BYTES")
        source.set_shared_memory("streamed", byte_size)
        target = wanted("OUTPUT0")
        target.set_shared_memory("streamed", byte_size, offset=byte_size)
        client.start_stream(answers)
        client.async_stream_infer("identity_bytes", [source], outputs=[target])
        assert list(answers.result().get_response().raw_output_contents) == [b""]
        assert memory.map[byte_size:] == content.item()
        client.stop_stream()
        client.unregister_system_shared_memory("streamed")


# the asyncio client


def test_asyncio_client(farm: GrpcFarm, root: Path) -> None:
    async def talk() -> None:
        async with aio_module.InferenceServerClient(farm.address) as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert await client.is_model_ready("plain") and not await client.is_model_ready("nosuch")
            assert (await client.get_server_metadata(as_json=True))["name"] == "triton"
            assert (await client.get_model_metadata("plain")).name == "plain"
            assert (await client.get_model_config("plain")).config.name == "plain"
            assert len((await client.get_model_repository_index()).models) > 10
            assert (await client.get_inference_statistics("plain")).model_stats[0].name == "plain"
            assert (await client.get_log_settings()).settings["log_info"].bool_param

            async def one(value: int) -> None:
                compression = (None, "gzip", "deflate")[value % 3]
                result = await client.infer("plain", _sum_inputs(value, (16,)), compression_algorithm=compression)
                assert result.as_numpy("OUTPUT0").tolist() == [2 * value] * 16

            await asyncio.gather(*(one(value) for value in range(64)))
            with pytest.raises(InferenceServerException, match="unexpected shape"):
                await client.infer("plain", _sum_inputs(1, (8,)))
            with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
                await client.infer("gate", _gate_inputs(), request_id=f"held-{next(_numbers)}", client_timeout=0.1)

    asyncio.run(talk())


def test_a_cancelled_task_of_the_asyncio_client(farm: GrpcFarm, root: Path) -> None:
    async def talk() -> None:
        async with aio_module.InferenceServerClient(farm.address) as client:
            name = f"held-{next(_numbers)}"
            task = asyncio.create_task(client.infer("gate", _gate_inputs(), request_id=name))
            await asyncio.to_thread(_wait_noted, root, "gate", f"{name} begun")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(_wait_noted, root, "gate", f"{name} ended, given up")
            assert (await client.infer("gate", _gate_inputs())).as_numpy("Y").tolist() == [1.5] * 4

    asyncio.run(talk())


def test_streams_of_the_asyncio_client(farm: GrpcFarm, root: Path) -> None:
    """One read to its end, one given up in the midst of a model's responses."""

    async def requests(times: int) -> AsyncIterator[dict[str, Any]]:
        for number in range(1, times):
            inputs = [_number("TIMES", number), tensor("FINAL_APART", np.array([False]), "BOOL")]
            yield {"model_name": "repeater", "inputs": inputs, "request_id": str(number)}
        yield {"model_name": "nosuch", "inputs": [], "request_id": "wrong"}

    async def talking(name: str) -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "streamer", "inputs": _gate_inputs(), "request_id": name}
        await asyncio.sleep(PATIENCE_S)

    async def talk() -> None:
        async with aio_module.InferenceServerClient(farm.address) as client:
            finals, responses, errors = [], 0, []
            async for result, error in client.stream_infer(requests(6)):
                if error is not None:
                    errors.append(error.message())
                    continue
                responses += 1
                if is_final(result):
                    finals.append(result.get_response().id)
            assert finals == ["1", "2", "3", "4", "5"] and responses == 1 + 2 + 3 + 4 + 5
            assert errors == ["Request for unknown model: 'nosuch' is not found"]

            name = f"talks-{next(_numbers)}"
            iterator = client.stream_infer(talking(name))
            for _ in range(5):
                result, error = await anext(iterator)
                assert error is None and result.get_response().id == name
            assert iterator.cancel()
            with pytest.raises(asyncio.CancelledError):
                while True:
                    await anext(iterator)
            await asyncio.to_thread(_wait_noted, root, "streamer", f"{name} ended, given up")

    asyncio.run(talk())


# what every gRPC server has


def test_health_service(farm: GrpcFarm) -> None:
    with grpc.insecure_channel(farm.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE, "any"):
            assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == health_pb2.HealthCheckResponse.SERVING


def test_methods_that_there_are_not(farm: GrpcFarm) -> None:
    with grpc.insecure_channel(farm.address) as channel:
        for path in (f"/{SERVICE}/Nosuch", "/nosuch.Service/ServerLive", "/nosuch"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(path)(b"", timeout=PATIENCE_S)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_bytes_that_are_no_message(farm: GrpcFarm) -> None:
    with grpc.insecure_channel(farm.address) as channel:
        for method in ("ServerLive", "ModelInfer", "ModelConfig"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff", timeout=PATIENCE_S)
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "Unable to parse request")


def test_reflection(farm: GrpcFarm) -> None:
    """What tools need that know no .proto file: the services, and the files they are in."""
    asked = [
        {"list_services": ""},
        {"file_containing_symbol": SERVICE},
        {"file_containing_symbol": "inference.ModelInferRequest"},
        {"file_containing_symbol": "grpc.health.v1.Health"},
        {"file_containing_symbol": "nosuch.Service"},
    ]
    with grpc.insecure_channel(farm.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        requests = [reflection_pb2.ServerReflectionRequest(host="any", **one) for one in asked]
        services, *files, unknown = stub.ServerReflectionInfo(iter(requests), timeout=PATIENCE_S)
        names = {one.name for one in services.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= names
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        ours = _described(files[0])
        (service,) = [one for file in ours for one in file.service]
        expected = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        assert {method.name for method in service.method} == {method.name for method in expected.methods}
        assert any(message.name == "ModelInferRequest" for file in _described(files[1]) for message in file.message_type)
        assert any(one.name == "Health" for file in _described(files[2]) for one in file.service)
        # Those that a file imports come with it, or can be asked for by name.
        had = {file.name for file in ours}
        for name in {name for file in ours for name in file.dependency} - had:
            (reply,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(file_by_filename=name)]), timeout=PATIENCE_S)
            assert name in {file.name for file in _described(reply)}


def _described(reply: Any) -> list[Any]:
    assert reply.WhichOneof("message_response") == "file_descriptor_response", reply
    return [descriptor_pb2.FileDescriptorProto.FromString(content) for content in reply.file_descriptor_response.file_descriptor_proto]

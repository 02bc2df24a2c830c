"""Requests that any server must answer in the same way, mostly wrong ones, and what comes of them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from ..wire import Connection, Reply, compact, request_bytes
from .grpc_farm import PATIENCE_S

SERVICE = "inference.GRPCInferenceService"
DATA = list(range(16))


def _tensor(number: int, **changes: Any) -> dict[str, Any]:
    return {"name": f"INPUT{number}", "shape": [16], "datatype": "INT32", "data": DATA, **changes}


def _infer(inputs: Any, model: str = "plain", kind: str = "infer", headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    return request_bytes("POST", f"/v2/models/{model}/{kind}", compact({"inputs": inputs, **more}), headers or {})


def _post(path: str, content: Any = b"", headers: Mapping[str, str] | None = None, method: str = "POST") -> bytes:
    return request_bytes(method, path, content if isinstance(content, bytes) else compact(content), headers or {})


def _shared(number: int, region: str, byte_size: int = 64, offset: int = 0) -> dict[str, Any]:
    parameters = {"shared_memory_region": region, "shared_memory_byte_size": byte_size, "shared_memory_offset": offset}
    return {"name": f"INPUT{number}", "shape": [16], "datatype": "INT32", "parameters": parameters}


GOOD = [_tensor(0), _tensor(1)]
INFER = "/v2/models/plain/infer"
X = {"name": "X", "shape": [1], "datatype": "INT32"}
BINARY = [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "parameters": {"binary_data_size": 64}} for at in (0, 1)]
BINARY_HEAD = compact({"inputs": BINARY})
TARGET = {"name": "OUTPUT0", "parameters": {"shared_memory_region": "nosuch", "shared_memory_byte_size": 64}}

REQUESTS: dict[str, bytes] = {
    "good": _infer(GOOD, id="g"),
    "good, binary": _post(INFER, BINARY_HEAD + bytes(128), {"Inference-Header-Content-Length": str(len(BINARY_HEAD))}),
    "good, classes": _infer(
        [{"name": "SCORES", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}],
        "classes",
        outputs=[{"name": "LABELLED", "parameters": {"classification": 3}}],
    ),
    "good, generate": _post("/v2/models/adder/generate", {"X": [1]}),
    "good, generate_stream": _post("/v2/models/repeater/generate_stream", {"TIMES": 3}),
    "no JSON": _post(INFER, b"{"),
    "no object": _post(INFER, b"[]"),
    "nothing": _post(INFER),
    "no inputs": _post(INFER, {"inputs": []}),
    "inputs are no array": _post(INFER, {"inputs": 5}),
    "missing input": _infer(GOOD[:1], id="q"),
    "unknown input": _infer([*GOOD, _tensor(2)]),
    "input twice": _infer([GOOD[0], GOOD[0]]),
    "wrong shape": _infer([_tensor(0, shape=[8], data=DATA[:8]), GOOD[1]]),
    "negative shape": _infer([_tensor(0, shape=[-1]), GOOD[1]]),
    "wrong datatype": _infer([_tensor(0, datatype="FP32"), GOOD[1]]),
    "unknown datatype": _infer([_tensor(0, datatype="INT33"), GOOD[1]]),
    "too few elements": _infer([_tensor(0, data=DATA[:8]), GOOD[1]]),
    "too many elements": _infer([_tensor(0, data=DATA * 2), GOOD[1]]),
    "elements of another type": _infer([_tensor(0, data=["x"] * 16), GOOD[1]]),
    "unknown model": _infer(GOOD, "nosuch"),
    "unknown version": _infer(GOOD, "plain/versions/7"),
    "version that is no number": _infer(GOOD, "plain/versions/x"),
    "unknown output": _infer(GOOD, outputs=[{"name": "NOSUCH"}]),
    "classes of nothing": _infer(GOOD, outputs=[{"name": "OUTPUT0", "parameters": {"classification": 0}}]),
    "id that is no text": _infer(GOOD, id=5),
    "priority that is no number": _infer(GOOD, parameters={"priority": "x"}),
    "unknown region": _infer([_shared(0, "nosuch"), GOOD[1]], id="r"),
    "unknown region of an output": _infer(GOOD, outputs=[TARGET]),
    "region too small": _infer([_shared(0, "small", 64, 8), GOOD[1]]),
    "region of another size": _infer([_shared(0, "small", 32), GOOD[1]]),
    "header length of text": _post(INFER, BINARY_HEAD + bytes(128), {"Inference-Header-Content-Length": "x"}),
    "header length below nought": _post(INFER, BINARY_HEAD + bytes(128), {"Inference-Header-Content-Length": "-1"}),
    "header length above all": _post(INFER, BINARY_HEAD + bytes(128), {"Inference-Header-Content-Length": "100000"}),
    "binary too short": _post(INFER, BINARY_HEAD + bytes(100), {"Inference-Header-Content-Length": str(len(BINARY_HEAD))}),
    "binary too long": _post(INFER, BINARY_HEAD + bytes(200), {"Inference-Header-Content-Length": str(len(BINARY_HEAD))}),
    "decoupled": _infer([{"name": "TIMES", "shape": [1], "datatype": "INT32", "data": [1]}], "repeater"),
    "sequence without a beginning": _infer(
        [{"name": "X", "shape": [1, 1], "datatype": "INT32", "data": [1]}], "direct", parameters={"sequence_id": 77}
    ),
    "sequence without an id": _infer([{"name": "X", "shape": [1, 1], "datatype": "INT32", "data": [1]}], "direct"),
    "the model's error": _infer([{**X, "data": [404]}], "adder"),
    "the model raises": _infer([{**X, "data": [500]}], "adder"),
    "unknown coding": _post(INFER, compact({"inputs": GOOD}), {"Content-Encoding": "br"}),
    "spoilt coding": _post(INFER, gzip.compress(compact({"inputs": GOOD}), mtime=0)[:-20], {"Content-Encoding": "gzip"}),
    "generate: no JSON": _post("/v2/models/adder/generate", b"{"),
    "generate: missing input": _post("/v2/models/adder/generate", {}),
    "generate: unknown model": _post("/v2/models/nosuch/generate", {}),
    "generate: decoupled": _post("/v2/models/repeater/generate", {"TIMES": 3}),
    "generate: the model's error": _post("/v2/models/adder/generate", {"X": [404]}),
    "generate_stream: the model's error": _post("/v2/models/adder/generate_stream", {"X": [404]}),
    "generate_stream: the model raises": _post("/v2/models/repeater/generate_stream", {"TIMES": -1}),
    "generate_stream: errors between": _post("/v2/models/streams/generate_stream", {"VERB": "error_later"}),
    "infer: GET": _post(INFER, method="GET"),
    "infer: PUT": _post(INFER, {"inputs": GOOD}, method="PUT"),
    "models: HEAD": _post("/v2/models/plain", method="HEAD"),
    "server: DELETE": _post("/v2", method="DELETE"),
    "server: OPTIONS": _post("/v2", method="OPTIONS"),
    "unknown path": _post("/nosuch", method="GET"),
    "a slash too many": _post("/v2/models/plain/", method="GET"),
    "a coded path": _post("/v2/models/pl%61in", method="GET"),
    "a query": _post("/v2/models/plain?x=%20y", method="GET"),
    "server": _post("/v2", method="GET"),
    "model": _post("/v2/models/plain", method="GET"),
    "configuration": _post("/v2/models/classes/config", method="GET"),
    "unknown configuration": _post("/v2/models/nosuch/config", method="GET"),
    "statistics of none": _post("/v2/models/nosuch/stats", method="GET"),
    "not ready": _post("/v2/models/nosuch/ready", method="GET"),
    "index, no JSON": _post("/v2/repository/index", b"{"),
    "load of none": _post("/v2/repository/models/nosuch/load"),
    "unload of none": _post("/v2/repository/models/nosuch/unload"),
    "settings, no JSON": _post("/v2/logging", b"{"),
    "settings, unknown": _post("/v2/logging", {"nosuch": 1}),
    "restricted": _post("/v2/trace/setting", method="GET"),
    "restricted, wrong": _post("/v2/trace/setting", method="GET", headers={"admin": "let-me-out"}),
    "restricted, right": _post("/v2/trace/setting", method="GET", headers={"Admin": "let-me-in"}),
    "unknown region's status": _post("/v2/systemsharedmemory/region/nosuch/status", method="GET"),
    "region without an object": _post("/v2/systemsharedmemory/region/x/register", {"key": "/tf-nosuch", "offset": 0, "byte_size": 64}),
    "region without a key": _post("/v2/systemsharedmemory/region/x/register", {"byte_size": 64}),
    "no region": _post("/v2/systemsharedmemory/region/nosuch/unregister"),
    "GPU region": _post("/v2/cudasharedmemory/region/x/register", {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64}),
    "expectation": _post(INFER, {"inputs": GOOD}, {"Expect": "wonders"}),
    "the older protocol": _infer(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    "no protocol": b"GET /v2\r\n\r\n",
    "no length": b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: x\r\n\r\n",
    "two lengths": b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "head too long": b"GET /v2 HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
    "body too long": b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
    "closing": _infer(GOOD, headers={"Connection": "close"}),
}
"""The bytes of HTTP requests, each for a connection of its own."""


def sent(port: int, content: bytes) -> tuple[int, list[tuple[str, str]], bytes, list[int]]:
    """What comes back, without the date."""
    with Connection(port) as connection:
        connection.send(content)
        reply: Reply = connection.receive(content.startswith(b"HEAD"))
    return reply.status, [one for one in reply.headers if one[0] != "date"], reply.body, reply.interim


@dataclass(frozen=True)
class Seen:
    """What a gRPC client sees of a call."""

    code: str
    details: str | None
    message: bytes = b""
    metadata: tuple[tuple[str, str | bytes], ...] = ()


Metadata = tuple[tuple[str, str], ...]


def _request(model: str = "plain", version: str = "", **changes: Any) -> Any:
    inputs = [{"name": f"INPUT{at}", "datatype": "INT32", "shape": [16]} for at in (0, 1)]
    fields: dict[str, Any] = {"inputs": inputs, "raw_input_contents": [bytes(64)] * 2, **changes}
    return service_pb2.ModelInferRequest(model_name=model, model_version=version, **fields)


def _input(**changes: Any) -> list[dict[str, Any]]:
    return [
        {"name": "INPUT0", "datatype": "INT32", "shape": [16], **changes},
        {"name": "INPUT1", "datatype": "INT32", "shape": [16]},
    ]


def _in_region(name: str, byte_size: int, offset: int = 0) -> Any:
    request = _request(raw_input_contents=[bytes(64)])
    parameters = request.inputs[0].parameters
    parameters["shared_memory_region"].string_param = name
    parameters["shared_memory_byte_size"].int64_param = byte_size
    parameters["shared_memory_offset"].int64_param = offset
    return request


def _of_x(model: str, value: int, shape: Sequence[int] = (1,), **more: Any) -> Any:
    source = {"name": "X", "datatype": "INT32", "shape": shape, "contents": {"int_contents": [value]}}
    return service_pb2.ModelInferRequest(model_name=model, inputs=[source], **more)


def _repeat(times: int) -> Any:
    source = {"name": "TIMES", "datatype": "INT32", "shape": [1], "contents": {"int_contents": [times]}}
    return service_pb2.ModelInferRequest(model_name="repeater", inputs=[source])


def _verb(verb: str) -> Any:
    source = {"name": "VERB", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [verb.encode()]}}
    return service_pb2.ModelInferRequest(model_name="streams", inputs=[source])


_PLAIN: Metadata = ()
_SHM = service_pb2.SystemSharedMemoryRegisterRequest

CALLS: dict[str, tuple[str, Any, Metadata]] = {
    "good": ("ModelInfer", _request(id="g"), _PLAIN),
    "unknown model": ("ModelInfer", _request("nosuch", id="g"), _PLAIN),
    "unknown version": ("ModelInfer", _request("plain", "7"), _PLAIN),
    "version that is no number": ("ModelInfer", _request("plain", "x"), _PLAIN),
    "missing input": ("ModelInfer", _request(inputs=_input()[:1], raw_input_contents=[bytes(64)]), _PLAIN),
    "unknown input": ("ModelInfer", _request(inputs=_input(name="NOSUCH")), _PLAIN),
    "wrong shape": ("ModelInfer", _request(inputs=_input(shape=[8]), raw_input_contents=[bytes(32), bytes(64)], id="g"), _PLAIN),
    "wrong datatype": ("ModelInfer", _request(inputs=_input(datatype="FP32")), _PLAIN),
    "unknown datatype": ("ModelInfer", _request(inputs=_input(datatype="INT33")), _PLAIN),
    "too few bytes": ("ModelInfer", _request(raw_input_contents=[bytes(60), bytes(64)]), _PLAIN),
    "contents missing": ("ModelInfer", _request(raw_input_contents=[bytes(64)]), _PLAIN),
    "contents twice": ("ModelInfer", _request(inputs=_input(contents={"int_contents": DATA})), _PLAIN),
    "unknown output": ("ModelInfer", _request(outputs=[{"name": "NOSUCH"}]), _PLAIN),
    "unknown region": ("ModelInfer", _in_region("nosuch", 64), _PLAIN),
    "region too small": ("ModelInfer", _in_region("small", 64, 8), _PLAIN),
    "decoupled": ("ModelInfer", _repeat(1), _PLAIN),
    "the model's error": ("ModelInfer", _of_x("adder", 404), _PLAIN),
    "the model raises": ("ModelInfer", _of_x("adder", 500), _PLAIN),
    "sequence without an id": ("ModelInfer", _of_x("direct", 1, (1, 1)), _PLAIN),
    "no message": ("ModelInfer", b"\xff\xff\xff", _PLAIN),
    "no message, other": ("ModelConfig", b"\xff\xff\xff", _PLAIN),
    "no method": ("Nosuch", b"", _PLAIN),
    "no service": ("/nosuch.Service/ServerLive", b"", _PLAIN),
    "metadata of a model": ("ModelMetadata", service_pb2.ModelMetadataRequest(name="classes"), _PLAIN),
    "unknown metadata": ("ModelMetadata", service_pb2.ModelMetadataRequest(name="nosuch"), _PLAIN),
    "unknown configuration": ("ModelConfig", service_pb2.ModelConfigRequest(name="plain", version="x"), _PLAIN),
    "not ready": ("ModelReady", service_pb2.ModelReadyRequest(name="nosuch"), _PLAIN),
    "unknown statistics": ("ModelStatistics", service_pb2.ModelStatisticsRequest(name="nosuch"), _PLAIN),
    "unknown load": ("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name="nosuch"), _PLAIN),
    "unknown region's status": ("SystemSharedMemoryStatus", service_pb2.SystemSharedMemoryStatusRequest(name="nosuch"), _PLAIN),
    "region twice": ("SystemSharedMemoryRegister", _SHM(name="small", key="/tf-nosuch", byte_size=64), _PLAIN),
    "region without an object": ("SystemSharedMemoryRegister", _SHM(name="x", key="/tf-nosuch", byte_size=64), _PLAIN),
    "restricted": ("TraceSetting", service_pb2.TraceSettingRequest(), _PLAIN),
    "restricted, right": ("TraceSetting", service_pb2.TraceSettingRequest(), (("triton-grpc-protocol-admin", "let-me-in"),)),
    "unknown coding": ("ModelInfer", _request(), (("grpc-encoding", "br"),)),
    "health": ("/grpc.health.v1.Health/Check", b"", _PLAIN),
}
"""Unary calls: the method, its message, metadata."""

_ENDS: Metadata = (("triton_grpc_error", "true"),)

GRPC_STREAMS: dict[str, tuple[list[Any], Metadata]] = {
    "errors between": (
        [_request(id="1"), _request("nosuch", id="2"), _request(inputs=_input(shape=[8]), id="3"), _of_x("adder", 404), _request(id="4")],
        _PLAIN,
    ),
    "regions": ([_in_region("nosuch", 64), _in_region("small", 64, 8), _in_region("small", 64)], _PLAIN),
    "the model's errors": ([_verb("error_later")], _PLAIN),
    "the model raises": ([_repeat(-1)], _PLAIN),
    "ends by the model's error": ([_verb("error_later")], _ENDS),
    "does not end by a request's error": ([_request("nosuch"), _request(id="after")], _ENDS),
    "sequence without a beginning": ([_of_x("direct", 1, (1, 1), parameters={"sequence_id": {"int64_param": 9}})], _PLAIN),
    "nothing": ([], _PLAIN),
}
"""The requests of a stream, and its metadata."""


def called(channel: grpc.Channel, method: str, message: Any, metadata: Metadata) -> Seen:
    """What comes of a unary call."""
    path = method if "/" in method else f"/{SERVICE}/{method}"
    content = message if isinstance(message, bytes) else message.SerializeToString()
    try:
        reply, call = channel.unary_unary(path).with_call(content, timeout=PATIENCE_S, metadata=metadata)
    except grpc.RpcError as error:
        return Seen(str(error.code()), error.details(), b"", _own(error.initial_metadata(), error.trailing_metadata()))
    return Seen(str(call.code()), call.details(), reply, _own(call.initial_metadata(), call.trailing_metadata()))


def streamed(channel: grpc.Channel, messages: list[Any], metadata: Metadata) -> list[Seen]:
    """The responses of a stream, one request after the other's answers, and its end."""
    replies = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter(messages), timeout=PATIENCE_S, metadata=metadata)
    seen = []
    try:
        for reply in replies:
            seen.append(Seen("", reply.error_message, reply.infer_response.SerializeToString(deterministic=True)))
    except grpc.RpcError as error:
        seen.append(Seen(str(error.code()), error.details()))
        return seen
    return [*seen, Seen(str(replies.code()), replies.details(), b"", _own(replies.initial_metadata(), replies.trailing_metadata()))]


def _own(*both: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for metadata in both for key, value in metadata or ())

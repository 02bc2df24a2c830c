"""Answers of good inference requests in every form: JSON, binary, chosen outputs, classes, versions, connections."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ..model_repository import DATATYPES
from ..wire import Connection, Reply, compact, request_bytes
from .case import COMPARED_HEADERS, Case, Difference, check, infer, tensor

FORMATS = {
    "BOOL": "<?",
    "UINT8": "<B",
    "UINT16": "<H",
    "UINT32": "<I",
    "UINT64": "<Q",
    "INT8": "<b",
    "INT16": "<h",
    "INT32": "<i",
    "INT64": "<q",
    "FP16": "<e",
    "FP32": "<f",
    "FP64": "<d",
}
JSON_VALUES: dict[str, list[Any]] = {
    "BOOL": [True, False, True],
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64"), [0, 1, 200]),
    **dict.fromkeys(("INT8", "INT16", "INT32", "INT64"), [0, -1, 100]),
    "FP32": [0.5, -1.25, 3e20],
    "FP64": [0.1, -1e-3, 1e300],
    "BYTES": ["a", "", "née"],
}
BINARY_VALUES = {
    **{name: b"".join(struct.pack(form, value) for value in (0, 1, 1)) for name, form in FORMATS.items()},
    "BYTES": struct.pack("<I1sII3s", 1, b"x", 0, 3, "é!".encode()),
    "BF16": b"\x80\x3f\x00\x40\xc0\x7f",
}


def _binary(id: str, datatype: str, *outputs: dict[str, Any], **parameters: Any) -> Case:
    content: dict[str, Any] = {"inputs": [tensor("INPUT0", datatype, [3], binary_data_size=len(BINARY_VALUES[datatype]))]}
    if parameters:
        content["parameters"] = parameters
    if outputs:
        content["outputs"] = list(outputs)
    return infer(f"{datatype} {id}", f"identity_{datatype.lower()}", content, BINARY_VALUES[datatype])


def _json(id: str, datatype: str, **more: Any) -> Case:
    return infer(
        f"{datatype} {id}", f"identity_{datatype.lower()}", {"inputs": [tensor("INPUT0", datatype, [3], JSON_VALUES[datatype])], **more}
    )


TYPES = [
    *(_json("json to json", name) for name in JSON_VALUES),
    *(_json("json to binary", name, parameters={"binary_data_output": True}) for name in JSON_VALUES),
    *(_binary("binary to json", name) for name in DATATYPES),
    *(_binary("binary to binary", name, {"name": "OUTPUT0", "parameters": {"binary_data": True}}) for name in DATATYPES),
    *(_binary("binary to binary by default", name, binary_data_output=True) for name in ("FP16", "BF16", "BYTES", "INT64")),
    *(_binary("listed output ignores the default", name, {"name": "OUTPUT0"}, binary_data_output=True) for name in ("INT32", "FP16")),
    *(
        _binary(f"classes {count}", name, {"name": "OUTPUT0", "parameters": {"classification": count}})
        for name in DATATYPES
        for count in (2,)
    ),
]


def _simple(id: str, /, batch: int = 1, outputs: list[dict[str, Any]] | None = None, **more: Any) -> Case:
    first, second = list(range(16 * batch)), list(range(16 * batch, 0, -1))
    content = {**more, "inputs": [tensor("INPUT0", "INT32", [batch, 16], first), tensor("INPUT1", "INT32", [batch, 16], second)]}
    if outputs is not None:
        content["outputs"] = outputs
    return infer(id, "simple", content)


def _out(number: int, **parameters: Any) -> dict[str, Any]:
    return {"name": f"OUTPUT{number}", **({"parameters": parameters} if parameters else {})}


OUTPUTS = [
    _simple("all"),
    _simple("all with an id", id="request 1"),
    _simple("batch of three", 3),
    _simple("batch of three, binary", 3, parameters={"binary_data_output": True}),
    _simple("first only", 1, [_out(0)]),
    _simple("second only", 1, [_out(1)]),
    _simple("both, reversed", 1, [_out(1), _out(0)]),
    _simple("both, reversed, one binary", 1, [_out(1, binary_data=True), _out(0)]),
    _simple("both, one binary and the default too", 1, [_out(1, binary_data=False), _out(0)], parameters={"binary_data_output": True}),
    _simple("both binary", 2, [_out(0, binary_data=True), _out(1, binary_data=True)]),
    _simple("one binary beside classes", 2, [_out(0, binary_data=True), _out(1, classification=3)]),
    _simple("classes in batch", 2, [_out(0, classification=1), _out(1, classification=2)]),
    _simple("classes more than there are", 1, [_out(1, classification=20)]),
    _simple("classes none", 1, [_out(0, classification=0)]),
    _simple("classes in binary", 1, [_out(1, classification=2, binary_data=True)]),
]


def _scores(id: str, values: list[Any], outputs: list[dict[str, Any]], batch: int = 1) -> Case:
    return infer(id, "classes", {"inputs": [tensor("SCORES", "FP32", [batch, 4], values)], "outputs": outputs})


def _labelled(count: int, **more: Any) -> dict[str, Any]:
    return {"name": "LABELLED", "parameters": {"classification": count, **more}}


CLASSES = [
    _scores("labelled", [0.1, 0.9, 0.5, 0.25], [_labelled(4)]),
    _scores("labelled top one", [0.1, 0.9, 0.5, 0.25], [_labelled(1)]),
    _scores("labelled many", [0.1, 0.9, 0.5, 0.25], [_labelled(100)]),
    _scores("labelled batch", [0.1, 0.9, 0.5, 0.25, 4, 3, 2, 1], [_labelled(2)], 2),
    _scores("labelled and bare", [1, 2, 3, 4], [_labelled(2), {"name": "BARE", "parameters": {"classification": 2}}]),
    _scores("labelled and values", [1, 2, 3, 4], [_labelled(2), {"name": "BARE"}]),
    _scores("labelled binary", [1, 2, 3, 4], [_labelled(2, binary_data=True)]),
    _scores("large values", [1e20, -1e20, 123456789.0, 1e-9], [_labelled(4)]),
    _scores("infinities", [1, 2, 3, 4], [{"name": "LABELLED"}]),
]

VERSIONS = [
    *(
        infer(f"{model} {version or 'newest'}", model, {"inputs": [tensor("INPUT0", "INT32", [2], [100, 200])]}, version=version)
        for model, versions in (
            ("versions_latest", ("", "3", "10", "1")),
            ("versions_specific", ("", "1", "2", "3")),
            ("versions_all", ("", "2", "5")),
        )
        for version in versions
    ),
    infer("versions_default", "versions_default", {"inputs": [tensor("INPUT0", "INT32", [2], [100, 200])]}),
    infer("versions_default old", "versions_default", {"inputs": [tensor("INPUT0", "INT32", [2], [1, 2])]}, version="1"),
    infer(
        "tuned with priority and timeout",
        "tuned",
        {"parameters": {"priority": 1, "timeout": 9000000}, "inputs": [tensor("INPUT0", "FP32", [1, 4], [1, 2, 3, 4])]},
    ),
    infer(
        "tuned with a priority beyond", "tuned", {"parameters": {"priority": 9}, "inputs": [tensor("INPUT0", "FP32", [1, 4], [1, 2, 3, 4])]}
    ),
]

DIFFERENCES: dict[str, Difference] = {
    "BYTES classes 2": Difference(
        "24.10 dies of it", 400, "class result not available for output due to unsupported type 'BYTES'", fatal=True
    ),
}


def _table(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


@_table(TYPES)
def test_types(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(OUTPUTS)
def test_outputs(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(CLASSES)
def test_classes(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


@_table(VERSIONS)
def test_versions(case: Case, oracle: int, farm: int) -> None:
    check(case, oracle, farm, DIFFERENCES)


# ---- the connection ------------------------------------------------------------------------------

GOOD = compact({"inputs": [tensor("INPUT0", "INT32", [3], [1, 2, 3])]})
PATH = "/v2/models/identity_int32/infer"


def _compared(reply: Reply) -> dict[str, Any]:
    names = (*COMPARED_HEADERS, "content-length", "connection")
    return {"status": reply.status, "interim": reply.interim, "body": reply.body, **{name: reply.header(name) for name in names}}


def _both(oracle: int, farm: int, *messages: bytes) -> list[dict[str, Any]]:
    """Send messages over one connection to each server, a reply after each; compare, and return what tensorfarm said."""
    replies: list[list[dict[str, Any]]] = []
    for port in (oracle, farm):
        with Connection(port) as connection:
            said = []
            for message in messages:
                connection.send(message)
                said.append(_compared(connection.receive(message.startswith(b"HEAD"))))
            replies.append(said)
    assert replies[1] == replies[0]
    return replies[1]


def test_keep_alive(oracle: int, farm: int) -> None:
    request = request_bytes("POST", PATH, GOOD)
    said = _both(oracle, farm, request, request_bytes("GET", "/v2/health/live"), request, request_bytes("POST", PATH, b"bad"), request)
    assert [reply["status"] for reply in said] == [200, 200, 200, 500, 200]


def test_connection_close(oracle: int, farm: int) -> None:
    for port in (oracle, farm):
        with Connection(port) as connection:
            connection.send(request_bytes("POST", PATH, GOOD, {"Connection": "close"}))
            assert connection.receive().status == 200
            assert connection.closed_by_server()


def test_http_1_0(oracle: int, farm: int) -> None:
    for port in (oracle, farm):
        with Connection(port) as connection:
            connection.send(b"GET /v2/health/live HTTP/1.0\r\n\r\n")
            assert connection.receive().status == 200
            assert connection.closed_by_server()


def test_expect_100_continue(oracle: int, farm: int) -> None:
    for port in (oracle, farm):
        with Connection(port) as connection:
            connection.send(request_bytes("POST", PATH, b"", {"Expect": "100-continue", "Content-Length": str(len(GOOD))}, length=False))
            assert connection._line() == b"HTTP/1.1 100 Continue"  # noqa: SLF001  # the interim reply must come before the body is sent
            assert connection._line() == b""  # noqa: SLF001
            connection.send(GOOD)
            assert connection.receive().status == 200


def test_chunked_request(oracle: int, farm: int) -> None:
    chunks = (
        b"".join(f"{len(GOOD[at : at + 7]):x}\r\n".encode() + GOOD[at : at + 7] + b"\r\n" for at in range(0, len(GOOD), 7)) + b"0\r\n\r\n"
    )
    (said,) = _both(oracle, farm, request_bytes("POST", PATH, b"", {"Transfer-Encoding": "chunked"}, length=False) + chunks)
    assert said["status"] == 200


def test_large_binary(oracle: int, farm: int) -> None:
    """Bigger than any buffer on the way: a megabyte in and out, in one send and in small pieces."""
    values = np.arange(1 << 18, dtype=np.int32).tobytes()
    head = compact(
        {"inputs": [tensor("INPUT0", "INT32", [1 << 18], binary_data_size=len(values))], "parameters": {"binary_data_output": True}}
    )
    message = request_bytes("POST", PATH, head + values, {"Inference-Header-Content-Length": str(len(head))})
    (said,) = _both(oracle, farm, message)
    assert said["body"].endswith(values)
    with Connection(farm) as connection:
        for at in range(0, len(message), 50_001):
            connection.send(message[at : at + 50_001])
        assert connection.receive().body == said["body"]


UNPACK: dict[str | None, Callable[[bytes], bytes]] = {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, deflate", "deflate;q=0.5, gzip;q=0.1", "gzip;q=0, deflate", "*"])
def test_compressed_answer(encoding: str, oracle: int, farm: int) -> None:
    """Compressed bytes may differ; what they unpack to, and the headers, may not."""
    said = []
    for port in (oracle, farm):
        for extra in (b"", b',"parameters":{"binary_data_output":true}'):
            with Connection(port) as connection:
                connection.send(request_bytes("POST", PATH, GOOD[:-1] + extra + b"}", {"Accept-Encoding": encoding}))
                reply = connection.receive()
            body = UNPACK[reply.header("content-encoding")](reply.body)
            said.append((reply.status, body, {name: reply.header(name) for name in COMPARED_HEADERS}))
    assert said[2:] == said[:2]


def test_header_names_of_any_case(oracle: int, farm: int) -> None:
    head = json.dumps({"inputs": [tensor("INPUT0", "INT32", [1], binary_data_size=4)]}).encode()
    for name in ("inference-header-content-length", "INFERENCE-HEADER-CONTENT-LENGTH"):
        (said,) = _both(oracle, farm, request_bytes("POST", PATH, head + b"\7\0\0\0", {name: str(len(head))}))
        assert said["status"] == 200

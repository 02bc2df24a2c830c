"""Whole exchanges against a service that echoes: the replies' bytes, and what is released when. Asked of release 24.10."""

from __future__ import annotations

import gzip
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tensorfarm.server.dispatch.request import Response
from tensorfarm.server.door.scratch import NO_MEMORY
from tensorfarm.server.http.exchange import Reply
from tensorfarm.server.http.infer_call import IN_BINARY, InferCall
from tensorfarm.server.http.infer_response import infer_reply
from tensorfarm.server.http.inference import infer_guarded
from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Inline
from tensorfarm.workers.contract.messages import RequestBody, Result, Tensor
from tensorfarm.workers.contract.status import Code, StatusError, unavailable

from .doors import an_arena, run, until
from .echo_service import CountedBody, EchoService, echo_signature, http_request, post, spec

JSON = (b"Content-Type", b"application/json")
PLAIN = (b"Content-Type", b"text/plain")
BINARY = (b"Content-Type", b"application/octet-stream")


def service(**more: Any) -> EchoService:
    signatures = {
        "types": echo_signature("types", [spec(f"I{name}", name, -1, optional=True) for name in DATATYPES]),
        "batched": echo_signature("batched", [spec("I", "FP32", -1, batching=True)], 8),
        "raw": echo_signature("raw", [spec("I", "UINT8", -1)]),
        "decoupled": echo_signature("decoupled", [spec("I", "UINT8", -1)], decoupled=True),
    }
    return EchoService(signatures, regions_by_name={"r": 7}, **more)


def body_of(reply: Reply) -> bytes:
    return b"".join(bytes(part) for part in reply.body)


def ask(content: Any, tail: bytes = b"", model: str = "types", to: EchoService | None = None, **headers: str) -> Reply:
    text = json.dumps(content).encode()
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    if tail:
        fields["Inference-Header-Content-Length"] = str(len(text))
    return post(to or service(), model, text + tail, fields)


def asked(
    datatype: str, content: bytes, count: int, outputs: list[dict[str, Any]] | None = None, to: EchoService | None = None, **more: Any
) -> Reply:
    item = {"name": f"I{datatype}", "datatype": datatype, "shape": [count], "parameters": {"binary_data_size": len(content)}}
    request = {**more, "inputs": [item]}
    if outputs is not None:
        request["outputs"] = outputs
    return ask(request, content, to=to)


def test_json() -> None:
    reply = ask({"id": "7", "inputs": [{"name": "IFP32", "datatype": "FP32", "shape": [2], "data": [2, 0.1]}]})
    assert (reply.status, list(reply.headers)) == (200, [JSON])
    assert body_of(reply) == (
        b'{"id":"7","model_name":"types","model_version":"1","outputs":'
        b'[{"name":"OFP32","datatype":"FP32","shape":[2],"data":[2.0,0.10000000149011612]}]}'
    )


def test_binary() -> None:
    reply = asked("INT32", struct.pack("<2i", 1, 2), 2, parameters={"binary_data_output": True})
    text = (
        b'{"model_name":"types","model_version":"1","outputs":'
        b'[{"name":"OINT32","datatype":"INT32","shape":[2],"parameters":{"binary_data_size":8}}]}'
    )
    assert body_of(reply) == text + struct.pack("<2i", 1, 2)
    assert list(reply.headers) == [BINARY, (b"Inference-Header-Content-Length", b"%d" % len(text))]


def test_binary_outputs_are_not_copied() -> None:
    content = memoryview(bytearray(8))
    call = InferCall(RequestBody("", 1, [], [], {}), form=IN_BINARY)
    response = Response(None, [Tensor("O", "INT64", (1,), Inline(content))])  # type: ignore[arg-type]
    assert infer_reply(service().find("types"), call, response).body[1] is content


def test_mixed_forms() -> None:
    items = [
        {"name": "IINT8", "datatype": "INT8", "shape": [2], "data": [1, -1]},
        {"name": "IUINT8", "datatype": "UINT8", "shape": [2], "data": [3, 4]},
        {"name": "IINT16", "datatype": "INT16", "shape": [1], "data": [5]},
    ]
    outputs = [
        {"name": "OUINT8", "parameters": {"binary_data": True}},
        {"name": "OINT8"},
        {"name": "OINT16", "parameters": {"shared_memory_region": "r", "shared_memory_byte_size": 2}},
    ]
    reply = ask({"inputs": items, "outputs": outputs})
    length = int(dict(reply.headers)[b"Inference-Header-Content-Length"])
    assert body_of(reply)[length:] == b"\3\4"
    assert json.loads(body_of(reply)[:length])["outputs"] == [
        {"name": "OINT8", "datatype": "INT8", "shape": [2], "data": [1, -1]},
        {"name": "OUINT8", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
        {"name": "OINT16", "datatype": "INT16", "shape": [1]},
    ]


def test_binary_without_bytes_is_json() -> None:
    reply = asked("INT32", b"", 0, parameters={"binary_data_output": True})
    assert list(reply.headers) == [JSON]
    assert json.loads(body_of(reply))["outputs"] == [
        {"name": "OINT32", "datatype": "INT32", "shape": [0], "parameters": {"binary_data_size": 0}}
    ]


def test_raw() -> None:
    reply = post(service(), "raw", b"abc", {"Inference-Header-Content-Length": "0"})
    assert body_of(reply).endswith(b'"shape":[3],"parameters":{"binary_data_size":3}}]}abc')
    assert post(service(), "raw", b"").status == 200  # an empty body has a JSON part of no bytes


JSON_FORMS: list[tuple[str, bytes, int, str]] = [
    ("BOOL", b"\0\1\2", 3, "[false,true,true]"),
    ("INT8", b"\xff\1", 2, "[-1,1]"),
    ("UINT64", b"\xff" * 8, 1, "[18446744073709551615]"),
    (
        "FP32",
        struct.pack("<4f", 1e-6, float("nan"), float("-inf"), 1e20),
        4,
        "[9.999999974752427e-7,NaN,-Infinity,100000002004087730000.0]",
    ),
    ("FP64", struct.pack("<3d", 1e-6, 1e21, -0.0), 3, "[0.000001,1e21,-0.0]"),
    ("BYTES", serialize_bytes([b'"\x1f/', b"\xff", b""]), 3, '["\\"\\u001F/","\udcff",""]'),
]


@pytest.mark.parametrize(("datatype", "content", "count", "text"), JSON_FORMS)
def test_json_forms(datatype: str, content: bytes, count: int, text: str) -> None:
    expected = f'"shape":[{count}],"data":{text}}}]}}'.encode("utf-8", "surrogateescape")
    assert body_of(asked(datatype, content, count)).endswith(expected)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_has_no_json_form(datatype: str) -> None:
    to = service()
    reply = asked(datatype, bytes(4), 2, to=to)
    assert (reply.status, list(reply.headers), to.released) == (400, [PLAIN], 1)
    assert (
        json.loads(body_of(reply))["error"]
        == f"sending {datatype} data via JSON is not supported. Please use the binary data format for output"
    )
    assert asked(datatype, bytes(4), 2, [{"name": f"O{datatype}", "parameters": {"binary_data": True}}]).status == 200


def test_classes() -> None:
    to = service(labels={"O": ["cat", "dog"]})
    item = {"name": "I", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [4, 3]]}
    outputs = [{"name": "O", "parameters": {"classification": 1}}]
    reply = ask({"inputs": [item], "outputs": outputs}, model="batched", to=to)
    assert body_of(reply).endswith(b'"outputs":[{"name":"O","datatype":"BYTES","shape":[2,1],"data":["2.000000:1:dog","4.000000:0:cat"]}]}')
    outputs[0]["parameters"]["binary_data"] = True  # type: ignore[index]
    reply = ask({"inputs": [item], "outputs": outputs}, model="batched", to=to)
    assert body_of(reply).endswith(serialize_bytes([b"2.000000:1:dog", b"4.000000:0:cat"]))


def test_response_parameters() -> None:
    to = service(run=lambda body: Result([], {"s": "x", "i": 1, "b": True, "d": 0.5}))
    assert body_of(ask({"inputs": []}, to=to)) == (
        b'{"model_name":"types","model_version":"1","parameters":{"s":"x","i":1,"b":true,"d":0.5},"outputs":[]}'
    )


def test_size_of_an_output_must_fit_its_shape() -> None:
    to = service(run=lambda body: Result([Tensor("OINT8", "INT8", (3,), Inline(memoryview(b"ab")))]))
    reply = ask({"inputs": []}, to=to)
    assert (reply.status, body_of(reply)) == (500, b'{"error":"output tensor shape does not match size of output for \'OINT8\'"}')


def test_output_that_missed_its_region() -> None:
    to = service(run=lambda body: Result([Tensor("OINT8", "INT8", (1,), Inline(memoryview(b"a")))]))
    reply = ask({"inputs": [], "outputs": [{"name": "OINT8", "parameters": {"shared_memory_region": "r"}}]}, to=to)
    assert reply.status == 500


# failures


@pytest.mark.parametrize(
    ("model", "version", "content", "headers", "status", "error", "content_type"),
    [
        ("nosuch", "", b"{", {}, 404, "Request for unknown model: 'nosuch' is not found", PLAIN),
        ("types", "9", b"{", {}, 404, "Request for unknown model: 'types' version 9 is not found", PLAIN),
        ("decoupled", "", b"{", {}, 501, "HTTP end point doesn't support models with decoupled transaction policy", PLAIN),
        ("types", "", b"{", {}, 500, "failed to parse the request JSON buffer: Missing a name for object member. at 1", JSON),
        (
            "types",
            "",
            b"{}",
            {"Inference-Header-Content-Length": "3"},
            400,
            "inference header size should be in range (0, 2), got: 3",
            PLAIN,
        ),
        ("types", "", b"", {"Content-Encoding": "gzip"}, 400, "nothing to be decompressed", PLAIN),
        (
            "types",
            "",
            b'{"inputs":[],"outputs":[{"name":"X\\u001f"}]}',
            {},
            400,
            "unexpected inference output 'X\x1f' for model 'types'",
            JSON,
        ),
    ],
)
def test_failures(
    model: str, version: str, content: bytes, headers: dict[str, str], status: int, error: str, content_type: tuple[bytes, bytes]
) -> None:
    to = service()
    reply = post(to, model, content, headers, version)
    assert (reply.status, list(reply.headers), json.loads(body_of(reply))) == (status, [content_type], {"error": error})
    assert to.submitted == []


def test_a_cut_string_is_a_fault_of_the_backends_kind() -> None:
    reply = asked("BYTES", b"\5\0\0\0ab", 1)
    assert (reply.status, list(reply.headers)) == (400, [PLAIN])
    assert json.loads(body_of(reply))["error"] == (
        "incomplete string data for inference input 'IBYTES', expecting string of length 5 but only 2 bytes available"
    )


def test_unknown_encoding() -> None:
    reply = ask({"inputs": []}, Content_Encoding="br")
    assert (reply.status, list(reply.headers)) == (501, [PLAIN, (b"Accept-Encoding", b"gzip, deflate")])
    assert body_of(reply) == b'{"error":"Unsupported compression type"}'


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (Code.UNKNOWN, 400),
        (Code.INTERNAL, 500),
        (Code.NOT_FOUND, 404),
        (Code.INVALID_ARG, 400),
        (Code.UNAVAILABLE, 503),
        (Code.UNSUPPORTED, 501),
        (Code.ALREADY_EXISTS, 400),
        (Code.CANCELLED, 400),
    ],
)
def test_status_of_a_refusal(code: Code, status: int) -> None:
    reply = ask({"inputs": []}, to=service(refuse=StatusError(code, "no")))
    assert (reply.status, list(reply.headers), body_of(reply)) == (status, [JSON], b'{"error":"no"}')


def test_failed_response() -> None:
    to = service()

    def submit(version: Any, request: Any) -> None:
        request.on_finish()
        request.on_response(Response(request, [], error=unavailable("gone"), on_release=to._count_release))

    to.submit = submit  # type: ignore[method-assign]
    reply = ask({"inputs": []}, to=to)
    assert (reply.status, list(reply.headers), to.released) == (503, [PLAIN], 1)


# compression


def test_compressed_request_and_reply() -> None:
    text = json.dumps({"inputs": [{"name": "IINT8", "datatype": "INT8", "shape": [1], "parameters": {"binary_data_size": 1}}]}).encode()
    headers = {"Content-Encoding": "gzip", "Accept-Encoding": "gzip", "Inference-Header-Content-Length": str(len(text))}
    to = service()
    reply = post(to, "types", gzip.compress(text + b"\7"), headers)
    assert list(reply.headers) == [JSON, (b"Content-Encoding", b"gzip")]
    assert json.loads(gzip.decompress(body_of(reply)))["outputs"][0]["data"] == [7]
    assert to.released == 1


def test_compressed_binary_reply_says_the_plain_length() -> None:
    to = service()
    content = {"parameters": {"binary_data_output": True}, "inputs": [{"name": "IINT8", "datatype": "INT8", "shape": [1], "data": [9]}]}
    plain = ask(content, to=to)
    packed = ask(content, to=to, Accept_Encoding="deflate, gzip;q=0.5")
    assert dict(packed.headers)[b"Content-Encoding"] == b"deflate"
    assert dict(packed.headers)[b"Inference-Header-Content-Length"] == dict(plain.headers)[b"Inference-Header-Content-Length"]


def test_failures_are_not_compressed() -> None:
    assert list(ask({"inputs": 1}, Accept_Encoding="gzip").headers) == [JSON]


# who holds what


def test_outputs_are_held_until_the_reply_is_sent() -> None:
    to = service()
    reply = asked("INT8", b"a", 1, parameters={"binary_data_output": True}, to=to)
    assert to.released == 0 and reply.on_sent is not None
    reply.on_sent()
    assert to.released == 1
    assert asked("INT8", b"a", 1, to=to).on_sent is None
    assert to.released == 2


def waiting() -> tuple[EchoService, list[Any], list[Reply], Any, CountedBody]:
    """An exchange whose request is with the service, unanswered."""
    to = service()
    requests: list[Any] = []
    to.submit = lambda version, request: requests.append(request)  # type: ignore[method-assign]
    replies: list[Reply] = []
    body = CountedBody(b'{"inputs":[],"parameters":{"priority":3,"timeout":9}}')
    cancel = infer_guarded(to, "types", "", http_request(body), replies.append)  # type: ignore[arg-type]
    return to, requests, replies, cancel, body


def test_body_is_released_when_the_request_finishes() -> None:
    to, (request,), replies, cancel, body = waiting()
    assert (request.priority, request.timeout_us, body.releases, replies) == (3, 9, 0, [])
    request.on_finish()
    assert body.releases == 1
    request.on_response(Response(request, []))
    assert [reply.status for reply in replies] == [200]


def test_cancel() -> None:
    to, (request,), replies, cancel, body = waiting()
    cancel()
    assert to.cancelled == 1


def test_a_final_mark_after_the_response() -> None:
    to, (request,), replies, cancel, body = waiting()
    request.on_response(
        Response(request, [Tensor("OINT8", "INT8", (1,), Inline(memoryview(b"\5")))], final=False, on_release=to._count_release)
    )
    assert replies == []
    request.on_response(Response(request, [], on_release=to._count_release))
    assert json.loads(body_of(replies[0]))["outputs"][0]["data"] == [5]
    assert to.released == 2


def test_two_responses_are_too_many() -> None:
    to, (request,), replies, cancel, body = waiting()
    for final in (False, True):
        request.on_response(
            Response(request, [Tensor("OINT8", "INT8", (1,), Inline(memoryview(b"\5")))], final=final, on_release=to._count_release)
        )
    assert (replies[0].status, body_of(replies[0])) == (500, b'{"error":"expected a single response, got 2"}')
    assert to.released == 2


@given(st.sampled_from(sorted(set(DATATYPES) - {"FP16", "BF16", "BYTES"})), st.integers(0, 9), st.randoms(use_true_random=False))
def test_values_come_back(datatype: str, count: int, random: Any) -> None:
    dtype = DATATYPES[datatype].dtype
    content = random.randbytes(count * dtype.itemsize)
    if datatype == "BOOL":
        content = bytes(byte & 1 for byte in content)
    expected = np.frombuffer(content, dtype)
    document = json.loads(body_of(asked(datatype, content, count)))
    with np.errstate(invalid="ignore"):
        got = np.array(document["outputs"][0]["data"], np.float64 if dtype.kind == "f" else dtype).astype(dtype)
    assert np.array_equal(got, expected, equal_nan=dtype.kind == "f")


@pytest.mark.parametrize("size", [100_000, 4_000_000])
def test_full_arena_refuses_what_was_unpacked(size: int) -> None:
    """At once, or after another thread has unpacked it: nothing is kept beside the arena."""

    async def scenario() -> Reply:
        with an_arena(1 << 20) as arena:
            held = arena.reserve(1 << 20)
            replies: list[Reply] = []
            request = http_request(gzip.compress(bytes(size)), {"Content-Encoding": "gzip"})
            infer_guarded(service(arena=arena), "raw", "", request, replies.append)  # type: ignore[arg-type]
            await until(lambda: bool(replies))
            assert isinstance(request.body, CountedBody) and request.body.releases == 1
            held.release()
            return replies[0]

    reply = run(scenario)
    assert (reply.status, json.loads(body_of(reply))["error"]) == (503, NO_MEMORY)


def test_regions_are_for_clients_that_may_share_memory() -> None:
    """Their names are all it takes to read them; a client on another host has none of them."""
    region = {"shared_memory_region": "r", "shared_memory_byte_size": 4}
    content = {"inputs": [{"name": "IINT32", "datatype": "INT32", "shape": [1], "parameters": region}]}
    refused = ask(content, to=service(remote_shm=False))
    assert (refused.status, body_of(refused)) == (404, b'{"error":"Unable to find shared memory region: \'r\'"}')

"""Shared-memory regions: registering, status, unregistering, and inputs and outputs in them."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from .case import Case, Difference, infer, tensor
from .scenario import CONTENT, KEYS, OBJECT_BYTE_SIZE, Scenario, check_scenario, cuda, register, remove_objects, reset_objects, system

A, B = KEYS
STATUS = system("status")


def _one(id: str, *steps: Case) -> Scenario:
    return Scenario(id, (*steps, STATUS))


def _bad(id: str, content: Any, region: str = "r") -> Scenario:
    return _one(id, system("register", region, content))


REGISTER = [
    _one("nothing registered", system("status"), system("status", "r"), cuda("status"), cuda("status", "r")),
    _one("one", register("r"), system("status", "r")),
    _one("with an offset", register("r", A, 4096, 8192)),
    _one("the whole object", register("r", A, 0, OBJECT_BYTE_SIZE)),
    _one("two, listed in order of name", register("z"), register("a", B), register("m", A, 4096)),
    _one("twice the same", register("r"), register("r")),
    _one("twice, another object", register("r"), register("r", B)),
    _one("the same object by another name", register("r"), register("s")),
    _one("key without slash", register("r", A[1:])),
    _one("key with two slashes", register("r", "/" + A)),
    _one("key unknown", register("r", "/tensorfarm-parity-nosuch")),
    _one("key empty", register("r", "")),
    _one("key of a slash", register("r", "/")),
    _one("key of slashes", register("r", "///")),
    _one("key into a folder", register("r", "/a/b")),
    _one("key out of the folder", register("r", "../etc/passwd")),
    _one("key of the python backend", register("r", "/triton_python_backend_shm_region_1")),
    _one("key of the python backend without slash", register("r", "triton_python_backend_shm_region_1")),
    _one("key too long", register("r", "/" + "k" * 300)),
    _one("size beyond the object", register("r", A, 0, OBJECT_BYTE_SIZE + 1)),
    _one("size far beyond", register("r", A, 0, 2**40)),
    _one("size of the biggest uint64", register("r", A, 0, 2**64 - 1)),
    _one("size nought", register("r", A, 0, 0)),
    _one("offset at the end", register("r", A, OBJECT_BYTE_SIZE, 1)),
    _one("offset beyond", register("r", A, OBJECT_BYTE_SIZE * 2, 4096)),
    _one("offset and size overflow", register("r", A, 2**64 - 4096, 8192)),
    _one("offset not on a page", register("r", A, 16, 64)),
    _one("name with odd letters", register("a-b.c_d:1")),
    _one("name percent-encoded", system("register", "a%20b", {"key": A, "offset": 0, "byte_size": 64})),
    _bad("no offset", {"key": A, "byte_size": 4096}),
    _bad("no key", {"offset": 0, "byte_size": 4096}),
    _bad("no byte_size", {"key": A, "offset": 0}),
    _bad("nothing", {}),
    _bad("no body", None),
    _bad("not json", b"hello"),
    _bad("an array", []),
    _bad("null", b"null"),
    _bad("key number", {"key": 1, "offset": 0, "byte_size": 4096}),
    _bad("key null", {"key": None, "offset": 0, "byte_size": 4096}),
    _bad("offset negative", {"key": A, "offset": -1, "byte_size": 4096}),
    _bad("offset string", {"key": A, "offset": "0", "byte_size": 4096}),
    _bad("offset float", {"key": A, "offset": 0.0, "byte_size": 4096}),
    _bad("offset null", {"key": A, "offset": None, "byte_size": 4096}),
    _bad("byte_size negative", {"key": A, "offset": 0, "byte_size": -1}),
    _bad("byte_size string", {"key": A, "offset": 0, "byte_size": "4096"}),
    _bad("byte_size too big", {"key": A, "offset": 0, "byte_size": 2**64}),
    _bad("unknown member", {"key": A, "offset": 0, "byte_size": 64, "more": True}),
    _one("no region", system("register", None, {"key": A, "offset": 0, "byte_size": 64})),
    _one("empty region", Case("x", "POST", "/v2/systemsharedmemory/region//register", b"{}")),
    _one("unregister one", register("r"), register("s"), system("unregister", "r")),
    _one("unregister one twice", register("r"), system("unregister", "r"), system("unregister", "r")),
    _one("unregister unknown", system("unregister", "r")),
    _one("unregister all", register("r"), register("s", B), system("unregister")),
    _one("unregister with a body", register("r"), system("unregister", "r", b"not json")),
    _one("register again", register("r"), system("unregister", "r"), register("r", B)),
    _one("status of one of two", register("r"), register("s", B, 4096, 4096), system("status", "s")),
    _one("status of unknown beside one", register("r"), system("status", "s")),
    _one("wrong methods", system("status", method="POST"), system("register", "r", {}, "GET"), system("unregister", "r", method="GET")),
    _one("wrong methods for all", system("unregister", method="GET"), system("register", None, {}, "PUT"), cuda("status", method="POST")),
    _one("unknown verbs", system("look"), system("register", "r/s", {}), Case("x", "GET", "/v2/systemsharedmemory")),
]

HANDLE = base64.b64encode(bytes(64)).decode()


def _cuda(id: str, content: Any, region: str | None = "r") -> Scenario:
    return Scenario(id, (cuda("register", region, content), cuda("status")))


CUDA = [
    _cuda("cuda register", {"raw_handle": {"b64": HANDLE}, "device_id": 0, "byte_size": 64}),
    _cuda("cuda register without region", {"raw_handle": {"b64": HANDLE}, "device_id": 0, "byte_size": 64}, None),
    _cuda("cuda handle too short", {"raw_handle": {"b64": "AAAA"}, "device_id": 0, "byte_size": 64}),
    _cuda("cuda handle no base64", {"raw_handle": {"b64": "!!!"}, "device_id": 0, "byte_size": 64}),
    _cuda("cuda no handle", {"device_id": 0, "byte_size": 64}),
    _cuda("cuda no b64", {"raw_handle": {}, "device_id": 0, "byte_size": 64}),
    _cuda("cuda handle string", {"raw_handle": HANDLE, "device_id": 0, "byte_size": 64}),
    _cuda("cuda b64 number", {"raw_handle": {"b64": 1}, "device_id": 0, "byte_size": 64}),
    _cuda("cuda no device", {"raw_handle": {"b64": HANDLE}, "byte_size": 64}),
    _cuda("cuda device negative", {"raw_handle": {"b64": HANDLE}, "device_id": -1, "byte_size": 64}),
    _cuda("cuda no byte_size", {"raw_handle": {"b64": HANDLE}, "device_id": 0}),
    _cuda("cuda nothing", {}),
    _cuda("cuda no body", None),
    Scenario("cuda unregister", (cuda("unregister", "r"), cuda("unregister"))),
    Scenario("cuda status of a system region", (register("r"), cuda("status", "r"), cuda("status"))),
    Scenario("cuda unregister of a system region", (register("r"), cuda("unregister", "r"), STATUS)),
    Scenario("cuda unregister all beside a system region", (register("r"), cuda("unregister"), STATUS)),
]


def _place(region: str, byte_size: int | None, offset: int | None = None, **more: Any) -> dict[str, Any]:
    parameters: dict[str, Any] = {"shared_memory_region": region}
    if byte_size is not None:
        parameters["shared_memory_byte_size"] = byte_size
    if offset is not None:
        parameters["shared_memory_offset"] = offset
    return {**parameters, **more}


def _input(region: str, byte_size: int | None, offset: int | None = None, shape: int = 4) -> Case:
    inputs = [tensor("INPUT0", "INT32", [shape], **_place(region, byte_size, offset))]
    return infer("in", "identity_int32", {"inputs": inputs})


def _output(region: str, byte_size: int | None, offset: int | None = None, **more: Any) -> Case:
    outputs = [{"name": "OUTPUT0", "parameters": _place(region, byte_size, offset, **more)}]
    return infer("out", "identity_int32", {"inputs": [tensor("INPUT0", "INT32", [4], [1, 2, 3, 4])], "outputs": outputs})


def _plain(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **more: Any) -> Case:
    named = [{"name": f"OUTPUT{at}", **({"parameters": place} if place else {})} for at, place in enumerate(outputs)]
    return infer(
        "both",
        "plain",
        {"inputs": [tensor(f"INPUT{at}", "INT32", [16], **place) for at, place in enumerate(inputs)], "outputs": named, **more},
    )


def _bytes_in(byte_size: int, offset: int, shape: int, *outputs: dict[str, Any]) -> Case:
    content = {"inputs": [tensor("INPUT0", "BYTES", [shape], **_place("r", byte_size, offset))]}
    if outputs:
        content["outputs"] = list(outputs)
    return infer("bytes", "identity_bytes", content)


TEXT = struct.pack("<I5sI", 5, b"hello", 0)

INFER = [
    Scenario("input", (register("r"), _input("r", 16))),
    Scenario("input with an offset", (register("r"), _input("r", 16, 64))),
    Scenario("input with an odd offset", (register("r"), _input("r", 16, 3))),
    Scenario("input up to the end", (register("r"), _input("r", 16, 4096 - 16))),
    Scenario("input beyond the end", (register("r"), _input("r", 16, 4096 - 12))),
    Scenario("input offset at the end", (register("r"), _input("r", 16, 4096))),
    Scenario("input offset beyond the end", (register("r"), _input("r", 16, 8192))),
    Scenario("input size beyond the region", (register("r"), _input("r", 8192))),
    Scenario("input offset and size overflow", (register("r"), _input("r", 2**64 - 8, 16))),
    Scenario("input offset overflow", (register("r"), _input("r", 16, 2**64 - 8))),
    Scenario("input without size", (register("r"), _input("r", None))),
    Scenario("input size too small", (register("r"), _input("r", 12))),
    Scenario("input size too big", (register("r"), _input("r", 20))),
    Scenario("input of nothing", (register("r"), _input("r", 0, None, 0))),
    Scenario("input of an unknown region", (_input("r", 16),)),
    Scenario("input of a region that was unregistered", (register("r"), system("unregister", "r"), _input("r", 16))),
    Scenario("output", (register("r"), _output("r", 16))),
    Scenario("output with an offset", (register("r"), _output("r", 16, 100))),
    Scenario("output in a larger place", (register("r"), _output("r", 64, 16))),
    Scenario("output too small", (register("r"), _output("r", 12))),
    Scenario("output without size", (register("r"), _output("r", None))),
    Scenario("output up to the end", (register("r"), _output("r", 16, 4080))),
    Scenario("output beyond the end", (register("r"), _output("r", 16, 4081))),
    Scenario("output offset beyond the end", (register("r"), _output("r", 16, 4096))),
    Scenario("output of an unknown region", (_output("r", 16),)),
    Scenario("output with binary_data false", (register("r"), _output("r", 16, binary_data=False))),
    Scenario("output with classification nought", (register("r"), _output("r", 16, classification=0))),
    Scenario(
        "inputs and outputs",
        (register("r"), register("s", B), _plain([_place("r", 64), _place("r", 64, 64)], [_place("s", 64), _place("s", 64, 64)])),
    ),
    Scenario(
        "all in one region", (register("r"), _plain([_place("r", 64), _place("r", 64, 64)], [_place("r", 64, 128), _place("r", 64, 192)]))
    ),
    Scenario("both inputs in one place", (register("r"), _plain([_place("r", 64, 32)] * 2, [{}, {}]))),
    Scenario("one output in a region, one as JSON", (register("r"), _plain([_place("r", 64)] * 2, [_place("r", 64, 512), {}]))),
    Scenario(
        "one output in a region, one binary", (register("r"), _plain([_place("r", 64)] * 2, [_place("r", 64, 512), {"binary_data": True}]))
    ),
    Scenario("outputs as JSON and in a region", (register("r"), _plain([_place("r", 64)] * 2, [{}, _place("r", 64, 512)], id="mixed"))),
    Scenario("bytes", (register("r"), _bytes_in(8, 0, 2))),
    Scenario(
        "bytes to a region",
        (
            register("r"),
            infer(
                "fill",
                "identity_bytes",
                {
                    "inputs": [tensor("INPUT0", "BYTES", [2], binary_data_size=len(TEXT))],
                    "outputs": [{"name": "OUTPUT0", "parameters": _place("r", len(TEXT), 7)}],
                },
                TEXT,
            ),
            _bytes_in(len(TEXT), 7, 2),
            _bytes_in(len(TEXT) - 1, 7, 2),
            _bytes_in(len(TEXT), 7, 1),
            _bytes_in(len(TEXT), 7, 2, {"name": "OUTPUT0", "parameters": _place("r", 64, 1024)}),
            _bytes_in(len(TEXT), 7, 2, {"name": "OUTPUT0", "parameters": _place("r", 8, 2048)}),
        ),
    ),
    Scenario(
        "a batch in a region",
        (
            register("r"),
            infer(
                "batch",
                "simple",
                {
                    "inputs": [tensor(f"INPUT{at}", "INT32", [3, 16], **_place("r", 192, at * 192)) for at in (0, 1)],
                    "outputs": [{"name": "OUTPUT1", "parameters": _place("r", 192, 1024)}],
                },
            ),
        ),
    ),
    Scenario("region and region's own data", (register("r"), _plain([_place("r", 64)] * 2, [{"classification": 2}, _place("r", 64, 700)]))),
]

_TWICE = "24.10 takes an object only once"
_KEY = "newer releases check the key first"
_SIZE = "the sizes are checked before anything is mapped"
_NOTHING = "newer releases accept a part of no bytes"
_WORKER = "only workers read clients' pages, and what they refuse is sent as text/plain; the words are the same"
_STRINGS = "[request id: <id_unknown>] "
_INPUT = "inference input 'INPUT0' for model 'identity_bytes'"
_RESERVED = "as the key contains the reserved prefix 'triton_python_backend_shm_region_'"
DIFFERENCES: dict[str, Sequence[Difference]] = {
    "two, listed in order of name": [Difference(_TWICE, 200), Difference(_TWICE, 200)],
    "the same object by another name": [Difference(_TWICE, 200), Difference(_TWICE, 200)],
    "unregister one": [Difference(_TWICE, 200), Difference(_TWICE, 200)],
    "key empty": [Difference(_KEY, 400, "cannot register shared memory region 'r' - invalid shm key ''")],
    "key of a slash": [Difference(_KEY, 400, "cannot register shared memory region 'r' - invalid shm key '/'")],
    "key of slashes": [Difference(_KEY, 400, "cannot register shared memory region 'r' - invalid shm key '///'")],
    "key of the python backend": [
        Difference(_KEY, 400, f"cannot register shared memory region 'r' with key '/triton_python_backend_shm_region_1' {_RESERVED}")
    ],
    "key of the python backend without slash": [
        Difference(_KEY, 400, f"cannot register shared memory region 'r' with key 'triton_python_backend_shm_region_1' {_RESERVED}")
    ],
    "size nought": [Difference(_SIZE, 400, "failed to register shared memory region 'r': invalid args")],
    "offset and size overflow": [Difference(_SIZE, 400, "failed to register shared memory region 'r': invalid args")],
    "offset not on a page": [Difference("any byte offset is fine here", 200), Difference("any byte offset is fine here", 200)],
    "cuda register": [
        Difference("24.10 is a GPU build without a GPU", 400, "failed to register CUDA shared memory region: 'r', GPUs not supported")
    ],
    "input offset and size overflow": [
        Difference(
            "newer releases check it",
            400,
            f"Integer overflow detected: byte_size ({2**64 - 8}) + offset (16) exceeds maximum value ({2**64 - 1}) for region 'r'",
        )
    ],
    "input without size": [
        Difference(
            _NOTHING,
            400,
            "[request id: <id_unknown>] input byte size mismatch for input 'INPUT0' for model 'identity_int32'. Expected 16, got 0",
        )
    ],
    "input of nothing": [Difference(_NOTHING, 200)],
    "bytes": [Difference(_WORKER, 400, f"{_STRINGS}expected 2 string elements for {_INPUT}, got 1")],
    "bytes to a region": [
        Difference(
            _WORKER,
            400,
            f"{_STRINGS}incomplete string length indicator for {_INPUT}, expecting 4 bytes but only 3 bytes available. "
            "Please make sure the string length indicator is in one buffer.",
        ),
        Difference(_WORKER, 400, f"{_STRINGS}unexpected number of string elements 2 for {_INPUT}, expecting 1"),
    ],
    "output without size": [
        Difference(
            _NOTHING,
            500,
            "shared memory size specified with the request for output 'OUTPUT0' (0 bytes) should be at least 16 bytes to hold the results",
        )
    ],
}


@pytest.fixture(autouse=True, scope="module")
def objects() -> Iterator[None]:
    """The two objects, made before the first scenario and unlinked after the last."""
    reset_objects()
    yield
    remove_objects()


@pytest.mark.parametrize("scenario", REGISTER, ids=lambda scenario: scenario.id)
def test_register(scenario: Scenario, oracle: int, farm: int) -> None:
    check_scenario(scenario, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("scenario", CUDA, ids=lambda scenario: scenario.id)
def test_cuda(scenario: Scenario, oracle: int, farm: int) -> None:
    check_scenario(scenario, oracle, farm, DIFFERENCES)


@pytest.mark.parametrize("scenario", INFER, ids=lambda scenario: scenario.id)
def test_infer(scenario: Scenario, oracle: int, farm: int) -> None:
    check_scenario(scenario, oracle, farm, DIFFERENCES)


def test_input_in_a_region_with_an_offset(farm: int) -> None:
    """Offsets of requests count from where the region begins, not from where its object does."""
    reset_objects()
    values = struct.unpack_from("<4i", CONTENT, 4096 + 8)
    assert register("r", A, 4096, 4096).send(farm).status == 200
    try:
        reply = _input("r", 16, 8).send(farm)
        assert reply.json["outputs"][0]["data"] == list(values)
    finally:
        system("unregister").send(farm)

"""Shared-memory regions over gRPC: registering, status, unregistering, and inputs and outputs in them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
from tritonclient.grpc import service_pb2 as pb

from ..servers import wait_until
from .grpc_case import UNSET, Call, Differs, Pair, Script, Side, agreed, infer, output, said, send, tensor, unsigned
from .scenario import KEYS, OBJECT_BYTE_SIZE, object_path, remove_objects, reset_objects

A, B = KEYS
WORDS = list(range(16))


def _register(name: str, key: str = A, byte_size: int = 4096, offset: int = 0) -> Call:
    return Call("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name=name, key=key, offset=offset, byte_size=byte_size))


def _status(name: str = "") -> Call:
    return Call("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=name))


def _unregister(name: str = "") -> Call:
    return Call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=name))


def _cuda(name: str, handle: bytes = bytes(64), byte_size: int = 64) -> Call:
    return Call("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name=name, raw_handle=handle, byte_size=byte_size))


def _cuda_status(name: str = "") -> Call:
    return Call("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name=name))


def _cuda_unregister(name: str = "") -> Call:
    return Call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest(name=name))


CLEAN = (_unregister(), _cuda_unregister())


def _with_status(*calls: Call) -> Script:
    return (*calls, _status())


REGISTER: dict[str, Script] = {
    "nothing registered": (_status(), _status("r"), _cuda_status(), _cuda_status("r")),
    "one": _with_status(_register("r"), _status("r")),
    "with an offset": _with_status(_register("r", A, 8192, 4096)),
    "two": _with_status(_register("z"), _register("a", B)),
    "twice the same": _with_status(_register("r"), _register("r")),
    "twice, another object": _with_status(_register("r"), _register("r", B)),
    "key without slash": _with_status(_register("r", A[1:])),
    "keys unknown": tuple(_register("r", key) for key in ("/tensorfarm-parity-nosuch", "/a/b", "../etc/passwd", "/" + "k" * 300)),
    "key empty": (_register("r", ""),),
    "keys of slashes": (_register("r", "/"), _register("r", "///")),
    "keys of the python backend": (
        _register("r", "/triton_python_backend_shm_region_1"),
        _register("r", "triton_python_backend_shm_region_1"),
    ),
    "beyond the object": (
        _register("r", A, OBJECT_BYTE_SIZE + 1),
        _register("r", A, 2**40),
        _register("r", A, 2**64 - 1),
        _register("r", A, 1, OBJECT_BYTE_SIZE),
        _register("r", A, 4096, OBJECT_BYTE_SIZE * 2),
        _status(),
    ),
    "size nought": (_register("r", A, 0),),
    "offset and size overflow": (_register("r", A, 8192, 2**64 - 4096),),
    "offset not on a page": (_register("r", A, 64, 16),),
    "no name": _with_status(_register(""), _status("")),
    "odd names": _with_status(_register("a b/c ü"), _status("a b/c ü"), _unregister("a b/c ü")),
    "unregister": _with_status(_register("r"), _register("s", B), _unregister("r"), _unregister("r"), _unregister("u"), _status("r")),
    "register again": _with_status(_register("r"), _unregister("r"), _register("r", B)),
    "system and cuda": (_register("r"), _cuda("r"), _cuda_status("r"), _cuda_unregister("r"), _cuda_unregister(), _status()),
    "cuda": (_cuda("c"), _cuda("c", b"x"), _cuda("c", b""), _cuda("", b""), _cuda_status(), _cuda_status("c"), _cuda_unregister("c")),
}


def _place(region: object = None, byte_size: object = None, offset: object = None, **more: object) -> dict[str, object]:
    given = {"shared_memory_region": region, "shared_memory_byte_size": byte_size, "shared_memory_offset": offset}
    return {**{name: value for name, value in given.items() if value is not None}, **more}


def _input(*place: object, **more: Any) -> Call:
    return infer("asked", tensor("FIRST", "INT32", [2], _place(*place)), outputs=["OTHER"], **more)


def _output(*place: object, id: str = "q", **more: object) -> Call:
    return infer("asked", tensor("FIRST", "INT32", [2], int=[7, 8]), outputs=[output("OTHER", **_place(*place, **more))], id=id)


R, S = _register("r"), _register("s", B)
ODD: Sequence[Sequence[object]] = (
    *(("u", 8), ("", 8), ("r",), ("r", None, 4), (None, 8), (None, None, 4), (None, 8, 4)),
    *(("r", "8"), ("r", 8, "4"), (5, 8), ("r", unsigned(8)), ("r", UNSET), (UNSET, 8), ("r", 8, UNSET), ("r", True), ("r", 8.0)),
    *(("r", 8, 4092), ("r", 8, 4096), ("r", 8, 8192), ("r", 8192), ("r", 4), ("r", 12), ("r", -1), ("r", 8, -1)),
    *(("r", 8, 2**63 - 1), ("r", 2**63 - 1, 8)),
)
PLAIN = [tensor(f"INPUT{at}", "INT32", [16], int=WORDS) for at in (0, 1)]
TEXT = struct.pack("<I5sI", 5, b"hello", 0)


def _strings(byte_size: int, offset: int, *places: Mapping[str, object]) -> Call:
    place = _place("r", byte_size, offset)
    return infer("batched_bytes", tensor("INPUT0", "BYTES", [1, 2], place), outputs=[output("OUTPUT0", **one) for one in places], id="q")


INFER: dict[str, Script] = {
    "inputs": (R, _input("r", 8), _input("r", 8, 64), _input("r", 8, 3), _input("r", 8, 4088), _input("r", 8, id="q")),
    "odd inputs": (R, *(_input(*place, id=id) for place in ODD for id in ("", "q"))),
    "input of no bytes": (R, _input("r", 0)),
    "input after unregister": (R, _unregister("r"), _input("r", 8)),
    "inputs in regions and as raw": (
        R,
        infer("plain", tensor("INPUT0", "INT32", [16], _place("r", 64)), tensor("INPUT1", "INT32", [16]), raw=[bytes(64)]),
        infer("plain", tensor("INPUT0", "INT32", [16]), tensor("INPUT1", "INT32", [16], _place("r", 64)), raw=[bytes(64)]),
        infer("plain", tensor("INPUT0", "INT32", [16], _place("r", 64)), tensor("INPUT1", "INT32", [16])),
        infer("plain", tensor("INPUT0", "INT32", [16], _place("r", 64)), PLAIN[1]),
        infer("plain", tensor("INPUT0", "INT32", [16], _place("r", 64)), PLAIN[1], raw=[bytes(64)]),
        infer("plain", *(tensor(f"INPUT{at}", "INT32", [16], _place("r", 64, at * 64)) for at in (0, 1)), raw=[bytes(64)]),
    ),
    "contents too": (R, infer("asked", tensor("FIRST", "INT32", [2], _place("r", 8), int=[1, 2]), id="q")),
    "other kinds of regions' parameters first": (
        R,
        infer("asked", tensor("FIRST", "FP32", [2], _place("u", 8))),
        infer("asked", tensor("NOSUCH", "INT32", [2], _place("u", 8))),
        infer("asked", tensor("FIRST", "INT32", [3], _place("r", 8))),
        infer("nope", tensor("FIRST", "INT32", [2], _place("u", 8))),
        infer("asked", tensor("FIRST", "INT32", [2], _place("u", 8)), parameters={"triton_x": 1}),
    ),
    "outputs": (R, _output("r", 8), _output("r", 8, 100), _output("r", 64, 16), _output("r", 8, 4088), _output("r", 8, 500, id="")),
    "odd outputs": (R, *(_output(*place) for place in ODD)),
    "output of no bytes": (R, _output("r", 0)),
    "output and classification": (
        R,
        _output("r", 8, classification=1),
        _output("r", 4, classification=1),
        _output("r", 8, classification=0),
    ),
    "one output of two": (
        S,
        infer("plain", *PLAIN, outputs=[output("OUTPUT0", **_place("s", 64)), "OUTPUT1"]),
        infer("plain", *PLAIN, outputs=["OUTPUT0", output("OUTPUT1", **_place("s", 64, 128))]),
        infer("plain", *PLAIN, outputs=[output("OUTPUT1", **_place("s", 64, 512)), output("OUTPUT0", **_place("s", 64, 768))], id="q"),
        infer("plain", *PLAIN, outputs=[output("OUTPUT0", **_place("s", 64)), "NOSUCH"]),
        infer("plain", *PLAIN, outputs=[output("OUTPUT0", **_place("s", 60)), output("OUTPUT1", **_place("s", 64, 2048))]),
    ),
    "all in one region": (
        R,
        infer(
            "plain",
            *(tensor(f"INPUT{at}", "INT32", [16], _place("r", 64, at * 64)) for at in (0, 1)),
            outputs=[output(f"OUTPUT{at}", **_place("r", 64, 128 + at * 64)) for at in (0, 1)],
        ),
    ),
    "ensembles": (
        R,
        S,
        infer(
            "over_plain",
            tensor("A", "INT32", [16], _place("r", 64)),
            tensor("B", "INT32", [16], int=WORDS),
            outputs=[output("SUM", **_place("s", 64))],
        ),
        infer(
            "over_plain",
            *(tensor(name, "INT32", [16], int=WORDS) for name in "AB"),
            outputs=[output("SUM", **_place("s", 60))],
            id="q",
        ),
    ),
    "errors of models": (S, Call("ModelInfer", said("answers", "NOT_FOUND", outputs=[output("SAID", **_place("s", 64))]))),
    "strings": (
        R,
        infer(
            "batched_bytes",
            tensor("INPUT0", "BYTES", [1, 2]),
            raw=[TEXT],
            outputs=[output("OUTPUT0", **_place("r", len(TEXT), 7))],
        ),
        _strings(len(TEXT), 7),
        _strings(len(TEXT), 7, _place("r", 64, 1024)),
        _strings(len(TEXT), 7, _place("r", 8, 2048)),
    ),
    "strings that are cut": (R, _strings(8, 0), _strings(3, 0)),
}

_KEY = "newer releases check the key first"
_SIZE = "the sizes are checked before anything is mapped"
_NOTHING = "newer releases accept a part of no bytes"
_GPU = "24.10 is a GPU build without a GPU"
_RESERVED = "as the key contains the reserved prefix 'triton_python_backend_shm_region_'"


def _refused(why: str, text: str) -> Differs:
    return Differs(why, "INVALID_ARGUMENT", text)


def _no_gpu(name: str) -> Differs:
    return _refused(_GPU, f"failed to register CUDA shared memory region: '{name}', GPUs not supported")


DIFFERENCES: dict[str, Sequence[Differs]] = {
    "key empty": [_refused(_KEY, "cannot register shared memory region 'r' - invalid shm key ''")],
    "keys of slashes": [_refused(_KEY, f"cannot register shared memory region 'r' - invalid shm key '{key}'") for key in ("/", "///")],
    "keys of the python backend": [
        _refused(_KEY, f"cannot register shared memory region 'r' with key '{slash}triton_python_backend_shm_region_1' {_RESERVED}")
        for slash in ("/", "")
    ],
    "size nought": [_refused(_SIZE, "failed to register shared memory region 'r': invalid args")],
    "offset and size overflow": [_refused(_SIZE, "failed to register shared memory region 'r': invalid args")],
    "offset not on a page": [Differs("any byte offset is fine here", "OK")],
    "ensembles": [
        Differs(
            "the output is called by the name that the step knows it by",
            "INTERNAL",
            "in ensemble 'over_plain', shared memory size specified with the request for output 'OUTPUT0' (60 bytes) "
            "should be at least 64 bytes to hold the results",
        )
    ],
    "system and cuda": [_no_gpu("r")],
    "cuda": [_no_gpu("c"), _no_gpu("c"), _no_gpu("c"), _no_gpu("")],
    "input of no bytes": [
        _refused(_NOTHING, "[request id: <id_unknown>] input byte size mismatch for input 'FIRST' for model 'asked'. Expected 8, got 0")
    ],
    "output of no bytes": [
        Differs(
            _NOTHING,
            "INTERNAL",
            "shared memory size specified with the request for output 'OTHER' (0 bytes) should be at least 8 bytes to hold the results",
        )
    ],
}


@pytest.fixture(autouse=True, scope="module")
def objects() -> Iterator[None]:
    """The two objects."""
    reset_objects()
    yield
    remove_objects()


BOTH = {**REGISTER, **INFER}


def _done(side: Side, call: Call) -> bool:
    return send(side, call).code == "OK"


@pytest.mark.parametrize("id", BOTH)
def test_shared_memory(id: str, grpc_ends: Pair) -> None:
    """First at the one, then at the other: both use the same objects, whose contents are compared as well."""

    def run(side: Side) -> list[Any]:
        reset_objects()
        try:
            answers = [send(side, call) for call in BOTH[id]]
            return [answers, {key: object_path(key).read_bytes() for key in KEYS}]
        finally:
            for call in CLEAN:
                # A region may be in use for a moment after the response to the last request with it.
                wait_until(partial(_done, side, call), "the regions to go")

    listed = list(DIFFERENCES.get(id, ()))
    (wanted, kept), (got, changed) = run(grpc_ends.theirs), run(grpc_ends.ours)
    for call, theirs, ours in zip(BOTH[id], wanted, got, strict=True):
        agreed(call, theirs, ours, listed)
    assert not listed, f"the servers agree on {id}: take it off the list of differences"
    if id not in DIFFERENCES:
        assert changed == kept, "the objects' contents differ"

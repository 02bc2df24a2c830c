"""Restricted protocols, and metadata that becomes parameters of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from .grpc_case import HEALTH, Call, Differs, Metadata, Pair, Script, check, request, tensor
from .grpc_servers import Started, connected, grpc_pair
from .grpc_stream import Talk, same
from .model_copies import copy_model

KEY = "triton-grpc-protocol-"
CATEGORIES = {
    "health": ("ServerLive", "ServerReady", "ModelReady", f"/{HEALTH}/Check"),
    "metadata": ("ServerMetadata", "ModelMetadata"),
    "model-config": ("ModelConfig",),
    "statistics": ("ModelStatistics",),
    "model-repository": ("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    "shared-memory": tuple(f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")),
    "trace": ("TraceSetting",),
    "logging": ("LogSettings",),
    "inference": ("ModelInfer",),
}
SHUT = ("metadata", "model-repository", "shared-memory", "trace", "logging")
"""Restricted together, by one key; the others each by their own."""

FLAGS = (
    f"--grpc-restricted-protocol={','.join(SHUT)}:shut=open sesame",
    *(f"--grpc-restricted-protocol={name}:own-{name}={name}=1" for name in ("health", "model-config", "statistics", "inference")),
    "--grpc-header-forward-pattern=^(x-.*|user-agent|.*yY.*|priority|triton_.*|sequence_id|headers)$",
)


def _key(category: str) -> tuple[str, str]:
    return (f"{KEY}shut", "open sesame") if category in SHUT else (f"{KEY}own-{category}", f"{category}=1")


def _refused(category: str) -> Sequence[Metadata]:
    """Metadata that does not open a category: what else begins alike, a wrong value, and the value that counts is the first."""
    name, value = _key(category)
    return (
        (),
        ((name, ""),),
        ((name, "x"),),
        ((name, value.upper()),),
        ((name, value + "x"),),
        ((name[len(KEY) :], value),),
        ((KEY, value),),
        (("triton-http-api-shut", value),),
        ((name, "x"), (name, value)),
        ((f"{KEY}shut", "x"), (f"{KEY}own-health", "x")),
    )


def _nameless(response: Any) -> None:
    """Name and version are each server's own; and tensorfarm says that it has only what it has."""
    if isinstance(response, pb.ServerMetadataResponse):
        response.name = response.version = "own"
        del response.extensions[:]


OTHER = ("ModelStatistics", "RepositoryModelLoad", "SystemSharedMemoryRegister", "CudaSharedMemoryRegister", "TraceSetting")
"""Methods that answer an empty message otherwise than the real server, or with times."""


def _opened(method: str, category: str, message: Message | bytes = b"") -> Script:
    name, value = _key(category)
    opens: Sequence[Metadata] = (((name, value),), ((name, value), (name, "x")), (("x-other", "1"), (name, value)))
    return tuple(Call(method, message, metadata, _nameless) for metadata in opens)


CASES: dict[str, Script] = {
    **{
        f"{method} shut": tuple(Call(method, b"", metadata) for metadata in _refused(category))
        for category, methods in CATEGORIES.items()
        for method in methods
    },
    **{
        f"{method} open": _opened(method, category) for category, methods in CATEGORIES.items() for method in methods if method not in OTHER
    },
    "ModelStatistics open": _opened("ModelStatistics", "statistics", pb.ModelStatisticsRequest(name="nope")),
    "RepositoryModelLoad open": _opened("RepositoryModelLoad", "model-repository", pb.RepositoryModelLoadRequest(model_name="asked")),
    "SystemSharedMemoryRegister open": _opened(
        "SystemSharedMemoryRegister", "shared-memory", pb.SystemSharedMemoryRegisterRequest(name="r", key="/no-such-key", byte_size=8)
    ),
    "TraceSetting open": (Call("TraceSetting", b"", (_key("trace"),)),),
    "no message to what is shut": (Call("ServerLive", b"\xff"), Call("LogSettings", b"\xff")),
    "no message to what is open": (Call("ServerLive", b"\xff", (_key("health"),)),),
}

OPEN = _key("inference")
FIRST = tensor("FIRST", "INT32", [1], int=[1])


def _asked(metadata: Metadata, **parameters: object) -> Call:
    """What the model is shown of metadata."""
    return Call("ModelInfer", request("asked", FIRST, outputs=["SAID", "PARAMETERS"], parameters=parameters), (*metadata, OPEN), _agentless)


def _agentless(response: Any) -> None:
    """The client's own name is there, whatever it is."""
    contents = list(response.raw_output_contents)
    shown = json.loads(
        contents[-1][4:], object_pairs_hook=lambda pairs: [(name, "…" if name == "user-agent" else value) for name, value in pairs]
    )
    del response.raw_output_contents[:]
    response.raw_output_contents.extend([*contents[:-1], str(shown).encode()])


FORWARDED: dict[str, Script] = {
    "forwarded": (
        _asked(()),
        _asked((("x-a", "1"),)),
        _asked((("x-b", "2"), ("x-a", ""), ("other", "3"))),
        _asked((("zyyz", "part"),)),
        _asked((("x-a", "1"),), custom=5),
        _asked((("x-spaces", "a  b, c"),)),
    ),
    "forwarded bytes": (_asked((("x-c-bin", b"abc"),)),),
    "one key twice": (_asked((("x-a", "1"), ("x-a", "2"))),),
    "a parameter too": (_asked((("x-a", "of metadata"),), **{"x-a": "of parameters"}),),
    "reserved": (_asked((("priority", "5"),)), _asked((("triton_x", "5"),)), _asked((("sequence_id", "5"),)), _asked((("headers", "5"),))),
    "refused": (_asked((("x-a", "1"),), triton_x=1), Call("ModelInfer", request("asked"), (("x-a", "1"), OPEN))),
}
_ONE_VALUE = "24.10 shows the model a name as often as it came; here a name has one value"
NO_TRACING = Differs("tensorfarm does not trace yet", "UNAVAILABLE", "the server does not support tracing")


def _reserved(name: str) -> Differs:
    return Differs("newer releases refuse it", "INVALID_ARGUMENT", f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")


_UNREAD = "the metadata decide before anything of a message is read"


def _shut(key: str) -> Differs:
    return Differs(_UNREAD, "UNAVAILABLE", f"This protocol is restricted, expecting header '{KEY}{key}'")


DIFFERENCES: dict[str, Sequence[Differs]] = {
    "no message to what is shut": [_shut("own-health"), _shut("shut")],
    "TraceSetting open": [NO_TRACING],
    "one key twice": [Differs(_ONE_VALUE, "OK")],
    "a parameter too": [Differs(_ONE_VALUE, "OK")],
    "reserved": [_reserved(name) for name in ("priority", "triton_x", "sequence_id", "headers")],
}


def _prepare(home: Path) -> None:
    copy_model("asked", home / "models" / "asked")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """Both servers with restrictions."""
    with grpc_pair(
        tmp_path_factory.mktemp("restricted"), "--model-control-mode=explicit", "--load-model=asked", *FLAGS, prepare=_prepare
    ) as both:
        yield both


@pytest.fixture(scope="module")
def grpc_ends(started: Started) -> Iterator[Pair]:
    """The same, with channels."""
    with connected(started) as both:
        yield both


@pytest.mark.parametrize("id", CASES)
def test_restricted(id: str, grpc_ends: Pair) -> None:
    check(grpc_ends, id, CASES[id], DIFFERENCES)


@pytest.mark.parametrize("id", FORWARDED)
def test_forwarded(id: str, grpc_ends: Pair) -> None:
    check(grpc_ends, id, FORWARDED[id], DIFFERENCES)


REQUESTS = [request("asked", FIRST, outputs=["PARAMETERS"], id=str(at)) for at in (1, 2)]
STREAMS: dict[str, Talk] = {
    **{f"shut {at}": Talk(REQUESTS, metadata) for at, metadata in enumerate(_refused("inference"))},
    "shut, nothing sent": Talk([]),
    "shut, no message": Talk([b"\xff"]),
    "open": Talk(REQUESTS, (OPEN,)),
    "forwarded": Talk(REQUESTS, (("x-a", "1"), OPEN)),
}


@pytest.mark.parametrize("id", STREAMS)
def test_stream(id: str, grpc_ends: Pair) -> None:
    """The metadata of a call open it, and are parameters of each of its requests."""
    same(STREAMS[id].on(grpc_ends.theirs), STREAMS[id].on(grpc_ends.ours))

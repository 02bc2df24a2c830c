"""Every endpoint over a real socket, against a service that is a stand-in: routing, bodies, statuses, content types."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from tensorfarm.server.door.peer import peer_is_local
from tensorfarm.server.http import front, inference
from tensorfarm.server.http.exchange import Answer, HttpRequest, Reply
from tensorfarm.server.http.front import infer_target, own_front
from tensorfarm.server.http.infer_head import InferHead
from tensorfarm.server.http.metrics_page import metrics_door
from tensorfarm.server.http.model_repository import file_content
from tensorfarm.server.service import Service
from tests.http.doors import Client, a_client, an_arena, run
from tests.http.small_service import SmallService

JSON, PLAIN = "application/json", "text/plain"
NOT_ALLOWED = b'{"error":"Method Not Allowed"}'
NOT_FOUND = b'{"error":"Not Found"}'
HUGE = "99999999999999999999"
TOO_HUGE = (
    b'{"error":"failed to get model version from specified version string \'99999999999999999999\' (details: stol),'
    b' version should be an integral value > 0"}'
)


def infer(service: object, head: InferHead, request: HttpRequest, answer: Answer) -> None:
    """A stand-in for inference: says what it was asked."""
    content = bytes(request.body.view)
    request.body.release()
    answer(Reply(200, ((b"Content-Type", b"application/json"),), (json.dumps([head.model, head.version, len(content)]).encode(),)))


@asynccontextmanager
async def served(
    rules: dict[str, tuple[str, str]] | None = None, change: Callable[[SmallService], object] | None = None
) -> AsyncIterator[tuple[Client, SmallService]]:
    """A client of a front with a small service behind it."""
    with an_arena() as arena:
        service = SmallService(arena)
        if change is not None:
            change(service)
        door = own_front(cast(Service, service), rules or {}).door()
        await door.start("127.0.0.1", 0, False)
        try:
            async with a_client(door) as client:
                yield client, service
        finally:
            await door.close()


async def ask(client: Client, method: str, path: str, body: bytes | None = None, headers: str = "") -> tuple[int, str, bytes]:
    """Status, content type and body of the answer to one request."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}"
    if body is not None:
        head += f"Content-Length: {len(body)}\r\n"
    await client.send(f"{head}\r\n".encode() + (body or b""))
    status, fields, content = await client.reply(head_only=method == "HEAD")
    assert int(fields["content-length"]) == len(content) or method == "HEAD"
    return status, fields["content-type"], content


Asked = tuple[str, str, bytes | None, int, str, bytes | object]

SERVER = {"name": "small", "version": "2.73.0", "extensions": ["classification", "statistics"]}
MODEL = {
    "name": "add",
    "versions": ["1", "3"],
    "platform": "onnxruntime",
    "inputs": [{"name": "A", "datatype": "INT32", "shape": [-1, 4, -1]}],
    "outputs": [{"name": "S", "datatype": "BYTES", "shape": [-1, 1]}],
}
LOG = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}
HANDLE = base64.b64encode(bytes(range(64))).decode()

ROUTES: list[Asked] = [
    ("GET", "/v2/health/live", None, 200, PLAIN, b""),
    ("GET", "/v2/health/ready?x=1", None, 200, PLAIN, b""),
    ("HEAD", "/v2/health/ready", None, 405, PLAIN, b""),
    ("OPTIONS", "/v2/health/ready", None, 405, PLAIN, NOT_ALLOWED),
    ("POST", "/v2/health/ready", b"", 405, PLAIN, NOT_ALLOWED),
    ("GET", "/v2/health/ready/", None, 404, PLAIN, NOT_FOUND),
    ("GET", "//v2/health/ready", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2/./health/ready", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/%76%32/health/ready", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/V2", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2#x", None, 404, PLAIN, NOT_FOUND),
    ("GET", "http://x/v2/health/ready", None, 200, PLAIN, b""),
    ("OPTIONS", "*", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/", None, 404, PLAIN, NOT_FOUND),
    ("HEAD", "/", None, 404, PLAIN, b""),
    ("GET", "/metrics", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2", None, 200, JSON, SERVER),
    ("GET", "/v2?x", None, 200, JSON, SERVER),
    ("HEAD", "/v2", None, 405, JSON, b""),
    ("PUT", "/v2", b"", 405, JSON, NOT_ALLOWED),
    ("GET", "/v2/", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2/models/add", None, 200, JSON, MODEL),
    ("GET", "/v2/models/add/versions/01", None, 200, JSON, {**MODEL, "versions": ["1"]}),
    ("GET", "/v2/models/add/", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2/models/a%64d", None, 404, JSON, b'{"error":"Request for unknown model: \'a%64d\' is not found"}'),
    ("GET", "/v2/models/add/versions/x", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2/models/add/versions/-1", None, 404, PLAIN, NOT_FOUND),
    ("GET", f"/v2/models/add/versions/{HUGE}", None, 400, JSON, TOO_HUGE),
    ("GET", "/v2/models/add/versions/" + "9" * 5000, None, 400, JSON, TOO_HUGE.replace(HUGE.encode(), b"9" * 5000)),
    (
        "GET",
        "/v2/models/add/versions/2",
        None,
        503,
        JSON,
        b'{"error":"Request for unknown model: \'add\' version 2 is not at ready state"}',
    ),
    ("POST", "/v2/models/add", b"", 405, JSON, NOT_ALLOWED),
    ("GET", "/v2/models", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2/models/a/b", None, 404, PLAIN, NOT_FOUND),
    ("GET", "/v2/models/add/ready", None, 200, PLAIN, b""),
    ("GET", "/v2/models/add/versions/1/ready", None, 200, PLAIN, b""),
    ("GET", "/v2/models/add/versions/4/ready", None, 400, PLAIN, b'{"error":"Model version not ready"}'),
    ("GET", "/v2/models/add/versions/2/ready", None, 400, PLAIN, b'{"error":"Model version not ready"}'),
    ("GET", "/v2/models/nope/ready", None, 400, PLAIN, b'{"error":"Model version not ready"}'),
    ("GET", f"/v2/models/nope/versions/{HUGE}/ready", None, 400, PLAIN, TOO_HUGE),
    ("POST", "/v2/models/add/ready", b"", 405, PLAIN, NOT_ALLOWED),
    ("POST", "/v2/models/add/config", b"", 405, JSON, NOT_ALLOWED),
    ("GET", "/v2/models/nope/config", None, 404, JSON, b'{"error":"Request for unknown model: \'nope\' is not found"}'),
    ("GET", "/v2/models/nope/stats", None, 400, JSON, b'{"error":"requested model \'nope\' is not available"}'),
    (
        "GET",
        "/v2/models/add/versions/7/stats",
        None,
        400,
        JSON,
        b'{"error":"requested model version is not available for model \'add\'"}',
    ),
    ("GET", f"/v2/models/add/versions/{HUGE}/stats", None, 400, JSON, TOO_HUGE),
    ("POST", "/v2/models/stats", b"", 405, JSON, NOT_ALLOWED),
    ("POST", "/v2/models/add/infer", b"{}", 200, JSON, ["add", "", 2]),
    ("POST", "/v2/models/add/infer?x", b"", 200, JSON, ["add", "", 0]),
    ("POST", "/v2/models/add/versions/007/infer", b"{}", 200, JSON, ["add", "7", 2]),
    ("POST", "/v2/models/stats/infer", b"{}", 200, JSON, ["stats", "", 2]),
    ("POST", "/v2/models/infer/infer", b"{}", 200, JSON, ["infer", "", 2]),
    ("POST", f"/v2/models/add/versions/{HUGE}/infer", b"{}", 400, PLAIN, TOO_HUGE),
    ("POST", "/v2/models/add/versions/x/infer", b"{}", 404, PLAIN, NOT_FOUND),
    ("POST", "/v2/models//infer", b"{}", 404, PLAIN, NOT_FOUND),
    ("POST", "/v2/models/infer", b"{}", 405, JSON, NOT_ALLOWED),
    ("GET", "/v2/models/add/infer", None, 405, PLAIN, NOT_ALLOWED),
    ("GET", "/v2/models/add/generate", None, 405, JSON, NOT_ALLOWED),
    ("POST", "/v2/models/add/generate_stream", b"[]", 500, JSON, b'{"error":"attempt to get members for non-object"}'),
    (
        "POST",
        "/v2/models/add/versions/9/generate",
        b"",
        404,
        JSON,
        b'{"error":"Request for unknown model: \'add\' version 9 is not found"}',
    ),
    ("GET", "/v2/models/add/trace/setting", None, 503, JSON, b'{"error":"the server does not support tracing"}'),
    ("GET", "/v2/models/add/versions/1/trace/setting", None, 404, PLAIN, NOT_FOUND),
    ("POST", "/v2/trace/setting", b"{}", 503, JSON, b'{"error":"the server does not support tracing"}'),
    ("PUT", "/v2/trace/setting", b"{}", 405, JSON, NOT_ALLOWED),
    ("GET", "/v2/logging", None, 200, JSON, LOG),
    ("POST", "/v2/logging", b'{"log_info":false,"log_verbose_level":2}', 200, JSON, {**LOG, "log_info": False, "log_verbose_level": 2}),
    ("POST", "/v2/logging", b"[]", 200, JSON, LOG),
    ("POST", "/v2/logging", b"", 500, JSON, b'{"error":"failed to parse the request JSON buffer: The document is empty. at 0"}'),
    (
        "POST",
        "/v2/logging",
        b'{"log_file":"/etc/x"}',
        501,
        JSON,
        b'{"error":"log file location can not be updated through network protocol"}',
    ),
    ("PUT", "/v2/logging", b"", 405, JSON, NOT_ALLOWED),
    ("GET", "/v2/repository/index", None, 405, JSON, NOT_ALLOWED),
    ("POST", "/v2/repository/index", b'{"ready":true}', 200, JSON, [{"name": "add", "version": "1", "state": "READY"}]),
    (
        "POST",
        "/v2/repository/any/index",
        b"",
        200,
        JSON,
        [
            {"name": "add", "version": "1", "state": "READY"},
            {"name": "broken"},
            {"name": "bad\ufffd", "reason": "bad\ufffd"},
            {"name": "add", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"},
        ],
    ),
    ("POST", "/v2/repository/index", b'{"ready":1}', 500, JSON, b'{"error":"attempt to access JSON non-boolean as boolean"}'),
    ("POST", "/v2/repository/index", b"[" * 250_000, 400, JSON, b'{"error":"JSON nesting depth exceeds maximum allowed limit (100)"}'),
    ("POST", "/v2/repository/a/b/index", b"", 404, PLAIN, NOT_FOUND),
    ("POST", "/v2/repository/r/models/add/load", b"", 501, JSON, b'{"error":"\'repository_name\' specification is not supported"}'),
    ("POST", "/v2/repository/models/add/load", b'{"parameters":1}', 500, JSON, b'{"error":"attempt to get members for non-object"}'),
    (
        "POST",
        "/v2/repository/models/add/load",
        b'{"parameters":{"config":1}}',
        500,
        JSON,
        b'{"error":"attempt to access JSON non-string as string"}',
    ),
    (
        "POST",
        "/v2/repository/models/add/load",
        b'{"parameters":{"other":"1"}}',
        500,
        JSON,
        b'{"error":"unexpected error on creating Triton parameter"}',
    ),
    ("POST", "/v2/repository/models/add/load", b"", 200, JSON, b""),
    ("POST", "/v2/repository/models/add/unload", b"nonsense", 200, JSON, b""),
    ("GET", "/v2/repository/models/add/load", None, 405, JSON, NOT_ALLOWED),
    ("GET", "/v2/systemsharedmemory/status", None, 200, JSON, []),
    ("POST", "/v2/systemsharedmemory/status", b"", 405, JSON, NOT_ALLOWED),
    (
        "GET",
        "/v2/systemsharedmemory/region/r/status",
        None,
        404,
        JSON,
        b'{"error":"Unable to find system shared memory region: \'r\'"}',
    ),
    ("GET", "/v2/systemsharedmemory/region//status", None, 404, PLAIN, NOT_FOUND),
    (
        "POST",
        "/v2/systemsharedmemory/register",
        b"{}",
        400,
        JSON,
        b'{"error":"\'region name\' is necessary to register system shared memory region"}',
    ),
    (
        "POST",
        "/v2/systemsharedmemory/region/r/register",
        b"[]",
        400,
        JSON,
        b'{"error":"Shared memory register request has no \'key\' field"}',
    ),
    (
        "POST",
        "/v2/systemsharedmemory/region/r/register",
        b'{"key":"k","byte_size":-1}',
        500,
        JSON,
        b'{"error":"attempt to access JSON non-unsigned-integer as unsigned-integer"}',
    ),
    ("POST", "/v2/systemsharedmemory/region/r/unregister", b"xx", 200, JSON, b""),
    ("POST", "/v2/systemsharedmemory/unregister", b"", 200, JSON, b""),
    (
        "POST",
        "/v2/cudasharedmemory/region/r/register",
        b'{"raw_handle":{"b64":"AAAA"},"device_id":0,"byte_size":4}',
        400,
        JSON,
        b'{"error":"\'raw_handle\' must be a valid base64 encoded cudaIpcMemHandle_t"}',
    ),
    (
        "POST",
        "/v2/cudasharedmemory/region/r/register",
        b'{"raw_handle":{"b64":"AAAA"},"byte_size":4}',
        500,
        JSON,
        b'{"error":"attempt to access non-existing object member \'device_id\'"}',
    ),
    (
        "POST",
        "/v2/cudasharedmemory/region/r/register",
        b'{"raw_handle":"x","device_id":0,"byte_size":4}',
        500,
        JSON,
        b'{"error":"attempt to access non-existing object member \'b64\'"}',
    ),
    ("GET", "/v2/cudasharedmemory/status", None, 200, JSON, []),
]


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (inference, front):
        monkeypatch.setattr(module, "infer", infer)


@pytest.mark.parametrize(("method", "path", "body", "status", "kind", "content"), ROUTES, ids=lambda value: str(value)[:60])
def test_route(method: str, path: str, body: bytes | None, status: int, kind: str, content: object) -> None:
    """Status, content type and body; the connection goes on."""

    async def scenario() -> None:
        async with served() as (client, _):
            got = await ask(client, method, path, body)
            assert got[:2] == (status, kind)
            if isinstance(content, bytes):
                assert got[2] == content
            else:
                assert json.loads(got[2]) == content
                assert list(json.loads(got[2])) == list(cast(Any, content))
            assert (await ask(client, "GET", "/v2/health/live"))[0] == 200

    run(scenario)


def test_health_follows_the_server() -> None:
    """Not started, not ready, exiting."""

    async def scenario() -> None:
        async with served() as (client, service):
            service.live = service.is_ready = False
            assert await ask(client, "GET", "/v2/health/live") == (400, PLAIN, b"")
            assert await ask(client, "GET", "/v2/health/ready") == (400, PLAIN, b"")
            service.exiting = True
            for name in ("live", "ready"):
                assert await ask(client, "GET", f"/v2/health/{name}") == (503, JSON, b'{"error":"Server exiting"}')

    run(scenario)


def test_statistics_and_configuration() -> None:
    """One entry for each ready version, the configuration as the contract prints it."""

    async def scenario() -> None:
        async with served() as (client, _):
            for path, versions in [("stats", ["1", "3"]), ("add/stats", ["1", "3"]), ("add/versions/3/stats", ["3"])]:
                status, kind, content = await ask(client, "GET", f"/v2/models/{path}")
                assert (status, kind) == (200, JSON)
                entries = json.loads(content)["model_stats"]
                assert [(entry["name"], entry["version"]) for entry in entries] == [("add", version) for version in versions]
            config = json.loads((await ask(client, "GET", "/v2/models/add/config"))[2])
            assert (config["name"], config["max_batch_size"], config["input"][0]["dims"]) == ("add", 8, [4, -1])

    run(scenario)


def test_model_control() -> None:
    """What load and unload hand on; refused where the control mode says so."""

    async def scenario() -> None:
        async with served() as (client, service):
            parameters = {"config": "{}", "file:1/m": base64.b64encode(b"\xff\x00ab").decode()}
            assert (await ask(client, "POST", "/v2/repository/models/a/load", json.dumps({"parameters": parameters}).encode()))[0] == 200
            body = b'{"parameters":{"unload_dependents":true}}'
            assert (await ask(client, "POST", "/v2/repository/models/a/unload", body))[0] == 200
            assert service.calls == [
                ("load", "a", {"config": "{}", "file:1/m": b"\xff\x00ab"}),
                ("unload", "a", True),
            ]
            service.explicit = False
            for verb in ("load", "unload"):
                assert await ask(client, "POST", f"/v2/repository/models/a/{verb}", b"") == (
                    503,
                    JSON,
                    b'{"error":"explicit model load / unload is not allowed if polling is enabled"}',
                )

    run(scenario)


def test_cuda_regions() -> None:
    """The decoded handle is what is registered."""

    async def scenario() -> None:
        async with served() as (client, service):
            body = json.dumps({"raw_handle": {"b64": HANDLE}, "device_id": 1, "byte_size": 64}).encode()
            assert await ask(client, "POST", "/v2/cudasharedmemory/region/r/register", body) == (200, JSON, b"")
            assert service.regions.cuda["r"].handle == bytes(range(64))
            for path in ("status", "region/r/status"):
                got = await ask(client, "GET", f"/v2/cudasharedmemory/{path}")
                assert got == (200, JSON, b'[{"name":"r","device_id":1,"byte_size":64}]')
            assert (await ask(client, "POST", "/v2/cudasharedmemory/region/r/unregister", b""))[0] == 200
            assert service.regions.cuda == {}

    run(scenario)


def test_client_shared_memory_off() -> None:
    """Register and unregister are refused whatever they say; status is not."""

    async def scenario() -> None:
        async with served(change=lambda service: setattr(service, "shm_allowed", False)) as (client, _):
            for kind in ("system", "cuda"):
                for path in ("region/r/register", "register", "region/r/unregister", "unregister"):
                    assert await ask(client, "POST", f"/v2/{kind}sharedmemory/{path}", b"nonsense") == (
                        501,
                        JSON,
                        b'{"error":"Client shared memory is disabled. Start the server with \'--allow-client-shm=true\' to enable."}',
                    )
                assert (await ask(client, "GET", f"/v2/{kind}sharedmemory/status"))[0] == 200

    run(scenario)


CATEGORIES = {
    "health": [("GET", "/v2/health/live"), ("GET", "/v2/health/ready"), ("PUT", "/v2/health/live"), ("GET", "/v2/models/add/ready")],
    "metadata": [("GET", "/v2"), ("GET", "/v2/models/add"), ("GET", "/v2/models/add/versions/1"), ("HEAD", "/v2")],
    "inference": [
        ("POST", "/v2/models/add/infer"),
        ("POST", "/v2/models/add/versions/1/infer"),
        ("GET", "/v2/models/add/infer"),
        ("POST", "http://x/v2/models/add/infer"),
        ("POST", "/v2/models/add/generate"),
    ],
    "model-config": [("GET", "/v2/models/add/config"), ("GET", "/v2/models/add/versions/1/config")],
    "statistics": [("GET", "/v2/models/stats"), ("GET", "/v2/models/add/stats")],
    "shared-memory": [
        (method, f"/v2/{kind}sharedmemory/{path}")
        for kind in ("system", "cuda")
        for method, path in [("GET", "status"), ("GET", "region/r/status"), ("POST", "region/r/register"), ("POST", "unregister")]
    ],
    "model-repository": [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/add/load"),
        ("POST", "/v2/repository/models/add/unload"),
    ],
    "trace": [("GET", "/v2/trace/setting"), ("POST", "/v2/models/add/trace/setting")],
    "logging": [("GET", "/v2/logging"), ("POST", "/v2/logging")],
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_restricted(category: str) -> None:
    """Every route of a restricted category wants the header, on every way to it, before anything else is looked at."""

    async def scenario() -> None:
        async with served({category: ("X-Key", "secret")}) as (client, service):
            refused = b'{"error":"This API is restricted, expecting header \'X-Key\'"}'
            for other, routes in CATEGORIES.items():
                for method, path in routes:
                    for headers in ("", "X-Key: Secret\r\n", "X-Key:\r\n", "X-Key: wrong\r\nX-Key: secret\r\n", "X-Keys: secret\r\n"):
                        # Twice: a head that comes again is not read again.
                        status, kind, content = await ask(client, method, path, b"{}", headers)
                        assert (await ask(client, method, path, b"{}", headers))[0] == status
                        assert (status == 403) == (other == category), (method, path, headers)
                        if status == 403:
                            assert kind == PLAIN
                            assert content == (b"" if method == "HEAD" else refused)
                    if other == category:
                        assert (await ask(client, method, path, b"{}", "x-key: secret\r\n"))[0] != 403
            for path in ("/v2/models/add/infer/", "//v2", "/v2/", "/%76%32", "/V2/logging", "/v2/./logging"):
                assert (await ask(client, "GET", path))[0] == 404

    run(scenario)


def test_metrics_page() -> None:
    """The page at its path, an empty one elsewhere, GET only."""

    async def scenario() -> None:
        door = metrics_door(lambda: b"nv_x 1\n")
        await door.start("127.0.0.1", 0, False)
        kind = "text/plain; charset=utf-8"
        async with a_client(door) as client:
            for path, page in [("/metrics", b"nv_x 1\n"), ("/metrics/", b"nv_x 1\n"), ("/metrics?x", b"nv_x 1\n"), ("/", b""), ("/x", b"")]:
                assert await ask(client, "GET", path) == (200, kind, page)
                assert await ask(client, "POST", path, b"") == (405, PLAIN, NOT_ALLOWED)
            assert await ask(client, "HEAD", "/metrics") == (405, PLAIN, b"")
            status, _, body = await big(client)
            assert (status, b"too large" in body) == (413, True)
        await door.close()

    async def big(client: Client) -> tuple[int, dict[str, str], bytes]:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        return await client.reply()

    run(scenario)


def test_infer_target() -> None:
    """Which paths are inference, and of what."""
    assert infer_target("/v2/models/a/infer") == ("a", "")
    assert infer_target("/v2/models/a b/versions/07/infer") == ("a b", "07")
    for middle in ("/", "", "/a/versions/", "/a/versions/²", "/a/x/1"):
        assert infer_target(f"/v2/models{middle}/infer") is None


def test_file_content() -> None:
    """Base64 as the reference reads it."""
    assert file_content("YWJj") == b"abc"
    assert file_content(" Y\nW*J=j ") == b"abc"
    assert file_content("YWI") == b"ab"
    assert file_content("YWJjZ") == b"abc"
    assert file_content("") == b""


def test_peer_is_local() -> None:
    """Loopback in all its spellings, and this host's own address."""
    ours = [("127.0.0.1", "127.0.0.1"), ("127.8.0.1", "0.0.0.0"), ("::1", "::"), ("::ffff:127.0.0.1", "::"), ("10.0.0.7", "10.0.0.7")]
    for peer, own in ours:
        assert peer_is_local(peer, own)
    others = [("10.0.0.8", "10.0.0.7"), ("::ffff:10.0.0.8", "::1"), ("", ""), ("nonsense", "127.0.0.1"), ("fe80::1%eth0", "fe80::2")]
    for peer, own in others:
        assert not peer_is_local(peer, own)


def test_bodies_of_small_endpoints_are_limited() -> None:
    """What is read into ordinary memory keeps to the input limit; a body that nobody asks for is not read at all."""

    async def scenario() -> None:
        async with served({"logging": ("x-key", "secret")}) as (client, service):
            content = b" " * (service.options.http_max_input_size + 1)
            status, _, body = await ask(client, "POST", "/v2/systemsharedmemory/region/r/register", content)
            assert (status, b"exceeds the maximum allowed input size of 4194304 bytes" in body) == (400, True)
            assert (await ask(client, "POST", "/v2/logging", content))[0] == 403
            assert (await ask(client, "POST", "/nothing", content))[0] == 404
            assert service.arena.used_byte_size == 0

    run(scenario)


def test_regions_are_shown_to_clients_that_may_share_memory() -> None:
    """The names and keys of others' memory are nothing for the rest."""

    async def scenario() -> None:
        async with served() as (client, service):
            await service.regions.register("c", b"", 0, 8)
            assert b'"c"' in (await ask(client, "GET", "/v2/cudasharedmemory/status"))[2]
            service.shm_allowed = False
            assert (await ask(client, "GET", "/v2/cudasharedmemory/status"))[2] == b"[]"
            assert (await ask(client, "GET", "/v2/cudasharedmemory/region/c/status"))[0] == 404

    run(scenario)


def test_web_pages_of_other_sites_change_nothing() -> None:
    async def scenario() -> None:
        async with served() as (client, service):
            for site, status in (("cross-site", 403), ("same-origin", 200), ("none", 200)):
                headers = f"Sec-Fetch-Site: {site}\r\n"
                assert (await ask(client, "POST", "/v2/repository/models/add/unload", b"", headers))[0] == status
                assert (await ask(client, "GET", "/v2", None, headers))[0] == 200
            assert len(service.calls) == 2

    run(scenario)

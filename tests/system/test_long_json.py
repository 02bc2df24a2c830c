"""Requests of many megabytes of JSON, several at once: nobody else waits for them, and nothing of them stays."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from ..model_repository import IDENTITIES, Flavour, write_repository
from ..servers import Server, metric, tensorfarm, wait_until
from ..wire import Connection, exchange, request_bytes

COUNT = 4_000_000
PATH = "/v2/models/identity_fp32/infer"
HEALTH = request_bytes("GET", "/v2/health/ready", b"", {})


def _message(elements: bytes = b"1.5") -> bytes:
    """A request of 16 MB, and 16 MB of reply."""
    content = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[%d],"data":[%b]}]}' % (COUNT, b",".join([elements] * COUNT))
    return request_bytes("POST", PATH, content, {})


def _ask(port: int, message: bytes, bodies: list[bytes]) -> None:
    with Connection(port, 60.0) as connection:
        connection.send(message)
        bodies.append(connection.receive().body)


def _pool_used(server: Server) -> float | None:
    return metric(exchange(server.metrics_port, "GET", "/metrics").body.decode(), "nv_pinned_memory_pool_used_bytes")


def test_probes_beside_them(farm: Server) -> None:
    message = _message()
    bodies: list[bytes] = []
    clients = [threading.Thread(target=_ask, args=(farm.http_port, message, bodies)) for _ in range(3)]
    waits_s: list[float] = []
    for client in clients:
        client.start()
    with Connection(farm.http_port) as probe:
        while any(client.is_alive() for client in clients):
            start = time.perf_counter()
            probe.send(HEALTH)
            assert probe.receive().status == 200
            waits_s.append(time.perf_counter() - start)
    for client in clients:
        client.join()
    end = b'"data":[' + b",".join([b"1.5"] * COUNT) + b"]}]}"
    assert [body.endswith(end) for body in bodies] == [True] * 3
    # Read in one go, each of the three would take a third of a second and more, in two parts.
    waits_s.sort()
    assert len(waits_s) > 50, waits_s
    assert waits_s[int(len(waits_s) * 0.99)] < 0.1, waits_s[-20:]
    wait_until(lambda: _pool_used(farm) == 0, "the pool to be free")


def test_clients_that_die_meanwhile(farm: Server) -> None:
    """While their request is read, and as soon as it has been sent."""
    message = _message()
    for pause in (lambda: (_pool_used(farm) or 0) > len(message), lambda: True):
        connection = Connection(farm.http_port)
        connection.send(message)
        wait_until(pause, "the request to be read")
        connection.abort()
        wait_until(lambda: _pool_used(farm) == 0, "the pool to be free")
    assert farm.ready()


def test_faults_inside(farm: Server) -> None:
    message = _message().replace(b"1.5]", b"1.5.]")
    with Connection(farm.http_port) as connection:
        connection.send(message)
        reply = connection.receive()
        assert reply.status == 500
        assert f"at {message.index(b'.]') - message.index(b'{')}" in reply.error
    wait_until(lambda: _pool_used(farm) == 0, "the pool to be free")


def test_exit_beside_them(tmp_path: Path) -> None:
    """What has begun is answered; then the server ends properly."""
    models = tuple(one for one in IDENTITIES if one.name == "identity_fp32")
    repository = write_repository(tmp_path / "models", models, Flavour.ONNX)
    message = _message()
    bodies: list[bytes] = []
    with tensorfarm(repository, folder=tmp_path / "run") as server:
        clients = [threading.Thread(target=_ask, args=(server.http_port, message, bodies)) for _ in range(2)]
        for client in clients:
            client.start()
        wait_until(lambda: (_pool_used(server) or 0) > 2 * len(message), "both requests to be read")
        server.terminate()
        for client in clients:
            client.join()
    assert [body.endswith(b"1.5,1.5]}]}") for body in bodies] == [True] * 2

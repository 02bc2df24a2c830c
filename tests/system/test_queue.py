"""What happens to requests while they wait: size limits, time limits, priorities, clients that leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ..model_repository import SPIN, Flavour, TestModel, write_repository
from ..servers import Server, metric, tensorfarm, wait_until
from ..wire import Connection, compact, exchange, request_bytes
from .spinning import Asked, cpu_s, steps_per_second, wait_running


def _queued(name: str, policy: str) -> TestModel:
    return replace(SPIN, name=name, extra=f"{SPIN.extra}\ndynamic_batching {{ {policy} }}")


MODELS = (
    SPIN,
    _queued("short_queue", "default_queue_policy { max_queue_size: 2 }"),
    _queued(
        "impatient", "default_queue_policy { timeout_action: REJECT, default_timeout_microseconds: 200000, allow_timeout_override: true }"
    ),
    _queued("ranked", "priority_levels: 3, default_priority_level: 2"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a slow model for each queue policy."""
    root = tmp_path_factory.mktemp("queue")
    with tensorfarm(write_repository(root / "models", MODELS, Flavour.ONNX), folder=root / "run") as running:
        yield running


@pytest.fixture(scope="module")
def second(server: Server) -> int:
    """Steps of a slow model per second."""
    return steps_per_second(server)


def _ask(server: Server, model: str, steps: int, **parameters: Any) -> Asked:
    content = {"parameters": parameters, "inputs": [{"name": "INPUT0", "shape": [1], "datatype": "INT64", "data": [steps]}]}
    return Asked(server, f"/v2/models/{model}/infer", compact(content))


def _hold(server: Server, model: str, steps: int) -> Asked:
    """Keep a model's only instance busy; returns when it is."""
    (worker,) = server.workers()
    idle = cpu_s(worker)
    asked = _ask(server, model, steps)
    wait_running(worker, idle)
    return asked


def _metric(server: Server, name: str, model: str, **labels: str) -> float:
    value = metric(exchange(server.metrics_port, "GET", "/metrics").body.decode(), name, model=model, **labels)
    assert value is not None
    return value


def _pending(server: Server, model: str) -> float:
    return _metric(server, "nv_inference_pending_request_count", model)


def test_queue_that_is_full(server: Server, second: int) -> None:
    holder = _hold(server, "short_queue", second)
    waiting = [_ask(server, "short_queue", 1) for _ in range(2)]
    wait_until(lambda: _pending(server, "short_queue") == 2, "two requests to wait")
    refused = _ask(server, "short_queue", 1).result()
    assert (refused.status, refused.error) == (503, "[request id: <id_unknown>] Exceeds maximum queue size")
    assert not holder.done
    assert [one.result().status for one in (holder, *waiting)] == [200] * 3
    assert _metric(server, "nv_inference_request_failure", "short_queue", reason="REJECTED") == 0, "it never got into the queue"
    assert _metric(server, "nv_inference_request_success", "short_queue") == 3


def test_timeout_in_the_queue(server: Server, second: int) -> None:
    """It fires on time while the only instance is busy, and an override may only shorten it."""
    holder = _hold(server, "impatient", 2 * second)
    began = time.monotonic()
    plain, longer, shorter = (
        _ask(server, "impatient", 1),
        _ask(server, "impatient", 1, timeout=30_000_000),
        _ask(server, "impatient", 1, timeout=50_000),
    )
    for one, limit_s in ((shorter, 0.05), (plain, 0.2), (longer, 0.2)):
        reply = one.result()
        assert (reply.status, reply.error) == (503, "Request timeout expired")
        assert limit_s <= one.ended - began < limit_s + 0.25
    assert not holder.done
    assert holder.result().status == 200
    assert _metric(server, "nv_inference_request_failure", "impatient", reason="REJECTED") == 3


def test_priorities(server: Server, second: int) -> None:
    """Of what waits, the highest priority runs first; the same priority in order of arrival."""
    holder = _hold(server, "ranked", second)
    asked: list[tuple[int, Asked]] = []
    for number, priority in enumerate((3, 2, 0, 1, 3, 1)):
        asked.append((priority, _ask(server, "ranked", second // 25, priority=priority)))
        wait_until(lambda count=number + 1: _pending(server, "ranked") >= count, "the request to wait")  # type: ignore[misc]
    assert not holder.done
    assert [one.result().status for _, one in asked] == [200] * 6
    order = [priority for priority, one in sorted(asked, key=lambda pair: pair[1].ended)]
    assert order == [1, 1, 2, 0, 3, 3]


def test_clients_that_leave_the_queue(server: Server, second: int) -> None:
    """Requests of clients that have gone are taken out of the queue and never run."""
    before = _metric(server, "nv_inference_exec_count", "spin")
    holder = _hold(server, "spin", second)
    body = compact({"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "INT64", "data": [second // 10]}]})
    connections = [Connection(server.http_port) for _ in range(6)]
    for connection in connections:
        connection.send(request_bytes("POST", "/v2/models/spin/infer", body))
    wait_until(lambda: _pending(server, "spin") >= 5, "the requests to wait")
    for connection in connections:
        connection.abort()
    wait_until(lambda: _pending(server, "spin") == 0, "the queue to be empty")
    assert not holder.done
    assert holder.result().status == 200
    last = _ask(server, "spin", 1)
    assert last.result().status == 200
    ran = _metric(server, "nv_inference_exec_count", "spin") - before
    assert ran <= 3, "at most one request had been handed to the worker when its client left"
    assert _metric(server, "nv_inference_request_failure", "spin", reason="CANCELED") >= 5


def test_clients_that_say_no_more(server: Server, second: int) -> None:
    """Who ends its side right behind its request gets the reply, queued or not; who does so while it waits has given up."""
    holder = _hold(server, "spin", second)
    body = compact({"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "INT64", "data": [second // 20]}]})
    with Connection(server.http_port) as patient, Connection(server.http_port) as impatient:
        for connection in (patient, impatient):
            connection.send(request_bytes("POST", "/v2/models/spin/infer", body))
            if connection is patient:
                connection.end()
        wait_until(lambda: _pending(server, "spin") >= 1, "the requests to wait")
        time.sleep(0.3)
        impatient.end()
        assert impatient.closed_by_server()
        assert not holder.done
        assert patient.receive().status == 200
        assert patient.closed_by_server()
    assert holder.result().status == 200

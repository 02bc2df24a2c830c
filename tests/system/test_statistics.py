"""Statistics and metrics: exact counts after a known sequence of requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ..model_repository import PLAIN, SIMPLE, SPIN, Flavour, write_repository
from ..servers import Server, metric, tensorfarm, wait_until
from ..wire import Connection, compact, exchange, request_bytes
from .spinning import ask_spin, cpu_s, pending, steps_per_second, wait_running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that nobody else asks."""
    root = tmp_path_factory.mktemp("statistics")
    with tensorfarm(write_repository(root / "models", (SIMPLE, PLAIN, SPIN), Flavour.ONNX), folder=root / "run") as running:
        yield running


def _body(batch: int | None, value: Any = 1) -> dict[str, Any]:
    shape = [16] if batch is None else [batch, 16]
    data = [value] * (16 * (batch or 1))
    return {"inputs": [{"name": f"INPUT{at}", "shape": shape, "datatype": "INT32", "data": data} for at in (0, 1)]}


def _stats(server: Server, model: str) -> dict[str, Any]:
    content = server.ask("GET", f"/v2/models/{model}/stats").json
    assert list(content) == ["model_stats"]
    (one,) = content["model_stats"]
    assert isinstance(one, dict)
    return one


def _counts(stats: dict[str, Any]) -> dict[str, int]:
    return {name: entry["count"] for name, entry in stats["inference_stats"].items()}


def _metrics(server: Server) -> str:
    reply = exchange(server.metrics_port, "GET", "/metrics")
    assert reply.status == 200
    assert reply.header("content-type") == "text/plain; charset=utf-8"
    return reply.body.decode()


def test_unused_model(server: Server) -> None:
    stats = _stats(server, "plain")
    assert (stats["last_inference"], stats["inference_count"], stats["execution_count"]) == (0, 0, 0)
    assert set(_counts(stats).values()) == {0}
    assert all(entry["ns"] == 0 for entry in stats["inference_stats"].values())
    assert stats["batch_stats"] == []


def test_known_sequence(server: Server) -> None:
    """Requests one after the other, so that each is a batch of its own; those that are refused count nowhere."""
    for batch in (1, 1, 4, 8, 4, 1):
        assert server.ask("POST", "/v2/models/simple/infer", _body(batch)).status == 200
    assert server.ask("POST", "/v2/models/simple/infer", _body(9)).status == 400
    assert server.ask("POST", "/v2/models/simple/infer", _body(1, "x")).status == 500
    stats = _stats(server, "simple")
    assert stats["inference_count"] == 19
    assert stats["execution_count"] == 6
    assert stats["last_inference"] > 1_600_000_000_000
    counts = _counts(stats)
    assert counts == dict.fromkeys(("success", "queue", "compute_input", "compute_infer", "compute_output"), 6) | dict.fromkeys(
        ("fail", "cache_hit", "cache_miss"), 0
    )
    spent = stats["inference_stats"]
    parts = sum(spent[name]["ns"] for name in ("queue", "compute_input", "compute_infer", "compute_output"))
    assert 0 < parts <= spent["success"]["ns"]
    sizes = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]}
    assert sizes == {1: 3, 4: 2, 8: 1}
    assert list(sizes) == sorted(sizes)
    for name in ("compute_input", "compute_infer", "compute_output"):
        assert sum(entry[name]["ns"] for entry in stats["batch_stats"]) == spent[name]["ns"]

    text = _metrics(server)
    labels = {"model": "simple", "version": "1"}
    assert metric(text, "nv_inference_request_success", **labels) == 6
    assert metric(text, "nv_inference_count", **labels) == 19
    assert metric(text, "nv_inference_exec_count", **labels) == 6
    assert metric(text, "nv_inference_pending_request_count", **labels) == 0
    assert metric(text, "nv_inference_request_failure", reason="OTHER", **labels) == 0
    for name, part in (
        ("nv_inference_request_duration_us", "success"),
        ("nv_inference_queue_duration_us", "queue"),
        ("nv_inference_compute_infer_duration_us", "compute_infer"),
    ):
        value = metric(text, name, **labels)
        assert value is not None
        assert spent[part]["ns"] / 1000 - 6 <= value <= spent[part]["ns"] / 1000


def test_dynamic_batch(server: Server) -> None:
    """Every request of a batch counts, the execution once; requests of one connection each get their own answer."""
    before = _stats(server, "simple")
    with Connection(server.http_port) as connection:
        connection.send(b"".join(request_bytes("POST", "/v2/models/simple/infer", _compact(value)) for value in range(1, 25)))
        for value in range(1, 25):
            reply = connection.receive()
            assert reply.json["outputs"][0]["data"] == [2 * value] * 16
    after = _stats(server, "simple")
    assert after["inference_count"] - before["inference_count"] == 24
    executions = after["execution_count"] - before["execution_count"]
    assert 1 <= executions <= 24
    sizes = [{entry["batch_size"]: entry["compute_infer"]["count"] for entry in stats["batch_stats"]} for stats in (before, after)]
    grown = {size: count - sizes[0].get(size, 0) for size, count in sizes[1].items()}
    assert sum(size * count for size, count in grown.items()) == 24
    assert sum(grown.values()) == executions
    assert max(sizes[1]) <= 8
    cuts = {name: count - before["batch_cuts"][name] for name, count in after["batch_cuts"].items()}
    assert list(cuts) == ["full", "preferred", "delay", "shape", "deadline", "end"]
    assert sum(cuts.values()) == executions, "each batch says why it ended"
    text = _metrics(server)
    for name, count in after["batch_cuts"].items():
        assert metric(text, "tensorfarm_batch_cut_total", model="simple", reason=name.upper()) == count
    for bound in (1, 2, 4, 8):
        below = sum(count for size, count in sizes[1].items() if size <= bound)
        assert metric(text, "tensorfarm_batch_size_bucket", model="simple", le=str(bound)) == below
    assert (metric(text, "tensorfarm_instance_busy_seconds_total", model="simple") or 0) > 0
    assert metric(text, "tensorfarm_instances", model="simple") == 1
    assert _stats(server, "spin")["batch_cuts"] == {}, "it forms no batches"


def _compact(value: int) -> bytes:
    return compact(_body(1, value))


def test_queue_time(server: Server) -> None:
    """What waits behind a slow request shows as queue time, not as compute time."""
    second = steps_per_second(server)
    before = _stats(server, "spin")["inference_stats"]
    (worker,) = server.workers()
    idle = cpu_s(worker)
    first = ask_spin(server, second // 2)
    wait_running(worker, idle)
    waiting = [ask_spin(server, 1) for _ in range(3)]
    wait_until(lambda: pending(server) >= 2, "requests to wait")
    assert [one.result().status for one in (first, *waiting)] == [200] * 4
    after = _stats(server, "spin")["inference_stats"]
    queued = after["queue"]["ns"] - before["queue"]["ns"]
    infer = after["compute_infer"]["ns"] - before["compute_infer"]["ns"]
    assert after["success"]["count"] - before["success"]["count"] == 4
    assert infer > 0.2e9
    assert queued > 0.1e9


def test_all_models(server: Server) -> None:
    content = server.ask("GET", "/v2/models/stats").json["model_stats"]
    assert [(entry["name"], entry["version"]) for entry in content] == [("plain", "1"), ("simple", "1"), ("spin", "1")]


def test_metrics_page(server: Server) -> None:
    text = _metrics(server)
    for name in ("nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes", "nv_pinned_memory_pool_total_bytes"):
        assert metric(text, name) is not None, name
    assert metric(text, "nv_inference_count", model="plain", version="1") == 0
    for reason in ("REJECTED", "CANCELED", "BACKEND", "OTHER"):
        assert metric(text, "nv_inference_request_failure", model="plain", version="1", reason=reason) == 0


def test_metrics_routes(server: Server) -> None:
    assert exchange(server.metrics_port, "GET", "/metrics/").body
    other = exchange(server.metrics_port, "GET", "/v2/health/live")
    assert (other.status, other.body) == (200, b"")
    refused = exchange(server.metrics_port, "POST", "/metrics")
    assert (refused.status, refused.error) == (405, "Method Not Allowed")


def test_no_metrics(tmp_path: Path) -> None:
    root = write_repository(tmp_path / "models", (PLAIN,), Flavour.ONNX)
    with tensorfarm(root, "--allow-metrics=false", folder=tmp_path / "run") as quiet:
        with pytest.raises(ConnectionRefusedError):
            exchange(quiet.metrics_port, "GET", "/metrics")
        assert "Started Metrics Service" not in quiet.log

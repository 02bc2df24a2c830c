"""Workers that die under load, again and again, and what clients see of it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..servers import SHM, Server, alive, marked, metric, start_tensorfarm, stopped, tensorfarm, wait_until
from ..wire import compact, exchange
from .spinning import Asked, ask_spin, cpu_s, pending, steps_per_second, wait_running

PLAIN_PATH = "/v2/models/plain/infer"
PLAIN_BODY = compact({"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": list(range(16))} for at in (0, 1)]})


@pytest.fixture
def server(spin_models: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of one's own."""
    with tensorfarm(spin_models, folder=tmp_path / "run") as running:
        yield running


def _worker(server: Server) -> int:
    (pid,) = server.workers()
    return pid


def test_kill_under_load(server: Server) -> None:
    """The batch that was running is answered at once with the reason; what was queued runs on the next worker."""
    second = steps_per_second(server)
    worker = _worker(server)
    idle = cpu_s(worker)
    running = ask_spin(server, 20 * second)
    wait_running(worker, idle)
    queued = [ask_spin(server, second // 50) for _ in range(6)]
    wait_until(lambda: pending(server) >= 5, "the requests to be queued")
    killed = time.monotonic()
    os.kill(worker, signal.SIGKILL)
    reply = running.result()
    assert reply.status == 503
    assert "signal" in reply.error.lower() or "exited" in reply.error, reply.error
    assert str(worker) not in reply.error
    assert running.ended - killed < 0.25
    assert not any(one.done for one in queued), "a queued request was answered before there was a worker"
    assert [one.result().status for one in queued] == [200] * 6
    assert _worker(server) != worker


def test_readiness_while_the_worker_is_gone(server: Server) -> None:
    """Probes say no between the death and the return, and yes again by themselves; liveness never falters."""
    worker = _worker(server)
    assert server.ready() and server.model_ready("plain")
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not server.ready(), "the server not to be ready", interval_s=0.001)
    assert not server.model_ready("plain")
    assert server.live()
    wait_until(server.ready, "the server to be ready again")
    assert server.model_ready("plain") and server.model_ready("spin")
    assert server.ask("POST", PLAIN_PATH, PLAIN_BODY).status == 200
    assert not alive(worker)


def test_death_is_reported(server: Server) -> None:
    """One readable line in the log, a count in the metrics."""
    worker = _worker(server)
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: server.workers() not in ([worker], []) and server.ready(), "another worker")
    line = next(line for line in server.stderr.splitlines() if str(worker) in line)
    assert line.startswith("E"), line
    assert "SIGKILL" in line or "signal 9" in line, line


def test_idle_death_costs_no_request(server: Server) -> None:
    """Requests that come while there is no worker wait for the next one."""
    os.kill(_worker(server), signal.SIGKILL)
    wait_until(lambda: not server.ready(), "the death to be noticed", interval_s=0.001)
    replies = [Asked(server, PLAIN_PATH, PLAIN_BODY) for _ in range(8)]
    assert [reply.result().status for reply in replies] == [200] * 8


def test_kill_under_a_storm_of_requests(server: Server) -> None:
    """Every request of many clients gets exactly one answer, and only those in the dying batch an error."""
    stop = threading.Event()
    statuses: list[list[int]] = [[] for _ in range(8)]

    def client(seen: list[int]) -> None:
        while not stop.is_set():
            seen.append(exchange(server.http_port, "POST", PLAIN_PATH, PLAIN_BODY).status)

    threads = [threading.Thread(target=client, args=(seen,), daemon=True) for seen in statuses]
    for thread in threads:
        thread.start()
    worker = _worker(server)
    wait_until(lambda: min(map(len, statuses)) > 10, "requests under way")
    os.kill(worker, signal.SIGKILL)
    wait_until(server.ready, "the server to be ready again")
    after = [len(seen) for seen in statuses]
    wait_until(lambda: all(len(seen) > count + 10 for seen, count in zip(statuses, after, strict=True)), "requests to go on")
    stop.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    counts = {status: sum(seen.count(status) for seen in statuses) for status in {one for seen in statuses for one in seen}}
    assert set(counts) <= {200, 503}, counts
    assert counts.get(503, 0) <= 8, counts


def test_crash_loop_backs_off(server: Server) -> None:
    """The pauses before restarts grow; meanwhile requests are refused with a reason, and in the end it serves again."""
    pauses: list[float] = []
    for _ in range(3):
        worker = _worker(server)
        os.kill(worker, signal.SIGKILL)
        died = time.monotonic()
        wait_until(lambda old=worker: [pid for pid in server.workers() if pid != old], "another worker", 30.0)  # type: ignore[misc]
        pauses.append(time.monotonic() - died)
    assert pauses[0] < 0.75, pauses
    assert pauses == sorted(pauses), pauses
    assert pauses[2] > 1.5, pauses
    wait_until(server.ready, "the server to be ready again")
    assert server.ask("POST", PLAIN_PATH, PLAIN_BODY).status == 200


def test_requests_during_a_long_pause_are_refused(server: Server) -> None:
    """Nobody waits seconds for a worker in a crash loop: 503 and why."""
    for death in range(3):
        worker = _worker(server)
        os.kill(worker, signal.SIGKILL)
        if death < 2:
            wait_until(lambda old=worker: [pid for pid in server.workers() if pid != old], "another worker", 30.0)  # type: ignore[misc]
    wait_until(lambda: not server.workers(), "the worker to be gone")
    wait_until(lambda: server.ask("POST", PLAIN_PATH, PLAIN_BODY).status == 503, "requests to be refused", 1.0)
    reply = server.ask("POST", PLAIN_PATH, PLAIN_BODY)
    assert reply.error
    assert not server.ready()
    wait_until(server.ready, "the server to be ready again")


def test_kill_of_the_server_leaves_nothing(spin_models: Path, tmp_path: Path) -> None:
    """SIGKILL of the server ends its worker; the next server that starts sweeps up what no dead process can."""
    before = set(os.listdir(SHM))
    server = start_tensorfarm(spin_models, folder=tmp_path / "run")
    try:
        worker = _worker(server)
        second = steps_per_second(server)
        idle = cpu_s(worker)
        running = ask_spin(server, 20 * second)
        wait_running(worker, idle)
        os.kill(server.pid, signal.SIGKILL)
        server.process.wait()
        taken = wait_until(lambda: not marked(server.mark), "the worker to end", 5.0)
        assert taken < 2.0
        with contextlib.suppress(AssertionError):
            running.result()
        assert set(os.listdir(SHM)) <= before
        shared = {"TMPDIR": str(server.temporary), "XDG_RUNTIME_DIR": str(server.temporary)}
        with tensorfarm(spin_models, folder=tmp_path / "next", environment=shared) as following:
            assert following.ready()
        assert not list(server.temporary.iterdir())
    finally:
        server.kill()


def test_stopped_worker_does_not_stop_the_server(server: Server) -> None:
    """A worker under SIGSTOP delays its requests only; health and metadata go on, and it catches up when continued."""
    worker = _worker(server)
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: stopped(worker), "the worker to stop")
    try:
        waiting = Asked(server, PLAIN_PATH, PLAIN_BODY)
        assert server.live()
        assert server.ask("GET", "/v2/models/plain").status == 200
        assert exchange(server.metrics_port, "GET", "/metrics").status == 200
        assert not waiting.done
    finally:
        os.kill(worker, signal.SIGCONT)
    assert waiting.result().status == 200


def test_pending_requests_metric(server: Server) -> None:
    """The gauge counts what waits, and goes back to nought."""
    second = steps_per_second(server)
    asked = [ask_spin(server, second // 4) for _ in range(4)]
    wait_until(lambda: pending(server) >= 2, "requests to wait")
    assert [one.result().status for one in asked] == [200] * 4
    wait_until(lambda: pending(server) == 0, "nothing to wait")
    text = exchange(server.metrics_port, "GET", "/metrics").body.decode()
    assert metric(text, "nv_inference_request_success", model="spin", version="1") == 6

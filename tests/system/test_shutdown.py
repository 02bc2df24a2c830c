"""The end of a server: what SIGTERM lets finish, what it refuses, how long it waits, and a second signal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..servers import Server, start_tensorfarm, wait_until
from ..wire import Connection, Reply, compact, request_bytes
from .spinning import ask_spin, cpu_s, pending, steps_per_second, wait_running

PLAIN_PATH = "/v2/models/plain/infer"
PLAIN_BODY = compact({"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": list(range(16))} for at in (0, 1)]})


@pytest.fixture
def start(spin_models: Path, tmp_path: Path) -> Iterator[list[Server]]:
    """A server that the test stops itself; killed if it does not."""
    servers = [start_tensorfarm(spin_models, folder=tmp_path / "run")]
    yield servers
    for server in servers:
        if not server.stopped:
            server.kill()


def _signal(server: Server, number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(server.pid, number)
    wait_until(lambda: f"Signal ({number.value}) received." in server.stdout, "the signal to be noticed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_server_ends_at_once(number: signal.Signals, start: list[Server]) -> None:
    (server,) = start
    began = time.monotonic()
    _signal(server, number)
    assert server.wait_exit() == 0, server.log
    assert time.monotonic() - began < 3.0


def test_in_flight_requests_finish(start: list[Server]) -> None:
    """What runs and what is queued is answered; the countdown is logged.

    Meanwhile probes hear no, and connections that were idle either hear it too or are closed.
    """
    (server,) = start
    second = steps_per_second(server)
    (worker,) = server.workers()
    with Connection(server.http_port) as kept:
        kept.send(request_bytes("GET", "/v2/health/ready"))
        assert kept.receive().status == 200
        idle = cpu_s(worker)
        running = [ask_spin(server, second * 2)]
        wait_running(worker, idle)
        running += [ask_spin(server, second // 10) for _ in range(3)]
        wait_until(lambda: pending(server) >= 2, "requests to be queued")
        _signal(server)
        with contextlib.suppress(ConnectionError):
            kept.send(request_bytes("GET", "/v2/health/ready"))
            assert kept.receive().error == "Server exiting"
        assert not server.ready() and not server.live()
        assert not any(one.done for one in running)
    assert [one.result().status for one in running] == [200] * 4
    assert server.wait_exit() == 0, server.log
    countdown = re.findall(r"Timeout (\d+): Found \d+ model versions that have in-flight inferences", server.stdout)
    assert countdown and countdown == sorted(countdown, reverse=True)
    assert countdown[0] == "30"
    assert "Model 'spin' (version 1) has" in server.stdout


def test_second_signal_ends_it_now(start: list[Server]) -> None:
    (server,) = start
    second = steps_per_second(server)
    (worker,) = server.workers()
    idle = cpu_s(worker)
    running = ask_spin(server, second * 30)
    wait_running(worker, idle)
    _signal(server)
    assert server.process.poll() is None
    began = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    code = server.wait_exit()
    assert time.monotonic() - began < 1.0
    assert code == 1
    wait_until(lambda: running.done, "the client to notice")
    assert running.error is not None or (running.reply is not None and running.reply.status == 503)


def test_exit_timeout(spin_models: Path, tmp_path: Path) -> None:
    """A request that outlasts --exit-timeout-secs is answered with an error, and the exit code says that something was cut off."""
    server = start_tensorfarm(spin_models, "--exit-timeout-secs=1", folder=tmp_path / "run")
    try:
        second = steps_per_second(server)
        (worker,) = server.workers()
        idle = cpu_s(worker)
        running = ask_spin(server, second * 60)
        wait_running(worker, idle)
        began = time.monotonic()
        _signal(server)
        code = server.wait_exit()
        assert 0.9 < time.monotonic() - began < 4.0
        assert code == 1
        assert "failed to stop server: Internal - Exit timeout expired. Exiting immediately." in server.stdout + server.stderr
        wait_until(lambda: running.done, "the client to notice")
        assert running.error is not None or (running.reply is not None and running.reply.status == 503)
    finally:
        if not server.stopped:
            server.kill()


def test_signal_under_load(start: list[Server]) -> None:
    """With clients that never stop asking, every request is answered properly or its connection closed before it is taken."""
    (server,) = start
    replies: list[Reply] = []
    stop = threading.Event()
    broken: list[str] = []

    def client() -> None:
        try:
            with Connection(server.http_port) as connection:
                while not stop.is_set():
                    connection.send(request_bytes("POST", PLAIN_PATH, PLAIN_BODY))
                    reply = connection.receive()
                    replies.append(reply)
                    if reply.header("connection") == "close":
                        return
        except ConnectionError as error:
            if "bytes missing" in str(error):
                broken.append(str(error))

    threads = [threading.Thread(target=client, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(replies) > 100, "requests under way")
    _signal(server)
    code = server.wait_exit()
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert code == 0, server.log
    assert not broken
    assert {reply.status for reply in replies} <= {200, 503}


def test_signal_while_starting(spin_models: Path, tmp_path: Path) -> None:
    """A signal that comes before the models are loaded ends the start."""
    server = start_tensorfarm(spin_models, folder=tmp_path / "run", wait=False)
    try:
        wait_until(lambda: server.process.poll() is not None or server.workers(), "a worker to be started")
        assert server.process.poll() is None, server.log
        os.kill(server.pid, signal.SIGTERM)
        began = time.monotonic()
        code = server.wait_exit()
        assert code == 0, server.log
        assert time.monotonic() - began < 5.0
    finally:
        if not server.stopped:
            server.kill()


def test_idle_keep_alive_connections_do_not_hold_it(start: list[Server]) -> None:
    """A client that keeps an idle connection open does not delay the end."""
    (server,) = start
    with Connection(server.http_port) as idle:
        idle.send(request_bytes("GET", "/v2/health/live"))
        assert idle.receive().status == 200
        began = time.monotonic()
        _signal(server)
        assert server.wait_exit() == 0, server.log
        assert time.monotonic() - began < 3.0
        assert idle.closed_by_server()

"""Faults while models are loaded and unloaded: the server's end, workers that are killed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from ..generations import BODY, Askers, generation_of, length, write_generation
from ..servers import Server, child_pids, start_tensorfarm, wait_until
from ..wire import Reply, exchange

FLAGS = ("--model-control-mode=explicit", "--exit-timeout-secs=10")
EXIT_S = 8.0
"""How long an end may take that has nothing to wait for."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of one's own, which the test may stop."""
    (tmp_path / "models").mkdir()
    running = start_tensorfarm(tmp_path / "models", *FLAGS, folder=tmp_path / "run")
    yield running
    if not running.stopped:
        running.terminate()


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that take time."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


class Gate:
    """A file that a model waits for."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / name
        self.wait = f"wait_for({str(self._file)!r})"

    def reached(self) -> None:
        """Wait until a model waits."""
        wait_until(Path(f"{self._file}-reached").exists, "a model to come to its gate")

    def open(self) -> None:
        """Let it go on."""
        self._file.touch()


def ask(server: Server, executor: ThreadPoolExecutor, model: str, verb: str) -> Future[Reply]:
    """Send a load, an unload or an inference, and do not wait."""
    path = f"/v2/models/{model}/infer" if verb == "infer" else f"/v2/repository/models/{model}/{verb}"
    return executor.submit(exchange, server.http_port, "POST", path, BODY if verb == "infer" else b"")


def end(server: Server) -> float:
    """Stop a server in order; returns the seconds it took."""
    began = time.monotonic()
    server.terminate()
    return time.monotonic() - began


def test_end_while_a_model_loads(server: Server, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    """A load that would take for ever keeps no server alive, and its process does not stay."""
    gate = Gate(tmp_path, "never")
    write_generation(tmp_path / "models", "slow", 1, "python", initialize=gate.wait)
    loading = ask(server, executor, "slow", "load")
    gate.reached()
    assert end(server) < EXIT_S
    with pytest.raises((ConnectionError, AssertionError)):
        assert loading.result(10).status == 200


def test_end_while_a_model_is_replaced(server: Server, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    gate = Gate(tmp_path, "never")
    write_generation(tmp_path / "models", "slow", 1, "python")
    assert ask(server, executor, "slow", "load").result(20).status == 200
    write_generation(tmp_path / "models", "slow", 2, "python", initialize=gate.wait)
    loading = ask(server, executor, "slow", "load")
    gate.reached()
    assert end(server) < EXIT_S
    with pytest.raises((ConnectionError, AssertionError)):
        assert loading.result(10).status == 200


def test_end_while_a_model_unloads(server: Server, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    """The request that it waits for is answered first."""
    gate = Gate(tmp_path, "execute")
    write_generation(tmp_path / "models", "busy", 1, "python", execute=gate.wait)
    assert ask(server, executor, "busy", "load").result(20).status == 200
    asked = ask(server, executor, "busy", "infer")
    gate.reached()
    assert ask(server, executor, "busy", "unload").result(5).status == 200
    server.process.send_signal(signal.SIGTERM)
    wait_until(lambda: "Waiting for in-flight requests to complete." in server.stdout, "the end to begin")
    gate.open()
    assert generation_of(asked.result(20)) == 1
    assert server.wait_exit(EXIT_S) == 0, server.log


def test_replaced_worker_is_killed(server: Server, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    """Its successor takes over all the same, and in the meantime nobody is told anything wrong."""
    gate = Gate(tmp_path, "initialize")
    write_generation(tmp_path / "models", "killed", 1, "python")
    assert ask(server, executor, "killed", "load").result(20).status == 200
    before = set(child_pids(server.pid))
    write_generation(tmp_path / "models", "killed", 2, "python", initialize=gate.wait)
    loading = ask(server, executor, "killed", "load")
    gate.reached()
    (old,) = [pid for pid in before if name_of(pid) == "killed"]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: not server.model_ready("killed") or set(child_pids(server.pid)) - before, "the death to be noticed")
    gate.open()
    assert loading.result(20).status == 200
    assert generation_of(ask(server, executor, "killed", "infer").result(10)) == 2
    wait_until(lambda: len([pid for pid in child_pids(server.pid) if name_of(pid) == "killed"]) == 1, "one process to be left")
    assert server.model_ready("killed")


def test_new_worker_is_killed(server: Server, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    """The load is answered with an error, the old generation answers everything meanwhile, and the next load does it."""
    gate = Gate(tmp_path, "initialize")
    write_generation(tmp_path / "models", "killed", 1, "python")
    assert ask(server, executor, "killed", "load").result(20).status == 200
    askers = Askers(server.http_port, "killed", 4)
    try:
        before = set(child_pids(server.pid))
        write_generation(tmp_path / "models", "killed", 2, "python", initialize=gate.wait)
        loading = ask(server, executor, "killed", "load")
        gate.reached()
        for pid in set(child_pids(server.pid)) - before:
            os.kill(pid, signal.SIGKILL)
        reply = loading.result(20)
        assert reply.status == 400 and "version 1 is at UNAVAILABLE state" in reply.error, reply.body
        (entry,) = server.ask("POST", "/v2/repository/index").json
        assert entry["state"] == "READY" and entry["reason"]
        assert set(child_pids(server.pid)) == before
        gate.open()
        askers.most = 2
        assert ask(server, executor, "killed", "load").result(20).status == 200
        askers.least = 2
        wait_until(lambda: askers.answered[2] or askers.problems, "the new generation to answer")
    finally:
        askers.stop()
    assert askers.answered[1] and askers.answered[2]


def kill(server: Server, model: str) -> None:
    processes: list[int] = []

    def one_is_left() -> bool:
        """One that failed to load may be on its way out."""
        processes[:] = [pid for pid in child_pids(server.pid) if name_of(pid) == model]
        return len(processes) == 1

    wait_until(one_is_left, "one process to be left")
    (pid,) = processes
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: name_of(pid) != model, "it to end")


def test_files_that_changed_before_the_worker_died(server: Server, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    """What they are now is loaded as a whole, configuration and all, not into what they were."""
    write_generation(tmp_path / "models", "killed", 1, "python")
    assert ask(server, executor, "killed", "load").result(20).status == 200
    write_generation(tmp_path / "models", "killed", 2, "python")
    assert generation_of(ask(server, executor, "killed", "infer").result(10)) == 1
    kill(server, "killed")
    wait_until(lambda: ask(server, executor, "killed", "infer").result(10).status == 200, "it to be back")
    assert generation_of(ask(server, executor, "killed", "infer").result(10)) == 2
    assert server.ask("GET", "/v2/models/killed/config").json["output"][0]["dims"] == [length(2)] != [length(1)]
    wait_until(lambda: len([pid for pid in child_pids(server.pid) if name_of(pid) == "killed"]) == 1, "one process to be left")


def test_a_failed_reload_and_then_the_worker_dies(server: Server, executor: ThreadPoolExecutor, tmp_path: Path) -> None:
    """The old one cannot come back, and says why, until what is there now loads."""
    write_generation(tmp_path / "models", "killed", 1, "python")
    assert ask(server, executor, "killed", "load").result(20).status == 200
    write_generation(tmp_path / "models", "killed", 2, "python", initialize="raise ValueError('no')")
    assert ask(server, executor, "killed", "load").result(20).status == 400
    assert generation_of(ask(server, executor, "killed", "infer").result(10)) == 1
    kill(server, "killed")

    def refused() -> bool:
        reply = ask(server, executor, "killed", "infer").result(10)
        return reply.status == 503 and "its files have changed since it was loaded" in reply.error

    wait_until(refused, "requests to be refused with the reason")
    assert not server.model_ready("killed")
    write_generation(tmp_path / "models", "killed", 3, "python")
    assert ask(server, executor, "killed", "load").result(20).status == 200
    assert generation_of(ask(server, executor, "killed", "infer").result(10)) == 3


def name_of(pid: int) -> str:
    """What a process is called."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""

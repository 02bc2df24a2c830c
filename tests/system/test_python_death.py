"""Python models whose processes die: what clients see, what the other models notice, what is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..model_repository import PLAIN, Flavour, write_repository
from ..servers import Server, alive, child_pids, run_tensorfarm, tensorfarm, wait_until
from ..wire import compact, exchange

MODELS = Path(__file__).resolve().parent.parent / "python_models"
INSTANCES = 8
KILLS = 20
ADD_PATH = "/v2/models/adder/infer"
ADD_BODY = compact({"inputs": [{"name": "X", "datatype": "INT32", "shape": [2], "data": [1, 2]}]})
DIE_PATH = "/v2/models/dies/infer"
PLAIN_PATH = "/v2/models/plain/infer"
PLAIN_BODY = compact({"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": list(range(16))} for at in (0, 1)]})


def die_body(verb: str) -> bytes:
    return compact({"inputs": [{"name": "VERB", "datatype": "BYTES", "shape": [1], "data": [verb]}]})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with a Python model of several instances, one that ends itself, and a native one."""
    repository = write_repository(tmp_path / "models", (PLAIN,), Flavour.ONNX)
    for name in ("adder", "dies"):
        shutil.copytree(MODELS / name, repository / name)
    config = repository / "adder" / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", f"count: {INSTANCES}"))
    with tensorfarm(repository, folder=tmp_path / "run") as running:
        yield running


def instances(server: Server, model: str) -> list[int]:
    """The processes of a Python model's instances, which are called like it."""
    return [pid for pid in child_pids(server.pid) if called(pid) == model]


def called(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


class Clients:
    """Threads that ask without a pause, and what they were answered."""

    def __init__(self, server: Server, path: str, body: bytes, count: int) -> None:
        self.statuses: list[list[int]] = [[] for _ in range(count)]
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(server, path, body, seen), daemon=True) for seen in self.statuses]
        for thread in self._threads:
            thread.start()

    def _ask(self, server: Server, path: str, body: bytes, seen: list[int]) -> None:
        while not self._stop.is_set():
            seen.append(exchange(server.http_port, "POST", path, body).status)

    @property
    def least(self) -> int:
        return min(map(len, self.statuses))

    def stop(self) -> dict[int, int]:
        """How often each status came."""
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client waits for ever"
        every = [status for seen in self.statuses for status in seen]
        return {status: every.count(status) for status in set(every)}


def test_twenty_kills_under_load(server: Server) -> None:
    """Every request is answered, others' models do not notice, and nothing is left."""
    adding = Clients(server, ADD_PATH, ADD_BODY, 6)
    plain = Clients(server, PLAIN_PATH, PLAIN_BODY, 1)
    killed: set[int] = set()
    for _ in range(KILLS):
        wait_until(lambda: set(instances(server, "adder")) - killed, "an instance to kill", timeout_s=40)
        pid = min(set(instances(server, "adder")) - killed)
        before = adding.least
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
        wait_until(lambda before=before: adding.least > before + 2, "requests to go on")  # type: ignore[misc]
    wait_until(lambda: len(instances(server, "adder")) == INSTANCES and server.model_ready("adder"), "all instances again", timeout_s=60)
    counts = adding.stop()
    assert set(counts) <= {200, 503}, counts
    assert counts[200] > 100
    # A killed instance takes at most what it ran with it; while all of them are away, requests are refused.
    assert set(plain.stop()) == {200}
    assert server.ask("POST", ADD_PATH, ADD_BODY).status == 200
    assert not any(alive(pid) for pid in killed)


def test_a_model_that_ends_its_process(server: Server) -> None:
    """The request that did it hears how it ended; the next one is served by another process."""
    (worker,) = instances(server, "dies")
    reply = server.ask("POST", DIE_PATH, die_body("die"))
    assert reply.status == 503
    assert "exited with code 3" in reply.error and str(worker) not in reply.error
    assert server.ask("POST", DIE_PATH, die_body("live")).status == 200
    assert server.model_ready("dies") and server.model_ready("adder")
    assert instances(server, "dies") != [worker]


def test_a_start_that_fails_lets_models_clean_up(tmp_path: Path) -> None:
    """One model cannot be loaded, so the server ends; the other one, which could, is told."""
    repository = tmp_path / "models"
    for name in ("logs", "dies"):
        shutil.copytree(MODELS / name, repository / name)
    (repository / "dies" / "1" / "model.py").write_text("raise ImportError('broken')\n")
    arguments = (f"--model-repository={repository}", "--allow-http=false", "--allow-grpc=false", "--allow-metrics=false")
    ended = run_tensorfarm(*arguments, folder=tmp_path / "run")
    assert ended.code == 1 and "failed to load all models" in ended.stderr
    assert '"own line: in finalize"' in ended.stdout + ended.stderr

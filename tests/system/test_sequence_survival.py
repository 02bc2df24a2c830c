"""What becomes of open sequences when a worker is killed, a model is unloaded, and the server is told to end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ..servers import Server, child_pids, start_tensorfarm, stopping, wait_until
from ..wire import Connection, Reply, compact, request_bytes

MODEL = Path(__file__).resolve().parent.parent / "python_models" / "system_survival"
PATH = "/v2/models/{}/infer"
LOST = "the state of sequence {} of model 'killed' was lost when its worker ended; begin the sequence again"
NO_START = "inference request for sequence {} to model '{}' must specify the START flag on the first request of the sequence"
GATED = -1


def start(root: Path, *names: str) -> Server:
    """A server with copies of the model."""
    for name in names:
        folder = Path(shutil.copytree(MODEL, root / "models" / name))
        config = folder / "config.pbtxt"
        gate = f'parameters {{ key: "GATE" value {{ string_value: "{root}/gate" }} }}'
        config.write_text(config.read_text().replace("system_survival", name) + gate)
    return start_tensorfarm(root / "models", "--model-control-mode=explicit", "--load-model=*", folder=root / "run", wait=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model for each test that leaves it standing."""
    with stopping(start(tmp_path_factory.mktemp("survival"), "killed", "unloaded")) as (running,):
        yield running
        for name in ("killed", "unloaded"):
            running.ask("POST", f"/v2/repository/models/{name}/unload")


def body(x: int, sequence: int, first: bool = False, last: bool = False) -> bytes:
    parameters = {"sequence_id": sequence, "sequence_start": first, "sequence_end": last}
    return compact({"parameters": parameters, "inputs": [{"name": "X", "datatype": "INT32", "shape": [1, 1], "data": [x]}]})


def ask(server: Server, model: str, x: int, sequence: int, first: bool = False, last: bool = False) -> Reply:
    return server.ask("POST", PATH.format(model), body(x, sequence, first, last))


def record(reply: Reply) -> tuple[list[int], int, int]:
    """What the model keeps of a sequence, its row, and the model's process."""
    assert reply.status == 200, (reply.status, reply.body)
    kept, row, pid = json.loads(reply.json["outputs"][0]["data"][0])
    return kept, row, pid


class Later:
    """A request that somebody else waits for."""

    def __init__(self, ask: Callable[[], Reply]) -> None:
        self.replies: list[Reply] = []
        self._thread = threading.Thread(target=lambda: self.replies.append(ask()), daemon=True)
        self._thread.start()

    @property
    def reply(self) -> Reply:
        self._thread.join(30)
        assert self.replies, "it was not answered"
        return self.replies[0]


def pending(server: Server, model: str, count: int) -> None:
    """Wait until so many requests wait at a model."""

    def enough() -> bool:
        with Connection(server.metrics_port) as connection:
            connection.send(request_bytes("GET", "/metrics"))
            text = connection.receive().body.decode()
        lines = [
            line for line in text.splitlines() if line.startswith("nv_inference_pending_request_count{") and f'model="{model}"' in line
        ]
        return [float(line.rpartition(" ")[2]) for line in lines] == [count]

    wait_until(enough, f"{count} requests to wait")


def test_a_killed_worker_costs_its_sequences_and_no_others(server: Server) -> None:
    homes = {sequence: record(ask(server, "killed", sequence, sequence, first=True))[1:] for sequence in (1, 2, 3, 4)}
    assert len(set(homes.values())) == 4, "each has a place of its own"
    victim = homes[1][1]
    lost = [sequence for sequence, (_, pid) in homes.items() if pid == victim]
    kept = [sequence for sequence, (_, pid) in homes.items() if pid != victim]
    assert len(lost) == len(kept) == 2 and victim in child_pids(server.pid)
    gate = Path(server.folder.parent / "gate-reached")
    running = Later(lambda: ask(server, "killed", GATED, lost[0]))
    wait_until(gate.exists, "the model to work")
    behind = Later(lambda: ask(server, "killed", 5, lost[0]))
    pending(server, "killed", 1)
    fresh = Later(lambda: ask(server, "killed", 50, 50, first=True))
    pending(server, "killed", 2)
    os.kill(victim, signal.SIGKILL)
    died = running.reply
    assert died.status == 503 and str(victim) not in died.error
    assert (behind.reply.status, behind.reply.error) == (503, LOST.format(lost[0]))
    for sequence in lost:
        reply = ask(server, "killed", 6, sequence)
        assert (reply.status, reply.error) == (503, f"{LOST.format(sequence)} with the START flag")
    for sequence in kept:
        assert record(ask(server, "killed", 7, sequence)) == ([sequence, 7], *homes[sequence])
    # What had waited for a place gets one where those were.
    values, row, respawned = record(fresh.reply)
    assert (values, row) == ([50], 0) and respawned not in {pid for _, pid in homes.values()}
    values, row, pid = record(ask(server, "killed", 8, lost[1], first=True))
    assert (values, row, pid) == ([8], 1, respawned)
    waits = Later(lambda: ask(server, "killed", 9, lost[0], first=True))
    pending(server, "killed", 1)
    for sequence in kept:
        assert record(ask(server, "killed", 10, sequence, last=True)) == ([sequence, 7, 10], *homes[sequence])
    assert record(waits.reply)[0] == [9]
    assert record(ask(server, "killed", 11, lost[0], last=True))[0] == [9, 11]
    assert ask(server, "killed", 12, lost[0]).error == NO_START.format(lost[0], "killed")


def test_a_model_with_open_sequences_is_unloaded_at_once(server: Server) -> None:
    """Also where another waits for a place, which it gets."""
    for sequence in (1, 2, 3, 4):
        record(ask(server, "unloaded", 1, sequence, first=True))
    backlogged = Later(lambda: ask(server, "unloaded", 5, 5, first=True))
    pending(server, "unloaded", 1)
    began = time.monotonic()
    assert server.ask("POST", "/v2/repository/models/unloaded/unload").status == 200
    assert record(backlogged.reply)[0] == [5]

    def gone() -> bool:
        (entry,) = [entry for entry in server.ask("POST", "/v2/repository/index").json if entry["name"] == "unloaded"]
        return bool(entry["state"] == "UNAVAILABLE")

    wait_until(gone, "the model to go")
    assert time.monotonic() - began < 5
    assert ask(server, "unloaded", 1, 1, last=True).status == 404


class Held:
    """A request of which the server has the head, and gets the body later: until then its connection is not idle."""

    def __init__(self, server: Server, content: bytes) -> None:
        self._connection = Connection(server.http_port)
        self._content = content
        message = request_bytes("POST", PATH.format("drained"), content, {"Expect": "100-continue"})
        self._connection.send(message.removesuffix(content))
        self._connection.wait_for(b"100 Continue\r\n\r\n")

    def finish(self) -> Reply:
        with self._connection as connection:
            connection.send(self._content)
            return connection.receive()


def test_a_server_that_ends_lets_open_sequences_go_on(tmp_path: Path) -> None:
    """As long as anybody has a connection to it: what begins anew is refused, and what stays open does not hold it up."""
    with stopping(start(tmp_path, "drained")) as (server,):
        record(ask(server, "drained", 1, 1, first=True))
        record(ask(server, "drained", 1, 2, first=True, last=True))
        record(ask(server, "drained", 1, 5, first=True))
        middle, other, single, unknown, last = [
            Held(server, content)
            for content in (
                body(2, 1),
                body(3, 3, first=True),
                body(3, 4, first=True, last=True),
                body(4, 2),
                body(5, 1, last=True),
            )
        ]
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Found 5 HTTP service connections" in server.stdout, "the server to wait")
        assert record(middle.finish())[0] == [1, 2]
        for held in (other, single):
            reply = held.finish()
            assert reply.status == 503
            assert reply.error == "Server is stopping, scheduler for model has stopped accepting new inference requests"
        reply = unknown.finish()
        assert (reply.status, reply.error) == (400, NO_START.format(2, "drained"))
        assert record(last.finish())[0] == [1, 2, 5]
        began = time.monotonic()
        assert server.wait_exit() == 0, server.log
        assert time.monotonic() - began < 5

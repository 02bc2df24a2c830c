"""Time limits in the queue are kept to the millisecond while every instance is busy with something long."""

from __future__ import annotations

import selectors
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..servers import Server, tensorfarm, wait_until
from ..wire import Connection, compact, request_bytes

GATE = Path(__file__).resolve().parent.parent / "python_models" / "system_gate"
COUNT = 100
DEFAULT_US = 1_000_000
LATE_S = 0.020
ATTEMPTS = 3
"""The machine that runs the tests has other things to do as well: one of so many rounds is to be on time."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the model looks for the files that let its requests go."""
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def server(gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a model that holds its requests as long as it is told to, and a queue with time limits."""
    root = tmp_path_factory.mktemp("deadlines")
    shutil.copytree(GATE, root / "models" / "system_gate")
    config = root / "models" / "system_gate" / "config.pbtxt"
    config.write_text(
        config.read_text()
        + f'parameters {{ key: "FOLDER" value {{ string_value: "{gate}" }} }}\n'
        + "dynamic_batching { default_queue_policy {"
        + f" default_timeout_microseconds: {DEFAULT_US} allow_timeout_override: true }} }}\n"
    )
    with tensorfarm(root / "models", folder=root / "run") as running:
        yield running


def _request(name: str, timeout_us: int = 0) -> bytes:
    body = compact(
        {
            "id": name,
            "inputs": [{"name": "X", "datatype": "FP32", "shape": [1], "data": [1.0]}],
            **({"parameters": {"timeout": timeout_us}} if timeout_us else {}),
        }
    )
    return request_bytes("POST", "/v2/models/system_gate/infer", body)


def test_refusals_come_on_time_while_the_instance_is_busy(server: Server, gate: Path) -> None:
    late_s = []
    for attempt in range(ATTEMPTS):
        late_s.append(_lateness_s(server, gate, f"deaf{attempt}"))
        if late_s[-1] < LATE_S:
            return
    pytest.fail(f"the 99th percentile of the refusals was late by {[f'{one * 1000:.1f} ms' for one in late_s]}")


def _lateness_s(server: Server, gate: Path, holder_name: str) -> float:
    """How far behind their deadlines refusals come, 99th percentile."""
    with Connection(server.http_port) as holder:
        holder.send(_request(holder_name))
        notes = gate / "system_gate.notes"
        wait_until(lambda: notes.exists() and f"{holder_name} begun" in notes.read_text(), "the instance to be busy")
        connections = [Connection(server.http_port) for _ in range(COUNT)]
        deadlines: dict[object, float] = {}
        with selectors.DefaultSelector() as selector:
            for number, connection in enumerate(connections):
                timeout_us = 200_000 + 5_000 * number
                deadlines[connection] = time.monotonic() + timeout_us / 1e6
                connection.send(_request(f"r{number}", timeout_us))
                selector.register(connection, selectors.EVENT_READ)
            late_s = []
            while len(late_s) < COUNT:
                events = selector.select(timeout=5.0)
                now = time.monotonic()
                assert events, f"{COUNT - len(late_s)} refusals did not come"
                for key, _ in events:
                    selector.unregister(key.fileobj)
                    late_s.append(now - deadlines[key.fileobj])
        replies = [connection.receive() for connection in connections]
        for connection in connections:
            connection.close()
        assert {(reply.status, reply.error) for reply in replies} == {(503, "Request timeout expired")}
        (gate / holder_name).touch()
        assert holder.receive().status == 200
    assert min(late_s) > -0.002, "refused before its time"
    return sorted(late_s)[COUNT * 99 // 100 - 1]

"""Ten times more requests than a server takes on: what enters is answered, the rest is refused at once, and memory stays bounded."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ..servers import Server, metric, tensorfarm, wait_until
from ..wire import Connection, compact, exchange, request_bytes

GATE = Path(__file__).resolve().parent.parent / "python_models" / "system_gate"
LIMIT = 8
MIB = 1 << 20
BYTE_LIMIT = 64 * MIB
PROMPT_S = 0.1
INPUTS = [{"name": "X", "datatype": "FP32", "shape": [1], "data": [1.0]}]
PAIR = """
name: "pair"
platform: "ensemble"
max_batch_size: 0
input [ { name: "X", data_type: TYPE_FP32, dims: [ -1 ] } ]
output [ { name: "Y", data_type: TYPE_FP32, dims: [ -1 ] }, { name: "Z", data_type: TYPE_FP32, dims: [ -1 ] } ]
ensemble_scheduling { step [
  { model_name: "inner", model_version: -1, input_map { key: "X", value: "X" }, output_map { key: "Y", value: "Y" } },
  { model_name: "inner", model_version: -1, input_map { key: "X", value: "X" }, output_map { key: "Y", value: "Z" } }
] }
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the models look for the files that let their requests go."""
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def server(gate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with models that hold their requests, one of them the only member of an ensemble, and one that streams."""
    root = tmp_path_factory.mktemp("admission")
    for name, more in (("gate", ""), ("inner", ""), ("streams", "model_transaction_policy { decoupled: true }\n")):
        shutil.copytree(GATE, root / "models" / name)
        config = root / "models" / name / "config.pbtxt"
        text = config.read_text().replace("system_gate", name)
        config.write_text(f'{text}{more}parameters {{ key: "FOLDER" value {{ string_value: "{gate}" }} }}\n')
    (root / "models" / "pair" / "1").mkdir(parents=True)
    (root / "models" / "pair" / "config.pbtxt").write_text(PAIR)
    flags = (
        *(f"--max-inflight-requests-per-model={LIMIT}", "--max-inflight-requests-per-model=inner:1"),
        *("--max-inflight-requests-per-model=pair:1", f"--max-inflight-byte-size={BYTE_LIMIT}"),
    )
    with tensorfarm(root / "models", *flags, folder=root / "run") as running:
        yield running


def _infer(model: str, name: str) -> bytes:
    return request_bytes("POST", f"/v2/models/{model}/infer", compact({"id": name, "inputs": INPUTS}))


def _in_flight(server: Server, model: str) -> float | None:
    return metric(exchange(server.metrics_port, "GET", "/metrics").body.decode(), "tensorfarm_requests_in_flight", model=model)


def _refused(server: Server, model: str, reason: str) -> float:
    page = exchange(server.metrics_port, "GET", "/metrics").body.decode()
    return metric(page, "tensorfarm_requests_refused_total", model=model, reason=reason) or 0.0


def _resident_byte_size(server: Server) -> int:
    """All memory of the server process, the arena's pages that it has touched included."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def _held(server: Server, gate: Path, model: str, names: list[str]) -> list[Connection]:
    """Requests that wait until ``_release``."""
    for name in names:
        (gate / name).unlink(missing_ok=True)
    connections = [Connection(server.http_port) for _ in names]
    for connection, name in zip(connections, names, strict=True):
        connection.send(_infer(model, name))
    wait_until(lambda: _in_flight(server, model) == len(names), "the requests to enter")
    return connections


def _release(gate: Path, names: list[str], connections: list[Connection]) -> None:
    for name in names:
        (gate / name).touch()
    assert [connection.receive().status for connection in connections] == [200] * len(names)
    for connection in connections:
        connection.close()


def test_ten_times_too_many(server: Server, gate: Path) -> None:
    names = [f"deaf{number}" for number in range(LIMIT)]
    held = _held(server, gate, "gate", names)
    waited_s = []
    others = [Connection(server.http_port) for _ in range(9 * LIMIT)]
    for number, connection in enumerate(others):
        began = time.monotonic()
        connection.send(_infer("gate", f"late{number}"))
        reply = connection.receive()
        waited_s.append(time.monotonic() - began)
        assert reply.status == 503
        assert 1 <= int(reply.header("retry-after") or 0) <= 30
        expected = f"too many requests in flight for model 'gate' (limit {LIMIT}); retry after {reply.header('retry-after')} s"
        assert reply.error == expected
        assert reply.header("connection") is None
    assert sorted(waited_s)[len(others) * 9 // 10] < PROMPT_S, "the machine of the tests has other things to do now and then"
    assert _refused(server, "gate", "MODEL_REQUESTS") == len(others)
    assert _in_flight(server, "gate") == LIMIT
    assert not any((gate / "gate.notes").read_text().count(f"late{number}") for number in range(len(others)))
    _release(gate, names, held)
    # Who was refused is served on the same connection.
    for connection in others:
        connection.send(_infer("gate", "now"))
        assert connection.receive().status == 200
        connection.close()


def test_every_door_refuses(server: Server, gate: Path) -> None:
    """Generation with one response and with many, and HTTP/2."""
    names = [f"deaf{number}" for number in range(LIMIT)]
    held = _held(server, gate, "gate", names)
    for kind in ("generate", "generate_stream"):
        reply = server.ask("POST", f"/v2/models/gate/{kind}", {"X": [1.0]})
        assert (reply.status, reply.header("retry-after") is not None) == (503, True)
        assert "too many requests in flight for model 'gate'" in reply.error
    with httpx.Client(base_url=f"http://127.0.0.1:{server.http_port}", http1=False, http2=True) as client:
        for kind, content in (("infer", {"inputs": INPUTS}), ("generate", {"X": [1.0]}), ("generate_stream", {"X": [1.0]})):
            for _ in range(3):
                answer = client.post(f"/v2/models/gate/{kind}", json=content)
                assert (answer.status_code, answer.http_version) == (503, "HTTP/2")
                assert "retry-after" in answer.headers
        _release(gate, names, held)
        assert client.post("/v2/models/gate/infer", json={"inputs": INPUTS}).status_code == 200


def test_what_comes_from_inside_is_let_in(server: Server, gate: Path) -> None:
    """Both steps of an ensemble go to a model that takes one request; it is the ensemble that refuses the next, before its steps."""
    (gate / "deaf").unlink(missing_ok=True)
    with Connection(server.http_port) as connection:
        connection.send(_infer("pair", "deaf"))
        wait_until(lambda: _in_flight(server, "inner") == 2, "both steps to enter")
        for model in ("pair", "inner"):
            reply = server.ask("POST", f"/v2/models/{model}/infer", compact({"inputs": INPUTS}))
            assert reply.status == 503 and f"model '{model}' (limit 1)" in reply.error
        (gate / "deaf").touch()
        assert connection.receive().status == 200


def test_ten_times_too_much(server: Server, gate: Path) -> None:
    """Large bodies beyond the bound are refused by their heads; those that entered are answered, and memory is bounded."""
    size = 15 * MIB
    before = _resident_byte_size(server)
    names = [f"deaf{number}" for number in range(4)]
    held = []
    for name in names:
        (gate / name).unlink(missing_ok=True)
        connection = Connection(server.http_port)
        tensor = {"name": "X", "datatype": "FP32", "shape": [size // 4], "parameters": {"binary_data_size": size}}
        text = compact({"id": name, "inputs": [tensor], "outputs": [{"name": "Y", "parameters": {"binary_data": True}}]})
        headers = {"Inference-Header-Content-Length": str(len(text))}
        connection.send(request_bytes("POST", "/v2/models/gate/infer", text + bytes(size), headers))
        held.append(connection)
    wait_until(lambda: _in_flight(server, "gate") == 4, "the large requests to enter")
    count = 36
    for _ in range(count):
        with Connection(server.http_port) as connection:
            connection.send(b"POST /v2/models/gate/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
            began = time.monotonic()
            reply = connection.receive()
            assert reply.status == 503 and reply.header("retry-after") is not None
            assert f"too many bytes of requests and replies in flight (limit {BYTE_LIMIT})" in reply.error
            assert time.monotonic() - began < 10 * PROMPT_S
    assert _refused(server, "gate", "BYTES") == count
    assert _resident_byte_size(server) - before < BYTE_LIMIT + 16 * MIB
    # A small one is none too much.
    small = Connection(server.http_port)
    small.send(_infer("gate", "small"))
    wait_until(lambda: _in_flight(server, "gate") == 5, "the small request to enter")
    _release(gate, names, held)
    assert small.receive().status == 200
    small.close()

"""Faults around a server that must cost nobody else anything: descriptors run out, logs go nowhere, clients misbehave."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..model_repository import IDENTITIES, PLAIN, Flavour, write_repository
from ..servers import Server, alive, child_pids, free_ports, metric, tensorfarm, wait_until
from ..wire import Connection, compact, exchange, request_bytes

MODELS = (PLAIN, *(one for one in IDENTITIES if one.name in ("identity_uint8", "identity_bytes")))
PLAIN_PATH = "/v2/models/plain/infer"
PLAIN_BODY = compact({"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": list(range(16))} for at in (0, 1)]})
MIB = 1 << 20


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A plain model and two identities."""
    return write_repository(tmp_path / "models", MODELS, Flavour.ONNX)


@pytest.fixture
def server(repository: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of one's own, with a small pool."""
    with tensorfarm(repository, f"--pinned-memory-pool-byte-size={4 * MIB}", folder=tmp_path / "run") as running:
        yield running


def _binary(byte_size: int) -> tuple[bytes, dict[str, str]]:
    """The JSON part of a request for an identity of so many bytes, binary both ways, and its headers."""
    inputs = [{"name": "INPUT0", "shape": [byte_size], "datatype": "UINT8", "parameters": {"binary_data_size": byte_size}}]
    head = compact({"inputs": inputs, "parameters": {"binary_data_output": True}})
    return head, {"Inference-Header-Content-Length": str(len(head))}


def test_bodies_beyond_the_pool(server: Server) -> None:
    """Larger than the pool, several at once: each comes back whole, and the memory is given back."""
    values = np.random.default_rng(9).integers(0, 256, 24 * MIB, np.uint8).tobytes()
    head, headers = _binary(len(values))
    message = request_bytes("POST", "/v2/models/identity_uint8/infer", head + values, headers)
    for _ in range(2):
        connections = [Connection(server.http_port) for _ in range(3)]
        for connection in connections:
            connection.send(message)
        for connection in connections:
            reply = connection.receive()
            assert reply.status == 200, reply.body[:300]
            assert reply.body.endswith(values)
            connection.close()
    wait_until(lambda: _metric(server, "nv_pinned_memory_pool_used_bytes") == 0, "the pool to be free")


def _metric(server: Server, name: str, **labels: str) -> float | None:
    return metric(exchange(server.metrics_port, "GET", "/metrics").body.decode(), name, **labels)


def test_clients_that_die_inside_a_body(server: Server) -> None:
    """Resets in the middle of large bodies leave nothing reserved."""
    head, headers = _binary(8 * MIB)
    message = request_bytes("POST", "/v2/models/identity_uint8/infer", head + bytes(8 * MIB), headers)
    for share in (0.1, 0.5, 0.99):
        connection = Connection(server.http_port)
        connection.send(message[: int(len(message) * share)])
        connection.abort()
    wait_until(lambda: _metric(server, "nv_pinned_memory_pool_used_bytes") == 0, "the pool to be free")
    assert server.ask("POST", PLAIN_PATH, PLAIN_BODY).status == 200


def test_slow_reader(server: Server) -> None:
    """A client that does not read its large answer holds up nobody else."""
    head, headers = _binary(16 * MIB)
    message = request_bytes("POST", "/v2/models/identity_uint8/infer", head + bytes(16 * MIB), headers)
    with Connection(server.http_port) as slow:
        slow.send(message)
        for _ in range(20):
            assert server.ask("POST", PLAIN_PATH, PLAIN_BODY).status == 200
        reply = slow.receive()
        assert reply.status == 200
        assert len(reply.body) == int(reply.header("inference-header-content-length") or 0) + 16 * MIB


def test_log_that_nobody_reads(repository: Path, tmp_path: Path) -> None:
    """The reader of both outputs goes away; the server goes on, and ends properly."""
    http_port, metrics_port = free_ports(2)
    temporary = tempfile.mkdtemp(prefix="tf-")
    command = [sys.executable, "-m", "tensorfarm.server", f"--model-repository={repository}", "--http-address=127.0.0.1"]
    command += [f"--http-port={http_port}", f"--metrics-port={metrics_port}", "--allow-grpc=false", "--log-verbose=1"]
    environment = {**os.environ, "TMPDIR": temporary, "XDG_RUNTIME_DIR": temporary}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=tmp_path, env=environment
    )
    try:
        assert process.stdout is not None
        said = b""
        while b"Started Metrics Service" not in said:
            line = process.stdout.readline()
            assert line, said.decode()
            said += line
        process.stdout.close()
        workers = child_pids(process.pid)
        for _ in range(3):
            assert exchange(http_port, "POST", PLAIN_PATH, PLAIN_BODY).status == 200
            assert exchange(http_port, "GET", "/nosuch").status == 404
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: exchange(http_port, "GET", "/v2/health/ready").status == 200 and child_pids(process.pid) != workers, "recovery")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        shutil.rmtree(temporary)
    wait_until(lambda: not any(map(alive, workers)), "the workers to end")


def test_overlapping_input_and_output(server: Server) -> None:
    """An output laid over its own input harms nobody; laid exactly over it, it is right."""
    key = f"/tensorfarm-test-{os.getpid()}-overlap"
    path = Path("/dev/shm") / key[1:]
    values = np.arange(4096, dtype=np.uint32).astype(np.uint8).tobytes()
    path.write_bytes(values * 3)
    try:
        assert server.ask("POST", "/v2/systemsharedmemory/region/r/register", {"key": key, "byte_size": len(values) * 3}).status == 200

        def ask(source: int, target: int) -> int:
            place: dict[str, Any] = {"shared_memory_region": "r", "shared_memory_byte_size": 4096}
            content = {
                "inputs": [
                    {"name": "INPUT0", "shape": [4096], "datatype": "UINT8", "parameters": {**place, "shared_memory_offset": source}}
                ],
                "outputs": [{"name": "OUTPUT0", "parameters": {**place, "shared_memory_offset": target}}],
            }
            return server.ask("POST", "/v2/models/identity_uint8/infer", content).status

        assert ask(0, 0) == 200
        assert path.read_bytes() == values * 3
        assert ask(0, 100) == 200
        assert path.read_bytes()[:100] == values[:100]
        assert server.ask("POST", "/v2/systemsharedmemory/unregister").status == 200
        assert server.ready()
    finally:
        path.unlink()


def test_bytes_that_lie_about_their_lengths(server: Server) -> None:
    """Lengths inside a tensor that point beyond it are refused, whichever way the tensor comes."""
    for content in (b"\xff\xff\xff\xff", b"\x02\0\0\0a", b"\1\0\0", b"\1\0\0\0a\xff\xff\xff\x7f"):
        inputs = [{"name": "INPUT0", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}}]
        head = compact({"inputs": inputs})
        reply = exchange(
            server.http_port,
            "POST",
            "/v2/models/identity_bytes/infer",
            head + content,
            {"Inference-Header-Content-Length": str(len(head))},
        )
        assert reply.status == 400, reply.body
    assert server.ready()

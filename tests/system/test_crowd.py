"""Crowds at the door of a real server: thousands of connections, and too few descriptors for them."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..model_repository import PLAIN, Flavour, write_repository
from ..servers import Server, tensorfarm, wait_until
from ..wire import Connection, compact, request_bytes

PATH = "/v2/models/plain/infer"
BODY = compact({"inputs": [{"name": f"INPUT{at}", "shape": [16], "datatype": "INT32", "data": list(range(16))} for at in (0, 1)]})
PROBE = request_bytes("GET", "/v2/health/live")
EACH = 500
DELAY_S = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one model, for crowds only."""
    folder = tmp_path_factory.mktemp("crowd")
    with tensorfarm(write_repository(folder / "models", (PLAIN,), Flavour.ONNX), folder=folder / "run") as running:
        yield running


@contextlib.contextmanager
def crowd(port: int, count: int) -> Iterator[list[socket.socket]]:
    """So many connections, as many descriptors of our own as that takes; reset in the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(socket.create_connection(("127.0.0.1", port), 20.0))
        yield made
    finally:
        for one in made:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            one.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def probe_s(connection: Connection) -> float:
    """How long a health probe takes on an open connection."""
    began = time.monotonic()
    connection.send(PROBE)
    assert connection.receive().status == 200
    return time.monotonic() - began


def new_probe_s(server: Server) -> float:
    """How long a health probe takes on a connection of its own."""
    began = time.monotonic()
    assert server.live()
    return time.monotonic() - began


def test_idle_and_dribbling_connections_delay_nobody(server: Server) -> None:
    """A thousand that say nothing, five hundred whose head and five hundred whose body comes byte by byte and never ends.

    A probe among them takes less than a tenth of a second, each time, and so does an inference.
    """
    with crowd(server.http_port, 4 * EACH) as all_of_them, Connection(server.http_port) as kept:
        silent, heads, bodies = all_of_them[: 2 * EACH], all_of_them[2 * EACH : 3 * EACH], all_of_them[3 * EACH :]
        for one in heads:
            one.sendall(b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: x\r\nA: ")
        for at, one in enumerate(bodies):
            framing = (b"Content-Length: 1000", b"Content-Length: 1000000", b"Transfer-Encoding: chunked")[at % 3]
            one.sendall(b"POST /v2/models/plain/infer HTTP/1.1\r\nHost: x\r\n" + framing + b"\r\n\r\n" + b"3e8\r\n" * (at % 3 == 2))
        probe_s(kept)
        took: list[float] = []
        for turn in range(12):
            for at, one in enumerate(heads + bodies):
                one.sendall(b"x")
                if at % 250 == 0:
                    took += [probe_s(kept), new_probe_s(server)]
            began = time.monotonic()
            assert server.ask("POST", PATH, BODY).status == 200
            assert turn == 0 or time.monotonic() - began < DELAY_S
        assert max(took) < DELAY_S, sorted(took)[-5:]
        for one in (silent[0], silent[-1]):
            one.sendall(PROBE)
            assert one.recv(1000).startswith(b"HTTP/1.1 200 ")
    wait_until(lambda: len(os.listdir(f"/proc/{server.pid}/fd")) < EACH, "the crowd to be gone")


def settled_descriptors(server: Server) -> int:
    """How many descriptors the server has open, once the connections of earlier tests have gone."""
    counts: list[int] = []

    def settled() -> bool:
        counts.append(len(os.listdir(f"/proc/{server.pid}/fd")))
        return len(counts) >= 20 and len(set(counts[-20:])) == 1

    wait_until(settled, "the server's descriptors to be as many as before")
    return counts[-1]


def test_descriptors_run_out(server: Server) -> None:
    """With hardly any left, open connections are served and new ones wait, at no cost; then they are served too."""
    used = settled_descriptors(server)
    limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
    with Connection(server.http_port) as kept:
        probe_s(kept)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + 12, limits[1]))
        try:
            with crowd(server.http_port, 40) as newcomers:
                for one in newcomers:
                    one.sendall(PROBE)
                wait_until(lambda: "new connections have to wait" in server.log, "the server to say so")
                began, cpu = time.monotonic(), cpu_s(server.pid)
                while time.monotonic() - began < 0.5:
                    assert probe_s(kept) < DELAY_S
                    time.sleep(0.02)
                kept.send(request_bytes("POST", PATH, BODY))
                assert kept.receive().status == 200
                assert cpu_s(server.pid) - cpu < 0.25, "it spins"
                assert len(os.listdir(f"/proc/{server.pid}/fd")) <= used + 12
                resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
                for one in newcomers:
                    assert one.recv(1000).startswith(b"HTTP/1.1 200 ")
        finally:
            resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
    assert server.ask("POST", PATH, BODY).status == 200


def test_a_server_takes_all_descriptors_that_it_may_have(tmp_path: Path) -> None:
    """A low soft limit is raised to the hard one, for the server and its workers."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    repository = write_repository(tmp_path / "models", (PLAIN,), Flavour.ONNX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with tensorfarm(repository, folder=tmp_path / "run") as server:
            for pid in (server.pid, *server.workers()):
                assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (min(hard, 1 << 20), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_connections_that_come_and_go(server: Server) -> None:
    """Ten thousand that are reset at once, within a head, within a body, or with a request in flight: nothing of them stays."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    def resident_kib() -> int:
        return int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024

    head = request_bytes("POST", PATH, BODY)
    said = (b"", head[:40], head[:-10], head, PROBE, request_bytes("POST", PATH, bytes(70_000))[:1000])
    reset = struct.pack("ii", 1, 0)
    before = descriptors()
    resident = []
    for half in range(2):
        for number in range(5000):
            with socket.create_connection(("127.0.0.1", server.http_port), 20.0) as client:
                client.send(said[number % len(said)])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        wait_until(lambda: descriptors() <= before, f"descriptors to be given back, {half}")
        resident.append(resident_kib())
    assert resident[1] - resident[0] < 4096, resident
    assert server.ask("POST", PATH, BODY).status == 200

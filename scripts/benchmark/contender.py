"""The servers that are measured: started on free loopback ports, with what their processes cost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.served import ready_on

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_START_SECS = 60.0
_STOP_SECS = 20.0


class ContenderError(Exception):
    """A server could not be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def cpu_secs(self) -> float:
        """CPU seconds that the server and its children have used."""
        return sum(_stat(pid)[0] for pid in _tree(self.process.pid))

    def memory_byte_size(self) -> int:
        """Resident memory of the server and its children."""
        return sum(_stat(pid)[1] for pid in _tree(self.process.pid))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return  # it ended while we looked
    for child in children:
        yield from _tree(int(child))


def _stat(pid: int) -> tuple[float, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0, 0
    return (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE


def free_ports(count: int) -> list[int]:
    """Loopback ports where nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def tensorfarm(repository: Path, log: Path) -> Iterator[Contender]:
    """tensorfarm on a model repository."""
    http_port, metrics_port = free_ports(2)
    command = [sys.executable, "-P", "-m", "tensorfarm.server", f"--model-repository={repository}", "--http-address=127.0.0.1"]
    command += [f"--http-port={http_port}", f"--metrics-port={metrics_port}", "--allow-grpc=false", "--allow-client-shm=true"]
    with _running("tensorfarm", command, {}, http_port, log) as contender:
        yield contender


@contextmanager
def tritonserver(oracle: Path, repository: Path, log: Path) -> Iterator[Contender]:
    """The real tritonserver, which ``oracle`` starts. Raises ContenderError where there is none for this machine."""
    ports = free_ports(3)
    ports_by_name = dict(zip(("HTTP_PORT", "GRPC_PORT", "METRICS_PORT"), map(str, ports), strict=True))
    with _running("tritonserver", [str(oracle), f"--model-repository={repository}"], ports_by_name, ports[0], log) as contender:
        yield contender


@contextmanager
def _running(name: str, command: Sequence[str], environment: dict[str, str], port: int, log: Path) -> Iterator[Contender]:
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env={**os.environ, **environment})
    try:
        deadline = time.monotonic() + _START_SECS
        while not ready_on(port):
            if process.poll() is not None or time.monotonic() > deadline:
                last = log.read_text(errors="replace").strip().splitlines()[-1:]
                raise ContenderError(f"{name} did not start: {''.join(last) or 'it said nothing'} (all of it: {log})")
            time.sleep(0.05)
        yield Contender(name, port, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

"""How long tensorfarm takes to start, and what models cost it: one small ONNX model beside a bare Python with the same one, and many."""

from __future__ import annotations

import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from models.add_sub import add_sub

from . import processes
from .contender import free_ports
from .progress import steps
from .results import Length, Start, StartRow

COUNTS = (1, 100)
"""How many models a repository holds."""

_BARE = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
_PROBE = b"GET /v2/health/ready HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
_LOOK_SECS = 0.002
_READY_SECS = 120.0
_STOP_SECS = 30.0


class StartError(Exception):
    """tensorfarm did not come up; the text says why."""


def run_start(rounds: int, folder: Path, console: Console) -> tuple[Start, list[str]]:
    """Starts in turns with the bare Python, medians; also a sentence about what failed."""
    repositories = {count: _repository(folder / f"models{count}", count) for count in COUNTS}
    model = repositories[1] / "add_sub0" / "1" / "model.onnx"
    bare: list[float] = []
    seen: dict[int, list[StartRow]] = {count: [] for count in COUNTS}
    failures: list[str] = []
    with steps(console, "start", (rounds + 1) * (1 + len(COUNTS))) as shown:
        for number in range(rounds + 1):
            shown.advance("a bare Python")
            secs = _bare_secs(model)
            found = []
            try:
                for count, repository in repositories.items():
                    shown.advance(f"{count} {'model' if count == 1 else 'models'}")
                    found.append(_started(repository, count))
            except (StartError, OSError) as error:
                failures.append(f"start: {error}")
                break
            # the first round reads files that no cache has yet
            if number:
                bare.append(secs)
                for row in found:
                    seen[row.models].append(row)
    rows = [_median(found) for found in seen.values() if found]
    return Start(Length(rounds, 0), statistics.median(bare) if bare else 0.0, rows), failures


def _repository(folder: Path, count: int) -> Path:
    for number in range(count):
        version = folder / f"add_sub{number}" / "1"
        version.mkdir(parents=True)
        (version / "model.onnx").write_bytes(add_sub())
    return folder


def _environment() -> dict[str, str]:
    """Bytecode is kept from one start to the next, as where the package is installed."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"ORT_DISABLE_TELEMETRY": "1"}


def _bare_secs(model: Path) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", _BARE, str(model)], check=True, stdin=subprocess.DEVNULL, env=_environment())
    return time.monotonic() - began


def _started(repository: Path, count: int) -> StartRow:
    began = time.monotonic()
    with _server(repository) as (server, port):
        while not _ready(port):
            if server.poll() is not None:
                raise StartError(f"tensorfarm ended with {server.returncode} when it was to start with {count} models")
            if time.monotonic() - began > _READY_SECS:
                raise StartError(f"tensorfarm was not ready with {count} models within {_READY_SECS:g} s")
            time.sleep(_LOOK_SECS)
        ready_secs = time.monotonic() - began
        workers = processes.descendants(server.pid)
        memory = [processes.resident_byte_size(server.pid), sum(map(processes.resident_byte_size, workers))]
    return StartRow(count, ready_secs, *memory)


@contextmanager
def _server(repository: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    port, metrics_port = free_ports(2)
    command = [sys.executable, "-P", "-m", "tensorfarm.server", f"--model-repository={repository}", "--http-address=127.0.0.1"]
    command += [f"--http-port={port}", f"--metrics-port={metrics_port}", "--allow-grpc=false"]
    nothing = subprocess.DEVNULL
    # a session of its own: a Ctrl-C at the terminal is for this program, which then ends the server
    process = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing, env=_environment(), start_new_session=True)
    try:
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 10.0) as link:
            link.sendall(_PROBE)
            return b" 200 " in link.recv(64)
    except OSError:
        return False


def _median(rows: list[StartRow]) -> StartRow:
    def middle(values: Iterator[float]) -> float:
        return statistics.median(values)

    return StartRow(
        rows[0].models,
        middle(row.ready_secs for row in rows),
        int(middle(row.server_byte_size for row in rows)),
        int(middle(row.worker_byte_size for row in rows)),
    )

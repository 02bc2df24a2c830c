"""The servers that are measured: started on free loopback ports, with what their processes cost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from models.add_sub import add_sub

from . import processes, workload
from .frameworks import TENSORFARM, TRITONSERVER, Framework, Variant
from .installing import python_of
from .load import LoadError, exchange
from .workload import Ask, WrongAnswer

SCRIPTS = Path(__file__).resolve().parents[1]
MAX_INPUT_BYTE_SIZE = 128 << 20
"""tensorfarm's own limit is 64 MiB on the body, which a tensor of 64 MiB and its header pass by a hundred bytes."""

_READY_SECS = 90.0
_STOP_SECS = 30.0


Fill = Callable[[Path], Path]
"""Makes a repository in a folder, and returns that."""


class ContenderError(Exception):
    """A server could not be started; the text says why."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A running server, and how it is asked for add_sub."""

    name: str
    port: int
    add_sub: Ask
    keeper: subprocess.Popen[bytes]

    def cpu_secs(self) -> float:
        """CPU seconds that all processes of the server have used."""
        return processes.cpu_secs(self.keeper.pid)

    def memory_byte_size(self) -> int:
        """Memory of all processes of the server."""
        return processes.memory_byte_size(self.keeper.pid)


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
def tensorfarm(folder: Path, fill: Fill = workload.onnx_repository) -> Iterator[Contender]:
    """tensorfarm with both models in ONNX, or with what ``fill`` puts into its repository: add_sub must be among it."""
    repository = fill(folder / "models")
    http_port, metrics_port = free_ports(2)
    command = [sys.executable, "-P", "-m", "tensorfarm.server", f"--model-repository={repository}", "--http-address=127.0.0.1"]
    command += [f"--http-port={http_port}", f"--metrics-port={metrics_port}", "--allow-grpc=false", "--allow-client-shm=true"]
    command += [f"--http-max-input-size={MAX_INPUT_BYTE_SIZE}"]
    ask = workload.add_sub_v2_binary("/v2/models/add_sub/infer")
    with _running(TENSORFARM, command, {}, http_port, ask, folder) as contender:
        yield contender


@contextmanager
def tritonserver(folder: Path, fill: Fill = workload.python_repository) -> Iterator[Contender]:
    """The real tritonserver with both models in its Python backend, or with what ``fill`` makes.

    Raises ContenderError where there is none for this machine.
    """
    repository = fill(folder / "models")
    ports = free_ports(3)
    environment = dict(zip(("HTTP_PORT", "GRPC_PORT", "METRICS_PORT"), map(str, ports), strict=True))
    command = [str(SCRIPTS / "oracle"), f"--model-repository={repository}"]
    ask = workload.add_sub_v2_binary("/v2/models/add_sub/infer")
    with _running(TRITONSERVER, command, environment, ports[0], ask, folder) as contender:
        yield contender


@contextmanager
def framework_server(framework: Framework, variant: Variant, folder: Path) -> Iterator[Contender]:
    """Another framework's server with add_sub in it. Raises ContenderError."""
    model = folder / "add_sub.onnx"
    if not model.exists():
        model.write_bytes(add_sub(workload.LENGTH))
    (port,) = free_ports(1)
    python = python_of(framework)
    command = [str(python), "-P", "-m", f"benchmark.servers.{framework.name}_server"]
    command += [f"--model={model}", f"--port={port}", f"--variant={variant.name}"]
    environment = {"PYTHONPATH": str(SCRIPTS), "PATH": f"{python.parent}:{os.environ['PATH']}", "VIRTUAL_ENV": str(python.parents[1])}
    with _running(framework.name, command, environment, port, variant.ask(framework.path), folder) as contender:
        yield contender


@contextmanager
def _running(name: str, command: Sequence[str], environment: Mapping[str, str], port: int, ask: Ask, folder: Path) -> Iterator[Contender]:
    log = folder / "log"
    keeper = [sys.executable, "-m", "benchmark.keeper", str(folder), *command]
    with log.open("wb") as sink:
        # a session of its own: a Ctrl-C at the terminal is for this program, which then ends the servers in order
        process = subprocess.Popen(
            keeper,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=SCRIPTS,
            env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", "TMPDIR": str(folder), **environment},
            start_new_session=True,
        )
    contender = Contender(name, port, ask, process)
    try:
        _wait_until_right(contender, log)
        yield contender
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_SECS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_right(contender: Contender, log: Path) -> None:
    """A server is ready when it answers add_sub rightly: they tell their readiness in different ways, some of them too early."""
    deadline = time.monotonic() + _READY_SECS
    said: object = "nothing"
    while time.monotonic() < deadline:
        if contender.keeper.poll() is not None:
            break
        try:
            reply, whole = exchange(("127.0.0.1", contender.port), contender.add_sub.request, 10.0)
            if b" 200" in reply.status:
                contender.add_sub.check(reply)
                return
            said = whole[:200]
        except (OSError, LoadError, WrongAnswer) as error:
            said = error
        time.sleep(0.05)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-3:]
    raise ContenderError(f"{contender.name} did not start: {' / '.join(lines)[-500:] or 'it said nothing'} (last answer: {said})")

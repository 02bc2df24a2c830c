"""A tensorfarm server of the quickstart's own: started, waited for, stopped."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ADDRESS = "127.0.0.1"
_READY_WITHIN_S = 120
_GONE_WITHIN_S = 40
_TAIL_LINES = 8
_WIDTH = 240
_ERROR = re.compile(r"E\d{4} |error|Traceback|\w*Error:|\w+: unrecognized option")


class ServerError(Exception):
    """The server did not do what it should; the text says what, with the end of its log."""


@dataclass(slots=True)
class Served:
    """A running server."""

    process: subprocess.Popen[bytes]
    http_port: int
    log: Path
    ready_ms: float

    @property
    def address(self) -> str:
        """Host and port of its HTTP service."""
        return f"{ADDRESS}:{self.http_port}"

    def stop(self) -> None:
        """Ask the server to exit as a service manager would. Raises ServerError where it does not exit 0 in time."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            rc = self.process.wait(timeout=_GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise ServerError(f"the server was still there {_GONE_WITHIN_S} s after SIGTERM{tail(self.log)}") from None
        if rc != 0:
            raise ServerError(f"the server ended with exit status {rc}{tail(self.log)}")


@contextmanager
def serving(repository: Path, http_port: int | None, log: Path, flags: Sequence[str]) -> Iterator[Served]:
    """Start a server on ``repository`` and wait until it is ready; it is gone when the block is left.

    ``http_port`` None means 8000, or any free one where that is taken. ``flags`` are handed to the
    server as they are. Raises ServerError.
    """
    http_port = _port(8000, 0) if http_port is None else _port(http_port)
    command = [sys.executable, "-P", "-m", "tensorfarm.server", f"--model-repository={repository}", f"--http-address={ADDRESS}"]
    command += [f"--http-port={http_port}", f"--metrics-port={_port(8002, 0)}"]
    command += [f"--grpc-address={ADDRESS}", f"--grpc-port={_port(8001, 0)}", *flags]
    log.parent.mkdir(parents=True, exist_ok=True)
    start_ns = time.monotonic_ns()
    with log.open("wb") as sink:
        # in a session of its own, where a Ctrl-C does not reach it: two signals would mean "end now"
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
    served = Served(process, http_port, log, 0.0)
    try:
        _wait_until_ready(served)
        served.ready_ms = (time.monotonic_ns() - start_ns) / 1e6
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(timeout=_GONE_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def tail(log: Path) -> str:
    """What a log says at its end, for an error text: its last lines, and before them the last errors it reports."""
    lines = [line[:_WIDTH] for line in log.read_text(errors="replace").splitlines() if line.strip(" |+-\n")]
    if not lines:
        return " and logged nothing"
    errors = [line for line in lines[:-_TAIL_LINES] if _ERROR.match(line)]
    shown = [*errors[-_TAIL_LINES:], *lines[-_TAIL_LINES:]]
    return "".join(f"\n  | {line}" for line in shown) + f"\n  (all of it: {log})"


def _port(*wanted: int) -> int:
    """The first of these ports where nothing listens; 0 stands for any. A server that is there already would answer for ours."""
    for port in wanted:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, port))
            except OSError as error:
                reason = error.strerror
                continue
            return int(probe.getsockname()[1])
    raise ServerError(f"port {wanted[0]} cannot be had: {reason}")


def _wait_until_ready(served: Served) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline:
        try:
            rc = served.process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            if ready_on(served.http_port):
                return
        else:
            raise ServerError(f"the server ended at start with exit status {rc}{tail(served.log)}")
    raise ServerError(f"the server was not ready within {_READY_WITHIN_S} s{tail(served.log)}")


def ready_on(port: int) -> bool:
    """Does a server on this loopback port say that it is ready?"""
    connection = http.client.HTTPConnection(ADDRESS, port, timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

"""A real redis-server for tests, on a loopback port of its own."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .servers import free_ports, wait_until

PROGRAM = shutil.which("redis-server")

needs_redis = pytest.mark.skipif(PROGRAM is None, reason="no redis-server on PATH (apt-get install redis-server)")


@dataclass
class RedisServer:
    """A redis-server that can be ended and started again on the same port, empty each time."""

    port: int
    folder: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert PROGRAM is not None
        command = [PROGRAM, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder), "--save", "", *self.arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603
        wait_until(self._listens, "redis-server to listen", interval_s=0.02)

    def _listens(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "redis-server ended at start"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.listening_port), 1):
            return True
        return False

    @property
    def listening_port(self) -> int:
        """Where it can be reached; with TLS only, its plain port is 0."""
        return self.port

    def stop(self) -> None:
        """End it at once."""
        if self.process is not None:
            # One that was stopped takes no other signal.
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        """Have it answer nothing from now on, its connections staying open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def command(self, *words: str | bytes) -> bytes:
        """What it answers to a command, as it comes over the wire; enough for short answers."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
            parts = [word.encode() if isinstance(word, str) else word for word in words]
            connection.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts))
            return connection.recv(65536)

    def keys(self) -> list[bytes]:
        """The names of all that it keeps."""
        return [line for line in self.command("KEYS", "*").split(b"\r\n") if line and line[:1] not in b"*$"]


@contextlib.contextmanager
def redis_server(*arguments: str) -> Iterator[RedisServer]:
    """A running redis-server; ``arguments`` are further ones of its command line."""
    folder = Path(tempfile.mkdtemp(prefix="tf-redis-"))
    (port,) = free_ports(1)
    server = RedisServer(port, folder, arguments)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

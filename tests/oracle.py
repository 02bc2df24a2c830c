"""The real tritonserver, started by our own ``scripts/oracle``; tests that need it are skipped where it cannot be had."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

from .servers import Finished, Server, finish, free_ports, spawn, stopping

UNAVAILABLE = 77
"""Exit code of ``scripts/oracle`` where the real server cannot be had on this platform."""

PREPARE_TIMEOUT_S = 600.0


PROGRAM = Path(__file__).resolve().parent.parent / "scripts" / "oracle"


@cache
def why_not() -> str:
    """Why there is no oracle here, or "" where there is one. The first call may install it."""
    if not PROGRAM.exists():
        return "no real tritonserver: scripts/oracle is not there"
    try:
        made = subprocess.run(  # noqa: S603  # our own starter
            [str(PROGRAM), "--install-only"],
            capture_output=True,
            text=True,
            timeout=PREPARE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no real tritonserver: {error}"
    said = made.stderr.strip().splitlines() or ["not for this platform"]
    if made.returncode == UNAVAILABLE:
        return said[-1]
    assert made.returncode == 0, f"scripts/oracle failed: {made.stderr}"
    return ""


def require() -> None:
    """Skip the running test or fixture, with the reason, where there is no oracle."""
    reason = why_not()
    if reason:
        pytest.skip(reason)


LOADING = "--model-load-thread-count=32"
"""It loads four models at a time otherwise, and waits a second in each that fails."""


def start(repository: Path, *flags: str, folder: Path, environment: Mapping[str, str] | None = None) -> Server:
    """Start the real server on free ports, without waiting for it. It is started again should it crash while it loads (seen: SIGSEGV)."""
    require()
    http_port, grpc_port, metrics_port = free_ports(3)
    command = [str(PROGRAM), f"--model-repository={repository}", LOADING, *flags]
    ports = {"HTTP_PORT": str(http_port), "GRPC_PORT": str(grpc_port), "METRICS_PORT": str(metrics_port)}
    server = spawn(command, {**ports, **(environment or {})}, http_port, metrics_port, folder)
    server.restarts, server.foreign = 2, True
    return server


@contextlib.contextmanager
def tritonserver(repository: Path, *flags: str, folder: Path) -> Iterator[Server]:
    """The real server, live; killed at the end."""
    with stopping(start(repository, *flags, folder=folder)) as (server,):
        yield server


def run(*arguments: str, folder: Path, timeout_s: float = 60.0) -> Finished:
    """Run the real server with these arguments until it ends by itself."""
    require()
    return finish(spawn([str(PROGRAM), *arguments], {}, 0, 0, folder), timeout_s)

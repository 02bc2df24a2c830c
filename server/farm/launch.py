"""Starts child processes: workers and front ends. Imports little, because the first worker comes before the server's own modules."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_BOOTSTRAP = Path(__file__).resolve().parents[2] / "workers" / "bootstrap.py"


class Launched:
    """A child process that waits for its greeting: whatever else it needs comes with that."""

    __slots__ = ("lifeline", "process", "started_ns")

    def __init__(self, process: subprocess.Popen[bytes], lifeline: socket.socket, started_ns: int) -> None:
        self.process = process
        self.lifeline = lifeline
        self.started_ns = started_ns

    def end(self) -> None:
        """Kill it and give back what is held of it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.lifeline.close()


def worker_words(program: str = sys.executable, ahead: str = "") -> list[str]:
    """The command of a worker in the Python ``program``. ``ahead`` names a backend that it imports before it is told to."""
    return [program, str(_BOOTSTRAP), *(("--ahead", ahead) if ahead else ())]


def launch(words: Sequence[str], environment: Mapping[str, str] | None = None, descriptors: Sequence[int] = ()) -> Launched:
    """Start a child process by its command, with these environment variables (None: the server's own).

    ``--lifeline`` and the number of a descriptor are added to the command; ``descriptors`` are more that it inherits. Raises OSError, and
    then nothing is left of it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                [*words, "--lifeline", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(theirs.fileno(), *descriptors),
                start_new_session=True,
            )
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
        except BaseException:
            ours.close()
            raise
    ours.setblocking(False)
    return Launched(process, ours, time.monotonic_ns())

"""The lifeline: a socket pair between server and worker that carries file descriptors, and whose end means death.

The server's side is ``server/farm/worker_process.py``.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import os
import signal
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec

from .contract.messages import Greeting, LifelineMessage
from .thread import WorkerThread

MAX_MESSAGE_BYTE_SIZE = 4096

_decoder = msgspec.msgpack.Decoder(LifelineMessage)
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 500


def receive(lifeline: socket.socket) -> tuple[LifelineMessage, int | None] | None:
    """Wait for the next message and the descriptor beside it, if any; None once the server has gone.

    A descriptor for which this process has no room is dropped by the kernel.
    """
    size = array.array("i").itemsize
    content, ancillary, _, _ = lifeline.recvmsg(MAX_MESSAGE_BYTE_SIZE, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    fd = None
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(payload[: len(payload) // size * size])
            fd = received[0]
    if not content:
        return None
    return _decoder.decode(content), fd


def greeted(lifeline: socket.socket) -> Greeting:
    """Wait for the greeting. Raises EOFError when the server goes away instead."""
    received = receive(lifeline)
    if received is None or not isinstance(received[0], Greeting):
        raise EOFError("no greeting over the lifeline")
    return received[0]


def watch(lifeline: socket.socket, handle: Callable[[LifelineMessage, int | None], None]) -> None:
    """Handle what comes over the lifeline in a thread of its own; the process ends with the lifeline."""

    def run() -> None:
        code = 1
        try:
            while (received := receive(lifeline)) is not None:
                handle(*received)
            code = 0
        except ConnectionError:
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            # Nobody is left to answer to; exit handlers could hang on instances that still run.
            os._exit(code)

    WorkerThread(run, "lifeline").start()


def die_with_server() -> None:
    """Have the kernel kill this process when the server dies or memory runs out, and leave its signals to the server.

    A terminal's Ctrl-C and a supervisor's SIGTERM reach the whole group; the server drains and then
    stops its workers itself.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # Only a hint: where it may not be given, the kernel chooses by size alone.
    with contextlib.suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE)))

"""The lifeline: a socket pair between server and worker that carries file descriptors, and whose end means death.

The server's side is ``server/farm/child_process.py``.
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

from .contract.messages import LIFELINE_BYTE_SIZE, Greeting, LifelineMessage
from .thread import WorkerThread

_decoder = msgspec.msgpack.Decoder(LifelineMessage)
_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 500


def receive(lifeline: socket.socket) -> tuple[LifelineMessage, int | None] | None:
    """Wait for the next message and the descriptor beside it, if any; None once the server has gone.

    A descriptor for which this process has no room is dropped by the kernel.
    """
    message, fds = _receive(lifeline, 1)
    return None if message is None else (message, fds[0] if fds else None)


def greeted(lifeline: socket.socket) -> tuple[Greeting, int, int] | None:
    """Wait for the greeting and the two descriptors beside it; None where the server goes away instead.

    They are the server's arena and this worker's own. Raises EOFError where something else comes.
    """
    message, fds = _receive(lifeline, 2)
    if message is None:
        return None
    if not isinstance(message, Greeting) or len(fds) != 2:
        raise EOFError("no greeting over the lifeline")
    return message, fds[0], fds[1]


def _receive(lifeline: socket.socket, most_fds: int) -> tuple[LifelineMessage | None, list[int]]:
    fds = array.array("i")
    space = socket.CMSG_SPACE(most_fds * fds.itemsize)
    content, ancillary, _, _ = lifeline.recvmsg(LIFELINE_BYTE_SIZE, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    return _decoder.decode(content) if content else None, fds.tolist()


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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The server holds them back while it starts, and what a model starts must not inherit that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    # Only a hint: where it may not be given, the kernel chooses by size alone.
    with contextlib.suppress(OSError):
        score = Path("/proc/self/oom_score_adj")
        score.write_text(str(min(1000, int(score.read_text()) + _OOM_SCORE)))

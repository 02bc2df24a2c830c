"""Runs one server and keeps hold of everything that it starts, so that all of it is counted, and ended.

    python -m benchmark.keeper FOLDER COMMAND [ARGUMENT...]

The server runs in FOLDER. Processes whose parent ends become children of the keeper instead of init's: the server and all that
came of it are always the keeper's descendants. SIGTERM goes on to the server; what that leaves behind gets one too, and what
is still there some seconds later is killed. The keeper itself is told to stop when its parent dies. It exits as the server did.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

from .processes import descendants

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STOP_SECS = 20
_LEAVE_SECS = 3


def main() -> None:
    """Run the command of the command line."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    server = subprocess.Popen(sys.argv[2:], cwd=sys.argv[1])

    def kill(signal_number: int, frame: FrameType | None) -> None:
        _send_all(signal.SIGKILL)
        signal.alarm(1)  # for those that were just being started

    def stop(signal_number: int, frame: FrameType | None) -> None:
        signal.alarm(_STOP_SECS)
        _send(server.pid, signal.SIGTERM)

    signal.signal(signal.SIGALRM, kill)
    signal.signal(signal.SIGTERM, stop)
    status = 0
    while True:
        try:
            pid, rc = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == server.pid:
            server.returncode = status = os.waitstatus_to_exitcode(rc)
            # those that it leaves behind may tidy up (Python's trackers of semaphores wait for the end of all others)
            _send_all(signal.SIGTERM)
            signal.alarm(_LEAVE_SECS)
    signal.alarm(0)
    sys.exit(status if status >= 0 else 128 - status)


def _send_all(number: int) -> None:
    for pid in descendants(os.getpid()):
        _send(pid, number)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it ended by itself


if __name__ == "__main__":
    main()

"""One leak check for all tests: processes, file descriptors, shared-memory objects and runtime folders that stay behind."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .servers import RUNNING, SHM, alive, descendants, mapped_objects, marked, wait_until

PRODUCT = "tensorfarm"
"""What the names of the product's runtime folders begin with; each holds a lock file, locked while its server lives."""

SETTLE_S = 10.0
"""How long ends may take: processes that are being reaped, sockets that are being closed."""


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment: below this process, opened by it, and under names that anyone could take."""

    processes: frozenset[int]
    descriptors: Counter[str]
    objects: frozenset[str]
    folders: frozenset[str]


def snapshot() -> Snapshot:
    """Look at everything that a test could leave behind."""
    return Snapshot(_processes(), _descriptors(), _objects(), _folders())


def _processes() -> frozenset[int]:
    running = {server.pid for server in RUNNING}
    spared = running.union(*(descendants(pid) for pid in running))
    return frozenset(descendants(os.getpid())) - spared


def _descriptors() -> Counter[str]:
    """Open descriptors by what they are. Sockets, pipes and the like count as their kind: their numbers mean nothing."""
    kinds: Counter[str] = Counter()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target != f"/proc/{os.getpid()}/fd":
                kinds[target.partition(":[")[0]] += 1
    return kinds


def _objects() -> frozenset[str]:
    return frozenset(os.listdir(SHM)) if SHM.is_dir() else frozenset()


def _folders() -> frozenset[str]:
    places = {tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", "")} - {""}
    locks = (path for place in places for path in Path(place).glob(f"{PRODUCT}-*/lock"))
    return frozenset(str(path.parent) for path in locks if not _locked(path))


def _locked(path: Path) -> bool:
    """Whether a living server, in this process or another, holds the lock of its folder."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _foreign(name: str) -> bool:
    """Whether a shared-memory object is in use by a process that these tests have not started, or by a running server."""
    ours = {os.getpid(), *descendants(os.getpid())}
    running = {pid for server in RUNNING for pid in marked(server.mark)}
    for entry in os.listdir("/proc"):
        pid = int(entry) if entry.isdigit() else 0
        if pid and alive(pid) and (pid not in ours or pid in running):
            if name in mapped_objects(pid):
                return True
    return False


def _settle_libraries() -> None:
    """Let go what the stock client's libraries keep for this process: gevent's event loop, Python's resource tracker."""
    gevent = sys.modules.get("gevent")
    if gevent is not None:
        gevent.get_hub().destroy(destroy_loop=True)
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    if tracker is not None:
        tracker._resource_tracker._stop()  # it has no public end
    gc.collect()
    # What is still there after a module is there to stay: it is not looked through again at the end of each of the others.
    gc.freeze()


def leaks(before: Snapshot) -> list[str]:
    """What is there now and was not before, as sentences."""
    now = snapshot()
    found = [f"process {pid}: {_command(pid)}" for pid in sorted(now.processes - before.processes) if alive(pid)]
    found += [f"{count} open descriptors of {kind}" for kind, count in sorted((now.descriptors - before.descriptors).items())]
    found += [f"shared-memory object {name}" for name in sorted(now.objects - before.objects) if not _foreign(name)]
    found += [f"temporary {name}" for name in sorted(now.folders - before.folders)]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"


@contextlib.contextmanager
def no_leaks(settle_s: float = SETTLE_S) -> Iterator[None]:
    """Fail at the end of the block where something that it has made stays behind for longer than ``settle_s`` seconds."""
    before = snapshot()
    yield
    _settle_libraries()
    try:
        wait_until(lambda: not leaks(before), "leaks to go away", settle_s / 2, 0.05)
    except AssertionError:
        # A thread of the stock client's libraries may have let go of a circle only after the last look at it.
        gc.unfreeze()
        gc.collect()
    try:
        wait_until(lambda: not leaks(before), "leaks to go away", settle_s / 2, 0.05)
    except AssertionError:
        raise AssertionError("left behind:\n  " + "\n  ".join(leaks(before))) from None

"""Servers as real processes: started on free loopback ports, waited for, read, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .wire import Reply, exchange

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 40.0
SHM = Path("/dev/shm")
MARK = "TENSORFARM_TEST_PROCESS"
"""Environment variable that every process of a started server inherits: its value tells whose descendant a process is."""


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on just now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 20.0, interval_s: float = 0.01) -> float:
    """Poll until ``condition()`` is true; return the seconds it took, or fail saying ``what`` did not come."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < timeout_s, f"waited {waited:.1f} s in vain for: {what}"
        time.sleep(interval_s)
    return time.monotonic() - start


def child_pids(pid: int) -> list[int]:
    """The living children of a process, of all its threads, in order of their ids."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return sorted(child for child in found if alive(child))


def stopped(pid: int) -> bool:
    """Whether every thread of a process has stopped."""
    states = [path.read_text().rpartition(")")[2].split()[0] for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def descendants(pid: int) -> list[int]:
    """All living processes below a process."""
    children = child_pids(pid)
    return children + [lower for child in children for lower in descendants(child)]


def alive(pid: int) -> bool:
    """Whether a process exists and has not ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def marked(value: str) -> list[int]:
    """The processes whose environment carries ``MARK`` with this value, wherever they hang in the process tree."""
    wanted = f"{MARK}={value}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and alive(int(entry)):
            with contextlib.suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
    return found


def mapped_objects(pid: int) -> set[str]:
    """The names of the shared-memory objects that a process has mapped."""
    try:
        return set(re.findall(rf"{SHM}/(\S+)", Path(f"/proc/{pid}/maps").read_text()))
    except OSError:
        return set()


MORE_FLAGS = "TENSORFARM_TEST_FLAGS"
RUNNING: set[Server] = set()
"""Servers that were started and not yet stopped; the leak check leaves their processes alone."""


@dataclass(eq=False)
class Server:
    """A server process. Its output goes to files, so that no pipe can fill up and hold it."""

    process: subprocess.Popen[bytes]
    http_port: int
    metrics_port: int
    folder: Path
    temporary: Path
    mark: str
    launch: Callable[[], subprocess.Popen[bytes]]
    stopped: bool = field(default=False)
    grpc_port: int = 0
    """0 where it does not serve gRPC."""
    restarts: int = 0
    """How often a start that ends by a signal may be tried again: never for our own server, a crash of which is a failed test."""
    foreign: bool = False
    """It is the real server, whose own stop takes long, may hang, and is not what is tested."""

    @property
    def pid(self) -> int:
        """The server process's id."""
        return self.process.pid

    @property
    def stdout(self) -> str:
        """What the server has written to its standard output so far."""
        return (self.folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What the server has written to its standard error so far."""
        return (self.folder / "stderr").read_text(errors="replace")

    @property
    def log(self) -> str:
        """Both outputs, for the message of a failed test."""
        return f"--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"

    def ask(self, method: str, path: str, body: bytes | str | Mapping[str, object] = b"", **headers: str) -> Reply:
        """One request on a connection of its own; underscores of header names become dashes."""
        return exchange(self.http_port, method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def live(self) -> bool:
        """Whether the server answers its liveness probe with 200."""
        return self._probe("/v2/health/live")

    def ready(self) -> bool:
        """Whether the server answers its readiness probe with 200."""
        return self._probe("/v2/health/ready")

    def model_ready(self, model: str) -> bool:
        """Whether a model's readiness probe is answered with 200."""
        return self._probe(f"/v2/models/{model}/ready")

    def _probe(self, path: str) -> bool:
        try:
            return exchange(self.http_port, "GET", path).status == 200
        except (ConnectionError, TimeoutError):
            return False

    def workers(self) -> list[int]:
        """The process ids of the server's children."""
        return child_pids(self.pid)

    def wait_live(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait for the liveness probe; fail with the log where the process ends first."""

        def live() -> bool:
            code = self.process.poll()
            if code is not None and code < 0 and self.restarts:
                self._launch_again()
                return False
            assert code is None, f"the server ended with {code} at start\n{self.log}"
            return self.live()

        try:
            wait_until(live, "the server to be live", timeout_s, 0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log}") from None

    def wait_exit(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """Wait for the end of the server process and all that it started; return its exit code."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server did not end within {timeout_s} s\n{self.log}") from None
        wait_until(lambda: not marked(self.mark), "the server's children to end", 10.0)
        left = sorted(path.name for path in self.temporary.iterdir())
        assert not left or code != 0, f"the server left in its temporary folder: {left}"
        self._forget()
        return code

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop by SIGTERM and require exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        code = self.wait_exit(timeout_s)
        assert code == 0, f"exit code {code} after SIGTERM\n{self.log}"

    def kill(self) -> None:
        """End the server and whatever it started by SIGKILL, after a failure.

        Shared-memory objects of the real server's models that nobody has mapped are unlinked: they are left when it is killed, or dies.
        """
        self._kill_all()
        self._forget()

    def _launch_again(self) -> None:
        self.restarts -= 1
        self._kill_all()
        for left in self.temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self.process = self.launch()

    def _kill_all(self) -> None:
        for pid in {self.pid, *marked(self.mark)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        wait_until(lambda: not marked(self.mark), "killed processes to be gone")
        mapped = {name for entry in os.listdir("/proc") if entry.isdigit() for name in mapped_objects(int(entry))}
        for path in SHM.glob("triton_python_backend_shm_region_*"):
            if path.name not in mapped:
                path.unlink(missing_ok=True)

    def _forget(self) -> None:
        self.stopped = True
        RUNNING.discard(self)
        shutil.rmtree(self.temporary, ignore_errors=True)


def spawn(command: Sequence[str], environment: Mapping[str, str], http_port: int, metrics_port: int, folder: Path) -> Server:
    """Start a server's process; ``folder`` is made and gets its outputs.

    It has a temporary folder of its own, with a short path (sockets may lie there), which must be empty when it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix="tf-"))
    mark = uuid.uuid4().hex
    inherited = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}  # the server's own business

    def launch() -> subprocess.Popen[bytes]:
        with open(folder / "stdout", "wb") as stdout, open(folder / "stderr", "wb") as stderr:
            return subprocess.Popen(  # noqa: S603  # our own program, arguments as a list
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=folder,
                env={**inherited, "TMPDIR": str(temporary), "XDG_RUNTIME_DIR": str(temporary), MARK: mark, **environment},
                start_new_session=True,
            )

    server = Server(launch(), http_port, metrics_port, folder, temporary, mark, launch)
    RUNNING.add(server)
    return server


def start_tensorfarm(
    repository: Path | Sequence[Path],
    *flags: str,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    wait: bool = True,
    grpc: bool = False,
) -> Server:
    """Start tensorfarm on free ports, with ``grpc`` on one for that too. ``wait=False`` returns at once, for starts that are meant to fail.

    The environment variable TENSORFARM_TEST_FLAGS adds flags to those of every server, unless it has them already:
    with ``--front-ends=2`` all tests go through front ends.
    """
    http_port, metrics_port, grpc_port = free_ports(3)
    repositories = [repository] if isinstance(repository, Path) else repository
    command = [
        *(sys.executable, "-m", "tensorfarm.server"),
        *(f"--model-repository={path}" for path in repositories),
        *("--http-address=127.0.0.1", f"--http-port={http_port}", f"--metrics-port={metrics_port}"),
        *(("--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}") if grpc else ("--allow-grpc=false",)),
        *(
            flag
            for flag in os.environ.get(MORE_FLAGS, "").split()
            if flag.partition("=")[0] not in {one.partition("=")[0] for one in flags}
        ),
        *flags,
    ]
    server = spawn(command, environment or {}, http_port, metrics_port, folder)
    server.grpc_port = grpc_port if grpc else 0
    if wait:
        try:
            server.wait_live()
        except BaseException:
            server.kill()
            raise
    return server


@contextlib.contextmanager
def tensorfarm(
    repository: Path | Sequence[Path], *flags: str, folder: Path, environment: Mapping[str, str] | None = None, grpc: bool = False
) -> Iterator[Server]:
    """A running tensorfarm; at the end it is stopped by SIGTERM and must exit with 0, unless the test has stopped it itself."""
    with stopping(start_tensorfarm(repository, *flags, folder=folder, environment=environment, wait=False, grpc=grpc)) as (server,):
        yield server


@contextlib.contextmanager
def stopping(*servers: Server) -> Iterator[tuple[Server, ...]]:
    """Servers that have been started: live in the block, stopped by SIGTERM at its end unless the test has done so.

    Killed where the block fails, or where they are not ours.
    """
    try:
        for server in servers:
            server.wait_live()
        yield servers
        for server in servers:
            if not server.stopped and not server.foreign:
                server.terminate()
    finally:
        for server in servers:
            if not server.stopped:
                server.kill()


@dataclass(frozen=True)
class Finished:
    """A program that ran to its end."""

    code: int
    stdout: str
    stderr: str


def run_tensorfarm(*arguments: str, folder: Path, timeout_s: float = 60.0, environment: Mapping[str, str] | None = None) -> Finished:
    """Run tensorfarm with exactly these arguments until it ends by itself."""
    return finish(spawn([sys.executable, "-m", "tensorfarm.server", *arguments], environment or {}, 0, 0, folder), timeout_s)


def finish(server: Server, timeout_s: float) -> Finished:
    """Wait for a server that is expected to end by itself."""
    try:
        code = server.wait_exit(timeout_s)
    except BaseException:
        server.kill()
        raise
    return Finished(code, server.stdout, server.stderr)


def metric(text: str, name: str, **labels: str) -> float | None:
    """The value of a Prometheus series that carries at least these labels, or None where there is none."""
    for line in text.splitlines():
        match = re.fullmatch(rf"{re.escape(name)}(?:\{{(.*)\}})? (\S+)(?: \d+)?", line)
        if match is not None:
            found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[1] or ""))
            if labels.items() <= found.items():
                return float(match[2])
    return None

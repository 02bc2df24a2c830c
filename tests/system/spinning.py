"""Requests that take as long as a test wants: the ``spin`` model's run time is proportional to its input."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from ..servers import Server, metric, wait_until
from ..wire import Reply, compact, exchange

PATH = "/v2/models/spin/infer"
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def spin_body(steps: int) -> bytes:
    """An inference request that makes the model do ``steps`` matrix products."""
    return compact({"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "INT64", "data": [steps]}]})


def steps_per_second(server: Server) -> int:
    """How many steps the model does in a second on this machine as busy as it is now."""
    steps = 4000
    server.ask("POST", PATH, spin_body(1))
    start = time.monotonic()
    assert server.ask("POST", PATH, spin_body(steps)).status == 200
    return int(steps / (time.monotonic() - start))


class Asked:
    """A request under way in a thread: its reply, or what went wrong, and when it ended."""

    def __init__(self, server: Server, path: str, body: bytes) -> None:
        self.reply: Reply | None = None
        self.error: Exception | None = None
        self.ended = 0.0
        self._port = server.http_port
        self._thread = threading.Thread(target=self._run, args=(path, body), daemon=True)
        self._thread.start()

    def _run(self, path: str, body: bytes) -> None:
        try:
            self.reply = exchange(self._port, "POST", path, body)
        except (OSError, AssertionError) as error:
            self.error = error
        self.ended = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether the reply is there."""
        return not self._thread.is_alive()

    def result(self, timeout_s: float = 30.0) -> Reply:
        """Wait for the reply; fail where there is none."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"no reply within {timeout_s} s"
        assert self.error is None, f"no reply: {self.error!r}"
        assert self.reply is not None
        return self.reply


def ask_spin(server: Server, steps: int) -> Asked:
    """Send a spin request from a thread of its own."""
    return Asked(server, PATH, spin_body(steps))


def cpu_s(pid: int) -> float:
    """Processor time that a process has used, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def wait_running(pid: int, idle_cpu_s: float) -> None:
    """Wait until a worker is at work, which shows in the processor time that it uses beyond ``idle_cpu_s``."""
    wait_until(lambda: cpu_s(pid) > idle_cpu_s + 0.05, f"process {pid} to be busy")


def pending(server: Server, model: str = "spin") -> float:
    """How many requests of a model wait in its queue, from the metrics page."""
    text = exchange(server.metrics_port, "GET", "/metrics").body.decode()
    value = metric(text, "nv_inference_pending_request_count", model=model)
    return -1.0 if value is None else value

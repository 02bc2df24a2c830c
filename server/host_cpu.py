"""How busy the machine's processors and memory are."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PROC = Path("/proc")


class HostCpu:
    """CPU and memory of the machine, from /proc.

    Utilization is the mean since the sample before, which is renewed at most every ``interval_ns``,
    so several scrapers do not cut each other's window to nothing.
    """

    def __init__(self, interval_ns: int = 2_000_000_000, proc: Path = PROC, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._interval_ns = interval_ns
        self._proc = proc
        self._clock_ns = clock_ns
        self._utilization = 0.0
        self._sampled_ns = clock_ns()
        self._ticks = self._read_ticks() or (0, 0)

    def _read_ticks(self) -> tuple[int, int] | None:
        """Clock ticks since boot, busy and all; None where the kernel does not tell."""
        try:
            with open(self._proc / "stat", "rb") as stat:
                first = stat.readline().split()
        except OSError:
            return None
        if len(first) < 9 or first[0] != b"cpu":
            return None
        user, nice, system, idle, iowait, irq, softirq, steal = [int(ticks) for ticks in first[1:9]]
        busy = user + nice + system + irq + softirq + steal
        return busy, busy + idle + iowait

    def utilization(self) -> float | None:
        """The busy share of all cores, 0 to 1; None where the kernel does not tell."""
        now_ns = self._clock_ns()
        if now_ns - self._sampled_ns >= self._interval_ns:
            ticks = self._read_ticks()
            if ticks is None:
                return None
            busy, total = ticks[0] - self._ticks[0], ticks[1] - self._ticks[1]
            self._utilization = min(1.0, max(0.0, busy / total)) if total > 0 else 0.0
            self._ticks = ticks
            self._sampled_ns = now_ns
        return self._utilization if self._ticks[1] else None

    def memory(self) -> tuple[int, int] | None:
        """Total and used bytes of RAM (used: not available); None where the kernel does not tell."""
        try:
            lines = (self._proc / "meminfo").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        byte_sizes = {}
        for line in lines:
            name, _, rest = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                byte_sizes[name] = int(rest.split()[0]) * 1024
        if len(byte_sizes) < 2:
            return None
        return byte_sizes["MemTotal"], byte_sizes["MemTotal"] - byte_sizes["MemAvailable"]

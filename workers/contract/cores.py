"""How many processor cores this process may use."""

from __future__ import annotations

import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"), None),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)


def usable_core_count() -> int:
    """Physical cores that this process may run on, no more than its cgroup's quota gives time for; at least 1.

    ONNX Runtime's own default counts the machine's cores: it makes 64 threads in a container of 4,
    and it pins each of them to a core, where those of all models then meet.
    """
    count = len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    quota = _quota_cores()
    return max(1, count if quota is None else min(count, quota))


def _siblings(cpu: int) -> str:
    try:
        return (_TOPOLOGY / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota_cores() -> int | None:
    for quota_path, period_path in _QUOTAS:
        try:
            words = quota_path.read_text().split()
            if period_path is not None:
                words += period_path.read_text().split()
            quota_us, period_us = int(words[0]), int(words[1])
        except (OSError, ValueError, IndexError):
            continue
        if quota_us > 0 and period_us > 0:
            return -(-quota_us // period_us)
    return None

"""The processes of a server by what they are for, and what they hold."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..servers import Server, descendants


@dataclass(frozen=True)
class Held:
    """What a process holds: anonymous memory in bytes, and open descriptors."""

    own_byte_size: int
    descriptors: int


def held(pid: int) -> Held:
    """Look at a process."""
    return Held(_status(pid, "RssAnon"), len(os.listdir(f"/proc/{pid}/fd")))


def peak_byte_size(pid: int) -> int:
    """The most memory that a process has had resident since ``forget_peak``, memory that it shares included."""
    return _status(pid, "VmHWM")


def forget_peak(pid: int) -> None:
    """Have ``peak_byte_size`` begin with what is resident now."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, field: str) -> int:
    (found,) = re.findall(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.M)
    return int(found) * 1024


def with_gpus(server: Server) -> list[int]:
    """The processes below a server that were started so that they see a GPU."""
    return [pid for pid in descendants(server.pid) if _sees_gpu(pid)]


def _sees_gpu(pid: int) -> bool:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return any(re.match(rb"CUDA_VISIBLE_DEVICES=(GPU|MIG)-", variable) for variable in environment)

"""What processes cost, as /proc tells it: a process and all that descend from it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class _Stat:
    parent: int
    own_secs: float
    reaped_secs: float
    resident_byte_size: int


def _stat(pid: int) -> _Stat | None:
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None  # it ended while we looked
    own, reaped = int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14])
    return _Stat(int(fields[1]), own / _TICKS, reaped / _TICKS, int(fields[21]) * _PAGE)


def _below(pid: int) -> dict[int, _Stat]:
    everybody = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit() and (stat := _stat(int(entry))):
            everybody[int(entry)] = stat
    children: dict[int, list[int]] = {}
    for number, stat in everybody.items():
        children.setdefault(stat.parent, []).append(number)
    found: dict[int, _Stat] = {}
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            found[child] = everybody[child]
            waiting.append(child)
    return found


def descendants(pid: int) -> list[int]:
    """The processes below ``pid``, without itself."""
    return list(_below(pid))


def cpu_secs(pid: int) -> float:
    """CPU seconds of all that descend from ``pid``, those that have ended included; not its own."""
    keeper = _stat(pid)
    return (keeper.reaped_secs if keeper else 0.0) + sum(stat.own_secs + stat.reaped_secs for stat in _below(pid).values())


def resident_byte_size(pid: int) -> int:
    """Resident memory of one process, pages that it shares with others included; 0 where it has ended."""
    stat = _stat(pid)
    return stat.resident_byte_size if stat else 0


def memory_byte_size(pid: int) -> int:
    """Memory of all that descend from ``pid``: pages that several share count once (PSS), or resident size where that is not told."""
    return sum(_proportional_byte_size(number) or stat.resident_byte_size for number, stat in _below(pid).items())


def _proportional_byte_size(pid: int) -> int:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))

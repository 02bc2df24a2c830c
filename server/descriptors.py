"""File descriptors: how many this process may have open."""

from __future__ import annotations

import os
import resource

MOST = 1 << 20
"""More than this are never asked for: some systems allow a billion, and tables grow with the highest number in use."""


def raise_limit() -> int:
    """Let this process, and those it starts, have as many descriptors as the system allows them; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return limit()


def limit() -> int:
    """How many descriptors this process may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)


def enough() -> int:
    """The number from which on a descriptor says that few are left: those are for the workers, and for files open for a moment."""
    most = limit()
    return most - min(32, most // 8)


def few_left(descriptor: int) -> bool:
    """Whether the next one to be opened would be one of the last; ``descriptor`` is any open one."""
    try:
        # the system hands out the lowest number that is free
        lowest = os.dup(descriptor)
    except OSError:
        return True
    os.close(lowest)
    return lowest >= enough()

"""Memory that a model has left behind goes back to the system."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref

from tensorfarm.workers import heap

FRAGMENTED = """
import sys
from tensorfarm.workers import heap
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
before = resident()
blocks = [bytearray(100_000) for _ in range(500)]
kept = blocks[-1]
del blocks
left = resident() - before
with heap.returning():
    pass
print(left, resident() - before, heap._has_glibc)
"""


def test_freed_pages_below_one_in_use() -> None:
    done = subprocess.run([sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, timeout=60, check=True)
    left, after, trims = done.stdout.split()
    assert int(left) > 40_000_000, "the allocator keeps them by itself"
    assert trims == "False" or int(after) < 5_000_000


def test_garbage_goes_first() -> None:
    class Node:
        pass

    node = Node()
    node.itself = node  # type: ignore[attr-defined]
    gone = weakref.ref(node)
    gc.disable()
    try:
        del node
        assert gone() is not None
        with heap.returning():
            pass
        assert gone() is None
    finally:
        gc.enable()

"""The memory of processes."""

from __future__ import annotations

import os

from tensorfarm.server.farm.process_memory import resident_byte_size


def test_memory_that_is_used_counts() -> None:
    before = resident_byte_size(os.getpid())
    block = bytearray(b"x") * (64 << 20)
    after = resident_byte_size(os.getpid())
    assert before > 1 << 20 and after - before > (len(block) * 3) // 4


def test_a_process_that_has_gone_uses_none() -> None:
    assert resident_byte_size(2**22 + 1) == 0

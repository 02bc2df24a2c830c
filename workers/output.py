"""Where the bytes of an output go: into the message, the client's region, or the worker's arena."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..shm.placement import Inline, Placement, Span
from .contract.room import check_room

if TYPE_CHECKING:
    from .batch import Memory

INLINE_BYTE_SIZE = 32 * 1024
"""Outputs up to this size ride inside the message; larger ones lie in the arena."""


def store(memory: Memory, name: str, content: bytes | memoryview, span: Span | None) -> Placement:
    """Copy an output's bytes to their place, once. Raises StatusError where there is too little room."""
    byte_size = len(content)
    if span is not None:
        check_room(name, span, byte_size)
        address = memory.device_address(span)
        if address is None:
            memory.view(span)[:byte_size] = content
        else:
            memory.write_device(address, content)
        return span
    if byte_size <= INLINE_BYTE_SIZE:
        return Inline(memoryview(content))
    lease = memory.reserve(byte_size)
    memory.view(lease)[:] = content
    return lease

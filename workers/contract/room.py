"""The room that a client's region has for an output."""

from __future__ import annotations

from ...shm.placement import Span
from .status import internal


def check_room(name: str, span: Span, byte_size: int) -> None:
    """Raises StatusError INTERNAL where an output is larger than the region part that it is to go to."""
    if span.byte_size < byte_size:
        raise internal(
            f"shared memory size specified with the request for output '{name}' ({span.byte_size} bytes) "
            f"should be at least {byte_size} bytes to hold the results"
        )

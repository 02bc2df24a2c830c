"""What one client may ask of the HTTP doors: sizes, counts and times."""

from __future__ import annotations

from dataclasses import dataclass

INLINE_BYTE_SIZE = 64 * 1024
"""Bodies, and tensors that came as JSON, ride inside messages up to this size, and lie in the arena above it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of every connection of a door.

    ``inline_byte_size`` is the largest body kept in ordinary memory; a larger one lies in the
    arena, whose capacity bounds it. A body that is only announced gets ``claim_byte_size`` of the arena, or one
    part in ``claim_share`` of what is free there; it gets more once that is filled. ``waiting`` counts complete
    requests that wait behind the one being answered on the same connection. A time of 0 means no limit. ``sweep_s`` is how often
    the door looks at the times, and so their resolution.
    """

    request_line_byte_size: int = 8 * 1024
    head_byte_size: int = 64 * 1024
    header_count: int = 100
    inline_byte_size: int = INLINE_BYTE_SIZE
    claim_byte_size: int = 1024 * 1024
    claim_share: int = 256
    chunk_count: int = 65_536
    chunk_line_byte_size: int = 16 + 256
    trailer_byte_size: int = 8 * 1024
    waiting: int = 8
    connections: int = 16_384
    head_s: float = 10.0
    body_idle_s: float = 30.0
    keep_alive_idle_s: float = 3600.0
    stalled_reply_s: float = 60.0
    linger_s: float = 5.0
    sweep_s: float = 1.0

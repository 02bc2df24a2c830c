"""What one client may ask of the HTTP doors: sizes, counts and times."""

from __future__ import annotations

from dataclasses import dataclass

from ..door.scratch import INLINE_BYTE_SIZE


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of every connection of a door.

    ``inline_byte_size`` is the largest body kept in ordinary memory; a larger one lies in the
    arena, whose capacity bounds it. A body that is only announced gets ``claim_byte_size`` of the arena, or one
    part in ``claim_share`` of what is free there, and no more than ``crowded_claim_byte_size`` where a quarter of the arena is in use;
    it gets more once that is filled. ``waiting`` counts complete
    requests that wait behind the one being answered on the same connection, and ``waiting_byte_size`` their bodies' bytes on
    all connections together. There are never more ``connections`` than half of the
    process's descriptors; ``spare_connections`` beyond that are only asked whether they are health probes; before that, and
    where descriptors run out, those go that have been idle for ``reclaim_idle_s``.
    At least ``progress_byte_size`` of a body, and one part in ``progress_share`` of the memory that it holds unfilled, must come in
    each ``body_idle_s``; and ``progress_byte_size`` leave of a reply in each ``stalled_reply_s``. Of a reply in pieces no further one is
    taken while more than ``stream_unsent_byte_size`` wait for the client: it is cut off. What a client still sends behind a
    last reply is read over until it pauses for ``linger_s``, and for ``linger_total_s`` at most. A client that ends its side within
    ``half_close_s`` of its request still waits for the reply; one that does so later has gone. A time of 0 means no limit.
    ``sweep_s`` is how often the door looks at the times, and so their resolution.
    """

    request_line_byte_size: int = 8 * 1024
    head_byte_size: int = 64 * 1024
    header_line_byte_size: int = 16 * 1024
    header_count: int = 100
    inline_byte_size: int = INLINE_BYTE_SIZE
    claim_byte_size: int = 1024 * 1024
    claim_share: int = 256
    crowded_claim_byte_size: int = 64 * 1024
    chunk_count: int = 65_536
    chunk_extension_byte_size: int = 256
    trailer_byte_size: int = 8 * 1024
    waiting: int = 8
    waiting_byte_size: int = 64 * 1024 * 1024
    connections: int = 16_384
    spare_connections: int = 64
    head_s: float = 10.0
    body_idle_s: float = 30.0
    half_close_s: float = 0.25
    keep_alive_idle_s: float = 3600.0
    reclaim_idle_s: float = 5.0
    stalled_reply_s: float = 60.0
    stream_unsent_byte_size: int = 16 * 1024 * 1024
    linger_s: float = 5.0
    linger_total_s: float = 30.0
    progress_byte_size: int = 4 * 1024
    progress_share: int = 256
    sweep_s: float = 1.0

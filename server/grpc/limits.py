"""What one client may ask of the gRPC door: sizes, counts and times."""

from __future__ import annotations

from dataclasses import dataclass

from ..door.scratch import INLINE_BYTE_SIZE


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of every connection; those of messages mean what they do in ``http.limits``.

    A connection that has not said in ``head_s`` that it speaks HTTP/2 is ended; so is one that takes nothing for ``stalled_reply_s`` of
    what the socket holds for it, and a stream whose window stays shut for so long before a complete reply, or while the server is full.
    At least ``progress_byte_size`` of a message, and one part in ``progress_share`` of the memory that it holds unfilled, must come in
    each ``body_idle_s``. There are never more ``connections`` than a quarter of the process's descriptors.
    """

    inline_byte_size: int = INLINE_BYTE_SIZE
    claim_byte_size: int = 1024 * 1024
    claim_share: int = 256
    crowded_claim_byte_size: int = 64 * 1024
    connections: int = 16_384
    head_s: float = 10.0
    linger_s: float = 5.0
    stalled_reply_s: float = 60.0
    body_idle_s: float = 30.0
    progress_byte_size: int = 4 * 1024
    progress_share: int = 256
    sweep_s: float = 1.0

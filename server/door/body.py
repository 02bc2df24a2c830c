"""Request bodies as they arrive: where their bytes go.

A large body with a known length is received straight into its final place in the arena. A small one, and one of unknown
length, grows in ordinary memory; the latter moves to the arena once it is big. Either counts as held by the server (`Admission`);
bodies of known length up to ``SMALL_BYTE_SIZE`` do not: a connection has one of them, and is larger itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ...shm.arena import ArenaFull
from ...shm.placement import Inline, Placement
from ..admission import UNLIMITED, Overloaded
from .malformed import Malformed
from .scratch import NO_MEMORY

if TYPE_CHECKING:
    from ...shm.arena import Arena, Block
    from ..admission import Admission

SMALL_BYTE_SIZE = 4096
"""Bodies of known length up to this size are not counted."""

_TENSOR_ALIGNMENT = 64
_GROWTH = 4
_CROWDED = 4


class BodyLimits(Protocol):
    """What bounds a body, in bytes; ``http.limits`` says what each means."""

    @property
    def inline_byte_size(self) -> int: ...
    @property
    def claim_byte_size(self) -> int: ...
    @property
    def claim_share(self) -> int: ...
    @property
    def crowded_claim_byte_size(self) -> int: ...


class InlineBody:
    """A request body in ordinary memory: tensors cut from it ride inside messages."""

    __slots__ = ("view",)

    def __init__(self, content: bytes | bytearray | memoryview = b"") -> None:
        self.view = memoryview(content)

    def place(self, start: int, stop: int) -> Placement:
        """The bytes ``start`` to ``stop`` as a tensor's placement."""
        return Inline(self.view[start:stop])

    def release(self) -> None:
        """Nothing to give back."""


class ArenaBody:
    """A request body that was received straight into the server's arena: tensors cut from it stay there.

    It begins ``lead`` bytes into its block.
    """

    __slots__ = ("_block", "_lead", "view")

    def __init__(self, block: Block, byte_size: int, lead: int = 0) -> None:
        self._block = block
        self._lead = lead
        self.view = block.view[lead : lead + byte_size]

    def place(self, start: int, stop: int) -> Placement:
        """The bytes ``start`` to ``stop`` as a tensor's placement."""
        return self._block.place(self._lead + start, self._lead + stop)

    def release(self) -> None:
        """Give the block back to the arena; the caller promises that nothing reads it any more."""
        self.view.release()
        self._block.release()


Body = InlineBody | ArenaBody


class HeldBody(InlineBody):
    """A body in ordinary memory that counts as held until it is released."""

    __slots__ = ("_admission", "_held")

    def __init__(self, content: bytes | bytearray, admission: Admission) -> None:
        super().__init__(content)
        self._admission = admission
        self._held = len(content)
        admission.hold(self._held)

    def release(self) -> None:
        """It is not needed any more: no longer counted."""
        held, self._held = self._held, 0
        self._admission.let_go(held)


def most_byte_size(arena: Arena | None, admission: Admission) -> int:
    """How large a body may be that does not stay in ordinary memory."""
    return 0 if arena is None else min(arena.capacity_byte_size, admission.most_bytes)


def reserve(arena: Arena | None, byte_size: int, admission: Admission) -> Block:
    """A block for a body. Raises Malformed: 413 where no body can be that large, 503 where there is no room for it now."""
    if arena is None or byte_size > most_byte_size(arena, admission):
        raise Malformed(413, "request body is too large")
    check_room(admission, byte_size)
    try:
        return arena.reserve(byte_size)
    except ArenaFull:
        raise Malformed(503, NO_MEMORY, retry_after_s=admission.retry_after_s()) from None


def check_room(admission: Admission, byte_size: int) -> None:
    """Raises Malformed 503 where so many bytes more are too many now."""
    try:
        admission.check_bytes(byte_size)
    except Overloaded as refusal:
        raise Malformed(503, refusal.message, retry_after_s=refusal.retry_after_s) from None


def _enlarged(arena: Arena | None, block: Block, filled: int, byte_size: int, admission: Admission) -> Block:
    """``block``, made ``byte_size`` bytes long where it lies, or another one with its first ``filled`` bytes. Raises Malformed."""
    check_room(admission, byte_size - block.byte_size)
    if block.extend(byte_size):
        return block
    other = reserve(arena, byte_size, admission)
    other.view[:filled] = block.view[:filled]
    block.release()
    return other


class KnownLength:
    """A body of ``byte_size`` bytes; ``room`` is the memory that its next bytes belong in, None for a small one: ``feed`` it.

    ``json_byte_size`` is the size of what comes before the first binary tensor, which is laid on a
    boundary of 64 bytes in the arena: a model reads only aligned tensors in place. A large body begins in a
    part of its memory and gets the rest as it arrives: a header alone must not take the arena from everybody else. Many headers
    must not either, so that part is small where much is in use. A small body takes no memory before it comes.
    Raises Malformed where there is no room for it, then or later.
    """

    __slots__ = ("_admission", "_arena", "_block", "_content", "_end", "_filled", "_lead", "byte_size", "room")

    def __init__(
        self, arena: Arena | None, byte_size: int, limits: BodyLimits, json_byte_size: int = 0, admission: Admission = UNLIMITED
    ) -> None:
        self._arena = arena
        self._admission = admission
        self._block: Block | None = None
        self._content = bytearray()
        self._lead = 0
        self._end = byte_size
        self.room: memoryview | None = None
        if byte_size > limits.inline_byte_size:
            self._lead = -json_byte_size % _TENSOR_ALIGNMENT
            self._end += self._lead
            if arena is None or self._end > most_byte_size(arena, admission):
                raise Malformed(413, "request body is too large")
            capacity, used = arena.capacity_byte_size, arena.used_byte_size
            if used < capacity // _CROWDED:
                claim = max(limits.claim_byte_size, (capacity - used) // limits.claim_share)
            else:
                claim = limits.crowded_claim_byte_size
            self._block = reserve(arena, min(self._end, claim), admission)
            self.room = self._block.view[self._lead :]
        self.byte_size = byte_size
        self._filled = 0

    @property
    def complete(self) -> bool:
        return self._filled == self.byte_size

    @property
    def received_byte_size(self) -> int:
        """Bytes that have come so far."""
        return self._filled

    @property
    def unfilled_byte_size(self) -> int:
        """Bytes of the arena that wait for what has not come."""
        return len(self.room) if self.room is not None else 0

    def received(self, count: int) -> None:
        """``count`` bytes were read into ``room``. Raises Malformed."""
        assert self.room is not None
        self._filled += count
        self.room = self.room[count:]
        if not self.room and self._filled < self.byte_size:
            self._grow()

    def _grow(self) -> None:
        """Get memory four times as large, or as large as the body: where the block lies if possible, or else elsewhere."""
        block = self._block
        assert block is not None
        held = block.byte_size
        self._block = block = _enlarged(self._arena, block, held, min(self._end, _GROWTH * held), self._admission)
        self.room = block.view[held:]

    def feed(self, view: memoryview, start: int, end: int) -> int:
        """Copy the body's bytes out of ``view[start:end]``; returns where they stop. Raises Malformed."""
        room = self.room
        if room is None:
            count = min(end - start, self.byte_size - self._filled)
            self._content += view[start : start + count]
            self._filled += count
            if self.byte_size > SMALL_BYTE_SIZE:
                self._admission.hold(count)
            return start + count
        count = min(end - start, len(room))
        room[:count] = view[start : start + count]
        self.received(count)
        return start + count

    def take(self) -> Body:
        """The complete body; the caller owns it now."""
        if self.room is not None:
            self.room.release()
        if self._block is None:
            content = self._empty()
            return InlineBody(content) if self.byte_size <= SMALL_BYTE_SIZE else HeldBody(content, self._admission)
        block, self._block = self._block, None
        return ArenaBody(block, self.byte_size, self._lead)

    def _empty(self) -> bytearray:
        content, self._content = self._content, bytearray()
        if self.byte_size > SMALL_BYTE_SIZE:
            self._admission.let_go(len(content))
        return content

    def abandon(self) -> None:
        """Give the memory of an incomplete body back."""
        self._empty()
        if self.room is not None:
            self.room.release()
        if self._block is not None:
            self._block.release()
            self._block = None


class Growing:
    """A body whose length is not known: ordinary memory while it is small, then blocks of the arena, each twice the last."""

    __slots__ = ("_admission", "_arena", "_block", "_buffer", "_filled", "_inline_byte_size")

    def __init__(self, arena: Arena | None, limits: BodyLimits, admission: Admission = UNLIMITED) -> None:
        self._arena = arena
        self._admission = admission
        self._inline_byte_size = limits.inline_byte_size
        self._block: Block | None = None
        self._buffer = bytearray()
        self._filled = 0

    @property
    def byte_size(self) -> int:
        """Bytes so far."""
        return self._filled

    @property
    def unfilled_byte_size(self) -> int:
        """Bytes of the arena that wait for what has not come."""
        return self._block.byte_size - self._filled if self._block is not None else 0

    def expect(self, byte_size: int) -> None:
        """So many more bytes were announced. Raises Malformed 413 where no body can be that large."""
        filled = self._filled + byte_size
        if filled > self._inline_byte_size and filled > most_byte_size(self._arena, self._admission):
            raise Malformed(413, "request body is too large")

    def append(self, piece: bytes | memoryview) -> None:
        """Take the body's next bytes. Raises Malformed where there is no room for them."""
        filled = self._filled + len(piece)
        if filled <= self._inline_byte_size:
            check_room(self._admission, len(piece))
            self._buffer += piece
            self._admission.hold(len(piece))
        else:
            block = self._block
            if block is None or filled > block.byte_size:
                block = self._grow(filled)
            block.view[self._filled : filled] = piece
        self._filled = filled

    def _grow(self, needed: int) -> Block:
        """Get memory twice as large, or as large as there can be."""
        most = most_byte_size(self._arena, self._admission)
        if needed > most:
            raise Malformed(413, "request body is too large")
        # With what others hold there may be room for less than that.
        held = 0 if self._block is None else self._block.byte_size
        byte_size = max(needed, min(most, 2 * needed, held + self._admission.most_bytes - self._admission.byte_size))
        if self._block is not None:
            block = _enlarged(self._arena, self._block, self._filled, byte_size, self._admission)
        else:
            block = reserve(self._arena, byte_size, self._admission)
            block.view[: self._filled] = self._empty_buffer()
        self._block = block
        return block

    def take(self) -> Body:
        """The complete body; the caller owns it now."""
        if self._block is None:
            content = self._empty_buffer()
            return HeldBody(content, self._admission) if content else InlineBody()
        block, self._block = self._block, None
        return ArenaBody(block, self._filled)

    def _empty_buffer(self) -> bytearray:
        content, self._buffer = self._buffer, bytearray()
        self._admission.let_go(len(content))
        return content

    def abandon(self) -> None:
        """Give the memory of an incomplete body back."""
        self._empty_buffer()
        if self._block is not None:
            self._block.release()
            self._block = None

"""An inference request that has been read from HTTP: what to run, and how to answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from ...shm.arena import Arena, ArenaFull, Block
from ...shm.placement import Inline, Placement, Span
from ...workers.contract.messages import RequestBody
from ...workers.contract.status import unavailable
from .errors import NO_MEMORY
from .limits import INLINE_BYTE_SIZE


class Regions(Protocol):
    """Registered shared memory, as far as requests refer to it."""

    def span(self, name: str, offset: int, byte_size: int) -> Span:
        """A part of a region. Raises StatusError."""
        ...


@dataclass(frozen=True, slots=True)
class OutputForm:
    """How an output is to be answered: as JSON, as binary data, as its best classes, or in a client's region."""

    binary: bool = False
    classes: int = 0
    in_region: bool = False


IN_JSON = OutputForm()
IN_BINARY = OutputForm(binary=True)
IN_REGION = OutputForm(in_region=True)


@dataclass(slots=True)
class InferCall:
    """An inference request that has been read.

    ``id_text`` is its id as JSON, empty where it has none. ``forms`` has how each output listed in the
    request is to be answered, ``form`` is for those that are not.
    """

    body: RequestBody
    id_text: bytes = b""
    form: OutputForm = IN_JSON
    forms: Mapping[str, OutputForm] | None = None
    priority: int = 0
    timeout_us: int = 0


@dataclass(frozen=True, slots=True)
class InferSettings:
    """What options say about inference requests: ``max_input_size`` in bytes, and which headers become parameters."""

    max_input_size: int = 64 * 1024 * 1024
    forward: re.Pattern[str] | None = None


@lru_cache(maxsize=16)
def infer_settings(max_input_size: int, forward_pattern: str) -> InferSettings:
    """The settings that two options make. Raises ``re.error`` where the pattern is none."""
    return InferSettings(max_input_size, re.compile(forward_pattern, re.IGNORECASE) if forward_pattern else None)


def block_with(arena: Arena | None, content: bytes) -> Block | None:
    """A block of the arena with a copy of ``content``; None where that is small enough to ride inside a message.

    Raises StatusError UNAVAILABLE where the arena is full.
    """
    if arena is None or len(content) <= INLINE_BYTE_SIZE:
        return None
    try:
        block = arena.reserve(len(content))
    except ArenaFull:
        raise unavailable(NO_MEMORY) from None
    block.view[: len(content)] = content
    return block


class Scratch:
    """Memory for what had to be decoded: small pieces in messages, larger ones in the arena, given back together."""

    __slots__ = ("_arena", "_blocks")

    def __init__(self, arena: Arena | None = None) -> None:
        self._arena = arena
        self._blocks: list[Block] = []

    def place(self, content: bytes) -> Placement:
        """A placement with a copy of ``content`` or ``content`` itself. Raises StatusError UNAVAILABLE where the arena is full."""
        block = block_with(self._arena, content)
        if block is None:
            return Inline(memoryview(content))
        self._blocks.append(block)
        return block.place(0, len(content))

    def release(self) -> None:
        """Give everything back; nobody reads it any more."""
        for block in self._blocks:
            block.release()
        self._blocks.clear()

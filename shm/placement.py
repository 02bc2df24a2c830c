"""Where a tensor's bytes lie. Lengths, offsets and datatypes travel in messages, never in shared pages."""

from __future__ import annotations

import msgspec


class Inline(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """Bytes that ride in the message itself: small tensors."""

    content: memoryview

    @property
    def byte_size(self) -> int:
        """Length of the content, in bytes."""
        return len(self.content)


DEVICE_START = 1 << 56
"""Offsets of an arena from here on are memory of its owner's GPU: only the owner reaches it."""


class Lease(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A block of one of the farm's own arenas; goes back to the arena's owner by message."""

    arena: int
    offset: int
    byte_size: int


class Span(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """A part of a region that a client registered.

    ``region`` is the registry's number for it, ``offset`` counts from the region's start, in bytes.
    """

    region: int
    offset: int
    byte_size: int


Placement = Inline | Lease | Span


def on_device(place: Placement) -> bool:
    """Is it a lease of a GPU's memory?"""
    return type(place) is Lease and place.offset >= DEVICE_START


def within(part: Lease, whole: Lease) -> bool:
    """Does a lease lie inside another?"""
    return part.arena == whole.arena and whole.offset <= part.offset and part.offset + part.byte_size <= whole.offset + whole.byte_size

"""Streams that are lazy: what they are given waits until somebody waits for them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from .errors import ILLEGAL_ADDRESS, INVALID_HANDLE, INVALID_VALUE, NOT_REGISTERED, Refused
from .memory import Allocations

DEFAULT_STREAM = 0


@dataclass(frozen=True)
class Pinned:
    """Host memory that the device reaches directly."""

    address: int
    byte_size: int
    read_only: bool


class PinnedMemory:
    """All host memory that is pinned."""

    def __init__(self) -> None:
        self._by_address: dict[int, Pinned] = {}

    def overlaps(self, address: int, byte_size: int) -> bool:
        """Is any of it pinned already?"""
        return any(one.address < address + byte_size and address < one.address + one.byte_size for one in self._by_address.values())

    def add(self, pinned: Pinned) -> None:
        """Pin."""
        self._by_address[pinned.address] = pinned

    def remove(self, address: int) -> Pinned:
        """Undo ``add``. Raises Refused where nothing begins there."""
        try:
            return self._by_address.pop(address)
        except KeyError:
            raise Refused(NOT_REGISTERED) from None

    def around(self, address: int, byte_size: int) -> Pinned | None:
        """What all of these bytes lie in."""
        for one in self._by_address.values():
            if one.address <= address and address + byte_size <= one.address + one.byte_size:
                return one
        return None


@dataclass(frozen=True)
class _Copy:
    """``staged`` holds the bytes where they were taken when the copy was asked for."""

    destination: int
    source: int
    byte_size: int
    staged: Any


class Streams:
    """All streams, and what each has still to do. Its user sees to it that one thread is in it at a time."""

    def __init__(self, allocations: Allocations, pinned: PinnedMemory) -> None:
        self._allocations = allocations
        self._pinned = pinned
        self._waiting: dict[int, list[_Copy]] = {DEFAULT_STREAM: []}
        self._left: list[_Copy] = []
        self._made = 0

    def make(self) -> int:
        """A new stream."""
        self._made += 1
        stream = 0x5700_0000 + self._made * 16
        self._waiting[stream] = []
        return stream

    def end(self, stream: int) -> None:
        """Give it back; what it has still to do is done when somebody waits for the device."""
        self._left += self._of(stream)
        del self._waiting[stream]

    def _of(self, stream: int) -> list[_Copy]:
        try:
            return self._waiting[stream]
        except KeyError:
            raise Refused(INVALID_HANDLE) from None

    def queue(self, destination: int, source: int, byte_size: int, stream: int) -> str:
        """Have bytes copied later; returns from where to where that is, as ``h2d``. Raises Refused for what the library sees at once."""
        waiting = self._of(stream)
        to_device, from_device = self._allocations.holds(destination), self._allocations.holds(source)
        kind = f"{'d' if from_device else 'h'}2{'d' if to_device else 'h'}"
        if not byte_size:
            return kind
        for address, on_device in ((destination, to_device), (source, from_device)):
            if not address or (on_device and self._allocations.alias(address, byte_size) is None):
                raise Refused(INVALID_VALUE)
        staged = None
        if not to_device:
            pinned = self._pinned.around(destination, byte_size)
            if pinned is not None and pinned.read_only:
                raise Refused(INVALID_VALUE)
        if not from_device and self._pinned.around(source, byte_size) is None:
            # Pageable memory is read at once.
            staged = ctypes.create_string_buffer(ctypes.string_at(source, byte_size), byte_size)
        waiting.append(_Copy(destination, source, byte_size, staged))
        return kind

    def wait(self, stream: int) -> None:
        """Do all that a stream was given. Raises Refused where what it wants to copy is not there any more."""
        waiting = self._of(stream)
        while waiting:
            self._do(waiting.pop(0))

    def wait_for_all(self) -> None:
        """Do all that any stream was given."""
        while self._left:
            self._do(self._left.pop(0))
        for stream in list(self._waiting):
            self.wait(stream)

    def _do(self, copy: _Copy) -> None:
        source = self._host(copy.source, copy.byte_size) if copy.staged is None else ctypes.addressof(copy.staged)
        ctypes.memmove(self._host(copy.destination, copy.byte_size), source, copy.byte_size)

    def _host(self, address: int, byte_size: int) -> int:
        if not self._allocations.holds(address):
            return address
        alias = self._allocations.alias(address, byte_size)
        if alias is None:
            raise Refused(ILLEGAL_ADDRESS)
        return alias

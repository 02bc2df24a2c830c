"""Header blocks (HPACK): read once where they come again, written without state. Source: RFC 7541.

Clients repeat themselves: their second call's header block refers to the first one's entries, and is the same, byte for byte, from then
on. As long as no block changes the table that it refers to, an equal one says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from hpack import Decoder, HPACKError

T = TypeVar("T")

Fields = list[tuple[bytes, bytes]]

_KEPT_COUNT = 64
_KEPT_BYTE_SIZE = 4096


class Undecodable(Exception):
    """A block that cannot be read, which leaves the table undefined: the connection's end."""


class BlockReader(Generic[T]):
    """Reads the blocks of one connection. ``understand`` makes of a block's fields what its users want to know of them."""

    def __init__(self, understand: Callable[[Fields], T], list_byte_size: int) -> None:
        """``list_byte_size`` bounds what a block may hold once it is decoded, by the measure of the protocol: 32 more for each field."""
        self._understand = understand
        self._decoder = Decoder(list_byte_size)
        self._known: dict[bytes, T] = {}

    def read(self, block: bytes) -> T:
        """What a block says. Raises Undecodable, and what ``understand`` raises."""
        known = self._known.get(block)
        if known is not None:
            return known
        before = self._table_mark()
        try:
            fields = list(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise Undecodable(str(error)) from None
        newest, *sizes = self._table_mark()
        changed = newest is not before[0] or sizes != [*before[1:]]
        if changed or len(self._known) >= _KEPT_COUNT:
            self._known.clear()
        understood = self._understand([(bytes(name), bytes(value)) for name, value in fields])
        if not changed and sum([32 + len(name) + len(value) for name, value in fields]) <= _KEPT_BYTE_SIZE:
            self._known[block] = understood
        return understood

    def _table_mark(self) -> tuple[object, int, int]:
        """What is other after every change of the table: its newest entry, an object of its own, how many there are and may be."""
        table = self._decoder.header_table
        entries = table.dynamic_entries
        return entries[0] if entries else None, len(entries), table.maxsize


def _integer(value: int, bits: int) -> bytes:
    """A number that begins in the lowest ``bits`` bits of its first byte, the others 0."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((value,))
    pieces = bytearray((most,))
    value -= most
    while value > 0x7F:
        pieces.append(value & 0x7F | 0x80)
        value >>= 7
    pieces.append(value)
    return bytes(pieces)


def written(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A block with these fields; none of them enters the client's table, so it is the same each time."""
    pieces: list[bytes] = []
    for name, value in fields:
        pieces += (b"\0", _integer(len(name), 7), name, _integer(len(value), 7), value)
    return b"".join(pieces)


STATUS_200 = b"\x88"
"""The field ``:status: 200``."""

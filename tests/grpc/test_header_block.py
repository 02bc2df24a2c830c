"""Header blocks, against another implementation of HPACK: what is read once is remembered only as long as it means the same."""

from __future__ import annotations

import pytest
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from tensorfarm.server.grpc.header_block import STATUS_200, BlockReader, Fields, Undecodable, written

names = st.binary(min_size=1, max_size=8).map(bytes.lower) | st.sampled_from([b":path", b":method", b"content-type", b"te", b"x-a"])
values = st.binary(max_size=20) | st.sampled_from([b"POST", b"/x", b"trailers", b"application/grpc", b"v" * 200])
blocks = st.lists(st.tuples(names, values), max_size=8)


class Counted:
    """A reader that counts how often it had to understand something."""

    def __init__(self, byte_size: int = 65_536) -> None:
        self.count = 0
        self.reader: BlockReader[Fields] = BlockReader(self._understand, byte_size)

    def _understand(self, fields: Fields) -> Fields:
        self.count += 1
        return list(fields)

    def read(self, block: bytes) -> Fields:
        return self.reader.read(block)


def resized(byte_size: int) -> bytes:
    """A table size update."""
    if byte_size < 31:
        return bytes((0x20 | byte_size,))
    rest, found = byte_size - 31, bytearray((0x3F,))
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*found, rest])


@given(st.lists(st.tuples(blocks, st.none() | st.sampled_from([0, 40, 100, 4096]), st.booleans()), max_size=15))
@settings(max_examples=200, deadline=None)
def test_blocks_read_as_they_were_written(sequence: list[tuple[Fields, int | None, bool]]) -> None:
    """Also where the client's table changes, is made smaller or larger, and where a block comes again."""
    reader, encoder = Counted(), Encoder()
    for fields, table, huffman in sequence:
        if table is not None:
            encoder.header_table_size = table
        for _ in range(3):
            assert reader.read(bytes(encoder.encode(fields, huffman=huffman))) == fields


@given(st.lists(st.sampled_from(range(12)), max_size=40))
@settings(max_examples=200, deadline=None)
def test_a_block_says_what_it_says_now(choice: list[int]) -> None:
    """Whatever came before: as a reader that remembers nothing reads it."""
    known = [
        b"\x40\x01a\x011",
        b"\x40\x01b\x012",
        b"\xbe",
        b"\xbf",
        b"\xbe\xbf",
        b"\x7e\x013",
        b"\x0f\x2f\x014",
        resized(0),
        resized(40) + resized(4096),
        resized(40),
        b"\x83\x40\x01c" + b"\x7f\x81\x1f" + bytes(4096),
        resized(4096) + b"\xbe",
    ]
    reader, plain = Counted(), Decoder(65_536)
    for index in choice:
        try:
            expected = [(bytes(name), bytes(value)) for name, value in plain.decode(known[index], raw=True)]
        except Exception:  # noqa: BLE001 - whatever it is, the connection ends there
            with pytest.raises(Undecodable):
                reader.read(known[index])
            return
        assert reader.read(known[index]) == expected


def test_what_was_read_before_is_not_read_again() -> None:
    reader, encoder = Counted(), Encoder()
    fields = [(b":path", b"/x"), (b"x-a", b"1")]
    first, second = encoder.encode(fields), encoder.encode(fields)
    assert first != second
    results = [reader.read(bytes(block)) for block in (first, second, second, second)]
    assert results == [fields] * 4 and reader.count == 2
    assert results[2] is results[1]


def test_a_change_of_the_table_makes_all_unknown() -> None:
    reader = Counted()
    reader.read(b"\x40\x01a\x011")
    assert reader.read(b"\xbe") == reader.read(b"\xbe") == [(b"a", b"1")]
    reader.read(b"\x40\x01b\x012")
    assert reader.read(b"\xbe") == [(b"b", b"2")]
    assert reader.read(b"\xbf") == [(b"a", b"1")]
    reader.read(resized(40) + resized(4096))
    with pytest.raises(Undecodable):
        reader.read(b"\xbf")


def test_what_is_remembered_is_bounded() -> None:
    """In count, and in size as it was understood: a few bytes may stand for many."""
    reader = Counted()
    for index in range(1000):
        reader.read(written(((b"x", b"%d" % index),)))
        assert len(reader.reader._known) <= 64
    reader = Counted(16_384)
    reader.read(b"\x40\x01x\x7f\xa1\x1e" + bytes(4000))
    for block in (b"\xbe" * 4, b"\x8f" * 300):
        reader.read(block)
        reader.read(block)
    assert reader.count == 5 and not reader.reader._known


@pytest.mark.parametrize(
    "broken",
    [
        b"\x80",
        b"\xff\xff\xff\xff\xff",
        b"\xbe",
        b"\x40",
        b"\x40\x01",
        b"\x40\x05a",
        b"\x00\x01a",
        b"\x00\x01a\x05b",
        b"\x3f\xff\xff\x7f",
        b"\x82\x20",
    ]
    + [b"\x00\x81\xff\x01a", b"\x8f" * 2000],
)
def test_what_cannot_be_read(broken: bytes) -> None:
    with pytest.raises(Undecodable):
        Counted(16_384).read(broken)


@given(st.lists(st.tuples(names, values | st.integers(0, 40_000).map(bytes)), max_size=6))
@settings(max_examples=100, deadline=None)
def test_what_is_written_can_be_read_and_leaves_no_trace(fields: Fields) -> None:
    decoder = Decoder(1 << 20)
    assert list(decoder.decode(STATUS_200 + written(fields), raw=True)) == [(b":status", b"200"), *fields]
    assert not decoder.header_table.dynamic_entries


@pytest.mark.parametrize("byte_size", [126, 127, 128, 254, 255, 256, 16_510, 16_511])
def test_lengths_are_written_whole(byte_size: int) -> None:
    block = written(((b"n" * byte_size, b"v" * byte_size),))
    assert list(Decoder(1 << 20).decode(block, raw=True)) == [(b"n" * byte_size, b"v" * byte_size)]

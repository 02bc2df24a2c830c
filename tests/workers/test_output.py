"""Where outputs go: into the message, the worker's arena, or the client's region, copied once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tensorfarm.shm.placement import Inline, Lease, Span
from tensorfarm.workers.contract.status import Code, StatusError
from tensorfarm.workers.output import INLINE_BYTE_SIZE, store

from .real_memory import ARENA_BYTE_SIZE, REGION, REGION_OFFSET, Bench, bench


@pytest.fixture
def world() -> Iterator[Bench]:
    with bench() as made:
        yield made
        assert made.outputs.used_byte_size == 0


@pytest.mark.parametrize("byte_size", [0, 1, INLINE_BYTE_SIZE])
def test_small_ones_ride_along(world: Bench, byte_size: int) -> None:
    place = store(world.memory, "OUT", bytes(byte_size), None)
    assert isinstance(place, Inline) and place.byte_size == byte_size


def test_large_ones_are_copied_to_the_arena(world: Bench) -> None:
    content = bytearray(b"ab" * INLINE_BYTE_SIZE)
    place = store(world.memory, "OUT", memoryview(content), None)
    assert isinstance(place, Lease) and place.byte_size == len(content)
    content[:2] = b"xx"
    assert world.content(place) == b"ab" * INLINE_BYTE_SIZE
    world.memory.free(place)


@pytest.mark.parametrize("byte_size", [0, 3, 2 * INLINE_BYTE_SIZE])
def test_the_clients_region_gets_them_whatever_their_size(world: Bench, byte_size: int) -> None:
    world.client.write(REGION_OFFSET, b"." * (byte_size + 5))
    span = Span(REGION, 1, byte_size + 3)
    assert store(world.memory, "OUT", b"a" * byte_size, span) is span
    assert world.client.read(REGION_OFFSET, byte_size + 5) == b"." + b"a" * byte_size + b"...."


def test_a_region_with_too_little_room(world: Bench) -> None:
    with pytest.raises(StatusError) as raised:
        store(world.memory, "OUT", b"abcd", Span(REGION, 0, 3))
    assert raised.value.code is Code.INTERNAL
    assert raised.value.message == (
        "shared memory size specified with the request for output 'OUT' (3 bytes) should be at least 4 bytes to hold the results"
    )


def test_a_full_arena(world: Bench) -> None:
    lease = world.memory.reserve(ARENA_BYTE_SIZE)
    with pytest.raises(StatusError, match="no room for an output"):
        store(world.memory, "OUT", bytes(INLINE_BYTE_SIZE + 1), None)
    world.memory.free(lease)

"""The arena allocator against a plain list of what is taken."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tensorfarm.shm.allocator import GRANULE_BYTE_SIZE, Allocator, ArenaFull

PAGE = GRANULE_BYTE_SIZE


def test_the_lowest_hole_that_is_large_enough_is_taken() -> None:
    allocator = Allocator(10 * PAGE)
    offsets = [allocator.reserve(PAGE) for _ in range(6)]
    assert offsets == [0, PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE, 5 * PAGE]
    for offset in (offsets[1], offsets[3], offsets[4]):
        allocator.free(offset)
    assert allocator.reserve(2 * PAGE) == 3 * PAGE
    assert allocator.reserve(1) == PAGE


@pytest.mark.parametrize("byte_size", [0, 1, PAGE - 1, PAGE])
def test_every_block_takes_a_whole_page(byte_size: int) -> None:
    allocator = Allocator(2 * PAGE)
    assert allocator.free(allocator.reserve(byte_size)) == PAGE
    assert allocator.used_byte_size == 0


def test_the_capacity_is_whole_pages() -> None:
    allocator = Allocator(3 * PAGE - 1)
    assert allocator.capacity_byte_size == 2 * PAGE
    with pytest.raises(ArenaFull):
        allocator.reserve(2 * PAGE + 1)
    assert allocator.reserve(2 * PAGE) == 0


def test_an_allocator_of_nothing_is_full() -> None:
    with pytest.raises(ArenaFull):
        Allocator(PAGE - 1).reserve(0)


def test_full_says_how_full() -> None:
    allocator = Allocator(4 * PAGE)
    allocator.reserve(3 * PAGE)
    with pytest.raises(ArenaFull, match=f"^{2 * PAGE} bytes wanted, {3 * PAGE} of {4 * PAGE} bytes in use$") as raised:
        allocator.reserve(2 * PAGE)
    assert raised.value.wanted_byte_size == 2 * PAGE


def test_a_block_is_freed_once_and_at_its_start() -> None:
    allocator = Allocator(4 * PAGE)
    offset = allocator.reserve(2 * PAGE)
    with pytest.raises(KeyError):
        allocator.free(offset + PAGE)
    allocator.free(offset)
    with pytest.raises(KeyError):
        allocator.free(offset)
    assert allocator.used_byte_size == 0


def test_a_block_grows_where_it_lies_while_there_is_room() -> None:
    allocator = Allocator(8 * PAGE)
    first, second = allocator.reserve(PAGE), allocator.reserve(PAGE)
    assert not allocator.extend(first, PAGE + 1)
    assert allocator.extend(first, PAGE) and allocator.extend(first, 0)
    assert allocator.extend(second, 3 * PAGE - 1)
    assert allocator.used_byte_size == 4 * PAGE
    assert not allocator.extend(second, 8 * PAGE)
    assert allocator.reserve(1) == 4 * PAGE
    allocator.free(first)
    assert allocator.free(second) == 3 * PAGE
    with pytest.raises(KeyError):
        allocator.extend(second, PAGE)
    last = allocator.reserve(4 * PAGE)
    assert last == 0 and not allocator.extend(last, 5 * PAGE)


class Arena(RuleBasedStateMachine):
    """Blocks never overlap, everything freed can be had again in one piece, and the counts are right."""

    CAPACITY = 64 * PAGE

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(self.CAPACITY)
        self.taken: dict[int, int] = {}

    def holes(self) -> list[tuple[int, int]]:
        """The free parts, largest possible, by offset."""
        found = []
        at = 0
        for offset, size in [*sorted(self.taken.items()), (self.CAPACITY, 0)]:
            if offset > at:
                found.append((at, offset - at))
            at = offset + size
        return found

    @rule(byte_size=st.one_of(st.integers(0, 3 * PAGE), st.integers(0, 70 * PAGE)))
    def reserve(self, byte_size: int) -> None:
        size = max(1, -(-byte_size // PAGE)) * PAGE
        fitting = [offset for offset, free_size in self.holes() if free_size >= size]
        if not fitting:
            with pytest.raises(ArenaFull):
                self.allocator.reserve(byte_size)
            return
        offset = self.allocator.reserve(byte_size)
        assert offset == fitting[0]
        self.taken[offset] = size

    @precondition(lambda self: self.taken)
    @rule(pick=st.integers(0, 1000))
    def free(self, pick: int) -> None:
        offset = sorted(self.taken)[pick % len(self.taken)]
        assert self.allocator.free(offset) == self.taken.pop(offset)

    @precondition(lambda self: self.taken)
    @rule(pick=st.integers(0, 1000), byte_size=st.one_of(st.integers(0, 6 * PAGE), st.integers(0, 70 * PAGE)))
    def extend(self, pick: int, byte_size: int) -> None:
        offset = sorted(self.taken)[pick % len(self.taken)]
        end = min([other for other in self.taken if other > offset], default=self.CAPACITY)
        size = max(self.taken[offset], -(-byte_size // PAGE) * PAGE)
        fits = offset + size <= end
        assert self.allocator.extend(offset, byte_size) is fits
        if fits:
            self.taken[offset] = size

    @rule(offset=st.integers(-PAGE, 65 * PAGE))
    def free_what_is_none(self, offset: int) -> None:
        if offset not in self.taken:
            with pytest.raises(KeyError):
                self.allocator.free(offset)
            with pytest.raises(KeyError):
                self.allocator.extend(offset, PAGE)

    @invariant()
    def nothing_overlaps(self) -> None:
        at = 0
        for offset, size in sorted(self.taken.items()):
            assert at <= offset and offset + size <= self.CAPACITY
            at = offset + size

    @invariant()
    def counts_are_right(self) -> None:
        assert self.allocator.used_byte_size == sum(self.taken.values())

    def teardown(self) -> None:
        for offset in list(self.taken):
            self.allocator.free(offset)
        assert self.allocator.reserve(self.CAPACITY) == 0


Arena.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestArena = Arena.TestCase

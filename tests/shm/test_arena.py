"""Arenas: sealed memory with one owner who writes and others who can only read."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensorfarm.shm.arena import Arena, ArenaFull, ArenaView, create_memory, read_only
from tensorfarm.shm.placement import Lease

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def memory() -> Iterator[int]:
    with closing(create_memory(SIZE)) as fd:
        yield fd


def resident_pages(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512 // PAGE


def test_memory_cannot_change_its_size_nor_its_seals(memory: int) -> None:
    for byte_size in (0, SIZE - 1, SIZE + 1):
        with pytest.raises(PermissionError):
            os.ftruncate(memory, byte_size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert os.fstat(memory).st_size == SIZE


def test_memory_costs_nothing_until_it_is_written(memory: int) -> None:
    assert resident_pages(memory) == 0


def test_memory_has_no_name_and_is_not_inherited(memory: int) -> None:
    assert os.readlink(f"/proc/self/fd/{memory}").startswith("/memfd:tensorfarm-arena")
    assert not os.get_inheritable(memory)


def test_memory_that_cannot_be_made_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        create_memory(-1)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_read_only_descriptor_cannot_be_mapped_writable(memory: int) -> None:
    with closing(read_only(memory)) as reader:
        assert not os.get_inheritable(reader)
        with pytest.raises(PermissionError) as raised:
            mmap.mmap(reader, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        assert raised.value.errno == errno.EACCES
        with pytest.raises(OSError):
            os.pwrite(reader, b"x", 0)
        with pytest.raises(OSError):
            os.ftruncate(reader, 0)


def test_what_the_owner_writes_the_reader_sees(memory: int) -> None:
    with closing(read_only(memory)) as reader:
        view = ArenaView(3, reader)
    arena = Arena(3, memory, SIZE)
    arena.reserve(PAGE)
    block = arena.reserve(100)
    assert len(block.view) == 100 and block.offset == PAGE
    block.view[:] = bytes(range(100))
    lease = block.place(10, 20)
    assert lease == Lease(3, PAGE + 10, 10)
    seen = view.view(lease)
    assert seen.readonly and bytes(seen) == bytes(range(10, 20))
    assert arena.view(lease) == seen
    assert view.byte_size == SIZE


@pytest.mark.parametrize("lease", [Lease(0, -1, 1), Lease(0, 0, -1), Lease(0, SIZE - 1, 2), Lease(0, SIZE + 1, 0), Lease(0, 0, SIZE + 1)])
def test_a_reader_refuses_what_lies_outside(memory: int, lease: Lease) -> None:
    with pytest.raises(ValueError, match="^a lease reaches beyond its arena$"):
        ArenaView(0, memory).view(lease)


def test_the_edges_of_an_arena_can_be_read(memory: int) -> None:
    view = ArenaView(0, memory)
    assert len(view.view(Lease(0, 0, SIZE))) == SIZE
    assert len(view.view(Lease(0, SIZE, 0))) == 0


def test_used_and_capacity(memory: int) -> None:
    arena = Arena(0, memory, SIZE)
    assert (arena.capacity_byte_size, arena.used_byte_size) == (SIZE, 0)
    blocks = [arena.reserve(PAGE + 1) for _ in range(SIZE // (2 * PAGE))]
    assert arena.used_byte_size == SIZE
    with pytest.raises(ArenaFull):
        arena.reserve(1)
    for block in blocks:
        block.release()
    assert arena.used_byte_size == 0


def test_a_second_release_does_not_take_somebody_elses_block(memory: int) -> None:
    arena = Arena(0, memory, SIZE)
    first = arena.reserve(PAGE)
    first.release()
    second = arena.reserve(PAGE)
    assert second.offset == first.offset
    first.release()
    assert arena.used_byte_size == PAGE
    assert arena.reserve(PAGE).offset != second.offset


def test_a_block_that_grows_keeps_its_place_and_its_bytes(memory: int) -> None:
    arena = Arena(0, memory, SIZE)
    block = arena.reserve(100)
    early = block.view
    early[:] = bytes(range(100))
    assert block.extend(3 * PAGE)
    assert (block.offset, block.byte_size, len(block.view), arena.used_byte_size) == (0, 3 * PAGE, 3 * PAGE, 3 * PAGE)
    early[0] = 7
    assert bytes(block.view[:100]) == bytes((7, *range(1, 100)))
    behind = arena.reserve(PAGE)
    assert behind.offset == 3 * PAGE
    assert not block.extend(3 * PAGE + 1)
    assert (block.byte_size, len(block.view)) == (3 * PAGE, 3 * PAGE)
    assert block.extend(10)
    assert block.byte_size == 3 * PAGE
    behind.release()
    assert block.extend(SIZE)
    block.release()
    assert arena.used_byte_size == 0


def test_pages_above_the_resident_part_are_given_back_at_once(memory: int) -> None:
    arena = Arena(0, memory, 16 * PAGE)
    low, across, high = arena.reserve(8 * PAGE), arena.reserve(16 * PAGE), arena.reserve(40 * PAGE)
    for block in (low, across, high):
        block.view[:] = b"\1" * block.byte_size
    assert resident_pages(memory) == 64
    high.release()
    assert resident_pages(memory) == 24
    across.release()
    assert resident_pages(memory) == 16
    low.release()
    assert resident_pages(memory) == 16
    again = arena.reserve(64 * PAGE)
    assert bytes(again.view[15 * PAGE : 17 * PAGE]) == b"\1" * PAGE + bytes(PAGE)


def test_a_resident_part_need_not_end_with_a_page(memory: int) -> None:
    arena = Arena(0, memory, PAGE + 1)
    block = arena.reserve(3 * PAGE)
    block.view[:] = b"\1" * block.byte_size
    block.release()
    assert resident_pages(memory) == 2


def test_an_arena_without_a_resident_part_keeps_nothing(memory: int) -> None:
    arena = Arena(0, memory, 0)
    block = arena.reserve(5 * PAGE)
    block.view[:] = b"\1" * block.byte_size
    block.release()
    assert resident_pages(memory) == 0


def test_pages_kept_warm_go_back_when_asked_for(memory: int) -> None:
    arena = Arena(0, memory, SIZE)
    blocks = [arena.reserve(4 * PAGE) for _ in range(3)]
    for block in blocks:
        block.view[:] = b"\1" * block.byte_size
    for block in (blocks[0], blocks[2]):
        block.release()
    assert resident_pages(memory) == 12
    arena.give_back()
    assert resident_pages(memory) == 4 and set(blocks[1].view) == {1}
    again = arena.reserve(4 * PAGE)
    assert again.offset == 0 and set(again.view) == {0}
    full = arena.reserve(SIZE - 8 * PAGE)
    arena.give_back()
    for block in (blocks[1], again, full):
        block.release()


def test_mappings_go_with_their_last_user(memory: int) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("tensorfarm-arena")

    before = mapped()
    view = ArenaView(0, memory).view(Lease(0, 0, PAGE))
    assert mapped() == before + 1
    assert len(view) == PAGE
    del view
    assert mapped() == before


def test_no_room_for_a_descriptor_is_an_os_error(memory: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(memory)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(OSError) as raised:
            create_memory(PAGE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert raised.value.errno == errno.EMFILE

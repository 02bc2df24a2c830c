"""Clients' regions, mapped by a process that a client cannot hurt lightly."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tensorfarm.shm.mapping import MappedRegion, RegionShrunk

from .shm_objects import ShmObject

PAGE = mmap.PAGESIZE


@contextlib.contextmanager
def opened(made: ShmObject) -> Iterator[int]:
    fd = os.open(made.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def region(made: ShmObject, offset: int, byte_size: int) -> MappedRegion:
    with opened(made) as fd:
        return MappedRegion(fd, offset, byte_size)


def test_mapping_and_forgetting_unlinks_nothing(object_: ShmObject) -> None:
    mapped = region(object_, 0, PAGE)
    assert len(mapped.view(0, PAGE)) == PAGE
    del mapped
    assert object_.path.exists()


@pytest.mark.parametrize("offset", [0, 1, 64, PAGE - 1, PAGE, PAGE + 3])
def test_any_offset_can_be_mapped(object_: ShmObject, offset: int) -> None:
    mapped = region(object_, offset, 100)
    object_.write(offset + 7, b"from the client")
    assert bytes(mapped.view(7, 15)) == b"from the client"
    mapped.view(50, 4)[:] = b"back"
    assert object_.read(offset + 50, 4) == b"back"


def test_a_region_goes_on_after_its_object_is_unlinked(object_: ShmObject) -> None:
    mapped = region(object_, 0, PAGE)
    object_.path.unlink()
    mapped.view(0, 2)[:] = b"ok"
    assert bytes(mapped.view(0, 2)) == b"ok"


@pytest.mark.parametrize(("offset", "byte_size"), [(-1, 1), (0, -1), (0, 101), (100, 1), (101, 0), (2**62, 2**62)])
def test_a_part_beyond_its_region(object_: ShmObject, offset: int, byte_size: int) -> None:
    mapped = region(object_, 8, 100)
    with pytest.raises(ValueError, match="^a span reaches beyond its region$"):
        mapped.view(offset, byte_size)
    assert len(mapped.view(100, 0)) == 0


def test_a_region_that_shrank_is_not_touched(object_: ShmObject) -> None:
    mapped = region(object_, 0, 3 * PAGE)
    object_.truncate(3 * PAGE)
    assert len(mapped.view(0, 3 * PAGE)) == 3 * PAGE
    object_.truncate(3 * PAGE - 1)
    with pytest.raises(RegionShrunk):
        mapped.view(0, 1)
    object_.truncate(0)
    with pytest.raises(RegionShrunk):
        mapped.view(2 * PAGE, PAGE)


def test_a_region_larger_than_its_object_is_refused(object_: ShmObject) -> None:
    with opened(object_) as fd, pytest.raises(RegionShrunk):
        MappedRegion(fd, PAGE, 4 * PAGE)


def test_a_size_that_no_process_can_map_is_an_os_error(object_: ShmObject) -> None:
    object_.truncate(2**62)
    with opened(object_) as fd, pytest.raises(OSError):
        MappedRegion(fd, 0, 2**62)


def test_pages_and_descriptor_go_with_the_last_array(object_: ShmObject) -> None:
    def users() -> int:
        files = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return files.count(str(object_.path)) + Path("/proc/self/maps").read_text().count(str(object_.path))

    array = np.frombuffer(region(object_, 0, PAGE).view(0, 16), np.uint8)
    assert users() == 2
    array[:] = 5
    del array
    assert users() == 0

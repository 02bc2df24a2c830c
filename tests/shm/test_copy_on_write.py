"""Copy-on-write pages: what a model does to its inputs is seen by nobody, and what it keeps stays."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from tensorfarm.shm import copy_on_write
from tensorfarm.shm.copy_on_write import PrivatePages

PAGE = mmap.PAGESIZE
BYTE_SIZE = 64 * PAGE

PAGEMAP = copy_on_write._pagemap()
"""The process's one descriptor of it: opened before the leak check counts."""


@dataclass(frozen=True)
class Shared:
    """An object with its owner's view of it."""

    fd: int
    owner: memoryview

    def fill(self, value: int) -> None:
        self.owner[:] = bytes([value]) * len(self.owner)


@pytest.fixture
def shared() -> Iterator[Shared]:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(fd, BYTE_SIZE)
    pages = mmap.mmap(fd, BYTE_SIZE)
    made = Shared(fd, memoryview(pages))
    made.fill(1)
    yield made
    made.owner.release()
    pages.close()
    os.close(fd)


@pytest.fixture(params=["pagemap", "no pagemap"], autouse=True)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as here, once where the kernel does not tell which pages are copies."""
    if request.param == "no pagemap":
        monkeypatch.setattr(copy_on_write, "_pagemap", lambda: None)


def test_the_owner_is_seen_and_sees_nothing(shared: Shared) -> None:
    pages = PrivatePages(shared.fd, 0, BYTE_SIZE)
    array, taken = pages.take(3 * PAGE + 100, 5 * PAGE)
    assert array.flags.writeable and array.sum() == 5 * PAGE
    shared.fill(2)
    assert array[17] == 2
    array[:] = 9
    assert bytes(shared.owner[3 * PAGE + 100 : 3 * PAGE + 200]) == b"\2" * 100
    del array
    assert pages.give_back(taken)
    shared.fill(3)
    again, taken = pages.take(3 * PAGE, 6 * PAGE)
    assert (again == 3).all()
    del again
    assert pages.give_back(taken)


@pytest.mark.parametrize(
    ("offset", "byte_size"), [(0, BYTE_SIZE), (100, 50), (100, PAGE), (PAGE, PAGE), (PAGE - 1, 2), (PAGE - 1, PAGE + 2)]
)
def test_what_is_kept_stays_as_it_is(shared: Shared, offset: int, byte_size: int) -> None:
    pages = PrivatePages(shared.fd, 0, BYTE_SIZE)
    array, taken = pages.take(offset, byte_size)
    array[byte_size // 2] = 5
    expected = array.copy()
    kept = array.view(np.int8)[:]
    del array
    assert not pages.give_back(taken)
    shared.fill(7)
    assert (kept == expected).all()


def test_neighbours_on_a_page(shared: Shared) -> None:
    pages = PrivatePages(shared.fd, 0, BYTE_SIZE)
    first, first_taken = pages.take(0, PAGE + 10)
    second, second_taken = pages.take(PAGE + 10, PAGE)
    first[:] = 4
    second[:] = 5
    del first
    assert pages.give_back(first_taken)
    assert (second == 5).all()
    del second
    assert pages.give_back(second_taken)
    shared.fill(6)
    whole, taken = pages.take(0, 3 * PAGE)
    assert (whole == 6).all()
    del whole
    assert pages.give_back(taken)


def test_a_part_that_begins_inside_a_page(shared: Shared) -> None:
    shared.owner[PAGE + 24] = 77
    pages = PrivatePages(shared.fd, PAGE + 16, 2 * PAGE)
    array, taken = pages.take(8, PAGE)
    assert array[0] == 77
    array[0] = 78
    del array
    assert pages.give_back(taken)
    array, taken = pages.take(8, PAGE)
    assert array[0] == 77


def test_untouched(shared: Shared) -> None:
    pages = PrivatePages(shared.fd, 0, BYTE_SIZE)
    array, taken = pages.take(PAGE, 4 * PAGE)
    assert array.sum()
    told = PAGEMAP is not None and copy_on_write._pagemap() is not None
    assert pages.untouched(taken, 0, 4 * PAGE) is told
    array[2 * PAGE] = 1
    assert not pages.untouched(taken, 0, 4 * PAGE)
    assert not pages.untouched(taken, 2 * PAGE, 1)
    assert pages.untouched(taken, 0, 2 * PAGE) is told
    assert pages.untouched(taken, 3 * PAGE, PAGE) is told


def test_without_a_page_fault_nothing_is_a_copy(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """And then the kernel is not asked, which takes longer than all the rest."""
    pages = PrivatePages(shared.fd, 0, BYTE_SIZE)
    monkeypatch.setattr(copy_on_write, "_faults", lambda: 5)
    array, taken = pages.take(0, 4 * PAGE)
    monkeypatch.setattr(PrivatePages, "_changed", None)
    assert pages.untouched(taken, 0, 4 * PAGE)
    del array
    assert pages.give_back(taken)


# what may be taken


def test_bytes_in_use_are_not_clear(shared: Shared) -> None:
    pages = PrivatePages(shared.fd, 16, BYTE_SIZE - 16)
    array, taken = pages.take(2 * PAGE, 2 * PAGE)
    assert not pages.clear(2 * PAGE, 2 * PAGE)
    assert not pages.clear(0, 2 * PAGE + 1)
    assert not pages.clear(4 * PAGE - 1, 1)
    assert pages.clear(6 * PAGE, 9)
    del array
    pages.give_back(taken)
    assert pages.clear(2 * PAGE, 2 * PAGE)


def test_a_page_that_a_neighbour_has_written_to_is_not_clear(shared: Shared) -> None:
    """It is a copy of what the owner had there then."""
    pages = PrivatePages(shared.fd, 0, BYTE_SIZE)
    first, first_taken = pages.take(0, PAGE + 10)
    second, second_taken = pages.take(PAGE + 10, PAGE)
    first[:] = 4
    del first
    pages.give_back(first_taken)
    shared.fill(6)
    assert not pages.clear(0, PAGE + 10)
    assert not pages.clear(PAGE, 10)
    assert pages.clear(0, PAGE)
    del second
    pages.give_back(second_taken)
    assert pages.clear(0, PAGE + 10)
    again, again_taken = pages.take(0, PAGE + 10)
    assert (again == 6).all()
    del again
    pages.give_back(again_taken)


@pytest.mark.parametrize("populating", [True, False])
def test_what_is_kept_stays_whatever_the_kernel_can(shared: Shared, populating: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not populating:
        monkeypatch.setattr(copy_on_write, "_MADV_POPULATE_WRITE", 12345)
    pages = PrivatePages(shared.fd, 16, BYTE_SIZE - 16)
    array, taken = pages.take(PAGE - 20, 5 * PAGE + 7)
    array[3] = 9
    expected = array.copy()
    assert not pages.give_back(taken)
    shared.fill(7)
    assert (array == expected).all()

"""System shared memory: opening clients' objects."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator

import pytest

from tensorfarm.shm.system import object_byte_size, open_object

from .shm_objects import SHM, ShmObject

PAGE = mmap.PAGESIZE


@contextlib.contextmanager
def opened(key: str) -> Iterator[int]:
    fd = open_object(key)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_leading_slashes_do_not_matter(object_: ShmObject, slashes: str) -> None:
    with opened(slashes + object_.key.lstrip("/")) as fd:
        assert object_byte_size(fd) == 4 * PAGE
        assert not os.get_inheritable(fd)


@pytest.mark.parametrize("key", ["", "/", "//", "a/b", "/a/b", "../dev/null", "..", "a\0b", "\ud800", "x" * 5000])
def test_keys_that_no_object_can_have(key: str) -> None:
    with pytest.raises((ValueError, OSError)):
        os.close(open_object(key))


def test_what_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        open_object("/tf-test-nothing-of-this-name")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_what_may_not_be_opened(object_: ShmObject) -> None:
    object_.path.chmod(0o400)
    with pytest.raises(PermissionError):
        open_object(object_.key)


def test_a_folder_is_no_object() -> None:
    folder = SHM / "tf-test-folder"
    folder.mkdir()
    try:
        with pytest.raises((OSError, ValueError)):
            open_object(folder.name)
    finally:
        folder.rmdir()


def test_opening_and_forgetting_unlinks_nothing(object_: ShmObject) -> None:
    with opened(object_.key) as fd:
        assert object_byte_size(fd) == 4 * PAGE
    assert object_.path.exists()

"""What several tests of this folder use."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from .shm_objects import ShmObject, shm_object


@pytest.fixture
def object_() -> Iterator[ShmObject]:
    """A client's object of four pages."""
    with shm_object(4 * mmap.PAGESIZE) as made:
        yield made

"""POSIX shared memory objects of a client, made without going through the product."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHM = Path("/dev/shm")


@dataclass(frozen=True)
class ShmObject:
    """A client's object: ``key`` is what it registers."""

    key: str

    @property
    def path(self) -> Path:
        return SHM / self.key.lstrip("/")

    def truncate(self, byte_size: int) -> None:
        os.truncate(self.path, byte_size)

    def write(self, offset: int, content: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(content)

    def read(self, offset: int, byte_size: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.read(byte_size)


@contextlib.contextmanager
def shm_object(byte_size: int) -> Iterator[ShmObject]:
    """An object of zeros with a name of its own, unlinked at the end."""
    made = ShmObject(f"/tf-test-{uuid.uuid4().hex}")
    made.path.write_bytes(bytes(byte_size))
    try:
        yield made
    finally:
        made.path.unlink(missing_ok=True)

"""A worker's real memory for tests: a server's arena to put requests in, a worker's arena, and a client's region."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorfarm.shm.arena import Arena, create_memory, read_only
from tensorfarm.shm.datatypes import DATATYPES, serialize_bytes
from tensorfarm.shm.placement import Inline, Lease, Placement, Span
from tensorfarm.shm.system import open_object
from tensorfarm.workers.contract.messages import RequestBody, Tensor, WantedOutput
from tensorfarm.workers.memory import WorkerMemory

from ..shm.shm_objects import ShmObject, shm_object

Array = np.ndarray[Any, np.dtype[Any]]

ARENA_BYTE_SIZE = 8 << 20
REGION_BYTE_SIZE = 1 << 20
REGION = 5
REGION_OFFSET = 24
"""Where the region begins in its object: not at a page."""


@dataclass(frozen=True)
class Bench:
    """``requests`` is the server's side of the request arena, ``outputs`` the worker's own arena."""

    memory: WorkerMemory
    requests: Arena
    outputs: Arena
    client: ShmObject

    def attach(self, number: int, offset: int, byte_size: int) -> None:
        self.memory.attach(number, open_object(self.client.key), offset, byte_size)

    def leased(self, content: bytes) -> Lease:
        """A copy of ``content`` in the request arena."""
        block = self.requests.reserve(len(content))
        block.view[:] = content
        return block.place(0, len(content))

    def leased_together(self, contents: Sequence[bytes]) -> list[Lease]:
        """The contents, one behind the other in one block."""
        whole = self.leased(b"".join(contents))
        places = []
        at = whole.offset
        for content in contents:
            places.append(Lease(0, at, len(content)))
            at += len(content)
        return places

    def spanned(self, offset: int, content: bytes) -> Span:
        """Have the client write ``content`` to its region."""
        self.client.write(REGION_OFFSET + offset, content)
        return Span(REGION, offset, len(content))

    def content(self, place: Placement) -> bytes:
        return bytes(self.memory.view(place))

    def address(self, place: Placement) -> int:
        return address(self.memory.view(place))


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """Everything, and its end: no descriptor stays."""
    fds = [create_memory(ARENA_BYTE_SIZE), create_memory(ARENA_BYTE_SIZE)]
    fds.append(read_only(fds[0]))
    try:
        with shm_object(REGION_OFFSET + REGION_BYTE_SIZE) as client:
            outputs = Arena(1, fds[1], ARENA_BYTE_SIZE)
            made = Bench(WorkerMemory(fds.pop(), outputs), Arena(0, fds[0], ARENA_BYTE_SIZE), outputs, client)
            made.attach(REGION, REGION_OFFSET, REGION_BYTE_SIZE)
            del outputs
            yield made
            # pytest holds the last test's fixtures beyond the leak check
            made.memory.disown(0)
            made.__dict__.clear()
    finally:
        for fd in fds:
            os.close(fd)


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def sample(datatype: str, shape: Sequence[int], seed: int = 1) -> Array:
    """Values of a datatype that differ from element to element; BYTES: some empty, some with zero bytes."""
    count = int(np.prod(shape))
    if datatype == "BYTES":
        elements = np.empty(count, np.object_)
        elements[:] = [bytes([seed % 256, 0]) * (number % 4) for number in range(count)]
        return elements.reshape(shape)
    random = np.random.default_rng(seed)
    dtype = DATATYPES[datatype].dtype
    if dtype == np.bool_:
        return random.integers(0, 2, shape).astype(np.bool_)
    return random.integers(0, 255, (count * dtype.itemsize,), np.uint8).view(dtype).reshape(shape)


def stored(array: Array) -> bytes:
    """An array's bytes on the wire."""
    return serialize_bytes(array.ravel().tolist()) if array.dtype == np.object_ else array.tobytes()


def inline(content: bytes) -> Inline:
    return Inline(memoryview(content))


def request(
    tensors: Sequence[Tensor], batch_size: int = 1, outputs: Sequence[str | WantedOutput] = (), request_id: str = ""
) -> RequestBody:
    wanted = [output if isinstance(output, WantedOutput) else WantedOutput(output) for output in outputs]
    return RequestBody(request_id, batch_size, list(tensors), wanted, {})

"""Shared memory for the requests that only name it: a region in and a region out, known to every server that is measured."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .load import LoadError, Reply, exchange
from .workload import Ask, WrongAnswer, post, tensor

_SHM = Path("/dev/shm")  # where Linux keeps POSIX shared memory objects


@dataclass(slots=True)
class Regions:
    """Two objects of ``byte_size`` bytes each."""

    byte_size: int
    inward: mmap.mmap
    outward: mmap.mmap

    def register(self, port: int) -> None:
        """Make both known to the server on a loopback port, as ``in`` and ``out``. Raises LoadError."""
        for name in ("in", "out"):
            body = json.dumps({"key": _key(name), "offset": 0, "byte_size": self.byte_size}).encode()
            request = post(f"/v2/systemsharedmemory/region/{name}/register", body, "application/json")
            reply, whole = exchange(("127.0.0.1", port), request)
            if b" 200" not in reply.status:
                raise LoadError(f"a region could not be registered: {whole[:300]!r}")

    def identity(self, byte_size: int) -> Ask:
        """The tensor of that size through both regions and the model ``identity``."""
        value = tensor(byte_size)
        return self.ask("identity", value, value)

    def ask(self, model: str, value: NDArray[np.float32], right: NDArray[np.float32]) -> Ask:
        """A request that names the first bytes of both regions; ``right`` must be in ``out`` afterwards.

        Making it fills ``in`` and clears ``out``. All requests find the same ``in``, so ``value`` must begin alike in all.
        """
        byte_size = value.nbytes
        self.inward[:byte_size] = value.tobytes()
        self.outward[:byte_size] = bytes(byte_size)
        described = {"name": "INPUT0", "shape": [byte_size // 4], "datatype": "FP32", "parameters": _place("in", byte_size)}
        body = json.dumps({"inputs": [described], "outputs": [{"name": "OUTPUT0", "parameters": _place("out", byte_size)}]}).encode()
        content = right.tobytes()

        def check(reply: Reply) -> None:
            found = self.outward[:byte_size]
            self.outward[:byte_size] = bytes(byte_size)
            if b" 200" not in reply.status or found != content:
                raise WrongAnswer(f"the region does not hold the right tensor: {reply.body[:300]!r}")

        return Ask(post(f"/v2/models/{model}/infer", body, "application/json"), check)


def _place(name: str, byte_size: int) -> dict[str, str | int]:
    return {"shared_memory_region": name, "shared_memory_byte_size": byte_size}


def _key(name: str) -> str:
    return f"/tensorfarm_bench_{os.getpid()}_{name}"


@contextmanager
def shared_regions(byte_size: int) -> Iterator[Regions]:
    """Make both objects; they are gone when the block is left. Raises OSError."""
    made: list[mmap.mmap] = []
    paths = [_SHM / _key(name)[1:] for name in ("in", "out")]
    try:
        for path in paths:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, byte_size)
                made.append(mmap.mmap(descriptor, byte_size))
            finally:
                os.close(descriptor)
        yield Regions(byte_size, made[0], made[1])
    finally:
        for region in made:
            region.close()
        for path in paths:
            path.unlink(missing_ok=True)

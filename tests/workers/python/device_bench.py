"""A worker with a GPU that is made of ordinary memory, a client's regions there, and capsules as libraries of arrays give them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tensorfarm.shm.placement import Span
from tensorfarm.workers.contract.messages import DeviceGrant
from tensorfarm.workers.device_memory import DeviceMemory
from tensorfarm.workers.memory import WorkerMemory
from tensorfarm.workers.python import dlpack

from ...standins.gpu.environment import environment, installed, ledger
from ...standins.gpu.exporter import Exporter

CUDA_REGION = 9
MIB = 1 << 20

_NAME = ctypes.create_string_buffer(b"dltensor")
_new_capsule = ctypes.pythonapi["PyCapsule_New"]
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


_LENT: list[Lent] = []
"""A library's memory of what it has lent outlives whoever has it."""


class Lent:
    """Memory that a library lends in a capsule; ``returns`` is how often it has got it back."""

    def __init__(self, address: int, shape: Sequence[int], datatype: str = "FP32", **more: Any) -> None:
        self.returns = 0
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        strides = more.get("strides")
        self._strides = None if strides is None else (ctypes.c_int64 * len(shape))(*strides)
        self._deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self._get_back)
        self._managed = dlpack._Managed()
        tensor = self._managed.tensor
        tensor.content, tensor.byte_offset = address - 8, 8
        tensor.device.kind, tensor.device.number = more.get("kind", 2), more.get("ordinal", 0)
        tensor.rank = len(shape)
        tensor.type.code, tensor.type.bits = dlpack._TYPES[datatype]
        tensor.type.lanes = 1
        tensor.shape = self._shape
        if self._strides is not None:
            tensor.strides = self._strides
        self._managed.deleter = ctypes.cast(self._deleter, ctypes.c_void_p).value
        _LENT.append(self)
        self.capsule: Any = _new_capsule(ctypes.addressof(self._managed), ctypes.cast(_NAME, ctypes.c_char_p), None)

    def _get_back(self, address: int) -> None:
        assert address == ctypes.addressof(self._managed)
        self.returns += 1

    def __dlpack__(self, stream: object = None) -> object:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._managed.tensor.device.kind, self._managed.tensor.device.number


@dataclass
class GpuBench:
    """``memory`` is that of a worker, ``client`` another process with memory on the GPU."""

    memory: WorkerMemory
    client: Exporter
    folder: Path

    def give_gpu(self, pool_byte_size: int = MIB) -> DeviceMemory:
        """Make it a worker of the first GPU."""
        self.memory.device = DeviceMemory(DeviceGrant(0, 0, pool_byte_size), self.memory.arena_number, ())
        return self.memory.device

    def region(self, content: bytes, number: int = CUDA_REGION) -> Region:
        """Memory of the client, registered."""
        address, handle = self.client.allocate(len(content), content)
        self.memory.open_region(number, handle, len(content))
        return Region(self, number, address, len(content))

    @property
    def copies(self) -> dict[str, int]:
        """How many copies this process has asked for, by kind."""
        content = ledger(self.folder, os.getpid())
        return {} if content is None else {kind: copies["count"] for kind, copies in content["copies"].items() if copies["count"]}

    @property
    def touched(self) -> bool:
        """Has this process made a context?"""
        return ledger(self.folder, os.getpid()) is not None


@dataclass
class Region:
    """A client's memory on the GPU."""

    bench: GpuBench
    number: int
    there: int
    byte_size: int

    def span(self, offset: int = 0, byte_size: int | None = None) -> Span:
        return Span(self.number, offset, self.byte_size - offset if byte_size is None else byte_size)

    @property
    def address(self) -> int:
        """Where it lies here."""
        address = self.bench.memory.device_address(self.span())
        assert address is not None
        return address

    def content(self) -> bytes:
        """What the client sees."""
        return self.bench.client.read(self.there, self.byte_size)


class Work:
    """A model's own memory on a GPU, and the stream it works in, for which nobody waits."""

    def __init__(self, byte_size: int, ordinal: int = 0) -> None:
        from cupy.cuda import runtime

        self._runtime: Any = runtime
        runtime.setDevice(ordinal)
        self.byte_size = byte_size
        self.address = int(runtime.malloc(byte_size))
        self._stream = runtime.streamCreateWithFlags(runtime.streamNonBlocking)

    def write(self, content: bytes, address: int = 0) -> Work:
        """Have its memory, or other, hold this, at some time."""
        array = np.frombuffer(content, np.uint8)
        self._runtime.memcpyAsync(address or self.address, array.ctypes.data, len(content), self._runtime.memcpyDefault, self._stream)
        return self


@contextlib.contextmanager
def gpu_bench(memory: WorkerMemory, folder: Path) -> Iterator[GpuBench]:
    """A machine with two GPUs, while it lasts. The worker has none to begin with."""
    variables = environment(folder, gpus=2)
    with Exporter(variables) as client, installed(variables):
        made = GpuBench(memory, client, folder)
        yield made
        memory.device = None
        made.__dict__.clear()
        gc.collect()
        _LENT.clear()

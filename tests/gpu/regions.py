"""Memory that a client shares with the server, by the stock client's own functions: on a GPU, or a POSIX object."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..system.test_regions import Object


class Region(Protocol):
    """What a request's tensors can lie in."""

    name: str
    byte_size: int

    def write(self, content: bytes, offset: int = 0) -> None:
        """Put bytes at an offset."""

    def read(self, byte_size: int, offset: int = 0) -> bytes:
        """A copy of the bytes at an offset."""

    def register(self, client: Any) -> None:
        """Make it known to a server."""

    def unregister(self, client: Any) -> None:
        """Have the server forget it."""

    def close(self) -> None:
        """Free the memory."""


@dataclass(frozen=True)
class Part:
    """``byte_size`` bytes of a region, for one tensor; 0: as many as an input has."""

    region: Region
    offset: int = 0
    byte_size: int = 0


class CudaRegion:
    """An allocation on a GPU, by its ordinal in this process; freed when closed."""

    def __init__(self, name: str, byte_size: int, device: int = 0) -> None:
        import tritonclient.utils.cuda_shared_memory as cuda

        self.name = name
        self.byte_size = byte_size
        self.device = device
        self._cuda: Any = cuda
        self._handle: Any = cuda.create_shared_memory_region(name, byte_size, device)

    def __enter__(self) -> CudaRegion:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def raw_handle(self) -> bytes:
        """The handle that other processes open it by, in base64."""
        handle: bytes = self._cuda.get_raw_handle(self._handle)
        return handle

    def write(self, content: bytes, offset: int = 0) -> None:
        """Put bytes at an offset."""
        # The client's function writes from the beginning on.
        if offset:
            content = self.read(offset) + content
        if content:
            self._cuda.set_shared_memory_region(self._handle, [np.frombuffer(content, np.uint8)])

    def read(self, byte_size: int, offset: int = 0) -> bytes:
        """A copy of the bytes at an offset."""
        array = self._cuda.get_contents_as_numpy(self._handle, np.uint8, [offset + byte_size])
        return bytes(array.tobytes()[offset:])

    def register(self, client: Any, byte_size: int | None = None) -> None:
        """Make it known to a server, or its first bytes."""
        client.register_cuda_shared_memory(self.name, self.raw_handle, self.device, self.byte_size if byte_size is None else byte_size)

    def unregister(self, client: Any) -> None:
        """Have the server forget it."""
        client.unregister_cuda_shared_memory(self.name)

    def close(self) -> None:
        """Free the memory."""
        if self._handle is not None:
            self._cuda.destroy_shared_memory_region(self._handle)
            # It is freed with the last reference.
            self._handle = None


class SystemRegion:
    """A POSIX shared-memory object of this process; unlinked when closed."""

    def __init__(self, name: str, byte_size: int) -> None:
        self.name = name
        self.byte_size = byte_size
        self._object = Object(f"gpu-{name}", byte_size)
        self._closed = False

    def __enter__(self) -> SystemRegion:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, content: bytes, offset: int = 0) -> None:
        """Put bytes at an offset."""
        self._object.map[offset : offset + len(content)] = content

    def read(self, byte_size: int, offset: int = 0) -> bytes:
        """A copy of the bytes at an offset."""
        return bytes(self._object.map[offset : offset + byte_size])

    def register(self, client: Any) -> None:
        """Make it known to a server."""
        client.register_system_shared_memory(self.name, self._object.key, self.byte_size)

    def unregister(self, client: Any) -> None:
        """Have the server forget it."""
        client.unregister_system_shared_memory(self.name)

    def close(self) -> None:
        """Unmap and unlink it."""
        if not self._closed:
            self._closed = True
            self._object.close()


def garbage_handle() -> bytes:
    """64 bytes that are no handle, in base64."""
    return base64.b64encode(bytes(range(100, 164)))

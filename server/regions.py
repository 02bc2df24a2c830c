"""Shared memory regions that clients have registered: one name space for both kinds.

The server holds a descriptor of each object and never touches its pages: a client that shrinks its
object makes such a touch fatal, and that may cost a worker, not the server.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..shm.placement import Span
from ..shm.system import object_byte_size, open_object
from ..workers.contract.status import Code, StatusError, internal, invalid, not_found, unavailable
from . import descriptors

RESERVED_KEY_PREFIX = "triton_python_backend_shm_region_"
_MAX_UINT64 = 2**64 - 1
_MAX_DESCRIPTORS = 1 << 18


@dataclass(frozen=True, slots=True)
class SystemRegion:
    """A registered part of a POSIX shared memory object: ``offset`` and ``byte_size`` in bytes."""

    name: str
    key: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class CudaRegion:
    """A registered CUDA allocation of ``byte_size`` bytes."""

    name: str
    device_id: int
    byte_size: int


@dataclass(slots=True, eq=False)
class _Held:
    number: int
    region: SystemRegion
    fd: int
    users: int = 0
    unregistered: bool = False


class RegionRegistry:
    """Regions by name, with the count of requests in flight that use each.

    ``on_drop(number)`` is called when a region has gone, so that workers unmap it.
    """

    def __init__(self, capacity: int | None = None) -> None:
        """``capacity`` is how many regions there can be; None: a quarter of the descriptors that the process may have."""
        self._capacity = min(descriptors.limit(), _MAX_DESCRIPTORS) // 4 if capacity is None else capacity
        self.on_drop: Callable[[int], None] = lambda number: None
        self._by_name: dict[str, _Held] = {}
        self._by_number: dict[int, _Held] = {}
        self._numbers = itertools.count(1)

    def register_system(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a part of a POSIX object. Any byte offset will do. Raises StatusError."""
        if name in self._by_name:
            raise StatusError(Code.ALREADY_EXISTS, f"shared memory region '{name}' already in manager")
        bare = key.lstrip("/")
        if not bare:
            raise invalid(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
        if bare.startswith(RESERVED_KEY_PREFIX):
            raise invalid(
                f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved prefix "
                f"'{RESERVED_KEY_PREFIX}'"
            )
        if len(self._by_number) >= self._capacity:
            raise unavailable(f"cannot register shared memory region '{name}': there can be no more than {self._capacity}")
        try:
            fd = open_object(key)
        except (OSError, ValueError):
            raise internal(f"Unable to open shared memory region: '{key}'") from None
        try:
            if offset < 0 or byte_size <= 0 or offset + byte_size > object_byte_size(fd):
                raise invalid(f"failed to register shared memory region '{name}': invalid args")
        except OSError:
            os.close(fd)
            raise internal(f"Invalid shared memory region: '{key}'") from None
        except StatusError:
            os.close(fd)
            raise
        held = _Held(next(self._numbers), SystemRegion(name, key, offset, byte_size), fd)
        self._by_name[name] = self._by_number[held.number] = held

    def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Register a CUDA allocation by its IPC handle. Raises StatusError."""
        raise invalid(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")

    def system_status(self, name: str | None) -> list[SystemRegion]:
        """The system region of that name, or all of them. Raises StatusError NOT_FOUND."""
        if name is None:
            return [held.region for _, held in sorted(self._by_name.items())]
        if name not in self._by_name:
            raise not_found(f"Unable to find system shared memory region: '{name}'")
        return [self._by_name[name].region]

    def cuda_status(self, name: str | None) -> list[CudaRegion]:
        """The CUDA region of that name, or all of them. Raises StatusError NOT_FOUND."""
        if name is None:
            return []
        if name in self._by_name:
            raise not_found(f"The region named '{name}' is registered as system shared memory, not CUDA shared memory")
        raise not_found(f"Unable to find cuda shared memory region: '{name}'")

    def unregister_system(self, name: str | None) -> None:
        """Forget a region, or all of that kind; those in use go when their last request ends. Unknown names are fine."""
        for held in list(self._by_name.values()) if name is None else [self._by_name[name]] if name in self._by_name else []:
            held.unregistered = True
            self._drop_unused(held)

    def unregister_cuda(self, name: str | None) -> None:
        """Forget a CUDA region, or all of them."""

    def span(self, name: str, offset: int, byte_size: int) -> Span:
        """A part of a region for a request to read or write. Raises StatusError."""
        held = self._by_name.get(name)
        if held is None:
            raise not_found(f"Unable to find shared memory region: '{name}'")
        if offset >= held.region.byte_size:
            raise invalid(f"Invalid offset for shared memory region: '{name}'")
        if offset + byte_size > _MAX_UINT64:
            raise invalid(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value "
                f"({_MAX_UINT64}) for region '{name}'"
            )
        if offset + byte_size > held.region.byte_size:
            raise invalid(f"Invalid offset + byte size for shared memory region: '{name}'")
        return Span(held.number, offset, byte_size)

    def mapping(self, number: int) -> tuple[int, int, int]:
        """What a worker needs to map a region: descriptor, offset and size in bytes."""
        held = self._by_number[number]
        return held.fd, held.region.offset, held.region.byte_size

    def hold(self, numbers: Iterable[int]) -> None:
        """A request that uses these regions is in flight. Raises NOT_FOUND, and then none of them is held."""
        try:
            used = [self._by_number[number] for number in numbers]
        except KeyError:
            raise not_found("a shared memory region of the request was unregistered before it was used") from None
        for held in used:
            held.users += 1

    def release(self, numbers: Iterable[int]) -> None:
        """That request has ended."""
        for number in numbers:
            held = self._by_number[number]
            held.users -= 1
            self._drop_unused(held)

    def _drop_unused(self, held: _Held) -> None:
        if held.unregistered and not held.users:
            del self._by_name[held.region.name], self._by_number[held.number]
            os.close(held.fd)
            self.on_drop(held.number)

    def close(self) -> None:
        """Forget everything: the server ends."""
        for held in list(self._by_number.values()):
            held.users = 0
            held.unregistered = True
            self._drop_unused(held)


NO_REGIONS = RegionRegistry(0)
"""What clients see that may not share memory with the server."""

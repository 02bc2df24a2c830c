"""Shared memory regions that clients have registered: one name space for both kinds.

The server holds a descriptor of each object and never touches its pages: a client that shrinks its
object makes such a touch fatal, and that may cost a worker, not the server.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ..shm.placement import Span
from ..shm.system import object_byte_size, open_object
from ..workers.contract.status import Code, StatusError, internal, invalid, not_found, unavailable
from . import descriptors

RESERVED_KEY_PREFIX = "triton_python_backend_shm_region_"
R = TypeVar("R", "SystemRegion", "CudaRegion")

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
    """The first ``byte_size`` bytes of a registered CUDA allocation, and the handle that it is opened by."""

    name: str
    device_id: int
    byte_size: int
    handle: bytes


@dataclass(slots=True, eq=False)
class _Held:
    """``fd`` is -1 for a CUDA region; ``known``: it has been opened, and requests may use it."""

    number: int
    region: SystemRegion | CudaRegion
    fd: int
    users: int = 0
    known: bool = True
    unregistered: bool = False


class RegionRegistry:
    """Regions by name, with the count of requests in flight that use each.

    ``on_drop(number, region)`` is called when a region has gone, so that workers unmap it.
    """

    def __init__(self, capacity: int | None = None) -> None:
        """``capacity`` is how many regions there can be; None: a quarter of the descriptors that the process may have."""
        self._capacity = min(descriptors.limit(), _MAX_DESCRIPTORS) // 4 if capacity is None else capacity
        self.on_drop: Callable[[int, SystemRegion | CudaRegion], None] = lambda number, region: None
        self._by_name: dict[str, _Held] = {}
        self._by_number: dict[int, _Held] = {}
        self._numbers = itertools.count(1)

    def register_system(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a part of a POSIX object. Any byte offset will do. Raises StatusError."""
        self._check_new(name)
        bare = key.lstrip("/")
        if not bare:
            raise invalid(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
        if bare.startswith(RESERVED_KEY_PREFIX):
            raise invalid(
                f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved prefix "
                f"'{RESERVED_KEY_PREFIX}'"
            )
        self._check_room(name)
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
        self._add(SystemRegion(name, key, offset, byte_size), fd, known=True)

    def reserve_cuda(self, region: CudaRegion) -> int:
        """Take the name of a CUDA region that is about to be opened; returns its number. Raises StatusError.

        ``confirm`` or ``abandon`` follows.
        """
        self._check_new(region.name)
        self._check_room(region.name)
        return self._add(region, -1, known=False)

    def confirm(self, number: int) -> None:
        """A CUDA region has been opened: requests may use it."""
        self._by_number[number].known = True

    def abandon(self, number: int) -> None:
        """A CUDA region could not be opened, or nobody waits for it any more."""
        held = self._by_number.pop(number)
        del self._by_name[held.region.name]

    def _check_new(self, name: str) -> None:
        if name in self._by_name:
            raise StatusError(Code.ALREADY_EXISTS, f"shared memory region '{name}' already in manager")

    def _check_room(self, name: str) -> None:
        if len(self._by_number) >= self._capacity:
            raise unavailable(f"cannot register shared memory region '{name}': there can be no more than {self._capacity}")

    def _add(self, region: SystemRegion | CudaRegion, fd: int, *, known: bool) -> int:
        held = _Held(next(self._numbers), region, fd, known=known)
        self._by_name[region.name] = self._by_number[held.number] = held
        return held.number

    def system_status(self, name: str | None) -> list[SystemRegion]:
        """The system region of that name, or all of them. Raises StatusError NOT_FOUND."""
        return self._status(name, SystemRegion, "system", "system shared memory", "CUDA shared memory")

    def cuda_status(self, name: str | None) -> list[CudaRegion]:
        """The CUDA region of that name, or all of them. Raises StatusError NOT_FOUND."""
        return self._status(name, CudaRegion, "cuda", "CUDA shared memory", "system shared memory")

    def _status(self, name: str | None, kind: type[R], label: str, this: str, other: str) -> list[R]:
        if name is None:
            return [held.region for _, held in sorted(self._by_name.items()) if held.known and isinstance(held.region, kind)]
        held = self._by_name.get(name)
        if held is None or not held.known:
            raise not_found(f"Unable to find {label} shared memory region: '{name}'")
        if not isinstance(held.region, kind):
            raise not_found(f"The region named '{name}' is registered as {other}, not {this}")
        return [held.region]

    def unregister_system(self, name: str | None) -> None:
        """Forget a region, or all of that kind; those in use go when their last request ends. Unknown names are fine."""
        self._unregister(name, SystemRegion)

    def unregister_cuda(self, name: str | None) -> list[int]:
        """As ``unregister_system``, for those of CUDA; returns the numbers of those that were meant."""
        return self._unregister(name, CudaRegion)

    def _unregister(self, name: str | None, kind: type[SystemRegion] | type[CudaRegion]) -> list[int]:
        meant = []
        for held in list(self._by_name.values()) if name is None else [self._by_name[name]] if name in self._by_name else []:
            if held.known and isinstance(held.region, kind):
                meant.append(held.number)
                held.unregistered = True
                self._drop_unused(held)
        return meant

    def span(self, name: str, offset: int, byte_size: int) -> Span:
        """A part of a region for a request to read or write. Raises StatusError."""
        held = self._by_name.get(name)
        if held is None or not held.known:
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

    def region(self, number: int) -> tuple[SystemRegion | CudaRegion, int]:
        """A region, and the descriptor that it is mapped by if it is one of the system's."""
        held = self._by_number[number]
        return held.region, held.fd

    def device_of(self, number: int) -> int | None:
        """The GPU that a region lies on; None for one of the system's, or one that has gone."""
        held = self._by_number.get(number)
        return held.region.device_id if held is not None and isinstance(held.region, CudaRegion) else None

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
            if held.fd >= 0:
                os.close(held.fd)
            self.on_drop(held.number, held.region)

    def close(self) -> None:
        """Forget everything: the server ends, its workers have, and nobody is told."""
        self.on_drop = lambda number, region: None
        for held in list(self._by_number.values()):
            held.users = 0
            held.unregistered = True
            self._drop_unused(held)


NO_REGIONS = RegionRegistry(0)
"""What clients see that may not share memory with the server."""
